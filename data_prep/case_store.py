"""A cohort as a folder of image files, read and written case by case; what all formats of a cohort share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from autopet.cohort import TABLE, Case, read_cohort, read_table, write_table
from autopet.errors import AutopetError
from autopet.folders import whole_folder
from autopet.images import read_image
from autopet.volume import Volume
from data_prep.records import AUDIT, MIP, write_images
from data_prep.report import write_report
from data_prep.staging import MARKER, Receipt, described, is_whole, link_files, read_receipts

ROLES = ("CT", "PET", "SUV", "CTres", "SEG", "ORGANS")
CONVERTED = "converted"
Row = dict[str, str]  # of prep.csv


@dataclass(frozen=True)
class Entry:
    """One case: its row of prep.csv, its images by role (some of `ROLES`), audit.json and mip.png (empty: none)."""

    row: Row
    images: Mapping[str, Volume]
    audit: str = ""
    picture: bytes = b""

    @property
    def name(self) -> str:
        """The case."""
        return self.row["case"]


class SourceCase(Protocol):
    """One case to read: small, to be sent to another process."""

    @property
    def row(self) -> Row:
        """Its row of prep.csv."""
        ...

    def files(self) -> Sequence[Path]:
        """The files it is read from."""
        ...

    def read(self) -> Entry:
        """The case; AutopetError says why it cannot be read."""
        ...


class Source(Protocol):
    """Where cases come from."""

    rows: Sequence[Row]  # all of prep.csv, also those that were not converted
    kind: str  # in words

    def case(self, row: Row) -> SourceCase:
        """The case of a row."""
        ...

    def read(self, row: Row) -> Entry:
        """The content of the case of a row; AutopetError says why it cannot be read."""
        ...


class CaseWriter(Protocol):
    """Where one case goes: small, to be sent to another process."""

    @property
    def folder(self) -> Path:
        """The folder of the cohort."""
        ...

    @property
    def key(self) -> str:
        """What decides the files besides the case."""
        ...

    def write(self, entry: Entry) -> tuple[Row, list[str]]:
        """Keep a case whole or not at all; returns its row, and its files by their paths in the folder."""
        ...

    def take(self, earlier: Path, receipt: Receipt) -> bool:
        """Take the case over from an earlier result, if it is whole there."""
        ...


class Target(Protocol):
    """Where a cohort goes."""

    left_out: str  # what the format has no place for, "" for nothing

    def writer(self, row: Row) -> CaseWriter:
        """Where the case of a row goes."""
        ...

    def earlier(self, result: Path) -> dict[str, Receipt]:
        """The cases of an earlier result."""
        ...

    def finish(self, rows: Sequence[Row], receipts: Mapping[str, Receipt]) -> Path:
        """Write what describes the cohort, its table last; returns the folder or file that is the result."""
        ...


def check_rows(rows: Sequence[Row], where: Path) -> Sequence[Row]:
    """Case names become names of files: each must be one, and be there once.

    Raises
    ------
    AutopetError
        A table without the columns of prep.csv, a name that leads out of the folder or comes twice, no converted case.
    """
    if rows and not {"case", "patient_id", "status"} <= set(rows[0]):
        raise AutopetError(f"{where}: expected columns case, patient_id and status, found {', '.join(rows[0])}")
    if any(None in row or None in row.values() for row in rows):
        raise AutopetError(f"{where}: a row has more or fewer cells than the header; mend the table")
    seen: set[str] = set()
    for row in rows:
        name = row["case"]
        if not name or name != Path(name).name or name.startswith(".") or "\\" in name or name.casefold() in seen:
            raise AutopetError(f"{where}: case {name!r} is no file name, or there twice; mend the table")
        seen.add(name.casefold())
    if not any(row["status"] == CONVERTED for row in rows):
        raise AutopetError(f"{where} lists no converted study; see its column `reason`")
    return rows


def check_entry(entry: Entry, where: Path | str) -> Entry:
    """What every case needs: SUV and CTres, a mask where the table counts its voxels, numbers that NIfTI can hold."""
    wanted = ["SUV", "CTres"] + (["SEG"] if entry.row.get("lesion_voxels") else [])
    missing = [role for role in wanted if role not in entry.images]
    if missing:
        raise AutopetError(f"{where}: expected images {', '.join(wanted)} of case {entry.name}, found no {missing[0]}")
    for role, volume in entry.images.items():
        if volume.array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in volume.array):
            raise AutopetError(f"{where}: {role} of case {entry.name} holds NaN or infinite voxels; convert it again")
    return entry


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns of a table, in the order in which they appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


class FolderSource:
    """The folder that `autopet prep` wrote, in NIfTI or mha."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = check_rows(read_table(folder / TABLE), folder / TABLE)
        self._cases: dict[str, Case] = {case.name: case for case in read_cohort(folder.resolve())}
        self.kind = f"cohort of {', '.join(sorted({case.suffix for case in self._cases.values()}))} files"

    def case(self, row: Row) -> FolderCase:
        """The case of a row."""
        return FolderCase(row, self._cases[row["case"]])

    def read(self, row: Row) -> Entry:
        """The images that lie in the folder of a case."""
        return self.case(row).read()


@dataclass(frozen=True)
class FolderCase:
    """The folder of one case."""

    row: Row
    case: Case

    def files(self) -> list[Path]:
        """Images, audit.json and mip.png, as far as they are there."""
        paths = [*(self.case.image(role) for role in ROLES), self.case.folder / AUDIT, self.case.folder / MIP]
        return [path for path in paths if path.is_file()]

    def read(self) -> Entry:
        """What lies in the folder."""
        paths = {role: self.case.image(role) for role in ROLES}
        images = {role: read_image(path) for role, path in paths.items() if path.is_file()}
        texts = optional_text(self.case.folder / AUDIT), optional_bytes(self.case.folder / MIP)
        return check_entry(Entry(self.row, images, *texts), self.case.folder)


def optional_text(path: Path) -> str:
    """Text in UTF-8, "" when there is no such file."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def optional_bytes(path: Path) -> bytes:
    """The bytes of a file, none when there is no such file."""
    return path.read_bytes() if path.is_file() else b""


@dataclass(frozen=True)
class FolderWriter:
    """The folder of a case, with images of one format."""

    folder: Path
    key: str  # the suffix of the images

    def write(self, entry: Entry) -> tuple[Row, list[str]]:
        """Images, mip.png, and audit.json naming the new files."""
        with whole_folder(self.folder / entry.name) as part:
            files = write_images(part, dict(entry.images), suffix=self.key)
            if entry.picture:
                (part / MIP).write_bytes(entry.picture)
                files.append(MIP)
            if entry.audit:
                sizes = {name: (part / name).stat().st_size for name in files}
                (part / AUDIT).write_text(with_files(entry.audit, sizes), encoding="utf-8")
                files.append(AUDIT)
        return {**entry.row, "folder": entry.name}, [f"{entry.name}/{name}" for name in files]

    def take(self, earlier: Path, receipt: Receipt) -> bool:
        """Link the files of an earlier result."""
        whole = is_whole(earlier, receipt)
        if whole:
            link_files(earlier, self.folder, receipt)
        return whole


class FolderTarget:
    """A cohort folder with images of one format."""

    left_out = ""

    def __init__(self, folder: Path, *, suffix: str, name: str) -> None:
        self.folder, self.suffix, self.name = folder, suffix, name

    def writer(self, row: Row) -> FolderWriter:
        """The same for every case."""
        return FolderWriter(self.folder, self.suffix)

    def earlier(self, result: Path) -> dict[str, Receipt]:
        """The cases of an earlier result."""
        return read_receipts(result)

    def finish(self, rows: Sequence[Row], receipts: Mapping[str, Receipt]) -> Path:
        """prep.html, convert.json and prep.csv."""
        write_report(self.folder, rows)
        (self.folder / MARKER).write_text(described(self.name, receipts), encoding="utf-8")
        write_table(self.folder / TABLE, rows, columns_of(rows))
        return self.folder


def with_files(audit: str, file_bytes: Mapping[str, int]) -> str:
    """audit.json with its list of files and their sizes replaced."""
    try:
        content = json.loads(audit)
    except ValueError as error:
        raise AutopetError(f"{AUDIT} is not valid JSON ({error}); convert the study again") from error
    return json.dumps({**content, "files": list(file_bytes), "file_bytes": dict(file_bytes)}, indent=2) + "\n"
