"""The whole analysis, its files and its words."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board import board, one_metric

from autopet import __version__
from autopet.errors import AutopetError
from leaderboard.analysis import analyse
from leaderboard.ranking import SCHEMES
from leaderboard.ranking_files import ranking_csv, ranking_json, write_ranking

NAN = math.nan
SMALL = replace(SCHEMES["III"], bootstraps=200, seed=11)


def entries(count: int = 4) -> list:
    values = np.random.default_rng(0).random((count, 10, 3)) + np.arange(count)[:, None, None] / 10
    values[0, 3] = NAN
    values[:, 9, 0] = NAN
    statuses = {"s00": ["scored"] * 3 + ["failed"] + ["scored"] * 6}
    return board(values, tracers=["FDG"] * 5 + ["PSMA"] * 5, centres=["UKT"] * 8 + ["LMU"] * 2, statuses=statuses)


def test_json_holds_everything_without_nan():
    analysis = analyse(entries(), SMALL)
    content = json.loads(json.dumps(ranking_json(analysis), allow_nan=False))
    assert content["version"] == __version__
    assert content["scheme"]["subsets"] == ["tracer", "centre"]
    assert {name: len(cases) for name, cases in content["subsets"].items()} == {
        "FDG UKT": 5,
        "PSMA LMU": 2,
        "PSMA UKT": 3,
    }
    first = content["standings"][0]
    assert first["rank"] == 1
    assert first["rank_low"] <= 1 <= first["rank_high"]
    index = analysis.table.names.index(first["name"])
    assert analysis.stability is not None
    assert first["p_first"] == pytest.approx(np.mean(analysis.stability.ranks[:, index] == 1))
    assert [s["cases"]["failed"] for s in content["standings"] if s["name"] == "s00"] == [1]
    assert content["bootstrap"]["samples"] == 200
    assert sum(content["bootstrap"]["rank_shares"][first["name"]]) == pytest.approx(1)
    assert [row["name"] for row in content["without_subset"]] == ["FDG UKT", "PSMA LMU", "PSMA UKT"]
    assert len(content["without_case"]) == 10
    assert np.shape(content["significance"]["dice"]["p_holm"]) == (4, 4)
    assert "autopet" in content["schemes"][0]["name"].lower()


def test_csv_has_a_line_per_submission_and_no_formulas():
    named = [replace(entry, name="=1+1") if entry.name == "s02" else entry for entry in entries()]
    analysis = analyse(named, SMALL)
    rows = list(csv.DictReader(io.StringIO(ranking_csv(analysis))))
    assert sorted(row["name"] for row in rows) == ["'=1+1", "s00", "s01", "s03"]
    assert [float(row["rank"]) for row in rows] == [s.rank for s in analysis.standings]
    assert [(s.submission.name, row["mean_dice"] == "") for s, row in zip(analysis.standings, rows, strict=True)] == [
        (s.submission.name, s.submission.name == "s00")  # it lost a case, which counts as the worst there is
        for s in analysis.standings
    ]
    assert [float(row["mean_dice"] or "nan") for row in rows] == pytest.approx(
        [s.means[0] for s in analysis.standings], rel=0, abs=0, nan_ok=True
    )
    assert [float(row["rank_fpv_ml"]) for row in rows] == [s.ranks[1] for s in analysis.standings]


def test_files_are_written_and_a_file_in_the_way_is_named(tmp_path: Path):
    analysis = analyse(entries(2), replace(SMALL, bootstraps=0))
    write_ranking(analysis, tmp_path / "deep" / "out")
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == [
        "methods.txt",
        "ranking.csv",
        "ranking.json",
    ]
    assert json.loads((tmp_path / "deep" / "out" / "ranking.json").read_text())["bootstrap"] is None
    (tmp_path / "file").touch()
    with pytest.raises(AutopetError, match="the ranking cannot be written"):
        write_ranking(analysis, tmp_path / "file")


def test_methods_text_says_how_the_ranks_were_made():
    text = analyse(entries(), SMALL).methods
    for part in (
        "4 submissions were evaluated on 10 cases, with the rules of edition III",
        "FDG UKT (5), PSMA LMU (2), PSMA UKT (3)",
        "Of all predictions 1 failed: lost cases are left out.",
        "undefined for all submissions: Dice (1).",
        "mean Dice (higher is better, weight 0.5)",
        "200 bootstrap samples (seed 11)",
        "drawn with replacement within each subset",
        "Rank intervals hold 95% of the sampled ranks",
        "Kendall's tau-b",
        "Holm's correction over the 12 tests of a metric at level 0.05",
        f"autopet-bundle {__version__}, NumPy {np.__version__}",
    ):
        assert part in text
    assert "nan" not in text.lower().split()


def test_methods_text_leaves_out_what_was_not_done():
    text = analyse(board({"only": [[0.5]]}, metrics=["dice"]), one_metric(bootstraps=0)).methods
    assert text.startswith("1 submission was evaluated on 1 case, ")
    assert "bootstrap" not in text
    assert "Wilcoxon" not in text
    assert "Subsets" not in text


def test_every_method_and_edition_goes_through():
    for changes in (
        {"method": "test-then-rank"},
        {"method": "rank-then-aggregate", "aggregate": "median"},
        {"aggregate": "variance", "above_median": "dice"},
    ):
        analysis = analyse(entries(), replace(SMALL, **changes, bootstraps=20))
        json.dumps(ranking_json(analysis), allow_nan=False)
        assert ranking_csv(analysis)
    tested = analyse(entries(), replace(SMALL, method="test-then-rank", bootstraps=20))
    assert "test statistic was taken as normally distributed" in tested.methods
