"""Conversions of cohorts that are interrupted, repeated, and done by several processes."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from test_data_prep_formats import COLUMNS, PATHS, assert_same, entries, images_of, make_cohort
from typer.testing import CliRunner

from autopet.cli import app
from autopet.cohort import TABLE, read_table, write_table
from autopet.errors import AutopetError
from autopet.parallel import LostProcessError
from data_prep import case_store, formats
from data_prep.formats import convert_cohort
from data_prep.records import read_audit
from data_prep.staging import MARKER, staged

ALL = pytest.mark.parametrize("to", ["nifti", "mha", "hdf5", "nnunet"])
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(50))
KILLED = """
import os, signal, sys
from pathlib import Path
from data_prep import case_store, formats
read = case_store.read_image
def dies(path):
    if path.parent.name == "c" and path.name.startswith("SUV"):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)
case_store.read_image = dies
formats.convert_cohort(Path(sys.argv[1]), Path(sys.argv[2]), to=sys.argv[3])
"""


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    make_cohort(tmp_path / "nifti")
    for case in "abc":
        (tmp_path / f"nifti/{case}/mip.png").write_bytes(PNG + case.encode())
    return tmp_path / "nifti"


@pytest.fixture
def cases_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases whose images are read, in the order of reading."""
    found: list[str] = []
    read = case_store.read_image

    def noted(path: Path):
        if path.parent.name not in found:
            found.append(path.parent.name)
        return read(path)

    monkeypatch.setattr(case_store, "read_image", noted)
    return found


def out_of(to: str, tmp_path: Path) -> Path:
    return tmp_path / PATHS.get(to, "out")


def run(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path} | variables, capture_output=True, text=True, check=False
    )


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def assert_complete(path: Path, to: str) -> None:
    """The voxels of all three cases, as they were made."""
    found = entries(path)
    assert sorted(found) == ["a", "b", "c"]
    for seed, name in enumerate("abc"):
        expected = images_of(seed, mask=name != "c")
        roles = set(expected) - ({"CT", "PET"} if to == "nnunet" else set())
        assert set(found[name].images) == roles
        for role in roles:
            assert_same(found[name].images[role], expected[role])


@ALL
def test_a_killed_conversion_is_no_cohort_and_the_next_call_goes_on(
    nifti: Path, tmp_path: Path, cases_read: list[str], to: str
):
    assert run(KILLED, nifti, tmp_path / "out", to).returncode == -signal.SIGKILL
    path = out_of(to, tmp_path)
    assert not path.exists()  # nothing that could be taken for a cohort
    done = convert_cohort(nifti, tmp_path / "out", to=to)
    assert done.kept == 2
    assert cases_read == ["c"]
    assert_complete(path, to)
    assert hidden(tmp_path) == []
    assert read_table(nifti / TABLE)[0]["case"] == done.rows[0]["case"] == "broken"


@ALL
def test_an_earlier_result_stays_until_the_new_one_is_whole(nifti: Path, tmp_path: Path, to: str):
    path = convert_cohort(nifti, tmp_path / "out", to=to).path
    for case in "abc":
        os.utime(nifti / case / "CTres.nii.gz", (1, 1))  # all have to be converted anew
    assert run(KILLED, nifti, tmp_path / "out", to).returncode == -signal.SIGKILL
    assert_complete(path, to)
    assert convert_cohort(nifti, tmp_path / "out", to=to).kept == 2
    assert_complete(path, to)
    assert hidden(tmp_path) == []


@ALL
def test_what_has_not_changed_is_kept(nifti: Path, tmp_path: Path, cases_read: list[str], to: str):
    """One voxel of b's SUV, one cell of c's row: both cases are converted anew, a is not."""
    path = convert_cohort(nifti, tmp_path / "out", to=to).path
    cases_read.clear()
    assert convert_cohort(nifti, tmp_path / "out", to=to).kept == 3
    assert cases_read == []
    assert_complete(path, to)
    cases_read.clear()
    suv = images_of(1)["SUV"]
    voxels = suv.array.copy()
    voxels[0, 0, 0] += 1
    case_store.write_images(nifti / "b", {"SUV": suv.with_array(voxels)})
    rows = read_table(nifti / TABLE)
    write_table(nifti / TABLE, [row | {"centre": "Z" if row["case"] == "c" else "A"} for row in rows], COLUMNS)
    done = convert_cohort(nifti, tmp_path / "out", to=to)
    assert (done.kept, cases_read) == (1, ["b", "c"])
    found = entries(path)
    np.testing.assert_array_equal(found["b"].images["SUV"].array, voxels)
    assert [found[name].row["centre"] for name in "abc"] == ["A", "A", "Z"]
    cases_read.clear()
    again = convert_cohort(nifti, tmp_path / "out", to=to, resume=False)
    assert (again.kept, cases_read) == (0, ["a", "b", "c"])


@pytest.mark.parametrize("to", ["mha", "nnunet"])
def test_files_that_are_kept_are_the_same_files_and_damaged_ones_are_not_kept(nifti: Path, tmp_path: Path, to: str):
    path = convert_cohort(nifti, tmp_path / "out", to=to).path
    mine, other = ({"mha": (f"{case}/SUV.mha"), "nnunet": f"imagesTr/{case}_0001.nii.gz"}[to] for case in "ab")
    inode = (path / mine).stat().st_ino
    (path / other).write_bytes((path / other).read_bytes()[:-1])
    assert convert_cohort(nifti, tmp_path / "out", to=to).kept == 2
    assert (path / mine).stat().st_ino == inode
    assert_complete(path, to)


def test_a_result_of_another_format_is_not_kept(nifti: Path, tmp_path: Path):
    convert_cohort(nifti, tmp_path / "out", to="mha")
    done = convert_cohort(nifti, tmp_path / "out", to="nifti")
    assert done.kept == 0
    assert_complete(done.path, "nifti")
    assert list(done.path.rglob("*.mha")) == []


def test_damaged_notes_cost_a_second_conversion_only(nifti: Path, tmp_path: Path):
    """A marker that is no JSON, of an earlier version, or that names files elsewhere."""
    path = convert_cohort(nifti, tmp_path / "out", to="mha").path
    notes = json.loads((path / MARKER).read_text())
    notes["cases"]["a"]["file_bytes"] = {"../precious": 1}
    (tmp_path / "precious").write_text("x")
    for text, kept in ((json.dumps(notes), 2), ("{", 0), ('{"format": "mha"}', 0), ('{"cases": {"a": 1}}', 0)):
        (path / MARKER).write_text(text)
        assert convert_cohort(nifti, tmp_path / "out", to="mha").kept == kept
        assert_complete(path, "mha")
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.parametrize("to", ["hdf5", "mha"])
def test_a_half_written_part_is_done_again(nifti: Path, tmp_path: Path, to: str):
    run(KILLED, nifti, tmp_path / "out", to)
    pattern = {"hdf5": "a.h5", "mha": "a/SUV.mha"}[to]
    (part,) = out_of(to, tmp_path).parent.glob(f".unfinished-*/**/{pattern}")
    part.write_bytes(part.read_bytes()[:-100])
    assert convert_cohort(nifti, tmp_path / "out", to=to).kept == 1
    assert_complete(out_of(to, tmp_path), to)


def test_killed_between_two_renames(nifti: Path, tmp_path: Path):
    path = convert_cohort(nifti, tmp_path / "out", to="mha").path
    path.rename(tmp_path / ".old-out-0123abcd")
    assert convert_cohort(nifti, tmp_path / "out", to="mha").kept == 3
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("to", ["hdf5", "nnunet"])
def test_two_processes_make_what_one_makes(nifti: Path, tmp_path: Path, to: str):
    (nifti / "b/SUV.nii.gz").write_text("x")
    one = convert_cohort(nifti, tmp_path / "out", to=to)
    two = convert_cohort(nifti, tmp_path / "two", to=to, workers=2)
    assert two.rows == one.rows
    assert [row["case"] for row in two.failed] == ["b"]
    found, expected = entries(two.path), entries(one.path)
    assert sorted(found) == sorted(expected) == ["a", "c"]
    for name in "ac":
        assert found[name].row == expected[name].row
        assert found[name].audit == expected[name].audit
        for role, image in expected[name].images.items():
            assert_same(found[name].images[role], image)


def test_the_options_of_the_command_reach_the_processes(nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The process that works on b dies: it fails, the others come through, and the next call keeps them."""
    asked = []

    def spied(function: Callable, jobs: list, *, workers: int, scheduler: str) -> Iterator:
        asked.append((workers, scheduler))
        for job in jobs:
            yield job, LostProcessError("killed") if job.case.row["case"] == "b" else function(job)

    monkeypatch.setattr(formats, "run_jobs", spied)
    command = [
        "convert",
        str(nifti),
        str(tmp_path / "out"),
        "--to",
        "mha",
        "--workers",
        "2",
        "--scheduler",
        "tcp://x:1",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3
    assert "failed: b: killed" in done.stderr
    monkeypatch.undo()
    again = CliRunner().invoke(app, [*command[:-4], "--workers", "1"])
    assert again.exit_code == 0
    assert "2 converted before and kept" in again.stderr
    assert asked == [(2, "tcp://x:1")]
    anew = CliRunner().invoke(app, [*command[:-4], "--workers", "1", "--no-resume"])
    assert "kept" not in anew.stderr
    with pytest.raises(AutopetError, match="workers must be at least 1"):
        convert_cohort(nifti, tmp_path / "out", to="mha", workers=0)


@pytest.mark.parametrize("to", ["mha", "hdf5"])
def test_one_run_at_a_time(nifti: Path, tmp_path: Path, to: str):
    with (
        staged(out_of(to, tmp_path), resume=True),
        pytest.raises(AutopetError, match="another run is writing to"),
    ):
        convert_cohort(nifti, tmp_path / "out", to=to)
    assert convert_cohort(nifti, tmp_path / "out", to=to).converted == 3


@ALL
def test_pictures_and_the_page(nifti: Path, tmp_path: Path, to: str):
    """mip.png comes through every format; where there are folders of images, prep.html shows it."""
    there = convert_cohort(nifti, tmp_path / "out", to=to).path
    back = convert_cohort(there, tmp_path / "back", to="mha").path
    page = (back / "prep.html").read_text(encoding="utf-8")
    for case in "abc":
        picture = PNG + case.encode()
        assert (back / case / "mip.png").read_bytes() == picture
        assert base64.b64encode(picture).decode() in page
        assert "mip.png" in json.loads((back / case / "audit.json").read_text())["files"]
    assert "no PET" in page  # the study that failed long ago
    assert (there / "prep.html").is_file() == (to in {"nifti", "mha"})
    if to == "hdf5":
        with h5py.File(there) as file:
            assert bytes(file["cases/b/mip.png"][()]) == PNG + b"b"


def test_the_audit_names_the_sizes_of_the_new_files(nifti: Path, tmp_path: Path):
    path = convert_cohort(nifti, tmp_path / "out", to="mha").path
    audit = read_audit(path / "a")
    assert audit is not None
    names = {item.name for item in (path / "a").iterdir()} - {"audit.json"}
    assert audit["file_bytes"] == {name: (path / "a" / name).stat().st_size for name in names}


@pytest.mark.parametrize("to", ["hdf5", "nnunet"])
def test_audits_are_utf_8_whatever_the_locale(nifti: Path, tmp_path: Path, to: str):
    audit = json.loads((nifti / "a/audit.json").read_text()) | {"note": "Tübingen, μ"}
    (nifti / "a/audit.json").write_text(json.dumps(audit, ensure_ascii=False), encoding="utf-8")
    script = "import sys\nfrom pathlib import Path\nfrom data_prep.formats import convert_cohort\n"
    script += "done = convert_cohort(Path(sys.argv[1]), Path(sys.argv[2]), to=sys.argv[3])\n"
    script += "sys.exit(repr(done.failed) if done.failed else 0)"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(script, nifti, tmp_path / "out", to, **ascii_only)
    assert done.returncode == 0, done.stderr
    done = run(script, out_of(to, tmp_path), tmp_path / "back", "mha", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "back/a/audit.json").read_text(encoding="utf-8"))["note"] == "Tübingen, μ"


def test_what_cannot_be_put_in_place_is_one_line_and_is_not_lost(
    nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(case_store, "write_table", full)
    with pytest.raises(AutopetError, match=r"out: cannot be written .*No space left"):
        convert_cohort(nifti, tmp_path / "out", to="mha")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert convert_cohort(nifti, tmp_path / "out", to="mha").kept == 3


def test_a_copy_where_the_file_system_has_no_links(nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = convert_cohort(nifti, tmp_path / "out", to="mha").path

    def refuses(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("data_prep.staging.os", SimpleNamespace(link=refuses, replace=os.replace))
    assert convert_cohort(nifti, tmp_path / "out", to="mha").kept == 3
    assert_complete(path, "mha")
