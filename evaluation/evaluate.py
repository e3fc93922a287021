"""Score a folder of predictions against the ground truth and write metrics.json."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from autopet.images import read_image
from autopet.progress import track
from autopet.volume import Volume
from evaluation import previews as pictures
from evaluation.aggregate import REFUSED, SCORED, build_metrics, json_number, policy_text
from evaluation.jobs import FOUND, Pair, find_candidates, find_truths, pair_up, select_truths
from evaluation.metrics import METRICS, edition_named, score

PLATFORM_OUTPUT = Path("/output")


@dataclass(frozen=True)
class Settings:
    """How every case is scored: the edition's rules, the policy for lost cases, where pictures go (None: nowhere)."""

    edition: str
    failed: str
    previews: Path | None


def evaluate(
    ground_truth: Path,
    predictions: Path,
    out: Path,
    *,
    name: str = "",
    edition: str = "III",
    failed: str = "empty",
    images: Path | None = None,
    cases: Sequence[str] | None = None,
    workers: int = 1,
    previews: bool = True,
) -> dict[str, Any]:
    """Score a submission; every ground-truth case gets a row, whatever became of its prediction.

    Parameters
    ----------
    ground_truth : Path
        Folder of masks `<case>.nii.gz|.mha`, or a cohort that `autopet prep` wrote.
    predictions : Path
        The platform's /input with predictions.json, or a plain folder of masks `<case>.nii.gz|.mha`.
    out : Path
        metrics.json to write; previews go into `previews/` next to it.
    name : str
        The submission's name; the folder of `out` when empty.
    edition : str
        Rules for cases without lesions, see `evaluation.metrics.EDITIONS`.
    failed : str
        Policy for cases without a valid prediction, see `evaluation.aggregate.POLICIES`.
    images : Path, optional
        Folder of PET images `<case>.nii.gz|.mha` (SUV) for the previews.
    cases : names, optional
        Evaluate these only.
    workers : int
        Processes to use.
    previews : bool
        Write previews.

    Returns
    -------
    dict
        The content of metrics.json, see `evaluation.aggregate.build_metrics`.

    Raises
    ------
    AutopetError
        There is no ground truth or no prediction at all, none of them match, the ground truth itself is broken,
        or an argument is unknown.
    """
    edition_named(edition)
    policy_text(failed)
    out = Path(out).resolve()
    everything = find_truths(Path(ground_truth), images=None if images is None else Path(images))
    truths = select_truths(everything, cases)
    pairing = pair_up(truths, find_candidates(Path(predictions)), ignored=[truth.case for truth in everything])
    settings = Settings(edition, failed, out.parent / pictures.FOLDER if previews else None)
    rows = list(track(_score_all(pairing.pairs, settings, workers), "scoring", total=len(pairing.pairs)))
    metrics = build_metrics(
        rows,
        name=name or _default_name(out),
        edition=edition,
        failed=failed,
        unmatched=pairing.unmatched,
        notes=pairing.notes,
    )
    _write_json(out, metrics)
    return metrics


def _default_name(out: Path) -> str:
    """The folder's name; none for the platform's /output, which every submission shares."""
    return "" if out.parent == PLATFORM_OUTPUT else out.parent.name


def _score_all(pairs: Sequence[Pair], settings: Settings, workers: int) -> Iterator[dict[str, Any]]:
    work = partial(score_pair, settings=settings)
    if workers <= 1 or len(pairs) <= 1:
        yield from map(work, pairs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(pairs)), mp_context=context)
    try:
        yield from pool.map(work, pairs)
    except BrokenProcessPool as error:
        raise AutopetError("a worker process was killed (out of memory?); use fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def score_pair(pair: Pair, *, settings: Settings) -> dict[str, Any]:
    """Score one case and write its preview.

    Returns
    -------
    dict
        One row of `results`: case, status, reason, the metrics and volumes (None = undefined), and `preview`, which
        says what is lacking in the picture, if anything.
    """
    truth = _read_truth(pair.truth.mask)
    prediction, status, reason = _read_prediction(pair, truth)
    row: dict[str, Any] = {"case": pair.truth.case, "status": status, "reason": reason}
    row.update({key: json_number(value) for key, value in _scores(truth, prediction, settings).items()})
    row["preview"] = _write_preview(pair, truth, prediction, settings.previews)
    return row


def _scores(truth: Volume, prediction: Volume | None, settings: Settings) -> dict[str, float]:
    guess = np.zeros(truth.shape, dtype=bool) if prediction is None else prediction.array
    scores = score(truth.array, guess, voxel_volume_ml=truth.voxel_volume_ml, edition=settings.edition)
    if prediction is None:
        scores["pred_ml"] = math.nan
        if settings.failed == "nan":
            scores.update({metric.name: math.nan for metric in METRICS})
    return scores


def _read_prediction(pair: Pair, truth: Volume) -> tuple[Volume | None, str, str]:
    if pair.prediction is None or pair.status != FOUND:
        return None, pair.status, pair.reason
    try:
        prediction = read_mask(pair.prediction)
        difference = prediction.grid_difference(truth)
        if difference:
            raise AutopetError(
                f"expected the grid of the ground truth, found {difference} (prediction against ground truth); "
                "resample the mask onto the input image"
            )
    except (AutopetError, MemoryError) as error:
        return None, REFUSED, one_line(error)
    return prediction, SCORED, ""


def _read_truth(path: Path) -> Volume:
    try:
        return read_mask(path)
    except AutopetError as error:
        raise AutopetError(f"the ground truth is broken: {one_line(error)}") from error


def read_mask(path: Path) -> Volume:
    """Read a mask as booleans; an error when it holds anything but 0 and 1 (NaN included)."""
    volume = read_image(path)
    array = volume.array
    if array.dtype == bool:
        return volume
    mask = array == 1
    if array.dtype.kind == "u" and array.max(initial=0) <= 1:
        return volume.with_array(mask)
    odd = array[~(mask | (array == 0))]
    if odd.size:
        listed = ", ".join(f"{value:g}" for value in np.unique(odd[:100_000])[:3])
        raise AutopetError(
            f"{Path(path).name}: expected a mask of 0 and 1, found {odd.size} other voxels ({listed}); "
            "threshold it first"
        )
    return volume.with_array(mask)


def _write_preview(pair: Pair, truth: Volume, prediction: Volume | None, folder: Path | None) -> str:
    """Write the case's preview and return what is lacking in it; a PET that cannot be used costs no score."""
    if folder is None:
        return ""
    pet, lacking = None, "no PET image"
    if pair.truth.pet is not None:
        try:
            pet = read_image(pair.truth.pet)
            lacking = pet.grid_difference(truth)
        except AutopetError as error:
            lacking = one_line(error)
    usable = pet if not lacking else None
    pictures.write_preview(folder / f"{pair.truth.case}.npz", pictures.make_preview(truth, prediction, usable))
    return lacking and f"without PET: {lacking}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that every parser takes (no NaN); the file appears whole or not at all."""
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise AutopetError(f"{path}: cannot be written ({one_line(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)
