"""What the numbers of weakcam's experiment say, in sentences that are computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from algorithms.weakcam.search import READINGS
from leaderboard.experiments.report import show
from leaderboard.experiments.summary import Spread
from leaderboard.experiments.weakcam_setup import GRADCAM, PSEUDO, UNET, read_as
from leaderboard.experiments.weakcam_tables import PUBLISHED, SAME, Findings, base_of, ranks

CAM = "cam"
ONE_SEED = "One seed says nothing about the spread: no difference is shown to be more than chance."


def against(findings: Findings, variant: str, other: str) -> Spread:
    """Median Dice of a variant minus that of another, per seed."""
    pairs = zip(findings.dice(variant).values, findings.dice(other).values, strict=True)
    return Spread(tuple(one - two for one, two in pairs))


def higher(spread: Spread) -> str:
    """In how many seeds a difference is above 0, and in how many it is none."""
    known = spread.known
    equal, above = sum(abs(value) <= SAME for value in known), sum(value > SAME for value in known)
    return f"higher in {above} of {len(known)} seeds" + (f", equal in {equal}" if equal else "")


def order_sentences(findings: Findings) -> list[str]:
    """A sentence for each of the paper's ranks, one for its whole order, and what chance would do."""
    tested = [variant for variant in PUBLISHED if variant in findings.variants]
    by_seed = [ranks(findings, seed, tested) for seed in findings.seeds]
    found = []
    for place, variant in enumerate(PUBLISHED, start=1):
        mine = [known[variant] for known in by_seed if variant in known]
        if not mine:
            continue
        median = PUBLISHED[variant].dice[0]
        found.append(
            f"Rank {place} in the paper: {PUBLISHED[variant].title} ({median:.2f}). Here `{variant}` has that rank in "
            f"{mine.count(place)} of {len(mine)} seeds (ranks {', '.join(map(str, mine))}), with a median Dice of "
            f"{show(findings.dice(variant), 'dice')}."
        )
    whole = sum(_in_order(findings, index, tested) for index in range(len(findings.seeds)))
    others = [variant for variant in tested if variant != GRADCAM]
    rest = sum(_in_order(findings, index, others) for index in range(len(findings.seeds)))
    found.append(
        f"All of the paper's order, each method above the next, came out in {whole} of {len(by_seed)} seeds; without "
        f"Grad-CAM, which cannot differ from CAM here, in {rest}."
    )
    found.append(_chance(len(findings.seeds)))
    return found


def _in_order(findings: Findings, index: int, variants: Sequence[str]) -> bool:
    values = [findings.dice(variant).values[index] for variant in variants]
    return all(one > two + SAME for one, two in pairwise(values))


def _chance(seeds: int) -> str:
    if seeds < 2:
        return ONE_SEED
    return (
        f"If two methods were equally good, one would still be higher in all {seeds} seeds with a probability of "
        f"{2 * 0.5**seeds:.2g} (two-sided), and patients are tested in several seeds: that all seeds agree is a hint, "
        "not a proof."
    )


def reading_sentences(findings: Findings) -> list[str]:
    """Which reading of q_m has the higher median Dice in every seed, method by method."""
    first, second = READINGS
    kinds: dict[str, list[str]] = {f"`{first}` in every seed": [], f"`{second}` in every seed": [], "neither": []}
    for variant in findings.variants:
        base = base_of(variant)
        if variant != read_as(base, second):
            continue
        known = against(findings, base, variant).known
        signs = {0 if abs(value) <= SAME else 1 if value > 0 else -1 for value in known}
        place = 0 if signs == {1} else 1 if signs == {-1} else 2
        kinds[list(kinds)[place]].append(f"`{base}`")
    listed = "; ".join(f"{kind}: {', '.join(names) or 'no method'}" for kind, names in kinds.items())
    return [f"The higher median Dice has {listed}."]


def gradcam_sentences(findings: Findings) -> list[str]:
    """How far Grad-CAM is from CAM, measured; and what an earlier block changes."""
    facts = [findings.of_classifier(seed) for seed in findings.seeds]
    slices = sum(one["cam_gradcam"]["slices"] for one in facts)
    apart = max(one["cam_gradcam"]["largest_difference"] for one in facts)
    same = sum(one["thresholds"][CAM] == one["thresholds"][GRADCAM] for one in facts)
    dice = [
        abs(mine.dice - other.dice)
        for seed in findings.seeds
        for mine, other in zip(findings.of_variant(CAM, seed), findings.of_variant(GRADCAM, seed), strict=True)
        if mine.positive
    ]
    found = [
        f"The largest difference between the maps of CAM and of Grad-CAM, both from 0 to 1, is {apart:.1g} over the "
        f"{slices} test slices that the classifiers call positive. Both have the same thresholds in {same} of "
        f"{len(facts)} seeds, and Dice of a test case differs by at most {max(dice, default=math.nan):.4f}."
    ]
    for variant in findings.variants:
        if variant.startswith(f"{GRADCAM}-block") and base_of(variant) == variant:
            spread = against(findings, variant, GRADCAM)
            found.append(
                f"`{variant}` against `{GRADCAM}`: median Dice {show(spread, 'dice', sign=True)}, {higher(spread)}."
            )
    return found


def teachers(findings: Findings) -> list[str]:
    """The method that labelled the training cases, per seed."""
    return [findings.of_labels(seed)["labels_by"] for seed in findings.seeds]


def pseudo_sentences(findings: Findings) -> list[str]:
    """The U-Net on pseudo-labels against the method that made them, and against the U-Net on masks."""
    values = findings.dice(PSEUDO).values
    taught = [findings.dice(name).values[index] for index, name in enumerate(teachers(findings))]
    gained = Spread(tuple(one - two for one, two in zip(values, taught, strict=True)))
    lost = against(findings, PSEUDO, UNET)
    found = [
        f"`{PSEUDO}` against the method that labelled its training cases: median Dice "
        f"{show(gained, 'dice', sign=True)}, {higher(gained)}.",
        f"`{PSEUDO}` against `{UNET}`: median Dice {show(lost, 'dice', sign=True)}, {higher(lost)}.",
    ]
    labels = [findings.of_labels(seed) for seed in findings.seeds]
    untrained = sum(not 0 < one["marked_slices"] < one["slices"] for one in labels)
    if untrained:
        found.append(
            f"In {untrained} of {len(labels)} seeds the labels mark no slice, or every slice: no network could be "
            "trained on them, and empty masks stand for it."
        )
    return found
