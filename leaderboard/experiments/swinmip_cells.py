"""The cells of swinmip's experiment: a segmentation, the test of an ensemble, the classifiers and their gate."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.swinmip.classifier import load_classifier, scan_score, train_classifier
from algorithms.swinmip.inference import Network, lesion_probability
from algorithms.swinmip.model import PROJECTIONS, classifier_file, load_segmenter
from algorithms.swinmip.segmenter import train_segmenter
from algorithms.swinmip.swin import Classifier
from autopet.cohort import Case, read_table
from autopet.folders import whole_file
from autopet.images import read_image
from autopet.progress import track
from autopet.thresholds import best_threshold, dice_curve, gate_threshold
from autopet.training import METRICS
from autopet.volume import Volume
from leaderboard.experiments.cohort import Phantom
from leaderboard.experiments.common import Cell, Outcome, Row, cell_file, read_outcome, score_prediction
from leaderboard.experiments.swinmip_setup import (
    ENSEMBLE,
    GATE,
    GATED,
    GATED_MARGIN,
    HALF,
    TUNED,
    Experiment,
    cached_cases,
    cached_volumes,
    first_scans,
    fold_variants,
    loss_and_fold,
    loss_variants,
    segmenter_name,
)

DIGITS = 5  # of Dice in kept curves


# --- cells -----------------------------------------------------------------------------------------------------------


def run_cell(experiment: Experiment, cell: Cell) -> Outcome:
    """One cell: a segmentation, an ensemble's test, or the classifiers and their gate."""
    if cell.variant == ENSEMBLE:
        return _ensemble(experiment, cell)
    return _gate(experiment, cell) if cell.variant == GATE else _segmentation(experiment, cell)


def _segmentation(experiment: Experiment, cell: Cell) -> Outcome:
    """Train a loss on a fold; test it when it is compared with other losses, validate it when it joins the ensemble."""
    loss, fold = loss_and_fold(cell.variant)
    training, validation = (
        [phantom for phantom in first_scans(phantoms) if phantom.positive]
        for phantoms in experiment.fold(cell.seed, fold, of=experiment.budget.training.folds)
    )
    trained = _trained_segmenter(experiment, cell, training, validation)
    started = time.monotonic()
    settings = experiment.settings(cell.seed, loss)
    networks = [load_segmenter(experiment.model(cell.seed, segmenter_name(cell.variant)), settings)]
    facts: dict[str, Any] = {"training": trained, "trained_on": len(training)}
    rows: list[Row] = []
    if cell.variant in fold_variants(experiment.budget.training.folds):
        facts["validation_curves"] = _curves(experiment, cell.seed, networks, validation)
    if cell.variant in loss_variants():
        rows, more = _test(experiment, cell, networks, networks)
        facts |= more
    return Outcome(tuple(rows), trained["seconds"], round(time.monotonic() - started, 2), facts)


def _trained_segmenter(
    experiment: Experiment, cell: Cell, training: Sequence[Phantom], validation: Sequence[Phantom]
) -> dict[str, Any]:
    loss, fold = loss_and_fold(cell.variant)
    weights, work = experiment.model(cell.seed, segmenter_name(cell.variant)), experiment.work(cell.seed, cell.variant)

    def train() -> dict[str, Any]:
        folders = cached_cases(experiment, cell.seed)
        return train_segmenter(
            [folders[phantom.case.name] for phantom in training],
            [folders[phantom.case.name] for phantom in validation],
            work,
            settings=experiment.settings(cell.seed, loss),
            device=experiment.device,
            fold=fold,
            out=weights,
        )

    return trained_once(weights, work, train)


def trained_once(weights: Path, work: Path, train: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a training said, kept beside its weights with the seconds of its epochs; a finished one is not redone."""
    record = weights.with_suffix(".json")
    if not (record.is_file() and weights.is_file()):
        weights.parent.mkdir(parents=True, exist_ok=True)
        found = dict(train())
        found["seconds"] = round(sum(float(row["seconds"]) for row in read_table(work / METRICS)), 2)
        with whole_file(record) as part:
            part.write_text(json.dumps(found) + "\n", encoding="utf-8")
        shutil.rmtree(work, ignore_errors=True)
    return json.loads(record.read_text(encoding="utf-8"))


def _ensemble(experiment: Experiment, cell: Cell) -> Outcome:
    """Test the mean of the cross-entropy folds. Every test scan loads the networks anew, as a container does."""
    started = time.monotonic()
    settings = experiment.settings(cell.seed)
    weights = [experiment.model(cell.seed, segmenter_name(variant)) for variant in fold_variants(settings.folds)]
    loaders = [partial(load_segmenter, path, settings) for path in weights]
    rows, facts = _test(experiment, cell, [load() for load in loaders], loaders)
    return Outcome(tuple(rows), 0.0, round(time.monotonic() - started, 2), facts)


def _test(
    experiment: Experiment, cell: Cell, held_networks: Sequence[Network], networks: Sequence[Network]
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of the test patients at 0.5 and at the threshold chosen on held-out positives; facts: curves, threshold."""
    held = [phantom for phantom in first_scans(experiment.part(cell.seed, "val")) if phantom.positive]
    held_curves = _curves(experiment, cell.seed, held_networks, held)
    threshold, _ = best_threshold(np.array(list(held_curves.values())))
    rows, test_curves = [], {}
    for phantom in track(first_scans(experiment.part(cell.seed, "test")), f"{cell.name}: test cases"):
        started = time.monotonic()
        found = _probability(experiment, cell.seed, networks, phantom.case)
        seconds = time.monotonic() - started
        for end, limit in (("", HALF), (TUNED, threshold)):
            mask = found.with_array((found.array >= limit).astype(np.uint8))
            rows.append(score_prediction(Cell(cell.variant + end, cell.seed), phantom, mask, seconds=seconds))
        if phantom.positive:
            test_curves[phantom.case.name] = _curve(phantom.case, found)
    rows.sort(key=lambda row: row.variant)  # stable: cases stay in their order
    return rows, {"threshold": threshold, "held_curves": held_curves, "test_curves": test_curves}


def _curves(
    experiment: Experiment, seed: int, networks: Sequence[Network], phantoms: Sequence[Phantom]
) -> dict[str, list[float]]:
    """Dice at every threshold of `autopet.thresholds.GRID`, by case."""
    return {
        phantom.case.name: _curve(phantom.case, _probability(experiment, seed, networks, phantom.case))
        for phantom in phantoms
    }


def _curve(case: Case, probability: Volume) -> list[float]:
    curve = dice_curve(read_image(case.mask).array != 0, probability.array)
    return [round(float(value), DIGITS) for value in curve]


def _probability(experiment: Experiment, seed: int, networks: Sequence[Network], case: Case) -> Volume:
    settings = experiment.settings(seed)
    return lesion_probability(
        networks,
        {"CT": read_image(case.ct), "PET": read_image(case.suv)},
        ranges=experiment.ranges(seed),
        settings=settings,
        spacing_mm=settings.spacing_mm,
        device=experiment.device,
    )


# --- the classifiers -------------------------------------------------------------------------------------------------


def _gate(experiment: Experiment, cell: Cell) -> Outcome:
    """Train the classifiers of all projections, choose the gate on held-out scans, and put it before the ensemble."""
    trained = {axis: _trained_classifiers(experiment, cell.seed, axis) for axis in PROJECTIONS}
    started = time.monotonic()
    scores = _all_scores(experiment, cell)
    held = [score for score in scores if score["part"] == "val"]
    gate = gate_threshold(
        [score["score"] for score in held if score["positive"]],
        [score["score"] for score in held if not score["positive"]],
        margin=experiment.budget.training.gate_margin,
    )
    ensemble = read_outcome(cell_file(experiment.out, Cell(ENSEMBLE, cell.seed)))
    assert ensemble is not None  # the cell needs it
    rows = [
        *gated_rows(ensemble.rows, scores, threshold=gate.highest, end=GATED),
        *gated_rows(ensemble.rows, scores, threshold=gate.threshold, end=GATED_MARGIN),
    ]
    facts = {"classifiers": trained, "scores": scores, "gate": asdict(gate)}
    train_s = sum(one["seconds"] for found in trained.values() for one in found)
    return Outcome(tuple(rows), round(train_s, 2), round(time.monotonic() - started, 2), facts)


def _trained_classifiers(experiment: Experiment, seed: int, axis: str) -> list[dict[str, Any]]:
    """What the trainings of a projection's folds said."""
    found = []
    for fold in range(experiment.budget.classifier_folds):
        name = classifier_file(axis, fold)
        weights, work = experiment.model(seed, name), experiment.work(seed, name)
        train = partial(_train_classifier, experiment, seed, axis, fold)
        found.append(trained_once(weights, work, train))
    return found


def _train_classifier(experiment: Experiment, seed: int, axis: str, fold: int) -> dict[str, Any]:
    volumes, name = cached_volumes(experiment, seed), classifier_file(axis, fold)
    training, validation = experiment.fold(seed, fold, of=experiment.budget.classifier_folds)

    def chosen(phantoms: Sequence[Phantom], *, positive: bool) -> list[Path]:
        return [volumes[phantom.case.name] for phantom in phantoms if phantom.positive == positive]

    return train_classifier(
        chosen(training, positive=True),
        chosen(training, positive=False),
        chosen(validation, positive=True),
        chosen(validation, positive=False),
        experiment.work(seed, name),
        axis=axis,
        settings=experiment.settings(seed),
        device=experiment.device,
        fold=fold,
        out=experiment.model(seed, name),
    )


def _all_scores(experiment: Experiment, cell: Cell) -> list[dict[str, Any]]:
    """Scores of all scans that no network was trained on."""
    networks = {axis: _networks(experiment, cell.seed, axis) for axis in PROJECTIONS}
    parts = {part: experiment.part(cell.seed, part) for part in ("val", "test")}
    _gate_score(experiment, cell.seed, parts["val"][0].case)  # what the first call sets up counts for no scan
    found = []
    for part, phantoms in parts.items():
        for phantom in track(phantoms, f"{cell.name}: scores of part {part}"):
            known = {"case": phantom.case.name, "tracer": phantom.case.tracer, "positive": int(phantom.positive)}
            timed = part == "test" and phantom.first
            found.append(known | {"part": part} | _scores(experiment, cell.seed, phantom.case, networks, timed=timed))
    return found


def _scores(
    experiment: Experiment, seed: int, case: Case, networks: Mapping[str, Sequence[Classifier]], *, timed: bool
) -> dict[str, Any]:
    """A scan's score by each projection and by the gate's; `timed`: with the seconds that the gate takes, else None.

    The gate's score is the mean over its projections, of which each has as many networks.
    """
    settings, suv = experiment.settings(seed), read_image(case.suv)
    ask = partial(scan_score, suv=suv, ranges=experiment.ranges(seed), settings=settings, device=experiment.device)
    alone = {axis: float(ask({axis: mine})) for axis, mine in networks.items()}
    score = {"score": float(np.mean([alone[axis] for axis in settings.cls_projections])), "seconds": None}
    if timed:
        score = _gate_score(experiment, seed, case)
    return score | alone


def _gate_score(experiment: Experiment, seed: int, case: Case) -> dict[str, Any]:
    """The gate's score as a container computes it, with its seconds: reading and loading of the networks included."""
    started, settings = time.monotonic(), experiment.settings(seed)
    classifiers = {axis: _networks(experiment, seed, axis) for axis in settings.cls_projections}
    suv, ranges = read_image(case.suv), experiment.ranges(seed)
    score = scan_score(classifiers, suv, ranges=ranges, settings=settings, device=experiment.device)
    return {"score": float(score), "seconds": round(time.monotonic() - started, 3)}


def _networks(experiment: Experiment, seed: int, axis: str) -> list[Classifier]:
    """The folds of a projection."""
    settings, folds = experiment.settings(seed), range(experiment.budget.classifier_folds)
    return [load_classifier(experiment.model(seed, classifier_file(axis, fold)), settings) for fold in folds]


def gated_rows(rows: Sequence[Row], scores: Sequence[Mapping[str, Any]], *, threshold: float, end: str) -> list[Row]:
    """The tuned ensemble's rows behind a gate: a scan whose score lies below the threshold has an empty mask.

    Its seconds are then the classifier's alone; those of the other scans are the classifier's and the ensemble's.
    """
    known = {score["case"]: score for score in scores}
    found = []
    for row in rows:
        if row.variant != ENSEMBLE + TUNED:
            continue
        score = known[row.case]
        behind = replace(row, variant=ENSEMBLE + end, seconds=round(row.seconds + score["seconds"], 3))
        if score["score"] < threshold:
            behind = replace(behind, fpv_ml=0.0, pred_ml=0.0, pred_tlg_g=0.0, seconds=score["seconds"])
            behind = replace(behind, dice=0.0, fnv_ml=row.gt_ml) if row.positive else behind
        found.append(behind)
    return found
