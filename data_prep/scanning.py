"""Find the DICOM series of studies below a folder.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep import multiframe
from data_prep.attributes import read_dicom, tag_name, values
from data_prep.inventory import Scan, Series, Study

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")  # one value each, C.12.1, C.7
SCAN_KEYWORDS = (
    *IDENTITY, "Modality", "ImageType", "StudyDate", "SeriesDescription", "PatientID", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "CorrectedImage", "Units", "SeriesType", "NumberOfFrames",
    "NumberOfSlices",
)  # fmt: skip
HELPFUL_KEYWORDS = (  # tell series apart; a value that cannot be read is as good as none
    "Rows", "RescaleType", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "FrameReferenceTime",
    "TriggerTime",
)  # fmt: skip
COMPANION_NAMES = ("dicomdir", "thumbs.db", "license", "readme")  # files that lie beside DICOM, in lower case
COMPANION_SUFFIXES = (
    ".csv", ".tsv", ".txt", ".json", ".md", ".xml", ".yaml", ".yml", ".html", ".log", ".pdf", ".png", ".jpg", ".jpeg",
    ".xls", ".xlsx", ".docx", ".nii", ".gz", ".zip",
)  # fmt: skip
LOCALIZERS = ("LOCALIZER", "SCOUT")  # value 3 of Image Type (0008,0008), C.8.2.1.1.1
LOCALIZER_COSINE = 0.1  # an image whose direction cosines differ by more is of another stack
LOCALIZER_IMAGES = 2  # of one orientation; an axial stack has more


def scan(folder: Path) -> Scan:
    """Headers of every DICOM file below a folder, grouped by study and series; links to folders are followed.

    Raises
    ------
    AutopetError
        The folder is missing, or no DICOM file lies below it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder; give the folder that holds the DICOM studies")
    files: dict[tuple[str, str], list[tuple[Path, Dataset]]] = {}
    other = []
    for path in _files(folder):
        header = _header(path)
        if header is None:
            other.append(path)
        else:
            files.setdefault((str(header.StudyInstanceUID), str(header.SeriesInstanceUID)), []).append((path, header))
    if not files:
        raise AutopetError(
            f"{folder}: no DICOM file below it ({len(other)} other files); give the folder of the studies"
        )
    unreadable = tuple(path for path in other if not _is_companion(path))
    return Scan(_with_unreadable(tuple(_studies(files)), unreadable, folder), len(other), unreadable)


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, each folder once; links to the folder's own ancestors lead out of it and are not taken."""
    visited = {os.fspath(path) for path in Path(os.path.realpath(folder)).parents}
    closed: list[Path] = []  # folders that may not be listed
    for base, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda error: closed.append(Path(error.filename))
    ):
        real = os.path.realpath(base)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        yield from (path for name in sorted(names) if not _is_special(path := Path(base, name)))
    yield from closed


def _is_special(path: Path) -> bool:
    """Pipes, sockets and devices, that would block a reader; a link to nowhere is not special but unreadable."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _is_companion(path: Path) -> bool:
    name = path.name.casefold()
    return name.startswith(".") or name in COMPANION_NAMES or name.endswith(COMPANION_SUFFIXES)


def _header(path: Path) -> Dataset | None:
    """`SCAN_KEYWORDS` of a file, None when they cannot be read or do not say to which study it belongs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values in files that are no DICOM
            header = read_dicom(path, pixels=False, keywords=(*SCAN_KEYWORDS, *HELPFUL_KEYWORDS))
            if multiframe.is_multiframe(header):  # functional groups of other classes, as Segmentations, are not kept
                keywords = (*SCAN_KEYWORDS, *HELPFUL_KEYWORDS, *multiframe.SCAN_KEYWORDS)
                header = read_dicom(path, pixels=False, keywords=keywords)
            for keyword in SCAN_KEYWORDS:  # pydicom converts a value when it is first asked for
                header.get(keyword)
            _drop_unreadable(header)
        return header if all(len(values(header, keyword)) == 1 for keyword in IDENTITY) else None
    except Exception:  # a damaged file raises what it likes: struct.error, BytesLengthException, ...
        return None


def _drop_unreadable(header: Dataset) -> None:
    for keyword in HELPFUL_KEYWORDS:
        try:
            header.get(keyword)
        except Exception:  # pydicom raises what it likes
            delattr(header, keyword)


def _with_unreadable(studies: tuple[Study, ...], unreadable: Sequence[Path], folder: Path) -> tuple[Study, ...]:
    """Studies with the unreadable files of the nearest folder that has a study below it."""
    below: dict[Path, set[str]] = {}
    inside = {study.uid: {path.parent for series in study.series for path in series.paths} for study in studies}
    for uid, parents in inside.items():
        for place in {place for parent in parents for place in (parent, *parent.parents)}:
            below.setdefault(place, set()).add(uid)
    found: dict[str, list[Path]] = {}
    for path in unreadable:
        nearest = next((place for place in path.parents if place in below), folder)
        holders = below.get(nearest, set())
        if nearest == folder and len(holders) > 1:  # beside the studies' folders, unless they lie loose in this one
            holders = {uid for uid in holders if folder in inside[uid]}
        for uid in holders:
            found.setdefault(uid, []).append(path)
    return tuple(replace(study, unreadable=tuple(found.get(study.uid, ()))) for study in studies)


def _studies(files: dict[tuple[str, str], list[tuple[Path, Dataset]]]) -> Iterator[Study]:
    grouped: dict[str, list[Series]] = {}
    for (study, series), found in sorted(files.items()):
        paths, headers = zip(*found, strict=True)
        grouped.setdefault(study, []).append(_without_localizers(Series(series, headers, paths)))
    for uid, members in grouped.items():
        first = next((series for series in members if series.role in ("PET", "CT")), members[0]).headers[0]
        yield Study(uid, str(first.get("PatientID") or ""), str(first.get("StudyDate") or ""), tuple(members))


def _without_localizers(series: Series) -> Series:
    """A series without the localizers that scanners store in it, and with a note when there were any.

    They say so in ImageType, or are one or two CT images of another orientation than many others.
    """
    named = {index for index, header in enumerate(series.headers) if set(LOCALIZERS) & set(values(header, "ImageType"))}
    series = _without(series, named, f"{tag_name('ImageType')} says LOCALIZER")
    if series.role != "CT" or any(multiframe.is_multiframe(header) for header in series.headers):
        return series
    orientations = [_cosines(header) for header in series.headers]
    usual = Counter(orientations).most_common(1)[0][0]
    others = {index: cosines for index, cosines in enumerate(orientations) if _is_turned(cosines, usual)}
    few = max(Counter(others.values()).values(), default=0) <= LOCALIZER_IMAGES
    if not few or 3 * len(others) > len(orientations) - len(others):
        return series
    return _without(series, set(others), f"another {tag_name('ImageOrientationPatient')} than the other images")


def _cosines(header: Dataset) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values(header, "ImageOrientationPatient"))
    except ValueError:
        return ()


def _is_turned(cosines: tuple[float, ...], usual: tuple[float, ...]) -> bool:
    complete = len(cosines) == len(usual) == 6
    return complete and max(abs(one - other) for one, other in zip(cosines, usual, strict=True)) > LOCALIZER_COSINE


def _without(series: Series, dropped: set[int], reason: str) -> Series:
    """The series without some of its files, unless they are all of it."""
    kept = [index for index in range(len(series.paths)) if index not in dropped]
    if not dropped or not kept:
        return series
    first = series.paths[min(dropped)]
    note = f"{len(dropped)} images are left out of {series.title} as localizers: {reason} (first: {first})"
    return series.only(kept, note)
