"""Organ labels for a cohort: an image ORGANS on the PET grid beside every case's SUV, and a table of how it came about.

The labels are those of `autopet.organs.ORGANS`. They come from a folder of maps or from TotalSegmentator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from autopet.cohort import Case, read_cohort, read_table, write_table
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, sole_writer
from autopet.images import read_grid, read_image, write_image
from autopet.organs import CORRECTED, ORGANS, VARIANTS, check_organ_map, count_voxels
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import track
from autopet.volume import Volume, resample
from data_prep.organ_sources import MISSING, OrganMap, Source, find_sources, read_organs
from data_prep.records import reason_of
from data_prep.totalsegmentator import COMMAND, TotalSegmentator, WeightsError

TABLE = "organs.csv"
COLUMNS = ("case", "status", "reason", "source", "organ_map", *(organ.name for organ in ORGANS), "key")
WRITTEN, KEPT, FAILED = "written", "kept", "failed"
LABELLED = (WRITTEN, KEPT)  # the case has organ labels
STAYS = "the labels of an earlier run stay: "
LEAST_COVERED = 0.9  # of a map's organs within the PET; below it the row says so
Row = dict[str, str]  # of organs.csv


@dataclass(frozen=True)
class Job:
    """One case to label: small, to be sent to another process."""

    case: Case
    source: Source | TotalSegmentator
    key: str  # digest of the source and of how it is read
    variant: str
    again: bool
    before: Row | None  # what an earlier call said of the case

    @property
    def keep(self) -> bool:
        """Whether labels that are there stay: made the same way, by nobody known, or with nothing to replace them."""
        if self.again:
            return False
        if self.before is None or _is_missing(self.source):
            return True
        return self.before["status"] in LABELLED and self.before["key"] in ("", self.key)


def label_cohort(
    data: Path,
    *,
    maps: Path | None = None,
    totalsegmentator: TotalSegmentator | None = None,
    variant: str = CORRECTED,
    workers: int = 1,
    again: bool = False,
) -> list[Row]:
    """Write `ORGANS` into every case's folder, and organs.csv into the cohort's.

    Parameters
    ----------
    data : Path
        A converted cohort, see `autopet.cohort.read_cohort`.
    maps, totalsegmentator
        One of them: a folder with a map per case, see `organ_sources.find_sources`; or the command to run on each CT.
    variant : str
        How TotalSegmentator's structures become organs, see `autopet.organs.parts_of`; maps of labels 0 to 10 are
        taken as they are.
    workers : int
        Cases that are worked on side by side.
    again : bool
        Replace labels that are there already. Otherwise those are kept that an earlier call made in the same way of
        the same source, and those that no call of this made.

    Returns
    -------
    list of dict
        The rows of organs.csv, one per converted case, with the voxels of every organ: `written`, `kept`, `missing` or
        `ambiguous` (no map, or several), `failed`.

    Raises
    ------
    AutopetError
        The cohort or the folder of maps cannot be read, another run is writing into the cohort, or TotalSegmentator
        cannot fetch its weights.
    """
    if (maps is None) == (totalsegmentator is None):
        raise AutopetError("organ labels come from a folder of maps or from TotalSegmentator; give one of the two")
    if variant not in VARIANTS:
        raise AutopetError(f"unknown organ mapping {variant!r}; use one of {', '.join(VARIANTS)}")
    data = Path(data)
    cases = read_cohort(data)
    with sole_writer(data):
        earlier = _earlier_rows(data)
        jobs = _plan(cases, maps, totalsegmentator, variant=variant, earlier=earlier, again=again)
        rows = {case.name: earlier.get(case.name) for case in cases}
        for job, result in track(_run(jobs, workers), "organ labels", total=len(jobs)):
            if isinstance(result, WeightsError):
                raise result  # what is done stays, and the next call goes on with the rest
            rows[job.case.name] = result
            _write_table(data, [row for row in rows.values() if row])
    return [row for row in rows.values() if row]


def _plan(
    cases: Sequence[Case],
    maps: Path | None,
    totalsegmentator: TotalSegmentator | None,
    *,
    variant: str,
    earlier: dict[str, Row],
    again: bool,
) -> list[Job]:
    found = find_sources(maps, cases) if maps is not None else {}
    jobs = []
    for case in cases:
        source = totalsegmentator or found[case.name]
        jobs.append(Job(case, source, _key(source, variant), variant, again, earlier.get(case.name)))
    return jobs


def _key(source: Source | TotalSegmentator, variant: str) -> str:
    """A digest that changes with the files of a source and with how they are read."""
    if isinstance(source, TotalSegmentator):
        return _digest([COMMAND, variant])
    files = [file for path in source.paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return _digest([variant, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])


def _digest(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _earlier_rows(data: Path) -> dict[str, Row]:
    """Rows of an earlier call by case; none of a table that is damaged or another's."""
    table = data / TABLE
    try:
        rows = read_table(table) if table.is_file() else []
    except (OSError, ValueError):
        return {}
    return {row["case"]: row for row in rows if set(COLUMNS) == set(row) and None not in row.values()}


def _write_table(data: Path, rows: Sequence[Row]) -> None:
    write_table(data / TABLE, rows, COLUMNS)


def _run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Row | WeightsError]]:
    for job, result in run_jobs(_attempt, jobs, workers=max(1, min(workers, len(jobs)))):
        yield job, _unlabelled(job, FAILED, reason_of(result)) if isinstance(result, LostProcessError) else result


# --- one case --------------------------------------------------------------------------------------------------------


def _attempt(job: Job) -> Row | WeightsError:
    """Label a case; whatever goes wrong becomes its row."""
    remove_leftovers(job.case.folder, job.case.organs.name)
    try:
        grid = read_grid(job.case.suv)
        kept = _kept(job, grid) if job.keep else None
        if kept is not None:
            return kept
        if isinstance(job.source, Source) and job.source.status:
            return _unlabelled(job, job.source.status, job.source.reason)
        return _label(job, grid)
    except WeightsError as error:
        return error
    except Exception as error:  # whatever it is, it is one case's
        return _unlabelled(job, FAILED, reason_of(error))


def _label(job: Job, grid: Volume) -> Row:
    if isinstance(job.source, TotalSegmentator):
        ct = job.case.image("CT")  # on its own grid, where there is one
        found = job.source.segment(ct if ct.is_file() else job.case.ct)
    else:
        found = read_organs(job.source.paths, job.variant)
    labels, reason = place(found, grid)
    write_image(job.case.organs, labels)
    row = _row(job, WRITTEN, reason, source=_source_text(job.source))
    return row | _counts(labels.array) | {"organ_map": found.variant, "key": job.key}


def place(organs: OrganMap, grid: Volume) -> tuple[Volume, str]:
    """Organ labels on a grid by nearest neighbour, and what is to be said of them ("" for nothing).

    Raises
    ------
    AutopetError
        The map holds no organ, or none of it lies on the grid.
    """
    volume = organs.volume
    held_ml = np.count_nonzero(volume.array) * volume.voxel_volume_ml
    if not held_ml:
        raise AutopetError("the map holds no organ label, all its voxels are 0; is it the right file?")
    placed = volume if volume.same_grid(grid) else resample(volume, grid, nearest=True)
    placed_ml = np.count_nonzero(placed.array) * grid.voxel_volume_ml
    if not placed_ml:
        raise AutopetError("no organ of the map lies within the PET; is it this patient's, and in patient coordinates?")
    notes = []
    if placed_ml < LEAST_COVERED * held_ml:
        notes.append(f"{100 * placed_ml / held_ml:.0f} % of the map's organs lie within the PET")
    if organs.absent:
        notes.append(f"the source does not know {', '.join(organs.absent)}")
    return grid.with_array(placed.array.astype(np.uint8, copy=False)), "; ".join(notes)


def _kept(job: Job, grid: Volume) -> Row | None:
    """The row of labels that are there; None when there are none, or they are damaged or on another grid."""
    if not job.case.organs.is_file():
        return None
    try:
        labels = read_image(job.case.organs)
        organs = check_organ_map(labels.array)
    except AutopetError:
        return None
    if not labels.same_grid(grid):
        return None
    known = job.before if job.before and job.before["status"] in LABELLED else _row(job, KEPT, "", source="")
    notes = [known["reason"].partition(STAYS)[0].rstrip("; ")]
    notes += [f"{STAYS}{job.source.reason}"] if _is_missing(job.source) else []
    return {**known, "status": KEPT, "reason": "; ".join(filter(None, notes)), **_counts(organs)}


def _is_missing(source: Source | TotalSegmentator) -> TypeGuard[Source]:
    return isinstance(source, Source) and source.status == MISSING


def _unlabelled(job: Job, status: str, reason: str) -> Row:
    if job.case.organs.is_file():
        reason += f" (the image of an earlier run is still there: {job.case.organs})"
    return _row(job, status, reason, source=_source_text(job.source))


def _source_text(source: Source | TotalSegmentator) -> str:
    return COMMAND if isinstance(source, TotalSegmentator) else " | ".join(str(path) for path in source.paths)


def _counts(labels: np.ndarray) -> Row:
    return {name: str(count) for name, count in count_voxels(labels).items()}


def _row(job: Job, status: str, reason: str, *, source: str) -> Row:
    """A row without voxels."""
    return dict.fromkeys(COLUMNS, "") | {"case": job.case.name, "status": status, "reason": reason, "source": source}
