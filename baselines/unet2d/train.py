"""Train the 2D U-Net on full masks, resumable after every checkpoint."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import CrossEntropyLoss

from autopet.checkpoint import publish_model, refuse_other_content, save_weights
from autopet.cohort import Case, labelled
from autopet.folders import remove_at_once
from autopet.slices import CHANNELS, Slices, cache_slices, lesion_weight, read_labels, read_slices
from autopet.training import METRICS, Training, epoch_batches, hold_out, polynomial_rate
from autopet.work import claim_work, file_sizes
from baselines.unet2d.model import METHOD, WEIGHTS, Settings, build_network, lesion_probability


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
        No labelled case, no patient left to train on, no slice with or none without a lesion, another training's work
        folder, or a loss that is not finite.
    """
    refuse_other_content(out)
    cases = labelled(cases)
    claim_work(work, settings, [(case.name, file_sizes((case.ct, case.suv, case.mask))) for case in cases])
    training, validation = hold_out(cases, settings.validation_share, seed=settings.seed, by_lesions=True)
    folders = cache_slices(cases, work / "slices", **asdict(settings.frame))
    fit_on = [folders[case.name] for case in training]
    weight = settings.lesion_weight or lesion_weight(read_labels(fit_on))
    run = Run(settings, work, device, weight)
    run.fit(fit_on, [folders[case.name] for case in validation])

    def fill(folder: Path) -> dict:
        save_weights(folder / WEIGHTS, run.final_weights())
        shutil.copyfile(work / METRICS, folder / METRICS)
        return {
            "method": METHOD,
            "settings": asdict(settings),
            "channels": list(CHANNELS),
            "lesion_weight": weight,
            "kept_epoch": run.best["epoch"] if run.best else settings.epochs - 1,
            "training_cases": [case.name for case in training],
            "validation_cases": [case.name for case in validation],
        }

    publish_model(out, fill)
    remove_at_once(work)
    return out


@dataclass
class Run(Training):
    """The training of the 2D U-Net."""

    lesion_weight: float  # of the class lesion in the cross-entropy

    columns = ("epoch", "learning_rate", "train_loss", "val_dice", "seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        torch.manual_seed(self.settings.seed)
        self.network = build_network(self.settings).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate)
        self.loss = CrossEntropyLoss(torch.tensor([1.0, self.lesion_weight], device=self.device))

    def fit(self, training: Sequence[Path], validation: Sequence[Path]) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        settings, self.validation = self.settings, validation
        data = Slices(
            training,
            ranges=settings.ranges(CHANNELS),
            target="mask",
            augmentation=settings.augmentation,
            epochs=settings.epochs,
            seed=settings.seed,
            limit=settings.slices_per_epoch,
            lesion_share=settings.lesion_share,
        )
        self.train(
            data,
            partial(epoch_batches, epochs=settings.epochs, count=data.per_epoch, batch=settings.batch),
            steps=math.ceil(data.per_epoch / settings.batch),
            title=f"2D U-Net on {self.device}",
        )

    def begin_epoch(self) -> dict:
        """Polynomial decay of the learning rate."""
        self.set_rate(polynomial_rate(self.settings, self.epoch))
        return {}

    def validate(self) -> dict:
        """In every `validation_every`th epoch and the last one."""
        due = self.validation and self.ends(self.settings.validation_every)
        return {"val_dice": self._mean_dice() if due else None}

    def _mean_dice(self) -> float | None:
        """Over the held-out cases with lesions, each in 3D on its slices; None without such a case."""
        scores = []
        for folder in self.validation:
            images, masks, _ = read_slices(folder)
            if masks.any():
                found = lesion_probability(self.network, images, settings=self.settings, device=self.device) > 0.5
                scores.append(2 * float((found & (masks != 0)).sum()) / float(found.sum() + (masks != 0).sum()))
        if not scores:
            return None
        dice = float(np.mean(scores))
        self.keep_best("dice", dice, epoch=self.epoch)
        return dice
