"""Command that makes a submission out of several: the voxel-wise vote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopet.errors import AutopetError
from autopet.progress import console

app = typer.Typer()


@app.command(epilog="Example: autopet vote submissions/nnunet submissions/unet3d submissions/threshold --out voted")
def vote(
    submissions: Annotated[
        list[Path], typer.Argument(help="Submission folders: predictions.json, or masks named by case.")
    ],
    out: Annotated[Path, typer.Option(help="Submission folder to write, for `autopet evaluate`.")],
    votes: Annotated[int, typer.Option(min=0, help="Votes that make a voxel lesion; 0: more than half.")] = 0,
) -> None:
    """Vote voxel by voxel over submissions: the ensemble that beat every participant of autoPET I."""
    from leaderboard.voting import vote_submissions

    record = vote_submissions(submissions, out, votes=votes)
    for row in record:
        place = row["case"] if "step" not in row else f"step {row['step']}, {row['case']}"
        for name, reason in row["left_out"].items():
            console.print(
                f"{place}: {name} has no vote: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True
            )
    done = sum(bool(row["voted"]) for row in record)
    if not done:
        raise AutopetError(f"no case has a mask that can vote; {out} lists the reasons")
    console.print(f"{done} of {len(record)} masks voted, see {out}", highlight=False)
