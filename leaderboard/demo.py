"""The whole way on the phantom cohort: DICOM -> NIfTI -> training -> containers -> evaluation -> leaderboard.

Every stage writes its own folder below `out` and is skipped when that folder is complete: a second run redoes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from autopet.build import (
    DEBIAN_BASE,
    REGISTRY_BASE,
    Recipe,
    build_image,
    constraints,
    make_debian_base,
    make_wheelhouse,
    requirements,
)
from autopet.checkpoint import CONFIG
from autopet.cohort import SPLIT, TABLE, Case, read_cohort, read_table, select_part, write_table
from autopet.engine import connect
from autopet.errors import AutopetError, one_line
from autopet.methods import find_method, list_methods
from autopet.progress import console
from autopet.splitting import split_patients
from leaderboard.runner import Entry, run_cohort

DEFAULT_METHODS = ("threshold", "nnunet")


@dataclass(frozen=True)
class Demo:
    """The size of the demonstration."""

    cases: int = 24
    tracer: str = "FDG"
    seed: int = 2022
    test_fraction: float = 0.25
    workers: int = 2


def run_demo(out: Path, *, engine: str = "auto", methods: Sequence[str] = DEFAULT_METHODS, demo: Demo = Demo()) -> Path:
    """Run every stage; returns the leaderboard's index.html.

    Parameters
    ----------
    out : Path
        Folder of the run; its stages lie side by side in it.
    engine : str
        `docker`, `local`, or `auto`: containers when a Docker engine answers and the images can be built.
    methods : sequence of str
        Methods to train and compare; `all` means every method there is. Those that are made of others' models (a vote)
        come last.
    """
    names = in_order(list_methods() if list(methods) == ["all"] else methods)
    out = out.resolve()
    _refuse_without_members(out, names)
    base = choose_base(engine)
    cases = _cohort(out, demo)
    train_cases = select_part(cases, out / SPLIT, "train")
    test_cases = select_part(cases, out / SPLIT, "test")
    results = []
    for name in names:
        model = _train(out, name, train_cases)
        image = _image(out, name, base, strict=engine == "docker") if base else ""
        _stage(4, f"run {name} on {len(test_cases)} test cases, {'in containers' if image else 'in subprocesses'}")
        entry = Entry(name, image or name, "docker" if image else "local", model)
        run_cohort(entry, test_cases, out / "submissions" / name)
        results.append(_evaluate(out, name, test_cases, demo))
    return _leaderboard(out, results)


def in_order(names: Iterable[str]) -> list[str]:
    """The methods as named, each once, those that need others' trained models last.

    All of them are imported here: a missing dependency shows before the work starts.
    """
    return sorted(dict.fromkeys(names), key=needs_models)  # the sort is stable


def needs_models(name: str) -> bool:
    """Whether a method is trained from the models of other methods, as its train.py says."""
    return bool(getattr(find_method(name).module("train"), "NEEDS_MODELS", False))


def _refuse_without_members(out: Path, names: Sequence[str]) -> None:
    """Said before minutes of work: what is made of other models needs some."""
    if names and all(map(needs_models, names)) and not any((out / "models").glob(f"*/{CONFIG}")):
        raise AutopetError(
            f"{names[0]} is made of other methods' models, and there are none; name methods, too: "
            f"--methods {','.join((*DEFAULT_METHODS, names[0]))}"
        )


def choose_base(engine: str) -> str:
    """The base image to build the methods' images from; empty when methods run in subprocesses.

    With engine `auto` it says which way was taken, and why.
    """
    if engine not in ("auto", "docker", "local"):
        raise AutopetError(f"engine {engine!r} is unknown; use auto, docker or local")
    if engine == "local":
        return ""
    try:
        base = base_image()
    except AutopetError as error:
        if engine == "docker":
            raise
        console.print(f"methods run in subprocesses: {one_line(error)}", highlight=False, markup=False)
        return ""
    console.print(f"a Docker engine answers: methods run in containers, made from {base}", highlight=False)
    return base


def _stage(number: int, text: str) -> None:
    console.rule(f"[bold]{number} · {text}", align="left")


def _once(complete: bool, what: str, make: Callable[[], object]) -> None:
    if complete:
        console.print(f"{what}: done already", highlight=False)
    else:
        make()


def _cohort(out: Path, demo: Demo) -> list[Case]:
    from data_prep.convert import prepare
    from data_prep.phantom import write_cohort

    recipe = out / "demo.txt"
    wanted = f"{asdict(demo)}\n"
    if recipe.is_file() and recipe.read_text() != wanted:
        raise AutopetError(
            f"{out} holds a run with other settings ({recipe.read_text().strip()}); choose another --out"
        )
    if not recipe.is_file():
        out.mkdir(parents=True, exist_ok=True)
        recipe.write_text(wanted)
    _stage(1, "phantom DICOM")
    dicom, nifti = out / "dicom", out / "nifti"
    _once(
        _rows(dicom / "metadata.csv") == demo.cases,
        "phantom cohort",
        lambda: write_cohort(dicom, cases=demo.cases, seed=demo.seed, tracer=demo.tracer, workers=demo.workers),
    )
    _stage(2, "DICOM to SUV, CT on the PET grid, lesion mask")
    _once(
        _rows(nifti / TABLE, status="converted") == demo.cases,
        "conversion",
        lambda: prepare(dicom, nifti, workers=demo.workers),
    )
    _organs(dicom, nifti, demo)
    cases = read_cohort(nifti)
    if len(cases) != demo.cases:
        raise AutopetError(
            f"{len(cases)} of {demo.cases} phantom studies were converted; see column `reason` of {nifti / TABLE}"
        )
    if not (out / SPLIT).is_file():
        parts = split_patients(cases, test_fraction=demo.test_fraction, seed=demo.seed)
        rows = [{"case": name, "part": part} for name, part in sorted(parts.items())]
        write_table(out / SPLIT, rows, ["case", "part"])
    return cases


def _organs(dicom: Path, nifti: Path, demo: Demo) -> None:
    """Organ labels beside the images, for methods that train with them; a run of an older version has no maps."""
    from data_prep.organs import LABELLED, TABLE, label_cohort
    from data_prep.phantom import ORGAN_FOLDER

    maps = dicom / ORGAN_FOLDER
    if not maps.is_dir():
        console.print("the phantoms came without organ maps: methods train without organ labels", highlight=False)
        return
    written = sum(_rows(nifti / TABLE, status=status) for status in LABELLED) == demo.cases
    _once(
        written and all(case.organs.is_file() for case in read_cohort(nifti)),  # a case converted anew has lost its own
        "organ labels",
        lambda: label_cohort(nifti, maps=maps, workers=demo.workers),
    )
    lost = [row for row in read_table(nifti / TABLE) if row["status"] not in LABELLED]
    if lost:
        text = f"{len(lost)} cases have no organ labels, first reason: {lost[0]['case']}: {lost[0]['reason']}"
        console.print(text, style="yellow", highlight=False, markup=False)


def _rows(table: Path, **wanted: str) -> int:
    """Rows of a table that hold the wanted values; 0 when there is no table yet."""
    rows = read_table(table) if table.is_file() else []
    return sum(all(row[column] == value for column, value in wanted.items()) for row in rows)


def _train(out: Path, name: str, cases: list[Case]) -> Path:
    _stage(3, f"train {name} on {len(cases)} cases")
    method, model = find_method(name), out / "models" / name
    settings = method.module("model").PRESETS["demo"]
    work = out / "models" / f".work-{name}"
    train = method.module("train").train
    from autopet.container import choose_device

    device = choose_device("auto")
    _once(
        (model / CONFIG).is_file() and not needs_models(name),  # what is made of other models sees if they have changed
        f"model {name}",
        lambda: train(cases, model, settings=settings, work=work, device=device),
    )
    return model


def _image(out: Path, name: str, base: str, *, strict: bool) -> str:
    """The method's image; empty when it cannot be built and engine `auto` leaves the choice."""
    _stage(4, f"container of {name}")
    try:
        return _build(out, name, base)
    except AutopetError as error:
        if strict:
            raise
        console.print(f"{name} runs in subprocesses: {one_line(error)}", style="yellow", highlight=False, markup=False)
        return ""


def _build(out: Path, name: str, base: str) -> str:
    """Build with wheels that this machine's pip collects (the build itself needs no network)."""
    return build_image(Recipe(name, base_image=base, wheelhouse=_wheels(out, name)))


def _wheels(out: Path, name: str) -> Path:
    """The wheels of a method. Methods with the same requirements have one folder, and so share layers of their images.

    All folders share the files of `wheelhouse/pool`: torch alone has 200 MB. Other versions in constraints.txt are
    another folder: an image cannot be built from wheels of the old ones.
    """
    key = hashlib.sha256("\n".join([*requirements(name), constraints()]).encode()).hexdigest()[:12]
    wheels = out / "wheelhouse" / key
    marker = wheels / "complete"
    if not marker.is_file():
        with console.status(f"collecting wheels for {name}"):
            make_wheelhouse(name, wheels, pool=out / "wheelhouse" / "pool")
        marker.touch()
    return wheels


def base_image() -> str:
    """A Python 3.11 base image: one that is here, else the registry's, else one made from Debian's packages."""
    from docker.errors import DockerException, ImageNotFound

    client = connect()
    for tag in (REGISTRY_BASE, DEBIAN_BASE):
        try:
            client.images.get(tag)
            return tag
        except ImageNotFound:
            continue
    try:
        with console.status(f"pulling {REGISTRY_BASE}"):
            client.images.pull(*REGISTRY_BASE.split(":"))
        return REGISTRY_BASE
    except DockerException:
        return make_debian_base()


def _evaluate(out: Path, name: str, cases: list[Case], demo: Demo) -> str:
    from evaluation.evaluate import evaluate

    _stage(5, f"evaluate {name}")
    metrics = out / "evaluation" / name / "metrics.json"
    jobs = out / "submissions" / name / "predictions.json"
    current = metrics.is_file() and metrics.stat().st_mtime >= jobs.stat().st_mtime
    _once(
        current,
        f"evaluation of {name}",
        lambda: evaluate(
            out / "nifti", jobs.parent, metrics, name=name, cases=[case.name for case in cases], workers=demo.workers
        ),
    )
    return str(metrics)


def _leaderboard(out: Path, results: list[str]) -> Path:
    from leaderboard.render import write_site
    from leaderboard.submissions import read_results

    _stage(6, "leaderboard")
    page = write_site(read_results(results), out / "leaderboard", title="Phantom cohort")
    for note in json.loads((page.parent / "leaderboard.json").read_text(encoding="utf-8"))["notes"]:
        console.print(note, style="bold yellow", highlight=False, markup=False)
    return page
