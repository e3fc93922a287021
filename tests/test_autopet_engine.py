from __future__ import annotations

import io
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autopet import engine
from autopet.cohort import Case
from autopet.engine import Limits, run_case, run_local
from autopet.errors import AutopetError
from autopet.images import find_images
from autopet.methods import find_method, list_methods
from baselines.threshold.model import Settings
from baselines.threshold.train import train


@pytest.fixture(scope="module")
def model(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "threshold"
    return train(cohort, out, settings=Settings(), work=out, device="cpu")


def test_methods_are_found_by_folder():
    assert {"threshold", "nnunet"} <= set(list_methods())
    assert find_method("threshold").package == "baselines.threshold"
    assert find_method("baselines.nnunet").name == "nnunet"
    with pytest.raises(AutopetError, match="no method called 'nnnet'; there are"):
        find_method("nnnet")
    with pytest.raises(AutopetError, match="has no nothing.py"):
        find_method("threshold").module("nothing")


def test_local_run_publishes_its_output(input_folder: Path, tmp_path: Path, model: Path):
    outcome = run_local("threshold", input_folder, tmp_path / "out", model=model, limits=Limits())
    assert outcome.ok
    assert len(find_images(tmp_path / "out/images/automated-petct-lesion-segmentation")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "out"]


def test_failure_is_an_outcome_with_the_last_line(input_folder: Path, tmp_path: Path, model: Path):
    find_images(input_folder / "images/ct")[0].unlink()
    outcome = run_case("threshold", input_folder, tmp_path / "out", engine="local", model=model, limits=Limits())
    assert not outcome.ok
    assert outcome.error.startswith("error: no CT image")
    assert not (tmp_path / "out").exists()


def test_time_limit_stops_the_process(input_folder: Path, tmp_path: Path, model: Path):
    limits = Limits(time_limit_s=0.05)
    outcome = run_case("threshold", input_folder, tmp_path / "out", engine="local", model=model, limits=limits)
    assert outcome.error == "stopped after the time limit of 0.05 s"


def test_a_failed_run_keeps_the_earlier_output(tmp_path: Path):
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/old.mha").touch()
    with pytest.raises(FileExistsError), engine._published(tmp_path / "out") as partial:
        partial.mkdir()
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["old.mha"]
    with engine._published(tmp_path / "out") as partial:
        (partial / "images").mkdir()
        (partial / "images/new.mha").touch()
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["new.mha"]


def test_output_never_replaces_the_input(input_folder: Path, model: Path):
    for out in (input_folder, model):
        with pytest.raises(AutopetError, match="is an input, too"):
            run_case("threshold", input_folder, out, engine="local", model=model, limits=Limits())
    for out in (input_folder.parent, input_folder / "out"):
        assert run_case("threshold", input_folder, out, engine="local", model=model, limits=Limits()).ok
    assert find_images(input_folder / "images/pet")
    assert find_images(input_folder / "images/ct")


def test_other_sockets_of_an_output_folder_stay(tmp_path: Path):
    (tmp_path / "out/images/other").mkdir(parents=True)
    (tmp_path / "out/images/other/kept.mha").touch()
    with engine._published(tmp_path / "out") as partial:
        (partial / "images/mine").mkdir(parents=True)
        (partial / "images/mine/new.mha").touch()
        (partial / "value.json").write_text("false")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"images/other/kept.mha", "images/mine/new.mha", "value.json"}


def test_messages_are_short_and_printable():
    assert engine._last_line("first\n\x1b[31mred\x07 alert\n\n") == "[31mred alert"
    assert engine._last_line("x" * 10**6) == "x" * 500 + "..."
    assert engine._last_line("\n \n") == ""


def test_a_link_that_leads_nowhere_is_named(input_folder: Path):
    (input_folder / "images/ct/gone.mha").symlink_to("/nowhere")
    with pytest.raises(AutopetError, match=r"gone.mha is a link that leads nowhere"), engine._readable(input_folder):
        pass


def test_private_input_is_copied_for_the_container_s_user(input_folder: Path):
    with engine._readable(input_folder) as folder:
        assert folder == input_folder.resolve()
    pet = find_images(input_folder / "images/pet")[0]
    pet.chmod(0o600)
    with engine._readable(input_folder) as folder:
        assert folder != input_folder.resolve()
        assert (folder / "images/pet/pet_name.mha").stat().st_mode & 0o777 == 0o644
    with pytest.raises(AutopetError, match="does not exist"), engine._readable(input_folder / "none"):
        pass


class FakeBox:
    """A stopped container whose /output holds the given archive members."""

    def __init__(self, members: list[tuple[str, bytes, bytes]]) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, kind, data in members:
                info = tarfile.TarInfo(name)
                info.type, info.size = kind, len(data)
                if kind == tarfile.SYMTYPE:
                    info.linkname = "/etc/passwd"
                archive.addfile(info, io.BytesIO(data))
        self.data = buffer.getvalue()

    def get_archive(self, _: str):
        return iter([self.data[:512], self.data[512:]]), {}


def test_outputs_are_copied_out(tmp_path: Path):
    box = FakeBox(
        [
            ("output", tarfile.DIRTYPE, b""),
            ("output/images", tarfile.DIRTYPE, b""),
            ("output/images/a.mha", tarfile.REGTYPE, b"x"),
        ]
    )
    engine._copy_out(box, tmp_path, 10**6)  # type: ignore[arg-type]
    assert (tmp_path / "images/a.mha").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("output/link", tarfile.SYMTYPE, b"")], "neither a file nor a folder"),
        ([("output/pipe", tarfile.FIFOTYPE, b"")], "neither a file nor a folder"),
        ([("output/huge", tarfile.REGTYPE, b"0" * 200_000)], "more than"),
        ([], "wrote nothing"),
        ([("output/../../climbed", tarfile.REGTYPE, b"x")], "cannot be copied"),
    ],
)
def test_hostile_outputs_are_refused(tmp_path: Path, members: list, words: str):
    with pytest.raises(engine._CaseFailedError, match=words):
        engine._copy_out(FakeBox(members), tmp_path, 100_000)  # type: ignore[arg-type]


def test_outputs_cannot_climb_out(tmp_path: Path):
    box = FakeBox([("output/../../climbed", tarfile.REGTYPE, b"x")])
    with pytest.raises(engine._CaseFailedError, match="outside"):
        engine._copy_out(box, tmp_path / "deep", 10**6)  # type: ignore[arg-type]
    assert not (tmp_path / "climbed").exists()


class FakeServer:
    """A running invoke container: healthy `start_s` after its start, its answer `case_s` after the request."""

    status = "running"

    def __init__(self, start_s: float, case_s: float) -> None:
        self.case_s, self.healthy_s = case_s, time.monotonic() + start_s
        self.killed = threading.Event()

    def exec_run(self, command: list) -> SimpleNamespace:
        if "POST" in command:
            return SimpleNamespace(exit_code=int(self.killed.wait(self.case_s)), output=b"201")
        return SimpleNamespace(exit_code=int(time.monotonic() < self.healthy_s), output=b"200")

    def kill(self) -> None:
        self.killed.set()

    def logs(self, **_) -> bytes:
        return b""

    def reload(self) -> None:
        pass

    def stop(self, timeout: int) -> None:
        pass


def test_the_time_of_an_invoke_container_starts_with_the_request():
    engine._invoke(FakeServer(start_s=0.7, case_s=0.1), Limits(time_limit_s=0.5))  # type: ignore[arg-type]
    with pytest.raises(engine._CaseFailedError, match="stopped after the time limit of 0.3 s"):
        engine._invoke(FakeServer(start_s=0.0, case_s=30.0), Limits(time_limit_s=0.3))  # type: ignore[arg-type]
