"""Small coronal projections of a study for the report of `autopet prep`."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from autopet.errors import AutopetError
from autopet.views import coronal_projection
from autopet.volume import Volume

HEIGHT_PX = 160
WIDEST_PX = 480  # of a picture that is wider than high, such as one of a leg that lies across
SUV_BLACK = 10.0  # inverted grey: SUV 0 is white, this and more is black
GREY_LEVELS = 48  # times two: without and with lesion, in one PNG palette
LESION_RED = (214, 39, 40)
LESION_OPACITY = 0.6


def coronal_mip(suv: Volume, mask: Volume | None = None, *, height_px: int = HEIGHT_PX) -> bytes:
    """A PNG of the coronal maximum-intensity projection, lesions tinted red.

    Inverted grey from SUV 0 (white) to `SUV_BLACK` and more (black); pixels are as wide as high in mm, so what is wider
    than `WIDEST_PX` becomes lower than `height_px`.

    Parameters
    ----------
    suv : Volume
        SUV in g/ml.
    mask : Volume, optional
        Lesions (not 0) on the same grid; a pixel is tinted where a quarter of a voxel is lesion, so that a single
        voxel stays visible.

    Returns
    -------
    bytes
        A palette PNG, less than 20 kB for a whole body at the default height.
    """
    projection, (row_mm, column_mm) = coronal_projection(suv)
    size = _size_px(projection.shape, row_mm, column_mm, height_px)
    shown = np.nan_to_num(projection.astype(np.float32), nan=0.0, posinf=SUV_BLACK, neginf=0.0)
    grey = (1 - np.clip(_resized(shown, size) / SUV_BLACK, 0, 1)) * (GREY_LEVELS - 1)
    levels = np.rint(grey).astype(np.uint8)
    if mask is not None:
        difference = mask.grid_difference(suv)
        if difference:
            raise AutopetError(f"expected the mask on the grid of the SUV image, found {difference}; resample it first")
        levels += GREY_LEVELS * _shrunk(coronal_projection(mask)[0] != 0, size).astype(np.uint8)
    image = Image.fromarray(levels)
    image.putpalette(_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _size_px(shape: tuple[int, ...], row_mm: float, column_mm: float, height_px: int) -> tuple[int, int]:
    """Width and height of isotropic pixels."""
    high_mm, wide_mm = shape[0] * row_mm, shape[1] * column_mm
    pixels_per_mm = min(height_px / high_mm, WIDEST_PX / wide_mm)
    return max(1, round(wide_mm * pixels_per_mm)), max(1, round(high_mm * pixels_per_mm))


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[1] < array.shape[0]
    filtering = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(size, filtering))


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels that hold a quarter of a voxel (or of themselves, where pixels are smaller) of a mask."""
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
    pixels_per_voxel = size[0] * size[1] / mask.size
    return share > 0.24 * min(1.0, pixels_per_voxel)


def _palette() -> np.ndarray:
    """(2 * GREY_LEVELS, 3) uint8 colours: the greys, then the greys tinted."""
    greys = np.repeat(np.linspace(0, 255, GREY_LEVELS)[:, None], 3, axis=1)
    tinted = (1 - LESION_OPACITY) * greys + LESION_OPACITY * np.array(LESION_RED)
    return np.round(np.concatenate([greys, tinted])).astype(np.uint8)
