"""Pretrained weights: what is loaded, what is skipped and why, counted by hand on a network of 33 tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("dynamic_network_architectures")

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from algorithms.lesiontracer.transfer import load_pretrained  # noqa: E402

WIDTHS = (2, 4)
# By hand: stem 4 (conv and norm, weight and bias each); stage 0: two convolutions with norm, 8; stage 1: the same and a
# projection (convolution without bias, norm), 11; decoder: transposed convolution 2, convolution with norm 4.
STEM, ENCODER, DECODER = 4, 8 + 11, 2 + 4
HEADS = ["decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"]
ORGAN_HEADS = ["decoder.organ_seg_layers.0.weight", "decoder.organ_seg_layers.0.bias"]


def unet(channels: int = 2, *, widths: tuple[int, ...] = WIDTHS, seed: int = 0, classes: int = 2, kind=None):
    """nnU-Net's residual encoder U-Net with two stages, and LesionTracer's organ heads."""
    torch.manual_seed(seed)
    stages = len(widths)
    depth = "n_conv_per_stage" if kind is PlainConvUNet else "n_blocks_per_stage"
    network = (kind or ResidualEncoderUNet)(
        input_channels=channels,
        n_stages=stages,
        features_per_stage=widths,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (stages - 1),
        num_classes=classes,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU,
        deep_supervision=True,
        **{depth: 1},
    )
    heads = [torch.nn.Conv3d(width, 11, 1) for width in reversed(widths[:-1])]
    network.decoder.organ_seg_layers = torch.nn.ModuleList(heads)
    for tensor in network.parameters():
        torch.nn.init.normal_(tensor)  # norms and biases start equal everywhere: nothing could be told apart
    return network


def plain_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def released(stems: dict[str, int], *, classes: dict[str, int]) -> dict[str, torch.Tensor]:
    """A state dict in the layout of MultiTalent's multi-stem trainer: stems and heads by the data set's id."""
    weights = {}
    body = plain_state(unet(seed=7))
    for name, tensor in body.items():
        if ".stem." not in name and "seg_layers" not in name:
            weights[name] = tensor
    for number, (id_, channels) in enumerate(stems.items()):
        source = plain_state(unet(channels, seed=100 + number))
        for name, tensor in source.items():
            if ".stem." in name:
                weights[name.replace("encoder.stem.", f"encoder.stem.{id_}.")] = tensor
    for id_, count in classes.items():
        weights[f"decoder.seg_layers.{id_}.0.weight"] = torch.ones(count, 2, 1, 1, 1)
        weights[f"decoder.seg_layers.{id_}.0.bias"] = torch.ones(count)
    return weights


def save(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint like nnU-Net's, NumPy scalars included."""
    extras = {"_best_ema": np.float64(0.5), "logging": {"train_losses": [np.float32(1.0)]}, "current_epoch": 4000}
    torch.save({"network_weights": weights, **extras}, path)
    return path


def test_released_layout_report_is_exact(tmp_path: Path):
    weights = released({"5": 1, "221": 2}, classes={"5": 3, "221": 2})
    network = unet(seed=1)
    before = plain_state(network)
    report = load_pretrained(network, save(tmp_path / "checkpoint_final.pth", weights))
    after = plain_state(network)
    assert len(report.loaded) == STEM + ENCODER + DECODER == 29
    assert Counter(name.split(".")[0] for name in report.loaded) == {"encoder": 23, "decoder": 6}
    assert sorted(report.missing) == sorted(HEADS + ORGAN_HEADS)
    assert report.stem == "221"
    assert report.other_stems == ()
    heads = [f"decoder.seg_layers.{id_}.0.{part}" for id_ in ("5", "221") for part in ("weight", "bias")]
    channels = "of a stem that takes 1 channel, the network's takes 2 channels"
    parts = ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    expected = {name: "a segmentation head" for name in heads}
    expected |= {f"encoder.stem.5.convs.0.{part}": channels for part in parts}
    assert dict(report.skipped) == expected
    assert len(report.skipped) == len(expected) == 8
    for name, tensor in after.items():
        if name in HEADS + ORGAN_HEADS:
            assert torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, weights[name.replace("encoder.stem.", "encoder.stem.221.")])
    assert report.summary() == (
        "pretrained weights: 29 of 33 tensors loaded; stem of 221; 8 of the file skipped: 4 a segmentation head, "
        f"4 {channels}; 4 keep their random start: " + ", ".join(report.missing)
    )


def test_one_tensor_by_several_names_stays_one(tmp_path: Path):
    network = unet(seed=1)
    load_pretrained(network, save(tmp_path / "a.pth", released({"221": 2}, classes={})))
    first = network.encoder.stem.convs[0].conv.weight
    assert network.decoder.encoder.stem.convs[0].all_modules[0].weight is first


@pytest.mark.parametrize("chosen", ["5", "221"])
def test_the_stem_that_is_asked_for(tmp_path: Path, chosen: str):
    weights = released({"5": 2, "221": 2}, classes={})
    network = unet(seed=1)
    report = load_pretrained(network, save(tmp_path / "a.pth", weights), stem=chosen)
    assert (report.stem, report.other_stems) == (chosen, ())
    conv = "encoder.stem.{}.convs.0.conv.weight"
    assert torch.equal(network.encoder.stem.convs[0].conv.weight, weights[conv.format(chosen)])
    other = ({"5", "221"} - {chosen}).pop()
    assert dict(report.skipped)[conv.format(other)] == "of another data set's stem"


def test_the_first_stem_that_fits_and_it_says_so(tmp_path: Path):
    weights = released({"221": 2, "30": 2, "4": 1}, classes={})
    report = load_pretrained(unet(seed=1), save(tmp_path / "a.pth", weights))
    assert (report.stem, report.other_stems) == ("30", ("221",))  # by number, not by text
    assert "stem of 30 (the first that fits; so do 221)" in report.summary()


def test_a_stem_that_is_missing_or_unfit(tmp_path: Path):
    path = save(tmp_path / "a.pth", released({"5": 1, "221": 2}, classes={}))
    with pytest.raises(AutopetError, match="no stem '7'; its stems are 5, 221"):
        load_pretrained(unet(), path, stem="7")
    with pytest.raises(AutopetError, match="stem '5' takes 1 channel, .* those that fit: 221"):
        load_pretrained(unet(), path, stem="5")
    single = save(tmp_path / "b.pth", plain_state(unet(seed=3)))
    with pytest.raises(AutopetError, match="one stem serves all"):
        load_pretrained(unet(), single, stem="221")


def test_a_stem_for_one_channel_is_left_out_whole(tmp_path: Path):
    network = unet(channels=2, seed=1)
    before = plain_state(network)
    report = load_pretrained(network, save(tmp_path / "a.pth", plain_state(unet(channels=1, seed=3))))
    stem = [name for name in report.missing if name.startswith("encoder.stem.")]
    assert len(stem) == STEM
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in stem)
    assert len(report.loaded) == ENCODER + DECODER
    assert "4 of a stem that takes 1 channel, the network's takes 2 channels" in report.summary()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("layout", ["plain.pth", "network_weights.pth", "state_dict.model", "plain.safetensors"])
def test_every_container_and_wrapper(tmp_path: Path, prefix: str, layout: str):
    source = plain_state(unet(seed=3))
    weights = {prefix + name: tensor for name, tensor in source.items()}
    path = tmp_path / layout
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if path.stem == "plain" else {path.stem: weights}, path)
    network = torch.nn.Module()
    network.module = unet(seed=1)  # as DistributedDataParallel keeps it
    report = load_pretrained(network, path)
    assert len(report.loaded) == 29
    assert sorted(name for name, _ in report.skipped) == sorted(HEADS + ORGAN_HEADS)
    assert torch.equal(network.module.encoder.stem.convs[0].conv.weight, source["encoder.stem.convs.0.conv.weight"])


def test_without_the_duplicates_everything_is_there(tmp_path: Path):
    source = plain_state(unet(seed=3))
    once = {name: tensor for name, tensor in source.items() if "decoder.encoder." not in name}
    once = {name: tensor for name, tensor in once.items() if "all_modules" not in name}
    assert len(once) == 33
    network = unet(seed=1)
    report = load_pretrained(network, save(tmp_path / "a.pth", once))
    assert len(report.loaded) == 29
    body = [name for name in source if "seg_layers" not in name]
    assert all(torch.equal(network.state_dict()[name], source[name]) for name in body)


def test_duplicates_that_disagree_are_named(tmp_path: Path):
    weights = plain_state(unet(seed=3))
    weights["decoder.encoder.stages.0.blocks.0.conv1.conv.bias"] += 1
    weights["encoder.stem.convs.0.all_modules.0.bias"] += 1
    network = unet(seed=1)
    report = load_pretrained(network, save(tmp_path / "a.pth", weights))
    unlike = [name for name, reason in report.skipped if reason.startswith("unlike")]
    assert "decoder.encoder.stages.0.blocks.0.conv1.conv.bias" in unlike
    assert "encoder.stem.convs.0.all_modules.0.bias" in unlike
    taken = network.state_dict()["encoder.stages.0.blocks.0.conv1.conv.bias"]
    assert torch.equal(taken, weights["encoder.stages.0.blocks.0.conv1.conv.bias"])


def test_tensors_of_another_shape_or_unknown_are_skipped_with_the_reason(tmp_path: Path):
    weights = plain_state(unet(seed=3))
    for prefix in ("encoder", "decoder.encoder"):
        for part in ("conv", "all_modules.0"):
            weights[f"{prefix}.stages.1.blocks.0.conv2.{part}.weight"] = torch.zeros(5, 4, 3, 3, 3)
    weights["encoder.mystery"] = torch.zeros(3)
    report = load_pretrained(unet(seed=1), save(tmp_path / "a.pth", weights))
    skipped = dict(report.skipped)
    name = "encoder.stages.1.blocks.0.conv2.conv.weight"
    assert skipped[name] == "of shape 5x4x3x3x3 where the network has 4x4x3x3x3"
    assert skipped["encoder.mystery"] == "not in this network"
    assert len(skipped) == 2 + len(HEADS + ORGAN_HEADS)
    assert name in report.missing


@pytest.mark.parametrize("other", [{"kind": PlainConvUNet}, {"widths": (3, 5)}])
def test_another_architecture_is_an_error_and_changes_nothing(tmp_path: Path, other: dict):
    network = unet(seed=1)
    before = plain_state(network)
    with pytest.raises(AutopetError, match="another architecture.* expected e.g. encoder.stages.0.blocks.0.conv1"):
        load_pretrained(network, save(tmp_path / "a.pth", plain_state(unet(seed=3, **other))))
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain_state(network).items())


def test_what_is_not_a_checkpoint(tmp_path: Path):
    for name in ("missing.pth", "missing.safetensors"):
        with pytest.raises(AutopetError, match="no checkpoint at"):
            load_pretrained(unet(), tmp_path / name)
    (tmp_path / "a.safetensors").write_bytes(b"\x10" + bytes(30))
    with pytest.raises(AutopetError, match="not a whole safetensors file"):
        load_pretrained(unet(), tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "name": "x"}, tmp_path / "b.pth")
    with pytest.raises(AutopetError, match="expected tensors by name.* found the keys epoch, name"):
        load_pretrained(unet(), tmp_path / "b.pth")
    with pytest.raises(AutopetError, match=r"expected one file of weights .* found a.safetensors, b.pth"):
        load_pretrained(unet(), tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"network_weights": {"a": Trap()}}, tmp_path / "a.pth")
    with pytest.raises(AutopetError):
        load_pretrained(unet(), tmp_path / "a.pth")
    assert not (tmp_path / "sprung").exists()
