"""Walk through the folders below one, however deep they are nested and wherever links lead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(
    folder: Path, *, links: bool = True, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like `os.walk` from the top, names sorted, but each folder once and without recursion.

    `os.walk` of Python 3.11 calls itself once per level and fails at about a thousand.

    Parameters
    ----------
    folder : Path
        Where to begin.
    links : bool
        Follow links to folders; those to an ancestor of `folder` lead out of it and are not taken.
    onerror : callable
        Is given the error of a folder that cannot be listed (its `filename` says which); without it none is told.

    Yields
    ------
    (path, folders, files)
        A folder and the names in it; `folders` may be changed in place to leave some out.
    """
    root = os.path.realpath(folder)
    visited = {os.fspath(path) for path in Path(root).parents}
    waiting = [(os.fspath(folder), root)]
    while waiting:
        base, real = waiting.pop()
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(base) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if onerror:
                onerror(error)
            continue
        linked = {entry.name: entry.is_symlink() for entry in found if _is_folder(entry, links)}
        folders = list(linked)
        yield Path(base), folders, [entry.name for entry in found if entry.name not in linked]
        for name in reversed(folders):
            path = os.path.join(base, name)
            # asking for the real path of every folder would cost the square of the depth
            waiting.append((path, os.path.realpath(path) if linked[name] else os.path.join(real, name)))


def _is_folder(entry: os.DirEntry[str], links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=links)
    except OSError:  # a link to itself
        return False
