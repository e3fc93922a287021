"""What the ranks hang on: single cases, subsets, and the choice of the scheme."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopet.errors import AutopetError
from leaderboard.bootstrap import chunk_size
from leaderboard.rank_arithmetic import kendall_tau_b
from leaderboard.ranking import rank_samples
from leaderboard.scheme import SUBSETS, Scheme
from leaderboard.scheme_file import SCHEMES
from leaderboard.submissions import Submission
from leaderboard.table import CaseTable, case_table, refuse_empty, subset_groups

VARIANTS: tuple[
    tuple[str, dict[str, Any]], ...
] = (  # the other common ways to come from cases to ranks, with the metrics and weights of a scheme
    ("mean-then-rank", {"method": "aggregate-then-rank", "aggregate": "mean"}),
    ("median-then-rank", {"method": "aggregate-then-rank", "aggregate": "median"}),
    ("rank-then-mean", {"method": "rank-then-aggregate", "aggregate": "mean"}),
    ("rank-then-median", {"method": "rank-then-aggregate", "aggregate": "median"}),
    ("test-then-rank", {"method": "test-then-rank", "aggregate": "mean"}),
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Ranks of n submissions under r conditions: `names` (r,), `ranks` (r, n), `tau` (r,) with the full ranking.

    A condition is a subset or case that was left out, or another scheme.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    tau: np.ndarray


def without_each_subset(table: CaseTable, scheme: Scheme, submission: Submission) -> Comparison | None:
    """Ranks without each subset of cases; None when there are fewer than two.

    The subsets are the scheme's, or those of tracer and centre (as far as the cases have them) when it has none.
    """
    known = [name for name in SUBSETS if any(getattr(case, name) for case in submission.cases)]
    names, groups = subset_groups(submission, scheme.subsets or known)
    if len(groups) < 2:
        return None
    counts = np.repeat(table.every_case_once, len(groups), axis=0)
    for row, group in enumerate(groups):
        counts[row, group] = 0
    return _compared(table, scheme, counts, names)


def without_each_case(table: CaseTable, scheme: Scheme) -> Comparison | None:
    """Ranks without each case; None when there is one case only."""
    if len(table.cases) < 2:
        return None
    counts = np.ones((len(table.cases), len(table.cases)), dtype=np.int32)
    np.fill_diagonal(counts, 0)
    return _compared(table, scheme, counts, table.cases)


def under_each_scheme(submissions: Sequence[Submission], scheme: Scheme) -> Comparison:
    """Ranks under every edition whose metrics and subsets the results have, and under variants of the scheme.

    A metric that no submission has a value for counts as one that the results do not have.
    Variants keep the scheme's metrics, weights, subsets and ties, and change the way from cases to ranks.
    """
    table = case_table(submissions, scheme)
    full = rank_samples(table, scheme, table.every_case_once).final[0]
    found: list[tuple[str, np.ndarray]] = []
    for name, other in _others(scheme):
        try:
            table = case_table(submissions, other)
            refuse_empty(table, other)
        except AutopetError:  # its metrics or subsets are not there
            continue
        found.append((name, rank_samples(table, other, table.every_case_once).final[0]))
    ranks = np.array([ranks for _, ranks in found]).reshape(len(found), len(submissions))
    return Comparison(tuple(name for name, _ in found), ranks, kendall_tau_b(full, ranks))


def _others(scheme: Scheme) -> Iterator[tuple[str, Scheme]]:
    for edition in SCHEMES.values():
        yield edition.title, edition
    columns = tuple(replace(column, aggregate="") for column in scheme.columns)  # by case, what is pooled otherwise
    for name, changes in VARIANTS:
        # only ranks can be averaged over subsets in every variant
        yield f"{scheme.title}: {name}", replace(scheme, **changes, columns=columns, above_median="", combine="ranks")


def _compared(table: CaseTable, scheme: Scheme, counts: np.ndarray, names: tuple[str, ...]) -> Comparison:
    full = rank_samples(table, scheme, table.every_case_once).final[0]
    size = chunk_size(table)
    chunks = [counts[start : start + size] for start in range(0, len(counts), size)]
    ranks = np.concatenate([rank_samples(table, scheme, chunk).final for chunk in chunks])
    return Comparison(names, ranks, kendall_tau_b(full, ranks))
