"""One case: its files in, a row of metrics.json, its lesions and its preview out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from autopet.images import read_grid, read_image
from autopet.volume import Volume
from evaluation import previews as pictures
from evaluation.aggregate import json_number, printable
from evaluation.jobs import FOUND, Pair
from evaluation.lesions import LesionRow
from evaluation.metrics import REGISTRY, CaseScore, score_case, score_steps
from evaluation.policies import DETECTION, worst_values
from evaluation.statuses import REFUSED, SCORED
from evaluation.surface import TOLERANCE_MM

OF_PREDICTION = ("pred_lesions", "pred_ml", "pred_tlg_g")  # what there is none of without a prediction


@dataclass(frozen=True)
class Settings:
    """How every case is scored.

    `edition` gives the rules for cases without lesions, `previews` is where pictures go (None: nowhere), `surface`
    asks for surface metrics, with `tolerance_mm` for the normalised surface Dice.
    """

    edition: str
    previews: Path | None
    surface: bool = False
    tolerance_mm: float = TOLERANCE_MM


@dataclass(frozen=True)
class ScoredCase:
    """A row of `results`, and the case's lesions, the truth's first; of a lost case also what `worst_values` says."""

    row: dict[str, Any]
    lesions: tuple[LesionRow, ...]
    bounds: Mapping[str, float] = field(default_factory=dict)


def score_pair(pair: Pair, *, settings: Settings) -> ScoredCase:
    """Score one case and write its preview; without a valid prediction the values are those of an empty mask.

    Returns
    -------
    ScoredCase
        The row holds case, status, reason, tracer, centre, every metric (None = undefined), `detection_steps`, and
        `preview`, which says what is lacking in the picture and in the numbers that need an SUV image, if anything.
    """
    truth = _read_truth(pair.truth.mask)
    masks, status, reason = _read_predictions(pair, truth)
    suv, lacking = _read_suv(pair, truth)
    score = _score(truth, masks, suv, pair=pair, settings=settings)
    values = {metric.name: json_number(score.values[metric.name]) for metric in REGISTRY}
    if not masks:
        values.update(dict.fromkeys(OF_PREDICTION))
    if settings.previews is not None:
        preview = pictures.make_preview(truth, masks[-1] if masks else None, suv)
        pictures.write_preview(settings.previews / f"{pair.truth.case}.npz", preview)
    about = {"case": pair.truth.case, "status": status, "reason": reason}
    about |= {"tracer": pair.truth.tracer, "centre": pair.truth.centre}
    row = {**about, **values, "detection_steps": detection_steps(score)}
    row["preview"] = lacking and f"without PET: {lacking}"
    bounds = {} if masks else worst_values(truth, suv, steps=len(pair.earlier) + 1)
    return ScoredCase(row, score.lesions, bounds)


def detection_steps(score: CaseScore) -> list[list[int]] | None:
    """TP, FP and FN of the lesions at every interactive step, None without steps: editions pool them over the cases."""
    return [[int(step[key]) for key in DETECTION] for step in score.steps] or None


def _score(truth: Volume, masks: list[Volume], suv: Volume | None, *, pair: Pair, settings: Settings) -> CaseScore:
    steps = masks or [truth.with_array(np.zeros(truth.shape, dtype=bool))] * (len(pair.earlier) + 1)
    options: dict[str, Any] = {"suv": suv, "edition": settings.edition, "surface": settings.surface}
    options["tolerance_mm"] = settings.tolerance_mm
    if len(steps) > 1:
        return score_steps(truth, steps, **options)
    return score_case(truth, steps[0], **options)


def _read_predictions(pair: Pair, truth: Volume) -> tuple[list[Volume], str, str]:
    """The masks of all steps, the last one last; none, and why, when one of them is not valid."""
    if pair.status != FOUND:
        return [], pair.status, pair.reason
    masks = []
    for number, path in enumerate((*pair.earlier, pair.prediction)):
        mask, reason = _read_prediction(path, truth)
        if mask is None:
            return [], REFUSED, f"step {number}: {reason}" if pair.earlier else reason
        masks.append(mask)
    return masks, SCORED, ""


def _read_prediction(path: Path | None, truth: Volume) -> tuple[Volume | None, str]:
    """A participant's mask, or why it is refused."""
    try:
        if path is None:
            raise AutopetError("no mask was found")
        difference = read_grid(path).grid_difference(truth)
        if difference:  # known before the voxels are read: a small file can announce more than memory holds
            raise AutopetError(
                f"expected the grid of the ground truth, found {difference} (prediction against ground truth); "
                "resample the mask onto the input image"
            )
        prediction = read_mask(path)
    except Exception as error:  # whatever a participant's file does to its reader, the other cases keep their scores
        return None, printable(one_line(error))
    return prediction, ""


def _read_truth(path: Path) -> Volume:
    try:
        return read_mask(path)
    except AutopetError as error:
        raise AutopetError(f"the ground truth is broken: {one_line(error)}") from error


def _read_suv(pair: Pair, truth: Volume) -> tuple[Volume | None, str]:
    """The SUV image on the grid of the truth, or why there is none; one that cannot be used costs no other score."""
    if pair.truth.pet is None:
        return None, "no PET image"
    try:
        suv = read_image(pair.truth.pet)
    except AutopetError as error:
        return None, one_line(error)
    lacking = suv.grid_difference(truth)
    return (None, lacking) if lacking else (suv, "")


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
