"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopet.cohort import Case, read_cohort, select_part

Workers = Annotated[int, typer.Option(min=1, help="Processes that work side by side.")]
Split = Annotated[Path | None, typer.Option(help="split.csv of `autopet split`; without it all cases are taken.")]
Part = Annotated[str, typer.Option(help="Part of the split to take: train, val, test, fold0 or not-fold0.")]


def take_cases(data: Path, split_csv: Path | None, part: str) -> list[Case]:
    """The cases of a cohort, or those of one part of its split."""
    cases = read_cohort(data)
    return select_part(cases, split_csv, part) if split_csv else cases
