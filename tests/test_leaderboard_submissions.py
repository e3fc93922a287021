"""Results read back: names, checks, and refusal of what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from autopet.errors import AutopetError
from evaluation.aggregate import build_metrics
from leaderboard.submissions import read_results


def row(case: str, dice: float | None, status: str = "scored") -> dict:
    values = {"dice": dice, "fpv_ml": 1.0, "fnv_ml": 0.5, "gt_ml": 2.0, "pred_ml": None}
    return {"case": case, "status": status, "reason": "", **values}


def write(folder: Path, rows: list[dict], *, name: str = "", edition: str = "III", failed: str = "empty") -> str:
    folder.mkdir(parents=True)
    metrics = build_metrics(rows, name=name, edition=edition, failed=failed)
    (folder / "metrics.json").write_text(json.dumps(metrics, allow_nan=False))
    return str(folder)


ROWS = [row("b", 0.5, "missing"), row("a", None)]


def test_file_folder_and_named_path(tmp_path: Path):
    folder = write(tmp_path / "first", ROWS, name="own name")
    unnamed = write(tmp_path / "second", ROWS)
    found = read_results([folder, f"{unnamed}/metrics.json", f"third={folder}"])
    assert [submission.name for submission in found] == ["own name", "second", "third"]
    first = found[0]
    assert [case.case for case in first.cases] == ["a", "b"]
    assert math.isnan(first.cases[0].values["dice"])
    assert (first.means["dice"], first.lost, first.count("missing")) == (0.5, 1, 1)
    assert first.previews is None


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path):
    folder = write(tmp_path / "lr=0.1", ROWS, name="x")
    assert read_results([folder])[0].name == "x"


def test_two_submissions_of_one_name(tmp_path: Path):
    folders = [write(tmp_path / place, ROWS, name="same") for place in ("1", "2")]
    with pytest.raises(AutopetError, match=r"two submissions are named 'same'.*name=path"):
        read_results(folders)


def test_other_cases_editions_and_policies_are_refused(tmp_path: Path):
    base = write(tmp_path / "base", ROWS)
    other_cases = write(tmp_path / "cases", [row("a", 0.5), row("c", 0.5)])
    other_edition = write(tmp_path / "edition", ROWS, edition="I")
    other_policy = write(tmp_path / "policy", ROWS, failed="nan")
    with pytest.raises(AutopetError, match=r"different cases \(only the first: b; only the second: c"):
        read_results([base, other_cases])
    with pytest.raises(AutopetError, match="'base' was evaluated with the rules of edition 'III', 'edition' with 'I'"):
        read_results([base, other_edition])
    with pytest.raises(AutopetError, match="policy for failed cases 'empty', 'policy' with 'nan'"):
        read_results([base, other_policy])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "is no metrics.json"),
        ("[]", "top level is no object"),
        ("{}", "lacks 'aggregates'"),
        ("[" * 200_000, r"x/metrics\.json: is no metrics\.json"),
        ('{"aggregates": NaN}', "expected a finite number, found NaN"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, content: str, reason: str):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "metrics.json").write_text(content)
    with pytest.raises(AutopetError, match=reason):
        read_results([str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dice", "0.9"),
        ("dice", True),
        ("status", "perfect"),
        ("fpv_ml", float("inf")),
        pytest.param("dice", 10**400, id="huge"),
    ],
)
def test_rows_with_wrong_values_are_refused(tmp_path: Path, key: str, value: object):
    folder = Path(write(tmp_path / "x", ROWS))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["results"][0][key] = value
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(AutopetError, match=r"is no metrics\.json"):
        read_results([str(folder)])


def test_missing_file_no_paths_and_repeated_case(tmp_path: Path):
    with pytest.raises(AutopetError, match="no such file"):
        read_results([str(tmp_path / "nowhere")])
    with pytest.raises(AutopetError, match="no results given"):
        read_results([])
    with pytest.raises(AutopetError, match="expected every case once"):
        read_results([write(tmp_path / "x", [row("a", 0.1), row("a", 0.2)])])


def test_numbers_too_large_for_a_float_are_refused(tmp_path: Path):
    folder = Path(write(tmp_path / "x", ROWS))
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"mean": 1.0', '"mean": 1e999'))
    with pytest.raises(AutopetError, match=r"x/metrics\.json.*expected a finite number, found inf"):
        read_results([str(folder)])


def test_other_versions_of_the_ground_truth_are_refused(tmp_path: Path):
    base = write(tmp_path / "base", ROWS)
    rounded = write(tmp_path / "rounded", [row("a", 0.1), row("b", 0.2) | {"gt_ml": 2.0 * (1 + 1e-9)}])
    changed = write(tmp_path / "changed", [row("a", 0.1), row("b", 0.2) | {"gt_ml": 2.001}])
    unknown = write(tmp_path / "unknown", [row("a", 0.1) | {"gt_ml": None}, row("b", 0.2)])
    assert len(read_results([base, rounded])) == 2
    assert len(read_results([unknown, f"again={unknown}"])) == 2
    with pytest.raises(AutopetError, match=r"'base' and 'changed'.*ground truth \(case b: 2 ml against 2\.001 ml"):
        read_results([base, changed])
    with pytest.raises(AutopetError, match=r"case a: 2 ml against nan ml"):
        read_results([base, unknown])


def test_surrogates_in_results_are_replaced(tmp_path: Path):
    folder = write(tmp_path / "x", [row("a\ud800", 0.5) | {"reason": "b\udcff.mha"}], name="n\udcff")
    submission = read_results([folder])[0]
    texts = (submission.name, submission.cases[0].case, submission.cases[0].reason)
    assert [text[-1].encode() and "\N{REPLACEMENT CHARACTER}" in text for text in texts] == [True] * 3
