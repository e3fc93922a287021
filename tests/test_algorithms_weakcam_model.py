"""The classifier of slices: its maps' sizes, its linear layer, ImageNet weights by torchvision's names, its folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autopet.checkpoint import publish_model, save_weights
from autopet.errors import AutopetError

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from algorithms.weakcam.imagenet import load_imagenet  # noqa: E402
from algorithms.weakcam.model import (  # noqa: E402
    CHANNELS,
    GREY_DEVIATION,
    GREY_MEAN,
    PRESETS,
    WEIGHTS,
    Classifier,
    Settings,
    build_network,
    load_network,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = PRESETS["paper"]
NARROW = replace(PAPER, widths=(4, 5, 6, 7, 8), size=32)
VGG16_FEATURES = 14_714_688  # parameters of torchvision's vgg16().features, as its documentation states with the head
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's vgg16().features
NUMBERS_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)  # in vgg16_bn().features; the norms follow each


def torchvision_like(widths: tuple[int, ...], *, norm: bool = False) -> nn.Sequential:
    """VGG16's `features` as torchvision numbers them, with random weights; poolings included."""
    layers: list[nn.Module] = []
    before = 3
    for width, convolutions in zip(widths, (2, 2, 3, 3, 3), strict=True):
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, width, 3, padding=1), *[nn.BatchNorm2d(width)] * norm, nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    network = nn.Sequential(*layers).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                spread = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + spread.abs() if name.endswith("running_var") else 0.2 * spread)
            if tensor.ndim == 4:
                tensor.mul_(5 * (2 / tensor[0].numel()) ** 0.5)  # so that what comes out is as large as what goes in
    return network


def without_first_and_fifth_pooling(features: nn.Sequential) -> nn.Sequential:
    """The paper's change, done the way that keeps torchvision's numbers."""
    pools = [place for place, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    assert len(pools) == 5
    return nn.Sequential(*(layer for place, layer in enumerate(features) if place not in (pools[0], pools[4])))


def as_file(features: nn.Sequential, path: Path, *, prefix: str = "features.") -> Path:
    weights = {prefix + name: tensor.clone() for name, tensor in features.state_dict().items()}
    save_file(weights | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


# Sizes


def test_last_map_is_32_x_32_at_256_x_256():
    """Of the paper's own network, on torch's device without memory."""
    with torch.device("meta"):
        network = build_network(PAPER)
        assert network.features(torch.empty(3, 2, 256, 256)).shape == (3, 512, 32, 32)
        assert network(torch.empty(3, 2, 256, 256)).shape == (3, 2)
    assert PAPER.map_size == 32
    features = sum(parameter.numel() for parameter in network.blocks.parameters())
    assert features == VGG16_FEATURES - 64 * 9  # one input channel less than torchvision's


@pytest.mark.parametrize(
    ("pooled", "edge"),
    [((1, 2, 3, 4, 5), 8), ((2, 3, 4, 5), 16), ((2, 3, 4), 32)],
    ids=["VGG16", "without the first", "without the first and the fifth"],
)
def test_poolings_decide_the_size(pooled: tuple[int, ...], edge: int):
    settings = replace(PAPER, widths=(2, 2, 2, 2, 3), pooled_blocks=pooled)
    assert build_network(settings).features(torch.zeros(1, 2, 256, 256)).shape == (1, 3, edge, edge)
    assert settings.map_size == edge


def test_blocks_give_what_is_there_before_the_next_pooling():
    x = torch.rand(1, 2, 64, 64)
    edges = []
    for block in build_network(replace(PAPER, widths=(2, 3, 4, 5, 6))).blocks:
        x = block(x)
        edges.append(tuple(x.shape[1:]))
    assert edges == [(2, 64, 64), (3, 64, 64), (4, 32, 32), (5, 16, 16), (6, 8, 8)]


def test_demo_is_narrower_and_sees_128_pixels():
    demo = PRESETS["demo"]
    assert (demo.size, demo.map_size) == (128, 16)
    assert all(ours < theirs for ours, theirs in zip(demo.widths, PAPER.widths, strict=True))
    assert build_network(demo)(torch.zeros(2, 2, 128, 128)).shape == (2, 2)


def test_published_numbers():
    assert (PAPER.momentum, PAPER.learning_rate, PAPER.batch, PAPER.epochs) == (0.9, 0.001, 64, 50)
    assert (PAPER.size, PAPER.pixel_mm) == (256, 2.0)


# The linear layer


def test_rows_of_the_linear_layer_stay_opposite_in_training():
    """So the lesion's row is half of what the softmax sees: no random start stays hidden in their sum."""
    torch.manual_seed(0)
    network = build_network(NARROW)
    start = network.head.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 7.7]))
    for _ in range(10):
        optimizer.zero_grad()
        loss(network(torch.rand(6, 2, 32, 32)), torch.tensor([0, 1, 0, 0, 1, 0])).backward()
        optimizer.step()
    rows = network.head.weight.detach()
    assert (rows - start).abs().max() > 0.01  # it has learned
    torch.testing.assert_close(rows[0], -rows[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(network.head.bias[0], -network.head.bias[1], rtol=0, atol=1e-6)


# ImageNet weights


@pytest.mark.parametrize("prefix", ["features.", ""], ids=["whole", "features alone"])
@pytest.mark.parametrize("norm", [False, True], ids=["vgg16", "vgg16_bn"])
def test_torchvision_s_weights_give_torchvision_s_maps(tmp_path: Path, norm: bool, prefix: str):
    """Also of the first layer: the same picture in our two channels, in their three."""
    theirs = torchvision_like(NARROW.widths, norm=norm)
    numbers = NUMBERS_BN if norm else NUMBERS
    assert [place for place, layer in enumerate(theirs) if isinstance(layer, nn.Conv2d)] == list(numbers)
    ours = build_network(replace(NARROW, batch_norm=norm)).eval()
    report = load_imagenet(ours, as_file(theirs, tmp_path / "vgg.safetensors", prefix=prefix))
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = without_first_and_fifth_pooling(theirs)((grey.expand(-1, 3, -1, -1) - GREY_MEAN) / GREY_DEVIATION)
        found = ours.features(grey.expand(-1, 2, -1, -1))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert report.missing == ("head.weight", "head.bias")
    assert report.skipped == (("classifier.6.bias", "outside the convolutions"),)
    assert "the first layer's 3 input channels became 2, each their sum / 2" in report.summary()


def test_half_precision_becomes_single(tmp_path: Path):
    theirs = torchvision_like(NARROW.widths).half()
    ours = build_network(NARROW)
    load_imagenet(ours, as_file(theirs, tmp_path / "vgg.safetensors"))
    assert ours.blocks[4].conv3.weight.dtype == torch.float32
    assert torch.equal(ours.blocks[4].conv3.weight, theirs[NUMBERS[-1]].weight.float())
    expected = theirs[0].weight.float().sum(1) / 2
    for channel in range(2):
        assert torch.equal(ours.blocks[0].conv1.weight[:, channel], expected)


def test_the_real_weights_of_vgg16(real_data: Path):
    path = real_data.parent / "weights/vgg16_imagenet_features_fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the real data")
    network = build_network(PAPER)
    report = load_imagenet(network, path)
    assert (len(report.loaded), report.skipped) == (26, ())
    weights = load_file(path)
    for number, place in ((2, (0, 2)), (14, (2, 3)), (28, (4, 3))):
        convolution = getattr(network.blocks[place[0]], f"conv{place[1]}")
        assert torch.equal(convolution.weight, weights[f"features.{number}.weight"].float())
        assert torch.equal(convolution.bias, weights[f"features.{number}.bias"].float())


def test_weights_of_another_network_are_refused(tmp_path: Path):
    network = build_network(NARROW)
    with pytest.raises(AutopetError, match="no ImageNet weights at"):
        load_imagenet(network, tmp_path / "missing.pth")
    shallow = torchvision_like(NARROW.widths)[:24]  # four blocks
    with pytest.raises(AutopetError, match="expected a VGG16 with 13 convolutions .* found 10"):
        load_imagenet(network, as_file(shallow, tmp_path / "shallow.safetensors"))
    normed = as_file(torchvision_like(NARROW.widths, norm=True), tmp_path / "normed.safetensors")
    with pytest.raises(AutopetError, match="with batch norms, which the classifier lacks; set batch_norm=true"):
        load_imagenet(network, normed)
    wide = as_file(torchvision_like((8, 9, 10, 11, 12)), tmp_path / "wide.safetensors")
    with pytest.raises(
        AutopetError, match="none of its 26 tensors fits .*of shape 8x2x3x3 where the network has 4x2x3x3"
    ):
        load_imagenet(network, wide)


def test_what_does_not_fit_is_said(tmp_path: Path):
    """A last block of another width: its three convolutions stay out, and say so."""
    path = as_file(torchvision_like((4, 5, 6, 7, 9)), tmp_path / "other.safetensors")
    network = build_network(NARROW)
    before = network.blocks[4].conv1.weight.detach().clone()
    report = load_imagenet(network, path)
    assert len(report.loaded) == 20
    assert report.missing[:2] == ("blocks.4.conv1.weight", "blocks.4.conv1.bias")
    assert dict(report.skipped)["blocks.4.conv2.weight"] == "of shape 9x9x3x3 where the network has 8x8x3x3"
    assert torch.equal(network.blocks[4].conv1.weight, before)


# Settings and the model folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cam": "eigencam"}, "cam 'eigencam' is unknown; use one of cam, gradcam"),
        ({"reading": "mean"}, "reading 'mean' is unknown"),
        ({"score_cam_weights": "maps"}, "use one of scores, probabilities, features"),
        ({"size": 100}, "size must divide by 8 with 3 max-poolings, found 100"),
        ({"widths": (8, 8)}, "one positive number per block"),
        ({"pooled_blocks": (2, 6)}, r"pooled_blocks may name the blocks 1 to 5, each once, found \(2, 6\)"),
        ({"cam_block": 6}, r"cam_block may name the blocks 1 to 5"),
        ({"ct_range_hu": (300.0, -200.0)}, "ct_range_hu needs a low and a higher number"),
        ({"class_threshold": 1.5}, "class_threshold is a probability"),
        ({"validation_share": 1.0}, "validation_share must be at least 0 and below 1"),
        ({"score_cam_top_channels": -1}, "score_cam_top_channels must be at least 0"),
        ({"cam_batch": 0}, "cam_batch must be at least 1"),
        ({"score_cam_top_channels": 2.5}, "score_cam_top_channels must be a whole number, found 2.5"),
        ({"cam_block": 2.0}, "cam_block must be a whole number, found 2.0"),
        ({"epochs": True}, "epochs must be a whole number, found True"),
        ({"scale_share": 1.0}, "scale_share must be at least 0 and below 1"),
        ({"pixel_mm": 0.0}, "pixel_mm above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, words: str):
    with pytest.raises(AutopetError, match=words):
        replace(PAPER, **changes)


def test_ranges_are_in_the_order_of_the_channels():
    assert dict(zip(CHANNELS, PAPER.ranges, strict=True)) == {"CT": (-200.0, 300.0), "PET": (0.0, 15.0)}


def publish(folder: Path, network: Classifier, settings: Settings, **more: object) -> Path:
    def fill(partial: Path) -> dict:
        save_weights(partial / WEIGHTS, network.state_dict())
        return {"method": "weakcam", "settings": asdict(settings), "channels": list(CHANNELS)} | more

    return publish_model(folder, fill)


def test_model_folder_gives_the_same_network_back(tmp_path: Path):
    settings = replace(NARROW, batch_norm=True, seed=7)
    network = build_network(settings)
    network(torch.rand(4, 2, 32, 32))  # moves the norms' running statistics
    found, read, config = load_network(publish(tmp_path / "model", network, settings, cam="scorecam"))
    x = torch.rand(3, 2, 32, 32)
    assert not found.training
    assert torch.equal(found(x), network.eval()(x))
    assert read == settings
    assert config["cam"] == "scorecam"


def test_model_folders_that_are_not_whole_are_refused(tmp_path: Path):
    network = build_network(NARROW)
    with pytest.raises(AutopetError, match="no weights for weakcam"):
        load_network(tmp_path)
    other = publish(tmp_path / "other", network, replace(NARROW, widths=(4, 5, 6, 7, 9)))
    with pytest.raises(AutopetError, match=f"{WEIGHTS} does not hold the weights of the network"):
        load_network(other)
    folder = publish_model(tmp_path / "bare", lambda _: {"method": "weakcam", "settings": {}})
    with pytest.raises(AutopetError, match=r"config.json lacks channels"):
        load_network(folder)
