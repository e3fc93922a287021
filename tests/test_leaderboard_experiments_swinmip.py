"""swinmip's experiment: what it shares with others, its cells with stand-in networks, its tables, and one real run."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from experiment_cells import row
from organ_map_maker import write_maps
from typer.testing import CliRunner

from algorithms.swinmip.model import LOSSES, PROJECTIONS
from algorithms.swinmip.preprocessing import Ranges
from algorithms.swinmip.projections import projection_size
from algorithms.swinmip.swin import build_classifier
from autopet.cohort import Case, write_table
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.volume import Volume
from data_prep.phantom import plan
from leaderboard.experiments import common, swinmip, swinmip_cells, swinmip_setup
from leaderboard.experiments.cohort import (
    MOVED,
    CohortSettings,
    Phantom,
    RepeatedSettings,
    Scan,
    read_phantoms,
    thinned,
    write_cohort,
)
from leaderboard.experiments.common import Cell, Outcome, read_outcome, read_results, run_cells
from leaderboard.experiments.swinmip import BUDGETS, SMALL, cells_of, run_experiment
from leaderboard.experiments.swinmip_cells import gated_rows
from leaderboard.experiments.swinmip_report import gate_sentences, loss_sentences, projection_sentences, report_text
from leaderboard.experiments.swinmip_setup import Budget, Experiment, first_scans
from leaderboard.experiments.swinmip_tables import Findings, gate_table, projections_table, thresholds_table

pytestmark = pytest.mark.usefixtures("one_thread")

COHORT = RepeatedSettings(patients=16, pet_spacing_mm=16.0, ct_spacing_mm=16.0, scans_per_patient=2)
BLOCK_ML = 8 * 16**3 / 1000  # of the 2 x 2 x 2 voxels that the stand-ins hold for a lesion
# loss -> probability in lesions and in that block
PROBABILITIES = {"ce": (0.4, 0.2), "dice": (0.9, 0.8), "dice_ce": (0.7, 0.6), "dice_focal": (0.55, 0.45)}
MICRO = Budget(
    cohort=COHORT,
    held_fraction=1 / 4,
    test_fraction=1 / 4,
    classifier_folds=2,
    training=replace(
        SMALL.training,
        folds=2,
        spacing_mm=(16.0, 16.0, 16.0),
        patch=(32, 32, 64),
        patches_per_volume=1,
        batch=1,
        depths=(1, 1, 1, 1),
        window=4,
        cycles=1,
        epochs_per_cycle=1,
        overlap=0.0,
        cls_spacing_mm=(16.0, 16.0, 16.0),
        cls_size=(32, 32),
        cls_embedding=8,
        cls_depths=(1, 1),
        cls_heads=(1, 2),
        cls_window=4,
        cls_cycles=1,
        cls_epochs_per_cycle=1,
    ),
)


@pytest.fixture(scope="module")
def organ_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_maps(tmp_path_factory.mktemp("maps"), each=8)


@pytest.fixture(scope="module")
def cohort_folder(organ_maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen patients with two scans each; read only."""
    folder = tmp_path_factory.mktemp("experiment") / "cohort"
    write_cohort(folder, organ_maps=organ_maps, settings=COHORT, moved=False)
    return folder


def started(cohort_folder: Path, out: Path) -> Path:
    """An experiment's folder whose cohort is made already."""
    shutil.copytree(cohort_folder, out / "cohort")
    return out


def go(organ_maps: Path, out: Path, **changes) -> Path:
    options = {"seeds": 1, "budget": MICRO, "device": "cpu", "command": "autopet ...", "workers": 1} | changes
    return run_experiment(organ_maps, out, **options)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what experiments share ------------------------------------------------------------------------------------------


def test_a_cohort_without_moved_copies_has_the_same_patients_to_the_byte(organ_maps: Path, tmp_path: Path) -> None:
    settings = CohortSettings(patients=4, pet_spacing_mm=16.0, ct_spacing_mm=16.0)
    both = write_cohort(tmp_path / "both", organ_maps=organ_maps, settings=settings)
    once = write_cohort(tmp_path / "once", organ_maps=organ_maps, settings=settings, moved=False)
    assert [p.case.name for p in once] == [p.case.name for p in both if not p.misaligned]
    assert len(once) == 4
    assert not any(p.misaligned or p.case.name.endswith(MOVED) for p in once)
    plain = {path: digest for path, digest in files_of(tmp_path / "both").items() if "/" in path and MOVED not in path}
    assert len(plain) == 4 * 5  # four images and audit.json
    assert {path: digest for path, digest in files_of(tmp_path / "once").items() if "/" in path} == plain
    assert set(json.loads((tmp_path / "both/recipe.json").read_text())) == {"settings", "maps"}  # as ever
    with pytest.raises(AutopetError, match="other settings or maps"):
        write_cohort(tmp_path / "once", organ_maps=organ_maps, settings=settings)


def test_scans_of_a_patient_share_the_map_and_take_turns_with_lesions(organ_maps: Path, tmp_path: Path) -> None:
    settings = replace(COHORT, patients=4, scans_per_patient=3)
    phantoms = write_cohort(tmp_path / "c", organ_maps=organ_maps, settings=settings, moved=False)
    assert len(phantoms) == 4 * 3
    facts = pd.read_csv(tmp_path / "c/phantoms.csv").set_index("case")
    for patient in {phantom.case.patient_id for phantom in phantoms}:
        scans = [phantom for phantom in phantoms if phantom.case.patient_id == patient]
        assert [scan.case.name for scan in scans] == [patient, f"{patient}-scan2", f"{patient}-scan3"]
        assert [scan.first for scan in scans] == [True, False, False]
        assert [scan.positive for scan in scans] == [scans[0].positive, not scans[0].positive, scans[0].positive]
        assert len({facts["map"][scan.case.name] for scan in scans}) == 1
        images = [read_image(scan.case.suv) for scan in scans]
        masks = [read_image(scan.case.mask).array != 0 for scan in scans]
        assert [mask.any() for mask in masks] == [scan.positive for scan in scans]
        assert all(images[0].same_grid(image) for image in images[1:])
        assert not scans[0].positive or (masks[0] != masks[2]).any()
        assert len({image.array.tobytes() for image in images}) == 3
    assert Counter(phantom.positive for phantom in phantoms if phantom.first) == {True: 2, False: 2}
    before = files_of(tmp_path / "c")
    (tmp_path / "c/phantoms.csv").unlink()
    shutil.rmtree(phantoms[1].case.suv.parent)  # a second scan
    write_cohort(tmp_path / "c", organ_maps=organ_maps, settings=settings, moved=False)
    assert files_of(tmp_path / "c") == before


def test_scans_with_lesions_of_patients_planned_without_have_the_cancers_of_their_tracer() -> None:
    planned = plan(200, seed=1, size="small", tracer="mixed", positive_fraction=0.5)
    for patient in planned:
        first, second, third = (Scan(patient, number) for number in (1, 2, 3))
        assert first.diagnosis == third.diagnosis == patient.diagnosis
        assert (second.diagnosis == "NEGATIVE") == patient.positive
    drawn = {
        tracer: {Scan(p, 2).diagnosis for p in planned if p.tracer == tracer and not p.positive}
        for tracer in ("FDG", "PSMA")
    }
    assert drawn == {  # as in the patients who are planned with lesions
        tracer: {p.diagnosis for p in planned if p.tracer == tracer and p.positive} for tracer in ("FDG", "PSMA")
    }


def test_a_thinned_map_keeps_voxels_where_they_were() -> None:
    array = np.random.default_rng(0).integers(0, 11, (13, 9, 8))
    volume = Volume(array, (2.0, 3.0, 5.5), (7.0, -4.0, 100.0), (-1.0, 0, 0, 0, -1, 0, 0, 0, 1))
    found = thinned(volume, 6.0)  # steps 3, 2 and 1 along x, y and z
    assert found.spacing_mm == (6.0, 6.0, 5.5)
    assert found.shape == (13, 5, 3)
    for x, y, z in ((0, 0, 0), (2, 4, 12), (1, 3, 5)):
        assert found.array[z, y, x] == array[z, 2 * y, 3 * x]
        assert found.affine @ [x, y, z, 1] == pytest.approx(volume.affine @ [3 * x, 2 * y, z, 1])
    assert thinned(volume, 1.0).array.tobytes() == array.tobytes()  # never finer


def test_cells_keep_their_facts_and_those_without_look_as_before(tmp_path: Path) -> None:
    cells = [Cell("a", 0), Cell("b", 0)]

    def run(cell: Cell) -> Outcome:
        return Outcome((row(cell.variant, 0, "p"),), 1.0, 2.0, {"curve": [0.5, 0.25]} if cell.variant == "a" else {})

    first = run_cells(tmp_path, cells, run)
    assert run_cells(tmp_path, cells, pytest.fail) == first
    assert first[cells[0]].facts == {"curve": [0.5, 0.25]}
    assert set(json.loads((tmp_path / "cells/b-seed0.json").read_text())) == {"train_s", "predict_s", "rows"}


def test_a_cell_waits_for_what_it_needs() -> None:
    a, b, c, d = (Cell(name, 0) for name in "abcd")
    needs = {c: [a, b]}
    assert common._next([a, b, c, d], [], needs) == a
    assert common._next([c, d], [a, b], needs) == d
    assert common._next([c, d], [b], needs) == d
    assert common._next([c], [a], needs) is None
    assert common._next([c, d], [], needs) == c
    with pytest.raises(AssertionError):
        run_cells(Path("nowhere"), [c, a, b], pytest.fail, needs=needs)


# --- who is trained on what ------------------------------------------------------------------------------------------


def fake_phantoms(patients: int) -> tuple[Phantom, ...]:
    """Tracers, centres and lesions in equal shares, as `data_prep.phantom.plan` deals them."""
    cases = [
        Case(f"p{n:02d}", f"p{n:02d}", Path("x"), ("FDG", "PSMA")[n % 2], "AB"[n // 2 % 2], n // 4 % 2)
        for n in range(patients)
    ]
    return tuple(Phantom(case, bool(case.lesion_voxels), False) for case in cases)


@pytest.mark.parametrize("name", list(BUDGETS))
def test_parts_and_folds_of_published_budgets_have_both_tracers_half_of_each_without_lesions(name: str) -> None:
    budget, phantoms = BUDGETS[name], fake_phantoms(48)
    assert budget.cohort.patients == 48
    experiment = Experiment(Path("x"), budget, phantoms, "cpu")
    tests = set()
    for seed in range(4):
        parts = {part: experiment.part(seed, part) for part in ("train", "val", "test")}
        assert Counter(p.case.name for part in parts.values() for p in part) == Counter(p.case.name for p in phantoms)
        sizes = {part: Counter((p.case.tracer, p.positive) for p in chosen) for part, chosen in parts.items()}
        for part, each in (("train", 6), ("val", 3), ("test", 3)):
            assert set(sizes[part].values()) == {each}
            assert len(sizes[part]) == 4
        for folds in (budget.training.folds, budget.classifier_folds):
            seen: Counter[str] = Counter()
            for fold in range(folds):
                training, validation = experiment.fold(seed, fold, of=folds)
                assert sorted(p.case.name for p in (*training, *validation)) == [p.case.name for p in parts["train"]]
                assert {p.positive for p in training} == {p.positive for p in validation} == {True, False}
                seen.update(p.case.name for p in validation)
            assert seen == Counter(p.case.name for p in parts["train"])
        tests.add(tuple(p.case.name for p in parts["test"]))
    assert len(tests) > 1


def test_all_scans_of_a_patient_go_where_the_first_goes() -> None:
    once = fake_phantoms(48)
    more = [
        replace(phantom, case=replace(phantom.case, name=f"{phantom.case.name}-scan{n}"), positive=not phantom.positive)
        for phantom in once
        for n in (2, 3)
    ]
    alone, repeated = (Experiment(Path("x"), SMALL, tuple(given), "cpu") for given in (once, [*once, *more]))

    def check(few: list[Phantom], many: list[Phantom]) -> None:
        assert first_scans(many) == few
        patients = Counter(p.case.patient_id for p in many)
        assert patients == Counter({p.case.patient_id: 3 for p in few})

    for part in ("train", "val", "test"):
        check(alone.part(1, part), repeated.part(1, part))
    for fold in range(2):
        for few, many in zip(alone.fold(1, fold, of=2), repeated.fold(1, fold, of=2), strict=True):
            check(few, many)


def test_settings_of_cells_differ_in_loss_and_seed_alone() -> None:
    experiment = Experiment(Path("x"), SMALL, (), "cpu")
    for loss in LOSSES:
        assert replace(experiment.settings(3, loss), loss="ce", seed=0) == experiment.settings(0)
        assert (experiment.settings(3, loss).loss, experiment.settings(3, loss).seed) == (loss, 3)


def test_cells_come_after_what_they_need_and_the_last_ones_need_nothing() -> None:
    needs = cells_of(MICRO, 5)
    order = [cell.variant for cell in needs]
    assert order == ["ce", "ce-fold1", "ensemble", "gate", "dice", "dice_ce", "dice_focal"]
    assert [cell.variant for cell in needs[Cell("ensemble", 5)]] == ["ce", "ce-fold1"]
    assert needs[Cell("gate", 5)] == [Cell("ensemble", 5)]
    assert all(not needed for cell, needed in needs.items() if cell.variant not in ("ensemble", "gate"))


# --- the cells, with stand-ins for networks --------------------------------------------------------------------------


class StandIns:
    """In place of networks: they know every scan, hold its lesions for lesions, and a block in the corner, too."""

    def __init__(self, phantoms: list[Phantom], patch: pytest.MonkeyPatch) -> None:
        self.known = {self._key(read_image(phantom.case.suv)): phantom for phantom in phantoms}
        self.trained: list[tuple] = []
        self.stop_at = 0  # number of the training that is broken off
        names = ("train_segmenter", "load_segmenter", "lesion_probability")
        for name in (*names, "train_classifier", "load_classifier", "scan_score"):
            patch.setattr(swinmip_cells, name, getattr(self, name))
        patch.setattr(swinmip_setup, "training_ranges", lambda cases, settings: Ranges((-800.0, 500.0), (1.0, 30.0)))
        for name in ("cache_cases", "cache_volumes"):
            patch.setattr(swinmip_setup, name, lambda cases, folder, *_: {c.name: folder / c.name for c in cases})

    @staticmethod
    def _key(suv) -> bytes:
        return np.asarray(suv.array, np.float32).tobytes()

    def train_segmenter(self, training, validation, work, *, settings, device, fold, out) -> dict:
        names = tuple(path.name for path in training), tuple(path.name for path in validation)
        self._train(("segmenter", settings.loss, fold, settings.seed, *names), work, out, text=settings.loss)
        return {"kept_cycle": 0, "topk_auroc": 0.9}

    def train_classifier(self, *parts, axis, settings, device, fold, out) -> dict:
        names = [tuple(path.name for path in part) for part in parts[:4]]
        self._train(("classifier", axis, fold, settings.seed, *names), parts[4], out, text=axis)
        return {"kept_cycle": 0, "auroc": {"x": 0.75, "y": 1.0, "z": 0.5}[axis]}

    def _train(self, what: tuple, work: Path, out: Path, *, text: str) -> None:
        self.trained.append(what)
        if len(self.trained) == self.stop_at:
            raise KeyboardInterrupt
        write_table(work / "metrics.csv", [{"seconds": 1.5}, {"seconds": 2.0}], ["seconds"])
        out.write_text(text)

    def load_segmenter(self, path, settings):
        return SimpleNamespace(loss=path.read_text())

    def lesion_probability(self, networks, images, *, ranges, settings, spacing_mm, device):
        losses = {(one() if callable(one) else one).loss for one in networks}
        lesion, false = PROBABILITIES[losses.pop()]
        assert not losses
        phantom = self.known[self._key(images["PET"])]
        found = np.where(read_image(phantom.case.mask).array != 0, lesion, 0.0).astype(np.float32)
        found[:2, :2, :2] = false
        return images["PET"].with_array(found)

    def load_classifier(self, path, settings):
        return path.read_text()

    def scan_score(self, classifiers, suv, *, ranges, settings, device) -> float:
        assert all(networks == [axis] * MICRO.classifier_folds for axis, networks in classifiers.items())
        positive = self.known[self._key(suv)].positive
        scores = {"x": 0.8 if positive else 0.2, "y": 0.6 if positive else 0.4, "z": 0.5}
        return float(np.mean([scores[axis] for axis in classifiers]))


@pytest.fixture
def stand_ins(cohort_folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    return StandIns(read_phantoms(cohort_folder), monkeypatch)


def test_all_four_questions_are_answered_as_counted_by_hand(
    stand_ins: StandIns, cohort_folder: Path, organ_maps: Path, tmp_path: Path
) -> None:
    out = started(cohort_folder, tmp_path / "out")
    report = go(organ_maps, out, seeds=2)
    results = pd.read_csv(out / "results.csv")
    tested = 4  # of 16 patients, 2 with lesions
    variants = [end for name in (*LOSSES, "ensemble") for end in (name, f"{name}-tuned")]
    assert results.variant.value_counts().to_dict() == dict.fromkeys(
        [*variants, "ensemble-gate", "ensemble-gate-margin"], 2 * tested
    )
    assert results.groupby(["seed", "positive"]).case.nunique().tolist() == [2] * 4

    # Dice of n lesion voxels with the block: 2n / (2n + 8). Without it 1. Below the threshold: 0
    positives, negatives = results[results.positive == 1], results[results.positive == 0]
    with_block = 2 * positives.gt_ml / (2 * positives.gt_ml + BLOCK_ML)
    expected = {"ce": 0.0, "dice": with_block, "dice_ce": with_block, "dice_focal": 1.0, "ensemble": 0.0}
    for variant, dice in expected.items():
        mine = positives.variant == variant
        wanted = dice[mine] if isinstance(dice, pd.Series) else dice
        assert positives.dice[mine].to_numpy() == pytest.approx(np.broadcast_to(wanted, mine.sum()))
        assert (positives.dice[positives.variant == f"{variant}-tuned"] == 1).all()
        false_ml = BLOCK_ML if variant in ("dice", "dice_ce") else 0.0
        assert negatives.fpv_ml[negatives.variant == variant].to_numpy() == pytest.approx([false_ml] * 4)
        assert (negatives.fpv_ml[negatives.variant == f"{variant}-tuned"] == 0).all()

    losses = pd.read_csv(out / "losses.csv")
    assert len(losses) == 2 * len(LOSSES) * 2
    for record in losses.itertuples():
        variant = record.loss + ("-tuned" if record.chosen_on != "nothing" else "")
        mine = results[(results.variant == variant) & (results.seed == record.seed)]
        assert record.fpv_ml_negatives == pytest.approx(mine.fpv_ml[mine.positive == 0].mean())
        assert record.dice_positives_psma == pytest.approx(
            mine.dice[(mine.positive == 1) & (mine.tracer == "PSMA")].mean(), nan_ok=True
        )
        assert record.train_s == 3.5
    # best thresholds lie above the block and not above the lesions: 0.205 to 0.4, the middle one (the lower) 0.3
    chosen = losses[losses.chosen_on != "nothing"].groupby("loss").threshold.unique()
    assert {loss: list(values) for loss, values in chosen.items()} == {
        "ce": [0.3], "dice": [0.85], "dice_ce": [0.65], "dice_focal": [0.5]
    }  # fmt: skip

    projections = pd.read_csv(out / "projections.csv")
    unseen = projections[projections.scans == "held-out and test"].groupby("projection").auroc.unique()
    assert {axis: list(values) for axis, values in unseen.items()} == {"x": [1.0], "y": [1.0], "z": [0.5]}
    seen = projections[projections.scans == "validation"].groupby("projection").auroc.agg(["mean", "size"])
    assert seen["mean"].to_dict() == {"x": 0.75, "y": 1.0, "z": 0.5}
    assert (seen["size"] == 2 * MICRO.classifier_folds).all()

    gate = pd.read_csv(out / "gate.csv")
    assert gate.threshold.to_numpy() == pytest.approx([0.7, 0.63] * 2)  # positives 0.7, negatives 0.3; margin 0.1
    assert gate.margin.tolist() == [0.0, 0.1] * 2
    for name, count in (("held", 4), ("test", 4)):  # 4 patients, one scan of two with lesions and one without
        assert (gate[f"{name}_negatives_caught"] == count).all()
        assert (gate[f"{name}_positives"] == count).all()
        assert (gate[f"{name}_positives_caught"] == 0).all()
    assert (gate.dice_positives_with == 1).all()
    scores = pd.read_csv(out / "scores.csv").set_index(["seed", "case"])
    for record in results[results.variant == "ensemble-gate"].itertuples():
        alone = results[(results.variant == "ensemble-tuned") & (results.case == record.case)]
        alone = alone[alone.seed == record.seed].seconds.item() * record.positive
        assert record.seconds == pytest.approx(alone + scores.seconds[record.seed, record.case], abs=2e-3)

    thresholds = pd.read_csv(out / "thresholds.csv")
    assert thresholds.groupby("rule").threshold.unique().map(list).to_dict() == {
        "half": [0.5], "held": [0.3], "folds": [0.3], "lowest": [0.3], "test": [0.3], "fold 0": [0.3], "fold 1": [0.3]
    }  # fmt: skip
    assert (thresholds.test_dice == (thresholds.rule != "half")).all()
    assert report.read_text().count("\n## ") == 5
    assert not (out / "preprocessed").exists()


def test_trainings_see_no_held_out_and_no_test_patient_and_losses_see_the_same(
    stand_ins: StandIns, cohort_folder: Path, organ_maps: Path, tmp_path: Path
) -> None:
    out = started(cohort_folder, tmp_path / "out")
    go(organ_maps, out)
    experiment = Experiment(out, MICRO, tuple(read_phantoms(out / "cohort")), "cpu")
    train = {p.case.name: p.positive for p in experiment.part(0, "train")}
    first = {p.case.name for p in experiment.part(0, "train") if p.case.name == p.case.patient_id}
    assert len(train) == 2 * len(first) == 16
    segmenters = {(what[1], what[2]): what[4:] for what in stand_ins.trained if what[0] == "segmenter"}
    assert set(segmenters) == {("ce", 0), ("ce", 1), ("dice", 0), ("dice_ce", 0), ("dice_focal", 0)}
    assert len({segmenters[loss, 0] for loss in LOSSES}) == 1
    for training, validation in segmenters.values():
        assert sorted((*training, *validation)) == sorted(name for name in first if train[name])
    assert not set(segmenters["ce", 0][1]) & set(segmenters["ce", 1][1])
    classifiers = [what for what in stand_ins.trained if what[0] == "classifier"]
    assert Counter(what[1] for what in classifiers) == Counter(dict.fromkeys(PROJECTIONS, MICRO.classifier_folds))
    for _, _, _, _, positives, negatives, val_positives, val_negatives in classifiers:
        assert all(train[f"{name}".removesuffix(".npy")] for name in (*positives, *val_positives))
        assert not any(train[name] for name in (*negatives, *val_negatives))
        assert sorted((*positives, *negatives, *val_positives, *val_negatives)) == sorted(train)
        patients = [{name.partition("-scan")[0] for name in (*one, *other)} for one, other in (
            (positives, negatives), (val_positives, val_negatives)
        )]  # fmt: skip
        assert not patients[0] & patients[1]


def test_a_killed_experiment_goes_on_and_a_finished_one_is_left_alone(
    stand_ins: StandIns, cohort_folder: Path, organ_maps: Path, tmp_path: Path
) -> None:
    out = started(cohort_folder, tmp_path / "out")
    stand_ins.stop_at = 6  # 2 folds, the x classifiers, one of y: in the middle of the cell `gate`
    with pytest.raises(KeyboardInterrupt):
        go(organ_maps, out)
    assert {r.variant for r in read_results(out / "results.csv")} == {"ce", "ce-tuned", "ensemble", "ensemble-tuned"}
    begun = stand_ins.trained.copy()
    go(organ_maps, out)
    assert begun[-1] == stand_ins.trained[6]  # the one that was broken off, once more
    assert len(stand_ins.trained) == len(set(stand_ins.trained)) + 1 == 2 + 3 * 2 + 3 + 1
    before, count = files_of(out), len(stand_ins.trained)
    go(organ_maps, out)
    assert len(stand_ins.trained) == count
    after = files_of(out)
    assert {path for path in before if before[path] != after.get(path)} <= {"report.md"}
    with pytest.raises(AutopetError, match="other settings"):
        go(organ_maps, out, budget=replace(MICRO, test_fraction=0.125))
    go(organ_maps, out, seeds=2)  # more seeds: only theirs
    assert all(what[3] == 1 for what in stand_ins.trained[count:])
    assert len(stand_ins.trained) == count + 11


# --- tables and sentences --------------------------------------------------------------------------------------------


def test_a_gated_scan_has_an_empty_mask_and_costs_the_classifier_alone() -> None:
    nothing = {"dice": math.nan, "fnv_ml": math.nan, "gt_ml": 0.0, "positive": 0}
    rows = [
        row("ensemble-tuned", 0, "p", dice=0.8, fpv_ml=3.0, fnv_ml=1.0, seconds=10.0),
        row("ensemble-tuned", 0, "q", dice=0.7, fpv_ml=4.0, fnv_ml=1.0, seconds=10.0, gt_tlg_g=50.0, pred_tlg_g=40.0),
        row("ensemble-tuned", 0, "n", fpv_ml=5.0, seconds=12.0, **nothing),
        row("ensemble", 0, "n", fpv_ml=6.0, **nothing),
    ]
    scores = [{"case": name, "score": score, "seconds": 0.5} for name, score in (("p", 0.3), ("q", 0.29), ("n", 0.1))]
    kept, lost, caught = gated_rows(rows, scores, threshold=0.3, end="-gate")
    assert kept == replace(rows[0], variant="ensemble-gate", seconds=10.5)
    empty = {"dice": 0.0, "fpv_ml": 0.0, "fnv_ml": 9.0, "pred_ml": 0.0, "pred_tlg_g": 0.0, "seconds": 0.5}
    assert lost == replace(rows[1], variant="ensemble-gate", **empty)
    assert (caught.fpv_ml, caught.pred_ml, caught.seconds) == (0.0, 0.0, 0.5)
    assert math.isnan(caught.dice)
    assert math.isnan(caught.fnv_ml)


def example_findings() -> Findings:
    """Two seeds, two positive and two negative test cases each, made up; a positive of seed 1 is lost at the gate."""
    rows, facts = [], {}
    curve = np.where(np.arange(199) < 80, 0.6, 0.4)  # 0.6 up to the threshold 0.4
    for seed in (0, 1):
        for loss, dice, fpv in zip(LOSSES, (0.5, 0.6, 0.5, 0.4), (1.0, 9.0, 1.0 - seed, 2.0), strict=True):
            for end in ("", "-tuned"):
                rows += [row(loss + end, seed, patient, dice=dice, fpv_ml=3.0) for patient in "pq"]
                none = {"positive": 0, "dice": math.nan, "fnv_ml": math.nan}
                rows += [row(loss + end, seed, patient, fpv_ml=fpv, **none) for patient in "mn"]
            curves = {"p": list(curve), "q": list(curve)}
            training = {"topk_auroc": 0.9, "seconds": 60.0, "kept_cycle": 1}
            facts[Cell(loss, seed)] = {"training": training, "trained_on": 6, "threshold": 0.2, "held_curves": curves}
        facts[Cell("ce", seed)] |= {"validation_curves": curves}
        facts[Cell("ensemble", seed)] = {"held_curves": curves, "test_curves": curves, "threshold": 0.2}
        ensemble = [row("ensemble-tuned", seed, name, dice=0.6, fpv_ml=2.0, seconds=4.0) for name in "pq"]
        ensemble += [row("ensemble-tuned", seed, name, fpv_ml=2.0, seconds=4.0, **none) for name in "mn"]
        numbers = {"p": 0.9, "q": 0.5 - 0.3 * seed, "m": 0.1, "n": 0.45}
        scores = [
            {"case": case + part, "tracer": "FDG", "positive": int(case in "pq"), "part": part, "seconds": 1.0}
            | {"score": score if part == "test" or case != "q" else 0.5, "x": score, "y": score, "z": 1 - score}
            for part in ("val", "test")
            for case, score in numbers.items()
        ]
        mine = [score | {"case": score["case"][0]} for score in scores if score["part"] == "test"]
        rows += [*ensemble, *gated_rows(ensemble, mine, threshold=0.5, end="-gate")]
        rows += gated_rows(ensemble, mine, threshold=0.4, end="-gate-margin")
        gate = {"highest": 0.5, "threshold": 0.4, "margin": 0.2}
        trained = {axis: [{"auroc": 0.5}, {"auroc": None if axis == "z" else 1.0}] for axis in PROJECTIONS}
        facts[Cell("gate", seed)] = {"classifiers": trained, "scores": scores, "gate": gate}
    return Findings(tuple(rows), facts)


def test_tables_of_made_up_findings_are_those_counted_by_hand() -> None:
    findings = example_findings()
    first, _, second, _ = gate_table(findings)
    assert (first["test_negatives_caught"], first["test_positives_caught"]) == (2, 0)
    assert (second["test_negatives_caught"], second["test_positives_caught"]) == (2, 1)  # q of seed 1: 0.2 < 0.5
    assert (second["held_negatives_caught"], second["held_positives_caught"]) == (2, 0)
    assert (first["seconds_negatives_without"], first["seconds_negatives_with"]) == (4.0, 1.0)
    assert (first["seconds_positives_with"], second["seconds_positives_with"]) == (5.0, 3.0)
    assert first["time_saved_negatives"] == 0.75
    assert (second["dice_positives_without"], second["dice_positives_with"]) == (0.6, 0.3)
    margins = gate_table(findings)[1::2]
    assert [record["test_negatives_caught"] for record in margins] == [1, 1]  # n has 0.45
    assert [record["time_saved_negatives"] for record in margins] == [1 - 3.0 / 4.0] * 2
    unseen = {r["projection"]: r["auroc"] for r in projections_table(findings) if r["seed"] and r["fold"] != 0}
    # seed 1: positives 0.9 and 0.2 twice, negatives 0.1 and 0.45 twice: 3 of 4 pairs; along z the other way round
    assert (unseen["x"], unseen["z"]) == (0.75, 0.25)
    rules = {r["rule"]: r for r in thresholds_table(findings) if r["seed"] == 0}
    assert (rules["held"]["threshold"], rules["held"]["test_dice"]) == (
        0.2,
        pytest.approx(0.6),
    )  # middle of 0.005 ... 0.4
    assert (rules["half"]["threshold"], rules["half"]["test_dice"]) == (0.5, pytest.approx(0.4))
    assert rules["fold 0"]["half_of_dice"] == pytest.approx(0.3)


def test_sentences_count_seeds_and_the_report_holds_every_table() -> None:
    findings = example_findings()
    assert loss_sentences(findings)[0] == (
        "Threshold 0.5: `ce` has less FPV on negative scans than `dice` in 2 of 2 seeds, than `dice_ce` in 0 of 2 seeds"
        " and as much in 1, than `dice_focal` in 2 of 2 seeds."
    )
    assert (
        "than `dice` in 0 of 2 seeds, than `dice_ce` in 0 of 2 seeds and as much in 2, than"
        in (loss_sentences(findings)[1])
    )
    assert "probability of 0.5" in loss_sentences(findings)[-1]
    assert (
        projection_sentences(findings)[0]
        == "On validation scans X is above Z in 2 of 2 seeds (difference +0.250 ± 0.000)."
    )
    assert "4 of 4 negative test scans are caught" in gate_sentences(findings)[0]
    assert "1 of 4 positive test scans are lost; a negative scan takes 75% less time" in gate_sentences(findings)[0]
    text = report_text(findings, story())
    for words in ("| `dice` | 0.5 | 0.900 ± 0.000 | 9.0 ± 0.0 |", "| Z | 0.500 ± 0.000 |", "0.838 ± 0.019", "2 of 2"):
        assert words in text
    assert "| `dice` | 0.5 | +8.0 ± 0.0 (0/2) |" in text
    assert (
        "| best on the held-out positives (the paper's way) | 0.200, 0.200 | 0.600 ± 0.000 | +0.200 ± 0.000 (2/2) |"
        in text
    )
    assert [line[:14] for line in text.splitlines() if line.startswith(("| 0 | fold", "| 1 | fold"))] == [
        "| 0 | fold 0 |", "| 1 | fold 0 |"
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(BUDGETS))
@pytest.mark.parametrize("axis", PROJECTIONS)
def test_published_budgets_describe_classifiers_that_can_be_built(name: str, axis: str) -> None:
    settings = BUDGETS[name].training
    images = torch.zeros(1, 3, *projection_size(settings, axis))
    with torch.inference_mode():
        assert build_classifier(settings, axis).eval()(images).shape == (1,)


def story():
    from leaderboard.experiments.report import Story

    return Story("T", "Q?", "ce", "autopet experiment swinmip", "a machine", "2026-01-02", 3.0, swinmip.EXPLANATIONS)


def test_every_variant_of_the_results_is_explained() -> None:
    assert {r.variant for r in example_findings().rows} <= set(swinmip.EXPLANATIONS)
    assert f"{next(iter(LOSSES))}-tuned" in swinmip.EXPLANATIONS


def test_pictures_have_a_dot_for_every_seed(tmp_path: Path) -> None:
    from leaderboard.experiments.swinmip_pictures import write_pictures

    write_pictures(tmp_path, example_findings())
    dots = {path.stem: path.read_text().count('r="3"') for path in tmp_path.glob("*.svg")}
    assert dots == {"losses": 2 * 2 * 4 * 2, "projections": 2 * 3 * 2, "gate": 2 * 3 * 3, "thresholds": 0}
    assert (tmp_path / "thresholds.svg").read_text().count("<polyline") == 2


# --- the real thing --------------------------------------------------------------------------------------------------


def test_a_tiny_experiment_with_real_trainings_ends_with_a_report(
    cohort_folder: Path, organ_maps: Path, tmp_path: Path
) -> None:
    out = started(cohort_folder, tmp_path / "out")
    report = go(organ_maps, out).read_text()
    table = pd.read_csv(out / "results.csv")
    assert table.variant.nunique() == 12
    assert (table.groupby("variant").size() == 4).all()
    assert table.dice.notna().eq(table.positive == 1).all()
    assert (table.seconds > 0).all()
    weights = sorted(path.name for path in (out / "models/seed0").glob("*.safetensors"))
    assert weights == sorted(
        [*(f"{name}.safetensors" for name in (*LOSSES, "ce-fold1"))]
        + [f"classifier_{axis}_fold{fold}.safetensors" for axis in PROJECTIONS for fold in (0, 1)]
    )
    outcome = read_outcome(out / "cells/ensemble-seed0.json")
    assert outcome is not None
    assert all(len(curve) == 199 for curve in outcome.facts["test_curves"].values())
    assert all(0 <= score <= 1 for score in pd.read_csv(out / "scores.csv").score)
    # the score of the gate is the mean over its projections: the same networks, asked one by one, or all at once
    scores = pd.read_csv(out / "scores.csv")
    assert scores.part.value_counts().to_dict() == {"val": 8, "test": 8}
    assert sorted(scores.case[scores.seconds.notna()]) == sorted(table.case.unique())
    assert scores.score.to_numpy() == pytest.approx((scores.x + scores.y).to_numpy() / 2, abs=1e-6)
    for name in ("losses", "projections", "gate", "thresholds"):
        assert f"]({name}.svg)" in report
        assert (out / f"{name}.svg").is_file()
    assert not any((out / "work").rglob("*.pth"))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopet.commands.experiment import app

    taken = {}

    def fake(organ_maps, out, **options):
        taken.update(options, maps=organ_maps, out=out)
        return out / "report.md"

    monkeypatch.setattr(swinmip, "run_experiment", fake)
    words = ["experiment", "swinmip", "--organ-maps", "m", "--out", str(tmp_path / "o"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--budget", "full"])
    assert result.exit_code == 0, result.output
    assert taken["seeds"] == 3
    assert taken["budget"] is BUDGETS["full"]
    assert taken["command"].startswith("autopet experiment swinmip --organ-maps m --out")
    assert taken["command"].endswith("--seeds 3 --budget full --device cpu")
    assert "3 x 6 segmentations" in result.output
    assert CliRunner().invoke(app, [*words, "--budget", "huge"]).exit_code == 2
