from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopet import container
from autopet.cohort import Case
from autopet.container import Runner, Server, main, model_folder
from autopet.images import find_images, read_image
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


def test_loading_counts_towards_the_first_case(input_folder: Path, tmp_path: Path, model: Path):
    runner = Runner(threshold, model, input_folder, tmp_path / "out", time_limit_s=100.0)
    runner.load()
    runner.loading_s = 40.0
    seen = []

    class Spy:
        INPUTS, OUTPUTS = threshold.INPUTS, threshold.OUTPUTS

        @staticmethod
        def predict(model, inputs, deadline):
            seen.append(deadline.limit_s)
            return threshold.predict(model, inputs, deadline)

    runner.predict = Spy  # type: ignore[assignment]
    runner.run()
    runner.run()
    assert seen == [60.0, 100.0]


def test_no_method_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AUTOPET_METHOD", raising=False)
    assert main([]) == 1
