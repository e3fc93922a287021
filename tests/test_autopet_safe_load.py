"""Checkpoints load without running what a pickle asks for."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from autopet.safe_load import safe_load  # noqa: E402

OLD, NEW = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"


class Evil:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def nnunet_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Written by nnU-Net's own `save_checkpoint`, after a step of its optimizer; returns the weights."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = object.__new__(nnUNetTrainer)  # its constructor wants a preprocessed data set
    trainer.local_rank, trainer.disable_checkpointing, trainer.is_ddp = 0, False, False
    trainer.network = torch.nn.Conv3d(2, 2, 1)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    trainer.network(torch.ones(1, 2, 1, 1, 1)).sum().backward()
    trainer.optimizer.step()
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.logger = MetaLogger(path.parent, False)
    trainer.logger.log("train_losses", np.float32(0.25), 0)
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.5)], 0)
    trainer.current_epoch, trainer._best_ema = 0, np.float64(0.5)
    trainer.my_init_kwargs = {"plans": {"plans_name": "p"}, "configuration": "3d_fullres", "fold": 0,
                              "dataset_json": {}, "unpack_dataset": True, "device": torch.device("cuda")}  # fmt: skip
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.save_checkpoint(str(path))
    return {key: value.clone() for key, value in trainer.network.state_dict().items()}


def rewrite(path: Path, change) -> int:
    """Apply `change` to the pickle in a checkpoint of torch; returns how many bytes of it differ in length."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    key = next(name for name in members if name.endswith("data.pkl"))
    before = len(members[key])
    members[key] = change(members[key])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return len(members[key]) - before


def test_a_checkpoint_of_nnunets_own_trainer_loads(tmp_path: Path):
    path = tmp_path / "checkpoint_final.pth"
    weights = nnunet_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):  # the reason for this module: torch >= 2.6 refuses it by default
        torch.load(path, weights_only=True)
    found = safe_load(path)
    assert set(found) == {
        "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch",
        "init_args", "trainer_name", "inference_allowed_mirroring_axes",
    }  # fmt: skip
    assert list(found["network_weights"]) == list(weights)
    assert all(torch.equal(found["network_weights"][key], value) for key, value in weights.items())
    assert found["logging"]["train_losses"] == [0.25]
    assert isinstance(found["_best_ema"], np.float64)
    assert (found["_best_ema"], found["current_epoch"], found["trainer_name"]) == (0.5, 1, "nnUNetTrainer")
    assert found["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert torch.equal(found["optimizer_state"]["state"][0]["momentum_buffer"], torch.ones(2, 2, 1, 1, 1))


def test_names_of_both_numpy_generations_load(tmp_path: Path):
    path = tmp_path / "checkpoint_final.pth"
    nnunet_checkpoint(path)
    sides = [(OLD, NEW), (NEW, OLD)]
    for there, other in sides if OLD in zipfile.ZipFile(path).read("checkpoint_final/data.pkl") else sides[::-1]:
        difference = rewrite(path, lambda content, a=there, b=other: content.replace(a, b))
        assert abs(difference) == 1  # a name that differs by the underscore: once named, then taken from the memo
        assert safe_load(path)["logging"]["mean_fg_dice"] == [0.5]


@pytest.mark.parametrize("zipped", [True, False], ids=["torch >= 1.6", "torch < 1.6"])
def test_numpy_scalars_of_every_kind_keep_value_and_type(tmp_path: Path, zipped: bool):
    path = tmp_path / "scalars.pth"
    kinds = (np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.uint64, np.longdouble)
    values = [*(kind(100) for kind in kinds), np.bool_(True), np.complex64(1 + 2j), np.int8(-3), np.uint64(2**63)]
    content = {"values": values, "dtype": np.dtype("float32"), "order": OrderedDict(a=1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = safe_load(path)
    assert [(type(value), value) for value in found["values"]] == [(type(value), value) for value in values]
    assert found["dtype"] == np.float32
    assert found["order"] == OrderedDict(a=1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, pickle.loads, torch.load, np.load])
def test_a_malicious_pickle_is_refused_by_name_and_does_not_run(tmp_path: Path, function, zipped: bool):
    path, victim = tmp_path / "evil.pth", tmp_path / "owned"
    argument = f"touch {victim}" if function is os.system else f"open({str(victim)!r}, 'w')"
    torch.save({"network_weights": Evil(function, argument)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        AutopetError, match=rf"evil.pth: wants to load \S*{function.__name__}.*nothing was loaded"
    ) as caught:
        safe_load(path)
    assert "is not part of a checkpoint's weights" in str(caught.value)
    assert "weights_only=False" in str(caught.value)
    assert not victim.exists()
    if function is os.system:  # the pickle itself is in order
        torch.load(path, weights_only=False)
        assert victim.exists()


def test_a_numpy_scalar_of_objects_is_refused(tmp_path: Path):
    scalar = np.float64(1).__reduce__()[0]
    path = tmp_path / "object.pth"
    torch.save({"a": Evil(scalar, Evil(np.dtype, "O"), b"12345678")}, path)
    with pytest.raises(AutopetError, match="only numbers are expected"):
        safe_load(path)
    torch.save({"a": np.arange(3)}, path)  # arrays are not among what is allowed
    with pytest.raises(AutopetError, match="wants to load numpy.*_reconstruct"):
        safe_load(path)


def test_the_allowance_ends_with_the_call(tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save({"a": np.float64(1)}, path)
    assert safe_load(path) == {"a": 1.0}
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page, not a checkpoint"),
        (b"<html><body>404</body></html>", "a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00rest", "gzip archive"),
        (b"PK\x03\x04 and no end", "the end of the file is missing"),
        (b"arbitrary text", "not a whole PyTorch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(content)
    with pytest.raises(AutopetError, match=message) as caught:
        safe_load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_an_error_of_ours(tmp_path: Path, zipped: bool):
    path = tmp_path / "whole.pth"
    torch.save({"a": torch.arange(4.0), "b": np.float64(1)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    safe_load(path)
    for length in range(0, len(content), 23):
        path.write_bytes(content[:length])
        with pytest.raises(AutopetError, match=r"whole\.pth"):
            safe_load(path)


def test_a_safetensors_file_and_a_missing_one_and_a_lone_tensor(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(AutopetError, match="a safetensors file"):
        safe_load(tmp_path / "a.pth")
    with pytest.raises(AutopetError, match="no checkpoint at"):
        safe_load(tmp_path / "b.pth")
    torch.save(torch.zeros(2), tmp_path / "c.pth")
    with pytest.raises(AutopetError, match="expected a checkpoint.*found Tensor"):
        safe_load(tmp_path / "c.pth")
