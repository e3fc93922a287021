"""The commands rank and explain, as users call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from autopet.commands.statistics import app
from autopet.errors import AutopetError

UNIT = {"dice": ("", "higher"), "fpv_ml": ("ml", "lower"), "fnv_ml": ("ml", "lower")}
LESIONS = "case,kind,lesion,volume_ml,suv_max,suv_mean,x_mm,y_mm,z_mm,status,overlap_voxels,iou\n"
DICE = {"good": [0.9, 0.8, 0.7, 0.9], "[red]bad": [0.2, 0.3, None, 0.75]}


def write(folder: Path, name: str) -> str:
    rows = [
        {
            "case": f"case{i}",
            "status": "scored" if dice is not None else "failed",
            "reason": "",
            "tracer": ("FDG", "PSMA")[i // 2],
            "centre": "UKT",
            "dice": dice,
            "fpv_ml": None if dice is None else 10 * (1 - dice),
            "fnv_ml": None if dice is None else 1.0,
            "gt_ml": 5.0,
            "pred_ml": 4.0,
        }
        for i, dice in enumerate(DICE[name])
    ]
    content = {
        "name": name,
        "edition": "III",
        "policy": {"failed": "nan", "text": "a case without a valid prediction is left out of the means"},
        "metrics": [{"name": key, "unit": unit, "direction": way} for key, (unit, way) in UNIT.items()],
        "aggregates": {key: {"mean": 0.5} for key in UNIT},
        "results": rows,
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    status = "matched" if name == "good" else "missed"
    (folder / "lesions.csv").write_text(f"{LESIONS}case0,truth,1,3.5,8,4,1,2,3,{status},0,0\n")
    return str(folder)


@pytest.fixture
def results(tmp_path: Path) -> list[str]:
    return [write(tmp_path / f"r{i}", name) for i, name in enumerate(DICE)]


def call(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_commands_have_help_and_an_example():
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == {"rank", "explain"}
    for name, command in commands.items():
        assert command.help
        assert command.epilog.startswith(f"Example: autopet {name} ")
        assert all(parameter.help for parameter in command.params if parameter.name != "help")


def test_rank_writes_files_and_shows_a_table(results: list[str], tmp_path: Path):
    text = call("rank", *results, "--scheme", "III", "--out", tmp_path / "out", "--bootstraps", "100", "--seed", "5")
    lines = [line for line in text.splitlines() if "good" in line or "bad" in line]
    assert ["good" in lines[0], "[red]bad" in lines[1]] == [True, True]
    assert "0.825 (#1)" in lines[0]  # mean of 0.85 on FDG and 0.8 on PSMA
    content = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert [row["name"] for row in content["standings"]] == ["good", "[red]bad"]
    assert (content["bootstrap"]["samples"], content["bootstrap"]["seed"]) == (100, 5)
    assert "100 bootstrap samples (seed 5)" in (tmp_path / "out" / "methods.txt").read_text()
    assert (tmp_path / "out" / "ranking.csv").read_text().splitlines()[1].startswith("1,good,")


def test_rank_with_a_scheme_of_ones_own(results: list[str], tmp_path: Path):
    (tmp_path / "mine.toml").write_text(
        'title = "Mine"\nbootstraps = 0\n[[metrics]]\nname = "fnv_ml"\nweight = 1\ndirection = "lower"\n'
    )
    text = call("rank", *results, "--scheme", tmp_path / "mine.toml", "--out", tmp_path / "out")
    assert "Mine" in text
    assert "P(rank 1)" not in text
    content = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert [row["rank"] for row in content["standings"]] == [1, 1]


def test_explain_shows_cases_and_lesions(results: list[str], tmp_path: Path):
    out = tmp_path / "deep" / "explain.json"
    text = call("explain", *results, "--algorithm", "good", "--against", "[red]bad", "--top", "2", "--out", out)
    assert "good (rank 1) is ahead of [red]bad (rank 2) by the scheme autopet i." in text.lower()
    assert "found by one only" in text
    content = json.loads(out.read_text())
    assert [metric["metric"] for metric in content["metrics"]] == ["dice", "fpv_ml", "fnv_ml"]
    # case2, which the other lost, counts as its worst possible result: no number says by how much
    assert [(c["case"], c["advantage"] is None) for c in content["metrics"][0]["cases"][:2]] == [
        ("case2", True),
        ("case0", False),
    ]
    assert content["lesions"][0]["volume_ml"] == 3.5
    assert content["lesions"][0]["in_favour_of"] == "algorithm"


def test_rank_says_what_to_know_before_trusting_it(results: list[str], tmp_path: Path):
    (tmp_path / "mine.toml").write_text('[[metrics]]\nname = "dice"\nweight = 1\ndirection = "higher"\n')
    done = CliRunner().invoke(app, ["rank", *results, "--scheme", str(tmp_path / "mine.toml"), "--out", str(tmp_path)])
    words = " ".join(done.output.split())
    assert (
        "WARNING: lost cases are left out of the means of the submissions that lost them: [red]bad (1 of 4)." in words
    )
    assert json.loads((tmp_path / "ranking.json").read_text())["notes"][0].startswith("WARNING: lost cases")
    done = CliRunner().invoke(app, ["rank", *results, "--bootstraps", "10", "--out", str(tmp_path)])
    assert "NOTE: results evaluated with the rules of edition III are ranked by" in " ".join(done.output.split())
    assert CliRunner().invoke(app, ["rank", *results, "--bootstraps", "1000001", "--out", str(tmp_path)]).exit_code == 2


def test_explain_of_the_same_lesions_has_no_empty_table(results: list[str]):
    for path in results:
        (Path(path) / "lesions.csv").write_text(f"{LESIONS}case0,truth,1,3.5,8,4,1,2,3,matched,0,0\n")
    text = call("explain", *results, "--algorithm", "good", "--against", "[red]bad")
    assert "No lesion tells the two apart" in text
    assert "SUVmax" not in text


def test_mistakes_are_named(results: list[str], tmp_path: Path):
    with pytest.raises(AutopetError, match="unknown ranking scheme 'X'"):
        call("rank", *results, "--scheme", "X", "--out", tmp_path)
    with pytest.raises(AutopetError, match="needs metric 'auc_dice', which the results of 'good' lack"):
        call("rank", *results, "--scheme", "V", "--out", tmp_path)
    with pytest.raises(AutopetError, match="no submission is named 'other'"):
        call("explain", *results, "--algorithm", "good", "--against", "other")
    (tmp_path / "file").touch()
    with pytest.raises(AutopetError, match="cannot be written"):
        call("explain", *results, "--algorithm", "good", "--against", "[red]bad", "--out", tmp_path / "file" / "x.json")
