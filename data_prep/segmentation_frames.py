"""One DICOM Segmentation object: which segments it has, where its frames lie, and its mask on the PET grid.

Every frame goes where its own position says, or, without one, where the PET slice lies that it refers to. Sections are
those of DICOM PS3.3: A.51 and C.8.20 (Segmentation), C.7.6.16 (functional groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.volume import Volume, resample
from data_prep.attributes import orientation, pixel_spacing, position, read_dicom, tag_name, values, whole_number
from data_prep.mask_objects import Drawn, vanished

IN_PLANE_TOLERANCE = 0.25  # voxels a frame may lie off the grid's rows and columns
PLANE_TOLERANCE = 0.3  # slices a frame may lie off the grid's planes
COSINE_TOLERANCE = 1e-3
SPACING_TOLERANCE = 5e-3  # relative
DRIFT_TOLERANCE = 0.5  # voxels that frames of another spacing may be off the grid at their far end
HALF = 0.5  # of MaximumFractionalValue
MAX_SLICES = 10000


@dataclass(frozen=True, eq=False)
class Frame:
    """Where one frame lies, and which segment it shows (0: a label map, with segment numbers as values).

    `size` is (columns, rows). `between_mm` and `thickness_mm` are what the object claims of its planes:
    SpacingBetweenSlices and SliceThickness, 0 where it does not.
    """

    index: int
    origin_mm: np.ndarray
    axes: np.ndarray
    spacing_mm: tuple[float, float]
    segment: int
    size: tuple[int, int]
    between_mm: float = 0.0
    thickness_mm: float = 0.0


@dataclass(frozen=True, eq=False)
class SegObject:
    """One Segmentation instance: header, segments (number -> label) and frames, as far as they could be read."""

    path: Path
    header: Dataset
    labels: dict[int, str]
    frames: tuple[Frame, ...]
    belongs: bool  # lies on the PET grid or refers to the PET series
    problem: str  # why it cannot be used, empty when it can
    doubt: str = ""  # why it may be meant for another series, empty when nothing says so
    kind = "SEG"

    @property
    def title(self) -> str:
        """What it is called in messages."""
        if self.problem:
            return str(self.path)
        name = self.header.get("SeriesDescription") or self.header.get("ContentLabel") or "SEG"
        return f"{name} ({self.header.SOPInstanceUID}: {', '.join(self.labels.values())})"

    @property
    def frame_uids(self) -> tuple[str, ...]:
        """Its FrameOfReferenceUID, if it has one."""
        return values(self.header, "FrameOfReferenceUID")

    def draw(self, numbers: set[int], pet: Volume, warnings: list[str]) -> Drawn:
        """The mask of some segments on the PET grid, with the number of frames used and the grid they lay on."""
        frames = [frame for frame in self.frames if frame.segment in numbers or frame.segment == 0]
        if self.doubt:
            warnings.append(f"{self.title}: {self.doubt}")
        if not frames:
            warnings.append(f"{self.title}: no frame shows the segments {sorted(numbers)}; its mask is empty")
            return Drawn(np.zeros(pet.shape, dtype=bool), 0, "no frames")
        pixels = _read_pixels(self)
        planes = [
            np.isin(pixels[frame.index], list(numbers)) if frame.segment == 0 else pixels[frame.index] > 0
            for frame in frames
        ]
        if all(_indices(frame, pet) is not None for frame in frames):
            mask, grid = _paste(self, frames, planes, pet, warnings), "PET"
            before_ml = sum(int(plane.sum()) for plane in planes) * pet.voxel_volume_ml
        else:
            own = _own_grid(self, frames, warnings)
            drawn = own.with_array(_paste(self, frames, planes, own, warnings).astype(np.uint8))
            mask, grid = resample(drawn, pet, nearest=True).array > 0, "own, resampled to PET"
            before_ml = float(drawn.array.sum(dtype=np.int64)) * own.voxel_volume_ml
            volumes = f"{before_ml:.2f} ml became {mask.sum() * pet.voxel_volume_ml:.2f} ml"
            warnings.append(
                f"{self.title}: lies on another grid than the PET, resampled by nearest neighbour ({volumes})"
            )
        gone = before_ml > 0 and not mask.any()
        return Drawn(mask, len(frames), grid, vanished(self.title, "its voxels", before_ml, pet) if gone else "")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_seg(path: Path, *, pet: Volume, pet_uid: str, pet_headers: Mapping[str, Dataset]) -> SegObject:
    """An object; a broken one with its problem, it belongs to the PET unless it refers to other series only.

    Parameters
    ----------
    path : Path
        The file.
    pet, pet_uid : Volume, str
        PET grid and SeriesInstanceUID.
    pet_headers : mapping
        Headers of the PET slices by SOPInstanceUID, for frames without a position of their own; may be empty.
    """
    header, labels, referenced = Dataset(), dict[int, str](), set[str]()
    frames: tuple[Frame, ...] = ()
    fits, problem = False, ""
    try:
        header = read_dicom(path, pixels=False)
        referenced = {str(item.get("SeriesInstanceUID", "")) for item in header.get("ReferencedSeriesSequence") or []}
        labels = _labels(path, header)
        frames = _frames(path, header, pet_headers)
        fits = all(_indices(frame, pet) is not None for frame in frames)
    except AutopetError as error:
        problem = one_line(error) if str(path) in str(error) else f"{path}: {one_line(error)}"
    except Exception as error:  # pydicom raises what it likes about damaged values
        problem = f"{path}: cannot be read, {type(error).__name__}: {one_line(error)}; export the segmentation anew"
    belongs = fits or pet_uid in referenced or (bool(problem) and not referenced)
    doubt = _doubt(referenced, pet_uid) if fits else ""
    return SegObject(path, header, labels, frames, belongs, problem, doubt)


def _doubt(referenced: set[str], pet_uid: str) -> str:
    """What is said of frames that fit the grid of the PET while the object refers to other series only."""
    if pet_uid in referenced or not referenced - {""}:
        return ""
    listed = ", ".join(sorted(referenced - {""}))
    return (
        f"fits the grid of the PET {pet_uid}, but {tag_name('ReferencedSeriesSequence')} names only {listed}: it may "
        "have been drawn on another image"
    )


def _labels(path: Path, header: Dataset) -> dict[int, str]:
    """Segments by number; without the background of a label map: 0 and PixelPaddingValue (0028,0120)."""
    items = header.get("SegmentSequence") or []
    if not items:
        raise AutopetError(f"{path}: {tag_name('SegmentSequence')} is missing or empty; export the segmentation anew")
    background = set()
    if header.get("SegmentationType") == "LABELMAP":
        background = {0, *(int(value) for value in values(header, "PixelPaddingValue"))}
    numbers = [whole_number(item, "SegmentNumber") for item in items]
    return {
        number: str(item.get("SegmentLabel") or f"segment {number}")
        for number, item in zip(numbers, items, strict=True)
        if number not in background
    }


def _frames(path: Path, header: Dataset, pet_headers: Mapping[str, Dataset]) -> tuple[Frame, ...]:
    """Frames from the per-frame and the shared functional groups (C.7.6.16)."""
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    count = whole_number(header, "NumberOfFrames", default=1)
    if len(groups) != count:
        raise AutopetError(
            f"{path}: {tag_name('PerFrameFunctionalGroupsSequence')} has {len(groups)} items, "
            f"{tag_name('NumberOfFrames')} is {count}; export the segmentation anew"
        )
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return tuple(_frame(_Groups(path, header, group, shared, pet_headers), n) for n, group in enumerate(groups))


def _frame(groups: _Groups, index: int) -> Frame:
    label_map = groups.header.get("SegmentationType") == "LABELMAP"
    shown = Dataset() if label_map else groups.macro("SegmentIdentificationSequence")
    number = 0 if label_map else whole_number(shown, "ReferencedSegmentNumber")
    axes = orientation(groups.place("PlaneOrientationSequence", "ImageOrientationPatient"))
    measures = groups.place("PixelMeasuresSequence", "PixelSpacing")
    between_mm, thickness_mm = (
        float(measures.get(keyword) or 0) for keyword in ("SpacingBetweenSlices", "SliceThickness")
    )
    place = position(groups.place("PlanePositionSequence", "ImagePositionPatient"))
    size = int(groups.header.get("Columns") or 0), int(groups.header.get("Rows") or 0)
    return Frame(index, place, axes, pixel_spacing(measures), number, size, between_mm, thickness_mm)


@dataclass(frozen=True, eq=False)
class _Groups:
    """The functional groups of one frame, and what the PET slices know in their stead."""

    path: Path
    header: Dataset
    own: Dataset
    shared: Dataset
    pet_headers: Mapping[str, Dataset]

    def macro(self, keyword: str) -> Dataset:
        """The frame's item of a functional group, or the shared one."""
        items = self.own.get(keyword) or self.shared.get(keyword)
        if not items:
            raise AutopetError(f"{self.path}: {tag_name(keyword)} is missing: a frame cannot be placed; export it anew")
        return items[0]

    def place(self, keyword: str, attribute: str) -> Dataset:
        """What holds an attribute of the place: the functional group, else the PET slice the frame refers to."""
        item = (self.own.get(keyword) or self.shared.get(keyword) or [Dataset()])[0]
        return item if values(item, attribute) else self._source(keyword, attribute)

    def _source(self, keyword: str, attribute: str) -> Dataset:
        """Header of the one PET slice that the frame was drawn on (C.7.6.16.2.6)."""
        lacking = f"{self.path}: {tag_name(keyword)} is missing"
        uids = {
            str(source.get("ReferencedSOPInstanceUID", ""))
            for derivation in self.own.get("DerivationImageSequence") or []
            for source in derivation.get("SourceImageSequence") or []
        }
        known = sorted(uids & set(self.pet_headers))
        if len(known) != 1:
            found = f"{len(known)} of {len(uids)} found among the {len(self.pet_headers)} PET slices"
            raise AutopetError(
                f"{lacking}, and {tag_name('ReferencedSOPInstanceUID')} in {tag_name('SourceImageSequence')} names "
                f"no single PET slice ({found}): a frame cannot be placed; export it anew"
            )
        source = self.pet_headers[known[0]]
        for count in ("Rows", "Columns"):  # a cropped frame does not begin where the slice begins
            if count in source and int(source[count].value) != int(self.header.get(count, 0)):
                raise AutopetError(
                    f"{lacking}, and {tag_name(count)} is {self.header.get(count)} where the PET slice it refers to "
                    f"has {source[count].value}: a frame cannot be placed; export it anew"
                )
        if not values(source, attribute):
            raise AutopetError(f"{lacking}, and its PET slice has no {tag_name(attribute)}; export it anew")
        return source


def _read_pixels(item: SegObject) -> np.ndarray:
    """(frames, rows, columns) uint8: 0 or 1, or segment numbers of a label map."""
    kind = item.header.get("SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise AutopetError(
            f"{item.path}: {tag_name('SegmentationType')} is {kind or 'missing'}, expected BINARY, FRACTIONAL or "
            "LABELMAP"
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


def _indices(frame: Frame, grid: Volume) -> tuple[int, int, int] | None:
    """Indices (x, y, z) of a frame's first voxel on a grid, may lie outside; None when the frame does not fit it."""
    axes = np.reshape(grid.direction, (3, 3)).T
    if np.abs(frame.axes - axes).max() > COSINE_TOLERANCE:
        return None
    off = np.abs(np.divide(frame.spacing_mm, grid.spacing_mm[:2]) - 1)
    if off.max() > SPACING_TOLERANCE or (off * frame.size).max() > DRIFT_TOLERANCE:
        return None
    exact = (axes @ (frame.origin_mm - np.asarray(grid.origin_mm))) / np.asarray(grid.spacing_mm)
    nearest = np.rint(exact)
    if (np.abs(exact - nearest) > (IN_PLANE_TOLERANCE, IN_PLANE_TOLERANCE, PLANE_TOLERANCE)).any():
        return None
    x, y, z = (int(value) for value in nearest)
    return x, y, z


def _paste(
    item: SegObject, frames: Sequence[Frame], planes: Sequence[np.ndarray], grid: Volume, warnings: list[str]
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


def _own_grid(item: SegObject, frames: Sequence[Frame], warnings: list[str]) -> Volume:
    """The smallest grid that holds frames of one orientation, gaps between sparse frames included."""
    first = frames[0]
    normal = first.axes[2]
    along = np.array([frame.origin_mm @ normal for frame in frames])
    distinct = np.unique(np.round(along, 3))
    step_mm = _step_mm(item, first, distinct, warnings)
    count = round((distinct[-1] - distinct[0]) / step_mm) + 1
    lowest = frames[int(np.argmin(along))]
    if count > MAX_SLICES:
        raise AutopetError(
            f"{item.path}: {tag_name('PlanePositionSequence')} spans {count} slices of {step_mm:g} mm; check it"
        )
    origin = tuple(float(value) for value in lowest.origin_mm)
    rows, columns = int(item.header.Rows), int(item.header.Columns)
    blank = np.broadcast_to(np.uint8(0), (count, rows, columns))
    grid = Volume(blank, direction=tuple(float(value) for value in first.axes.T.ravel()))
    return replace(grid, spacing_mm=(*first.spacing_mm, step_mm), origin_mm=(origin[0], origin[1], origin[2]))


def _step_mm(item: SegObject, frame: Frame, distinct_mm: np.ndarray, warnings: list[str]) -> float:
    """Distance of the planes, from rising positions along the normal.

    That is SpacingBetweenSlices where the positions are multiples of it, else SliceThickness where some neighbours are
    that far apart (slices may be thinner than their distance). Where most neighbours are the same multiple of it apart,
    it is that distance. Without a claim that fits, it is the smallest distance.
    """
    claims = {"SpacingBetweenSlices": frame.between_mm, "SliceThickness": frame.thickness_mm}
    claims = {keyword: step_mm for keyword, step_mm in claims.items() if step_mm > 0}
    if len(distinct_mm) < 2:
        if not claims:
            tag = tag_name("SpacingBetweenSlices")
            raise AutopetError(f"{item.path}: {tag} is missing: the thickness of the only plane is unknown")
        return next(iter(claims.values()))
    distances_mm = np.diff(distinct_mm)
    for keyword, claimed_mm in claims.items():
        multiples = _multiples(distinct_mm, claimed_mm)
        if multiples is None:
            continue
        usual = _usual(multiples)
        if usual == 1 and (keyword == "SpacingBetweenSlices" or (multiples == 1).any()):
            return claimed_mm
        step_mm = float(np.median(distances_mm[multiples == (usual if usual > 1 else multiples.min())]))
        fits = _multiples(distinct_mm, step_mm) is not None
        taken = "that is taken as their distance" if fits else "others are not: what lies between them is left empty"
        if usual > 1:
            apart = f"most neighbouring frames are {step_mm:g} mm apart, {taken}"
            warnings.append(f"{item.title}: {tag_name(keyword)} is {claimed_mm:g} mm, but {apart}")
        return step_mm if fits else claimed_mm
    return float(distances_mm.min())


def _multiples(distinct_mm: np.ndarray, step_mm: float) -> np.ndarray | None:
    """Distances of neighbours in whole steps; None when the positions are no multiples of the step."""
    exact = (distinct_mm - distinct_mm[0]) / step_mm
    steps = np.diff(np.rint(exact)).astype(int)
    fits = np.abs(exact - np.rint(exact)).max() <= PLANE_TOLERANCE and steps.min() >= 1
    return steps if fits else None


def _usual(multiples: np.ndarray) -> int:
    """The multiple that most distances are, at least two of them; 1 when there is none."""
    found, counts = np.unique(multiples, return_counts=True)
    often = counts.max() >= 2 and 2 * counts.max() > len(multiples)
    return int(found[counts.argmax()]) if often else 1
