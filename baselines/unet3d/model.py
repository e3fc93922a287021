"""The challenge's second baseline: MONAI's U-Net on CT and PET (github.com/lab-midas/autoPET, `uNet_baseline`).

This file holds the settings, the network, the way an image becomes its input, and the timed sliding window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from monai.transforms import ScaleIntensityRange

from autopet.checkpoint import load_weights, read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.sliding_window import Window, report, slide
from autopet.volume import IDENTITY, Volume, resample

METHOD = "unet3d"
WEIGHTS = "weights.safetensors"
CHANNELS = ("CT", "PET")  # of our models; the released checkpoint has PET, CT. config.json says which a model wants
FILL = {"CT": -1024.0, "PET": 0.0}  # HU and SUV outside the field of view
LOSSES = ("dice", "dice_ce")
SAME_SPACING = 0.02  # a grid this close to the working spacing (as a share of it) is used as it is


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

    Logits of overlapping tiles are averaged, then the softmax is taken. With a limit tiles overlap less, or are left
    out, as `autopet.sliding_window.slide` says; what no tile covers has probability 0. The journal is told.

    Parameters
    ----------
    image : (channel, z, y, x) float32 array
        From `prepare`.

    Returns
    -------
    (z, y, x) float32 array
    """
    deadline = deadline or Deadline()
    step = 2 ** (len(settings.features) - 1)
    size = [min(edge, math.ceil(n / step) * step) for n, edge in zip(image.shape[1:], settings.window, strict=True)]
    window = Window(tuple(size), settings.overlap)
    network.eval()

    def lesion_logit(tile: torch.Tensor) -> torch.Tensor:
        logits = network(tile)
        return logits[:, 1:] - logits[:, :1]

    voxels = torch.from_numpy(image)
    found = slide(lesion_logit, voxels, window, device=device, deadline=deadline, reserve_s=reserve_s)
    report(found, window, deadline)
    return torch.sigmoid(found.logit).numpy()


# The model folder


def load_network(folder: Path) -> tuple[UNet, Settings, dict]:
    """The network of a model folder with its weights, its settings, and config.json's `channels` and `spacing_mm`.

    Raises
    ------
    AutopetError
        No model of this method, a damaged file, or weights and settings that do not belong together.
    """
    config = read_config(folder, method=METHOD, needs=("settings", "channels", "spacing_mm"))
    settings = settings_from_dict(Settings, config["settings"], str(folder))
    network = build_network(settings, len(config["channels"]))
    load_weights(network, folder / WEIGHTS, what="the network that config.json describes")
    return network, settings, config
