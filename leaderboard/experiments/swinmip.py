"""Do the ideas of Galdran's solution (paper 004) hold on phantoms? Four questions, asked with the method's own modules.

(a) cross-entropy against Dice losses, trained on positive scans only (section 4.1), (b) projections along X, Y and Z
(table 2), (c) the gate (section 7), (d) the threshold of an ensemble (sections 5 and 6). A seed decides the split, the
first weights and the patches.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from algorithms.swinmip.model import PRESETS
from autopet.progress import console
from leaderboard.experiments.call import Call, worded
from leaderboard.experiments.cohort import RepeatedSettings, scans_of
from leaderboard.experiments.common import Cell, Outcome, cell_file
from leaderboard.experiments.report import Story
from leaderboard.experiments.swinmip_cells import run_cell
from leaderboard.experiments.swinmip_report import write_report
from leaderboard.experiments.swinmip_setup import (
    ENSEMBLE,
    GATE,
    SHARED,
    TUNED,
    Budget,
    Experiment,
    fold_variants,
    loss_variants,
    prepare_seed,
)
from leaderboard.experiments.swinmip_tables import Findings

SMALL = Budget(
    cohort=RepeatedSettings(seed=2025, pet_spacing_mm=10.0, ct_spacing_mm=10.0, scans_per_patient=16),
    held_fraction=1 / 4,
    test_fraction=1 / 4,
    classifier_folds=2,
    training=replace(
        PRESETS["demo"],
        folds=2,
        spacing_mm=(10.0, 10.0, 10.0),
        patch=(32, 32, 64),  # the bottom of the network is then 1 x 1 x 2: it cannot normalise a single voxel
        window=4,  # divides the grids of this patch; 7 pads the first one to 2.3 times its voxels
        patches_per_volume=4,
        batch=2,  # a batch of one costs twice as much per patch on a CPU
        learning_rate=1.5e-2,
        cycles=3,
        epochs_per_cycle=4,
        cls_spacing_mm=(10.0, 10.0, 10.0),
        cls_augmentation_probability=0.2,
        cls_cycles=2,
        cls_epochs_per_cycle=5,
    ),
)
FULL = Budget(
    cohort=RepeatedSettings(pet_spacing_mm=4.0, ct_spacing_mm=4.0, scans_per_patient=8, map_spacing_mm=4.0),
    held_fraction=1 / 4,
    test_fraction=1 / 4,
    classifier_folds=5,
    training=replace(
        PRESETS["paper"],
        folds=3,
        spacing_mm=(4.0, 4.0, 4.0),
        cycles=20,
        cls_spacing_mm=(4.0, 4.0, 4.0),
        cls_size=(112, 224),
        cls_window=7,
        cls_depths=(2, 2, 6),
        cls_heads=(3, 6, 12),
        cls_start_deviation=0.0,  # no ImageNet weights here
        cls_cycles=10,
        cls_epochs_per_cycle=5,
    ),
)
BUDGETS = {"small": SMALL, "full": FULL}


def run_experiment(
    organ_maps: Path, out: Path, *, seeds: int, budget: Budget, device: str, command: str, workers: int = 0
) -> Path:
    """Make the cohort, train and test all that the four questions need, and write the tables and report.md.

    A second call with the same arguments goes on where an earlier one was killed: in the cohort, in a training (at its
    last checkpoint), or with the test of trained networks; finished cells are left alone. It may ask for more seeds.

    Parameters
    ----------
    organ_maps : Path
        Folder of real organ maps (.nii.gz).
    out : Path
        Gets results.csv (one row per variant, seed and test case), losses.csv, projections.csv, scores.csv, gate.csv,
        thresholds.csv, report.md and its pictures.
    seeds : int
        Repetitions: seeds 0 to seeds - 1.
    budget : Budget
        One of `BUDGETS`, or another.
    device : str
        `cpu` or `cuda`.
    command : str
        For the report.
    workers : int
        Phantoms and cells that are worked on side by side; 0: as many as the machine is made for.

    Returns
    -------
    Path
        The report.
    """
    call = Call("swinmip", out.resolve(), seeds, device, command, workers)
    with call.held(budget):
        phantoms = call.phantoms(organ_maps, budget.cohort, moved=False)
        experiment = Experiment(call.out, budget, phantoms, device)
        needs = {cell: needed for seed in range(seeds) for cell, needed in cells_of(budget, seed).items()}
        for seed in sorted({cell.seed for cell in needs if not cell_file(call.out, cell).is_file()}):
            prepare_seed(experiment, seed)
        outcomes = call.run(list(needs), partial(run_cell, experiment), needs=needs)
        shutil.rmtree(call.out / SHARED, ignore_errors=True)
        return write_report(call.out, Findings.of(outcomes), _story(call, budget, outcomes))


def cells_of(budget: Budget, seed: int) -> dict[Cell, list[Cell]]:
    """The cells of a seed in the order in which they begin, with what each needs.

    The ensemble and the gate come early, so that the last to run are trainings that wait for nothing.
    """
    folds = [Cell(variant, seed) for variant in fold_variants(budget.training.folds)]
    ensemble = Cell(ENSEMBLE, seed)
    losses = [Cell(variant, seed) for variant in loss_variants() if Cell(variant, seed) not in folds]
    return {
        **{cell: [] for cell in folds},
        ensemble: folds,
        Cell(GATE, seed): [ensemble],
        **{cell: [] for cell in losses},
    }


# --- words -----------------------------------------------------------------------------------------------------------


EXPLANATIONS = {
    "ce": "binary cross-entropy, as published; threshold 0.5",
    "dice": "Dice loss",
    "dice_ce": "Dice plus cross-entropy",
    "dice_focal": "Dice plus focal loss",
    "ensemble": "mean probability of the cross-entropy networks of all folds; threshold 0.5",
    "ensemble-gate": "ensemble-tuned behind the gate at the highest threshold that keeps all held-out positive scans",
    "ensemble-gate-margin": "the same, the gate's threshold lowered by the method's safety margin",
}
for _name in (*loss_variants(), ENSEMBLE):
    EXPLANATIONS[_name + TUNED] = (
        f"the probabilities of `{_name}` at the threshold of the best Dice on held-out positives"
    )
NOTES = (
    "A seed decides the split of the patients, the first weights and the patches; all variants of a seed share its "
    "split. Absolute numbers therefore spread with the split, differences between variants of a seed do not.",
    "Three parts by patient: training, held-out (thresholds are chosen there, and nowhere else) and test. "
    "A patient's scans share organs and build; uptake, lesions and noise are drawn anew. Segmentation is trained on "
    "positive scans alone, and has one scan of each patient; the classifiers have all scans of both kinds.",
    "The losses are compared on fold 0: same patients, same first weights, same patches, same number of steps. Of a "
    "training's cycles the one with the best top-k AUROC on the fold's validation scans is kept, as the paper does.",
    "Budgets were fixed on phantoms drawn with other seeds.",
)


def _story(call: Call, budget: Budget, outcomes: dict[Cell, Outcome]) -> Story:
    train_s = [outcome.train_s for cell, outcome in outcomes.items() if cell.variant in loss_variants()]
    shortest_s, longest_s = min(train_s), max(train_s)
    return call.story(
        outcomes,
        title="The ideas of Galdran's autoPET II solution on phantoms",
        question=_question(budget),
        reference="ce",
        explanations=EXPLANATIONS,
        settings={
            **call.cohort_words(budget.cohort),
            "shares of the patients held out and tested": f"{budget.held_fraction:.3g}, {budget.test_fraction:.3g}",
            "folds of the classifiers (those of the segmentation: see training)": str(budget.classifier_folds),
            "training": worded(budget.training),
            "seconds per training of a segmentation, shortest and longest": f"{shortest_s:.0f} and {longest_s:.0f}",
        },
        notes=NOTES,
    )


def _question(budget: Budget) -> str:
    facts = budget.cohort
    return (
        "Four claims of the paper (A. Galdran, Robust PET/CT Lesion Segmentation on Whole-Body Scans), each tried with "
        f"small networks on {facts.patients} phantom patients around real organ maps, {scans_of(facts)} scans of each "
        f"(FDG and PSMA, {1 - facts.positive_fraction:.0%} without lesions, voxels of {facts.pet_spacing_mm:g} mm)."
    )


def announce(budget: Budget, seeds: int) -> None:
    """One line before the work starts."""
    training = budget.training
    segmenters = len({*fold_variants(training.folds), *loss_variants()})
    console.print(
        f"{seeds} x {segmenters} segmentations of {training.cycles * training.epochs_per_cycle} epochs, "
        f"{seeds} x {3 * budget.classifier_folds} classifiers, {budget.cohort.patients} patients with "
        f"{scans_of(budget.cohort)} scans each",
        highlight=False,
    )
