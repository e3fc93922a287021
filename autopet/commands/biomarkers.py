"""Command that reports on the biomarkers MTV and TLG of evaluated submissions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopet.errors import AutopetError
from autopet.progress import console

app = typer.Typer()


@app.command(
    epilog="Example: autopet biomarkers results/unet3d --out biomarkers --data nifti --predictions submissions/unet3d"
)
def biomarkers(
    results: Annotated[list[str], typer.Argument(help="metrics.json files, folders that hold one, or name=path.")],
    out: Annotated[Path, typer.Option(help="Folder for report.md, biomarkers.csv, plots and overlays.")],
    data: Annotated[Path | None, typer.Option(help="Cohort folder that was evaluated on, to draw overlays.")] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(help="Submission folder to draw masks and activation maps of, or name=folder; repeatable."),
    ] = None,
    overlays: Annotated[int, typer.Option(min=1, help="Cases to draw, spread evenly over the true volume.")] = 12,
) -> None:
    """Compare true and estimated MTV and TLG: deviations, ICC, Bland-Altman plots, overlays of single slices."""
    if bool(predictions) != bool(data):
        raise AutopetError("overlays need both, --data (a cohort) and --predictions (a submission); give both or none")
    from autopet.cohort import read_cohort
    from leaderboard.biomarkers import Pictures, write_biomarkers
    from leaderboard.submissions import read_results

    pictures = None
    if data is not None:
        cases = [case for case in read_cohort(data) if case.lesion_voxels is not None]
        pictures = Pictures(cases, _named(predictions or []), overlays)
    numbers = write_biomarkers(read_results(results), out, pictures=pictures)
    _show(numbers)
    console.print(f"see {out / 'report.md'}", highlight=False, markup=False)


def _named(predictions: list[str]) -> dict[str, Path]:
    """Folders by the name of the submission: the name given, else the folder's."""
    found: dict[str, Path] = {}
    for text in predictions:
        name, separator, rest = text.partition("=")
        if not separator or Path(text).exists():
            name, rest = Path(text).resolve().name, text
        if name in found:
            raise AutopetError(f"two folders of predictions are named {name!r}; name each once, with name=folder")
        found[name] = Path(rest)
    return found


def _show(numbers: list) -> None:
    """One table per group of cases."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leaderboard.biomarker_text import HEADER, cells

    output = Console()
    output = output if output.is_terminal else Console(width=max(output.width, 190))
    for number, group in enumerate(numbers[0].groups):
        table = Table(*HEADER, title=f"{group.title} ({group.cases})", title_justify="left")
        for one in numbers:
            table.add_row(Text(one.name), *cells(one.groups[number]))
        output.print(table)
