"""An experiment's pictures: one dot per seed, a line at their mean, panels side by side. They stand alone as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from evaluation.metrics import METRICS
from leaderboard.experiments.common import Row
from leaderboard.experiments.summary import GROUPS, Spread, over_seeds, variants_of
from leaderboard.svg import Scale, element, fitted_scale, number, tick_text

PANEL_WIDTH, LEFT, TOP, ROW, FOOT = 250.0, 130.0, 46.0, 22.0, 46.0
GAP = 26.0
LEGEND_STEP = 130.0


@dataclass(frozen=True)
class Series:
    """Dots of one kind: their name, their colour, and how far below the middle of a line they lie."""

    title: str
    colour: str
    offset: float


@dataclass(frozen=True)
class Panel:
    """One quantity: `spreads` holds the values of its seeds for a line and the title of a series."""

    caption: str
    spreads: Mapping[tuple[str, str], Spread]


ALIGNMENTS = (Series("CT aligned", "#1f77b4", -4.0), Series("CT misaligned", "#d62728", 4.0))


def seeds_picture(rows: Sequence[Row], *, title: str) -> str:
    """SVG text: per variant and metric the mean over cases of every seed, aligned and misaligned cases apart."""
    variants = variants_of(rows)
    groups = [group for group in GROUPS if group.title in {one.title for one in ALIGNMENTS}]
    panels = []
    for metric in METRICS:
        caption = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
        spreads = {
            (variant, group.title): over_seeds(rows, variant=variant, metric=metric.name, group=group)
            for variant in variants
            for group in groups
        }
        panels.append(Panel(f"{caption}, {metric.direction} is better", spreads))
    words = "One dot per seed, a line at their mean; aligned and misaligned test cases apart."
    return dots_picture(variants, panels, series=ALIGNMENTS, title=title, words=words)


def dots_picture(
    lines: Sequence[str], panels: Sequence[Panel], *, series: Sequence[Series], title: str, words: str
) -> str:
    """SVG text: a line of dots for each name in `lines`, in every panel; what a panel does not hold stays empty."""
    bottom = TOP + ROW * len(lines)
    width = LEFT + max(len(panels) * (PANEL_WIDTH + GAP), len(series) * LEGEND_STEP)
    parts = [element("rect", x=0, y=0, width=width, height=bottom + FOOT, fill="white"), legend(series)]
    for index, line in enumerate(lines):
        parts.append(text(line, x=LEFT - 14, y=TOP + ROW * (index + 0.5) + 4, anchor="end"))
    for index, panel in enumerate(panels):
        left = LEFT + index * (PANEL_WIDTH + GAP)
        parts.append(text(panel.caption, x=left, y=TOP - 8))
        parts += _panel(panel, lines, series, left=left, bottom=bottom)
    return alone(width, bottom + FOOT, parts, title=title, words=words)


def alone(width: float, height: float, parts: Sequence[str], *, title: str, words: str) -> str:
    """SVG text of a picture that is a file of its own."""
    svg = element(
        "svg",
        element("title", title),
        element("desc", words),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        font_family="sans-serif",
        font_size=12,
    )
    return f"{svg}\n"


def _panel(panel: Panel, lines: Sequence[str], series: Sequence[Series], *, left: float, bottom: float) -> list[Markup]:
    values = np.array([value for spread in panel.spreads.values() for value in spread.known] or [math.nan])
    scale = fitted_scale(values, start=left, end=left + PANEL_WIDTH, logarithmic=False)
    parts = upright_lines(scale, top=TOP, bottom=bottom)
    for index, line in enumerate(lines):
        for one in series:
            spread = panel.spreads.get((line, one.title), Spread(()))
            parts += _dots(spread, scale, y=TOP + ROW * (index + 0.5) + one.offset, colour=one.colour)
    return parts


def upright_lines(scale: Scale, *, top: float, bottom: float) -> list[Markup]:
    """A thin line at every tick of a horizontal scale, with its number below."""
    parts = []
    for tick in scale.ticks():
        at = scale.at(tick)
        parts.append(element("line", x1=at, x2=at, y1=top, y2=bottom, stroke="#ddd"))
        parts.append(text(tick_text(tick), x=at, y=bottom + 16, anchor="middle"))
    return parts


def _dots(spread: Spread, scale: Scale, *, y: float, colour: str) -> list[Markup]:
    parts = [element("circle", cx=scale.at(value), cy=y, r=3, fill=colour, fill_opacity=0.55) for value in spread.known]
    if spread.known:
        at = scale.at(spread.mean)
        parts.append(element("line", x1=at, x2=at, y1=y - 5, y2=y + 5, stroke=colour, stroke_width=2))
    return parts


def legend(series: Sequence[Series]) -> Markup:
    """A dot and a title for each series, side by side above the panels."""
    parts = []
    for index, one in enumerate(series):
        x = LEFT + LEGEND_STEP * index
        parts.append(element("circle", cx=x + 4, cy=14.0, r=4, fill=one.colour))
        parts.append(text(one.title, x=x + 14, y=18.0))
    return Markup("").join(parts)


def text(words: str, *, x: float, y: float, anchor: str = "start") -> Markup:
    """A few words at a place."""
    return element("text", words, x=x, y=y, text_anchor=anchor, fill="#222")
