from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import read_cohort, read_table
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume
from data_prep.collect import collect
from data_prep.records import COLUMNS

NAMES = {"pet": "PET.nii.gz", "ct": "CT*.nii.gz", "mask": "mask.nii.gz"}


def write_patient(folder: Path, **changes: Volume | None) -> None:
    """PET of 4 x 4 x 6 mm with SUV 5 in two lesion voxels; CT of 2 x 2 x 3 mm, 30 HU, over the same place."""
    suv, mask = np.ones((5, 6, 7), np.float32), np.zeros((5, 6, 7), np.uint8)
    mask[2, 3, 3:5] = 1
    suv[mask == 1] = 5
    images: dict[str, Volume | None] = {
        "PET": Volume(suv, (4.0, 4.0, 6.0)),
        "CT_image": Volume(np.full((10, 12, 14), 30, np.int16), (2.0, 2.0, 3.0)),
        "mask": Volume(mask, (4.0, 4.0, 6.0)),
        **changes,
    }
    folder.mkdir(parents=True)
    for name, volume in images.items():
        if volume is not None:
            write_image(folder / f"{name}.nii.gz", volume)


def test_layout_is_that_of_prepare(tmp_path):
    write_patient(tmp_path / "in" / "P 1")
    rows = collect(tmp_path / "in", tmp_path / "out", **NAMES)
    assert tuple(read_table(tmp_path / "out" / "prep.csv")[0]) == COLUMNS
    (case,) = read_cohort(tmp_path / "out")
    assert (case.name, case.patient_id, case.lesion_voxels) == ("P-1", "P 1", 2)
    assert (rows[0]["suv_max"], rows[0]["lesion_ml"], rows[0]["warnings"]) == (5.0, 2 * 0.096, "")
    suv, ct, mask = (read_image(path) for path in (case.suv, case.ct, case.mask))
    assert ct.same_grid(suv)
    assert mask.same_grid(suv)
    assert set(np.unique(ct.array)) == {30}
    assert (suv.array[mask.array == 1] == 5).all()
    audit = json.loads((case.folder / "audit.json").read_text())
    assert audit["source"]["CT"].endswith("CT_image.nii.gz")


def test_mask_on_another_grid_is_resampled_with_a_warning(tmp_path):
    fine = np.zeros((10, 12, 14), np.uint8)
    fine[4, 6, 6] = fine[4, 6, 8] = 7  # at 12, 12 and 12 or 16 mm: centres of PET voxels (2, 3, 3) and (2, 3, 4)
    write_patient(tmp_path / "in" / "A", mask=Volume(fine, (2.0, 2.0, 3.0)))
    (row,) = collect(tmp_path / "in", tmp_path / "out", **NAMES)
    mask = read_image(tmp_path / "out" / "A" / "SEG.nii.gz").array
    assert [tuple(index) for index in np.argwhere(mask)] == [(2, 3, 3), (2, 3, 4)]
    assert mask.max() == 1
    assert "the mask is not on the PET grid" in row["warnings"]


def test_every_patient_has_a_row(tmp_path):
    source = tmp_path / "in"
    write_patient(source / "a_whole")
    write_patient(source / "b_no_ct", CT_image=None)
    write_patient(source / "c_no_mask", mask=None)
    write_patient(source / "d_two_ct", CT_second=Volume(np.zeros((2, 2, 2), np.int16)))
    write_patient(source / "e_bq", PET=Volume(np.full((5, 6, 7), 9e3, np.float32), (4.0, 4.0, 6.0)))
    write_patient(source / "f_apart", CT_image=Volume(np.zeros((4, 4, 4), np.int16), origin_mm=(0.0, 0.0, 900.0)))
    (source / "g_broken").mkdir()
    for name in ("PET.nii.gz", "CT.nii.gz"):
        (source / "g_broken" / name).write_bytes(b"not an image")
    rows = collect(source, tmp_path / "out", **NAMES)
    assert [row["status"] for row in rows] == [
        "converted", "skipped", "converted", "failed", "failed", "failed", "failed",
    ]  # fmt: skip
    reasons = [row["reason"] for row in rows]
    assert "no CT image CT*.nii.gz" in reasons[1]
    assert rows[2]["lesion_voxels"] == ""
    assert "no mask image" in rows[2]["warnings"]
    assert "2 images match 'CT*.nii.gz'" in reasons[3]
    assert "highest voxel is 9000, expected SUV" in reasons[4]
    assert "do not overlap" in reasons[5]
    assert "cannot be read" in reasons[6]
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert kept == ["a_whole", "c_no_mask", "prep.csv", "prep.html"]


def test_without_masks(tmp_path):
    write_patient(tmp_path / "in" / "A")
    (row,) = collect(tmp_path / "in", tmp_path / "out", **{**NAMES, "mask": None})
    assert (row["lesion_voxels"], row["warnings"]) == ("", "")
    assert not (tmp_path / "out" / "A" / "SEG.nii.gz").exists()


def test_no_patient_folders(tmp_path):
    with pytest.raises(AutopetError, match="no folder in it"):
        collect(tmp_path, tmp_path / "out", **NAMES)
    with pytest.raises(AutopetError, match="no such folder"):
        collect(tmp_path / "absent", tmp_path / "out", **NAMES)


def test_real_sarcoma_patients(real_data, tmp_path):
    source = real_data / "sts-petct"
    rows = collect(source, tmp_path, pet="PET_image.nii.gz", ct="CT_image.nii.gz", mask="PET_mask.nii.gz")
    assert [row["status"] for row in rows] == ["converted"] * 21
    cases = read_cohort(tmp_path)
    assert len(cases) == 21
    case = cases[0]
    original = read_image(source / case.patient_id / "PET_mask.nii.gz").array
    assert case.lesion_voxels == int((original > 0).sum()) > 0
    assert read_image(case.ct).same_grid(read_image(case.suv))
    assert not any(row["warnings"] for row in rows)


def test_neither_the_source_nor_other_folders_are_replaced(tmp_path):
    """The cohort goes to the folder that holds the source; a patient of the source's name would replace it."""
    for name in ("sts", "P1", "P2"):
        write_patient(tmp_path / "sts" / name)
    (tmp_path / "P1").mkdir()
    (tmp_path / "P1" / "precious.txt").write_text("x")
    rows = {row["case"]: row for row in collect(tmp_path / "sts", tmp_path, **NAMES)}
    assert {case: row["status"] for case, row in rows.items()} == {"P1": "failed", "P2": "converted", "sts": "failed"}
    assert "is the source itself, or holds it" in rows["sts"]["reason"]
    assert "is no case of a cohort" in rows["P1"]["reason"]
    assert (tmp_path / "P1" / "precious.txt").is_file()
    assert (tmp_path / "sts" / "P1").is_dir()
