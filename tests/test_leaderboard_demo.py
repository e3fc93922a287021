"""The whole way, small: phantom DICOM to a page, and what a second run leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopet.errors import AutopetError
from leaderboard import demo
from leaderboard.demo import Demo, run_demo

SMALL = Demo(cases=4, seed=1, test_fraction=0.5, workers=2)


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    run_demo(out, engine="local", methods=["threshold"], demo=SMALL)
    return out


def test_every_stage_has_its_folder(finished: Path):
    assert sum(1 for _ in finished.glob("dicom/*/*/*/PT")) == 4
    assert (finished / "models/threshold/config.json").is_file()
    assert (finished / "leaderboard/leaderboard.csv").read_text().count("threshold") == 1
    page = (finished / "leaderboard/index.html").read_text()
    assert "threshold" in page
    assert "data:image/png;base64" in (finished / "leaderboard/pages/case-1.html").read_text()


def test_a_second_run_redoes_nothing(finished: Path):
    before = times(finished)
    run_demo(finished, engine="local", methods=["threshold"], demo=SMALL)
    after = times(finished)
    changed = {Path(path).relative_to(finished) for path in after if after[path] != before.get(path)}
    changed = {path for path in changed if path.parts[0] != "leaderboard"}
    assert changed <= {Path("submissions/threshold/origin.json")}


def test_a_lost_stage_is_made_again(finished: Path):
    (finished / "evaluation/threshold/metrics.json").unlink()
    run_demo(finished, engine="local", methods=["threshold"], demo=SMALL)
    assert (finished / "evaluation/threshold/metrics.json").is_file()


def test_another_demo_in_the_same_folder_is_refused(finished: Path):
    with pytest.raises(AutopetError, match="holds a run with other settings"):
        run_demo(finished, engine="local", methods=["threshold"], demo=Demo(cases=5))


def test_engines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def no_engine() -> str:
        raise AutopetError("no Docker engine answers")

    monkeypatch.setattr(demo, "base_image", no_engine)
    assert demo.choose_base("auto") == ""
    assert "methods run in subprocesses: no Docker engine answers" in capsys.readouterr().err
    with pytest.raises(AutopetError, match="no Docker engine answers"):
        demo.choose_base("docker")
    monkeypatch.setattr(demo, "base_image", lambda: "base:1")
    assert demo.choose_base("auto") == demo.choose_base("docker") == "base:1"
    assert demo.choose_base("local") == ""
    with pytest.raises(AutopetError, match="use auto, docker or local"):
        demo.choose_base("podman")


def test_auto_goes_on_without_an_image_that_cannot_be_built(tmp_path: Path, monkeypatch, capsys):
    def broken(*_: object) -> str:
        raise AutopetError("wheels must be made with Python 3.11")

    monkeypatch.setattr(demo, "_build", broken)
    assert demo._image(tmp_path, "threshold", "base:1", strict=False) == ""
    assert "threshold runs in subprocesses: wheels must be made" in capsys.readouterr().err
    with pytest.raises(AutopetError, match="wheels must be made"):
        demo._image(tmp_path, "threshold", "base:1", strict=True)


def test_unknown_methods_show_before_the_work_starts(tmp_path: Path):
    with pytest.raises(AutopetError, match="no method called 'magic'"):
        run_demo(tmp_path / "x", engine="local", methods=["threshold", "magic"])
    assert not (tmp_path / "x").exists()
