"""Train MONAI's U-Net, resumable after every checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss, DiceLoss

from autopet.checkpoint import publish_model, refuse_other_content, save_weights
from autopet.cohort import Case, labelled
from autopet.folders import remove_at_once
from autopet.spacing import median_spacing_mm
from autopet.training import METRICS, Training, epoch_batches, hold_out, polynomial_rate
from autopet.work import claim_work, file_sizes
from baselines.unet3d.model import CHANNELS, METHOD, WEIGHTS, Settings, build_network, lesion_probability
from baselines.unet3d.patches import Patches, cache_cases, plain_tensors


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Train the network and publish the model folder.

    Parameters
    ----------
    cases : sequence of Case
        Training cases with a lesion mask; those with an empty mask are trained on, too. `validation_share` of their
        patients is held out to choose the epoch that is kept.
    out : Path
        Model folder to publish: weights.safetensors, metrics.csv, config.json.
    settings : Settings
    work : Path
        Scratch folder; a second call with the same cases and settings goes on from the last checkpoint and ends with
        the same weights. It is removed once the model is published.
    device : str
        `cpu` or `cuda`.

    Raises
    ------
    AutopetError
        No labelled case, no patient left to train on, another training's work folder, or a loss that is not finite.
    """
    refuse_other_content(out)
    cases = labelled(cases)
    _claim(work, cases, settings)
    spacing_mm = settings.spacing_mm or median_spacing_mm(cases)
    training, validation = hold_out(cases, settings.validation_share, seed=settings.seed)
    folders = cache_cases(cases, work / "cases", settings, spacing_mm)
    run = Run(settings, work, device)
    run.fit([folders[case.name] for case in training], [folders[case.name] for case in validation])

    def fill(folder: Path) -> dict:
        save_weights(folder / WEIGHTS, run.final_weights())
        shutil.copyfile(work / METRICS, folder / METRICS)
        return {
            "method": METHOD,
            "settings": asdict(settings),
            "channels": list(CHANNELS),
            "spacing_mm": list(spacing_mm),
            "kept_epoch": run.best["epoch"] if run.best else settings.epochs - 1,
            "training_cases": [case.name for case in training],
            "validation_cases": [case.name for case in validation],
        }

    publish_model(out, fill)
    remove_at_once(work)
    return out


def _claim(work: Path, cases: Sequence[Case], settings: Settings) -> None:
    """Take the work folder for exactly these cases, known by their names and the sizes of their files."""
    claim_work(work, settings, [(case.name, file_sizes((case.ct, case.suv, case.mask))) for case in cases])


def build_loss(settings: Settings) -> torch.nn.Module:
    """Dice of the lesion class over the whole batch after softmax, as the original; `dice_ce` adds cross-entropy."""
    kind = DiceLoss if settings.loss == "dice" else DiceCELoss
    return kind(to_onehot_y=True, softmax=True, include_background=False, batch=True)


class Run(Training):
    """The training of the U-Net."""

    columns = ("epoch", "learning_rate", "train_loss", "val_dice", "seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        torch.manual_seed(self.settings.seed)
        self.network = build_network(self.settings).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate)
        self.loss = build_loss(self.settings)

    def fit(self, training: Sequence[Path], validation: Sequence[Path]) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        settings, self.validation = self.settings, validation
        steps, batch = settings.iterations_per_epoch, settings.batch
        batches = partial(epoch_batches, epochs=settings.epochs, count=steps * batch, batch=batch)
        with plain_tensors():
            self.train(Patches(training, settings), batches, steps=steps, title=f"U-Net on {self.device}")

    def begin_epoch(self) -> dict:
        """Polynomial decay of the learning rate."""
        self.set_rate(polynomial_rate(self.settings, self.epoch))
        return {}

    def validate(self) -> dict:
        """In every `validation_every`th epoch and the last one."""
        due = self.validation and self.ends(self.settings.validation_every)
        return {"val_dice": self._mean_dice() if due else None}

    def _mean_dice(self) -> float | None:
        """Over the held-out cases with lesions, on the working grid; None without such a case."""
        scores = []
        for folder in self.validation:
            label = np.load(folder / "label.npy")[0] != 0
            if label.any():
                image = np.load(folder / "image.npy").astype(np.float32)
                found = lesion_probability(self.network, image, settings=self.settings, device=self.device) > 0.5
                scores.append(2 * float((found & label).sum()) / float(found.sum() + label.sum()))
        if not scores:
            return None
        dice = float(np.mean(scores))
        self.keep_best("dice", dice, epoch=self.epoch)
        return dice
