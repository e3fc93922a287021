"""Why is one submission ahead of another? The cases and lesions that decided the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from evaluation.lesions import MATCHED, TRUTH
from leaderboard.lesion_table import Lesion, false_lesions, read_lesions
from leaderboard.ranking import aggregated, mean_of_defined, rank_samples
from leaderboard.robustness import without_each_case
from leaderboard.scheme import Column, Scheme
from leaderboard.submissions import Submission
from leaderboard.table import CaseTable, case_table, refuse_empty

NOTHING = 1e-12  # a difference of means below this is rounding


@dataclass(frozen=True)
class CaseShare:
    """What one case adds to the difference of two means.

    `a` and `b` are the values (NaN where there is none), `advantage` the case's summand, positive in favour of the
    first submission, `share` the summand over the whole difference (NaN when that is 0); shares add up to 1.
    """

    case: str
    a: float
    b: float
    advantage: float
    share: float


@dataclass(frozen=True)
class MetricDifference:
    """Means of two submissions, what they differ by in favour of the first, and the cases, the weightiest first.

    `rank_a` and `rank_b` are the ranks by this metric among all submissions.
    """

    column: Column
    mean_a: float
    mean_b: float
    advantage: float
    rank_a: float
    rank_b: float
    cases: tuple[CaseShare, ...]


@dataclass(frozen=True)
class WithoutCase:
    """Ranks when a case is left out; `turns` says that the order of the two is then another."""

    case: str
    rank_a: float
    rank_b: float
    turns: bool


@dataclass(frozen=True)
class LesionDifference:
    """A lesion that only one of the two found, or that only one made up; `to_the_good_of` is 'a' or 'b'."""

    case: str
    lesion: Lesion
    to_the_good_of: str
    what: str


@dataclass(frozen=True)
class Explanation:
    """The difference of two submissions under a scheme; `lesions` is None when one has no lesions.csv."""

    a: str
    b: str
    scheme: Scheme
    rank_a: float
    rank_b: float
    metrics: tuple[MetricDifference, ...]
    without_case: tuple[WithoutCase, ...]
    lesions: tuple[LesionDifference, ...] | None


def explain(submissions: Sequence[Submission], scheme: Scheme, *, algorithm: str, against: str) -> Explanation:
    """Take the difference of two submissions apart; ranks are among all submissions.

    Raises
    ------
    AutopetError
        A name is none of the submissions', or both are the same.
    """
    names = [submission.name for submission in submissions]
    for name in (algorithm, against):
        if name not in names:
            raise AutopetError(f"no submission is named {name!r}; the results are those of {', '.join(names)}")
    if algorithm == against:
        raise AutopetError(f"{algorithm!r} cannot be compared with itself; name another with --against")
    table = case_table(submissions, scheme)
    refuse_empty(table, scheme)
    a, b = names.index(algorithm), names.index(against)
    ranks = rank_samples(table, scheme, table.every_case_once)
    final, by_metric = ranks.final[0], ranks.by_metric[0]
    return Explanation(
        a=algorithm,
        b=against,
        scheme=scheme,
        rank_a=float(final[a]),
        rank_b=float(final[b]),
        metrics=tuple(_metric(table, scheme, index, (a, b), by_metric) for index in range(len(scheme.columns))),
        without_case=_without_cases(table, scheme, (a, b), np.sign(final[a] - final[b])),
        lesions=_lesions(submissions[a], submissions[b]),
    )


def case_weights(costs: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """(k,) weights with which the (k,) costs of a submission enter its mean, or its mean of subset means.

    Cases without a finite cost have weight 0; subsets without any are left out.
    """
    weights = np.zeros(len(costs))
    filled = [group[np.isfinite(costs[group])] for group in groups]
    filled = [group for group in filled if group.size]
    for group in filled:
        weights[group] = 1 / (len(filled) * group.size)
    return weights


def _metric(
    table: CaseTable, scheme: Scheme, index: int, pair: tuple[int, int], by_metric: np.ndarray
) -> MetricDifference:
    costs = [table.costs[i, :, index] for i in pair]
    if scheme.columns[index].aggregate:
        means, advantages = _pooled_advantages(table, scheme, index, pair)
    else:
        means, advantages = _advantages(costs, table.groups)
    total = means[1] - means[0]
    total = 0.0 if abs(total) < NOTHING else total
    shares = advantages / total if total and np.isfinite(total) else np.full(advantages.shape, np.nan)
    values = [table.values[i, :, index] for i in pair]
    order = np.argsort(-np.abs(advantages), kind="stable")
    sign = -1.0 if scheme.columns[index].higher_is_better else 1.0
    return MetricDifference(
        column=scheme.columns[index],
        mean_a=sign * means[0] + 0.0 if np.isfinite(means[0]) else float("nan"),
        mean_b=sign * means[1] + 0.0 if np.isfinite(means[1]) else float("nan"),
        advantage=total,
        rank_a=float(by_metric[pair[0], index]),
        rank_b=float(by_metric[pair[1], index]),
        cases=tuple(CaseShare(table.cases[c], *(float(x[c]) for x in (*values, advantages, shares))) for c in order),
    )


def _advantages(costs: Sequence[np.ndarray], groups: Sequence[np.ndarray]) -> tuple[list[float], np.ndarray]:
    """Mean costs of the two, and (k,) summands of their difference, positive in favour of the first.

    A case that only one of them has counts by its distance from the level between the two, not from 0. Where a cost
    is infinite (a missing value that counts as the worst), so are the mean and the summand.
    """
    lost = [np.isinf(cost) for cost in costs]
    finite = [np.where(np.isfinite(cost), cost, 0.0) for cost in costs]
    weights = [case_weights(cost, groups) for cost in costs]
    means = [float(cost @ weight) if weight.any() else np.nan for cost, weight in zip(finite, weights, strict=True)]
    known = [mean for mean in means if not np.isnan(mean)]
    level = sum(known) / max(len(known), 1)
    summands = [weight * (cost - level) for cost, weight in zip(finite, weights, strict=True)]
    advantages = summands[1] - summands[0]  # costs: lower is better
    advantages = np.where(lost[0] | lost[1], np.where(lost[1], np.inf, -np.inf), advantages)
    advantages[lost[0] & lost[1]] = 0.0
    return [np.inf if which.any() else mean for which, mean in zip(lost, means, strict=True)], advantages


def _pooled_advantages(
    table: CaseTable, scheme: Scheme, index: int, pair: tuple[int, int]
) -> tuple[list[float], np.ndarray]:
    """Pooled costs of the two, and for each case what leaving it out takes from their difference.

    A pooled value is no sum over the cases: these parts need not add up to the difference.
    """
    number = len(table.cases)
    counts = np.concatenate([table.every_case_once, 1 - np.eye(number, dtype=np.int32)])
    costs = mean_of_defined(aggregated(table, scheme, counts))[:, list(pair), index]  # (1 + k, 2)
    with np.errstate(invalid="ignore"):
        difference = costs[:, 1] - costs[:, 0]
        advantages = difference[0] - difference[1:]
    return [float(cost) for cost in costs[0]], np.where(np.isnan(advantages), 0.0, advantages)


def _without_cases(table: CaseTable, scheme: Scheme, pair: tuple[int, int], sign: float) -> tuple[WithoutCase, ...]:
    comparison = without_each_case(table, scheme)
    if comparison is None:
        return ()
    rows = comparison.ranks[:, pair]
    return tuple(
        WithoutCase(case, float(a), float(b), bool(np.sign(a - b) != sign))
        for case, (a, b) in zip(comparison.names, rows, strict=True)
    )


def _lesions(a: Submission, b: Submission) -> tuple[LesionDifference, ...] | None:
    """True lesions that one found and the other missed, and false lesions of either; the largest first."""
    if a.lesions is None or b.lesions is None:
        return None
    tables = [read_lesions(path) for path in (a.lesions, b.lesions)]
    truth = [{(c, x.lesion): x for c, rows in t.items() for x in rows if x.kind == TRUTH} for t in tables]
    if truth[0].keys() != truth[1].keys():
        raise AutopetError(
            f"lesions.csv of {a.name!r} and of {b.name!r} list different true lesions; evaluate both anew"
        )
    found = [
        LesionDifference(case, lesion, "a" if lesion.status == MATCHED else "b", "found by one only")
        for (case, number), lesion in truth[0].items()
        if lesion.status != truth[1][case, number].status
    ]
    for table, winner in zip(tables, "ba", strict=True):
        for case, rows in table.items():
            found += [LesionDifference(case, x, winner, "false lesion") for x in false_lesions(rows)]
    return tuple(sorted(found, key=lambda x: (-x.lesion.volume_ml, x.case, x.lesion.lesion)))
