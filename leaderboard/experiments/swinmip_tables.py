"""From the cells of swinmip's experiment to its numbers: a table per question, a row per seed (or fold, or scan)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.swinmip.classifier import auroc
from algorithms.swinmip.model import LOSSES, PROJECTIONS
from autopet.cohort import write_table
from autopet.thresholds import GRID, best_threshold
from leaderboard.experiments.common import RESULTS, Cell, Outcome, Row, write_results
from leaderboard.experiments.summary import Group, Spread, mean_known
from leaderboard.experiments.swinmip_setup import (
    ENSEMBLE,
    GATE,
    GATED,
    GATED_MARGIN,
    HALF,
    TUNED,
)

POSITIVES = (
    Group("positives", lambda row: bool(row.positive)),
    Group("positives FDG", lambda row: bool(row.positive) and row.tracer == "FDG"),
    Group("positives PSMA", lambda row: bool(row.positive) and row.tracer == "PSMA"),
)
NEGATIVES = (
    Group("negatives", lambda row: not row.positive),
    Group("negatives FDG", lambda row: not row.positive and row.tracer == "FDG"),
    Group("negatives PSMA", lambda row: not row.positive and row.tracer == "PSMA"),
)
UNSEEN = "held-out and test"
Record = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """All that the cells found: their rows, and their facts by cell."""

    rows: tuple[Row, ...]
    facts: Mapping[Cell, Record]

    @classmethod
    def of(cls, outcomes: Mapping[Cell, Outcome]) -> Findings:
        """Take finished cells apart."""
        rows = tuple(row for outcome in outcomes.values() for row in outcome.rows)
        return cls(rows, {cell: outcome.facts for cell, outcome in outcomes.items()})

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted({cell.seed for cell in self.facts})

    def folds(self, seed: int) -> list[Record]:
        """Facts of the cross-entropy folds of a seed, in order."""
        return [facts for cell, facts in self.facts.items() if cell.seed == seed and "validation_curves" in facts]

    def of_variant(self, variant: str, seed: int) -> list[Row]:
        """The test cases of a variant and a seed."""
        return [row for row in self.rows if row.variant == variant and row.seed == seed]


def write_tables(out: Path, findings: Findings) -> None:
    """Write results.csv and a CSV file for each question."""
    write_results(out / RESULTS, findings.rows)
    for name, table in (
        ("losses", losses_table(findings)),
        ("projections", projections_table(findings)),
        ("scores", scores_table(findings)),
        ("gate", gate_table(findings)),
        ("thresholds", thresholds_table(findings)),
    ):
        write_table(out / f"{name}.csv", [_as_text(record) for record in table], list(table[0]))


def _as_text(record: Record) -> Record:
    return {name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in record.items()}


def mean_of(rows: Sequence[Row], metric: str, group: Group) -> float:
    """Mean over the group's cases where the metric is defined; NaN without one."""
    return mean_known([float(getattr(row, metric)) for row in rows if group.has(row)])


# --- (a) the losses --------------------------------------------------------------------------------------------------


def losses_table(findings: Findings) -> list[Record]:
    """Per seed, loss and choice of the threshold: FPV of negative scans, Dice and FPV of positive ones, by tracer."""
    return [
        _loss_record(findings, seed, loss, tuned=tuned)
        for seed in findings.seeds
        for loss in LOSSES
        for tuned in (False, True)
    ]


def _loss_record(findings: Findings, seed: int, loss: str, *, tuned: bool) -> Record:
    facts = findings.facts[Cell(loss, seed)]
    rows = findings.of_variant(loss + TUNED * tuned, seed)
    record: Record = {"seed": seed, "loss": loss, "threshold": facts["threshold"] if tuned else HALF}
    record["chosen_on"] = "held-out positives" if tuned else "nothing"
    for metric, groups in (("fpv_ml", NEGATIVES), ("dice", POSITIVES), ("fpv_ml", POSITIVES[:1])):
        for group in groups:
            record[f"{metric} {group.title}".replace(" ", "_").lower()] = mean_of(rows, metric, group)
    record["topk_auroc"] = facts["training"]["topk_auroc"]
    record["train_s"] = facts["training"]["seconds"]
    return record


# --- (b) the projections ---------------------------------------------------------------------------------------------


def projections_table(findings: Findings) -> list[Record]:
    """Per seed and projection: AUROC of each fold on its validation scans, and of all folds together on unseen scans.

    The cycle that a fold keeps was chosen on its validation scans, in the paper's table 2 as here; nothing was chosen
    on the unseen ones but the gate's threshold, on which AUROC does not depend.
    """
    table = []
    for seed in findings.seeds:
        facts = findings.facts[Cell(GATE, seed)]
        for axis in PROJECTIONS:
            record = {"seed": seed, "projection": axis}
            for fold, trained in enumerate(facts["classifiers"][axis]):
                known = math.nan if trained["auroc"] is None else trained["auroc"]
                table.append(record | {"fold": fold, "scans": "validation", "auroc": known})
            unseen = auroc(
                np.array([score[axis] for score in facts["scores"] if score["positive"]]),
                np.array([score[axis] for score in facts["scores"] if not score["positive"]]),
            )
            table.append(record | {"fold": "mean of all", "scans": UNSEEN, "auroc": unseen})
    return table


def auroc_spread(findings: Findings, axis: str, scans: str) -> Spread:
    """A projection's AUROC per seed; of folds their mean."""
    table = [one for one in projections_table(findings) if one["projection"] == axis and one["scans"] == scans]
    return Spread(tuple(mean_known([r["auroc"] for r in table if r["seed"] == seed]) for seed in findings.seeds))


def scores_table(findings: Findings) -> list[Record]:
    """Per seed and scan that no network was trained on: its scores, and the seconds of the gate's."""
    return [{"seed": seed, **score} for seed in findings.seeds for score in findings.facts[Cell(GATE, seed)]["scores"]]


# --- (c) the gate ----------------------------------------------------------------------------------------------------


def gate_table(findings: Findings) -> list[Record]:
    """Per seed and threshold (the highest that keeps all held-out positives, and that less the margin).

    Scans are counted over all scans of the patients. Masks and the seconds of the segmentation are known of a patient's
    first scan: with the gate a scan takes the classifier's seconds and, if it passes, the segmentation's mean.
    """
    return [_gate_record(findings, seed, end) for seed in findings.seeds for end in (GATED, GATED_MARGIN)]


def _gate_record(findings: Findings, seed: int, end: str) -> Record:
    facts = findings.facts[Cell(GATE, seed)]
    gate, scores = facts["gate"], facts["scores"]
    threshold = gate["highest"] if end == GATED else gate["threshold"]
    record: Record = {"seed": seed, "margin": 0.0 if end == GATED else gate["margin"], "threshold": threshold}
    for name, part in (("held", "val"), ("test", "test")):
        for kind, positive in (("negatives", 0), ("positives", 1)):
            mine = [score for score in scores if score["part"] == part and score["positive"] == positive]
            record[f"{name}_{kind}"] = len(mine)
            record[f"{name}_{kind}_caught"] = sum(score["score"] < threshold for score in mine)
    rows = {"without": findings.of_variant(ENSEMBLE + TUNED, seed), "with": findings.of_variant(ENSEMBLE + end, seed)}
    gate_s = mean_known([score["seconds"] for score in scores if score["seconds"] is not None])
    for group in (NEGATIVES[0], POSITIVES[0]):
        alone_s = mean_of(rows["without"], "seconds", group)
        passed = 1 - record[f"test_{group.title}_caught"] / record[f"test_{group.title}"]
        record[f"seconds_{group.title}_without"] = alone_s
        record[f"seconds_{group.title}_with"] = gate_s + passed * alone_s
    for which, mine in rows.items():
        record[f"fpv_ml_negatives_{which}"] = mean_of(mine, "fpv_ml", NEGATIVES[0])
        record[f"dice_positives_{which}"] = mean_of(mine, "dice", POSITIVES[0])
    record["time_saved_negatives"] = 1 - record["seconds_negatives_with"] / record["seconds_negatives_without"]
    return record


# --- (d) the threshold -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A way to choose the ensemble's threshold."""

    name: str
    title: str


RULES = (
    Rule("half", "0.5"),
    Rule("held", "best on the held-out positives (the paper's way)"),
    Rule("folds", "mean of the folds' optima on their validation positives"),
    Rule("lowest", "lowest of the folds' optima"),
    Rule("test", "best on the test positives themselves: a bound, nobody can have it"),
)
FOLD = "fold "  # and its number: the rule of taking one fold's optimum


def thresholds_table(findings: Findings) -> list[Record]:
    """Per seed and rule: the threshold, mean Dice where it was chosen, and on the test positives.

    Rows of a fold are the paper's table 1: a single network's optimum on its validation positives; `test_dice` is the
    ensemble's at that threshold.
    """
    table = []
    for seed in findings.seeds:
        facts = findings.facts[Cell(ENSEMBLE, seed)]
        test = _curves(facts["test_curves"])
        optima = [best_threshold(_curves(fold["validation_curves"])) for fold in findings.folds(seed)]
        values = [threshold for threshold, _ in optima]
        held, held_dice = best_threshold(_curves(facts["held_curves"]))
        best, best_dice = best_threshold(test)
        chosen = {
            "half": (HALF, math.nan),
            "held": (held, held_dice),
            "folds": (_on_grid(float(np.mean(values))), math.nan),
            "lowest": (min(values), math.nan),
            "test": (best, best_dice),
            **{f"{FOLD}{fold}": optimum for fold, optimum in enumerate(optima)},
        }
        for rule, (threshold, dice) in chosen.items():
            record = {"seed": seed, "rule": rule, "threshold": threshold, "dice_where_chosen": dice}
            table.append(record | {"half_of_dice": dice / 2, "test_dice": dice_at(test, threshold)})
    return table


def _curves(curves: Mapping[str, Sequence[float]]) -> np.ndarray:
    return np.array(list(curves.values()), dtype=float)


def _on_grid(threshold: float) -> float:
    return float(GRID[np.argmin(abs(GRID - threshold))])


def dice_at(curves: np.ndarray, threshold: float) -> float:
    """Mean Dice of (cases, thresholds) curves at a threshold of `autopet.thresholds.GRID`."""
    return float(curves[:, int(np.argmin(abs(GRID - threshold)))].mean())


def rule_spread(findings: Findings, rule: str, column: str) -> Spread:
    """A rule's threshold or Dice per seed."""
    return Spread(tuple(float(one[column]) for one in thresholds_table(findings) if one["rule"] == rule))
