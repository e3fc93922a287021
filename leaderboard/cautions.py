"""What a reader must know before trusting a ranking: said by `rank`, on the site and in the text on methods."""

from __future__ import annotations

from collections.abc import Sequence

from leaderboard.bootstrap import can_vary
from leaderboard.scheme import Scheme
from leaderboard.submissions import Submission
from leaderboard.table import CaseTable


def cautions(submissions: Sequence[Submission], scheme: Scheme, table: CaseTable) -> tuple[str, ...]:
    """Sentences, the gravest first; none where there is nothing to warn of."""
    found = (
        _lost_and_ignored(submissions, scheme),
        _cannot_vary(scheme, table),
        _other_edition(submissions[0], scheme),
    )
    return tuple(text for text in found if text)


def _lost_and_ignored(submissions: Sequence[Submission], scheme: Scheme) -> str:
    if submissions[0].policy != "nan" or scheme.lost_policy != "ignore":
        return ""
    lossy = [f"{s.name} ({s.lost} of {len(s.cases)})" for s in submissions if s.lost]
    if not lossy:
        return ""
    return (
        f"WARNING: lost cases are left out of the means of the submissions that lost them: {', '.join(lossy)}. Who "
        'loses hard cases gains by it; rank with lost = "worst", or evaluate with another policy for failed cases.'
    )


def _cannot_vary(scheme: Scheme, table: CaseTable) -> str:
    if len(table.cases) == 1:
        return "NOTE: there is one case only; nothing can be said of the uncertainty of the ranks."
    single = [name for name, group in zip(table.group_names, table.groups, strict=True) if len(group) == 1]
    if not single or not scheme.bootstraps:
        return ""
    text = f"NOTE: subsets of one case are the same in every bootstrap sample: {', '.join(single)}; "
    if not can_vary(table):
        return text + "no subset has more, so nothing can be said of the uncertainty of the ranks."
    return text + "rank intervals and P(rank 1) look more certain than they are."


def _other_edition(first: Submission, scheme: Scheme) -> str:
    if first.edition != "III" or scheme.name != "I":
        return ""
    return (
        "NOTE: results evaluated with the rules of edition III are ranked by the scheme of edition I (the default); "
        "--scheme III ranks within tracers and centres, as edition III did."
    )
