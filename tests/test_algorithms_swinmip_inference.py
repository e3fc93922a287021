"""The folds' mean probability on the image's grid: as MONAI would average it, and as far as the time allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.volume import Volume

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from monai.inferers import sliding_window_inference  # noqa: E402
from monai.networks.layers import AffineTransform  # noqa: E402

from algorithms.swinmip.inference import lesion_probability  # noqa: E402
from algorithms.swinmip.model import PRESETS, Settings  # noqa: E402
from algorithms.swinmip.preprocessing import Ranges  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = replace(PRESETS["demo"], patch=(32, 32, 32), overlap=0.25)
RANGES = Ranges((-800.0, 500.0), (1.0, 20.0))
SPACING_MM = (4.0, 4.0, 6.0)


def make_images(shape: tuple[int, int, int] = (36, 44, 42)) -> dict[str, Volume]:
    """Noise in a body that leaves two voxels of air on all sides, on an axial LPS grid."""
    rng = np.random.default_rng(4)
    ct = np.full(shape, -1000.0, np.float32)
    ct[2:-2, 2:-2, 2:-2] = rng.uniform(-700, 400, [n - 4 for n in shape])
    grid = Volume(ct, SPACING_MM, (-80.0, -90.0, -500.0))
    return {"CT": grid, "PET": grid.with_array(rng.gamma(2.0, 4.0, shape).astype(np.float32))}


def convolutions(count: int) -> list[torch.nn.Module]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(torch.nn.Conv3d(2, 1, 3, padding=1).requires_grad_(False))
    return found


def probability_of(networks: list, images: dict[str, Volume], settings: Settings = SETTINGS, **more) -> Volume:
    return lesion_probability(
        networks, images, ranges=RANGES, settings=settings, spacing_mm=SPACING_MM, device="cpu", **more
    )


def test_probability_is_the_mean_sigmoid_of_the_folds():
    """NumPy prepares, MONAI's own sliding window averages logits with Gaussian weights, folds are averaged after it."""
    images = make_images()
    networks = convolutions(3)
    box = (slice(2, -2),) * 3
    channels = []
    for name, ends in (("CT", RANGES.ct_hu), ("PET", RANGES.pet_suv)):
        seen = np.clip(images[name].array[box].astype(np.float64), *ends)[:, ::-1, ::-1].transpose(2, 1, 0)
        channels.append((seen - seen.mean()) / seen.std())
    tensor = torch.from_numpy(np.stack(channels).astype(np.float32))[None]
    expected = np.zeros(images["PET"].shape)
    for network in networks:
        logits = sliding_window_inference(tensor, (32, 32, 32), 4, network, overlap=0.25, mode="gaussian")[0, 0]
        expected[box] += torch.sigmoid(logits).numpy().transpose(2, 1, 0)[:, ::-1, ::-1] / 3
    deadline = Deadline()
    found = probability_of(networks, images, deadline=deadline)
    assert found.array.dtype == np.float32
    assert found.same_grid(images["PET"], tolerance_mm=0.0)
    np.testing.assert_allclose(found.array, expected, atol=1e-5)
    assert not found.array[:2].any()  # air that was cropped away
    assert list(deadline.journal.stages) == ["preprocess", "fold 0", "fold 1", "fold 2", "restore"]
    assert [entry["fold"] for entry in deadline.journal.notes["folds"]] == [0, 1, 2]
    in_time = probability_of(networks, images, deadline=Deadline(1e6))
    np.testing.assert_allclose(in_time.array, found.array, atol=1e-6)


def test_networks_are_loaded_in_turn():
    """Each when the one before it has run; every tile is seen by a network in evaluation mode."""
    said = []

    def loader(fold: int) -> Callable[[], torch.nn.Module]:
        def load() -> torch.nn.Module:
            said.append(f"load {fold}")
            network = torch.nn.Sequential(torch.nn.Conv3d(2, 1, 1), torch.nn.Dropout(0.99))
            network.register_forward_hook(lambda module, *_: said.append(f"run {fold} {module.training}"))
            return network.train()

        return load

    probability_of([loader(0), loader(1)], make_images((20, 20, 20)))
    assert said == ["load 0", "run 0 False", "load 1", "run 1 False"]
    with pytest.raises(AutopetError, match="no segmentation network"):
        probability_of([], make_images((20, 20, 20)))


def test_a_scan_of_another_spacing_keeps_its_grid():
    images = make_images((20, 30, 25))
    constant = torch.nn.Conv3d(2, 1, 1)
    torch.nn.init.zeros_(constant.weight)
    torch.nn.init.constant_(constant.bias, 1.0)
    found = lesion_probability(
        [constant.requires_grad_(False)],
        images,
        ranges=RANGES,
        settings=SETTINGS,
        spacing_mm=(3.0, 5.0, 4.5),
        device="cpu",
    )
    assert found.same_grid(images["PET"], tolerance_mm=0.0)
    np.testing.assert_allclose(found.array[2:-2, 2:-2, 2:-2], 1 / (1 + math.exp(-1)), atol=1e-6)
    assert np.count_nonzero(found.array) == 16 * 26 * 21


# Time


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(torch.nn.Module):
    """A constant logit; each tile takes some seconds."""

    def __init__(self, clock: Clock, logit: float = 0.0, tile_s: float = 10.0) -> None:
        super().__init__()
        self.clock, self.logit, self.tile_s, self.tiles = clock, logit, tile_s, 0

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        self.clock.now += self.tile_s
        self.tiles += 1
        return torch.full_like(tile[:, :1], self.logit)


LOGITS = (0.0, 2.0, -1.0)
WIDE = {  # 4 tiles of 32 along x with overlap 0.25 or 0.125 (0, 24, 48, 64), 3 without
    name: Volume(np.full((32, 32, 96), value, np.float32), SPACING_MM) for name, value in (("CT", 0.0), ("PET", 2.0))
}


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize(
    ("limit_s", "tiles", "elapsed_s", "dropped"),
    [
        (1000, (4, 4, 4), 120, []),
        (160, (4, 4, 4), 120, []),  # 60 s each for two folds of 40 s, which may take half as long again
        (135, (4, 3, 4), 110, ["fold 1: overlap of tiles 0 instead of 0.25"]),  # 47.5 s: 3 tiles of 15 s
        (100, (4, 3, 0), 70, ["fold 1: overlap of tiles 0 instead", "fold 2: no time left after 70.0 s"]),
        (70, (4, 0, 0), 40, ["folds 1 to 2: no time left after 40.0 s"]),
        (45, (3, 0, 0), 30, ["fold 0: overlap of tiles 0 instead of 0.25", "folds 1 to 2: no time left"]),
        (34, (2, 0, 0), 20, ["fold 0: overlap", "fold 0: 1 of 3 tiles: no time left", "folds 1 to 2: no time left"]),
    ],
)
@pytest.mark.parametrize("reserve_s", [0.0, 30.0])
def test_what_the_time_allows(
    limit_s: float, tiles: tuple[int, ...], elapsed_s: float, dropped: list, reserve_s: float
):
    clock = Clock()
    networks = [Slow(clock, logit) for logit in LOGITS]
    deadline = Deadline(limit_s + reserve_s, clock=clock)
    found = probability_of(networks, WIDE, deadline=deadline, reserve_s=reserve_s).array
    assert tuple(network.tiles for network in networks) == tiles
    assert deadline.elapsed_s == elapsed_s <= limit_s
    assert len(deadline.journal.dropped) == len(dropped)
    assert all(text.startswith(start) for text, start in zip(deadline.journal.dropped, dropped, strict=True))
    counted = [sigmoid(logit) for logit, ran in zip(LOGITS, tiles, strict=True) if ran]
    reached = found if tiles[0] > 2 else found[:, :, 32:]  # RAS: the tile that was left out lies on the patient's right
    np.testing.assert_allclose(reached, np.mean(counted), atol=1e-6)
    assert (found.size - reached.size == 0) or not found[:, :, :32].any()
    assert [entry["tiles"] for entry in deadline.journal.notes["folds"]] == [ran for ran in tiles if ran]


def test_not_even_one_tile():
    clock = Clock()
    network = Slow(clock)
    deadline = Deadline(5.0, clock=clock)
    found = probability_of([network, network], WIDE, deadline=deadline, reserve_s=6.0)
    assert (network.tiles, deadline.elapsed_s) == (0, 0.0)
    assert not found.array.any()
    assert deadline.journal.dropped == [
        "fold 0: 3 of 3 tiles: no time left, their voxels count as background",
        "fold 1: no time left after 0.0 s",
    ]


def test_a_fold_that_becomes_slow_is_stopped_and_does_not_count():
    clock = Clock()
    networks = [Slow(clock, 2.0), Slow(clock, -5.0, tile_s=60.0), Slow(clock, -5.0)]
    deadline = Deadline(200.0, clock=clock)
    found = probability_of(networks, WIDE, deadline=deadline).array
    assert [network.tiles for network in networks] == [4, 2, 0]  # after two tiles 40 s are left, one may take 90 s
    assert deadline.elapsed_s == 160.0
    assert deadline.journal.dropped == [
        "fold 1: it was not ready after 120.0 s",
        "fold 2: no time left after 160.0 s",
    ]
    np.testing.assert_allclose(found, sigmoid(2.0), atol=1e-6)


def test_loading_takes_time_too():
    """A fold of 4 tiles takes 40 s and 25 s to load; of 95 s the loading alone, half as long again, leaves 3 tiles."""
    clock = Clock()
    networks = [Slow(clock), Slow(clock)]

    def loader(fold: int) -> Callable[[], torch.nn.Module]:
        def load() -> torch.nn.Module:
            clock.now += 25.0
            return networks[fold]

        return load

    deadline = Deadline(65.0 + 95.0, clock=clock)
    probability_of([loader(0), loader(1)], WIDE, deadline=deadline)
    assert [network.tiles for network in networks] == [4, 3]
    assert deadline.elapsed_s == 65.0 + 55.0


def test_the_way_back_is_reserved(monkeypatch: pytest.MonkeyPatch):
    """Preparing took 20 s, so restoring is given 20 s: 35 s of 85 s are left after the first tile, and not 55 s."""
    clock = Clock()
    from algorithms.swinmip import inference

    def slow(real: Callable) -> Callable:
        def work(*arguments, **more):
            clock.now += 20.0
            return real(*arguments, **more)

        return work

    monkeypatch.setattr(inference, "prepare", slow(inference.prepare))
    monkeypatch.setattr(inference, "restore", slow(inference.restore))
    network = Slow(clock)
    deadline = Deadline(85.0, clock=clock)
    probability_of([network, network], WIDE, deadline=deadline)
    assert (network.tiles, deadline.elapsed_s) == (3, 70.0)
    assert deadline.journal.stages == {"preprocess": 20.0, "fold 0": 30.0, "restore": 20.0}


@pytest.mark.parametrize(
    "spacing_mm", [(9.0, 9.0, 12.0), (3.0, 3.0, 4.0), SPACING_MM], ids=["coarser", "finer", "same"]
)
def test_the_way_back_may_be_longer_than_the_way_there(monkeypatch: pytest.MonkeyPatch, spacing_mm: tuple[float, ...]):
    """Resampling costs 1 ms per voxel that is made: two images on the working grid, one on the scan's own."""
    clock = Clock()

    class Resampling(AffineTransform):
        def forward(self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
            clock.now += 1e-3 * math.prod(map(int, spatial_size))
            return super().forward(src, theta, spatial_size)

    monkeypatch.setattr("monai.transforms.spatial.functional.AffineTransform", Resampling)
    there = 2 * WIDE["CT"].array.size * math.prod(SPACING_MM) / math.prod(spacing_mm)
    back = WIDE["CT"].array.size
    if spacing_mm == SPACING_MM:
        there = back = 0
    limit_s = 1e-3 * 3 * (there + back) + 100.0
    deadline = Deadline(limit_s, clock=clock)
    network = Slow(clock, tile_s=5.0)
    lesion_probability(
        [network] * 50, WIDE, ranges=RANGES, settings=SETTINGS, spacing_mm=spacing_mm, device="cpu", deadline=deadline
    )
    assert network.tiles
    assert deadline.elapsed_s <= limit_s
    assert deadline.journal.stages["restore"] == pytest.approx(1e-3 * back)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_says_what_the_cpu_says():
    images, networks = make_images(), convolutions(2)
    on_cpu = probability_of(networks, images)
    on_gpu = lesion_probability(
        networks,
        images,
        ranges=RANGES,
        settings=SETTINGS,
        spacing_mm=SPACING_MM,
        device="cuda",
        deadline=Deadline(600.0),
    )
    np.testing.assert_allclose(on_gpu.array, on_cpu.array, atol=1e-3)
