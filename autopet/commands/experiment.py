"""Commands that run a method's experiment from beginning to end: experiment lesiontracer, swinmip."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autopet.progress import console


class BudgetName(StrEnum):
    """Size of an experiment."""

    small = "small"
    full = "full"


class LesionTracerBudget(StrEnum):
    """Size of LesionTracer's experiment."""

    small = "small"
    medium = "medium"
    full = "full"


app = typer.Typer()
experiment = typer.Typer(help="Do a method's ideas work? Trains and tests its variants on phantoms, writes a report.")
app.add_typer(experiment, name="experiment")

OrganMaps = Annotated[Path, typer.Option(help="Folder of real organ maps (fdg_*.nii.gz and psma_*.nii.gz).")]
Out = Annotated[Path, typer.Option(help="Folder for results.csv, report.md and all that lies between.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions, each with its own split of the patients.")]
Budget = Annotated[
    BudgetName, typer.Option(help="small: within 20 minutes on two cores with 3 seeds; full: for a GPU.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@experiment.command(epilog="Example: autopet experiment lesiontracer --organ-maps organ-labels --out experiment")
def lesiontracer(
    organ_maps: OrganMaps,
    out: Out,
    seeds: Seeds = 3,
    budget: Annotated[
        LesionTracerBudget,
        typer.Option(
            help="small: within 20 minutes on two cores with 3 seeds; medium: four times as long, for organs; "
            "full: for a GPU."
        ),
    ] = LesionTracerBudget.small,
    device: Device = "auto",
) -> None:
    """nnU-Net against + misalignment, + organs and both of LesionTracer; a second call goes on with a killed one."""
    from autopet.container import choose_device
    from leaderboard.experiments.lesiontracer import BUDGETS, announce, run_experiment

    chosen = choose_device(device)
    command = _command("lesiontracer", organ_maps, out, seeds=seeds, budget=budget, device=chosen)
    announce(BUDGETS[budget], seeds)
    report = run_experiment(organ_maps, out, seeds=seeds, budget=BUDGETS[budget], device=chosen, command=command)
    console.print(f"report in {report}, numbers in {report.with_name('results.csv')}", highlight=False)


@experiment.command(epilog="Example: autopet experiment swinmip --organ-maps organ-labels --out experiment")
def swinmip(
    organ_maps: OrganMaps,
    out: Out,
    seeds: Seeds = 3,
    budget: Budget = BudgetName.small,
    device: Device = "auto",
) -> None:
    """Losses, projections, gate and threshold of Galdran's solution; a second call goes on with a killed one."""
    from autopet.container import choose_device
    from leaderboard.experiments.swinmip import BUDGETS, announce, run_experiment

    chosen = choose_device(device)
    command = _command("swinmip", organ_maps, out, seeds=seeds, budget=budget, device=chosen)
    announce(BUDGETS[budget], seeds)
    report = run_experiment(organ_maps, out, seeds=seeds, budget=BUDGETS[budget], device=chosen, command=command)
    console.print(f"report in {report}, numbers in {report.with_name('results.csv')}", highlight=False)


def _command(name: str, organ_maps: Path, out: Path, *, seeds: int, budget: str, device: str) -> str:
    """The command in full, for the report."""
    options = ["--organ-maps", organ_maps, "--out", out, "--seeds", seeds, "--budget", budget, "--device", device]
    return shlex.join(["autopet", "experiment", name, *map(str, options)])
