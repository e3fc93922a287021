"""Commands that train, pack and run methods: train, predict, run, configure, wheelhouse, build."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from autopet.commands.options import Part, Split, take_cases
from autopet.errors import AutopetError
from autopet.progress import console

app = typer.Typer()
PLATFORM_TIME_LIMIT_S = 1200.0  # grand-challenge's default for one phase
TimeLimit = Annotated[float | None, typer.Option(min=1, help="Seconds per case, loading included; none without it.")]


class Engine(StrEnum):
    """Where a method runs."""

    docker = "docker"
    local = "local"


class Api(StrEnum):
    """How the platform calls an image."""

    exec = "exec"
    invoke = "invoke"


@app.command(epilog="Example: autopet train nnunet --data nifti --out models/nnunet --preset demo --split split.csv")
def train(
    method: Annotated[str, typer.Argument(help="Name of the method, e.g. threshold or nnunet.")],
    data: Annotated[Path, typer.Option(help="Cohort folder of `autopet prep`.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    preset: Annotated[
        str, typer.Option(help="paper: the published settings, for a GPU; demo: minutes on two CPU cores.")
    ] = "paper",
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, overrides one setting of the preset.")
    ] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Checkpoint or folder to start from, for methods that can; says what it loaded.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Which cases are trained on, for methods that have a choice: paper or holdout.")
    ] = None,
    split: Split = None,
    part: Part = "train",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a method; a second call goes on where a killed one stopped."""
    import json

    from autopet.checkpoint import override
    from autopet.container import choose_device
    from autopet.methods import find_method

    found = find_method(method)
    presets = found.module("model").PRESETS
    if preset not in presets:
        raise AutopetError(f"{method} has no preset {preset!r}; it has {', '.join(presets)}")
    if protocol is not None and not hasattr(presets[preset], "protocol"):
        raise AutopetError(f"{method} is trained in one way only, it has no setting `protocol`; leave --protocol out")
    given = {"pretrained": None if pretrained is None else str(pretrained.resolve()), "protocol": protocol}
    start = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    settings = override(presets[preset], [*(assign or []), *start])
    work = out.resolve().parent / f".work-{out.name}"
    run = found.module("train").train
    run(take_cases(data, split, part), out.resolve(), settings=settings, work=work, device=choose_device(device))
    console.print(
        f"model in {out}; run it with: autopet run {method} --model {out} --data {data} --out runs", highlight=False
    )


@app.command(
    epilog="Example: autopet predict threshold --input case/ --output result/ --model models/threshold --engine local"
)
def predict(
    method: Annotated[str, typer.Argument(help="Name of the method; with --image any text.")],
    input: Annotated[Path, typer.Option(help="Folder like /input: images/pet/*.mha and images/ct/*.mha.")],
    output: Annotated[Path, typer.Option(help="Folder that becomes /output.")],
    engine: Annotated[
        Engine, typer.Option(help="docker: in the method's image; local: in a subprocess.")
    ] = Engine.docker,
    model: Annotated[Path | None, typer.Option(help="Model folder, mounted at /opt/ml/model.")] = None,
    image: Annotated[str, typer.Option(help="Image tag; default: the one `autopet build` gives the method.")] = "",
    time_limit: TimeLimit = None,
) -> None:
    """Run a method on one case, in its container with the organisers' flags or locally."""
    from autopet.engine import run_case

    outcome = run_case(
        _target(method, engine, image), input, output, engine=engine, model=model, limits=_limits(time_limit)
    )
    if not outcome.ok:
        raise AutopetError(outcome.error.removeprefix("error: "))
    for line in outcome.log.splitlines():
        if line.startswith("warning: "):
            console.print(line, style="yellow", highlight=False, markup=False)
    console.print(f"done in {outcome.seconds:.1f} s, see {output}", highlight=False)


def _target(method: str, engine: Engine, image: str) -> str:
    from autopet.build import Recipe

    if engine is Engine.local:
        return method
    return image or Recipe(method).default_tag


def _limits(time_limit_s: float | None) -> Any:
    from autopet.engine import Limits

    return Limits() if time_limit_s is None else Limits(time_limit_s=time_limit_s)


@app.command(
    epilog="Example: autopet run nnunet --data nifti --split split.csv --model models/nnunet --out submissions/nnunet"
)
def run(
    method: Annotated[str, typer.Argument(help="Name of the method; with --image any name for the submission.")],
    data: Annotated[Path, typer.Option(help="Cohort folder of `autopet prep`.")],
    out: Annotated[Path, typer.Option(help="Submission folder: predictions.json and one folder per case.")],
    split: Split = None,
    part: Part = "test",
    engine: Annotated[Engine, typer.Option(help="docker or local.")] = Engine.docker,
    model: Annotated[Path | None, typer.Option(help="Model folder, mounted at /opt/ml/model.")] = None,
    image: Annotated[str, typer.Option(help="Image tag; default: the one `autopet build` gives the method.")] = "",
    time_limit: TimeLimit = PLATFORM_TIME_LIMIT_S,
) -> None:
    """Run a method on every case of a cohort; a second call runs only what is missing or failed."""
    from leaderboard.runner import FAILED, Entry, run_cohort

    entry = Entry(method, _target(method, engine, image), engine, model, _limits(time_limit))
    jobs = run_cohort(entry, take_cases(data, split, part), out)
    failed = [job for job in jobs if job["status"] == FAILED]
    console.print(f"{len(jobs) - len(failed)} of {len(jobs)} cases succeeded, see {out}", highlight=False)
    if len(failed) == len(jobs):
        raise AutopetError(f"every case failed; first reason: {failed[0]['error_message']}")


@app.command(epilog="Example: autopet configure models/weakcam --set cam=scorecam --set class_threshold=0.4")
def configure(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="option=value; without it the options are shown.")
    ] = None,
) -> None:
    """Show how a trained model is run, or change it, for methods that can; nothing is trained again."""
    from autopet.checkpoint import load_config
    from autopet.methods import find_method

    method = str(load_config(model).get("method", ""))
    module = find_method(method).module("predict")
    if not hasattr(module, "set_options"):
        raise AutopetError(f"{model}: {method} has no options of its own; `autopet postprocess` works for all methods")
    options = module.set_options(model, assign or [])
    text = ", ".join(f"{name} = {value}" for name, value in options.items())
    console.print(f"{model}: {text}", highlight=False, markup=False, soft_wrap=True)


@app.command(epilog="Example: autopet wheelhouse nnunet wheels/")
def wheelhouse(
    method: Annotated[str, typer.Argument(help="Name of the method, or evaluation.")],
    out: Annotated[Path, typer.Argument(help="Folder for the wheels.")],
) -> None:
    """Collect the wheels of a method's dependencies, to build its image without a network."""
    from autopet.build import make_wheelhouse

    with console.status(f"collecting wheels for {method}"):
        folder = make_wheelhouse(method, out)
    console.print(f"{len(list(folder.glob('*.whl')))} wheels in {folder}", highlight=False)


@app.command(
    epilog="Example: autopet build nnunet --model models/nnunet --base-image autopet-base:bookworm --wheelhouse wheels/"
)
def build(
    method: Annotated[str, typer.Argument(help="Name of the method, or evaluation.")],
    model: Annotated[Path | None, typer.Option(help="Model folder to bake into the image.")] = None,
    tag: Annotated[str, typer.Option(help="Tag of the image; default autopet-METHOD:VERSION.")] = "",
    base_image: Annotated[str, typer.Option(help="Image with Python 3.11.")] = "python:3.11-slim",
    wheelhouse: Annotated[Path | None, typer.Option(help="Folder of wheels; nothing is fetched then.")] = None,
    ca_bundle: Annotated[Path | None, typer.Option(help="Certificates that pip trusts during the build.")] = None,
    api: Annotated[Api, typer.Option(help="exec: once per case; invoke: HTTP server on port 4743.")] = Api.exec,
) -> None:
    """Build the container image of a method, or of the evaluation."""
    from autopet.build import Recipe, build_image

    made = build_image(Recipe(method, model, base_image, wheelhouse, ca_bundle, api), tag=tag)
    console.print(
        f"built {made}; try it with: autopet predict {method} --image {made} --input DIR --output DIR", highlight=False
    )
