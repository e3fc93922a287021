"""The organiser's vote: submissions in, a submission out, that the evaluation takes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import ELSEWHERE, GRID, LESION, SECOND, boxed, evaluate, write
from typer.testing import CliRunner

from autopet.commands import vote as command
from autopet.errors import AutopetError
from autopet.images import find_images, read_image, write_image
from autopet.sockets import LESIONS
from autopet.volume import Volume
from leaderboard import voting
from leaderboard.voting import vote_submissions


def voted(out: Path, case: str) -> Volume:
    """The vote's mask of a case, found as the evaluation finds it: through the job that names the case."""
    jobs = [job for job in json.loads((out / "predictions.json").read_text())]
    job = next(job for job in jobs if case in [entry["image"]["name"] for entry in job["inputs"]])
    return read_image(find_images(out / job["pk"] / "output" / LESIONS.relative_path)[0])


def jobs_folder(folder: Path, **masks: Volume | None) -> Path:
    """A submission as the platform has it; None is a job that failed. PET and CT have nnU-Net's channel numbers."""
    jobs = []
    for name, mask in masks.items():
        if mask is not None:
            write_image(folder / f"pk-{name}" / "output" / LESIONS.relative_path / "x.mha", mask)
        jobs.append(
            {
                "pk": f"pk-{name}",
                "status": "Failed" if mask is None else "Succeeded",
                "error_message": "out of memory",
                "inputs": [{"image": {"name": f"{name}_0001.nii.gz"}}, {"image": {"name": f"{name}_0000.nii.gz"}}],
                "outputs": [{"socket": {"slug": "x", "relative_path": LESIONS.relative_path}}],
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.json").write_text(json.dumps(jobs))
    return folder


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that the tests know to be harmless are read here: a process takes seconds to start."""
    if not request.node.name.startswith("test_broken"):
        monkeypatch.setattr(voting, "run_apart", lambda read, paths: ((path, read(path)) for path in paths))


def three(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / "a", one=boxed(LESION, SECOND), two=boxed(LESION)),
        write(tmp_path / "b", one=boxed(LESION, ELSEWHERE), two=boxed()),
        write(tmp_path / "c", one=boxed(ELSEWHERE), two=boxed()),
    ]


def test_two_of_three_by_hand(tmp_path: Path):
    record = vote_submissions(three(tmp_path), tmp_path / "vote")
    np.testing.assert_array_equal(voted(tmp_path / "vote", "one").array, boxed(LESION, ELSEWHERE).array)
    assert voted(tmp_path / "vote", "two").array.sum() == 0
    assert voted(tmp_path / "vote", "one").same_grid(GRID)
    assert record == json.loads((tmp_path / "vote/vote.json").read_text())
    assert record[0] == {"case": "one", "voted": ["a", "b", "c"], "votes_needed": 2, "left_out": {}}
    vote_submissions(three(tmp_path), tmp_path / "vote", votes=1)  # an earlier vote is replaced
    np.testing.assert_array_equal(voted(tmp_path / "vote", "one").array, boxed(LESION, SECOND, ELSEWHERE).array)


def test_the_vote_is_a_submission(tmp_path: Path):
    vote_submissions(three(tmp_path), tmp_path / "vote")
    truth = write(tmp_path / "truth", one=boxed(LESION, ELSEWHERE), two=boxed(SECOND))
    metrics = evaluate(truth, tmp_path / "vote", tmp_path / "metrics.json")
    assert [(row["case"], row["status"]) for row in metrics["results"]] == [("one", "scored"), ("two", "scored")]
    assert metrics["results"][0]["dice"] == 1.0
    assert metrics["results"][1]["fnv_ml"] == pytest.approx(8 * 0.02)


def test_jobs_and_plain_masks_vote_together(tmp_path: Path):
    plain = write(tmp_path / "plain", one=boxed(LESION), two=boxed(SECOND))
    jobs = jobs_folder(tmp_path / "jobs", one=boxed(LESION, SECOND), two=None)
    record = vote_submissions([jobs, plain], tmp_path / "vote")
    assert [row["case"] for row in record] == ["one", "two"]
    np.testing.assert_array_equal(voted(tmp_path / "vote", "one_0000.nii.gz").array, boxed(LESION).array)
    assert record[1]["voted"] == ["plain"]
    assert "status 'Failed', expected 'Succeeded' (out of memory)" in record[1]["left_out"]["jobs"]
    truth = write(tmp_path / "truth", one=boxed(LESION), two=boxed(SECOND))
    metrics = evaluate(truth, tmp_path / "vote", tmp_path / "metrics.json")
    assert [row["dice"] for row in metrics["results"]] == [1.0, 1.0]


def test_cases_that_end_like_channel_numbers_stay_apart(tmp_path: Path):
    a = write(tmp_path / "a", p_0000=boxed(LESION), p_0001=boxed(SECOND))
    b = write(tmp_path / "b", p_0000=boxed(LESION), p_0001=boxed(SECOND))
    vote_submissions([a, b], tmp_path / "vote")
    np.testing.assert_array_equal(voted(tmp_path / "vote", "p_0000").array, boxed(LESION).array)
    np.testing.assert_array_equal(voted(tmp_path / "vote", "p_0001").array, boxed(SECOND).array)


def test_a_case_that_one_lacks_is_voted_among_the_others(tmp_path: Path):
    folders = three(tmp_path)
    (folders[2] / "one.mha").unlink()
    record = vote_submissions(folders, tmp_path / "vote")
    assert record[0]["voted"] == ["a", "b"]
    assert record[0]["left_out"] == {"c": "no prediction for this case"}
    np.testing.assert_array_equal(voted(tmp_path / "vote", "one").array, boxed(LESION).array)  # of two: both


def test_another_grid_is_refused_with_the_reason(tmp_path: Path):
    folders = three(tmp_path)
    moved = replace(boxed(LESION, SECOND, ELSEWHERE), origin_mm=(0.0, 0.0, 0.0))
    write(folders[0], one=moved)  # the first of three: the two others decide which grid is right
    record = vote_submissions(folders, tmp_path / "vote")
    assert record[0]["voted"] == ["b", "c"]
    assert "not on the grid of b, which 2 of 3 masks have: corner voxels lie up to 30 mm" in record[0]["left_out"]["a"]
    assert voted(tmp_path / "vote", "one").same_grid(GRID)
    write(folders[0], one=replace(GRID, array=np.ones(GRID.shape, np.uint8)))
    write(folders[1], one=Volume(np.ones((2, 3, 4), np.uint8)))
    (folders[2] / "one.mha").unlink()
    record = vote_submissions(folders, tmp_path / "vote")  # one against one: the first named is right
    assert record[0]["voted"] == ["a"]


def killing(path: Path) -> str:
    """Of one file, its reader dies."""
    if path.name == "one.mha" and path.parent.name == "b":
        os._exit(1)
    return voting.why_no_mask(path)


def test_broken_reader_costs_one_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(voting, "why_no_mask", killing)
    record = vote_submissions(three(tmp_path), tmp_path / "vote")
    assert record[0]["left_out"] == {"b": "one.mha: the process that worked on it died"}
    assert record[1]["voted"] == ["a", "b", "c"]


def test_broken_masks_have_no_vote(tmp_path: Path):
    folders = three(tmp_path)
    write(folders[0], one=replace(GRID, array=np.full(GRID.shape, 3, np.uint8)))
    (folders[1] / "one.mha").write_bytes((folders[1] / "one.mha").read_bytes()[:-20])
    record = vote_submissions(folders, tmp_path / "vote")
    assert record[0]["voted"] == ["c"]
    assert "expected a mask of 0 and 1, found 480 other voxels (3)" in record[0]["left_out"]["a"]
    assert record[0]["left_out"]["b"]
    (folders[2] / "one.mha").unlink()
    record = vote_submissions(folders, tmp_path / "vote")
    assert record[0]["voted"] == []
    jobs = json.loads((tmp_path / "vote/predictions.json").read_text())
    assert [job["status"] for job in jobs] == ["Failed", "Succeeded"]
    assert "no submission has a mask (a: one.mha: expected" in jobs[0]["error_message"]
    truth = write(tmp_path / "truth", one=boxed(LESION), two=boxed())
    results = evaluate(truth, tmp_path / "vote", tmp_path / "m.json")["results"]
    assert [(row["case"], row["status"]) for row in results] == [("one", "failed"), ("two", "scored")]


def test_two_masks_for_one_case_are_no_vote(tmp_path: Path):
    folders = three(tmp_path)
    write_image(folders[0] / "one.nii.gz", boxed())
    record = vote_submissions(folders, tmp_path / "vote")
    assert record[0]["left_out"] == {"a": "expected one prediction, found 2 (one.mha, one.nii.gz)"}


def test_names_of_cases_never_leave_the_folder(tmp_path: Path):
    jobs = [jobs_folder(tmp_path / name, x=boxed(LESION)) for name in "ab"]
    for folder in jobs:
        text = (folder / "predictions.json").read_text().replace("x_0000.nii.gz", "../../../../escaped")
        (folder / "predictions.json").write_text(text)
    vote_submissions(jobs, tmp_path / "deep/vote")
    assert voted(tmp_path / "deep/vote", "../../../../escaped").array.sum() == 8
    assert not list(tmp_path.rglob("escaped*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "deep"]


def test_interactive_steps_are_voted_one_by_one(tmp_path: Path):
    for name, last in (("a", boxed(LESION)), ("b", boxed(LESION, SECOND))):
        write(tmp_path / name / "step00", one=boxed(LESION) if name == "a" else boxed())
        write(tmp_path / name / "step01", one=last)
    record = vote_submissions([tmp_path / "a", tmp_path / "b"], tmp_path / "vote")
    assert [(row["step"], row["case"]) for row in record] == [(0, "one"), (1, "one")]
    assert voted(tmp_path / "vote/step00", "one").array.sum() == 0
    np.testing.assert_array_equal(voted(tmp_path / "vote/step01", "one").array, boxed(LESION).array)
    plain = write(tmp_path / "plain", one=boxed())
    with pytest.raises(AutopetError, match="equally many interactive steps can vote, found a 2, plain 0"):
        vote_submissions([tmp_path / "a", plain], tmp_path / "other")


def test_what_cannot_be_voted(tmp_path: Path):
    a, b, c = three(tmp_path)
    with pytest.raises(AutopetError, match="at least two"):
        vote_submissions([a], tmp_path / "vote")
    with pytest.raises(AutopetError, match="same folder name"):
        vote_submissions([a, write(tmp_path / "other/a", one=boxed())], tmp_path / "vote")
    with pytest.raises(AutopetError, match=r"expected 0 \(more than half\) to 2, found 3"):
        vote_submissions([a, b], tmp_path / "vote", votes=3)
    with pytest.raises(AutopetError, match="lie in each other"):
        vote_submissions([a, b], a)
    with pytest.raises(AutopetError, match="holds other files"):
        vote_submissions([a, b], c)
    with pytest.raises(AutopetError, match="no such folder of predictions"):
        vote_submissions([a, tmp_path / "none"], tmp_path / "vote")
    empty = write(tmp_path / "empty")
    with pytest.raises(AutopetError, match="no mask that names a case"):
        vote_submissions([empty, write(tmp_path / "empty2")], tmp_path / "vote")
    assert not (tmp_path / "vote").exists()


def test_the_command_says_who_has_no_vote(tmp_path: Path):
    folders = three(tmp_path)
    (folders[2] / "one.mha").unlink()
    arguments = [*map(str, folders), "--out", str(tmp_path / "vote"), "--votes", "2"]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "one: c has no vote: no prediction for this case" in said
    assert "2 of 2 masks voted" in said
