from __future__ import annotations

from collections import Counter, defaultdict
from math import ceil, floor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopet.cohort import Case, select_part, write_table
from autopet.errors import AutopetError
from autopet.splitting import Place, count_patients, split_cohort, table_rows

FRACTIONS = ((0.6, 0.2, 0.2), (0.8, 0.2), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33), (0.0, 0.5, 0.5), (1.0, 0.0))


def case(name: str, patient: str, *, tracer: str = "FDG", centre: str = "A", voxels: int | None = 9) -> Case:
    return Case(name, patient, Path("x"), tracer, centre, voxels)


@st.composite
def cohorts(draw: st.DrawFn) -> list[Case]:
    """Patients of one to three studies with any mixture of tracers, centres and lesions."""
    found = []
    for number in range(draw(st.integers(1, 60))):
        for study in range(draw(st.integers(1, 3))):
            tracer, centre = draw(st.sampled_from(["FDG", "PSMA"])), draw(st.sampled_from("AB"))
            voxels = draw(st.sampled_from([None, 0, 7]))
            found.append(case(f"p{number}_{study}", f"p{number}", tracer=tracer, centre=centre, voxels=voxels))
    return found


def patients_of(places: list[Place]) -> dict[str, set[tuple]]:
    found = defaultdict(set)
    for place in places:
        found[place.patient_id].add((place.part, place.fold, place.stratum))
    return found


@settings(deadline=None, max_examples=150)
@given(cohorts(), st.sampled_from(FRACTIONS), st.integers(0, 99), st.randoms())
def test_parts(cases: list[Case], fractions: tuple, seed: int, shuffle):
    places = split_cohort(cases, fractions=fractions, seed=seed)
    assert [place.case for place in places] == sorted(case.name for case in cases)  # every case once
    patients = patients_of(places)
    assert all(len(found) == 1 for found in patients.values())  # a patient is in one part and one stratum
    shuffled = shuffle.sample(cases, len(cases))
    assert split_cohort(shuffled, fractions=fractions, seed=seed) == places
    parts = ("train", "test") if len(fractions) == 2 else ("train", "val", "test")
    groups = defaultdict(Counter)
    for ((part, _, stratum),) in patients.values():
        groups[stratum][part] += 1
        groups["all"][part] += 1
    for counts in groups.values():
        for part, share in zip(parts, fractions, strict=True):
            quota = round(counts.total() * share, 9)
            assert floor(quota) <= counts[part] <= ceil(quota)


@settings(deadline=None, max_examples=100)
@given(cohorts(), st.integers(2, 6), st.integers(0, 99))
def test_folds(cases: list[Case], folds: int, seed: int):
    without = split_cohort(cases, fractions=(0.8, 0.2), seed=seed)
    taken = {place.patient_id for place in without if place.part != "test"}
    if len(taken) < folds:
        with pytest.raises(AutopetError, match="one patient each"):
            split_cohort(cases, fractions=(0.8, 0.2), folds=folds, seed=seed)
        return
    places = split_cohort(cases, fractions=(0.8, 0.2), folds=folds, seed=seed)
    assert [place.part for place in places] == [place.part for place in without]
    assert all((place.fold is None) == (place.part == "test") for place in places)
    patients = {patient: found for patient, (found,) in patients_of(places).items()}
    assert {fold for _, fold, _ in patients.values()} - {None} == set(range(folds))
    for stratum in {found[2] for found in patients.values()} | {None}:
        sizes = Counter(fold for _, fold, own in patients.values() if fold is not None and stratum in {own, None})
        counts = [sizes[fold] for fold in range(folds)]
        assert max(counts) - min(counts) <= 1


def test_a_split_counted_by_hand():
    """5 positive and 5 negative patients, 60/20/20: 3, 1 and 1 of each."""
    cases = [case(f"{voxels}-{i}", f"{voxels}-{i}", voxels=voxels) for voxels in (0, 9) for i in range(5)]
    places = split_cohort(cases, fractions=(0.6, 0.2, 0.2), folds=2, seed=3)
    counts = {stratum.lesions: found for stratum, found in count_patients(places).items()}
    expected = {"train": 3, "val": 1, "test": 1, "fold0": 2, "fold1": 2}
    assert counts == {"positive": expected, "negative": expected}
    rows, columns = table_rows(places)
    assert columns == ["case", "patient_id", "part", "fold"]
    assert {row["part"] for row in rows if row["fold"] == ""} == {"test"}
    assert table_rows(split_cohort(cases, fractions=(0.5, 0.5), seed=0))[1] == ["case", "patient_id", "part"]


def test_one_lesion_makes_a_positive_patient_and_no_mask_an_unknown_one():
    studies = [
        case("a1", "a", voxels=0),
        case("a2", "a", voxels=3),
        case("b1", "b", voxels=0),
        case("c1", "c", voxels=0),
    ]
    studies += [case("c2", "c", voxels=None), case("d1", "d", voxels=None), case("d2", "d", voxels=1)]
    studies += [case("e1", "e", tracer="PSMA"), case("e2", "e", tracer="FDG")]
    found = {place.case[0]: place.stratum for place in split_cohort(studies, fractions=(0.5, 0.5), seed=0)}
    lesions = {patient: stratum.lesions for patient, stratum in found.items()}
    assert lesions == {"a": "positive", "b": "negative", "c": "unknown", "d": "positive", "e": "positive"}
    assert found["e"].tracer == "FDG+PSMA"


def test_another_seed_is_another_split():
    cases = [case(f"c{i}", f"p{i}") for i in range(20)]
    splits = {tuple(place.part for place in split_cohort(cases, fractions=(0.5, 0.5), seed=seed)) for seed in range(5)}
    assert len(splits) == 5


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "fractions",
    [(1.0,), (0.6, 0.2), (0.7, 0.4, -0.1), (0.25,) * 4, (), (NAN, NAN, NAN), (0.5, NAN), (INFINITE, 0.0)],
)
def test_fractions_that_make_no_sense(fractions: tuple):
    with pytest.raises(AutopetError, match="fractions: expected 2"):
        split_cohort([case("a", "a")], fractions=fractions, seed=0)


def test_a_case_without_patient_is_refused():
    with pytest.raises(AutopetError, match="case b has no patient ID"):
        split_cohort([case("a", "p"), case("b", " ")], fractions=(0.5, 0.5), seed=0)


def test_select_a_fold(tmp_path: Path):
    cases = [case(f"c{i}", f"p{i}") for i in range(10)]
    places = split_cohort(cases, fractions=(0.8, 0.2), folds=4, seed=1)
    write_table(tmp_path / "split.csv", *table_rows(places))
    names = {
        part: {c.name for c in select_part(cases, tmp_path / "split.csv", part)}
        for part in ("fold1", "not-fold1", "test")
    }
    assert names["fold1"] == {place.case for place in places if place.fold == 1}
    assert len(names["fold1"]) == 2
    assert names["not-fold1"] == {place.case for place in places if place.fold in {0, 2, 3}}
    assert not names["test"] & (names["fold1"] | names["not-fold1"])
    with pytest.raises(AutopetError, match="no fold 4, its folds are 0, 1, 2, 3"):
        select_part(cases, tmp_path / "split.csv", "fold4")
    write_table(tmp_path / "split.csv", *table_rows(split_cohort(cases, fractions=(0.8, 0.2), seed=1)))
    with pytest.raises(AutopetError, match="its folds are none"):
        select_part(cases, tmp_path / "split.csv", "not-fold0")
