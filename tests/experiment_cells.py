"""Work of an experiment's cells that test processes import; kept apart, so that they import little."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from autopet.errors import AutopetError
from leaderboard.experiments.common import Cell, Outcome, Row, run_cells

FAILING = 7  # seed


def row(variant: str, seed: int, patient: str, **values) -> Row:
    """A row; cases with `moved` are named after their patient."""
    moved = values.pop("moved", 0)
    usual = {"tracer": "FDG", "centre": "A", "positive": 1, "dice": 0.5, "fpv_ml": 1.0, "fnv_ml": 2.0, "gt_ml": 9.0}
    values = usual | {"pred_ml": 8.0, "seconds": 0.5} | values
    return Row(variant, seed, patient + "-moved" * moved, patient, misaligned=moved, **values)


def work_alone(cell: Cell) -> Outcome:
    """A cell whose patient is its process."""
    if cell.seed == FAILING:
        raise AutopetError("seven")
    print("working on", cell.name)
    return Outcome((row(cell.variant, cell.seed, str(os.getpid())),), 1.0, 2.0)


def sleep_alone(cell: Cell) -> Outcome:
    """A cell that never ends, and whose log names its process."""
    print(os.getpid(), flush=True)
    time.sleep(600)
    raise AssertionError(cell)


if __name__ == "__main__":
    run_cells(Path(sys.argv[1]), [Cell("a", 0), Cell("b", 0)], sleep_alone, workers=2)
