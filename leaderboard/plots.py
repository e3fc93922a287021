"""The site's plots: inline SVG from arrays, coloured by the page's CSS variables, each with its numbers as a table.

They are drawn here and not with matplotlib because they have to follow the page's theme, keep their text as text, and
stay small: 30 algorithms x 200 cases of one metric are about 80 kB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from leaderboard.svg import Scale, dots, element, fitted_scale, label, picture, tick_text

NAME_WIDTH = 190.0
ROW_HEIGHT = 30.0
TOP = 14.0
FEW = 10  # algorithms that have room for larger bubbles
GOLDEN = (math.sqrt(5) - 1) / 2  # spreads successive dots evenly without a random generator
SMALL_SHARE = 0.0005


@dataclass(frozen=True)
class Plot:
    """A drawing, what it shows in words, and the same numbers as a table (`header` and `rows` of texts)."""

    identifier: str
    title: str
    words: str
    svg: Markup
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Axis:
    """What an axis measures; `logarithmic` for volumes, which span decades."""

    title: str
    unit: str = ""
    logarithmic: bool = False

    @property
    def text(self) -> str:
        """The axis' caption."""
        caption = f"{self.title} ({self.unit})" if self.unit else self.title
        return caption + (", logarithmic" if self.logarithmic else "")


def blob_plot(
    names: Sequence[str], shares: np.ndarray, *, ranks: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> Plot:
    """Bootstrap distribution of the ranks: the area of a bubble is the share of the resamples.

    Parameters
    ----------
    names : n texts
        Best first.
    shares : (n, n) array
        Share of the resamples in which algorithm i has rank j + 1; rows sum to 1.
    ranks, low, high : n numbers
        The rank by all cases and the ends of its interval.

    References
    ----------
    Wiesenfarth et al., Methods and open-source toolkit for analyzing and visualizing challenge results, Sci Rep 2021.
    """
    n = len(names)
    row = 44.0 if n <= FEW else ROW_HEIGHT
    step = max(row + 4, min(110.0, 700 / n))
    width, height = NAME_WIDTH + step * n + 16, TOP + row * n + 44
    content = [_rank_axis(n, step, height)]
    for i, name in enumerate(names):
        y = TOP + row * (i + 0.5)
        place = [NAME_WIDTH + step * (rank - 0.5) for rank in (low[i], high[i], ranks[i])]
        content.append(label(name, x=NAME_WIDTH - 12, y=y + 4))
        content.append(element("line", x1=place[0], x2=place[1], y1=y, y2=y, class_="interval"))
        content.extend(_bubbles(name, shares[i], y=y, step=step, largest=row / 2 - 1.5))
        content.append(element("line", x1=place[2], x2=place[2], y1=y - 6, y2=y + 6, class_="mark"))
    words = (
        "One row per algorithm, one column per rank. The area of a bubble is the share of the bootstrap resamples that "
        "gave the algorithm this rank, the line is the rank interval, the stroke is the rank by all cases."
    )
    rows = tuple(
        (name, f"{ranks[i]:g}", f"{low[i]:g}\N{EN DASH}{high[i]:g}", *(percent(share) for share in shares[i]))
        for i, name in enumerate(names)
    )
    header = ("Algorithm", "Rank", "Interval", *(f"Rank {j + 1}" for j in range(n)))
    svg = picture(width, height, content, identifier="blob", title="Ranks in bootstrap resamples", words=words)
    return Plot("blob", "Ranks in bootstrap resamples", words, svg, header, rows)


def _rank_axis(n: int, step: float, height: float) -> Markup:
    lines = []
    for j in range(n):
        x = NAME_WIDTH + step * (j + 0.5)
        lines.append(element("line", x1=x, x2=x, y1=TOP, y2=height - 40, class_="grid"))
        lines.append(element("text", str(j + 1), x=x, y=height - 24, text_anchor="middle", class_="tick"))
    caption = element("text", "Rank", x=NAME_WIDTH + step * n / 2, y=height - 6, text_anchor="middle", class_="axis")
    return Markup("").join([*lines, caption])


def _bubbles(name: str, shares: np.ndarray, *, y: float, step: float, largest: float) -> list[Markup]:
    return [
        element(
            "circle",
            element("title", f"{name}: rank {j + 1} in {percent(share)} of the resamples"),
            cx=NAME_WIDTH + step * (j + 0.5),
            cy=y,
            r=max(1.0, largest * math.sqrt(share)),
            class_="blob",
        )
        for j, share in enumerate(shares)
        if share >= SMALL_SHARE
    ]


def percent(share: float) -> str:
    """A share as text; what rounds to nothing or to everything says so."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.9995 else f"{100 * share:.0f} %"


def box_plot(
    names: Sequence[str], values: np.ndarray, *, axis: Axis, identifier: str, lost: np.ndarray | None = None
) -> Plot:
    """Values of one metric: box from the lower to the upper quartile, median, whiskers to the 5th and 95th percentile.

    Parameters
    ----------
    names : n texts
        One row each.
    values : (n, cases) array
        NaN = undefined, left out.
    axis : Axis
    lost : (n, cases) bool array, optional
        Cases without a valid prediction, drawn in another colour and shape.
    """
    n, width = len(names), 820.0
    height = TOP + ROW_HEIGHT * n + 44
    scale = fitted_scale(values, start=NAME_WIDTH + 6, end=width - 20, logarithmic=axis.logarithmic)
    lost = np.zeros(values.shape, bool) if lost is None else lost
    content = [_value_axis(scale, axis, top=TOP, bottom=height - 40)]
    rows = []
    for i, name in enumerate(names):
        y = TOP + ROW_HEIGHT * (i + 0.5)
        content.append(label(name, x=NAME_WIDTH - 12, y=y + 4))
        content.extend(_box(values[i], lost[i], scale=scale, y=y))
        rows.append(_box_row(name, values[i]))
    words = (
        f"{axis.title} of {n} algorithms. Box: quartiles and median; whiskers: 5th and 95th percentile; dots: cases"
        + ("; crosses: cases without a valid prediction." if lost.any() else ".")
    )
    svg = picture(width, height, content, identifier=identifier, title=f"{axis.title} by algorithm", words=words)
    header = ("Algorithm", "Cases", "Minimum", "25 %", "Median", "75 %", "Maximum", "Mean")
    return Plot(identifier, axis.title, words, svg, header, tuple(rows))


def _value_axis(scale: Scale, axis: Axis, *, top: float, bottom: float) -> Markup:
    parts = []
    for value in scale.ticks():
        x = scale.at(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(element("text", tick_text(value), x=x, y=bottom + 16, text_anchor="middle", class_="tick"))
    middle = (scale.start + scale.end) / 2
    parts.append(element("text", axis.text, x=middle, y=bottom + 34, text_anchor="middle", class_="axis"))
    return Markup("").join(parts)


def _box(values: np.ndarray, lost: np.ndarray, *, scale: Scale, y: float) -> list[Markup]:
    known = np.isfinite(values)
    if not known.any():
        return [element("text", "no values", x=scale.start + 4, y=y + 4, class_="tick")]
    low, first, middle, third, high = (scale.at(q) for q in np.percentile(values[known], (5, 25, 50, 75, 95)))
    spread = y + (np.arange(values.size) * GOLDEN % 1 - 0.5) * (ROW_HEIGHT - 10)
    usual, failed = known & ~lost, known & lost
    return [
        dots(scale(values[usual]), spread[usual], class_="dots"),
        _crosses(scale(values[failed]), spread[failed]),
        element("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"),
        element("rect", x=first, y=y - 8, width=max(third - first, 0.5), height=16, rx=2, class_="box"),
        element("line", x1=middle, x2=middle, y1=y - 8, y2=y + 8, class_="median"),
    ]


def _crosses(xs: np.ndarray, ys: np.ndarray) -> Markup:
    steps = "".join(f"M{x - 3:.0f} {y - 3:.0f}l6 6m0-6l-6 6" for x, y in zip(xs, ys, strict=True))
    return element("path", d=steps, class_="crosses") if steps else Markup("")


def _box_row(name: str, values: np.ndarray) -> tuple[str, ...]:
    known = values[np.isfinite(values)]
    if not known.size:
        return (name, "0", *["\N{EN DASH}"] * 6)
    numbers = [*np.percentile(known, (0, 25, 50, 75, 100)), known.mean()]
    return (name, str(known.size), *(f"{value:.3f}" for value in numbers))


def scatter_plot(truth: np.ndarray, guess: np.ndarray, *, axis: Axis, identifier: str, of: str) -> Plot:
    """Predicted against true volumes of the cases, with the line of identity.

    Parameters
    ----------
    truth, guess : (cases,) arrays
        In one unit; cases where one is NaN are left out.
    axis : Axis
        Of both.
    of : str
        The algorithm.
    """
    known = np.isfinite(truth) & np.isfinite(guess)
    both = np.concatenate([truth[known], guess[known]])
    frame = _Frame()
    x = fitted_scale(both, start=frame.left, end=frame.right, logarithmic=axis.logarithmic)
    y = fitted_scale(both, start=frame.bottom, end=frame.top, logarithmic=axis.logarithmic)
    identity = element("line", x1=x.at(x.low), y1=y.at(y.low), x2=x.at(x.high), y2=y.at(y.high), class_="mark thin")
    content = [frame.axes(x, y, f"True {axis.text}", f"Predicted {axis.title}"), identity]
    content.append(dots(x(truth[known]), y(guess[known]), class_="dots large"))
    words = f"{axis.title} of {int(known.sum())} cases: predicted by {of} against the truth, with the line of identity."
    title = f"{axis.title}: prediction against truth"
    svg = picture(frame.width, frame.height, content, identifier=identifier, title=title, words=words)
    rows = (
        ("cases", str(int(known.sum()))),
        ("largest true value", _largest(truth[known])),
        ("largest predicted value", _largest(guess[known])),
    )
    return Plot(identifier, title, words, svg, ("Value", axis.unit or axis.title), rows)


def _largest(values: np.ndarray) -> str:
    return f"{values.max():.1f}" if values.size else "\N{EN DASH}"


def bland_altman_plot(
    truth: np.ndarray,
    guess: np.ndarray,
    *,
    axis: Axis,
    identifier: str,
    of: str,
    bias: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Plot:
    """Difference (prediction - truth) against the mean of both, with the bias and the limits of agreement.

    Parameters
    ----------
    truth, guess : (cases,) arrays
        In one unit; cases where one is NaN are left out.
    bias, limits : float and float x 2, optional
        Mean difference and its 95 % limits of agreement, from the evaluation; lines are drawn for what is given.

    References
    ----------
    Bland and Altman, Statistical methods for assessing agreement, Lancet 1986.
    """
    known = np.isfinite(truth) & np.isfinite(guess)
    mean, difference = (truth[known] + guess[known]) / 2, guess[known] - truth[known]
    frame, levels = _Frame(), [*([] if bias is None else [bias]), *(limits or ())]
    x = fitted_scale(mean, start=frame.left, end=frame.right, logarithmic=axis.logarithmic)
    everything = np.concatenate([difference, levels])
    y = fitted_scale(everything, start=frame.bottom, end=frame.top, logarithmic=axis.logarithmic)
    lines = [(y.at(value), "mark" if i == 0 and bias is not None else "mark dashed") for i, value in enumerate(levels)]
    content = [frame.axes(x, y, f"Mean of both {axis.text}", f"Prediction \N{MINUS SIGN} truth ({axis.unit})")]
    content += [element("line", x1=frame.left, x2=frame.right, y1=at, y2=at, class_=kind) for at, kind in lines]
    content.append(dots(x(mean), y(difference), class_="dots large"))
    words = f"Bland-Altman plot of the {axis.title} of {of} in {int(known.sum())} cases" + (
        ": the line is the bias, the dashed lines are the 95 % limits of agreement." if levels else "."
    )
    title = f"{axis.title}: Bland-Altman"
    svg = picture(frame.width, frame.height, content, identifier=identifier, title=title, words=words)
    named = zip(("bias", "lower limit", "upper limit"), levels, strict=False)
    rows = (("cases", str(int(known.sum()))), *((key, f"{value:.2f}") for key, value in named))
    return Plot(identifier, title, words, svg, ("Value", axis.unit or axis.title), rows)


@dataclass(frozen=True)
class _Frame:
    """A small square plot's place for axes."""

    width: float = 380.0
    height: float = 300.0
    left: float = 64.0
    right: float = 366.0
    top: float = 12.0
    bottom: float = 250.0

    def axes(self, x: Scale, y: Scale, x_text: str, y_text: str) -> Markup:
        parts = [_value_axis(x, Axis(x_text), top=self.top, bottom=self.bottom)]
        for value in y.ticks():
            at = y.at(value)
            parts.append(element("line", x1=self.left, x2=self.right, y1=at, y2=at, class_="grid"))
            parts.append(element("text", tick_text(value), x=self.left - 8, y=at + 4, text_anchor="end", class_="tick"))
        middle = (self.top + self.bottom) / 2
        turn = f"rotate(-90 14 {middle:g})"
        parts.append(element("text", y_text, x=14, y=middle, text_anchor="middle", class_="axis", transform=turn))
        return Markup("").join(parts)
