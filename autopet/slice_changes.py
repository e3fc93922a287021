"""Random changes of training slices: size, rotation, shift and contrast, drawn apart from being applied."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from autopet.errors import AutopetError


@dataclass(frozen=True)
class Augmentation:
    """Largest changes.

    Früh et al. (J. Med. Imaging 8(5), 054003, 2021, section 2.3.3) name the four kinds and not their sizes: these are
    ours.
    """

    rotation_degrees: float = 15.0
    scale_share: float = 0.15  # of the size
    shift_share: float = 0.05  # of the slice's edge
    contrast_share: float = 0.2  # of every intensity's distance to its channel's mean

    def __post_init__(self) -> None:
        for name in ("scale_share", "shift_share", "contrast_share"):
            if not 0 <= getattr(self, name) < 1:
                raise AutopetError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class Change:
    """One drawn change of a slice: turned by `angle_rad` from the columns' to the rows' axis, grown, then shifted."""

    angle_rad: float = 0.0
    scale: float = 1.0  # above 1: what is shown grows
    shift: tuple[float, float] = (0.0, 0.0)  # towards higher rows and columns, as shares of the edge
    contrast: tuple[float, ...] = ()  # factor of every channel; none: as it is


def draw_change(rng: np.random.Generator, augmentation: Augmentation, *, channels: int) -> Change:
    """Even draws from -largest to +largest, one contrast per channel."""
    angle = math.radians(augmentation.rotation_degrees) * rng.uniform(-1, 1)
    scale = 1 + augmentation.scale_share * rng.uniform(-1, 1)
    rows, columns = augmentation.shift_share * rng.uniform(-1, 1, 2)
    contrast = 1 + augmentation.contrast_share * rng.uniform(-1, 1, channels)
    return Change(angle, scale, (float(rows), float(columns)), tuple(float(factor) for factor in contrast))


def apply_change(
    change: Change, image: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A slice, and its mask, changed.

    What comes in from outside is 0. Contrast comes last: intensities move away from their channel's mean or towards it,
    and stay within the channel's range (as batchgenerators' ContrastAugmentationTransform with preserve_range).

    Parameters
    ----------
    image : (channel, y, x) float tensor
        Square; bilinear.
    mask : (y, x) tensor or None
        Nearest neighbour.
    """
    if (change.angle_rad, change.scale, change.shift) != (0.0, 1.0, (0.0, 0.0)):
        grid = _sources(change, image)
        image = _sample(image, grid, "bilinear")
        mask = None if mask is None else _sample(mask[None].to(image.dtype), grid, "nearest")[0].to(mask.dtype)
    return (_contrasted(image, change.contrast) if change.contrast else image), mask


def _sources(change: Change, image: torch.Tensor) -> torch.Tensor:
    """Where every pixel comes from, (1, y, x, 2) in coordinates (x, y) from -1 to 1: the inverse of the change."""
    cosine, sine = math.cos(change.angle_rad) / change.scale, math.sin(change.angle_rad) / change.scale
    down, right = (2 * share for share in change.shift)
    theta = image.new_tensor(
        [[cosine, sine, -cosine * right - sine * down], [-sine, cosine, sine * right - cosine * down]]
    )
    return functional.affine_grid(theta[None], [1, *image.shape], align_corners=False)


def _sample(image: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(image[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def _contrasted(image: torch.Tensor, factors: tuple[float, ...]) -> torch.Tensor:
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    mean = image.mean((1, 2), keepdim=True)
    factor = image.new_tensor(factors)[:, None, None]
    return torch.minimum(torch.maximum((image - mean) * factor + mean, low), high)


def augment(
    image: torch.Tensor, mask: torch.Tensor | None = None, *, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A randomly changed slice (channel, y, x), and its mask (y, x)."""
    return apply_change(draw_change(rng, augmentation, channels=len(image)), image, mask)
