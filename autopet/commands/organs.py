"""The command that gives a cohort organ labels: organs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autopet.commands.options import Workers
from autopet.errors import AutopetError
from autopet.progress import console

app = typer.Typer()
SOME_FAILED = 3  # exit status


class OrganMapping(StrEnum):
    """How TotalSegmentator's structures become organs."""

    corrected = "corrected"
    released = "released"


@app.command(epilog="Example: autopet organs nifti --maps dicom/organs")
def organs(
    data: Annotated[Path, typer.Argument(help="Cohort folder of `autopet prep`; every case gets an image ORGANS.")],
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a map per case, named after case or patient: labels 0 to 10, or what TotalSegmentator "
            "wrote."
        ),
    ] = None,
    totalsegmentator: Annotated[
        bool, typer.Option("--totalsegmentator", help="Run TotalSegmentator on every CT (pip extra `organs`).")
    ] = False,
    organ_map: Annotated[
        OrganMapping,
        typer.Option(
            help="Of TotalSegmentator's structures; released: the published labels', without the left submandibular "
            "gland and with the right optic nerve."
        ),
    ] = OrganMapping.corrected,
    device: Annotated[str, typer.Option(help="Device of TotalSegmentator: gpu, cpu, mps.")] = "",
    workers: Workers = 1,
    again: Annotated[bool, typer.Option("--again", help="Replace organ labels that are there already.")] = False,
) -> None:
    """Give every case of a cohort organ labels, for methods that train with them.

    organs.csv says per case where they came from. Exit status 3 when a case got none, 1 when no case got any.
    """
    from data_prep.organs import label_cohort
    from data_prep.totalsegmentator import TotalSegmentator

    if totalsegmentator == (maps is not None):
        raise AutopetError("expected one of --maps DIR and --totalsegmentator; give one of them")
    command = TotalSegmentator.find(device=device, variant=organ_map.value) if totalsegmentator else None
    rows = label_cohort(
        data, maps=maps, totalsegmentator=command, variant=organ_map.value, workers=workers, again=again
    )
    _report(rows, data)


def _report(rows: Sequence[dict[str, str]], data: Path) -> None:
    """A line per case that has no labels, or of which there is something to say."""
    from data_prep.organs import LABELLED, TABLE

    for row in (row for row in rows if row["reason"]):
        text = f"{row['status']}: {row['case']}: {row['reason']}"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    lost = [row for row in rows if row["status"] not in LABELLED]
    console.print(
        f"{len(rows) - len(lost)} of {len(rows)} cases have organ labels; see {data / TABLE}", highlight=False
    )
    if len(lost) == len(rows):
        raise AutopetError(f"no case got organ labels; first reason: {lost[0]['reason']}")
    if lost:
        raise typer.Exit(SOME_FAILED)
