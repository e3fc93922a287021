"""The phantom cohort: reproducible, balanced, resumable."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.organs import LABELS
from data_prep import phantom
from data_prep.anatomy import Habitus
from data_prep.imaging import SCANNERS, make_grid
from data_prep.organ_maps import around_organs
from data_prep.phantom import plan, write_cohort
from data_prep.simulation import simulate
from data_prep.tissues import ORGAN_TISSUES, Tissue

COMMON: dict[str, Any] = {"size": "small", "tracer": "mixed", "positive_fraction": 0.75}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    write_cohort(out, cases=3, seed=7)
    return out


def contents(out: Path) -> dict[str, bytes]:
    written = sorted([*out.rglob("*.dcm"), *out.rglob("*.nii.gz")])
    return {str(path.relative_to(out)): path.read_bytes() for path in written}


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
    assert sum(name.startswith("organs/") for name in again) == 2
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


def test_a_study_without_its_organ_map_is_written_anew_with_the_same_bytes(cohort, tmp_path):
    """As in cohorts of earlier versions."""
    write_cohort(tmp_path, cases=1, seed=7)
    (organs,) = (tmp_path / "organs").iterdir()
    before = contents(tmp_path)
    organs.unlink()
    write_cohort(tmp_path, cases=1, seed=7)
    assert contents(tmp_path) == before


def test_organ_maps_lie_on_the_pet_beside_the_collections(cohort):
    with (cohort / "metadata.csv").open() as file:
        patients = [row["patient_id"] for row in csv.DictReader(file)]
    assert sorted(path.name for path in (cohort / "organs").iterdir()) == sorted(f"{name}.nii.gz" for name in patients)
    for name in patients:
        found = read_image(cohort / "organs" / f"{name}.nii.gz")
        slices = [pydicom.dcmread(path) for path in cohort.glob(f"*/{name}/*/PT/*.dcm")]
        first = min(slices, key=lambda item: item.ImagePositionPatient[2])
        assert found.array.dtype == np.uint8
        assert found.shape == (len(slices), first.Rows, first.Columns)
        assert found.origin_mm == pytest.approx([float(value) for value in first.ImagePositionPatient], abs=1e-2)
        assert set(np.unique(found.array)) >= {0, 1, 2, 3, 4, 5, 6, 7, 8, 10}
        assert found.array.max() <= 10


# what each label is made of; the heart's blood and the glands are looked at below
TISSUES = {
    "spleen": Tissue.SPLEEN, "kidneys": Tissue.KIDNEY, "liver": Tissue.LIVER, "bladder": Tissue.URINE,
    "lung": Tissue.LUNG, "brain": Tissue.BRAIN, "stomach": Tissue.STOMACH, "prostate": Tissue.PROSTATE,
}  # fmt: skip


@pytest.mark.parametrize("tracer", ["FDG", "PSMA"])
def test_the_organs_of_a_procedural_body_are_its_tissues(tracer):
    rng = np.random.default_rng(3)
    study = simulate(rng, scanner=SCANNERS["A", "small"], tracer=tracer, diagnosis="NEGATIVE", habitus=Habitus())
    tissues, organs = study.labels.array, study.organs.array
    assert study.organs.same_grid(study.pet)
    for name, tissue in TISSUES.items():
        assert np.array_equal(organs == LABELS[name], tissues == tissue), name
        assert ORGAN_TISSUES[LABELS[name]] == tissue
    heart = organs == LABELS["heart"]
    assert heart[tissues == Tissue.MYOCARDIUM].all()
    assert set(np.unique(tissues[heart])) == {Tissue.MYOCARDIUM, Tissue.BLOOD}
    assert 400 < heart.sum() * study.organs.voxel_volume_ml < 1000  # ml, with its blood
    assert (~heart[tissues == Tissue.BLOOD]).any()  # vessels are none of it
    glands = organs == LABELS["head_glands"]
    assert (tissues[glands] == Tissue.SALIVARY).all()
    beyond = (tissues == Tissue.SALIVARY) & ~glands  # the glands of tears: few voxels, above all the others
    assert np.argwhere(beyond)[:, 0].min() > np.argwhere(glands)[:, 0].max()
    assert beyond.sum() < glands.sum() / 5
    # what the labels say is seen in the image
    median = {name: float(np.median(study.pet.array[organs == label])) for name, label in LABELS.items()}
    if tracer == "FDG":
        assert median["brain"] > 3 * median["liver"] > 6 * median["lung"] > 0
        assert median["bladder"] > 3 * median["liver"]
    else:
        assert median["kidneys"] > 3 * median["liver"] > 15 * median["brain"] > 0
        assert median["head_glands"] > 3 * median["heart"]


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


def test_organs_around_a_real_map_are_the_map(real_data):
    """The organs that are painted are those of the map without its specks, whole hearts among them."""
    path = sorted((real_data / "organ-labels").glob("psma*.nii.gz"))[0]
    real = read_image(path)
    anatomy = around_organs(np.random.default_rng(1), real, Habitus())
    grid = make_grid((4.0, 4.0, 5.0), (120, 80), centre_mm=anatomy.centre_mm, z_mm=(anatomy.bottom_mm, anatomy.top_mm))
    tissues, organs = anatomy.paint_with_organs(grid)
    assert np.array_equal(tissues, anatomy.paint(grid))
    for name, label in LABELS.items():
        real_ml = (real.array == label).sum() * real.voxel_volume_ml
        if label and real_ml > 20:
            rel = 0.15 if real_ml < 100 else 0.06
            assert (organs == label).sum() * grid.voxel_volume_ml == pytest.approx(real_ml, rel=rel), name
    heart = tissues[organs == LABELS["heart"]]
    assert set(np.unique(heart)) == {Tissue.BLOOD, Tissue.MYOCARDIUM}
