"""Do LesionTracer's ideas work? Its trainer with and without organ supervision and misalignment augmentation.

Four variants with equal budgets are trained on phantoms around real organ maps and tested on other patients, once with
the CT in place and once with it moved. A seed decides the split, the first weights and the patches.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from algorithms.lesiontracer import predict as lesiontracer
from algorithms.lesiontracer.model import PRESETS, Settings
from algorithms.lesiontracer.train import prepared, train
from autopet.checkpoint import CONFIG
from autopet.cohort import Case, read_table
from autopet.deadline import Deadline
from autopet.images import read_image, write_image
from autopet.nnunet.workspace import Workspace, claim_workspace
from autopet.progress import console, track
from autopet.sockets import CT, LESIONS, PET, Inputs
from autopet.splitting import split_patients
from autopet.volume import Volume
from leaderboard.experiments.call import Call, worded
from leaderboard.experiments.cohort import CohortSettings, Phantom
from leaderboard.experiments.common import RESULTS, Cell, Outcome, Row, read_results, score_prediction
from leaderboard.experiments.report import Story, write_report

REFERENCE = "nnunet"
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {"misalignment": False, "organs": False},
    "misalignment": {"misalignment": True, "organs": False},
    "organs": {"misalignment": False, "organs": True},
    "both": {"misalignment": True, "organs": True},
}
EXPLANATIONS = {
    REFERENCE: "LesionTracer's trainer with both ideas off: nnU-Net with a residual encoder, Dice without smoothing",
    "misalignment": "the CT is rotated and shifted in a part of the training patches",
    "organs": "a second head learns ten organs from the organ maps",
    "both": "both of them",
}
SHARED, WORK, MODELS, MASKS = "preprocessed", "work", "models", "predictions"


@dataclass(frozen=True)
class Budget:
    """Size of the experiment; every variant gets the same."""

    cohort: CohortSettings
    test_fraction: float
    training: Settings  # the ideas' two switches and the seed are set per cell


SMALL = Budget(
    cohort=CohortSettings(),
    test_fraction=1 / 4,
    training=replace(
        PRESETS["demo"],
        epochs=8,
        iterations_per_epoch=50,
        validation_iterations=1,
        learning_rate=4e-3,
        patch=(40, 40, 40),
        foreground_share=1.0,  # of the patches, in patients with lesions; the others give patches of anywhere
        checkpoint_every=2,
        workers=1,
    ),
)
FULL = Budget(
    cohort=CohortSettings(pet_spacing_mm=4.0, ct_spacing_mm=3.0),
    test_fraction=1 / 3,
    training=replace(
        PRESETS["paper"],
        epochs=100,
        learning_rate=1e-2,
        folds=("all",),
        spacing=(),
        patch=(96, 80, 96),
        features=(32, 64, 128, 256, 320),
        blocks=(1, 3, 4, 6, 6),
        validation_iterations=1,
        mirroring=False,
    ),
)
MEDIUM = replace(SMALL, training=replace(SMALL.training, epochs=32))  # four times as long: organs are learnt by then
BUDGETS = {"small": SMALL, "medium": MEDIUM, "full": FULL}


@dataclass(frozen=True)
class Experiment:
    """Where the experiment happens, and how."""

    out: Path
    budget: Budget
    phantoms: tuple[Phantom, ...]
    device: str

    def part(self, seed: int, part: str) -> list[Phantom]:
        """Training patients with the CT in place, or test patients with the CT in place and moved."""
        fixed = [phantom.case for phantom in self.phantoms if not phantom.misaligned]
        parts = split_patients(fixed, test_fraction=self.budget.test_fraction, seed=seed)
        patients = {case.patient_id for case in fixed if parts[case.name] == part}
        chosen = [phantom for phantom in self.phantoms if phantom.case.patient_id in patients]
        return [phantom for phantom in chosen if part == "test" or not phantom.misaligned]

    def settings(self, cell: Cell) -> Settings:
        """The training's settings of one cell."""
        return replace(self.budget.training, **VARIANTS[cell.variant], seed=cell.seed)


def run_experiment(
    organ_maps: Path, out: Path, *, seeds: int, budget: Budget, device: str, command: str, workers: int = 0
) -> Path:
    """Make the cohort, train and test every variant with every seed, and write results.csv and report.md.

    A second call with the same arguments goes on where an earlier one was killed: in the cohort, in a training (at its
    last checkpoint), or with the test of a trained network; finished cells are left alone. It may ask for more seeds.

    Parameters
    ----------
    organ_maps : Path
        Folder of real organ maps (.nii.gz).
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
    call = Call("lesiontracer", out.resolve(), seeds, device, command, workers)
    with call.held(budget):
        phantoms = call.phantoms(organ_maps, budget.cohort, moved=True)
        experiment = Experiment(call.out, budget, phantoms, device)
        cells = [Cell(variant, seed) for seed in range(seeds) for variant in VARIANTS]
        for seed in sorted({cell.seed for cell in cells if not (call.out / MODELS / cell.name / CONFIG).is_file()}):
            _preprocessed(experiment, seed)
        outcomes = call.run(cells, partial(_run_cell, experiment))
        shutil.rmtree(call.out / SHARED, ignore_errors=True)
        return write_report(call.out, read_results(call.out / RESULTS), _story(call, experiment, outcomes))


# --- one cell --------------------------------------------------------------------------------------------------------


def _run_cell(experiment: Experiment, cell: Cell) -> Outcome:
    """Train a variant with a seed, predict the test cases and score them."""
    model = experiment.out / MODELS / cell.name
    if not (model / CONFIG).is_file():
        cases = [phantom.case for phantom in experiment.part(cell.seed, "train")]
        settings, work = experiment.settings(cell), experiment.out / WORK / cell.name
        _take_preprocessed(_preprocessed(experiment, cell.seed), work, cases, settings)
        train(cases, model, settings=settings, work=work, device=experiment.device)
    started = time.monotonic()
    rows = _test(experiment, cell, model)
    return Outcome(tuple(rows), _train_s(model), round(time.monotonic() - started, 2))


def _preprocessed(experiment: Experiment, seed: int) -> Workspace:
    """The preprocessed training cases of a seed, which its variants share.

    They hold organ labels; a network without an organ head does not look at them.
    """
    cases = [phantom.case for phantom in experiment.part(seed, "train")]
    folder = experiment.out / SHARED / f"seed{seed}"
    if Workspace(folder).done("preprocess").is_file():
        return Workspace(folder)
    return prepared(cases, experiment.settings(Cell("both", seed)), folder, first=True)


def _take_preprocessed(shared: Workspace, work: Path, cases: Sequence[Case], settings: Settings) -> None:
    """Link preprocessed cases into the work folder of a training, unless it has them from an earlier call."""
    if Workspace(work).done("preprocess").is_file():
        return
    shutil.rmtree(work, ignore_errors=True)
    space = claim_workspace(work, cases, settings)
    space.preprocessed.parent.mkdir()
    shutil.copytree(shared.preprocessed, space.preprocessed, copy_function=os.link)
    space.done("preprocess").touch()


def _train_s(model: Path) -> float:
    """Seconds of all epochs, also of those before a kill: they stand in the model folder."""
    tables = sorted(model.glob("fold_*.csv"))
    return round(sum(float(row["seconds"]) for table in tables for row in read_table(table)), 1)


def _test(experiment: Experiment, cell: Cell, model_dir: Path) -> list[Row]:
    model, rows = lesiontracer.load(model_dir, experiment.device), []
    test = experiment.part(cell.seed, "test")
    for phantom in track(test, f"{cell.name}: test cases"):
        path = experiment.out / MASKS / cell.name / f"{phantom.case.name}.nii.gz"
        started = time.monotonic()
        mask = _predict(model, phantom.case)
        rows.append(score_prediction(cell, phantom, mask, seconds=time.monotonic() - started))
        write_image(path, mask)
    return rows


def _predict(model: Any, case: Case) -> Volume:
    inputs = Inputs({PET.slug: read_image(case.suv), CT.slug: read_image(case.ct)}, case.name)
    return lesiontracer.predict(model, inputs, Deadline())[LESIONS.slug]


# --- words -----------------------------------------------------------------------------------------------------------


def _story(call: Call, experiment: Experiment, outcomes: dict[Cell, Outcome]) -> Story:
    budget, train_s = experiment.budget, [outcome.train_s for outcome in outcomes.values()]
    return call.story(
        outcomes,
        title="LesionTracer's ideas on phantoms",
        question=_question(experiment),
        reference=REFERENCE,
        explanations=EXPLANATIONS,
        settings={
            **call.cohort_words(budget.cohort),
            "share of the patients in the test set": f"{budget.test_fraction:.3g}",
            "training": worded(budget.training),
            "seconds per training, shortest and longest": f"{min(train_s):.0f} and {max(train_s):.0f}",
        },
        notes=NOTES,
    )


NOTES = (
    "A seed decides the split of the patients, the first weights and the patches; all variants of a seed share its "
    "split. Absolute numbers therefore spread with the split, differences between variants of a seed do not.",
    "Training patients have their CT in place. Test patients are tested twice: with the CT in place, and with the CT "
    "rotated about the middle of the image and shifted by an amount that was drawn once per patient.",
    "Nothing was selected on test cases: every variant is the network after the last iteration.",
)


def _question(experiment: Experiment) -> str:
    facts = experiment.budget.cohort
    shift = ", ".join(f"{voxels * facts.pet_spacing_mm:g}" for voxels in facts.largest_shift_voxels)
    return (
        "Two ideas of LesionTracer (autoPET III), each alone and both together, against the same training without "
        f"them, on {facts.patients} phantom patients around real organ maps (FDG and PSMA, half of them without "
        f"lesions, voxels of {facts.pet_spacing_mm:g} mm). In misaligned test cases the CT is rotated by up to "
        f"{facts.largest_degrees:g} degrees about each axis and shifted by up to ({shift}) mm along x, y, z."
    )


def announce(budget: Budget, seeds: int) -> None:
    """One line before the work starts."""
    trainings, steps = len(VARIANTS) * seeds, budget.training.epochs * budget.training.iterations_per_epoch
    console.print(f"{trainings} trainings of {steps} iterations, {budget.cohort.patients} patients", highlight=False)
