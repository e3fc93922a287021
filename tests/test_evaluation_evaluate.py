"""From folders to metrics.json: every case has a row, lost cases say why, and the JSON is strict."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import evaluate, read_valid

from autopet.errors import AutopetError
from autopet.images import write_image
from autopet.volume import Volume
from evaluation import evaluate as scoring
from evaluation import scoring as cases
from evaluation.__main__ import main
from evaluation.evaluate import CRASHED, score_pair
from evaluation.jobs import Pair
from evaluation.previews import make_preview, read_preview
from evaluation.scoring import ScoredCase, Settings
from evaluation.truths import find_truths

GRID = Volume(np.zeros((6, 8, 10), np.uint8), spacing_mm=(2.0, 2.0, 5.0), origin_mm=(-9.0, 4.0, 30.0))
VOXEL_ML = 0.02


def boxed(*corners: tuple[int, int, int]) -> Volume:
    """A mask with a cube of 8 voxels at each corner."""
    array = np.zeros(GRID.shape, np.uint8)
    for z, y, x in corners:
        array[z : z + 2, y : y + 2, x : x + 2] = 1
    return replace(GRID, array=array)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three cases: one lesion, two lesions, none."""
    folder = tmp_path / "gt"
    write_image(folder / "one.nii.gz", boxed((1, 1, 1)))
    write_image(folder / "two.mha", boxed((1, 1, 1), (3, 5, 6)))
    write_image(folder / "zero.nii.gz", boxed())
    return folder


def predict(folder: Path, **volumes: Volume) -> Path:
    folder.mkdir(exist_ok=True)
    for name, volume in volumes.items():
        write_image(folder / f"{name}.mha", volume)
    return folder


def row_of(metrics: dict, case: str) -> dict:
    return next(row for row in metrics["results"] if row["case"] == case)


def test_scores_and_strict_json(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), two=boxed((1, 1, 1), (1, 5, 1)), zero=boxed((2, 2, 2)))
    out = tmp_path / "method" / "metrics.json"
    metrics = evaluate(truth, guess, out)
    written = read_valid(out)
    assert written == metrics
    assert written["name"] == "method"
    two, zero = row_of(written, "two"), row_of(written, "zero")
    assert (two["dice"], two["status"], two["reason"]) == (0.5, "scored", "")
    assert [two[key] for key in ("fpv_ml", "fnv_ml", "gt_ml")] == pytest.approx(
        [8 * VOXEL_ML, 8 * VOXEL_ML, 16 * VOXEL_ML]
    )
    assert (zero["dice"], zero["fnv_ml"]) == (None, None)
    assert zero["fpv_ml"] == pytest.approx(8 * VOXEL_ML)
    dice = written["aggregates"]["dice"]
    assert (dice["mean"], dice["count"]) == (0.75, 2)
    assert written["aggregates"]["dice_again"] == dice
    assert not list(out.parent.glob(".part*"))


def test_edition_one_counts_false_positives_in_healthy_patients_as_dice_zero(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), two=boxed((1, 1, 1), (3, 5, 6)), zero=boxed((2, 2, 2)))
    metrics = evaluate(truth, guess, tmp_path / "m.json", edition="I")
    assert metrics["aggregates"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert metrics["aggregates"]["fnv_ml"]["count"] == 3


def test_missing_case_is_scored_as_an_empty_mask_or_left_out(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), zero=boxed())
    empty = evaluate(truth, guess, tmp_path / "a" / "m.json")
    row = row_of(empty, "two")
    assert (row["status"], row["dice"], row["fpv_ml"], row["pred_ml"]) == ("missing", 0.0, 0.0, None)
    assert row["fnv_ml"] == pytest.approx(16 * VOXEL_ML)
    assert empty["aggregates"]["dice"]["mean"] == 0.5
    left_out = evaluate(truth, guess, tmp_path / "b" / "m.json", failed="nan")
    assert row_of(left_out, "two")["dice"] is None
    assert left_out["aggregates"]["dice"]["mean"] == 1.0
    assert left_out["policy"]["failed"] == "nan"


def with_value(value: float) -> Volume:
    array = boxed((1, 1, 1)).array.astype(np.float32)
    array[0, 0, 0] = value
    return replace(GRID, array=array)


REFUSED = {
    "shape": (Volume(np.zeros((6, 8, 9), np.uint8)), r"shape \(6, 8, 9\) against \(6, 8, 10\)"),
    "origin": (replace(boxed((1, 1, 1)), origin_mm=(0.0, 0.0, 0.0)), "30 mm apart"),
    "spacing": (replace(boxed((1, 1, 1)), spacing_mm=(1.0, 1.0, 5.0)), "spacing"),
    "probability": (with_value(0.5), r"mask of 0 and 1, found 1 other voxels \(0\.5\); threshold it first"),
    "nan": (with_value(np.nan), r"found 1 other voxels \(nan\)"),
    "label": (with_value(2), r"\(2\)"),
    "negative": (replace(GRID, array=np.full(GRID.shape, -1, np.int16)), r"480 other voxels \(-1\)"),
    "label255": (replace(GRID, array=boxed((1, 1, 1)).array * np.uint8(255)), r"8 other voxels \(255\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_cannot_be_compared_are_refused_with_the_reason(tmp_path: Path, truth: Path, kind: str):
    volume, reason = REFUSED[kind]
    guess = predict(tmp_path / "p", one=volume, two=boxed((1, 1, 1)), zero=boxed())
    row = row_of(evaluate(truth, guess, tmp_path / "m.json"), "one")
    assert (row["status"], row["dice"]) == ("refused", 0.0)
    assert re.search(reason, row["reason"])


def test_corrupt_and_truncated_files_are_refused(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", zero=boxed(), two=boxed((1, 1, 1)))
    (guess / "one.nii.gz").write_bytes(b"this is no image")
    whole = (guess / "two.mha").read_bytes()
    (guess / "two.mha").write_bytes(whole[:-20])
    metrics = evaluate(truth, guess, tmp_path / "m.json")
    assert [row_of(metrics, case)["status"] for case in ("one", "two", "zero")] == ["refused", "refused", "scored"]
    assert "\n" not in row_of(metrics, "two")["reason"]


def test_masks_as_float_and_as_nifti_are_accepted(tmp_path: Path, truth: Path):
    lesion = boxed((1, 1, 1))
    guess = predict(tmp_path / "p", one=replace(lesion, array=lesion.array.astype(np.float32)), zero=boxed())
    write_image(guess / "two.nii.gz", boxed((1, 1, 1), (3, 5, 6)))
    assert evaluate(truth, guess, tmp_path / "m.json")["aggregates"]["dice"]["mean"] == 1.0


def test_two_workers_write_what_one_writes(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), two=boxed((1, 1, 2)))
    one = evaluate(truth, guess, tmp_path / "1" / "m.json", name="x")
    two = evaluate(truth, guess, tmp_path / "2" / "m.json", name="x", workers=2)
    assert one == two
    assert (tmp_path / "1" / "m.json").read_bytes() == (tmp_path / "2" / "m.json").read_bytes()


def test_platform_layout_from_jobs_to_scores(tmp_path: Path, truth: Path):
    place = "images/tumor-lesion-segmentation"
    described = {"slug": "tumor-lesion-segmentation", "relative_path": place, "kind": "Segmentation"}
    jobs = []
    for pk, name, status in (
        ("9", "zero.mha", "Failed"),
        ("7", "two_0000.nii.gz", "Succeeded"),
        ("8", "one", "Succeeded"),
    ):
        inputs = [{"socket": {"relative_path": "images/ct"}, "image": {"name": name}}]
        jobs.append({"pk": pk, "status": status, "inputs": inputs, "outputs": [{"interface": described}]})
    root = tmp_path / "input"
    write_image(root / "7" / "output" / place / "one.mha", boxed((1, 1, 1), (3, 5, 6)))
    write_image(root / "8" / "output" / place / "uuid.mha", boxed((1, 1, 1)))
    (root / "predictions.json").write_text(json.dumps(jobs))
    metrics = evaluate(truth, root, tmp_path / "m.json", previews=False)
    assert [(row["case"], row["status"], row["dice"]) for row in metrics["results"]] == [
        ("one", "scored", 1.0),
        ("two", "scored", 1.0),
        ("zero", "failed", None),
    ]
    assert metrics["cases"]["failed"] == 1


def test_only_the_selected_cases_are_scored(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), two=boxed((1, 1, 1)))
    metrics = evaluate(truth, guess, tmp_path / "m.json", cases=["two"])
    assert [row["case"] for row in metrics["results"]] == ["two"]
    assert metrics["unmatched"] == []
    assert any("not selected" in note for note in metrics["notes"])


def test_broken_ground_truth_stops_the_evaluation(tmp_path: Path, truth: Path):
    write_image(truth / "one.nii.gz", with_value(3))
    guess = predict(tmp_path / "p", one=boxed())
    with pytest.raises(AutopetError, match="the ground truth is broken: one"):
        evaluate(truth, guess, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_previews_show_both_masks_and_the_pet(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 5, 6)))
    suv = np.zeros(GRID.shape, np.float32)
    suv[5, 3, 0] = 7.5
    write_image(tmp_path / "pet" / "one.nii.gz", replace(GRID, array=suv))
    write_image(tmp_path / "pet" / "two.nii.gz", Volume(suv[:-1]))
    metrics = evaluate(truth, guess, tmp_path / "m" / "metrics.json", images=tmp_path / "pet")
    preview = read_preview(tmp_path / "m" / "previews" / "one.npz")
    assert preview.spacing_mm == (5.0, 2.0)
    assert preview.pet is not None
    assert (preview.pet.dtype, preview.pet[0, 0], preview.pet.sum()) == (
        np.float16,
        7.5,
        7.5,
    )  # the top slice comes first
    assert preview.ground_truth[3:5, 1:3].all()
    assert preview.prediction[3:5, 6:8].all()
    assert preview.prediction.sum() == 4
    assert [bool(row_of(metrics, case)["preview"]) for case in ("one", "two", "zero")] == [False, True, True]
    assert "shape" in row_of(metrics, "two")["preview"]


def test_preview_survives_undefined_pet_values():
    suv = np.full(GRID.shape, np.nan, np.float32)
    suv[0] = 1e9
    preview = make_preview(GRID, None, replace(GRID, array=suv))
    assert preview.pet is not None
    assert np.isfinite(preview.pet).all()


def test_container_entry_point(tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), zero=boxed((1, 1, 1)), stray=boxed())
    out = tmp_path / "out" / "metrics.json"
    flags = [
        "--input",
        str(guess),
        "--ground-truth",
        str(truth),
        "--output",
        str(out),
        "--images",
        str(tmp_path / "no"),
    ]
    monkeypatch.setenv("AUTOPET_EDITION", "I")
    assert main(flags) == 0
    assert read_valid(out)["edition"] == "I"
    assert not (out.parent / "previews").exists()
    assert "stray.mha is not evaluated" in capsys.readouterr().err
    assert main([*flags, "--edition", "XX"]) == 1
    assert capsys.readouterr().err == "error: unknown edition 'XX' of the metrics, expected one of I, II, III, IV, V\n"


def test_evaluation_needs_neither_pandas_nor_a_plotting_library():
    unwanted = {"pandas", "matplotlib", "jinja2", "torch", "scipy"}
    code = f"import sys, evaluation.__main__; print(sorted({unwanted} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def die_on_prediction_of_one(pair: Pair, *, settings: Settings) -> ScoredCase:
    """Stands for a file that takes the process that reads it along."""
    if pair.truth.case == "one" and pair.prediction:
        os._exit(1)
    return score_pair(pair, settings=settings)


def die_on_truth_of_two(pair: Pair, *, settings: Settings) -> ScoredCase:
    if pair.truth.case == "two":
        os.abort()
    return score_pair(pair, settings=settings)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mask_that_kills_its_reader_costs_only_its_own_case(
    tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    monkeypatch.setattr(scoring, "score_pair", die_on_prediction_of_one)
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), two=boxed((1, 1, 1), (3, 5, 6)), zero=boxed())
    metrics = evaluate(truth, guess, tmp_path / "m.json", workers=workers)
    assert [row["status"] for row in metrics["results"]] == ["refused", "scored", "scored"]
    row = row_of(metrics, "one")
    assert (row["reason"], row["dice"], row["pred_ml"]) == (CRASHED, 0.0, None)
    assert row["fnv_ml"] == pytest.approx(8 * VOXEL_ML)
    assert row_of(metrics, "two")["dice"] == 1.0


def test_ground_truth_that_kills_its_reader_is_not_blamed_on_the_prediction(
    tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scoring, "score_pair", die_on_truth_of_two)
    guess = predict(tmp_path / "p", one=boxed(), two=boxed())
    with pytest.raises(AutopetError, match="read the ground truth of two died"):
        evaluate(truth, guess, tmp_path / "m.json")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_script_without_main_guard_is_told_so_and_scores_nothing(tmp_path: Path, truth: Path, workers: int):
    guess = predict(tmp_path / "p", one=boxed())
    script = tmp_path / "script.py"
    call = (
        f"evaluate(Path({str(truth)!r}), Path({str(guess)!r}), Path({str(tmp_path / 'm.json')!r}), workers={workers})"
    )
    script.write_text(f"from pathlib import Path\nfrom evaluation.evaluate import evaluate\n{call}\n")
    root = str(Path(scoring.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root}
    )
    assert result.returncode == 1
    assert "no process can be started" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "m.json").exists()


def test_a_mask_of_another_size_is_refused_before_its_voxels_are_read(
    tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
):
    def must_not_be_read(path: Path) -> Volume:
        raise AssertionError(f"the voxels of {path} were read")

    huge = write_image(tmp_path / "p" / "one.mha", Volume(np.zeros((60, 80, 100), np.uint8)))
    pair = Pair(find_truths(truth)[0], huge, "found", "")
    grid = cases.read_mask(truth / "one.nii.gz")
    monkeypatch.setattr(cases, "read_mask", must_not_be_read)
    masks, status, reason = cases._read_predictions(pair, grid)
    assert (masks, status) == ([], "refused")
    assert "expected the grid of the ground truth, found shape (60, 80, 100) against (6, 8, 10)" in reason


def test_previews_of_an_earlier_evaluation_go(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)), two=boxed())
    out = tmp_path / "m" / "metrics.json"
    evaluate(truth, guess, out)
    folder = out.parent / "previews"
    assert len(list(folder.iterdir())) == 3
    evaluate(truth, guess, out, cases=["one"])
    assert [path.name for path in folder.iterdir()] == ["one.npz"]
    np.savez(folder / "own.npz", something=np.zeros(3))
    (folder / "note.txt").write_text("not a preview")
    (folder / "broken.npz").write_bytes(b"not ours")
    evaluate(truth, guess, out, previews=False)
    assert sorted(path.name for path in folder.iterdir()) == ["broken.npz", "note.txt", "own.npz"]
    for path in folder.iterdir():
        path.unlink()
    evaluate(truth, guess, out, previews=False)
    assert not folder.exists()


def test_names_that_are_no_text_reach_metrics_as_text(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", one=boxed((1, 1, 1)))
    (guess / "one.mha").rename(guess / os.fsdecode(b"b\xff.mha"))
    predict(guess, two=boxed())
    metrics = evaluate(truth, guess, tmp_path / "m.json")
    assert metrics["unmatched"][0]["prediction"] == "b\N{REPLACEMENT CHARACTER}.mha"
    json.dumps(metrics, ensure_ascii=False).encode("utf-8")


def test_a_header_that_announces_more_than_an_address_can_hold_is_refused(tmp_path: Path, truth: Path):
    guess = predict(tmp_path / "p", two=boxed((1, 1, 1)))
    fields = (
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "CompressedData = False", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 1 1 1",
        "DimSize = 2147483647 2147483647 4", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL", "",
    )  # fmt: skip
    (guess / "one.mha").write_bytes("\n".join(fields).encode() + bytes(1000))
    metrics = evaluate(truth, guess, tmp_path / "m.json")
    assert [row_of(metrics, case)["status"] for case in ("one", "two")] == ["refused", "scored"]
