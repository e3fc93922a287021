"""The `autopet` command: one sub-command per stage. Siblings of autopet/ are imported where a command needs them."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from autopet import __version__
from autopet.commands import (
    biomarkers,
    data,
    experiment,
    maps,
    methods,
    organs,
    postprocess,
    pretrain,
    pseudolabel,
    results,
    statistics,
    vote,
    weights,
)
from autopet.errors import AutopetError, one_line
from autopet.progress import console

INTERRUPTED = 130  # exit status
app = typer.Typer(
    name="autopet",
    help="PET/CT lesion segmentation, from DICOM to leaderboard; `autopet demo` runs every stage.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
STAGES = (
    data, organs, methods, maps, pretrain, postprocess, pseudolabel, weights, results, biomarkers, vote, statistics,
    experiment,
)  # fmt: skip
for stage in STAGES:
    app.add_typer(stage.app)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; errors that the user can mend are one line, and exit status 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # containers are removed on the way out
    try:
        app()
    except AutopetError as error:
        console.print(f"error: {one_line(error)}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder without permission: the machine's, not the program's fault
        if error.errno is None:
            raise
        console.print(f"error: {one_line(error)}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as stop:  # Typer makes this of Ctrl-C, and of everything else that ends a command
        if stop.code == INTERRUPTED:
            console.print("interrupted; run the same command again to go on", style="red")
        raise


if __name__ == "__main__":
    main()
