"""Weights of a Swin-UNETR trained on BTCV: what is loaded, repeated and skipped, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from monai.networks.nets import SwinUNETR  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from algorithms.swinmip.btcv import load_btcv  # noqa: E402
from algorithms.swinmip.model import Settings, build_segmenter  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

# By hand. Transformer: 2 of the patch embedding; 8 blocks of 14 (2 norms and 4 layers with weight and bias, the table
# and the index of positions); 4 mergings of 3. Convolutions: 3 of encoder1, whose residual has its own, and 2 of each
# other encoder; 5 decoders of 4 (the transposed one, and 3). The head: weight and bias.
TRANSFORMER, CONVOLUTIONS, HEAD = 2 + 8 * 14 + 4 * 3, 3 + 4 * 2 + 5 * 4, 2
INPUT_LAYERS = (
    "swinViT.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)


def released(feature_size: int = 12) -> dict[str, torch.Tensor]:
    """A state dict in the layout of the released files: one channel in, 14 out; no two tensors are alike."""
    torch.manual_seed(7)
    network = SwinUNETR(in_channels=1, out_channels=14, feature_size=feature_size)
    for tensor in network.parameters():
        torch.nn.init.normal_(tensor)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return released()


@pytest.fixture
def network() -> SwinUNETR:
    torch.manual_seed(1)
    return build_segmenter(Settings())


def save(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """As MONAI's training script saves: with NumPy's numbers beside the weights."""
    torch.save({"epoch": 4999, "best_acc": np.float64(0.72), "state_dict": weights}, path)
    return path


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def test_the_report_is_exact(tmp_path: Path, weights, network):
    before = state(network)
    report = load_btcv(network, save(tmp_path / "tiny.pt", weights))
    after = state(network)
    assert len(report.loaded) == TRANSFORMER + CONVOLUTIONS == 157
    assert report.missing == ("out.conv.conv.weight", "out.conv.conv.bias")
    reason = "of the output head, which has 14 classes"
    assert dict(report.skipped) == dict.fromkeys(report.missing, reason)
    assert sorted(report.repeated) == sorted(INPUT_LAYERS)
    assert all(torch.equal(after[name], before[name]) for name in report.missing)
    for name in set(report.loaded) - set(INPUT_LAYERS):
        assert torch.equal(after[name], weights[name]), name
    assert report.summary() == (
        "BTCV weights: 157 of 159 tensors loaded; 3 of them repeated for every input channel; 2 of the file skipped: "
        f"2 {reason}; 2 keep their random start: out.conv.conv.weight, out.conv.conv.bias"
    )


def test_input_layers_see_every_channel_as_they_saw_the_ct(tmp_path: Path, weights, network):
    """Not divided by the number of channels: an image in the first channel alone gives what the CT gave."""
    load_btcv(network, save(tmp_path / "tiny.pt", weights))
    for name in INPUT_LAYERS:
        layer = network.state_dict()[name]
        assert layer.shape[1] == 2
        assert torch.equal(layer[:, :1], weights[name])
        assert torch.equal(layer[:, 1:], weights[name])
    original = SwinUNETR(in_channels=1, out_channels=14, feature_size=12)
    original.load_state_dict(weights)
    ct = torch.rand(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    original.out = network.out = torch.nn.Identity()
    with torch.inference_mode():
        expected = original.eval()(ct)
        for channel in (0, 1):
            image = torch.zeros(1, 2, 32, 32, 64)
            image[:, channel] = ct[:, 0]
            assert torch.allclose(network.eval()(image), expected, atol=1e-4)


def old_names(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    if kind == "several GPUs":
        return {f"module.{name}": tensor for name, tensor in weights.items()}
    return {
        "module." + name.replace("swinViT.", "swin_vit.").replace("mlp.linear", "mlp.fc"): tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize("kind", ["several GPUs", "before MONAI 1.0"])
def test_names_of_older_files(tmp_path: Path, weights, network, kind: str):
    load_btcv(network, save(tmp_path / "old.pt", old_names(weights, kind)))
    found = state(network)
    load_btcv(network, save(tmp_path / "new.pt", weights))
    assert all(torch.equal(found[name], tensor) for name, tensor in state(network).items())


def test_a_self_supervised_encoder(tmp_path: Path, weights, network):
    """`model_swinvit.pt`: the transformer alone, without its prefix, with the heads of the pretraining."""
    encoder = {
        name.replace("swinViT.", "module.").replace("mlp.linear", "mlp.fc"): tensor
        for name, tensor in weights.items()
        if name.startswith("swinViT.")
    }
    encoder["module.rotation_head.weight"] = torch.zeros(4, 192)
    report = load_btcv(network, save(tmp_path / "ssl.pt", encoder))
    assert len(report.loaded) == TRANSFORMER == 126
    assert all(name.startswith("swinViT.") for name in report.loaded)
    assert len(report.missing) == CONVOLUTIONS + HEAD
    assert report.skipped == (("rotation_head.weight", "not in this network"),)
    assert "33 keep their random start: encoder1.layer.conv1.conv.weight" in report.summary()


def test_other_kinds_of_file(tmp_path: Path, weights, network):
    load_btcv(network, save(tmp_path / "a.pt", weights))
    expected = state(network)
    torch.save(weights, tmp_path / "plain.pth")
    save_file(weights, tmp_path / "tiny.safetensors")
    for name in ("plain.pth", "tiny.safetensors"):
        other = build_segmenter(Settings())
        assert len(load_btcv(other, tmp_path / name).loaded) == 157
        same = [torch.equal(other.state_dict()[key], expected[key]) for key in expected if not key.startswith("out.")]
        assert all(same)


def test_another_depth_is_loaded_as_far_as_it_goes(tmp_path: Path, weights):
    network = build_segmenter(Settings(depths=(2, 2, 1, 2)))
    report = load_btcv(network, save(tmp_path / "a.pt", weights))
    assert len(report.loaded) == 157 - 14
    left_out = [name for name, reason in report.skipped if reason == "not in this network"]
    assert len(left_out) == 14
    assert all(name.startswith("swinViT.layers3.0.blocks.1.") for name in left_out)


def test_another_feature_size_is_an_error(tmp_path: Path, network):
    before = state(network)
    path = save(tmp_path / "small.pt", released(24))
    with pytest.raises(
        AutopetError, match="feature size 24, the network has 12; set feature_size=24, or give the file"
    ):
        load_btcv(network, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(network).items())


def test_what_is_no_swin_unetr_is_an_error(tmp_path: Path, network):
    with pytest.raises(AutopetError, match="no BTCV weights at .*set btcv to nothing"):
        load_btcv(network, tmp_path / "missing.pt")
    with pytest.raises(AutopetError, match=r"weights of another network, .*found conv.weight"):
        load_btcv(network, save(tmp_path / "a.pt", {"conv.weight": torch.zeros(2)}))
    torch.save({"epoch": 3, "note": "no weights"}, tmp_path / "b.pt")
    with pytest.raises(AutopetError, match="expected tensors by name, .*found the keys epoch, note"):
        load_btcv(network, tmp_path / "b.pt")
    (tmp_path / "c.safetensors").write_bytes(b"\x01" * 40)
    with pytest.raises(AutopetError, match="not a whole safetensors file"):
        load_btcv(network, tmp_path / "c.safetensors")


class Harmful:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_in_the_file_is_run(tmp_path: Path, weights, network):
    torch.save({"state_dict": weights, "args": Harmful(tmp_path / "written")}, tmp_path / "a.pt")
    with pytest.raises(AutopetError, match="nothing was loaded"):
        load_btcv(network, tmp_path / "a.pt")
    assert not (tmp_path / "written").exists()
