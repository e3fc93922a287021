"""Who goes where: the test part and the folds of the paper's figure 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from algorithms.swinmip.model import Settings
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.splitting import TEST, split_cohort, split_patients

COLUMNS = ("case", "patient_id", "part", "fold", "lesions")  # of split.csv


@dataclass(frozen=True)
class Division:
    """Figure 2 of the paper: test cases, and folds of the others. A patient's cases stay together."""

    test: tuple[Case, ...]
    folds: tuple[tuple[Case, ...], ...]

    @property
    def rest(self) -> list[Case]:
        """All cases outside the test part."""
        return sorted((case for fold in self.folds for case in fold), key=lambda case: case.name)

    def training(self, fold: int) -> list[Case]:
        """The cases of all folds but one."""
        kept = {case.name for case in self.folds[fold]}
        return [case for case in self.rest if case.name not in kept]


def positives(cases: Sequence[Case]) -> list[Case]:
    """Cases with lesions."""
    return [case for case in cases if case.lesion_voxels]


def negatives(cases: Sequence[Case]) -> list[Case]:
    """Cases without a lesion."""
    return [case for case in cases if not case.lesion_voxels]


def divide(cases: Sequence[Case], settings: Settings) -> list[dict[str, object]]:
    """Rows of split.csv: `test_share` of the patients with lesions and of those without, then folds on the rest.

    Both parts and folds are dealt by patient and in equal shares of tracers and centres, see `split_cohort`.

    Raises
    ------
    AutopetError
        No test case with lesions, or fewer patients with lesions than folds outside the test part.
    """
    marked = {_patient(case) for case in positives(cases)}
    parts: dict[str, str] = {}
    for group in ([c for c in cases if _patient(c) in marked], [c for c in cases if _patient(c) not in marked]):
        if group:
            parts |= split_patients(group, test_fraction=settings.test_share, seed=settings.seed)
    rest = [case for case in cases if parts[case.name] != TEST]
    _check_numbers(marked, {_patient(case) for case in rest}, settings)
    places = split_cohort(rest, fractions=(1.0, 0.0), folds=settings.folds, seed=settings.seed)
    folds = {place.case: place.fold for place in places}
    return [
        {
            "case": case.name,
            "patient_id": case.patient_id,
            "part": parts[case.name],
            "fold": folds.get(case.name, ""),
            "lesions": "positive" if case.lesion_voxels else "negative",
        }
        for case in sorted(cases, key=lambda case: case.name)
    ]


def _patient(case: Case) -> str:
    return case.patient_id.strip()


def _check_numbers(marked: set[str], rest: set[str], settings: Settings) -> None:
    """Enough patients with lesions (`marked`) in the test part and outside it (`rest`)?"""
    left = len(marked & rest)
    if not marked:
        raise AutopetError("no case has lesions; the segmentation is trained on cases with lesions, so give some")
    if left == len(marked):
        raise AutopetError(
            f"test_share={settings.test_share:g} of {left} patients with lesions is nobody, and the threshold is "
            f"chosen on test cases; set test_share to {1 / left:.2g} or more, or give more cases"
        )
    if left < settings.folds:
        fewer = f"use {left} folds, a smaller test_share" if left >= 2 else "use a smaller test_share"
        raise AutopetError(
            f"each of {settings.folds} folds needs a patient with lesions, and {left} of {len(marked)} are left "
            f"outside the test part; {fewer}, or give more cases"
        )


def read_division(rows: Sequence[Mapping[str, str]], cases: Sequence[Case], folds: int) -> Division:
    """The division that rows of split.csv describe."""
    named = {case.name: case for case in cases}
    test = tuple(named[row["case"]] for row in rows if row["part"] == TEST)
    return Division(
        test, tuple(tuple(named[r["case"]] for r in rows if r["fold"] == str(fold)) for fold in range(folds))
    )


def gate_problem(division: Division, settings: Settings) -> str:
    """Why there can be no gate with this division, and what to do; empty when there can."""
    if not settings.gate:
        return "the setting gate is off"
    folds = range(len(division.folds))
    if not negatives([*division.rest, *division.test]):
        return "the cohort has no case without lesions; add some"
    if not all(negatives(division.training(fold)) for fold in folds):
        return "every fold's classifier needs a case without lesions to train on; add cases of at least two patients"
    if not negatives(division.test):
        return "the test part has no case without lesions to try a gate on; raise test_share, or add such cases"
    return ""
