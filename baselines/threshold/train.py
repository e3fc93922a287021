"""Grid search of the global threshold on the training cases."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from autopet.checkpoint import publish_model
from autopet.cohort import Case, labelled
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.progress import track
from baselines.threshold.model import RULES, Settings, dice_at, thresholds_suv


def candidates(settings: Settings) -> dict[str, np.ndarray]:
    """The values that each rule may take: a grid for the two readings of the paper, one value for the variants."""
    fixed = {"fixed": np.array([settings.fixed_suv]), "suvmax41": np.array([settings.max_percent])}
    return {rule: fixed.get(rule, settings.grid) for rule in RULES}


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Choose each rule's value by the mean Dice over the training cases that have lesions.

    Parameters
    ----------
    cases : sequence of Case
        Training cases; those without lesions say nothing about Dice and are left out of the mean.
    out : Path
        Model folder: config.json with the values chosen and their Dice, search.csv with the whole grid.
    work, device
        Not needed by this method.
    """
    positive = [case for case in labelled(cases) if case.lesion_voxels]
    if not positive:
        raise AutopetError("no training case has a lesion; the search for a threshold needs at least one")
    grids = candidates(settings)
    scores: dict[str, list[np.ndarray]] = {rule: [] for rule in grids}
    for case in track(positive, "threshold search"):
        suv, lesion = read_image(case.suv).array, read_image(case.mask).array
        for rule, values in grids.items():
            scores[rule].append(dice_at(suv, lesion, thresholds_suv(suv, rule, values)))
    mean_dice = {rule: np.mean(rows, axis=0) for rule, rows in scores.items()}
    best = {rule: int(np.argmax(dice)) for rule, dice in mean_dice.items()}

    def fill(folder: Path) -> dict:
        _write_search(folder / "search.csv", grids, mean_dice)
        return {
            "method": "threshold",
            "settings": asdict(settings),
            "values": {rule: float(grids[rule][index]) for rule, index in best.items()},
            "training_dice": {rule: float(mean_dice[rule][index]) for rule, index in best.items()},
            "training_cases": [case.name for case in positive],
        }

    return publish_model(out, fill)


def _write_search(path: Path, grids: dict[str, np.ndarray], mean_dice: dict[str, np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rule", "value", "mean_dice"])
        for rule, values in grids.items():
            writer.writerows(
                [rule, f"{value:.4f}", f"{dice:.6f}"] for value, dice in zip(values, mean_dice[rule], strict=True)
            )
