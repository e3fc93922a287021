"""SVG elements as escaped text, and the scales and ticks of a plot's axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

LOG_TICKS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
ROOM = 0.03  # of a scale's length, beyond the largest value
LABEL_CHARACTERS = 24  # of a name beside a plot; the whole name is in its tooltip and in the table


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element; attribute names lose a closing underscore, other underscores become hyphens, numbers are rounded.

    Examples
    --------
    >>> print(element("text", "a < b", x=1.234, text_anchor="end"))
    <text x="1.23" text-anchor="end">a &lt; b</text>
    """
    words = [tag]
    for key, value in attributes.items():
        text = number(value) if isinstance(value, float) else str(value)
        words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    inner = Markup("").join(children)
    return Markup(f"<{' '.join(words)}>{inner}</{tag}>") if inner else Markup(f"<{' '.join(words)}/>")


def number(value: float) -> str:
    """A coordinate with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def picture(width: float, height: float, content: Iterable[str], *, identifier: str, title: str, words: str) -> Markup:
    """An <svg> with a title and a description for screen readers."""
    return element(
        "svg",
        element("title", title, id=f"{identifier}-title"),
        element("desc", words, id=f"{identifier}-desc"),
        *content,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=number(width),
        height=number(height),
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-desc",
    )


def dots(xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, *, class_: str) -> Markup:
    """Many round dots as one path of strokes without length: a tenth of the bytes of circles."""
    steps = "".join(f"M{x:.0f} {y:.1f}h0" for x, y in zip(xs, ys, strict=True))
    return element("path", d=steps, class_=class_) if steps else Markup("")


def label(name: str, *, x: float, y: float, anchor: str = "end", class_: str = "name") -> Markup:
    """A name beside a plot, shortened, with the whole name as its tooltip."""
    short = name if len(name) <= LABEL_CHARACTERS else name[: LABEL_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    tip = [element("title", name)] if short != name else []
    return element("text", escape(short), *tip, x=x, y=y, text_anchor=anchor, class_=class_)


@dataclass(frozen=True)
class Scale:
    """From values to coordinates: `start` and `end` are where the values `low` and `high` lie.

    A logarithmic scale is linear near zero and logarithmic far from it, for both signs (sign(v) log10(1 + |v|)), so
    that zeros, which volumes of errors often are, stay on it.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Coordinates of values."""
        turn: Callable[[np.ndarray | float], np.ndarray] = _signed_log if self.logarithmic else np.asarray
        low, high = float(turn(self.low)), float(turn(self.high))
        return self.start + (turn(values) - low) / (high - low) * (self.end - self.start)

    def at(self, value: float) -> float:
        """The coordinate of one value."""
        return float(self(value))

    def ticks(self) -> list[float]:
        """Round values inside the scale, about five."""
        if self.logarithmic:
            return _log_ticks(self.low, self.high)
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def fitted_scale(values: np.ndarray, *, start: float, end: float, logarithmic: bool) -> Scale:
    """A scale that holds all values and zero, with a little room; 0 to 1 without any finite value."""
    kept = values[np.isfinite(values)]
    low, high = (min(0.0, float(kept.min())), max(0.0, float(kept.max()))) if kept.size else (0.0, 1.0)
    if high - low < 1e-12:
        high = low + 1.0
    if logarithmic:
        margin = ROOM * float(_signed_log(high) - _signed_log(low))
        low, high = (_from_signed_log(float(_signed_log(v)) + math.copysign(margin, v) * (v != 0)) for v in (low, high))
    else:
        margin = ROOM * (high - low)
        low, high = low - margin * (low < 0), high + margin * (high > 1)
    return Scale(low, high, start, end, logarithmic)


def tick_text(value: float) -> str:
    """A tick's number without needless digits."""
    text = f"{value:,.0f}".replace(",", "\N{THIN SPACE}") if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _signed_log(values: np.ndarray | float) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return np.sign(array) * np.log10(1 + np.abs(array))


def _from_signed_log(turned: float) -> float:
    return math.copysign(10 ** abs(turned) - 1, turned)


def _log_ticks(low: float, high: float) -> list[float]:
    inside = [float(t) for t in LOG_TICKS if t <= high] + [-float(t) for t in LOG_TICKS[1:] if -t >= low]
    if len(inside) > 8:  # powers of ten are enough
        inside = [t for t in inside if t == 0 or math.log10(abs(t)).is_integer()]
    if len(inside) < 3:  # everything below 1
        inside = Scale(low, high, 0, 1).ticks()
    return sorted(inside)


def _round_step(rough: float) -> float:
    power = 10 ** math.floor(math.log10(rough))
    return power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
