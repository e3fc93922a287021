"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write to; it takes the place of `folder` at the end, or vanishes after an error.

    Until the new folder is in place the old one is kept, and put back if that fails.
    """
    part, old = part_of(folder), folder.with_name(f".old-{folder.name}")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
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


def part_of(folder: Path) -> Path:
    """Where `whole_folder` writes until all is there."""
    return folder.with_name(f".part-{folder.name}")
