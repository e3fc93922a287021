"""Load a DICOM series as a volume: sort, check and rescale its slices.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.volume import Volume
from data_prep.attributes import COSINE_TOLERANCE, orientation, pixel_spacing, position, read_dicom, tag_name, values
from data_prep.multiframe import frame_headers, is_multiframe, refuse_late_reference
from data_prep.series import Series

STEP_TOLERANCE = 0.05  # of the slice distance; GE rounds bed overlaps by 0.6 %
DRIFT_TOLERANCE_MM = 1.0  # sideways, over the whole stack
SPACING_TOLERANCE_MM = 1e-3
PLACES_NAMED = 3  # gaps that an error lists
TELLING = ("AcquisitionNumber", "AcquisitionTime", "FrameReferenceTime", "ImageType")  # apart slices at one place


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A volume and the full headers (without pixels) of its slices, in the volume's order."""

    volume: Volume
    headers: tuple[Dataset, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Image:
    """One plane, rescaled, and its header without pixels."""

    plane: np.ndarray
    header: Dataset


def load_series(series: Series) -> LoadedSeries:
    """Read the slices of a CT or PET series, one file each or frames of multi-frame files.

    Slices are sorted by position along the normal; each is rescaled with its own slope and intercept (C.11.1). A file
    that is there twice is read once, with a warning.

    Returns
    -------
    LoadedSeries
        Voxels in HU or in the PET's Units, as int16 when all rescaled values of a CT are whole numbers in its range,
        float32 otherwise. Headers of frames are those of `data_prep.multiframe.frame_headers`.

    Raises
    ------
    AutopetError
        Duplicate slices, a gap, slices of different size or orientation, missing or unreadable pixels; names the tag.
    """
    if series.problem:
        raise AutopetError(series.problem)
    distinct, notes = _without_copies(series)
    order, grid = _stack(distinct)
    images = [image for path in distinct.paths for image in _read_file(path, whole=series.role == "CT")]
    images = [images[index] for index in order]
    headers = tuple(image.header for image in images)
    x, y = _pixel_spacing(images, series)
    if series.role == "PET":
        refuse_late_reference(headers)
    array = np.stack([image.plane for image in images])  # int16 and float32 together become float32
    volume = Volume(array, (x, y, grid.step_mm), grid.origin_mm, grid.direction)
    return LoadedSeries(volume, headers, (*notes, *_warnings(distinct, headers)))


def _pixel_spacing(images: Sequence[_Image], series: Series) -> tuple[float, float]:
    """Distance of columns and rows in mm, the same in all slices."""
    shapes = {image.plane.shape for image in images}
    if len(shapes) > 1:
        raise AutopetError(
            f"{tag_name('Rows')} and {tag_name('Columns')} differ within {series.title}: {sorted(shapes)}; "
            "export one reconstruction only"
        )
    spacings = np.array([pixel_spacing(image.header) for image in images])
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE_MM:
        raise AutopetError(f"{tag_name('PixelSpacing')} differs within {series.title}; export one reconstruction only")
    return float(spacings[0, 0]), float(spacings[0, 1])


# --- the stack -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    step_mm: float
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]


def _stack(series: Series) -> tuple[np.ndarray, _Stack]:
    """Order of the slices along their normal, and where the stack lies."""
    axes = orientation(series.first)
    if any(np.abs(orientation(header) - axes).max() > COSINE_TOLERANCE for header in series.frames):
        raise AutopetError(
            f"{tag_name('ImageOrientationPatient')} differs within {series.title}; export one stack only"
        )
    positions = np.array([position(header) for header in series.frames])
    order = np.argsort(positions @ axes[2], kind="stable")
    positions = positions[order]
    step_mm = _uniform_step_mm(positions @ axes[2], series, order)
    drift_mm = np.abs((positions - positions[0]) @ axes[:2].T).max()
    if drift_mm > DRIFT_TOLERANCE_MM:
        raise AutopetError(
            f"{tag_name('ImagePositionPatient')} moves sideways by {drift_mm:.3g} mm within {series.title}: a sheared "
            f"stack (see {tag_name('GantryDetectorTilt')}); resample it to an upright one"
        )
    x, y, z = (float(value) for value in positions[0])
    return order, _Stack(step_mm, (x, y, z), tuple(float(value) for value in axes.T.ravel()))


def _uniform_step_mm(along_mm: np.ndarray, series: Series, order: np.ndarray) -> float:
    if len(along_mm) < 2:
        raise AutopetError(f"{series.title} has a single slice; a volume needs two or more")
    steps = np.diff(along_mm)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: gaps may be half of the steps
    tag = tag_name("ImagePositionPatient")
    closest = int(np.argmin(steps))
    if steps[closest] < 1e-3 or steps[closest] < 0.1 * usual:
        pair = [series.frames[order[index]] for index in (closest, closest + 1)]
        raise AutopetError(
            f"duplicate slices at {along_mm[closest]:.4g} mm ({tag}) in {series.title}{_what_differs(*pair)}; keep one "
            "of each"
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > STEP_TOLERANCE * usual:
        raise AutopetError(
            f"slices of {series.title} are {usual:.4g} mm apart, but {steps[worst]:.4g} mm after "
            f"{along_mm[worst]:.4g} mm ({tag}): {_gaps(along_mm, usual)}; export the whole series"
        )
    return float(np.mean(steps))


def _what_differs(first: Dataset, second: Dataset) -> str:
    """Attributes that tell two slices at one place apart, for an error."""
    pairs = ((keyword, values(first, keyword), values(second, keyword)) for keyword in TELLING)
    found = [f"{tag_name(key)} {'/'.join(one)} and {'/'.join(two)}" for key, one, two in pairs if one != two]
    return f", of {', '.join(found)}: several acquisitions or time frames in one series" if found else ""


def _gaps(along_mm: np.ndarray, usual_mm: float) -> str:
    """How many slices seem to be missing and where, in words."""
    relative = np.diff(along_mm) / usual_mm
    odd = np.flatnonzero(np.abs(relative - 1) > STEP_TOLERANCE)
    missing = np.rint(relative[odd]).astype(int) - 1
    if (missing < 1).any() or np.abs(relative[odd] - missing - 1).max() > 2 * STEP_TOLERANCE * relative[odd].max():
        return f"slices are not evenly spaced at {len(odd)} places, or several stacks are mixed"
    places = [f"{count} after {along_mm[index]:.4g} mm" for index, count in zip(odd, missing, strict=True)]
    more = f" and at {len(places) - PLACES_NAMED} more places" if len(places) > PLACES_NAMED else ""
    total = int(missing.sum())
    verb = "slice seems" if total == 1 else "slices seem"
    return f"{total} {verb} to be missing ({', '.join(places[:PLACES_NAMED])}{more})"


# --- files -----------------------------------------------------------------------------------------------------------


def _without_copies(series: Series) -> tuple[Series, list[str]]:
    """The series with each SOP instance once, and a warning when there were copies."""
    holders: dict[str, int] = {}
    copies = []
    for index, header in enumerate(series.headers):
        uid = str(header.SOPInstanceUID)
        if holders.setdefault(uid, index) != index:
            _refuse_difference(series, uid, holders[uid], index)
            copies.append(index)
    if not copies:
        return series, []
    text = f"{len(copies)} files of {series.title} are copies of others, with the same {tag_name('SOPInstanceUID')}"
    note = f"{text}, place and pixels; they are left out (first: {series.paths[copies[0]]})"
    return series.only(sorted(holders.values())), [note]


def _refuse_difference(series: Series, uid: str, first: int, second: int) -> None:
    """Two files of one SOPInstanceUID (C.12.1) must hold the same image."""
    paths = (series.paths[first], series.paths[second])
    one, two = (_read_file(path, whole=False) for path in paths)
    places = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    same = len(one) == len(two) and all(
        np.array_equal(a.plane, b.plane)
        and all(values(a.header, keyword) == values(b.header, keyword) for keyword in places)
        for a, b in zip(one, two, strict=True)
    )
    if not same:
        raise AutopetError(
            f"{tag_name('SOPInstanceUID')} {uid} is in 2 files of {series.title} that differ in pixels or place: "
            f"{paths[0]} and {paths[1]}; remove the wrong one"
        )


def _read_file(path: Path, *, whole: bool) -> list[_Image]:
    """The planes of a file, rescaled to float32, or to int16 when `whole` numbers are looked for and found."""
    data = read_dicom(path)
    if "PixelData" not in data:
        raise AutopetError(f"{path}: {tag_name('PixelData')} is missing; export the file anew")
    try:
        stored = data.pixel_array
    except Exception as error:  # decoders raise what they like
        syntax = data.file_meta.get("TransferSyntaxUID")
        raise AutopetError(
            f"{path}: {tag_name('PixelData')} cannot be decoded, {tag_name('TransferSyntaxUID')} "
            f"{getattr(syntax, 'name', 'missing')}: {one_line(error)}"
        ) from error
    del data.PixelData
    data._pixel_array = None
    headers = frame_headers(data) if is_multiframe(data) else (data,)
    planes = stored[None] if len(headers) == 1 and stored.ndim == 2 else stored
    if planes.ndim != 3 or len(planes) != len(headers):
        raise AutopetError(f"{path}: expected {len(headers)} grey planes, found pixels of shape {stored.shape}")
    return [_rescaled(plane, header, path, whole=whole) for plane, header in zip(planes, headers, strict=True)]


def _rescaled(stored: np.ndarray, header: Dataset, path: Path, *, whole: bool) -> _Image:
    slope, intercept = _number(header, "RescaleSlope", 1.0, path), _number(header, "RescaleIntercept", 0.0, path)
    if slope == 0:
        raise AutopetError(f"{path}: {tag_name('RescaleSlope')} is 0, all voxels would be equal; export it anew")
    plane = (stored * slope + intercept).astype(np.float32)
    return _Image(plane.astype(np.int16) if whole and _is_whole(plane) else plane, header)


def _number(header: Dataset, keyword: str, default: float, path: Path) -> float:
    found = values(header, keyword)
    try:
        number = float(found[0]) if found else default
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise AutopetError(f"{path}: {tag_name(keyword)} is {found[0]!r}, expected a number; export the file anew")
    return number


def _is_whole(plane: np.ndarray) -> bool:
    return bool((plane == np.rint(plane)).all() and plane.min() >= -32768 and plane.max() <= 32767)


def _warnings(series: Series, headers: Sequence[Dataset]) -> Iterator[str]:
    expected = headers[0].get("NumberOfSlices")
    kinds = values(headers[0], "SeriesType")
    if series.role == "PET" and expected and kinds[:1] != ("DYNAMIC",) and int(expected) != len(headers):
        yield f"{len(headers)} PET slices found, {tag_name('NumberOfSlices')} is {expected}: files may be missing"
    unscaled = sum(not values(header, "RescaleSlope") for header in headers)
    if unscaled:
        tag = tag_name("RescaleSlope")
        yield f"{tag} is missing in {unscaled} of {len(headers)} slices of {series.title}: taken as 1"
