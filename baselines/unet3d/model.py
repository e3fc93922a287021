"""The challenge's second baseline: MONAI's U-Net on CT and PET (github.com/lab-midas/autoPET, `uNet_baseline`).

This file holds the settings, the network, the way an image becomes its input, and the timed sliding window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import ScaleIntensityRange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autopet.checkpoint import read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.errors import AutopetError, one_line
from autopet.volume import IDENTITY, Volume, resample

METHOD = "unet3d"
WEIGHTS = "weights.safetensors"
CHANNELS = ("CT", "PET")  # of our models; the released checkpoint has PET, CT. config.json says which a model wants
FILL = {"CT": -1024.0, "PET": 0.0}  # HU and SUV outside the field of view
LOSSES = ("dice", "dice_ce")
SAME_SPACING = 0.02  # a grid this close to the working spacing (as a share of it) is used as it is
SLACK = 1.5  # a tile may take this much longer than the one timed before it


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset; README.md says which are published."""

    epochs: int = 800
    iterations_per_epoch: int = 83  # the released checkpoint counts 64574 steps in 778 epochs
    batch: int = 12  # patches per iteration
    patch: tuple = (32, 128, 128)  # voxels z, y, x; edges divide by 2 to the power of the number of strides
    features: tuple = (16, 32, 64, 128, 256)  # channels per stage; every stage halves the grid of the one before
    residual_units: int = 2  # convolutions per residual unit
    learning_rate: float = 1e-4  # of Adam
    decay_power: float = 0.0  # of polynomial decay over the epochs; 0: constant
    loss: str = "dice"  # dice (of the lesion class, over the whole batch) or dice_ce (cross-entropy added)
    foreground_share: float = 0.5  # of the patches, centred on a lesion voxel; the others on another voxel of the body
    rotation_degrees: float = 12.0  # largest random rotation about the body axis
    scale_share: float = 0.1  # largest random change of size
    flip_probability: float = 0.5  # of mirroring left and right
    spacing_mm: tuple = (2.04, 2.04, 3.0)  # working grid x, y, z; empty: median of the training cases
    ct_range_hu: tuple = (-100.0, 250.0)  # becomes 0 to 1, not clipped
    pet_range_suv: tuple = (0.0, 15.0)  # becomes 0 to 1, not clipped
    window: tuple = (160, 160, 160)  # voxels z, y, x of a tile at inference
    overlap: float = 0.25  # of neighbouring tiles, as a share of the tile; all voxels of a tile count the same
    validation_share: float = 0.1  # of the patients, held out to choose the epoch that is kept; 0: the last one
    validation_every: int = 10  # epochs
    checkpoint_every: int = 1  # epochs between checkpoints that a killed training resumes from
    workers: int = 8  # processes that cut and deform patches, at most one per core; 0: in the training process
    seed: int = 0

    def __post_init__(self) -> None:
        step = 2 ** (len(self.features) - 1)
        if self.loss not in LOSSES:
            raise AutopetError(f"loss {self.loss!r} is unknown; use {' or '.join(LOSSES)}")
        for name in ("patch", "window"):
            edges = getattr(self, name)
            if len(edges) != 3 or any(edge % step for edge in edges):
                raise AutopetError(
                    f"{name} needs three edges that divide by {step} with {len(self.features)} stages, found {edges}"
                )
        if len(self.spacing_mm) not in (0, 3) or min(self.spacing_mm, default=1) <= 0:
            raise AutopetError(f"spacing_mm needs three positive numbers x, y, z, or none, found {self.spacing_mm}")
        for name in ("overlap", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise AutopetError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")
        if not 0 <= self.foreground_share <= 1:
            raise AutopetError(f"foreground_share must lie between 0 and 1, found {self.foreground_share}")


PRESETS = {
    "paper": Settings(),
    "demo": Settings(
        epochs=40,
        iterations_per_epoch=20,
        batch=4,
        patch=(48, 48, 48),
        features=(16, 32, 64, 128),
        learning_rate=2e-3,
        decay_power=0.9,
        loss="dice_ce",
        spacing_mm=(),
        window=(96, 96, 96),
        validation_share=0.0,
        checkpoint_every=2,
        workers=0,
    ),
}


def build_network(settings: Settings, channels: int = len(CHANNELS)) -> UNet:
    """MONAI's U-Net: (batch, channels, z, y, x) to logits (batch, 2, z, y, x) of background and lesion."""
    return UNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=2,
        channels=settings.features,
        strides=(2,) * (len(settings.features) - 1),
        num_res_units=settings.residual_units,
        norm="batch",
    )


# The input


def working_grid(grid: Volume, spacing_mm: Sequence[float]) -> Volume:
    """The grid that the network sees: axes along the patient's (LPS), `spacing_mm` (x, y, z), around the whole image.

    An axis whose spacing is within 2 % of the working spacing keeps its own, so that voxel centres stay where they are.

    Returns
    -------
    Volume
        `grid` itself when it is such a grid already; else one with voxels of 0, which take no memory.
    """
    matrix = np.abs(grid.affine[:3, :3])
    own_mm = matrix.sum(axis=1)  # spacing along the patient's axes, for axes that are only swapped or flipped
    target_mm = np.asarray(spacing_mm, dtype=float)
    chosen_mm = np.where(np.abs(own_mm / target_mm - 1) <= SAME_SPACING, own_mm, target_mm)
    size = np.asarray(grid.shape[::-1])
    size_new = np.maximum(np.ceil(matrix @ size / chosen_mm - 1e-4), 1).astype(int)  # 1e-4: rounding of file headers
    centre_mm = (grid.affine @ [*((size - 1) / 2), 1.0])[:3]
    empty = np.broadcast_to(np.uint8(0), tuple(size_new[::-1]))
    made = Volume(empty, tuple(chosen_mm), tuple(centre_mm - (size_new - 1) / 2 * chosen_mm), IDENTITY)
    return grid if grid.same_grid(made) else made


def scale(array: np.ndarray, name: str, settings: Settings) -> np.ndarray:
    """Intensities of the channel CT (HU) or PET (SUV) with the settings' range mapped to 0..1, float32, not clipped."""
    low, high = settings.ct_range_hu if name == "CT" else settings.pet_range_suv
    scaled = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=False)(array.astype(np.float32))
    return np.asarray(scaled, dtype=np.float32)


def prepare(
    images: Mapping[str, Volume], channels: Sequence[str], settings: Settings, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, Volume]:
    """The network's input, (channel, z, y, x) float32, and the working grid that it lies on.

    Parameters
    ----------
    images : mapping
        `CT` in HU and `PET` in SUV, on one grid.
    channels : sequence of str
        Their order in the result.
    """
    unknown = sorted(set(channels) - set(images))
    if unknown:
        raise AutopetError(f"the model wants the channels {', '.join(channels)}; there are {', '.join(images)}")
    grid = working_grid(images["PET"], spacing_mm)
    layers = []
    for name in channels:
        moved = images[name] if grid is images["PET"] else resample(images[name], grid, fill=FILL[name])
        layers.append(scale(moved.array, name, settings))
    return np.stack(layers), grid


def lesion_mask(probability: np.ndarray, grid: Volume, target: Volume) -> Volume:
    """Mask on the grid `target` from lesion probabilities on the working grid: linear resampling, then argmax.

    Of two classes whose probabilities add up to 1 the lesion is the larger one above 0.5.
    """
    found = grid.with_array(probability)
    moved = found if grid.same_grid(target) else resample(found, target)
    return target.with_array((moved.array > 0.5).astype(np.uint8))


# The sliding window


class Tiles:
    """The network as MONAI's sliding window calls it, tile by tile as long as the time lasts.

    A tile gives two channels: the logit of lesion less that of background, and 1. One for which no time is left gives 0
    and 0, so that the first channel's average divided by the second's is the average over the tiles that did run.
    """

    def __init__(self, network: torch.nn.Module, deadline: Deadline, reserve_s: float) -> None:
        self.network, self.deadline, self.reserve_s = network, deadline, reserve_s
        self.skipped, self.tile_s = 0, 0.0
        self._kept: torch.Tensor | None = None

    def time_first(self, tile: torch.Tensor) -> None:
        """Run and time the first tile (z = y = x = 0 for every overlap); it is not run again."""
        if tile.is_cuda:
            self(tile)  # the very first call also sets the GPU's libraries up
        first = self(tile)
        self._kept = None if self.skipped else first

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """(1, channels, z, y, x) to (1, 2, z, y, x)."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        if not self.deadline.allows(self.tile_s * SLACK + self.reserve_s):
            self.skipped += 1
            return tile.new_zeros((len(tile), 2, *tile.shape[2:]))
        started_s = self.deadline.elapsed_s
        logits = self.network(tile)
        difference = logits[:, 1:] - logits[:, :1]
        if tile.is_cuda:
            torch.cuda.synchronize()
        self.tile_s = self.deadline.elapsed_s - started_s
        return torch.cat([difference, torch.ones_like(difference)], dim=1)


def count_tiles(shape: Sequence[int], window: Sequence[int], overlap: float) -> int:
    """Tiles of MONAI's sliding window over a volume that is not smaller than the window."""
    step = [w if w == n else max(int(w * (1 - overlap)), 1) for n, w in zip(shape, window, strict=True)]
    return len(dense_patch_slices(shape, window, step))


def choose_overlap(shape: Sequence[int], window: Sequence[int], overlap: float, tiles_left: float) -> float:
    """The overlap, half of it, or none: the first for which no more than `tiles_left` tiles are needed; else none."""
    fitting = (share for share in (overlap, overlap / 2) if count_tiles(shape, window, share) <= tiles_left)
    return next(fitting, 0.0)


@torch.inference_mode()
def lesion_probability(
    network: torch.nn.Module,
    image: np.ndarray,
    *,
    settings: Settings,
    device: str,
    deadline: Deadline | None = None,
    reserve_s: float = 0.0,
) -> np.ndarray:
    """Lesion probabilities by a sliding window that ends `reserve_s` seconds before the deadline.

    Logits of overlapping tiles are averaged, then the softmax is taken. The first tile is timed: when the time does not
    last for all tiles they overlap less. Tiles that come too late are left out; what no tile covers has probability 0.
    Both are told to the deadline's journal.

    Parameters
    ----------
    image : (channel, z, y, x) float32 array
        From `prepare`.

    Returns
    -------
    (z, y, x) float32 array
    """
    deadline = deadline or Deadline()
    size = image.shape[1:]
    step = 2 ** (len(settings.features) - 1)
    window = [min(edge, math.ceil(n / step) * step) for n, edge in zip(size, settings.window, strict=True)]
    missing = [(0, max(edge - n, 0)) for n, edge in zip(size, window, strict=True)]
    padded = torch.from_numpy(np.pad(image, [(0, 0), *missing]))[None]
    tiles = Tiles(network.eval(), deadline, reserve_s)
    overlap = _overlap_in_time(tiles, padded, window, overlap=settings.overlap, device=device)
    inferer = SlidingWindowInferer(window, 1, overlap, mode="constant", sw_device=device, device="cpu")
    difference, share = inferer(padded, tiles)[0]
    if tiles.skipped:
        total = count_tiles(padded.shape[2:], window, overlap)
        deadline.journal.drop(f"{tiles.skipped} of {total} tiles: no time left, their voxels count as background")
    logit = torch.where(share > 0, difference / share.clamp_min(1e-6), -torch.inf)
    return torch.sigmoid(logit).numpy()[: size[0], : size[1], : size[2]]


def _overlap_in_time(
    tiles: Tiles, padded: torch.Tensor, window: Sequence[int], *, overlap: float, device: str
) -> float:
    """The settings' overlap, or as much of it as the time that the first tile took allows."""
    if not tiles.deadline.limited:
        return overlap
    depth, height, width = window
    tiles.time_first(padded[:, :, :depth, :height, :width].to(device))
    if tiles.skipped:  # not even one tile fits
        tiles.skipped = 0  # counted by the pass itself
        return 0.0
    shape = padded.shape[2:]
    left_s = tiles.deadline.remaining_s - tiles.reserve_s
    chosen = choose_overlap(shape, window, overlap, 1 + left_s / max(tiles.tile_s * SLACK, 1e-9))
    if chosen < overlap:
        tiles.deadline.journal.drop(
            f"overlap of tiles {chosen:g} instead of {overlap:g}: {count_tiles(shape, window, overlap)} tiles of "
            f"{tiles.tile_s:.2g} s, {left_s:.0f} s left"
        )
    return chosen


# The model folder


def save_weights(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write weights.safetensors."""
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, folder / WEIGHTS)


def load_network(folder: Path) -> tuple[UNet, Settings, dict]:
    """The network of a model folder with its weights, its settings, and config.json's `channels` and `spacing_mm`.

    Raises
    ------
    AutopetError
        No model of this method, a damaged file, or weights and settings that do not belong together.
    """
    config = read_config(folder, method=METHOD)
    lost = sorted({"settings", "channels", "spacing_mm"} - set(config))
    if lost:
        raise AutopetError(f"{folder}/config.json lacks {', '.join(lost)}; train or copy the model again")
    settings = settings_from_dict(Settings, config["settings"], str(folder))
    network = build_network(settings, len(config["channels"]))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError, OSError, json.JSONDecodeError) as error:
        raise AutopetError(
            f"{folder}/{WEIGHTS} does not hold the weights of the network that config.json describes "
            f"({one_line(error)[:200]}); train or copy the model again"
        ) from error
    return network, settings, config
