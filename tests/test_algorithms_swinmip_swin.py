"""Swin-T: the same function as torchvision's, weights of torchvision and Hugging Face, what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from algorithms.swinmip.model import PRESETS  # noqa: E402
from algorithms.swinmip.swin import build_classifier, load_imagenet, our_names  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = PRESETS["paper"]
SMALL = replace(PRESETS["demo"], cls_size=(32, 32), cls_embedding=8, cls_depths=(2, 2), cls_heads=(1, 2))
SWIN_T = 28_288_354  # parameters with 1000 classes, as torchvision's documentation states


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """torchvision beside a torch it was not built for: its networks need none of its compiled operators."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchvision
    except Exception as error:  # whatever goes wrong in there, these tests cannot compare
        pytest.skip(f"torchvision cannot be imported: {error}")
    torchvision.keep = library
    return torchvision


@pytest.fixture(scope="module")
def reference(torchvision: Any) -> Any:
    """torchvision's Swin-T with one logit and random weights, position biases and norms included."""
    torch.manual_seed(0)
    network = torchvision.models.swin_t(weights=None, num_classes=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def pair(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """torchvision's network, ours with its weights from a file and its head put in by hand, and the report."""
    path = tmp_path_factory.mktemp("swin") / "swin_t.pth"
    torch.save(reference.state_dict(), path)
    ours = build_classifier(PAPER, "x").eval()
    report = load_imagenet(ours, path)
    ours.head.load_state_dict(reference.head.state_dict())
    return reference, ours, report


def test_paper_preset_is_swin_t():
    ours = build_classifier(PAPER, "y")
    assert sum(parameter.numel() for parameter in ours.parameters()) == SWIN_T - 999 * (768 + 1)
    blocks = [block for stage in ours.stages for block in stage.blocks]
    assert [len(stage.blocks) for stage in ours.stages] == [2, 2, 6, 2]
    assert [stage.blocks[0].num_heads for stage in ours.stages] == [3, 6, 12, 24]
    assert {block.window_size for block in blocks} == {(7, 7)}
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx(
        [0.2 * index / 11 for index in range(12)]
    )


@pytest.mark.parametrize("size", [(224, 224), (224, 352), (232, 300)])
def test_torchvision_s_weights_give_torchvision_s_logits(pair: tuple[Any, Any, Any], size: tuple[int, int]):
    """Also where grids are no multiples of the window, as those of 224 x 352: 56 x 88, 28 x 44, 14 x 22, 7 x 11."""
    reference, ours, _ = pair
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(images)[:, 0]
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01  # the two images are told apart


def test_what_became_of_torchvision_s_tensors_is_reported(pair: tuple[Any, Any, Any]):
    report = pair[2]
    assert report.missing == ("head.weight", "head.bias")
    reasons = [reason for _, reason in report.skipped]
    assert reasons.count("of the head for other classes") == 2
    assert reasons.count("computed from the window") == 12  # blocks
    assert len(reasons) == 14
    # 4 of the embedding, 3 x 3 of the mergings, 2 of the last norm; 13 per block: four linear layers and two norms with
    # bias, a table
    assert len(report.loaded) == 4 + 9 + 2 + 12 * 13
    assert report.summary().startswith("ImageNet weights: 171 of 173 tensors loaded; 14 of the file skipped: ")


def hugging_face_names(weights: Mapping[str, Any], *, old: bool) -> dict[str, Any]:
    """A state dict of ours as transformers names its tensors, in files of the hub (old) or since its version 5."""
    pairs = {
        "embedding.proj.": "embeddings.patch_embeddings.projection.",
        "embedding.norm.": "embeddings.norm.",
        "stages.": "encoder.layers.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if old else "attention.o_proj",
        "attn.relative": f"attention.{'self' if old else 'relative_position_bias'}.relative",
        "mlp.linear1": "intermediate.dense" if old else "mlp.fc1",
        "mlp.linear2": "output.dense" if old else "mlp.fc2",
    }
    parts = ("self.query", "self.key", "self.value") if old else ("q_proj", "k_proj", "v_proj")
    renamed = {}
    for name, tensor in weights.items():
        theirs = f"swin.{name}" if not name.startswith("norm.") else f"swin.layernorm.{name[5:]}"
        for ours, new in pairs.items():
            theirs = theirs.replace(ours, new)
        if "attn.qkv" in name:
            thirds = zip(parts, tensor.chunk(3), strict=True)
            renamed |= {theirs.replace("attn.qkv", f"attention.{part}"): third for part, third in thirds}
        else:
            renamed[theirs] = tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


@pytest.mark.parametrize("kind", ["old", "new", "body alone"])
def test_hugging_face_s_weights_are_found_under_all_their_names(kind: str, tmp_path: Path):
    torch.manual_seed(1)
    source = dict(build_classifier(SMALL, "x").named_parameters())
    body = {name: tensor.detach() for name, tensor in source.items() if not name.startswith("head.")}
    weights = hugging_face_names(body, old=kind != "new")
    if kind == "body alone":
        weights = {name.removeprefix("swin."): tensor for name, tensor in weights.items()}
    else:
        weights |= {"classifier.weight": torch.zeros(10, 16), "classifier.bias": torch.zeros(10)}
        weights["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(16, 16)
    if kind == "old":  # names of microsoft/swin-tiny-patch4-window7-224
        block = "swin.encoder.layers.1.blocks.0"
        assert {f"{block}.attention.self.query.weight", f"{block}.output.dense.bias"} <= set(weights)
        assert {"swin.embeddings.patch_embeddings.projection.bias", "swin.layernorm.weight"} <= set(weights)
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    ours = build_classifier(SMALL, "x")
    before = ours.head.weight.clone()
    report = load_imagenet(ours, path)
    assert report.missing == ("head.weight", "head.bias")
    assert torch.equal(ours.head.weight, before)
    found = dict(ours.named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in body.items())
    assert len(report.loaded) == len(body)
    assert len(report.skipped) == (0 if kind == "body alone" else 3)


def test_query_key_and_value_are_joined_in_their_order():
    name = "swin.encoder.layers.1.blocks.1.attention.self.{}.bias"
    weights = {
        name.format(part): torch.tensor([value]) for part, value in (("value", 3.0), ("query", 1.0), ("key", 2.0))
    }
    renamed, skipped = our_names(weights)
    assert not skipped
    assert {key: tensor.tolist() for key, tensor in renamed.items()} == {
        "stages.1.blocks.1.attn.qkv.bias": [1.0, 2.0, 3.0]
    }


def test_what_does_not_fit_is_said(tmp_path: Path):
    ours = build_classifier(SMALL, "x")
    with pytest.raises(AutopetError, match="no ImageNet weights at"):
        load_imagenet(ours, tmp_path / "missing.pth")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(AutopetError, match="none of its 1 tensors fits the classifier's"):
        load_imagenet(ours, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(AutopetError, match="not a whole safetensors file"):
        load_imagenet(ours, tmp_path / "broken.safetensors")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(AutopetError, match="expected tensors by name, .*found the keys epoch.*set imagenet to nothing"):
        load_imagenet(ours, tmp_path / "numbers.pth")
    other = build_classifier(replace(SMALL, cls_window=3), "x")  # 5 x 5 relative positions in place of 7 x 7
    save_file(hugging_face_names(dict(other.state_dict()), old=True), tmp_path / "window.safetensors")
    report = load_imagenet(ours, tmp_path / "window.safetensors")
    unfit = [reason for _, reason in report.skipped if reason.startswith("of shape")]
    assert unfit == [f"of shape 25x{heads} where the network has 49x{heads}" for heads in (1, 1, 2, 2)]
    assert sum(name.endswith("relative_position_bias_table") for name in report.missing) == 4


@pytest.mark.parametrize("deviation", [0.02, 0.0])
def test_linear_layers_start_as_the_settings_say(deviation: float):
    torch.manual_seed(0)
    classifier = build_classifier(replace(PRESETS["demo"], cls_start_deviation=deviation), "x")
    linear = [module for module in classifier.modules() if isinstance(module, nn.Linear) and module.out_features > 1]
    assert {module.in_features for module in linear} > {24, 48, 96}
    for module in linear:
        expected = deviation or 1 / module.in_features**0.5
        assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1)  # of at least 1728 numbers


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_blocks_are_left_out_as_the_settings_say(share: float):
    classifier = build_classifier(replace(PRESETS["demo"], cls_drop_path=share), "x").train()
    images = torch.randn(8, 3, 64, 96)
    torch.manual_seed(1)
    with torch.inference_mode():
        answers = torch.stack([classifier(images) for _ in range(3)])
    assert bool((answers == answers[0]).all()) == (share == 0)


def test_settings_that_do_not_fit_each_other_are_refused():
    with pytest.raises(AutopetError, match=r"leaves the last of 4 stages 4 x 7 places, fewer than cls_window=7"):
        build_classifier(replace(PAPER, cls_size=(128, 224)), "x")
    with pytest.raises(AutopetError, match="one number per stage"):
        build_classifier(replace(PAPER, cls_heads=(3, 6)), "x")
    with pytest.raises(AutopetError, match=r"must divide the channels of their stages, \(96, 192, 384, 768\)"):
        build_classifier(replace(PAPER, cls_heads=(5, 6, 12, 24)), "x")
