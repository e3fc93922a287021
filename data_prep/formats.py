"""Convert a cohort between NIfTI, mha, one HDF5 file and nnU-Net's raw layout, in any direction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopet import __version__
from autopet.cohort import TABLE
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_folder
from autopet.progress import console, track
from data_prep.case_store import CONVERTED, FolderSource, FolderTarget, Row, Source, Target
from data_prep.hdf5 import FORMAT, Hdf5Source, Hdf5Target, open_file, read_case
from data_prep.nnunet_raw import DESCRIPTION, NnunetSource, NnunetTarget, Plan
from data_prep.records import FORMATS as FOLDER_FORMATS
from data_prep.records import reason_of

__all__ = ["FORMATS", "convert_cohort", "open_source", "read_case"]

FORMATS = (*FOLDER_FORMATS, "hdf5", "nnunet")
HDF5_SUFFIXES = (".h5", ".hdf5")
MARKER = "convert.json"  # in folders that this module wrote: only those are replaced


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
    failed: list[Row]  # those that failed now, not when the cohort was prepared

    @property
    def converted(self) -> int:
        """Cases that came through."""
        return sum(row["status"] == CONVERTED for row in self.rows)


def convert_cohort(source: Path, out: Path, *, to: str, options: Options | None = None) -> Converted:
    """Convert every case; what is wrong with one does not stop the others.

    The result takes its place when all cases have been tried, so an earlier result stays until then.

    Parameters
    ----------
    source : Path
        A cohort folder with prep.csv (NIfTI or mha), an HDF5 cohort, or an nnU-Net raw dataset folder.
    out : Path
        Folder to write; for `hdf5` the file (`.h5`) or the folder to put `cohort.h5` into; for `nnunet` the folder that
        gets `DatasetNNN_NAME`.
    to : str
        One of `FORMATS`.

    Returns
    -------
    Converted
        In its table, cases that failed have status `failed` and a reason.

    Raises
    ------
    AutopetError
        The source is none of these, no case could be converted, or `out` holds anything but an earlier result.
    """
    options, source, out = options or Options(), Path(source), Path(out)
    target_path = _target_path(out, to, options)
    _refuse_overlap(source, target_path)
    with open_source(source) as opened:
        plan = Plan.read(options.split_csv, opened.rows)
        with _open_target(target_path, to, plan) as target:
            rows = _copy_cases(opened, target, f"{opened.kind} to {to}")
            target.finish(rows)
        wanted = {row["case"] for row in opened.rows if row["status"] == CONVERTED}
    return Converted(target_path, rows, [row for row in rows if row["case"] in wanted and row["status"] != CONVERTED])


def _copy_cases(source: Source, target: Target, title: str) -> list[Row]:
    wanted = [row for row in source.rows if row["status"] == CONVERTED]
    done = {row["case"]: _attempt(source, target, row) for row in track(wanted, title)}
    if not any(row["status"] == CONVERTED for row in done.values()):
        raise AutopetError(f"no case could be converted; first reason: {next(iter(done.values()))['reason']}")
    if target.left_out:
        console.print(f"not in this format: {target.left_out}", style="yellow", highlight=False)
    return [done.get(row["case"], row) for row in source.rows]


def _attempt(source: Source, target: Target, row: Row) -> Row:
    try:
        return target.write(source.read(row))
    except Exception as error:  # whatever it is, it is one case's
        return {**row, "status": "failed", "reason": reason_of(error), "folder": ""}


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


def _target_path(out: Path, to: str, options: Options) -> Path:
    if to not in FORMATS:
        raise AutopetError(f"expected a format of {', '.join(FORMATS)}, found {to!r}")
    if to == "hdf5":
        return out if out.suffix in HDF5_SUFFIXES else out / "cohort.h5"
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


@contextmanager
def _open_target(path: Path, to: str, plan: Plan) -> Iterator[Target]:
    """Somewhere to write; it is renamed to `path` when all went well, and vanishes otherwise."""
    _refuse_other_content(path, to)
    if to == "hdf5":
        with _new_hdf5(path) as target:
            yield target
        return
    with whole_folder(path.resolve()) as part:
        yield NnunetTarget(part, plan) if to == "nnunet" else FolderTarget(part, FOLDER_FORMATS[to])
        (part / MARKER).write_text(json.dumps({"format": to, "bundle_version": __version__}) + "\n")


@contextmanager
def _new_hdf5(path: Path) -> Iterator[Target]:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".part-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with h5py.File(partial, "w") as file:
            yield Hdf5Target(file)
        partial.replace(path)
    except (RuntimeError, OSError) as error:
        raise AutopetError(f"{path}: cannot be written (disk full or no permission?): {one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


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
