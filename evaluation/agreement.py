"""How well true and predicted volumes or uptakes agree over a cohort: ICC(A,1), Bland-Altman, Pearson's r.

Every function takes two sequences of one value per case. Cases where either is None, NaN or infinite are left out, and
`n` says how many were used. What cannot be computed is None, with the `reason` in words.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy import stats

from autopet.errors import AutopetError

LEAST_CASES = 3
Interval = tuple[float, float]


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of agreement with its 95 % confidence interval."""

    value: float | None
    ci95: Interval | None
    n: int
    reason: str = ""


@dataclass(frozen=True)
class BlandAltman:
    """Differences prediction - truth: mean (`bias`), standard deviation (n - 1), limits of agreement (bias +- 1.96 sd).

    Each limit has its 95 % confidence interval; units are those of the values.
    """

    bias: float | None
    sd: float | None
    lower: float | None
    upper: float | None
    bias_ci95: Interval | None
    lower_ci95: Interval | None
    upper_ci95: Interval | None
    n: int
    reason: str = ""


def icc(truth: Sequence[float | None], prediction: Sequence[float | None]) -> Coefficient:
    """Intraclass correlation ICC(A,1): two-way model, absolute agreement, single measurement.

    That is ICC(2,1) of Shrout and Fleiss (1979) with the interval of McGraw and Wong (1996), by pingouin. None with
    fewer than three cases, or when no value differs from any other. Where prediction equals truth in every case it is
    1, without an interval.
    """
    first, second = _pairs(truth, prediction)
    reason = _too_few(first.size) or _no_variation(np.concatenate([first, second]))
    if reason:
        return Coefficient(None, None, first.size, reason)
    if np.array_equal(first, second):
        return Coefficient(
            1.0, None, first.size, "all values agree exactly, which leaves no error to make an interval of"
        )
    return icc_of(np.stack([first, second], axis=1))


def icc_of(ratings: np.ndarray) -> Coefficient:
    """ICC(A,1) of an (n, k) table of n targets, each rated by the same k raters, with values that differ."""
    import pandas as pd
    import pingouin

    targets, raters = np.indices(ratings.shape)
    table = pd.DataFrame({"target": targets.ravel(), "rater": raters.ravel(), "rating": ratings.ravel().astype(float)})
    with warnings.catch_warnings(), np.errstate(all="ignore"), _unrounded(pingouin.options):
        warnings.simplefilter("ignore")  # of divisions by zero, which are told apart below
        rows = pingouin.intraclass_corr(data=table, targets="target", raters="rater", ratings="rating")
    row = rows.set_index("Type").loc["ICC(A,1)"]
    value, (low, high) = float(row["ICC"]), (float(end) for end in row["CI95"])
    if not math.isfinite(value):
        return Coefficient(None, None, len(ratings), "the variances cancel, so there is no coefficient")
    if not (math.isfinite(low) and math.isfinite(high)):
        return Coefficient(value, None, len(ratings), "the variances leave no error to make an interval of")
    return Coefficient(value, (low, high), len(ratings))


@contextmanager
def _unrounded(options: dict) -> Iterator[None]:
    """Pingouin rounds intervals to two decimals unless told otherwise."""
    key = "round.column.CI95"
    before = options.get(key)
    options[key] = None
    try:
        yield
    finally:
        options[key] = before


def bland_altman(truth: Sequence[float | None], prediction: Sequence[float | None]) -> BlandAltman:
    """Bias and limits of agreement with 95 % confidence intervals.

    The limits' standard error is sd sqrt(1/n + 1.96^2 / (2 (n - 1))) (Bland and Altman 1999, section 2), their
    intervals use Student's t with n - 1 degrees of freedom. None with fewer than three cases.
    """
    first, second = _pairs(truth, prediction)
    n = first.size
    if reason := _too_few(n):
        return BlandAltman(None, None, None, None, None, None, None, n, reason)
    differences = second - first
    bias, sd = float(differences.mean()), float(differences.std(ddof=1))
    t, z = float(stats.t.ppf(0.975, n - 1)), float(stats.norm.ppf(0.975))
    of_bias, of_limit = t * sd / math.sqrt(n), t * sd * math.sqrt(1 / n + z**2 / (2 * (n - 1)))
    lower, upper = bias - z * sd, bias + z * sd
    return BlandAltman(
        bias=bias,
        sd=sd,
        lower=lower,
        upper=upper,
        bias_ci95=(bias - of_bias, bias + of_bias),
        lower_ci95=(lower - of_limit, lower + of_limit),
        upper_ci95=(upper - of_limit, upper + of_limit),
        n=n,
    )


def pearson(truth: Sequence[float | None], prediction: Sequence[float | None]) -> Coefficient:
    """Pearson's r with the interval of Fisher's transformation (none with three cases: it needs four).

    None with fewer than three cases, or when all true or all predicted values are the same.
    """
    first, second = _pairs(truth, prediction)
    reason = _too_few(first.size) or _no_variation(first) or _no_variation(second)
    if reason:
        return Coefficient(None, None, first.size, reason)
    result = stats.pearsonr(first, second)
    if first.size == LEAST_CASES:
        return Coefficient(float(result.statistic), None, first.size, "an interval needs at least 4 cases")
    interval = result.confidence_interval(0.95)
    return Coefficient(float(result.statistic), (float(interval.low), float(interval.high)), first.size)


def _pairs(truth: Sequence[float | None], prediction: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Both values of the cases that have both."""
    if len(truth) != len(prediction):
        raise AutopetError(f"expected one predicted value per true value, found {len(prediction)} for {len(truth)}")
    both = np.array([truth, prediction], dtype=float)  # None becomes NaN
    both = both[:, np.isfinite(both).all(axis=0)]
    return both[0], both[1]


def _too_few(n: int) -> str:
    return f"{n} cases have both values, at least {LEAST_CASES} are needed" if n < LEAST_CASES else ""


def _no_variation(values: np.ndarray) -> str:
    return "" if np.ptp(values) > 0 else "the values do not differ, so there is nothing to correlate"
