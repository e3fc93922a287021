"""What DICOM does not tell: tracer, centre and diagnosis from the CSV tables that come with a source.

Tables that are known, with the columns that are used here:

| table | columns |
|---|---|
| NBIA Data Retriever, `metadata.csv`, one row per series | Collection, Subject ID, Study UID, Study Date (MM-DD-YYYY) |
| TCIA, `Clinical Metadata FDG PET_CT Lesions.csv`, the same with three more | diagnosis; Study Date as M/D/YYYY |
| autoPET, `fdg_metadata.csv` | as TCIA's |
| autoPET, `psma_metadata.csv`, one row per study | Subject ID, Study Date (YYYY-MM-DD); no tracer, no diagnosis |
| `autopet phantom` | patient_id, study_uid, tracer, centre, diagnosis |
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autopet.cohort import SPLIT, TABLE
from autopet.errors import one_line
from autopet.progress import console
from data_prep.walking import walk

PERSON = ("tracer", "centre", "diagnosis")
ALIASES = {  # column of a table, lower case, letters only -> ours
    "patientid": "patient_id", "subjectid": "patient_id", "studyuid": "study_uid", "studyinstanceuid": "study_uid",
    "studydate": "study_date", "tracer": "tracer", "radiopharmaceutical": "tracer", "centre": "centre",
    "center": "centre", "site": "centre", "diagnosis": "diagnosis", "collection": "collection",
    "collectionname": "collection", "collectionid": "collection",
}  # fmt: skip
COLLECTIONS = {  # letters of a collection's name -> what all its studies share
    # Gatidis et al., Scientific Data 9:601 (2022), doi 10.7937/gkr0-xv29: University Hospital Tuebingen
    "fdgpetctlesions": {"tracer": "FDG", "centre": "UKT"},
    # Jeblick et al., doi 10.7937/r7ep-3x37: LMU University Hospital, Munich
    "psmapetctlesions": {"tracer": "PSMA", "centre": "LMU"},
}
TABLES = {"fdg_metadata.csv": "fdgpetctlesions", "psma_metadata.csv": "psmapetctlesions"}  # without that column
TRACERS = {"FDG": ("FDG", "DEOXYGLUCOSE"), "PSMA": ("PSMA",)}
OURS = (TABLE, SPLIT)  # what earlier runs wrote is no source
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16
Values = dict[str, dict[str, str]]  # column -> value -> the table that says so


@dataclass
class _People:
    """What the tables say, by study, by patient and date, and by patient."""

    by_study: dict[str, Values] = field(default_factory=dict)
    by_date: dict[tuple[str, str], Values] = field(default_factory=dict)
    by_patient: dict[str, Values] = field(default_factory=dict)

    def add(self, entry: dict[str, str], table: str) -> None:
        patient, study, date = (entry.get(key, "") for key in ("patient_id", "study_uid", "study_date"))
        date = compact_date(date)
        keyed: list[tuple[dict, object]] = [(self.by_study, study), (self.by_patient, patient)]
        keyed += [(self.by_date, (patient, date))] if patient and date else []
        for index, key in keyed:
            if key:
                values = index.setdefault(key, defaultdict(dict))
                for column in (*PERSON, "collection"):
                    if entry.get(column):
                        values[column].setdefault(_canonical(column, entry[column]), table)

    def levels(self, row: dict) -> tuple[Values, ...]:
        """What is known of a row's study, nearest first."""
        patient, date = row.get("patient_id", ""), compact_date(row.get("study_date", ""))
        study = self.by_study.get(row.get("study_uid", ""), {})
        return study, self.by_date.get((patient, date), {}), self.by_patient.get(patient, {})


def fill_from_metadata(rows: Sequence[dict], source: Path) -> None:
    """Fill tracer, centre and diagnosis of rows, in place, from every table (*.csv) below `source`.

    A table counts when it names patients or studies and at least one of tracer, centre, diagnosis and collection. A
    study is looked for by its UID, then by patient and study date, then by patient. Where one of these levels names
    two values, none is taken from it or a farther one. Tables go before DICOM, and DICOM before what the collection
    of TCIA (a column of a table, or a folder named after it) says of all its studies. Disagreement is a warning in
    the row's `warnings`.

    Parameters
    ----------
    rows : sequence of dict
        With `patient_id`, `study_uid`, `tracer`, `centre`, `diagnosis`, and maybe `study_date` and `warnings`.
    source : Path
        Folder; UTF-8 (with or without a byte order mark), UTF-16 and Latin-1 tables with commas, semicolons or tabs.
    """
    people = _People()
    for path in _walk(Path(source), people):
        for entry in _read_entries(path):
            people.add(entry, path.name)
    for row in rows:
        warnings: list[str] = []
        levels = people.levels(row)
        for column in PERSON:
            _fill(row, column, levels, warnings)
        _fill_from_collection(row, levels, warnings)
        texts = [*filter(None, [row.get("warnings", "")]), *warnings]
        if warnings:
            row["warnings"] = " | ".join(dict.fromkeys(texts))


def compact_date(text: object) -> str:
    """A date as YYYYMMDD from YYYYMMDD, YYYY-MM-DD, MM-DD-YYYY or M/D/YYYY; empty when it is none of these."""
    digits = str(text or "").strip().split("T")[0].replace("/", "-")
    for layout in ("%Y%m%d", "%Y-%m-%d", "%m-%d-%Y"):
        # strptime alone takes 200403 for the third of April (or of March) 2004
        if layout != "%Y%m%d" or re.fullmatch(r"\d{8}", digits):
            with contextlib.suppress(ValueError):
                return dt.datetime.strptime(digits, layout).strftime("%Y%m%d")
    return ""


# --- one row ---------------------------------------------------------------------------------------------------------


def _fill(row: dict, column: str, levels: Sequence[Values], warnings: list[str]) -> None:
    found = next((level[column] for level in levels if level.get(column)), {})
    if len(found) > 1:
        said = ", ".join(f"{value} ({table})" for value, table in sorted(found.items()))
        warnings.append(f"the metadata tables name {len(found)} values of {column}, none is taken: {said}")
    elif found:
        value, table = next(iter(found.items()))
        dicom = _canonical(column, row.get(column, ""))
        if dicom and dicom != value:
            warnings.append(f"{column} is {value} in {table}, which is taken, but {dicom} in DICOM; check the table")
        row[column] = value


def _fill_from_collection(row: dict, levels: Sequence[Values], warnings: list[str]) -> None:
    names = next((level["collection"] for level in levels if level.get("collection")), {})
    shared = [COLLECTIONS[name] for name in sorted(names) if name in COLLECTIONS]
    if len(shared) != 1:
        return
    for column, value in shared[0].items():
        known = _canonical(column, row.get(column, ""))
        if not known:
            row[column] = value
        elif column == "tracer" and known != value:
            warnings.append(f"tracer is {known}, but its TCIA collection is one of {value}; check the study")


def _canonical(column: str, value: str) -> str:
    text = str(value or "").strip()
    if column == "collection":
        return re.sub("[^a-z]", "", text.lower())
    if column == "tracer":
        return next((name for name, words in TRACERS.items() if any(word in text.upper() for word in words)), text)
    return text


# --- tables ----------------------------------------------------------------------------------------------------------


def _walk(source: Path, people: _People) -> Iterator[Path]:
    """The tables below a folder; notes the patients of folders that are named after a collection."""
    for folder, children, files in walk(source, links=False):
        children[:] = [child for child in children if not child.startswith(".")]
        collection = _canonical("collection", folder.name)
        if collection in COLLECTIONS:
            for child in children:
                people.add({"patient_id": child, "collection": collection}, f"folder {folder.name}")
        for name in files:
            if name.lower().endswith(".csv") and not name.startswith(".") and name not in OURS:
                yield folder / name


def _read_entries(path: Path) -> list[dict[str, str]]:
    """Rows of a table under our names; none, and a line on the console, when it cannot be read."""
    try:
        lines = io.StringIO(_decode(path.read_bytes()), newline="")
        delimiter = _delimiter(lines.readline())
        lines.seek(0)
        reader = csv.DictReader(lines, delimiter=delimiter)
        names = [ALIASES.get(re.sub("[^a-z]", "", str(name).lower()), "") for name in reader.fieldnames or []]
        collection = TABLES.get(path.name.lower(), "")
        if not {"patient_id", "study_uid"} & set(names) or not ({*PERSON, "collection"} & set(names) or collection):
            return []
        return [_entry(names, list(row.values()), collection) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        console.print(f"{path} is not used: {one_line(error)}", style="yellow", highlight=False, markup=False)
        return []


def _entry(names: Sequence[str], cells: Sequence[object], collection: str) -> dict[str, str]:
    entry = {"collection": collection} if collection else {}
    for name, cell in zip(names, cells, strict=False):  # a row may be shorter or longer than the header
        if name and isinstance(cell, str) and cell.strip():
            entry[name] = cell.strip()
    return entry


def _decode(data: bytes) -> str:
    """UTF-8 with or without a mark, UTF-16 with one, else Latin-1, in which every byte is a letter."""
    if data.startswith(BYTE_ORDER_MARKS):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if b"\0" in data or any(mark in data for mark in BYTE_ORDER_MARKS):
            raise ValueError("expected text in UTF-8, UTF-16 or Latin-1, found other bytes; save it as UTF-8") from None
        return data.decode("latin-1")


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)
