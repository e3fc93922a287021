"""Command that writes class activation maps beside a submission's masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopet.commands.options import Part, Split, take_cases
from autopet.progress import console

app = typer.Typer()


@app.command(
    epilog="Example: autopet maps weakcam --model models/weakcam --data nifti --split split.csv "
    "--submission submissions/weakcam"
)
def maps(
    method: Annotated[str, typer.Argument(help="Name of a method with class activation maps: weakcam.")],
    model: Annotated[Path, typer.Option(help="Its model folder.")],
    data: Annotated[Path, typer.Option(help="Cohort folder of `autopet prep`.")],
    submission: Annotated[Path, typer.Option(help="Submission folder of `autopet run`, which gets the maps.")],
    cam: Annotated[
        list[str] | None, typer.Option(help="cam, gradcam, gradcam++ or scorecam; repeatable. All without it.")
    ] = None,
    split: Split = None,
    part: Part = "test",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Write a method's class activation maps beside the masks of its submission, for `autopet biomarkers` to draw."""
    from autopet.container import choose_device
    from leaderboard.class_maps import write_class_maps

    cases = take_cases(data, split, part)
    paths = write_class_maps(method, model, submission, cases, cams=cam or [], device=choose_device(device))
    console.print(
        f"{len(paths)} maps of {len({path.parent for path in paths})} cases in {submission}; look at them with: "
        f"autopet biomarkers METRICS --data {data} --predictions {submission} --out biomarkers",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
