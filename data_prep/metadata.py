"""What DICOM does not tell: tracer, centre and diagnosis from the metadata.csv files of a source."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from autopet.cohort import read_table
from autopet.errors import one_line
from autopet.progress import console

METADATA = "metadata.csv"
PERSON = ("tracer", "centre", "diagnosis")
ALIASES = {  # column of metadata.csv, lower case, letters only -> ours
    "patientid": "patient_id", "subjectid": "patient_id", "studyuid": "study_uid", "studyinstanceuid": "study_uid",
    "tracer": "tracer", "radiopharmaceutical": "tracer", "centre": "centre", "center": "centre", "site": "centre",
    "diagnosis": "diagnosis",
}  # fmt: skip


def fill_from_metadata(rows: Sequence[dict], source: Path) -> None:
    """Tracer, centre and diagnosis from every metadata.csv below `source`: by study, else by patient if unequivocal."""
    people = [person for path in sorted(source.rglob(METADATA)) for person in _read_metadata(path)]
    for row in rows:
        for column in PERSON:
            value = _lookup(people, column, key="study_uid", wanted=row["study_uid"])
            value = value or _lookup(people, column, key="patient_id", wanted=row["patient_id"])
            row[column] = value or row[column]


def _read_metadata(path: Path) -> list[dict[str, str]]:
    try:
        rows = read_table(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        console.print(f"{path} is not used: {one_line(error)}", style="yellow", highlight=False, markup=False)
        return []
    people = []
    for row in rows:
        names = {ALIASES.get(re.sub("[^a-z]", "", str(name).lower())): value for name, value in row.items()}
        people.append({name: str(value or "").strip() for name, value in names.items() if name})
    return people


def _lookup(people: Sequence[dict[str, str]], column: str, *, key: str, wanted: str) -> str:
    found = {person[column] for person in people if person.get(column) and wanted and person.get(key) == wanted}
    return found.pop() if len(found) == 1 else ""
