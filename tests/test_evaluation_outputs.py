"""metrics.json and lesions.csv as others read them: schema, subsets, uptake, surfaces, steps, policies."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import (
    ELSEWHERE,
    GRID,
    LESION,
    SCHEMA,
    SECOND,
    STATUSES,
    VOXEL_ML,
    boxed,
    broken_submission,
    evaluate,
    problems,
    read_valid,
    write,
)
from typer.testing import CliRunner

from autopet.cli import app
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume
from evaluation.__main__ import main
from evaluation.metrics import REGISTRY


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three cases with their subsets: one lesion, two lesions, none."""
    folder = write(tmp_path / "gt", one=boxed(LESION), two=boxed(LESION, SECOND), zero=boxed())
    (folder / "cases.csv").write_text("case,tracer,centre\none,FDG,UKT\ntwo,PSMA,LMU\nzero,PSMA,\n")
    return folder


@pytest.fixture
def guess(tmp_path: Path) -> Path:
    return write(tmp_path / "p", one=boxed(LESION), two=boxed(LESION, ELSEWHERE), zero=boxed(ELSEWHERE))


def row_of(metrics: dict, case: str) -> dict:
    return next(row for row in metrics["results"] if row["case"] == case)


def test_the_schema_names_every_metric_of_the_registry():
    row = SCHEMA["$defs"]["row"]["properties"]
    names = [metric.name for metric in REGISTRY]
    assert [key for key in row if key in names] == names
    assert set(row) - set(names) == {
        *("case", "status", "reason", "tracer", "centre"),
        *("detection_steps", "preview"),
    }
    assert set(SCHEMA["properties"]["aggregates"]["properties"]) == {*names, "dice_again"}
    assert set(SCHEMA["properties"]["case"]["properties"]) == {*names, "case"}


def test_the_schema_finds_what_would_break_a_reader(tmp_path: Path, truth: Path, guess: Path):
    good = evaluate(truth, guess, tmp_path / "m.json")
    for path, value in (
        (("aggregates", "dice", "mean"), None),  # null although there are values
        (("aggregates", "dice", "mean"), "0.5"),
        (("results", 0, "dice"), 1.5),
        (("results", 0, "fpv_ml"), -1.0),
        (("results", 0, "status"), "lost"),
        (("results", 0, "status"), "failed"),  # without a reason
        (("cohort", "icc_mtv", "ci95"), [0.5]),
        (("cohort", "unknown"), 1),
        (("cohort", "agreement", "lost"), None),
        (("results", 0, "detection_steps"), [[1, 0]]),
        (("results", 0, "detection_steps"), [[1, 0, 0.5], [1, 0, 0]]),
    ):
        bad = copy.deepcopy(good)
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert problems(bad), path
    del good["results"][0]["tracer"]
    assert problems(good)


def test_rows_carry_their_subset(tmp_path: Path, truth: Path, guess: Path):
    metrics = evaluate(truth, guess, tmp_path / "m.json", cases=["one", "two"])
    assert [(row["tracer"], row["centre"]) for row in metrics["results"]] == [("FDG", "UKT"), ("PSMA", "LMU")]


def test_lesions_are_counted_and_pooled(tmp_path: Path, truth: Path, guess: Path):
    metrics = evaluate(truth, guess, tmp_path / "m.json")
    counts = [[row[f"lesion_{kind}"] for kind in ("tp", "fp", "fn")] for row in metrics["results"]]
    assert counts == [[1, 0, 0], [1, 1, 1], [0, 1, 0]]
    cohort = metrics["cohort"]
    assert [cohort[f"pooled_{kind}"] for kind in ("tp", "fp", "fn")] == [2, 2, 1]
    assert cohort["pooled_f1"] == pytest.approx(4 / 7)
    # MTV 8, 16, 0 voxels against 8, 16, 8: differences 0, 0, 8
    assert cohort["bland_altman_mtv"]["bias"] == pytest.approx(8 / 3 * VOXEL_ML)
    assert cohort["pearson_mtv"]["n"] == 3
    smallest = cohort["detection_by_volume"][0]
    assert [smallest[key] for key in ("lesions", "found", "predicted", "right")] == [3, 2, 4, 2]
    assert cohort["detection_by_volume"][-1]["high_ml"] is None


def test_uptake_needs_an_image_and_lesions_say_where_they_are(tmp_path: Path, truth: Path, guess: Path):
    suv = np.full(GRID.shape, 2.0, np.float32)
    suv[1, 1, 1] = 10.0
    write(tmp_path / "pet", two=replace(GRID, array=suv))
    metrics = evaluate(truth, guess, tmp_path / "m" / "metrics.json", images=tmp_path / "pet")
    assert row_of(metrics, "one")["gt_tlg_g"] is None
    assert "no PET image" in row_of(metrics, "one")["preview"]
    two = row_of(metrics, "two")
    assert two["gt_tlg_g"] == pytest.approx((16 * 2.0 + 8.0) * VOXEL_ML)
    assert two["tlg_deviation_g"] == pytest.approx(0.0, abs=1e-9)
    with (tmp_path / "m" / "lesions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["kind"], row["status"]) for row in rows] == [
        ("one", "truth", "matched"),
        ("one", "prediction", "matched"),
        ("two", "truth", "matched"),
        ("two", "truth", "missed"),
        ("two", "prediction", "matched"),
        ("two", "prediction", "false"),
        ("zero", "prediction", "false"),
    ]
    assert (rows[0]["suv_max"], rows[2]["suv_max"], rows[2]["suv_mean"]) == ("", "10", "3")
    assert float(rows[2]["volume_ml"]) == pytest.approx(8 * VOXEL_ML)
    # centre of the voxels 1 and 2 along every axis: origin + 1.5 spacings
    assert [float(rows[2][key]) for key in ("x_mm", "y_mm", "z_mm")] == [-6.0, 7.0, 37.5]


def test_a_cohort_brings_its_own_images(cohort: list[Case], tmp_path: Path):
    case = cohort[0]
    write_image(tmp_path / "p" / f"{case.name}.nii.gz", read_image(case.mask))
    row = evaluate(case.folder.parent, tmp_path / "p", tmp_path / "m.json", cases=[case.name])["results"][0]
    mask, suv = read_image(case.mask), read_image(case.suv).array
    assert (row["tracer"], row["centre"], row["preview"]) == ("FDG", "A", "")
    assert row["gt_tlg_g"] == pytest.approx(float(suv[mask.array == 1].sum(dtype=float)) * mask.voxel_volume_ml)


def test_surfaces_are_measured_when_asked_for(tmp_path: Path, truth: Path, guess: Path):
    plain = evaluate(truth, guess, tmp_path / "a.json")
    assert plain["surface"] is None
    assert plain["aggregates"]["nsd"]["count"] == 0
    asked = evaluate(truth, guess, tmp_path / "b.json", surface=True, tolerance_mm=1.0)
    assert asked["surface"] == {"tolerance_mm": 1.0}
    assert [row["nsd"] for row in asked["results"]] == [1.0, 0.5, None]
    assert [row["hd95_mm"] for row in asked["results"]][::2] == [0.0, None]


def test_a_scheduler_writes_what_this_machine_writes(tmp_path: Path, truth: Path, guess: Path):
    from distributed import LocalCluster

    here = evaluate(truth, guess, tmp_path / "1" / "m.json", name="x")
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        there = evaluate(truth, guess, tmp_path / "2" / "m.json", name="x", scheduler=cluster.scheduler_address)
    assert here == there
    assert (tmp_path / "1/lesions.csv").read_bytes() == (tmp_path / "2/lesions.csv").read_bytes()


@pytest.mark.parametrize(
    ("policy", "fpv_ml", "dice_mean"),
    [("empty", 0.0, 1 / 9), ("worst", 0.0, 1 / 9), ("constant:dice=0.5,fpv_ml=99", 99.0, 5 / 9), ("nan", None, 1.0)],
)
def test_a_broken_submission_is_scored_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture, policy: str, fpv_ml: float | None, dice_mean: float
):
    truth = write(tmp_path / "gt", **{kind: boxed(LESION) for kind in STATUSES})
    out = tmp_path / "out" / "metrics.json"
    flags = ["--input", str(broken_submission(tmp_path / "input")), "--ground-truth", str(truth), "--output", str(out)]
    assert main([*flags, "--failed", policy]) == 0
    metrics = read_valid(out)
    assert {row["case"]: row["status"] for row in metrics["results"]} == STATUSES
    assert metrics["policy"]["failed"] == policy
    assert metrics["aggregates"]["dice"]["mean"] == pytest.approx(dice_mean)
    for row in metrics["results"]:
        if row["status"] != "scored":
            assert row["fpv_ml"] == fpv_ml
            assert row["reason"]
            assert (row["gt_ml"], row["pred_ml"]) == (pytest.approx(8 * VOXEL_ML), None)
    assert "8 of 9 cases without a valid prediction" in capsys.readouterr().err


def test_a_broken_ground_truth_is_the_organisers_error(tmp_path: Path, truth: Path, guess: Path, capsys):
    (truth / "one.mha").write_bytes(b"no image")
    flags = ["--input", str(guess), "--ground-truth", str(truth), "--output", str(tmp_path / "m.json")]
    assert main(flags) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: the ground truth is broken: ")
    assert "one.mha" in said
    assert not (tmp_path / "m.json").exists()


def stepped(root: Path, *steps: dict[str, Volume]) -> Path:
    for number, volumes in enumerate(steps):
        write(root / f"step{number:02d}", **volumes)
    return root


def test_interactive_steps_give_areas_under_the_curve(tmp_path: Path, truth: Path):
    half, full = boxed(LESION), boxed(LESION, SECOND)
    guess = stepped(tmp_path / "p", *[{"one": half, "two": half}] * 3, *[{"one": half, "two": full}] * 3)
    metrics = evaluate(truth, guess, tmp_path / "m.json", edition="V", cases=["one", "two"])
    one, two = metrics["results"]
    assert (one["auc_dice"], one["dice"], two["dice"]) == (5.0, 1.0, 1.0)
    assert two["auc_dice"] == pytest.approx(2 * 2 / 3 + (2 / 3 + 1) / 2 + 2 * 1.0)
    assert two["auc_fnv_ml"] == pytest.approx(2.5 * 8 * VOXEL_ML)
    pooled = [4 / 5] * 3 + [1.0] * 3  # TP 2, FN 1, then TP 3
    assert metrics["cohort"]["auc_pooled_f1"] == pytest.approx(float(np.trapezoid(pooled)))
    assert one["detection_steps"] == [[1, 0, 0]] * 6
    assert two["detection_steps"] == [[1, 0, 1]] * 3 + [[2, 0, 0]] * 3


def test_a_case_lost_in_one_step_is_lost_and_says_in_which(tmp_path: Path, truth: Path):
    good = {"one": boxed(LESION), "two": boxed(LESION)}
    guess = stepped(tmp_path / "p", *[good] * 6)
    (guess / "step02/two.mha").unlink()
    (guess / "step03/one.mha").write_bytes((guess / "step03/one.mha").read_bytes()[:-9])
    metrics = evaluate(truth, guess, tmp_path / "m.json", edition="V", cases=["one", "two"])
    one, two = metrics["results"]
    assert (one["status"], two["status"]) == ("refused", "missing")
    assert one["reason"].startswith("step 3: ")
    assert two["reason"].startswith("step 2: no prediction")
    assert (one["auc_dice"], two["auc_dice"], two["auc_fnv_ml"]) == (0.0, 0.0, pytest.approx(5 * 16 * VOXEL_ML))
    assert metrics["cohort"]["auc_pooled_f1"] == 0.0
    assert (one["detection_steps"], two["detection_steps"]) == ([[0, 0, 1]] * 6, [[0, 0, 2]] * 6)
    left_out = evaluate(truth, guess, tmp_path / "n.json", edition="V", failed="nan", cases=["one", "two"])
    assert [row["detection_steps"] for row in left_out["results"]] == [None, None]
    assert left_out["cohort"]["auc_pooled_f1"] is None


def test_without_steps_there_are_no_counts_of_steps(tmp_path: Path, truth: Path, guess: Path):
    metrics = evaluate(truth, guess, tmp_path / "m.json", edition="V")
    assert [row["detection_steps"] for row in metrics["results"]] == [None, None, None]


UNUSABLE = {
    "null": "[null]",
    "empty list": "[]",
    "object": "{}",
    "truncated": '[{"pk": "p1", "inputs": [',
    "strangers": '[{"pk": "p1", "status": "Failed", "inputs": [{"image": {"name": "other.mha"}}]}]',
    "no file": None,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_submission_without_anything_usable_is_all_missing(
    tmp_path: Path, truth: Path, capsys: pytest.CaptureFixture, kind: str
):
    folder, out = tmp_path / "input", tmp_path / "out" / "metrics.json"
    folder.mkdir()
    if (content := UNUSABLE[kind]) is not None:
        (folder / "predictions.json").write_text(content)
    assert main(["--input", str(folder), "--ground-truth", str(truth), "--output", str(out)]) == 0
    metrics = read_valid(out)
    assert metrics["cases"] == {"all": 3, "scored": 0, "missing": 3, "failed": 0, "refused": 0}
    assert [row["dice"] for row in metrics["results"]] == [0.0, 0.0, None]
    assert [row["fnv_ml"] for row in metrics["results"][:2]] == pytest.approx([8 * VOXEL_ML, 16 * VOXEL_ML])
    assert "so every case is missing" in metrics["notes"][0]
    assert "warning: none of the 1 predictions belongs" in capsys.readouterr().err
    words = ["evaluate", "--ground-truth", truth, "--predictions", folder, "--out", tmp_path / "cli/metrics.json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "NOT ONE of 3 cases was scored" in result.output
    assert read_valid(tmp_path / "cli/metrics.json")["results"] == metrics["results"]


def test_worst_makes_a_submission_without_masks_the_last_one(tmp_path: Path, truth: Path, guess: Path):
    (tmp_path / "nothing").mkdir()
    nothing = evaluate(truth, tmp_path / "nothing", tmp_path / "a.json", failed="worst")
    image_voxels = GRID.array.size
    fpv_ml = [row["fpv_ml"] for row in nothing["results"]]
    assert fpv_ml == pytest.approx([(image_voxels - lesions) * VOXEL_ML for lesions in (8, 16, 0)])
    assert (
        nothing["aggregates"]["fpv_ml"]["mean"]
        > evaluate(truth, guess, tmp_path / "b.json")["aggregates"]["fpv_ml"]["max"]
    )
    assert [row["lesion_fp"] for row in nothing["results"]] == [2 * 3 * 4 * 5] * 3  # the grid is 6 x 8 x 10


@pytest.mark.parametrize(("edition", "expected"), [("III", "expected no folders"), ("IV", "expected 11 folders")])
def test_steps_that_do_not_fit_the_edition(tmp_path: Path, truth: Path, edition: str, expected: str):
    guess = stepped(tmp_path / "p", *[{"one": boxed()}] * 6)
    with pytest.raises(AutopetError, match=f"{expected} of interactive steps for edition {edition}, found 6"):
        evaluate(truth, guess, tmp_path / "m.json", edition=edition)
    (guess / "step04").rename(guess / "step09")
    with pytest.raises(AutopetError, match="expected a folder for every step from step00 on, found .*step05, step09"):
        evaluate(truth, guess, tmp_path / "m.json", edition="V")


def test_the_command_passes_everything_on(tmp_path: Path, truth: Path, guess: Path):
    (guess / "zero.mha").unlink()
    words = ["evaluate", "--ground-truth", truth, "--predictions", guess, "--out", tmp_path / "r/metrics.json"]
    words += ["--edition", "II", "--failed", "worst", "--surface", "--tolerance-mm", "2", "--workers", "2"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    metrics = read_valid(tmp_path / "r/metrics.json")
    assert (metrics["edition"], metrics["policy"]["failed"], metrics["name"]) == ("II", "worst", "r")
    assert metrics["surface"] == {"tolerance_mm": 2.0}
    assert row_of(metrics, "zero")["fpv_ml"] == pytest.approx(8 * VOXEL_ML)  # two's false cube is the worst seen
    assert math.isclose(row_of(metrics, "zero")["gt_ml"], 0.0)


def test_lesions_of_an_earlier_evaluation_go(tmp_path: Path, truth: Path, guess: Path):
    evaluate(truth, guess, tmp_path / "m" / "metrics.json")
    (truth / "one.mha").write_bytes(b"no image")
    with pytest.raises(AutopetError, match="ground truth is broken"):
        evaluate(truth, guess, tmp_path / "m" / "metrics.json")
    assert not (tmp_path / "m/lesions.csv").exists()


@pytest.mark.parametrize("broken", ["one", "zero"])  # the first case, before any picture, and the last one
@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_ground_truth_leaves_no_previews(tmp_path: Path, truth: Path, guess: Path, broken: str, workers: int):
    (truth / f"{broken}.mha").write_bytes(b"no image")
    (tmp_path / "m").mkdir()
    with pytest.raises(AutopetError, match="ground truth is broken"):
        evaluate(truth, guess, tmp_path / "m" / "metrics.json", workers=workers)
    assert not list((tmp_path / "m").iterdir())
