"""Convert the DICOM studies below a folder into a cohort: SUV, CT on the PET grid, lesion mask and an audit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopet.cohort import TABLE, read_table
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, sole_writer
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import console, track
from data_prep.finding import find_studies, looks_like_dicom
from data_prep.inventory import Found, StudyFiles
from data_prep.metadata import fill_from_metadata
from data_prep.records import AUDIT, COLUMNS, read_audit, reason_of, row_of, safe_name, write_rows
from data_prep.report import write_report
from data_prep.scanning import read_study
from data_prep.series import MissingSeriesError, Study, choose, unknown_series
from data_prep.study import Conversion, Settings, convert_study, earlier_row, study_row

APPEARS_WITHIN_S = 5.0


@dataclass(frozen=True)
class Job:
    """One study to convert: small, to be sent to another process."""

    case: str
    files: StudyFiles
    out: Path
    settings: Settings
    series_uids: tuple[str, ...]
    resume: bool


@dataclass(frozen=True)
class Outcome:
    """The row of a study, and whether its folder is that of an earlier run."""

    row: dict
    kept: bool = False


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
        Whole cases that earlier calls made from other sources stay in the cohort.

    Raises
    ------
    AutopetError
        There is no DICOM below `source`, no study has a named series, or `out` cannot be written to or is being
        written to by another run. What is wrong with a study is in its row.
    """
    source, out, settings = Path(source).resolve(), Path(out).resolve(), settings or Settings()
    if workers < 1:
        raise AutopetError(f"workers must be at least 1, found {workers}")
    if source == out:
        raise AutopetError(f"{source}: source and cohort are the same folder; choose another one for the cohort")
    with sole_writer(out):
        found = find_studies(source, leave_out=out)
        _warn_of(found, series_uids)
        remove_leftovers(out)
        orphans = _orphans(found.orphans)
        cases = case_names(found.studies, [str(folder.relative_to(source)) for folder in orphans])
        studies = zip(cases, found.studies, strict=False)
        jobs = [Job(case, files, out, settings, tuple(series_uids), resume) for case, files in studies]
        rows = _convert_all(jobs, workers, scheduler) + _orphan_rows(cases[len(jobs) :], orphans)
        fill_from_metadata(rows, source)
        ordered = write_rows(out, rows + _rows_of_other_sources(out, cases))
        write_report(out, ordered)
    return ordered


def _warn_of(found: Found, series_uids: Sequence[str]) -> None:
    unknown = unknown_series(found, series_uids)
    if unknown:
        raise AutopetError(f"no study has the series {', '.join(unknown)}; give a SeriesInstanceUID of the source")
    if found.unreadable:
        text = f"not readable as DICOM: {len(found.unreadable)} (first: {found.unreadable[0]})"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


# --- which studies ---------------------------------------------------------------------------------------------------


def _orphans(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Damaged DICOM files that belong to no study that was found, by folder."""
    folders: dict[Path, list[Path]] = {}
    for path in filter(looks_like_dicom, paths):
        folders.setdefault(path.parent, []).append(path)
    return dict(sorted(folders.items()))


def _orphan_rows(cases: Sequence[str], orphans: dict[Path, list[Path]]) -> list[dict]:
    rows = []
    for case, paths in zip(cases, orphans.values(), strict=True):
        reason = f"{len(paths)} files are not readable as DICOM (first: {paths[0]}); copy or download them anew"
        rows.append(row_of(case, status="failed", reason=reason))
    return rows


def _rows_of_other_sources(out: Path, cases: Sequence[str]) -> list[dict]:
    """Rows of whole case folders that earlier runs made from other sources: they stay in the cohort, with a message."""
    table = out / TABLE
    listed = {row["case"]: row for row in read_table(table)} if table.is_file() else {}
    rows = []
    for folder in sorted(path.parent for path in out.glob(f"[!.]*/{AUDIT}")):
        audit = read_audit(folder) if folder.name not in cases else None
        if audit and audit["row"].get("case") == folder.name:
            known = listed.get(folder.name, audit["row"])
            rows.append({**row_of(folder.name), **{key: known.get(key) or "" for key in COLUMNS}})
    if rows:
        text = f"{len(rows)} cases of other sources stay in {table}; delete their folders to drop them"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    return rows


def case_names(studies: Sequence[StudyFiles], orphans: Sequence[str] = ()) -> list[str]:
    """Names of studies, then of folders with damaged files only; safe as file names, equal ones get a number.

    Those of studies are `<PatientID>_<StudyDate>_<end of StudyInstanceUID>`.
    """
    parts = ((study.patient_id or "unknown", study.date or "undated", study.uid[-5:]) for study in studies)
    named = [safe_name("_".join(part)) for part in parts]
    return _numbered([*named, *(safe_name(f"unreadable_{name}") for name in orphans)])


def _numbered(names: Iterable[str]) -> list[str]:
    """Names of which none equals another, whatever the case of their letters."""
    unique: list[str] = []
    taken: Counter[str] = Counter()
    for name in names:
        taken[name.casefold()] += 1
        count = taken[name.casefold()]
        unique.append(name if count == 1 else f"{name}_{count}")
    return unique


# --- running ---------------------------------------------------------------------------------------------------------


def _convert_all(jobs: Sequence[Job], workers: int, scheduler: str) -> list[dict]:
    outcomes = list(track(_run(jobs, workers, scheduler), "studies", total=len(jobs)))
    kept = sum(outcome.kept for outcome in outcomes)
    if kept:
        console.print(f"{kept} converted before with these settings and kept", highlight=False)
    return [outcome.row for outcome in outcomes]


def _run(jobs: Sequence[Job], workers: int, scheduler: str) -> Iterator[Outcome]:
    for job, result in run_jobs(_attempt, jobs, workers=max(1, min(workers, len(jobs))), scheduler=scheduler):
        if isinstance(result, LostProcessError):
            remove_leftovers(job.out, job.case)
            yield Outcome(study_row(job.case, _unread(job.files), status="failed", reason=reason_of(result)))
        elif result.row["status"] == "converted" and not _appears(job.out / job.case / AUDIT):
            reason = f"the worker wrote {job.out / job.case} where this machine does not see it; use a shared folder"
            yield Outcome(study_row(job.case, _unread(job.files), status="failed", reason=reason))
        else:
            yield result


def _appears(path: Path) -> bool:
    """Whether a file that another machine wrote can be seen; network file systems take their time."""
    until = time.monotonic() + APPEARS_WITHIN_S
    while not path.is_file():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _attempt(job: Job) -> Outcome:
    """Convert a study, unless it was before; whatever goes wrong becomes its row."""
    study, chosen = _unread(job.files), None
    try:
        study = read_study(job.files)
        chosen = choose(study, series_uids=job.series_uids)
        _refuse_damaged(study)
        conversion = Conversion(job.case, study, chosen, job.out, job.settings)
        earlier = earlier_row(conversion) if job.resume else None
        return Outcome(earlier, kept=True) if earlier else Outcome(convert_study(conversion))
    except Exception as error:
        absent = isinstance(error, MissingSeriesError) and not study.unreadable
        uids = {"ct_series_uid": chosen.ct.uid, "pet_series_uid": chosen.pet.uid} if chosen else {}
        status = "skipped" if absent else "failed"
        reason = reason_of(error)
        if (job.out / job.case / AUDIT).is_file():
            reason += f" (the images of an earlier conversion are still in {job.case})"
        return Outcome(study_row(job.case, study, status=status, reason=reason, **uids))


def _refuse_damaged(study: Study) -> None:
    """An error when a file of the study that was meant as DICOM cannot be read: it may be a slice, or the lesions."""
    damaged = [path for path in study.unreadable if looks_like_dicom(path)]
    if damaged:
        raise AutopetError(
            f"{len(damaged)} files in the study's folder are not readable as DICOM (first: {damaged[0]}): a slice or "
            "the segmentation may be missing; copy or download them anew, or take them away"
        )


def _unread(files: StudyFiles) -> Study:
    return Study(files.uid, files.patient_id, files.date, (), files.unreadable)
