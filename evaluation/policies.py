"""How a case without a valid prediction counts: a named policy, stated in metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autopet.errors import AutopetError
from evaluation.metrics import PER_CASE, REGISTRY
from evaluation.statuses import SCORED

POLICIES = {
    "empty": "a case without a valid prediction is scored as if an empty mask had been predicted: "
    "Dice 0, FNV the whole lesion volume, FPV 0, and the edition's rule when there are no lesions",
    "nan": "a case without a valid prediction is left out of the means; its status stays in the results",
    "worst": "a case without a valid prediction gets, for each metric, the worst value among the submission's scored "
    "cases or that of an empty mask, whichever is worse; metrics that the edition leaves undefined for a case without "
    "lesions stay undefined",
    "constant": "a case without a valid prediction gets the given values ({values}), and otherwise those of an empty "
    "mask; metrics that the edition leaves undefined for a case without lesions stay undefined",
}
MOST = 1e12  # no metric of a patient is larger
HIGHER, LOWER = "higher", "lower"
DIRECTIONS = {metric.name: metric.direction for metric in REGISTRY if metric.direction in (HIGHER, LOWER)}
NEED_SUV = {metric.name for metric in PER_CASE if metric.needs == "suv"}
SHARES = ("dice", "lesion_f1", "sensitivity", "precision", "nsd")
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


def apply_policy(rows: Sequence[dict[str, Any]], policy: FailedPolicy) -> list[dict[str, Any]]:
    """Rows in which the lost cases have the policy's values; they come with those of an empty mask.

    What is known of the ground truth alone stays, and what a prediction would have is None.

    Parameters
    ----------
    rows : sequence of dict
        `status`, `gt_ml` and the metrics of each case, None = undefined.
    """
    kept = [row for row in rows if row["status"] == SCORED]
    observed = {name: [row[name] for row in kept if row.get(name) is not None] for name in DIRECTIONS}
    return [row if row["status"] == SCORED else {**row, **_values(row, policy, observed)} for row in rows]


def _values(row: dict[str, Any], policy: FailedPolicy, observed: Mapping[str, list[float]]) -> dict[str, Any]:
    names = [name for name in DIRECTIONS if name in row]
    if policy.name == "nan":
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
        elif known := [value for value in (*observed[name], of_empty_mask) if value is not None]:
            found[name] = min(known) if DIRECTIONS[name] == HIGHER else max(known)
    return found
