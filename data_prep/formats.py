"""Convert a cohort between NIfTI, mha, one HDF5 file and nnU-Net's raw layout, in any direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopet.cohort import TABLE, Case
from autopet.errors import AutopetError
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import console, track
from data_prep.case_store import CONVERTED, CaseWriter, FolderSource, FolderTarget, Row, Source, SourceCase, Target
from data_prep.hdf5 import COHORT, FORMAT, Hdf5Cohort, Hdf5Source, open_file, read_case
from data_prep.nnunet_raw import DESCRIPTION, NnunetSource, NnunetTarget, Plan
from data_prep.records import FORMATS as FOLDER_FORMATS
from data_prep.records import reason_of
from data_prep.staging import MARKER, Receipt, Staging, is_whole, key_of, read_receipts, receipt_of, staged

__all__ = ["FORMATS", "Options", "cases_of", "convert_cohort", "open_source", "read_case"]

FORMATS = (*FOLDER_FORMATS, "hdf5", "nnunet")
HDF5_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Options:
    """What only some formats ask for."""

    split_csv: Path | None = None  # nnunet: which cases are for tests, and the folds
    dataset_id: int = 1
    dataset_name: str = "AutoPET"


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    path: Path
    rows: list[Row]  # its prep.csv
    kept: int  # cases of an earlier call, whose source has not changed
    failed: list[Row]  # those that failed now, not when the cohort was prepared

    @property
    def converted(self) -> int:
        """Cases that came through."""
        return sum(row["status"] == CONVERTED for row in self.rows)


@dataclass(frozen=True)
class Job:
    """One case to convert: small, to be sent to another process."""

    case: SourceCase
    writer: CaseWriter
    before: tuple[tuple[Path, Receipt], ...]  # where it may be whole already: in the staging, in an earlier result

    @property
    def name(self) -> str:
        """The case."""
        return self.case.row["case"]


@dataclass(frozen=True)
class Outcome:
    """The row of a case, its receipt if it came through, and whether an earlier call had converted it."""

    row: Row
    receipt: Receipt | None = None
    kept: bool = False


def convert_cohort(
    source: Path,
    out: Path,
    *,
    to: str,
    options: Options | None = None,
    workers: int = 1,
    scheduler: str = "",
    resume: bool = True,
) -> Converted:
    """Convert every case; what is wrong with one does not stop the others.

    Cases are written into a hidden folder beside the result, `.unfinished-<name>`, which takes its place when all of
    them have been tried: an earlier result stays until then. After an interruption the next call goes on with it. An
    HDF5 file is put together at the end of one file per case, so that its size is needed twice for a while.

    Parameters
    ----------
    source : Path
        A cohort folder with prep.csv (NIfTI or mha), an HDF5 cohort, or an nnU-Net raw dataset folder.
    out : Path
        Folder to write; for `hdf5` the file (`.h5`) or the folder to put `cohort.h5` into; for `nnunet` the folder that
        gets `DatasetNNN_NAME`.
    to : str
        One of `FORMATS`.
    workers, scheduler
        See `autopet.parallel.run_jobs`; every case is read and written by one process.
    resume : bool
        Keep cases that an earlier call, finished or not, wrote whole from the same files (sizes, times) and row.

    Returns
    -------
    Converted
        In its table, cases that failed have status `failed` and a reason.

    Raises
    ------
    AutopetError
        The source is none of these, no case could be converted, `out` holds anything but an earlier result, or
        another run is writing there.
    """
    options, source, out = options or Options(), Path(source), Path(out)
    if workers < 1:
        raise AutopetError(f"workers must be at least 1, found {workers}")
    path = _target_path(out, to, options)
    _refuse_overlap(source, path)
    with open_source(source) as opened:
        plan = Plan.read(options.split_csv, opened.rows)
        _refuse_other_content(path, to)
        wanted = {row["case"] for row in opened.rows if row["status"] == CONVERTED}
        with staged(path.resolve(), resume=resume) as staging:
            target = _target(staging.folder, to, plan)
            jobs = _plan_jobs(opened, target, staging, resume=resume)
            title = f"{opened.kind} to {to}"
            outcomes = _run(jobs, staging, title, workers=workers, scheduler=scheduler)
            rows = _finish(opened, target, staging, outcomes)
    failed = [row for row in rows if row["case"] in wanted and row["status"] != CONVERTED]
    return Converted(path, rows, sum(outcome.kept for outcome in outcomes.values()), failed)


def _plan_jobs(source: Source, target: Target, staging: Staging, *, resume: bool) -> list[Job]:
    begun = read_receipts(staging.folder) if resume else {}
    earlier = target.earlier(staging.target) if resume and staging.target.exists() else {}
    places = ((staging.folder, begun), (staging.target, earlier))
    jobs = []
    for row in source.rows:
        if row["status"] == CONVERTED:
            before = tuple((path, receipts[row["case"]]) for path, receipts in places if row["case"] in receipts)
            jobs.append(Job(source.case(row), target.writer(row), before))
    return jobs


def _run(jobs: list[Job], staging: Staging, title: str, *, workers: int, scheduler: str) -> dict[str, Outcome]:
    """Outcomes by case; those that are whole are noted at once. Only cases to convert are sent to processes."""
    outcomes: dict[str, Outcome] = {}

    def note(job: Job, outcome: Outcome) -> None:
        outcomes[job.name] = outcome
        if outcome.receipt:
            staging.add(job.name, outcome.receipt)

    for job in jobs:
        if kept := _kept(job):
            note(job, kept)
    rest = [job for job in jobs if job.name not in outcomes]
    if rest:
        running = run_jobs(_attempt, rest, workers=min(workers, len(rest)), scheduler=scheduler)
        for job, result in track(running, title, total=len(rest)):
            note(job, _failed(job, result) if isinstance(result, LostProcessError) else result)
    return outcomes


def _kept(job: Job) -> Outcome | None:
    """The case as an earlier call converted it, if it came from the same and is whole."""
    writer = job.writer
    try:
        key = key_of(job.case.files(), job.case.row, writer.key)
        for place, receipt in job.before:
            if receipt.key != key:
                continue
            if is_whole(place, receipt) if place == writer.folder else writer.take(place, receipt):
                taken = receipt_of(key, receipt.row, folder=writer.folder, files=receipt.file_bytes)
                return Outcome(taken.row, taken, kept=True)
    except Exception as error:  # an earlier result may hold anything; then the case is converted anew
        console.print(f"{job.name}: not kept: {reason_of(error)}", style="yellow", highlight=False, markup=False)
    return None


def _attempt(job: Job) -> Outcome:
    """Convert a case; whatever goes wrong becomes its row."""
    writer = job.writer
    try:
        key = key_of(job.case.files(), job.case.row, writer.key)
        row, files = writer.write(job.case.read())
        return Outcome(row, receipt_of(key, row, folder=writer.folder, files=files))
    except Exception as error:  # whatever it is, it is one case's
        return _failed(job, error)


def _failed(job: Job, error: Exception) -> Outcome:
    return Outcome({**job.case.row, "status": "failed", "reason": reason_of(error), "folder": ""})


def _finish(source: Source, target: Target, staging: Staging, outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Put the result in its place; returns its table."""
    receipts = {name: outcome.receipt for name, outcome in sorted(outcomes.items()) if outcome.receipt}
    if not receipts:
        reason = next(iter(outcomes.values())).row["reason"]
        raise AutopetError(f"no case could be converted; first reason: {reason}")
    if target.left_out:
        console.print(f"not in this format: {target.left_out}", style="yellow", highlight=False)
    rows = [outcomes[row["case"]].row if row["case"] in outcomes else row for row in source.rows]
    staging.sweep(receipts)
    staging.publish(target.finish(rows, receipts))
    return rows


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The cases of a cohort in any format, which is recognised by what lies there."""
    if path.is_file():
        with open_file(path) as file:
            yield Hdf5Source(file, path)
    elif (path / DESCRIPTION).is_file() and (path / "imagesTr").is_dir():
        yield NnunetSource(path)
    elif (path / TABLE).is_file():
        yield FolderSource(path)
    elif any(path.glob("*.h5")) if path.is_dir() else False:
        raise AutopetError(f"{path}: give the HDF5 file in it: {sorted(path.glob('*.h5'))[0]}")
    else:
        raise AutopetError(
            f"{path}: expected a cohort folder with {TABLE}, an HDF5 cohort or an nnU-Net dataset folder with "
            f"{DESCRIPTION}, found none of them"
        )


def cases_of(path: Path) -> list[Case]:
    """The converted cases of a cohort in any format, by its table alone; their folder is the cohort itself."""
    with open_source(path) as source:
        rows = [row for row in source.rows if row["status"] == CONVERTED]
    return [
        Case(
            row["case"], row["patient_id"], path, tracer=row.get("tracer", ""), centre=row.get("centre", ""),
            lesion_voxels=int(row["lesion_voxels"]) if row.get("lesion_voxels") else None,
        )
        for row in rows
    ]  # fmt: skip


def _target_path(out: Path, to: str, options: Options) -> Path:
    if to not in FORMATS:
        raise AutopetError(f"expected a format of {', '.join(FORMATS)}, found {to!r}")
    if to == "hdf5":
        return out if out.suffix in HDF5_SUFFIXES else out / COHORT
    if to != "nnunet":
        return out
    name = options.dataset_name
    if not name.replace("_", "").isalnum() or not 1 <= options.dataset_id <= 999:
        raise AutopetError(
            f"expected an ID of 1 to 999 and a name of letters and digits, found {options.dataset_id} {name}"
        )
    return out / f"Dataset{options.dataset_id:03d}_{name}"


def _refuse_overlap(source: Path, target: Path) -> None:
    if source.resolve().is_relative_to(target.resolve()):
        raise AutopetError(f"{target} holds the source {source}; choose another place for the result")


def _target(folder: Path, to: str, plan: Plan) -> Target:
    if to == "hdf5":
        return Hdf5Cohort(folder)
    return NnunetTarget(folder, plan) if to == "nnunet" else FolderTarget(folder, suffix=FOLDER_FORMATS[to], name=to)


def _refuse_other_content(path: Path, to: str) -> None:
    """Only an earlier result of a conversion is replaced."""
    if to == "hdf5":
        if path.exists():
            try:
                open_file(path).close()
            except AutopetError as error:
                raise AutopetError(f"{path} is there and no {FORMAT}; choose another name for the result") from error
    elif path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MARKER).is_file()):
        raise AutopetError(f"{path} holds other files; choose a new folder for the converted cohort")
