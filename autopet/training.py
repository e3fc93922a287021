"""Trainings that can be broken off: the loop over epochs that methods share, and the checkpoint it goes on from."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from autopet.cohort import Case, write_table
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.memory import keep_large_blocks
from autopet.progress import Meter

METRICS = "metrics.csv"
CHECKPOINT = "checkpoint.pth"


@dataclass
class Training:
    """A training that can be broken off: everything that a checkpoint holds, and the steps between two of them.

    A method's own class makes `network`, `optimizer`, `loss` and, if it has one, `scheduler` in `__post_init__`, says
    what is its own in the five methods from `start` to `load_optimizer`, and calls `train`.

    Attributes
    ----------
    settings : dataclass
        The method's. Of it are read `workers`, `checkpoint_every` and, unless the property is overridden, `epochs`.
    work : Path
        A folder of this training alone, with checkpoint.pth and metrics.csv.
    device : str
        `cpu` or `cuda`.
    epoch : int
        The next one, from 0.
    rows : list of dict
        Of metrics.csv, one per epoch.
    best : dict
        The best validation so far, see `keep_best`; empty before the first.
    scheduler : torch.optim.lr_scheduler.LRScheduler or None
        Stepped after every batch.
    columns : sequence of str
        Of metrics.csv: epoch, learning_rate, train_loss, seconds, and what `begin_epoch` and `validate` give.
    epoch_name, rate_setting : str
        What an epoch and the setting of the learning rate are called in errors.
    """

    columns: ClassVar[Sequence[str]]
    epoch_name: ClassVar[str] = "epoch"
    rate_setting: ClassVar[str] = "learning_rate"

    settings: Any
    work: Path
    device: str
    epoch: int = field(default=0, init=False)
    rows: list[dict] = field(default_factory=list, init=False)
    best: dict = field(default_factory=dict, init=False, repr=False)
    network: nn.Module = field(init=False, repr=False)
    optimizer: Optimizer = field(init=False, repr=False)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(init=False, repr=False)
    scheduler: LRScheduler | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.device == "cpu":
            keep_large_blocks()

    # What a method may have of its own

    @property
    def epochs(self) -> int:
        """Of the whole training."""
        return self.settings.epochs

    def start(self) -> None:
        """Before the first epoch, and not again when the training goes on from a checkpoint: weights to begin with."""

    def begin_epoch(self) -> dict[str, Any]:
        """Before every epoch: its learning rate (`set_rate`), its random numbers. Returns more columns of its row."""
        return {}

    def validate(self) -> dict[str, Any]:
        """After every epoch, whose number is `epoch`: columns of its row; none, or None in them, when none is due."""
        return {}

    def checkpoint_due(self) -> bool:
        """After every epoch, when `epoch` is the next one already: whether a kill from now on must not undo it."""
        return self.epoch % self.settings.checkpoint_every == 0 or self.epoch == self.epochs

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Go on with the `optimizer` and `scheduler` of a checkpoint, whose tensors are in main memory."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    # What these call

    def ends(self, count: int) -> bool:
        """Whether the present epoch is the last of `count` ones, or of all."""
        return (self.epoch + 1) % count == 0 or self.epoch + 1 == self.epochs

    def set_rate(self, rate: float) -> None:
        """The learning rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def keep_best(self, measure: str, value: float, *, lowest: bool = False, **when: int) -> None:
        """Keep the weights of now, unless those of a validation before were better; of equal ones the later.

        Parameters
        ----------
        measure, value
            What was validated by: a key of `best`, and how good the weights are.
        lowest : bool
            Whether lower values are better.
        **when : int
            Further keys of `best`: `epoch=3`, say.
        """
        before = self.best.get(measure, value)
        if not self.best or (value <= before if lowest else value >= before):
            weights = {key: tensor.detach().cpu().clone() for key, tensor in self.network.state_dict().items()}
            self.best = {**when, measure: value, "weights": weights}

    def final_weights(self) -> Mapping[str, torch.Tensor]:
        """Those of the best validation; without validation the last ones."""
        return self.best["weights"] if self.best else self.network.state_dict()

    # The loop

    def train(
        self, data: Dataset, batches: Callable[[int], Iterable[Sequence[int]]], *, steps: int, title: str
    ) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch.

        Parameters
        ----------
        data : torch.utils.data.Dataset
            Pairs of what the network is shown and what it should say, in the order of the whole training. Item i must
            be the same in every run and every process, or a resumed training ends with other weights.
        batches : callable
            From an epoch to the batches from that one to the last: items of `data` that go together. See
            `epoch_batches`.
        steps : int
            Batches of an epoch.
        title : str
            Of the progress bar.

        Raises
        ------
        AutopetError
            A loss that is not finite.
        """
        if not self._resume():
            self.start()
        with Meter(title, self.epochs * steps) as meter:
            meter.advance(self.epoch * steps, note="resumed" if self.epoch else "")
            loaded = iter(self._loader(data, batches(self.epoch)))
            while self.epoch < self.epochs:
                self._one_epoch(loaded, steps, meter)
        self._write_metrics()

    def _loader(self, data: Dataset, batches: Iterable[Sequence[int]]) -> DataLoader:
        return DataLoader(
            data,
            batch_sampler=batches,  # type: ignore[arg-type]  # torch asks for lists
            num_workers=min(self.settings.workers, os.cpu_count() or 1),
            pin_memory=self.device.startswith("cuda"),
        )

    def _one_epoch(self, loaded: Iterator, steps: int, meter: Meter) -> None:
        started = time.monotonic()
        row = {**self.begin_epoch(), "epoch": self.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.network.train()
        losses = []
        for _ in range(steps):
            losses.append(self.step(*next(loaded)))
            meter.advance(note=f"epoch {self.epoch} loss {losses[-1]:.4f}")
        row |= {"train_loss": float(np.mean(losses)), **self.validate()}
        self.rows.append(row | {"seconds": round(time.monotonic() - started, 2)})
        self.epoch += 1
        if self.checkpoint_due():
            self._write_metrics()
            self._save()

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> float:
        """One iteration on a batch; its loss, which must be finite."""
        self.optimizer.zero_grad(set_to_none=True)
        said = self.network(images.to(self.device, non_blocking=True))
        loss = self.loss(said, targets.to(self.device, non_blocking=True))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AutopetError(
                f"the loss of {self.epoch_name} {self.epoch} is {value}; lower {self.rate_setting}, or look at the "
                "images"
            )
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return value

    # The work folder

    def _save(self) -> None:
        """Whole or not at all, so that a kill in the middle leaves the previous checkpoint."""
        state = {
            "epoch": self.epoch,
            "rows": self.rows,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.state_dict()
        with whole_file(self.work / CHECKPOINT) as part:
            torch.save(state, part)

    def _resume(self) -> bool:
        """Go on from the checkpoint; False without one."""
        path = self.work / CHECKPOINT
        if not path.is_file():
            return False
        # in main memory, where an optimizer's counters stay: on a GPU every step would wait for them
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.load_optimizer(state)
        self.epoch, self.rows, self.best = state["epoch"], state["rows"], state["best"]
        return True

    def _write_metrics(self) -> None:
        write_table(self.work / METRICS, self.rows, self.columns)


def epoch_batches(first_epoch: int, *, epochs: int, count: int, batch: int) -> Iterator[list[int]]:
    """Batches from an epoch to the last, in order; none holds items of two epochs.

    Parameters
    ----------
    count : int
        Items of an epoch: those of epoch e are e * count and the ones that follow.
    batch : int
        Items of a batch; the last of an epoch may be smaller.
    """
    for start in range(first_epoch * count, epochs * count, count):
        for first in range(start, start + count, batch):
            yield list(range(first, min(first + batch, start + count)))


def polynomial_rate(settings: Any, epoch: int) -> float:
    """The learning rate of an epoch: `learning_rate` falls to 0 over `epochs`; constant with `decay_power` 0."""
    return settings.learning_rate * (1 - epoch / settings.epochs) ** settings.decay_power


def hold_out(
    cases: Sequence[Case], share: float, *, seed: int, by_lesions: bool = False
) -> tuple[list[Case], list[Case]]:
    """Training and validation cases, divided by patient: `share` of the patients, rounded, is drawn for validation.

    Who is drawn depends on the patients and the seed, not on the order of the cases.

    Parameters
    ----------
    share : float
        From 0, which holds out nobody, to below 1.
    by_lesions : bool
        Draw that share of the patients with lesions and of those without. Of those with lesions at least one is drawn,
        because there is nothing to choose by without lesions, and never all.

    Raises
    ------
    AutopetError
        No patient is left to train on.
    """
    lesions: dict[str, bool] = defaultdict(bool)
    for case in cases:
        lesions[case.patient_id] |= bool(case.lesion_voxels)
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for kinds in ((True,), (False,)) if by_lesions else ((True, False),):
        patients = sorted(patient for patient, found in lesions.items() if found in kinds)
        count = round(share * len(patients))
        if kinds == (True,) and share > 0:
            count = min(max(count, 1), len(patients) - 1)
        held |= {patients[index] for index in rng.permutation(len(patients))[: max(count, 0)]}
    training = [case for case in cases if case.patient_id not in held]
    if not training:
        raise AutopetError(
            f"validation_share={share:g} holds out all {len(held)} patients; lower it, or give more patients"
        )
    return training, [case for case in cases if case.patient_id in held]
