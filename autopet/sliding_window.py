"""MONAI's sliding window against a clock: when time is short, tiles overlap less or are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch.nn.functional import pad

from autopet.deadline import Deadline

SLACK = 1.5  # a tile may take this much longer than the slowest of those before it
EXPORT_SHARE = 0.05  # of the time limit, kept for the mask's file
EXPORT_LEAST_S = 1.5  # more than the container keeps for empty masks, or it would give up a mask that is nearly there


def export_reserve_s(deadline: Deadline) -> float:
    """Seconds of a time limit that a method leaves for what follows its mask; 0 without a limit."""
    return max(EXPORT_SHARE * deadline.limit_s, EXPORT_LEAST_S) if deadline.limited else 0.0


@dataclass(frozen=True)
class Window:
    """How tiles lie on an image.

    Parameters
    ----------
    size : three int
        Voxels of a tile along the image's axes.
    overlap : float
        Of neighbouring tiles, as a share of the tile.
    mode : str
        `constant`: all voxels of a tile count the same; `gaussian`: those near its border less (MONAI's weights).
    """

    size: tuple[int, int, int]
    overlap: float
    mode: str = "constant"

    def count(self, shape: Sequence[int], overlap: float | None = None) -> int:
        """Tiles that cover an image of this shape, with another overlap if one is given."""
        share = self.overlap if overlap is None else overlap
        padded = [max(n, w) for n, w in zip(shape, self.size, strict=True)]
        step = [w if w == n else max(int(w * (1 - share)), 1) for n, w in zip(padded, self.size, strict=True)]
        return len(dense_patch_slices(padded, self.size, step))

    def fitting(self, shape: Sequence[int], tiles_left: float) -> float | None:
        """The overlap, half of it, or none: the first that needs no more than `tiles_left` tiles; None if none does."""
        shares = (self.overlap, self.overlap / 2, 0.0)
        return next((share for share in shares if self.count(shape, share) <= tiles_left), None)


@dataclass(frozen=True)
class Pass:
    """One way over an image.

    Attributes
    ----------
    logit : tensor of the image's shape, float32, on the CPU
        Weighted average over the tiles that ran; -inf where none did, so that the sigmoid is 0.
    overlap : float
        Of the tiles, as far as the time allowed.
    tiles, skipped : int
        Tiles that ran, and tiles for which no time was left.
    tile_s : float
        Seconds of the slowest tile; with a limit only, else 0.
    seconds : float
        Of the whole pass, without the first call on a GPU, which sets it up.
    """

    logit: torch.Tensor
    overlap: float
    tiles: int
    skipped: int
    tile_s: float
    seconds: float


class Tiles:
    """The network as MONAI's sliding window calls it, tile by tile as long as the time lasts.

    A tile gives two channels: the logit, and 1. One for which no time is left gives 0 and 0, so that the weighted
    average of the first channel divided by that of the second is the average over the tiles that did run.
    """

    def __init__(
        self, network: Callable[[torch.Tensor], torch.Tensor], deadline: Deadline, reserve_s: float, tile_s: float
    ) -> None:
        self.network, self.deadline, self.reserve_s = network, deadline, reserve_s
        self.done, self.skipped, self.tile_s, self.warm_up_s = 0, 0, tile_s, 0.0
        self._kept: torch.Tensor | None = None

    def time_first(self, tile: torch.Tensor) -> bool:
        """Run and time the first tile, the same with every overlap, only once; False when there is no time for it."""
        if tile.is_cuda:  # the very first call also sets the GPU's libraries up
            self(tile)
            self.done, self.tile_s, self.warm_up_s = 0, 0.0, self.tile_s
        first = self(tile)
        fitted = not self.skipped
        self._kept = first if fitted else None
        self.skipped = 0  # the pass itself counts them
        return fitted

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """(1, channel, three axes) to (1, 2, three axes)."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        if not self.deadline.allows(self.tile_s * SLACK + self.reserve_s):
            self.skipped += 1
            return tile.new_zeros((len(tile), 2, *tile.shape[2:]))
        started_s = self.deadline.elapsed_s
        logit = self.network(tile)
        if tile.is_cuda:
            torch.cuda.synchronize()
        if self.deadline.limited:
            self.tile_s = max(self.tile_s, self.deadline.elapsed_s - started_s)
        self.done += 1
        # a copy: MONAI multiplies what it is given by the weights in place, and a network may return a view of the tile
        return torch.cat([logit, torch.ones_like(logit)], dim=1)


@torch.inference_mode()
def slide(
    network: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    window: Window,
    *,
    device: str,
    deadline: Deadline,
    reserve_s: float = 0.0,
    tile_s: float = 0.0,
) -> Pass:
    """Average a network's logits over overlapping tiles, ending `reserve_s` seconds before the deadline.

    Parameters
    ----------
    network : callable
        (1, channel, three axes) to one logit per voxel, (1, 1, three axes).
    image : (channel, three axes) float32 tensor on the CPU
        The axes in any order. Padded with 0 at the ends of its axes where it is smaller than a tile.
    tile_s : float
        Seconds of a tile, when they are known; else the first tile is timed. When the time does not last for all tiles
        they overlap half as much, or not at all; tiles that still come too late are left out, the last ones along the
        first axis first.
    """
    started_s = deadline.elapsed_s
    shape = image.shape[1:]
    missing = [max(edge - n, 0) for n, edge in zip(shape, window.size, strict=True)]
    padded = pad(image, [end for extra in reversed(missing) for end in (0, extra)])[None]
    tiles = Tiles(network, deadline, reserve_s, tile_s)
    overlap = _overlap_in_time(tiles, padded, window, device) if deadline.limited else window.overlap
    inferer = SlidingWindowInferer(window.size, 1, overlap, mode=window.mode, sw_device=device, device="cpu")
    total, share = inferer(padded, tiles)[0]
    logit = torch.where(share > 0, total / share.clamp_min(1e-6), -torch.inf)
    return Pass(
        logit[: shape[0], : shape[1], : shape[2]],
        overlap,
        tiles.done,
        tiles.skipped,
        tiles.tile_s,
        deadline.elapsed_s - started_s - tiles.warm_up_s,
    )


def _overlap_in_time(tiles: Tiles, padded: torch.Tensor, window: Window, device: str) -> float:
    """As much of the window's overlap as the time of a tile allows."""
    known = 0
    if not tiles.tile_s:
        depth, height, width = window.size
        if not tiles.time_first(padded[:, :, :depth, :height, :width].to(device)):
            return 0.0
        known = 1  # the first tile is not run again
    left_s = tiles.deadline.remaining_s - tiles.reserve_s
    fitting = window.fitting(padded.shape[2:], known + left_s / max(tiles.tile_s * SLACK, 1e-9))
    return 0.0 if fitting is None else fitting


def report(found: Pass, window: Window, deadline: Deadline, *, name: str = "") -> None:
    """Tell the deadline's journal what a pass had to leave out; `name` goes before the sentences."""
    shape = found.logit.shape
    if found.tiles and found.overlap < window.overlap:
        deadline.journal.drop(
            f"{name}overlap of tiles {found.overlap:g} instead of {window.overlap:g}: {window.count(shape)} tiles of "
            f"{found.tile_s:.2g} s would not have fitted"
        )
    if found.skipped:
        deadline.journal.drop(
            f"{name}{found.skipped} of {found.tiles + found.skipped} tiles: no time left, their voxels count as "
            "background"
        )
