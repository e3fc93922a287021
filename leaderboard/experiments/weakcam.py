"""How far do slice labels carry? Früh et al. (paper 002) with its baselines: masks from class activation maps.

One classifier of slices per seed gives all four kinds of maps, each with thresholds of its own; beside it a 2D U-Net on
full masks, global thresholds, and the same U-Net on the masks that the best maps give for the training patients. On
phantoms a seed decides the split, the first weights and the batches; on a cohort with a split of its own the last two.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from algorithms.weakcam.model import CAM_METHODS
from algorithms.weakcam.model import PRESETS as CLASSIFIERS
from algorithms.weakcam.search import READINGS
from autopet.progress import console
from baselines.unet2d.model import PRESETS as UNETS
from leaderboard.experiments.call import COHORT, Call, worded
from leaderboard.experiments.cohort import CohortSettings
from leaderboard.experiments.common import Cell, Outcome
from leaderboard.experiments.report import Story
from leaderboard.experiments.weakcam_cells import run_cell
from leaderboard.experiments.weakcam_report import write_report
from leaderboard.experiments.weakcam_setup import (
    PSEUDO,
    THRESHOLD,
    UNET,
    WEAKCAM,
    WORK,
    Budget,
    Experiment,
    Source,
    cells_of,
    cohort_digest,
    earlier,
    read_as,
    read_patients,
    refuse_shared_folders,
    thresholded,
)
from leaderboard.experiments.weakcam_tables import Findings

SMALL = Budget(
    cohort=CohortSettings(positive_fraction=3 / 4, pet_spacing_mm=6.0, ct_spacing_mm=6.0),  # the paper's: all
    test_fraction=1 / 3,
    classifier=replace(
        CLASSIFIERS["demo"],
        size=64,
        pixel_mm=6.0,
        widths=(8, 16, 32, 32, 32),
        pooled_blocks=(2, 4),  # 16 places of 24 mm along an edge; three poolings would leave 8 of 48 mm
        epochs=7,
        cam_batch=64,
    ),
    unet=replace(UNETS["demo"], size=64, pixel_mm=6.0, epochs=12),
    earlier_block=3,
)
FULL = Budget(
    cohort=CohortSettings(positive_fraction=3 / 4, pet_spacing_mm=4.0, ct_spacing_mm=3.0),
    test_fraction=1 / 3,
    classifier=replace(
        CLASSIFIERS["paper"],
        size=128,
        pixel_mm=4.0,
        widths=(32, 64, 128, 256, 256),
        batch_norm=True,  # in place of ImageNet's weights
        learning_rate=0.01,
        cam_batch=256,
    ),
    unet=replace(UNETS["paper"], size=128, pixel_mm=4.0, slice_mm=0.0, features=(32, 64, 128, 256, 512), epochs=100),
    earlier_block=4,
)
COHORT_SMALL = replace(
    SMALL,
    cohort=None,
    test_fraction=0.0,
    classifier=replace(SMALL.classifier, pixel_mm=4.0, epochs=30),
    unet=replace(SMALL.unet, pixel_mm=4.0),
)
COHORT_FULL = replace(
    FULL,
    cohort=None,
    test_fraction=0.0,
    classifier=replace(FULL.classifier, pixel_mm=2.0),
    unet=replace(FULL.unet, pixel_mm=2.0),
)
BUDGETS = {"small": SMALL, "full": FULL}  # of phantoms
COHORT_BUDGETS = {"small": COHORT_SMALL, "full": COHORT_FULL}  # of a cohort that is there: `--data`


def budget_for(source: Source, name: str) -> Budget:
    """The budget of a name, for phantoms or for a cohort."""
    return (BUDGETS if source.organ_maps else COHORT_BUDGETS)[name]


def run_experiment(
    source: Source, out: Path, *, seeds: int, budget: Budget, device: str, command: str, workers: int = 0
) -> Path:
    """Make or read the cohort, train and test every method with every seed, and write the tables and report.md.

    A second call with the same arguments goes on where an earlier one was killed: in the cohort, in a training (at its
    last checkpoint), in the labels, or with the test of a trained model; finished cells are left alone. It may ask for
    more seeds.

    Parameters
    ----------
    source : Source
        Organ maps to make phantoms around, or a converted cohort with its split.csv.
    out : Path
        Gets results.csv (one row per variant, seed and test case), summary.csv, report.md and its pictures.
    seeds : int
        Repetitions: seeds 0 to seeds - 1.
    budget : Budget
        See `budget_for`, or another; one for phantoms has a cohort, one for a cohort has none.
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
    call = Call("weakcam", out.resolve(), seeds, device, command, workers)
    if source.data and source.split:
        data = source.data.resolve()
        refuse_shared_folders(call.out, data)
        phantoms, parts = read_patients(data, source.split)
        with call.held(budget, patients=cohort_digest(phantoms, parts)):
            return _conduct(call, Experiment(call.out, data, budget, phantoms, device, parts))
    assert source.organ_maps
    assert budget.cohort
    with call.held(budget):
        phantoms = call.phantoms(source.organ_maps, budget.cohort, moved=False)
        return _conduct(call, Experiment(call.out, call.out / COHORT, budget, phantoms, device))


def _conduct(call: Call, experiment: Experiment) -> Path:
    needs = cells_of(call.seeds)
    outcomes = call.run(list(needs), partial(run_cell, experiment), needs=needs)
    shutil.rmtree(call.out / WORK, ignore_errors=True)
    findings, shown = Findings.of(outcomes), experiment.shown(outcomes[Cell(WEAKCAM, 0)].rows)
    return write_report(call.out, findings, _story(call, experiment, outcomes), shown=shown)


# --- words -----------------------------------------------------------------------------------------------------------

EXPLANATIONS = {
    UNET: "a U-Net on slices, trained on full masks",
    "scorecam": "Algorithm 1 with Score-CAM: the classifier's class activation map, then an SUV threshold inside",
    "cam": "the same with CAM",
    "gradcam++": "the same with Grad-CAM++",
    "gradcam": "the same with Grad-CAM, on the last block's maps",
    "global": "the paper's global threshold: no map, an SUV threshold in all slices that the classifier calls positive",
    PSEUDO: "the same U-Net, trained on the masks that the best CAM method predicts for the training patients",
    THRESHOLD: "an SUV threshold in the whole scan, without a classifier",
}
NOTES = (
    "One classifier per seed, trained on slice labels alone, serves all maps and the global threshold. Of the training "
    "patients it holds some out: they choose its epoch and, by their masks, t_m and q_m of every method, as in the "
    "paper; nothing was chosen on test cases.",
    "The best CAM method, whose masks the second U-Net learns, is the one with the highest mean Dice on the held-out "
    "patients of the classifier; these are among the patients that it labels.",
    "Both U-Nets have the same settings and the same training patients, and are the networks after the last epoch.",
)
SPLIT_NOTES = {
    True: "A seed decides the split of the patients, the first weights and the batches; all methods of a seed share "
    "its split. Absolute numbers therefore spread with the split, differences between methods of a seed less.",
    False: "All seeds train and test on the same patients: a seed decides the held-out patients, the first weights and "
    "the batches, and the spread over the seeds is that of the training, not of the patients.",
}


def explanations(budget: Budget) -> dict[str, str]:
    """What every variant is."""
    words = dict(EXPLANATIONS)
    if budget.earlier_block:
        words[earlier(budget.earlier_block)] = (
            f"Grad-CAM on the maps of block {budget.earlier_block} of {len(budget.classifier.widths)}"
        )
    return words | {
        read_as(method, READINGS[1]): f"`{method}` with q_m as a percentile of the region's SUVs"
        for method in thresholded(budget)
    }


def _story(call: Call, experiment: Experiment, outcomes: dict[Cell, Outcome]) -> Story:
    budget = experiment.budget
    train_s = {
        kind: [outcome.train_s for cell, outcome in outcomes.items() if cell.variant == kind]
        for kind in (WEAKCAM, UNET, PSEUDO)
    }
    longest = ", ".join(f"{kind} {min(known):.0f} to {max(known):.0f}" for kind, known in train_s.items())
    made: dict[str, Any] = {"patients": f"{len(experiment.phantoms)} cases with their split"}
    if budget.cohort:
        made = {
            **call.cohort_words(budget.cohort),
            "share of the patients in the test set": f"{budget.test_fraction:.3g}",
        }
    return call.story(
        outcomes,
        title="Lesions from slice labels: class activation maps and their baselines",
        question=_question(experiment),
        reference=UNET,
        explanations=explanations(budget),
        settings={
            **made,
            "classifier": worded(budget.classifier),
            "U-Net": worded(budget.unet),
            "seconds of the epochs": longest,
        },
        notes=(SPLIT_NOTES[budget.cohort is not None], *NOTES),
    )


def _question(experiment: Experiment) -> str:
    facts, names = experiment.budget.cohort, {phantom.case.patient_id for phantom in experiment.phantoms}
    who = f"{len(names)} patients"
    if facts:
        who = (
            f"{facts.patients} phantom patients around real organ maps (FDG and PSMA, "
            f"{1 - facts.positive_fraction:.0%} without lesions, voxels of {facts.pet_spacing_mm:g} mm)"
        )
    return (
        "Früh et al. (Weakly supervised segmentation of tumor lesions in PET-CT hybrid imaging, J. Med. Imaging 8(5), "
        "2021) train a classifier on slices with and without lesions, and make masks of its class activation maps: "
        f"worse than a U-Net on full masks, better than a threshold. Tried with small networks on {who}."
    )


def announce(budget: Budget, seeds: int) -> None:
    """One line before the work starts."""
    who = f"{budget.cohort.patients} phantom patients" if budget.cohort else "the patients of the cohort"
    console.print(
        f"{seeds} x a classifier of {budget.classifier.epochs} epochs with {len(CAM_METHODS)} kinds of maps, "
        f"{seeds} x 2 U-Nets of {budget.unet.epochs} epochs, {who}",
        highlight=False,
    )
