"""Caches of trainings: a folder of files for every case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autopet.cohort import Case
from autopet.folders import remove_leftovers, whole_folder
from autopet.progress import track


def cache_folders(
    cases: Sequence[Case], folder: Path, write: Callable[[Case, Path], None], *, title: str
) -> dict[str, Path]:
    """A folder for every case, whole or not at all; those of an earlier call are kept.

    Parameters
    ----------
    write : callable
        Given a case and an empty folder, writes the case there, with `autopet.patches.save_case` say.
    title : str
        Of the progress bar; there is none when nothing is missing.

    Returns
    -------
    dict of str to Path
        The folder by the case's name.
    """
    folders = {case.name: folder / case.name for case in cases}
    if folder.is_dir():
        remove_leftovers(folder)
    missing = [case for case in cases if not folders[case.name].is_dir()]
    for case in track(missing, title) if missing else ():
        with whole_folder(folders[case.name]) as part:
            write(case, part)
    return folders
