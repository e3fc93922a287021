"""Projections as small PNG files: the PET once per case, and over it the masks of each submission.

The PET is the same for all submissions and is therefore in the page once; the masks are see-through palette images of
one or two kB.
"""

from __future__ import annotations

import base64
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.previews import Preview, read_preview

PICTURE_HEIGHT_PX = 360
SUV_BLACK = 8.0  # inverted grey: SUV 0 is white, this and more is black
OVERLAY_OPACITY = 0.8
CLASSES = (  # colours of Okabe and Ito, told apart with any colour vision
    ("missed", "ground truth only (missed)", (0, 114, 178)),
    ("false", "prediction only (false positive)", (213, 94, 0)),
    ("both", "both (agreement)", (0, 158, 115)),
)


@dataclass(frozen=True, eq=False)
class Projection:
    """One view of a case: masks and, when there was an image, the PET in SUV; (rows, columns), spacing in mm."""

    ground_truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, float]
    pet: np.ndarray | None

    def size_px(self, height_px: int) -> tuple[int, int]:
        """Width and height of the picture in true proportions."""
        rows, columns = self.ground_truth.shape
        row_mm, column_mm = self.spacing_mm
        return max(1, round(height_px * columns * column_mm / (rows * row_mm))), height_px

    def fits(self, other: Projection) -> bool:
        """Whether both can be laid over each other."""
        return self.ground_truth.shape == other.ground_truth.shape and np.allclose(self.spacing_mm, other.spacing_mm)


def projections(preview: Preview) -> dict[str, Projection]:
    """The views that a preview holds, `coronal` first; earlier versions had no `sagittal` one."""
    views = {"coronal": Projection(preview.ground_truth, preview.prediction, preview.spacing_mm, preview.pet)}
    truth, guess = preview.sagittal_ground_truth, preview.sagittal_prediction
    if truth is not None and guess is not None and preview.sagittal_spacing_mm is not None:
        views["sagittal"] = Projection(truth, guess, preview.sagittal_spacing_mm, preview.sagittal_pet)
    return views


def find_preview(folder: Path | None, case: str) -> Preview | None:
    """The case's preview; None when there is none that can be read."""
    if folder is None or Path(case).name != case:
        return None
    path = folder / f"{case}.npz"
    if not path.is_file():
        return None
    try:
        return read_preview(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def draw_pet(view: Projection, *, height_px: int = PICTURE_HEIGHT_PX) -> Image.Image:
    """PET in inverted grey; white without a PET."""
    size = view.size_px(height_px)
    if view.pet is None:
        return Image.new("L", size, 255)
    suv = _resized(view.pet.astype(np.float32), size)
    return Image.fromarray(np.round((1 - np.clip(suv / SUV_BLACK, 0, 1)) * 255).astype(np.uint8))


def draw_masks(view: Projection, *, height_px: int = PICTURE_HEIGHT_PX) -> Image.Image:
    """Both masks as a palette image: see-through, ground truth only, prediction only, both."""
    size = view.size_px(height_px)
    truth, guess = (_shrunk_mask(mask, size) for mask in (view.ground_truth, view.prediction))
    image = Image.fromarray(truth.astype(np.uint8) + 2 * guess.astype(np.uint8))
    image.putpalette([255, 255, 255, *(level for _, _, colour in CLASSES for level in colour)])
    opaque = round(255 * OVERLAY_OPACITY)
    image.info["transparency"] = bytes([0, opaque, opaque, opaque])
    return image


def draw(view: Projection, *, height_px: int = PICTURE_HEIGHT_PX) -> Image.Image:
    """Both layers as the page shows them, one over the other, as an RGB image."""
    masks = draw_masks(view, height_px=height_px)
    colours = np.array([(255, 255, 255), *(colour for _, _, colour in CLASSES)], float)
    opacity = np.array([0.0] + [OVERLAY_OPACITY] * len(CLASSES))
    classes = np.asarray(masks)
    grey = np.asarray(draw_pet(view, height_px=height_px), float)[..., None]
    part = opacity[classes][..., None]
    return Image.fromarray(np.round((1 - part) * grey + part * colours[classes]).astype(np.uint8))


def png_data_uri(image: Image.Image) -> str:
    """An image inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **({"bits": 2} if image.mode == "P" else {}))
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[1] < array.shape[0]
    filtering = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(array).resize(size, filtering))


def _shrunk_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A pixel counts from a quarter of a voxel on: a voxel split over four pixels is still seen in one of them."""
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
    pixels_per_voxel = size[0] * size[1] / mask.size
    return share > 0.24 * min(1.0, pixels_per_voxel)
