"""Train the Swin-UNETR of one fold, resumable after every checkpoint (sections 4 and 8)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch.utils.data import DataLoader

from algorithms.swinmip.btcv import load_btcv
from algorithms.swinmip.loss import build_loss
from algorithms.swinmip.model import Settings, build_segmenter, save_segmenter
from algorithms.swinmip.patches import Patches, lesion_voxels
from algorithms.swinmip.schedule import cyclic, load_state
from autopet.cohort import write_table
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.memory import keep_large_blocks
from autopet.patches import plain_tensors
from autopet.progress import Meter, console
from autopet.topk_auroc import topk_auroc
from autopet.work import claim_work, file_sizes

METRICS = "metrics.csv"
COLUMNS = ("cycle", "epoch", "learning_rate", "train_loss", "val_topk_auroc", "seconds")
CHECKPOINT = "checkpoint.pth"
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
    run = Run(settings, patches, work, device, fold=fold)
    run.fit(validation)
    save_segmenter(out, run.final_weights())
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
class Run:
    """A training that can be broken off: everything that a checkpoint holds, and the steps between two of them."""

    settings: Settings
    patches: Patches  # of the training cases
    work: Path
    device: str
    fold: int = 0
    epoch: int = 0  # the next one
    rows: list[dict] = field(default_factory=list)  # of metrics.csv
    best: dict = field(default_factory=dict)  # cycle, topk_auroc and weights of the best validation so far

    def __post_init__(self) -> None:
        torch.manual_seed(self.patches.seed)
        if self.device == "cpu":
            keep_large_blocks()
        self.network = build_segmenter(self.settings).to(self.device)
        self.optimizer = torch.optim.NAdam(
            self.network.parameters(), self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        cycle_steps = self.settings.epochs_per_cycle * self.patches.steps_per_epoch
        self.scheduler = cyclic(self.optimizer, cycle_steps=cycle_steps)
        self.loss = build_loss(self.settings.loss)

    @property
    def epochs(self) -> int:
        """Of all cycles."""
        return self.settings.cycles * self.settings.epochs_per_cycle

    def fit(self, validation: Sequence[Path]) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        if not self._resume() and self.settings.btcv:
            report = load_btcv(self.network, Path(self.settings.btcv))
            console.print(report.summary(), highlight=False, markup=False)
        per_epoch = self.patches.steps_per_epoch
        title = f"swinmip: segmenter of fold {self.fold} on {self.device}"
        with plain_tensors(), Meter(title, self.epochs * per_epoch) as meter:
            meter.advance(self.epoch * per_epoch, note="resumed" if self.epoch else "")
            batches = iter(self._loader())
            while self.epoch < self.epochs:
                self._one_epoch(batches, validation, meter)
        self._write_metrics()

    def _loader(self) -> DataLoader:
        """Batches from the next epoch to the last, in order."""
        return DataLoader(
            self.patches,
            batch_sampler=self.patches.batches(self.epoch),
            num_workers=min(self.settings.workers, os.cpu_count() or 1),
            pin_memory=self.device.startswith("cuda"),
        )

    def _one_epoch(self, batches: Iterator, validation: Sequence[Path], meter: Meter) -> None:
        started = time.monotonic()
        cycle, place = divmod(self.epoch, self.settings.epochs_per_cycle)
        rate = self.optimizer.param_groups[0]["lr"]
        self.network.train()
        losses = []
        for _ in range(self.patches.steps_per_epoch):
            losses.append(self.step(*next(batches)))
            meter.advance(note=f"cycle {cycle} epoch {place} loss {losses[-1]:.4f}")
        ends_cycle = place + 1 == self.settings.epochs_per_cycle
        row = {"cycle": cycle, "epoch": self.epoch, "learning_rate": rate, "train_loss": float(np.mean(losses))}
        row["val_topk_auroc"] = self._validate(validation, cycle) if validation and ends_cycle else None
        self.rows.append(row | {"seconds": round(time.monotonic() - started, 2)})
        self.epoch += 1
        if ends_cycle or self.epoch % self.settings.checkpoint_every == 0:
            self._write_metrics()
            self._save()

    def step(self, image: torch.Tensor, label: torch.Tensor) -> float:
        """One iteration on image (batch, channel, x, y, z) and label (batch, 1, x, y, z); its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(image.to(self.device, non_blocking=True))
        loss = self.loss(logits, label.to(self.device, non_blocking=True))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AutopetError(f"the loss of epoch {self.epoch} is {value}; lower learning_rate, or look at the images")
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return value

    def _validate(self, validation: Sequence[Path], cycle: int) -> float | None:
        """Mean top-k AUROC of the validation cases on the working grid (section 8); the best cycle is kept.

        Cases that have none, without lesion voxels or without others, do not count; None when no case has one.
        """
        self.network.eval()
        scores = [score for folder in validation if not math.isnan(score := self._topk_auroc(folder))]
        if not scores:
            return None
        score = float(np.mean(scores))
        if not self.best or score >= self.best["topk_auroc"]:
            weights = {key: tensor.detach().cpu().clone() for key, tensor in self.network.state_dict().items()}
            self.best = {"cycle": cycle, "topk_auroc": score, "weights": weights}
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

    def _resume(self) -> bool:
        """Go on from the checkpoint; False without one."""
        path = self.work / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        load_state(self.optimizer, self.scheduler, state)
        self.epoch, self.rows, self.best = state["epoch"], state["rows"], state["best"]
        return True

    def _write_metrics(self) -> None:
        write_table(self.work / METRICS, self.rows, COLUMNS)
