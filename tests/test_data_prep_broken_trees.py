"""Sources and disks that are broken as a whole: folders, links, permissions, names, full disks and killed runs.

Every test has a good study, which must come through. Broken files are in test_data_prep_broken.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_maker import PET_SHAPE, ct_slices, pet_slices, save, save_study

from autopet import cli
from autopet.cohort import read_table, write_table
from autopet.errors import AutopetError
from autopet.images import read_image
from data_prep.convert import prepare
from data_prep.finding import identity
from data_prep.walking import walk

GOOD, BAD = "1.2.826.0.1.11111", "1.2.826.0.1.22222"  # StudyInstanceUIDs
GOOD_CASE, BAD_CASE = "GOOD_20200102_11111", "BAD_20200102_22222"
TABLES = ["prep.csv", "prep.html"]
SUV_OF_STORED = 4e-4  # see dicom_maker.pet_slices
SOON_S = 60.0  # on a busy machine
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24  # linux/capability.h, linux/prctl.h


def make_good(source: Path) -> None:
    save_study(source / "good", uid=GOOD, patient="GOOD")


def make_bad(folder: Path) -> None:
    """A study with a damaged slice."""
    save_study(folder, uid=BAD, patient="BAD")
    (folder / "pet" / "014").write_bytes(b"")


def make_large(folder: Path, uid: str, patient: str) -> None:
    """A study of noise, that takes some 2 MB and a second to write."""
    rng = np.random.default_rng(0)
    datasets = {"ct": ct_slices(), "pet": pet_slices(rng.integers(0, 30000, (16, 160, 160)))}
    for name, slices in datasets.items():
        for data in slices:
            data.StudyInstanceUID, data.PatientID = uid, patient
            data.SeriesInstanceUID = f"{uid}.{name == 'pet'}".replace("True", "2").replace("False", "1")
        save(folder / name, slices)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_good(out: Path) -> None:
    stored = np.arange(np.prod(PET_SHAPE)).reshape(PET_SHAPE)
    np.testing.assert_allclose(read_image(out / GOOD_CASE / "SUV.nii.gz").array, SUV_OF_STORED * stored, rtol=1e-5)


def status_in(out: Path) -> dict[str, str]:
    return {row["patient_id"] or row["case"]: row["status"] for row in read_table(out / "prep.csv")}


# --- trees -----------------------------------------------------------------------------------------------------------


def loop(source: Path) -> None:
    (source / "good" / "again").symlink_to(source)
    (source / "good" / "up").symlink_to(source.parent)
    (source / "itself").symlink_to(source / "itself")
    (source / "one").symlink_to(source / "two")
    (source / "two").symlink_to(source / "one")


def dangling(source: Path) -> None:
    (source / "gone").symlink_to(source / "nowhere")
    (source / "good" / "notes.txt").symlink_to("/nowhere/at/all.txt")


def pipes(source: Path) -> None:
    """What would block a reader, or never end."""
    os.mkfifo(source / "good" / "pet" / "fifo.dcm")
    (source / "zero.dcm").symlink_to("/dev/zero")
    (source / "tty").symlink_to("/dev/tty")


def deep(levels: int, name: str) -> Callable[[Path], None]:
    """Nested folders, made from within: their path may be longer than the system takes."""

    def make(source: Path) -> None:
        place = os.open(source, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir(name, dir_fd=place)
            below = os.open(name, os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = below
        os.close(place)

    return make


def wide(source: Path) -> None:
    """10000 folders with nothing in them."""
    for name in range(100):
        for other in range(50):
            (source / f"w{name}" / f"v{other}" / "x").mkdir(parents=True)


def odd_files(source: Path) -> None:
    for name in ("a.zip", "b.nii.gz", "DICOMDIR", ".hidden", "notes.txt", "Thumbs.db", "é\n.txt", "-rf", "$(id).csv"):
        (source / name).write_bytes(os.urandom(300))


TREES = {
    "symlink loops": loop,
    "dangling links": dangling,
    "pipes and devices": pipes,
    "300 levels": deep(300, "level"),
    "a path of 25000 characters": deep(100, "d" * 250),
    "10000 empty folders": wide,
    "odd files": odd_files,
}


@pytest.mark.parametrize("spoil", [pytest.param(make, id=name.replace(" ", "-")) for name, make in TREES.items()])
def test_odd_trees_are_walked_in_seconds(tmp_path, spoil):
    check_tree(tmp_path, spoil)


def test_1500_levels(tmp_path):
    check_tree(tmp_path, deep(1500, "d"))


def test_walk_goes_where_os_walk_cannot(tmp_path):
    """Each folder once, in order, links included; `os.walk` raises RecursionError here."""
    make_good(tmp_path)
    loop(tmp_path)
    deep(1500, "d")(tmp_path)
    try:
        started = time.monotonic()
        found = list(walk(tmp_path))
        assert time.monotonic() - started < 15
        assert len(found) == 1 + 1500 + 3  # itself, the levels, good with ct and pet
        assert [path.name for path, *_ in found[:2]] == [tmp_path.name, "d"]
        files = {path.name: names for path, _, names in found}
        assert len(files["ct"]) == len(files["pet"]) == 6
        assert files[tmp_path.name] == ["itself", "one", "two"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=False)


def test_a_file_of_zeros_is_refused_at_once(tmp_path):
    """What a crash leaves on a journalling file system; files of several GB are met with."""
    path = tmp_path / "zeros.dcm"
    path.write_bytes(bytes(8 << 20))
    started = time.monotonic()
    assert identity(path) is None
    assert time.monotonic() - started < 0.5


def check_tree(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_good(source)
    make_bad(source / "bad")
    try:
        spoil(source)
        started = time.monotonic()
        rows = {row["study_uid"]: row for row in prepare(source, out)}
        assert time.monotonic() - started < 15
        assert (rows[GOOD]["status"], rows[BAD]["status"]) == ("converted", "failed")
        assert rows[GOOD]["reason"] == ""
        assert "pet/014" in rows[BAD]["reason"]
        check_good(out)
        assert names_in(out) == [GOOD_CASE, *TABLES]
    finally:
        subprocess.run(["rm", "-rf", source], check=False)  # pytest's own clearing goes by recursion


def test_a_study_at_the_end_of_300_folders(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    place = source.joinpath(*["level"] * 300)
    place.mkdir(parents=True)
    save_study(place / "good", uid=GOOD, patient="GOOD")
    assert prepare(source, out)[0]["status"] == "converted"
    check_good(out)


# --- names -----------------------------------------------------------------------------------------------------------

PATIENTS = {
    "../../etc/passwd": "etc-passwd",
    "/abs/olute": "abs-olute",
    "..": "case",
    "a\nb\tc\rd": "a-b-c-d",
    "a\x00b\x1b[31mc": "a-b-31mc",
    "x" * 5000: "x" * 100,
    "=cmd|'/C calc'!A0": "cmd-C-calc-A0",
    "<script>alert(1)</script>": "script-alert-1-script",
    ".part-x": "part-x",
    "CON": "CON",
}


@pytest.mark.parametrize(("patient", "case"), PATIENTS.items(), ids=range(len(PATIENTS)))
def test_patient_ids_never_lead_out_of_the_cohort(tmp_path, patient, case):
    source, out = tmp_path / "in", tmp_path / "deep" / "er" / "out"
    make_good(source)
    save_study(source / "odd", uid="1.2.826.0.1.33333", patient=patient)
    rows = {row["study_uid"]: row for row in prepare(source, out)}
    row = rows["1.2.826.0.1.33333"]
    assert {row["status"] for row in rows.values()} == {"converted"}
    assert row["folder"].startswith(case) or case == "case"
    assert names_in(out) == sorted([GOOD_CASE, row["folder"], *TABLES])
    assert names_in(tmp_path) == ["deep", "in"]
    assert names_in(tmp_path / "deep") == ["er"]
    assert len(read_table(out / "prep.csv")) == 2
    assert "<script>alert(1)" not in (out / "prep.html").read_text()


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 100", "ISO 2022 IR 87", "NO SUCH SET", ""])
def test_names_in_any_character_set(tmp_path, charset):
    source, out = tmp_path / "in", tmp_path / "out"
    make_good(source)
    save_study(source / "odd", uid="1.2.826.0.1.33333", patient="PLACEHOLDER")
    for path in (source / "odd").glob("*/*"):
        data = pydicom.dcmread(path)
        data.SpecificCharacterSet = charset
        data.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"PLACEHOLDER", b"G\xe4n\xdf\x1b$B1\x00\xff\xfe"))
    rows = {row["study_uid"]: row for row in prepare(source, out)}
    assert {row["status"] for row in rows.values()} == {"converted"}
    assert len(read_table(out / "prep.csv")) == 2


def test_study_uids_are_no_paths(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    make_good(source)
    save_study(source / "odd", uid="../../1.2/..", patient="ODD")
    assert {row["status"] for row in prepare(source, out)} == {"converted"}
    assert names_in(tmp_path) == ["in", "out"]
    assert len(names_in(out)) == 4


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    make_good(source)
    make_bad(Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9")))
    rows = {row["study_uid"]: row for row in prepare(source, out)}
    assert (rows[GOOD]["status"], rows[BAD]["status"]) == ("converted", "failed")
    assert names_in(out) == [GOOD_CASE, *TABLES]
    assert "pet/014" in next(row["reason"] for row in read_table(out / "prep.csv") if row["case"] == BAD_CASE)
    assert "pet/014" in (out / "prep.html").read_text(encoding="utf-8")


# --- the command -----------------------------------------------------------------------------------------------------


def start(*arguments: str | Path, **options: object) -> subprocess.Popen:
    """The command in a session of its own, so that its processes can be found.

    Ctrl-C reaches it also where the tests run in the background, whose processes ignore it.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "COLUMNS": "300"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored signal is inherited, a handler not
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "autopet.cli", "prep", *map(str, arguments)], stderr=subprocess.PIPE, text=True,
            env={**environment, **options.pop("env", {})}, start_new_session=True, **options,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def run(*arguments: str | Path, **options: object) -> tuple[int, str]:
    """Exit status and standard error."""
    process = start(*arguments, **options)
    error = process.communicate(timeout=4 * SOON_S)[1]
    return process.returncode, error


def check_one_error(error: str, words: str) -> None:
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in error


@pytest.mark.parametrize("workers", [1, 2])
def test_exit_status_3_when_some_failed(tmp_path, workers):
    make_good(tmp_path / "in")
    make_bad(tmp_path / "in" / "bad")
    status, error = run(tmp_path / "in", tmp_path / "out", "--workers", workers)
    assert status == 3, error
    assert "Traceback" not in error
    assert status_in(tmp_path / "out") == {"GOOD": "converted", "BAD": "failed"}
    check_good(tmp_path / "out")


def test_exit_status_3_when_all_failed(tmp_path):
    make_bad(tmp_path / "in")
    status, error = run(tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert status == 3, error
    assert status_in(tmp_path / "out") == {"BAD": "failed"}
    assert names_in(tmp_path / "out") == TABLES


def test_exit_status_1_when_nothing_can_be_tried(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    status, error = run(tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert status == 1
    check_one_error(error, "no DICOM file below it")
    assert not (tmp_path / "out").exists()


def bound_by_permissions() -> None:
    """Before exec: root without the capabilities to read and write what its permissions forbid."""
    if os.getuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_files_and_folders_without_permission(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    make_good(source)
    for name, uid in (("FILE", "1.2.826.0.1.33333"), ("FOLDER", "1.2.826.0.1.44444")):
        save_study(source / name, uid=uid, patient=name)
    (source / "FILE" / "pet" / "014").chmod(0)
    (source / "FOLDER" / "pet").chmod(0)
    try:
        status, error = run(source, out, "--workers", 1, preexec_fn=bound_by_permissions)
    finally:
        (source / "FOLDER" / "pet").chmod(0o755)
    assert status == 3, error
    rows = {row["patient_id"]: row for row in read_table(out / "prep.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "GOOD": "converted", "FILE": "failed", "FOLDER": "failed"
    }  # fmt: skip
    assert f"{source}/FILE/pet/014" in rows["FILE"]["reason"]
    assert f"{source}/FOLDER/pet" in rows["FOLDER"]["reason"]
    check_good(out)


@pytest.mark.parametrize("kind", ["no permission", "a file"])
def test_a_cohort_folder_that_cannot_be_written(tmp_path, kind):
    make_good(tmp_path / "in")
    closed = tmp_path / "closed"
    if kind == "a file":
        closed.touch()
    else:
        closed.mkdir(mode=0o555)
    status, error = run(tmp_path / "in", closed / "out", "--workers", 1, preexec_fn=bound_by_permissions)
    assert status == 1, error
    check_one_error(error, str(closed))


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_table_that_does_not_fit_leaves_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk)
        with pytest.raises(OSError, match="No space"):
            write_table(disk / "prep.csv", [{"case": "x" * 9000}], ["case"])
        assert names_in(disk) == ["filler"]


def test_what_does_not_fit_fails_and_is_converted_when_there_is_room(tmp_path):
    source = tmp_path / "in"
    make_good(source)
    make_large(source / "bad", BAD, "BAD")
    with small_disk(tmp_path / "disk", "1m") as disk:
        status, error = run(source, disk / "out", "--workers", 1)
        assert status == 3, error
        rows = {row["patient_id"]: row for row in read_table(disk / "out" / "prep.csv")}
        assert (rows["GOOD"]["status"], rows["BAD"]["status"]) == ("converted", "failed")
        assert "No space left" in rows["BAD"]["reason"]
        assert names_in(disk / "out") == [GOOD_CASE, *TABLES]
        check_good(disk / "out")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        rows = prepare(source, disk / "out")
        assert {row["status"] for row in rows} == {"converted"}
        assert names_in(disk / "out") == [BAD_CASE, GOOD_CASE, *TABLES]


def test_a_disk_with_no_room_for_the_table(tmp_path):
    make_good(tmp_path / "in")
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk)
        status, error = run(tmp_path / "in", disk / "out", "--workers", 1)
        assert status == 1, error
        check_one_error(error, "prep.csv")
        assert names_in(disk) in (["filler"], ["filler", "out"])
        assert not (disk / "out" / "prep.csv").exists()
        (disk / "filler").unlink()
        assert prepare(tmp_path / "in", disk / "out")[0]["status"] == "converted"
        assert names_in(disk / "out") == [GOOD_CASE, *TABLES]


# --- killed runs -----------------------------------------------------------------------------------------------------


def processes_of(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state != "Z" else []
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, f"not within {SOON_S:g} s: {what}"
        time.sleep(0.002)


def stop_in_the_middle(source: Path, out: Path, workers: int, stop: signal.Signals) -> tuple[int, str]:
    """Exit status and messages of a run that is stopped while it writes a study; none of its processes may stay."""
    process = start(source, out, "--workers", workers)
    try:
        wait_for(lambda: list(out.glob(".part-*/*")) or process.poll() is not None, "a study being written")
        assert process.poll() is None, process.stderr.read()
        if stop is signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal does
        else:
            process.send_signal(stop)
        process.wait(SOON_S)
        wait_for(lambda: not processes_of(process.pid), "the end of all processes")
    finally:
        if process.poll() is None or processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        said = process.stderr.read()
        process.stderr.close()
    return process.returncode, said


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_is_continued_by_the_next(tmp_path, workers, stop, status):
    source, out = tmp_path / "in", tmp_path / "out"
    for index in range(3):
        make_large(source / str(index), f"1.2.826.0.1.{index}1111", f"P{index}")
    code, said = stop_in_the_middle(source, out, workers, stop)
    assert code == status
    assert "Traceback" not in said
    assert ("run the same command again to go on" in said) == (stop is signal.SIGINT)
    visible = [path for path in out.glob("*") if not path.name.startswith(".")]
    assert all((path / "audit.json").is_file() for path in visible)
    assert len(visible) < 3
    rows = prepare(source, out)
    assert [row["status"] for row in rows] == ["converted"] * 3
    assert names_in(out) == [*(f"P{index}_20200102_{index}1111" for index in range(3)), *TABLES]


def test_no_dicom_at_all_is_an_error(tmp_path):
    with pytest.raises(AutopetError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
