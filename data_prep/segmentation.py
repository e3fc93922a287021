"""Lesion masks from DICOM Segmentation objects, frame by frame at its own position (PS3.3 A.51, C.8.20, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.volume import Volume, resample
from data_prep.attributes import orientation, pixel_spacing, position, read_dicom, tag_name, values
from data_prep.series import Series

IN_PLANE_TOLERANCE = 0.25  # voxels a frame may lie off the grid's rows and columns
PLANE_TOLERANCE = 0.3  # slices a frame may lie off the grid's planes
COSINE_TOLERANCE = 1e-3
SPACING_TOLERANCE = 5e-3  # relative
HALF = 0.5  # of MaximumFractionalValue


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Mask on the PET grid, and how it came about.

    `mask` is uint8, 0 or 1. `segments` are the labels united in it, `frames_placed` the frames with these segments,
    `grid` says per object whether it lay on the PET grid or was resampled.
    """

    mask: Volume
    seg_uids: tuple[str, ...]
    segments: tuple[str, ...]
    frames_placed: int
    grid: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where one frame lies, and which segment it shows (0: a label map, with segment numbers as values)."""

    index: int
    origin_mm: np.ndarray
    axes: np.ndarray
    spacing_mm: tuple[float, float]
    segment: int


@dataclass(frozen=True, eq=False)
class _Object:
    """One Segmentation instance: header, segments (number -> label) and frames, as far as they could be read."""

    path: Path
    header: Dataset
    labels: dict[int, str]
    frames: tuple[_Frame, ...]
    fits: bool  # every frame lies on the PET grid
    belongs: bool  # lies on the PET grid or refers to the PET series
    problem: str  # why it cannot be used, empty when it can

    @property
    def title(self) -> str:
        if self.problem:
            return str(self.path)
        name = self.header.get("SeriesDescription") or self.header.get("ContentLabel") or "SEG"
        return f"{name} ({self.header.SOPInstanceUID}: {', '.join(self.labels.values())})"


def load_segmentation(
    series: Sequence[Series], *, pet: Volume, pet_uid: str, frame_uid: str = "", segments: Sequence[str] = ()
) -> Segmentation:
    """Unite segments of a study's Segmentation objects on the PET grid.

    Named segments come from the objects that have them; without names, all segments count. Objects on the PET grid, or
    that refer to the PET series, go before others; what is left out is named in the warnings.

    Parameters
    ----------
    series : sequence of Series
        The study's SEG series, one or more.
    pet : Volume
        The reference grid (its voxels are not read).
    pet_uid : str
        SeriesInstanceUID of the PET series.
    frame_uid : str
        Its FrameOfReferenceUID; a segmentation in another frame is placed all the same, with a warning.
    segments : sequence of str
        SegmentLabel or SegmentNumber; labels go first, whatever their case.

    Raises
    ------
    AutopetError
        No object has a named segment (the message lists the labels there are), or a chosen object is broken;
        a broken object that is not chosen is a warning.
    """
    objects = [_read_object(path, pet, pet_uid) for item in series for path in item.paths]
    if not objects:
        raise AutopetError("no Segmentation object to load")
    warnings: list[str] = []
    chosen = _choose_named(objects, segments) if segments else _choose_all(objects, warnings)
    broken = next((item for item, _ in chosen if item.problem), None)
    if broken:
        raise AutopetError(broken.problem)
    _warn_of_choice(objects, chosen, warnings, named=bool(segments))
    mask = np.zeros(pet.shape, dtype=bool)
    frames, labels, grids = 0, [], []
    for item, numbers in chosen:
        if frame_uid and item.header.get("FrameOfReferenceUID", frame_uid) != frame_uid:
            warnings.append(
                f"{item.title}: another {tag_name('FrameOfReferenceUID')} than the PET, check where it lies"
            )
        placed, count, grid = _rasterise(item, numbers, pet, warnings)
        mask |= placed
        frames += count
        grids.append(grid)
        labels += [item.labels[number] for number in sorted(numbers)]
    uids = tuple(str(item.header.SOPInstanceUID) for item, _ in chosen)
    volume = pet.with_array(mask.astype(np.uint8))
    return Segmentation(volume, uids, tuple(dict.fromkeys(labels)), frames, tuple(grids), tuple(warnings))


# --- choosing --------------------------------------------------------------------------------------------------------


def _choose_named(objects: Sequence[_Object], segments: Sequence[str]) -> list[tuple[_Object, set[int]]]:
    chosen: dict[int, set[int]] = {}
    for name in segments:
        found = {index: numbers for index, item in enumerate(objects) if (numbers := _numbers_of(item, name))}
        unknown = next((item for item in objects if item.problem and not item.labels), None)
        if not found and unknown:  # it may be the one that has the segment
            raise AutopetError(unknown.problem)
        if not found:
            listed = "; ".join(f"{item.title}" for item in objects)
            raise AutopetError(f"no segment {name!r} in {tag_name('SegmentLabel')}; segments there: {listed}")
        belonging = {index for index in found if objects[index].belongs}
        for index in belonging or set(found):
            chosen.setdefault(index, set()).update(found[index])
    return [(objects[index], chosen[index]) for index in sorted(chosen)]


def _numbers_of(item: _Object, name: str) -> set[int]:
    wanted = name.strip()
    by_label = {number for number, label in item.labels.items() if label == wanted}
    by_case = {number for number, label in item.labels.items() if label.casefold() == wanted.casefold()}
    by_number = {number for number in item.labels if str(number) == wanted}
    return by_label or by_case or by_number


def _choose_all(objects: Sequence[_Object], warnings: list[str]) -> list[tuple[_Object, set[int]]]:
    kept = [item for item in objects if item.belongs] or list(objects)
    total = sum(len(item.labels) for item in kept)
    if total > 1:
        listed = "; ".join(item.title for item in kept)
        warnings.append(f"{total} segments united as lesion, name the ones to use with `segments`: {listed}")
    return [(item, set(item.labels)) for item in kept]


def _warn_of_choice(
    objects: Sequence[_Object], chosen: Sequence[tuple[_Object, set[int]]], warnings: list[str], *, named: bool
) -> None:
    used = [item for item, _ in chosen]
    if named and len(used) > 1:
        warnings.append(f"named segments come from {len(used)} objects: {'; '.join(item.title for item in used)}")
    warnings += [f"segmentation not used: {item.problem}" for item in objects if item.problem]
    unused = [item.title for item in objects if item not in used and not item.problem]
    if unused:
        warnings.append(f"segmentations not used: {'; '.join(unused)}")


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_object(path: Path, pet: Volume, pet_uid: str) -> _Object:
    """An object; a broken one with its problem, it belongs to the PET unless it refers to other series only."""
    header, labels, referenced = Dataset(), dict[int, str](), set[str]()
    frames: tuple[_Frame, ...] = ()
    fits, problem = False, ""
    try:
        header = read_dicom(path, pixels=False)
        referenced = {str(item.get("SeriesInstanceUID", "")) for item in header.get("ReferencedSeriesSequence") or []}
        labels = _labels(path, header)
        frames = _frames(path, header)
        fits = all(_indices(frame, pet) is not None for frame in frames)
    except AutopetError as error:
        problem = one_line(error) if str(path) in str(error) else f"{path}: {one_line(error)}"
    except Exception as error:  # pydicom raises what it likes about damaged values
        problem = f"{path}: cannot be read, {type(error).__name__}: {one_line(error)}; export the segmentation anew"
    belongs = fits or pet_uid in referenced or (bool(problem) and not referenced)
    return _Object(path, header, labels, frames, fits, belongs, problem)


def _labels(path: Path, header: Dataset) -> dict[int, str]:
    """Segments by number; without the background of a label map: 0 and PixelPaddingValue (0028,0120)."""
    items = header.get("SegmentSequence") or []
    if not items:
        raise AutopetError(f"{path}: {tag_name('SegmentSequence')} is missing or empty; export the segmentation anew")
    background = set()
    if header.get("SegmentationType") == "LABELMAP":
        background = {0, *(int(value) for value in values(header, "PixelPaddingValue"))}
    return {
        int(item.SegmentNumber): str(item.get("SegmentLabel") or f"segment {item.SegmentNumber}")
        for item in items
        if int(item.SegmentNumber) not in background
    }


def _frames(path: Path, header: Dataset) -> tuple[_Frame, ...]:
    """Frames from the per-frame and the shared functional groups (C.7.6.16)."""
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != int(header.get("NumberOfFrames", 1)):
        raise AutopetError(
            f"{path}: {tag_name('PerFrameFunctionalGroupsSequence')} has {len(groups)} items, "
            f"{tag_name('NumberOfFrames')} is {header.get('NumberOfFrames', 1)}; export the segmentation anew"
        )
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    label_map = header.get("SegmentationType") == "LABELMAP"
    frames = []
    for index, group in enumerate(groups):

        def macro(keyword: str, group: Dataset = group) -> Dataset:
            items = group.get(keyword) or shared.get(keyword)
            if not items:
                raise AutopetError(f"{path}: {tag_name(keyword)} is missing: a frame cannot be placed; export it anew")
            return items[0]

        number = 0 if label_map else int(macro("SegmentIdentificationSequence").ReferencedSegmentNumber)
        axes, spacing = orientation(macro("PlaneOrientationSequence")), pixel_spacing(macro("PixelMeasuresSequence"))
        frames.append(_Frame(index, position(macro("PlanePositionSequence")), axes, spacing, number))
    return tuple(frames)


def _read_pixels(item: _Object) -> np.ndarray:
    """(frames, rows, columns) uint8: 0 or 1, or segment numbers of a label map."""
    kind = item.header.get("SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise AutopetError(
            f"{item.path}: {tag_name('SegmentationType')} is {kind}, expected BINARY, FRACTIONAL or LABELMAP"
        )
    try:
        data = read_dicom(item.path)
        stored = data.pixel_array
    except Exception as error:  # decoders raise what they like
        raise AutopetError(f"{item.path}: {tag_name('PixelData')} cannot be read: {one_line(error)}") from error
    stored = stored[None] if stored.ndim == 2 else stored
    if kind == "FRACTIONAL":
        return (stored >= HALF * float(data.get("MaximumFractionalValue", 255))).astype(np.uint8)
    return stored


# --- placing ---------------------------------------------------------------------------------------------------------


def _rasterise(item: _Object, numbers: set[int], pet: Volume, warnings: list[str]) -> tuple[np.ndarray, int, str]:
    """Mask of an object's segments on the PET grid, the frames used, and the grid they lay on."""
    frames = [frame for frame in item.frames if frame.segment in numbers or frame.segment == 0]
    if not frames:
        warnings.append(f"{item.title}: no frame shows the segments {sorted(numbers)}; its mask is empty")
        return np.zeros(pet.shape, dtype=bool), 0, "no frames"
    pixels = _read_pixels(item)
    planes = [
        np.isin(pixels[frame.index], list(numbers)) if frame.segment == 0 else pixels[frame.index] > 0
        for frame in frames
    ]
    if all(_indices(frame, pet) is not None for frame in frames):
        return _paste(item, frames, planes, pet, warnings), len(frames), "PET"
    own = _own_grid(item, frames)
    drawn = own.with_array(_paste(item, frames, planes, own, warnings).astype(np.uint8))
    mask = resample(drawn, pet, nearest=True).array > 0
    volumes = f"{drawn.array.sum() * own.voxel_volume_ml:.2f} ml became {mask.sum() * pet.voxel_volume_ml:.2f} ml"
    warnings.append(f"{item.title}: lies on another grid than the PET, resampled by nearest neighbour ({volumes})")
    return mask, len(frames), "own, resampled to PET"


def _indices(frame: _Frame, grid: Volume) -> tuple[int, int, int] | None:
    """Indices (x, y, z) of a frame's first voxel on a grid, may lie outside; None when the frame does not fit it."""
    axes = np.reshape(grid.direction, (3, 3)).T
    if np.abs(frame.axes - axes).max() > COSINE_TOLERANCE:
        return None
    if np.abs(np.divide(frame.spacing_mm, grid.spacing_mm[:2]) - 1).max() > SPACING_TOLERANCE:
        return None
    exact = (axes @ (frame.origin_mm - np.asarray(grid.origin_mm))) / np.asarray(grid.spacing_mm)
    nearest = np.rint(exact)
    if (np.abs(exact - nearest) > (IN_PLANE_TOLERANCE, IN_PLANE_TOLERANCE, PLANE_TOLERANCE)).any():
        return None
    x, y, z = (int(value) for value in nearest)
    return x, y, z


def _paste(
    item: _Object, frames: Sequence[_Frame], planes: Sequence[np.ndarray], grid: Volume, warnings: list[str]
) -> np.ndarray:
    """(z, y, x) bool: frames written where they lie; what lies outside of the grid is lost, with a warning."""
    mask = np.zeros(grid.shape, dtype=bool)
    lost = 0
    for frame, plane in zip(frames, planes, strict=True):
        index = _indices(frame, grid)
        if index is None:
            raise AutopetError(
                f"{item.path}: {tag_name('PlanePositionSequence')} of frame {frame.index + 1}, {frame.origin_mm}, is "
                "not on the grid of the other frames; export the segmentation on one grid"
            )
        rows, columns = np.nonzero(plane)
        x, y, z = columns + index[0], rows + index[1], index[2]
        inside = (x >= 0) & (x < grid.shape[2]) & (y >= 0) & (y < grid.shape[1]) & (0 <= z < grid.shape[0])
        mask[np.full(int(inside.sum()), z), y[inside], x[inside]] = True
        lost += int((~inside).sum())
    if lost:
        warnings.append(f"{item.title}: {lost} voxels lie outside of the image and are lost")
    return mask


def _own_grid(item: _Object, frames: Sequence[_Frame]) -> Volume:
    """The smallest grid that holds frames of one orientation, gaps between sparse frames included."""
    first = frames[0]
    normal = first.axes[2]
    along = np.array([frame.origin_mm @ normal for frame in frames])
    distinct = np.unique(np.round(along, 3))
    step_mm = _step_mm(item, distinct)
    count = round((distinct[-1] - distinct[0]) / step_mm) + 1
    lowest = frames[int(np.argmin(along))]
    if count > 10000:
        raise AutopetError(
            f"{item.path}: {tag_name('PlanePositionSequence')} spans {count} slices of {step_mm:g} mm; check it"
        )
    origin = tuple(float(value) for value in lowest.origin_mm)
    rows, columns = int(item.header.Rows), int(item.header.Columns)
    blank = np.broadcast_to(np.uint8(0), (count, rows, columns))
    grid = Volume(blank, direction=tuple(float(value) for value in first.axes.T.ravel()))
    return replace(grid, spacing_mm=(*first.spacing_mm, step_mm), origin_mm=(origin[0], origin[1], origin[2]))


def _step_mm(item: _Object, distinct_mm: np.ndarray) -> float:
    """Distance of the planes: SpacingBetweenSlices when it fits the positions, else the smallest distance of two."""
    shared = (item.header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures = (shared.get("PixelMeasuresSequence") or [Dataset()])[0]
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        step_mm = float(measures.get(keyword) or 0)
        if step_mm > 0:
            exact = (distinct_mm - distinct_mm[0]) / step_mm
            if np.abs(exact - np.rint(exact)).max() <= PLANE_TOLERANCE and np.diff(np.rint(exact)).min(initial=1) >= 1:
                return step_mm
    if len(distinct_mm) < 2:
        raise AutopetError(
            f"{item.path}: {tag_name('SpacingBetweenSlices')} is missing: the thickness of the only plane is unknown"
        )
    return float(np.diff(distinct_mm).min())
