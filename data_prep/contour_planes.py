"""Where the planes of a region's contours lie along the slices of a grid: pure geometry, without DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopet.volume import Volume

PLANE_TOLERANCE = 0.3  # slices a contour may lie off the grid's planes, and its points off each other's plane
SAME_PLANE_MM = 0.1
STRAY_MM = 0.3  # nobody draws on planes as near as this; in slices:
STRAY = 0.1
THICKEST_MM = 10.0  # contours farther apart than this belong to different lesions, not to neighbouring slices
NEXT = (0.25, 1.5)  # usual distances to a neighbour: nearer ones are strays of the plane itself, beyond there is a gap


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes of the contours of one region, parallel to the slices of a grid.

    `heights` (planes,) are in slices of the grid, rising; `members` the contours on each; `boxes` (planes, 2, 2) their
    lowest and highest x and y in voxels. `step` is the usual distance of two planes in slices: the median of the near
    ones, so that a contour that lies a little off changes nothing; None when no two are near.
    """

    heights: np.ndarray
    members: tuple[tuple[np.ndarray, ...], ...]
    boxes: np.ndarray
    step: float | None
    thickest: float  # slices

    @property
    def on_slices(self) -> bool:
        """Whether every plane is one of the grid's slices."""
        return bool((np.abs(self.heights - np.rint(self.heights)) <= PLANE_TOLERANCE).all())

    def count(self, step: float) -> int:
        """How many distances of two planes are about `step`."""
        return int((np.abs(np.diff(self.heights) - step) <= PLANE_TOLERANCE).sum())

    def gaps(self, step: float) -> int:
        """Distances wider than a usual one between planes whose contours lie on top of each other."""
        distances = np.diff(self.heights)
        wide = (distances > NEXT[1] * step) & (distances <= self.thickest)
        below, above = self.boxes[:-1], self.boxes[1:]
        apart = (below[:, 0] > above[:, 1]).any(axis=1) | (above[:, 0] > below[:, 1]).any(axis=1)
        return int((wide & ~apart).sum())

    def spaces(self, step: float) -> np.ndarray:
        """(planes, 2) lower and upper end, in slices, of what each plane stands for: halfway to its neighbours.

        Half of `step` where there is no neighbour. What lies nearer than a quarter of `step` is no neighbour: both
        planes stand for the same slice.
        """
        count = len(self.heights)
        below = np.searchsorted(self.heights, self.heights - NEXT[0] * step, side="right") - 1
        above = np.searchsorted(self.heights, self.heights + NEXT[0] * step, side="left")
        down = np.where(below >= 0, self.heights - self.heights[below], np.inf)
        up = np.where(above < count, self.heights[np.minimum(above, count - 1)] - self.heights, np.inf)
        reach = [np.where(distance <= NEXT[1] * step, distance, step) / 2 for distance in (down, up)]
        return np.stack([self.heights - reach[0], self.heights + reach[1]], axis=1)


def planes_of(contours: Sequence[np.ndarray], grid: Volume) -> Planes:
    """The planes of one region's contours (at least one), each (points, 3) in LPS mm.

    Planes of different regions are not compared: they may have been drawn on different images.
    """
    places = [indices_on(contour, grid) for contour in contours]
    means = np.array([place[:, 2].mean() for place in places])
    rising = np.sort(means)
    thickness_mm = grid.spacing_mm[2]
    heights = rising[np.diff(rising, prepend=-np.inf) > SAME_PLANE_MM / thickness_mm]
    owner = np.searchsorted(heights, means, side="right") - 1
    order = [np.flatnonzero(owner == index).tolist() for index in range(len(heights))]
    members = tuple(tuple(contours[n] for n in indices) for indices in order)
    low = np.array([place[:, :2].min(axis=0) for place in places])
    high = np.array([place[:, :2].max(axis=0) for place in places])
    boxes = np.array([(low[indices].min(axis=0), high[indices].max(axis=0)) for indices in order])
    steps = np.sort(np.diff(heights))
    near = steps[(steps > min(STRAY_MM / thickness_mm, STRAY)) & (steps <= THICKEST_MM / thickness_mm)]
    step = float(near[(len(near) - 1) // 2]) if len(near) else None
    return Planes(heights, members, boxes, step, THICKEST_MM / thickness_mm)


def indices_on(points_mm: np.ndarray, grid: Volume) -> np.ndarray:
    """(points, 3) fractional indices x, y, z on a grid."""
    return (points_mm - np.asarray(grid.origin_mm)) @ np.linalg.inv(grid.affine[:3, :3]).T


def is_parallel(contour: np.ndarray, grid: Volume) -> bool:
    """Whether a contour lies on one plane parallel to a grid's slices."""
    return bool(np.ptp(indices_on(contour, grid)[:, 2]) <= PLANE_TOLERANCE)
