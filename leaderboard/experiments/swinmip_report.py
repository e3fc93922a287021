"""report.md of swinmip's experiment: for each question what the paper says, a table, a picture, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from algorithms.swinmip.model import LOSSES, PROJECTIONS
from autopet.folders import whole_file
from leaderboard.experiments.common import RULES as EDITION
from leaderboard.experiments.common import Cell
from leaderboard.experiments.report import REPORT, UNKNOWN, Story, how, markdown_table, show
from leaderboard.experiments.summary import Group, Spread, against, better_seeds, over_seeds
from leaderboard.experiments.swinmip_pictures import write_pictures
from leaderboard.experiments.swinmip_setup import ENSEMBLE, GATE, TUNED
from leaderboard.experiments.swinmip_tables import (
    FOLD,
    NEGATIVES,
    POSITIVES,
    RULES,
    UNSEEN,
    Findings,
    Record,
    auroc_spread,
    gate_table,
    rule_spread,
    thresholds_table,
    write_tables,
)

PUBLISHED_AUROC = {"x": "0.929 ± 0.018", "y": "0.930 ± 0.018", "z": "0.838 ± 0.019"}  # table 2
ENDS = {"": "0.5", TUNED: "chosen on held-out positives"}


def write_report(out: Path, findings: Findings, story: Story) -> Path:
    """Write results.csv, the questions' tables, the pictures and report.md; returns the report."""
    write_tables(out, findings)
    write_pictures(out, findings)
    with whole_file(out / REPORT) as part:
        part.write_text(report_text(findings, story), encoding="utf-8")
    return out / REPORT


def report_text(findings: Findings, story: Story) -> str:
    """The report as Markdown."""
    parts = [
        f"# {story.title}",
        story.question,
        how(findings.rows, story),
        _reading_aid(findings),
        *_losses(findings),
        *_projections(findings),
        *_gate(findings),
        *_thresholds(findings),
        "## Settings",
        "\n".join(f"- {name}: {value}" for name, value in story.settings.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _reading_aid(findings: Findings) -> str:
    seed = findings.seeds[0]
    tested = findings.of_variant(LOSSES[0], seed)
    held = len(findings.facts[Cell(ENSEMBLE, seed)]["held_curves"])
    trained = [fold["trained_on"] for fold in findings.folds(seed)]
    return (
        f"Seed {seed} tests the segmentation on {len(tested)} scans, one of each patient, "
        f"{sum(row.positive for row in tested)} of them with lesions; thresholds of probabilities are chosen on "
        f"{held} scans with lesions of other patients, and a fold's network is trained on "
        f"{' or '.join(map(str, sorted(set(trained))))} scans with lesions. {_scored(findings, seed)} Mean ± standard "
        f"deviation over the seeds of the mean over cases; conventions of edition {EDITION}. FPV and seconds: lower is "
        "better; Dice and AUROC: higher is better."
    )


def _scored(findings: Findings, seed: int) -> str:
    """How many scans the classifiers are judged by."""
    scores = findings.facts[Cell(GATE, seed)]["scores"]
    counts = {part: [bool(score["positive"]) for score in scores if score["part"] == part] for part in ("val", "test")}
    words = [f"{len(known)} ({sum(known)} with lesions)" for known in counts.values()]
    return (
        f"The classifiers see all scans of the patients; the gate's threshold is chosen on {words[0]} held-out ones "
        f"and tried on {words[1]}."
    )


# --- (a) -------------------------------------------------------------------------------------------------------------


def _losses(findings: Findings) -> list[str]:
    return [
        "## (a) Cross-entropy against Dice losses",
        "The paper (section 4.1): trained on positive scans alone, Dice loss and its sums with cross-entropy or focal "
        "loss make larger volumes of false positives; cross-entropy has fewer, at the cost of slightly less overlap.",
        _losses_table(findings),
        f"Difference from `{LOSSES[0]}` at the same kind of threshold, on the same cases; in brackets in how many "
        "seeds the loss is better:",
        _losses_differences(findings),
        "![FPV of negative scans and Dice of positive ones, one dot per seed.](losses.svg)",
        "What came out:\n\n" + _bullets(loss_sentences(findings)),
    ]


def _losses_table(findings: Findings) -> str:
    asked: list[tuple[str, Group]] = [("fpv_ml", group) for group in NEGATIVES]
    asked += [("dice", group) for group in POSITIVES]
    asked += [("fpv_ml", POSITIVES[0]), ("pred_ml", POSITIVES[0]), ("gt_ml", POSITIVES[0])]
    header = ["loss", "threshold", "top-k AUROC, validation", *(_column(*one) for one in asked)]
    lines = []
    for end, words in ENDS.items():
        for loss in LOSSES:
            chosen = Spread(tuple(findings.facts[Cell(loss, seed)]["threshold"] for seed in findings.seeds))
            quality = [findings.facts[Cell(loss, seed)]["training"]["topk_auroc"] for seed in findings.seeds]
            spreads = [over_seeds(findings.rows, variant=loss + end, metric=m, group=g) for m, g in asked]
            cells = [show(spread, metric) for spread, (metric, _) in zip(spreads, asked, strict=True)]
            threshold = f"{words}: {show(chosen, 'threshold')}" if end else words
            lines.append([f"`{loss}`", threshold, show(_known(quality), "auroc"), *cells])
    return markdown_table(header, lines)


def _losses_differences(findings: Findings) -> str:
    asked = [("fpv_ml", group) for group in NEGATIVES] + [("dice", group) for group in POSITIVES]
    lines = []
    for end, words in ENDS.items():
        for loss in LOSSES[1:]:
            cells = []
            for metric, group in asked:
                spread = _against_reference(findings, loss, end, metric, group)
                cells.append(f"{show(spread, metric, sign=True)} ({better_seeds(spread, metric)}/{len(spread.known)})")
            lines.append([f"`{loss}`", words, *cells])
    return markdown_table(["loss", "threshold", *(_column(*one) for one in asked)], lines)


def _against_reference(findings: Findings, loss: str, end: str, metric: str, group: Group) -> Spread:
    return against(findings.rows, variant=loss + end, reference=LOSSES[0] + end, metric=metric, group=group)


def loss_sentences(findings: Findings) -> list[str]:
    """In how many seeds cross-entropy is better than each other loss, equal and worse, and what chance would do."""
    found = []
    for end, words in ENDS.items():
        for metric, group, title in (
            ("fpv_ml", NEGATIVES[0], "less FPV on negative scans"),
            ("dice", POSITIVES[0], "more Dice on positive scans"),
        ):
            counts = []
            for loss in LOSSES[1:]:
                spread = _against_reference(findings, loss, end, metric, group)
                worse, equal = better_seeds(spread, metric), spread.known.count(0.0)
                ties = f" and as much in {equal}" if equal else ""
                counts.append(
                    f"than `{loss}` in {len(spread.known) - worse - equal} of {len(spread.known)} seeds{ties}"
                )
            found.append(f"Threshold {words}: `{LOSSES[0]}` has {title} {', '.join(counts)}.")
    seeds = len(findings.seeds)
    chance = f"By chance alone all {seeds} seeds agree with a probability of {2 * 0.5**seeds:.2g} (two-sided)"
    found.append(f"{chance}: a hint, not a proof." if seeds > 1 else "One seed says nothing about the spread.")
    return found


# --- (b) -------------------------------------------------------------------------------------------------------------


def _projections(findings: Findings) -> list[str]:
    lines = [
        [
            axis.upper(),
            show(auroc_spread(findings, axis, "validation"), "auroc"),
            show(auroc_spread(findings, axis, UNSEEN), "auroc"),
            PUBLISHED_AUROC[axis],
        ]
        for axis in PROJECTIONS
    ]
    return [
        "## (b) AUROC of the projections",
        "The paper (table 2, validation scans of five folds): X and Y clearly above Z.",
        markdown_table(
            ["projection", "validation, mean of the folds", f"{UNSEEN}, all folds together", "paper"], lines
        ),
        "The cycle that a fold keeps was chosen by AUROC on its validation scans, which makes the first column "
        "optimistic, as it does the paper's; the second column is free of that.",
        "![AUROC of the projections, one dot per seed.](projections.svg)",
        "What came out:\n\n" + _bullets(projection_sentences(findings)),
    ]


def projection_sentences(findings: Findings) -> list[str]:
    """In how many seeds X and Y are above Z."""
    found = []
    for scans in ("validation", UNSEEN):
        values = {axis: auroc_spread(findings, axis, scans).values for axis in PROJECTIONS}
        for axis in ("x", "y"):
            gains = [one - other for one, other in zip(values[axis], values["z"], strict=True)]
            above = sum(gain > 0 for gain in gains)
            found.append(
                f"On {scans} scans {axis.upper()} is above Z in {above} of {len(gains)} seeds "
                f"(difference {show(_known(gains), 'auroc', sign=True)})."
            )
    return found


# --- (c) -------------------------------------------------------------------------------------------------------------


def _gate(findings: Findings) -> list[str]:
    table = gate_table(findings)
    header = [
        "seed", "margin", "threshold", "held-out negatives caught", "test negatives caught", "test positives lost",
        "s per negative, without / with", "saved", "s per positive, without / with", "FPV of negatives, without / with",
        "Dice of positives, without / with",
    ]  # fmt: skip
    return [
        "## (c) What the gate saves",
        "The paper (section 7): the gate spares lesion-free scans the segmentation, which takes much longer than the "
        "classifier; its threshold is the highest that keeps every positive scan it is chosen on. Without gate the "
        "masks are those of `ensemble-tuned`.",
        markdown_table(header, [_gate_line(record) for record in table]),
        "Scans are counted over all scans of the test patients. Seconds are of one process on its share of the "
        "machine: reading the images, loading the networks, preprocessing, networks, way back to the scan's grid, on "
        "the first scan of each test patient. A scan takes the classifiers' mean and, if it passes the gate, the "
        "segmentation's mean. The start of the process and its imports are not in them. FPV and Dice are of the first "
        "scans.",
        "![Seconds and FPV per negative scan without and with the gate, one dot per seed.](gate.svg)",
        "What came out:\n\n" + _bullets(gate_sentences(findings)),
    ]


def _gate_line(record: Record) -> list[str]:
    def pair(name: str, digits: int) -> str:
        return " / ".join(_number(record[f"{name}_{which}"], digits) for which in ("without", "with"))

    return [
        str(record["seed"]),
        f"{record['margin']:g}",
        f"{record['threshold']:.3f}",
        f"{record['held_negatives_caught']} of {record['held_negatives']}",
        f"{record['test_negatives_caught']} of {record['test_negatives']}",
        f"{record['test_positives_caught']} of {record['test_positives']}",
        pair("seconds_negatives", 2),
        f"{record['time_saved_negatives']:.0%}",
        pair("seconds_positives", 2),
        pair("fpv_ml_negatives", 1),
        pair("dice_positives", 3),
    ]


def gate_sentences(findings: Findings) -> list[str]:
    """Sums over the seeds, for the threshold without and with the margin."""
    table, found = gate_table(findings), []
    for margin in sorted({record["margin"] for record in table}):
        mine = [record for record in table if record["margin"] == margin]
        total = {name: sum(record[name] for record in mine) for name in mine[0] if name.startswith(("test", "held"))}
        saved = Spread(tuple(record["time_saved_negatives"] for record in mine))
        found.append(
            f"Margin {margin:g}: in all seeds together {total['test_negatives_caught']} of {total['test_negatives']} "
            f"negative test scans are caught ({total['held_negatives_caught']} of {total['held_negatives']} of those "
            f"that the threshold was chosen on), and {total['test_positives_caught']} of {total['test_positives']} "
            f"positive test scans are lost; a negative scan takes {saved.mean:.0%} less time (per seed: "
            f"{', '.join(f'{value:.0%}' for value in saved.values)})."
        )
    return found


# --- (d) -------------------------------------------------------------------------------------------------------------


def _thresholds(findings: Findings) -> list[str]:
    half = rule_spread(findings, "half", "test_dice")
    lines = []
    for rule in RULES:
        dice = rule_spread(findings, rule.name, "test_dice")
        gain = Spread(tuple(one - other for one, other in zip(dice.values, half.values, strict=True)))
        thresholds = rule_spread(findings, rule.name, "threshold")
        listed = ", ".join(f"{value:.3f}" for value in thresholds.values)
        better = f" ({better_seeds(gain, 'dice')}/{len(gain.known)})" if rule.name != "half" else ""
        lines.append([rule.title, listed, show(dice, "dice"), show(gain, "dice", sign=True) + better])
    return [
        "## (d) The ensemble's threshold",
        "The paper (sections 5 and 6): the threshold of the best Dice lies below 0.5 (0.375 for the ensemble); it is "
        "chosen on scans that no fold was trained on, because the folds' own optima differ (0.40 to 0.48).",
        markdown_table(["threshold", "per seed", "Dice of the test positives", "more than at 0.5 (seeds)"], lines),
        "The folds' own optima (the paper's table 1). Of a calibrated network the optimum is half of its best Dice "
        "(the F/2 rule of Lipton et al.):",
        _folds_table(findings),
        "![Dice of the test positives at every threshold, one line per seed.](thresholds.svg)",
        "What came out:\n\n" + _bullets(threshold_sentences(findings)),
    ]


def _folds_table(findings: Findings) -> str:
    folds = [record for record in thresholds_table(findings) if record["rule"].startswith(FOLD)]
    lines = [
        [
            str(record["seed"]),
            record["rule"],
            f"{record['threshold']:.3f}",
            f"{record['dice_where_chosen']:.3f}",
            f"{record['half_of_dice']:.3f}",
            f"{record['test_dice']:.3f}",
        ]
        for record in folds
    ]
    header = ["seed", "network", "optimum", "its Dice on validation positives", "half of that Dice"]
    return markdown_table([*header, "the ensemble's test Dice at this threshold"], lines)


def threshold_sentences(findings: Findings) -> list[str]:
    """Where the chosen thresholds lie, and what choosing is worth."""
    held = rule_spread(findings, "held", "threshold")
    dice = {rule.name: rule_spread(findings, rule.name, "test_dice").values for rule in RULES}
    gains = Spread(tuple(one - other for one, other in zip(dice["held"], dice["half"], strict=True)))
    lost = Spread(tuple(one - other for one, other in zip(dice["test"], dice["held"], strict=True)))
    return [
        f"The threshold chosen on held-out positives is below 0.5 in {sum(value < 0.5 for value in held.values)} of "
        f"{len(held.values)} seeds; test Dice there against 0.5: {show(gains, 'dice', sign=True)}, better in "
        f"{better_seeds(gains, 'dice')} of {len(gains.known)} seeds.",
        f"Against the best threshold that the test scans themselves would allow it loses {show(lost, 'dice')}.",
    ]


# --- words -----------------------------------------------------------------------------------------------------------


def _column(metric: str, group: Group) -> str:
    names = {"fpv_ml": "FPV (ml)", "dice": "Dice", "pred_ml": "predicted ml", "gt_ml": "true ml"}
    return f"{names[metric]}, {group.title}"


def _known(values: Sequence[float | None]) -> Spread:
    """A spread of values that may be missing."""
    return Spread(tuple(math.nan if value is None else float(value) for value in values))


def _number(value: float, digits: int) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.{digits}f}"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
