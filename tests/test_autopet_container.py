from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
import pytest

from autopet import container
from autopet.cohort import Case
from autopet.container import Runner, Server, main, model_folder
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import find_images, read_image, write_image
from baselines.threshold import predict as threshold
from baselines.threshold.model import Settings
from baselines.threshold.train import train

OUTPUT = "images/automated-petct-lesion-segmentation"


@pytest.fixture(scope="module")
def model(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "threshold"
    return train(cohort, out, settings=Settings(), work=out, device="cpu")


def run_main(folder: Path, out: Path, model: Path, **options: str) -> tuple[int, str]:
    """Exit status and last line of the entry point, in a process of its own as in the image."""
    command = [sys.executable, "-m", "autopet.container", "--method", options.get("method", "threshold")]
    command += ["--input", str(folder), "--output", str(out), "--model", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(Path(container.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def test_exec_writes_the_mask(input_folder: Path, tmp_path: Path, model: Path):
    status, _ = run_main(input_folder, tmp_path / "out", model)
    assert status == 0
    mask = read_image(find_images(tmp_path / "out" / OUTPUT)[0])
    assert 0 < mask.array.sum() < mask.array.size / 20


def test_bad_input_is_one_line_and_no_output(input_folder: Path, tmp_path: Path, model: Path):
    pet = find_images(input_folder / "images/pet")[0]
    pet.write_bytes(pet.read_bytes()[:300])
    status, line = run_main(input_folder, tmp_path / "out", model)
    assert status == 1
    assert line.startswith("error: ")
    assert "pet_name.mha: cannot be read" in line
    assert not (tmp_path / "out").exists()


def test_missing_weights_and_unknown_method(input_folder: Path, tmp_path: Path):
    status, line = run_main(input_folder, tmp_path / "out", tmp_path / "none")
    assert (status, "no weights for threshold" in line) == (1, True)
    status, line = run_main(input_folder, tmp_path / "out", tmp_path, method="nothing")
    assert status == 1
    assert "no method called 'nothing'; there are" in line


def test_uploaded_weights_win_over_baked_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    uploaded, baked = tmp_path / "uploaded", tmp_path / "baked"
    monkeypatch.setattr(container, "UPLOADED_MODEL", uploaded)
    monkeypatch.setattr(container, "BAKED_MODEL", baked)
    baked.mkdir()
    assert model_folder(None) == uploaded  # an image always has the folder, empty when no weights were baked in
    (baked / "config.json").touch()
    assert model_folder(None) == baked
    uploaded.mkdir()
    assert model_folder(None) == baked
    (uploaded / "config.json").touch()
    assert model_folder(None) == uploaded
    assert model_folder(tmp_path) == tmp_path


@pytest.fixture
def server(input_folder: Path, tmp_path: Path, model: Path) -> Iterator[Server]:
    server = Server(Runner(threshold, model, input_folder, tmp_path / "out"), port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: Server, verb: str, path: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", method=verb)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


def test_invoke_is_201_after_the_outputs_are_there(server: Server, tmp_path: Path):
    assert ask(server, "GET", "/health")[0] == 503  # the model is not loaded yet
    assert ask(server, "POST", "/invoke")[0] == 503
    server.runner.load()
    server.ready.set()
    assert ask(server, "GET", "/health") == (200, "ready")
    for _ in range(2):  # the platform empties /output and calls again
        assert ask(server, "POST", "/invoke")[0] == 201
        find_images(tmp_path / "out" / OUTPUT)[0].unlink()
    assert ask(server, "GET", "/other")[0] == 404


def test_invoke_outlives_a_bad_case(server: Server, input_folder: Path):
    server.runner.load()
    server.ready.set()
    ct = find_images(input_folder / "images/ct")[0]
    ct.rename(input_folder / "kept.mha")
    status, text = ask(server, "POST", "/invoke")
    assert (status, "no CT image" in text) == (422, True)
    (input_folder / "kept.mha").rename(ct)
    assert ask(server, "POST", "/invoke")[0] == 201


def test_health_is_answered_during_a_case(server: Server, monkeypatch: pytest.MonkeyPatch):
    server.ready.set()
    monkeypatch.setattr(server.runner, "run", lambda: time.sleep(1.0))
    worker = threading.Thread(target=ask, args=(server, "POST", "/invoke"))
    worker.start()
    time.sleep(0.2)
    started = time.monotonic()
    assert ask(server, "GET", "/health")[0] == 200
    assert time.monotonic() - started < 0.5
    worker.join()


class Spy:
    """The threshold method, which also keeps the deadlines that it is given."""

    INPUTS, OUTPUTS = threshold.INPUTS, threshold.OUTPUTS
    __name__ = "baselines.spy.predict"

    def __init__(self) -> None:
        self.deadlines: list[Deadline] = []

    def load(self, model_dir, device):
        return threshold.load(model_dir, device)

    def predict(self, model, inputs, deadline):
        self.deadlines.append(deadline)
        deadline.journal.drop("fold 1: too slow")
        deadline.journal.note("passes", (1, Path("x")))
        return threshold.predict(model, inputs, deadline)


@pytest.fixture
def runner(input_folder: Path, tmp_path: Path, model: Path) -> Runner:
    return Runner(Spy(), model, input_folder, tmp_path / "out", "cpu", time_limit_s=100.0)  # type: ignore[arg-type]


def test_exec_counts_from_the_process_and_invoke_from_the_request(runner: Runner):
    container.run_once(runner, started_s=time.monotonic() - 40.0)
    runner.run()
    first, second = runner.predict.deadlines
    assert first.limit_s == second.limit_s == 100.0
    assert 40.0 <= first.journal.stages["start"] < 41.0
    assert first.elapsed_s >= 40.0
    assert second.elapsed_s < 20.0
    assert {"start", "load"} <= first.journal.stages.keys()
    assert not {"start", "load"} & second.journal.stages.keys()


def test_the_record_lies_beside_the_outputs(runner: Runner, tmp_path: Path):
    container.run_once(runner, started_s=time.monotonic())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["method"], record["device"], record["limit_s"]) == ("spy", "cpu", 100.0)
    assert record["stages"].keys() == {"start", "load", "read", "predict", "write"}
    assert sum(record["stages"].values()) <= record["elapsed_s"] + 0.01
    assert record["dropped"] == ["fold 1: too slow"]
    assert record["notes"] == {"passes": [1, "x"]}
    assert record["warnings"] == []
    assert record["version"]
    assert not list((tmp_path / "out").glob(".part*"))


def test_warnings_are_in_the_record_and_no_limit_is_null(runner: Runner, input_folder: Path, tmp_path: Path):
    path = find_images(input_folder / "images/ct")[0]
    ct = read_image(path)
    write_image(path, replace(ct, origin_mm=(ct.origin_mm[0] + 4.0, *ct.origin_mm[1:])))
    runner.time_limit_s = math.inf
    runner.load()
    runner.run()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "ct is not on the pet grid" in record["warnings"][0]
    assert record["limit_s"] is None


def test_a_failed_case_leaves_no_record(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runner.load()
    runner.run()
    assert (tmp_path / "out" / "run.json").is_file()
    monkeypatch.setattr(runner.predict, "predict", lambda *_: {})
    with pytest.raises(AutopetError, match="returned no output"):
        runner.run()
    assert not (tmp_path / "out" / "run.json").exists()


def test_masks_are_cleaned_by_the_config_s_rules(runner: Runner, model: Path, tmp_path: Path):
    container.run_once(runner, started_s=time.monotonic())
    before = read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array
    cleaned = shutil.copytree(model, tmp_path / "cleaned")
    config = json.loads((cleaned / "config.json").read_text())
    (cleaned / "config.json").write_text(json.dumps(config | {"postprocessing": {"min_component_voxels": 150}}))
    runner.model_dir = cleaned
    runner.run()  # the model itself is loaded already
    after = read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array
    labels = cc3d.connected_components(before, connectivity=18)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    assert 0 < (sizes >= 150).sum() < (sizes > 0).sum()  # the rule has something to take and something to leave
    np.testing.assert_array_equal(after, (sizes >= 150)[labels])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(record["notes"]["postprocessing"]) == 1
    assert "postprocess" in record["stages"]
    (cleaned / "config.json").write_text(json.dumps(config | {"postprocessing": {"no_such_rule": 1}}))
    with pytest.raises(AutopetError, match="unknown setting no_such_rule"):
        runner.run()


SLOW_METHOD = """
import time
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET
time.sleep(1.0)  # a slow import
INPUTS, OUTPUTS = (PET, CT), (LESIONS, DATA_CENTRIC)

def load(model_dir, device):
    time.sleep(0.5)

def predict(model, inputs, deadline):
    while deadline.allows(2.0):  # as long as possible, with two seconds for the rest
        time.sleep(0.01)
    deadline.journal.note("left_s", deadline.remaining_s)
    return {LESIONS.slug: inputs["pet"].with_array((inputs["pet"].array > 4).astype("uint8")), DATA_CENTRIC.slug: False}
"""


def test_a_process_is_in_time_with_its_own_start(input_folder: Path, tmp_path: Path):
    package = tmp_path / "others" / "slow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "predict.py").write_text(SLOW_METHOD)
    command = [sys.executable, "-m", "autopet.container", "--method", "others.slow", "--time-limit", "9"]
    command += [
        "--device",
        "cpu",
        "--input",
        str(input_folder),
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path),
    ]
    path = os.pathsep.join([str(Path(container.__file__).parents[1]), str(tmp_path)])
    started = time.monotonic()
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    took_s = time.monotonic() - started
    assert 7.0 <= took_s < 9.0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["limit_s"] == 9.0
    assert 1.5 <= record["notes"]["left_s"] <= 2.0
    # what the process spent before predict was taken from predict's share, the interpreter's start included
    assert record["stages"]["load"] >= 0.5
    assert record["stages"]["start"] > 1.0  # the interpreter and the slow import
    assert record["stages"]["predict"] <= 7.0 - 1.5
    assert record["elapsed_s"] == pytest.approx(sum(record["stages"].values()), abs=0.5)


def test_a_method_that_is_not_ready_leaves_empty_masks_in_time(runner: Runner, input_folder: Path, tmp_path: Path):
    release = threading.Event()

    def hang(model, inputs, deadline):
        with deadline.journal.stage("preprocess"):
            deadline.journal.note("size", "large")
            release.wait(60)
        deadline.journal.drop("said too late")

    runner.predict.predict = hang
    runner.time_limit_s = 4.0
    started = time.monotonic()
    runner.load()
    runner.run()
    assert time.monotonic() - started < 4.0
    mask = read_image(find_images(tmp_path / "out" / OUTPUT)[0])
    assert mask.same_grid(read_image(find_images(input_folder / "images/pet")[0]))
    assert not mask.array.any()
    assert json.loads((tmp_path / "out" / "data-centric-model.json").read_text()) is False
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["notes"] == {"size": "large"}
    assert record["dropped"][0].startswith("the whole prediction: not ready after 3")
    release.set()
    # the model is loaded anew for the next case: the thread that was given up may still be using the old one
    given_up = runner.model
    del runner.predict.predict
    runner.run()
    assert runner.model is not given_up
    assert read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array.any()


def test_weights_that_are_not_loaded_in_time_leave_empty_masks(runner: Runner, tmp_path: Path):
    release, loaded = threading.Event(), []

    def slow(model_dir, device):
        release.wait(60)
        loaded.append(threshold.load(model_dir, device))
        return loaded[-1]

    runner.predict.load = slow
    runner.time_limit_s = 3.0
    started = time.monotonic()
    container.run_once(runner, started_s=started)
    assert time.monotonic() - started < 3.0
    assert not read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array.any()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["dropped"][0].startswith("the whole prediction: not ready after")
    release.set()
    runner.time_limit_s = 60.0
    runner.run()  # what the given-up thread loads is its own
    assert read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array.any()
    assert runner.model is loaded[1]


def test_post_processing_that_is_not_ready_leaves_the_masks_as_predicted(
    runner: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from autopet import postprocessing

    container.run_once(runner, started_s=time.monotonic())
    before = read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array
    runner.model_dir = shutil.copytree(model, tmp_path / "cleaned")
    config = json.loads((model / "config.json").read_text())
    (runner.model_dir / "config.json").write_text(json.dumps(config | {"postprocessing": {"min_component_voxels": 9}}))
    release = threading.Event()
    monkeypatch.setattr(postprocessing, "apply_rules", lambda *_, **__: release.wait(60))
    runner.time_limit_s = 3.0
    started = time.monotonic()
    runner.run()
    assert time.monotonic() - started < 3.0
    release.set()
    np.testing.assert_array_equal(read_image(find_images(tmp_path / "out" / OUTPUT)[0]).array, before)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["dropped"][-1].startswith("post-processing: not ready after")


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[]", "expected a JSON object")])
def test_a_config_that_is_no_object_is_a_clear_error(runner: Runner, tmp_path: Path, text: str, words: str):
    (tmp_path / "config.json").write_text(text)
    runner.model_dir = tmp_path
    with pytest.raises(AutopetError, match=rf"config\.json: {words}"):
        runner.run()


def test_the_time_limit_of_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for text, expected in (("", math.inf), ("300", 300.0)):
        monkeypatch.setenv("AUTOPET_TIME_LIMIT_S", text)
        assert container._arguments([]).time_limit == expected
    monkeypatch.setenv("AUTOPET_TIME_LIMIT_S", "5 min")
    with pytest.raises(SystemExit):
        container._arguments([])
    assert "--time-limit: invalid float value: '5 min'" in capsys.readouterr().err


def test_an_error_of_the_method_is_raised_with_a_limit_too(runner: Runner, tmp_path: Path):
    def fail(model, inputs, deadline):
        raise AutopetError("the weights do not fit the plans")

    runner.load()
    runner.predict.predict = fail
    with pytest.raises(AutopetError, match="do not fit"):
        runner.run()
    assert not (tmp_path / "out").exists() or not find_images(tmp_path / "out")


def test_no_method_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AUTOPET_METHOD", raising=False)
    assert main([]) == 1
