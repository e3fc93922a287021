"""Ranking schemes as files: what is read, what is refused, and what the editions' files say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autopet.errors import AutopetError
from leaderboard.scheme import Scheme
from leaderboard.scheme_file import SCHEMES, load_scheme, scheme_named

MINIMAL = """
[[metrics]]
name = "dice"
weight = 2
direction = "higher"
"""
POOLED = 'aggregate = "pooled_f1_area"\n'
FULL = """
title = "Mine"
method = "rank-then-aggregate"
aggregate = "median"
subsets = ["centre"]
ties = "average"
tie_break = "fpv_ml"
missing = "worst"
bootstraps = 50
seed = 3
interval = 0.9
alpha = 0.01

[[metrics]]
name = "dice"
title = "Dice"
weight = 1.5
direction = "higher"

[[metrics]]
name = "fpv_ml"
unit = "ml"
weight = 1
direction = "lower"
"""


def load(tmp_path: Path, text: str) -> Scheme:
    (tmp_path / "mine.toml").write_text(text)
    return load_scheme(tmp_path / "mine.toml")


def test_every_key_is_read(tmp_path: Path):
    scheme = load(tmp_path, FULL)
    assert (scheme.name, scheme.title, scheme.metrics) == ("mine", "Mine", ("dice", "fpv_ml"))
    assert [(c.title, c.unit, c.weight, c.higher_is_better) for c in scheme.columns] == [
        ("Dice", "", 1.5, True),
        ("fpv_ml", "ml", 1.0, False),
    ]
    assert (scheme.method, scheme.aggregate, scheme.subsets, scheme.ties) == (
        "rank-then-aggregate",
        "median",
        ("centre",),
        "average",
    )
    assert (scheme.tie_break_index, scheme.missing, scheme.bootstraps, scheme.seed) == (1, "worst", 50, 3)
    assert (scheme.interval, scheme.alpha) == (0.9, 0.01)


def test_defaults_and_a_path_as_name(tmp_path: Path):
    scheme = load(tmp_path, MINIMAL)
    assert (scheme.method, scheme.aggregate, scheme.subsets, scheme.tie_break) == (
        "aggregate-then-rank",
        "mean",
        (),
        "",
    )
    assert scheme_named(str(tmp_path / "mine.toml")) == scheme


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "wieghts = 1\n" + MINIMAL,
            r"mine\.toml: unknown key 'wieghts' in the scheme; the known keys are metrics, name",
        ),
        (MINIMAL + "wieght = 1\n", r"unknown key 'wieght' in a \[\[metrics\]\] table; the known keys are name, title"),
        ("columns = []\n" + MINIMAL, "unknown key 'columns'"),
        ("", r"needs at least one \[\[metrics\]\]"),
        ('[[metrics]]\nname = "dice"\n', "lacks 'weight'"),
        (MINIMAL.replace('direction = "higher"', ""), "lacks 'direction'; it needs name, weight and direction"),
        (
            MINIMAL.replace("2", "1000001"),
            "weight 1e\\+06 of metric 'dice': expected a number above 0, at most 1,000,000",
        ),
        (MINIMAL.replace("2", "inf"), "weight inf of metric 'dice'"),
        ("bootstraps = 1000001\n" + MINIMAL, "key 'bootstraps': expected at most 1,000,000, found 1,000,001"),
        ('lost = "zero"\n' + MINIMAL, "key 'lost': 'zero' is none of"),
        (MINIMAL + 'aggregate = "sum"\n', "key 'aggregate': 'sum' is none of pooled_f1_area"),
        ('method = "test-then-rank"\n' + MINIMAL + POOLED, "'pooled_f1_area' of metric 'dice' needs"),
        ('aggregate = "variance"\n' + MINIMAL + POOLED, "'pooled_f1_area' of metric 'dice' needs"),
        (MINIMAL.replace("2", "0"), "weight 0 of metric 'dice'"),
        (MINIMAL.replace("2", "nan"), "weight nan of metric 'dice'"),
        (MINIMAL.replace("2", "'2'"), "key 'weight': expected a number, found '2'"),
        (MINIMAL + MINIMAL, "named twice"),
        (MINIMAL.replace("higher", "up"), "direction 'up' of metric 'dice' is none of higher, lower"),
        ("bootstraps = true\n" + MINIMAL, "key 'bootstraps': expected a whole number, found True"),
        ("bootstraps = -1\n" + MINIMAL, "key 'bootstraps': expected at least 0"),
        ("alpha = 1\n" + MINIMAL, "key 'alpha': expected a number between 0 and 1"),
        ('ties = "max"\n' + MINIMAL, "key 'ties': 'max' is none of min, average, dense"),
        ('missing = "zero"\n' + MINIMAL, "key 'missing': 'zero' is none of ignore, worst, drop-case"),
        ('subsets = ["scanner"]\n' + MINIMAL, "key 'subsets': 'scanner' is none of tracer, centre"),
        ('subsets = ["centre", "centre"]\n' + MINIMAL, "key 'subsets' names 'centre' twice"),
        ('tie_break = "fnv_ml"\n' + MINIMAL, "key 'tie_break': 'fnv_ml' is no metric of the scheme"),
        ('method = "test-then-rank"\naggregate = "variance"\n' + MINIMAL, "key 'aggregate': 'variance' needs method"),
        ('method = "test-then-rank"\nabove_median = "dice"\n' + MINIMAL, "key 'above_median': 'dice' needs method"),
        ("title = [", "cannot be read as a ranking scheme"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, reason: str):
    with pytest.raises(AutopetError, match=reason):
        load(tmp_path, text)


def test_missing_file_and_unknown_name(tmp_path: Path):
    with pytest.raises(AutopetError, match="cannot be read"):
        scheme_named(str(tmp_path / "none.toml"))
    with pytest.raises(AutopetError, match="unknown ranking scheme 'VI', expected one of I, II, II-2, III, IV, V or"):
        scheme_named("VI")


def test_the_editions():
    def rule(name: str) -> tuple:
        scheme = SCHEMES[name]
        weights = {column.metric: (column.weight, column.higher_is_better) for column in scheme.columns}
        return weights, scheme.aggregate, scheme.subsets, scheme.combine, scheme.tie_break

    three = {"dice": (0.5, True), "fpv_ml": (0.25, False), "fnv_ml": (0.25, False)}
    areas = {"auc_dice": (0.25, True), "auc_fpv_ml": (0.125, False), "auc_fnv_ml": (0.125, False)}
    last = {"dice": (0.25, True), "fpv_ml": (0.125, False), "fnv_ml": (0.125, False)}
    assert rule("I") == rule("II") == (three, "mean", (), "ranks", "dice")
    assert rule("II-2") == (three, "variance", (), "ranks", "dice")
    assert SCHEMES["II-2"].above_median == "dice"
    assert rule("III") == (three, "mean", ("tracer", "centre"), "ranks", "dice")
    assert rule("IV") == (last | areas, "mean", ("tracer", "centre"), "values", "")
    assert rule("V") == ({"auc_dice": (0.5, True), "auc_f1": (0.5, True)}, "mean", (), "ranks", "")
    assert [column.aggregate for column in SCHEMES["V"].columns] == ["", "pooled_f1_area"]
    assert not any(column.aggregate for name in ("I", "II", "II-2", "III", "IV") for column in SCHEMES[name].columns)
    assert {(scheme.missing, scheme.lost) for scheme in SCHEMES.values()} == {("ignore", "worst")}
    assert {scheme.bootstraps for scheme in SCHEMES.values()} == {10_000}


def test_schemes_in_words():
    assert "within each subset of tracer and centre and averaged" in SCHEMES["III"].words
    assert "Ties are broken by the rank by Dice" in SCHEMES["III"].words
    assert "variance of FPV (lower is better" in SCHEMES["II-2"].words
    assert "variance of Dice (lower is better" in SCHEMES["II-2"].words
    assert "mean Dice is better than the median of all submissions" in SCHEMES["II-2"].words
    assert "averaged over the subsets, then ranked" in SCHEMES["IV"].words
    assert "significantly worse in Dice" in replace(SCHEMES["I"], method="test-then-rank").words
    assert "shares the mean of its ranks" in replace(SCHEMES["I"], ties="average").words
