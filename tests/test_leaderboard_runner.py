from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_cases

from autopet.cohort import Case
from autopet.images import read_image, write_image
from autopet.sockets import CT, PET, read_inputs
from baselines.threshold.model import Settings
from baselines.threshold.train import train
from evaluation.evaluate import evaluate
from leaderboard import runner
from leaderboard.runner import FAILED, SUCCEEDED, Entry, case_pk, run_cohort, stage_case


@pytest.fixture(scope="module")
def entry(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Entry:
    out = tmp_path_factory.mktemp("model") / "threshold"
    return Entry("threshold", "threshold", "local", train(cohort, out, settings=Settings(), work=out, device="cpu"))


def test_staged_case_is_what_the_front_end_reads(cohort: list[Case], tmp_path: Path):
    folder = stage_case(cohort[0], tmp_path / "input")
    inputs = read_inputs(folder, (PET, CT))
    assert inputs.stem == "case00"
    assert (inputs["pet"].array == read_image(cohort[0].suv).array).all()
    assert {path.stat().st_mode & 0o004 for path in folder.rglob("*")} == {0o004}  # a container's user can read it


def test_a_second_run_runs_only_what_is_missing_or_failed(
    entry: Entry, cohort: list[Case], tmp_path: Path, monkeypatch
):
    ran: list[str] = []
    real = runner.run_case

    def sometimes(target, folder, output, **options):
        ran.append(output.parent.name)
        if len(ran) == 2:
            return runner.Outcome(False, 1.0, "error: broken", "log\nerror: broken")
        return real(target, folder, output, **options)

    monkeypatch.setattr(runner, "run_case", sometimes)
    jobs = run_cohort(entry, cohort[:2], tmp_path)
    assert [job["status"] for job in jobs] == [SUCCEEDED, FAILED]
    assert jobs[1]["error_message"] == "error: broken"
    assert (tmp_path / jobs[1]["pk"] / "log.txt").read_text().endswith("broken")
    jobs = run_cohort(entry, cohort[:3], tmp_path)
    assert ran == [case_pk(cohort[index]) for index in (0, 1, 1, 2)]
    assert [job["status"] for job in jobs] == [SUCCEEDED] * 3
    assert json.loads((tmp_path / "predictions.json").read_text()) == jobs


def test_other_weights_run_every_case_again(entry: Entry, cohort: list[Case], tmp_path: Path):
    run_cohort(entry, cohort[:1], tmp_path / "run")
    assert entry.model
    other = train(cohort[:2], tmp_path / "other", settings=Settings(rule="fixed"), work=tmp_path, device="cpu")
    before = (tmp_path / "run" / case_pk(cohort[0]) / "log.txt").stat().st_mtime_ns
    run_cohort(Entry("threshold", "threshold", "local", other), cohort[:1], tmp_path / "run")
    assert (tmp_path / "run" / case_pk(cohort[0]) / "log.txt").stat().st_mtime_ns > before


def test_a_case_without_its_image_fails_alone(entry: Entry, cohort: list[Case], tmp_path: Path):
    broken = replace(cohort[0], folder=tmp_path / "nowhere")
    jobs = run_cohort(entry, [broken, cohort[1]], tmp_path / "run")
    assert [job["status"] for job in jobs] == [FAILED, SUCCEEDED]
    assert "no such image file" in jobs[0]["error_message"]


def test_a_message_with_markup_is_only_text(entry: Entry, cohort: list[Case], tmp_path: Path, monkeypatch):
    text = "KeyError: [/input/images/pet]"
    monkeypatch.setattr(runner, "run_case", lambda *_, **__: runner.Outcome(False, 1.0, text, text))
    assert run_cohort(entry, cohort[:1], tmp_path)[0]["error_message"] == text


def test_success_without_a_mask_is_a_failure(entry: Entry, cohort: list[Case], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(runner, "run_case", lambda *_, **__: runner.Outcome(True, 1.0))
    job = run_cohort(entry, cohort[:1], tmp_path)[0]
    assert (job["status"], "exactly one mask" in job["error_message"]) == (FAILED, True)


def test_lost_outputs_and_new_conversions_are_run_again(entry: Entry, tmp_path: Path):
    cases = write_cases(tmp_path / "cohort", 2)
    run_cohort(entry, cases, tmp_path / "run")
    assert len(runner.finished_jobs(tmp_path / "run", cases)) == 2
    shutil.rmtree(tmp_path / "run" / case_pk(cases[0]) / "output")
    write_image(cases[1].suv, read_image(cases[1].suv))
    assert runner.finished_jobs(tmp_path / "run", cases) == []


def test_a_kill_loses_no_finished_case(entry: Entry, cohort: list[Case], tmp_path: Path, monkeypatch):
    real = runner.run_case
    count = 0

    def killed(*arguments, **options):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(runner, "run_case", killed)
    with pytest.raises(KeyboardInterrupt):
        run_cohort(entry, cohort[:3], tmp_path)
    assert [job["status"] for job in json.loads((tmp_path / "predictions.json").read_text())] == [SUCCEEDED]
    run_cohort(entry, cohort[:3], tmp_path)
    assert count == 4  # the first case was not run again


def test_the_evaluation_reads_a_run_unchanged(entry: Entry, cohort: list[Case], tmp_path: Path):
    run_cohort(entry, cohort[:2], tmp_path / "run")
    names = [case.name for case in cohort[:2]]
    metrics = evaluate(cohort[0].folder.parent, tmp_path / "run", tmp_path / "metrics.json", cases=names)
    assert [(row["case"], row["status"]) for row in metrics["results"]] == [("case00", "scored"), ("case01", "scored")]


def test_the_record_is_kept_beside_the_log(entry: Entry, cohort: list[Case], tmp_path: Path, monkeypatch, capsys):
    jobs = run_cohort(entry, cohort[:1], tmp_path)
    folder = tmp_path / jobs[0]["pk"]
    record = json.loads((folder / "run.json").read_text())
    assert (record["method"], record["dropped"]) == ("threshold", [])
    assert record["elapsed_s"] > record["stages"]["start"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["log.txt", "output", "run.json"]
    assert not (folder / "output" / "run.json").exists()
    assert "left out" not in "".join(capsys.readouterr())
    real = runner.run_case
    contents = {"two": '{"dropped": ["a", "b"]}', "odd": '{"dropped": 7}', "broken": "[" * 100_000, "none": "[]"}
    for name, text in contents.items():

        def run_case(*arguments, text=text, **options):
            outcome = real(*arguments, **options)
            (arguments[2] / "run.json").write_text(text)
            return outcome

        monkeypatch.setattr(runner, "run_case", run_case)
        assert run_cohort(entry, cohort[:1], tmp_path / name)[0]["status"] == SUCCEEDED
        said = " ".join("".join(capsys.readouterr()).split())
        assert ("case00: 2 left out for want of time or memory" in said) == (name == "two")
