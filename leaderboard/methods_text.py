"""How the ranks were made, in words that can stand in a paper."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy

from autopet import __version__
from evaluation.statuses import SCORED, STATUSES
from leaderboard.bootstrap import Stability
from leaderboard.scheme import LOST_WORDS, MISSING_WORDS, Scheme
from leaderboard.significance import EXACT_UP_TO
from leaderboard.submissions import Submission
from leaderboard.table import CaseTable


def methods_text(
    submissions: Sequence[Submission],
    scheme: Scheme,
    table: CaseTable,
    stability: Stability | None = None,
    *,
    notes: Sequence[str] = (),
) -> str:
    """Paragraphs on the cases, the ranks, their uncertainty, the tests, and the software.

    Parameters
    ----------
    stability : Stability or None
        Of `bootstrap_ranks`; without it the paragraph on the bootstrap is left out.
    notes : sequence of str
        Of `cautions`: they end the text.
    """
    paragraphs = [
        _cohort(submissions, scheme, table),
        f"{scheme.words} Missing values: {MISSING_WORDS[scheme.missing]}; "
        f"{LOST_WORDS[scheme.lost_policy]}; a submission without any value for a metric "
        "ranks last in it. Differences below 1e-9 count as ties.",
        _bootstrap(scheme, stability) if stability is not None else "",
        _tests(scheme, len(submissions)),
        f"Software: autopet-bundle {__version__}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
        f"Python {platform.python_version()}.",
        *notes,
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _cohort(submissions: Sequence[Submission], scheme: Scheme, table: CaseTable) -> str:
    first = submissions[0]
    text = (
        f"{_count(len(submissions), 'submission')} {'was' if len(submissions) == 1 else 'were'} evaluated on "
        f"{_count(len(table.cases), 'case')}, with the rules of edition {first.edition} for cases without lesions"
    )
    text += f", and ranked by the scheme {scheme.title!r}."
    if scheme.subsets:
        sizes = [f"{name} ({len(group)})" for name, group in zip(table.group_names, table.groups, strict=True)]
        text += f" Subsets by {' and '.join(scheme.subsets)}, with their numbers of cases: {', '.join(sizes)}."
    statuses = Counter(status for submission in submissions for status in submission.statuses)
    lost = [f"{statuses[status]} {status}" for status in STATUSES if status != SCORED and statuses[status]]
    if lost:
        text += f" Of all predictions {', '.join(lost)}: {first.policy_text.rstrip('.')}."
    empty = np.isnan(table.values).all(axis=0).sum(axis=0)
    without = [f"{c.title} ({number})" for c, number in zip(scheme.columns, empty, strict=True) if number]
    if without:
        text += f" Cases in which a metric is undefined for all submissions: {', '.join(without)}."
    return text


def _bootstrap(scheme: Scheme, stability: Stability) -> str:
    resampled = "within each subset" if scheme.subsets else "from all cases"
    text = (
        f"The uncertainty of the ranks was estimated with {len(stability.ranks):,} bootstrap samples (seed "
        f"{scheme.seed}): cases were drawn with replacement {resampled}, the same cases for all submissions, and the "
        f"whole scheme was applied to each sample. Rank intervals hold {scheme.interval:.0%} of the sampled ranks"
    )
    if np.isfinite(stability.tau_mean):
        text += f"; Kendall's tau-b of the samples' rankings with the ranking on all cases was {stability.tau_mean:.2f}"
        text += " on average"
    text += "."
    if scheme.method == "test-then-rank":
        text += " In the samples, which hold repeated cases, the test statistic was taken as normally distributed."
    return text


def _tests(scheme: Scheme, submissions: int) -> str:
    if submissions < 2:
        return ""
    return (
        "Submissions were compared pairwise on each metric with one-sided Wilcoxon signed-rank tests over the cases "
        f"(zero differences dropped, exact distribution up to {EXACT_UP_TO} differences, normal with tie correction "
        f"above), with Holm's correction over the {submissions * (submissions - 1)} tests of a metric at level "
        f"{scheme.alpha:g}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
