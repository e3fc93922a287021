"""Find the DICOM series of PET/CT studies, and choose CT, PET and segmentations.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
    SegmentationStorage,
)

from autopet.errors import AutopetError
from data_prep.attributes import orientation, position, read_dicom, tag_name, values

UNITS = ("BQML", "CNTS", "GML")  # of Units (0054,1001), that can become SUV
IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")  # one value each, C.12.1, C.7
SCAN_KEYWORDS = (
    *IDENTITY, "Modality", "ImageType", "StudyDate", "SeriesDescription", "PatientID", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "CorrectedImage", "Units", "SeriesType", "NumberOfFrames",
    "NumberOfSlices",
)  # fmt: skip
COMPANION_NAMES = ("dicomdir", "thumbs.db", "license", "readme")  # files that lie beside DICOM, in lower case
COMPANION_SUFFIXES = (
    ".csv", ".tsv", ".txt", ".json", ".md", ".xml", ".yaml", ".yml", ".html", ".log", ".pdf", ".png", ".jpg", ".jpeg",
    ".xls", ".xlsx", ".docx", ".nii", ".gz", ".zip",
)  # fmt: skip
ROLES = {
    CTImageStorage: "CT",
    EnhancedCTImageStorage: "CT",
    PositronEmissionTomographyImageStorage: "PET",
    EnhancedPETImageStorage: "PET",
    SegmentationStorage: "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",  # Label Map Segmentation Storage
}


class MissingSeriesError(AutopetError):
    """A study without CT or without PET: nothing is wrong with its files, there is nothing to convert."""


@dataclass(frozen=True)
class Series:
    """The files of one series, sorted by path, with the headers `SCAN_KEYWORDS` of each."""

    uid: str
    headers: tuple[Dataset, ...]
    paths: tuple[Path, ...]

    @property
    def first(self) -> Dataset:
        """Header of the first file, for what is the same in all of them."""
        return self.headers[0]

    @property
    def role(self) -> str:
        """CT, PET, SEG or nothing, from SOPClassUID (0008,0016)."""
        return ROLES.get(str(self.first.get("SOPClassUID", "")), "")

    @property
    def title(self) -> str:
        """Description, number of files and UID, to be recognised by."""
        return f"{self.first.get('SeriesDescription') or 'series'!s} ({len(self.paths)} files, {self.uid})"


@dataclass(frozen=True)
class Study:
    """One study: a PET/CT examination with its segmentations."""

    uid: str
    patient_id: str
    date: str
    series: tuple[Series, ...]
    unreadable: tuple[Path, ...] = ()  # files in its folder that are not readable as DICOM

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may be missing from the study."""
        if not self.unreadable:
            return ()
        count, first = len(self.unreadable), self.unreadable[0]
        return (f"{count} files in the study's folder are not readable as DICOM (first: {first})",)

    def of_role(self, role: str) -> list[Series]:
        """Series of one role, sorted by UID."""
        return [series for series in self.series if series.role == role]


@dataclass(frozen=True)
class Scan:
    """What lies below a folder; `other_files` counts what is not DICOM of a study, `unreadable` names what should be.

    Ordinary companions of DICOM, such as tables and notes, are not among the unreadable files.
    """

    studies: tuple[Study, ...]
    other_files: int
    unreadable: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The series to convert, and in words why these."""

    ct: Series
    pet: Series
    segmentations: tuple[Series, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


# --- finding ---------------------------------------------------------------------------------------------------------


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
            header = read_dicom(path, pixels=False, keywords=SCAN_KEYWORDS)
            for keyword in SCAN_KEYWORDS:  # pydicom converts a value when it is first asked for
                header.get(keyword)
        return header if all(len(values(header, keyword)) == 1 for keyword in IDENTITY) else None
    except Exception:  # a damaged file raises what it likes: struct.error, BytesLengthException, ...
        return None


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
        kept = [item for item in found if "LOCALIZER" not in values(item[1], "ImageType")] or found
        paths, headers = zip(*kept, strict=True)
        grouped.setdefault(study, []).append(Series(series, headers, paths))
    for uid, members in grouped.items():
        first = next((series for series in members if series.role in ("PET", "CT")), members[0]).first
        yield Study(uid, str(first.get("PatientID") or ""), str(first.get("StudyDate") or ""), tuple(members))


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(study: Study) -> Choice:
    """Choose CT and attenuation-corrected PET.

    Raises
    ------
    MissingSeriesError
        The study has no CT or no PET.
    AutopetError
        Its PET cannot become SUV: not corrected for attenuation, or in other units.
    """
    missing = [role for role in ("CT", "PET") if not study.of_role(role)]
    if missing:
        found = Counter(str(series.first.get("Modality", "?")) for series in study.series)
        listed = ", ".join(f"{count} {modality}" for modality, count in sorted(found.items()))
        raise MissingSeriesError(f"no {' and no '.join(missing)} series in the study (series found: {listed})")
    pet, pet_reason = _choose_pet(study.of_role("PET"))
    ct, ct_reason = _choose_ct(study.of_role("CT"), pet)
    noted = []
    if not _shares_frame(ct, pet):
        noted.append(
            f"CT and PET differ in {tag_name('FrameOfReferenceUID')}; positions are taken as they are, check the fit"
        )
    return Choice(ct, pet, tuple(study.of_role("SEG")), (pet_reason, ct_reason), tuple(noted))


def _choose_pet(candidates: Sequence[Series]) -> tuple[Series, str]:
    """Attenuation-corrected PET in units that can become SUV (C.8.9.1)."""
    refusals = {series.uid: _pet_refusal(series) for series in candidates}
    usable = [series for series in candidates if not refusals[series.uid]]
    refused = "; ".join(f"{series.title}: {refusals[series.uid]}" for series in candidates if refusals[series.uid])
    if not usable:
        raise AutopetError(f"no attenuation-corrected PET in the study, add the corrected series. {refused}")
    best = min(usable, key=_pet_rank)
    reason = f"PET: {best.title}, with ATTN in {tag_name('CorrectedImage')} and {tag_name('Units')} {best.first.Units}"
    others = [series.title for series in usable if series is not best]
    if others:
        reason += f"; preferred to {', '.join(others)} by image type, series type and number of slices"
    return best, reason + (f"; refused {refused}" if refused else "")


def _pet_refusal(series: Series) -> str:
    corrections = values(series.first, "CorrectedImage")
    units = " ".join(values(series.first, "Units")) or "missing"
    if units not in UNITS:
        return f"{tag_name('Units')} is {units}, expected one of {', '.join(UNITS)}"
    if "ATTN" not in corrections:
        listed = "\\".join(corrections) or "missing"
        return f"{tag_name('CorrectedImage')} is {listed}, without ATTN: not corrected for attenuation"
    return ""


def _pet_rank(series: Series) -> tuple:
    kinds = values(series.first, "SeriesType")
    still = not kinds or kinds[0] in ("STATIC", "WHOLE BODY")
    return not still, *_image_type_rank(series), -len(series.paths), series.uid


def _image_type_rank(series: Series) -> tuple[bool, ...]:
    kinds = values(series.first, "ImageType")
    return tuple(kind not in kinds for kind in ("ORIGINAL", "PRIMARY"))


def _choose_ct(candidates: Sequence[Series], pet: Series) -> tuple[Series, str]:
    def rank(series: Series) -> tuple:
        kinds = values(series.first, "ImageType")
        scout = any(kind in ("LOCALIZER", "SCOUT") for kind in kinds) or len(series.paths) < 2
        covered = _covered_tenths(series, pet)
        shape = (*_image_type_rank(series), "AXIAL" not in kinds)
        return scout, not _shares_frame(series, pet), *shape, -covered, -len(series.paths), series.uid

    best = min(candidates, key=rank)
    if rank(best)[0]:
        raise MissingSeriesError(f"the only CT is a localizer or a single slice: {best.title}")
    frame = "in the PET's frame of reference" if _shares_frame(best, pet) else "in another frame of reference"
    reason = f"CT: {best.title}, {frame}, covers about {10 * _covered_tenths(best, pet)} % of the PET's length"
    others = [series.title for series in candidates if series is not best]
    if others:
        reason += f"; preferred to {', '.join(others)} by frame of reference, image type, coverage and number of slices"
    return best, reason


def _shares_frame(first: Series, second: Series) -> bool:
    frame = first.first.get("FrameOfReferenceUID")
    return bool(frame) and frame == second.first.get("FrameOfReferenceUID")


def _covered_tenths(series: Series, pet: Series) -> int:
    """How much of the PET's length a series covers, along the PET's normal, in tenths."""
    try:
        normal = orientation(pet.first)[2]
        low, high = _extent(pet, normal)
        other_low, other_high = _extent(series, normal)
    except AutopetError:
        return 0
    return round(10 * max(0.0, min(high, other_high) - max(low, other_low)) / max(high - low, 1e-6))


def _extent(series: Series, normal: np.ndarray) -> tuple[float, float]:
    along = [float(position(header) @ normal) for header in series.headers]
    return min(along), max(along)
