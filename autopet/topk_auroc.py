"""Top-k AUROC: how well scores tell a scan's lesion voxels from the background voxels that are taken for lesions first.

Galdran, "Robust PET/CT Lesion Segmentation on Whole-Body Scans" (autoPET II), section 8. Thresholds need not be known,
and the millions of easy background voxels do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from autopet.errors import AutopetError

CHUNK = 1 << 16  # voxels looked at together: they stay in a core's cache


def topk_auroc(lesions: np.ndarray, scores: np.ndarray) -> float:
    """AUROC of the n lesion voxels against the n background voxels of the highest scores (section 8).

    With fewer than n background voxels, all of them count. Equal scores of a lesion and a background voxel count half.
    Which of the background voxels with the score of the last place are taken changes nothing: only scores count.

    Parameters
    ----------
    lesions : array of any shape
        The ground truth; lesion where it is not zero.
    scores : real array of the same shape
        The higher, the more likely a lesion: probabilities or logits, infinite ones too.

    Returns
    -------
    float
        0 to 1, from exact counts. It is 1 if and only if the AUROC of the whole scan is 1: every lesion voxel lies
        above every background voxel. NaN for a scan without lesion voxels or without background.

    Raises
    ------
    AutopetError
        Shapes differ, or a score is NaN (also in a scan whose value is NaN anyway).

    Notes
    -----
    Besides its arguments it needs three times n scores and the mask of a chunk, whatever the memory layout.

    Examples
    --------
    >>> lesions = np.array([True, True, False, False, False, False])
    >>> topk_auroc(lesions, np.array([0.9, 0.3, 0.4, 0.3, 0.1, 0.0]))  # against 0.4 and 0.3: 2 and a half pair of 4
    0.625
    """
    lesions, scores = np.asarray(lesions), np.asarray(scores)
    count = int(np.count_nonzero(lesions))
    positives = np.empty(count, dtype=scores.dtype.newbyteorder("="))
    worst = _Highest(min(count, lesions.size - count), dtype=positives.dtype)
    filled = 0
    for mask, values, highest in pieces(lesions, scores):
        if mask.any():
            found = values[mask]
            positives[filled : filled + found.size] = found
            filled += found.size
            worst.add(values[~mask])
        elif worst.takes(highest):
            worst.add(values)
    return _auroc(positives, worst.values()) if worst.count else math.nan


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs in which the positive scores higher, an equal pair counting half.

    Parameters
    ----------
    positives, negatives : (n,), (m,) real arrays
        Scores: the higher, the more likely positive.

    Returns
    -------
    float
        0 to 1, from exact counts; NaN without a positive or without a negative.

    Examples
    --------
    >>> auroc(np.array([0.9, 0.4]), np.array([0.4, 0.1]))
    0.875
    """
    positives, negatives = np.array(positives), np.array(negatives)  # copies, which are sorted
    return _auroc(positives, negatives) if positives.size and negatives.size else math.nan


def pieces(lesions: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Two volumes chunk by chunk, in the order of their memory, so that no layout makes a copy of a volume.

    Parameters
    ----------
    lesions, scores : arrays of one shape
        Lesion where not zero; real numbers.

    Yields
    ------
    (m,) bool, (m,) scores, scalar
        At most `CHUNK` voxels that belong together, and their highest score. The arrays are lent: they hold until the
        next chunk and must not be written to.

    Raises
    ------
    AutopetError
        Shapes differ, scores are no real numbers, or one of them is NaN.
    """
    if lesions.shape != scores.shape:
        raise AutopetError(
            f"expected a score for every voxel: shape {lesions.shape} of the lesions, found scores of shape "
            f"{scores.shape}; bring both onto one grid"
        )
    if scores.dtype.kind not in "biuf":
        raise AutopetError(f"expected scores that are real numbers, found {scores.dtype}")
    chunks = np.nditer(
        (lesions, scores),
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly"], ["readonly"]],
        op_dtypes=[np.dtype(bool), None],
        casting="unsafe",  # of a label map to bool
        buffersize=CHUNK,
    )
    for mask, values in chunks if scores.size else ():
        highest = values.max()  # NaN when one of them is
        if np.isnan(highest):
            raise AutopetError(
                "expected a number as the score of every voxel, found NaN; look at the network's output: a training "
                "that diverged needs a lower learning rate"
            )
        yield mask, values, highest


class _Highest:
    """The n highest of all values that were added, in the memory of 2 n values and a chunk."""

    def __init__(self, count: int, *, dtype: np.dtype) -> None:
        self.count = count
        self._buffer = np.empty(2 * count + CHUNK, dtype=dtype)
        self._filled = 0
        self._cut: Any = None  # n values are at least as high; unknown before there are n

    def takes(self, value: Any) -> bool:
        """Whether a value may be among the highest."""
        return bool(self.count) and (self._cut is None or bool(value > self._cut))

    def add(self, values: np.ndarray) -> None:
        """At most `CHUNK` values."""
        if not self.count:
            return
        if self._cut is not None:
            values = values[values > self._cut]  # n values are there: one that equals the lowest of them adds nothing
        self._buffer[self._filled : self._filled + values.size] = values
        self._filled += values.size
        if self._filled >= 2 * self.count:  # not earlier: each partition then drops half of what it looks at
            self._buffer[: self.count] = self.values()
            self._filled = self.count
            self._cut = self._buffer[: self.count].min()

    def values(self) -> np.ndarray:
        """The highest values in any order, a view; fewer than n when fewer were added."""
        found = self._buffer[: self._filled]
        if self._filled > self.count:
            found.partition(self._filled - self.count)
        return found[max(0, self._filled - self.count) :]


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """The share of pairs in which the positive is higher, ties half; sorts both arrays in place."""
    positives.sort()  # neighbours in `searchsorted` then look at the same memory
    negatives.sort()
    half_wins = 0
    for start in range(0, positives.size, CHUNK):
        part = positives[start : start + CHUNK]
        half_wins += sum(int(np.searchsorted(negatives, part, side).sum()) for side in ("left", "right"))
    return half_wins / (2 * positives.size * negatives.size)  # whole numbers: rounded once, 1.0 only when it is 1
