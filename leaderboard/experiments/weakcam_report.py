"""report.md of weakcam's experiment: the paper's tables with its numbers beside ours, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from algorithms.weakcam.search import GLOBAL, READINGS
from autopet.cohort import Case
from autopet.folders import whole_file
from evaluation.agreement import Coefficient
from evaluation.biomarker_summary import Group as Measured
from leaderboard.experiments.common import RULES
from leaderboard.experiments.report import REPORT, UNKNOWN, Story, how, markdown_table, show
from leaderboard.experiments.summary import Spread, mean_known
from leaderboard.experiments.weakcam_pictures import DICE_PICTURE, OVERLAY, write_pictures
from leaderboard.experiments.weakcam_sentences import (
    against,
    gradcam_sentences,
    higher,
    order_sentences,
    pseudo_sentences,
    reading_sentences,
    teachers,
)
from leaderboard.experiments.weakcam_setup import DEFAULT_READING, PSEUDO, THRESHOLD, UNET
from leaderboard.experiments.weakcam_tables import (
    BIOMARKERS,
    PUBLISHED,
    Findings,
    base_of,
    ranks,
    reading_of,
    write_tables,
)

PUBLISHED_THRESHOLDS = {"cam": (0.3, 31), "gradcam": (0.2, 35), "gradcam++": (0.3, 32), "scorecam": (0.4, 31)}  # 3.1


def write_report(out: Path, findings: Findings, story: Story, *, shown: Case) -> Path:
    """Write results.csv, summary.csv, the pictures and report.md; returns the report.

    Parameters
    ----------
    shown : Case
        The test case of the first seed whose slice is drawn.
    """
    write_tables(out, findings)
    write_pictures(out, findings, shown=shown)
    with whole_file(out / REPORT) as part:
        part.write_text(report_text(findings, story), encoding="utf-8")
    return out / REPORT


def report_text(findings: Findings, story: Story) -> str:
    """The report as Markdown."""
    default, other = (
        [v for v in findings.variants if reading_of(v) in kinds] for kinds in (("", READINGS[0]), READINGS[1:])
    )
    named = [row for row in findings.rows if row.variant in default]
    parts = [
        f"# {story.title}",
        story.question,
        how(named, story),
        "## Results",
        _reading_aid(findings),
        _table(findings, default),
        f"![Median Dice per method, one dot per seed, and the paper's.]({DICE_PICTURE})",
        "Intraclass correlation ICC(A,1) of true and estimated values with its 95 % interval, cases with lesions:",
        _icc_table(findings, default),
        f"![PET with the truth, four maps, masks and CT of a test case of the first seed.]({OVERLAY})",
        "## The paper's order",
        _rank_table(findings),
        _pair_table(findings),
        _bullets(order_sentences(findings)),
        "## Grad-CAM and CAM",
        "With global average pooling and one linear layer, the gradients of the last block's maps are the linear "
        "layer's weights over the number of places: Grad-CAM is CAM up to a factor, and from 0 to 1 the same map.",
        _bullets(gradcam_sentences(findings)),
        "## The other reading of q_m",
        f"q_m percent of the region's SUVmax (`{DEFAULT_READING}`, above), or the q_m-th percentile of its SUVs:",
        _table(findings, other),
        _bullets(reading_sentences(findings)),
        "## The classifier",
        _classifier_table(findings),
        "Thresholds t_m / q_m (%) that validation chose:",
        _thresholds_table(findings),
        "## A U-Net on predicted masks",
        _labels_table(findings),
        _bullets(pseudo_sentences(findings)),
        "## Settings",
        _bullets([f"{name}: {value}" for name, value in story.settings.items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _reading_aid(findings: Findings) -> str:
    mine = findings.of_variant(findings.variants[0], findings.seeds[0])
    patients = {row.patient_id for row in mine}
    positive = sum(row.positive for row in mine)
    return (
        f"Seed {findings.seeds[0]} tests {len(mine)} cases of {len(patients)} patients, {positive} cases with lesions. "
        "As in the paper, Dice, MTV and TLG are per case in 3D, and numbers are medians over the cases with lesions "
        "with the interquartile range (IQR) in brackets: here the mean ± standard deviation over the seeds of the "
        "median, and the mean of the IQR. MTV and TLG: size of the difference from the truth. FPV: mean over the cases "
        f"without lesions (edition {RULES}). Dice: higher is better, everything else: lower is better. Seconds: "
        "reading, classification, maps and thresholds of a case."
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(findings: Findings, variants: Sequence[str]) -> str:
    """Dice, deviations, FPV and seconds of variants, with the paper's numbers."""
    header = ["method", "Dice", "paper", "MTV deviation (ml)", "paper", "TLG deviation (g)", "paper"]
    header += ["FPV (ml), without lesions", "seconds"]
    lines = []
    for variant in variants:
        paper = PUBLISHED.get(variant)  # the paper has one reading only
        seconds = [mean_known([row.seconds for row in findings.of_variant(variant, seed)]) for seed in findings.seeds]
        lines.append(
            [
                f"`{variant}`",
                _median(findings, variant, lambda one: one.dice, "dice"),
                f"{paper.dice[0]:.2f} ({paper.dice[1]:.2f})" if paper else "",
                _median(findings, variant, lambda one: one.estimates["mtv"].deviation, "mtv_ml"),
                f"{paper.mtv_ml[0]:g} ({paper.mtv_ml[1]:g})" if paper else "",
                _median(findings, variant, lambda one: one.estimates["tlg"].deviation, "tlg_g"),
                f"{paper.tlg_g[0]:g} ({paper.tlg_g[1]:g})" if paper else "",
                show(findings.fpv_negatives(variant), "fpv_ml"),
                show(Spread(tuple(seconds)), "seconds"),
            ]
        )
    return markdown_table(header, lines)


def _median(findings: Findings, variant: str, summary: Callable[[Measured], object], metric: str) -> str:
    """Mean ± standard deviation over the seeds of a median, and the mean IQR in brackets."""
    median = findings.spread(variant, lambda one: summary(one).median)  # type: ignore[attr-defined]
    iqr = findings.spread(variant, lambda one: summary(one).iqr)  # type: ignore[attr-defined]
    return f"{show(median, metric)} ({show(Spread((iqr.mean,)), metric)})"


def _icc_table(findings: Findings, variants: Sequence[str]) -> str:
    columns = [f"{name.upper()}, seed {seed}" for name in BIOMARKERS for seed in [*findings.seeds, "paper"]]
    header = ["method", *(column.replace("seed paper", "paper") for column in columns)]
    lines = []
    for variant in variants:
        cells = [f"`{variant}`"]
        for place, name in enumerate(BIOMARKERS):
            cells += [_coefficient(findings.icc(variant, seed, name)) for seed in findings.seeds]
            cells.append(f"{PUBLISHED[variant].icc[place]:.2f}" if variant in PUBLISHED else "")
        lines.append(cells)
    return markdown_table(header, lines)


def _coefficient(found: Coefficient | None) -> str:
    if found is None or found.value is None:
        return UNKNOWN
    value, *ends = (f"{round(number, 2) + 0.0:.2f}" for number in (found.value, *(found.ci95 or ())))  # no -0.00
    return f"{value} [{', '.join(ends)}]" if ends else value


def _rank_table(findings: Findings) -> str:
    tested = [variant for variant in PUBLISHED if variant in findings.variants]
    by_seed = [ranks(findings, seed, tested) for seed in findings.seeds]
    header = ["method", "paper's rank", "paper's median Dice", "median Dice here"]
    header += [f"rank, seed {seed}" for seed in findings.seeds]
    lines = [
        [
            f"`{variant}`",
            str(place),
            f"{PUBLISHED[variant].dice[0]:.2f}",
            show(findings.dice(variant), "dice"),
            *(str(known.get(variant, UNKNOWN)) for known in by_seed),
        ]
        for place, variant in enumerate(PUBLISHED, start=1)
        if variant in tested
    ]
    return markdown_table(header, lines)


def _pair_table(findings: Findings) -> str:
    """Neighbours in the paper's order: by how much the first is above the second."""
    tested = [variant for variant in PUBLISHED if variant in findings.variants]
    lines = []
    for one, two in pairwise(tested):
        spread = against(findings, one, two)
        paper = PUBLISHED[one].dice[0] - PUBLISHED[two].dice[0]
        lines.append([f"`{one}` minus `{two}`", f"{paper:+.2f}", show(spread, "dice", sign=True), higher(spread)])
    return markdown_table(["median Dice", "paper", "here", "the first is"], lines)


def _classifier_table(findings: Findings) -> str:
    header = ["seed", "test slices", "with lesions", "AUROC", "sensitivity", "specificity", "AUROC, validation"]
    lines = []
    for seed in findings.seeds:
        facts = findings.of_classifier(seed)
        said = facts["slices"]
        numbers = [_number(said[name]) for name in ("auroc", "sensitivity", "specificity")]
        validation = _number(facts["validation"]["auroc"])
        lines.append([str(seed), str(said["slices"]), str(said["positive"]), *numbers, validation])
    return markdown_table(header, lines)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None or np.isnan(value) else f"{value:.3f}"


def _thresholds_table(findings: Findings) -> str:
    """Of the default reading; the paper's are printed as 0.31 to 0.35."""
    lines = []
    for variant in findings.variants:
        known = [findings.of_classifier(seed)["thresholds"].get(variant) for seed in findings.seeds]
        if base_of(variant) != variant or not all(known) or variant == THRESHOLD:
            continue
        found = [_pair(variant, one[DEFAULT_READING]) for one in known if one]
        paper = PUBLISHED_THRESHOLDS.get(variant)
        lines.append([f"`{variant}`", *found, f"{paper[0]:g} / {paper[1]}" if paper else ""])
    return markdown_table(["method", *(f"seed {seed}" for seed in findings.seeds), "paper"], lines)


def _pair(variant: str, values: Mapping[str, float]) -> str:
    """t_m and q_m; the global threshold has no map, and no t_m."""
    return f"{UNKNOWN if variant == GLOBAL else format(values['t_m'], '.2f')} / {values['q_m']:.1f}"


def _labels_table(findings: Findings) -> str:
    header = ["seed", "labels by", "training cases", "of them marked", "slices marked", "median Dice of the labels"]
    header += ["test Dice of that method", f"of `{PSEUDO}`", f"of `{UNET}`"]
    lines = []
    for index, (seed, teacher) in enumerate(zip(findings.seeds, teachers(findings), strict=True)):
        facts = findings.of_labels(seed)
        dice = [findings.dice(variant).values[index] for variant in (teacher, PSEUDO, UNET)]
        quality = float(np.median(facts["dice"])) if facts["dice"] else None
        counts = [str(facts["cases"]), str(facts["marked"]), f"{facts['marked_slices']} of {facts['slices']}"]
        lines.append([str(seed), f"`{teacher}`", *counts, _number(quality), *map(_number, dice)])
    return markdown_table(header, lines)
