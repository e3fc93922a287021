"""From a class activation map to a mask (Algorithm 1 of the paper), and the search for its two thresholds.

Paper: Früh et al., "Weakly supervised segmentation of tumor lesions in PET-CT hybrid imaging" (2021), section 2.2.1.
Step 6 of the printed algorithm compares the map with the SUV threshold; what is meant, and done here, is the SUV image
inside the region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from autopet.intensity import BODY_SUV

READINGS = ("fraction", "percentile")  # of q_m: percent of the region's SUVmax, or percentile of its SUVs
GLOBAL = "global"  # the paper's first baseline (2.3.1), in place of a map: the region is the body
LEAST_SUV = float(np.finfo(np.float32).tiny)  # what has no uptake is no lesion, whatever the threshold
PREDICTED, HITS = 0, 1  # first axis of `count_slice`


@dataclass(frozen=True)
class Grid:
    """Values that the search tries; the defaults are the paper's."""

    t_m: tuple[float, ...] = tuple(np.linspace(0.1, 0.9, 10).tolist())  # of the map, which goes from 0 to 1
    q_m: tuple[float, ...] = tuple(np.linspace(20.0, 50.0, 20).tolist())  # percent

    def __post_init__(self) -> None:
        for name, highest in (("t_m", 1.0), ("q_m", 100.0)):
            values = getattr(self, name)
            if not values or not all(0 < value <= highest for value in values):
                raise AutopetError(f"{name} needs values above 0 and up to {highest:g}, found {values}")


GLOBAL_GRID = Grid(t_m=(1.0,))  # the body's map is 0 or 1


@dataclass(frozen=True)
class Choice:
    """The best values of a search, and how good they are on the slices that they were chosen on."""

    t_m: float
    q_m: float  # percent
    dice: float  # mean over cases of the Dice of all their slices together
    pooled_dice: float  # Dice of all slices of all cases together


# A slice


def upscale(region: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nearest neighbour: every pixel of the larger image takes the pixel of the region that its centre lies in.

    Parameters
    ----------
    region : (hm, wm) array
    shape : (h, w)

    Returns
    -------
    (h, w) array of the region's type
    """
    rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(shape, region.shape, strict=True))
    return region[rows[:, None], columns[None]]


def body_map(suv: np.ndarray) -> np.ndarray:
    """The "map" of the method `global`: 1 in the body, 0 in air; (h, w) float32."""
    return (suv > BODY_SUV).astype(np.float32)


def suv_thresholds(values: np.ndarray, q_m: np.ndarray, reading: str) -> np.ndarray:
    """The SUVs from which on pixels of a region are lesion.

    Parameters
    ----------
    values : (pixels,) float64 array
        SUVs of the region, at least one.
    q_m : (n,) array
        Percent.
    reading : str
        `fraction`: q_m percent of the region's highest SUV. `percentile`: the percentile q_m of its SUVs, with linear
        interpolation. The paper writes percentile; its published values (0.31 to 0.35, of a grid from 20 to 50) look
        like fractions.

    Returns
    -------
    (n,) float64 array
        Above 0: where nothing is taken up, there is no lesion.

    Examples
    --------
    >>> suv_thresholds(np.array([1.0, 2.0, 3.0, 10.0]), np.array([50.0]), "fraction")
    array([5.])
    >>> suv_thresholds(np.array([1.0, 2.0, 3.0, 10.0]), np.array([50.0]), "percentile")
    array([2.5])
    """
    if reading not in READINGS:
        raise AutopetError(f"a reading of q_m is {' or '.join(READINGS)}, found {reading!r}")
    found = np.asarray(q_m, float) / 100 * values.max() if reading == "fraction" else np.percentile(values, q_m)
    return np.maximum(found, LEAST_SUV)


def lowest_suv(cam: np.ndarray, suv: np.ndarray, *, t_m: float, q_m: float, reading: str) -> np.ndarray:
    """The SUV from which on each pixel of a positive slice is lesion; steps 2 to 5 of Algorithm 1.

    Parameters
    ----------
    cam : (hm, wm) array
        Class activation map, 0 to 1, at its own size: it is thresholded there, then the region is made larger.
    suv : (h, w) array
        The slice in SUV, covering what the map covers.
    t_m : float
        Pixels of the map of at least this value are the region; above 0.
    q_m : float
        Percent, see `suv_thresholds`.
    reading : str
        One of `READINGS`.

    Returns
    -------
    (h, w) float64 array
        The same value everywhere in the region, infinity outside of it.
    """
    if not 0 < t_m <= 1:
        raise AutopetError(f"t_m must be above 0 and at most 1, found {t_m:g}")
    region = upscale(cam.astype(float) >= t_m, suv.shape)
    lowest = np.full(suv.shape, np.inf)
    if region.any():
        lowest[region] = suv_thresholds(suv[region].astype(float), np.array([q_m]), reading)[0]
    return lowest


def segment_slice(cam: np.ndarray, suv: np.ndarray, *, t_m: float, q_m: float, reading: str) -> np.ndarray:
    """Algorithm 1 for a slice that the classifier calls positive; the parameters are those of `lowest_suv`.

    Returns
    -------
    (h, w) array of bool
        Empty where the region is empty, as for a constant map, or without uptake.
    """
    return suv.astype(float) >= lowest_suv(cam, suv, t_m=t_m, q_m=q_m, reading=reading)


# The search


def count_slice(cam: np.ndarray, suv: np.ndarray, lesion: np.ndarray, grid: Grid) -> np.ndarray:
    """Pixels that `segment_slice` marks at every point of the grid, and how many of them are lesion.

    The slice is sorted by SUV once; the pixels of every region then come in order, and each SUV threshold is a binary
    search.

    Parameters
    ----------
    cam, suv : arrays
        As for `segment_slice`.
    lesion : (h, w) array
        The truth; lesion where it is not zero.

    Returns
    -------
    (2, readings, t_m, q_m) int64 array
        Marked pixels, and those of them that are lesion.
    """
    reached = upscale(cam, suv.shape).ravel().astype(float)
    candidates = np.flatnonzero(reached >= min(grid.t_m))
    order = candidates[np.argsort(suv.ravel()[candidates], kind="stable")]
    values, reached, true = suv.ravel()[order].astype(float), reached[order], lesion.ravel()[order] != 0
    found = np.zeros((2, len(READINGS), len(grid.t_m), len(grid.q_m)), np.int64)
    q_m = np.asarray(grid.q_m)
    for place, t_m in enumerate(grid.t_m):
        region = reached >= t_m
        if not region.any():
            continue
        everywhere, inside = values[region], values[region & true]
        for index, reading in enumerate(READINGS):
            suvs = suv_thresholds(everywhere, q_m, reading)
            found[PREDICTED, index, place] = everywhere.size - np.searchsorted(everywhere, suvs)
            found[HITS, index, place] = inside.size - np.searchsorted(inside, suvs)
    return found


def dice_grid(counts: Mapping[str, np.ndarray], lesions: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Dice at every point of the grid: the mean over cases, and that of all cases together.

    Parameters
    ----------
    counts : mapping
        From a case to the sum of `count_slice` over its slices that were segmented.
    lesions : mapping
        From a case to the lesion pixels of all its slices, also of those that the classifier called negative.

    Returns
    -------
    mean, pooled : (readings, t_m, q_m) arrays
        The mean is over the cases with lesions (the paper's score, 2.4: one Dice per patient); what is marked in the
        others counts in the second only.

    Raises
    ------
    AutopetError
        No case has a lesion pixel.
    """
    with_lesions = [case for case in counts if lesions[case]]
    if not with_lesions:
        raise AutopetError("thresholds are chosen on cases with lesions, found none; hold out more patients")
    dice = [2 * counts[case][HITS] / (counts[case][PREDICTED] + lesions[case]) for case in with_lesions]
    together = np.sum([counts[case] for case in counts], axis=0)
    pooled = 2 * together[HITS] / (together[PREDICTED] + sum(lesions[case] for case in counts))
    return np.mean(dice, axis=0), pooled


def choose(mean: np.ndarray, pooled: np.ndarray, grid: Grid) -> dict[str, Choice]:
    """The point of the highest mean Dice for each reading; of equal ones the lowest t_m, then the lowest q_m.

    Parameters
    ----------
    mean, pooled : (readings, t_m, q_m) arrays
        Of `dice_grid`.
    """
    best = {}
    for index, reading in enumerate(READINGS):
        row, column = np.unravel_index(np.argmax(mean[index]), mean[index].shape)
        best[reading] = Choice(
            t_m=grid.t_m[row],
            q_m=grid.q_m[column],
            dice=float(mean[index, row, column]),
            pooled_dice=float(pooled[index, row, column]),
        )
    return best


def table(method: str, mean: np.ndarray, pooled: np.ndarray, grid: Grid) -> list[dict[str, object]]:
    """Rows of search.csv: every point of the grid for both readings."""
    return [
        {
            "method": method,
            "reading": reading,
            "t_m": f"{t_m:.4f}",
            "q_m": f"{q_m:.4f}",
            "dice": f"{mean[index, row, column]:.6f}",
            "pooled_dice": f"{pooled[index, row, column]:.6f}",
        }
        for index, reading in enumerate(READINGS)
        for row, t_m in enumerate(grid.t_m)
        for column, q_m in enumerate(grid.q_m)
    ]
