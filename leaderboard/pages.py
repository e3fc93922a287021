"""The pages of all cases together and of the algorithms, as HTML texts. Whatever a submission says is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.statuses import SCORED
from leaderboard.plots import Axis, Plot, bland_altman_plot, blob_plot, box_plot, percent, scatter_plot
from leaderboard.view import Board, Entrant, Findings, Measure, median_and_quartiles, number_text, rank_text

TEMPLATES = Path(__file__).parent / "templates"
PAGES = "pages"
NAVIGATION = (
    ("ranking", "Ranking", "index.html"),
    ("metrics", "Metrics", "metrics.html"),
    ("volumes", "Volumes", "volumes.html"),
    ("cases", "Cases", "cases.html"),
)
BIOMARKERS = (("mtv", "MTV", "gt_ml", "pred_ml", "ml"), ("tlg", "TLG", "gt_tlg_g", "pred_tlg_g", "g"))
EXTREMES = 10
DEEPEST = 0.62  # share of the heat colour behind the best value: text stays readable on it


@dataclass(frozen=True)
class Agreement:
    """How an algorithm's volumes agree with the truth: texts for a table, two plots, and why a number is lacking."""

    entrant: Entrant
    texts: tuple[str, ...]
    plots: tuple[Plot, Plot]
    reason: str


@dataclass(frozen=True)
class Summary:
    """One metric of one algorithm over the cases."""

    measure: Measure
    rank: str
    mean: float
    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, eq=False)
class Place:
    """A step of the podium; `first` is the algorithm's share of samples with rank 1, None when it is not known."""

    rank: str
    entrants: tuple[Entrant, ...]
    score: float
    first: float | None


def index_page(board: Board, findings: Findings) -> str:
    """Podium, ranking, subsets, and how sure they are."""
    groups = [(group, len(list(columns))) for group, columns in groupby(findings.columns, key=lambda c: c.group)]
    return render(
        "index.html.j2",
        board,
        here="ranking",
        at_root=True,
        findings=findings,
        first=board.entrants[0].standing.submission,
        hows=["Pooled" if c.aggregate else board.scheme.aggregate.capitalize() for c in board.scheme.columns],
        podium=_podium(board, findings),
        blob=_blob(board, findings),
        groups=groups,
        has_tau=any(math.isfinite(column.tau) for column in findings.columns),
        shade=lambda rank: DEEPEST * (len(board.entrants) - rank) / max(len(board.entrants) - 1, 1),
        scored=SCORED,
    )


def _podium(board: Board, findings: Findings) -> list[Place]:
    """The three best ranks; those who share one share its step."""
    steps = [list(group) for _, group in groupby(board.entrants, key=lambda entrant: entrant.standing.rank)]
    first = findings.uncertainty.first if findings.uncertainty else None
    return [
        Place(
            rank=step[0].rank,
            entrants=tuple(step),
            score=step[0].standing.score,
            first=first[step[0].number] if first and len(step) == 1 else None,
        )
        for step in steps[:3]
        if step[0].standing.rank <= 3
    ]


def _blob(board: Board, findings: Findings) -> Plot | None:
    known = findings.uncertainty
    if known is None:
        return None
    ranks = [float(entrant.standing.rank) for entrant in board.entrants]
    return blob_plot(board.names, known.shares, ranks=ranks, low=known.low, high=known.high)


def metrics_page(board: Board) -> str:
    """Box plots of every metric."""
    others = [measure for measure in board.others if measure.direction in ("higher", "lower")]
    return render(
        "metrics.html.j2",
        board,
        here="metrics",
        ranked=[_box(board, measure) for measure in board.ranked],
        others=[_box(board, measure) for measure in others],
    )


def _box(board: Board, measure: Measure) -> Plot:
    axis = Axis(f"{measure.title} {measure.arrow}".strip(), measure.unit, measure.logarithmic)
    number = [m.name for m in board.measures].index(measure.name)
    return box_plot(board.names, board.values[measure.name], axis=axis, identifier=f"box-{number}", lost=board.lost)


def volumes_page(board: Board) -> str:
    """Agreement of MTV and TLG with the truth."""
    sections, lacking = [], []
    for key, title, true_name, guess_name, unit in BIOMARKERS:
        if np.isfinite(board.truth(true_name)).any():
            rows = [_agreement(board, e, key, title, true_name, guess_name, unit) for e in board.entrants]
            sections.append({"key": key, "title": title, "unit": unit, "rows": rows})
        else:
            lacking.append(f"{title} was not computed: the results hold no {true_name}.")
    return render("volumes.html.j2", board, here="volumes", sections=sections, lacking=lacking if sections else [])


def _agreement(
    board: Board, entrant: Entrant, key: str, title: str, true_name: str, guess_name: str, unit: str
) -> Agreement:
    cohort = entrant.standing.submission.cohort
    icc, pearson, bland = (_entry(cohort, f"{kind}_{key}") for kind in ("icc", "pearson", "bland_altman"))
    bias, lower, upper = (_value(bland, name) for name in ("bias", "lower", "upper"))
    truth, guess = board.truth(true_name), board.values.get(guess_name, board.truth(""))[entrant.number]
    axis, identifier = Axis(title, unit, logarithmic=True), f"{key}-{entrant.key}"
    known = math.isfinite(lower) and math.isfinite(upper)
    plots = (
        scatter_plot(truth, guess, axis=axis, identifier=f"scatter-{identifier}", of=entrant.name),
        bland_altman_plot(
            truth,
            guess,
            axis=axis,
            identifier=f"bland-{identifier}",
            of=entrant.name,
            bias=bias if math.isfinite(bias) else None,
            limits=(lower, upper) if known else None,
        ),
    )
    texts = (
        number_text(_value(icc, "value"), 3),
        _interval(icc.get("ci95"), 3),
        number_text(_value(pearson, "value"), 3),
        number_text(bias, 2),
        _interval([lower, upper] if known else None, 2),
        str(int((np.isfinite(truth) & np.isfinite(guess)).sum())),
    )
    return Agreement(entrant, texts, plots, str(icc.get("reason", "")))


def _entry(cohort: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    entry = cohort.get(key)
    return entry if isinstance(entry, Mapping) else {}


def _value(entry: Mapping[str, Any], key: str) -> float:
    value = entry.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _interval(ends: Any, digits: int) -> str:
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        return number_text(math.nan)
    return f"{number_text(ends[0], digits)} to {number_text(ends[1], digits)}"


def cases_page(board: Board) -> str:
    """Values of all cases by all algorithms."""

    def shade(measure: Measure, value: float) -> float:
        values = board.values[measure.name]
        worst, best = (np.nanmin(values), np.nanmax(values))
        if measure.logarithmic:  # a volume of errors: 0 is best, and 1 ml against 10 ml matters
            value, worst, best = (float(np.log10(1 + max(float(v), 0.0))) for v in (value, worst, best))
        share = (value - worst) / (best - worst) if best > worst else 1.0
        return DEEPEST * (share if measure.direction == "higher" or best <= worst else 1 - share)

    return render("cases.html.j2", board, here="cases", shade=shade, truth=board.truth("gt_ml"))


def algorithm_page(board: Board, findings: Findings, entrant: Entrant) -> str:
    """One algorithm: values, ranks, extremes, failures."""
    results = entrant.standing.submission.cases
    order = _by_value(board, entrant)
    shown = min(EXTREMES, (len(order) + 1) // 2)
    plots = [
        plot
        for key, title, true_name, guess_name, unit in BIOMARKERS
        if np.isfinite(board.truth(true_name)).any()
        for plot in _agreement(board, entrant, key, title, true_name, guess_name, unit).plots
    ]
    return render(
        "algorithm.html.j2",
        board,
        here="",
        findings=findings,
        e=entrant,
        summary=[_summary(board, entrant, i, measure) for i, measure in enumerate(board.measures)],
        lost=[(p, results[p.number]) for p in board.patients if board.lost[entrant.number, p.number]],
        worst=[board.patients[i] for i in order[:shown]],
        best=[board.patients[i] for i in order[::-1][:shown]],
        plots=plots,
        scored=SCORED,
    )


def _summary(board: Board, entrant: Entrant, number: int, measure: Measure) -> Summary:
    values = board.values[measure.name][entrant.number]
    known = values[np.isfinite(values)]
    median, low, high = median_and_quartiles(values)
    rank = rank_text(entrant.standing.ranks[number]) if number < len(board.ranked) else ""
    return Summary(measure, rank, float(known.mean()) if known.size else math.nan, median, low, high, int(known.size))


def _by_value(board: Board, entrant: Entrant) -> list[int]:
    """Cases with a value of the first ranked measure, worst first; the others break ties."""
    rows = [board.values[m.name][entrant.number] * (1 if m.direction == "higher" else -1) for m in board.ranked]
    known = [int(i) for i in np.flatnonzero(np.isfinite(rows[0]))]
    return sorted(known, key=lambda i: tuple(float(np.nan_to_num(row[i])) for row in rows))


def render(template: str, board: Board, *, here: str, at_root: bool = False, **content: Any) -> str:
    """Fill in a template; links lead from the root or from the folder of pages."""
    pages, root = (f"{PAGES}/", "") if at_root else ("", "../")
    navigation = [(key, text, (root if key == "ranking" else pages) + file) for key, text, file in NAVIGATION]
    template_text = environment().get_template(template)
    return template_text.render(board=board, here=here, pages=pages, navigation=navigation, **content)


@cache
def environment() -> Environment:
    """Templates that escape everything and refuse names that nobody defined."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number_text, rank=rank_text, percent=percent, p_value=_p_text)
    return made


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
