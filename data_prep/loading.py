"""Load a DICOM series as a volume: sort, check and rescale its slices.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.volume import Volume
from data_prep.attributes import COSINE_TOLERANCE, orientation, pixel_spacing, position, read_dicom, tag_name, values
from data_prep.series import Series

STEP_TOLERANCE = 0.05  # of the slice distance; GE rounds bed overlaps by 0.6 %
DRIFT_TOLERANCE_MM = 1.0  # sideways, over the whole stack
SPACING_TOLERANCE_MM = 1e-3


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A volume and the full headers (without pixels) of its slices, in the volume's order."""

    volume: Volume
    headers: tuple[Dataset, ...]
    warnings: tuple[str, ...]


def load_series(series: Series) -> LoadedSeries:
    """Read the slices of a CT or PET series.

    Slices are sorted by position along the normal; each is rescaled with its own slope and intercept (C.11.1).

    Returns
    -------
    LoadedSeries
        Voxels in HU or in the PET's Units, as int16 when all rescaled values of a CT are whole numbers in its range,
        float32 otherwise.

    Raises
    ------
    AutopetError
        Duplicate slices, a gap, slices of different size or orientation, missing or unreadable pixels; names the tag.
    """
    order, grid = _stack(series)
    planes, headers = [], []
    for index in order:
        plane, header = _read_slice(series.paths[index])
        planes.append(plane.astype(np.int16) if series.role == "CT" and _is_whole(plane) else plane)
        headers.append(header)
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise AutopetError(
            f"{tag_name('Rows')} and {tag_name('Columns')} differ within {series.title}: {sorted(shapes)}"
        )
    spacings = np.array([pixel_spacing(header) for header in headers])
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE_MM:
        raise AutopetError(f"{tag_name('PixelSpacing')} differs within {series.title}; export one reconstruction only")
    array = np.stack(planes)  # int16 and float32 together become float32
    x, y = spacings[0]
    volume = Volume(array, (float(x), float(y), grid.step_mm), grid.origin_mm, grid.direction)
    return LoadedSeries(volume, tuple(headers), tuple(_count_warnings(series, headers[0])))


@dataclass(frozen=True)
class _Stack:
    step_mm: float
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]


def _stack(series: Series) -> tuple[np.ndarray, _Stack]:
    """Order of the slices along their normal, and where the stack lies."""
    _refuse_copies(series)
    axes = orientation(series.first)
    if any(np.abs(orientation(header) - axes).max() > COSINE_TOLERANCE for header in series.headers):
        raise AutopetError(
            f"{tag_name('ImageOrientationPatient')} differs within {series.title}; export one stack only"
        )
    positions = np.array([position(header) for header in series.headers])
    order = np.argsort(positions @ axes[2], kind="stable")
    positions = positions[order]
    step_mm = _uniform_step_mm(positions @ axes[2], series)
    drift_mm = np.abs((positions - positions[0]) @ axes[:2].T).max()
    if drift_mm > DRIFT_TOLERANCE_MM:
        raise AutopetError(
            f"{tag_name('ImagePositionPatient')} moves sideways by {drift_mm:.3g} mm within {series.title}: a sheared "
            f"stack (see {tag_name('GantryDetectorTilt')}); resample it to an upright one"
        )
    x, y, z = (float(value) for value in positions[0])
    return order, _Stack(step_mm, (x, y, z), tuple(float(value) for value in axes.T.ravel()))


def _refuse_copies(series: Series) -> None:
    if "NumberOfFrames" in series.first and int(series.first.NumberOfFrames) > 1:
        raise AutopetError(
            f"{tag_name('NumberOfFrames')} is {series.first.NumberOfFrames}: multi-frame CT and PET are not read, "
            "convert them to one file per slice"
        )
    uid, count = Counter(str(header.SOPInstanceUID) for header in series.headers).most_common(1)[0]
    if count > 1:
        raise AutopetError(
            f"{tag_name('SOPInstanceUID')} {uid} is in {count} files of {series.title}; remove the copies"
        )


def _uniform_step_mm(along_mm: np.ndarray, series: Series) -> float:
    if len(along_mm) < 2:
        raise AutopetError(f"{series.title} has a single slice; a volume needs two or more")
    steps = np.diff(along_mm)
    usual = float(np.median(steps))
    tag = tag_name("ImagePositionPatient")
    smallest = float(steps.min())
    if smallest < 1e-3 or smallest < 0.1 * usual:
        where = along_mm[int(np.argmin(steps))]
        raise AutopetError(f"duplicate slices at {where:.4g} mm ({tag}) in {series.title}; keep one of each")
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > STEP_TOLERANCE * usual:
        raise AutopetError(
            f"slices of {series.title} are {usual:.4g} mm apart, but {steps[worst]:.4g} mm after "
            f"{along_mm[worst]:.4g} mm ({tag}): slices are missing or not evenly spaced; export the whole series"
        )
    return float(np.mean(steps))


def _read_slice(path: Path) -> tuple[np.ndarray, Dataset]:
    """Rescaled float32 pixels, and the header without them."""
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
    if stored.ndim != 2:
        raise AutopetError(f"{path}: expected one grey plane, found pixels of shape {stored.shape}")
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    del data.PixelData
    data._pixel_array = None
    return (stored * slope + intercept).astype(np.float32), data


def _is_whole(plane: np.ndarray) -> bool:
    return bool((plane == np.rint(plane)).all() and plane.min() >= -32768 and plane.max() <= 32767)


def _count_warnings(series: Series, header: Dataset) -> Iterator[str]:
    expected = header.get("NumberOfSlices")
    kinds = values(header, "SeriesType")
    if series.role == "PET" and expected and kinds[:1] != ("DYNAMIC",) and int(expected) != len(series.paths):
        yield f"{len(series.paths)} PET slices found, {tag_name('NumberOfSlices')} is {expected}: files may be missing"
