"""The phantom cohort: reproducible, balanced, resumable."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest

from autopet.errors import AutopetError
from data_prep import phantom
from data_prep.phantom import plan, write_cohort

COMMON: dict[str, Any] = {"size": "small", "tracer": "mixed", "positive_fraction": 0.75}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    write_cohort(out, cases=3, seed=7)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.dcm"))}


def test_layout_and_table(cohort):
    with (cohort / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(phantom.COLUMNS)
    assert {row["tracer"] for row in rows} == {"FDG", "PSMA"}
    assert {row["centre"] for row in rows} == {"A", "B"}
    assert [row["positive"] for row in rows] == ["1", "1", "0"]
    for row in rows:
        collection = {"FDG": "FDG-PET-CT-Lesions", "PSMA": "PSMA-PET-CT-Lesions"}[row["tracer"]]
        (study,) = (cohort / collection / row["patient_id"]).iterdir()
        assert study.name.endswith(row["study_uid"][-5:])
        assert sorted(path.name for path in study.iterdir()) == ["CT", "PT", "SEG"]
        first = pydicom.dcmread(study / "PT" / "0001.dcm")
        assert first.StudyInstanceUID == row["study_uid"]
        assert first.Manufacturer == ("SIEMENS" if row["centre"] == "A" else "GE MEDICAL SYSTEMS")
        assert (int(row["lesions"]) > 0) == (row["positive"] == "1")
        mask = hd.seg.segread(study / "SEG" / "lesion.dcm").pixel_array
        assert mask.any() == (row["positive"] == "1")


def test_same_seed_same_bytes_also_with_workers_and_fewer_cases(cohort, tmp_path):
    rows = write_cohort(tmp_path, cases=2, seed=7, workers=2)
    again, before = contents(tmp_path), contents(cohort)
    assert len(rows) == 2
    assert again
    assert all(before[name] == content for name, content in again.items())


def test_what_is_complete_is_left_alone_and_the_rest_is_finished(cohort, tmp_path):
    out = tmp_path / "resumed"
    write_cohort(out, cases=1, seed=7)
    (first,) = out.glob("*/*/*")
    (first / "CT" / "0001.dcm").write_bytes(b"touched")
    (second,) = (path for path in cohort.glob("PSMA*/*/*"))
    part = out / second.relative_to(cohort).parent / f".part-{second.name}"
    part.mkdir(parents=True)  # what a killed run leaves
    assert [row["patient_id"] for row in write_cohort(out, cases=2, seed=7)] == [
        first.parent.name,
        second.parent.name,
    ]
    assert (first / "CT" / "0001.dcm").read_bytes() == b"touched"
    assert not part.exists()
    assert (out / second.relative_to(cohort) / "SEG" / "lesion.dcm").is_file()


def test_another_cohort_in_the_folder_is_refused(cohort):
    with pytest.raises(AutopetError, match="empty folder"):
        write_cohort(cohort, cases=3, seed=8)
    with pytest.raises(AutopetError, match="fewer cases"):
        write_cohort(cohort, cases=2, seed=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": 0}, "at least 1"),
        ({"seed": -1}, "negative"),
        ({"size": "huge"}, "small, full"),
        ({"tracer": "FET"}, "mixed, FDG, PSMA"),
        ({"positive_fraction": 1.5}, "from 0 to 1"),
        ({"workers": 0}, "workers"),
        ({"organ_maps": Path("/nowhere")}, "no such folder"),
    ],
)
def test_bad_arguments_name_the_fix(tmp_path, change, message):
    with pytest.raises(AutopetError, match=message):
        write_cohort(tmp_path / "out", **({"cases": 1, "seed": 0} | change))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_maps_is_refused(tmp_path):
    with pytest.raises(AutopetError, match="no organ map"):
        write_cohort(tmp_path / "out", cases=1, seed=0, organ_maps=tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
def test_every_prefix_meets_the_positive_fraction(fraction):
    patients = plan(40, seed=1, **(COMMON | {"positive_fraction": fraction}))
    for count in range(1, 41):
        assert abs(sum(p.positive for p in patients[:count]) - fraction * count) <= 0.5 + 1e-9
    assert all(p.positive == (p.diagnosis != "NEGATIVE") for p in patients)


def test_plan_is_a_prefix_and_mixes_tracers_centres_and_negatives():
    patients = plan(32, seed=1, **COMMON)
    assert plan(5, seed=1, **COMMON) == patients[:5]
    assert {(p.tracer, p.centre) for p in patients[:4]} == {(t, c) for t in ("FDG", "PSMA") for c in "AB"}
    assert len({p.patient_id for p in patients}) == 32
    assert {(p.tracer, p.centre) for p in patients if not p.positive} == {(t, c) for t in ("FDG", "PSMA") for c in "AB"}
    assert all(p.sex == "M" for p in patients if p.tracer == "PSMA")
    only = plan(4, seed=1, **(COMMON | {"tracer": "PSMA"}))
    assert {p.tracer for p in only} == {"PSMA"}
    assert {p.centre for p in only} == {"A", "B"}


def test_cohort_around_real_organ_maps(tmp_path):
    if "AUTOPET_REAL_DATA" not in os.environ:
        pytest.skip("AUTOPET_REAL_DATA is not set")
    maps = Path(os.environ["AUTOPET_REAL_DATA"]) / "organ-labels"
    rows = write_cohort(tmp_path, cases=2, seed=3, organ_maps=maps)
    assert all(row["lesions"] >= 1 for row in rows)
    assert len(list(tmp_path.glob("*/*/*/PT"))) == 2
