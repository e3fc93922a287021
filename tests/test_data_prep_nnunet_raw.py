from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_data_prep_formats import COLUMNS, images_of, make_cohort

from autopet.cohort import TABLE, read_cohort, read_table, write_table
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from data_prep.formats import Options, convert_cohort


def write_cohort(folder: Path, count: int) -> Path:
    rows = []
    for number in range(count):
        images, name = images_of(number), f"case{number}"
        for role, volume in images.items():
            write_image(folder / name / f"{role}.nii.gz", volume)
        row = {"case": name, "patient_id": name, "status": "converted", "folder": name}
        rows.append(row | {"lesion_voxels": int(images["SEG"].array.sum())})
    write_table(folder / TABLE, rows, COLUMNS)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_layout_and_description(tmp_path: Path, capsys: pytest.CaptureFixture):
    make_cohort(tmp_path / "nifti")
    options = Options(dataset_id=42, dataset_name="Small")
    path = convert_cohort(tmp_path / "nifti", tmp_path / "raw", to="nnunet", options=options).path
    assert path == tmp_path / "raw/Dataset042_Small"
    assert names(path / "imagesTr") == [f"{case}_000{n}.nii.gz" for case in "ab" for n in (0, 1)]
    assert names(path / "labelsTr") == ["a.nii.gz", "b.nii.gz"]
    assert names(path / "imagesTs") == ["c_0000.nii.gz", "c_0001.nii.gz"]  # it has no mask
    assert names(path / "labelsTs") == []
    assert json.loads((path / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    images = images_of(0)
    np.testing.assert_array_equal(read_image(path / "imagesTr/a_0000.nii.gz").array, images["CTres"].array)
    np.testing.assert_array_equal(read_image(path / "imagesTr/a_0001.nii.gz").array, images["SUV"].array)
    said = capsys.readouterr().err
    assert "c has no lesion mask and cannot be trained on: it goes to imagesTs" in said
    assert "not in this format: CT on its own grid and PET before SUV conversion" in said


def test_nnunet_accepts_it(tmp_path: Path, capfd: pytest.CaptureFixture):
    """nnU-Net's own check of channels, labels, shapes and spacings; and its complaint when a label is damaged."""
    verify = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    path = convert_cohort(write_cohort(tmp_path / "nifti", 3), tmp_path, to="nnunet").path
    verify.verify_dataset_integrity(str(path), num_processes=1)
    said = capfd.readouterr().out
    assert "verify_dataset_integrity Done" in said
    assert "Warning" not in said
    assert "Error" not in said
    label = read_image(path / "labelsTr/case1.nii.gz")
    write_image(path / "labelsTr/case1.nii.gz", label.with_array(label.array * 2))
    with pytest.raises(RuntimeError, match="unexpected labels"):
        verify.verify_dataset_integrity(str(path), num_processes=1)


def test_parts_and_folds(tmp_path: Path):
    """Test cases go to imagesTs with their labels; folds become splits_final.json."""
    cohort = write_cohort(tmp_path / "nifti", 6)
    parts = ["test", "train", "val", "train", "train", "test"]
    folds = ["", "0", "1", "0", "1", ""]
    rows = [{"case": f"case{i}", "part": parts[i], "fold": folds[i]} for i in range(6)]
    write_table(tmp_path / "split.csv", rows, ["case", "part", "fold"])
    path = convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(tmp_path / "split.csv")).path
    assert names(path / "labelsTr") == [f"case{i}.nii.gz" for i in (1, 2, 3, 4)]
    assert names(path / "labelsTs") == ["case0.nii.gz", "case5.nii.gz"]
    assert len(names(path / "imagesTs")) == 4
    assert json.loads((path / "dataset.json").read_text())["numTraining"] == 4
    assert json.loads((path / "splits_final.json").read_text()) == [
        {"train": ["case2", "case4"], "val": ["case1", "case3"]},
        {"train": ["case1", "case3"], "val": ["case2", "case4"]},
    ]
    write_table(tmp_path / "plain.csv", [{"case": row["case"], "part": row["part"]} for row in rows], ["case", "part"])
    path = convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(tmp_path / "plain.csv")).path
    splits = json.loads((path / "splits_final.json").read_text())
    assert splits == [{"train": ["case1", "case3", "case4"], "val": ["case2"]}]
    back = convert_cohort(path, tmp_path / "back", to="nifti")
    assert back.converted == 6
    assert read_table(tmp_path / "back" / TABLE) == read_table(cohort / TABLE)


def test_a_split_that_forgets_a_case(tmp_path: Path):
    cohort = write_cohort(tmp_path / "nifti", 2)
    write_table(tmp_path / "split.csv", [{"case": "case0", "part": "train"}], ["case", "part"])
    with pytest.raises(AutopetError, match="does not name case1"):
        convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(tmp_path / "split.csv"))
    with pytest.raises(AutopetError, match=r"none.csv: no such file"):
        convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(tmp_path / "none.csv"))


def test_a_dataset_of_others(tmp_path: Path):
    """No prep.csv, channels the other way round and called SUV, images as .mha."""
    images = images_of(4)
    for role, path in {"SUV": "imagesTr/x_0000", "CTres": "imagesTr/x_0001", "SEG": "labelsTr/x"}.items():
        write_image(tmp_path / f"Dataset009_X/{path}.mha", images[role])
    description = {"channel_names": {"0": "SUV", "1": "ct"}, "labels": {}, "numTraining": 1, "file_ending": ".mha"}
    (tmp_path / "Dataset009_X/dataset.json").write_text(json.dumps(description))
    back = convert_cohort(tmp_path / "Dataset009_X", tmp_path / "back", to="nifti")
    (case,) = read_cohort(back.path)
    assert (case.name, case.patient_id, case.lesion_voxels) == ("x", "x", int(images["SEG"].array.sum()))
    np.testing.assert_array_equal(read_image(case.suv).array, images["SUV"].array)
    np.testing.assert_array_equal(read_image(case.ct).array, images["CTres"].array)
    np.testing.assert_array_equal(read_image(case.mask).array, images["SEG"].array)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}',
        '{"channel_names": [], "file_ending": 3}',
        '{"channel_names": {"0": "CT", "1": "PET"}, "file_ending": ".png"}',
    ],
)
def test_a_description_that_is_none(tmp_path: Path, text: str):
    (tmp_path / "d/imagesTr").mkdir(parents=True)
    (tmp_path / "d/dataset.json").write_text(text)
    with pytest.raises(AutopetError, match=r"dataset.json: expected"):
        convert_cohort(tmp_path / "d", tmp_path / "out", to="nifti")


def test_what_nnunet_would_refuse_is_a_failed_case(tmp_path: Path):
    cohort = write_cohort(tmp_path / "nifti", 3)
    images = images_of(0)
    write_image(cohort / "case0/SEG.nii.gz", images["SEG"].with_array(images["SEG"].array * 3))
    write_image(cohort / "case1/CTres.nii.gz", images_of(1)["CT"])
    done = convert_cohort(cohort, tmp_path, to="nnunet")
    assert [row["case"] for row in done.failed] == ["case0", "case1"]
    assert "expected a mask of 0 and 1, found label 3" in done.failed[0]["reason"]
    assert "CTres is not on the grid of SUV" in done.failed[1]["reason"]
    assert names(done.path / "labelsTr") == ["case2.nii.gz"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,patient_id\ncase0,p\n", "expected a column 'part', found case, patient_id"),
        ("name,part\ncase0,train\n", "expected a column 'case', found name, part"),
        ("", "expected a column 'case', found no row"),
        ("case,part,fold\ncase0,train,one\n", "column 'fold': expected a number or nothing, found 'one'"),
    ],
)
def test_a_table_that_is_no_split(tmp_path: Path, text: str, reason: str):
    cohort = write_cohort(tmp_path / "nifti", 1)
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(AutopetError, match=reason):
        convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(tmp_path / "split.csv"))
    (tmp_path / "split.csv").write_bytes(b"case,part\n\xff,train\n")
    with pytest.raises(AutopetError, match=r"split.csv: cannot be read as a table in UTF-8"):
        convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(tmp_path / "split.csv"))
    assert not (tmp_path / "raw").exists()


def test_another_split_moves_cases_and_keeps_the_rest(tmp_path: Path):
    """A case that goes from train to test leaves nothing behind; the others are not written again."""
    cohort, split = write_cohort(tmp_path / "nifti", 3), tmp_path / "split.csv"
    write_table(split, [{"case": f"case{i}", "part": "train"} for i in range(3)], ["case", "part"])
    path = convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(split)).path
    before = (path / "imagesTr/case0_0000.nii.gz").stat().st_ino
    parts = ["train", "train", "test"]
    write_table(split, [{"case": f"case{i}", "part": part} for i, part in enumerate(parts)], ["case", "part"])
    again = convert_cohort(cohort, tmp_path / "raw", to="nnunet", options=Options(split))
    assert again.kept == 2
    assert (path / "imagesTr/case0_0000.nii.gz").stat().st_ino == before
    assert names(path / "labelsTr") == ["case0.nii.gz", "case1.nii.gz"]
    assert names(path / "imagesTr") == [f"case{i}_000{n}.nii.gz" for i in (0, 1) for n in (0, 1)]
    assert names(path / "labelsTs") == ["case2.nii.gz"]
    assert json.loads((path / "dataset.json").read_text())["numTraining"] == 2
