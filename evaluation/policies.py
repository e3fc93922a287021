"""How a case without a valid prediction counts: a named policy, stated in metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autopet.errors import AutopetError
from autopet.volume import Volume
from evaluation.metrics import PER_CASE, REGISTRY
from evaluation.statuses import SCORED

POLICIES = {
    "empty": "a case without a valid prediction is scored as if an empty mask had been predicted: "
    "Dice 0, FNV the whole lesion volume, FPV 0, and the edition's rule when there are no lesions",
    "nan": "a case without a valid prediction is left out of the means; its status stays in the results",
    "worst": "a case without a valid prediction gets, for each metric, the worst value among the submission's scored "
    "cases or that of an empty mask, whichever is worse, and the worst that any mask can have where no case was "
    "scored; metrics that the edition leaves undefined for a case without lesions stay undefined",
    "constant": "a case without a valid prediction gets the given values ({values}), and otherwise those of an empty "
    "mask; metrics that the edition leaves undefined for a case without lesions stay undefined",
}
MOST = 1e12  # no metric of a patient is larger
HIGHER, LOWER = "higher", "lower"
DIRECTIONS = {metric.name: metric.direction for metric in REGISTRY if metric.direction in (HIGHER, LOWER)}
NEED_SUV = {metric.name for metric in PER_CASE if metric.needs == "suv"}
SHARES = ("dice", "lesion_f1", "sensitivity", "precision", "nsd")
DETECTION = ("lesion_tp", "lesion_fp", "lesion_fn")
WORST_IF_EMPTY = {name for name, better in DIRECTIONS.items() if better == HIGHER} | {"fnv_ml", "auc_fnv_ml", "hd95_mm"}
OWN_LESIONS = ("lesion_tp", "lesion_fn")  # an empty mask finds none and misses all, which is the worst there is


@dataclass(frozen=True)
class FailedPolicy:
    """What a lost case is given; `values` are those of the policy 'constant'."""

    name: str
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def spelled(self) -> str:
        """As `parse_policy` reads it."""
        return f"{self.name}:{_listed(self.values)}" if self.values else self.name

    @property
    def counts_lost(self) -> bool:
        """Whether lost cases count at all."""
        return self.name != "nan"

    @property
    def text(self) -> str:
        """In words."""
        return POLICIES[self.name].format(values=_listed(self.values))


def _listed(values: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value:g}" for name, value in values.items())


def parse_policy(text: str) -> FailedPolicy:
    """The policy that `empty`, `nan`, `worst` or `constant:dice=0,fpv_ml=500` names.

    Raises
    ------
    AutopetError
        An unknown policy or metric, values for a policy that takes none, or 'constant' without values.
    """
    name, _, given = text.partition(":")
    if name not in POLICIES:
        raise AutopetError(f"unknown policy {name!r} for failed cases, expected one of {', '.join(POLICIES)}")
    if (name == "constant") != bool(given):
        raise AutopetError(f"policy {text!r}: expected values for 'constant' only, as in constant:dice=0,fpv_ml=500")
    return FailedPolicy(name, dict(_value(part.strip()) for part in given.split(",")) if given else {})


def _value(part: str) -> tuple[str, float]:
    name, _, number = part.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in DIRECTIONS or not 0 <= value <= (1.0 if name in SHARES else MOST):
        raise AutopetError(
            f"expected METRIC=NUMBER with a metric out of {', '.join(DIRECTIONS)} and a number that it can have, "
            f"found {part!r} in the values for failed cases"
        )
    return name, value


def apply_policy(
    rows: Sequence[dict[str, Any]], policy: FailedPolicy, *, bounds: Sequence[Mapping[str, float]] = ()
) -> list[dict[str, Any]]:
    """Rows in which the lost cases have the policy's values; they come with those of an empty mask.

    What is known of the ground truth alone stays, and what a prediction would have is None.

    Parameters
    ----------
    rows : sequence of dict
        `status`, `gt_ml` and the metrics of each case, None = undefined; `detection_steps` where there are steps.
    policy : FailedPolicy
        What a lost case is given.
    bounds : sequence of dict
        `worst_values` of each lost case in the order of `rows`, for 'worst' where no case was scored: an empty mask's
        FPV of 0 would make a submission without any mask the best one. Without them such a value is None.
    """
    kept = [row for row in rows if row["status"] == SCORED]
    observed = {name: [row[name] for row in kept if row.get(name) is not None] for name in DIRECTIONS}
    curves = [row["detection_steps"] for row in kept if row.get("detection_steps")]
    of_steps = [max(counts[1] for counts in step) for step in zip(*curves, strict=True)]
    found = []
    for row, bound in zip(rows, bounds or [{}] * len(rows), strict=True):
        if row["status"] == SCORED:
            found.append(row)
            continue
        values = _values(row, policy, observed, bound)
        if row.get("detection_steps"):
            values["detection_steps"] = _steps(row["detection_steps"], policy, of_steps, bound)
        found.append({**row, **values})
    return found


def worst_values(truth: Volume, suv: Volume | None, *, steps: int) -> dict[str, float]:
    """The worst that any mask can have, for the metrics in which an empty mask is not the worst one.

    FPV: the whole image but the lesions, once per trapezoid of the click curve. False lesions: two for every cube of
    2x2x2 voxels, in which only opposite corners are not 18-connected. Precision: 0. Deviations: that of a mask of the
    whole image or of nothing; for TLG of all voxels with an SUV above 0, or of all below it.
    """
    ml = truth.voxel_volume_ml
    lesions_ml = float(np.count_nonzero(truth.array)) * ml
    outside_ml = truth.array.size * ml - lesions_ml
    found = {"fpv_ml": outside_ml, "auc_fpv_ml": outside_ml * (steps - 1), "precision": 0.0}
    found["lesion_fp"] = 2 * math.prod(-(-size // 2) for size in truth.shape)
    found["mtv_deviation_ml"] = max(lesions_ml, outside_ml)
    if suv is not None:
        found["tlg_deviation_g"] = _largest_deviation(truth.array, suv.array) * ml
    return found


def _largest_deviation(truth: np.ndarray, suv: np.ndarray) -> float:
    """How far the sum of any mask's SUVs can be from that of the truth's; slice by slice, for the sake of memory."""
    true, above, below = 0.0, 0.0, 0.0
    for plane, mask in zip(suv, truth, strict=True):
        values = np.nan_to_num(plane, posinf=0.0, neginf=0.0)
        true += float(values[mask != 0].sum(dtype=float))
        above += float(np.maximum(values, 0).sum(dtype=float))
        below += float(np.minimum(values, 0).sum(dtype=float))
    return max(above - true, true - below)


def _steps(
    counts: Sequence[Sequence[int]], policy: FailedPolicy, observed: Sequence[int], bound: Mapping[str, float]
) -> list[list[int]] | None:
    """TP, FP and FN at every step of a lost case: only FP can be worse than those of an empty mask."""
    if not policy.counts_lost:
        return None
    false = [step[1] for step in counts]
    if policy.name == "worst":
        false = list(observed) or [int(bound.get("lesion_fp", 0))] * len(counts)
    elif policy.name == "constant":
        false = [math.ceil(policy.values.get("lesion_fp", 0))] * len(counts)
    return [[step[0], extra, step[2]] for step, extra in zip(counts, false, strict=True)]


def _values(
    row: dict[str, Any], policy: FailedPolicy, observed: Mapping[str, list[float]], bound: Mapping[str, float]
) -> dict[str, Any]:
    names = [name for name in DIRECTIONS if name in row]
    if not policy.counts_lost:
        return dict.fromkeys(names)
    if policy.name == "empty":
        return {}
    found: dict[str, Any] = {}
    for name in names:
        of_empty_mask = row[name]
        undefined = of_empty_mask is None and (row["gt_ml"] == 0 or name in NEED_SUV)  # for whatever prediction
        if undefined or name in OWN_LESIONS:
            continue
        if policy.name == "constant":
            found[name] = policy.values.get(name, of_empty_mask)
        else:
            found[name] = _worst(name, of_empty_mask, observed[name], bound)
    return found


def _worst(
    name: str, of_empty_mask: float | None, observed: Sequence[float], bound: Mapping[str, float]
) -> float | None:
    if not observed and (name in bound or name not in WORST_IF_EMPTY):
        return bound.get(name)
    known = [value for value in (*observed, of_empty_mask) if value is not None]
    if not known:
        return None
    return min(known) if DIRECTIONS[name] == HIGHER else max(known)
