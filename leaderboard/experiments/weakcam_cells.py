"""The cells of weakcam's experiment: the classifier with all its maps, two U-Nets, the threshold of whole scans."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.weakcam import predict as weakcam
from algorithms.weakcam.model import CAM_METHODS, METHOD
from algorithms.weakcam.search import GLOBAL, READINGS, Choice, Grid, choose, count_slice, dice_grid, lowest_suv
from algorithms.weakcam.slices import PET as PET_CHANNEL
from algorithms.weakcam.slices import auroc, cache, cut, probabilities
from algorithms.weakcam.thresholds import pick, slice_maps
from algorithms.weakcam.train import train as train_classifier
from autopet.checkpoint import CONFIG, read_config
from autopet.cohort import TABLE, Case, read_cohort, read_table
from autopet.deadline import Deadline
from autopet.images import read_image, write_image
from autopet.progress import track
from autopet.slices import read_slices, slice_labels
from autopet.sockets import CT, LESIONS, PET, Inputs
from autopet.training import METRICS
from autopet.views import patient_axes
from autopet.volume import Volume
from baselines.threshold import predict as threshold
from baselines.threshold.model import Settings as ThresholdSettings
from baselines.threshold.train import train as train_threshold
from baselines.unet2d import predict as unet2d
from baselines.unet2d.train import train as train_unet
from evaluation.metrics import score
from leaderboard.class_maps import write_class_maps
from leaderboard.experiments.cohort import Phantom
from leaderboard.experiments.common import Cell, Outcome, Row, score_prediction
from leaderboard.experiments.weakcam_setup import (
    GRADCAM,
    MAPPED,
    PSEUDO,
    THRESHOLD,
    WEAKCAM,
    Experiment,
    earlier,
    read_as,
)
from leaderboard.pseudolabels import write_pseudolabels

CAM = CAM_METHODS[0]  # what Grad-CAM must equal


def run_cell(experiment: Experiment, cell: Cell) -> Outcome:
    """One cell: a training, unless an earlier call finished it, and its test."""
    kinds = {WEAKCAM: _weakcam, PSEUDO: _pseudo, THRESHOLD: _threshold}
    return kinds.get(cell.variant, _unet)(experiment, cell)


def _trained_s(model: Path) -> float:
    """Seconds of all epochs, also of those before a kill: they stand in the model folder."""
    table = model / METRICS
    return round(sum(float(row["seconds"]) for row in read_table(table)), 1) if table.is_file() else 0.0


def _inputs(case: Case) -> Inputs:
    return Inputs({PET.slug: read_image(case.suv), CT.slug: read_image(case.ct)}, case.name)


def _scored(experiment: Experiment, cell: Cell, phantom: Phantom, mask: Volume, *, seconds: float) -> Row:
    """The row of a test case; its mask is kept."""
    write_image(experiment.masks(cell.variant, cell.seed) / f"{phantom.case.name}.nii.gz", mask)
    return score_prediction(cell, phantom, mask, seconds=seconds)


def _tested(experiment: Experiment, cell: Cell, predict: Callable[[Inputs], Volume]) -> list[Row]:
    """The test cases by one method."""
    rows = []
    for phantom in track(experiment.part(cell.seed, "test"), f"{cell.name}: test cases"):
        started = time.monotonic()
        mask = predict(_inputs(phantom.case))
        rows.append(_scored(experiment, cell, phantom, mask, seconds=time.monotonic() - started))
    return rows


# --- the classifier and its maps -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way from the classifier to masks: its name in the tables, the method, and the model with its thresholds."""

    name: str
    method: str
    model: weakcam.Model


@dataclass(frozen=True)
class Seen:
    """A case as the classifier sees it: slices in HU and SUV, their grid, and the probability of each."""

    images: np.ndarray
    grid: Volume
    probability: np.ndarray

    def positive(self, model: weakcam.Model) -> np.ndarray:
        """Places of the slices that the classifier calls positive."""
        return np.flatnonzero(self.probability >= model.class_threshold)


def look(model: weakcam.Model, inputs: Inputs) -> Seen:
    """Cut a case into slices and classify them, once for all methods."""
    images, grid = cut({"CT": inputs[CT.slug], "PET": inputs[PET.slug]}, model.settings)
    said = probabilities(model.network, images, settings=model.settings, device=model.device)
    return Seen(images, grid, np.concatenate(list(said)))


def maps_of(way: Way, seen: Seen) -> np.ndarray:
    """Maps of the positive slices, (n, hm, wm), 0 to 1; n may be 0."""
    places, model = seen.positive(way.model), way.model
    if not len(places):
        return np.zeros((0, 1, 1), np.float32)
    images = seen.images[places]
    return slice_maps(model.network, images, method=way.method, settings=model.settings, device=model.device)


def mask_of(way: Way, seen: Seen, maps: np.ndarray, *, reading: str, pet: Volume) -> Volume:
    """The mask that `predict.predict` gives for the method and the reading, from maps that are there already."""
    values = replace(way.model, reading=reading).values(way.method)
    lowest = np.full(seen.grid.shape, np.inf, np.float32)
    for place, one in zip(seen.positive(way.model), maps, strict=True):
        lowest[place] = lowest_suv(one, seen.images[place, PET_CHANNEL], reading=reading, **values)
    return weakcam.to_mask(lowest, seen.grid, pet)


def _weakcam(experiment: Experiment, cell: Cell) -> Outcome:
    """Train the classifier and its thresholds once; test every method in both readings of q_m."""
    folder = experiment.model(cell)
    if not (folder / CONFIG).is_file():
        train_classifier(
            experiment.training(cell.seed),
            folder,
            settings=experiment.classifier(cell.seed),
            work=experiment.work(cell),
            device=experiment.device,
        )
    started = time.monotonic()
    model, config = weakcam.load(folder, experiment.device), read_config(folder, method=METHOD)
    ways = [Way(method, method, model) for method in (*CAM_METHODS, GLOBAL)]
    if experiment.budget.earlier_block:
        ways.append(_earlier_way(experiment, cell, model))
    rows, facts = _test_ways(experiment, cell, ways)
    shown = [experiment.shown(rows)]
    write_class_maps(WEAKCAM, folder, experiment.masks(MAPPED, cell.seed), shown, device=experiment.device)
    facts["thresholds"] = {
        way.name: {reading: replace(way.model, reading=reading).values(way.method) for reading in READINGS}
        for way in ways
    }
    facts |= {"validation": config["classifier"], "best": best_method(model.thresholds)}
    return Outcome(tuple(rows), _trained_s(folder), round(time.monotonic() - started, 2), facts)


def best_method(thresholds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The CAM method with the highest mean Dice on validation in the default reading; of equal ones the first."""
    return max(CAM_METHODS, key=lambda method: thresholds[method][READINGS[0]]["dice"])


def _earlier_way(experiment: Experiment, cell: Cell, model: weakcam.Model) -> Way:
    """Grad-CAM on an earlier block, with thresholds from the same validation slices as the other methods'."""
    block = experiment.budget.earlier_block
    other = replace(model, settings=replace(model.settings, cam_block=block), thresholds={})
    config = read_config(experiment.model(cell), method=METHOD)
    chosen = set(config["validation_cases"] or config["training_cases"])
    cases = [case for case in experiment.training(cell.seed) if case.name in chosen]
    work = experiment.work(cell).with_name(f"{cell.name}-block{block}")
    found = search(other, GRADCAM, cache(cases, work, model.settings))
    shutil.rmtree(work, ignore_errors=True)
    thresholds = {GRADCAM: {reading: asdict(choice) for reading, choice in found.items()}}
    return Way(earlier(block), GRADCAM, replace(other, thresholds=thresholds))


def search(model: weakcam.Model, method: str, folders: Mapping[str, Path]) -> dict[str, Choice]:
    """t_m and q_m of one method on cached cases, as `fit_thresholds` chooses them for all; by reading."""
    picked = pick(model.network, folders, settings=model.settings, device=model.device)
    counts = {}
    for case, folder in folders.items():
        images, masks, _ = read_slices(folder)
        counts[case] = np.zeros((2, len(READINGS), len(Grid().t_m), len(Grid().q_m)), np.int64)
        for place in (each.place for each in picked.slices if each.case == case):
            image = images[place : place + 1].astype(np.float32)
            maps = slice_maps(model.network, image, method=method, settings=model.settings, device=model.device)
            counts[case] += count_slice(maps[0], image[0, PET_CHANNEL], masks[place], Grid())
    return choose(*dice_grid(counts, picked.lesions), Grid())


def _test_ways(experiment: Experiment, cell: Cell, ways: list[Way]) -> tuple[list[Row], dict[str, Any]]:
    """Rows of every way and reading, in their order; facts of the classifier and of two maps that must be one."""
    rows: dict[str, list[Row]] = {read_as(way.name, reading): [] for reading in READINGS for way in ways}
    said, true, apart, compared = [], [], 0.0, 0
    for phantom in track(experiment.part(cell.seed, "test"), f"{cell.name}: test cases"):
        started, inputs = time.monotonic(), _inputs(phantom.case)
        seen = look(ways[0].model, inputs)
        look_s = time.monotonic() - started
        said.append(seen.probability)
        true.append(slice_labels(read_image(phantom.case.mask), seen.grid))
        maps = {}
        for way in ways:
            started = time.monotonic()
            maps[way.name] = maps_of(way, seen)
            maps_s = time.monotonic() - started
            for reading in READINGS:
                started = time.monotonic()
                mask = mask_of(way, seen, maps[way.name], reading=reading, pet=inputs[PET.slug])
                seconds = look_s + maps_s + time.monotonic() - started
                one = Cell(read_as(way.name, reading), cell.seed)
                rows[one.variant].append(_scored(experiment, one, phantom, mask, seconds=seconds))
        apart = max(apart, float(np.abs(maps[CAM] - maps[GRADCAM]).max(initial=0.0)))
        compared += len(maps[CAM])
    facts = {
        "slices": _classified(np.concatenate(said), np.concatenate(true), ways[0].model.class_threshold),
        "cam_gradcam": {"slices": compared, "largest_difference": apart},
    }
    return [row for mine in rows.values() for row in mine], facts


def _classified(probability: np.ndarray, labels: np.ndarray, class_threshold: float) -> dict[str, float]:
    """What the classifier is worth on slices; NaN where it is undefined."""
    called = probability >= class_threshold
    return {
        "slices": len(labels),
        "positive": int(labels.sum()),
        "auroc": auroc(probability, labels),
        "sensitivity": float(called[labels].mean()) if labels.any() else math.nan,
        "specificity": float((~called[~labels]).mean()) if not labels.all() else math.nan,
    }


# --- the others ------------------------------------------------------------------------------------------------------


def _unet(experiment: Experiment, cell: Cell) -> Outcome:
    """The U-Net on full masks."""
    return _trained_unet(experiment, cell, experiment.training(cell.seed), {})


def _trained_unet(experiment: Experiment, cell: Cell, cases: list[Case], facts: dict[str, Any]) -> Outcome:
    folder, device = experiment.model(cell), experiment.device
    if not (folder / CONFIG).is_file():
        train_unet(cases, folder, settings=experiment.unet(cell.seed), work=experiment.work(cell), device=device)
    started = time.monotonic()
    model = unet2d.load(folder, device)
    rows = _tested(experiment, cell, lambda inputs: unet2d.predict(model, inputs, Deadline())[LESIONS.slug])
    return Outcome(tuple(rows), _trained_s(folder), round(time.monotonic() - started, 2), facts)


def _threshold(experiment: Experiment, cell: Cell) -> Outcome:
    """The threshold of whole scans, searched on the training cases; the SUVs of a scan take the place of a region's."""
    folder = experiment.model(cell)
    if not (folder / CONFIG).is_file():
        train_threshold(
            experiment.training(cell.seed),
            folder,
            settings=ThresholdSettings(),
            work=experiment.work(cell),
            device=experiment.device,
        )
    started, rows = time.monotonic(), []
    values = read_config(folder, method="threshold")["values"]
    for reading in READINGS:
        model = threshold.Model(reading, float(values[reading]))
        one = Cell(read_as(THRESHOLD, reading), cell.seed)
        rows += _tested(experiment, one, partial(_above, model))
    return Outcome(tuple(rows), 0.0, round(time.monotonic() - started, 2))


def _above(model: threshold.Model, inputs: Inputs) -> Volume:
    return threshold.predict(model, inputs, Deadline())[LESIONS.slug]


# --- pseudo-labels ---------------------------------------------------------------------------------------------------


def _pseudo(experiment: Experiment, cell: Cell) -> Outcome:
    """The U-Net on what the best CAM method marks in the training cases, in place of their masks.

    Where no slice is marked, or every slice, there is nothing to tell apart, and empty masks stand for the network.
    """
    cases, facts = _labelled_cases(experiment, cell.seed)
    if 0 < facts["marked_slices"] < facts["slices"]:
        return _trained_unet(experiment, cell, cases, facts)
    rows = _tested(experiment, cell, lambda inputs: _nothing(inputs[PET.slug]))
    return Outcome(tuple(rows), 0.0, 0.0, facts)


def _nothing(pet: Volume) -> Volume:
    return pet.with_array(np.zeros(pet.shape, np.uint8))


def _labelled_cases(experiment: Experiment, seed: int) -> tuple[list[Case], dict[str, Any]]:
    """The training cases with predicted lesions, and how good those are; the true masks are for that alone."""
    model = weakcam.load(experiment.model(Cell(WEAKCAM, seed)), experiment.device)
    best, labels, cases = best_method(model.thresholds), experiment.labels(seed), experiment.training(seed)
    masks, cohort = labels / best, labels / "cohort"  # the folder's name is what the labels are said to come from
    if not (cohort / TABLE).is_file():
        model = model.with_options(cam=best, reading=READINGS[0])
        for case in track(cases, f"seed {seed}: labels by {best}"):
            path = masks / f"{case.name}.nii.gz"
            if not path.is_file():
                write_image(path, weakcam.predict(model, _inputs(case), Deadline())[LESIONS.slug])
        write_pseudolabels(masks, experiment.data, cohort, cases=cases)
    known = {case.name: case for case in read_cohort(cohort)}
    dice = [_dice(case, known[case.name]) for case in cases if case.lesion_voxels and case.name in known]
    marked = np.concatenate([_marked_slices(case) for case in known.values()])
    facts = {
        "labels_by": best,
        "cases": len(known),
        "marked": sum(bool(case.lesion_voxels) for case in known.values()),
        "slices": len(marked),
        "marked_slices": int(marked.sum()),
        "dice": [round(value, 5) for value in dice],
    }
    return list(known.values()), facts


def _marked_slices(label: Case) -> np.ndarray:
    """Whether each axial slice holds a marked voxel."""
    mask = read_image(label.mask)
    across, back, _ = patient_axes(mask)
    return (mask.array != 0).any(axis=(across, back))


def _dice(case: Case, label: Case) -> float:
    truth = read_image(case.mask)
    found = score(truth.array, read_image(label.mask).array, voxel_volume_ml=truth.voxel_volume_ml)
    return float(found["dice"])
