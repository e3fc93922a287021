"""lesions.csv: every true and every predicted lesion of a submission."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from evaluation.lesions import LesionRow

LESIONS_FILE = "lesions.csv"
COLUMNS = (
    *("case", "kind", "lesion", "volume_ml", "suv_max", "suv_mean", "x_mm", "y_mm", "z_mm"),
    *("status", "overlap_voxels", "iou"),
)
DIGITS = 6  # significant ones


def write_lesions(path: Path, lesions: Mapping[str, Iterable[LesionRow]]) -> None:
    """Write the lesions of every case, in the order given; the file appears whole or not at all.

    Numbers that are undefined (SUVs without an SUV image) are empty cells. The lesions of a case without a valid
    prediction are all missed.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case, rows in lesions.items():
        writer.writerows({"case": case} | {key: _cell(value) for key, value in asdict(row).items()} for row in rows)
    try:
        with whole_file(path) as part:
            part.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise AutopetError(f"{path}: cannot be written ({one_line(error)})") from error


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}" if math.isfinite(value) else ""
    return value
