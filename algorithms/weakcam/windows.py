"""Forward passes over slices that are empty nearly everywhere, at the cost of the rest.

Score-CAM shows the classifier the same slice once per channel, each time through another mask, and most masks are 0
nearly everywhere. Where a slice is empty as far as a convolution looks, every layer gives what it gives for an empty
slice, and that is known. So each layer is computed only where it may differ from that, which is one place more to every
side after every convolution, in tiles of 4 x 4 places (`winograd.py`). The answers are those of whole passes, up to
rounding. Where that would take longer, as in narrow networks behind masks that hide little, slices are computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn
from torch.nn import functional

from algorithms.weakcam.model import Classifier
from algorithms.weakcam.winograd import PATCH, TILE, Scratch, TileConvolution

WHOLE = 4  # slices that are computed whole at a time: more do not fit into a processor's cache


@dataclass(frozen=True)
class Layer:
    """A convolution with all that follows it up to the next one, and what it gives for an empty slice."""

    convolution: TileConvolution
    weight: torch.Tensor  # (outputs, inputs, 3, 3), a norm's factor included
    pools: bool  # a max-pooling is the end of it
    block: int | None  # whose last layer it is, counted from 0
    pools_inside: bool  # and that max-pooling still belongs to the block
    empty: torch.Tensor  # (places of a tile, tiles, k)
    sums: torch.Tensor  # over the places of every tile of the block's map, (tiles, k)


@dataclass(frozen=True)
class Tiles:
    """Tiles of several slices, those that they have in common kept once."""

    values: torch.Tensor  # (edge * edge, number, k): place in a tile, tile, channel; the last tile is 0
    number: torch.Tensor  # (n, tiles down + 2, tiles across + 2) int64: which tile is where, in a frame of the last
    edge: int  # places along both edges of a tile


class EmptySlice:
    """A classifier in evaluation mode, what its layers give for an empty slice (0 in all channels), and memory.

    It keeps the network's kernels in the form that `winograd.py` needs, four times their size.

    Parameters
    ----------
    network : Classifier
    shape : (channels, y, x)
        Of the slices; `possible` says whether their edges will do.
    """

    def __init__(self, network: Classifier, shape: torch.Size) -> None:
        self.network, self.scratch = network, Scratch()
        modules = [(place, module) for place, block in enumerate(network.blocks) for module in block.children()]
        starts = [place for place, (_, module) in enumerate(modules) if isinstance(module, nn.Conv2d)]
        self.layers: list[Layer] = []
        x = network.scaled(network.mean.new_zeros(1, *shape))
        for start, end in zip(starts, [*starts[1:], len(modules)], strict=True):
            places, parts = zip(*modules[start:end], strict=True)
            ends = end == len(modules) or modules[end][0] != places[0] or places[-1] != places[0]
            layer, x = self._layer(parts, x, block=places[0] if ends else None, inside=places[-1] == places[0])
            self.layers.append(layer)

    def _layer(
        self, parts: Sequence[nn.Module], x: torch.Tensor, *, block: int | None, inside: bool
    ) -> tuple[Layer, torch.Tensor]:
        """Of a convolution and what follows, for the empty slice's `x`; and what becomes of that."""
        pools = isinstance(parts[-1], nn.MaxPool2d)
        for part in parts[: len(parts) - pools]:
            x = part(x)
        empty = _tiles(x[0], TILE)
        sums = empty.sum(0)
        if pools:
            x = parts[-1](x)
            empty = _tiles(x[0], TILE // 2)
            sums = empty.sum(0) if inside else sums
        weight, bias = _folded(parts)
        convolution = TileConvolution(weight, bias, self.scratch)
        return Layer(convolution, weight, pools, block, pools and inside, empty, sums), x

    def means(self, x: torch.Tensor, *, blocks: Sequence[int]) -> list[torch.Tensor]:
        """Mean maps of some blocks, counted from 0, (n, k) each, for slices (n, channels, y, x)."""
        differs = (x != 0).any(1)
        active = []  # per layer, (n, tiles down, tiles across)
        for layer in self.layers:
            differs = _grown(differs)
            active.append(differs.unflatten(2, (-1, TILE)).any(3).unflatten(1, (-1, TILE)).any(2))
            if layer.pools:
                differs = functional.max_pool2d(differs[:, None].float(), 2)[:, 0] > 0
        found = self._in_tiles(x, active, blocks) if self._pays(active) else self._whole(x, blocks)
        return [found[block] for block in blocks]

    def _pays(self, active: Sequence[torch.Tensor]) -> bool:
        """Whether tiles cost less than whole slices."""
        tiles = whole = 0.0
        for layer, flags in zip(self.layers, active, strict=True):
            tiles += layer.convolution.multiply_adds(int(flags.sum()))
            whole += flags.numel() * TILE**2 * layer.weight.numel()
        return tiles < whole

    def _in_tiles(self, x: torch.Tensor, active: Sequence[torch.Tensor], blocks: Sequence[int]) -> dict:
        """Mean maps by block, for slices of which only the active tiles of every layer are computed."""
        found = {}
        tiles = _pixels(self.network.scaled(x))
        for place, (layer, flags) in enumerate(zip(self.layers, active, strict=True)):
            tiles, sums = self._through(layer, tiles, flags, f"values {place % 2}")  # from one memory to the other
            if layer.block in blocks:
                where = flags.flatten(1).nonzero()
                total = layer.sums.sum(0).repeat(len(x), 1)
                total.index_add_(0, where[:, 0], sums - layer.sums[where[:, 1]])
                found[layer.block] = total / (len(layer.sums) * (TILE // 2 if layer.pools_inside else TILE) ** 2)
        return found

    def _through(self, layer: Layer, tiles: Tiles, active: torch.Tensor, name: str) -> tuple[Tiles, torch.Tensor]:
        """Tiles of what a layer gives, and the sums over the block's map in those that are active."""
        where = active.nonzero()
        count, (places, common, width) = len(where), layer.empty.shape
        values = self.scratch.take(name, layer.empty, places, count + common + 1, width)
        values[:, count:-1] = layer.empty
        values[:, -1] = 0
        sums = layer.convolution.fill(values[:, :count], tiles.values.flatten(0, 1), _surroundings(tiles, where))
        if layer.pools_inside:
            sums = values[:, :count].sum(0)
        number = torch.arange(count, count + common, device=where.device).repeat(len(active)).view(active.shape)
        number[tuple(where.T)] = torch.arange(count, device=where.device)
        number = functional.pad(number, (1, 1, 1, 1), value=count + common)
        return Tiles(values, number, TILE // 2 if layer.pools else TILE), sums

    def _whole(self, x: torch.Tensor, blocks: Sequence[int]) -> dict:
        """Mean maps by block, of few slices at a time with channels last, which suits narrow networks."""
        found: dict = {block: [] for block in blocks}
        for part in x.split(WHOLE):
            values = self.network.scaled(part).contiguous(memory_format=torch.channels_last)
            for layer in self.layers:
                weight = layer.weight.contiguous(memory_format=torch.channels_last)
                values = functional.conv2d(values, weight, layer.convolution.bias, padding=1).relu_()
                pooled = functional.max_pool2d(values, 2) if layer.pools else values
                if layer.block in found:
                    found[layer.block].append((pooled if layer.pools_inside else values).mean((2, 3)))
                values = pooled
        return {block: torch.cat(means) for block, means in found.items()}


def possible(network: nn.Module, shape: torch.Size) -> TypeGuard[Classifier]:
    """Whether slices (channels, y, x) can be computed in tiles: a `Classifier`, whose maps all divide into tiles."""
    if not isinstance(network, Classifier):
        return False
    poolings = sum(isinstance(layer, nn.MaxPool2d) for block in network.blocks for layer in block.children())
    return not any(edge % (TILE * 2**poolings) for edge in shape[1:])


def _surroundings(tiles: Tiles, where: torch.Tensor) -> torch.Tensor:
    """Rows of `tiles.values` for the 6 x 6 places around new tiles: (36, t).

    Parameters
    ----------
    where : (t, 3) int64 tensor
        Slice, row and column of the new tiles.
    """
    down, across = tiles.number.shape[1:]
    places = torch.arange(-1, PATCH - 1, device=where.device)  # 0 is the first of the new tile
    tile, inside = places.div(tiles.edge, rounding_mode="floor"), places % tiles.edge
    tile = (tile[:, None] * across + tile).view(-1, 1)
    inside = (inside[:, None] * tiles.edge + inside).view(-1, 1)
    row, column = (where[:, 1:] * (TILE // tiles.edge) + 1).T  # of the old tile at the same place, in the frame
    first = (where[:, 0] * down + row) * across + column
    return tiles.number.take(first + tile) + inside * tiles.values.shape[1]


def _folded(parts: Sequence[nn.Module]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of a convolution that does what the first part and the norm behind it do, if there is one."""
    convolution = parts[0]
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    for norm in parts[1:]:
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            return weight * factor[:, None, None, None], (bias - norm.running_mean) * factor + norm.bias
    return weight, bias


def _tiles(x: torch.Tensor, edge: int) -> torch.Tensor:
    """(k, y, x) in tiles: (edge * edge, number, k)."""
    parts = x.unflatten(2, (-1, edge)).unflatten(1, (-1, edge))  # k, tiles down, row, tiles across, column
    return parts.permute(2, 4, 1, 3, 0).reshape(edge * edge, -1, len(x))


def _pixels(x: torch.Tensor) -> Tiles:
    """(n, k, y, x) in tiles of one pixel."""
    rows = functional.pad(x.permute(0, 2, 3, 1).flatten(0, 2), (0, 0, 0, 1))
    number = torch.arange(len(rows) - 1, device=x.device).view(len(x), *x.shape[2:])
    return Tiles(rows[None], functional.pad(number, (1, 1, 1, 1), value=len(rows) - 1), 1)


def _grown(flags: torch.Tensor) -> torch.Tensor:
    """(n, y, x) flags, True also where one of the eight around is."""
    framed = functional.pad(flags, (1, 1, 1, 1))
    rows = framed[:, :-2] | framed[:, 1:-1] | framed[:, 2:]
    return rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]
