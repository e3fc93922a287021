"""Convert the DICOM studies below a folder into a cohort: SUV, CT on the PET grid, lesion mask and an audit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from autopet.errors import AutopetError
from autopet.folders import part_of
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import console, track
from data_prep.metadata import fill_from_metadata
from data_prep.records import AUDIT, reason_of, remove_leftovers, row_of, safe_name, write_rows
from data_prep.report import write_report
from data_prep.series import MissingSeriesError, Scan, Study, choose, scan, unknown_series
from data_prep.study import Job, Settings, convert_study, study_row


def prepare(
    source: Path,
    out: Path,
    settings: Settings | None = None,
    *,
    series_uids: Sequence[str] = (),
    workers: int = 1,
    scheduler: str = "",
    resume: bool = True,
) -> list[dict]:
    """Convert every study below a folder.

    Parameters
    ----------
    source, out : Path
        DICOM at any depth, and the cohort: `<case>/{CT,PET,SUV,CTres,SEG}.nii.gz`, `<case>/audit.json`, `prep.csv`,
        `prep.html`. PET is in the units of the DICOM series, SUV in g/ml (cm2/ml for kind `bsa`), CT and CTres in HU,
        SEG 0 or 1 (absent without a segmentation).
    settings : Settings
        What decides the results besides the files.
    series_uids : sequence of str
        SeriesInstanceUIDs to take instead of the ones that the rules would choose.
    workers, scheduler
        See `autopet.parallel.run_jobs`.
    resume : bool
        Keep studies that were converted before from the same files with the same settings.

    Returns
    -------
    list of dict
        The rows of prep.csv, one per study, sorted by case: `converted`, `skipped` (no CT or no PET) or `failed`.

    Raises
    ------
    AutopetError
        There is no DICOM below `source`, or no study has a named series. What is wrong with a study is in its row.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    if workers < 1:
        raise AutopetError(f"workers must be at least 1, found {workers}")
    found = scan(source)
    _warn_of(found, series_uids)
    remove_leftovers(out)
    jobs, rows = _plan(found.studies, out, settings or Settings(), series_uids)
    kept = [row for row in map(_earlier_row, jobs) if row] if resume else []
    if kept:
        console.print(f"{len(kept)} converted before with these settings and kept", highlight=False)
    done = {row["case"] for row in kept}
    todo = [job for job in jobs if job.case not in done]
    rows += kept
    if todo:
        rows += track(_run(todo, workers, scheduler), "converting", total=len(todo))
    fill_from_metadata(rows, source)
    ordered = write_rows(out, rows)
    write_report(out, ordered)
    return ordered


def _warn_of(found: Scan, series_uids: Sequence[str]) -> None:
    unknown = unknown_series(found, series_uids)
    if unknown:
        raise AutopetError(f"no study has the series {', '.join(unknown)}; give a SeriesInstanceUID of the source")
    if found.unreadable:
        text = f"not readable as DICOM: {len(found.unreadable)} (first: {found.unreadable[0]})"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


# --- which studies ---------------------------------------------------------------------------------------------------


def _plan(
    studies: Sequence[Study], out: Path, settings: Settings, series_uids: Sequence[str]
) -> tuple[list[Job], list[dict]]:
    """Jobs for the studies that have what it takes, rows for the others."""
    jobs, rows = [], []
    for case, study in zip(case_names(studies), studies, strict=True):
        try:
            jobs.append(Job(case, study, choose(study, series_uids=series_uids), out, settings))
        except Exception as error:
            status = "skipped" if isinstance(error, MissingSeriesError) else "failed"
            rows.append(study_row(case, study, status=status, reason=reason_of(error)))
    return jobs, rows


def case_names(studies: Sequence[Study]) -> list[str]:
    """`<PatientID>_<StudyDate>_<end of StudyInstanceUID>`, safe as a file name; equal ones get a number."""
    names: list[str] = []
    taken: Counter[str] = Counter()
    for study in studies:
        parts = (study.patient_id or "unknown", study.date or "undated", study.uid[-5:])
        name = safe_name("_".join(parts))
        taken[name.casefold()] += 1
        count = taken[name.casefold()]
        names.append(name if count == 1 else f"{name}_{count}")
    return names


def _earlier_row(job: Job) -> dict | None:
    """The row of an earlier run with the same files and settings, if its folder is whole."""
    try:
        audit = json.loads((job.folder / AUDIT).read_text())
        same = audit["settings"] == job.audited_settings and audit["source"] == job.source
        whole = all((job.folder / name).is_file() for name in audit["files"])
        return {**row_of(job.case), **audit["row"]} if same and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- running ---------------------------------------------------------------------------------------------------------


def _run(jobs: Sequence[Job], workers: int, scheduler: str) -> Iterator[dict]:
    for job, result in run_jobs(_attempt, jobs, workers=min(workers, len(jobs)), scheduler=scheduler):
        if isinstance(result, LostProcessError):
            shutil.rmtree(part_of(job.folder), ignore_errors=True)
            yield _failed_row(job, result)
        else:
            yield result


def _attempt(job: Job) -> dict:
    """Convert a study; whatever goes wrong becomes its row."""
    try:
        return convert_study(job)
    except Exception as error:
        return _failed_row(job, error)


def _failed_row(job: Job, error: Exception) -> dict:
    uids = {"ct_series_uid": job.choice.ct.uid, "pet_series_uid": job.choice.pet.uid}
    return study_row(job.case, job.study, status="failed", reason=reason_of(error), **uids)
