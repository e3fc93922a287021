"""Evaluated submissions: metrics.json files read back, checked, and comparable with each other."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from evaluation.aggregate import printable
from evaluation.previews import FOLDER
from evaluation.statuses import SCORED, STATUSES

METRICS_FILE = "metrics.json"
LESIONS_FILE = "lesions.csv"
TEXTS = ("case", "status", "reason", "tracer", "centre")  # of a row; its other keys are numbers or null
STEPS = "detection_steps"  # of a row: TP, FP and FN at each click step, or null
NEEDED = ("gt_ml", "pred_ml")  # beside the metrics that the file lists
GT_RELATIVE = 1e-6  # two readings of one mask differ by rounding of the voxel size only


@dataclass(frozen=True)
class CaseResult:
    """One row of `results`; `values` maps metric names to numbers, NaN where metrics.json has null.

    `tracer` and `centre` are empty when the evaluation did not know them; `steps` are TP, FP and FN of the lesions at
    each click step, None without them.
    """

    case: str
    status: str
    reason: str
    values: dict[str, float]
    tracer: str = ""
    centre: str = ""
    steps: tuple[tuple[float, ...], ...] | None = None

    @property
    def scored(self) -> bool:
        """Whether there was a valid prediction."""
        return self.status == SCORED


@dataclass(frozen=True)
class MetricInfo:
    """What metrics.json says of a metric; `direction` is 'higher' or 'lower', whichever is better, or empty."""

    name: str
    title: str
    unit: str
    direction: str


@dataclass(frozen=True)
class Submission:
    """One evaluated submission: its cases by name (sorted), and the mean of every metric (NaN where null).

    Submissions of one `read_results` have the same cases in the same order, of the same tracer and centre. `cohort` is
    metrics.json's object of that name (agreement of volumes and the like), `lesions` the lesions.csv beside it.
    """

    name: str
    edition: str
    policy: str
    policy_text: str
    version: str
    cases: tuple[CaseResult, ...]
    means: dict[str, float]
    previews: Path | None = None
    notes: tuple[str, ...] = field(default=())
    metrics: tuple[MetricInfo, ...] = ()
    cohort: dict[str, Any] = field(default_factory=dict)
    lesions: Path | None = None

    @property
    def case_names(self) -> tuple[str, ...]:
        """The cases, sorted."""
        return tuple(case.case for case in self.cases)

    @property
    def tracers(self) -> tuple[str, ...]:
        """Tracer of every case, in the order of the cases."""
        return tuple(case.tracer for case in self.cases)

    @property
    def centres(self) -> tuple[str, ...]:
        """Centre of every case, in the order of the cases."""
        return tuple(case.centre for case in self.cases)

    @property
    def statuses(self) -> tuple[str, ...]:
        """Status of every case, in the order of the cases."""
        return tuple(case.status for case in self.cases)

    def values(self, metric: str) -> np.ndarray:
        """(cases,) values of a metric in the order of the cases; NaN where there is none."""
        return np.array([case.values.get(metric, math.nan) for case in self.cases], dtype=float)

    def count(self, status: str) -> int:
        """Number of cases with this status."""
        return sum(case.status == status for case in self.cases)

    @property
    def lost(self) -> int:
        """Number of cases without a valid prediction."""
        return len(self.cases) - self.count(SCORED)


def read_results(paths: Sequence[str]) -> list[Submission]:
    """Read evaluated submissions that can be ranked against each other.

    Parameters
    ----------
    paths : sequence of str
        Each is a metrics.json, a folder that holds one, or `name=path` to give the submission another name.

    Returns
    -------
    list of Submission
        In the order given.

    Raises
    ------
    AutopetError
        A file is missing or is no metrics.json, two submissions have one name, or they were evaluated on
        different cases or versions of the ground truth, with different editions' rules or with different
        policies for failed cases.
    """
    if not paths:
        raise AutopetError("no results given; expected metrics.json files or folders that hold one")
    submissions = [read_submission(*_name_and_file(str(path))) for path in paths]
    seen: dict[str, str] = {}
    for submission, path in zip(submissions, paths, strict=True):
        key = unicodedata.normalize("NFKC", submission.name).casefold()
        if key in seen:
            raise AutopetError(
                f"two submissions are named {submission.name!r} ({seen[key]} and {path}; upper and lower case are one "
                "name); give one of them another name with name=path"
            )
        seen[key] = str(path)
    for other in submissions[1:]:
        _refuse_different(submissions[0], other)
    return submissions


def _name_and_file(text: str) -> tuple[str, Path]:
    name, separator, rest = text.partition("=")
    if not separator or Path(text).exists():
        name, rest = "", text
    path = Path(rest)
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise AutopetError(f"{file}: no such file; expected a {METRICS_FILE} that `autopet evaluate` wrote")
    return name, file


def read_submission(name: str, file: Path) -> Submission:
    """Read one metrics.json; without a name, its own, else its folder's."""
    try:
        content = _parsed(file)
        aggregates = content["aggregates"]
        metrics = tuple(_metric(entry) for entry in content["metrics"])
        names = [metric.name for metric in metrics]
        cases = sorted((_case(row, [*names, *NEEDED]) for row in content["results"]), key=lambda case: case.case)
        means = {name: _number(aggregates[name]["mean"]) for name in names}
        policy = content["policy"]
        submission = Submission(
            name=_plain_name(name) or _plain_name(content.get("name")) or _plain_name(file.resolve().parent.name),
            edition=str(content["edition"]),
            policy=str(policy["failed"]),
            policy_text=str(policy["text"]),
            version=str(content.get("version", "")),
            cases=tuple(cases),
            means=means,
            previews=folder if (folder := file.parent / FOLDER).is_dir() else None,
            notes=tuple(printable(str(note)) for note in content.get("notes", ())),
            metrics=metrics,
            cohort=dict(content.get("cohort") or {}),
            lesions=table if (table := file.parent / LESIONS_FILE).is_file() else None,
        )
    except KeyError as error:
        raise AutopetError(f"{file}: lacks {error}; evaluate the submission anew with `autopet evaluate`") from error
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise AutopetError(f"{file}: is no {METRICS_FILE} of `autopet evaluate` ({one_line(error)})") from error
    rows = submission.case_names
    if not rows or len(set(rows)) != len(rows):
        raise AutopetError(f"{file}: expected every case once, found {len(rows)} rows for {len(set(rows))} cases")
    return submission


def _plain_name(name: Any) -> str:
    """A name on one line, without spaces around it: two names that look the same are the same."""
    return " ".join(printable(str(name or "")).split())


def _parsed(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    if not isinstance(content, dict):
        raise ValueError("the top level is no object")
    return content


def _metric(entry: dict[str, Any]) -> MetricInfo:
    name = str(entry["name"])
    return MetricInfo(
        name=name,
        title=printable(str(entry.get("title", name))),
        unit=printable(str(entry.get("unit", ""))),
        direction=str(entry.get("direction", "")),
    )


def _case(row: dict[str, Any], needed: Sequence[str]) -> CaseResult:
    """One row: the metrics that the file lists must be numbers or null, other keys are taken when they are."""
    if row["status"] not in STATUSES:
        raise ValueError(f"status {row['status']!r} of case {row['case']!r} is none of {', '.join(STATUSES)}")
    values = {key: _number(row[key]) for key in needed}
    for key, value in row.items():
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if key not in values and key not in (*TEXTS, STEPS) and (plain or value is None):
            values[key] = _number(value)
    reason, tracer, centre = (printable(str(row.get(key) or "")) for key in TEXTS[2:])
    return CaseResult(
        printable(str(row["case"])), row["status"], reason, values, tracer, centre, _steps(row.get(STEPS))
    )


def _steps(value: Any) -> tuple[tuple[float, ...], ...] | None:
    if value is None:
        return None
    steps = tuple(tuple(_number(count) for count in step) for step in value)
    if len(steps) < 2 or any(len(step) != 3 or not min(step) >= 0 for step in steps):
        raise ValueError(f"{STEPS}: expected [TP, FP, FN] for each of two or more click steps, found {value!r:.80}")
    return steps


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number or null, found {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    return float(value)


def _finite(text: str) -> float:
    return _number(float(text))


def _refuse_constant(text: str) -> None:
    raise ValueError(f"expected a finite number, found {text}")


def _refuse_different(first: Submission, other: Submission) -> None:
    for what, mine, theirs in (
        ("the rules of edition", first.edition, other.edition),
        ("the policy for failed cases", first.policy, other.policy),
    ):
        if mine != theirs:
            raise AutopetError(
                f"{first.name!r} was evaluated with {what} {mine!r}, {other.name!r} with {theirs!r}; "
                "evaluate both in the same way"
            )
    mine_only = _named({case.case for case in first.cases} - {case.case for case in other.cases})
    theirs_only = _named({case.case for case in other.cases} - {case.case for case in first.cases})
    if mine_only or theirs_only:
        raise AutopetError(
            f"{first.name!r} and {other.name!r} were evaluated on different cases "
            f"(only the first: {mine_only or 'none'}; "
            f"only the second: {theirs_only or 'none'}); evaluate both on the same ground truth"
        )
    for case, same_case in zip(first.cases, other.cases, strict=True):
        _refuse_other_truth(first.name, case, other.name, same_case)
        _refuse_other_origin(first.name, case, other.name, same_case)


def _refuse_other_truth(first: str, mine: CaseResult, other: str, theirs: CaseResult) -> None:
    volumes_ml = mine.values["gt_ml"], theirs.values["gt_ml"]
    if not math.isclose(*volumes_ml, rel_tol=GT_RELATIVE) and not all(map(math.isnan, volumes_ml)):
        raise AutopetError(
            f"{first!r} and {other!r} were evaluated on different versions of the ground truth (case {mine.case}: "
            f"{volumes_ml[0]:.9g} ml against {volumes_ml[1]:.9g} ml of lesions); evaluate both on the same one"
        )


def _refuse_other_origin(first: str, mine: CaseResult, other: str, theirs: CaseResult) -> None:
    for attribute in ("tracer", "centre"):
        values = getattr(mine, attribute), getattr(theirs, attribute)
        if values[0] != values[1]:
            raise AutopetError(
                f"{first!r} and {other!r} disagree on the {attribute} of case {mine.case} ({values[0] or 'none'} "
                f"against {values[1] or 'none'}); evaluate both on the same ground truth"
            )


def _named(cases: set[str]) -> str:
    listed = sorted(cases)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
