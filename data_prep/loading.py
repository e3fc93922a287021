"""Load a DICOM series as a volume: sort, check and rescale its slices.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.attributes import read_dicom, tag_name, values, whole_number
from data_prep.inventory import Series
from data_prep.multiframe import frame_headers, is_multiframe, refuse_late_reference
from data_prep.pixels import refuse_volume, stored_values
from data_prep.stacking import copies, stack, uniform_pixels_mm

PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")  # what copies of a file agree in
PLACE_TOLERANCE = 1e-4  # mm or direction cosine; a second export may write fewer digits


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A volume and the full headers (without pixels) of its slices, in the volume's order."""

    volume: Volume
    headers: tuple[Dataset, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Image:
    """One plane, rescaled, its header without pixels, and the file."""

    plane: np.ndarray
    header: Dataset
    path: Path


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
    order, grid = stack(distinct)
    refuse_volume(distinct)
    images = [image for path in distinct.paths for image in _read_file(path, whole=series.role == "CT")]
    images = [images[index] for index in order]
    headers = tuple(image.header for image in images)
    shapes, paths = [image.plane.shape for image in images], [image.path for image in images]
    x, y = uniform_pixels_mm(series, headers, shapes, paths=paths)
    if series.role == "PET":
        refuse_late_reference(headers)
    array = np.stack([image.plane for image in images])  # int16 and float32 together become float32
    volume = Volume(array, (x, y, grid.step_mm), grid.origin_mm, grid.direction)
    return LoadedSeries(volume, headers, (*notes, *_warnings(distinct, headers)))


# --- files -----------------------------------------------------------------------------------------------------------


def _without_copies(series: Series) -> tuple[Series, list[str]]:
    """The series with each SOP instance once, and a warning when there were copies."""
    pairs = copies(series)
    for first, second in pairs:
        _refuse_difference(series, first, second)
    if not pairs:
        return series, []
    left_out = {second for _, second in pairs}
    text = f"{len(pairs)} files of {series.title} are copies of others, with the same {tag_name('SOPInstanceUID')}"
    note = f"{text}, place and pixels; they are left out (first: {series.paths[min(left_out)]})"
    return series.only(index for index in range(len(series.paths)) if index not in left_out), [note]


def _refuse_difference(series: Series, first: int, second: int) -> None:
    """Two files of one SOPInstanceUID (C.12.1) must hold the same image."""
    paths = (series.paths[first], series.paths[second])
    one, two = (_read_file(path, whole=False) for path in paths)
    same = len(one) == len(two) and all(
        np.array_equal(a.plane, b.plane)
        and all(_same_numbers(values(a.header, keyword), values(b.header, keyword)) for keyword in PLACES)
        for a, b in zip(one, two, strict=True)
    )
    if not same:
        uid = series.headers[first].SOPInstanceUID
        raise AutopetError(
            f"{tag_name('SOPInstanceUID')} {uid} is in 2 files of {series.title} that differ in pixels or place: "
            f"{paths[0]} and {paths[1]}; remove the wrong one"
        )


def _same_numbers(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether two values are the same place: as numbers, that may be written as 1.0 and 1."""
    try:
        numbers, others = np.array(one, dtype=float), np.array(two, dtype=float)
    except ValueError:
        return one == two
    return numbers.shape == others.shape and bool(np.allclose(numbers, others, rtol=0, atol=PLACE_TOLERANCE))


def _read_file(path: Path, *, whole: bool) -> list[_Image]:
    """The planes of a file, rescaled to float32, or to int16 when `whole` numbers are looked for and found."""
    data = read_dicom(path)
    stored = stored_values(data, path)
    del data.PixelData
    data._pixel_array = None
    headers = frame_headers(data) if is_multiframe(data) else (data,)
    planes = stored[None] if len(headers) == 1 and stored.ndim == 2 else stored
    if planes.ndim != 3 or len(planes) != len(headers):
        raise AutopetError(
            f"{path}: {tag_name('PixelData')} has the shape {stored.shape}, expected {len(headers)} grey planes "
            f"({tag_name('NumberOfFrames')}, {tag_name('SamplesPerPixel')}); export the file anew"
        )
    return [_rescaled(plane, header, path, whole=whole) for plane, header in zip(planes, headers, strict=True)]


def _rescaled(stored: np.ndarray, header: Dataset, path: Path, *, whole: bool) -> _Image:
    slope, intercept = _number(header, "RescaleSlope", 1.0, path), _number(header, "RescaleIntercept", 0.0, path)
    if slope < 0 or (slope == 0 and stored.any()):  # PET slices without any count are stored as 0 with the slope 0
        raise AutopetError(f"{path}: {tag_name('RescaleSlope')} is {slope:g}, expected above 0; export the file anew")
    with np.errstate(over="ignore"):
        plane = (stored * slope + intercept).astype(np.float32)
    if not np.isfinite(plane).all():
        scale = f"{tag_name('RescaleSlope')} is {slope:g}, {tag_name('RescaleIntercept')} {intercept:g}"
        raise AutopetError(f"{path}: {scale}: rescaled voxels are no finite numbers; export the file anew")
    return _Image(plane.astype(np.int16) if whole and _is_whole(plane) else plane, header, path)


def _number(header: Dataset, keyword: str, default: float, path: Path) -> float:
    found = values(header, keyword)
    try:
        number = float(found[0]) if found else default
    except ValueError:
        number = float("nan")
    if not np.isfinite(number) or len(found) > 1:
        text = "\\".join(found)
        raise AutopetError(f"{path}: {tag_name(keyword)} is {text!r}, expected a number; export the file anew")
    return number


def _is_whole(plane: np.ndarray) -> bool:
    return bool((plane == np.rint(plane)).all() and plane.min() >= -32768 and plane.max() <= 32767)


def _warnings(series: Series, headers: Sequence[Dataset]) -> Iterator[str]:
    try:
        expected = whole_number(headers[0], "NumberOfSlices", default=0)
    except AutopetError as error:
        expected = 0
        yield str(error)
    kinds = values(headers[0], "SeriesType")
    if series.role == "PET" and expected and kinds[:1] != ("DYNAMIC",) and expected != len(headers):
        yield f"{len(headers)} PET slices found, {tag_name('NumberOfSlices')} is {expected}: files may be missing"
    unscaled = sum(not values(header, "RescaleSlope") for header in headers)
    if unscaled:
        tag = tag_name("RescaleSlope")
        yield f"{tag} is missing in {unscaled} of {len(headers)} slices of {series.title}: taken as 1"
