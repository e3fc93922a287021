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
from data_prep.records import AUDIT, write_images

ROLES = ("CT", "PET", "SUV", "CTres", "SEG")
CONVERTED = "converted"
Row = dict[str, str]  # of prep.csv


@dataclass(frozen=True)
class Entry:
    """One case: its row of prep.csv, its images by role (some of `ROLES`), and the text of audit.json ("" for none)."""

    row: Row
    images: Mapping[str, Volume]
    audit: str = ""

    @property
    def name(self) -> str:
        """The case."""
        return self.row["case"]


class Source(Protocol):
    """Where cases come from."""

    rows: Sequence[Row]  # all of prep.csv, also those that were not converted
    kind: str  # in words

    def read(self, row: Row) -> Entry:
        """The case of a row; AutopetError says why it cannot be read."""
        ...


class Target(Protocol):
    """Where cases go; what is half-written is not left behind."""

    left_out: str  # what the format has no place for, "" for nothing

    def write(self, entry: Entry) -> Row:
        """Keep a case whole or not at all; returns its row."""
        ...

    def finish(self, rows: Sequence[Row]) -> None:
        """Write what describes the cohort."""
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
        self._cases: dict[str, Case] = {case.name: case for case in read_cohort(folder)}
        self.kind = f"cohort of {', '.join(sorted({case.suffix for case in self._cases.values()}))} files"

    def read(self, row: Row) -> Entry:
        """The images that lie in the folder of a case."""
        case = self._cases[row["case"]]
        paths = {role: case.image(role) for role in ROLES}
        images = {role: read_image(path) for role, path in paths.items() if path.is_file()}
        audit = case.folder / AUDIT
        return check_entry(Entry(row, images, audit.read_text() if audit.is_file() else ""), case.folder)


class FolderTarget:
    """A cohort folder with images of one format."""

    left_out = ""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def write(self, entry: Entry) -> Row:
        """The folder of a case, with audit.json naming the new files."""
        with whole_folder(self.folder / entry.name) as part:
            files = write_images(part, dict(entry.images), suffix=self.suffix)
            if entry.audit:
                (part / AUDIT).write_text(with_files(entry.audit, files))
        return {**entry.row, "folder": entry.name}

    def finish(self, rows: Sequence[Row]) -> None:
        """prep.csv."""
        write_table(self.folder / TABLE, rows, columns_of(rows))


def with_files(audit: str, files: Sequence[str]) -> str:
    """audit.json with its list of files replaced."""
    try:
        content = json.loads(audit)
    except ValueError as error:
        raise AutopetError(f"{AUDIT} is not valid JSON ({error}); convert the study again") from error
    return json.dumps({**content, "files": list(files)}, indent=2) + "\n"
