"""The search for t_m and q_m on a cohort: maps of the slices that the trained classifier calls positive, then the grid.

Paper, section 2.2.1: both are "method-specific", found on a grid "by maximizing the Dice score on the validation data".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithms.weakcam.cams import class_maps
from algorithms.weakcam.model import CAM_METHODS, Settings
from algorithms.weakcam.search import (
    GLOBAL,
    GLOBAL_GRID,
    READINGS,
    Choice,
    Grid,
    body_map,
    choose,
    count_slice,
    dice_grid,
    table,
)
from algorithms.weakcam.slices import AT_ONCE, PET, as_input, auroc, probabilities
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.progress import Meter, console
from autopet.slices import read_slices

DEFAULTS = ("cam", "scorecam")  # of which validation chooses one: the paper's two best
COLUMNS = ("method", "reading", "t_m", "q_m", "dice", "pooled_dice")


@dataclass(frozen=True)
class Slice:
    """A slice of a cached case."""

    case: str
    place: int


@dataclass(frozen=True)
class Picked:
    """What the search looks at.

    Attributes
    ----------
    slices : tuple of Slice
        Segmented at every point of the grid, in the order of their cases.
    lesions : mapping
        From a case to the lesion pixels of these slices and of those that were called negative.
    auroc : float
        Of the classifier on all slices.
    """

    slices: tuple[Slice, ...]
    lesions: Mapping[str, int]
    auroc: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class Fitted:
    """The outcome: what was chosen, the whole grid as rows of search.csv, and the method that is the default."""

    choices: Mapping[str, Mapping[str, Choice]]  # by method, then by reading
    rows: Sequence[dict[str, object]]
    picked: Picked
    cam: str

    def config(self) -> dict[str, Any]:
        """What config.json keeps."""
        picked = self.picked
        return {
            "cam": self.cam,
            "thresholds": {
                method: {reading: asdict(choice) for reading, choice in by_reading.items()}
                for method, by_reading in self.choices.items()
            },
            "classifier": {
                "auroc": None if math.isnan(picked.auroc) else picked.auroc,
                "sensitivity": None if math.isnan(picked.sensitivity) else picked.sensitivity,
                "specificity": None if math.isnan(picked.specificity) else picked.specificity,
            },
            "searched_slices": len(picked.slices),
        }


def fit_thresholds(
    network: torch.nn.Module, folders: Mapping[str, Path], work: Path, *, settings: Settings, device: str
) -> Fitted:
    """Choose t_m and q_m for every CAM method and for the global threshold, and the method that is the default.

    Parameters
    ----------
    network : torch.nn.Module
        The trained classifier.
    folders : mapping
        Cached cases (`slices.cache`) by name; some with lesions.
    work : Path
        Scratch folder of this network and these cases; what an earlier call counted there is not counted again.

    Raises
    ------
    AutopetError
        No case with lesion pixels.
    """
    picked = pick(network, folders, settings=settings, device=device)
    choices: dict[str, Mapping[str, Choice]] = {}
    rows: list[dict[str, object]] = []
    for method in (*CAM_METHODS, GLOBAL):
        grid = GLOBAL_GRID if method == GLOBAL else Grid()
        counts = _count(network, picked, folders, work, method=method, grid=grid, settings=settings, device=device)
        mean, pooled = dice_grid(counts, picked.lesions)
        choices[method] = choose(mean, pooled, grid)
        rows += table(method, mean, pooled, grid)
    best = max(DEFAULTS, key=lambda method: choices[method][settings.reading].dice)  # of equal ones the first
    return Fitted(choices, rows, picked, settings.cam or best)


def pick(network: torch.nn.Module, folders: Mapping[str, Path], *, settings: Settings, device: str) -> Picked:
    """Slices that the classifier calls positive; `search_slices` of them, drawn evenly, where that is not 0.

    Where none of these has a lesion, slices with lesions take their place, so that there is something to choose on; it
    is said.
    """
    said, true, sizes = {}, {}, {}
    for case, folder in folders.items():
        images, masks, true[case] = read_slices(folder)
        said[case] = np.concatenate([*probabilities(network, images, settings=settings, device=device)])
        sizes[case] = np.count_nonzero(masks, axis=(1, 2))
    called = {case: values >= settings.class_threshold for case, values in said.items()}
    chosen = _some(called, settings)
    if not any(sizes[each.case][each.place] for each in chosen):
        console.print(
            "warning: no slice that the classifier calls positive has a lesion; thresholds are chosen on slices with "
            "lesions instead. Train for more epochs, lower class_threshold, or give more cases",
            style="yellow",
            highlight=False,
        )
        chosen = _some(true, settings)
    counted = {case: ~called[case] for case in folders}  # what is called negative counts, too: its lesions are missed
    for each in chosen:
        counted[each.case][each.place] = True
    labels, positive = np.concatenate([*true.values()]), np.concatenate([*called.values()])
    return Picked(
        tuple(chosen),
        {case: int(sizes[case][counted[case]].sum()) for case in folders},
        auroc(np.concatenate([*said.values()]), labels),
        sensitivity=float(positive[labels].mean()) if labels.any() else math.nan,
        specificity=float((~positive[~labels]).mean()) if not labels.all() else math.nan,
    )


def _some(flags: Mapping[str, np.ndarray], settings: Settings) -> list[Slice]:
    """Slices with a flag, in their order; `search_slices` of them, drawn evenly, where that is not 0."""
    every = [Slice(case, int(place)) for case, flag in flags.items() for place in np.flatnonzero(flag)]
    if not settings.search_slices:
        return every
    drawn = np.random.default_rng([settings.seed, 2]).permutation(len(every))[: settings.search_slices]
    return [every[place] for place in sorted(drawn)]


def _count(
    network: torch.nn.Module,
    picked: Picked,
    folders: Mapping[str, Path],
    work: Path,
    *,
    method: str,
    grid: Grid,
    settings: Settings,
    device: str,
) -> dict[str, np.ndarray]:
    """Sums of `count_slice` by case, each kept in a file of its own as soon as it is known."""
    counts = {}
    with Meter(f"thresholds of {method}", len(picked.slices)) as meter:
        for case, folder in folders.items():
            path = work / method / f"{case}.npy"
            places = [each.place for each in picked.slices if each.case == case]
            if not path.is_file():
                found = np.zeros((2, len(READINGS), len(grid.t_m), len(grid.q_m)), np.int64)
                for some, masks in _few_at_once(folder, places):
                    maps = slice_maps(network, some, method=method, settings=settings, device=device)
                    for cam, image, mask in zip(maps, some, masks, strict=True):
                        found += count_slice(cam, image[PET], mask, grid)
                with whole_file(path) as part:
                    np.save(part, found)
            counts[case] = np.load(path)
            meter.advance(len(places))
    return counts


def _few_at_once(folder: Path, places: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images, float32, and masks of some slices of a cached case."""
    images, masks, _ = read_slices(folder)
    for first in range(0, len(places), AT_ONCE):
        chosen = places[first : first + AT_ONCE]
        yield images[chosen].astype(np.float32), masks[chosen]


def slice_maps(
    network: torch.nn.Module, images: np.ndarray, *, method: str, settings: Settings, device: str
) -> np.ndarray:
    """Maps of slices, by a CAM method or `global`.

    Parameters
    ----------
    images : (n, channel, y, x) array
        In HU and SUV.

    Returns
    -------
    (n, hm, wm) array
        0 to 1.
    """
    if method == GLOBAL:
        return np.stack([body_map(image[PET]) for image in images])
    if method not in CAM_METHODS:
        raise AutopetError(f"CAM method {method!r} is unknown; use {', '.join((*CAM_METHODS, GLOBAL))}")
    return class_maps(network, as_input(images, settings).to(device), method=method, settings=settings)
