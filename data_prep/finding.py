"""Find the DICOM files below a folder and the study that each belongs to, without keeping their headers.

A collection has a million files: what is kept of one is its path. The headers of a study are read when its turn comes,
see `data_prep.scanning`. Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from autopet.errors import AutopetError
from autopet.progress import track
from data_prep.attributes import values
from data_prep.inventory import ROLES, Found, StudyFiles
from data_prep.walking import walk

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")  # one value each, C.12.1, C.7
LAST_TAG = Tag("SeriesInstanceUID")  # of those that are read here; what comes later is left in the file
TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in (*IDENTITY, "StudyDate", "PatientID")]
READERS, BATCH = 8, 2048  # threads, and files that they are given at a time
PREAMBLE, MAGIC = 128, b"DICM"  # PS3.10 7.1
DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
COMPANION_NAMES = ("dicomdir", "thumbs.db", "license", "readme")  # files that lie beside DICOM, in lower case
COMPANION_SUFFIXES = (
    ".csv", ".tsv", ".txt", ".json", ".md", ".xml", ".yaml", ".yml", ".html", ".log", ".pdf", ".png", ".jpg", ".jpeg",
    ".xls", ".xlsx", ".docx", ".nii", ".gz", ".zip", ".mha", ".mhd", ".nrrd", ".h5",
)  # fmt: skip


@dataclass
class _Gathered:
    """What is known of a study while its files are being found."""

    paths: list[Path] = field(default_factory=list)
    series: set[str] = field(default_factory=set)
    roles: set[str] = field(default_factory=set)
    best: tuple = ()  # rank of the file that patient and date are taken from
    patient_id: str = ""
    date: str = ""

    def add(self, path: Path, header: Dataset) -> None:
        role, series = ROLES.get(str(header.SOPClassUID), ""), str(header.SeriesInstanceUID)
        self.paths.append(path)
        self.series.add(series)
        self.roles.add(role)
        rank = (role not in ("CT", "PET"), series, path)
        if not self.best or rank < self.best:
            self.best = rank
            self.patient_id, self.date = str(header.get("PatientID") or ""), str(header.get("StudyDate") or "")

    def reach(self) -> Path:
        """The folder that is the study's own: that of all its files, or around it when it holds one series only."""
        parents = {path.parent for path in self.paths}
        common = Path(os.path.commonpath(parents))
        return common.parent if len(parents) == 1 and not self.roles >= {"CT", "PET"} else common


def find_studies(folder: Path, *, leave_out: Path | None = None) -> Found:
    """The studies below a folder by StudyInstanceUID, at any depth; links to folders are followed.

    A folder inside that is to be left out (the cohort that is being written) can be named.

    Raises
    ------
    AutopetError
        The folder is missing, or no DICOM file lies below it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder; give the folder that holds the DICOM studies")
    gathered: dict[str, _Gathered] = {}
    other = []
    for path, header in track(_identified(_files(folder, leave_out)), "looking for DICOM"):
        if header is None:
            other.append(path)
        else:
            gathered.setdefault(str(header.StudyInstanceUID), _Gathered()).add(path, header)
    unreadable = tuple(path for path in other if not _is_companion(path))
    if not gathered and not any(map(looks_like_dicom, unreadable)):
        raise AutopetError(
            f"{folder}: no DICOM file below it ({len(other)} other files); give the folder of the studies"
        )
    studies = [
        StudyFiles(uid, study.patient_id, study.date, tuple(study.paths), tuple(sorted(study.series)))
        for uid, study in sorted(gathered.items())
    ]
    reaches = {uid: study.reach() for uid, study in gathered.items()}
    owned, orphans = _owned(reaches, unreadable)
    studies = [replace(study, unreadable=tuple(owned.get(study.uid, ()))) for study in studies]
    return Found(tuple(studies), len(other), unreadable, tuple(orphans))


def identity(path: Path) -> Dataset | None:
    """The attributes that say to which study a file belongs; None when it is no DICOM file, or does not say."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about values in files that are no DICOM
            if _is_blank(file):
                return None
            header = read_partial(file, stop_when=_is_behind, force=True, specific_tags=TAGS)
            return header if all(len(values(header, keyword)) == 1 for keyword in IDENTITY) else None
    except Exception:  # a damaged file raises what it likes: struct.error, BytesLengthException, ...
        return None


def _is_blank(file: BinaryIO) -> bool:
    """Whether zeros stand where the first element should, as after a crash; pydicom would read gigabytes of them."""
    start = file.read(PREAMBLE + len(MAGIC) + 8)
    file.seek(0)
    first = start[-8:] if start[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC else start[:8]
    return not any(first)


def _is_behind(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag > LAST_TAG or tag.group == 0  # commands (PS3.7) are in no file: it is filled with zeros


def looks_like_dicom(path: Path) -> bool:
    """Whether a file that cannot be read was meant as DICOM, by its first bytes or its name."""
    try:
        with path.open("rb") as file:
            if file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC:
                return True
    except OSError:
        pass
    suffix = path.suffix.casefold()
    return suffix in DICOM_SUFFIXES or suffix[1:].isdigit()


# --- the files -------------------------------------------------------------------------------------------------------


def _identified(paths: Iterator[Path]) -> Iterator[tuple[Path, Dataset | None]]:
    """Paths with their identity, in order; several at a time, because a network's disk keeps each one waiting."""
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(paths, BATCH)):
            yield from zip(batch, pool.map(identity, batch), strict=True)


def _files(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """Files below a folder, each folder once; links to the folder's own ancestors lead out of it and are not taken."""
    closed: list[Path] = []  # folders that may not be listed
    for base, folders, names in walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        if leave_out:
            folders[:] = [name for name in folders if base / name != leave_out]
        yield from (path for name in names if not _is_special(path := base / name))
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


def _owned(reaches: dict[str, Path], unreadable: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Unreadable files by the study whose own folder they lie in, the nearest one; and those of no study."""
    studies: dict[Path, list[str]] = {}
    for uid, reach in reaches.items():
        studies.setdefault(reach, []).append(uid)
    owned: dict[str, list[Path]] = {}
    orphans = []
    for path in unreadable:
        nearest = next((place for place in path.parents if place in studies), None)
        if nearest is None:
            orphans.append(path)
        for uid in studies.get(nearest, ()) if nearest else ():
            owned.setdefault(uid, []).append(path)
    return owned, orphans
