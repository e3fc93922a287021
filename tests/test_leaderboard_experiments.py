"""The experiment: its cohort, its resumable cells, its numbers and its report."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment_cells import row, work_alone
from organ_map_maker import write_maps
from scipy import ndimage
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from autopet.cohort import Case, read_cohort, read_table
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.organs import ORGANS
from autopet.volume import Volume
from data_prep.alignment import ct_on_grid
from leaderboard.experiments import lesiontracer
from leaderboard.experiments.cohort import MOVED, CohortSettings, Phantom, read_phantoms, write_cohort
from leaderboard.experiments.common import (
    COLUMNS,
    Cell,
    Outcome,
    Row,
    read_results,
    run_cells,
    score_prediction,
    write_results,
)
from leaderboard.experiments.lesiontracer import VARIANTS, Budget, run_experiment
from leaderboard.experiments.report import Story, report_text, sentences, write_report
from leaderboard.experiments.rigid import RigidMotion, displacement_mm, draw_motion, move
from leaderboard.experiments.summary import GROUPS, against, better_seeds, moved_against_fixed, over_seeds

SPACING_MM = 12.0
PLAIN = CohortSettings(patients=8, pet_spacing_mm=SPACING_MM, ct_spacing_mm=6.0)


@pytest.fixture(scope="module")
def organ_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_maps(tmp_path_factory.mktemp("maps"), each=8)


@pytest.fixture(scope="module")
def phantoms(organ_maps: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Phantom]:
    return write_cohort(tmp_path_factory.mktemp("experiment") / "cohort", organ_maps=organ_maps, settings=PLAIN)


def folder_of(phantoms: list[Phantom]) -> Path:
    return phantoms[0].case.folder.parent


# --- a CT that moves -----------------------------------------------------------------------------------------------


def test_landmarks_go_where_a_quarter_turn_and_a_shift_by_hand_put_them() -> None:
    ct = np.full((9, 9, 9), -1000, np.int16)
    ct[4, 4, 6] = 500  # (x, y, z) = (4, 0, 0) mm
    ct[7, 2, 4] = 300  # (0, -4, 6) mm
    volume = Volume(ct, (2.0, 2.0, 2.0), (-8.0, -8.0, -8.0))
    moved = move(volume, RigidMotion((0, 0, 90), (2, 0, -2), (0, 0, 0)))
    found = ct_on_grid(moved, volume).array
    # about z, x turns to y: (4, 0, 0) -> (0, 4, 0) -> (2, 4, -2); (0, -4, 6) -> (4, 0, 6) -> (6, 0, 4)
    assert found[3, 6, 5] == 500
    assert found[6, 4, 7] == 300
    assert (found > -1000).sum() == 2
    assert np.array_equal(moved.array, ct)


def test_rotations_are_about_x_then_y_then_z_through_the_pivot() -> None:
    motion = RigidMotion((90, 90, 0), (0, 0, 0), (10, 0, 0))
    # (10, 1, 0): offset (0, 1, 0); about x -> (0, 0, 1); about y -> (1, 0, 0)
    assert motion.apply(np.array([[10, 1, 0]]))[0] == pytest.approx([11, 0, 0])
    angles = (3.0, -4.0, 5.0)
    scipys = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    assert RigidMotion(angles, (0, 0, 0), (0, 0, 0)).matrix == pytest.approx(scipys)


def test_a_motion_of_nothing_changes_nothing_and_a_shift_moves_every_voxel_by_its_length() -> None:
    volume = Volume(np.random.default_rng(0).normal(0, 100, (5, 6, 7)).astype(np.float32), (2.0, 3.0, 4.0), (5, 6, 7))
    still = RigidMotion((0, 0, 0), (0, 0, 0), (1, 2, 3))
    assert ct_on_grid(move(volume, still), volume).array == pytest.approx(volume.array)
    everywhere = np.ones(volume.shape, bool)
    assert displacement_mm(still, volume, everywhere) == 0
    assert displacement_mm(replace(still, shift_mm=(3, 0, -4)), volume, everywhere) == pytest.approx(5)


def test_motions_turn_about_the_middle_of_the_image_within_their_limits() -> None:
    image = Volume(np.zeros((11, 5, 7)), (2.0, 4.0, 3.0), (100.0, 0.0, -50.0))
    drawn = [
        draw_motion(np.random.default_rng(seed), around=image, largest_degrees=5, largest_mm=(8, 4, 0))
        for seed in range(200)
    ]
    assert all(motion.pivot_mm == (106.0, 8.0, -35.0) for motion in drawn)
    angles = np.abs([motion.rotation_degrees for motion in drawn])
    shifts = np.abs([motion.shift_mm for motion in drawn])
    assert angles.max() <= 5
    assert angles.max(axis=0).min() > 4.5
    assert (shifts <= [8, 4, 0]).all()
    assert shifts.max(axis=0)[:2] == pytest.approx([8, 4], rel=0.1)


# --- the cohort ----------------------------------------------------------------------------------------------------


def test_the_cohort_has_both_tracers_half_of_each_without_lesions_and_every_patient_twice(phantoms) -> None:
    counts = pd.DataFrame([(p.case.tracer, p.positive, p.misaligned) for p in phantoms]).value_counts()
    assert counts.to_dict() == {(t, p, m): 2 for t in ("FDG", "PSMA") for p in (True, False) for m in (True, False)}
    assert [case.name for case in read_cohort(folder_of(phantoms))] == [phantom.case.name for phantom in phantoms]
    assert {p.case.patient_id + (MOVED if p.misaligned else "") for p in phantoms} == {p.case.name for p in phantoms}
    facts = read_table(folder_of(phantoms) / "phantoms.csv")
    assert len({row["map"] for row in facts}) == 8
    assert all(row["map"].startswith(row["tracer"].lower()) for row in facts)
    for phantom in phantoms:
        lesions = np.count_nonzero(read_image(phantom.case.mask).array)
        assert (lesions > 0) == phantom.positive
        assert phantom.case.lesion_voxels == lesions


def test_images_of_a_case_share_a_grid_and_organ_labels_lie_on_their_organs(phantoms) -> None:
    case = phantoms[0].case
    suv, ct, organs = read_image(case.suv), read_image(case.ct), read_image(case.image("ORGANS"))
    assert suv.spacing_mm == pytest.approx((SPACING_MM,) * 3)
    assert suv.same_grid(ct)
    assert suv.same_grid(organs)
    assert set(np.unique(organs.array)) == {0, *range(1, len(ORGANS) + 1)}
    assert ct.array[organs.array == 5].mean() < -500  # lung
    assert suv.array[organs.array == 4].mean() > 3 * np.median(suv.array[organs.array > 0])  # bladder


def test_moved_cases_differ_in_the_ct_alone_which_went_where_the_table_says(phantoms) -> None:
    facts = {row["case"]: row for row in read_table(folder_of(phantoms) / "phantoms.csv")}
    pairs = [(p.case, q.case) for p in phantoms for q in phantoms if q.case.name == p.case.name + MOVED]
    assert len(pairs) == 8
    for fixed, moved in pairs:
        for role in ("SUV", "SEG", "ORGANS"):
            assert fixed.image(role).read_bytes() == moved.image(role).read_bytes()
        row = facts[moved.name]
        angles = [float(row[f"rotation_{axis}_deg"]) for axis in "xyz"]
        shift = np.array([float(row[f"shift_{axis}_mm"]) for axis in "xyz"])
        assert max(map(abs, angles)) <= 5
        assert abs(shift[:2]).max() <= 2 * SPACING_MM
        assert shift[2] == 0
        before, after = (read_image(case.ct).array.astype(float) for case in (fixed, moved))
        # an implementation of its own: where each voxel of the moved CT came from, in voxels about the middle
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[::-1, ::-1].T
        middle = (np.array(before.shape) - 1) / 2
        offset = middle - turn @ (middle + shift[::-1] / SPACING_MM)
        expected = ndimage.affine_transform(before, turn, offset, order=1, cval=-1024)
        inside = (slice(6, -6), slice(3, -3), slice(3, -3))
        away = np.abs(after - expected)[inside].mean()
        assert away < 0.35 * np.abs(after - before)[inside].mean()
        assert np.corrcoef(after[inside].ravel(), expected[inside].ravel())[0, 1] > 0.97
        assert float(facts[fixed.name]["displacement_mm"]) == 0
        assert 0 < float(row["displacement_mm"]) < 120


def test_no_threshold_finds_the_lesions(phantoms) -> None:
    cases = [phantom.case for phantom in phantoms if phantom.positive and not phantom.misaligned]
    images = [(read_image(case.suv).array, read_image(case.mask).array > 0) for case in cases]
    for threshold in (2, 3, 4, 6, 8, 10, 14, 20):
        dice = [
            2 * (truth & (suv > threshold)).sum() / (truth.sum() + (suv > threshold).sum()) for suv, truth in images
        ]
        assert np.mean(dice) < 0.4, threshold


def test_a_cohort_that_was_broken_off_is_completed_to_the_same_files(organ_maps: Path, tmp_path: Path) -> None:
    settings = replace(PLAIN, patients=4, pet_spacing_mm=16.0, ct_spacing_mm=16.0)
    first = write_cohort(tmp_path / "c", organ_maps=organ_maps, settings=settings)
    before = _files(tmp_path / "c")
    written = {path: (tmp_path / "c" / path).stat().st_mtime_ns for path in before}
    lost = first[0].case
    lost.suv.unlink()
    for name in ("phantoms.csv", "prep.csv"):
        (tmp_path / "c" / name).unlink()
    (tmp_path / "c" / ".part-PETCT_x-00000000").mkdir()
    again = write_cohort(tmp_path / "c", organ_maps=organ_maps, settings=settings)
    assert [p.case for p in again] == [p.case for p in first]
    assert _files(tmp_path / "c") == before
    kept = [path for path in before if "/" in path and lost.patient_id not in path]
    assert kept
    assert all((tmp_path / "c" / path).stat().st_mtime_ns == written[path] for path in kept)
    with pytest.raises(AutopetError, match="other settings or maps"):
        write_cohort(tmp_path / "c", organ_maps=organ_maps, settings=replace(settings, seed=1))


def test_too_few_maps_and_a_missing_folder_are_errors(organ_maps: Path, tmp_path: Path) -> None:
    with pytest.raises(AutopetError, match="holds 8 maps named fdg_.*at least 9"):
        write_cohort(tmp_path / "c", organ_maps=organ_maps, settings=replace(PLAIN, patients=18))
    with pytest.raises(AutopetError, match="no such folder"):
        write_cohort(tmp_path / "c", organ_maps=tmp_path / "nothing", settings=PLAIN)


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- cells and results ---------------------------------------------------------------------------------------------


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row("a", 0, "p", dice=1 / 3), row("b", 1, "q", positive=0, dice=math.nan, fnv_ml=math.nan, moved=1)]
    write_results(tmp_path / "results.csv", rows)
    back = read_results(tmp_path / "results.csv")
    assert back[0] == rows[0]
    assert math.isnan(back[1].dice)
    assert replace(back[1], dice=0, fnv_ml=0) == replace(rows[1], dice=0, fnv_ml=0)
    table = pd.read_csv(tmp_path / "results.csv")
    assert tuple(table.columns) == COLUMNS
    asked = "variant seed case tracer positive misaligned dice fpv_ml fnv_ml gt_ml pred_ml seconds"
    assert set(asked.split()) <= set(COLUMNS)


def test_cells_and_tables_of_before_tlg_was_measured_are_read(tmp_path: Path) -> None:
    run_cells(tmp_path, [Cell("a", 0)], lambda cell: Outcome((row("a", 0, "p"),), 1.0, 2.0))
    path = tmp_path / "cells/a-seed0.json"
    known = json.loads(path.read_text())
    for name in ("gt_tlg_g", "pred_tlg_g"):
        del known["rows"][0][name]
    path.write_text(json.dumps(known))
    outcome = run_cells(tmp_path, [Cell("a", 0)], pytest.fail)[Cell("a", 0)]
    assert outcome.rows[0].gt_ml == 9.0
    assert math.isnan(outcome.rows[0].pred_tlg_g)


def test_a_kill_between_cells_loses_no_finished_cell(tmp_path: Path) -> None:
    cells, ran = [Cell("a", 0), Cell("b", 0), Cell("a", 1)], []

    def run(cell: Cell) -> Outcome:
        ran.append(cell)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return Outcome((row(cell.variant, cell.seed, "p", dice=math.nan),), 1.0, 2.0)

    with pytest.raises(KeyboardInterrupt):
        run_cells(tmp_path, cells, run)
    assert [(r.variant, r.seed) for r in read_results(tmp_path / "results.csv")] == [("a", 0)]
    outcomes = run_cells(tmp_path, cells, run)
    assert ran == [cells[0], cells[1], cells[1], cells[2]]
    assert list(outcomes) == cells
    assert [(r.variant, r.seed) for r in read_results(tmp_path / "results.csv")] == [("a", 0), ("b", 0), ("a", 1)]
    before = (tmp_path / "results.csv").read_bytes()
    assert run_cells(tmp_path, cells, pytest.fail) == outcomes or math.isnan(outcomes[cells[0]].rows[0].dice)
    assert (tmp_path / "results.csv").read_bytes() == before


def test_cells_side_by_side_have_processes_and_logs_of_their_own(tmp_path: Path) -> None:
    cells = [Cell("a", 0), Cell("b", 0)]
    outcomes = run_cells(tmp_path, cells, work_alone, workers=2)
    assert list(outcomes) == cells
    assert len({outcome.rows[0].patient_id for outcome in outcomes.values()} | {str(os.getpid())}) == 3
    assert (tmp_path / "logs/a-seed0.log").read_text() == "working on a-seed0\n"
    assert [r.variant for r in read_results(tmp_path / "results.csv")] == ["a", "b"]
    with pytest.raises(AutopetError, match=r"c-seed7 failed .*logs/c-seed7.log"):
        run_cells(tmp_path, [*cells, Cell("c", 7)], work_alone, workers=2)
    assert "AutopetError: seven" in (tmp_path / "logs/c-seed7.log").read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_cells_end_with_the_run_that_started_them(tmp_path: Path, how: signal.Signals) -> None:
    run = subprocess.Popen([sys.executable, str(Path(__file__).with_name("experiment_cells.py")), str(tmp_path)])
    logs = [tmp_path / f"logs/{name}-seed0.log" for name in "ab"]
    _until(lambda: all(log.is_file() and log.read_text().strip() for log in logs))
    run.send_signal(how)
    run.wait()
    for log in logs:
        process = Path("/proc") / log.read_text().strip()
        _until(lambda process=process: not process.exists())


def _until(happened: Callable[[], bool], *, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_scores_are_those_of_edition_three_counted_by_hand(phantoms) -> None:
    positive = next(p for p in phantoms if p.positive)
    negative = next(p for p in phantoms if not p.positive)
    truth = read_image(positive.case.mask)
    perfect = score_prediction(Cell("a", 0), positive, truth, seconds=1.23456)
    ml = np.count_nonzero(truth.array) * SPACING_MM**3 / 1000
    assert (perfect.dice, perfect.fpv_ml, perfect.fnv_ml) == (1, 0, 0)
    assert perfect.gt_ml == pytest.approx(ml)
    tlg_g = read_image(positive.case.suv).array[truth.array != 0].mean(dtype=float) * ml
    assert perfect.gt_tlg_g == perfect.pred_tlg_g == pytest.approx(tlg_g)
    assert perfect.seconds == 1.235
    grid = read_image(negative.case.mask)
    speck = np.zeros(grid.shape, np.uint8)
    speck[3, 3, 3:5] = 1
    false = score_prediction(Cell("a", 0), negative, grid.with_array(speck), seconds=0)
    assert math.isnan(false.dice)
    assert math.isnan(false.fnv_ml)
    assert false.fpv_ml == pytest.approx(2 * SPACING_MM**3 / 1000)
    uptake = read_image(negative.case.suv).array[3, 3, 3:5].sum(dtype=float)
    assert (false.gt_tlg_g, false.pred_tlg_g) == (0, pytest.approx(uptake * SPACING_MM**3 / 1000))
    with pytest.raises(AutopetError, match="grid of the lesions"):
        score_prediction(Cell("a", 0), negative, Volume(speck, (1.0, 1.0, 1.0)), seconds=0)


# --- numbers and report --------------------------------------------------------------------------------------------


def example_rows(seeds: int = 3) -> list[Row]:
    """Four variants, patients p (FDG, lesions), q (PSMA, lesions) and n (PSMA, none), fixed and moved."""
    rng, rows = np.random.default_rng(5), []
    for seed in range(seeds):
        for variant in VARIANTS:
            for patient, tracer, positive in (("p", "FDG", 1), ("q", "PSMA", 1), ("n", "PSMA", 0)):
                for moved in (0, 1):
                    dice, fnv = (rng.uniform(), rng.uniform(0, 30)) if positive else (math.nan, math.nan)
                    values = {"dice": float(dice), "fnv_ml": float(fnv), "fpv_ml": float(rng.uniform(0, 90))}
                    rows.append(row(variant, seed, patient, tracer=tracer, positive=positive, moved=moved, **values))
    return rows


def test_spreads_and_differences_counted_by_hand() -> None:
    rows = [
        row("nnunet", 0, "p", dice=0.2), row("nnunet", 0, "q", dice=0.4), row("nnunet", 0, "p", dice=0.1, moved=1),
        row("nnunet", 1, "p", dice=0.6), row("nnunet", 1, "n", dice=math.nan),
        row("both", 0, "p", dice=0.5), row("both", 0, "q", dice=0.4), row("both", 0, "p", dice=0.3, moved=1),
        row("both", 1, "p", dice=0.5), row("both", 1, "n", dice=math.nan),
    ]  # fmt: skip
    aligned = next(group for group in GROUPS if group.title == "CT aligned")
    alone = over_seeds(rows, variant="nnunet", metric="dice", group=aligned)
    assert alone.values == pytest.approx((0.3, 0.6))
    assert (alone.mean, alone.std) == pytest.approx((0.45, 0.3 / math.sqrt(2)))
    found = against(rows, variant="both", reference="nnunet", metric="dice", group=aligned)
    assert found.values == pytest.approx((0.15, -0.1))
    assert better_seeds(found, "dice") == 1
    assert better_seeds(found, "fpv_ml") == 1
    cost = moved_against_fixed(rows, variant="both", metric="dice")
    assert cost.values[0] == pytest.approx(-0.2)
    assert math.isnan(cost.values[1])
    assert cost.mean == pytest.approx(-0.2)
    assert math.isnan(cost.std)


def _expected(table: pd.DataFrame, metric: str, digits: int, sign: str = "") -> str:
    """Mean and spread over seeds of the mean over cases, by pandas."""
    per_seed = table.groupby("seed")[metric].mean()
    return f"{per_seed.mean():{sign}.{digits}f} ± {per_seed.std():.{digits}f}"


def test_every_table_of_the_report_is_what_pandas_makes_of_the_results(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", example_rows())
    report = write_report(tmp_path, read_results(tmp_path / "results.csv"), story()).read_text()
    table = pd.read_csv(tmp_path / "results.csv")
    tables = [block.splitlines() for block in report.split("\n\n") if block.startswith("|")]
    parts = [table, table[table.tracer == "FDG"], table[table.tracer == "PSMA"]]
    for index, (metric, digits) in enumerate({"dice": 3, "fpv_ml": 1, "fnv_ml": 1}.items()):
        lines = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in tables[index][2:]}
        assert list(lines) == list(VARIANTS)
        for variant, cells in lines.items():
            mine = [part[part.variant == variant] for part in parts]
            mine += [mine[0][mine[0].misaligned == moved] for moved in (0, 1)]
            mine += [mine[0][mine[0].positive == 0]] if metric == "fpv_ml" else []
            assert cells == [_expected(part, metric, digits) for part in mine]
        differences = {line.split(" | ")[0].strip("| "): line for line in tables[3 + index][2:]}
        assert list(differences) == [variant for variant in VARIANTS if variant != "nnunet"]
        wide = table.pivot_table(index=["seed", "case", "misaligned"], columns="variant", values=metric)
        for variant, line in differences.items():
            change = (wide[variant] - wide["nnunet"]).rename("change").reset_index()
            assert _expected(change, "change", digits, "+") == re.split(r" \(", line.strip("| ").split(" | ")[1])[0]
            per_seed = change.groupby("seed").change.mean()
            better = int((per_seed > 0).sum() if metric == "dice" else (per_seed < 0).sum())
            assert f"({better}/3)" in line.split(" | ")[1]
    costs = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in tables[6][2:]}
    for variant, cells in costs.items():
        mine = table[table.variant == variant].pivot_table(
            index=["seed", "patient_id"], columns="misaligned", values=["dice", "fpv_ml", "fnv_ml"]
        )
        for metric, digits, cell in zip(("dice", "fpv_ml", "fnv_ml"), (3, 1, 1), cells, strict=True):
            change = (mine[metric][1] - mine[metric][0]).rename("change").reset_index()
            assert _expected(change, "change", digits, "+") == cell


def story() -> Story:
    return Story(
        "T", "Q?", "nnunet", "autopet experiment lesiontracer", "a machine", "2026-01-02", 3.0, {"nnunet": "x"}
    )


def test_the_report_says_how_it_came_about_and_no_more_than_the_numbers() -> None:
    text = report_text(example_rows(), story())
    for words in ("`autopet experiment lesiontracer`", "a machine", "2026-01-02", "Seeds: 3 (0, 1, 2)", "`nnunet`: x"):
        assert words in text
    assert "3 patients (2 with lesions) in 6 cases, 3 of them with a misaligned CT" in text
    assert "One seed says nothing" in sentences(example_rows(seeds=1), "nnunet")[-1]


def test_sentences_name_what_all_seeds_share_and_nothing_else() -> None:
    rows = []
    for seed, better in ((0, 0.1), (1, 0.3)):
        for moved in (0, 1):
            rows.append(row("nnunet", seed, "p", dice=0.5, fpv_ml=9.0, fnv_ml=3.0, moved=moved))
            # Dice better in both seeds, FPV worse in both, FNV equal or of both signs
            fnv = 3.0 + moved * (seed - 0.5)
            rows.append(row("both", seed, "p", dice=0.5 + better, fpv_ml=9.5, fnv_ml=fnv, moved=moved))
    places = ("all cases", "CT aligned", "CT misaligned")
    wanted = [", ".join(f"{metric} of {place}" for place in places) for metric in ("Dice", "FPV (ml)", "FNV (ml)")]
    said = sentences(rows, "nnunet")
    assert said[0] == (
        f"`both` against `nnunet`: better in every seed: {wanted[0]}; worse in every seed: {wanted[1]}; "
        f"seeds disagree: {wanted[2]}"
    )
    assert "probability of 0.5" in said[-1]
    assert "9 differences" in said[-1]
    assert "27 differences" in sentences(example_rows(), "nnunet")[-1]


def test_the_picture_has_a_dot_for_every_seed_variant_metric_and_alignment(tmp_path: Path) -> None:
    write_report(tmp_path, example_rows(), story())
    svg = (tmp_path / "seeds.svg").read_text()
    assert svg.startswith("<svg")
    assert svg.count('r="3"') == 3 * 4 * 3 * 2


# --- the experiment ------------------------------------------------------------------------------------------------

MICRO = Budget(
    cohort=replace(PLAIN, patients=16, pet_spacing_mm=16.0, ct_spacing_mm=16.0),
    test_fraction=0.5,
    training=replace(
        lesiontracer.SMALL.training,
        epochs=1,
        iterations_per_epoch=2,
        patch=(32, 16, 32),
        features=(4, 8),
        blocks=(1, 1),
        workers=1,
    ),
)


@pytest.fixture(scope="module")
def experiment(one_thread: None, organ_maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole experiment with the real trainer, killed once at the third training."""
    out = tmp_path_factory.mktemp("micro") / "out"
    trained: list[str] = []
    real = lesiontracer.train

    def stopping(cases, model, **options):
        trained.append(model.name)
        if trained == ["nnunet-seed0", "misalignment-seed0", "organs-seed0"]:
            raise KeyboardInterrupt
        return real(cases, model, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesiontracer, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            go(organ_maps, out)
        assert len(read_results(out / "results.csv")) == 2 * 16
        go(organ_maps, out)
    assert trained == [f"{name}-seed0" for name in ("nnunet", "misalignment", "organs", "organs", "both")]
    return out


def go(organ_maps: Path, out: Path, **changes) -> Path:
    options = {"seeds": 1, "budget": MICRO, "device": "cpu", "command": "autopet ...", "workers": 1} | changes
    return run_experiment(organ_maps, out, **options)


def test_every_variant_is_trained_and_tested_end_to_end(experiment: Path) -> None:
    table = pd.read_csv(experiment / "results.csv")
    assert tuple(table.columns) == COLUMNS
    assert table.groupby("variant", sort=False).size().to_dict() == dict.fromkeys(VARIANTS, 16)
    assert table.groupby(["tracer", "positive", "misaligned"]).size().tolist() == [8] * 8
    assert table.dice.notna().eq(table.positive == 1).all()
    assert table.fpv_ml.notna().all()
    assert (table.seconds > 0).all()
    report = (experiment / "report.md").read_text()
    assert all(f"| {variant} |" in report for variant in VARIANTS)
    assert (experiment / "seeds.svg").is_file()
    assert not (experiment / "preprocessed").exists()
    for mask, line in zip(table.case, table.itertuples(), strict=True):
        predicted = read_image(experiment / "predictions" / f"{line.variant}-seed0" / f"{mask}.nii.gz")
        assert np.count_nonzero(predicted.array) * predicted.voxel_volume_ml == pytest.approx(line.pred_ml)


def test_variants_differ_in_their_two_switches_and_share_everything_else(experiment: Path) -> None:
    configs = {v: json.loads((experiment / f"models/{v}-seed0/config.json").read_text()) for v in VARIANTS}
    for variant, config in configs.items():
        wanted = {"organs": variant in ("organs", "both"), "misalignment": variant in ("misalignment", "both")}
        assert {key: config["settings"].pop(key) for key in wanted} == wanted
        assert bool(config.pop("organ_cases")) == wanted["organs"]
    assert all(config == configs["nnunet"] for config in configs.values())
    plans = {(experiment / f"models/{v}-seed0/plans.json").read_text() for v in VARIANTS}
    assert len(plans) == 1
    tested = set(pd.read_csv(experiment / "results.csv").patient_id)
    assert not any(case.endswith(MOVED) or case in tested for case in configs["nnunet"]["training_cases"])
    assert len(tested) == len(configs["nnunet"]["training_cases"]) == 8


def test_a_finished_experiment_is_not_redone(experiment: Path, organ_maps: Path, monkeypatch) -> None:
    before, results = _files(experiment), (experiment / "results.csv").read_bytes()
    for name in ("train", "prepared", "_predict"):
        monkeypatch.setattr(lesiontracer, name, pytest.fail)
    go(organ_maps, experiment)
    after = _files(experiment)
    assert (experiment / "results.csv").read_bytes() == results
    assert {path for path in before if before[path] != after.get(path)} <= {"report.md"}
    with pytest.raises(AutopetError, match="other settings"):
        go(organ_maps, experiment, budget=replace(MICRO, test_fraction=0.25))


def test_a_trained_network_whose_cell_was_lost_is_only_tested_again(experiment: Path, organ_maps: Path, monkeypatch):
    lost = experiment / "cells/both-seed0.json"
    known = json.loads(lost.read_text())
    lost.unlink()
    monkeypatch.setattr(lesiontracer, "train", pytest.fail)
    go(organ_maps, experiment)
    again = json.loads(lost.read_text())
    assert again["train_s"] == known["train_s"]
    for one, other in zip(again["rows"], known["rows"], strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}


def test_splits_keep_patients_apart_and_change_with_the_seed() -> None:
    cases = [
        Case(f"p{n:02d}{end}", f"p{n:02d}", Path("x"), ("FDG", "PSMA")[n % 2], "AB"[n // 2 % 2], n // 4 % 2)
        for n in range(16)
        for end in ("", MOVED)
    ]
    phantoms = tuple(Phantom(case, bool(case.lesion_voxels), case.name.endswith(MOVED)) for case in cases)
    found = lesiontracer.Experiment(Path("x"), MICRO, phantoms, "cpu")
    tests = []
    for seed in range(6):
        train, test = ({p.case.patient_id for p in found.part(seed, part)} for part in ("train", "test"))
        assert not train & test
        assert len(train) == len(test) == 8
        assert all(not p.misaligned for p in found.part(seed, "train"))
        assert sum(p.misaligned for p in found.part(seed, "test")) == len(test)
        fixed = [p for p in found.part(seed, "test") if not p.misaligned]
        assert sum(p.case.tracer == "FDG" for p in fixed) == sum(p.positive for p in fixed) == 4
        tests.append(frozenset(test))
    assert len(set(tests)) > 1


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch) -> None:
    from autopet.commands.experiment import app

    taken = {}

    def fake(organ_maps, out, **options):
        taken.update(options, maps=organ_maps, out=out)
        return out / "report.md"

    monkeypatch.setattr(lesiontracer, "run_experiment", fake)
    words = ["experiment", "lesiontracer", "--organ-maps", "m", "--out", str(tmp_path / "o"), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert taken["seeds"] == 3
    assert taken["budget"] is lesiontracer.BUDGETS["small"]
    assert taken["command"].endswith("--seeds 3 --budget small --device cpu")
    assert CliRunner().invoke(app, [*words, "--budget", "huge"]).exit_code == 2


def test_published_budgets_give_patients_and_iterations_to_every_variant() -> None:
    for budget in lesiontracer.BUDGETS.values():
        assert budget.cohort.patients == 48
        edge = 2 ** (len(budget.training.features) - 1)
        assert all(size % edge == 0 for size in budget.training.patch)


def test_phantoms_are_read_back(phantoms) -> None:
    assert read_phantoms(folder_of(phantoms)) == phantoms
