"""From the cells of weakcam's experiment to its numbers: what the paper says of each method, per method and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from algorithms.weakcam.search import READINGS
from autopet.cohort import write_table
from evaluation.agreement import Coefficient
from evaluation.biomarker_summary import Group as Measured
from evaluation.biomarker_summary import summarise_groups
from evaluation.biomarkers import deviation
from leaderboard.experiments.common import RESULTS, Cell, Outcome, Row, write_results
from leaderboard.experiments.summary import LESIONLESS, Spread, over_seeds, variants_of
from leaderboard.experiments.weakcam_setup import DEFAULT_READING, PSEUDO, THRESHOLD, UNET, WEAKCAM

SUMMARY = "summary.csv"
SUMMARY_COLUMNS = (
    "variant", "seed", "positive_cases", "dice_median", "dice_iqr", "mtv_deviation_ml_median", "mtv_deviation_ml_iqr",
    "icc_mtv", "icc_mtv_low", "icc_mtv_high", "tlg_deviation_g_median", "tlg_deviation_g_iqr", "icc_tlg", "icc_tlg_low",
    "icc_tlg_high", "negative_cases", "fpv_ml_negatives_mean", "seconds_mean",
)  # fmt: skip
SAME = 5e-4  # of Dice: what the tables show as equal is equal
BIOMARKERS = ("mtv", "tlg")


@dataclass(frozen=True)
class Published:
    """A method's results on 90 test patients (Früh et al. 2021, section 3.1 and table 1): median and IQR, and ICC."""

    title: str
    dice: tuple[float, float]
    mtv_ml: tuple[float, float]
    tlg_g: tuple[float, float]
    icc: tuple[float, float]  # of MTV and of TLG


PUBLISHED = {  # in the order of their Dice
    "unet2d": Published("U-Net", (0.72, 0.36), (17, 27), (50, 110), (0.94, 0.99)),
    "scorecam": Published("Score-CAM", (0.47, 0.35), (27, 48), (99, 285), (0.64, 0.82)),
    "cam": Published("CAM", (0.46, 0.35), (26, 68), (101, 219), (0.64, 0.85)),
    "gradcam++": Published("Grad-CAM++", (0.42, 0.30), (24, 48), (108, 267), (0.64, 0.79)),
    "global": Published("global threshold", (0.29, 0.28), (44, 92), (167, 524), (0.59, 0.88)),
    "gradcam": Published("Grad-CAM", (0.12, 0.21), (30, 76), (112, 482), (0.55, 0.40)),
}


def base_of(variant: str) -> str:
    """The method of a variant, without its reading."""
    for reading in READINGS:
        variant = variant.removesuffix(f"-{reading}")
    return variant


def reading_of(variant: str) -> str:
    """The reading of q_m of a variant; empty for methods without q_m."""
    if variant in (UNET, PSEUDO):
        return ""
    return next((reading for reading in READINGS if variant.endswith(f"-{reading}")), DEFAULT_READING)


@dataclass(frozen=True)
class Findings:
    """All that the cells found: their rows, and their facts by cell."""

    rows: tuple[Row, ...]
    facts: Mapping[Cell, dict[str, Any]]

    @classmethod
    def of(cls, outcomes: Mapping[Cell, Outcome]) -> Findings:
        """Take finished cells apart; rows in the order of the paper's methods, then ours, the default reading first."""
        rows = [row for outcome in outcomes.values() for row in outcome.rows]
        rows.sort(key=lambda row: _place(row.variant))  # stable: seeds and cases stay in their order
        return cls(tuple(rows), {cell: outcome.facts for cell, outcome in outcomes.items()})

    @cached_property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted({row.seed for row in self.rows})

    @cached_property
    def variants(self) -> list[str]:
        """In the order of the tables."""
        return variants_of(self.rows)

    @cached_property
    def _measured(self) -> dict[tuple[str, int], Measured]:
        found = {}
        for variant in self.variants:
            for seed in self.seeds:
                mine = [row for row in self.of_variant(variant, seed) if row.positive]
                groups = summarise_groups([as_result(row) for row in mine])
                if groups:
                    found[variant, seed] = groups[0]
        return found

    def of_variant(self, variant: str, seed: int) -> list[Row]:
        """The test cases of a variant and a seed."""
        return [row for row in self.rows if row.variant == variant and row.seed == seed]

    def measured(self, variant: str, seed: int) -> Measured | None:
        """Dice, MTV and TLG over the test cases with lesions; None without one."""
        return self._measured.get((variant, seed))

    def spread(self, variant: str, value: Callable[[Measured], float | None]) -> Spread:
        """A number of `measured` for every seed."""
        found = [self.measured(variant, seed) for seed in self.seeds]
        return Spread(tuple(math.nan if one is None else _known(value(one)) for one in found))

    def dice(self, variant: str) -> Spread:
        """Median Dice of the cases with lesions, per seed."""
        return self.spread(variant, lambda one: one.dice.median)

    def icc(self, variant: str, seed: int, biomarker: str) -> Coefficient | None:
        """Agreement of the cases with lesions."""
        found = self.measured(variant, seed)
        return found.estimates[biomarker].icc if found else None

    def fpv_negatives(self, variant: str) -> Spread:
        """Mean FPV (ml) of the cases without lesions, per seed."""
        return over_seeds(self.rows, variant=variant, metric="fpv_ml", group=LESIONLESS)

    def of_classifier(self, seed: int) -> dict[str, Any]:
        """Facts of the classifier of a seed."""
        return self.facts[Cell(WEAKCAM, seed)]

    def of_labels(self, seed: int) -> dict[str, Any]:
        """Facts of the pseudo-labels of a seed."""
        return self.facts[Cell(PSEUDO, seed)]


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _place(variant: str) -> tuple[int, int, str]:
    base, reading = base_of(variant), reading_of(variant)
    order = [*PUBLISHED, PSEUDO, THRESHOLD]
    place = order.index(base) if base in order else len(PUBLISHED)  # an earlier block's: after those of the paper
    return (READINGS.index(reading) if reading else 0, place, variant)


def as_result(row: Row) -> dict[str, Any]:
    """A row as `evaluation` has it in metrics.json."""
    return {
        "gt_ml": row.gt_ml,
        "pred_ml": row.pred_ml,
        "gt_tlg_g": row.gt_tlg_g,
        "pred_tlg_g": row.pred_tlg_g,
        "mtv_deviation_ml": deviation(row.gt_ml, row.pred_ml),
        "tlg_deviation_g": deviation(row.gt_tlg_g, row.pred_tlg_g),
        "dice": row.dice,
    }


def ranks(findings: Findings, seed: int, variants: Sequence[str]) -> dict[str, int]:
    """Place of each variant by median Dice: 1 and one more for every variant that is better, not counting equals."""
    index = findings.seeds.index(seed)
    known = {variant: findings.dice(variant).values[index] for variant in variants}
    return {
        variant: 1 + sum(other > value + SAME for other in known.values())
        for variant, value in known.items()
        if not math.isnan(value)
    }


def write_tables(out: Path, findings: Findings) -> None:
    """Write results.csv, and summary.csv with a row per variant and seed."""
    write_results(out / RESULTS, findings.rows)
    records = [_record(findings, variant, seed) for variant in findings.variants for seed in findings.seeds]
    write_table(out / SUMMARY, records, SUMMARY_COLUMNS)


def _record(findings: Findings, variant: str, seed: int) -> dict[str, Any]:
    rows, found = findings.of_variant(variant, seed), findings.measured(variant, seed)
    negatives = [row.fpv_ml for row in rows if not row.positive]
    record: dict[str, Any] = {"variant": variant, "seed": seed, "negative_cases": len(negatives)}
    record["positive_cases"] = len(rows) - len(negatives)
    record["fpv_ml_negatives_mean"] = sum(negatives) / len(negatives) if negatives else ""
    record["seconds_mean"] = round(sum(row.seconds for row in rows) / len(rows), 3) if rows else ""
    if found is None:
        return record
    record |= {"dice_median": found.dice.median, "dice_iqr": found.dice.iqr}
    for name, unit in (("mtv", "ml"), ("tlg", "g")):
        estimate = found.estimates[name]
        record[f"{name}_deviation_{unit}_median"] = estimate.deviation.median
        record[f"{name}_deviation_{unit}_iqr"] = estimate.deviation.iqr
        low, high = estimate.icc.ci95 or (None, None)
        record |= {f"icc_{name}": estimate.icc.value, f"icc_{name}_low": low, f"icc_{name}_high": high}
    return record
