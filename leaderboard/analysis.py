"""Everything that is said about a ranking, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.bootstrap import Stability, bootstrap_ranks
from leaderboard.cautions import cautions
from leaderboard.methods_text import methods_text
from leaderboard.ranking import Standing, rank_submissions
from leaderboard.robustness import Comparison, under_each_scheme, without_each_case, without_each_subset
from leaderboard.scheme import Scheme
from leaderboard.significance import Significance, pairwise_significance
from leaderboard.submissions import Submission
from leaderboard.table import CaseTable, case_table, refuse_empty


@dataclass(frozen=True, eq=False)
class Analysis:
    """A ranking and what it hangs on; arrays follow the order of `submissions`, `standings` are best first.

    `notes` are what to know before trusting it, see `leaderboard.cautions`.
    """

    scheme: Scheme
    submissions: tuple[Submission, ...]
    table: CaseTable
    standings: list[Standing]
    stability: Stability | None
    significance: Significance
    without_subset: Comparison | None
    without_case: Comparison | None
    schemes: Comparison
    methods: str
    notes: tuple[str, ...] = ()

    def index(self, standing: Standing) -> int:
        """Where the standing's submission is in the arrays."""
        return self.table.names.index(standing.submission.name)


def analyse(submissions: Sequence[Submission], scheme: Scheme) -> Analysis:
    """Rank, resample, test, and leave out: all that `ranking.json` holds."""
    table = case_table(submissions, scheme)
    refuse_empty(table, scheme)
    notes = cautions(submissions, scheme, table)
    stability = bootstrap_ranks(table, scheme)
    return Analysis(
        scheme=scheme,
        submissions=tuple(submissions),
        table=table,
        standings=rank_submissions(submissions, scheme),
        stability=stability,
        significance=pairwise_significance(table, scheme),
        without_subset=without_each_subset(table, scheme, submissions[0]),
        without_case=without_each_case(table, scheme),
        schemes=under_each_scheme(submissions, scheme),
        methods=methods_text(submissions, scheme, table, stability, notes=notes),
        notes=notes,
    )
