"""Draw closed contours on an image grid: which slices show a contour plane, and how much of it there is.

Every region is drawn by itself, by the usual distance of its own planes:

- Contours on slices of the PET are filled there. A region of the PET that was drawn on every n-th slice only is filled
  in between, with a warning.
- Contours on other planes parallel to the slices are filled with the rows and columns of the PET. A contour plane
  stands for the space halfway to its neighbours, or for half the usual distance where it has none; a PET slice shows
  the planes in whose space it lies.
- Contours on tilted planes are filled on a grid of their own, with pixels of half the PET's, then resampled by nearest
  neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autopet.errors import AutopetError
from autopet.volume import Volume, resample
from data_prep.attributes import tag_name
from data_prep.contour_planes import Planes, indices_on, is_parallel, planes_of
from data_prep.mask_objects import Drawn, vanished
from data_prep.polygons import cancelled_pixels, fill_even_odd

MAX_PIXELS = 8192  # along one side of a contour's bounding box
OFTEN = 2  # a distance of two planes is a habit from the second time on
SPARSE = 1.5  # slices between planes from which on slices have been left out
FINE = 0.75  # slices between planes below which they are finer than the slices
OTHER, TILTED = "planes", "planes (tilted ones)"


@dataclass(frozen=True, eq=False)
class Region:
    """Closed contours of one region, (points, 3) LPS mm each, on whatever planes.

    `exclusive`: their type says that they are to be combined by exclusive or, so that nothing of it is suspicious.
    """

    label: str
    contours: Sequence[np.ndarray]
    exclusive: bool = False


@dataclass
class _Tally:
    """What has to be said of the regions of one file."""

    outside: int = 0
    cancelled_ml: dict[str, float] = field(default_factory=dict)
    resampled_ml: dict[str, np.ndarray] = field(default_factory=dict)  # before and after, by the kind of planes
    unknown: bool = False
    every: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    hidden: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def warnings(self, title: str) -> list[str]:
        """Lines to show, the same kind together."""
        said = []
        if self.outside:
            said.append(f"{self.outside} voxels lie outside of the image and are lost")
        for what, (before, after) in self.resampled_ml.items():
            volumes = f"{before:.2f} ml became {after:.2f} ml"
            said.append(f"lies on other {what} than the PET, resampled by nearest neighbour ({volumes})")
        for label, step in self.every.items():
            said.append(f"contours of {label!r} on every {step:.0f}. slice only, the slices between are filled")
        for label, gaps in self.gaps.items():
            said.append(
                f"contours of {label!r} lie on top of each other with {gaps} wider gaps between planes, left empty"
            )
        for label, hidden in self.hidden.items():
            said.append(f"{hidden} contours of {label!r} are not seen: they lie between slices or behind other planes")
        for label, lost_ml in self.cancelled_ml.items():
            tag = tag_name("ContourGeometricType")
            said.append(
                f"contours of {label!r} on the same plane cross ({tag} CLOSED_PLANAR): {lost_ml:.2f} ml that they "
                "share count as outside"
            )
        if self.unknown:
            said.append("the distance of its planes is unknown, taken as that of the PET's slices")
        said += [f"contours of {label!r} leave no voxel on the PET grid, check where they lie" for label in self.empty]
        return [f"{title}: {line}" for line in said]


def draw_regions(
    regions: Sequence[Region], pet: Volume, warnings: list[str], *, title: str, on_pet: bool
) -> Drawn:  # fmt: skip
    """Unite regions on the PET grid; warnings begin with `title`.

    `on_pet` says that they were drawn on the PET: planes that are some of its slices are then no thicker ones, unless
    slices were left out regularly.

    Raises
    ------
    AutopetError
        Contours span far more than an image, or lie on planes of a region that are not parallel.
    """
    mask, tally, drawn_ml = np.zeros(pet.shape, dtype=bool), _Tally(), 0.0
    for region in regions:
        found, volume_ml = _draw(region, pet, tally, on_pet=on_pet)
        mask |= found
        drawn_ml += volume_ml
        if not found.any():
            tally.empty.append(region.label)
    gone = ""
    if not mask.any():
        labels, tally.empty = ", ".join(tally.empty), []
        gone = vanished(title, f"the contours of {labels}", drawn_ml, pet)
    warnings += tally.warnings(title)
    grid = "own, resampled to PET" if tally.resampled_ml else "PET"
    return Drawn(mask, sum(len(region.contours) for region in regions), grid, gone)


def _draw(region: Region, pet: Volume, tally: _Tally, *, on_pet: bool) -> tuple[np.ndarray, float]:
    """(z, y, x) bool mask of one region on the PET grid, and the volume of the contours on their own planes in ml."""
    if not all(is_parallel(contour, pet) for contour in region.contours):
        return _draw_tilted(region, pet, tally)
    planes = planes_of(region.contours, pet)
    step = planes.step
    sparse = step is not None and step >= SPARSE and (not on_pet or planes.count(step) >= OFTEN)
    if planes.on_slices and not sparse and (step is None or step >= FINE):
        return _fill(region, planes, pet, tally, step=None)
    mask, drawn_ml = _fill(region, planes, pet, tally, step=step or 1.0)
    if on_pet and sparse and planes.on_slices:
        tally.every[region.label] = step or 1.0
    else:
        tally.unknown |= step is None
        _resampled(tally, OTHER, drawn_ml, mask, pet)
    return mask, drawn_ml


def _resampled(tally: _Tally, what: str, drawn_ml: float, mask: np.ndarray, pet: Volume) -> None:
    volumes_ml = np.array([drawn_ml, mask.sum() * pet.voxel_volume_ml])
    tally.resampled_ml[what] = tally.resampled_ml.get(what, 0) + volumes_ml


def _fill(
    region: Region, planes: Planes, grid: Volume, tally: _Tally, *, step: float | None
) -> tuple[np.ndarray, float]:
    """(z, y, x) bool mask of contours parallel to a grid's slices, and their volume on their own planes in ml.

    Without `step`, a contour plane is shown by the grid's nearest slice; with it, by those in the space it stands for.
    """
    mask = np.zeros(grid.shape, dtype=bool)
    cancelled = drawn = 0.0
    unseen: list[np.ndarray] = []
    spaces = planes.spaces(step or 1.0)
    for height, members, space in zip(planes.heights, planes.members, spaces, strict=True):
        thickness = 1.0 if step is None else float(space[1] - space[0])
        (x, y), pixels, lost = _pixels(members, grid, exclusive=region.exclusive)
        columns, rows = np.nonzero(pixels)[1] + x, np.nonzero(pixels)[0] + y
        inside = (columns >= 0) & (columns < grid.shape[2]) & (rows >= 0) & (rows < grid.shape[1])
        first, last = (round(height), round(height)) if step is None else np.ceil(space - 1e-6) - (0, 1)
        for plane in range(max(int(first), 0), min(int(last) + 1, grid.shape[0])):
            mask[plane, rows[inside], columns[inside]] = True
        if first > last:
            unseen += members
        drawn += len(rows) * thickness
        cancelled += lost * thickness
        outside = height < -0.5 or height > grid.shape[0] - 0.5
        tally.outside += len(rows) if outside else int((~inside).sum())
    if cancelled:
        tally.cancelled_ml[region.label] = cancelled * grid.voxel_volume_ml
    if gaps := planes.gaps(step or 1.0):
        tally.gaps[region.label] = gaps
    if mask.any() and (hidden := _hidden(unseen, mask, grid)):
        tally.hidden[region.label] = hidden
    return mask, drawn * grid.voxel_volume_ml


def _hidden(unseen: Sequence[np.ndarray], mask: np.ndarray, grid: Volume) -> int:
    """Contours on planes that no slice shows where none of the slices around has a voxel, not even of a neighbour."""
    count = 0
    for contour in unseen:
        places = indices_on(contour, grid)
        low = np.clip(np.floor(places.min(axis=0)) - (0, 0, 1), 0, None).astype(int)
        high = np.clip(np.ceil(places.max(axis=0)) - (-1, -1, -2), 0, None).astype(int)
        around = mask[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
        count += around.size > 0 and not around.any()
    return count


def _pixels(
    contours: Sequence[np.ndarray], grid: Volume, *, exclusive: bool
) -> tuple[tuple[int, int], np.ndarray, int]:
    """First index (x, y), and (rows, columns) bool, of the bounding box of contours on one plane, filled.

    Then the pixels that contours which cross take from each other, 0 where their type says that this is meant.
    """
    polygons = [indices_on(contour, grid)[:, :2] for contour in contours]
    points = np.concatenate(polygons)
    low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 2
    width, height = high - low
    if max(width, height) > MAX_PIXELS:
        raise AutopetError(f"{tag_name('ContourData')} spans {width:.0f} x {height:.0f} pixels; check the contours")
    polygons, shape = [polygon - low for polygon in polygons], (int(height), int(width))
    lost = 0 if exclusive or len(polygons) == 1 else cancelled_pixels(polygons)
    return (int(low[0]), int(low[1])), fill_even_odd(polygons, shape), lost


# --- tilted planes ---------------------------------------------------------------------------------------------------


def _draw_tilted(region: Region, pet: Volume, tally: _Tally) -> tuple[np.ndarray, float]:
    """Mask of a region whose planes are tilted against the PET's, by way of a grid on its own planes."""
    own = _tilted_grid(region.contours, pet)
    planes = planes_of(region.contours, own)
    mask, drawn_ml = _fill(region, planes, own, tally, step=planes.step or min(pet.spacing_mm) / own.spacing_mm[2])
    moved = resample(own.with_array(mask.astype(np.uint8)), pet, nearest=True).array > 0
    _resampled(tally, TILTED, drawn_ml, moved, pet)
    return moved, drawn_ml


def _tilted_grid(contours: Sequence[np.ndarray], pet: Volume) -> Volume:
    """The smallest grid around contours whose slices are their planes, with pixels of half the PET's smallest."""
    normals = [np.cross(contour, np.roll(contour, -1, axis=0)).sum(axis=0) for contour in contours]
    normal = max(normals, key=lambda vector: float(np.linalg.norm(vector)))  # Newell: twice the area, along the normal
    normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
    axes = np.reshape(pet.direction, (3, 3)).T
    x = axes[int(np.argmin(np.abs(axes @ normal)))]
    x = x - (x @ normal) * normal
    x /= np.linalg.norm(x)
    direction = np.stack([x, np.cross(normal, x), normal]).T
    unit = Volume(np.zeros((1, 1, 1), np.uint8), direction=tuple(float(value) for value in direction.ravel()))
    if not all(is_parallel(contour, unit) for contour in contours):
        raise AutopetError(
            f"{tag_name('ContourData')} lies on planes that are not parallel; export them slice by slice"
        )
    fine_mm = min(pet.spacing_mm) / 2
    points = np.concatenate([indices_on(contour, unit) for contour in contours])
    low, high = points.min(axis=0), points.max(axis=0)
    spacing = np.array([fine_mm, fine_mm, planes_of(contours, unit).step or min(pet.spacing_mm)])
    low[:2] -= fine_mm / 2  # a drawing along the axes has no path through centres
    size = np.ceil((high - low) / spacing + (2, 2, 1)).astype(int)
    if size.max() > MAX_PIXELS or np.prod(size.astype(float)) > 2e9:
        raise AutopetError(f"{tag_name('ContourData')} spans {high - low} mm; check the contours")
    blank = np.broadcast_to(np.uint8(0), tuple(size[::-1]))
    x_mm, y_mm, z_mm = (float(value) for value in direction @ low)
    return Volume(blank, (fine_mm, fine_mm, float(spacing[2])), (x_mm, y_mm, z_mm), unit.direction)
