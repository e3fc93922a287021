"""nnU-Net in earnest but tiny: plan, preprocess, train, resume, predict."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.checkpoint import read_config
from autopet.cohort import Case
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.sockets import CT, LESIONS, PET, Inputs

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from nnunet_maker import pools_of_threads  # noqa: E402

from autopet.nnunet.inference import Policy  # noqa: E402
from autopet.nnunet.tiles import TilePredictor  # noqa: E402
from autopet.nnunet.workspace import claim_workspace  # noqa: E402
from baselines.nnunet import predict, train  # noqa: E402
from baselines.nnunet.model import PRESETS, Settings, adapt_plans  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    epochs=2,
    iterations_per_epoch=3,
    validation_iterations=1,
    patch=(16, 16, 16),
    features=(4, 8, 8),
    checkpoint_every=1,
    workers=1,
    folds=(2,),
)


def test_presets_are_the_published_and_the_small_one():
    assert (PRESETS["paper"].epochs, PRESETS["paper"].learning_rate, PRESETS["paper"].patch) == (1000, 1e-4, ())
    assert PRESETS["paper"].optimizer == "sgd"
    assert PRESETS["demo"].folds == ("all",)
    with pytest.raises(AutopetError, match="use sgd or adam"):
        Settings(optimizer="lion")


def test_adapt_plans_changes_only_what_is_set():
    arch = {"n_stages": 6, "features_per_stage": [32] * 6, "strides": [], "kernel_sizes": [], "other": 1}
    plans = {
        "configurations": {
            "3d_fullres": {"batch_size": 2, "patch_size": [8, 8, 8], "architecture": {"arch_kwargs": arch}}
        }
    }
    assert adapt_plans(plans, Settings())["configurations"]["3d_fullres"]["batch_size"] == 2
    assert arch["n_stages"] == 6
    adapt_plans(plans, TINY)
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]
    assert arch["features_per_stage"] == [4, 8, 8]
    assert arch["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert arch["other"] == 1
    with pytest.raises(AutopetError, match="divide by 4"):
        adapt_plans(plans, replace(TINY, patch=(18, 16, 16)))


@pytest.fixture(scope="module")
def model(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny model; its training was broken off after the first epoch and resumed.

    Of the eight cases the last two are second studies of the first two patients; fold 2 is trained.
    """
    root = tmp_path_factory.mktemp("nnunet")
    cases = [*cohort[:6], *(replace(case, patient_id=cohort[i].patient_id) for i, case in enumerate(cohort[6:]))]
    seen: list[int] = []
    step = train.Trainer.train_step

    def broken(self, batch):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    def counted(self, batch):
        seen.append(self.current_epoch)
        trained, held_out = self.do_split()
        patient = {case.name: case.patient_id for case in cases}
        assert sorted(trained + held_out) == sorted(patient)
        assert not {patient[case] for case in trained} & {patient[case] for case in held_out}
        assert set(batch["keys"]) <= set(trained)
        return step(self, batch)

    arguments = {"settings": TINY, "work": root / "work", "device": "cpu"}
    with pools_of_threads(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", broken)
        with pytest.raises(KeyboardInterrupt):
            train.train(cases, root / "model", **arguments)
        assert not (root / "model").exists()
        patch.setattr(train.Trainer, "train_step", counted)
        train.train(cases, root / "model", **arguments)
    assert seen == [1, 1, 1]  # epoch 0 was not trained again
    assert not (root / "work").exists()
    return root / "model"


def test_training_leaves_no_trace_in_the_environment(model: Path):
    assert not [name for name in os.environ if name.startswith("nnUNet_")]


def test_model_folder_describes_itself(model: Path):
    config = read_config(model, method="nnunet")
    assert config["channels"] == ["CT", "PET"]
    assert config["training_cases"] == [f"case0{number}" for number in range(8)]
    assert "cohort" not in (model / "dataset.json").read_text()  # the training cases' paths stay at home


@pytest.fixture
def inputs(cohort: list[Case]) -> Inputs:
    case = cohort[5]
    return Inputs({PET.slug: read_image(case.suv), CT.slug: read_image(case.ct)}, case.name)


def test_prediction_is_on_the_input_grid_and_deterministic(model: Path, inputs: Inputs):
    loaded = predict.load(model, "cpu")
    first, second = (predict.predict(loaded, inputs, Deadline())[LESIONS.slug] for _ in range(2))
    assert first.same_grid(inputs["pet"])
    assert first.array.dtype == np.uint8
    np.testing.assert_array_equal(first.array, second.array)


def test_channel_order_is_the_config_s(model: Path, inputs: Inputs):
    loaded = predict.load(model, "cpu")
    assert loaded.channels == ("CT", "PET")
    stacked = loaded._stack({"PET": inputs["pet"], "CT": inputs["ct"]})
    np.testing.assert_array_equal(stacked[0], inputs["ct"].array.astype(np.float32))
    np.testing.assert_array_equal(stacked[1], inputs["pet"].array)


def test_settings_decide_the_policy(model: Path, monkeypatch: pytest.MonkeyPatch):
    assert predict.load(model, "cpu").policy == Policy(tile_step=0.5, mirror_axes=(), mirror_first=True)
    config = read_config(model, method="nnunet")
    config["settings"] |= {"mirroring": True, "tile_step": 0.75}
    monkeypatch.setattr(predict, "read_config", lambda *_, **__: config)
    assert predict.load(model, "cpu").policy == Policy(tile_step=0.75, mirror_axes=(0, 1, 2), mirror_first=True)


def test_mirroring_is_dropped_when_the_time_is_short(model: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    real = TilePredictor.run_pass

    def run_pass(self, *arguments, **options):
        now[0] += 10.0 * 2 ** len(self.allowed_mirroring_axes)
        return real(self, *arguments, **options)

    monkeypatch.setattr(TilePredictor, "run_pass", run_pass)
    loaded = predict.load(model, "cpu")
    loaded.policy = replace(loaded.policy, mirror_axes=(0, 1, 2))
    part = {slug: replace(inputs[slug], array=inputs[slug].array[:20, :24, :24]) for slug in (PET.slug, CT.slug)}
    for limit_s, expected in ((30.0, [()]), (60.0, [(), (0, 1)]), (300.0, [(), (0, 1, 2)]), (math.inf, [(0, 1, 2)])):
        now[0] = 0.0
        deadline = Deadline(limit_s, clock=lambda: now[0])
        predict.predict(loaded, Inputs(part, inputs.stem), deadline)  # a part of the case: 22 passes are made
        assert [tuple(one["mirror_axes"]) for one in deadline.journal.notes["passes"]] == expected
        assert bool(deadline.journal.dropped) == (limit_s < 300)


def test_weights_missing(model: Path, tmp_path: Path):
    with pytest.raises(AutopetError, match="no weights for nnunet"):
        predict.load(tmp_path, "cpu")


def test_an_unfinished_training_is_never_thrown_away(cohort: list[Case], tmp_path: Path):
    work = tmp_path / "work"
    claim_workspace(work, cohort[:2], TINY)
    (work / "remains").touch()
    claim_workspace(work, cohort[:2], replace(TINY, workers=2, checkpoint_every=5))
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        claim_workspace(work, cohort[:3], TINY)
    with pytest.raises(AutopetError, match="unfinished training"):
        claim_workspace(work, cohort[:2], replace(TINY, epochs=3))
    assert (work / "remains").exists()
