"""Pictures of weakcam's experiment: a dot per seed and method, and a slice with its maps as in the paper's figure 4."""

from __future__ import annotations

from pathlib import Path

from algorithms.weakcam.model import CAM_METHODS
from algorithms.weakcam.search import READINGS
from autopet.cohort import Case
from autopet.folders import whole_file
from leaderboard.experiments.common import Cell
from leaderboard.experiments.picture import Panel, Series, dots_picture
from leaderboard.experiments.summary import Spread
from leaderboard.experiments.weakcam_setup import MASKS, UNET, read_as
from leaderboard.experiments.weakcam_tables import PUBLISHED, Findings, base_of
from leaderboard.overlay_files import find_masks, read_slice
from leaderboard.overlays import draw_slice

DICE_PICTURE, OVERLAY = "methods.svg", "overlay.png"
PAPER = "paper"
SERIES = (
    Series(READINGS[0], "#1f77b4", -5.0),
    Series(READINGS[1], "#d62728", 0.0),
    Series(PAPER, "#777777", 5.0),
)
DRAWN = (*reversed(CAM_METHODS), UNET)  # whose masks the slice shows


def write_pictures(out: Path, findings: Findings, *, shown: Case) -> None:
    """Write the dots and the slice of a test case of the first seed."""
    with whole_file(out / DICE_PICTURE) as part:
        part.write_text(methods_picture(findings), encoding="utf-8")
    seed = findings.seeds[0]
    masks = [find_masks(variant, out / MASKS / Cell(variant, seed).name, [shown]) for variant in DRAWN]
    view, where = read_slice(shown, masks)
    known = {row.variant: row.dice for row in findings.rows if row.seed == seed and row.case == shown.name}
    dice = ", ".join(f"{variant} {known[variant]:.2f}" for variant in DRAWN)
    with whole_file(out / OVERLAY) as part:
        draw_slice(view, caption=f"{shown.name}, {where}; Dice of the whole case: {dice}").save(part)


def methods_picture(findings: Findings) -> str:
    """SVG text: median Dice, a dot per seed and reading; the paper's value as a dot below them."""
    lines = list(dict.fromkeys(base_of(variant) for variant in findings.variants))
    spreads = {
        (line, reading): findings.dice(read_as(line, reading))
        for line in lines
        for reading in READINGS
        if read_as(line, reading) in findings.variants
    }
    spreads |= {(line, PAPER): Spread((PUBLISHED[line].dice[0],)) for line in lines if line in PUBLISHED}
    words = (
        "One dot per seed, a line at their mean, by the reading of q_m (methods without q_m: as the first); the "
        "paper's medians below. Cases with lesions."
    )
    panel = Panel("Median Dice, higher is better", spreads)
    return dots_picture(lines, [panel], series=SERIES, title="Masks from class activation maps", words=words)
