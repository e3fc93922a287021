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


@pytest.mark.parametrize(
    ("first", "second"), [("Net", "nET"), ("Net A", " Net \t\u00a0 A\n"), ("Net", "\uff2e\uff45\uff54")]
)
def test_names_that_look_the_same_are_one_name(tmp_path: Path, first: str, second: str):
    paths = [write(tmp_path / "1", ROWS, name=first), write(tmp_path / "2", ROWS, name=second)]
    with pytest.raises(AutopetError, match="two submissions are named"):
        read_results(paths)


def test_names_are_on_one_line_and_a_blank_one_is_the_folders(tmp_path: Path):
    paths = [write(tmp_path / "one", ROWS, name=" a \n  b "), write(tmp_path / "two", ROWS, name=" \t ")]
    assert [s.name for s in read_results(paths)] == ["a b", "two"]


def test_counts_by_click_step_are_read_and_checked(tmp_path: Path):
    steps = [[1, 0, 2]] * 6
    rows = [r | {"detection_steps": steps if r["case"] == "a" else None} for r in ROWS]
    submission = read_results([write_raw(tmp_path / "x", rows)])[0]
    assert [case.steps for case in submission.cases if case.case == "a"] == [((1.0, 0.0, 2.0),) * 6]
    assert {case.steps for case in submission.cases if case.case != "a"} == {None}
    for number, wrong in enumerate(([[1, 0]] * 6, [[1, 0, -1]] * 6, [[1, 0, 1]], 3, [["1", 0, 0]] * 6, [])):
        with pytest.raises(AutopetError, match="is no metrics.json"):
            read_results([write_raw(tmp_path / str(number), [r | {"detection_steps": wrong} for r in ROWS])])


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


def with_origin(rows: list[dict], tracer: str = "FDG") -> list[dict]:
    return [r | {"tracer": tracer, "centre": "UKT" if r["case"] == "a" else "LMU"} for r in rows]


def write_raw(folder: Path, rows: list[dict], *, name: str = "", **changes: object) -> str:
    """metrics.json with rows, and other top-level keys, as they are: independent of what evaluation writes today."""
    listed = [{"name": key, "title": key.upper(), "unit": "", "direction": "higher"} for key in ("dice", "nsd")]
    rows = [{"nsd": 0.5} | r for r in rows]
    summary = {"mean": 0.5, "count": len(rows)}
    content = {
        "name": name,
        "edition": "III",
        "policy": {"failed": "nan", "text": "left out"},
        "metrics": listed,
        "aggregates": {"dice": summary, "nsd": summary},
        "results": rows,
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content | changes))
    return str(folder)


def test_values_by_metric_in_the_order_of_the_cases(tmp_path: Path):
    rows = with_origin([row("b", 0.5) | {"nsd": 0.25, "gt_lesions": 3, "reason": "x"}, row("a", None, "failed")])
    submission = read_results([write_raw(tmp_path / "x", rows, name="x", cohort={"icc_mtv": {"value": 0.9}})])[0]
    assert submission.case_names == ("a", "b")
    assert (submission.tracers, submission.centres) == (("FDG", "FDG"), ("UKT", "LMU"))
    assert submission.statuses == ("failed", "scored")
    assert submission.values("nsd").tolist() == [0.5, 0.25]
    assert math.isnan(submission.values("dice")[0])
    assert submission.values("gt_lesions")[1] == 3
    assert next((m.name, m.title, m.direction) for m in submission.metrics) == ("dice", "DICE", "higher")
    assert submission.cohort == {"icc_mtv": {"value": 0.9}}
    assert submission.means == {"dice": 0.5, "nsd": 0.5}
    assert submission.lesions is None


def test_results_without_tracer_and_centre_are_read(tmp_path: Path):
    rows = [{key: value for key, value in r.items() if key not in ("tracer", "centre")} for r in ROWS]
    submission = read_results([write_raw(tmp_path / "x", rows)])[0]
    assert (submission.tracers, submission.centres) == (("", ""), ("", ""))


def test_lesions_beside_the_metrics_are_found(tmp_path: Path):
    folder = Path(write_raw(tmp_path / "x", ROWS))
    (folder / "lesions.csv").write_text("case\n")
    assert read_results([str(folder)])[0].lesions == folder / "lesions.csv"


def test_one_case_of_another_tracer_or_centre_is_refused(tmp_path: Path):
    base = write_raw(tmp_path / "base", with_origin(ROWS))
    psma = write_raw(tmp_path / "psma", with_origin(ROWS, "PSMA"))
    plain = write_raw(tmp_path / "plain", ROWS)
    with pytest.raises(AutopetError, match="'base' and 'psma' disagree on the tracer of case a .FDG against PSMA"):
        read_results([base, psma])
    with pytest.raises(AutopetError, match="disagree on the tracer of case a .FDG against none"):
        read_results([base, plain])


def test_a_listed_metric_that_a_row_lacks_is_named(tmp_path: Path):
    folder = Path(write_raw(tmp_path / "x", ROWS))
    content = json.loads((folder / "metrics.json").read_text())
    del content["results"][1]["nsd"]
    (folder / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(AutopetError, match="lacks 'nsd'"):
        read_results([str(folder)])


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_no_number_in_the_file_may_be_infinite(tmp_path: Path, number: str):
    folder = Path(write_raw(tmp_path / "x", ROWS, cohort={"pearson_mtv": "HERE"}))
    text = (folder / "metrics.json").read_text().replace('"HERE"', number)
    (folder / "metrics.json").write_text(text)
    with pytest.raises(AutopetError, match="expected a finite number"):
        read_results([str(folder)])
