"""Lesion probabilities of a scan: as many folds, with as much overlap, as the time allows (paper, sections 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from algorithms.swinmip.model import Settings
from algorithms.swinmip.preprocessing import Prepared, Ranges, prepare, rehearse, restore
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.sliding_window import SLACK, Pass, Window, report, slide
from autopet.volume import Volume

Network = torch.nn.Module | Callable[[], torch.nn.Module]  # one that is there, or a way to load it when it is needed


def lesion_probability(
    networks: Sequence[Network],
    images: Mapping[str, Volume],
    *,
    ranges: Ranges,
    settings: Settings,
    spacing_mm: Sequence[float],
    device: str,
    deadline: Deadline | None = None,
    reserve_s: float = 0.0,
) -> Volume:
    """The folds' mean lesion probability on the PET's grid.

    Within a fold the logits of overlapping tiles are averaged with Gaussian weights before the sigmoid; over the folds
    the probabilities are averaged. With a limit the first fold is the measure for the others: each gets an equal share
    of what is left and overlaps its tiles as much as fits there; those that do not fit are dropped. A first fold
    that does not end in time counts as it is, and what its tiles did not reach has probability 0. The journal is told.

    Parameters
    ----------
    networks : sequence
        Swin-UNETRs, or functions that load one; those are called one after the other, when their turn comes.
    images : mapping
        `CT` in HU and `PET` in SUV, on one grid.
    reserve_s : float
        Seconds to keep for what follows. For the way back as long again as preparing the images took is kept, and,
        where it resamples, what that takes by a rehearsal on a few slices: a scan may be finer than the working grid.

    Returns
    -------
    Volume
        float32, 0 to 1; 0 outside the box around the CT's foreground.

    Raises
    ------
    AutopetError
        No network, or images that `prepare` refuses.
    """
    if not networks:
        raise AutopetError("there is no segmentation network to run; train or copy the model again")
    deadline = deadline or Deadline()
    started_s = deadline.elapsed_s
    with deadline.journal.stage("preprocess"):
        prepared = prepare(images, ranges, settings, spacing_mm)
        there_s = deadline.elapsed_s - started_s
        if deadline.limited:
            reserve_s += there_s + SLACK * _way_back_s(prepared, deadline)
    window = Window(tuple(settings.patch), settings.overlap, mode="gaussian")
    folds = Folds(networks, prepared.image, window, device=device, deadline=deadline, reserve_s=reserve_s)
    probability = folds.run()
    with deadline.journal.stage("restore"):
        return restore(probability, prepared, images["PET"])


def _way_back_s(prepared: Prepared, deadline: Deadline) -> float:
    """Seconds that resampling the probabilities onto the scan's grid will take."""
    started_s = deadline.elapsed_s
    times = rehearse(prepared)
    return times * (deadline.elapsed_s - started_s)


@dataclass
class Folds:
    """The passes over one image: which folds, with which overlap."""

    networks: Sequence[Network]
    image: torch.Tensor  # (2, x, y, z)
    window: Window
    device: str
    deadline: Deadline
    reserve_s: float
    passes: list[dict[str, Any]] = field(default_factory=list)  # those that count, for run.json
    tile_s: float = 0.0  # of the slowest tile
    per_tile_s: float = 0.0  # of a whole pass, per tile
    load_s: float = 0.0  # of a network

    def run(self) -> torch.Tensor:
        """Mean probabilities, (1, x, y, z), of the folds that ran."""
        total = torch.zeros(self.image.shape[1:])
        for fold in range(len(self.networks)):
            window = self._window(fold)
            if window is None:
                self._drop_from(fold)
                break
            found = self._pass(fold, window)
            if self._counts(fold, found):
                total += torch.sigmoid(found.logit)
        self.deadline.journal.note("folds", self.passes)
        return (total / max(len(self.passes), 1))[None]

    def _left_s(self) -> float:
        return self.deadline.remaining_s - self.reserve_s

    def _window(self, fold: int) -> Window | None:
        """Where the tiles of a fold may lie; None: there is no time for it."""
        if fold == 0 or not self.deadline.limited:
            return self.window
        if self.passes and not self.passes[0]["complete"]:
            return None
        share_s = self._left_s() / (len(self.networks) - fold)
        overlap = self._fitting(share_s)
        if overlap is None and self._fitting(self._left_s()) is not None:
            overlap = 0.0  # at the cost of the folds after it
        return None if overlap is None else replace(self.window, overlap=overlap)

    def _fitting(self, budget_s: float) -> float | None:
        """The largest overlap of a pass that takes no more than `budget_s`."""
        left_s = budget_s / SLACK - self.load_s
        return self.window.fitting(self.image.shape[1:], left_s / max(self.per_tile_s, 1e-9))

    def _pass(self, fold: int, window: Window) -> Pass:
        deadline = self.deadline
        with deadline.journal.stage(f"fold {fold}"):
            started_s = deadline.elapsed_s
            given = self.networks[fold]
            network = given if isinstance(given, torch.nn.Module) else given()
            network.to(self.device).eval()
            self.load_s = max(self.load_s, deadline.elapsed_s - started_s)
            found = slide(
                network,
                self.image,
                window,
                device=self.device,
                deadline=deadline,
                reserve_s=self.reserve_s,
                tile_s=self.tile_s,
            )
        self.tile_s = max(self.tile_s, found.tile_s)
        self.per_tile_s = max(self.per_tile_s, found.seconds / max(found.tiles, 1))
        return found

    def _counts(self, fold: int, found: Pass) -> bool:
        """Whether a pass is one of the mean; the journal is told what it left out."""
        journal = self.deadline.journal
        if fold == 0:
            report(found, self.window, self.deadline, name="fold 0: ")
        elif found.skipped:
            journal.drop(f"fold {fold}: it was not ready after {found.seconds:.1f} s")
            return False
        elif found.overlap < self.window.overlap:
            journal.drop(
                f"fold {fold}: overlap of tiles {found.overlap:g} instead of {self.window.overlap:g}: "
                f"about {self.per_tile_s * self.window.count(self.image.shape[1:]):.1f} s would not have fitted"
            )
        self.passes.append(
            {"fold": fold, "overlap": found.overlap, "tiles": found.tiles, "complete": not found.skipped}
            | {"seconds": round(found.seconds, 3)}
        )
        return True

    def _drop_from(self, fold: int) -> None:
        last = len(self.networks) - 1
        named = f"fold {fold}" if fold == last else f"folds {fold} to {last}"
        self.deadline.journal.drop(f"{named}: no time left after {self.deadline.elapsed_s:.1f} s")
