"""A converted cohort: the folder that `autopet prep` writes and that training, running and evaluating read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopet.errors import AutopetError
from autopet.folders import whole_file

TABLE = "prep.csv"
SPLIT = "split.csv"
SUFFIXES = (".nii.gz", ".mha")  # of a cohort's images


@dataclass(frozen=True)
class Case:
    """One converted study.

    `name` is unique in the cohort and safe as a file name. `lesion_voxels` is None when the study came without
    a segmentation, 0 when it has one that is empty.
    """

    name: str
    patient_id: str
    folder: Path
    tracer: str = ""
    centre: str = ""
    lesion_voxels: int | None = None
    suffix: str = SUFFIXES[0]

    def image(self, role: str) -> Path:
        """The image CT, PET, SUV, CTres, SEG or ORGANS; it may be missing."""
        return self.folder / f"{role}{self.suffix}"

    @property
    def suv(self) -> Path:
        """PET in standardised uptake values."""
        return self.image("SUV")

    @property
    def ct(self) -> Path:
        """CT in HU, on the PET grid."""
        return self.image("CTres")

    @property
    def mask(self) -> Path:
        """Lesion mask on the PET grid."""
        return self.image("SEG")

    @property
    def organs(self) -> Path:
        """Organ labels (`autopet.organs.ORGANS`) on the PET grid, uint8; only where `autopet organs` made them."""
        return self.image("ORGANS")


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[dict], columns: Sequence[str]) -> None:
    """Write rows as CSV; the file appears whole or not at all."""
    # a file's name that is not UTF-8 is written with \\udc.. for its bytes
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_cohort(folder: Path) -> list[Case]:
    """The converted cases of a cohort, sorted by name. Studies that were skipped or failed stay in prep.csv only."""
    folder = Path(folder)
    table = folder / TABLE
    if not table.is_file():
        raise AutopetError(f"{table} is missing; give the folder that `autopet prep` wrote")
    cases = [_case(folder, row) for row in read_table(table) if row["status"] == "converted"]
    if not cases:
        raise AutopetError(f"{table} lists no converted study; see its column `reason`")
    return sorted(cases, key=lambda case: case.name)


def _case(folder: Path, row: dict[str, str]) -> Case:
    voxels = row.get("lesion_voxels", "")
    images = folder / row["folder"]
    return Case(
        name=row["case"],
        patient_id=row["patient_id"],
        folder=images,
        tracer=row.get("tracer", ""),
        centre=row.get("centre", ""),
        lesion_voxels=int(voxels) if voxels else None,
        suffix=next((suffix for suffix in SUFFIXES if (images / f"SUV{suffix}").is_file()), SUFFIXES[0]),
    )


def labelled(cases: Iterable[Case]) -> list[Case]:
    """Cases with a segmentation, an error when there is none."""
    found = [case for case in cases if case.lesion_voxels is not None]
    if not found:
        raise AutopetError("no case of the cohort has a lesion segmentation; training needs its image SEG")
    return found


def select_part(cases: Sequence[Case], split_csv: Path, part: str) -> list[Case]:
    """The cases that split.csv assigns to `part`; a case that it does not name is an error.

    Parameters
    ----------
    part : str
        A part (`train`, `val`, `test`), or a fold's validation cases (`fold0`) or training cases (`not-fold0`: those
        of all other folds).
    """
    rows = {row["case"]: row for row in read_table(split_csv)}
    missing = [case.name for case in cases if case.name not in rows]
    if missing:
        raise AutopetError(f"{split_csv} does not name {missing[0]} and {len(missing) - 1} more; make the split anew")
    match = re.fullmatch(r"(not-)?fold(\d+)", part)
    if match:
        folds = {name: row.get("fold") or "" for name, row in rows.items()}
        if match[2] not in folds.values():
            known = ", ".join(sorted(set(folds.values()) - {""}, key=int)) or "none"
            raise AutopetError(f"{split_csv} has no fold {match[2]}, its folds are {known}; make one with --folds")
        return [case for case in cases if folds[case.name] and (folds[case.name] == match[2]) != bool(match[1])]
    chosen = [case for case in cases if rows[case.name]["part"] == part]
    if not chosen:
        known = ", ".join(sorted({row["part"] for row in rows.values()}))
        raise AutopetError(f"{split_csv} puts no case into part {part!r}; it knows {known}")
    return chosen
