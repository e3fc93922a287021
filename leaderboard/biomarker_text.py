"""report.md of the biomarkers: tables like those of published papers, what they are of, and the pictures."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import quote

from evaluation.agreement import BlandAltman, Coefficient
from evaluation.biomarker_summary import Group
from evaluation.cohort import Summary

NONE = "\N{EN DASH}"
HEADER = (
    "submission", "Dice", "MTV deviation ml", "TLG deviation g", "ICC of MTV", "ICC of TLG", "MTV bias ml",
    "TLG bias g",
)  # fmt: skip
LEGEND = (
    "Dice and deviations (size of the difference between estimate and truth, case by case): median (interquartile "
    "range). ICC: two-way model, absolute agreement, single measurement, ICC(A,1), with its 95 % interval. Bias: mean "
    "of estimate minus truth, with the 95 % limits of agreement. The values of every case are in biomarkers.csv."
)


class Entry(Protocol):
    """What the text needs of a submission."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def groups(self) -> Sequence[Group]:
        """Its groups of cases, the same for all submissions."""
        ...


def report_text(
    entries: Sequence[Entry], *, plots: Mapping[str, Sequence[str]], overlays: Mapping[str, str], policy: str
) -> str:
    """The report in Markdown.

    Parameters
    ----------
    entries
        At least one.
    plots, overlays
        Places of pictures: several by submission, one by case.
    policy
        What became of cases without a valid prediction, in words.
    """
    parts = ["# Biomarkers: MTV and TLG", LEGEND]
    for number, group in enumerate(entries[0].groups):
        parts += [f"## {group.title.capitalize()} ({group.cases})", group_table(entries, number)]
        parts += _notes(entries, number)
    if any(group.lost for entry in entries for group in entry.groups):
        parts.append(f"Policy for lost cases: {_cell(policy)}.")
    parts.append("## Bland-Altman plots")
    parts += [
        f"{_cell(entry.name)}\n\n" + " ".join(_picture("Bland-Altman plot", place) for place in plots[entry.name])
        for entry in entries
    ]
    if overlays:
        parts.append("## Overlays")
        parts += [_picture(case, place) for case, place in overlays.items()]
    return "\n\n".join(parts) + "\n"


def group_table(entries: Sequence[Entry], number: int) -> str:
    """The table of one group of cases in Markdown."""
    rows = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1)]
    rows += [[_cell(entry.name), *cells(entry.groups[number])] for entry in entries]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(group: Group) -> list[str]:
    """The cells of `HEADER` behind the name."""
    mtv, tlg = group.estimates["mtv"], group.estimates["tlg"]
    return [
        median_iqr(group.dice, 2),
        median_iqr(mtv.deviation, 1),
        median_iqr(tlg.deviation, 1),
        _coefficient(mtv.icc),
        _coefficient(tlg.icc),
        _bias(mtv.bland_altman),
        _bias(tlg.bland_altman),
    ]


def median_iqr(found: Summary, digits: int) -> str:
    """Median and interquartile range, `0.47 (0.35)`."""
    if found.median is None or found.iqr is None:
        return NONE
    return f"{found.median:.{digits}f} ({found.iqr:.{digits}f})"


def _coefficient(found: Coefficient) -> str:
    if found.value is None:
        return NONE
    interval = "" if found.ci95 is None else f" ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"
    return f"{found.value:.2f}{interval}"


def _bias(found: BlandAltman) -> str:
    if found.bias is None:
        return NONE
    return f"{found.bias:.1f} ({found.lower:.1f} to {found.upper:.1f})"


def _notes(entries: Sequence[Entry], number: int) -> list[str]:
    """What is lost, of how many cases a number is, and why a coefficient or its interval is missing."""
    notes = []
    for entry in entries:
        group = entry.groups[number]
        if group.lost:
            notes.append(f"- {_cell(entry.name)}: {group.lost} of {group.cases} cases without a valid prediction")
        counts = _counts(group).items()
        notes += [
            f"- {_cell(entry.name)}: {n} of {group.cases} cases have {what}" for what, n in counts if n < group.cases
        ]
        reasons = {name: estimate.icc.reason for name, estimate in group.estimates.items() if estimate.icc.reason}
        notes += [f"- {_cell(entry.name)}, ICC of {name.upper()}: {reason}" for name, reason in reasons.items()]
    return ["\n".join(notes)] if notes else []


def _counts(group: Group) -> dict[str, int]:
    """How many cases each number of the table is of: editions leave the Dice of cases without lesions undefined."""
    counts = {"a Dice": group.dice.count}
    for name, estimate in group.estimates.items():
        counts[f"{'an' if name == 'mtv' else 'a'} {name.upper()} deviation"] = estimate.deviation.count
    return counts | {f"an ICC and bias of {name.upper()}": found.icc.n for name, found in group.estimates.items()}


def _cell(text: str) -> str:
    """A participant's text in a table or at the start of a line: nothing in it is markup."""
    plain = "".join(f"\\{letter}" if letter in "|\\`*_[]~#" else letter for letter in " ".join(text.split()))
    return html.escape(re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", plain))  # of a list, or of a heading above


def _picture(words: str, place: str) -> str:
    return f"![{_cell(words)}]({quote(place)})"
