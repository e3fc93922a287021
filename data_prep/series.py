"""Find the DICOM series of PET/CT studies, and choose CT, PET and segmentations.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
    SegmentationStorage,
)

from autopet.errors import AutopetError
from data_prep.attributes import orientation, position, tag_name, values

UNITS = ("BQML", "CNTS", "GML")  # of Units (0054,1001), that can become SUV
SCAN_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate",
    "SeriesDescription", "PatientID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "CorrectedImage", "Units", "SeriesType", "NumberOfFrames", "NumberOfSlices",
]  # fmt: skip
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
        return ROLES.get(self.first.get("SOPClassUID", ""), "")

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

    def of_role(self, role: str) -> list[Series]:
        """Series of one role, sorted by UID."""
        return [series for series in self.series if series.role == role]


@dataclass(frozen=True)
class Scan:
    """What lies below a folder; `other_files` are not DICOM (or DICOM without the preamble of PS3.10)."""

    studies: tuple[Study, ...]
    other_files: int


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
    """Headers of every DICOM file below a folder, grouped by study and series.

    Raises
    ------
    AutopetError
        The folder is missing, or no DICOM file lies below it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder; give the folder that holds the DICOM studies")
    files: dict[tuple[str, str], list[tuple[Path, Dataset]]] = {}
    other = 0
    for path in _files(folder):
        header = _header(path)
        if header is None:
            other += 1
        else:
            files.setdefault((str(header.StudyInstanceUID), str(header.SeriesInstanceUID)), []).append((path, header))
    if not files:
        raise AutopetError(f"{folder}: no DICOM file below it ({other} other files); give the folder of the studies")
    return Scan(tuple(_studies(files)), other)


def _files(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(base, name) for name in sorted(names))


def _header(path: Path) -> Dataset | None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(SCAN_KEYWORDS))
    except (InvalidDicomError, OSError, EOFError, ValueError, NotImplementedError):
        return None
    # DICOMDIR (PS3.10 section 8) has no study of its own
    return header if header.get("StudyInstanceUID") and header.get("SeriesInstanceUID") else None


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
    warnings = []
    if not _shares_frame(ct, pet):
        warnings.append(
            f"CT and PET differ in {tag_name('FrameOfReferenceUID')}; positions are taken as they are, check the fit"
        )
    return Choice(ct, pet, tuple(study.of_role("SEG")), (pet_reason, ct_reason), tuple(warnings))


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
