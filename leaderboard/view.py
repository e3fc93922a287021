"""What the site shows, as plain data: submissions best first, cases in order, and arrays of their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.statuses import SCORED
from leaderboard.ranking import Standing
from leaderboard.scheme import Scheme

UNDEFINED = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
COUNTS = ("lesion_tp", "lesion_fp", "lesion_fn", "gt_lesions", "pred_lesions")


@dataclass(frozen=True)
class Measure:
    """A value of a case; `direction` is 'higher' or 'lower', whichever is better, or 'none'."""

    name: str
    title: str
    unit: str
    direction: str

    @property
    def logarithmic(self) -> bool:
        """Volumes and masses span decades."""
        return self.unit in ("ml", "g", "mm")

    @property
    def digits(self) -> int:
        """Decimals in tables of cases."""
        if self.name in COUNTS:
            return 0
        return 3 if self.unit == "" else 2

    @property
    def mean_digits(self) -> int:
        """Decimals of means and quartiles."""
        return max(self.digits, 2)

    @property
    def caption(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}.get(self.direction, "")


@dataclass(frozen=True)
class Entrant:
    """A submission; `key` names its page and its masks, `number` is its place in the arrays."""

    key: str
    number: int
    standing: Standing

    @property
    def name(self) -> str:
        """As its participants call it."""
        return self.standing.submission.name

    @property
    def page(self) -> str:
        """Its file in the folder of pages."""
        return f"algorithm-{self.key}.html"

    @property
    def rank(self) -> str:
        """Its rank in text; submissions that a scheme does not rank have none."""
        return rank_text(self.standing.rank)


@dataclass(frozen=True)
class Patient:
    """A case; `key` names its page."""

    key: str
    number: int
    name: str
    tracer: str
    centre: str

    @property
    def page(self) -> str:
        """Its file in the folder of pages."""
        return f"case-{self.key}.html"

    @property
    def script(self) -> str:
        """The file with its volumes."""
        return f"case-{self.key}.js"


@dataclass(frozen=True, eq=False)
class Board:
    """Everything of metrics.json that the pages show.

    `values` maps a measure's name to an (entrants, cases) array, NaN = undefined; `lost` marks cases without a valid
    prediction. `ranked` are the scheme's measures, `others` the rest that has values.
    """

    title: str
    scheme: Scheme
    entrants: tuple[Entrant, ...]
    patients: tuple[Patient, ...]
    values: dict[str, np.ndarray]
    lost: np.ndarray
    ranked: tuple[Measure, ...]
    others: tuple[Measure, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All metrics with values, the ranked ones first."""
        return self.ranked + self.others

    @property
    def names(self) -> list[str]:
        """Of the submissions, best first."""
        return [entrant.name for entrant in self.entrants]

    def truth(self, name: str) -> np.ndarray:
        """(cases,) values of the ground truth: the first number that a submission has for each; NaN without any."""
        rows = self.values.get(name)
        if rows is None:
            return np.full(len(self.patients), math.nan)
        known = np.isfinite(rows)
        return np.where(known.any(axis=0), rows[known.argmax(axis=0), np.arange(rows.shape[1])], math.nan)


def make_board(standings: Sequence[Standing], scheme: Scheme, *, title: str) -> Board:
    """Arrange standings (best first, from `rank_submissions`) for the pages."""
    first = standings[0].submission
    cases = first.cases
    ranked = tuple(
        Measure(c.metric, c.title, c.unit, "higher" if c.higher_is_better else "lower") for c in scheme.columns
    )
    told = [Measure(m.name, m.title, m.unit, m.direction) for m in first.metrics if m.name not in scheme.metrics]
    names = {measure.name for measure in (*ranked, *told)} | {key for case in cases for key in case.values}
    values = {name: np.stack([s.submission.values(name) for s in standings]) for name in sorted(names)}
    width = len(str(len(standings)))
    return Board(
        title=title,
        scheme=scheme,
        entrants=tuple(Entrant(f"{i + 1:0{width}}", i, standing) for i, standing in enumerate(standings)),
        patients=tuple(
            Patient(f"{j + 1:0{len(str(len(cases)))}}", j, case.case, case.tracer, case.centre)
            for j, case in enumerate(cases)
        ),
        values=values,
        lost=np.array([[case.status != SCORED for case in s.submission.cases] for s in standings]),
        ranked=ranked,
        others=tuple(measure for measure in told if np.isfinite(values[measure.name]).any()),
    )


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Bootstrap over cases: (n, n) shares of resamples by rank; n rank intervals; `words` say how it was made."""

    shares: np.ndarray
    low: tuple[float, ...]
    high: tuple[float, ...]
    first: tuple[float, ...]
    coverage: float
    words: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Adjusted p of 'row is better than column' for one metric, (n, n)."""

    title: str
    p_values: np.ndarray
    alpha: float
    words: str


@dataclass(frozen=True)
class RankColumn:
    """Ranks of all entrants by something: a metric, a subset, another scheme; NaN where there is none."""

    group: str
    title: str
    ranks: tuple[float, ...]
    tau: float = math.nan


@dataclass(frozen=True)
class SubsetTable:
    """The ranking of some of the cases; `rows` are (entrant, rank, means by ranked measure), best first."""

    title: str
    cases: int
    rows: tuple[tuple[Entrant, float, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Findings:
    """What the statistics say of the ranking; None and empty where it was not computed."""

    uncertainty: Uncertainty | None
    comparisons: tuple[Comparison, ...]
    subsets: tuple[SubsetTable, ...]
    columns: tuple[RankColumn, ...]
    single_cases: str
    methods: str
    notes: tuple[str, ...] = ()


def rank_text(rank: float) -> str:
    """A rank without needless digits; a dash where there is none."""
    return UNDEFINED if math.isnan(rank) else f"{rank:g}"


def number_text(value: float, digits: int = 3) -> str:
    """A number with fixed digits; a dash where it is undefined."""
    return UNDEFINED if math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def median_and_quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Median, lower and upper quartile of what is defined; NaN without any."""
    known = values[np.isfinite(values)]
    if not known.size:
        return math.nan, math.nan, math.nan
    low, middle, high = (float(q) for q in np.percentile(known, (25, 50, 75)))
    return middle, low, high
