"""What the protocol found, in tables: CSV files and README.md of the model folder, and the console's last lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from algorithms.swinmip.division import positives
from algorithms.swinmip.protocol import Outcome, Threshold

BEST = "best"  # the choice of maximal mean Dice
THRESHOLDS = ("networks", "cases", "number_of_cases", "choice", "threshold", "mean_dice")
PROJECTIONS = ("projection", "fold", "auroc", "kept_cycle")
GATE = ("margin", "threshold", "negatives_caught", "negatives", "used")
SCORES = ("case", "lesions", "score")
Row = dict[str, object]


def threshold_rows(outcome: Outcome) -> list[Row]:
    """thresholds.csv: Table 1 of the paper, the ensemble's threshold, and what other choices would have given."""
    rows = []
    for fold, found in enumerate(outcome.folds):
        rows += _choices(f"fold{fold}", "validation", found)
    return rows + _choices("ensemble", "test", outcome.ensemble)


def _choices(networks: str, cases: str, found: Threshold) -> list[Row]:
    tried = [(BEST, found.threshold, found.dice), *found.others]
    return [
        dict(
            zip(
                THRESHOLDS,
                (networks, cases, found.cases, choice, "" if value is None else value, round(dice, 6)),
                strict=True,
            )
        )
        for choice, value, dice in tried
    ]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) of the AUROCs that are known; NaN without any, or without a second one."""

    mean: float
    std: float
    known: int


def spread(scores: Sequence[float | None]) -> Spread:
    """Over folds; a fold whose validation cases are all with or all without lesions has no AUROC."""
    known = [score for score in scores if score is not None]
    return Spread(
        float(np.mean(known)) if known else float("nan"),
        float(np.std(known, ddof=1)) if len(known) > 1 else float("nan"),
        len(known),
    )


def projection_rows(outcome: Outcome) -> list[Row]:
    """projections.csv: validation AUROC of every fold, then mean and standard deviation: Table 2 of the paper."""
    rows: list[Row] = []
    for axis, trained in outcome.classifiers.items():
        for fold, network in enumerate(trained):
            rows.append(_projection(axis, fold, network.score, network.kept_cycle))
        over = spread([network.score for network in trained])
        rows += [_projection(axis, "mean", over.mean, None), _projection(axis, "std", over.std, None)]
    return rows


def _projection(axis: str, fold: object, auroc: float | None, cycle: int | None) -> Row:
    known = auroc is not None and not np.isnan(auroc)
    return {
        "projection": axis,
        "fold": fold,
        "auroc": round(auroc, 6) if auroc is not None and known else "",
        "kept_cycle": "" if cycle is None else cycle,
    }


def gate_rows(outcome: Outcome) -> list[Row]:
    """gate.csv: how many of the test cases without lesions each margin catches; margin 0 is the highest threshold."""
    gate = outcome.gate
    return [
        {**row, "negatives": gate["negatives"], "used": "yes" if row["margin"] == gate["margin"] else "no"}
        for row in gate.get("table", ())
    ]


def score_rows(outcome: Outcome) -> list[Row]:
    """scores.csv: the classifiers' mean probability of every test case."""
    marked = {case.name for case in positives(outcome.division.test)}
    return [
        {"case": name, "lesions": "positive" if name in marked else "negative", "score": score}
        for name, score in sorted(outcome.gate.get("scores", {}).items())
    ]


def gate_sentence(outcome: Outcome) -> str:
    """What the gate does, or why there is none."""
    gate = outcome.gate
    if not gate:
        return f"No gate, every scan is segmented: {outcome.gate_reason}."
    at_highest = next(row["negatives_caught"] for row in gate["table"] if row["margin"] == 0)
    return (
        f"A scan whose score lies below {gate['threshold']:.4g} gets an empty mask. The highest threshold that all "
        f"{gate['positives']} test cases with lesions reach is {gate['highest']:.4g} and would catch {at_highest} of "
        f"{gate['negatives']} without; with the margin of {gate['margin']:g} the gate catches "
        f"{gate['negatives_caught']}."
    )


def projection_sentence(outcome: Outcome) -> str:
    """Mean and spread of the AUROCs in words, and what they are good for; empty without classifiers."""
    parts = []
    for axis, trained in outcome.classifiers.items():
        over = spread([network.score for network in trained])
        sign = f" ± {100 * over.std:.2f}" if over.known > 1 else ""
        number = f"{100 * over.mean:.2f}{sign}" if over.known else "unknown"
        parts.append(f"{axis} {number} ({over.known} of {len(trained)} folds)")
    bias = "Each fold kept its best cycle by it, so it is too high for new cases."
    return f"Validation AUROC of the projections, %: {', '.join(parts)}. {bias}" if parts else ""


def threshold_table(outcome: Outcome) -> Table:
    """For the console: Table 1 and the ensemble."""
    table = Table(title="thresholds of maximal mean Dice")
    for column in ("networks", "cases", "choice", "threshold", "mean Dice"):
        table.add_column(column, justify="right" if column in ("threshold", "mean Dice") else "left")
    for row in threshold_rows(outcome):
        table.add_row(*_words(row))
    return table


def _words(row: Row) -> list[str]:
    threshold = row["threshold"]
    return [
        str(row["networks"]),
        f"{row['number_of_cases']} {row['cases']}",
        str(row["choice"]),
        f"{threshold:.4g}" if isinstance(threshold, float) else "varies",
        f"{row['mean_dice']:.4f}",
    ]


def summary(outcome: Outcome, *, protocol: str) -> str:
    """README.md of the model folder."""
    published = (
        "The published segmenters were trained again, on the test cases with lesions as well; the thresholds are those "
        "of the first round (paper, section 6)."
        if protocol == "paper"
        else "The published segmenters are those that the thresholds were chosen for; test cases are in no training."
    )
    lines = [
        "# swinmip",
        "",
        f"Test part: {_count(outcome.division.test)}. Folds: {_count(outcome.division.rest)}. {published}",
        "",
        "## Thresholds",
        "",
        "`best` is chosen on the very cases that its Dice is measured on, so that Dice is too high for new cases; "
        "`best on the other cases` gives every case the threshold that is best for the others.",
        "",
        "| networks | cases | choice | threshold | mean Dice |",
        "|---|---|---|---|---|",
        *[f"| {' | '.join(_words(row))} |" for row in threshold_rows(outcome)],
        "",
        "![Dice over the threshold](dice.svg)",
        "",
        "## Gate",
        "",
        gate_sentence(outcome),
    ]
    if outcome.gate:
        lines += ["", projection_sentence(outcome), "", "![Scores of the test cases](gate.svg)"]
    return "\n".join(lines) + "\n"


def _count(cases: Sequence) -> str:
    marked = len(positives(cases))
    return f"{marked} cases with and {len(cases) - marked} without lesions"
