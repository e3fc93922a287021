"""What every experiment shares: a grid of cells (variant x seed) that a killed run goes on with, and its results.

<out>/cells/<variant>-seed<k>.json  a finished cell: its rows, and what it took
<out>/results.csv                   the rows of all finished cells, one per variant x seed x test case
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

from autopet.cohort import write_table
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.images import read_image
from autopet.progress import console, track
from autopet.volume import Volume
from evaluation.metrics import score_case
from leaderboard.experiments.cohort import Phantom

CELLS = "cells"
LOGS = "logs"
RESULTS = "results.csv"
KEY = "experiment.json"
RULES = "III"  # edition whose conventions score the cases


@dataclass(frozen=True)
class Cell:
    """One training and test: a variant with a seed."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class Row:
    """A line of results.csv: one test case of one cell. NaN is empty in the file.

    `dice` and `fnv_ml` are NaN without lesions (edition III); `seconds` is what the prediction took; TLG is NaN in
    cells that were finished before it was measured.
    """

    variant: str
    seed: int
    case: str
    patient_id: str
    tracer: str
    centre: str
    positive: int
    misaligned: int
    dice: float
    fpv_ml: float
    fnv_ml: float
    gt_ml: float
    pred_ml: float
    seconds: float
    gt_tlg_g: float = math.nan
    pred_tlg_g: float = math.nan


COLUMNS = tuple(field.name for field in fields(Row))
WORDS = ("variant", "case", "patient_id", "tracer", "centre")
WHOLE_NUMBERS = ("seed", "positive", "misaligned")
SCORES = ("dice", "fpv_ml", "fnv_ml", "gt_ml", "pred_ml", "gt_tlg_g", "pred_tlg_g")


@dataclass(frozen=True)
class Outcome:
    """A finished cell. `facts` is what it found beside its rows, as JSON keeps it."""

    rows: tuple[Row, ...]
    train_s: float
    predict_s: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Training and prediction."""
        return self.train_s + self.predict_s


def score_prediction(cell: Cell, phantom: Phantom, prediction: Volume, *, seconds: float) -> Row:
    """Score a predicted mask against the case's lesions."""
    truth, case = read_image(phantom.case.mask), phantom.case
    difference = prediction.grid_difference(truth)
    if difference:
        raise AutopetError(f"{cell.name}, {case.name}: expected a mask on the grid of the lesions, found {difference}")
    values = score_case(truth, prediction, suv=read_image(case.suv), edition=RULES).values
    return Row(
        variant=cell.variant,
        seed=cell.seed,
        case=case.name,
        patient_id=case.patient_id,
        tracer=case.tracer,
        centre=case.centre,
        positive=int(phantom.positive),
        misaligned=int(phantom.misaligned),
        seconds=round(seconds, 3),
        **{name: float(values[name]) for name in SCORES},
    )


# --- cells -----------------------------------------------------------------------------------------------------------


def run_cells(
    out: Path,
    cells: Sequence[Cell],
    run: Callable[[Cell], Outcome],
    *,
    workers: int = 1,
    needs: Mapping[Cell, Sequence[Cell]] | None = None,
) -> dict[Cell, Outcome]:
    """Run the cells that are not finished yet; results.csv is written anew after each.

    Parameters
    ----------
    cells : sequence of Cell
        They are begun in this order.
    run : callable
        Does the work of a cell. It may keep what it needs to go on with in files of its own.
    workers : int
        Cells that run side by side, each in a process of its own (`run` has to be importable by it) with its share of
        the cores, its messages in `<out>/logs`. On few cores, networks of this size learn faster one per core than
        one after the other on all of them.
    needs : mapping, optional
        Cells that have to be finished before a cell begins; they stand before it in `cells`.

    Returns
    -------
    dict
        All cells in their order, with those of earlier calls.
    """
    known = {cell: read_outcome(cell_file(out, cell)) for cell in cells}
    todo = [cell for cell in cells if known[cell] is None]
    if len(todo) < len(cells):
        console.print(f"{len(cells) - len(todo)} of {len(cells)} cells are finished already", highlight=False)
    needs = needs or {}
    assert all(set(needs.get(cell, ())) <= set(cells[:index]) for index, cell in enumerate(cells))
    done = _side_by_side(out, todo, run, workers, needs) if workers > 1 else _in_turn(out, todo, run)
    for cell in track(done, "trained and tested", total=len(todo)):
        known[cell] = read_outcome(cell_file(out, cell))
        _write_known(out, known)
    _write_known(out, known)
    return {cell: outcome for cell, outcome in known.items() if outcome is not None}


def _write_known(out: Path, known: Mapping[Cell, Outcome | None]) -> None:
    write_results(out / RESULTS, [row for outcome in known.values() if outcome for row in outcome.rows])


def _in_turn(out: Path, todo: Sequence[Cell], run: Callable[[Cell], Outcome]) -> Iterator[Cell]:
    for cell in todo:
        console.print(cell.name, highlight=False)
        _write_outcome(cell_file(out, cell), run(cell))
        yield cell


def _side_by_side(
    out: Path,
    todo: Sequence[Cell],
    run: Callable[[Cell], Outcome],
    workers: int,
    needs: Mapping[Cell, Sequence[Cell]],
) -> Iterator[Cell]:
    """Cells as they are done. The processes are no daemons: a training has processes of its own."""
    context, waiting = get_context("spawn"), list(todo)
    running: dict[Any, tuple[Cell, Any]] = {}
    try:
        while waiting or running:
            while len(running) < workers and (cell := _next(waiting, [one for one, _ in running.values()], needs)):
                waiting.remove(cell)
                process = context.Process(target=_run_alone, args=(out, cell, run, workers))
                process.start()
                running[process.sentinel] = (cell, process)
            for sentinel in wait(list(running)):
                cell, process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise AutopetError(f"{cell.name} failed (exit status {process.exitcode}); see {_log(out, cell)}")
                yield cell
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _next(waiting: Sequence[Cell], running: Sequence[Cell], needs: Mapping[Cell, Sequence[Cell]]) -> Cell | None:
    """The first waiting cell that all it needs is finished for."""
    unfinished = {*waiting, *running}
    return next((cell for cell in waiting if unfinished.isdisjoint(needs.get(cell, ()))), None)


def _run_alone(out: Path, cell: Cell, run: Callable[[Cell], Outcome], workers: int) -> None:
    """A cell in a process of its own."""
    import torch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its own processes end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    path = _log(out, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        _write_outcome(cell_file(out, cell), run(cell))


def _end_with_parent() -> None:
    """A parent that was killed outright stops nobody; a second call would do the same work beside its children."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _log(out: Path, cell: Cell) -> Path:
    return out / LOGS / f"{cell.name}.log"


def cell_file(out: Path, cell: Cell) -> Path:
    """Where a finished cell is kept."""
    return out / CELLS / f"{cell.name}.json"


def read_outcome(path: Path) -> Outcome | None:
    """A finished cell, None when there is none."""
    if not path.is_file():
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(_row_from_text(row) for row in known["rows"])
    return Outcome(rows, float(known["train_s"]), float(known["predict_s"]), known.get("facts", {}))


def _write_outcome(path: Path, outcome: Outcome) -> None:
    known = {"train_s": outcome.train_s, "predict_s": outcome.predict_s, "rows": [_as_text(r) for r in outcome.rows]}
    known |= {"facts": outcome.facts} if outcome.facts else {}
    with whole_file(path) as part:
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Note which experiment a folder holds.

    Raises
    ------
    AutopetError
        It holds one with other settings: results of both in one table would compare what is not comparable.
    """
    path, text = out / KEY, json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise AutopetError(
            f"{out} holds an experiment with other settings (see {KEY}); give the same ones to go on, or another folder"
        )
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


# --- results.csv -----------------------------------------------------------------------------------------------------


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv, whole or not at all."""
    write_table(path, [_as_text(row) for row in rows], COLUMNS)


def read_results(path: Path) -> list[Row]:
    """The rows of a results.csv."""
    if not path.is_file():
        raise AutopetError(f"{path} is missing; run the experiment first")
    with path.open(newline="", encoding="utf-8") as file:
        return [_row_from_text(row) for row in csv.DictReader(file)]


def _as_text(row: Row) -> dict[str, str]:
    values = {name: getattr(row, name) for name in COLUMNS}
    return {name: "" if isinstance(v, float) and math.isnan(v) else str(v) for name, v in values.items()}


def _row_from_text(row: Mapping[str, str]) -> Row:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        kind = str if name in WORDS else int if name in WHOLE_NUMBERS else float
        text = row.get(name, "")
        values[name] = math.nan if text == "" and kind is float else kind(text)
    return Row(**values)


# --- the machine -----------------------------------------------------------------------------------------------------


def machine(device: str) -> str:
    """The machine in words, for a report."""
    import torch

    text = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    text += f", torch {torch.__version__} on {torch.get_num_threads()} threads"
    return text + (f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else "")


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
