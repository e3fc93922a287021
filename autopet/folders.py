"""Files and folders that appear whole or not at all, and folders that one run writes to at a time."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopet.errors import AutopetError, one_line

LOCK = ".autopet-lock"
LEFTOVER = re.compile(r"\.(?:part|old)-(?P<name>.+)-[0-9a-f]{8}")  # of whole_folder and remove_at_once
LEFTOVER_FILE = re.compile(r"\.part-[0-9a-f]{8}-(?P<name>.+)")  # of whole_file


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden name to write to, in the same folder and with the same suffix; the folder is made.

    The file takes the place of `path` at the end, or vanishes after an error. The hidden name is another one every
    time, so that two processes that write the same file do not write into each other's.
    """
    part = path.with_name(f".part-{uuid.uuid4().hex[:8]}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write to; it takes the place of `folder` at the end, or vanishes after an error.

    Until the new folder is in place the old one is kept, and put back if that fails. The hidden folder's name is
    another one every time, so that two processes that write the same folder do not write into each other's files.
    """
    token = uuid.uuid4().hex[:8]
    part, old = folder.with_name(f".part-{folder.name}-{token}"), folder.with_name(f".old-{folder.name}-{token}")
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_at_once(folder: Path) -> None:
    """Remove a folder in one go, so that a kill leaves no half of it under its name; see `remove_leftovers`."""
    gone = folder.with_name(f".old-{folder.name}-{uuid.uuid4().hex[:8]}")
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(parent: Path, *names: str) -> None:
    """Remove what killed calls of the functions above left in a folder: of the names given, or of all."""
    for path in sorted(parent.glob(".*")):
        is_folder = path.is_dir() and not path.is_symlink()
        match = (LEFTOVER if is_folder else LEFTOVER_FILE).fullmatch(path.name)
        if not match or (names and match["name"] not in names):
            continue
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it against other runs until the end; the lock vanishes with the process.

    Raises
    ------
    AutopetError
        The folder cannot be written to, or another run is writing there.
    """
    lock, made = folder / LOCK, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):  # its holder has just removed it
                    raise BlockingIOError
            except (BlockingIOError, FileNotFoundError) as error:
                raise AutopetError(
                    f"another run is writing to {folder}; wait for it, or give another folder"
                ) from error
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
                if made and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) not in (folder, lock, *folder.parents):
            raise
        raise AutopetError(
            f"{folder}: cannot be written to (no permission, or a file of that name?): {one_line(error)}"
        ) from error
