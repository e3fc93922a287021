"""The metrics, declared once: name, title, function, unit, direction, and what empty masks mean.

`METRICS` are those that rank in editions I to III, `REGISTRY` all that a case can have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autopet.components import Components
from autopet.errors import AutopetError
from autopet.volume import Volume
from evaluation.biomarkers import deviation, lesion_glycolysis_g, tumour_volume_ml
from evaluation.clicks import curve_area
from evaluation.editions import EDITIONS, Edition, edition_named
from evaluation.lesions import CasePair, LesionRow, lesion_rows, share
from evaluation.surface import TOLERANCE_MM, hausdorff_95_mm, surface_dice

__all__ = [
    "EDITIONS",
    "METRICS",
    "REGISTRY",
    "CaseScore",
    "CurveMetric",
    "Edition",
    "Metric",
    "detection_f1",
    "edition_named",
    "score",
    "score_case",
    "score_steps",
]
Direction = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Metric:
    """One number per case.

    Parameters
    ----------
    function : callable
        From a `CasePair` to the value.
    unit : str
        Empty for a pure number.
    direction : 'higher', 'lower' or 'none'
        Whichever is better; 'none' for numbers that describe the case.
    empty : str
        Its value when a mask is empty. `Edition.undefined_without_lesions` goes before it.
    needs : 'masks', 'suv' or 'surface'
        What it is computed from. Without an SUV image, or when no surfaces are asked for, it is NaN.
    """

    name: str
    title: str
    function: Callable[[CasePair], float]
    unit: str
    direction: Direction
    empty: str
    needs: Literal["masks", "suv", "surface"] = "masks"


@dataclass(frozen=True)
class CurveMetric:
    """The area under the click curve of the metric `of`; NaN when a step is NaN or there are no steps."""

    name: str
    title: str
    of: str
    unit: str
    direction: Direction
    empty: str = "undefined (NaN) when any step is"


def dice(pair: CasePair) -> float:
    """2 |G and P| / (|G| + |P|); NaN when both masks are empty."""
    total = pair.truth.voxels + pair.prediction.voxels
    return share(2.0 * pair.shared_voxels, total)


def fpv_ml(pair: CasePair) -> float:
    """Volume of the predicted components (18-connected) without a voxel of ground truth; 0 for an empty prediction."""
    return pair.false_voxels * pair.voxel_volume_ml


def fnv_ml(pair: CasePair) -> float:
    """Volume of the ground truth's components (18-connected) without a predicted voxel; 0 for an empty truth."""
    return pair.missed_voxels * pair.voxel_volume_ml


def detection_f1(tp: int, fp: int, fn: int) -> float:
    """2 TP / (2 TP + FP + FN); NaN without lesions (TP + FN = 0), whatever was predicted, as edition V defines it."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fn else math.nan


def lesion_f1(pair: CasePair) -> float:
    """F1 of the lesions of one case, see `CasePair.detection`."""
    return detection_f1(pair.detection.tp, pair.detection.fp, pair.detection.fn)


def sensitivity(pair: CasePair) -> float:
    """TP / (TP + FN) of the lesions; NaN without lesions."""
    return share(pair.detection.tp, pair.truth.count)


def precision(pair: CasePair) -> float:
    """TP / (TP + FP) of the lesions, so that F1 is its harmonic mean with sensitivity; NaN for an empty prediction."""
    return share(pair.detection.tp, pair.detection.tp + pair.detection.fp)


def gt_ml(pair: CasePair) -> float:
    """Metabolic tumour volume of the ground truth."""
    return tumour_volume_ml(pair.truth, voxel_volume_ml=pair.voxel_volume_ml)


def pred_ml(pair: CasePair) -> float:
    """Metabolic tumour volume of the prediction."""
    return tumour_volume_ml(pair.prediction, voxel_volume_ml=pair.voxel_volume_ml)


def gt_tlg_g(pair: CasePair) -> float:
    """Total lesion glycolysis of the ground truth."""
    return lesion_glycolysis_g(pair.truth, pair.suv, voxel_volume_ml=pair.voxel_volume_ml)


def pred_tlg_g(pair: CasePair) -> float:
    """Total lesion glycolysis of the prediction."""
    return lesion_glycolysis_g(pair.prediction, pair.suv, voxel_volume_ml=pair.voxel_volume_ml)


def nsd(pair: CasePair) -> float:
    """Normalised surface Dice, see `evaluation.surface`; 0 for an empty prediction of lesions, NaN without lesions."""
    return surface_dice(pair.distances, tolerance_mm=pair.tolerance_mm) if pair.truth.voxels else math.nan


def hd95_mm(pair: CasePair) -> float:
    """95 % Hausdorff distance, see `evaluation.surface`; NaN without lesions.

    An empty prediction of lesions has the diagonal of the image, so that leaving a case empty never lowers a mean.
    """
    if not pair.truth.voxels:
        return math.nan
    return hausdorff_95_mm(pair.distances) if pair.prediction.voxels else pair.diagonal_mm


NO_LESIONS = "undefined (NaN) without lesions"
METRICS = (
    Metric("dice", "Dice", dice, "", "higher", "0 when one mask is empty, undefined (NaN) when both are"),
    Metric("fpv_ml", "FPV", fpv_ml, "ml", "lower", "0 for an empty prediction"),
    Metric("fnv_ml", "FNV", fnv_ml, "ml", "lower", "0 without lesions"),
)
PER_CASE = (
    *METRICS,
    Metric("lesion_tp", "Lesions found", lambda p: p.detection.tp, "", "higher", "0"),
    Metric("lesion_fp", "False lesions", lambda p: p.detection.fp, "", "lower", "0 for an empty prediction"),
    Metric("lesion_fn", "Lesions missed", lambda p: p.detection.fn, "", "lower", "0 without lesions"),
    Metric("lesion_f1", "Detection F1", lesion_f1, "", "higher", f"{NO_LESIONS}, 0 for an empty prediction of some"),
    Metric("sensitivity", "Lesion sensitivity", sensitivity, "", "higher", NO_LESIONS),
    Metric("precision", "Lesion precision", precision, "", "higher", "undefined (NaN) for an empty prediction"),
    Metric("gt_lesions", "True lesions", lambda p: p.truth.count, "", "none", "0"),
    Metric("pred_lesions", "Predicted lesions", lambda p: p.prediction.count, "", "none", "0"),
    Metric("gt_ml", "True MTV", gt_ml, "ml", "none", "0"),
    Metric("pred_ml", "Predicted MTV", pred_ml, "ml", "none", "0"),
    Metric("mtv_deviation_ml", "MTV deviation", lambda p: deviation(gt_ml(p), pred_ml(p)), "ml", "lower", "as it is"),
    Metric("gt_tlg_g", "True TLG", gt_tlg_g, "g", "none", "0", "suv"),
    Metric("pred_tlg_g", "Predicted TLG", pred_tlg_g, "g", "none", "0", "suv"),
    Metric(
        "tlg_deviation_g",
        "TLG deviation",
        lambda p: deviation(gt_tlg_g(p), pred_tlg_g(p)),
        "g",
        "lower",
        "as it is",
        "suv",
    ),
    Metric("nsd", "Surface Dice", nsd, "", "higher", f"{NO_LESIONS}, 0 for an empty prediction of some", "surface"),
    Metric(
        *("hd95_mm", "95 % Hausdorff distance", hd95_mm, "mm", "lower"),
        *(f"{NO_LESIONS}, the image's diagonal for an empty prediction of some", "surface"),
    ),
)
CURVES = (
    CurveMetric("auc_dice", "Dice over clicks", "dice", "", "higher"),
    CurveMetric("auc_fpv_ml", "FPV over clicks", "fpv_ml", "ml", "lower"),
    CurveMetric("auc_fnv_ml", "FNV over clicks", "fnv_ml", "ml", "lower"),
    CurveMetric("auc_f1", "Detection F1 over clicks", "lesion_f1", "", "higher"),
)
REGISTRY: tuple[Metric | CurveMetric, ...] = (*PER_CASE, *CURVES)


@dataclass(frozen=True)
class CaseScore:
    """All numbers of one case.

    Attributes
    ----------
    values : dict
        One value per metric of `REGISTRY`; NaN = undefined, or not asked for.
    lesions : tuple of LesionRow
        The truth's lesions and the predicted ones, of the last step if there are steps.
    steps : tuple of dict
        `values` of each interactive step (without areas), empty without steps.
    """

    values: dict[str, float]
    lesions: tuple[LesionRow, ...]
    steps: tuple[dict[str, float], ...] = ()


def score(
    ground_truth: np.ndarray, prediction: np.ndarray, *, voxel_volume_ml: float, edition: str = "III"
) -> dict[str, float]:
    """The ranked metrics of one case, and its volumes.

    Parameters
    ----------
    ground_truth, prediction : (z, y, x) array, bool or number
        Masks on one grid, foreground where they are not zero.
    voxel_volume_ml : float
        Product of the spacings in mm, divided by 1000.
    edition : str
        Whose rules hold for cases without lesions, see `Edition`.

    Returns
    -------
    dict
        `dice` (0 to 1), `fpv_ml`, `fnv_ml`, and the volumes of both masks, `gt_ml` and `pred_ml`. NaN = undefined.

    Raises
    ------
    AutopetError
        The shapes differ or the edition is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> lesion, guess = np.zeros((3, 9, 9), bool), np.zeros((3, 9, 9), bool)
    >>> lesion[1, 1:3, 1:3] = guess[1, 1:3, 2:4] = guess[1, 8, 8] = True
    >>> score(lesion, guess, voxel_volume_ml=0.5)
    {'dice': 0.4444444444444444, 'fpv_ml': 0.5, 'fnv_ml': 0.0, 'gt_ml': 2.0, 'pred_ml': 2.5}
    """
    rules = edition_named(edition)
    if ground_truth.shape != prediction.shape:
        raise AutopetError(f"expected a prediction of shape {ground_truth.shape} (z, y, x), found {prediction.shape}")
    pair = CasePair(Components.of(ground_truth), Components.of(prediction), voxel_volume_ml)
    return {**_values(pair, METRICS, rules), "gt_ml": gt_ml(pair), "pred_ml": pred_ml(pair)}


def score_case(
    truth: Volume,
    prediction: Volume,
    *,
    suv: Volume | None = None,
    edition: str = "III",
    surface: bool = False,
    tolerance_mm: float = TOLERANCE_MM,
) -> CaseScore:
    """All metrics of one case and its lesions.

    Parameters
    ----------
    truth, prediction : Volume
        Masks on one grid, foreground where they are not zero.
    suv : Volume, optional
        SUV (g/ml) on that grid, for TLG and the lesions' uptake.
    edition : str
        Whose rules hold for cases without lesions, see `Edition`.
    surface : bool
        Compute surface metrics, which take longer than all others together.
    tolerance_mm : float
        Of the normalised surface Dice.

    Raises
    ------
    AutopetError
        The grids differ or the edition is unknown.
    """
    rules = edition_named(edition)
    pair = _pair(Components.of(truth.array), truth, prediction, suv, tolerance_mm)
    areas = {curve.name: math.nan for curve in CURVES}
    return CaseScore({**_values(pair, PER_CASE, rules, surface=surface), **areas}, lesion_rows(pair))


def score_steps(
    truth: Volume,
    predictions: Sequence[Volume],
    *,
    suv: Volume | None = None,
    edition: str,
    surface: bool = False,
    tolerance_mm: float = TOLERANCE_MM,
) -> CaseScore:
    """All metrics of one case with interactive steps: those of the last step, and areas under the click curve.

    Parameters
    ----------
    predictions : sequence of Volume
        One mask per step, the one without clicks first: 11 in edition IV, 6 in edition V.

    The other parameters, and errors, are those of `score_case`, and of `evaluation.clicks.curve_area`.
    """
    rules = edition_named(edition)
    curve_area([math.nan] * len(predictions), edition=edition)  # a wrong number of steps is known before the work
    shared = Components.of(truth.array)
    steps: list[dict[str, float]] = []
    for prediction in predictions:  # one pair in memory at a time, the truth's components in all of them
        pair = _pair(shared, truth, prediction, suv, tolerance_mm)
        steps.append(_values(pair, PER_CASE, rules, surface=surface and len(steps) == len(predictions) - 1))
    areas = {curve.name: curve_area([step[curve.of] for step in steps], edition=edition) for curve in CURVES}
    return CaseScore({**steps[-1], **areas}, lesion_rows(pair), tuple(steps))


def _pair(shared: Components, truth: Volume, prediction: Volume, suv: Volume | None, tolerance_mm: float) -> CasePair:
    for name, volume in (("prediction", prediction), ("SUV image", suv)):
        difference = volume.grid_difference(truth) if volume is not None else ""
        if difference:
            raise AutopetError(
                f"expected a {name} on the grid of the ground truth, found {difference} ({name} against ground truth); "
                "resample it first"
            )
    values = None if suv is None else suv.array
    masks = shared, Components.of(prediction.array)
    return CasePair(*masks, truth.voxel_volume_ml, grid=truth, suv=values, tolerance_mm=tolerance_mm)


def _values(pair: CasePair, metrics: Sequence[Metric], rules: Edition, *, surface: bool = False) -> dict[str, float]:
    undefined = {metric.name for metric in metrics if metric.needs == "suv" and pair.suv is None}
    undefined |= {metric.name for metric in metrics if metric.needs == "surface" and not surface}
    if not pair.truth.voxels:
        undefined |= rules.undefined_without_lesions
    return {metric.name: math.nan if metric.name in undefined else metric.function(pair) for metric in metrics}
