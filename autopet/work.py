"""Work folders of trainings: one belongs to exactly one choice of inputs and settings, so that a training can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, whole_file

STAMP = "recipe"  # in a work folder: a digest of what it is for
RUN_TIME_ONLY = ("workers", "checkpoint_every")  # settings that may change when a training goes on


def claim_work(
    work: Path, settings: Any, inputs: object, *, what: str = "training with other cases or settings"
) -> None:
    """Take a work folder for exactly these inputs and settings; another's unfinished training is never thrown away.

    Parameters
    ----------
    work : Path
        Made when it is not there; what a killed call of `remove_at_once` left of it goes. A folder without a stamp is
        taken when it is empty: that is what a call leaves which is killed, or whose disk is full, before it writes the
        stamp.
    settings : dataclass
        The method's settings; those in `RUN_TIME_ONLY` may differ.
    inputs : object
        What is trained on, as something whose `repr` tells it apart: names of cases and `file_sizes`.
    what : str
        What the folder may hold instead, for the error.

    Raises
    ------
    AutopetError
        The folder holds something else.
    """
    chosen = {key: value for key, value in asdict(settings).items() if key not in RUN_TIME_ONLY}
    key = hashlib.sha256(repr((chosen, inputs)).encode()).hexdigest()
    remove_leftovers(work.parent, work.name)
    work.mkdir(parents=True, exist_ok=True)
    remove_leftovers(work, STAMP)
    stamp = work / STAMP
    found = stamp.read_text() if stamp.is_file() else ""
    if found == key:
        return
    if found or any(work.iterdir()):
        raise AutopetError(f"{work} holds an unfinished {what}; finish that, or delete the folder")
    with whole_file(stamp) as part:
        part.write_text(key)


def file_sizes(paths: Iterable[Path]) -> list[int]:
    """Sizes of files in bytes; an error that names one that is missing."""
    sizes = []
    for path in paths:
        if not path.is_file():
            raise AutopetError(f"{path} is missing; convert the study again, or leave the case out")
        sizes.append(path.stat().st_size)
    return sizes
