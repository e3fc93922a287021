"""Thresholds chosen on data: of a voxel's probability by mean Dice, and of a scan's score by sensitivity.

Galdran, "Robust PET/CT Lesion Segmentation on Whole-Body Scans" (autoPET II), sections 5 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from autopet.topk_auroc import pieces

GRID = np.arange(1, 200) / 200  # thresholds to choose from
GRID.setflags(write=False)
MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # of a gate, in its table


def dice_curve(lesions: np.ndarray, probability: np.ndarray, thresholds: np.ndarray = GRID) -> np.ndarray:
    """Dice of the mask `probability >= t` for every threshold t, from one pass over the volume.

    Parameters
    ----------
    lesions : array of any shape
        The ground truth; lesion where it is not zero.
    probability : real array of the same shape
    thresholds : (k,) array, ascending

    Returns
    -------
    (k,) float64
        From exact counts; 0 where the mask is empty. NaN throughout for a scan without lesions, so that a mean
        over scans has the same scans at every threshold.

    Raises
    ------
    AutopetError
        Shapes differ, a probability is NaN, or thresholds do not ascend.

    Notes
    -----
    A threshold is compared in the precision of the probabilities, as NumPy and torch compare an array with a Python
    float. `np.float64(0.7)` makes NumPy compare in double precision, and a float32 voxel of 0.7 lies below that: so
    whoever applies a threshold uses a Python float, such as `best_threshold` returns and config.json holds.

    Examples
    --------
    >>> dice_curve(np.array([1, 1, 0, 0]), np.array([0.9, 0.5, 0.6, 0.0]), np.array([0.5, 0.7, 0.95]))
    array([0.8       , 0.66666667, 0.        ])
    """
    lesions, probability = np.asarray(lesions), np.asarray(probability)
    edges = _edges(thresholds, probability.dtype)
    predicted, hits = np.zeros((2, edges.size + 1), dtype=np.int64)  # voxels by how many thresholds they reach
    count = 0
    for mask, values, highest in pieces(lesions, probability):
        count += int(np.count_nonzero(mask))
        if highest < edges[0]:
            continue
        reached = values >= edges[0]  # most of a scan lies below: comparing is faster than searching
        steps = np.searchsorted(edges, values[reached], side="right")
        predicted += np.bincount(steps, minlength=predicted.size)
        hits += np.bincount(steps[mask[reached]], minlength=hits.size)
    if not count:
        return np.full(edges.size, np.nan)
    predicted, hits = (np.cumsum(voxels[:0:-1])[::-1] for voxels in (predicted, hits))  # voxels at each threshold
    return 2 * hits / (predicted + count)


def _edges(thresholds: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Thresholds in the type in which they are compared with values of a type."""
    thresholds = np.asarray(thresholds, dtype=float)
    if thresholds.ndim != 1 or not thresholds.size or not (np.diff(thresholds, prepend=-np.inf) > 0).all():
        raise AutopetError(f"expected thresholds in one ascending row, found {thresholds!r}; sort them")
    return thresholds.astype(dtype.newbyteorder("=") if dtype.kind == "f" else float)


def best_threshold(curves: np.ndarray, thresholds: np.ndarray = GRID) -> tuple[float, float]:
    """The threshold of the highest mean Dice (section 6), and that mean.

    Parameters
    ----------
    curves : (scans, k) array
        A scan's `dice_curve` in each row. Scans without lesions (NaN throughout) do not count.
    thresholds : (k,) array

    Returns
    -------
    threshold, mean_dice : float
        The optimum among `thresholds`. When several reach it: the middle one of the longest run of neighbours that do
        (of two middle ones the lower, of two runs of one length the lower), the farthest from where Dice drops.

    Raises
    ------
    AutopetError
        No scan has lesions, or a curve is NaN in places.

    Examples
    --------
    >>> best_threshold(np.array([[0.2, 0.6, 0.4], [0.4, 0.6, 0.9]]), np.array([0.25, 0.5, 0.75]))
    (0.75, 0.65)
    """
    curves = np.asarray(curves, dtype=float)
    if curves.ndim != 2 or curves.shape[1] != len(thresholds):
        raise AutopetError(f"expected curves of shape (scans, {len(thresholds)}), found {curves.shape}")
    curves = curves[~np.isnan(curves).all(axis=1)]
    if not len(curves):
        raise AutopetError(
            "a threshold is chosen on scans with lesions, found none; choose it on more scans, or on others"
        )
    if np.isnan(curves).any():
        raise AutopetError("expected Dice at every threshold or at none, found curves that are NaN in places")
    means = curves.mean(axis=0)
    best = _middle_of_longest_run(means == means.max())
    return float(thresholds[best]), float(means[best])


def _middle_of_longest_run(flags: np.ndarray) -> int:
    """Index of the middle of the longest run of True in a (k,) array that has one; the lower one, the first one."""
    turns = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    starts, ends = turns[::2], turns[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest] + ends[longest] - 1) // 2


@dataclass(frozen=True)
class GateRow:
    """What a gate with a margin does to the scans it was chosen on."""

    margin: float
    threshold: float
    negatives_caught: int


@dataclass(frozen=True)
class Gate:
    """A scan whose score lies below `threshold` is taken for lesion-free (section 7).

    `dataclasses.asdict` of it is ready for JSON.
    """

    threshold: float  # `highest` less the margin; a number of single precision
    highest: float  # the highest threshold that all positive scans reach: the lowest of their scores
    margin: float  # share of `highest`
    positives: int  # scans it was chosen on
    negatives: int
    negatives_caught: int  # of those; never a positive one
    table: tuple[GateRow, ...]  # other margins, ascending


def gate_threshold(positive_scores: Sequence[float], negative_scores: Sequence[float], *, margin: float) -> Gate:
    """The highest threshold that no positive scan lies below (section 7: sensitivity 1), less a margin.

    Parameters
    ----------
    positive_scores, negative_scores : (n,) sequences
        The classifier's probabilities for scans with and without lesions that it was not trained on.
    margin : float
        Share of the highest threshold that is given away for scans yet unseen; at least 0, below 1.

    Returns
    -------
    Gate
        Its threshold is rounded down to single precision, so that no positive scan of these falls below it, in
        whatever precision a score is kept and compared. Without negative scans the counts are 0.

    Raises
    ------
    AutopetError
        There is no positive scan, a score is no probability, or the margin is out of range.

    Examples
    --------
    >>> gate = gate_threshold([0.5, 0.9], [0.1, 0.375, 0.6], margin=0.25)
    >>> gate.highest, gate.threshold, gate.negatives_caught
    (0.5, 0.375, 1)
    """
    positives = _probabilities(positive_scores, "positive")
    negatives = _probabilities(negative_scores, "negative")
    if not 0 <= margin < 1:
        raise AutopetError(f"the gate's margin must be at least 0 and below 1, found {margin}")
    if not positives.size:
        raise AutopetError(
            "the gate's threshold is chosen on scans with lesions, found none; set more scans aside for choosing "
            "thresholds, or turn the gate off"
        )
    highest = float(positives.min())
    rows = {share: _row(highest, negatives, share) for share in sorted({*MARGINS, float(margin)})}
    chosen = rows[float(margin)]
    return Gate(
        threshold=chosen.threshold,
        highest=highest,
        margin=float(margin),
        positives=positives.size,
        negatives=negatives.size,
        negatives_caught=chosen.negatives_caught,
        table=tuple(rows.values()),
    )


def _row(highest: float, negatives: np.ndarray, margin: float) -> GateRow:
    threshold = _single_at_most(highest * (1 - margin))
    return GateRow(margin, threshold, int(np.count_nonzero(negatives < threshold)))


def _single_at_most(value: float) -> float:
    """The highest float32 that is not above a number."""
    single = np.float32(value)
    if float(single) > value:  # without float() NumPy would round the number as well, and call them equal
        single = np.nextafter(single, np.float32(-np.inf))
    return float(single)


def _probabilities(scores: Sequence[float], kind: str) -> np.ndarray:
    values = np.asarray(scores, dtype=float).reshape(-1)
    wrong = values[~((values >= 0) & (values <= 1))]  # NaN is neither
    if wrong.size:
        raise AutopetError(
            f"the gate is chosen on probabilities from 0 to 1, found {wrong[0]:g} for a {kind} scan; look at the "
            "classifier's output"
        )
    return values
