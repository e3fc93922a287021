"""Masks from the contours of an RT Structure Set: polygons in patient millimetres, filled on the PET grid.

Sections are those of DICOM PS3.3: A.19 (RT Structure Set), C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.volume import Volume, resample
from data_prep.attributes import read_dicom, tag_name, values
from data_prep.polygons import fill_even_odd

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # of ContourGeometricType (3006,0042) that enclose an area
PLANE_TOLERANCE = 0.3  # slices a contour may lie off the grid's planes, and its points off each other's plane
SAME_PLANE_MM = 0.1
THICKEST_MM = 10.0  # contours farther apart than this belong to different lesions, not to neighbouring slices
MAX_PIXELS = 8192  # along one side of a contour's bounding box


@dataclass(frozen=True, eq=False)
class StructureSet:
    """One RT Structure Set instance, as far as it could be read; regions of interest (ROI) by number.

    `contours` are the closed ones, (points, 3) LPS mm each; `problems` say why a region cannot be used, `notes` what
    was left out of it.
    """

    path: Path
    header: Dataset
    labels: dict[int, str]
    belongs: bool  # refers to the PET series
    problem: str  # why nothing of it can be used, empty when it can
    contours: dict[int, list[np.ndarray]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    kind = "RTSTRUCT"

    @property
    def title(self) -> str:
        """What it is called in messages."""
        if self.problem:
            return str(self.path)
        name = self.header.get("SeriesDescription") or self.header.get("StructureSetLabel") or "RTSTRUCT"
        return f"{name} ({self.header.SOPInstanceUID}: {', '.join(self.labels.values())})"

    @property
    def frame_uids(self) -> tuple[str, ...]:
        """Frames of reference of its regions."""
        items = self.header.get("StructureSetROISequence") or []
        found = [uid for item in items for uid in values(item, "ReferencedFrameOfReferenceUID")]
        return tuple(dict.fromkeys(found)) or values(self.header, "FrameOfReferenceUID")

    def draw(self, numbers: set[int], pet: Volume, warnings: list[str]) -> tuple[np.ndarray, int, str]:
        """(z, y, x) bool mask of some regions on the PET grid, the contours used, and the planes they lay on.

        Contours of one region on one plane are combined by exclusive or (C.8.8.6.3), regions are united. Contours on
        PET planes are filled there. Contours on other planes parallel to them are filled with the rows and columns of
        the PET, and every PET plane takes the nearest contour plane within half a distance of the planes. Contours on
        tilted planes are filled on a grid of their own, with pixels of half the PET's, then resampled by nearest
        neighbour.
        """
        for number in sorted(numbers):
            if number in self.problems:
                raise AutopetError(self.problems[number])
            if number in self.notes:
                warnings.append(f"{self.title}: {self.notes[number]}")
        regions = [self.contours[number] for number in sorted(numbers) if self.contours.get(number)]
        count = sum(len(contours) for contours in regions)
        if not count:
            warnings.append(f"{self.title}: no closed contour of the regions {sorted(numbers)}; the mask is empty")
            return np.zeros(pet.shape, dtype=bool), 0, "no contours"
        if not all(_is_parallel(contour, pet) for contours in regions for contour in contours):
            return _draw_tilted(self, regions, pet, warnings), count, "own, resampled to PET"
        step = _plane_step(self.contours.values(), pet)
        if _on_planes(regions, pet) and (self.belongs or step is None or step < 1.5):
            return _fill(self, regions, pet, warnings, step=None)[0], count, "PET"
        mask, drawn = _fill(self, regions, pet, warnings, step=step or 1.0)
        warnings.append(_resampled(self, "planes", drawn * pet.voxel_volume_ml, mask.sum() * pet.voxel_volume_ml))
        if step is None:
            warnings.append(f"{self.title}: the distance of its planes is unknown, taken as that of the PET's slices")
        return mask, count, "own, resampled to PET"


def _resampled(item: StructureSet, what: str, before_ml: float, after_ml: float) -> str:
    volumes = f"{before_ml:.2f} ml became {after_ml:.2f} ml"
    return f"{item.title}: lies on other {what} than the PET, resampled by nearest neighbour ({volumes})"


# --- reading ---------------------------------------------------------------------------------------------------------


def read_structure_set(path: Path, *, pet: Volume, pet_uid: str, pet_headers: Mapping[str, Dataset]) -> StructureSet:
    """A structure set; a broken one with its problem. It belongs to the PET when it refers to its series or slices.

    That its planes are planes of the PET says nothing: the CT of the same examination often has the same planes.
    """
    header, labels, referenced = Dataset(), dict[int, str](), set[str]()
    problem, regions = "", _Regions(path)
    try:
        header = read_dicom(path, pixels=False)
        referenced = _referenced_series(header)
        labels = _labels(path, header)
        regions.read(header, labels)
    except AutopetError as error:
        problem = one_line(error)
    except Exception as error:  # pydicom raises what it likes about damaged values
        problem = f"{path}: cannot be read, {type(error).__name__}: {one_line(error)}; export the structure set anew"
    belongs = pet_uid in referenced or bool(regions.images & set(pet_headers))
    return StructureSet(path, header, labels, belongs, problem, regions.contours, regions.problems, regions.notes)


def _referenced_series(header: Dataset) -> set[str]:
    """Series in ReferencedFrameOfReferenceSequence (C.8.8.5)."""
    return {
        str(series.get("SeriesInstanceUID", ""))
        for frame in header.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def _labels(path: Path, header: Dataset) -> dict[int, str]:
    items = header.get("StructureSetROISequence") or []
    if not items:
        tag = tag_name("StructureSetROISequence")
        raise AutopetError(f"{path}: {tag} is missing or empty; export the structure set anew")
    return {int(item.ROINumber): str(item.get("ROIName") or f"region {item.ROINumber}") for item in items}


@dataclass
class _Regions:
    """Collects the contours of a file by region; what is wrong with one region leaves the others usable."""

    path: Path
    contours: dict[int, list[np.ndarray]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)

    def read(self, header: Dataset, labels: Mapping[int, str]) -> None:
        """Read ROIContourSequence (C.8.8.6); a region without an item has no contours."""
        items = header.get("ROIContourSequence")
        if not items:
            tag = tag_name("ROIContourSequence")
            raise AutopetError(f"{self.path}: {tag} is missing or empty; export the structure set anew")
        for item in items:
            if "ReferencedROINumber" not in item:
                raise AutopetError(f"{self.path}: {tag_name('ReferencedROINumber')} is missing; export it anew")
            number = int(item.ReferencedROINumber)
            if number in labels:
                self._read_region(number, item.get("ContourSequence") or [], labels[number])

    def _read_region(self, number: int, items: Sequence[Dataset], label: str) -> None:
        found, ignored = self.contours.setdefault(number, []), []
        for index, item in enumerate(items, start=1):
            self.images |= {
                str(image.get("ReferencedSOPInstanceUID", "")) for image in item.get("ContourImageSequence") or []
            }
            kind = str(item.get("ContourGeometricType") or "missing")
            try:
                points = _points(item) if kind in CLOSED else np.empty((0, 3))
            except AutopetError as error:
                self.problems[number] = f"{self.path}: contour {index} of {label!r}: {error}"
                return
            if len(points) >= 3:
                found.append(points)
            else:
                ignored.append(f"{kind} of {len(points)} points" if kind in CLOSED else kind)
        if ignored:
            kinds = ", ".join(sorted(set(ignored)))
            tag = tag_name("ContourGeometricType")
            self.notes[number] = f"{len(ignored)} contours of {label!r} without an area are ignored ({tag}: {kinds})"


def _points(item: Dataset) -> np.ndarray:
    """(points, 3) ContourData in LPS mm, taken from the file's text: pydicom's own numbers are slow by the million."""
    tag = tag_name("ContourData")
    raw = item.get_item("ContourData").value if "ContourData" in item else None
    text = raw.strip(b" \0").split(b"\\") if isinstance(raw, bytes) else np.atleast_1d(raw or [])
    if len(text) == 0 or text[0] == b"":
        raise AutopetError(f"{tag} is missing or empty; export the structure set anew")
    try:
        numbers = np.array(text).astype(np.float64)
    except ValueError as error:
        raise AutopetError(f"{tag} is no list of numbers ({one_line(error)}); export it anew") from error
    if len(numbers) % 3 or not np.isfinite(numbers).all():
        raise AutopetError(f"{tag} has {len(numbers)} numbers, expected finite x, y, z of each point; export it anew")
    count = values(item, "NumberOfContourPoints")
    if count and int(count[0]) != len(numbers) // 3:
        raise AutopetError(
            f"{tag} has {len(numbers) // 3} points, {tag_name('NumberOfContourPoints')} is {count[0]}; export it anew"
        )
    return numbers.reshape(-1, 3)


# --- planes ----------------------------------------------------------------------------------------------------------


def _indices(points_mm: np.ndarray, grid: Volume) -> np.ndarray:
    """(points, 3) fractional indices x, y, z on a grid."""
    return (points_mm - np.asarray(grid.origin_mm)) @ np.linalg.inv(grid.affine[:3, :3]).T


def _is_parallel(contour: np.ndarray, grid: Volume) -> bool:
    return bool(np.ptp(_indices(contour, grid)[:, 2]) <= PLANE_TOLERANCE)


def _height(contour: np.ndarray, grid: Volume) -> float:
    """Where a contour lies along the grid's normal, in slices."""
    return float(_indices(contour, grid)[:, 2].mean())


def _planes(heights: Sequence[float], grid: Volume) -> np.ndarray:
    """Distinct heights in rising order; contours within `SAME_PLANE_MM` of the one below share its plane."""
    rising = np.sort(np.asarray(heights))
    return rising[np.diff(rising, prepend=-np.inf) > SAME_PLANE_MM / grid.spacing_mm[2]]


def _plane_step(regions: Iterable[Sequence[np.ndarray]], grid: Volume) -> float | None:
    """Distance of the drawing's planes in slices of a grid: the smallest within a region; None when no two are near.

    Planes of different regions are not compared: they may have been drawn on different images.
    """
    parallel = ([_height(contour, grid) for contour in region if _is_parallel(contour, grid)] for region in regions)
    steps = np.concatenate([np.empty(0), *(np.diff(_planes(heights, grid)) for heights in parallel)])
    near = steps[steps * grid.spacing_mm[2] <= THICKEST_MM]
    return float(near.min()) if len(near) else None


def _on_planes(regions: Sequence[Sequence[np.ndarray]], grid: Volume) -> bool:
    """Whether every plane of the contours is one of the grid's, and no two of them the same one."""
    heights = _planes([_height(contour, grid) for contours in regions for contour in contours], grid)
    nearest = np.rint(heights)
    return bool((np.abs(heights - nearest) <= PLANE_TOLERANCE).all()) and len(set(nearest)) == len(heights)


def _fill(
    item: StructureSet, regions: Sequence[Sequence[np.ndarray]], grid: Volume, warnings: list[str], *,
    step: float | None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """(z, y, x) bool mask of contours parallel to a grid's slices, and the voxels drawn on the contours' own planes.

    Without `step`, a contour plane is the grid's nearest. With it, the distance of the contour planes in slices, a grid
    plane takes the nearest contour plane that is not farther than half of it (the upper of two equally near ones).
    """
    mask = np.zeros(grid.shape, dtype=bool)
    drawn, lost = 0.0, 0
    for contours in regions:
        heights = [_height(contour, grid) for contour in contours]
        planes = _planes(heights, grid)
        owner = np.searchsorted(planes, heights, side="right") - 1
        for index, targets in enumerate(_targets(planes, grid.shape[0], step)):
            members = [contours[n] for n in range(len(contours)) if owner[n] == index]
            (x, y), pixels = _pixels(item, members, grid)
            columns, rows = np.nonzero(pixels)[1] + x, np.nonzero(pixels)[0] + y
            inside = (columns >= 0) & (columns < grid.shape[2]) & (rows >= 0) & (rows < grid.shape[1])
            for plane in targets:
                mask[plane, rows[inside], columns[inside]] = True
            drawn += len(rows) * (step or 1.0)
            outside = planes[index] < -0.5 or planes[index] > grid.shape[0] - 0.5
            lost += len(rows) if outside else int((~inside).sum())
    if lost:
        warnings.append(f"{item.title}: {lost} voxels lie outside of the image and are lost")
    return mask, drawn


def _targets(planes: np.ndarray, count: int, step: float | None) -> list[np.ndarray]:
    """Slices of a grid of `count` slices that show each contour plane; planes in rising order, in slices."""
    if step is None:
        nearest = np.rint(planes).astype(int)
        return [np.array([n] if 0 <= n < count else [], dtype=int) for n in nearest]
    slices = np.arange(count)
    apart = slices[:, None] - planes[None, :] + 1e-6  # equally near: the one above; the same for rounded positions
    nearest = np.abs(apart).argmin(axis=1)
    closest = apart[slices, nearest]
    covered = (closest >= -step / 2) & (closest < step / 2)
    return [slices[covered & (nearest == index)] for index in range(len(planes))]


def _pixels(item: StructureSet, contours: Sequence[np.ndarray], grid: Volume) -> tuple[tuple[int, int], np.ndarray]:
    """First index (x, y), and (rows, columns) bool, of the bounding box of contours on one plane, filled."""
    polygons = [_indices(contour, grid)[:, :2] for contour in contours]
    points = np.concatenate(polygons)
    low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 2
    width, height = high - low
    if max(width, height) > MAX_PIXELS:
        raise AutopetError(
            f"{item.path}: {tag_name('ContourData')} spans {width:.0f} x {height:.0f} pixels; check the contours"
        )
    filled = fill_even_odd([polygon - low for polygon in polygons], (int(height), int(width)))
    return (int(low[0]), int(low[1])), filled


def _draw_tilted(
    item: StructureSet, regions: Sequence[Sequence[np.ndarray]], pet: Volume, warnings: list[str]
) -> np.ndarray:
    """Mask of contours whose planes are tilted against the PET's, by way of a grid on their own planes."""
    contours = [contour for members in regions for contour in members]
    own = _tilted_grid(item, contours, pet)
    mask, drawn = _fill(item, regions, own, warnings, step=1.0)
    moved = resample(own.with_array(mask.astype(np.uint8)), pet, nearest=True).array > 0
    volumes = drawn * own.voxel_volume_ml, moved.sum() * pet.voxel_volume_ml
    warnings.append(_resampled(item, "planes (tilted ones)", *volumes))
    return moved


def _tilted_grid(item: StructureSet, contours: Sequence[np.ndarray], pet: Volume) -> Volume:
    """The smallest grid around contours whose slices are their planes, with pixels of half the PET's smallest."""
    normals = [np.cross(contour, np.roll(contour, -1, axis=0)).sum(axis=0) for contour in contours]
    normal = max(normals, key=lambda vector: float(np.linalg.norm(vector)))  # Newell: twice the area, along the normal
    normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
    axes = np.reshape(pet.direction, (3, 3)).T
    x = axes[int(np.argmin(np.abs(axes @ normal)))]
    x = x - (x @ normal) * normal
    x /= np.linalg.norm(x)
    direction = np.stack([x, np.cross(normal, x), normal]).T
    fine_mm = min(pet.spacing_mm) / 2
    unit = Volume(np.zeros((1, 1, 1), np.uint8), direction=tuple(float(value) for value in direction.ravel()))
    if not all(_is_parallel(contour, unit) for contour in contours):
        raise AutopetError(
            f"{item.path}: {tag_name('ContourData')} lies on planes that are not parallel; export them slice by slice"
        )
    step_mm = _plane_step([contours], unit) or min(pet.spacing_mm)
    points = np.concatenate([_indices(contour, unit) for contour in contours])
    low, high = points.min(axis=0), points.max(axis=0)
    spacing = np.array([fine_mm, fine_mm, step_mm])
    low[:2] -= fine_mm / 2  # a drawing along the axes has no path through centres
    size = np.ceil((high - low) / spacing + (2, 2, 1)).astype(int)
    if size.max() > MAX_PIXELS or np.prod(size.astype(float)) > 2e9:
        raise AutopetError(f"{item.path}: {tag_name('ContourData')} spans {high - low} mm; check the contours")
    blank = np.broadcast_to(np.uint8(0), tuple(size[::-1]))
    x_mm, y_mm, z_mm = (float(value) for value in direction @ low)
    return Volume(blank, (fine_mm, fine_mm, step_mm), (x_mm, y_mm, z_mm), unit.direction)
