"""Train the Swin-UNETR of one fold, resumable after every checkpoint (sections 4 and 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from algorithms.swinmip.btcv import load_btcv
from algorithms.swinmip.loss import build_loss
from algorithms.swinmip.model import Settings, build_segmenter
from algorithms.swinmip.patches import Patches, lesion_voxels
from algorithms.swinmip.schedule import cyclic, load_state
from autopet.checkpoint import save_weights
from autopet.errors import AutopetError
from autopet.patches import plain_tensors
from autopet.progress import console
from autopet.topk_auroc import topk_auroc
from autopet.training import Training
from autopet.work import claim_work, file_sizes

SHOWN = 4  # names in a sentence


def train_segmenter(
    training: Sequence[Path],
    validation: Sequence[Path],
    work: Path,
    *,
    settings: Settings,
    device: str,
    fold: int,
    out: Path,
) -> dict:
    """Train one fold's network and write the weights of its best cycle.

    Parameters
    ----------
    training, validation : sequence of Path
        Cached cases (`patches.cache_cases`). Only those with lesions are used: the others are named and left out.
    work : Path
        A folder of this training alone: checkpoint.pth and metrics.csv (a row per epoch; cycles and epochs count from
        0). A second call with the same cases and settings goes on from the last checkpoint and ends with the same
        weights.
    device : str
        `cpu` or `cuda`.
    fold : int
        Each fold has its own random start and patches.
    out : Path
        File to write, safetensors.

    Returns
    -------
    dict
        `kept_cycle` and `topk_auroc`: the cycle after which the mean top-k AUROC of the validation cases was highest,
        of equal ones the later; without validation cases the last cycle, and NaN.

    Raises
    ------
    AutopetError
        No training case with lesions, another training's work folder, or a loss that is not finite.
    """
    training, validation = _with_lesions(training, "trained on", fold), _with_lesions(validation, "validated on", fold)
    if not training:
        raise AutopetError(
            f"fold {fold} has no training case with lesion voxels, and the segmentation is trained on such cases alone;"
            " give more cases, or fewer folds"
        )
    claim_work(work, settings, (fold, [_fingerprint(folder) for folder in (*training, *validation)], len(training)))
    patches = Patches(training, settings, seed=fold_seed(settings.seed, fold))
    run = Run(settings, work, device, patches, fold)
    run.fit(validation)
    save_weights(out, run.final_weights())
    last = settings.cycles - 1
    return {"kept_cycle": run.best.get("cycle", last), "topk_auroc": run.best.get("topk_auroc", math.nan)}


def fold_seed(seed: int, fold: int) -> int:
    """Of a fold's random start and patches."""
    return int(np.random.default_rng([seed, fold]).integers(2**32))


def _with_lesions(folders: Sequence[Path], use: str, fold: int) -> list[Path]:
    """The cases that have lesion voxels on the working grid; a small lesion may have got lost between its voxels."""
    empty = [folder.name for folder in folders if not lesion_voxels(folder)]
    if empty:
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        console.print(
            f"warning: fold {fold}: without lesion voxels on the working grid, so not {use}: "
            f"{', '.join(empty[:SHOWN])}{more}",
            style="yellow",
            highlight=False,
            markup=False,
        )
    return [folder for folder in folders if folder.name not in empty]


def _fingerprint(folder: Path) -> tuple[str, list[int]]:
    return folder.name, file_sizes(folder / f"{name}.npy" for name in ("image", "label", "foreground"))


@dataclass
class Run(Training):
    """The training of one fold's network, in cycles of the learning rate."""

    patches: Patches  # of the training cases
    fold: int = 0

    columns = ("cycle", "epoch", "learning_rate", "train_loss", "val_topk_auroc", "seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = self.settings
        torch.manual_seed(self.patches.seed)
        self.network = build_segmenter(settings).to(self.device)
        self.optimizer = torch.optim.NAdam(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.scheduler = cyclic(self.optimizer, cycle_steps=settings.epochs_per_cycle * self.patches.steps_per_epoch)
        self.loss = build_loss(settings.loss)

    @property
    def epochs(self) -> int:
        """Of all cycles."""
        return self.settings.cycles * self.settings.epochs_per_cycle

    def fit(self, validation: Sequence[Path]) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        self.validation = validation
        title = f"swinmip: segmenter of fold {self.fold} on {self.device}"
        with plain_tensors():
            self.train(self.patches, self.patches.batches, steps=self.patches.steps_per_epoch, title=title)

    def start(self) -> None:
        """From BTCV's weights, where there are some."""
        if self.settings.btcv:
            report = load_btcv(self.network, Path(self.settings.btcv))
            console.print(report.summary(), highlight=False, markup=False)

    def begin_epoch(self) -> dict:
        """Cycles count from 0."""
        return {"cycle": self.epoch // self.settings.epochs_per_cycle}

    def validate(self) -> dict:
        """After the last epoch of a cycle."""
        due = self.validation and self.ends(self.settings.epochs_per_cycle)
        cycle = self.epoch // self.settings.epochs_per_cycle
        return {"val_topk_auroc": self._validate(self.validation, cycle) if due else None}

    def checkpoint_due(self) -> bool:
        """After every cycle, too."""
        return super().checkpoint_due() or self.epoch % self.settings.epochs_per_cycle == 0

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """With the counters of NAdam in main memory."""
        load_state(self.optimizer, self.scheduler, state)

    def _validate(self, validation: Sequence[Path], cycle: int) -> float | None:
        """Mean top-k AUROC of the validation cases on the working grid (section 8); the best cycle is kept.

        Cases that have none, without lesion voxels or without others, do not count; None when no case has one.
        """
        self.network.eval()
        scores = [score for folder in validation if not math.isnan(score := self._topk_auroc(folder))]
        if not scores:
            return None
        score = float(np.mean(scores))
        self.keep_best("topk_auroc", score, cycle=cycle)
        return score

    @torch.inference_mode()
    def _topk_auroc(self, folder: Path) -> float:
        image = torch.from_numpy(np.load(folder / "image.npy").astype(np.float32))[None]
        logits = sliding_window_inference(
            image,
            self.settings.patch,
            self.settings.batch,
            self.network,
            overlap=self.settings.overlap,
            mode="gaussian",
            sw_device=self.device,
            device="cpu",
        )
        assert isinstance(logits, torch.Tensor)  # of a network with one output
        # the order is that of the probabilities, which in single precision are all 1 from a logit of 17 on
        return topk_auroc(np.load(folder / "label.npy")[0] != 0, logits[0, 0].numpy())
