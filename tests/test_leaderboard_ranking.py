"""Ranks computed by hand."""

from __future__ import annotations

import math
import statistics
import zlib
from dataclasses import replace

import numpy as np
import pytest
from board import board, one_metric
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopet.errors import AutopetError
from leaderboard.ranking import SCHEMES, competition_ranks, rank_means, rank_samples, rank_submissions, scheme_named
from leaderboard.scheme import MISSING, TIES, Scheme
from leaderboard.submissions import CaseResult, Submission
from leaderboard.table import case_table

NAN = math.nan
SCHEME = SCHEMES["I"]


def submission(name: str, dice: float, fpv: float, fnv: float) -> Submission:
    means = {"dice": dice, "fpv_ml": fpv, "fnv_ml": fnv}
    return Submission(name, "III", "empty", "", "", cases=(CaseResult("a", "scored", "", means),), means=means)


def test_competition_ranks_leave_gaps_after_ties():
    assert competition_ranks(np.array([0.7, 0.9, 0.7, 0.1]), higher_is_better=True).tolist() == [2, 1, 2, 4]
    assert competition_ranks(np.array([3.0, 0.0, 0.0, 1.0]), higher_is_better=False).tolist() == [4, 1, 1, 3]


@pytest.mark.parametrize("higher", [True, False])
def test_undefined_values_rank_last_and_tie(higher: bool):
    assert competition_ranks(np.array([NAN, 1.0, NAN]), higher_is_better=higher).tolist() == [2, 1, 2]


def test_weighted_mean_rank_by_hand():
    standings = rank_submissions(
        [
            submission("A", 0.60, 5.0, 2.0),  # ranks 2, 3, 1 -> 0.5*2 + 0.25*3 + 0.25*1 = 2.0
            submission("B", 0.70, 4.0, 3.0),  # ranks 1, 2, 2 -> 1.5
            submission("C", 0.50, 1.0, 4.0),  # ranks 3, 1, 3 -> 2.5
        ],
        SCHEME,
    )
    assert [(s.submission.name, s.rank, s.score, s.ranks) for s in standings] == [
        ("B", 1, 1.5, (1, 2, 2)),
        ("A", 2, 2.0, (2, 3, 1)),
        ("C", 3, 2.5, (3, 1, 3)),
    ]


def test_dice_breaks_ties_of_the_mean_rank():
    # A: ranks 1, 2, 2 -> 1.5; B: ranks 2, 1, 1 -> 1.5
    standings = rank_submissions([submission("B", 0.6, 1.0, 1.0), submission("A", 0.7, 2.0, 2.0)], SCHEME)
    assert [(s.submission.name, s.rank, s.score) for s in standings] == [("A", 1, 1.5), ("B", 2, 1.5)]


def test_what_is_still_tied_shares_a_rank_in_the_order_of_names():
    same = [submission(name, 0.6, 1.0, 1.0) for name in ("z", "b")]
    standings = rank_submissions([*same, submission("best", 0.9, 0.5, 0.5), submission("last", 0.1, 9.0, 9.0)], SCHEME)
    assert [(s.submission.name, s.rank) for s in standings] == [("best", 1), ("b", 2), ("z", 2), ("last", 4)]


def test_submission_without_a_value_ranks_last_and_is_named():
    standings = rank_submissions([submission("null", NAN, 0.0, 0.0), submission("ok", 0.1, 9.0, 9.0)], SCHEME)
    by_name = {s.submission.name: s for s in standings}
    assert by_name["null"].ranks == (2, 1, 1)
    assert by_name["null"].undefined == ("dice",)
    assert [s.submission.name for s in standings] == ["ok", "null"]  # both 1.5, Dice decides


def test_bootstrap_samples_are_ranked_at_once():
    rng = np.random.default_rng(0)
    means = rng.random((5, 4, 3)).round(1)
    means[0, 1, 0] = NAN
    together = rank_means(means, SCHEME)
    for i in range(5):
        alone = rank_means(means[i], SCHEME)
        np.testing.assert_array_equal(together.final[i], alone.final)
        np.testing.assert_array_equal(together.by_metric[i], alone.by_metric)


def test_order_of_submissions_does_not_matter():
    rng = np.random.default_rng(1)
    means = rng.integers(0, 4, (7, 3)) / 4
    order = rng.permutation(7)
    np.testing.assert_array_equal(rank_means(means, SCHEME).final[order], rank_means(means[order], SCHEME).final)


def test_scheme_in_words_and_unknown_scheme():
    assert "mean Dice (higher is better, weight 0.5)" in SCHEME.words
    assert sum(column.weight for column in SCHEME.columns) == 1.0
    with pytest.raises(AutopetError, match="unknown ranking scheme 'X'"):
        scheme_named("X")


# The final leaderboard of the first challenge, as its organisers publish it (autopet.grand-challenge.org and the
# organisers' site): mean Dice, FNV, FPV, mean position. The paper gives ranges of these means only, per-case values
# are not published.
PUBLISHED = {
    "Blackbean": (0.6226, 0.5445, 2.8372, 1.75),
    "BDAV": (0.6208, 0.7518, 3.6111, 3.0),
    "FightTumor": (0.6064, 0.4681, 5.1026, 3.75),
    "UIH-FL": (0.6096, 0.8316, 4.8533, 4.0),
    "heiligerl": (0.6052, 0.6287, 5.8741, 5.0),
    "Subtle Medical": (0.5998, 1.5490, 2.1199, 6.25),
    "FlemingsTeam": (0.5900, 1.2067, 10.2217, 8.25),
    "Zzw_in_US": (0.5764, 1.2100, 11.7992, 9.25),
    "PET_TEAM": (0.5460, 1.0402, 6.6386, 9.25),
    "BAMF": (0.5541, 1.5314, 8.5524, 10.0),
    "nki-radiology": (0.5655, 2.4587, 9.6327, 10.25),
    "SKJP": (0.4178, 7.6606, 1.3992, 10.25),
    "FMISL": (0.5342, 4.9177, 6.5686, 11.25),
    "Dolphins": (0.3734, 1.2597, 99.6526, 12.75),
}


def cases_with_means(team: str, cases: int, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Made-up cases with the team's published means."""
    dice, fnv, fpv, _ = PUBLISHED[team]
    parts = []
    for mean in (dice, fpv, fnv):
        values = rng.gamma(0.5, 1.0, cases)
        parts.append(values * mean / values.mean())
    return list(zip(*parts, strict=True))


def test_the_first_challenge_is_ranked_as_published():
    means = np.array([(dice, fpv, fnv) for dice, fnv, fpv, _ in PUBLISHED.values()])
    ranks = rank_means(means, SCHEME)
    assert ranks.score.tolist() == [position for *_, position in PUBLISHED.values()]
    assert ranks.final.tolist() == list(range(1, 15))  # Dice parts 9.25 twice and 10.25 twice


def nine(rng: np.random.Generator, cases: int = 150) -> dict[str, list[tuple[float, float, float]]]:
    return {team: cases_with_means(team, cases, rng) for team in list(PUBLISHED)[:9]}


NINE_SCORES = {  # by hand: 0.5 rank of Dice + 0.25 rank of FPV + 0.25 rank of FNV among these nine
    "Blackbean": 0.5 * 1 + 0.25 * 2 + 0.25 * 2,
    "BDAV": 0.5 * 2 + 0.25 * 3 + 0.25 * 4,
    "FightTumor": 0.5 * 4 + 0.25 * 5 + 0.25 * 1,
    "UIH-FL": 0.5 * 3 + 0.25 * 4 + 0.25 * 5,
    "heiligerl": 0.5 * 5 + 0.25 * 6 + 0.25 * 3,
    "Subtle Medical": 0.5 * 6 + 0.25 * 1 + 0.25 * 9,
    "FlemingsTeam": 0.5 * 7 + 0.25 * 8 + 0.25 * 7,
    "PET_TEAM": 0.5 * 9 + 0.25 * 7 + 0.25 * 6,  # without the other five, before Zzw_in_US
    "Zzw_in_US": 0.5 * 8 + 0.25 * 9 + 0.25 * 8,
}


def test_nine_algorithms_with_per_case_tables():
    standings = rank_submissions(board(nine(np.random.default_rng(0))), SCHEME)
    assert [(s.submission.name, s.score) for s in standings] == list(NINE_SCORES.items())
    assert [s.rank for s in standings] == list(range(1, 10))


def test_nine_algorithms_with_a_tie():
    tables = nine(np.random.default_rng(1))
    tables["BDAV"] = tables["Blackbean"][::-1]  # the same cases in another order: equal means
    standings = {s.submission.name: s for s in rank_submissions(board(tables), SCHEME)}
    # both: Dice 1, FPV 2, FNV 2; nobody else passes or falls: BDAV was before the third in every metric but FNV (4th)
    assert standings["BDAV"].rank == standings["Blackbean"].rank == 1
    assert standings["BDAV"].ranks == standings["Blackbean"].ranks == (1, 2, 2)
    assert standings["FightTumor"].rank == 3
    assert standings["heiligerl"].ranks == (5, 6, 4)


def test_nine_algorithms_with_failed_cases_and_cases_without_lesions():
    rng = np.random.default_rng(2)
    tables = nine(rng)
    for rows in tables.values():
        rows.extend([(NAN, 0.0, NAN)] * 50)  # no lesions and nothing predicted: Dice and FNV undefined, FPV 0 for all
    tables["Blackbean"][:10] = [(NAN, NAN, NAN)] * 10  # ten failed cases, policy nan
    expected = {policy: oracle(tables, replace(SCHEME, missing=policy)) for policy in MISSING}
    for policy in MISSING:
        standings = rank_submissions(board(tables), replace(SCHEME, missing=policy))
        assert {s.submission.name: (s.score, s.rank) for s in standings} == expected[policy]
    assert expected["worst"]["Blackbean"] == (9.0, 9)  # last in every metric
    means = rank_submissions(board(tables), SCHEME)[0].means
    assert means[1] == pytest.approx(np.nanmean([row[1] for row in tables["Blackbean"]]))


def test_nine_algorithms_in_subsets_one_of_them_a_single_case():
    rng = np.random.default_rng(3)
    tables = nine(rng, 31)
    tracers = ["FDG"] * 20 + ["PSMA"] * 11
    centres = ["UKT"] * 10 + ["LMU"] * 10 + ["UKT"] * 10 + ["LMU"]
    for rows in tables.values():
        rows[30] = (NAN, rows[30][1], NAN)  # the single PSMA case from LMU has no lesions
    for name in ("III", "IV"):
        scheme = SCHEMES["III"] if name == "III" else replace(SCHEMES["III"], combine="values")
        standings = rank_submissions(board(tables, tracers=tracers, centres=centres), scheme)
        expected = oracle(tables, scheme, list(zip(tracers, centres, strict=True)))
        assert {s.submission.name: (s.score, s.rank) for s in standings} == expected


# Edition III by hand: A, B on FDG (two cases) and PSMA (one case), Dice only.
def test_ranks_within_subsets_are_averaged():
    tables = {"A": [[0.9], [0.7], [0.1]], "B": [[0.5], [0.6], [0.2]], "C": [[0.8], [0.9], [0.3]]}
    # FDG means 0.8, 0.55, 0.85 -> 2, 3, 1; PSMA 0.1, 0.2, 0.3 -> 3, 2, 1; averaged 2.5, 2.5, 1
    scheme = one_metric(subsets=("tracer",))
    entries = board(tables, metrics=["dice"], tracers=["FDG", "FDG", "PSMA"])
    assert [(s.submission.name, s.rank, s.ranks) for s in rank_submissions(entries, scheme)] == [
        ("C", 1, (1,)),
        ("A", 2, (2.5,)),
        ("B", 2, (2.5,)),
    ]
    # edition IV: averages of subset means 0.45, 0.375, 0.575 -> 2, 3, 1 (means over all cases: 0.567, 0.433, 0.667)
    values = rank_submissions(entries, replace(scheme, combine="values"))
    assert [(s.submission.name, s.rank) for s in values] == [("C", 1), ("A", 2), ("B", 3)]
    assert values[1].means == pytest.approx((0.45,))


def test_a_subset_that_says_nothing_of_a_metric_is_left_out():
    tables = {"A": [[0.9], [NAN]], "B": [[0.5], [NAN]]}
    scheme = one_metric(subsets=("tracer",))
    standings = rank_submissions(board(tables, metrics=["dice"], tracers=["FDG", "PSMA"]), scheme)
    assert [s.ranks for s in standings] == [(1,), (2,)]  # not the mean with a tie at 1


def test_edition_five_by_hand():
    tables = {"A": [[4.0, 1.0], [3.0, 2.0]], "B": [[5.0, 1.0], [4.0, 1.0]], "C": [[1.0, 3.0], [1.0, 4.0]]}
    steps = {name: [((tp, 0, 10 - tp),) * 6] * 2 for name, tp in (("A", 5), ("B", 2), ("C", 8))}
    # AUC-Dice means 3.5, 4.5, 1 -> 2, 1, 3; AUC-DMM of 5, 2, 8 of 10 -> 2, 3, 1; all score 2: no tie-break is published
    standings = rank_submissions(board(tables, metrics=["auc_dice", "auc_f1"], steps=steps), SCHEMES["V"])
    assert [(s.submission.name, s.rank, s.score, s.ranks) for s in standings] == [
        ("A", 1, 2.0, (2, 2)),
        ("B", 1, 2.0, (1, 3)),
        ("C", 1, 2.0, (3, 1)),
    ]


def test_edition_two_ranks_the_variance_of_the_better_half():
    def rows(*dice: float) -> list[list[float]]:
        return [[value, 1.0 + value, 2.0] for value in dice]

    tables = {  # mean Dice 0.8, 0.7, 0.6, 0.3: the median is 0.65, so the first two count
        "wide": rows(0.6, 1.0),
        "narrow": rows(0.65, 0.75),
        "constant": rows(0.6, 0.6),
        "bad": rows(0.3, 0.3),
    }
    standings = rank_submissions(board(tables), SCHEMES["II-2"])
    assert [(s.submission.name, s.rank, s.eligible) for s in standings] == [
        ("narrow", 1, True),
        ("wide", 2, True),
        ("bad", 3, False),
        ("constant", 3, False),
    ]
    assert standings[0].ranks == (1, 1, 1)
    assert standings[0].means == pytest.approx((0.005, 0.005, 0.0))
    assert standings[1].means == pytest.approx((0.08, 0.08, 0.0))


def test_the_median_itself_is_not_above_the_median():
    tables = {name: [[dice, 1.0, 1.0], [dice, 2.0, 2.0]] for name, dice in (("a", 0.3), ("b", 0.5), ("c", 0.8))}
    standings = rank_submissions(board(tables), SCHEMES["II-2"])
    assert [(s.submission.name, s.eligible) for s in standings] == [("c", True), ("a", False), ("b", False)]


@pytest.mark.parametrize(
    ("ties", "expected"), [("min", [1, 2, 2, 4]), ("average", [1, 2.5, 2.5, 4]), ("dense", [1, 2, 2, 3])]
)
def test_ties_by_the_named_rule(ties: str, expected: list[float]):
    entries = board({"a": [[0.9]], "b": [[0.5]], "c": [[0.5]], "d": [[0.1]]}, metrics=["dice"])
    standings = rank_submissions(entries, one_metric(ties=ties))
    assert [s.rank for s in standings] == expected
    assert [s.ranks[0] for s in standings] == expected


def test_median_and_rank_then_aggregate_by_hand():
    tables = {"steady": [[0.6], [0.6], [0.6]], "lucky": [[0.7], [0.7], [0.0]], "third": [[0.5], [0.5], [0.5]]}
    entries = board(tables, metrics=["dice"])

    def order(**changes: str) -> list[tuple[str, float]]:
        return [(s.submission.name, s.score) for s in rank_submissions(entries, one_metric(**changes))]

    assert order() == [("steady", 1), ("third", 2), ("lucky", 3)]  # means 0.6, 0.5, 0.467
    assert order(aggregate="median") == [("lucky", 1), ("steady", 2), ("third", 3)]
    # ranks on the cases: steady 2 2 1, lucky 1 1 3, third 3 3 2
    thirds = [("lucky", 5 / 3), ("steady", 5 / 3), ("third", 8 / 3)]
    assert order(method="rank-then-aggregate") == [(name, pytest.approx(score)) for name, score in thirds]
    ranked = order(method="rank-then-aggregate", aggregate="median")
    assert ranked == [("lucky", 1), ("steady", 2), ("third", 3)]


def test_test_then_rank_counts_significant_wins():
    rng = np.random.default_rng(4)
    base = rng.random(40)
    values = np.stack([base + 0.2, base + 0.2 + rng.normal(0, 1e-3, 40), base])[..., None]
    # the first two differ by noise, both beat the third: one win each
    standings = rank_submissions(board(values, metrics=["dice"]), one_metric(method="test-then-rank"))
    assert [(s.submission.name, s.rank) for s in standings] == [("s00", 1), ("s01", 1), ("s02", 3)]


def test_missing_values_by_the_named_policy():
    # s00 failed on the second case; nobody has a value for the third
    values = np.array([[[0.5], [NAN], [NAN]], [[0.6], [0.1], [NAN]], [[0.2], [0.5], [NAN]]])

    def final(missing: str) -> list[float]:
        return places(values, one_metric(missing=missing), metrics=["dice"]).tolist()

    assert final("ignore") == [1, 2, 2]  # means 0.5, 0.35, 0.35
    assert final("worst") == [3, 1, 1]  # the first is last
    assert final("drop-case") == [2, 1, 3]  # the first case only: 0.5, 0.6, 0.2


def test_what_a_scheme_needs_and_results_lack_is_named():
    entries = board({"a": [[0.5]]}, metrics=["dice"])
    with pytest.raises(
        AutopetError, match=r"'I' needs metric 'fpv_ml', which the results of 'a' lack \(case case000\)"
    ):
        rank_submissions(entries, SCHEME)
    with pytest.raises(AutopetError, match="needs the centre of every case, 'a' has none for case case000"):
        rank_submissions(entries, one_metric(subsets=("centre",)))
    with pytest.raises(AutopetError, match="no submissions"):
        rank_submissions([], SCHEME)


def test_one_submission_is_first():
    for scheme in (SCHEME, one_metric(method="test-then-rank"), one_metric(method="rank-then-aggregate")):
        assert [s.rank for s in rank_submissions(board({"a": [[0.5, 1.0, 1.0]]}), scheme)] == [1]


# An independent way through a scheme: plain loops, one submission and one case at a time.
def oracle(tables: dict[str, list], scheme: Scheme, subsets: list | None = None) -> dict[str, tuple[float, float]]:
    names, cases = list(tables), len(next(iter(tables.values())))
    groups = sorted(set(subsets)) if subsets else [None]
    tied = (len(names) + 1) / 2 if scheme.ties == "average" else 1.0
    per_metric: list[dict[str, float]] = []
    for m, column in enumerate(scheme.columns):
        cost = {name: [(-1 if column.higher_is_better else 1) * row[m] for row in tables[name]] for name in names}
        for c in range(cases):
            lacking = [name for name in names if math.isnan(cost[name][c])]
            if lacking and len(lacking) < len(names):
                for name in names if scheme.missing == "drop-case" else lacking:
                    if scheme.missing != "ignore":
                        cost[name][c] = math.inf if scheme.missing == "worst" else NAN
        within = [[c for c in range(cases) if subsets is None or subsets[c] == group] for group in groups]
        if scheme.combine == "values":
            whole = {}
            for name in names:
                parts = [oracle_aggregate([cost[name][c] for c in g], scheme.aggregate) for g in within]
                whole[name] = oracle_aggregate(parts, "mean")
            ranked = [oracle_ranks(whole, scheme.ties)]
        else:
            ranked = []
            for g in within:
                if all(math.isnan(cost[name][c]) for name in names for c in g):
                    continue
                values = {n: oracle_aggregate([cost[n][c] for c in g], scheme.aggregate) for n in names}
                if scheme.method == "rank-then-aggregate":
                    by_case = [oracle_ranks({n: cost[n][c] for n in names}, scheme.ties) for c in g]
                    kept = {
                        n: [r[n] for r, c in zip(by_case, g, strict=True) if not math.isnan(cost[n][c])] for n in names
                    }
                    values = {n: oracle_aggregate(kept[n], scheme.aggregate) for n in names}
                    ranked.append({n: len(names) if math.isnan(v) else v for n, v in values.items()})
                elif any(map(math.isfinite, values.values())):
                    ranked.append(oracle_ranks(values, scheme.ties))
        per_metric.append({n: statistics.fmean(r[n] for r in ranked) if ranked else tied for n in names})
    weights = [column.weight for column in scheme.columns]
    score = {
        n: round(sum(w * round(r[n], 9) for w, r in zip(weights, per_metric, strict=True)) / sum(weights), 9)
        for n in names
    }
    breaker = per_metric[scheme.metrics.index(scheme.tie_break)] if scheme.tie_break else dict.fromkeys(names, 0.0)
    key = {n: (score[n], round(breaker[n], 9)) for n in names}
    return {n: (score[n], oracle_place(key, n, scheme.ties)) for n in names}


def oracle_aggregate(values: list[float], how: str) -> float:
    kept = [value for value in values if not math.isnan(value)]
    if len(kept) < (2 if how == "variance" else 1):
        return NAN
    if math.inf in kept and how != "median":
        return math.inf
    return {"mean": statistics.fmean, "median": statistics.median, "variance": statistics.variance}[how](kept)


def oracle_ranks(costs: dict[str, float], ties: str) -> dict[str, float]:
    rounded = {name: math.inf if math.isnan(cost) else round(cost, 9) for name, cost in costs.items()}
    return {name: oracle_place(rounded, name, ties) for name in rounded}


def oracle_place(keys: dict, name: str, ties: str) -> float:
    better = [key for key in keys.values() if key < keys[name]]
    equal = [key for key in keys.values() if key == keys[name]]
    return 1 + (len(set(better)) if ties == "dense" else len(better) + (len(equal) - 1) / 2 * (ties == "average"))


VARIANTS = [
    ("aggregate-then-rank", "mean", "ranks"),
    ("aggregate-then-rank", "median", "ranks"),
    ("aggregate-then-rank", "variance", "ranks"),
    ("aggregate-then-rank", "mean", "values"),
    ("rank-then-aggregate", "mean", "ranks"),
    ("rank-then-aggregate", "median", "ranks"),
]


@pytest.mark.parametrize(("method", "how", "combine"), VARIANTS)
@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("ties", TIES)
def test_random_tables_as_by_plain_loops(method: str, how: str, combine: str, missing: str, ties: str):
    rng = np.random.default_rng(zlib.crc32(f"{method}{how}{combine}{missing}{ties}".encode()))
    scheme = replace(
        SCHEMES["III"], method=method, aggregate=how, combine=combine, missing=missing, ties=ties, subsets=("centre",)
    )
    for _ in range(15):
        n, k = rng.integers(2, 8), rng.integers(1, 9)
        values = rng.integers(0, 4, (n, k, 3)) / 4
        values[rng.random((n, k, 3)) < 0.2] = NAN
        values[:, rng.random(k) < 0.2, 0] = NAN
        centres = [f"c{i}" for i in rng.integers(0, 3, k)]
        entries = board(values, centres=centres)
        tables = {entry.name: rows.tolist() for entry, rows in zip(entries, values, strict=True)}
        found = {s.submission.name: (s.score, s.rank) for s in rank_submissions(entries, scheme)}
        expected = oracle(tables, scheme, centres)
        assert found == {name: (pytest.approx(score), rank) for name, (score, rank) in expected.items()}


TABLES = st.integers(2, 6).flatmap(
    lambda n: arrays(
        float, st.tuples(st.just(n), st.integers(1, 6), st.just(3)), elements=st.sampled_from([NAN, 0, 0.25, 0.5, 1])
    )
)
LAWFUL = [
    SCHEME,
    replace(SCHEME, aggregate="median", ties="average", missing="worst"),
    replace(SCHEME, method="rank-then-aggregate", missing="drop-case"),
    replace(SCHEME, method="test-then-rank", ties="dense"),
]


def places(values: np.ndarray, scheme: Scheme, **options: list[str]) -> np.ndarray:
    table = case_table(board(values, **options), scheme)
    return rank_samples(table, scheme, table.every_case_once).final[0]


@pytest.mark.parametrize("scheme", LAWFUL)
@settings(max_examples=60, deadline=None)
@given(values=TABLES, data=st.data())
def test_names_and_the_order_of_cases_do_not_matter(scheme: Scheme, values: np.ndarray, data: st.DataObject):
    order = np.array(data.draw(st.permutations(range(len(values)))))
    cases = np.array(data.draw(st.permutations(range(values.shape[1]))))
    np.testing.assert_array_equal(places(values[order][:, cases], scheme), places(values, scheme)[order])


@pytest.mark.parametrize("scheme", LAWFUL)
@settings(max_examples=40, deadline=None)
@given(values=TABLES, factor=st.sampled_from([0.25, 2.0, 3.0, 1000.0]))
def test_only_the_proportions_of_weights_matter(scheme: Scheme, values: np.ndarray, factor: float):
    columns = tuple(replace(column, weight=column.weight * factor) for column in scheme.columns)
    np.testing.assert_array_equal(places(values, replace(scheme, columns=columns)), places(values, scheme))


@pytest.mark.parametrize("scheme", [s for s in LAWFUL if s.method != "test-then-rank"])
@settings(max_examples=100, deadline=None)
@given(values=TABLES, data=st.data())
def test_a_better_value_never_costs_a_rank(scheme: Scheme, values: np.ndarray, data: st.DataObject):
    n, case, metric = (data.draw(st.integers(0, size - 1)) for size in values.shape)
    if np.isnan(values[n, case, metric]):
        values[n, case, metric] = 0.5
    better = values.copy()
    better[n, case, metric] += 0.3 if scheme.columns[metric].higher_is_better else -0.3
    assert places(better, scheme)[n] <= places(values, scheme)[n]
