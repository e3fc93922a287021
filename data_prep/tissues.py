"""What a phantom patient is made of: tissues, and layers of them that are painted into a label map."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from autopet.volume import Volume
from data_prep.shapes import Point, Shape, axes_mm, bounding_box

SLAB_VOXELS = 4_000_000  # voxels that are painted at a time


class Tissue(IntEnum):
    """Labels of the phantom."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    MARROW = 4
    LUNG = 5
    SOFT = 6
    BLOOD = 7
    MYOCARDIUM = 8
    BRAIN = 9
    LIVER = 10
    SPLEEN = 11
    KIDNEY = 12
    URINE = 13
    STOMACH = 14
    BOWEL = 15
    DUODENUM = 16
    SALIVARY = 17
    PROSTATE = 18
    BROWN_FAT = 19
    URETER = 20
    GAS = 21
    TABLE = 22  # never painted, but every patient's random numbers count with it: without it all cohorts change


# Organ labels as in `autopet.organs.ORGANS`, and the tissue that each one is made of.
ORGAN_TISSUES = (
    Tissue.AIR,
    Tissue.SPLEEN,
    Tissue.KIDNEY,
    Tissue.LIVER,
    Tissue.URINE,
    Tissue.LUNG,
    Tissue.BRAIN,
    Tissue.MYOCARDIUM,
    Tissue.STOMACH,
    Tissue.PROSTATE,
    Tissue.SALIVARY,
)
ORGAN_OF = {tissue: label for label, tissue in enumerate(ORGAN_TISSUES)}
HEART = ORGAN_OF[Tissue.MYOCARDIUM]


@dataclass(frozen=True)
class Layer:
    """A shape to paint with a tissue, over everything or only over the tissues in `over`.

    `organ` is the organ label that the shape stands for; without it the tissue decides.
    """

    tissue: Tissue
    shape: Shape
    over: tuple[Tissue, ...] = ()
    organ: int | None = None

    @property
    def organ_label(self) -> int:
        """The organ label of the voxels that it paints."""
        return ORGAN_OF.get(self.tissue, 0) if self.organ is None else self.organ


@dataclass(frozen=True)
class MapLayer:
    """A label map to paint by nearest neighbour wherever it is not 0 (direction must be the identity).

    `organs` holds the organ labels of its voxels, on the same grid.
    """

    labels: Volume
    organs: Volume | None = None


@dataclass(frozen=True)
class Anatomy:
    """Everything that lies in one patient.

    Parameters
    ----------
    layers : painted in this order.
    stations : lymph-node stations and similar places, each with points in mm.
    bottom_mm, top_mm : the stretch of the patient that is scanned.
    centre_mm : x and y of the middle of the body.
    """

    layers: tuple[Layer | MapLayer, ...]
    stations: dict[str, tuple[Point, ...]]
    bottom_mm: float
    top_mm: float
    centre_mm: tuple[float, float] = (0.0, 0.0)

    def paint(self, grid: Volume) -> np.ndarray:
        """Tissue labels, uint8 (z, y, x), on a grid whose direction is the identity (its voxels are not read)."""
        return self.paint_with_organs(grid)[0]

    def paint_with_organs(self, grid: Volume) -> tuple[np.ndarray, np.ndarray]:
        """Tissue labels, and the organ labels of the same voxels, see `autopet.organs.ORGANS`; both uint8."""
        labels = np.zeros(grid.shape, dtype=np.uint8)
        organs = np.zeros(grid.shape, dtype=np.uint8)
        for layer in self.layers:
            if isinstance(layer, MapLayer):
                _paint_map(labels, organs, grid, layer)
            else:
                _paint_shape(labels, organs, grid, layer)
        return labels, organs


def _paint_shape(labels: np.ndarray, organs: np.ndarray, grid: Volume, layer: Layer) -> None:
    box_z, box_y, box_x = bounding_box(layer.shape, grid)
    plane = max((box_y.stop - box_y.start) * (box_x.stop - box_x.start), 1)
    step = max(SLAB_VOXELS // plane, 1)
    for first in range(box_z.start, box_z.stop, step):
        box = (slice(first, min(first + step, box_z.stop)), box_y, box_x)
        here = labels[box]
        hit = layer.shape.inside(*axes_mm(grid, box))
        if layer.over:
            hit = hit & np.isin(here, layer.over)
        here[hit] = layer.tissue
        organs[box][hit] = layer.organ_label


def _paint_map(labels: np.ndarray, organs: np.ndarray, grid: Volume, layer: MapLayer) -> None:
    source, indices, inside = layer.labels, [], []
    for axis in range(3):
        points = np.arange(grid.shape[axis]) * grid.spacing_zyx_mm[axis] + grid.origin_mm[2 - axis]
        index = np.rint((points - source.origin_mm[2 - axis]) / source.spacing_zyx_mm[axis]).astype(int)
        inside.append(np.flatnonzero((index >= 0) & (index < source.shape[axis])))
        indices.append(index[inside[-1]])
    if not all(len(index) for index in indices):
        return
    box = tuple(slice(found[0], found[-1] + 1) for found in inside)
    values = source.array[np.ix_(*indices)]
    painted = values > 0
    labels[box][painted] = values[painted]
    organs[box][painted] = 0 if layer.organs is None else layer.organs.array[np.ix_(*indices)][painted]
