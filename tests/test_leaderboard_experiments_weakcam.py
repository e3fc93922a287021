"""weakcam's experiment: its numbers and sentences counted by hand, and real trainings that are killed and go on."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from experiment_cells import row
from organ_map_maker import write_maps
from scipy import stats
from typer.testing import CliRunner

from autopet.cohort import SPLIT, Case, read_cohort, write_table
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.slices import slice_labels
from autopet.sockets import CT, LESIONS, PET, Inputs

torch = pytest.importorskip("torch")

from algorithms.weakcam import predict as weakcam_predict  # noqa: E402
from algorithms.weakcam.model import CAM_METHODS, build_network  # noqa: E402
from algorithms.weakcam.slices import cache as cache_slices  # noqa: E402
from baselines.unet2d.model import build_network as build_unet  # noqa: E402
from leaderboard.experiments import weakcam, weakcam_cells  # noqa: E402
from leaderboard.experiments.call import Call  # noqa: E402
from leaderboard.experiments.cohort import CohortSettings, Phantom, read_phantoms, write_cohort  # noqa: E402
from leaderboard.experiments.common import COLUMNS, Cell, Outcome, read_outcome  # noqa: E402
from leaderboard.experiments.report import Story  # noqa: E402
from leaderboard.experiments.weakcam import run_experiment  # noqa: E402
from leaderboard.experiments.weakcam_cells import look, run_cell, search  # noqa: E402
from leaderboard.experiments.weakcam_pictures import methods_picture  # noqa: E402
from leaderboard.experiments.weakcam_report import report_text  # noqa: E402
from leaderboard.experiments.weakcam_sentences import (  # noqa: E402
    gradcam_sentences,
    order_sentences,
    pseudo_sentences,
    reading_sentences,
)
from leaderboard.experiments.weakcam_setup import Budget, Experiment, Source, cells_of, read_patients  # noqa: E402
from leaderboard.experiments.weakcam_tables import Findings, ranks, write_tables  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

COHORT = CohortSettings(patients=16, pet_spacing_mm=16.0, ct_spacing_mm=16.0)
MICRO = Budget(
    cohort=COHORT,
    test_fraction=0.5,
    classifier=replace(
        weakcam.SMALL.classifier,
        size=32,
        pixel_mm=14.0,
        widths=(4, 8),
        convolutions=(1, 1),
        pooled_blocks=(2,),
        epochs=2,
        class_threshold=0.0,  # every slice is positive: networks as small as this one call none so
    ),
    unet=replace(weakcam.SMALL.unet, size=32, pixel_mm=14.0, features=(4,) * 5, epochs=1, slices_per_epoch=32),
    earlier_block=1,
)
METHODS = ("unet2d", "scorecam", "cam", "gradcam++", "global", "gradcam")
READ_TWICE = ("scorecam", "cam", "gradcam++", "global", "gradcam", "gradcam-block1", "threshold")
VARIANTS = {*METHODS, "gradcam-block1", "unet2d_pseudo", "threshold", *(f"{name}-percentile" for name in READ_TWICE)}


# --- made-up numbers -------------------------------------------------------------------------------------------------

MEDIANS = {  # of seeds 0 and 1
    "unet2d": (0.7, 0.6),
    "scorecam": (0.5, 0.37),
    "cam": (0.4, 0.45),
    "gradcam++": (0.4, 0.2),
    "global": (0.3, 0.3),
    "gradcam": (0.4, 0.45),
    "gradcam-block4": (0.2, 0.5),
    "unet2d_pseudo": (0.45, 0.3),
    "scorecam-percentile": (0.6, 0.6),
    "cam-percentile": (0.3, 0.5),
    "gradcam-percentile": (0.1, 0.1),
}
TRUE_ML, ERROR_ML = (10.0, 20.0, 40.0), (1.0, -5.0, 9.0)


@cache
def made_up(seeds: int = 2) -> Findings:
    """Three cases with lesions, of Dice median - 0.2, median and median + 0.1, and one without, with 2 ml of FPV."""
    outcomes = {}
    for variant in reversed(MEDIANS):  # the tables' order is not that of the cells
        for seed in range(seeds):
            rows = []
            for index, (true_ml, error_ml) in enumerate(zip(TRUE_ML, ERROR_ML, strict=True)):
                dice = MEDIANS[variant][seed] + (-0.2, 0.0, 0.1)[index]
                values = {"gt_ml": true_ml, "pred_ml": true_ml + error_ml, "dice": dice}
                uptake = {"gt_tlg_g": 10 * true_ml, "pred_tlg_g": 10 * (true_ml + error_ml)}
                rows.append(row(variant, seed, f"p{index}", **values, **uptake))
            lost = {"dice": math.nan, "fnv_ml": math.nan, "fpv_ml": 2.0 + seed, "gt_ml": 0.0, "pred_ml": 2.0}
            rows.append(row(variant, seed, "n", positive=0, gt_tlg_g=0.0, pred_tlg_g=9.0, **lost))
            outcomes[Cell(variant, seed)] = Outcome(tuple(rows), 1.0, 2.0, labels_of(seed))
    for seed in range(seeds):  # the classifier's cell holds the rows of all maps; here they have cells of their own
        outcomes[Cell("weakcam", seed)] = Outcome((), 1.0, 2.0, facts_of(seed))
    return Findings.of(outcomes)


def facts_of(seed: int) -> dict:
    """Of the classifier. Thresholds of CAM and Grad-CAM are the same in seed 1."""
    values = {"fraction": {"t_m": 0.3, "q_m": 41.0 + seed}, "percentile": {"t_m": 0.5, "q_m": 20.0}}
    return {
        "slices": {"slices": 90, "positive": 9, "auroc": 0.9, "sensitivity": 0.75, "specificity": math.nan},
        "validation": {"auroc": None, "sensitivity": None, "specificity": None},
        "cam_gradcam": {"slices": 10 + seed, "largest_difference": (2e-7, 1e-7)[seed]},
        "thresholds": {"cam": values, "gradcam": values if seed else values | {"fraction": values["percentile"]}},
    }


def labels_of(seed: int) -> dict:
    """Of the pseudo-labels; nothing is marked in seed 1."""
    marked = {"marked": (4, 0)[seed], "marked_slices": (7, 0)[seed], "slices": 9}
    return {"labels_by": ("cam", "scorecam")[seed], "cases": 5, "dice": [0.2, 0.5, 0.3], **marked}


def test_ranks_leave_places_out_after_equals() -> None:
    findings = made_up()
    assert findings.variants == [
        "unet2d", "scorecam", "cam", "gradcam++", "global", "gradcam", "gradcam-block4", "unet2d_pseudo",
        "scorecam-percentile", "cam-percentile", "gradcam-percentile",
    ]  # fmt: skip
    assert ranks(findings, 0, METHODS) == {
        "unet2d": 1, "scorecam": 2, "cam": 3, "gradcam++": 3, "gradcam": 3, "global": 6
    }  # fmt: skip
    assert ranks(findings, 1, METHODS) == {
        "unet2d": 1, "cam": 2, "gradcam": 2, "scorecam": 4, "global": 5, "gradcam++": 6
    }  # fmt: skip


def test_a_sentence_for_every_rank_counts_seeds() -> None:
    said = order_sentences(made_up())
    assert len(said) == 8
    assert said[0] == (
        "Rank 1 in the paper: U-Net (0.72). Here `unet2d` has that rank in 2 of 2 seeds (ranks 1, 1), with a median "
        "Dice of 0.650 ± 0.071."
    )
    assert said[1] == (
        "Rank 2 in the paper: Score-CAM (0.47). Here `scorecam` has that rank in 1 of 2 seeds (ranks 2, 4), with a "
        "median Dice of 0.435 ± 0.092."
    )
    assert "Rank 6 in the paper: Grad-CAM (0.12). Here `gradcam` has that rank in 0 of 2 seeds (ranks 3, 2)" in said[5]
    # without Grad-CAM seed 0 has 0.7, 0.5, 0.4, 0.4, 0.3: not each above the next
    assert "came out in 0 of 2 seeds; without Grad-CAM, which cannot differ from CAM here, in 0." in said[6]
    assert "probability of 0.5" in said[7]
    assert "One seed says nothing" in order_sentences(made_up(seeds=1))[-1]


def test_the_whole_order_is_found_where_it_is() -> None:
    findings = made_up()
    rows = [replace(one, dice=one.dice - 0.05) if one.variant == "gradcam++" else one for one in findings.rows]
    said = order_sentences(Findings(tuple(rows), findings.facts))
    assert "came out in 0 of 2 seeds; without Grad-CAM, which cannot differ from CAM here, in 1." in said[6]
    rows = [replace(one, dice=one.dice - 0.3) if one.variant == "gradcam" else one for one in rows]
    assert "came out in 1 of 2 seeds; " in order_sentences(Findings(tuple(rows), findings.facts))[6]


def test_sentences_on_readings_gradcam_and_labels_are_counted_by_hand() -> None:
    findings = made_up()
    assert reading_sentences(findings) == [
        "The higher median Dice has `fraction` in every seed: `gradcam`; `percentile` in every seed: `scorecam`; "
        "neither: `cam`."
    ]
    equal, block = gradcam_sentences(findings)
    assert "is 2e-07 over the 21 test slices" in equal
    assert "the same thresholds in 1 of 2 seeds, and Dice of a test case differs by at most 0.0000." in equal
    # 0.2 - 0.4 and 0.5 - 0.45
    assert block == "`gradcam-block4` against `gradcam`: median Dice -0.075 ± 0.177, higher in 1 of 2 seeds."
    # 0.45 - 0.4 (cam) and 0.3 - 0.37 (scorecam); 0.45 - 0.7 and 0.3 - 0.6
    gained, lost, empty = pseudo_sentences(findings)
    assert gained.endswith("median Dice -0.010 ± 0.085, higher in 1 of 2 seeds.")
    assert lost == "`unet2d_pseudo` against `unet2d`: median Dice -0.275 ± 0.035, higher in 0 of 2 seeds."
    assert empty.startswith("In 1 of 2 seeds the labels mark no slice, or every slice")


def agreement(true: np.ndarray, found: np.ndarray) -> float:
    """ICC(A,1) from mean squares (McGraw and Wong 1996, table 4)."""
    table = np.stack([true, found], axis=1)
    n, k = table.shape
    rows, columns, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    between, raters = k * ((rows - mean) ** 2).sum() / (n - 1), n * ((columns - mean) ** 2).sum() / (k - 1)
    error = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((n - 1) * (k - 1))
    return (between - error) / (between + (k - 1) * error + k * (raters - error) / n)


def test_tables_of_made_up_findings_are_those_counted_by_hand(tmp_path: Path) -> None:
    findings = made_up()
    write_tables(tmp_path, findings)
    assert tuple(pd.read_csv(tmp_path / "results.csv").columns) == COLUMNS
    summary = pd.read_csv(tmp_path / "summary.csv").set_index(["variant", "seed"])
    assert len(summary) == 2 * len(MEDIANS)
    for (variant, seed), found in summary.iterrows():
        assert found.dice_median == pytest.approx(MEDIANS[variant][seed])
        assert found.dice_iqr == pytest.approx(0.15)  # from 0.1 below the median to 0.05 above
        assert (found.mtv_deviation_ml_median, found.mtv_deviation_ml_iqr) == (5, 4)  # of 1, 5, 9
        assert (found.tlg_deviation_g_median, found.tlg_deviation_g_iqr) == (50, 40)
        assert (found.positive_cases, found.negative_cases, found.fpv_ml_negatives_mean) == (3, 1, 2 + seed)
    true, guess = np.array(TRUE_ML), np.array(TRUE_ML) + ERROR_ML
    assert summary.icc_mtv.to_numpy() == pytest.approx(agreement(true, guess))
    assert summary.icc_tlg.to_numpy() == pytest.approx(agreement(true, guess))
    assert (summary.icc_mtv_low < summary.icc_mtv).all()


def test_the_report_has_ours_beside_the_papers() -> None:
    story = Story("T", "Q?", "unet2d", "autopet experiment weakcam", "m", "2026-01-02", 3.0, weakcam.EXPLANATIONS)
    text = report_text(made_up(), story)
    assert (
        "| `scorecam` | 0.435 ± 0.092 (0.150) | 0.47 (0.35) | 5.0 ± 0.0 (4.0) | 27 (48) | 50.0 ± 0.0 (40.0) | "
        "99 (285) | 2.5 ± 0.7 | 0.50 ± 0.00 |"
    ) in text
    assert "| `cam-percentile` | 0.400 ± 0.141 (0.150) |  | 5.0" in text
    assert "| `gradcam` | 6 | 0.12 | 0.425 ± 0.035 | 3 | 2 |" in text
    assert "| `scorecam` minus `cam` | +0.01 | +0.010 ± 0.127 | higher in 1 of 2 seeds |" in text
    assert "| 0 | 90 | 9 | 0.900 | 0.750 | – | – |" in text
    assert "| `cam` | 0.30 / 41.0 | 0.30 / 42.0 | 0.3 / 31 |" in text
    assert "| 0 | `cam` | 5 | 4 | 7 of 9 | 0.300 | 0.400 | 0.450 | 0.700 |" in text
    value = f"{agreement(np.array(TRUE_ML), np.array(TRUE_ML) + ERROR_ML):.2f} ["
    line = next(line for line in text.splitlines() if line.startswith("| `unet2d` | ") and "[" in line)
    assert line.count(f"| {value}") == 4
    assert "| 0.94 |" in line
    assert line.endswith("| 0.99 |")
    for sentence in (*order_sentences(made_up()), *pseudo_sentences(made_up())):
        assert f"- {sentence}" in text
    assert "](methods.svg)" in text
    assert "](overlay.png)" in text


def test_the_picture_has_a_dot_for_every_seed_and_every_published_number() -> None:
    svg = methods_picture(made_up())
    assert svg.count('r="3"') == len(MEDIANS) * 2 + len(METHODS)
    assert "unet2d_pseudo" in svg


# --- who is trained on what ------------------------------------------------------------------------------------------


def test_every_variant_is_explained() -> None:
    assert set(weakcam.explanations(MICRO)) == VARIANTS


def test_cells_come_after_what_they_need() -> None:
    needs = cells_of(3)
    assert len(needs) == 12
    assert list(needs)[:3] == [Cell("weakcam", seed) for seed in range(3)]
    assert {cell: needed for cell, needed in needs.items() if needed} == {
        Cell("unet2d_pseudo", seed): [Cell("weakcam", seed)] for seed in range(3)
    }


@pytest.mark.parametrize("budget", [*weakcam.BUDGETS.values(), *weakcam.COHORT_BUDGETS.values()])
def test_published_budgets_describe_networks_that_can_be_built(budget: Budget) -> None:
    with torch.device("meta"):
        for build, settings in ((build_network, budget.classifier), (build_unet, budget.unet)):
            said = build(settings)(torch.zeros(2, 2, settings.size, settings.size))
            assert said.shape[:2] == (2, 2)
    assert 0 < budget.earlier_block < len(budget.classifier.widths)


@pytest.mark.parametrize("name", list(weakcam.BUDGETS))
def test_phantom_budgets_divide_patients_with_lesions_and_without(name: str) -> None:
    budget = weakcam.BUDGETS[name]
    cases = [
        Case(f"p{n:02d}", f"p{n:02d}", Path("x"), ("FDG", "PSMA")[n % 2], "AB"[n // 2 % 2], int(n % 16 < 12))
        for n in range(budget.cohort.patients)
    ]
    phantoms = tuple(Phantom(case, bool(case.lesion_voxels), misaligned=False) for case in cases)
    experiment = Experiment(Path("x"), Path("y"), budget, phantoms, "cpu")
    tests = set()
    for seed in range(3):
        train, test = (experiment.part(seed, part) for part in ("train", "test"))
        assert {p.case.name for p in train} | {p.case.name for p in test} == {case.name for case in cases}
        assert len(train) + len(test) == len(cases)
        assert abs(sum(p.positive for p in test) - budget.cohort.positive_fraction * len(test)) <= 1
        assert len(test) == round(budget.test_fraction * len(cases))
        tests.add(frozenset(p.case.name for p in test))
        assert experiment.classifier(seed).seed == experiment.unet(seed).seed == seed
    assert len(tests) == 3


def test_the_case_of_the_picture_has_the_middle_dice_by_scorecam_of_those_with_lesions() -> None:
    dice = {"a": 0.9, "b": math.nan, "c": 0.2, "d": 0.5, "e": 0.7}
    phantoms = tuple(Phantom(Case(n, n, Path("x")), n != "b", False) for n in dice)
    like = row("scorecam", 0, "a", dice=0.0)
    rows = [replace(like, case=n, dice=d, positive=int(n != "b")) for n, d in dice.items()]
    rows += [replace(like, variant="cam", case=n, dice=1 - d) for n, d in dice.items() if n != "b"]
    assert Experiment(Path("x"), Path("y"), MICRO, phantoms, "cpu").shown(rows).name == "e"  # of .2, .5, .7, .9


def test_a_source_is_one_of_two() -> None:
    maps, data, split = Path("m"), Path("d"), Path("s")
    assert weakcam.budget_for(Source(maps), "small") is weakcam.SMALL
    assert weakcam.budget_for(Source(data=data, split=split), "full") is weakcam.COHORT_FULL
    for wrong, words in (
        ({}, "found neither"),
        ({"organ_maps": maps, "data": data, "split": split}, "found both"),
        ({"data": data}, "belong together"),
        ({"organ_maps": maps, "split": split}, "belong together"),
    ):
        with pytest.raises(AutopetError, match=words):
            Source(**wrong)
    with pytest.raises(AutopetError, match="at least 1 seed"):
        Call("weakcam", Path("x"), 0, "cpu", "")


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def organ_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_maps(tmp_path_factory.mktemp("maps"), each=8)


def go(source: Source, out: Path, **changes) -> Path:
    options = {"seeds": 1, "budget": MICRO, "device": "cpu", "command": "autopet ...", "workers": 1} | changes
    return run_experiment(source, out, **options)


@pytest.fixture(scope="module")
def experiment(one_thread: None, organ_maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole experiment with real trainings, killed at the third label, then at the training on the labels."""
    out = tmp_path_factory.mktemp("micro") / "out"
    write_cohort(out / "cohort", organ_maps=organ_maps, settings=COHORT, moved=False)
    calls: list[str] = []
    real_predict = weakcam_cells.weakcam.predict
    real_classifier, real_unet = weakcam_cells.train_classifier, weakcam_cells.train_unet

    def predict(model, inputs, deadline):
        calls.append("label")
        if calls.count("label") == 3:
            raise KeyboardInterrupt
        return real_predict(model, inputs, deadline)

    def train_classifier(cases, folder, **options):
        calls.append(folder.name)
        return real_classifier(cases, folder, **options)

    def train_unet(cases, folder, **options):
        calls.append(folder.name)
        if calls.count(folder.name) == 1 and "pseudo" in folder.name:
            raise KeyboardInterrupt
        return real_unet(cases, folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weakcam_cells.weakcam, "predict", predict)
        patch.setattr(weakcam_cells, "train_classifier", train_classifier)
        patch.setattr(weakcam_cells, "train_unet", train_unet)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                go(Source(organ_maps), out)
        go(Source(organ_maps), out)
    # 8 training cases: two labels before the kill, the third again, and none of them after the second kill
    pseudo = "unet2d_pseudo-seed0"
    assert calls == ["weakcam-seed0", *["label"] * 3, *["label"] * 6, pseudo, pseudo, "unet2d-seed0"]
    return out


def experiment_of(out: Path) -> Experiment:
    return Experiment(out, out / "cohort", MICRO, tuple(read_phantoms(out / "cohort")), "cpu")


def inputs_of(case: Case) -> Inputs:
    return Inputs({PET.slug: read_image(case.suv), CT.slug: read_image(case.ct)}, case.name)


def test_every_method_is_tested_on_the_same_patients(experiment: Path) -> None:
    table = pd.read_csv(experiment / "results.csv")
    assert table.groupby("variant").size().to_dict() == dict.fromkeys(VARIANTS, 8)
    assert table.dice.notna().eq(table.positive == 1).all()
    assert table.groupby("variant").positive.sum().eq(4).all()
    assert (table.seconds >= 0).all()
    assert (table.groupby("case").variant.nunique() == len(VARIANTS)).all()
    report = (experiment / "report.md").read_text()
    assert all(f"| `{variant}` |" in report for variant in VARIANTS)
    assert (experiment / "methods.svg").is_file()
    assert (experiment / "overlay.png").read_bytes().startswith(b"\x89PNG")


def test_volumes_and_uptake_of_every_row_are_those_of_its_mask(experiment: Path) -> None:
    table, cases = pd.read_csv(experiment / "results.csv"), {c.name: c for c in read_cohort(experiment / "cohort")}
    for line in table.itertuples():
        mask = read_image(experiment / "predictions" / f"{line.variant}-seed0" / f"{line.case}.nii.gz")
        suv, truth = read_image(cases[line.case].suv).array, read_image(cases[line.case].mask).array != 0
        ml = 16**3 / 1000
        assert line.pred_ml == pytest.approx(np.count_nonzero(mask.array) * ml)
        assert line.pred_tlg_g == pytest.approx(suv[mask.array != 0].sum(dtype=float) * ml)
        assert line.gt_tlg_g == pytest.approx(suv[truth].sum(dtype=float) * ml)


def test_masks_are_those_that_the_container_gives_with_the_same_options(experiment: Path) -> None:
    model = weakcam_predict.load(experiment / "models/weakcam-seed0", "cpu")
    case = experiment_of(experiment).part(0, "test")[0].case
    masks = []
    for method in (*CAM_METHODS, "global"):
        for reading, end in (("fraction", ""), ("percentile", "-percentile")):
            asked = model.with_options(cam=method, reading=reading)
            wanted = weakcam_predict.predict(asked, inputs_of(case), Deadline())[LESIONS.slug].array
            found = read_image(experiment / "predictions" / f"{method}{end}-seed0" / f"{case.name}.nii.gz").array
            assert np.array_equal(found, wanted), (method, reading)
            masks.append(found.tobytes())
    assert len(set(masks)) > 4


def test_thresholds_of_one_method_are_those_of_the_training(experiment: Path, tmp_path: Path) -> None:
    folder = experiment / "models/weakcam-seed0"
    model, config = weakcam_predict.load(folder, "cpu"), json.loads((folder / "config.json").read_text())
    held = [case for case in read_cohort(experiment / "cohort") if case.name in config["validation_cases"]]
    folders = cache_slices(held, tmp_path / "held", model.settings)
    for method in ("gradcam++", "cam"):
        found = search(model, method, folders)
        for reading, choice in found.items():
            wanted = config["thresholds"][method][reading]
            assert (choice.t_m, choice.q_m) == (wanted["t_m"], wanted["q_m"])
            assert choice.dice == pytest.approx(wanted["dice"])
    outcome = read_outcome(experiment / "cells/weakcam-seed0.json")
    assert outcome is not None
    block = replace(model, settings=replace(model.settings, cam_block=1))
    chosen = search(block, "gradcam", folders)
    assert outcome.facts["thresholds"]["gradcam-block1"] == {
        reading: {"t_m": choice.t_m, "q_m": choice.q_m} for reading, choice in chosen.items()
    }


def test_facts_of_the_classifier_are_those_of_its_slices(experiment: Path) -> None:
    outcome = read_outcome(experiment / "cells/weakcam-seed0.json")
    assert outcome is not None
    model = weakcam_predict.load(experiment / "models/weakcam-seed0", "cpu")
    said, true = [], []
    for phantom in experiment_of(experiment).part(0, "test"):
        seen = look(model, inputs_of(phantom.case))
        said.append(seen.probability)
        true.append(slice_labels(read_image(phantom.case.mask), seen.grid))
    probability, labels = np.concatenate(said), np.concatenate(true)
    wins = stats.mannwhitneyu(probability[labels], probability[~labels]).statistic
    facts = outcome.facts["slices"]
    assert facts["auroc"] == pytest.approx(wins / (labels.sum() * (~labels).sum()))
    assert (facts["slices"], facts["positive"]) == (len(labels), labels.sum())
    assert (facts["sensitivity"], facts["specificity"]) == (1, 0)  # class_threshold is 0
    assert outcome.facts["cam_gradcam"]["slices"] == len(labels)
    assert outcome.facts["cam_gradcam"]["largest_difference"] < 1e-4


def test_a_difference_between_two_maps_is_found(experiment: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(experiment / "models/weakcam-seed0", tmp_path / "models/weakcam-seed0")
    real = weakcam_cells.slice_maps

    def changed(network, images, *, method, settings, device):
        maps = real(network, images, method=method, settings=settings, device=device)
        maps[:, 3, 5] = 0.25 if method == "gradcam" and not settings.cam_block else 0.5
        return maps

    monkeypatch.setattr(weakcam_cells, "slice_maps", changed)
    outcome = run_cell(replace(experiment_of(experiment), out=tmp_path), Cell("weakcam", 0))
    assert outcome.facts["cam_gradcam"] == {"slices": outcome.facts["slices"]["slices"], "largest_difference": 0.25}


def test_the_second_u_net_learns_what_the_best_maps_mark(experiment: Path) -> None:
    configs = [
        json.loads((experiment / f"models/{name}-seed0/config.json").read_text())
        for name in ("unet2d", "unet2d_pseudo")
    ]
    assert configs[0]["training_cases"] == configs[1]["training_cases"]
    assert configs[0]["settings"] == configs[1]["settings"]
    facts = read_outcome(experiment / "cells/unet2d_pseudo-seed0.json").facts
    classifier = json.loads((experiment / "models/weakcam-seed0/config.json").read_text())
    validated = {method: classifier["thresholds"][method]["fraction"]["dice"] for method in CAM_METHODS}
    assert validated[facts["labels_by"]] == max(validated.values())
    labels = {case.name: case for case in read_cohort(experiment / "labels/seed0/cohort")}
    assert facts["cases"] == len(labels) == 8
    model = weakcam_predict.load(experiment / "models/weakcam-seed0", "cpu").with_options(cam=facts["labels_by"])
    dice = []
    for case in experiment_of(experiment).training(0):
        found = read_image(labels[case.name].mask).array != 0
        wanted = weakcam_predict.predict(model, inputs_of(case), Deadline())[LESIONS.slug].array != 0
        assert np.array_equal(found, wanted)
        truth = read_image(case.mask).array != 0
        if truth.any():
            dice.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert facts["dice"] == pytest.approx(dice, abs=1e-5)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_finished_experiment_is_left_alone(experiment: Path, organ_maps: Path, monkeypatch) -> None:
    before = files_of(experiment)
    for name in ("train_classifier", "train_unet", "train_threshold", "look"):
        monkeypatch.setattr(weakcam_cells, name, pytest.fail)
    go(Source(organ_maps), experiment)
    after = files_of(experiment)
    assert {path for path in before if before[path] != after.get(path)} <= {"report.md"}
    assert set(after) == set(before)
    with pytest.raises(AutopetError, match="other settings"):
        go(Source(organ_maps), experiment, budget=replace(MICRO, earlier_block=0))


def test_cells_can_be_handed_to_processes(experiment: Path) -> None:
    work = partial(run_cell, experiment_of(experiment))
    assert pickle.loads(pickle.dumps(work)).args == work.args


# --- a real cohort ---------------------------------------------------------------------------------------------------


def write_split(folder: Path, cases: list[Case], **parts: str) -> Path:
    rows = [{"case": case.name, "part": parts.get(case.name, "train")} for case in cases]
    write_table(folder / SPLIT, rows, ["case", "part"])
    return folder / SPLIT


def test_a_cohort_with_its_split_gives_the_same_tables(cohort: list[Case], tmp_path: Path) -> None:
    data = cohort[0].folder.parent
    split = write_split(tmp_path, cohort, case00="test", case01="test", case03="test", case05="val")
    budget = replace(
        MICRO,
        cohort=None,
        classifier=replace(MICRO.classifier, pixel_mm=8.0, epochs=1),
        unet=replace(MICRO.unet, pixel_mm=8.0),
    )
    source, out = Source(data=data, split=split), tmp_path / "out"
    report = go(source, out, budget=budget, seeds=2).read_text()
    table = pd.read_csv(out / "results.csv")
    assert set(table.case) == {"case00", "case01", "case03"}
    assert table.groupby("variant").size().to_dict() == dict.fromkeys(VARIANTS, 2 * 3)
    assert "on 8 patients" in report
    assert "All seeds train and test on the same patients" in report
    for seed in (0, 1):
        config = json.loads((out / f"models/unet2d-seed{seed}/config.json").read_text())
        assert sorted(config["training_cases"]) == ["case02", "case04", "case05", "case06", "case07"]
        facts = read_outcome(out / f"cells/unet2d_pseudo-seed{seed}.json").facts
        mine = table[(table.variant == "unet2d_pseudo") & (table.seed == seed)]
        assert facts["slices"] == 5 * 40
        trained = facts["marked_slices"] < facts["slices"]
        assert (out / f"models/unet2d_pseudo-seed{seed}/config.json").is_file() == trained
        assert trained or (mine.pred_ml == 0).all()
    assert not (out / "cohort").exists()
    write_split(tmp_path, cohort, case00="test", case01="test", case03="test", case06="test")
    with pytest.raises(AutopetError, match="other settings"):
        go(source, out, budget=budget, seeds=2)


def test_splits_that_will_not_do_are_refused(cohort: list[Case], tmp_path: Path) -> None:
    data = cohort[0].folder.parent
    with pytest.raises(AutopetError, match="no case that is tested has a lesion"):
        read_patients(data, write_split(tmp_path, cohort, case03="test", case07="test"))
    with pytest.raises(AutopetError, match=r"does not name case07 \(1 such\)"):
        read_patients(data, write_split(tmp_path, cohort[:-1], case00="test"))
    with pytest.raises(AutopetError, match=r"the part 'Test' \(case01\), expected train, val or test"):
        read_patients(data, write_split(tmp_path, cohort, case00="test", case01="Test"))
    with pytest.raises(AutopetError, match="expected the columns case and part"):
        read_patients(data, data / "prep.csv")
    with pytest.raises(AutopetError, match="lie in each other"):
        go(Source(data=data, split=write_split(tmp_path, cohort, case00="test")), data / "out")
    assert not (data / "out").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopet.commands.experiment import app

    taken = {}

    def fake(source, out, **options):
        taken.update(options, source=source, out=out)
        return out / "report.md"

    monkeypatch.setattr(weakcam, "run_experiment", fake)
    words = ["experiment", "weakcam", "--out", str(tmp_path / "o"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--organ-maps", "m", "--seeds", "2"])
    assert result.exit_code == 0, result.output
    assert taken["source"] == Source(Path("m"))
    assert taken["budget"] is weakcam.SMALL
    assert taken["command"].startswith("autopet experiment weakcam --organ-maps m --out")
    assert taken["command"].endswith("--seeds 2 --budget small --device cpu")
    assert "48 phantom patients" in " ".join(result.output.split())
    result = CliRunner().invoke(app, [*words, "--data", "d", "--split", "s", "--budget", "full"])
    assert result.exit_code == 0, result.output
    assert taken["source"] == Source(data=Path("d"), split=Path("s"))
    assert taken["budget"] is weakcam.COHORT_FULL
    assert " --data d --split s --out " in taken["command"]
    wrong = CliRunner().invoke(app, [*words, "--data", "d"])
    assert isinstance(wrong.exception, AutopetError)
    assert CliRunner().invoke(app, [*words, "--organ-maps", "m", "--budget", "huge"]).exit_code == 2
