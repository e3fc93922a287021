"""Lesions or none: training the classifier of one fold and one projection, and the score of a scan (section 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from algorithms.swinmip.model import PROJECTIONS, Settings
from algorithms.swinmip.preprocessing import Ranges
from algorithms.swinmip.projections import IMAGE_CHANNELS, Projections, project, read_volume, standard_volume
from algorithms.swinmip.schedule import cyclic, load_state
from algorithms.swinmip.swin import Classifier, build_classifier, load_imagenet
from autopet.checkpoint import load_weights, save_weights
from autopet.errors import AutopetError
from autopet.patches import plain_tensors
from autopet.progress import console
from autopet.topk_auroc import auroc
from autopet.training import Training, epoch_batches
from autopet.volume import Volume
from autopet.work import claim_work, file_sizes


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
    save_weights(out, run.final_weights())
    return {"kept_cycle": run.best.get("cycle", settings.cls_cycles - 1), "auroc": run.best.get("auroc")}


@dataclass
class Run(Training):
    """The training of the classifier of one fold and one projection, in cycles of the learning rate."""

    axis: str
    fold: int

    columns = ("cycle", "epoch", "learning_rate", "train_loss", "val_auroc", "seconds")
    epoch_name, rate_setting = "the classifier's epoch", "cls_learning_rate"

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = self.settings
        self.key = (settings.seed, PROJECTIONS.index(self.axis), self.fold)
        self._seed(0)
        self.network = build_classifier(settings, self.axis)
        if settings.imagenet:
            console.print(load_imagenet(self.network, Path(settings.imagenet)).summary(), highlight=False)
        self.network.to(self.device)
        self.optimizer = torch.optim.NAdam(
            self.network.parameters(), settings.cls_learning_rate, weight_decay=settings.cls_weight_decay
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
        settings = self.settings
        labels = [1.0] * len(positives) + [0.0] * len(negatives)
        data = Projections([*positives, *negatives], labels, axis=self.axis, settings=settings, key=self.key)
        steps = math.ceil(len(labels) / settings.cls_batch)
        self.scheduler = cyclic(self.optimizer, cycle_steps=steps * settings.cls_epochs_per_cycle)
        batches = partial(epoch_batches, epochs=self.epochs, count=len(labels), batch=settings.cls_batch)
        with plain_tensors():
            self.validation = [self._images(part) for part in (val_positives, val_negatives)]
            title = f"classifier of {self.axis}, fold {self.fold} on {self.device}"
            self.train(data, batches, steps=steps, title=title)

    def _images(self, volumes: Sequence[Path]) -> torch.Tensor:
        """Projections without deformation, (volumes, 1, rows, columns)."""
        images = [project(read_volume(path), self.axis, self.settings)[:1].clone() for path in volumes]
        return torch.stack(images) if images else torch.empty(0)

    def begin_epoch(self) -> dict:
        """With random numbers of its own. Cycles count from 0."""
        self._seed(1 + self.epoch)
        return {"cycle": self.epoch // self.settings.cls_epochs_per_cycle}

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> float:
        """One iteration on images (batch, 3, rows, columns) and labels (batch,), which come in double precision."""
        return super().step(images, targets.float())

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """With the counters of NAdam in main memory."""
        load_state(self.optimizer, self.scheduler, state)

    def validate(self) -> dict:
        """After the last epoch of a cycle: AUROC over the validation volumes; none without one of both kinds."""
        per_cycle = self.settings.cls_epochs_per_cycle
        if not self.ends(per_cycle) or not all(len(images) for images in self.validation):
            return {"val_auroc": None}
        area = auroc(*(self._probabilities(images) for images in self.validation))
        self.keep_best("auroc", area, cycle=self.epoch // per_cycle)
        return {"val_auroc": area}

    @torch.inference_mode()
    def _probabilities(self, images: torch.Tensor) -> np.ndarray:
        self.network.eval()
        parts = images.expand(-1, IMAGE_CHANNELS, -1, -1).split(self.settings.cls_batch)
        return np.concatenate([torch.sigmoid(self.network(part.to(self.device))).cpu().numpy() for part in parts])


# Trained classifiers


def load_classifier(path: Path, settings: Settings) -> Classifier:
    """A trained classifier, ready to be asked.

    Raises
    ------
    AutopetError
        A missing or damaged file, or weights and settings that do not belong together.
    """
    classifier = build_classifier(settings, settings.cls_projections[0])  # all axes have the same tensors
    return load_weights(classifier, path, what="the classifier that the settings describe")


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
