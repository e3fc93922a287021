"""The picture of an experiment: one dot per seed, a line at their mean, one panel per metric. Stands alone as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from evaluation.metrics import METRICS
from leaderboard.experiments.common import Row
from leaderboard.experiments.summary import GROUPS, Spread, over_seeds, variants_of
from leaderboard.svg import element, fitted_scale, number, tick_text

PANEL_WIDTH, LEFT, TOP, ROW = 250.0, 130.0, 46.0, 22.0
GAP = 26.0
STYLES = {"CT aligned": "#1f77b4", "CT misaligned": "#d62728"}
OFFSETS = {"CT aligned": -4.0, "CT misaligned": 4.0}


def seeds_picture(rows: Sequence[Row], *, title: str) -> str:
    """SVG text: per variant and metric the mean over cases of every seed, aligned and misaligned cases apart."""
    variants = variants_of(rows)
    bottom = TOP + ROW * len(variants)
    width = LEFT + len(METRICS) * (PANEL_WIDTH + GAP)
    parts = [element("rect", x=0, y=0, width=width, height=bottom + 46, fill="white"), _legend()]
    for index, variant in enumerate(variants):
        parts.append(_text(variant, x=LEFT - 14, y=TOP + ROW * (index + 0.5) + 4, anchor="end"))
    for index, metric in enumerate(METRICS):
        left = LEFT + index * (PANEL_WIDTH + GAP)
        caption = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
        parts.append(_text(f"{caption}, {metric.direction} is better", x=left, y=TOP - 8))
        parts += _panel(rows, variants, metric.name, left=left, bottom=bottom)
    words = "One dot per seed, a line at their mean; aligned and misaligned test cases apart."
    svg = element(
        "svg",
        element("title", title),
        element("desc", words),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(bottom + 46)}",
        width=width,
        height=bottom + 46,
        font_family="sans-serif",
        font_size=12,
    )
    return f"{svg}\n"


def _panel(rows: Sequence[Row], variants: Sequence[str], metric: str, *, left: float, bottom: float) -> list[Markup]:
    groups = [group for group in GROUPS if group.title in STYLES]
    found: dict[tuple[int, str], Spread] = {
        (index, group.title): over_seeds(rows, variant=variant, metric=metric, group=group)
        for index, variant in enumerate(variants)
        for group in groups
    }
    values = np.array([value for spread in found.values() for value in spread.known] or [math.nan])
    scale = fitted_scale(values, start=left, end=left + PANEL_WIDTH, logarithmic=False)
    parts = []
    for tick in scale.ticks():
        at = scale.at(tick)
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=bottom, stroke="#ddd"))
        parts.append(_text(tick_text(tick), x=at, y=bottom + 16, anchor="middle"))
    for (index, title), spread in found.items():
        y = TOP + ROW * (index + 0.5) + OFFSETS[title]
        for value in spread.known:
            parts.append(element("circle", cx=scale.at(value), cy=y, r=3, fill=STYLES[title], fill_opacity=0.55))
        if spread.known:
            at = scale.at(spread.mean)
            parts.append(element("line", x1=at, x2=at, y1=y - 5, y2=y + 5, stroke=STYLES[title], stroke_width=2))
    return parts


def _legend() -> Markup:
    parts = []
    for index, (title, colour) in enumerate(STYLES.items()):
        x = LEFT + 130.0 * index
        parts.append(element("circle", cx=x + 4, cy=14.0, r=4, fill=colour))
        parts.append(_text(title, x=x + 14, y=18.0))
    return Markup("").join(parts)


def _text(text: str, *, x: float, y: float, anchor: str = "start") -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, fill="#222")
