from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autopet.cli import app
from autopet.cohort import TABLE, read_cohort, read_table, write_table
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume
from data_prep import case_store
from data_prep.formats import Options, convert_cohort, open_source, read_case

OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)
PET_GRID = {"spacing_mm": (2.0364, 2.0364, 3.0), "origin_mm": (-407.31, -300.25, -1021.5), "direction": OBLIQUE}
CT_GRID = {"spacing_mm": (0.9766, 0.9766, 1.5), "origin_mm": (-400.1, -310.7, -1020.0), "direction": OBLIQUE}
COLUMNS = ["case", "patient_id", "status", "reason", "folder", "tracer", "centre", "diagnosis", "lesion_voxels"]
PATHS = {"hdf5": "out/cohort.h5", "nnunet": "out/Dataset001_AutoPET"}


def images_of(seed: int, *, mask: bool = True) -> dict[str, Volume]:
    """The images of a case as `autopet prep` writes them: CT on a grid of its own."""
    rng = np.random.default_rng(seed)
    suv = rng.gamma(1.0, 2.0, (5, 7, 6)).astype(np.float32)
    images = {
        "CT": Volume(rng.integers(-1024, 3000, (9, 12, 11)).astype(np.int16), **CT_GRID),
        "PET": Volume((suv * 4321).astype(np.float32), **PET_GRID),
        "SUV": Volume(suv, **PET_GRID),
        "CTres": Volume(rng.normal(0, 300, suv.shape).astype(np.float32), **PET_GRID),
    }
    return images | ({"SEG": Volume((suv > 4).astype(np.uint8), **PET_GRID)} if mask else {})


def make_cohort(folder: Path, *, suffix: str = ".nii.gz") -> dict[str, dict[str, Volume]]:
    """Three converted cases, the last without a mask, and one that failed."""
    cases = {name: images_of(seed, mask=name != "c") for seed, name in enumerate("abc")}
    rows = [{"case": "broken", "patient_id": "p9", "status": "failed", "reason": "no PET"}]
    for name, images in cases.items():
        files = [write_image(folder / name / f"{role}{suffix}", image).name for role, image in images.items()]
        audit = {"settings": {"suv_kind": "bw"}, "files": files, "row": {"case": name}}
        (folder / name / "audit.json").write_text(json.dumps(audit, indent=2) + "\n")
        voxels = int(images["SEG"].array.sum()) if "SEG" in images else ""
        row = {"case": name, "patient_id": f"pätient, {name}", "status": "converted", "reason": "", "folder": name}
        rows.append(row | {"tracer": "FDG", "centre": "A", "diagnosis": 'the "other"', "lesion_voxels": voxels})
    write_table(folder / TABLE, [dict.fromkeys(COLUMNS, "") | row for row in rows], COLUMNS)
    return cases


def entries(path: Path) -> dict[str, case_store.Entry]:
    with open_source(path) as source:
        return {row["case"]: source.read(row) for row in source.rows if row["status"] == "converted"}


def assert_same(found: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.array.dtype == expected.array.dtype
    assert found.same_grid(expected, tolerance_mm=1e-4)


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    make_cohort(tmp_path / "nifti")
    return tmp_path / "nifti"


@pytest.mark.parametrize("last", ["nifti", "mha"])
@pytest.mark.parametrize("first", ["nifti", "mha", "hdf5", "nnunet"])
def test_there_and_back(nifti: Path, tmp_path: Path, first: str, last: str):
    """Voxels, types, places, rows and audits of a cohort survive every format."""
    there = convert_cohort(nifti, tmp_path / "out", to=first)
    assert there.path == tmp_path / PATHS.get(first, "out")
    assert there.converted == 3
    assert not there.failed
    back = convert_cohort(there.path, tmp_path / "back", to=last)
    suffix = {"nifti": ".nii.gz", "mha": ".mha"}[last]
    kept = {"CTres", "SUV", "SEG"} if first == "nnunet" else {"CT", "PET", "CTres", "SUV", "SEG"}
    for name, images in {name: images_of(seed, mask=name != "c") for seed, name in enumerate("abc")}.items():
        files = {path.name for path in (back.path / name).iterdir()}
        assert files == {f"{role}{suffix}" for role in kept & set(images)} | {"audit.json"}
        for role in kept & set(images):
            assert_same(read_image(back.path / name / f"{role}{suffix}"), images[role])
        audit = json.loads((back.path / name / "audit.json").read_text())
        assert set(audit["files"]) == files - {"audit.json"}
        assert audit["row"] == {"case": name}
    assert read_table(back.path / TABLE) == read_table(nifti / TABLE)
    cases = read_cohort(back.path)
    assert [(case.suffix, case.suv.is_file()) for case in cases] == [(suffix, True)] * 3
    assert [case.lesion_voxels is None for case in cases] == [False, False, True]
    assert [path.name for path in tmp_path.glob("**/.*")] == []  # nothing half-written


def test_hdf5_can_be_read_by_api_and_needs_no_cohort_beside(nifti: Path, tmp_path: Path):
    done = convert_cohort(nifti, tmp_path / "small.h5", to="hdf5")
    assert done.path == tmp_path / "small.h5"
    found = read_case(done.path, "b")
    assert list(found) == ["CT", "PET", "SUV", "CTres", "SEG"]
    for role, expected in images_of(1).items():
        assert_same(found[role], expected)
    with pytest.raises(AutopetError, match="no case 'z' in it"):
        read_case(done.path, "z")


def test_one_bad_case_does_not_stop_the_others(nifti: Path, tmp_path: Path):
    data = (nifti / "a/SUV.nii.gz").read_bytes()
    (nifti / "a/SUV.nii.gz").write_bytes(data[:-30])
    (nifti / "b/SEG.nii.gz").unlink()
    for to in ("mha", "hdf5", "nnunet"):
        done = convert_cohort(nifti, tmp_path / to, to=to)
        assert [row["case"] for row in done.failed] == ["a", "b"]
        assert "SUV.nii.gz: cannot be read" in done.failed[0]["reason"]
        assert "found no SEG" in done.failed[1]["reason"]
        statuses = {row["case"]: row["status"] for row in done.rows}
        assert statuses == {"broken": "failed", "a": "failed", "b": "failed", "c": "converted"}
        assert set(entries(done.path)) == {"c"}
    assert [path.name for path in (tmp_path / "mha").iterdir() if path.is_dir()] == ["c"]


def test_nan_is_not_written_to_formats_that_cannot_hold_it(tmp_path: Path):
    make_cohort(tmp_path / "mha", suffix=".mha")
    suv = read_image(tmp_path / "mha/a/SUV.mha")
    voxels = suv.array.copy()
    voxels[2, 3, 1] = np.nan
    write_image(tmp_path / "mha/a/SUV.mha", suv.with_array(voxels))
    done = convert_cohort(tmp_path / "mha", tmp_path / "out", to="nifti")
    assert [row["case"] for row in done.failed] == ["a"]
    assert "NaN or infinite" in done.failed[0]["reason"]


@pytest.mark.parametrize("to", ["mha", "nnunet"])
def test_a_case_is_written_whole_or_not_at_all(nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str):
    """The mask of b, its last file, cannot be written: none of its files stays."""
    b_voxels = int(images_of(1)["SEG"].array.sum())

    def full(path: Path, volume: Volume) -> Path:
        if volume.array.dtype == np.uint8 and volume.array.sum() == b_voxels:
            raise AutopetError("disk full")
        return write_image(path, volume)

    monkeypatch.setattr("data_prep.nnunet_raw.write_image", full)
    monkeypatch.setattr("data_prep.records.write_image", full)
    done = convert_cohort(nifti, tmp_path / "out", to=to)
    assert [(row["case"], row["reason"]) for row in done.failed] == [("b", "disk full")]
    assert [path for path in done.path.rglob("*") if "b" in (path.name[0], path.parent.name)] == []


def test_no_case_at_all_is_an_error_and_leaves_nothing(nifti: Path, tmp_path: Path):
    for path in nifti.rglob("SUV.nii.gz"):
        path.write_text("x")
    for to in ("mha", "hdf5", "nnunet"):
        with pytest.raises(
            AutopetError, match=r"no case could be converted; first reason: .*SUV.nii.gz: cannot be read"
        ):
            convert_cohort(nifti, tmp_path / "out", to=to)
    assert [path for path in tmp_path.rglob("*") if nifti not in path.parents and path.is_file()] == []


def test_other_content_is_never_replaced(nifti: Path, tmp_path: Path):
    before = sorted(path.name for path in nifti.rglob("*"))
    make_cohort(tmp_path / "prepared", suffix=".mha")
    (tmp_path / "other.h5").write_text("precious")
    with pytest.raises(AutopetError, match="holds other files"):
        convert_cohort(tmp_path / "prepared", nifti, to="nifti")
    with pytest.raises(AutopetError, match=r"other.h5 is there and no autopet-cohort"):
        convert_cohort(nifti, tmp_path / "other.h5", to="hdf5")
    for to in ("nifti", "mha"):
        with pytest.raises(AutopetError, match="holds the source"):
            convert_cohort(nifti, tmp_path, to=to)
    assert sorted(path.name for path in nifti.rglob("*")) == before
    assert (tmp_path / "other.h5").read_text() == "precious"


@pytest.mark.parametrize("to", ["mha", "hdf5", "nnunet"])
def test_an_earlier_result_is_replaced(nifti: Path, tmp_path: Path, to: str):
    convert_cohort(nifti, tmp_path / "out", to=to)
    rows = [row for row in read_table(nifti / TABLE) if row["case"] != "b"]
    write_table(nifti / TABLE, rows, COLUMNS)
    done = convert_cohort(nifti, tmp_path / "out", to=to)
    assert set(entries(done.path)) == {"a", "c"}


@pytest.mark.parametrize("name", ["../out", "/tmp/x", ".hidden", "", "a", "A", "x\\y"])
def test_names_that_lead_elsewhere_are_refused(nifti: Path, tmp_path: Path, name: str):
    rows = read_table(nifti / TABLE)
    write_table(nifti / TABLE, [*rows, rows[1] | {"case": name}], COLUMNS)
    with pytest.raises(AutopetError, match="is no file name, or there twice"):
        convert_cohort(nifti, tmp_path / "out", to="mha")


def test_sources_that_are_none(nifti: Path, tmp_path: Path):
    (tmp_path / "text.h5").write_text("no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AutopetError, match=r"text.h5: cannot be read as an HDF5 cohort"):
        convert_cohort(tmp_path / "text.h5", tmp_path / "out", to="nifti")
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(AutopetError, match="found none of them"):
            convert_cohort(path, tmp_path / "out", to="nifti")
    with pytest.raises(AutopetError, match="expected a format of nifti, mha, hdf5, nnunet"):
        convert_cohort(nifti, tmp_path / "out", to="zarr")
    with pytest.raises(AutopetError, match="give the HDF5 file in it"):
        convert_cohort(tmp_path, tmp_path / "out", to="nifti")
    assert not (tmp_path / "out").exists()


def test_a_cohort_of_mixed_suffixes_is_read(nifti: Path, tmp_path: Path):
    for role, volume in images_of(1).items():
        (nifti / f"b/{role}.nii.gz").unlink()
        write_image(nifti / f"b/{role}.mha", volume)
    assert [case.suffix for case in read_cohort(nifti)] == [".nii.gz", ".mha", ".nii.gz"]
    assert convert_cohort(nifti, tmp_path / "out", to="mha").converted == 3


def test_the_command(nifti: Path, tmp_path: Path):
    run = CliRunner()
    done = run.invoke(app, ["convert", str(nifti), str(tmp_path / "c.h5"), "--to", "hdf5"], catch_exceptions=False)
    assert done.exit_code == 0
    (nifti / "a/CTres.nii.gz").write_text("x")
    failed = run.invoke(
        app, ["convert", str(nifti), str(tmp_path / "raw"), "--to", "nnunet", "--id", "7", "--name", "P"]
    )
    assert failed.exit_code == 3
    assert "failed: a: " in failed.stderr
    assert "2 cases in " in failed.stderr
    assert (tmp_path / "raw/Dataset007_P/imagesTr/b_0001.nii.gz").is_file()


@pytest.mark.parametrize(
    ("options", "columns", "parts"),
    [
        (["--fractions", "0.5,0.5"], ["case", "patient_id", "part"], {"train": 10, "test": 10}),
        (["--test-fraction", "0.25"], ["case", "patient_id", "part"], {"train": 15, "test": 5}),
        (["--folds", "4"], ["case", "patient_id", "part", "fold"], {"train": 12, "val": 4, "test": 4}),
    ],
)
def test_the_split_command(tmp_path: Path, options: list[str], columns: list[str], parts: dict[str, int]):
    (tmp_path / "nifti").mkdir()
    rows = [{"case": f"c{i}", "patient_id": f"p{i}", "status": "converted", "folder": f"c{i}"} for i in range(20)]
    write_table(tmp_path / "nifti" / TABLE, rows, COLUMNS)
    out = tmp_path / "new/split.csv"
    done = CliRunner().invoke(app, ["split", str(tmp_path / "nifti"), str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0
    with out.open() as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == columns
    assert {part: sum(row["part"] == part for row in found) for part in parts} == parts
    wrong = CliRunner().invoke(app, ["split", str(tmp_path / "nifti"), str(out), "--fractions", "half,half"])
    assert "expected numbers like 0.6,0.2,0.2" in str(wrong.exception)


def test_a_study_of_real_data(real_data: Path, tmp_path: Path):
    """A real patient's PET and CT, each on its own grid: NIfTI -> HDF5 -> mha, voxel by voxel."""
    folder = sorted((real_data / "sts-petct").glob("STS_*"))[0]
    suv, ct = (read_image(folder / name) for name in ("PET_image.nii.gz", "CT_image.nii.gz"))
    images = {"CT": ct, "SUV": suv, "CTres": replace(suv, array=suv.array * 10), "PET": suv}
    for role, image in images.items():
        write_image(tmp_path / f"nifti/case/{role}.nii.gz", image)
    row = {"case": "case", "patient_id": "p", "status": "converted", "folder": "case"}
    write_table(tmp_path / "nifti" / TABLE, [row], list(row))
    h5 = convert_cohort(tmp_path / "nifti", tmp_path, to="hdf5").path
    mha = convert_cohort(h5, tmp_path / "mha", to="mha").path
    for role in images:
        assert_same(read_image(mha / f"case/{role}.mha"), read_image(tmp_path / f"nifti/case/{role}.nii.gz"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--fractions", "nan,nan,nan"], "fractions: expected 2"),
        (["--fractions", ""], "expected numbers like 0.6,0.2,0.2"),
        (["--fractions", "0.5,0.5", "--test-fraction", "0.2"], "say the same thing; give one of them"),
    ],
)
def test_a_split_that_makes_no_sense_is_one_line(nifti: Path, tmp_path: Path, options: list[str], reason: str):
    done = CliRunner().invoke(app, ["split", str(nifti), str(tmp_path / "s.csv"), *options])
    assert isinstance(done.exception, AutopetError)
    assert reason in str(done.exception)
    assert not (tmp_path / "s.csv").exists()


def test_a_split_goes_to_a_file_and_leaves_nothing_beside(nifti: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(path.name for path in tmp_path.iterdir())
    for out, reason in {"folder": "is a folder; give the CSV file", "file/s.csv": "cannot be written"}.items():
        done = CliRunner().invoke(app, ["split", str(nifti), str(tmp_path / out)])
        assert isinstance(done.exception, AutopetError)
        assert reason in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_hdf5_cohort_is_split_like_the_folder_it_came_from(nifti: Path, tmp_path: Path):
    h5 = convert_cohort(nifti, tmp_path / "c.h5", to="hdf5").path
    for source, out in ((nifti, "folder.csv"), (h5, "file.csv")):
        command = ["split", str(source), str(tmp_path / out), "--folds", "2", "--fractions", "1,0"]
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "file.csv").read_text() == (tmp_path / "folder.csv").read_text()
    assert len(read_table(tmp_path / "file.csv")) == 3


def test_options_of_nnunet_are_checked(nifti: Path, tmp_path: Path):
    for options in (Options(dataset_id=0), Options(dataset_id=1000), Options(dataset_name="a/b")):
        with pytest.raises(AutopetError, match="expected an ID of 1 to 999"):
            convert_cohort(nifti, tmp_path, to="nnunet", options=options)
