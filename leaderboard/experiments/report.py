"""report.md of an experiment: tables from results.csv and sentences that are computed from them, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopet.folders import whole_file
from evaluation.metrics import METRICS
from leaderboard.experiments.common import RULES, Row
from leaderboard.experiments.picture import seeds_picture
from leaderboard.experiments.summary import (
    GROUPS,
    LESIONLESS,
    Group,
    Spread,
    against,
    better_seeds,
    moved_against_fixed,
    over_seeds,
    seeds_of,
    variants_of,
)

REPORT = "report.md"
PICTURE = "seeds.svg"
DIGITS = {
    "dice": 3, "fpv_ml": 1, "fnv_ml": 1, "pred_ml": 1, "gt_ml": 1, "mtv_ml": 1, "tlg_g": 1, "auroc": 3, "seconds": 2,
    "threshold": 3,
}  # fmt: skip
UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Story:
    """What the numbers do not know about themselves."""

    title: str
    question: str  # what is compared, in a sentence or two
    reference: str  # variant that the others are compared with
    command: str
    machine: str
    date: str
    minutes: float  # of all cells together
    explanations: Mapping[str, str]  # variant -> what it is
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(out: Path, rows: Sequence[Row], story: Story) -> Path:
    """Write report.md and its picture; returns the report."""
    with whole_file(out / PICTURE) as part:
        part.write_text(seeds_picture(rows, title=story.title), encoding="utf-8")
    with whole_file(out / REPORT) as part:
        part.write_text(report_text(rows, story), encoding="utf-8")
    return out / REPORT


def report_text(rows: Sequence[Row], story: Story) -> str:
    """The report as Markdown."""
    parts = [
        f"# {story.title}",
        story.question,
        how(rows, story),
        "## Results",
        _reading_aid(rows),
        *_absolute_tables(rows),
        f"![Every dot is the mean over the test cases of one seed.]({PICTURE})",
        f"## Differences from {story.reference}",
        "Each test case of a seed is compared with itself: variant minus "
        f"{story.reference}, mean over the cases; then mean ± standard deviation over the seeds, and in how many seeds "
        "the variant is better.",
        *_difference_tables(rows, story.reference),
        "## What a misaligned CT costs",
        "The same patients with the CT in place and with the CT moved: moved minus in place.",
        _cost_table(rows),
        "## What the numbers say",
        "\n".join(f"- {sentence}" for sentence in sentences(rows, story.reference)),
        "## Settings",
        "\n".join(f"- {name}: {value}" for name, value in story.settings.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def how(rows: Sequence[Row], story: Story) -> str:
    """How the numbers came about, as a list."""
    seeds = seeds_of(rows)
    lines = [
        f"- Command: `{story.command}`",
        f"- Machine: {story.machine}",
        f"- Date: {story.date}; trainings and predictions took {story.minutes:.1f} min, summed over all cells",
        f"- Seeds: {len(seeds)} ({', '.join(map(str, seeds))})",
        *(f"- `{variant}`: {story.explanations.get(variant, '')}" for variant in variants_of(rows)),
        *(f"- {note}" for note in story.notes),
    ]
    return "\n".join(lines)


def _reading_aid(rows: Sequence[Row]) -> str:
    seed = seeds_of(rows)[0]
    mine = [row for row in rows if row.seed == seed and row.variant == rows[0].variant]
    patients = {row.patient_id: row for row in mine}.values()
    positive = sum(row.positive for row in patients)
    return (
        f"Every seed tests {len(patients)} patients ({positive} with lesions) in {len(mine)} cases, "
        f"{sum(row.misaligned for row in mine)} of them with a misaligned CT. Mean ± standard deviation over the seeds "
        f"of the mean over cases; conventions of edition {RULES}: Dice and FNV are defined for cases with lesions "
        "only, FPV for all. Dice: higher is better; FPV and FNV (ml): lower is better."
    )


def _absolute_tables(rows: Sequence[Row]) -> list[str]:
    tables = []
    for metric in METRICS:
        groups = [*GROUPS, LESIONLESS] if metric.name == "fpv_ml" else list(GROUPS)
        lines = [
            [
                variant,
                *(
                    show(over_seeds(rows, variant=variant, metric=metric.name, group=group), metric.name)
                    for group in groups
                ),
            ]
            for variant in variants_of(rows)
        ]
        tables.append(markdown_table([_title(metric.name), *(group.title for group in groups)], lines))
    return tables


def _difference_tables(rows: Sequence[Row], reference: str) -> list[str]:
    others = [variant for variant in variants_of(rows) if variant != reference]
    tables = []
    for metric in METRICS:
        groups = [*GROUPS, LESIONLESS] if metric.name == "fpv_ml" else list(GROUPS)
        lines = []
        for variant in others:
            found = [
                against(rows, variant=variant, reference=reference, metric=metric.name, group=group) for group in groups
            ]
            cells = [f"{show(one, metric.name, sign=True)} {_count(one, metric.name)}" for one in found]
            lines.append([variant, *cells])
        tables.append(markdown_table([f"{_title(metric.name)}, difference", *(group.title for group in groups)], lines))
    return tables


def _cost_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            variant,
            *(
                show(moved_against_fixed(rows, variant=variant, metric=metric.name), metric.name, sign=True)
                for metric in METRICS
            ),
        ]
        for variant in variants_of(rows)
    ]
    return markdown_table(["moved minus in place", *(_title(metric.name) for metric in METRICS)], lines)


def sentences(rows: Sequence[Row], reference: str) -> list[str]:
    """Per variant: what is better and what is worse than the reference in every seed; and what chance would do."""
    seeds = len(seeds_of(rows))
    if seeds < 2:
        return ["One seed says nothing about the spread: no difference above is shown to be more than chance."]
    others = [variant for variant in variants_of(rows) if variant != reference]
    found = [_agreement(rows, variant, reference) for variant in others]
    found.append(
        f"If a variant changed nothing, a difference would still have the same sign in all {seeds} seeds with a "
        f"probability of {2 * 0.5**seeds:.2g} (two-sided), and {len(others) * len(_questions())} differences are "
        "listed here, many of them of the same cases: a sign that all seeds share is a hint, not a proof."
    )
    return found


def _questions() -> list[tuple[str, Group]]:
    """What `sentences` looks at: every metric on all, on aligned and on misaligned cases."""
    groups = [group for group in GROUPS if group.title == "all" or group.title.startswith("CT")]
    return [(metric.name, group) for metric in METRICS for group in groups]


def _agreement(rows: Sequence[Row], variant: str, reference: str) -> str:
    kinds: dict[str, list[str]] = {"better in every seed": [], "worse in every seed": [], "seeds disagree": []}
    for metric, group in _questions():
        spread = against(rows, variant=variant, reference=reference, metric=metric, group=group)
        words = f"{_title(metric)} of {'all cases' if group.title == 'all' else group.title}"
        if not spread.known:
            continue
        better, equal = better_seeds(spread, metric), spread.known.count(0.0)
        unanimous = better == len(spread.known), better + equal == 0
        kinds[list(kinds)[0 if unanimous[0] else 1 if unanimous[1] else 2]].append(words)
    return f"`{variant}` against `{reference}`: " + "; ".join(
        f"{kind}: {', '.join(words) or 'nothing'}" for kind, words in kinds.items()
    )


def show(spread: Spread, metric: str, *, sign: bool = False) -> str:
    """Mean ± standard deviation with the metric's digits."""
    digits = DIGITS[metric]
    if math.isnan(spread.mean):
        return UNKNOWN
    mean = f"{spread.mean:{'+' if sign else ''}.{digits}f}"
    return mean if math.isnan(spread.std) else f"{mean} ± {spread.std:.{digits}f}"


def _count(spread: Spread, metric: str) -> str:
    return f"({better_seeds(spread, metric)}/{len(spread.known)})" if spread.known else ""


def _title(metric: str) -> str:
    found = next(one for one in METRICS if one.name == metric)
    return f"{found.title} ({found.unit})" if found.unit else found.title


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; `lines` are its rows, as many cells each as `header`."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
