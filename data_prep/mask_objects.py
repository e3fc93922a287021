"""What a file with masks must be able to say, be it a Segmentation or an RT Structure Set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydicom.dataset import Dataset

from autopet.volume import Volume


@dataclass(frozen=True, eq=False)
class Drawn:
    """What one file draws on the PET grid.

    `mask` is (z, y, x) bool, `count` the frames or contours used, `grid` says whether they lay on the PET grid or were
    resampled. `vanished` says why nothing is left of a drawing that is not empty; it is empty otherwise.
    """

    mask: np.ndarray
    count: int
    grid: str
    vanished: str = ""


class MaskObject(Protocol):
    """One file with masks: a Segmentation or an RT Structure Set, as far as it could be read."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def kind(self) -> str:
        """SEG or RTSTRUCT."""

    @property
    def title(self) -> str:
        """What it is called in messages."""

    @property
    def header(self) -> Dataset:
        """Its attributes."""

    @property
    def labels(self) -> dict[int, str]:
        """Segments or regions by number."""

    @property
    def belongs(self) -> bool:
        """Whether it was drawn on the PET: refers to its series or, for a Segmentation, lies on its grid."""

    @property
    def problem(self) -> str:
        """Why it cannot be used, empty when it can."""

    @property
    def frame_uids(self) -> tuple[str, ...]:
        """Frames of reference it is drawn in."""

    def draw(self, numbers: set[int], pet: Volume, warnings: list[str]) -> Drawn:
        """The mask of some segments on the PET grid."""


def vanished(title: str, what: str, before_ml: float, pet: Volume) -> str:
    """Why a study would look free of lesions although something was drawn."""
    return (
        f"{title}: {what} ({before_ml:.3f} ml) leave no voxel on the PET grid, expected at least one of "
        f"{pet.voxel_volume_ml:.3f} ml: outside of the image, between its slices or smaller than a voxel; check where "
        "they lie, or leave them out with `--segments`"
    )
