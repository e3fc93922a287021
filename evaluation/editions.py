"""What the editions of the challenge do with a case without lesions, and how many click steps they have."""

from __future__ import annotations

from dataclasses import dataclass

from autopet.errors import AutopetError


@dataclass(frozen=True)
class Edition:
    """Rules of one edition for empty masks.

    In every edition an empty prediction has FPV 0, and with lesions Dice 0 and the whole lesion volume as FNV. With an
    empty ground truth the metrics in `undefined_without_lesions` are NaN; for the others the formulas are applied as
    they stand: Dice 0 (0/0, hence NaN, if the prediction is empty, too), FNV 0. FPV always counts.

    `click_steps` is the number of interactive steps (the first without clicks), None when there are none. `source`
    says where the rule comes from.
    """

    name: str
    undefined_without_lesions: frozenset[str]
    click_steps: int | None
    source: str


GUARDED = frozenset({"dice", "fnv_ml"})
EDITIONS = {
    edition.name: edition
    for edition in (
        Edition(
            "I",
            frozenset(),
            None,
            "the released script, which has no guards; the published text keeps FPV alone for cases without lesions, "
            "which is edition III's rule",
        ),
        Edition(
            "II",
            frozenset({"dice"}),
            None,
            "the published rules, which keep FPV and FNV for cases without lesions; the released script is edition I's",
        ),
        Edition("III", GUARDED, None, "the released script and the published rules, which agree"),
        Edition(
            "IV",
            frozenset(),
            11,
            "the released script, which has no guards; the published rules say nothing about cases without lesions",
        ),
        Edition("V", GUARDED, 6, "the released evaluator; its Dice, FNV and F1 are NaN for a case without lesions"),
    )
}


def edition_named(name: str) -> Edition:
    """The edition's rules; an error that lists the known ones when there is none of that name."""
    if name not in EDITIONS:
        raise AutopetError(f"unknown edition {name!r} of the metrics, expected one of {', '.join(EDITIONS)}")
    return EDITIONS[name]
