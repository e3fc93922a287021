"""Convolutions of 3 x 3 over scattered tiles of 4 x 4 places, with a quarter of the multiply-adds.

Winograd's minimal filtering F(4 x 4, 3 x 3), after Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
CVPR 2016, section 4.3: 6 x 6 inputs d and the kernel g give 4 x 4 outputs A'[(G g G') * (B' d B)]A, 36 multiplications
per tile and pair of channels where the definition has 144. What is left is one product of matrices for each of the 36,
of tiles by channels, so that it does not matter where a tile comes from. The answers are those of the definition up to
rounding; the kernels are transformed in double precision, which keeps that small.
"""

from __future__ import annotations

import torch
from torch.nn import functional

TILE = 4  # places along both edges of a tile
PATCH = TILE + 2  # of what it is computed from
LANES = 16  # see `_multiply`
CACHED = 8192  # tiles x channels that a core transforms at a time: 36 values each, to stay in its cache
MOST_VALUES = 524_288  # tiles x channels that are multiplied at a time
MOST_TILES = 2048
APART = 16  # values
TRANSFORMED = 16 * 400  # multiply-adds that take as long as a channel of a tile takes on its way in, or out; measured
CALLED = 4e7  # and as long as all calls of PyTorch take when there is hardly a tile

Matrix = tuple[tuple[float, ...], ...]
INPUT: Matrix = (  # B'
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL: Matrix = (  # G
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT: Matrix = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))  # A'
BIASED = PATCH + 1  # of the 36: the one that A' . A adds to each of the 16 outputs once


class Scratch:
    """Memory by name that is used again and again: fresh memory costs more than what is computed in it."""

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A tensor of that shape, of the type and on the device of `like`, with anything in it."""
        count = torch.Size(shape).numel()
        held = self.held.get(name)
        if held is None or held.numel() < count:
            self.held.pop(name, None)
            held = self.held[name] = like.new_empty(count)
        return held[:count].view(shape)


class TileConvolution:
    """A convolution of 3 x 3 with stride 1, and the ReLU behind it.

    Parameters
    ----------
    weight : (outputs, inputs, 3, 3) tensor
    bias : (outputs,) tensor
    scratch : Scratch
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, scratch: Scratch) -> None:
        self.outputs, self.inputs = weight.shape[:2]
        self.scratch, self.bias = scratch, bias
        self.into, self.back = (_twice(matrix).to(bias) for matrix in (INPUT, OUTPUT))
        kernels = _twice(KERNEL).to(bias.device) @ weight.double().flatten(2).permute(2, 0, 1).flatten(1)
        self.kernels = kernels.to(bias).view(PATCH**2, self.outputs, self.inputs, 1, 1)

    def multiply_adds(self, tiles: int) -> float:
        """What so many tiles cost, all else that is done counted as multiply-adds that take as long."""
        channels = self.inputs + self.outputs
        return CALLED + float(tiles) * (PATCH**2 * self.inputs * self.outputs + TRANSFORMED * channels)

    def fill(self, out: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Write tiles, and give the sums of each one's places.

        Parameters
        ----------
        out : (16, tiles, outputs) or (4, tiles, outputs) tensor
            For the places of the tiles, row by row, or for 2 x 2 of them after a max-pooling.
        rows : (number, inputs) tensor
            Places of the layer before.
        index : (36, tiles) int64 tensor
            Which of them are the 6 x 6 places around each tile, row by row.

        Returns
        -------
        (tiles, outputs) tensor
            Before any pooling.
        """
        sums = out.new_empty(index.shape[1], self.outputs)
        size = min(MOST_TILES, max(MOST_VALUES // max(self.inputs, self.outputs), LANES))
        for first in range(0, index.shape[1], size):
            part = slice(first, first + size)
            count = index[:, part].shape[1]
            own = functional.pad(index[:, part], (0, -count % LANES))  # more tiles of whatever is in the first row
            products = self._multiply(self._transformed(rows, own))
            self._finish(products, out[:, part], sums[part])
        return sums

    def _transformed(self, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """B' d B of the tiles, (36, tiles, inputs)."""
        tiles = index.shape[1]
        found = self._spread("transformed", rows, tiles, self.inputs)
        step = _cached_tiles(self.inputs)
        for first in range(0, tiles, step):
            own = index[:, first : first + step]
            patches = self.scratch.take("patches", rows, own.numel(), self.inputs)
            torch.index_select(rows, 0, own.flatten(), out=patches)
            flat = found[:, first : first + step].flatten(1)
            torch.mm(self.into, patches.view(PATCH**2, -1), out=flat)
        return found

    def _multiply(self, values: torch.Tensor) -> torch.Tensor:
        """(36, tiles, inputs) to (36, tiles, outputs).

        As convolutions of 1 x 1 on images with the channels last, which is the same: on processors without Intel's name
        they are twice as fast as PyTorch's products of matrices, but only from 16 images on (else, on one core, PyTorch
        makes them such products).
        """
        tiles = values.shape[1]
        found = self._spread("products", values, tiles, self.outputs)
        images = values.unflatten(1, (LANES, -1, 1)).permute(0, 1, 4, 2, 3)
        for place, (image, kernel) in enumerate(zip(images, self.kernels, strict=True)):
            product = functional.conv2d(image, kernel, self.bias if place == BIASED else None)
            found[place].view(LANES, -1, 1, self.outputs).copy_(product.permute(0, 2, 3, 1))
        return found

    def _spread(self, name: str, like: torch.Tensor, tiles: int, channels: int) -> torch.Tensor:
        """Memory for (36, tiles, channels): apart by no power of two, else the 36 share few lines of the cache."""
        held = self.scratch.take(name, like, PATCH**2, tiles * channels + APART)
        return held[:, : tiles * channels].unflatten(1, (tiles, channels))

    def _finish(self, products: torch.Tensor, out: torch.Tensor, sums: torch.Tensor) -> None:
        """A' . A of the products, ReLU, sums, max-pooling if `out` is for its results."""
        step = _cached_tiles(self.outputs)
        for first in range(0, out.shape[1], step):
            own = out[:, first : first + step]
            tiles = own.shape[1]
            flat = self.scratch.take("finished", products, TILE**2, tiles * self.outputs)
            torch.mm(self.back, products[:, first : first + tiles].flatten(1), out=flat)
            places = flat.clamp_min_(0).view(TILE**2, tiles, self.outputs)
            torch.sum(places, 0, out=sums[first : first + tiles])
            own.copy_(pooled(places) if len(out) < TILE**2 else places)


def pooled(places: torch.Tensor) -> torch.Tensor:
    """Max-pooling of 2 x 2 within tiles: (16, tiles, k) to (4, tiles, k)."""
    above, below = places.view(TILE // 2, 2, TILE, *places.shape[1:]).unbind(1)
    left, right = torch.maximum(above, below).view(TILE, 2, *places.shape[1:]).unbind(1)
    return torch.maximum(left, right)


def _cached_tiles(channels: int) -> int:
    return max(CACHED * torch.get_num_threads() // channels, 1) | 1  # odd, for the same reason as APART


def _twice(matrix: Matrix) -> torch.Tensor:
    """For rows and columns of a tile at once: the Kronecker product with itself, in double precision."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)
