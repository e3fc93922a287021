"""The evaluation in its container, called from outside with the organisers' flags."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopet.cohort import write_table
from autopet.engine import Limits, run_container
from autopet.errors import AutopetError
from autopet.folders import whole_file
from evaluation.aggregate import printable
from evaluation.evaluate import remove_earlier
from evaluation.previews import FOLDER
from evaluation.report import LESIONS_FILE
from evaluation.truths import CASES_COLUMNS, CASES_TABLE, find_truths, select_truths

DATA = "/opt/ml/input/data"


def evaluate_in_container(
    image: str,
    ground_truth: Path,
    predictions: Path,
    out: Path,
    *,
    options: Sequence[str] = (),
    images: Path | None = None,
    cases: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score predictions in an evaluation image; writes metrics.json to `out`, lesions.csv and previews beside it.

    Parameters
    ----------
    image : str
        Tag of an image that `autopet build evaluation` made.
    ground_truth, images, cases
        As for `evaluation.evaluate.evaluate`; the masks and PET images that count are copied into the folders that the
        platform mounts.
    options : sequence of str
        Further flags of the container's entry point, e.g. `("--edition", "I")`.

    Raises
    ------
    AutopetError
        No engine, no such image, or the container's own last line.
    """
    links = sorted(path for path in predictions.rglob("*") if path.is_symlink())
    if links:  # mounting would follow it: to the ground truth, perhaps
        raise AutopetError(f"{printable(str(links[0]))} is a link; predictions must be plain files, copy them")
    truths = select_truths(find_truths(ground_truth, images=images), cases)
    with tempfile.TemporaryDirectory(prefix="autopet-evaluation-") as name:
        folder = Path(name)
        mounts = {f"{DATA}/ground_truth": folder / "ground_truth"}
        (folder / "ground_truth").mkdir()
        if any(truth.tracer or truth.centre for truth in truths):
            rows = [{"case": truth.case, "tracer": truth.tracer, "centre": truth.centre} for truth in truths]
            write_table(folder / "ground_truth" / CASES_TABLE, rows, CASES_COLUMNS)
        for truth in truths:
            _copy_as(truth.case, truth.mask, folder / "ground_truth")
            if truth.pet:
                _copy_as(truth.case, truth.pet, folder / "images")
                mounts[f"{DATA}/images"] = folder / "images"
        run_container(image, predictions, folder / "output", mounts=mounts, command=options, limits=Limits())
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_earlier(out)
        if (folder / "output" / FOLDER).is_dir():
            shutil.copytree(folder / "output" / FOLDER, out.parent / FOLDER, dirs_exist_ok=True)
        if (folder / "output" / LESIONS_FILE).is_file():
            shutil.copy(folder / "output" / LESIONS_FILE, out.parent)
        with whole_file(out) as part:
            shutil.copy(folder / "output/metrics.json", part)
    return json.loads(out.read_text())


def _copy_as(case: str, source: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    suffix = ".nii.gz" if source.name.endswith(".nii.gz") else source.suffix
    shutil.copyfile(source, folder / f"{case}{suffix}")
