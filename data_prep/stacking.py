"""How the slices of a series make one stack, from their headers alone.

Both the choice of a series and its loading ask here, so that what cannot be loaded is not preferred. Section numbers
are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import (
    COSINE_TOLERANCE,
    orientation,
    pixel_spacing,
    position,
    tag_name,
    values,
    whole_number,
)
from data_prep.inventory import Series

Value = TypeVar("Value")

STEP_TOLERANCE = 0.05  # of the slice distance; GE rounds bed overlaps by 0.6 %
DRIFT_TOLERANCE_MM = 1.0  # sideways, over the whole stack
SPACING_TOLERANCE_MM = 1e-3
PLACES_NAMED = 3  # gaps that an error lists
TELLING = ("AcquisitionNumber", "AcquisitionTime", "FrameReferenceTime", "ImageType")  # apart slices at one place


@dataclass(frozen=True)
class Stack:
    """Where evenly spaced slices lie: their distance, the first voxel, and the axes as a volume has them."""

    step_mm: float
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]


def stack(series: Series) -> tuple[np.ndarray, Stack]:
    """Order of the slices along their normal, and where the stack lies.

    Returns
    -------
    order : (slices,) int
        Indices into `series.frames`, in ascending order along the normal.
    stack : Stack
        Its geometry in LPS mm (C.7.6.2.1.1).

    Raises
    ------
    AutopetError
        Duplicate slices, a gap, several orientations, or a sheared stack; names the tag.
    """
    planes = list(zip(_paths(series), series.frames, strict=True))
    axes = orientation(series.first)
    if any(np.abs(named(path, orientation, header) - axes).max() > COSINE_TOLERANCE for path, header in planes):
        raise AutopetError(
            f"{tag_name('ImageOrientationPatient')} differs within {series.title}; export one stack only"
        )
    positions = np.array([named(path, position, header) for path, header in planes])
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
    return order, Stack(step_mm, (x, y, z), tuple(float(value) for value in axes.T.ravel()))


def stack_problem(series: Series) -> str:
    """Why the slices of a CT or PET series cannot make one volume, as far as headers tell; empty when they can."""
    if series.problem:
        return series.problem
    copied = {index for _, index in copies(series)}
    once = series.only(index for index in range(len(series.headers)) if index not in copied) if copied else series
    try:
        stack(once)
        shapes = [(whole_number(header, "Rows"), whole_number(header, "Columns")) for header in once.frames]
        uniform_pixels_mm(once, once.frames, shapes, paths=_paths(once))
    except AutopetError as error:
        return str(error)
    return ""


def copies(series: Series) -> list[tuple[int, int]]:
    """Indices of files with one SOPInstanceUID (C.12.1): the first that holds it, and each further one."""
    holders: dict[str, int] = {}
    pairs = [
        (holders.setdefault(str(header.SOPInstanceUID), index), index) for index, header in enumerate(series.headers)
    ]
    return [(first, index) for first, index in pairs if first != index]


def uniform_pixels_mm(
    series: Series, headers: Sequence[Dataset], shapes: Sequence[tuple[int, ...]], *, paths: Sequence[Path | None]
) -> tuple[float, float]:
    """Distance of columns and rows (x, y) in mm, the same in all slices, as is their number.

    Raises
    ------
    AutopetError
        They differ, or the distance is missing; names the tag.
    """
    if len(set(shapes)) > 1:
        raise AutopetError(
            f"{tag_name('Rows')} and {tag_name('Columns')} differ within {series.title}: {sorted(set(shapes))}; "
            "export one reconstruction only"
        )
    spacings = np.array([named(path, pixel_spacing, header) for path, header in zip(paths, headers, strict=True)])
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE_MM:
        raise AutopetError(f"{tag_name('PixelSpacing')} differs within {series.title}; export one reconstruction only")
    return float(spacings[0, 0]), float(spacings[0, 1])


def named(path: Path | None, read: Callable[[Dataset], Value], header: Dataset) -> Value:
    """What is read from a header; an error begins with the file that it is about."""
    try:
        return read(header)
    except AutopetError as error:
        raise AutopetError(f"{path}: {error}") if path else error from error


def _paths(series: Series) -> Sequence[Path | None]:
    """The file of each plane, where a file holds one."""
    planes = len(series.frames)
    return series.paths if len(series.paths) == planes else [None] * planes


def _uniform_step_mm(along_mm: np.ndarray, series: Series, order: np.ndarray) -> float:
    if len(along_mm) < 2:
        raise AutopetError(f"{series.title} has a single slice; a volume needs two or more")
    steps = np.diff(along_mm)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: gaps may be half of the steps
    tag = tag_name("ImagePositionPatient")
    frames = [series.frames[index] for index in order]
    closest = int(np.argmin(steps))
    if steps[closest] < 1e-3 or steps[closest] < 0.1 * usual:
        pair = frames[closest : closest + 2]
        raise AutopetError(
            f"duplicate slices at {along_mm[closest]:.4g} mm ({tag}) in {series.title}"
            f"{_what_differs(*pair)}; keep one of each"
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > STEP_TOLERANCE * usual:
        raise AutopetError(
            f"slices of {series.title} are {usual:.4g} mm apart, but {steps[worst]:.4g} mm after "
            f"{along_mm[worst]:.4g} mm ({tag}): {_overlapping(frames) or _gaps(along_mm, usual)}"
        )
    return float(np.mean(steps))


def _what_differs(first: Dataset, second: Dataset) -> str:
    """Attributes that tell two slices at one place apart, for an error."""
    pairs = ((keyword, values(first, keyword), values(second, keyword)) for keyword in TELLING)
    found = [f"{tag_name(key)} {'/'.join(one)} and {'/'.join(two)}" for key, one, two in pairs if one != two]
    return f", of {', '.join(found)}: several acquisitions or time frames in one series" if found else ""


def _overlapping(frames: Sequence[Dataset]) -> str:
    """That acquisitions lie within each other: AcquisitionNumber changes more often than it would end to end."""
    numbers = ["/".join(values(header, "AcquisitionNumber")) for header in frames]
    distinct = sorted(set(numbers) - {""})
    changes = sum(one != two for one, two in pairwise(numbers))
    if len(distinct) < 2 or changes < len(set(numbers)):
        return ""
    listed = " and ".join(distinct[:PLACES_NAMED])
    return f"acquisitions overlap in one series, {tag_name('AcquisitionNumber')} is {listed}; export one of them"


def _gaps(along_mm: np.ndarray, usual_mm: float) -> str:
    """How many slices seem to be missing and where, in words."""
    relative = np.diff(along_mm) / usual_mm
    odd = np.flatnonzero(np.abs(relative - 1) > STEP_TOLERANCE)
    missing = np.rint(relative[odd]).astype(int) - 1
    if (missing < 1).any() or np.abs(relative[odd] - missing - 1).max() > 2 * STEP_TOLERANCE * relative[odd].max():
        return f"slices are not evenly spaced at {len(odd)} places, or several stacks are mixed; export one whole stack"
    places = [f"{count} after {along_mm[index]:.4g} mm" for index, count in zip(odd, missing, strict=True)]
    more = f" and at {len(places) - PLACES_NAMED} more places" if len(places) > PLACES_NAMED else ""
    total = int(missing.sum())
    verb = "slice seems" if total == 1 else "slices seem"
    return f"{total} {verb} to be missing ({', '.join(places[:PLACES_NAMED])}{more}); export the whole series"
