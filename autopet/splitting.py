"""Divide a cohort by patient: parts (train, val, test) and folds, stratified by lesions, tracer and centre."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, isfinite
from typing import TYPE_CHECKING

from autopet.errors import AutopetError

if TYPE_CHECKING:
    from autopet.cohort import Case

PARTS = {2: ("train", "test"), 3: ("train", "val", "test")}  # by how many fractions are given
COLUMNS = ("case", "patient_id", "part")
TEST = "test"
Counts = dict[str, int]


@dataclass(frozen=True, order=True)
class Stratum:
    """What the parts should have in equal shares."""

    lesions: str  # positive, negative or unknown
    tracer: str
    centre: str


@dataclass(frozen=True)
class Place:
    """Where a case of the cohort went."""

    case: str
    patient_id: str
    part: str
    stratum: Stratum
    fold: int | None = None  # None in part test, and without folds


def split_patients(cases: Sequence[Case], *, test_fraction: float, seed: int) -> dict[str, str]:
    """Case name -> `train` or `test`; see `split_cohort`."""
    places = split_cohort(cases, fractions=(1 - test_fraction, test_fraction), seed=seed)
    return {place.case: place.part for place in places}


def split_cohort(cases: Sequence[Case], *, fractions: Sequence[float], folds: int = 0, seed: int) -> list[Place]:
    """Assign every patient to one part, and to one fold if that part is not `test`.

    Every stratum gives each part its share of patients, rounded down or up, and so does the cohort as a whole
    (largest remainder, so that small strata are not always rounded away). Folds are dealt like cards, one stratum
    after the other: their sizes differ by one patient at most, in the cohort and in each stratum. Who goes where
    within a stratum depends on the seed and the patient's ID alone, not on the order of the cases.

    Parameters
    ----------
    fractions : two or three floats
        Shares of train and test, or of train, val and test; they add up to 1.
    folds : int
        Number of folds for cross-validation, 0 for none.

    Returns
    -------
    list of Place
        One per case, sorted by case.

    Raises
    ------
    AutopetError
        Fractions that do not add up to 1, fewer patients than folds, a case without patient ID.
    """
    shares = _checked(fractions)
    patients = _by_patient(cases)
    strata: dict[Stratum, list[str]] = defaultdict(list)
    for patient in sorted(patients, key=lambda patient: _order(seed, patient)):
        strata[_stratum(patients[patient])].append(patient)
    part_of = _deal_parts(dict(sorted(strata.items())), shares)
    fold_of = _deal_folds({key: [p for p in strata[key] if part_of[p] != TEST] for key in sorted(strata)}, folds)
    places = [
        Place(study.name, patient, part_of[patient], _stratum(studies), fold_of.get(patient))
        for patient, studies in patients.items()
        for study in studies
    ]
    return sorted(places, key=lambda place: place.case)


def table_rows(places: Sequence[Place]) -> tuple[list[dict[str, object]], list[str]]:
    """Rows and columns of split.csv; column `fold` is there when there are folds."""
    folded = any(place.fold is not None for place in places)
    columns = [*COLUMNS, *(["fold"] if folded else [])]
    rows: list[dict[str, object]] = []
    for place in places:
        row = {"case": place.case, "patient_id": place.patient_id, "part": place.part, "fold": place.fold}
        rows.append({column: "" if row[column] is None else row[column] for column in columns})
    return rows, columns


def count_patients(places: Sequence[Place]) -> dict[Stratum, Counts]:
    """Patients of each stratum by part (`train`, `val`, `test`) and by fold (`fold0` ...)."""
    seen: dict[Stratum, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for place in places:
        seen[place.stratum][place.part].add(place.patient_id)
        if place.fold is not None:
            seen[place.stratum][f"fold{place.fold}"].add(place.patient_id)
    return {key: {name: len(ids) for name, ids in sorted(seen[key].items())} for key in sorted(seen)}


# --- who is in which stratum -----------------------------------------------------------------------------------------


def _by_patient(cases: Sequence[Case]) -> dict[str, list[Case]]:
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        if not case.patient_id.strip():
            raise AutopetError(
                f"case {case.name} has no patient ID, so its patient might be torn apart; fill column patient_id"
            )
        patients[case.patient_id.strip()].append(case)
    return patients


def _stratum(studies: Sequence[Case]) -> Stratum:
    """A patient with lesions in one study is positive; one whose lesions nobody has marked is unknown."""
    voxels = [study.lesion_voxels for study in studies]
    lesions = "positive" if any(voxels) else "unknown" if None in voxels else "negative"
    tracers, centres = ({getattr(study, key) for study in studies} for key in ("tracer", "centre"))
    return Stratum(lesions, "+".join(sorted(tracers)), "+".join(sorted(centres)))


def _order(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


# --- how many go where -----------------------------------------------------------------------------------------------


def _checked(fractions: Sequence[float]) -> dict[str, Fraction]:
    """The share of each part, exact, so that 0.6 of 5 patients is 3."""
    known = len(fractions) in PARTS and all(isfinite(value) and value >= 0 for value in fractions)
    if not known or abs(sum(fractions) - 1) > 1e-6:
        raise AutopetError(
            f"fractions: expected 2 (train,test) or 3 (train,val,test) that add up to 1, found "
            f"{','.join(f'{value:g}' for value in fractions)}"
        )
    exact = [Fraction(value).limit_denominator(10**6) for value in fractions]
    return {part: value / sum(exact) for part, value in zip(PARTS[len(fractions)], exact, strict=True)}


def _deal_parts(strata: dict[Stratum, list[str]], shares: dict[str, Fraction]) -> dict[str, str]:
    counts = _whole_shares({key: len(members) for key, members in strata.items()}, shares)
    part_of: dict[str, str] = {}
    for key, members in strata.items():
        parts = [part for part in reversed(shares) for _ in range(counts[key][part])]
        part_of.update(zip(members, parts, strict=True))
    return part_of


def _deal_folds(strata: dict[Stratum, list[str]], folds: int) -> dict[str, int]:
    if not folds:
        return {}
    patients = [patient for members in strata.values() for patient in members]
    if not 2 <= folds <= len(patients):
        raise AutopetError(f"folds: expected 2 to {len(patients)}, one patient each at least, found {folds}")
    return {patient: index % folds for index, patient in enumerate(patients)}


def _whole_shares(sizes: dict[Stratum, int], shares: dict[str, Fraction]) -> dict[Stratum, Counts]:
    """Patients of each stratum for each part: quotas rounded down or up, in each stratum and in all together.

    A table can always be rounded so that rows and columns stay within one of their sums (controlled rounding: L. H.
    Cox and L. R. Ernst, INFOR 20, 1982). Each stratum is rounded by largest remainder; then patients move from parts
    that got too many to those that got too few, where the remainders lose least.
    """
    quotas = {key: {part: size * share for part, share in shares.items()} for key, size in sizes.items()}
    counts = {key: _round_row(quota) for key, quota in quotas.items()}
    wanted = _round_row({part: sum(sizes.values()) * share for part, share in shares.items()})
    while True:
        excess = {part: sum(row[part] for row in counts.values()) - wanted[part] for part in shares}
        giver, taker = max(excess, key=lambda part: excess[part]), min(excess, key=lambda part: excess[part])
        path = _path(quotas, counts, giver, taker) if excess[giver] > 0 else []
        if not path:
            return counts
        for key, source, target in path:
            counts[key][source] -= 1
            counts[key][target] += 1


def _round_row(quota: dict[str, Fraction]) -> Counts:
    """Whole numbers with the same sum; the rarer part wins when remainders are equal."""
    row = {part: floor(value) for part, value in quota.items()}
    missing = int(sum(quota.values())) - sum(row.values())
    for part in sorted(quota, key=lambda part: (row[part] - quota[part], quota[part]))[:missing]:
        row[part] += 1
    return row


def _path(
    quotas: dict[Stratum, dict[str, Fraction]], counts: dict[Stratum, Counts], giver: str, taker: str
) -> list[tuple[Stratum, str, str]]:
    """Moves of one patient each that lead from a part to another, perhaps through the third; empty when none do."""
    if step := _best_move(quotas, counts, giver, taker):
        return [step]
    for middle in set(next(iter(quotas.values()))) - {giver, taker}:
        steps = [_best_move(quotas, counts, giver, middle), _best_move(quotas, counts, middle, taker)]
        if all(steps):
            return [step for step in steps if step]
    return []


def _best_move(
    quotas: dict[Stratum, dict[str, Fraction]], counts: dict[Stratum, Counts], source: str, target: str
) -> tuple[Stratum, str, str] | None:
    """A stratum that gave `source` more than its quota and `target` less: where a move brings both nearest."""
    able = [
        key
        for key, quota in quotas.items()
        if counts[key][source] > quota[source] and counts[key][target] < quota[target]
    ]
    if not able:
        return None
    gain = {key: quotas[key][target] % 1 - quotas[key][source] % 1 for key in able}
    return max(able, key=lambda key: gain[key]), source, target
