"""Ranking schemes: what can be chosen, checked, and said in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopet.errors import AutopetError

METHODS = ("aggregate-then-rank", "rank-then-aggregate", "test-then-rank")
AGGREGATES = ("mean", "median", "variance")
POOLED = "pooled_f1_area"  # the aggregate of one column: see leaderboard.pooled
MOST_BOOTSTRAPS, LARGEST_WEIGHT = 10**6, 1e6
SUBSETS = ("tracer", "centre")
COMBINES = ("ranks", "values")
TIES = ("min", "average", "dense")
MISSING = ("ignore", "worst", "drop-case")
MISSING_WORDS = {
    "ignore": "a case without a value is left out of that submission's aggregate",
    "worst": "a case without a value for one submission counts as its worst possible result",
    "drop-case": "a case without a value for one submission is left out of that metric for all",
}
LOST_WORDS = {
    "ignore": "a lost case without a value is left out of that submission's aggregate",
    "worst": "a lost case without a value counts as its worst possible result",
    "drop-case": "a lost case without a value is left out of that metric for all",
}
POOLED_WORDS = "the area over the click steps under the F1 of the lesions of all cases together, called"
TIES_WORDS = {
    "min": "what is still tied shares a rank, and the ranks after it are skipped (1, 2, 2, 4)",
    "average": "what is still tied shares the mean of its ranks (1, 2.5, 2.5, 4)",
    "dense": "what is still tied shares a rank, and no rank is skipped (1, 2, 2, 3)",
}


@dataclass(frozen=True)
class Column:
    """One ranked metric: its key in metrics.json, its title, unit, weight, and whether higher is better.

    `aggregate` is empty (the scheme's) or `pooled_f1_area`: lesions are pooled over the cases at each click step.
    """

    metric: str
    title: str
    unit: str
    weight: float
    higher_is_better: bool
    aggregate: str = ""


@dataclass(frozen=True)
class Scheme:
    """How an edition ranks; `leaderboard.toml` has the same keys (`columns` are its `metrics`).

    The rank by each column, the weighted mean of these ranks, then `tie_break` (a column's metric, or empty).
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    tie_break: str = ""
    method: str = "aggregate-then-rank"
    aggregate: str = "mean"
    subsets: tuple[str, ...] = ()  # case attributes whose combinations are the subsets: tracer, centre
    combine: str = "ranks"  # over subsets: average the ranks within each, or the values of each and rank those
    ties: str = "min"
    missing: str = "ignore"
    lost: str = ""  # the same for cases without a valid prediction; empty: as `missing`
    above_median: str = ""  # only submissions whose mean of this metric is better than the median of all are ranked
    bootstraps: int = 10_000
    seed: int = 0
    interval: float = 0.95  # coverage of rank intervals
    alpha: float = 0.05  # level of the tests

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_columns(self)
        _check_numbers(self)

    @property
    def words(self) -> str:
        """The scheme as sentences."""
        return " ".join(filter(None, (_ranked_by(self), _subset_words(self), _median_words(self), _tie_words(self))))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the columns, in their order."""
        return tuple(column.metric for column in self.columns)

    @property
    def pooled(self) -> tuple[int, ...]:
        """Where the columns are whose lesions are pooled over the cases."""
        return tuple(index for index, column in enumerate(self.columns) if column.aggregate == POOLED)

    @property
    def lost_policy(self) -> str:
        """How missing values of lost cases count."""
        return self.lost or self.missing

    @property
    def tie_break_index(self) -> int | None:
        """Where the column that breaks ties is; None when nothing breaks them."""
        return self.metrics.index(self.tie_break) if self.tie_break else None

    @property
    def tie_break_column(self) -> Column | None:
        """The column that breaks ties, if one does."""
        return None if self.tie_break_index is None else self.columns[self.tie_break_index]


def _check_choices(scheme: Scheme) -> None:
    for key, value, known in (
        ("method", scheme.method, METHODS),
        ("aggregate", scheme.aggregate, AGGREGATES),
        ("combine", scheme.combine, COMBINES),
        ("ties", scheme.ties, TIES),
        ("missing", scheme.missing, MISSING),
        ("lost", scheme.lost_policy, MISSING),
        *(("aggregate", column.aggregate or POOLED, (POOLED,)) for column in scheme.columns),
        *(("subsets", subset, SUBSETS) for subset in scheme.subsets),
    ):
        if value not in known:
            raise AutopetError(f"key {key!r}: {value!r} is none of {', '.join(known)}")
    if len(set(scheme.subsets)) != len(scheme.subsets):
        raise AutopetError(f"key 'subsets' names {scheme.subsets[0]!r} twice")
    if scheme.method != "aggregate-then-rank":
        for key, wrong in (
            ("combine", bool(scheme.subsets) and scheme.combine == "values"),
            ("aggregate", scheme.aggregate == "variance"),
            ("above_median", bool(scheme.above_median)),
        ):
            if wrong:
                raise AutopetError(
                    f"key {key!r}: {getattr(scheme, key)!r} needs method 'aggregate-then-rank', not {scheme.method!r}"
                )


def _check_columns(scheme: Scheme) -> None:
    if not scheme.columns:
        raise AutopetError("a scheme needs at least one metric")
    if len(set(scheme.metrics)) != len(scheme.metrics):
        raise AutopetError(f"a metric is named twice in {', '.join(scheme.metrics)}; name each once")
    for column in scheme.columns:
        if not (math.isfinite(column.weight) and 0 < column.weight <= LARGEST_WEIGHT):
            raise AutopetError(
                f"weight {column.weight:g} of metric {column.metric!r}: expected a number above 0, "
                f"at most {LARGEST_WEIGHT:,.0f}"
            )
    _check_pooled(scheme)
    for key, metric in (("tie_break", scheme.tie_break), ("above_median", scheme.above_median)):
        if metric and metric not in scheme.metrics:
            raise AutopetError(f"key {key!r}: {metric!r} is no metric of the scheme ({', '.join(scheme.metrics)})")


def _check_pooled(scheme: Scheme) -> None:
    for column in (scheme.columns[index] for index in scheme.pooled):
        wrong = scheme.method != "aggregate-then-rank" or scheme.aggregate == "variance"
        if wrong or not column.higher_is_better or column.metric == scheme.above_median:
            raise AutopetError(
                f"aggregate {POOLED!r} of metric {column.metric!r} needs direction 'higher', method "
                "'aggregate-then-rank', and a scheme that neither ranks variances nor takes it for above_median"
            )


def _check_numbers(scheme: Scheme) -> None:
    for key, value, low in (("bootstraps", scheme.bootstraps, 0), ("seed", scheme.seed, 0)):
        if value < low:
            raise AutopetError(f"key {key!r}: expected at least {low}, found {value}")
    if scheme.bootstraps > MOST_BOOTSTRAPS:
        raise AutopetError(f"key 'bootstraps': expected at most {MOST_BOOTSTRAPS:,}, found {scheme.bootstraps:,}")
    for key, share in (("interval", scheme.interval), ("alpha", scheme.alpha)):
        if not 0 < share < 1:
            raise AutopetError(f"key {key!r}: expected a number between 0 and 1, found {share:g}")


def _ranked_by(scheme: Scheme) -> str:
    lower = scheme.aggregate == "variance"
    what = {
        "aggregate-then-rank": "variance of" if lower else scheme.aggregate,
        "rank-then-aggregate": f"{scheme.aggregate} over the cases of the rank by",
        "test-then-rank": "number of other submissions that are significantly worse in",
    }[scheme.method]
    ways = ["higher" if c.higher_is_better and not lower else "lower" for c in scheme.columns]
    parts = [
        f"{POOLED_WORDS if c.aggregate else what} {c.title} ({way} is better, weight {c.weight:g})"
        for c, way in zip(scheme.columns, ways, strict=True)
    ]
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return (
        f"Submissions are ranked by {listed}; the weighted mean of these ranks, lower is better, gives the final order."
    )


def _subset_words(scheme: Scheme) -> str:
    if not scheme.subsets:
        return ""
    subsets = f"subset of {' and '.join(scheme.subsets)}"
    if scheme.combine == "values":
        return f"Values are aggregated in each {subsets}, averaged over the subsets, then ranked."
    return f"Ranks are made within each {subsets} and averaged over the subsets for each metric."


def _median_words(scheme: Scheme) -> str:
    if not scheme.above_median:
        return ""
    title = scheme.columns[scheme.metrics.index(scheme.above_median)].title
    return (
        f"Only submissions whose mean {title} is better than the median of all submissions are ranked; "
        "the others share the last place."
    )


def _tie_words(scheme: Scheme) -> str:
    words = TIES_WORDS[scheme.ties]
    column = scheme.tie_break_column
    if column is None:
        return f"{words[0].upper()}{words[1:].replace('still ', '')}."
    if scheme.method != "aggregate-then-rank" or (scheme.subsets and scheme.combine == "ranks"):
        how = f"the rank by {column.title}"
    else:
        how = f"{'variance of' if scheme.aggregate == 'variance' else scheme.aggregate} {column.title}"
        how = column.title if column.aggregate else how
    return f"Ties are broken by {how}; {words}."
