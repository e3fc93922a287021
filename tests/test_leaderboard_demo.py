"""The whole way, small: phantom DICOM to a page, and what a second run leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopet.checkpoint import publish_model
from autopet.cohort import read_cohort
from autopet.errors import AutopetError
from autopet.images import read_image
from leaderboard import demo
from leaderboard.demo import Demo, run_demo

# one case to train on, one to test; one worker: starting others costs more than they save, and the stages' tests do
SMALL = Demo(cases=2, seed=1, test_fraction=0.5, workers=1)


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    run_demo(out, engine="local", methods=["threshold"], demo=SMALL)
    return out


def test_every_stage_has_its_folder(finished: Path):
    assert sum(1 for _ in finished.glob("dicom/*/*/*/PT")) == SMALL.cases
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


def test_methods_made_of_models_come_last():
    assert demo.needs_models("majority")
    assert not demo.needs_models("threshold")
    assert demo.in_order(["majority", "threshold", "majority"]) == ["threshold", "majority"]
    with pytest.raises(AutopetError, match="no method called 'magic'"):
        demo.in_order(["magic"])


def test_a_vote_alone_is_refused_before_the_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AutopetError, match="made of other methods' models.*--methods threshold,nnunet,majority"):
        run_demo(tmp_path / "x", engine="local", methods=["majority"])
    assert not (tmp_path / "x").exists()
    publish_model(tmp_path / "x/models/threshold", lambda _: {"method": "threshold"})  # of an earlier run
    demo._refuse_without_members(tmp_path / "x", ["majority"])


def test_all_takes_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    monkeypatch.setattr(demo, "list_methods", lambda: ["majority", "threshold"])
    monkeypatch.setattr(demo, "_cohort", lambda *_: [])
    monkeypatch.setattr(demo, "select_part", lambda *_: [])
    monkeypatch.setattr(demo, "_train", lambda out, name, cases: order.append(name))
    monkeypatch.setattr(demo, "run_cohort", lambda *_: [])
    monkeypatch.setattr(demo, "_evaluate", lambda out, name, *_: name)
    monkeypatch.setattr(demo, "_leaderboard", lambda out, results: results)
    assert run_demo(tmp_path, engine="local", methods=["all"]) == ["threshold", "majority"]
    assert order == ["threshold", "majority"]


def test_the_vote_stands_on_the_board(finished: Path, capsys: pytest.CaptureFixture):
    run_demo(finished, engine="local", methods=["majority", "threshold"], demo=SMALL)
    board = (finished / "leaderboard/leaderboard.csv").read_text()
    assert {line.split(",")[1] for line in board.splitlines()[1:]} == {"majority", "threshold"}
    # a vote of one is that one
    scores = [
        [row["dice"] for row in json.loads((finished / f"evaluation/{name}/metrics.json").read_text())["results"]]
        for name in ("majority", "threshold")
    ]
    assert scores[0] == scores[1]
    capsys.readouterr()
    before = times(finished / "models") | times(finished / "submissions")
    run_demo(finished, engine="local", methods=["majority", "threshold"], demo=SMALL)
    assert "majority holds these members already: threshold" in capsys.readouterr().err
    after = times(finished / "models") | times(finished / "submissions")
    assert {Path(path).name for path in after if after[path] != before.get(path)} <= {"origin.json"}


def test_organ_labels_lie_beside_the_images(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for case in read_cohort(finished / "nifti"):
        organs = read_image(case.image("ORGANS"))
        assert organs.same_grid(read_image(case.suv))
        assert organs.array.max() in range(1, 11)
    demo._organs(tmp_path / "dicom", tmp_path / "nifti", SMALL)  # of an older version
    assert "without organ maps" in capsys.readouterr().err


def test_lost_organ_labels_are_made_again_or_told(finished: Path, capsys: pytest.CaptureFixture):
    case = read_cohort(finished / "nifti")[0]
    case.organs.unlink()  # as a conversion anew leaves it; organs.csv still says that it is there
    demo._organs(finished / "dicom", finished / "nifti", SMALL)
    assert case.organs.is_file()
    capsys.readouterr()
    organs = finished / f"dicom/organs/{case.patient_id}.nii.gz"
    try:
        organs.rename(organs.with_name("hidden"))
        case.organs.unlink()
        demo._organs(finished / "dicom", finished / "nifti", SMALL)
        said = " ".join(capsys.readouterr().err.split())
        assert f"1 cases have no organ labels, first reason: {case.name}: no map named" in said
    finally:
        organs.with_name("hidden").rename(organs)
    demo._organs(finished / "dicom", finished / "nifti", SMALL)
    assert case.organs.is_file()


def test_equal_requirements_share_their_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    def collect(name: str, folder: Path, *, pool: Path) -> None:
        made.append(name)
        folder.mkdir(parents=True)

    needs = {"a": ["torch", "x"], "b": ["torch", "x"], "c": ["torch"]}
    monkeypatch.setattr(demo, "make_wheelhouse", collect)
    monkeypatch.setattr(demo, "requirements", needs.__getitem__)
    folders = {name: demo._wheels(tmp_path, name) for name in needs}
    assert folders["a"] == folders["b"] != folders["c"]
    assert made == ["a", "c"]
    needs["a"].append("y")  # wheels of other requirements are not enough
    assert demo._wheels(tmp_path, "a") != folders["a"]
    # nor are those of an older constraints.txt in an old folder: pip would refuse them in the image
    monkeypatch.setattr(demo, "constraints", lambda: "torch==99\n")
    assert demo._wheels(tmp_path, "b") != folders["b"]


def test_the_ranking_s_notes_are_shown(finished: Path, capsys: pytest.CaptureFixture):
    run_demo(finished, engine="local", methods=["threshold"], demo=SMALL)
    notes = json.loads((finished / "leaderboard/leaderboard.json").read_text())["notes"]
    said = " ".join(capsys.readouterr().err.split())
    assert notes
    assert all(" ".join(note.split()) in said for note in notes)
