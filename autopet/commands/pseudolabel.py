"""Command that makes training labels out of predicted masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopet.commands.data import SOME_FAILED
from autopet.commands.options import Part, Split, take_cases
from autopet.progress import console

app = typer.Typer()


@app.command(epilog="Example: autopet pseudolabel submissions/unet3d --data nifti --out pseudo --split split.csv")
def pseudolabel(
    submission: Annotated[Path, typer.Argument(help="Submission folder: predictions.json, or masks named by case.")],
    data: Annotated[Path, typer.Option(help="Cohort folder of `autopet prep`, with or without masks of its own.")],
    out: Annotated[Path, typer.Option(help="Cohort folder to write: the same images, the predicted masks as SEG.")],
    split: Split = None,
    part: Part = "train",
    dicom: Annotated[
        Path | None, typer.Option(help="Folder of the cohort's DICOM studies: writes DICOM Segmentations, too.")
    ] = None,
) -> None:
    """Write predicted masks as training labels, for `autopet train --data`; images are linked, not copied.

    Exit status 3 when a case has no mask that can be a label (prep.csv says why), 1 when none has.
    """
    from leaderboard.pseudolabels import write_pseudolabels

    rows = write_pseudolabels(submission, data, out, cases=take_cases(data, split, part), dicom=dicom)
    lost = [row for row in rows if row["status"] != "converted"]
    for row in lost:
        text = f"left out: {row['case']}: {row['reason']}"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    empty = sum(row["lesion_voxels"] == 0 for row in rows)
    console.print(
        f"{len(rows) - len(lost)} of {len(rows)} cases labelled ({empty} without lesion) in {out}; train with: "
        f"autopet train unet3d --data {out} --out model",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    if lost:
        raise typer.Exit(SOME_FAILED)
