"""Score a folder of predictions against the ground truth and write metrics.json."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from autopet.images import read_grid, read_image
from autopet.progress import track
from autopet.volume import Volume
from evaluation import previews as pictures
from evaluation.aggregate import REFUSED, SCORED, build_metrics, json_number, policy_text, printable
from evaluation.jobs import FOUND, Pair, find_candidates, find_truths, pair_up, select_truths
from evaluation.metrics import METRICS, edition_named, score

PLATFORM_OUTPUT = Path("/output")
CRASHED = "its file crashed the reader; write it anew"


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
        Processes to use. Even one is a process of its own, which a hostile file may crash: scripts that call this
        need `if __name__ == "__main__":`.
    previews : bool
        Write previews. Those of an earlier evaluation are removed in any case.

    Returns
    -------
    dict
        The content of metrics.json, see `evaluation.aggregate.build_metrics`.

    Raises
    ------
    AutopetError
        There is no ground truth or no prediction at all, none of them match, the ground truth itself is broken,
        an argument is unknown, or no process can be started.
    """
    edition_named(edition)
    policy_text(failed)
    out = Path(out).resolve()
    everything = find_truths(Path(ground_truth), images=None if images is None else Path(images))
    truths = select_truths(everything, cases)
    pairing = pair_up(truths, find_candidates(Path(predictions)), ignored=[truth.case for truth in everything])
    settings = Settings(edition, failed, out.parent / pictures.FOLDER if previews else None)
    pictures.remove_previews(out.parent / pictures.FOLDER)
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
    """Rows in the order of the pairs; what one file does to the process that reads it costs no other case its score."""
    work = partial(score_pair, settings=settings)
    done = 0
    with _processes(max(1, min(workers, len(pairs)))) as pool:
        try:
            for row in pool.map(work, pairs):
                yield row
                done += 1
        except BrokenProcessPool:  # one process died and took the other cases with it
            pass
    for pair in pairs[done:]:
        yield _score_alone(pair, work)


def _score_alone(pair: Pair, work: Callable[[Pair], dict[str, Any]]) -> dict[str, Any]:
    """Score a case in a process of its own; a prediction that kills it is refused."""
    try:
        with _processes(1) as pool:
            return pool.submit(work, pair).result()
    except BrokenProcessPool as error:
        if pair.prediction is None:
            raise AutopetError(
                f"the process that read the ground truth of {pair.truth.case} died (out of memory?); check its files"
            ) from error
        return _score_alone(replace(pair, prediction=None, status=REFUSED, reason=CRASHED), work)


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes that is known to work, so that whatever breaks it later is the fault of a case."""
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise AutopetError(
                "no process can be started to score cases (out of memory, or a script without "
                "`if __name__ == '__main__':` around the evaluation?)"
            ) from error
        yield pool
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
        difference = read_grid(pair.prediction).grid_difference(truth)
        if difference:  # known before the voxels are read: a small file can announce more than memory holds
            raise AutopetError(
                f"expected the grid of the ground truth, found {difference} (prediction against ground truth); "
                "resample the mask onto the input image"
            )
        prediction = read_mask(pair.prediction)
    except Exception as error:  # whatever a participant's file does to its reader, the other cases keep their scores
        return None, REFUSED, printable(one_line(error))
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
