"""Commands for released checkpoints: weights list, weights fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
weights = typer.Typer(help="Released checkpoints: list them, fetch one.", no_args_is_help=True)
app.add_typer(weights, name="weights")


@weights.command("list", epilog="Example: autopet weights list")
def list_weights() -> None:
    """Show what has been released: names, addresses, licences, and where each address was seen."""
    from autopet.weights import TABLE, USES

    for entry in TABLE:
        size = f", {entry.size_bytes / 1e6:.0f} MB" if entry.size_bytes else ""
        use = f"runs with the method {entry.method}" if entry.method else USES[entry.use]
        typer.echo(f"{entry.name}: {entry.title}\n  {use}{size}; licence: {entry.licence}")
        typer.echo(f"  {entry.page}{' ' + entry.file if entry.file else ''}\n  address from: {entry.seen}")


@weights.command(
    epilog="Example: autopet weights fetch lesiontracer --from ~/Downloads/autoPET-3-LesionTracer.zip"
    " --out models/lesiontracer"
)
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `autopet weights list`.")],
    out: Annotated[Path | None, typer.Option(help="Model folder to write; default models/NAME.")] = None,
    source: Annotated[
        str, typer.Option("--from", help="Another address, or a file or folder that was copied by hand.")
    ] = "",
    ca_bundle: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust, e.g. of the hospital's proxy.")
    ] = None,
) -> None:
    """Fetch released weights into a model folder; a second call goes on where a broken one stopped."""
    from autopet.progress import console
    from autopet.weights import PRETRAINING, fetch, find_release

    folder = fetch(name, out or Path("models") / name, source=source, ca_bundle=ca_bundle)
    entry = find_release(name)
    if entry.method:
        hint = f"; run it with: autopet run {entry.method} --model {folder} --data DIR --out DIR"
    else:
        hint = f"; start from it with: --pretrained {folder}" if entry.use == PRETRAINING else ""
    console.print(f"weights in {folder}{hint}", highlight=False, markup=False, soft_wrap=True)
