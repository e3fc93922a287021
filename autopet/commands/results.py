"""Commands that score and rank: evaluate, leaderboard, demo."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from autopet.commands.options import Part, Split, Workers, take_cases
from autopet.errors import AutopetError
from autopet.progress import console

app = typer.Typer()


class AnyEngine(StrEnum):
    """Where the demo's methods run."""

    auto = "auto"
    docker = "docker"
    local = "local"


@app.command(
    epilog="Example: autopet evaluate --ground-truth nifti --predictions submissions/nnunet --out nnunet/metrics.json"
)
def evaluate(
    ground_truth: Annotated[
        Path, typer.Option(help="Folder of masks named by case, or a cohort folder of `autopet prep`.")
    ],
    predictions: Annotated[
        Path, typer.Option(help="Folder of masks with the same names, or one with predictions.json.")
    ],
    out: Annotated[Path, typer.Option(help="metrics.json to write; lesions.csv and previews/ go beside it.")],
    name: Annotated[str, typer.Option(help="Name of the submission; default: the folder's name.")] = "",
    edition: Annotated[str, typer.Option(help="Whose rules for cases without lesions: I, II, III, IV or V.")] = "III",
    failed: Annotated[
        str,
        typer.Option(help="How cases without a usable mask count: empty, worst, nan, or constant:dice=0,fpv_ml=500."),
    ] = "empty",
    images: Annotated[
        Path | None, typer.Option(help="Folder of PET images in SUV, for TLG and previews; a cohort has its own.")
    ] = None,
    surface: Annotated[bool, typer.Option("--surface", help="Also surface Dice and 95 % Hausdorff distance.")] = False,
    tolerance_mm: Annotated[float, typer.Option(min=0, help="Of the surface Dice.")] = 5.0,
    split: Split = None,
    part: Part = "test",
    image: Annotated[str, typer.Option(help="Run in this evaluation image instead of this Python.")] = "",
    workers: Workers = 1,
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler to work on, instead of --workers.")] = "",
) -> None:
    """Score predictions, case by case, lesion by lesion and over the cases."""
    cases = [case.name for case in take_cases(ground_truth, split, part)] if split else None
    if image and scheduler:
        raise AutopetError("--image runs in a container without network; take --workers instead of --scheduler")
    if image:
        from evaluation.container import evaluate_in_container

        flags = {"--name": name or out.parent.name, "--edition": edition, "--failed": failed, "--workers": workers}
        options = [str(word) for pair in {**flags, "--tolerance-mm": tolerance_mm}.items() for word in pair]
        options += ["--surface"] if surface else []
        metrics = evaluate_in_container(
            image, ground_truth, predictions, out, options=options, images=images, cases=cases
        )
    else:
        from evaluation.evaluate import evaluate as score

        metrics = score(
            ground_truth, predictions, out, name=name, edition=edition, failed=failed, images=images, cases=cases,
            workers=workers, scheduler=scheduler, surface=surface, tolerance_mm=tolerance_mm,
        )  # fmt: skip
    _show_scores(metrics)


def _show_scores(metrics: dict) -> None:
    table = Table("case", "status", "Dice", "FPV ml", "FNV ml")
    for row in metrics["results"]:
        values = [row["dice"], row["fpv_ml"], row["fnv_ml"]]
        table.add_row(Text(row["case"]), row["status"], *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    for row in metrics["results"]:
        if row["status"] != "scored":
            console.print(f"{row['case']}: {row['reason']}", style="yellow", highlight=False, markup=False)
    if not metrics["cases"]["scored"]:
        console.print(f"NOT ONE of {len(metrics['results'])} cases was scored", style="bold red", markup=False)
    for note in metrics["notes"]:
        console.print(note, style="yellow", highlight=False, markup=False)


@app.command(epilog="Example: autopet leaderboard results/threshold results/nnunet --scheme III --out site")
def leaderboard(
    results: Annotated[list[str], typer.Argument(help="metrics.json files, folders that hold one, or name=path.")],
    out: Annotated[Path, typer.Option(help="Folder for index.html, its pages, CSV, JSON and methods.txt.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Leaderboard",
    scheme: Annotated[str, typer.Option(help="Ranking scheme: I, II, II-2, III, IV, V, or a leaderboard.toml.")] = "I",
    bootstraps: Annotated[
        int | None, typer.Option(min=0, max=10**6, help="Bootstrap samples instead of the scheme's number; 0: none.")
    ] = None,
) -> None:
    """Rank submissions by an edition's rules and make a site that opens without a network."""
    from leaderboard.render import write_site
    from leaderboard.scheme_file import scheme_named
    from leaderboard.submissions import read_results

    chosen = scheme_named(scheme)
    if bootstraps is not None:
        chosen = replace(chosen, bootstraps=bootstraps)
    page = write_site(read_results(results), out, title=title, scheme=chosen)
    for note in json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))["notes"]:
        console.print(note, style="bold yellow", highlight=False, markup=False)
    console.print(f"open {page}", highlight=False)


@app.command(epilog="Example: autopet demo --out demo --engine local --methods threshold,nnunet")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; a second run resumes there.")] = Path("demo"),
    engine: Annotated[AnyEngine, typer.Option(help="auto: containers when a Docker engine answers.")] = AnyEngine.auto,
    methods: Annotated[str, typer.Option(help="Methods with commas, or all.")] = "threshold,nnunet",
) -> None:
    """From phantom DICOM to a leaderboard of trained methods, with one command."""
    from leaderboard.demo import run_demo

    page = run_demo(out, engine=engine, methods=[name.strip() for name in methods.split(",") if name.strip()])
    console.print(f"[bold green]done:[/] open {page}", highlight=False)
