"""An explanation as tables for the terminal, and as explain.json."""

from __future__ import annotations

import math
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autopet import __version__
from leaderboard.explain import Explanation, LesionDifference, MetricDifference
from leaderboard.ranking_files import plain


def explanation_tables(explanation: Explanation, *, top: int) -> list[RenderableType]:
    """Headline, one table per metric, cases that turn the order, and lesions; at most `top` rows each.

    Names come from participants and stay text.
    """
    parts: list[RenderableType] = [Text(headline(explanation))]
    for metric in explanation.metrics:
        parts.append(Text(f"\n{metric_words(explanation, metric)}"))
        if any(row.advantage for row in metric.cases):
            parts.append(_metric_table(explanation, metric, top=top))
    parts.append(Text(f"\n{turning_words(explanation)}\n"))
    parts.append(_lesions_shown(explanation, top=top))
    return parts


def headline(explanation: Explanation) -> str:
    """Who is where, in a sentence."""
    rank_a, rank_b = explanation.rank_a, explanation.rank_b
    order = "ahead of" if rank_a < rank_b else "behind" if rank_a > rank_b else "level with"
    return (
        f"{explanation.a} (rank {rank_a:g}) is {order} {explanation.b} (rank {rank_b:g}) by the scheme "
        f"{explanation.scheme.title}."
    )


def metric_words(explanation: Explanation, metric: MetricDifference) -> str:
    """The means of the two by one metric, and who is better by how much."""
    unit = f" {metric.column.unit}" if metric.column.unit else ""
    if math.isnan(metric.advantage):
        verdict = "their difference is undefined"
    elif metric.advantage == 0:
        verdict = "no difference"
    else:
        verdict = f"{explanation.a} is {'better' if metric.advantage > 0 else 'worse'}"
        if math.isfinite(metric.advantage):
            verdict += f" by {_number(abs(metric.advantage))}{unit}"
    if metric.column.aggregate:
        verdict += " (lesions are pooled: a case adds what leaving it out takes away)"
    return (
        f"{metric.column.title}: {_number(metric.mean_a)}{unit} (rank {metric.rank_a:g}) against "
        f"{_number(metric.mean_b)}{unit} (rank {metric.rank_b:g}); {verdict}"
    )


def turning_words(explanation: Explanation) -> str:
    """Which single cases decide the order of the two."""
    turning = [row for row in explanation.without_case if row.turns]
    if not explanation.without_case:
        return "There is one case only: it decides everything."
    if not turning:
        return "No single case decides the order of the two: it stays when any one case is left out."
    listed = ", ".join(f"{row.case} (ranks {row.rank_a:g} and {row.rank_b:g})" for row in turning[:10])
    more = f" and {len(turning) - 10} more" if len(turning) > 10 else ""
    which = "this case" if len(turning) == 1 else f"one of these {len(turning)} cases"
    return f"The order of the two changes when {which} is left out: {listed}{more}."


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation as plain data; null where a number is undefined."""
    return {
        "version": __version__,
        "algorithm": explanation.a,
        "against": explanation.b,
        "scheme": explanation.scheme.name,
        "summary": [headline(explanation), turning_words(explanation)],
        "rank": {"algorithm": plain(explanation.rank_a), "against": plain(explanation.rank_b)},
        "metrics": [_metric_json(metric) for metric in explanation.metrics],
        "without_case": [
            {"case": row.case, "rank": _pair(row.rank_a, row.rank_b), "turns": row.turns}
            for row in explanation.without_case
        ],
        "lesions": None if explanation.lesions is None else [_lesion_json(row) for row in explanation.lesions],
    }


def _metric_table(explanation: Explanation, metric: MetricDifference, *, top: int) -> Table:
    without = {row.case: row for row in explanation.without_case}
    table = Table()
    headers = ("case", explanation.a, explanation.b, "adds", "share", "ranks without the case")
    for header in headers:
        table.add_column(Text(header), justify="left" if header == "case" else "right")
    for row in [share for share in metric.cases if share.advantage != 0][:top]:
        left_out = without.get(row.case)
        ranks = f"{left_out.rank_a:g}, {left_out.rank_b:g}{' turns' if left_out.turns else ''}" if left_out else ""
        share = "" if math.isnan(row.share) else f"{row.share:.0%}"
        cells = (row.case, _number(row.a), _number(row.b), f"{row.advantage:+.4g}", share, ranks)
        table.add_row(*map(Text, cells))
    return table


def _lesions_shown(explanation: Explanation, *, top: int) -> RenderableType:
    if explanation.lesions is None:
        return Text("Lesions are not listed: lesions.csv is missing beside one metrics.json.")
    if not explanation.lesions:
        return Text("No lesion tells the two apart: they found the same ones, and neither made one up.")
    table = Table(title=Text("Lesions that tell the two apart, the largest first"), title_justify="left")
    for header in ("case", "lesion", "what", "in favour of", "ml", "SUVmax", "centre x, y, z mm"):
        table.add_column(header)
    for row in explanation.lesions[:top]:
        lesion = row.lesion
        favoured = explanation.a if row.to_the_good_of == "a" else explanation.b
        centre = ", ".join(f"{value:.0f}" for value in lesion.centre_mm)
        cells = (row.case, str(lesion.lesion), row.what, favoured, _number(lesion.volume_ml))
        table.add_row(*map(Text, (*cells, _number(lesion.suv_max), centre)))
    return table


def _metric_json(metric: MetricDifference) -> dict[str, Any]:
    return {
        "metric": metric.column.metric,
        "mean": _pair(metric.mean_a, metric.mean_b),
        "rank": _pair(metric.rank_a, metric.rank_b),
        "advantage": plain(metric.advantage),
        "cases": [
            {
                "case": row.case,
                "value": _pair(row.a, row.b),
                "advantage": plain(row.advantage),
                "share": plain(row.share),
            }
            for row in metric.cases
        ],
    }


def _lesion_json(row: LesionDifference) -> dict[str, Any]:
    lesion = row.lesion
    return {
        "case": row.case,
        "kind": lesion.kind,
        "lesion": lesion.lesion,
        "what": row.what,
        "in_favour_of": "algorithm" if row.to_the_good_of == "a" else "against",
        "volume_ml": plain(lesion.volume_ml),
        "suv_max": plain(lesion.suv_max),
        "centre_mm": [plain(value) for value in lesion.centre_mm],
    }


def _pair(a: float, b: float) -> dict[str, float | int | None]:
    return {"algorithm": plain(a), "against": plain(b)}


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
