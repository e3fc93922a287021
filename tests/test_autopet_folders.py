from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopet import folders
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, sole_writer, whole_file, whole_folder


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")
    replace = os.replace

    def fails_for_the_new(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".part-"):
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new)
    with pytest.raises(OSError, match="no"), whole_folder(tmp_path / "model") as part:
        (part / "weights").write_text("new")
    assert (tmp_path / "model/weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path):
    with whole_folder(tmp_path / "case") as first, whole_folder(tmp_path / "case") as second:
        assert first != second
        (first / "a").write_text("first")
        (second / "a").write_text("second")
    assert (tmp_path / "case/a").read_text() == "first"  # the outer one ends last
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_leftovers_of_killed_calls_and_nothing_else_are_removed(tmp_path: Path):
    kept = [".part-archive", ".old-archive", ".partial-x-0123abcd", "case", ".old-notes-of-2020"]
    for name in [*kept, ".part-case-0123abcd", ".old-case-0123abcd", ".part-other-0123abcd"]:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "case")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".part-other-0123abcd"])
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_killed_call_leaves_a_leftover_that_is_known(tmp_path: Path):
    script = "import os, sys\nfrom pathlib import Path\nfrom autopet.folders import whole_folder\n"
    script += "with whole_folder(Path(sys.argv[1])) as part: os._exit(9)"
    environment = {**os.environ, "PYTHONPATH": str(Path(folders.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script, tmp_path / "case"], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time(tmp_path: Path):
    with sole_writer(tmp_path / "out"):
        with pytest.raises(AutopetError, match="another run is writing to"), sole_writer(tmp_path / "out"):
            pass
        assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").exists()  # it was made here, and nothing was put into it
    with sole_writer(tmp_path / "out"):
        (tmp_path / "out" / "x").write_text("x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_a_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(AutopetError, match="out: cannot be written to"), sole_writer(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "x"


def test_errors_of_the_work_itself_stay_what_they_are(tmp_path: Path):
    with pytest.raises(FileNotFoundError), sole_writer(tmp_path / "out"):
        (tmp_path / "absent" / "x").read_text()


def test_a_file_is_whole_or_as_before(tmp_path: Path):
    path = tmp_path / "new" / "a.csv"
    with whole_file(path) as part:
        part.write_text("1")
        assert not path.exists()
        assert part.suffix == ".csv"  # writers choose the format by it
    with pytest.raises(TypeError), whole_file(path) as part, part.open("w") as file:
        file.writelines(["2", 3])  # the second is no text
    assert path.read_text() == "1"
    assert [found.name for found in path.parent.iterdir()] == ["a.csv"]


def test_files_of_killed_writers_are_leftovers_too(tmp_path: Path):
    for name in (".part-0123abcd-prep.csv", ".part-0123abcd-other.csv", ".part-notes.csv", "prep.csv"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path, "prep.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".part-0123abcd-other.csv",
        ".part-notes.csv",
        "prep.csv",
    ]
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part-notes.csv", "prep.csv"]


def test_a_folder_goes_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/stamp").touch()

    def dying(folder: Path, **_) -> None:
        assert (folder / "stamp").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            folders.remove_at_once(tmp_path / "work")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".old-work-")
    folders.remove_leftovers(tmp_path, "work")
    assert list(tmp_path.iterdir()) == []
