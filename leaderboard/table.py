"""The values that are ranked, as one array: submissions x cases x metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from leaderboard.pooled import steps_array
from leaderboard.scheme import Scheme
from leaderboard.submissions import Submission


@dataclass(frozen=True, eq=False)
class CaseTable:
    """Values of n submissions on k cases by the m metrics of a scheme.

    `values` is (n, k, m) with NaN where there is no value; `costs` is the same with lower = better, after the scheme's
    policy for missing values: infinity is a worst result, NaN is left out. `groups` holds the indices of the cases of
    each subset (one group with all cases when the scheme has no subsets), `group_names` their names.

    `steps` is (n, k, s, 3) for schemes that pool lesions over the cases: TP, FP, FN by click step, after that policy.
    """

    names: tuple[str, ...]
    cases: tuple[str, ...]
    values: np.ndarray
    costs: np.ndarray
    groups: tuple[np.ndarray, ...]
    group_names: tuple[str, ...]
    steps: np.ndarray | None = None

    @property
    def every_case_once(self) -> np.ndarray:
        """(1, k) counts of the full cohort."""
        return np.ones((1, len(self.cases)), dtype=np.int32)


def case_table(submissions: Sequence[Submission], scheme: Scheme) -> CaseTable:
    """The table of submissions that `read_results` found comparable.

    Raises
    ------
    AutopetError
        No submissions, a submission has no value for a metric of the scheme in its file, or a case has no tracer or
        centre although the scheme's subsets need it.
    """
    if not submissions:
        raise AutopetError("no submissions to rank")
    first = submissions[0]
    for submission in submissions:
        refuse_lacking(submission, scheme)
    values = np.stack([np.stack([s.values(m) for m in scheme.metrics], axis=-1) for s in submissions])
    lost = np.array([[not case.scored for case in s.cases] for s in submissions])
    names, groups = subset_groups(first, scheme.subsets)
    return CaseTable(
        names=tuple(submission.name for submission in submissions),
        cases=first.case_names,
        values=values,
        costs=case_costs(values, scheme, lost=lost),
        groups=groups,
        group_names=names,
        steps=_case_steps(submissions, scheme, lost) if scheme.pooled else None,
    )


def _case_steps(submissions: Sequence[Submission], scheme: Scheme, lost: np.ndarray) -> np.ndarray:
    """(n, k, s, 3) counts by click step, after the policy for missing values."""
    steps = steps_array(submissions, metric=scheme.columns[scheme.pooled[0]].metric)
    sums = _after_policy(steps.sum(axis=(2, 3))[..., None], scheme, lost)[..., None]
    return np.where(np.isfinite(sums), steps, sums)


def refuse_empty(table: CaseTable, scheme: Scheme) -> None:
    """An error when no submission has any value for a metric: all would be first in it."""
    for index, column in enumerate(scheme.columns):
        known = ~np.isnan(table.values[..., index])
        if column.aggregate and table.steps is not None:
            known = ~np.isnan(table.steps)
        if not known.any():
            raise AutopetError(
                f"ranking scheme {scheme.name!r} ranks by metric {column.metric!r}, for which no submission has "
                f"a value in any case; {_remedy(column.metric)}rank with another scheme"
            )


def _remedy(metric: str) -> str:
    if metric.startswith("auc_"):
        return "evaluate with click steps, or "
    return "evaluate with --surface, or " if metric in ("nsd", "hd95_mm") else ""


def refuse_lacking(submission: Submission, scheme: Scheme) -> None:
    """An error when the submission lacks a metric, or a case an attribute, that the scheme needs."""
    for metric in scheme.metrics:
        lacking = [case.case for case in submission.cases if metric not in case.values]
        if lacking or not submission.cases:
            raise AutopetError(
                f"ranking scheme {scheme.name!r} needs metric {metric!r}, which the results of {submission.name!r} "
                f"lack{f' (case {lacking[0]})' if lacking else ''}; evaluate them anew, or rank with another scheme"
            )
    _refuse_other_direction(submission, scheme)
    for attribute in scheme.subsets:
        without = [case.case for case in submission.cases if not getattr(case, attribute)]
        if without:
            raise AutopetError(
                f"ranking scheme {scheme.name!r} needs the {attribute} of every case, {submission.name!r} has none "
                f"for case {without[0]}; name it in prep.csv or cases.csv of the ground truth and evaluate anew"
            )


def _refuse_other_direction(submission: Submission, scheme: Scheme) -> None:
    told = {metric.name: metric.direction for metric in submission.metrics if metric.direction}
    for column in scheme.columns:
        mine = "higher" if column.higher_is_better else "lower"
        theirs = told.get(column.metric, mine)
        if theirs != mine:
            raise AutopetError(
                f"ranking scheme {scheme.name!r} says that {mine} is better for metric {column.metric!r}, the results "
                f"of {submission.name!r} say {theirs!r}; correct its direction, or rank by a metric that has one"
            )


def case_costs(values: np.ndarray, scheme: Scheme, *, lost: np.ndarray | None = None) -> np.ndarray:
    """(n, k, m) values turned so that lower is better, after the scheme's policies for missing values.

    `lost` is (n, k): the cases to which the policy for lost cases applies; none when it is left out.
    A case that has no value for any submission (no lesions, by the edition's rule) is left out by every policy.
    """
    signs = np.array([-1.0 if column.higher_is_better else 1.0 for column in scheme.columns])
    return _after_policy(values * signs, scheme, np.zeros(values.shape[:2], bool) if lost is None else lost)


def _after_policy(costs: np.ndarray, scheme: Scheme, lost: np.ndarray) -> np.ndarray:
    """(n, k, m) costs with infinity for what counts as the worst and NaN for what is left out."""
    missing = np.isnan(costs)
    nobody = missing.all(axis=0)
    parts = ((scheme.missing, missing & ~lost[..., None]), (scheme.lost_policy, missing & lost[..., None]))
    for policy, which in parts:
        if policy == "worst":
            costs = np.where(which & ~nobody, np.inf, costs)
    for policy, which in parts:
        if policy == "drop-case":
            costs = np.where(which.any(axis=0), np.nan, costs)
    return costs


def subset_groups(submission: Submission, attributes: Sequence[str]) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
    """Names of the subsets by these attributes (tracer, centre), and the indices of the cases of each.

    One subset with all cases when there are no attributes.
    """
    if not attributes:
        return ("all cases",), (np.arange(len(submission.cases)),)
    keys = [tuple(getattr(case, attribute) for attribute in attributes) for case in submission.cases]
    found = sorted(set(keys))
    groups = tuple(np.array([index for index, key in enumerate(keys) if key == group]) for group in found)
    return tuple(" ".join(filter(None, group)) or "unknown" for group in found), groups
