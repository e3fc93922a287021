"""What tests of the evaluation share: small masks, a broken submission, and metrics.json checked by its schema."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from autopet.images import write_image
from autopet.volume import Volume
from evaluation import evaluate as scoring

SCHEMA = json.loads((files("evaluation") / "schema" / "metrics.schema.json").read_text(encoding="utf-8"))

GRID = Volume(np.zeros((6, 8, 10), np.uint8), spacing_mm=(2.0, 2.0, 5.0), origin_mm=(-9.0, 4.0, 30.0))
VOXEL_ML = 0.02
LESION, SECOND, ELSEWHERE = (1, 1, 1), (3, 5, 6), (1, 5, 1)


def no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def problems(metrics: dict[str, Any]) -> list[str]:
    """What the schema has against the content of a metrics.json."""
    return [f"{error.json_path}: {error.message[:200]}" for error in Draft202012Validator(SCHEMA).iter_errors(metrics)]


def read_valid(path: Path) -> dict[str, Any]:
    """The content of a metrics.json without NaN that its schema accepts."""
    metrics = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    assert problems(metrics) == []
    return metrics


def evaluate(truth: Path, guess: Path, out: Path, **options) -> dict:
    """What `evaluate` returns, which is what it wrote, which is valid."""
    metrics = scoring.evaluate(truth, guess, out, **options)
    assert read_valid(out) == metrics
    return metrics


def boxed(*corners: tuple[int, int, int]) -> Volume:
    """A mask with a cube of 8 voxels at each corner."""
    array = np.zeros(GRID.shape, np.uint8)
    for z, y, x in corners:
        array[z : z + 2, y : y + 2, x : x + 2] = 1
    return replace(GRID, array=array)


def write(folder: Path, **volumes: Volume) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, volume in volumes.items():
        write_image(folder / f"{name}.mha", volume)
    return folder


SUBMITTED = "images/tumor-lesion-segmentation"
BROKEN = ("failed job", "missing file", "unreadable file", "two files", "wrong grid", "no mask", "link", "no output")


def broken_submission(root: Path) -> Path:
    """The platform's /input with one good case and every kind of broken one, in no order."""
    place = SUBMITTED
    socket = {"slug": "tumor-lesion-segmentation", "relative_path": place, "super_kind": "Image"}
    older = {"slug": "tumor-lesion-segmentation", "super_kind": "Image"}  # the place follows from the slug
    jobs = []
    for kind in ("good", *BROKEN):
        entry = {"interface": older} if kind == "good" else {"socket": socket}
        image = {"name": f"{kind}.mha", "pk": "any"}
        job = {"pk": kind.replace(" ", "-"), "status": "Failed" if kind == "failed job" else "Succeeded"}
        jobs.append({**job, "inputs": [{**entry, "image": image}], "outputs": [] if kind == "no output" else [entry]})
        folder = root / job["pk"] / "output" / place
        folder.mkdir(parents=True)
        if kind not in ("missing file", "link", "no output"):
            write_image(folder / "a.mha", boxed(LESION))
    folders = {kind: root / kind.replace(" ", "-") / "output" / place for kind in BROKEN}
    write_image(folders["two files"] / "b.mha", boxed())
    (folders["unreadable file"] / "a.mha").write_bytes(b"no image")
    write_image(folders["wrong grid"] / "a.mha", replace(boxed(LESION), origin_mm=(0.0, 0.0, 0.0)))
    write_image(folders["no mask"] / "a.mha", replace(GRID, array=np.full(GRID.shape, 0.5, np.float32)))
    (folders["link"] / "a.mha").symlink_to("/opt/ml/input/data/ground_truth/link.mha")
    (root / "predictions.json").write_text(json.dumps(jobs[::-1]))
    return root


STATUSES = {
    **{"good": "scored", "failed job": "failed", "missing file": "missing", "unreadable file": "refused"},
    **{kind: "refused" for kind in ("two files", "wrong grid", "no mask", "link", "no output")},
}
