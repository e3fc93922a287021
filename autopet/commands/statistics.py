"""Commands that rank with statistics, and that explain a rank: rank, explain."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autopet.errors import AutopetError
from autopet.progress import console

if TYPE_CHECKING:
    from leaderboard.analysis import Analysis

app = typer.Typer()

Results = Annotated[list[str], typer.Argument(help="metrics.json files, folders that hold one, or name=path.")]
SchemeName = Annotated[str, typer.Option(help="Ranking scheme: I, II, II-2, III, IV, V, or a leaderboard.toml.")]


@app.command(epilog="Example: autopet rank results/threshold results/nnunet --scheme III --out ranking")
def rank(
    results: Results,
    out: Annotated[Path, typer.Option(help="Folder for ranking.json, ranking.csv and methods.txt.")],
    scheme: SchemeName = "I",
    bootstraps: Annotated[
        int | None, typer.Option(min=0, max=10**6, help="Bootstrap samples instead of the scheme's number; 0: none.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the bootstrap instead of the scheme's.")] = None,
) -> None:
    """Rank submissions, with rank intervals, tests, and what the ranks hang on."""
    from leaderboard.analysis import analyse
    from leaderboard.ranking_files import write_ranking
    from leaderboard.scheme_file import scheme_named
    from leaderboard.submissions import read_results

    chosen = scheme_named(scheme)
    chosen = replace(
        chosen,
        bootstraps=chosen.bootstraps if bootstraps is None else bootstraps,
        seed=chosen.seed if seed is None else seed,
    )
    analysis = analyse(read_results(results), chosen)
    write_ranking(analysis, out)
    _standard_output().print(_rank_table(analysis))
    for note in analysis.notes:
        console.print(note, style="bold yellow", highlight=False, markup=False)
    console.print(f"written to {out}: ranking.json, ranking.csv, methods.txt", highlight=False, markup=False)


@app.command(epilog="Example: autopet explain results/threshold results/nnunet --algorithm nnunet --against threshold")
def explain(
    results: Results,
    algorithm: Annotated[str, typer.Option(help="Name of the submission to explain.")],
    against: Annotated[str, typer.Option(help="Name of the submission to compare it with.")],
    scheme: SchemeName = "I",
    top: Annotated[int, typer.Option(min=1, help="Cases per metric, and lesions, to show.")] = 5,
    out: Annotated[Path | None, typer.Option(help="File for all cases and lesions, as JSON.")] = None,
) -> None:
    """Show the cases and lesions that decided the difference of two submissions."""
    from leaderboard.explain import explain as take_apart
    from leaderboard.explanation_text import explanation_json, explanation_tables
    from leaderboard.ranking_files import write_text
    from leaderboard.scheme_file import scheme_named
    from leaderboard.submissions import read_results

    found = take_apart(read_results(results), scheme_named(scheme), algorithm=algorithm, against=against)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(explanation_json(found), indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise AutopetError(f"{out}: cannot be written ({error.strerror})") from error
    for part in explanation_tables(found, top=top):
        _standard_output().print(part)


def _standard_output() -> Console:
    """Results go to standard output (progress and errors to the other), wide enough for a table in a file."""
    output = Console()
    return output if output.is_terminal else Console(width=max(output.width, 160))


def _rank_table(analysis: Analysis) -> Table:
    """Rank, interval and the values and ranks by metric; names of participants stay text."""
    scheme, stability = analysis.scheme, analysis.stability
    table = Table(title=Text(scheme.title), title_justify="left")
    interval = () if not scheme.bootstraps else (f"{scheme.interval:.0%} interval", "P(rank 1)")
    units = [f"{c.title} {c.unit}".rstrip() for c in scheme.columns]
    for header in ("rank", "submission", *interval, "mean rank", *units):
        table.add_column(Text(header), justify="left" if header == "submission" else "right")
    for standing in analysis.standings:
        index = analysis.index(standing)
        sampled: tuple[str, ...] = ("-",) * len(interval)
        if stability is not None:
            ends = f"{stability.low[index]:g} to {stability.high[index]:g}"
            sampled = (ends, f"{stability.p_first[index]:.3f}")
        values = [
            f"{'-' if math.isnan(value) else format(value, '.3f')} (#{place:g})"
            for value, place in zip(standing.means, standing.ranks, strict=True)
        ]
        cells = (f"{standing.rank:g}", standing.submission.name, *sampled, f"{standing.score:g}", *values)
        table.add_row(*map(Text, cells))
    return table
