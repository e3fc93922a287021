from __future__ import annotations

from pathlib import Path

import pytest

from autopet.cohort import Case, labelled, read_cohort, select_part, write_table
from autopet.errors import AutopetError
from autopet.splitting import split_patients


def cases(patients: int, studies: int = 2) -> list[Case]:
    return [
        Case(f"p{p}_s{s}", f"p{p}", Path("x"), ("FDG", "PSMA")[p % 2], ("A", "B")[p // 2 % 2], 5 if p % 4 else 0)
        for p in range(patients)
        for s in range(studies)
    ]


def test_split_is_by_patient_and_reproducible():
    parts = split_patients(cases(20), test_fraction=0.25, seed=4)
    for patient in range(20):
        assert parts[f"p{patient}_s0"] == parts[f"p{patient}_s1"]
    assert list(parts.values()).count("test") == 10
    assert parts == split_patients(cases(20)[::-1], test_fraction=0.25, seed=4)
    assert parts != split_patients(cases(20), test_fraction=0.25, seed=5)


def test_split_sees_every_stratum():
    parts = split_patients(cases(40, 1), test_fraction=0.25, seed=0)
    tested = [case for case in cases(40, 1) if parts[case.name] == "test"]
    assert {case.tracer for case in tested} == {"FDG", "PSMA"}
    assert {case.centre for case in tested} == {"A", "B"}
    assert {bool(case.lesion_voxels) for case in tested} == {True, False}


def test_small_strata_are_not_rounded_away():
    """Three negatives per centre in 24 patients: a quarter is 0.75 of each, and one of each is tested."""
    people = [
        Case(f"{centre}{i}", f"{centre}{i}", Path("x"), "FDG", centre, 0 if i < 3 else 9)
        for centre in "AB"
        for i in range(12)
    ]
    for seed in range(5):
        parts = split_patients(people, test_fraction=0.25, seed=seed)
        tested = [case for case in people if parts[case.name] == "test"]
        assert len(tested) == 6
        assert sorted(case.centre for case in tested if not case.lesion_voxels) == ["A", "B"]


def test_cohort_folder(cohort: list[Case], tmp_path: Path):
    assert [case.name for case in cohort] == [f"case{i:02d}" for i in range(8)]
    assert cohort[3].lesion_voxels == 0
    assert cohort[0].suv.is_file()
    with pytest.raises(AutopetError, match=r"prep.csv is missing"):
        read_cohort(tmp_path)
    write_table(tmp_path / "prep.csv", [{"case": "a", "status": "failed"}], ["case", "status"])
    with pytest.raises(AutopetError, match="no converted study"):
        read_cohort(tmp_path)


def test_no_segmentation_is_not_an_empty_one():
    unlabelled = Case("a", "a", Path("x"))
    with pytest.raises(AutopetError, match="no case of the cohort has a lesion segmentation"):
        labelled([unlabelled])
    assert len(labelled([unlabelled, Case("b", "b", Path("x"), lesion_voxels=0)])) == 1


def test_select_part(cohort: list[Case], tmp_path: Path):
    table = tmp_path / "split.csv"
    rows = [{"case": case.name, "part": "test" if index < 2 else "train"} for index, case in enumerate(cohort)]
    write_table(table, rows, ["case", "part"])
    assert [case.name for case in select_part(cohort, table, "test")] == ["case00", "case01"]
    with pytest.raises(AutopetError, match="it knows test, train"):
        select_part(cohort, table, "validation")
    write_table(table, rows[1:], ["case", "part"])
    with pytest.raises(AutopetError, match="does not name case00"):
        select_part(cohort, table, "test")


def test_the_suffix_is_what_lies_in_the_folder(tmp_path: Path):
    rows = [{"case": name, "patient_id": name, "status": "converted", "folder": name} for name in "abc"]
    write_table(tmp_path / "prep.csv", rows, list(rows[0]))
    for path in ("a/SUV.mha", "b/SUV.nii.gz"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    first, second, third = read_cohort(tmp_path)
    assert (first.suv.name, first.ct.name, first.mask.name) == ("SUV.mha", "CTres.mha", "SEG.mha")
    assert second.image("PET") == tmp_path / "b/PET.nii.gz"
    assert third.suv.name == "SUV.nii.gz"  # not there: whoever reads it says so
