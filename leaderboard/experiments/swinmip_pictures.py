"""The pictures of swinmip's experiment, one per question. They stand alone as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from algorithms.swinmip.model import LOSSES, PROJECTIONS
from autopet.folders import whole_file
from autopet.thresholds import GRID
from leaderboard.experiments.common import Cell
from leaderboard.experiments.picture import Panel, Series, alone, dots_picture, text, upright_lines
from leaderboard.experiments.summary import Spread, over_seeds
from leaderboard.experiments.swinmip_setup import ENSEMBLE, TUNED
from leaderboard.experiments.swinmip_tables import (
    NEGATIVES,
    POSITIVES,
    UNSEEN,
    Findings,
    auroc_spread,
    gate_table,
    rule_spread,
)
from leaderboard.svg import Scale, element, number, tick_text

BLUE, RED = "#1f77b4", "#d62728"
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")  # of seeds
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360.0, 200.0, 60.0, 30.0, 44.0  # of the curves' field, and the room around it


def write_pictures(out: Path, findings: Findings) -> None:
    """Write losses.svg, projections.svg, gate.svg and thresholds.svg."""
    for name, draw in (
        ("losses", losses_picture),
        ("projections", projections_picture),
        ("gate", gate_picture),
        ("thresholds", thresholds_picture),
    ):
        with whole_file(out / f"{name}.svg") as part:
            part.write_text(draw(findings), encoding="utf-8")


def losses_picture(findings: Findings) -> str:
    """FPV of negative and Dice of positive scans, per loss and choice of the threshold."""
    series = [Series("threshold 0.5", BLUE, -4.0), Series("chosen threshold", RED, 4.0)]
    panels = []
    for metric, group, caption in (
        ("fpv_ml", NEGATIVES[0], "FPV of negatives (ml), lower is better"),
        ("dice", POSITIVES[0], "Dice of positives, higher is better"),
    ):
        spreads = {
            (loss, one.title): over_seeds(findings.rows, variant=loss + end, metric=metric, group=group)
            for loss in LOSSES
            for one, end in zip(series, ("", TUNED), strict=True)
        }
        panels.append(Panel(caption, spreads))
    words = "One dot per seed, a line at their mean; masks at threshold 0.5 and at the one chosen on held-out scans."
    return dots_picture(LOSSES, panels, series=series, title="Losses", words=words)


def projections_picture(findings: Findings) -> str:
    """AUROC per projection."""
    series = [Series("validation", BLUE, -4.0), Series("unseen scans", RED, 4.0)]
    spreads = {
        (axis.upper(), one.title): auroc_spread(findings, axis, scans)
        for axis in PROJECTIONS
        for one, scans in zip(series, ("validation", UNSEEN), strict=True)
    }
    panel = Panel("AUROC, higher is better", spreads)
    words = (
        "One dot per seed, a line at their mean; mean of the folds on validation scans, and all folds on unseen ones."
    )
    lines = [axis.upper() for axis in PROJECTIONS]
    return dots_picture(lines, [panel], series=series, title="Projections", words=words)


def gate_picture(findings: Findings) -> str:
    """Seconds and FPV per negative scan, and Dice of positive ones, without and with the gate."""
    table = gate_table(findings)
    bare, margin = table[::2], table[1::2]  # per seed: the highest threshold, and that less the margin
    variants = {"no gate": (bare, "without"), "gate": (bare, "with"), "gate with margin": (margin, "with")}
    series = [Series("test scans", BLUE, 0.0)]
    panels = []
    for column, caption in (
        ("seconds_negatives", "seconds per negative scan"),
        ("fpv_ml_negatives", "FPV of negatives (ml)"),
        ("dice_positives", "Dice of positives"),
    ):
        spreads = {
            (line, series[0].title): Spread(tuple(record[f"{column}_{which}"] for record in records))
            for line, (records, which) in variants.items()
        }
        panels.append(Panel(caption, spreads))
    words = "One dot per seed, a line at their mean; without the gate and with its two thresholds."
    return dots_picture(list(variants), panels, series=series, title="The gate", words=words)


def thresholds_picture(findings: Findings) -> str:
    """Mean Dice of the test positives at every threshold, a line per seed, a dot where held-out scans put it."""
    across = Scale(0.0, 1.0, LEFT, LEFT + WIDTH)
    curves = [
        np.mean(list(findings.facts[Cell(ENSEMBLE, seed)]["test_curves"].values()), axis=0) for seed in findings.seeds
    ]
    up = Scale(0.0, max(0.1, float(np.max(curves)) * 1.05), TOP + HEIGHT, TOP)
    width, height = LEFT + WIDTH + 90, TOP + HEIGHT + BOTTOM
    parts = [element("rect", x=0, y=0, width=width, height=height, fill="white")]
    parts.append(text("Dice of the test positives against the threshold", x=LEFT, y=TOP - 12))
    parts += upright_lines(across, top=TOP, bottom=TOP + HEIGHT)
    for tick in up.ticks():
        parts.append(element("line", x1=LEFT, x2=LEFT + WIDTH, y1=up.at(tick), y2=up.at(tick), stroke="#ddd"))
        parts.append(text(tick_text(tick), x=LEFT - 8, y=up.at(tick) + 4, anchor="end"))
    chosen = rule_spread(findings, "held", "threshold").values
    for index, (seed, curve) in enumerate(zip(findings.seeds, curves, strict=True)):
        parts += _curve(curve, chosen[index], across, up, colour=COLOURS[index % len(COLOURS)])
        parts += _key(f"seed {seed}", index)
    words = "One line per seed, the ensemble's mean Dice; the dot is the threshold chosen on held-out positives."
    return alone(width, height, parts, title="The ensemble's threshold", words=words)


def _curve(
    values: Sequence[float] | np.ndarray, chosen: float, across: Scale, up: Scale, *, colour: str
) -> list[Markup]:
    points = " ".join(f"{number(across.at(x))},{number(up.at(y))}" for x, y in zip(GRID, values, strict=True))
    at = int(np.argmin(abs(GRID - chosen)))
    return [
        element("polyline", points=points, fill="none", stroke=colour, stroke_width=1.5),
        element("circle", cx=across.at(chosen), cy=up.at(float(values[at])), r=4, fill=colour),
    ]


def _key(words: str, index: int) -> list[Markup]:
    x, y = LEFT + WIDTH + 14, TOP + 14 + 16.0 * index
    return [element("circle", cx=x, cy=y - 4, r=4, fill=COLOURS[index % len(COLOURS)]), text(words, x=x + 10, y=y)]
