"""Edition V's detection: lesions counted over all cases at each click step, then F1, then the area over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopet.errors import AutopetError
from leaderboard.submissions import Submission


def pooled_f1_costs(steps: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Minus the area under the curve of the pooled F1, in samples of the cases.

    At each step TP, FP and FN are summed over the cases (false lesions of cases without lesions count), F1 is
    2 TP / (2 TP + FP + FN), and the area is the unnormalised trapezoid over the steps, one apart.

    Parameters
    ----------
    steps : (n, k, s, 3) array
        TP, FP and FN of n submissions on k cases at s steps; NaN is left out, infinity is the worst there is.
    counts : (b, k) array of whole numbers
        How often each case is in each sample.

    Returns
    -------
    (b, n) array
        Lower is better; NaN where a sample holds no lesion, infinity where it holds an infinite case.
    """
    submissions, cases, number, _ = steps.shape
    flat = steps.transpose(1, 0, 2, 3).reshape(cases, -1)
    weights = counts.astype(float)
    sums = (weights @ np.where(np.isfinite(flat), flat, 0.0)).reshape(len(counts), submissions, number, 3)
    tp, fp, fn = np.moveaxis(sums, -1, 0)
    f1 = np.divide(2 * tp, 2 * tp + fp + fn, out=np.full(tp.shape, np.nan), where=tp + fn > 0)
    worst = weights @ np.isinf(steps).any(axis=(2, 3)).T > 0
    return np.where(worst, np.inf, -np.trapezoid(f1, axis=-1))


def steps_array(submissions: Sequence[Submission], *, metric: str) -> np.ndarray:
    """(n, k, s, 3) numbers of TP, FP and FN by click step; NaN for a lost case without them.

    Raises
    ------
    AutopetError
        A scored case has none, or two cases have different numbers of steps.
    """
    for submission in submissions:
        lacking = [case for case in submission.cases if not case.steps]
        bad = [case.case for case in lacking if case.scored]
        if bad or len(lacking) == len(submission.cases):
            raise AutopetError(
                f"metric {metric!r} is pooled over the cases and needs detection_steps, which the results of "
                f"{submission.name!r} lack{f' (case {bad[0]})' if bad else ''}; evaluate them anew with click steps"
            )
    lengths = sorted({len(case.steps) for submission in submissions for case in submission.cases if case.steps})
    if len(lengths) > 1:
        raise AutopetError(
            f"detection_steps hold {lengths[0]} steps for one case and {lengths[-1]} for another; expected as many "
            "for each; evaluate all submissions in the same way"
        )
    unknown = ((np.nan,) * 3,) * lengths[0]
    return np.array([[case.steps or unknown for case in submission.cases] for submission in submissions], dtype=float)
