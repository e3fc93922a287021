from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dicom_maker import ct_slices, save, save_study

from autopet.errors import AutopetError
from data_prep.convert import prepare
from data_prep.finding import find_studies, identity, looks_like_dicom


def two_studies(folder: Path) -> Path:
    """The layout of TCIA: patient / study / series, one patient with two studies."""
    for number in (1, 2):
        save_study(folder / "patient" / f"study{number}", uid=f"1.2.{number}", patient="P")
    return folder


def test_studies_hold_paths_and_what_names_them(tmp_path):
    found = find_studies(two_studies(tmp_path))
    assert [(study.uid, study.patient_id, study.date) for study in found.studies] == [
        ("1.2.1", "P", "20200102"), ("1.2.2", "P", "20200102"),
    ]  # fmt: skip
    assert [len(study.paths) for study in found.studies] == [12, 12]
    assert found.studies[0].series_uids == ("1.2.1.1", "1.2.1.2")


def test_identity_reads_the_start_of_a_file_only(tmp_path):
    """A file cut behind SeriesInstanceUID (0020,000E) still says where it belongs; cut before, it does not."""
    path = next(save(tmp_path, ct_slices()).iterdir())
    data = path.read_bytes()
    series = data.index(b"\x20\x00\x0e\x00UI")
    path.write_bytes(data[: series + 40])
    header = identity(path)
    assert header is not None
    assert sum(sys.getsizeof(element.value) for element in header) < 2000
    path.write_bytes(data[:series])
    assert identity(path) is None


def test_damaged_files_of_a_lost_study_are_orphans(tmp_path):
    """A study of which no file can be read is not hung onto its neighbours."""
    source = two_studies(tmp_path)
    lost = source / "patient" / "study3" / "PT"
    lost.mkdir(parents=True)
    for name in ("1.dcm", "2.dcm"):
        (lost / name).write_bytes(b"")
    found = find_studies(source)
    assert [path.name for path in found.orphans] == ["1.dcm", "2.dcm"]
    assert [study.unreadable for study in found.studies] == [(), ()]


@pytest.mark.parametrize("role", ["ct", "pet"])
def test_a_study_of_one_series_owns_its_neighbour_folder(tmp_path, role):
    """The other series of the study may be what is damaged."""
    source = two_studies(tmp_path)
    damaged = source / "patient" / "study1" / role / "000"
    for path in damaged.parent.iterdir():
        path.write_bytes(b"")
    first, second = find_studies(source).studies
    assert damaged in first.unreadable
    assert len(first.unreadable) == 6
    assert second.unreadable == ()


def test_orphans_are_failed_rows_that_name_their_folder(tmp_path):
    source = two_studies(tmp_path / "in")
    lost = source / "patient" / "study3" / "PT"
    lost.mkdir(parents=True)
    (lost / "1.dcm").write_bytes(b"")
    (source / "viewer.exe").write_bytes(b"MZ")  # of a CD; not meant as DICOM
    rows = {row["case"]: row for row in prepare(source, tmp_path / "out")}
    assert len(rows) == 3
    row = rows["unreadable_patient-study3-PT"]
    assert row["status"] == "failed"
    assert row["reason"].startswith("1 files are not readable as DICOM (first: ")
    assert str(lost / "1.dcm") in row["reason"]


def test_only_damaged_files_are_rows_not_silence(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.dcm").write_bytes(b"")
    (row,) = prepare(tmp_path / "in", tmp_path / "out")
    assert row["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "content", "meant"),
    [
        ("1.dcm", b"", True),
        ("IM0001", b"junk", True),
        ("1.2.840.7", b"", True),
        ("x.exe", b"MZ", False),
        ("x.exe", bytes(128) + b"DICM", True),
    ],
)
def test_what_was_meant_as_dicom(tmp_path, name, content, meant):
    (tmp_path / name).write_bytes(content)
    assert looks_like_dicom(tmp_path / name) is meant


def test_nothing_to_find_says_so(tmp_path):
    (tmp_path / "viewer.exe").write_bytes(b"MZ")
    with pytest.raises(AutopetError, match=r"no DICOM file below it \(1 other files\)"):
        find_studies(tmp_path)
