"""The timed sliding window: MONAI's averages without a limit, what is left out with one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from autopet.deadline import Deadline

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from monai.inferers import sliding_window_inference  # noqa: E402

from autopet.container import LAST_MARGIN_S, LAST_MARGIN_SHARE  # noqa: E402
from autopet.sliding_window import Pass, Window, export_reserve_s, report, slide  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TALL = torch.zeros(2, 96, 32, 32)  # 4 tiles of 32 with overlap 0.25 or 0.125 (0, 24, 48, 64), 3 without
TILE = (32, 32, 32)


class Slow(torch.nn.Module):
    """A constant logit of 2, each call taking the next of `seconds` on a clock of its own."""

    def __init__(self, seconds: Callable[[int], float] = lambda call: 10.0) -> None:
        super().__init__()
        self.seconds, self.calls, self.now = seconds, 0, 0.0

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        self.now += self.seconds(self.calls)
        self.calls += 1
        return torch.full_like(tile[:, :1], 2.0)


@pytest.fixture(scope="module")
def convolution() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(2, 1, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("deadline", [Deadline(), Deadline(1e6)], ids=["unlimited", "limited"])
def test_averages_are_monai_s(convolution: torch.nn.Module, mode: str, deadline: Deadline):
    image = torch.rand(2, 40, 33, 50, generator=torch.Generator().manual_seed(1))
    window = Window((32, 16, 32), 0.25, mode)
    expected = sliding_window_inference(image[None], window.size, 1, convolution, overlap=0.25, mode=mode)[0, 0]
    found = slide(convolution, image, window, device="cpu", deadline=deadline)
    assert (found.overlap, found.skipped, found.tiles) == (0.25, 0, 2 * 3 * 2)
    assert torch.allclose(found.logit, expected, atol=1e-5)
    assert (found.tile_s > 0) == deadline.limited
    assert found.seconds > 0


class View(torch.nn.Module):
    """Its logits are a channel of the tile: a view of the image, which every tile that overlaps sees."""

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        return tile[:, 1:]


class Kept(torch.nn.Module):
    """The same tensor for every tile."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.full((1, 1, 32, 16, 32), 2.0)

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        return self.logit


@pytest.mark.parametrize("deadline", [Deadline(), Deadline(1e6)], ids=["unlimited", "limited"])
@pytest.mark.parametrize("kind", [View, Kept])
def test_what_a_network_returns_is_not_weighted_in_place(kind: type[torch.nn.Module], deadline: Deadline):
    """MONAI's window does so, and so spoils what the next tile sees or returns."""
    image = torch.rand(2, 40, 33, 50, generator=torch.Generator().manual_seed(1))
    before = image.clone()
    expected = before[1] if kind is View else torch.full((40, 33, 50), 2.0)
    window = Window((32, 16, 32), 0.25, "gaussian")
    found = slide(kind(), image, window, device="cpu", deadline=deadline)
    assert torch.allclose(found.logit, expected, atol=1e-5)
    assert torch.equal(image, before)
    alone = sliding_window_inference(image[None].clone(), window.size, 1, kind(), overlap=0.25, mode="gaussian")
    assert not torch.allclose(alone[0, 0], expected, atol=0.1)


def test_modes_differ(convolution: torch.nn.Module):
    image = torch.rand(2, 40, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = [
        slide(convolution, image, Window((32, 16, 16), 0.25, mode), device="cpu", deadline=Deadline()).logit
        for mode in ("constant", "gaussian")
    ]
    assert not torch.allclose(*logits, atol=1e-4)
    assert torch.allclose(logits[0][:8], logits[1][:8], atol=1e-5)  # one tile covers them, whatever its weights


def test_an_image_smaller_than_a_tile_is_padded_at_its_ends(convolution: torch.nn.Module):
    image = torch.rand(2, 5, 16, 7, generator=torch.Generator().manual_seed(1))
    found = slide(convolution, image, Window((16, 16, 16), 0.25), device="cpu", deadline=Deadline())
    padded = torch.zeros(1, 2, 16, 16, 16)
    padded[0, :, :5, :, :7] = image
    assert found.logit.shape == (5, 16, 7)
    assert torch.allclose(found.logit, convolution(padded)[0, 0, :5, :, :7], atol=1e-6)


def test_tiles_are_counted_by_hand():
    window = Window(TILE, 0.25)
    assert window.count((96, 32, 32)) == 4
    assert window.count((96, 32, 32), 0.0) == 3
    assert window.count((10, 33, 96)) == 1 * 2 * 4
    assert window.fitting((96, 32, 32), 4) == 0.25
    assert Window(TILE, 0.5).fitting((96, 32, 32), 4) == 0.25  # 5 tiles at 0, 16, 32, 48, 64 are one too many
    assert window.fitting((96, 32, 32), 3.9) == 0.0
    assert window.fitting((96, 32, 32), 2.9) is None


@pytest.mark.parametrize(
    ("limit_s", "reserve_s", "calls", "covered", "dropped"),
    [
        (1000.0, 5.0, 4, 96, []),
        (55.0, 0.0, 4, 96, []),  # 45 s left after the first tile: three more at 1.5 times 10 s
        (50.0, 0.0, 3, 96, ["fold 0: overlap of tiles 0 instead of 0.25: 4 tiles of 10 s would not have fitted"]),
        (50.0, 16.0, 2, 64, ["fold 0: overlap", "fold 0: 1 of 3 tiles: no time left, their voxels count as"]),
        (5.0, 6.0, 0, 0, ["fold 0: 3 of 3 tiles: no time left"]),
    ],
)
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_what_the_time_allows(
    limit_s: float, reserve_s: float, calls: int, covered: int, dropped: list[str], mode: str
):
    network = Slow()
    deadline = Deadline(limit_s, clock=lambda: network.now)
    window = Window(TILE, 0.25, mode)
    found = slide(network, TALL, window, device="cpu", deadline=deadline, reserve_s=reserve_s)
    report(found, window, deadline, name="fold 0: ")
    assert (network.calls, found.tiles, found.seconds) == (calls, calls, 10.0 * calls)
    assert deadline.elapsed_s <= limit_s - reserve_s or not calls
    assert len(deadline.journal.dropped) == len(dropped)
    assert all(text.startswith(start) for text, start in zip(deadline.journal.dropped, dropped, strict=True))
    # averages over the tiles that ran, whatever their weights; -inf is probability 0
    assert torch.allclose(found.logit[:covered], torch.tensor(2.0), atol=1e-5)
    assert (found.logit[covered:] == -math.inf).all()


def test_known_seconds_of_a_tile_are_not_measured_again():
    network = Slow()
    deadline = Deadline(44.0, clock=lambda: network.now)
    found = slide(network, TALL, Window(TILE, 0.25), device="cpu", deadline=deadline, tile_s=10.0)
    assert (found.overlap, found.tiles, found.skipped) == (0.0, 3, 0)  # 44 s are less than 3 tiles of 15 s
    deadline = Deadline(14.0, clock=lambda: network.now)
    found = slide(network, TALL, Window(TILE, 0.25), device="cpu", deadline=deadline, tile_s=10.0)
    assert (found.tiles, found.skipped, network.calls) == (0, 3, 3)


def test_the_slowest_tile_is_the_measure():
    """10, 30 and 1 s, then 44.5 s are left: the next might take 45 s."""
    network = Slow(lambda call: [10.0, 30.0, 1.0, 1.0][call])
    deadline = Deadline(85.5, clock=lambda: network.now)
    found = slide(network, TALL, Window(TILE, 0.25), device="cpu", deadline=deadline)
    assert (found.tiles, found.skipped, found.tile_s) == (3, 1, 30.0)


def test_more_is_left_for_the_export_than_the_container_keeps_for_itself():
    """Else it would take a mask that is ready for one that is late."""
    for limit_s in (1.0, 5.0, 20.0, 29.0, 31.0, 300.0, 36_000.0):
        kept_s = LAST_MARGIN_S + LAST_MARGIN_SHARE * limit_s
        assert kept_s + 0.3 < export_reserve_s(Deadline(limit_s)) <= 1.5 + 0.05 * limit_s
    assert export_reserve_s(Deadline()) == 0.0


def test_a_whole_pass_is_not_reported():
    deadline = Deadline()
    report(Pass(torch.zeros(32, 32, 32), 0.25, 1, 0, 0.0, 0.0), Window(TILE, 0.25), deadline)
    assert deadline.journal.dropped == []
