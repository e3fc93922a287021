"""Convert the DICOM studies below a folder into a cohort: SUV, CT on the PET grid, lesion mask and an audit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopet.errors import AutopetError
from autopet.folders import part_of
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import console, track
from data_prep.finding import find_studies, looks_like_dicom
from data_prep.inventory import Found, StudyFiles
from data_prep.metadata import fill_from_metadata
from data_prep.records import reason_of, remove_leftovers, row_of, safe_name, write_rows
from data_prep.report import write_report
from data_prep.scanning import read_study
from data_prep.series import MissingSeriesError, Study, choose, unknown_series
from data_prep.study import Conversion, Settings, convert_study, earlier_row, study_row


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

    Raises
    ------
    AutopetError
        There is no DICOM below `source`, or no study has a named series. What is wrong with a study is in its row.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    if workers < 1:
        raise AutopetError(f"workers must be at least 1, found {workers}")
    found = find_studies(source)
    _warn_of(found, series_uids)
    remove_leftovers(out)
    jobs = _plan(found, out, settings or Settings(), series_uids=tuple(series_uids), resume=resume)
    outcomes = list(track(_run(jobs, workers, scheduler), "studies", total=len(jobs)))
    kept = sum(outcome.kept for outcome in outcomes)
    if kept:
        console.print(f"{kept} converted before with these settings and kept", highlight=False)
    rows = [outcome.row for outcome in outcomes] + _orphan_rows(found.orphans, source)
    fill_from_metadata(rows, source)
    ordered = write_rows(out, rows)
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


def _plan(found: Found, out: Path, settings: Settings, *, series_uids: tuple[str, ...], resume: bool) -> list[Job]:
    return [
        Job(case, files, out, settings, series_uids, resume)
        for case, files in zip(case_names(found.studies), found.studies, strict=True)
    ]


def _orphan_rows(orphans: Sequence[Path], source: Path) -> list[dict]:
    """A failed row for every folder with damaged DICOM files that belong to no study that was found."""
    folders: dict[Path, list[Path]] = {}
    for path in filter(looks_like_dicom, orphans):
        folders.setdefault(path.parent, []).append(path)
    rows = []
    for folder, paths in sorted(folders.items()):
        case = safe_name(f"unreadable_{folder.relative_to(source)}")
        reason = f"{len(paths)} files are not readable as DICOM (first: {paths[0]}); copy or download them anew"
        rows.append(row_of(case, status="failed", reason=reason))
    return rows


def case_names(studies: Sequence[StudyFiles]) -> list[str]:
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


# --- running ---------------------------------------------------------------------------------------------------------


def _run(jobs: Sequence[Job], workers: int, scheduler: str) -> Iterator[Outcome]:
    for job, result in run_jobs(_attempt, jobs, workers=max(1, min(workers, len(jobs))), scheduler=scheduler):
        if isinstance(result, LostProcessError):
            shutil.rmtree(part_of(job.out / job.case), ignore_errors=True)
            yield Outcome(study_row(job.case, _unread(job.files), status="failed", reason=reason_of(result)))
        else:
            yield result


def _attempt(job: Job) -> Outcome:
    """Convert a study, unless it was before; whatever goes wrong becomes its row."""
    study, chosen = _unread(job.files), None
    try:
        study = read_study(job.files)
        chosen = choose(study, series_uids=job.series_uids)
        conversion = Conversion(job.case, study, chosen, job.out, job.settings)
        earlier = earlier_row(conversion) if job.resume else None
        return Outcome(earlier, kept=True) if earlier else Outcome(convert_study(conversion))
    except Exception as error:
        absent = isinstance(error, MissingSeriesError) and not study.unreadable
        uids = {"ct_series_uid": chosen.ct.uid, "pet_series_uid": chosen.pet.uid} if chosen else {}
        status = "skipped" if absent else "failed"
        return Outcome(study_row(job.case, study, status=status, reason=reason_of(error), **uids))


def _unread(files: StudyFiles) -> Study:
    return Study(files.uid, files.patient_id, files.date, (), files.unreadable)
