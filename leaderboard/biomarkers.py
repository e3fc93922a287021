"""The report on biomarkers: true and estimated MTV and TLG of evaluated submissions, with plots and pictures.

report.md                          the tables (median deviations with IQR, ICC with its interval) and the pictures
biomarkers.csv                     a row per submission and case
biomarkers.json                    the summaries behind the tables
bland-altman/<n>-<name>-mtv.svg    difference against mean; also -tlg
overlays/<case>.png                PET, class activation maps, masks and CT of one slice
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, whole_folder
from autopet.progress import track
from data_prep.records import safe_name
from evaluation.biomarker_summary import Group, summarise_groups, true_and_estimated
from evaluation.policies import parse_policy
from leaderboard.biomarker_text import report_text
from leaderboard.overlay_files import Masks, find_masks, read_slice
from leaderboard.overlays import draw_slice
from leaderboard.plots import Axis, bland_altman_plot
from leaderboard.ranking_files import no_formula
from leaderboard.submissions import Submission

REPORT, TABLE, SUMMARY = "report.md", "biomarkers.csv", "biomarkers.json"
PLOTS, OVERLAYS = "bland-altman", "overlays"
MEASURES = {"mtv": ("MTV", "ml"), "tlg": ("TLG", "g")}
COLUMNS = (
    "gt_ml", "pred_ml", "mtv_deviation_ml", "gt_tlg_g", "pred_tlg_g", "tlg_deviation_g", "dice",
)  # fmt: skip
STYLE = (  # what the site's stylesheet says of plots, in its light colours: a picture of its own has none of it
    "svg{background:#fff}text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#566373}"
    ".grid{stroke:#e0e5eb}.dots{stroke:#0072b2;stroke-width:5.5;stroke-linecap:round;stroke-opacity:.6;fill:none}"
    ".mark{stroke:#18222e;stroke-width:2}.dashed{stroke-width:1.2;stroke-dasharray:5 4}"
)


@dataclass(frozen=True)
class Pictures:
    """What overlays are drawn from: a cohort's cases, folders of submissions by name, and how many cases to show."""

    cases: Sequence[Case]
    submissions: Mapping[str, Path]
    count: int = 12


@dataclass(frozen=True)
class Numbers:
    """One submission: its rows, as metrics.json has them, and the summaries of its groups of cases."""

    name: str
    rows: Sequence[dict[str, Any]]
    groups: Sequence[Group]
    count_lost: bool


def write_biomarkers(
    submissions: Sequence[Submission], out: Path, *, pictures: Pictures | None = None
) -> list[Numbers]:
    """Write the report of submissions that `leaderboard.submissions.read_results` read.

    Parameters
    ----------
    out : Path
        New folder, or one that an earlier report is in; it appears whole or not at all.
    pictures : Pictures, optional
        Draw overlays, for cases spread evenly over the true MTV.

    Raises
    ------
    AutopetError
        Results without MTV, a folder that holds other files, masks of a submission that the results do not know, a
        cohort that lacks a case of the results.
    """
    out = Path(out).resolve()
    _refuse_other_content(out)
    numbers = [numbers_of(submission) for submission in submissions]
    to_draw = _cases_to_draw(numbers, pictures) if pictures else []
    remove_leftovers(out.parent, out.name)
    with whole_folder(out) as folder:
        (folder / TABLE).write_text(_table(submissions), encoding="utf-8", errors="replace")
        (folder / SUMMARY).write_text(_summary(numbers), encoding="utf-8")
        plots = {one.name: _draw_plots(one, number, folder) for number, one in enumerate(numbers, start=1)}
        shown = _draw_overlays(to_draw, pictures, folder) if pictures else {}
        text = report_text(numbers, plots=plots, overlays=shown, policy=submissions[0].policy_text)
        (folder / REPORT).write_text(text, encoding="utf-8", errors="replace")
    return numbers


def numbers_of(submission: Submission) -> Numbers:
    """Rows and summaries of one submission, lost cases counted as its evaluation's policy says."""
    rows = [{"case": case.case, "status": case.status, **case.values} for case in submission.cases]
    if not np.isfinite(submission.values("gt_ml")).any():
        raise AutopetError(
            f"{submission.name}: no case has a true MTV (gt_ml); evaluate it anew with `autopet evaluate`"
        )
    count_lost = parse_policy(submission.policy).counts_lost
    return Numbers(submission.name, rows, summarise_groups(rows, count_lost=count_lost), count_lost)


def _refuse_other_content(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise AutopetError(f"{out} is a file; choose a new folder for the report")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and (SUMMARY not in found or found - {REPORT, TABLE, SUMMARY, PLOTS, OVERLAYS}):
        raise AutopetError(f"{out} holds other files; choose a new folder for the report")


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(submissions: Sequence[Submission]) -> str:
    """A row per submission and case; what is undefined is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["submission", "case", "status", "tracer", "centre", *COLUMNS])
    for submission in submissions:
        for case in submission.cases:
            texts = [no_formula(text) for text in (submission.name, case.case, case.status, case.tracer, case.centre)]
            values = [case.values.get(column, float("nan")) for column in COLUMNS]
            writer.writerow([*texts, *(f"{value:.6g}" if np.isfinite(value) else "" for value in values)])
    return buffer.getvalue()


def _summary(numbers: Sequence[Numbers]) -> str:
    content = [{"submission": one.name, "groups": [asdict(group) for group in one.groups]} for one in numbers]
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


# --- pictures --------------------------------------------------------------------------------------------------------


def _draw_plots(one: Numbers, number: int, folder: Path) -> list[str]:
    """Bland-Altman plots of a submission over all its cases; returns their places in the folder."""
    (folder / PLOTS).mkdir(exist_ok=True)
    places = []
    for key, (title, unit) in MEASURES.items():
        pair = true_and_estimated(one.rows, key, count_lost=one.count_lost)
        truth, guess = (np.array(values, dtype=float) for values in pair)
        if not np.isfinite(truth).any():  # no SUV image, no TLG
            continue
        found = one.groups[-1].estimates[key].bland_altman  # of all cases
        limits = None if found.lower is None or found.upper is None else (found.lower, found.upper)
        axis, options = Axis(title, unit, logarithmic=True), {"identifier": f"bland-{key}", "of": one.name}
        plot = bland_altman_plot(truth, guess, axis=axis, bias=found.bias, limits=limits, **options)
        places.append(f"{PLOTS}/{number}-{safe_name(one.name)}-{key}.svg")
        (folder / places[-1]).write_text(standalone(plot.svg), encoding="utf-8", errors="replace")
    return places


def standalone(svg: str) -> str:
    """An <svg> of the site's pages as a file of its own: with its namespace and its style."""
    start, _, rest = str(svg).partition(">")
    start = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{start}><style>{STYLE}</style>{rest}\n"


def _cases_to_draw(numbers: Sequence[Numbers], pictures: Pictures) -> list[tuple[Case, dict[str, float]]]:
    """Cases spread evenly over the true MTV, smallest first, each with the Dice of the submissions."""
    names = [one.name for one in numbers]
    unknown = sorted(set(pictures.submissions) - set(names))
    if unknown:
        raise AutopetError(
            f"no results named {unknown[0]!r}, found {', '.join(names)}; say whose masks a folder holds: name=folder"
        )
    known = {case.name: case for case in pictures.cases}
    rows = sorted(numbers[0].rows, key=lambda row: (np.nan_to_num(row["gt_ml"]), row["case"]))
    missing = [row["case"] for row in rows if row["case"] not in known]
    if missing:
        raise AutopetError(
            f"the cohort has no case {missing[0]} ({len(missing)} such); give the one that was evaluated"
        )
    places = np.linspace(0, len(rows) - 1, min(pictures.count, len(rows)))
    chosen = [rows[round(place)]["case"] for place in places]
    scores = {one.name: {row["case"]: row.get("dice", float("nan")) for row in one.rows} for one in numbers}
    return [(known[case], {name: scores[name][case] for name in pictures.submissions}) for case in chosen]


def _draw_overlays(cases: Sequence[tuple[Case, dict[str, float]]], pictures: Pictures, folder: Path) -> dict[str, str]:
    """One picture per case; returns their places in the folder by case."""
    everything = [case for case, _ in cases]
    masks: list[Masks] = [find_masks(name, path, everything) for name, path in pictures.submissions.items()]
    (folder / OVERLAYS).mkdir()
    places = {}
    for case, scores in track(cases, "overlays"):
        view, where = read_slice(case, masks)
        dice = ", ".join(f"{name} {value:.2f}" for name, value in scores.items() if np.isfinite(value))
        caption = f"{case.name}, {where}" + (f"; Dice of the whole case: {dice}" if dice else "")
        places[case.name] = f"{OVERLAYS}/{case.name}.png"
        draw_slice(view, caption=caption).save(folder / places[case.name])
    return places
