"""The `autopet` command: one sub-command per stage. Siblings of autopet/ are imported where a command needs them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from autopet import __version__
from autopet.errors import AutopetError, one_line
from autopet.progress import console

app = typer.Typer(
    name="autopet",
    help="PET/CT lesion segmentation, from DICOM to leaderboard; `autopet demo` runs every stage.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class Engine(StrEnum):
    """Where a method runs."""

    docker = "docker"
    local = "local"


class AnyEngine(StrEnum):
    """Where the demo's methods run."""

    auto = "auto"
    docker = "docker"
    local = "local"


class Tracer(StrEnum):
    """Tracers of a phantom cohort."""

    fdg = "fdg"
    psma = "psma"
    mixed = "mixed"


class Size(StrEnum):
    """Matrix sizes of a phantom cohort."""

    small = "small"
    full = "full"


class Api(StrEnum):
    """How the platform calls an image."""

    exec = "exec"
    invoke = "invoke"


PLATFORM_TIME_LIMIT_S = 1200.0  # grand-challenge's default for one phase
Workers = Annotated[int, typer.Option(min=1, help="Processes that work side by side.")]
Split = Annotated[Path | None, typer.Option(help="split.csv of `autopet split`; without it all cases are taken.")]
Part = Annotated[str, typer.Option(help="Part of the split to take.")]
TimeLimit = Annotated[float | None, typer.Option(min=1, help="Seconds per case, loading included; none without it.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog="Example: autopet phantom dicom --cases 12 --seed 7 --tracer fdg")
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write the DICOM studies to, in the TCIA layout.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of patients, one study each.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cohort.")] = 0,
    organ_maps: Annotated[
        Path | None, typer.Option(help="Folder of organ label maps (NIfTI) to use as anatomy.")
    ] = None,
    size: Annotated[
        Size, typer.Option(help="small: about 4x4x6 mm PET, for CPU training; full: real matrix sizes.")
    ] = Size.small,
    tracer: Annotated[Tracer, typer.Option(help="mixed: both in turn.")] = Tracer.mixed,
    positive_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of patients with lesions.")] = 0.75,
    workers: Workers = 1,
) -> None:
    """Write a cohort of simulated PET/CT patients as real DICOM (CT, PT, SEG)."""
    from data_prep.phantom import write_cohort

    rows = write_cohort(
        out,
        cases=cases,
        seed=seed,
        organ_maps=organ_maps,
        size=size.value,
        tracer=tracer.value if tracer is Tracer.mixed else tracer.value.upper(),
        positive_fraction=positive_fraction,
        workers=workers,
    )
    console.print(f"{len(rows)} studies in {out}; convert them with: autopet prep {out} nifti", highlight=False)


@app.command(epilog="Example: autopet prep /data/FDG-PET-CT-Lesions nifti --segments Lesion --workers 4")
def prep(
    source: Annotated[Path, typer.Argument(help="Folder with DICOM studies anywhere below it.")],
    out: Annotated[Path, typer.Argument(help="Folder for CT, PET, SUV, CTres, SEG.nii.gz per study, and prep.csv.")],
    segments: Annotated[str, typer.Option(help="Segment names or numbers, with commas; all united without it.")] = "",
    suv_mode: Annotated[
        str, typer.Option(help="qiba: vendor-neutral rules; challenge: the official script's equation.")
    ] = "qiba",
    workers: Workers = 1,
) -> None:
    """Convert DICOM studies: SUV, CT on the PET grid, lesion mask, and an audit of how."""
    from data_prep.convert import prepare

    names = [name.strip() for name in segments.split(",") if name.strip()]
    _report_rows(prepare(source, out, segments=names, suv_mode=suv_mode, workers=workers), out)


@app.command(
    epilog="Example: autopet collect sts cohort --pet PET_image.nii.gz --ct CT_image.nii.gz --mask PET_mask.nii.gz"
)
def collect(
    source: Annotated[Path, typer.Argument(help="Folder with one folder per patient.")],
    out: Annotated[Path, typer.Argument(help="Cohort folder to write, like that of `autopet prep`.")],
    pet: Annotated[str, typer.Option(help="Name of the PET image in SUV, in each patient's folder.")] = "SUV.nii.gz",
    ct: Annotated[str, typer.Option(help="Name of the CT image in HU; resampled to the PET grid.")] = "CT.nii.gz",
    mask: Annotated[str, typer.Option(help="Name of the lesion mask; empty when there is none.")] = "SEG.nii.gz",
) -> None:
    """Make a cohort of images that are converted already."""
    from data_prep.collect import collect as collect_cohort

    _report_rows(collect_cohort(source, out, pet=pet, ct=ct, mask=mask or None), out)


def _report_rows(rows: Sequence[dict], out: Path) -> None:
    """A line per study that did not come through; an error when none did."""
    lost = [row for row in rows if row["status"] != "converted"]
    for row in lost:
        console.print(f"{row['status']}: {row['case']}: {row['reason']}", style="yellow", highlight=False, markup=False)
    console.print(f"{len(rows) - len(lost)} of {len(rows)} studies converted; see {out / 'prep.csv'}", highlight=False)
    if len(lost) == len(rows):
        raise AutopetError(
            f"no study was converted; first reason: {lost[0]['reason'] if lost else 'no study was found'}"
        )


@app.command(epilog="Example: autopet split nifti split.csv --test-fraction 0.2 --seed 1")
def split(
    data: Annotated[Path, typer.Argument(help="Cohort folder of `autopet prep`.")],
    out: Annotated[Path, typer.Argument(help="CSV file to write: case, part.")],
    test_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of patients in part `test`.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same split.")] = 0,
) -> None:
    """Divide a cohort into train and test by patient, in proportion of tracer, centre and lesions."""
    from autopet.cohort import read_cohort, split_patients, write_table

    parts = split_patients(read_cohort(data), test_fraction=test_fraction, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(out, [{"case": case, "part": part} for case, part in sorted(parts.items())], ["case", "part"])
    counts = {part: list(parts.values()).count(part) for part in ("train", "test")}
    console.print(f"{counts['train']} cases to train, {counts['test']} to test, in {out}", highlight=False)


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
    split: Split = None,
    part: Part = "train",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a method; a second call goes on where a killed one stopped."""
    from autopet.checkpoint import override
    from autopet.container import choose_device
    from autopet.methods import find_method

    found = find_method(method)
    presets = found.module("model").PRESETS
    if preset not in presets:
        raise AutopetError(f"{method} has no preset {preset!r}; it has {', '.join(presets)}")
    settings = override(presets[preset], assign or [])
    work = out.resolve().parent / f".work-{out.name}"
    run = found.module("train").train
    run(_cases(data, split, part), out.resolve(), settings=settings, work=work, device=choose_device(device))
    console.print(
        f"model in {out}; run it with: autopet run {method} --model {out} --data {data} --out runs", highlight=False
    )


def _cases(data: Path, split_csv: Path | None, part: str) -> list:
    from autopet.cohort import read_cohort, select_part

    cases = read_cohort(data)
    return select_part(cases, split_csv, part) if split_csv else cases


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
    jobs = run_cohort(entry, _cases(data, split, part), out)
    failed = [job for job in jobs if job["status"] == FAILED]
    console.print(f"{len(jobs) - len(failed)} of {len(jobs)} cases succeeded, see {out}", highlight=False)
    if len(failed) == len(jobs):
        raise AutopetError(f"every case failed; first reason: {failed[0]['error_message']}")


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
    out: Annotated[Path, typer.Option(help="metrics.json to write; projections for the leaderboard go beside it.")],
    name: Annotated[str, typer.Option(help="Name of the submission; default: the folder's name.")] = "",
    edition: Annotated[
        str, typer.Option(help="Whose rules for empty cases: III (undefined) or I (no guards).")
    ] = "III",
    failed: Annotated[str, typer.Option(help="How cases without a usable mask count: empty or nan.")] = "empty",
    images: Annotated[Path | None, typer.Option(help="Folder of PET images for the projections.")] = None,
    split: Split = None,
    part: Part = "test",
    image: Annotated[str, typer.Option(help="Run in this evaluation image instead of this Python.")] = "",
    workers: Workers = 1,
) -> None:
    """Score predictions: Dice, false positive and false negative volume per case and over the cases."""
    cases = [case.name for case in _cases(ground_truth, split, part)] if split else None
    if image:
        from evaluation.container import evaluate_in_container

        options = [
            "--name",
            name or out.parent.name,
            "--edition",
            edition,
            "--failed",
            failed,
            "--workers",
            str(workers),
        ]
        metrics = evaluate_in_container(
            image, ground_truth, predictions, out, options=options, images=images, cases=cases
        )
    else:
        from evaluation.evaluate import evaluate as score

        metrics = score(
            ground_truth,
            predictions,
            out,
            name=name,
            edition=edition,
            failed=failed,
            images=images,
            cases=cases,
            workers=workers,
        )
    _show_scores(metrics)


def _show_scores(metrics: dict) -> None:
    table = Table("case", "status", "Dice", "FPV ml", "FNV ml")
    for row in metrics["results"]:
        values = [row["dice"], row["fpv_ml"], row["fnv_ml"]]
        table.add_row(row["case"], row["status"], *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    for row in metrics["results"]:
        if row["status"] != "scored":
            console.print(f"{row['case']}: {row['reason']}", style="yellow", highlight=False, markup=False)


@app.command(epilog="Example: autopet leaderboard results/threshold results/nnunet --out site")
def leaderboard(
    results: Annotated[list[str], typer.Argument(help="metrics.json files, folders that hold one, or name=path.")],
    out: Annotated[Path, typer.Option(help="Folder for index.html, leaderboard.csv and leaderboard.json.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Leaderboard",
) -> None:
    """Rank submissions by the rules of editions I and II and make the page."""
    from leaderboard.render import write_site
    from leaderboard.submissions import read_results

    page = write_site(read_results(results), out, title=title)
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
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on", style="red")
        sys.exit(130)


if __name__ == "__main__":
    main()
