"""LesionTracer's container: the lesion head alone, as nnU-Net would run it, in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from autopet import container
from autopet.checkpoint import publish_model
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import find_images, read_image
from autopet.sockets import CT, LESIONS, PET, read_inputs

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

import nnunet_maker as maker  # noqa: E402
from test_autopet_nnunet_inference import nnunets  # noqa: E402

from algorithms.lesiontracer import predict  # noqa: E402
from algorithms.lesiontracer.model import Settings, build_network  # noqa: E402
from autopet.nnunet.inference import Policy  # noqa: E402
from autopet.nnunet.model_folder import save_weights  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

PLANS = maker.make_plans(patch=(32, 32, 32), spacing_mm=(6.0, 4.5, 4.5))


@pytest.fixture(scope="module")
def folds() -> list[dict]:
    """Two trained networks, with organ heads, as far as this module cares."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = build_network(PLANS, maker.DATASET, organs=True, deep_supervision=True)
        network.decoder.seg_layers[-1].weight.data *= 4
        states.append(network.state_dict())
    return states


@pytest.fixture(scope="module")
def model(folds: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def fill(folder: Path) -> dict:
        save_weights(folder, PLANS, maker.DATASET, dict(zip("01", folds, strict=True)))
        return {"method": "lesiontracer", "settings": asdict(Settings()), "channels": ["CT", "PET"]}

    return publish_model(tmp_path_factory.mktemp("lesiontracer") / "model", fill)


def test_the_paper_s_policy(model: Path):
    loaded = predict.load(model, "cpu")
    assert loaded.policy == Policy(tile_step=0.6, mirror_axes=(0, 1, 2), mirror_first=False)
    assert not [key for key in loaded.predictor.network.state_dict() if "organ" in key]
    with pytest.raises(AutopetError, match="no weights for lesiontracer"):
        predict.load(model.parent, "cpu")


def test_the_lesion_head_is_what_nnunet_would_run(model: Path, folds: list[dict], input_folder: Path):
    inputs = read_inputs(input_folder, predict.INPUTS)
    plain = [{key: value for key, value in fold.items() if "organ" not in key} for fold in folds]
    images = {"PET": inputs[PET.slug], "CT": inputs[CT.slug]}
    mask, probabilities = nnunets(PLANS, plain[:1], images, step=0.6, axes=())
    _, mirrored = nnunets(PLANS, plain[1:], images, step=0.6, axes=(0, 1, 2))
    loaded = predict.load(model, "cpu")
    deadline = Deadline()
    loaded.predictor.list_of_parameters = folds[:1]
    loaded.policy = Policy(0.6, ())
    assert np.abs(loaded.probabilities(images, deadline) - probabilities).max() < 1e-4
    np.testing.assert_array_equal(predict.predict(loaded, inputs, deadline)[LESIONS.slug].array, mask)
    loaded.predictor.list_of_parameters = folds[1:]
    loaded.policy = Policy(0.6, (0, 1, 2))
    assert np.abs(loaded.probabilities(images, deadline) - mirrored).max() < 1e-4


def test_the_first_fold_is_not_mirrored_the_second_is(model: Path, input_folder: Path):
    deadline = Deadline()
    predict.predict(predict.load(model, "cpu"), read_inputs(input_folder, predict.INPUTS), deadline)
    passes = [(one["fold"], one["mirror_axes"]) for one in deadline.journal.notes["passes"]]
    assert passes == [(0, []), (1, [0, 1, 2])]
    assert deadline.journal.dropped == []
    assert {"preprocess", "fold 0", "fold 1", "resample", "export"} == deadline.journal.stages.keys()


def test_the_container_is_in_time(model: Path, input_folder: Path, tmp_path: Path):
    """A whole process: interpreter, torch, weights, a mask and its record, all before the limit."""
    limit_s = 240.0  # importing torch and nnU-Net alone takes a minute on a busy machine
    command = [sys.executable, "-m", "autopet.container", "--method", "lesiontracer", "--device", "cpu"]
    command += ["--time-limit", str(limit_s), "--input", str(input_folder), "--output", str(tmp_path / "out")]
    root = str(Path(container.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--model", str(model)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < limit_s
    mask = read_image(find_images(tmp_path / "out" / LESIONS.relative_path)[0])
    assert mask.same_grid(read_image(find_images(input_folder / "images/pet")[0]))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["method"] == "lesiontracer"
    assert {"start", "load", "read", "preprocess", "fold 0", "resample", "export", "write"} <= record["stages"].keys()
    assert record["stages"]["start"] > 0.5  # importing torch is counted
    assert record["elapsed_s"] < limit_s
