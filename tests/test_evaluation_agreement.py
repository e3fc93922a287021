"""Agreement of volumes: published and hand-computed examples, an ICC from the sums of squares, degenerate cohorts."""

from __future__ import annotations

import math

import numpy as np
import pingouin
import pytest
from scipy.stats import f as f_distribution

from autopet.errors import AutopetError
from evaluation.agreement import bland_altman, icc, icc_of, pearson

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
TRUTH, GUESS = [10.0, 20.0, 30.0, 40.0], [12.0, 18.0, 33.0, 45.0]


def icc_by_sums_of_squares(table: np.ndarray) -> tuple[float, float, float]:
    """ICC(A,1) and its 95 % interval (McGraw and Wong 1996, tables 4 and 7) from a two-way analysis of variance."""
    n, k = table.shape
    rows, columns, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    msr = k * ((rows - mean) ** 2).sum() / (n - 1)
    msc = n * ((columns - mean) ** 2).sum() / (k - 1)
    mse = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((n - 1) * (k - 1))
    value = (msr - mse) / (msr + (k - 1) * mse + k * (msc - mse) / n)
    a, b = k * value / (n * (1 - value)), 1 + k * value * (n - 1) / (n * (1 - value))
    v = (a * msc + b * mse) ** 2 / ((a * msc) ** 2 / (k - 1) + (b * mse) ** 2 / ((n - 1) * (k - 1)))
    upper, lower = f_distribution.ppf(0.975, n - 1, v), f_distribution.ppf(0.975, v, n - 1)
    noise = k * msc + (k * n - k - n) * mse
    return (
        value,
        n * (msr - upper * mse) / (upper * noise + n * msr),
        n * (lower * msr - mse) / (noise + n * lower * msr),
    )


def test_the_published_example_of_shrout_and_fleiss():
    found = icc_of(SHROUT_FLEISS)
    assert found.value == pytest.approx(0.29, abs=0.005)
    assert found.ci95 == pytest.approx((0.019, 0.761), abs=0.001)  # of McGraw and Wong's formulas, published rounded
    assert found.n == 6


@pytest.mark.parametrize("seed", range(10))
def test_icc_equals_the_sums_of_squares(seed: int):
    rng = np.random.default_rng(seed)
    truth = rng.lognormal(3, 1, size=4 + 7 * seed)
    guess = truth * rng.normal(1.1, 0.3, size=truth.size)
    value, low, high = icc_by_sums_of_squares(np.stack([truth, guess], axis=1))
    found = icc(truth.tolist(), guess.tolist())
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.ci95 == pytest.approx((low, high), rel=1e-6)
    assert found.n == truth.size
    assert not found.reason


def test_icc_by_hand():
    # rows 1,3 / 4,4 / 7,5: row means 2, 4, 6, column means 4 and 4, MSR = 2 (4 + 0 + 4) / 2 = 8, MSC = 0,
    # residuals -1,1 / 0,0 / 1,-1: MSE = 4 / 2 = 2; (8 - 2) / (8 + 2 + 2 (0 - 2) / 3) = 6 / (26 / 3)
    assert icc([1, 4, 7], [3, 4, 5]).value == pytest.approx(18 / 26)


def test_pingouins_options_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(pingouin.options, "round.column.CI95", 5)
    icc(TRUTH, GUESS)
    assert pingouin.options["round.column.CI95"] == 5


def test_bland_altman_by_hand():
    # differences 2, -2, 3, 5: mean 2, squares of the rest 0, 16, 1, 9: sd sqrt(26 / 3); t(0.975, 3) = 3.182446
    found, sd = bland_altman(TRUTH, GUESS), math.sqrt(26 / 3)
    assert (found.bias, found.n) == (2.0, 4)
    assert found.sd == pytest.approx(sd)
    assert (found.lower, found.upper) == pytest.approx((2 - 1.959964 * sd, 2 + 1.959964 * sd), rel=1e-6)
    half = 3.182446 * sd / 2
    assert found.bias_ci95 == pytest.approx((2 - half, 2 + half), rel=1e-6)
    half = 3.182446 * sd * math.sqrt(1 / 4 + 1.959964**2 / 6)
    assert found.upper_ci95 == pytest.approx((found.upper - half, found.upper + half), rel=1e-6)
    assert found.lower_ci95 == pytest.approx((found.lower - half, found.lower + half), rel=1e-6)


def test_pearson_by_hand():
    # deviations -15, -5, 5, 15 and -15, -9, 6, 18: products 225 + 45 + 30 + 270, squares 500 and 666
    found = pearson(TRUTH, GUESS)
    r = 570 / math.sqrt(500 * 666)
    assert found.value == pytest.approx(r)
    reach = 1.959964  # of Fisher's z, whose standard error with four cases is 1 / sqrt(4 - 3) = 1
    assert found.ci95 == pytest.approx((math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)), rel=1e-5)


def test_cases_without_a_value_are_left_out():
    truth, guess = [*TRUTH, None, 5.0, math.nan, 7.0], [*GUESS, 1.0, None, 3.0, math.inf]
    for function in (icc, bland_altman, pearson):
        assert function(truth, guess) == function(TRUTH, GUESS)


@pytest.mark.parametrize("function", [icc, bland_altman, pearson])
def test_too_few_cases_have_a_reason(function):
    for n in range(3):
        found = function(TRUTH[:n], GUESS[:n])
        assert (found.n, found.reason) == (n, f"{n} cases have both values, at least 3 are needed")
        assert (found.bias if function is bland_altman else found.value) is None


def test_values_that_do_not_differ():
    same = [5.0] * 4
    assert icc(same, same).value is None
    assert "do not differ" in icc(same, same).reason
    assert pearson(same, GUESS).value is None
    assert pearson(TRUTH, same).value is None
    assert icc(TRUTH, same).value == pytest.approx(0.0, abs=1e-12)
    flat = bland_altman(same, same)
    assert (flat.bias, flat.sd, flat.upper_ci95) == (0.0, 0.0, (0.0, 0.0))


def test_exact_agreement_and_a_constant_offset():
    exact = icc(TRUTH, TRUTH)
    assert (exact.value, exact.ci95) == (1.0, None)
    assert "exactly" in exact.reason
    # offset 6, no residual: MSR = 2 var(truth) = 1000 / 3, MSC = 4 (9 + 9) = 72, MSE = 0: MSR / (MSR + 2 MSC / 4)
    shifted = icc(TRUTH, [value + 6 for value in TRUTH])
    assert shifted.value == pytest.approx((1000 / 3) / (1000 / 3 + 36))
    three = pearson(TRUTH[:3], GUESS[:3])
    assert three.value is not None
    assert three.ci95 is None


def test_lengths_must_agree():
    with pytest.raises(AutopetError, match="found 3 for 4"):
        icc(TRUTH, GUESS[:3])
