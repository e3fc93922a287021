"""Lesions or none: training the classifier of one fold and one projection, and the score of a scan (section 7)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from algorithms.swinmip.model import PROJECTIONS, Settings
from algorithms.swinmip.preprocessing import Ranges
from algorithms.swinmip.projections import IMAGE_CHANNELS, Projections, project, read_volume, standard_volume
from algorithms.swinmip.schedule import cyclic, load_state
from algorithms.swinmip.swin import Classifier, build_classifier, load_imagenet
from autopet.cohort import write_table
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.memory import keep_large_blocks
from autopet.patches import plain_tensors
from autopet.progress import Meter, console
from autopet.volume import Volume
from autopet.work import claim_work, file_sizes

METRICS = "metrics.csv"
COLUMNS = ("cycle", "epoch", "learning_rate", "train_loss", "val_auroc", "seconds")
CHECKPOINT = "checkpoint.pth"


def train_classifier(
    positives: Sequence[Path],
    negatives: Sequence[Path],
    val_positives: Sequence[Path],
    val_negatives: Sequence[Path],
    work: Path,
    *,
    axis: str,
    settings: Settings,
    device: str,
    fold: int,
    out: Path,
) -> dict:
    """Train the classifier of one fold and one projection.

    Parameters
    ----------
    positives, negatives : sequence of Path
        Volumes of `projections.cache_volumes`, with and without lesions.
    val_positives, val_negatives : sequence of Path
        Those that the cycle to keep is chosen by. Without one kind of them the last cycle is kept.
    work : Path
        Scratch folder of this training alone; a second call with the same volumes and settings goes on from the last
        checkpoint and ends with the same weights. metrics.csv stays there.
    axis : str
        x, y or z.
    out : Path
        The weights, a safetensors file.

    Returns
    -------
    dict
        `kept_cycle`, from 0, and `auroc`, that of the kept cycle on the validation volumes or None.

    Raises
    ------
    AutopetError
        No positive or no negative volume, another training's work folder, or a loss that is not finite.
    """
    if not positives or not negatives:
        raise AutopetError(
            f"the classifier learns from scans with and without lesions, found {len(positives)} and {len(negatives)}; "
            "give both kinds, or set gate=false"
        )
    parts = [
        [(path.stem, *file_sizes([path])) for path in part]
        for part in (positives, negatives, val_positives, val_negatives)
    ]
    claim_work(work, settings, (axis, fold, parts))
    run = Run(settings, work, device=device, axis=axis, fold=fold)
    run.fit(positives, negatives, val_positives, val_negatives)
    save_classifier(out, run.final_weights())
    return {"kept_cycle": run.best.get("cycle", settings.cls_cycles - 1), "auroc": run.best.get("auroc")}


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs in which the positive scores higher, an equal pair counting half.

    NaN without a positive or without a negative.
    """
    if not len(positives) or not len(negatives):
        return math.nan
    first, second = np.asarray(positives)[:, None], np.asarray(negatives)[None]
    return float(np.mean((first > second) + 0.5 * (first == second)))


@dataclass
class Run:
    """A training that can be broken off: everything that a checkpoint holds, and the steps between two of them."""

    settings: Settings
    work: Path
    device: str
    axis: str
    fold: int
    epoch: int = 0  # the next one, counted through all cycles
    rows: list[dict] = field(default_factory=list)  # of metrics.csv
    best: dict = field(default_factory=dict)  # cycle, auroc and weights of the best validation so far

    def __post_init__(self) -> None:
        if self.device == "cpu":
            keep_large_blocks()
        self.key = (self.settings.seed, PROJECTIONS.index(self.axis), self.fold)
        self._seed(0)
        self.network = build_classifier(self.settings, self.axis)
        if self.settings.imagenet:
            console.print(load_imagenet(self.network, Path(self.settings.imagenet)).summary(), highlight=False)
        self.network.to(self.device)
        self.optimizer = torch.optim.NAdam(
            self.network.parameters(),
            self.settings.cls_learning_rate,
            weight_decay=self.settings.cls_weight_decay,
        )
        self.loss = nn.BCEWithLogitsLoss()

    def _seed(self, turn: int) -> None:
        """Start torch's random numbers anew (first weights; blocks that an epoch leaves out), as in every other run."""
        torch.manual_seed(int(np.random.default_rng([*self.key, 2, turn]).integers(2**32)))

    @property
    def epochs(self) -> int:
        """In all cycles together."""
        return self.settings.cls_cycles * self.settings.cls_epochs_per_cycle

    def fit(
        self,
        positives: Sequence[Path],
        negatives: Sequence[Path],
        val_positives: Sequence[Path],
        val_negatives: Sequence[Path],
    ) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        labels = [1.0] * len(positives) + [0.0] * len(negatives)
        data = Projections([*positives, *negatives], labels, axis=self.axis, settings=self.settings, key=self.key)
        self.steps = math.ceil(len(labels) / self.settings.cls_batch)  # of an epoch
        self.scheduler = cyclic(self.optimizer, cycle_steps=self.steps * self.settings.cls_epochs_per_cycle)
        self._resume()
        with plain_tensors(), Meter(self._title(), self.epochs * self.steps) as meter:
            self.validation = [self._images(part) for part in (val_positives, val_negatives)]
            meter.advance(self.epoch * self.steps, note="resumed" if self.epoch else "")
            batches = iter(self._batches(data))
            while self.epoch < self.epochs:
                self._one_epoch(batches, meter)
        self._write_metrics()

    def _title(self) -> str:
        return f"classifier of {self.axis}, fold {self.fold} on {self.device}"

    def _batches(self, data: Projections) -> DataLoader:
        """Batches from the next epoch to the last, in order; none holds images of two epochs."""
        size, count = self.settings.cls_batch, len(data.volumes)
        starts = (epoch * count for epoch in range(self.epoch, self.epochs))
        order = [
            list(range(first, min(first + size, start + count)))
            for start in starts
            for first in range(start, start + count, size)
        ]
        workers = min(self.settings.workers, os.cpu_count() or 1)
        return DataLoader(data, batch_sampler=order, num_workers=workers, pin_memory=self.device.startswith("cuda"))

    def _images(self, volumes: Sequence[Path]) -> torch.Tensor:
        """Projections without deformation, (volumes, 1, rows, columns)."""
        images = [project(read_volume(path), self.axis, self.settings)[:1].clone() for path in volumes]
        return torch.stack(images) if images else torch.empty(0)

    def _one_epoch(self, batches: Iterator, meter: Meter) -> None:
        started = time.monotonic()
        cycle, place = divmod(self.epoch, self.settings.cls_epochs_per_cycle)
        rate = self.optimizer.param_groups[0]["lr"]
        self._seed(1 + self.epoch)
        self.network.train()
        losses = []
        for _ in range(self.steps):
            losses.append(self.step(*next(batches)))
            meter.advance(note=f"epoch {self.epoch} loss {losses[-1]:.3f}")
        row = {"cycle": cycle, "epoch": self.epoch, "learning_rate": rate, "train_loss": float(np.mean(losses))}
        row["val_auroc"] = self._validate(cycle) if place + 1 == self.settings.cls_epochs_per_cycle else None
        self.rows.append(row | {"seconds": round(time.monotonic() - started, 2)})
        self.epoch += 1
        if self.epoch % self.settings.checkpoint_every == 0 or self.epoch == self.epochs:
            self._write_metrics()
            self._save()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One iteration on images (batch, 3, rows, columns) and labels (batch,); its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(images.to(self.device, non_blocking=True))
        loss = self.loss(logits, labels.to(self.device, torch.float32))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AutopetError(
                f"the loss of the classifier's epoch {self.epoch} is {value}; lower cls_learning_rate, or look at the "
                "images"
            )
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return value

    def _validate(self, cycle: int) -> float | None:
        """AUROC over the validation volumes; None without one of both kinds. Of equal cycles the later is kept."""
        if not all(len(images) for images in self.validation):
            return None
        area = auroc(*(self._probabilities(images) for images in self.validation))
        if not self.best or area >= self.best["auroc"]:
            weights = {key: tensor.detach().cpu().clone() for key, tensor in self.network.state_dict().items()}
            self.best = {"cycle": cycle, "auroc": area, "weights": weights}
        return area

    @torch.inference_mode()
    def _probabilities(self, images: torch.Tensor) -> np.ndarray:
        self.network.eval()
        parts = images.expand(-1, IMAGE_CHANNELS, -1, -1).split(self.settings.cls_batch)
        return np.concatenate([torch.sigmoid(self.network(part.to(self.device))).cpu().numpy() for part in parts])

    def final_weights(self) -> Mapping[str, torch.Tensor]:
        """Those of the best validated cycle; without validation the last ones."""
        return self.best["weights"] if self.best else self.network.state_dict()

    def _save(self) -> None:
        """Whole or not at all, so that a kill in the middle leaves the previous checkpoint."""
        state = {
            "epoch": self.epoch,
            "rows": self.rows,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        with whole_file(self.work / CHECKPOINT) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        path = self.work / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        load_state(self.optimizer, self.scheduler, state)
        self.epoch, self.rows, self.best = state["epoch"], state["rows"], state["best"]

    def _write_metrics(self) -> None:
        write_table(self.work / METRICS, self.rows, COLUMNS)


# Trained classifiers


def save_classifier(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a classifier's weights; the file appears whole or not at all."""
    with whole_file(path) as part:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, part)


def load_classifier(path: Path, settings: Settings) -> Classifier:
    """A trained classifier, ready to be asked.

    Raises
    ------
    AutopetError
        A missing or damaged file, or weights and settings that do not belong together.
    """
    classifier = build_classifier(settings, settings.cls_projections[0])  # all axes have the same tensors
    try:
        classifier.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, OSError, json.JSONDecodeError) as error:
        raise AutopetError(
            f"{path} does not hold the weights of the classifier that the settings describe "
            f"({one_line(error)[:200]}); train or copy the model again"
        ) from error
    return classifier.eval()


@torch.inference_mode()
def scan_score(
    classifiers: Mapping[str, Sequence[nn.Module]],
    suv: Volume,
    *,
    ranges: Ranges,
    settings: Settings,
    device: str,
) -> float:
    """Probability that a scan has lesions: the mean over all projections and folds.

    Parameters
    ----------
    classifiers : mapping
        From the axis x, y or z to the networks of its folds, each from images (batch, 3, rows, columns) to logits.
    suv : Volume
        On any grid.
    """
    if not any(classifiers.values()):
        raise AutopetError("no classifier to score the scan with; train with gate=true, or do not ask for a score")
    volume = standard_volume(suv, ranges, settings)
    scores: list[float] = []
    for axis, networks in classifiers.items():
        image = project(volume, axis, settings)[None].to(device)  # (1, 3, rows, columns)
        scores += [float(torch.sigmoid(network.to(device).eval()(image)).mean()) for network in networks]
    return float(np.mean(scores))
