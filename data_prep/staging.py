"""The hidden folder that a conversion fills case by case; after an interruption the next call goes on with it.

A journal says which cases are whole, of what, and in which files. The folder (or one file in it) takes the place of an
earlier result when all cases have been tried: until then nothing counts as a cohort.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from autopet import __version__
from autopet.errors import AutopetError, one_line
from autopet.folders import remove_leftovers, sole_writer

MARKER = "convert.json"  # in folders that `autopet convert` wrote: only those are replaced
JOURNAL = "convert.jsonl"  # a receipt per line, while the conversion goes on
VERSION = 1  # raise it when the same files give another result


@dataclass(frozen=True)
class Receipt:
    """A case that was written whole."""

    key: str  # digest of its source and of what decides the result, see `key_of`
    row: dict[str, str]  # of prep.csv
    file_bytes: Mapping[str, int]  # size of every file, by its path in the cohort's folder


def key_of(files: Sequence[Path], row: Mapping[str, str], target: str) -> str:
    """A digest of the sizes and times of the source's files, of the case's row, and of where and how it is written."""
    stats = [(path.parent.name, path.name, path.stat()) for path in files if path.is_file()]
    found = [[folder, name, stat.st_size, stat.st_mtime_ns] for folder, name, stat in stats]
    return hashlib.sha256(json.dumps([VERSION, target, dict(row), found]).encode()).hexdigest()


def receipt_of(key: str, row: dict[str, str], *, folder: Path, files: Iterable[str]) -> Receipt:
    """The receipt of files that have just been written."""
    return Receipt(key, row, {name: (folder / name).stat().st_size for name in files})


def is_whole(folder: Path, receipt: Receipt) -> bool:
    """Whether all files of a case are there in the size they were written in."""
    paths = {folder / name: size for name, size in receipt.file_bytes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def link_files(earlier: Path, folder: Path, receipt: Receipt) -> None:
    """Take over the files of a case from an earlier result: as links where the file system has them, else as copies."""
    for name in receipt.file_bytes:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(earlier / name, target)
        except OSError:
            shutil.copy2(earlier / name, target)


def described(format_name: str, receipts: Mapping[str, Receipt]) -> str:
    """The text of `MARKER`."""
    cases = {name: asdict(receipt) for name, receipt in receipts.items()}
    return json.dumps({"format": format_name, "bundle_version": __version__, "cases": cases}, indent=1) + "\n"


def parse_receipts(text: str) -> dict[str, Receipt]:
    """The receipts in the text of `MARKER`; none of what is damaged or of an earlier version."""
    try:
        cases = json.loads(text)["cases"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: receipt for name, fields in cases if (receipt := _receipt(fields))}


def read_receipts(folder: Path) -> dict[str, Receipt]:
    """The receipts of a folder, finished or not."""
    found = parse_receipts(_text(folder / MARKER))
    for line in _text(folder / JOURNAL).splitlines():
        try:
            name, fields = json.loads(line)
        except (ValueError, TypeError):  # the last line of a process that was killed
            continue
        if receipt := _receipt(fields):
            found[name] = receipt
    return found


def _receipt(fields: object) -> Receipt | None:
    try:
        receipt = Receipt(**fields)  # type: ignore[arg-type]
    except TypeError:
        return None
    sizes = receipt.file_bytes
    return receipt if isinstance(receipt.row, dict) and isinstance(sizes, dict) and _inside(sizes) else None


def _inside(names: Iterable[str]) -> bool:
    """Whether paths stay in the folder that they are relative to."""
    return all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Staging:
    """Where a result is written until it is whole."""

    target: Path

    @property
    def outer(self) -> Path:
        """Holds the lock of the run; the same name every time, so that a second call finds it."""
        return self.target.with_name(f".unfinished-{self.target.name}")

    @property
    def folder(self) -> Path:
        """What becomes the result."""
        return self.outer / "cohort"

    def add(self, case: str, receipt: Receipt) -> None:
        """Note a case that is whole; what a killed process left in the middle of a line is ended first."""
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([case, asdict(receipt)]) + "\n")

    def sweep(self, receipts: Mapping[str, Receipt]) -> None:
        """Remove what belongs to no case: half-written files, cases that are in the cohort no more."""
        kept = {self.folder / name for receipt in receipts.values() for name in receipt.file_bytes}
        kept.add(self.folder / JOURNAL)
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in kept:
                path.unlink()

    def publish(self, result: Path) -> None:
        """Put the folder, or a file in it, in place of an earlier result."""
        if result != self.folder:
            os.replace(result, self.target)
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        (self.folder / JOURNAL).unlink(missing_ok=True)
        old = self.target.with_name(f".old-{self.target.name}-{uuid.uuid4().hex[:8]}")
        if self.target.exists():
            os.replace(self.target, old)
        try:
            os.replace(self.folder, self.target)
        except BaseException:
            if old.exists():
                os.replace(old, self.target)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged(target: Path, *, resume: bool) -> Iterator[Staging]:
    """The staging of a result, held against other runs; it stays after an interruption if any case in it is whole.

    Raises
    ------
    AutopetError
        Another run is writing there, or nothing can be written.
    """
    staging = Staging(target)
    try:
        with sole_writer(staging.outer), _kept_if_useful(staging):
            _bring_back(target)
            if not resume:
                shutil.rmtree(staging.folder, ignore_errors=True)
            staging.folder.mkdir(exist_ok=True)
            yield staging
    finally:
        with suppress(OSError):  # it is not empty after an interruption
            staging.outer.rmdir()


@contextmanager
def _kept_if_useful(staging: Staging) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not read_receipts(staging.folder):
            shutil.rmtree(staging.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise AutopetError(
                f"{staging.target}: cannot be written (disk full or no permission?): {one_line(error)}"
            ) from error
        raise


def _bring_back(target: Path) -> None:
    """An earlier result that a killed run had moved away goes back; what else it left vanishes."""
    olds = sorted(path for path in target.parent.glob(".old-*") if path.name[5:-9] == target.name)
    if olds and not target.exists():
        os.replace(olds[0], target)
    remove_leftovers(target.parent, target.name)
