"""What a scan of DICOM files finds: studies, their series, and the series chosen for conversion.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from autopet.errors import AutopetError
from data_prep.multiframe import frame_headers, is_multiframe

ROLES = {
    CTImageStorage: "CT",
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    PositronEmissionTomographyImageStorage: "PET",
    EnhancedPETImageStorage: "PET",
    LegacyConvertedEnhancedPETImageStorage: "PET",
    SegmentationStorage: "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",  # Label Map Segmentation Storage
    RTStructureSetStorage: "RTSTRUCT",
}


def role_of(header: Dataset) -> str:
    """CT, PET, SEG, RTSTRUCT or nothing, from SOPClassUID (0008,0016)."""
    return ROLES.get(str(header.get("SOPClassUID", "")), "")


class MissingSeriesError(AutopetError):
    """A study without CT or without PET: nothing is wrong with its files, there is nothing to convert."""


@dataclass(frozen=True)
class Series:
    """The files of one series, sorted by path, with the headers that the scan reads of each.

    `notes` say what was left out of it; `refers_to` are the UIDs of the series and images that a segmentation names as
    its source.
    """

    uid: str
    headers: tuple[Dataset, ...]
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    refers_to: frozenset[str] = frozenset()

    @cached_property
    def frames(self) -> tuple[Dataset, ...]:
        """One header per image plane: those of the files, or of the frames of multi-frame CT and PET (C.7.6.16)."""
        found: list[Dataset] = []
        for header in self.headers:
            found += [header] if _problem(header) or not is_multiframe(header) else frame_headers(header)
        return tuple(found)

    def only(self, indices: Iterable[int], *notes: str) -> Series:
        """The series with some of its files, and notes about the others."""
        chosen = tuple(indices)
        headers, paths = tuple(self.headers[index] for index in chosen), tuple(self.paths[index] for index in chosen)
        return Series(self.uid, headers, paths, (*self.notes, *notes), self.refers_to)

    def is_source_of(self, segmentation: Series) -> bool:
        """Whether a segmentation names this series, or an image of it, as what it was made on."""
        images = (str(header.SOPInstanceUID) for header in self.headers)
        return self.uid in segmentation.refers_to or any(uid in segmentation.refers_to for uid in images)

    @property
    def problem(self) -> str:
        """Why the frames of a multi-frame file cannot be told apart, empty when they can."""
        return next((text for text in map(_problem, self.headers) if text), "")

    @property
    def first(self) -> Dataset:
        """Header of the first plane, for what is the same in all of them."""
        return self.frames[0]

    @property
    def images(self) -> int:
        """Number of image planes; copies of a file count once."""
        return len(self.frames) - len(self.headers) + len({str(header.SOPInstanceUID) for header in self.headers})

    @property
    def role(self) -> str:
        """CT, PET, SEG, RTSTRUCT or nothing, from SOPClassUID (0008,0016)."""
        return role_of(self.headers[0])

    @property
    def title(self) -> str:
        """Description, number of files and UID, to be recognised by."""
        return f"{self.headers[0].get('SeriesDescription') or 'series'!s} ({len(self.paths)} files, {self.uid})"


def _problem(header: Dataset) -> str:
    if not is_multiframe(header):
        return ""
    try:
        frame_headers(header)
    except AutopetError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study, sorted by path; their headers are not kept.

    `unreadable` are files in the study's folder that are not readable as DICOM.
    """

    uid: str
    patient_id: str
    date: str
    paths: tuple[Path, ...]
    series_uids: tuple[str, ...] = ()
    unreadable: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Found:
    """What lies below a folder: studies, the number of files that are of none, and those that should be.

    `unreadable` are files that are not readable as DICOM, ordinary companions such as tables and notes excepted;
    `orphans` are those of them that lie in no study's folder.
    """

    studies: tuple[StudyFiles, ...]
    other_files: int
    unreadable: tuple[Path, ...] = ()
    orphans: tuple[Path, ...] = ()


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
    """The series to convert, and in words why these; `segmentations` are SEG series, then RTSTRUCT series."""

    ct: Series
    pet: Series
    segmentations: tuple[Series, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
