"""LesionTracer in earnest but tiny: preprocess, train, break off, resume, publish; and in two processes."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_cases

from autopet.checkpoint import read_config
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

import blosc2  # noqa: E402
from nnunet_maker import pools_of_threads  # noqa: E402

from algorithms.lesiontracer import train  # noqa: E402
from algorithms.lesiontracer.loss import LesionOrganLoss, stage_weights  # noqa: E402
from algorithms.lesiontracer.model import PRESETS, build_network  # noqa: E402
from algorithms.lesiontracer.preprocessing import UNLABELLED  # noqa: E402
from autopet.nnunet.model_folder import load_weights  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    epochs=3,
    iterations_per_epoch=2,
    validation_iterations=1,
    spacing=(6.5, 4.5, 4.5),  # the cohort's is 6, 4, 4
    patch=(16, 16, 16),
    features=(4, 8, 8),
    blocks=(1, 1, 1),
    checkpoint_every=1,
    workers=1,
)


def add_organs(cases: list[Case]) -> None:
    """The body as a lung, and its hot organ as a bladder."""
    for case in cases:
        volume = read_image(case.suv)
        organs = np.zeros(volume.array.shape, np.uint8)
        organs[:, 6:-6, 6:-6] = 5
        organs[2:8, 18:26, 18:26] = 4
        write_image(case.image("ORGANS"), volume.with_array(organs))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three cases, two of them with organ labels."""
    found = write_cases(tmp_path_factory.mktemp("organs"), 3)
    add_organs(found[:2])
    return found


@pytest.fixture(scope="module")
def trained(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A model whose training was killed after the first epoch and resumed, and the batches it was given then.

    Beside the model lies `killed`, a copy of the work folder as the kill left it.
    """
    root = tmp_path_factory.mktemp("lesiontracer")
    seen: list[dict] = []
    step = train.LesionTracerTrainer.train_step

    def broken(self, batch):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    def counted(self, batch):
        shapes = [tuple(target.shape) for target in batch["target"]]
        seen.append({"epoch": self.current_epoch, "shapes": shapes, "organs": self.network.decoder.organs_enabled})
        return step(self, batch)

    arguments = {"settings": TINY, "work": root / "work", "device": "cpu"}
    with pools_of_threads(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.LesionTracerTrainer, "train_step", broken)
        with pytest.raises(KeyboardInterrupt):
            train.train(cases, root / "model", **arguments)
        assert not (root / "model").exists()
        shutil.copytree(root / "work", root / "killed")
        patch.setattr(train.LesionTracerTrainer, "train_step", counted)
        train.train(cases, root / "model", **arguments)
    assert not (root / "work").exists()
    return root / "model", seen


def test_a_killed_training_goes_on(trained: tuple[Path, list[dict]]):
    _, seen = trained
    assert [batch["epoch"] for batch in seen] == [1, 1, 2, 2]  # epoch 0 was not trained again


def test_both_targets_come_at_every_stage(trained: tuple[Path, list[dict]]):
    _, seen = trained
    assert all(batch["shapes"] == [(2, 2, 16, 16, 16), (2, 2, 8, 8, 8)] for batch in seen)
    assert all(batch["organs"] for batch in seen)  # off in validation, on again in training


def test_organ_labels_are_in_the_preprocessed_cases(trained: tuple[Path, list[dict]]):
    """Were the masks' paths not those that nnU-Net asks for, every case would be unlabelled, in silence."""
    folder = trained[0].parent / "killed/preprocessed/Dataset001_PETCT/nnUNetPlans_3d_fullres"
    labels = [blosc2.open(str(folder / f"case0{number}_seg.b2nd"))[1] for number in range(3)]
    assert [set(np.unique(found)) - {-1} for found in labels] == [{0, 4, 5}, {0, 4, 5}, {UNLABELLED}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": (0, 1)}, "needs 5 patients at least, found 3"),
        ({"folds": ("0",)}, "expected some of 0 to 4"),
        ({"pretrained": "/no/such/weights.pth"}, "no pretrained weights at /no/such/weights.pth"),
        ({"rotation_probability": 2.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_preprocessing(
    cases: list[Case], tmp_path: Path, changes: dict, message: str
):
    with pytest.raises(AutopetError, match=message):
        train.train(cases, tmp_path / "out", settings=replace(TINY, **changes), work=tmp_path / "work", device="cpu")
    assert not (tmp_path / "work").exists()


def test_a_folder_with_other_files_is_refused_before_the_training(cases: list[Case], tmp_path: Path):
    (tmp_path / "letters").touch()
    with pytest.raises(AutopetError, match="holds other files"):
        train.train(cases, tmp_path, settings=TINY, work=tmp_path / "work", device="cpu")
    assert not (tmp_path / "work").exists()


def test_more_processes_than_patches(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(AutopetError, match="2 patches cannot be divided over 3 processes"):
        train.train(cases, tmp_path / "out", settings=TINY, work=tmp_path / "work", device="cpu")


def test_the_model_folder_describes_itself(trained: tuple[Path, list[dict]]):
    model, _ = trained
    config = read_config(model, method="lesiontracer")
    assert config["channels"] == ["CT", "PET"]
    assert config["training_cases"] == ["case00", "case01", "case02"]
    assert config["organ_cases"] == ["case00", "case01"]
    assert config["settings"]["organ_map"] == "corrected"
    assert "organs" not in (model / "dataset.json").read_text()


def test_the_table_has_one_row_per_epoch(trained: tuple[Path, list[dict]]):
    model, _ = trained
    with (model / "fold_all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([2e-3 * (1 - epoch / 3) ** 0.9 for epoch in range(3)], rel=1e-4)
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("train_loss", "val_loss", "seconds"))


def test_published_weights_run_without_organ_heads(trained: tuple[Path, list[dict]]):
    model, _ = trained
    plans, dataset, [weights] = load_weights(model)
    assert any("organ_seg_layers" in key for key in weights)
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["CTNormalization", "CTNormalization"]
    assert configuration["spacing"] == [6.5, 4.5, 4.5]
    network = build_network(plans, dataset, organs=False, deep_supervision=False)
    network.load_state_dict(weights)
    assert network(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def fake_trainer(settings) -> train.LesionTracerTrainer:
    """A trainer without nnU-Net's folders: what is set here is all that the tested methods read."""
    trainer = object.__new__(train.LesionTracerTrainer)
    trainer.settings = settings
    trainer.is_ddp, trainer.local_rank, trainer.device = False, 0, torch.device("cpu")
    return trainer


def transforms(settings) -> list:
    chain = fake_trainer(settings).get_training_transforms((16, 16, 16), (-0.5, 0.5), [[1, 1, 1]], (0, 1, 2), False)
    return chain.transforms


def test_misalignment_is_first_and_moves_the_ct():
    first, second, *_ = transforms(TINY)
    assert (type(first).__name__, type(second).__name__) == ("MisalignTransform", "SpatialTransform")
    assert (first.channel, first.rotation_degrees, first.shift_voxels) == (0, 5.0, (0, 2, 2))
    assert (first.rotation_probability, first.shift_probability) == (0.1, 0.1)
    without = transforms(replace(TINY, misalignment=False))
    assert type(without[0]).__name__ == "SpatialTransform"
    assert len(without) == len(transforms(TINY)) - 1


def test_validation_sees_lesions_alone():
    """2 of 8 voxels are predicted as lesions, both of them right, 1 is missed; the organ labels would add to it."""
    trainer = fake_trainer(TINY)
    trainer.enable_deep_supervision = True
    trainer.label_manager = SimpleNamespace(has_regions=False, has_ignore_label=False)
    trainer.loss = LesionOrganLoss(stage_weights(1))
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[:, 0] = 1.0
    logits[0, 1, 0, 0] = 5.0
    trainer.network = lambda data: [logits]
    target = torch.zeros(1, 2, 2, 2, 2)
    target[0, 0, 0, 0] = 1
    target[0, 0, 1, 1, 1] = 1
    target[0, 1] = 7
    found = trainer.validation_step({"data": torch.zeros(1, 2, 2, 2, 2), "target": [target]})
    assert [int(found[name][0]) for name in ("tp_hard", "fp_hard", "fn_hard")] == [2, 0, 1]


def test_pretrained_weights_are_loaded_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from algorithms.lesiontracer import transfer

    asked = []

    def load(network, path, *, stem):
        asked.append((network, path, stem))
        return transfer.Report(loaded=("a", "b"), skipped=(("head", "a head"),), missing=())

    monkeypatch.setattr(transfer, "load_pretrained", load)
    trainer = fake_trainer(replace(TINY, pretrained="weights.pth", pretrained_stem="221"))
    trainer.network, trainer.output_folder = torch.nn.Linear(1, 1), str(tmp_path)
    trainer.begin()
    assert asked == [(trainer.network, Path("weights.pth"), "221")]
    noted = trainer.result().notes["pretrained"]
    assert (noted["loaded"], noted["skipped"], noted["missing"]) == (["a", "b"], [["head", "a head"]], [])


TWO = """
import sys
from pathlib import Path

if __name__ == "__main__":  # the workers of the preprocessing import this file, too
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as theirs
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from algorithms.lesiontracer import train
    from autopet.cohort import read_cohort
    from autopet.nnunet.processes import rank
    from test_algorithms_lesiontracer_train import TINY

    # nnU-Net names a GPU here; on the CPU there is none to name
    theirs.DDP = lambda network, device_ids: DistributedDataParallel(network)
    cohort, folder = map(Path, sys.argv[1:])
    run = train.train_fold

    def kept(*arguments, **options):
        result = run(*arguments, **options)
        torch.save(dict(result.weights), folder / f"rank{rank()}.pt")
        return result

    train.train_fold = kept
    train.train(read_cohort(cohort), folder / "model", settings=TINY, work=folder / "work", device="cpu")
"""


@pytest.mark.timeout(600)
def test_two_processes_train_one_model(cases: list[Case], trained: tuple[Path, list[dict]], tmp_path: Path):
    """As `torchrun` starts them, over gloo: both go on from the killed training, one publishes, their weights agree."""
    shutil.copytree(trained[0].parent / "killed", tmp_path / "work")
    script = tmp_path / "two.py"
    script.write_text(TWO)
    folder = cases[0].folder.parent
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, str(folder), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "work").exists()
    with (tmp_path / "model/fold_all.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    assert done.stderr.count("organ labels for 2 of 3 cases") == 1  # the second process is silent
    _, _, [weights] = load_weights(tmp_path / "model")
    ranks = [torch.load(tmp_path / f"rank{number}.pt", weights_only=True) for number in range(2)]
    for key, tensor in weights.items():  # without torch's prefix `module.`
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, ranks[0][key])
        assert torch.equal(tensor, ranks[1][key])
