"""Commands that run a method's experiment from beginning to end: experiment lesiontracer, swinmip, weakcam."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
    from leaderboard.experiments import lesiontracer as method

    words = ["--organ-maps", organ_maps, "--out", out, "--seeds", seeds, "--budget", budget]
    _run(method, organ_maps, out, seeds=seeds, budget=method.BUDGETS[budget], device=device, words=words)


@experiment.command(epilog="Example: autopet experiment swinmip --organ-maps organ-labels --out experiment")
def swinmip(
    organ_maps: OrganMaps,
    out: Out,
    seeds: Seeds = 3,
    budget: Budget = BudgetName.small,
    device: Device = "auto",
) -> None:
    """Losses, projections, gate and threshold of Galdran's solution; a second call goes on with a killed one."""
    from leaderboard.experiments import swinmip as method

    words = ["--organ-maps", organ_maps, "--out", out, "--seeds", seeds, "--budget", budget]
    _run(method, organ_maps, out, seeds=seeds, budget=method.BUDGETS[budget], device=device, words=words)


@experiment.command(epilog="Example: autopet experiment weakcam --organ-maps organ-labels --out experiment")
def weakcam(
    out: Out,
    organ_maps: Annotated[
        Path | None, typer.Option(help="Folder of real organ maps, to make phantoms around; or --data and --split.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Cohort folder of `autopet prep`, in place of phantoms.")] = None,
    split: Annotated[Path | None, typer.Option(help="Its split.csv: test is tested, the rest trained on.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repetitions; on phantoms each with its own split of the patients.")
    ] = 3,
    budget: Budget = BudgetName.small,
    device: Device = "auto",
) -> None:
    """Masks from class activation maps against U-Net and thresholds; a second call goes on with a killed one."""
    from leaderboard.experiments import weakcam as method

    source = method.Source(organ_maps, data, split)
    words = ["--organ-maps", organ_maps] if organ_maps else ["--data", data, "--split", split]
    words += ["--out", out, "--seeds", seeds, "--budget", budget]
    chosen = method.budget_for(source, budget)
    _run(method, source, out, seeds=seeds, budget=chosen, device=device, words=words)


def _run(method: Any, source: Any, out: Path, *, seeds: int, budget: Any, device: str, words: list[Any]) -> None:
    """Announce an experiment and run it; `words` is its command but for the device, for the report."""
    from autopet.container import choose_device

    chosen = choose_device(device)
    name = method.__name__.rpartition(".")[2]
    command = shlex.join(["autopet", "experiment", name, *map(str, words), "--device", chosen])
    method.announce(budget, seeds)
    report = method.run_experiment(source, out, seeds=seeds, budget=budget, device=chosen, command=command)
    console.print(f"report in {report}, numbers in {report.with_name('results.csv')}", highlight=False)
