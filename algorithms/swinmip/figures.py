"""Two pictures of the protocol as SVG: Dice over the threshold, and the classifiers' scores with the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from autopet.thresholds import GRID

LEFT, TOP, WIDTH, HEIGHT = 60.0, 24.0, 460.0, 260.0  # of the plot within the picture, pixels
LEGEND = 230.0  # room on the right
COLOURS = ("#7aa6d8", "#8cc08c", "#d8a86a", "#b58ccf", "#7fc4c4", "#c9c06a", "#a0a0a0")  # of the folds, in turns
DARK, RED, BLUE = "#222222", "#d62728", "#1f77b4"
TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ROWS = (("with lesions", RED), ("without lesions", BLUE))


def dice_picture(curves: Mapping[str, Sequence[float]], optima: Mapping[str, tuple[float, float]]) -> str:
    """SVG text: mean Dice over the threshold, a line per name, the last one (the ensemble) in bold.

    Parameters
    ----------
    curves : mapping of name to (k,) mean Dice at the thresholds of `autopet.thresholds.GRID`
    optima : mapping of name to (threshold, mean Dice), marked with a dot
    """
    parts = [_axes("threshold", "mean Dice")]
    for index, (name, curve) in enumerate(curves.items()):
        last = index == len(curves) - 1
        colour = DARK if last else COLOURS[index % len(COLOURS)]
        points = " ".join(f"{_x(t):.1f},{_y(d):.1f}" for t, d in zip(GRID, curve, strict=True))
        parts.append(_tag("polyline", points=points, fill="none", stroke=colour, stroke_width=3 if last else 1.5))
        threshold, dice = optima[name]
        parts.append(_tag("circle", cx=_x(threshold), cy=_y(dice), r=5 if last else 4, fill=colour))
        y = TOP + 14 + 20 * index
        parts.append(_tag("circle", cx=LEFT + WIDTH + 18, cy=y - 4, r=5, fill=colour))
        parts.append(_text(f"{name}: {threshold:.3f}, Dice {dice:.3f}", x=LEFT + WIDTH + 30, y=y))
    height = max(TOP + HEIGHT + 44, TOP + 20 * len(curves) + 10)
    words = "Mean Dice: each fold on its validation cases, the ensemble on the test cases. Dots: the optima."
    return _picture(parts, height, title="Dice over the threshold", words=words)


def gate_picture(with_lesions: Sequence[float], without: Sequence[float], *, highest: float, threshold: float) -> str:
    """SVG text: a dot per test case at its score, cases with and without lesions apart, and the gate's two lines."""
    height = 150.0
    parts = [_axes("mean probability of all classifiers", "", height=height)]
    for row, (scores, (name, colour)) in enumerate(zip((with_lesions, without), ROWS, strict=True)):
        middle = TOP + height * (0.22 + 0.4 * row)
        for index, score in enumerate(sorted(scores)):
            y = middle + 7 * (index % 5 - 2)  # spread, so that equal scores are seen apart
            parts.append(_tag("circle", cx=_x(score), cy=y, r=4, fill=colour, fill_opacity=0.6))
        parts.append(_text(f"{len(scores)} {name}", x=LEFT + WIDTH + 18, y=middle + 4, fill=colour))
    lines = ((highest, "6 4", "highest, dashed:"), (threshold, "none", "gate:"))
    for row, (value, dash, name) in enumerate(lines):
        ends = {"x1": _x(value), "x2": _x(value), "y1": TOP, "y2": TOP + height}
        parts.append(_tag("line", **ends, stroke=DARK, stroke_dasharray=dash))
        parts.append(_text(f"{name} {value:.4g}", x=LEFT + WIDTH + 18, y=TOP + height - 18 + 16 * row))
    words = "Scans left of the solid line are not segmented. Dashed: the highest threshold that keeps all with lesions."
    return _picture(parts, TOP + height + 44, title="Scores of the test cases, and the gate", words=words)


def _x(value: float) -> float:
    return LEFT + WIDTH * value


def _y(value: float) -> float:
    return TOP + HEIGHT * (1 - value)


def _axes(x_title: str, y_title: str, height: float = HEIGHT) -> str:
    """Both from 0 to 1; without a title of y its axis has no numbers."""
    bottom = TOP + height
    parts = [_tag("rect", x=LEFT, y=TOP, width=WIDTH, height=height, fill="none", stroke="#999")]
    for tick in TICKS:
        parts.append(_tag("line", x1=_x(tick), x2=_x(tick), y1=TOP, y2=bottom, stroke="#e4e4e4"))
        parts.append(_text(f"{tick:g}", x=_x(tick), y=bottom + 16, text_anchor="middle"))
        if y_title:
            parts.append(_tag("line", x1=LEFT, x2=LEFT + WIDTH, y1=_y(tick), y2=_y(tick), stroke="#e4e4e4"))
            parts.append(_text(f"{tick:g}", x=LEFT - 8, y=_y(tick) + 4, text_anchor="end"))
    parts.append(_text(x_title, x=LEFT + WIDTH / 2, y=bottom + 36, text_anchor="middle"))
    if y_title:
        turned = f"rotate(-90 16 {TOP + height / 2:.1f})"
        parts.append(_text(y_title, x=16.0, y=TOP + height / 2, text_anchor="middle", transform=turned))
    return "".join(parts)


def _picture(parts: Sequence[str], height: float, *, title: str, words: str) -> str:
    width = LEFT + WIDTH + LEGEND
    inner = f"<title>{escape(title)}</title><desc>{escape(words)}</desc>"
    background = _tag("rect", x=0, y=0, width=width, height=height, fill="white")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="12">{inner}{background}{"".join(parts)}</svg>\n'
    )


def _text(text: str, **attributes: object) -> str:
    return _tag("text", **({"fill": DARK} | attributes)).removesuffix("/>") + f">{escape(text)}</text>"


def _tag(name: str, **attributes: object) -> str:
    """An element; underscores become hyphens, numbers get two decimals at most."""
    words = [name]
    for key, value in attributes.items():
        text = f"{np.round(value, 2):g}" if isinstance(value, float) else escape(str(value))
        words.append(f'{key.replace("_", "-")}="{text}"')
    return f"<{' '.join(words)}/>"
