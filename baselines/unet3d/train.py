"""Train MONAI's U-Net, resumable after every checkpoint."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.utils.data import DataLoader

from autopet.checkpoint import publish_model
from autopet.cohort import Case, labelled, write_table
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.memory import keep_large_blocks
from autopet.progress import Meter
from autopet.spacing import median_spacing_mm
from autopet.work import claim_work, file_sizes
from baselines.unet3d.model import CHANNELS, METHOD, Settings, build_network, lesion_probability, save_weights
from baselines.unet3d.patches import Patches, cache_cases, plain_tensors

METRICS = "metrics.csv"
COLUMNS = ("epoch", "learning_rate", "train_loss", "val_dice", "seconds")
CHECKPOINT = "checkpoint.pth"


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
    cases = labelled(cases)
    _claim(work, cases, settings)
    spacing_mm = settings.spacing_mm or median_spacing_mm(cases)
    training, validation = hold_out(cases, settings.validation_share, settings.seed)
    folders = cache_cases(cases, work / "cases", settings, spacing_mm)
    run = Run(settings, work, device)
    run.fit([folders[case.name] for case in training], [folders[case.name] for case in validation])

    def fill(folder: Path) -> dict:
        save_weights(folder, run.final_weights())
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
    shutil.rmtree(work, ignore_errors=True)
    return out


def _claim(work: Path, cases: Sequence[Case], settings: Settings) -> None:
    """Take the work folder for exactly these cases, known by their names and the sizes of their files."""
    claim_work(work, settings, [(case.name, file_sizes((case.ct, case.suv, case.mask))) for case in cases])


def hold_out(cases: Sequence[Case], share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Training and validation cases: `share` of the patients, rounded, is drawn for validation."""
    patients = sorted({case.patient_id for case in cases})
    drawn = np.random.default_rng(seed).permutation(len(patients))[: round(share * len(patients))]
    held = {patients[index] for index in drawn}
    training = [case for case in cases if case.patient_id not in held]
    if not training:
        raise AutopetError(
            f"validation_share={share:g} holds out all {len(patients)} patients; lower it, or give more patients"
        )
    return training, [case for case in cases if case.patient_id in held]


def learning_rate(settings: Settings, epoch: int) -> float:
    """Polynomial decay; constant with `decay_power` 0."""
    return settings.learning_rate * (1 - epoch / settings.epochs) ** settings.decay_power


def build_loss(settings: Settings) -> torch.nn.Module:
    """Dice of the lesion class over the whole batch after softmax, as the original; `dice_ce` adds cross-entropy."""
    kind = DiceLoss if settings.loss == "dice" else DiceCELoss
    return kind(to_onehot_y=True, softmax=True, include_background=False, batch=True)


@dataclass
class Run:
    """A training that can be broken off: everything that a checkpoint holds, and the steps between two of them."""

    settings: Settings
    work: Path
    device: str
    epoch: int = 0  # the next one
    rows: list[dict] = field(default_factory=list)  # of metrics.csv
    best: dict = field(default_factory=dict)  # epoch, dice and weights of the best validation so far

    def __post_init__(self) -> None:
        torch.manual_seed(self.settings.seed)
        if self.device == "cpu":
            keep_large_blocks()
        self.network = build_network(self.settings).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate)
        self.loss = build_loss(self.settings)

    def fit(self, training: Sequence[Path], validation: Sequence[Path]) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        self._resume()
        per_epoch = self.settings.iterations_per_epoch
        with (
            plain_tensors(),
            Meter(f"U-Net on {self.device}", self.settings.epochs * per_epoch) as meter,
        ):
            meter.advance(self.epoch * per_epoch, note="resumed" if self.epoch else "")
            batches = iter(self._batches(training))
            while self.epoch < self.settings.epochs:
                self._one_epoch(batches, validation, meter)
        self._write_metrics()

    def _batches(self, training: Sequence[Path]) -> DataLoader:
        """Batches from the next epoch to the last, in order."""
        settings = self.settings
        patches = Patches(training, settings)
        first = self.epoch * settings.iterations_per_epoch * settings.batch
        workers = min(settings.workers, os.cpu_count() or 1)
        return DataLoader(
            patches,
            batch_size=settings.batch,
            sampler=range(first, len(patches)),
            num_workers=workers,
            pin_memory=self.device.startswith("cuda"),
        )

    def _one_epoch(self, batches: Iterator, validation: Sequence[Path], meter: Meter) -> None:
        started = time.monotonic()
        epoch, rate = self.epoch, learning_rate(self.settings, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        losses = []
        for _ in range(self.settings.iterations_per_epoch):
            losses.append(self.step(*next(batches)))
            meter.advance(note=f"epoch {epoch} loss {losses[-1]:.3f}")
        row = {"epoch": epoch, "learning_rate": rate, "train_loss": float(np.mean(losses)), "val_dice": None}
        due = (epoch + 1) % self.settings.validation_every == 0 or epoch + 1 == self.settings.epochs
        if validation and due:
            row["val_dice"] = self._validate(validation)
        self.rows.append(row | {"seconds": round(time.monotonic() - started, 2)})
        self.epoch += 1
        if self.epoch % self.settings.checkpoint_every == 0 or self.epoch == self.settings.epochs:
            self._write_metrics()
            self._save()

    def step(self, image: torch.Tensor, label: torch.Tensor) -> float:
        """One iteration on image (batch, channel, z, y, x) and label (batch, 1, z, y, x); its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(image.to(self.device, non_blocking=True))
        loss = self.loss(logits, label.to(self.device, non_blocking=True))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AutopetError(f"the loss of epoch {self.epoch} is {value}; lower learning_rate, or look at the images")
        loss.backward()
        self.optimizer.step()
        return value

    def _validate(self, validation: Sequence[Path]) -> float | None:
        """Mean Dice over the held-out cases with lesions, on the working grid; None without such a case."""
        scores = []
        for folder in validation:
            label = np.load(folder / "label.npy")[0] != 0
            if label.any():
                image = np.load(folder / "image.npy").astype(np.float32)
                found = lesion_probability(self.network, image, settings=self.settings, device=self.device) > 0.5
                scores.append(2 * float((found & label).sum()) / float(found.sum() + label.sum()))
        if not scores:
            return None
        dice = float(np.mean(scores))
        if not self.best or dice >= self.best["dice"]:
            weights = {key: tensor.detach().cpu().clone() for key, tensor in self.network.state_dict().items()}
            self.best = {"epoch": self.epoch, "dice": dice, "weights": weights}
        return dice

    def final_weights(self) -> Mapping[str, torch.Tensor]:
        """Those of the best validated epoch; without validation the last ones."""
        return self.best["weights"] if self.best else self.network.state_dict()

    def _save(self) -> None:
        """Whole or not at all, so that a kill in the middle leaves the previous checkpoint."""
        state = {
            "epoch": self.epoch,
            "rows": self.rows,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with whole_file(self.work / CHECKPOINT) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        path = self.work / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.rows, self.best = state["epoch"], state["rows"], state["best"]

    def _write_metrics(self) -> None:
        write_table(self.work / METRICS, self.rows, COLUMNS)
