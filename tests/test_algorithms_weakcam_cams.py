"""Class activation maps against their equations, written out; hooks; the benchmark of Score-CAM."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from algorithms.weakcam.cams import (  # noqa: E402
    METHODS,
    cam,
    class_maps,
    combine,
    grad_cam,
    grad_cam_plus_plus,
    maps_and_gradients,
    min_max,
    plus_plus_weights,
    score_cam,
    varied_channels,
    watched,
    window_passes,
)
from algorithms.weakcam.model import CAM_METHODS, LESION, PRESETS, Classifier, build_network  # noqa: E402
from algorithms.weakcam.windows import EmptySlice, possible  # noqa: E402
from autopet.errors import AutopetError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = replace(PRESETS["demo"], size=32, widths=(4, 4, 6, 6, 7), convolutions=(1, 1, 2, 2, 2), cam_batch=3)
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "scorecam.py"
KINDS = ("scores", "probabilities", "features")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Tiny(nn.Module):
    """Two blocks, the second at half the size, average pooling and a linear layer; in one, two or three dimensions."""

    def __init__(self, *, dims: int = 2, channels: int = 5) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.blocks = nn.Sequential(
            nn.Sequential(convolution(2, 4, 3, padding=1), nn.ReLU()),
            nn.Sequential(convolution(4, channels, 3, padding=1, stride=2), nn.ReLU()),
        )
        self.head = nn.Linear(channels, 2)
        self.seen = 0  # images so far

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.head(self.blocks(x).flatten(2).mean(2))


def tiny(**kind: int) -> Tiny:
    """With a linear layer that tells masked slices apart."""
    torch.manual_seed(1)
    network = Tiny(**kind)
    with torch.no_grad():
        network.head.weight.mul_(50)
    return network


def small(**changes: object) -> Classifier:
    """A narrow `Classifier` whose norms and linear layer are not what they start as."""
    torch.manual_seed(2)
    network = build_network(replace(SMALL, **changes))
    with torch.no_grad():
        network.head.weight.copy_(torch.randn_like(network.head.weight))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                module.bias.normal_(std=0.3)
    return network.eval()


def slices(count: int = 4, edge: int = 32) -> torch.Tensor:
    """Noise in a body that does not fill the slice."""
    x = torch.rand(count, 2, edge, edge, generator=torch.Generator().manual_seed(4))
    x[:, :, : edge // 4] = 0
    x[:, :, :, edge - edge // 8 :] = 0
    return x


def last_maps(network: nn.Module, x: torch.Tensor, block: int = -1) -> np.ndarray:
    """Without any of the code that is tested."""
    with torch.no_grad():
        if isinstance(network, Classifier):
            x = (x - network.mean) / network.deviation
        for one in network.blocks[: len(network.blocks) + 1 + block]:
            x = one(x)
    return x.numpy()


def zero_to_one(maps: np.ndarray) -> np.ndarray:
    return np.stack([(each - each.min()) / (each.max() - each.min()) for each in maps])


# CAM


@pytest.mark.parametrize("make", [tiny, small])
def test_cam_is_the_dot_product_with_the_linear_layer(make):
    network, x = make(), slices()
    maps, row = last_maps(network, x), network.head.weight.detach().numpy()[LESION]
    expected = np.zeros((4, *maps.shape[2:]))
    for index in np.ndindex(expected.shape):
        place = (index[0], slice(None), *index[1:])
        expected[index] = max(float(np.dot(row, maps[place])), 0.0)
    np.testing.assert_allclose(cam(network, x, SMALL).numpy(), expected, atol=1e-5)
    found = class_maps(network, x, method="cam", settings=SMALL)
    np.testing.assert_allclose(found, zero_to_one(expected), atol=1e-5)
    assert (found.shape, found.dtype) == (maps[:, 0].shape, np.float32)
    assert (expected > 0).mean() > 0.1  # there is something to see, and something that the ReLU takes away
    assert (expected == 0).mean() > 0.02


def test_mean_of_the_dot_product_is_the_lesion_s_logit():
    """So the map says which places the classifier's answer comes from."""
    network, x = small(), slices()
    maps = torch.from_numpy(last_maps(network, x))
    products = torch.einsum("nkyx,k->nyx", maps, network.head.weight[LESION]) + network.head.bias[LESION]
    with torch.no_grad():
        torch.testing.assert_close(products.mean((1, 2)), network(x)[:, LESION], rtol=1e-4, atol=1e-5)


def test_map_of_the_paper_s_network_is_32_x_32():
    settings = replace(PRESETS["paper"], widths=(2, 2, 2, 2, 4))
    assert class_maps(build_network(settings), slices(1, 256), method="cam", settings=settings).shape == (1, 32, 32)


# Grad-CAM


@pytest.mark.parametrize("make", [tiny, small])
def test_grad_cam_is_cam_up_to_the_number_of_places(make):
    """The theorem: with average pooling and one linear layer, dS/dA^k is w_k / N at every place."""
    network, x = make(), slices()
    expected = cam(network, x, SMALL)
    places = expected[0].numel()
    torch.testing.assert_close(places * grad_cam(network, x, SMALL), expected, rtol=1e-5, atol=1e-6)
    first = class_maps(network, x, method="gradcam", settings=SMALL)
    np.testing.assert_allclose(first, class_maps(network, x, method="cam", settings=SMALL), atol=1e-5)
    _, gradients = maps_and_gradients(network, x, SMALL)
    assert gradients.amax() > 0 > gradients.amin()  # of both signs: the ReLU is not idle


def test_grad_cam_of_an_earlier_block_is_another_map():
    """dS/dA of the block before the last, by differences, place by place."""
    network, x = tiny().double(), slices(1, 8).double()
    settings = replace(SMALL, cam_block=1)
    maps, gradients = maps_and_gradients(network, x, settings)
    expected = np.zeros(maps.shape)
    for index in np.ndindex(maps.shape):
        step = torch.zeros_like(maps)
        step[index] = 1e-6
        with torch.no_grad():
            up, down = (network.head(network.blocks[1](maps + sign * step).mean((2, 3))) for sign in (1, -1))
        expected[index] = float(up[0, LESION] - down[0, LESION]) / 2e-6
    np.testing.assert_allclose(gradients.numpy(), expected, atol=1e-8)
    weights = expected.mean((2, 3))
    products = np.einsum("nkyx,nk->nyx", maps.numpy(), weights).clip(0)
    np.testing.assert_allclose(grad_cam(network, x, settings).numpy(), products, atol=1e-8)
    assert products.shape == (1, 8, 8)  # twice the last map's edge
    assert products.max() > 0


# Grad-CAM++


def plus_plus_by_autograd(network: Tiny, maps: torch.Tensor) -> tuple[np.ndarray, float]:
    """Equation 5 of the paper for one slice, its derivatives taken one element after the other; and exp(S)."""
    own = maps.clone().requires_grad_()
    score = network.head(network.blocks[1](own).mean((2, 3)))[0, LESION]
    answer = score.exp()
    (first,) = torch.autograd.grad(answer, own, create_graph=True)
    weights = np.zeros(maps.shape[1])
    for index in np.ndindex(maps.shape):
        (second,) = torch.autograd.grad(first[index], own, create_graph=True)
        (third,) = torch.autograd.grad(second[index], own, retain_graph=True)
        d1, d2, d3 = (float(each.detach()[index]) for each in (first, second, third))
        below = 2 * d2 + float(maps[0, index[1]].sum()) * d3
        weights[index[1]] += (d2 / below if below else 0.0) * max(d1, 0.0)
    return weights, float(answer.detach())


def test_grad_cam_plus_plus_is_its_equation_with_second_and_third_derivatives():
    """On a network that goes on behind the maps, so that gradients differ from place to place."""
    network, x = tiny().double(), slices(1, 6).double()
    settings = replace(SMALL, cam_block=1)
    maps, gradients = maps_and_gradients(network, x, settings)
    expected, factor = plus_plus_by_autograd(network, maps)
    found = plus_plus_weights(maps, gradients)[0].numpy()
    np.testing.assert_allclose(factor * found, expected, rtol=1e-9)
    assert (expected > 0).sum() >= 2
    assert gradients.flatten(2).std(2).amin() > 0
    products = np.einsum("kyx,k->yx", maps[0].numpy(), expected).clip(0)
    network.float()
    last = class_maps(network, x, method="gradcam++", settings=settings)[0]
    np.testing.assert_allclose(last, zero_to_one(products[None])[0], atol=1e-5)


@pytest.mark.parametrize("make", [tiny, small])
def test_grad_cam_plus_plus_behind_the_last_block_by_hand(make):
    """v_k = relu(w_k) / (2 + w_k mean(A^k)): gradients are w_k / N everywhere, so alpha is 1 / (2 + w_k mean(A^k))."""
    network, x = make(), slices()
    maps, row = last_maps(network, x), network.head.weight.detach().numpy()[LESION]
    weights = row.clip(0) / (2 + row.clip(0) * maps.mean((2, 3)))
    expected = np.einsum("nkyx,nk->nyx", maps, weights)
    np.testing.assert_allclose(grad_cam_plus_plus(network, x, SMALL).numpy(), expected, rtol=1e-4, atol=1e-5)


# Score-CAM


def bilinear(image: np.ndarray, edge: int) -> np.ndarray:
    """Linear interpolation in both directions, pixels at their centres, the outermost held beyond them."""
    rows = [(place + 0.5) * len(image) / edge - 0.5 for place in range(edge)]
    along = np.stack([[np.interp(at, range(len(image)), column) for column in image.T] for at in rows])
    return np.stack([[np.interp(at, range(image.shape[1]), row) for at in rows] for row in along])


def score_cam_weights(network: nn.Module, image: torch.Tensor, kind: str, block: int = -1) -> np.ndarray:
    """One mask after the other, as the sources describe it."""
    maps = last_maps(network, image[None], block)[0]
    values = np.full(len(maps), -np.inf)
    for channel, own in enumerate(maps):
        grown = bilinear(own.astype(float), image.shape[1])
        if own.max() == own.min():
            continue
        mask = torch.from_numpy((grown - grown.min()) / (grown.max() - grown.min())).float()
        with torch.no_grad():
            logits = network((image * mask)[None])[0].numpy().astype(float)
        values[channel] = {
            "scores": logits[LESION],
            "probabilities": math.exp(logits[LESION]) / sum(math.exp(logit) for logit in logits),
            "features": (own - last_maps(network, (image * mask)[None], block)[0, channel]).mean(),
        }[kind]
    if kind == "probabilities":
        return np.where(np.isfinite(values), values, 0.0)
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def score_cam_masks(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """From 0 to 1, one per channel that is not constant, (n, 1, y, x)."""
    grown = [bilinear(own.astype(float), image.shape[1]) for own in last_maps(network, image[None])[0] if own.std() > 0]
    return torch.from_numpy(zero_to_one(np.stack(grown)))[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [-1, -2], ids=["last block", "the block before"])
@pytest.mark.parametrize(
    ("make", "pays"), [(tiny, None), (small, True), (small, False)], ids=["any network", "tiles", "whole slices"]
)
def test_score_cam_by_brute_force(make, pays: bool | None, block: int, kind: str, monkeypatch: pytest.MonkeyPatch):
    if pays is not None:
        monkeypatch.setattr(EmptySlice, "_pays", lambda *_: pays)
    network, x = make(), slices(2)
    assert possible(network, x.shape[1:]) == (make is small)
    settings = replace(SMALL, score_cam_weights=kind, cam_block=0 if block == -1 else len(network.blocks) - 1)
    expected = []
    for image in x:
        weights = score_cam_weights(network, image, kind, block)
        assert weights.std() > 1e-3
        expected.append(np.einsum("kyx,k->yx", last_maps(network, image[None], block)[0], weights))
    found = score_cam(network, x, settings).numpy()
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)
    last = class_maps(network, x, method="scorecam", settings=settings)
    np.testing.assert_allclose(last, zero_to_one(np.stack(expected)), atol=1e-4)


def test_increase_over_the_empty_slice_has_the_same_softmax():
    """Which is why the score of the empty slice (Score-CAM's baseline) need not be known."""
    scores = torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close((scores - 0.7).softmax(0), scores.softmax(0))


def silence(network: nn.Module, *channels: int) -> None:
    """Make channels of the last block constant."""
    convolution = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        for channel in channels:
            convolution.weight[channel] = 0
            convolution.bias[channel] = 1.0 if channel % 2 else -1.0  # after the ReLU 1, or 0


def test_constant_channels_are_not_tried():
    network, x = tiny(), slices(2)
    silence(network, 0, 3)
    network.seen = 0
    found = score_cam(network, x, SMALL)
    assert network.seen == 2 + 2 * 3  # two slices, and three of five masks each
    expected = [
        np.einsum("kyx,k->yx", last_maps(network, image[None])[0], score_cam_weights(network, image, "scores"))
        for image in x
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shown", "sizes"), [(32, [3] * 6 + [2]), (16, [3] * 6 + [2]), (11, [6, 6, 6, 2]), (1, [12, 8])]
)
def test_batches_are_larger_where_masks_hide_much(shown: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch):
    """Twenty masks, three slices' worth at a time: twice as many where an eighth is seen, four times at most."""
    network, tried = small(), []
    means = EmptySlice.means

    def spy(self: EmptySlice, x: torch.Tensor, **more: object) -> list[torch.Tensor]:
        tried.append(len(x))
        return means(self, x, **more)

    monkeypatch.setattr(EmptySlice, "means", spy)
    masks = torch.zeros(20, 1, 32, 32)
    masks[..., :shown, :shown] = 1
    image = torch.ones(2, 32, 32)
    with torch.inference_mode():
        passes = list(window_passes(EmptySlice(network, image.shape), image, masks, settings=SMALL))
    assert tried == sizes
    assert torch.cat([part for part, _, _ in passes]).tolist() == list(range(20))


def test_slices_whose_maps_do_not_divide_into_tiles():
    network, odd = small(), slices(1, 36)
    assert not possible(network, odd.shape[1:])
    expected = np.einsum("kyx,k->yx", last_maps(network, odd)[0], score_cam_weights(network, odd[0], "scores"))
    np.testing.assert_allclose(score_cam(network, odd, SMALL)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_top_channels_are_those_of_the_largest_variance():
    maps = torch.stack([torch.full((2, 2), 5.0), *(torch.tensor([[0.0, 0], [0, top]]) for top in (3.0, 1, 4, 2))])
    assert varied_channels(maps).tolist() == [1, 2, 3, 4]
    assert varied_channels(maps, 2).tolist() == [1, 3]
    assert varied_channels(maps, 9).tolist() == [1, 2, 3, 4]
    network, x = tiny(), slices(1)
    network.seen = 0
    found = score_cam(network, x, replace(SMALL, score_cam_top_channels=2))
    assert network.seen == 1 + 2
    own = last_maps(network, x)[0]
    best = np.argsort(own.var(axis=(1, 2)))[-2:]
    weights = score_cam_weights(network, x[0], "scores")[best]  # of all five; among two they add up to 1
    expected = np.einsum("kyx,k->yx", own[best], weights / weights.sum())
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize("make", [tiny, small])
def test_batches_do_not_change_a_map(make, method: str):
    network, x = make(), slices(5)
    alone = [class_maps(network, x[[place]], method=method, settings=replace(SMALL, cam_batch=1)) for place in range(5)]
    for batch in (2, 64):
        found = class_maps(network, x.numpy(), method=method, settings=replace(SMALL, cam_batch=batch))
        np.testing.assert_allclose(found, np.concatenate(alone), atol=2e-5)


# Maps from 0 to 1


@pytest.mark.parametrize("method", CAM_METHODS)
def test_constant_maps_are_zero(method: str):
    """An empty slice with a network that answers the same everywhere, and one that nothing speaks for a lesion in."""
    silent = tiny()
    silence(silent, *range(5))
    found = class_maps(silent, slices(2), method=method, settings=SMALL)
    assert found.shape == (2, 16, 16)
    assert not found.any()
    against = tiny()
    with torch.no_grad():
        against.head.weight[LESION] = -against.head.weight[LESION].abs()
    found = class_maps(against, slices(2), method=method, settings=SMALL)
    assert np.isfinite(found).all()
    if method != "scorecam":  # its weights are never negative
        assert not found.any()


@pytest.mark.parametrize("method", CAM_METHODS)
def test_maps_go_from_0_to_1_in_every_slice(method: str):
    found = class_maps(small(), slices(), method=method, settings=SMALL)
    assert found.min(axis=(1, 2)).tolist() == [0.0] * 4
    assert found.max(axis=(1, 2)).tolist() == [1.0] * 4


def test_min_max_by_hand():
    maps = torch.tensor([[[2.0, 4.0], [3.0, 2.0]], [[7.0, 7.0], [7.0, 7.0]], [[0.0, 0.0], [0.0, 1e-30]]])
    assert min_max(maps).tolist() == [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]


def test_rounding_of_a_constant_is_no_map():
    """Sums of the same numbers in another order, as in the last few places of a vectorised loop."""
    value = np.float32(0.7)
    constant = torch.full((1, 4, 4), float(value))
    constant[0, 3, 3] = float(np.nextafter(value, np.float32(1)))
    assert not min_max(constant).any()
    assert varied_channels(constant).tolist() == []


@pytest.mark.parametrize("method", CAM_METHODS)
def test_no_slices_give_no_maps(method: str):
    assert class_maps(small(), np.zeros((0, 2, 32, 32)), method=method, settings=SMALL).shape == (0, 4, 4)


@pytest.mark.parametrize("method", CAM_METHODS)
def test_numbers_that_are_not_finite_are_an_error(method: str):
    x = slices(3)
    x[1, 0, 12, 12] = math.nan
    with pytest.raises(
        AutopetError, match=rf"{method.replace('+', '.')}: expected finite maps, found others in 1 of 3"
    ):
        class_maps(small(), x, method=method, settings=SMALL)


def test_an_unknown_method_is_an_error():
    with pytest.raises(AutopetError, match=r"'eigencam' is unknown; use one of cam, gradcam, gradcam\+\+, scorecam"):
        class_maps(tiny(), slices(1), method="eigencam", settings=SMALL)
    assert tuple(METHODS) == CAM_METHODS


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("method", CAM_METHODS)
def test_one_and_three_dimensions(method: str, dims: int):
    network, edge = tiny(dims=dims), 6
    x = torch.rand(2, 2, *(edge,) * dims, generator=torch.Generator().manual_seed(5))
    found = class_maps(network, x, method=method, settings=SMALL)
    assert found.shape == (2, *(edge // 2,) * dims)
    assert found.max() == 1
    if method == "cam":
        row = network.head.weight.detach().numpy()[LESION]
        expected = np.tensordot(last_maps(network, x), row, axes=(1, 0)).clip(0)
        np.testing.assert_allclose(found, zero_to_one(expected), atol=1e-5)


def test_combine_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])  # one slice, two channels, two places
    assert combine(maps, torch.tensor([[10.0, 1.0]])).tolist() == [[13.0, 16.0]]
    assert combine(maps, torch.tensor([[1.0, 1.0]])).tolist() == [[4.0, 0.0]]


# What is changed on the network


def state(network: nn.Module) -> tuple:
    modules = list(network.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules]
    return hooks, [m.training for m in modules], [p.requires_grad for p in network.parameters()]


def half_frozen() -> Classifier:
    """In training, but for the first block, which is kept as it is."""
    network = small().train()
    network.blocks[0].eval().requires_grad_(False)
    return network


@pytest.mark.parametrize("method", CAM_METHODS)
def test_the_network_is_as_before(method: str):
    network = half_frozen()
    before, tensors = state(network), {name: each.clone() for name, each in network.state_dict().items()}
    found = class_maps(network, slices(), method=method, settings=SMALL)
    assert state(network) == before
    assert sum(before[0]) == 0
    assert len(set(before[1])) == len(set(before[2])) == 2
    assert all(torch.equal(each, tensors[name]) for name, each in network.state_dict().items())  # norms' statistics
    assert all(parameter.grad is None for parameter in network.parameters())
    np.testing.assert_array_equal(found, class_maps(network.eval(), slices(), method=method, settings=SMALL))


class Breaks(nn.Module):
    """In place of the linear layer: fails at its `after`-th call."""

    def __init__(self, head: nn.Linear, after: int) -> None:
        super().__init__()
        self.weight, self.bias, self.left = head.weight, head.bias, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise RuntimeError("out of memory")
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("method", "after"),
    [*((method, 1) for method in CAM_METHODS), ("scorecam", 2)],
    ids=[*CAM_METHODS, "a mask's pass"],
)
def test_hooks_are_released_after_errors(method: str, after: int):
    network = half_frozen()
    network.head = Breaks(network.head, after)
    before = state(network)
    with pytest.raises(RuntimeError, match="out of memory"):
        class_maps(network, slices(), method=method, settings=SMALL)
    assert state(network) == before
    assert sum(before[0]) == 0
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_one_hook_while_it_is_watched():
    network = tiny()
    with watched(network, network.blocks[1]) as seen:
        assert sum(state(network)[0]) == 1
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        network(slices(1))
        assert seen.maps.is_leaf  # gradients start at the watched layer: nothing before it is kept for them
        assert seen.maps.requires_grad
    assert sum(state(network)[0]) == 0


@pytest.mark.parametrize("method", CAM_METHODS)
def test_callers_without_gradients_get_the_same_maps(method: str):
    network = small()
    expected = class_maps(network, slices(2), method=method, settings=SMALL)
    with torch.inference_mode():
        np.testing.assert_array_equal(class_maps(network, slices(2), method=method, settings=SMALL), expected)
    with torch.no_grad():
        np.testing.assert_array_equal(class_maps(network, slices(2), method=method, settings=SMALL), expected)


# The benchmark


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scorecam_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_s_loop_agrees_and_computes_more(benchmark: ModuleType):
    settings = replace(SMALL, size=64, pixel_mm=8.0, batch_norm=False)
    network, image = small(batch_norm=False), benchmark.made_slice(settings)
    figures, maps = benchmark.compare(network, settings, image, ways=benchmark.WAYS, repeat=1)
    assert set(figures["largest_difference"]) == {"whole", "ours"}
    assert max(figures["largest_difference"].values()) < 1e-4
    assert figures["gmac"]["ours"] <= figures["gmac"]["loop"] * 1.5  # the empty slice's pass comes on top
    masks = score_cam_masks(network, image)
    seen = (masks * image != 0).any(1).float().mean()
    assert figures["share_seen"] == pytest.approx(float(seen), abs=2e-3)
    few, everything = (
        benchmark.approximation(network, settings, image, expected=maps["ours"], top=top) for top in (2, 0)
    )
    assert few["largest_difference"] > 0.01 > everything["largest_difference"]
    benchmark.check(figures, least_times_faster=0)
    with pytest.raises(SystemExit, match="times faster, expected at least 1000"):
        benchmark.check(figures, least_times_faster=1000)
    with pytest.raises(SystemExit, match=r"maps of whole and loop differ by 0.01, expected less than 0.0001"):
        benchmark.check(figures | {"largest_difference": {"whole": 0.01, "ours": 0.0}}, least_times_faster=0)
