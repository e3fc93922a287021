"""The command that pretrains a method's network on several data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopet.commands.options import Part, Split, take_cases
from autopet.errors import AutopetError
from autopet.progress import console

if TYPE_CHECKING:
    from types import ModuleType

app = typer.Typer()


@app.command(
    epilog="Example: autopet pretrain lesiontracer --data Dataset003_Liver --data pet=nifti --split split.csv"
    " --out models/pretrained"
)
def pretrain(
    method: Annotated[str, typer.Argument(help="Name of a method with a pretraining: lesiontracer.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="A data set, as FOLDER or NAME=FOLDER; give it once for each: nnU-Net's raw layout, or cohort."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; takes its place as --set pretrained=OUT in training.")],
    preset: Annotated[
        str, typer.Option(help="paper: the published settings, for a GPU; demo: minutes on two CPU cores.")
    ] = "paper",
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, overrides one setting of the preset.")
    ] = None,
    split: Split = None,
    part: Part = "train",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Pretrain one network on several data sets, a head for each; a second call goes on where a killed one stopped.

    The split holds for cohorts: patients who will be tested on must not be seen here either.
    """
    from autopet.checkpoint import override
    from autopet.container import choose_device
    from autopet.methods import find_method

    found = find_method(method)
    module = found.module("pretrain")
    if preset not in module.PRESETS:
        raise AutopetError(f"{method}'s pretraining has no preset {preset!r}; it has {', '.join(module.PRESETS)}")
    settings = override(module.PRESETS[preset], assign or [])
    reading = found.module("pretrain_data")
    sources = [source for text in data for source in _sources(reading, text, split, part)]
    work = out.resolve().parent / f".work-{out.name}"
    module.pretrain(sources, out.resolve(), settings=settings, work=work, device=choose_device(device))
    console.print(
        f"pretrained weights in {out}; start from them with: autopet train {method} --set pretrained={out}",
        highlight=False,
    )


def _sources(reading: ModuleType, text: str, split: Path | None, part: str) -> list:
    """The data sets of one --data: a folder with dataset.json is nnU-Net's, one with prep.csv a cohort."""
    name, sign, path = text.partition("=")
    name, folder = (name, Path(path)) if sign and not Path(text).is_dir() else ("", Path(text))
    if (folder / "dataset.json").is_file():
        return [reading.read_raw(folder, reading.safe_name(name) if name else "")]
    if not (folder / "prep.csv").is_file():
        raise AutopetError(
            f"--data {text}: expected a folder with dataset.json (nnU-Net's raw layout) or prep.csv (`autopet prep`)"
        )
    return reading.read_cases(take_cases(folder, split, part), name or folder.resolve().name)
