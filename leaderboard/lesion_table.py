"""lesions.csv of every submission read back, and the lesions of a case as the site lists them."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopet.errors import AutopetError, one_line
from evaluation.aggregate import printable
from evaluation.lesions import FALSE, MATCHED, PREDICTION, TRUTH
from leaderboard.view import UNDEFINED, number_text

MOST_SHOWN = 200  # rows of a table; what is left out is counted
MATCH, TOUCH, MISS = "\N{BLACK CIRCLE}", "\N{CIRCLE WITH LEFT HALF BLACK}", "\N{WHITE CIRCLE}"


@dataclass(frozen=True)
class Lesion:
    """A row of lesions.csv; NaN where a cell is empty."""

    kind: str
    lesion: int
    volume_ml: float
    suv_max: float
    suv_mean: float
    centre_mm: tuple[float, float, float]
    status: str
    overlap_voxels: int
    iou: float

    @property
    def volume(self) -> str:
        """Volume in ml."""
        return number_text(self.volume_ml, 2)

    @property
    def uptake(self) -> tuple[str, str]:
        """SUVmax and SUVmean."""
        return number_text(self.suv_max, 2), number_text(self.suv_mean, 2)

    @property
    def centre(self) -> str:
        """Centroid in LPS mm."""
        return ", ".join(number_text(value, 0) for value in self.centre_mm) if self.known_place else UNDEFINED

    @property
    def place(self) -> str:
        """The centroid for the viewer; empty when it is unknown."""
        return ",".join(f"{value:.1f}" for value in self.centre_mm) if self.known_place else ""

    @property
    def known_place(self) -> bool:
        """Whether it has a centroid."""
        return all(math.isfinite(value) for value in self.centre_mm)


@dataclass(frozen=True)
class TrueLesion:
    """A true lesion, and for each submission a mark and its meaning in words."""

    lesion: Lesion
    found: tuple[tuple[str, str], ...]


def read_lesions(path: Path) -> dict[str, list[Lesion]]:
    """Lesions of every case of one submission.

    Raises
    ------
    AutopetError
        The file cannot be read, lacks a column, or holds something else than numbers.
    """
    cases: dict[str, list[Lesion]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                cases[printable(row["case"])].append(_lesion(row))
    except KeyError as error:
        raise AutopetError(f"{path}: lacks the column {error}; evaluate the submission anew") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise AutopetError(f"{path}: is no lesions.csv of `autopet evaluate` ({one_line(error)})") from error
    return dict(cases)


def _lesion(row: Mapping[str, str]) -> Lesion:
    x, y, z = (_number(row[key]) for key in ("x_mm", "y_mm", "z_mm"))
    return Lesion(
        kind=row["kind"],
        lesion=int(row["lesion"]),
        volume_ml=_number(row["volume_ml"]),
        suv_max=_number(row["suv_max"]),
        suv_mean=_number(row["suv_mean"]),
        centre_mm=(x, y, z),
        status=row["status"],
        overlap_voxels=int(row["overlap_voxels"]),
        iou=_number(row["iou"]),
    )


def _number(text: str) -> float:
    return float(text) if text else math.nan


def true_lesions(by_submission: Sequence[Sequence[Lesion] | None]) -> list[TrueLesion]:
    """The true lesions of a case with what each submission made of them.

    Parameters
    ----------
    by_submission : sequence
        The case's lesions by submission, None where a submission has no lesions.csv. They are numbered alike in all,
        since the number depends on the ground truth only.
    """
    tables = [
        None if rows is None else {row.lesion: row for row in rows if row.kind == TRUTH} for rows in by_submission
    ]
    numbers = sorted({number for table in tables if table for number in table})
    found = []
    for number in numbers[:MOST_SHOWN]:
        rows = [None if table is None else table.get(number) for table in tables]
        first = next(row for row in rows if row is not None)
        found.append(TrueLesion(first, tuple(_mark(row) for row in rows)))
    return found


def _mark(row: Lesion | None) -> tuple[str, str]:
    if row is None:
        return UNDEFINED, "unknown: no lesions.csv"
    overlap = f"intersection over union {number_text(row.iou, 2)}"
    if row.status == MATCHED:
        return MATCH, f"matched, {overlap}"
    return (TOUCH, f"touched, not matched, {overlap}") if row.overlap_voxels else (MISS, "missed")


def false_lesions(rows: Sequence[Lesion] | None) -> list[Lesion]:
    """Predicted lesions that match no true one."""
    return [row for row in rows or () if row.kind == PREDICTION and row.status == FALSE]
