"""How much of a PET a CT covers, and how they lie to each other, from headers alone.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import orientation, pixel_spacing, position, whole_number
from data_prep.inventory import Series

PARALLEL_COSINE = 0.98  # of the angle between two stacks' normals; gantries tilt a few degrees
LEAST_LENGTH = 0.75  # of the PET's length: a CT that covers less is the last resort
LEAST_ACROSS = 0.55  # of the PET's width or height; a CT of 50 cm is 0.61 of the largest PET, 81 cm


@dataclass(frozen=True)
class Cover:
    """Shares of the PET's width, height and length, each from 0 to 1, that a series covers; along the PET's axes."""

    width: float
    height: float
    length: float

    @property
    def volume(self) -> float:
        """Share of the PET's volume."""
        return self.width * self.height * self.length

    @property
    def is_wide(self) -> bool:
        """Whether the field of view is large enough for the whole body, across."""
        return min(self.width, self.height) >= LEAST_ACROSS

    @property
    def is_whole(self) -> bool:
        """Whether the series is fit to go with the whole PET."""
        return self.is_wide and self.length >= LEAST_LENGTH


def cover(series: Series, pet: Series) -> Cover:
    """What a series covers of the PET; nothing when one of them does not say where it lies.

    Along the slices' normal, lengths go from the first slice's centre to the last's; across, from edge to edge
    (Rows, Columns, PixelSpacing, C.7.6.3 and 10.7). Of a series oblique to the PET it is the box around.
    """
    try:
        axes = orientation(pet.first)
        (low, high), (other_low, other_high) = _box(pet, axes), _box(series, axes)
    except AutopetError:
        return Cover(0.0, 0.0, 0.0)
    overlap = np.minimum(high, other_high) - np.maximum(low, other_low)
    width, height, length = (float(share) for share in (overlap / np.maximum(high - low, 1e-6)).clip(0, 1))
    return Cover(width, height, length)


def length_mm(series: Series) -> float:
    """Distance of the first and last slice's centres along the normal; 0 when they are unknown."""
    try:
        along = _positions(series.frames) @ orientation(series.first)[2]
    except AutopetError:
        return 0.0
    return float(np.ptp(along))


def is_parallel(series: Series, pet: Series) -> bool:
    """Whether the slices of both have about the same normal."""
    try:
        return bool(abs(orientation(series.first)[2] @ orientation(pet.first)[2]) > PARALLEL_COSINE)
    except AutopetError:
        return False


def shares_frame(first: Series, second: Series) -> bool:
    """Whether both have the same frame of reference (C.7.4.1)."""
    frame = first.first.get("FrameOfReferenceUID")
    return bool(frame) and frame == second.first.get("FrameOfReferenceUID")


def _box(series: Series, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates (3,) of all planes along the axes, with the edges of their pixels."""
    header = series.first
    along_row, along_column, _ = orientation(header)
    x_mm, y_mm = pixel_spacing(header)
    columns, rows = whole_number(header, "Columns", least=1), whole_number(header, "Rows", least=1)
    corners = np.array(
        [x * x_mm * along_row + y * y_mm * along_column for x in (-0.5, columns - 0.5) for y in (-0.5, rows - 0.5)]
    )
    places = (_positions(series.frames)[:, None] + corners).reshape(-1, 3) @ axes.T
    return places.min(axis=0), places.max(axis=0)


def _positions(headers: Sequence[Dataset]) -> np.ndarray:
    return np.array([position(header) for header in headers])
