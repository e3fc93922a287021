"""Slices in tiles against whole passes, and Winograd's convolution against its definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from algorithms.weakcam import winograd  # noqa: E402
from algorithms.weakcam.model import PRESETS, Classifier, build_network  # noqa: E402
from algorithms.weakcam.windows import EmptySlice, possible  # noqa: E402
from algorithms.weakcam.winograd import Scratch, TileConvolution, pooled  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = replace(PRESETS["demo"], size=32, widths=(4, 4, 6, 6, 7), convolutions=(1, 1, 2, 2, 2))
POOLED = {"paper's": (2, 3, 4), "VGG16's": (1, 2, 3, 4, 5), "none": (), "first and last": (1, 5)}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_of(seed: int = 2, **changes: object) -> Classifier:
    """Norms, biases and linear layer are not what they start as: an empty slice gives something, at its rim another."""
    torch.manual_seed(seed)
    network = build_network(replace(SMALL, **changes))
    with torch.no_grad():
        network.head.weight.normal_()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(std=0.3)
            elif isinstance(module, nn.Conv2d):
                module.bias.normal_(std=0.5)
    return network.eval()


def whole_means(network: Classifier, x: torch.Tensor) -> list[torch.Tensor]:
    """Mean maps of every block, without any of the code that is tested."""
    means = []
    x = (x - network.mean) / network.deviation
    for block in network.blocks:
        x = block(x)
        means.append(x.mean((2, 3)))
    return means


# Winograd's convolution


def patches_of(x: torch.Tensor, corners: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one image (k, y, x), and which of them are the 6 x 6 around the 4 x 4 that begin at the corners."""
    rows, across = x.permute(1, 2, 0).flatten(0, 1), x.shape[2]
    around = torch.tensor([[(y - 1 + row) * across + (z - 1 + column) for y, z in corners]
                           for row in range(6) for column in range(6)])  # fmt: skip
    return rows.contiguous(), around


CORNERS = [(1, 1), (7, 2), (9, 9), (4, 9), *((row, 3) for row in range(1, 10)), *((2, at) for at in range(1, 9))]


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 3), (5, 7), (8, 4)])
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("parts", [False, True], ids=["at once", "in parts"])
def test_tiles_are_convolved_by_definition(
    parts: bool, pools: bool, inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch
):
    if parts:
        monkeypatch.setattr(winograd, "MOST_TILES", 16)
        monkeypatch.setattr(winograd, "CACHED", 3 * inputs)
    x = torch.randn(inputs, 14, 14, generator=generator(1), dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator(2), dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator(3), dtype=torch.float64)
    full = functional.conv2d(x[None], weight, bias, padding=1)[0].relu()
    expected = torch.stack([full[:, y : y + 4, z : z + 4] for y, z in CORNERS])  # tile, output, row, column
    sums = expected.sum((2, 3))
    if pools:
        expected = functional.max_pool2d(expected, 2)
    rows, index = patches_of(x, CORNERS)
    out = torch.full((4 if pools else 16, len(CORNERS) + 3, outputs), torch.nan, dtype=torch.float64)
    found = TileConvolution(weight, bias, Scratch()).fill(out[:, 2:-1], rows, index)
    torch.testing.assert_close(out[:, 2:-1], expected.flatten(2).permute(2, 0, 1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, sums, rtol=1e-9, atol=1e-9)
    assert out[:, :2].isnan().all()  # nothing beside what was asked for
    assert out[:, -1].isnan().all()
    assert 0.2 < float((expected == 0).double().mean()) < 0.8 or pools


def test_rounding_is_about_that_of_the_definition():
    """In single precision, against double: what Score-CAM's 1e-4 is made of."""
    x = torch.rand(256, 14, 14, generator=generator(4))
    weight = torch.randn(64, 256, 3, 3, generator=generator(5)) / 48
    bias = torch.zeros(64)
    exact = functional.conv2d(x[None].double(), weight.double(), padding=1)[0].relu()
    rows, index = patches_of(x, CORNERS)
    out = torch.empty(16, len(CORNERS), 64)
    TileConvolution(weight, bias, Scratch()).fill(out, rows, index)
    expected = torch.stack([exact[:, y : y + 4, z : z + 4] for y, z in CORNERS]).flatten(2).permute(2, 0, 1)
    assert float((out - expected).abs().max() / expected.max()) < 1e-5


def test_no_tiles():
    out = TileConvolution(torch.ones(3, 2, 3, 3), torch.ones(3), Scratch()).fill(
        torch.empty(16, 0, 3), torch.ones(4, 2), torch.empty(36, 0, dtype=torch.int64)
    )
    assert out.shape == (0, 3)


def test_pooling_within_a_tile_by_hand():
    places = torch.tensor([[1.0, 2, 5, 6], [3, 4, 8, 7], [9, 10, 14, 13], [12, 11, 15, 16]]).view(16, 1, 1)
    assert pooled(places).flatten().tolist() == [4, 8, 12, 16]


def test_memory_is_used_again_and_grows():
    scratch, like = Scratch(), torch.zeros(1)
    first = scratch.take("a", like, 2, 3)
    assert first.shape == (2, 3)
    assert scratch.take("a", like, 5).data_ptr() == first.data_ptr()
    assert scratch.take("b", like, 5).data_ptr() != first.data_ptr()
    assert scratch.take("a", like, 7).shape == (7,)


# Slices


def boxes(edge: int) -> Iterator[tuple[int, int, int, int]]:
    """First row and column, height and width: corners, borders, the middle, one pixel, nothing, everything."""
    yield from ((0, 0, 5, 5), (edge - 7, edge - 3, 7, 3), (0, 9, edge, 4), (11, 0, 3, edge), (edge // 2, 5, 1, 1))
    yield from ((3, 3, 0, 0), (0, 0, edge, edge), (edge - 1, edge - 1, 1, 1), (edge // 3, edge // 3, 8, 6))


@pytest.mark.parametrize("pays", [True, False], ids=["tiles", "whole"])
@pytest.mark.parametrize("pooled_blocks", POOLED.values(), ids=POOLED)
@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
def test_means_are_those_of_whole_passes(
    norm: bool, pooled_blocks: tuple[int, ...], pays: bool, monkeypatch: pytest.MonkeyPatch
):
    """Of every block, wherever something is seen, also where zeros pad the slice, and of slices seen in several places.

    What becomes of a window must not depend on the other slices of its batch.
    """
    monkeypatch.setattr(EmptySlice, "_pays", lambda *_: pays)
    network = network_of(batch_norm=norm, pooled_blocks=pooled_blocks)
    edge = 128 if len(pooled_blocks) > 3 else 64
    image = torch.rand(2, edge, edge, generator=generator(6))
    x = torch.zeros(len(list(boxes(edge))) + 2, 2, edge, edge)
    for slice_, (row, column, height, width) in zip(x, boxes(edge), strict=False):
        slice_[:, row : row + height, column : column + width] = image[:, row : row + height, column : column + width]
    x[-2] = image * (torch.rand(edge, edge, generator=generator(7)) < 0.002)  # a few pixels all over the slice
    x[-1, 1, 5:9, 5:9] = image[1, 5:9, 5:9]  # in one channel alone, and at the other end
    x[-1, 0, -9:-5, -9:-5] = -1
    with torch.inference_mode():
        empty = EmptySlice(network, x.shape[1:])
        expected = whole_means(network, x)
        found = empty.means(x, blocks=range(len(expected)))
        for means, right in zip(found, expected, strict=True):
            torch.testing.assert_close(means, right, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(network.head(found[-1]), network(x), rtol=1e-4, atol=1e-4)
        (last, again) = empty.means(x[3:5], blocks=(4, 4))  # with the memory of before
        torch.testing.assert_close(last, expected[4][3:5], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(last, again)
    assert int((expected[4].std(0) > 1e-3).sum()) >= 3  # the slices differ


def test_slices_need_not_be_square(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EmptySlice, "_pays", lambda *_: True)
    network, x = network_of(), torch.zeros(2, 2, 32, 96)
    x[0, :, 20:, 70:80] = 1
    x[1, :, :3, :50] = 0.5
    with torch.inference_mode():
        found = EmptySlice(network, x.shape[1:]).means(x, blocks=(4,))[0]
        torch.testing.assert_close(found, whole_means(network, x)[4], rtol=1e-4, atol=1e-5)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Multiply-adds of the convolutions from now on."""
    found: list[int] = []
    convolve = functional.conv2d

    def count(x: torch.Tensor, weight: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        out = convolve(x, weight, *rest, **more)
        found.append(out.numel() * weight[0].numel())
        return out

    monkeypatch.setattr(functional, "conv2d", count)
    return found


def test_multiply_adds_are_those_of_the_tiles_that_can_differ(counts: list[int], monkeypatch: pytest.MonkeyPatch):
    """Counted as they are computed, and by hand: 36 for a tile and pair of channels.

    Of 64 x 64 places, 32 to 35 and the last one are seen. The first convolution may differ at 31 to 36 and 62 to 63,
    which are tiles 7 to 9 and 15 along each edge, the second at 30 to 37 and 61 to 63, the same tiles. The pooling
    makes 15 to 18 and 30 to 31 of that, the third convolution 14 to 19 and 29 to 31, tiles 3 to 4 and 7.
    """
    monkeypatch.setattr(EmptySlice, "_pays", lambda *_: True)
    monkeypatch.setattr(winograd, "LANES", 1)  # else the number of tiles is rounded up to 16
    network = network_of(batch_norm=False, widths=(3, 5, 2), convolutions=(1, 1, 1), pooled_blocks=(2,))
    x = torch.zeros(1, 2, 64, 64)
    x[..., 32:36, 32:36] = 1
    x[..., 63, 63] = 1
    with torch.inference_mode():
        empty = EmptySlice(network, x.shape[1:])
        counts.clear()
        empty.means(x, blocks=(2,))
    assert sum(counts) == 36 * ((3 * 3 + 1) * 2 * 3 + (3 * 3 + 1) * 3 * 5 + (2 * 2 + 1) * 5 * 2)


def test_the_cheaper_way_is_taken(counts: list[int], monkeypatch: pytest.MonkeyPatch):
    """Wide networks and small windows go in tiles, narrow networks, whole slices and hardly any work do not."""

    def cost(network: Classifier, seen: int) -> tuple[int, int]:
        x = torch.zeros(1, 2, 64, 64)
        x[..., :seen, :seen] = 1
        with torch.inference_mode():
            empty = EmptySlice(network, x.shape[1:])
            counts.clear()
            found = empty.means(x, blocks=(len(network.blocks) - 1,))[0]
            ours = sum(counts)
            counts.clear()
            torch.testing.assert_close(found, whole_means(network, x)[-1], rtol=1e-4, atol=1e-5)
            return ours, sum(counts)

    ours, whole = cost(network_of(), 64)
    assert ours == whole
    ours, whole = cost(network_of(), 4)
    assert ours == whole
    wide = network_of(widths=(128, 128), convolutions=(1, 2), pooled_blocks=(), batch_norm=False)
    ours, whole = cost(wide, 32)  # a third of the tiles, a quarter of their multiply-adds
    assert ours < 0.1 * whole
    monkeypatch.setattr(winograd, "CALLED", 0)
    ours, whole = cost(network_of(), 4)
    assert ours < 0.5 * whole


def test_what_divides_into_tiles():
    assert possible(network_of(), torch.Size((2, 32, 64)))
    assert not possible(network_of(), torch.Size((2, 32, 40)))  # 5 places after three poolings
    assert possible(network_of(pooled_blocks=()), torch.Size((2, 32, 36)))
    assert not possible(nn.Conv2d(2, 2, 3), torch.Size((2, 32, 32)))
    for settings in PRESETS.values():
        assert possible(build_network(settings), torch.Size((2, settings.size, settings.size)))
