"""Inference of nnU-Net's family: equal to nnU-Net's own, and in time."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest

from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.volume import Volume

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

import nnunet_maker as maker  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

from autopet.nnunet.inference import MARGIN_S, SLACK, Ensemble, Folds, Policy, most_axes, reserve_s  # noqa: E402
from autopet.nnunet.resampling import InferenceConfiguration, faster, resize_channels  # noqa: E402
from autopet.nnunet.tiles import Budget, OutOfTimeError, TilePredictor, Worker  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def ours(plans: dict, folds: list, policy: Policy) -> Ensemble:
    return Ensemble(
        maker.make_network(plans),
        plans,
        maker.DATASET,
        folds,
        channels=maker.CHANNELS,
        configuration=maker.CONFIGURATION,
        device="cpu",
        policy=policy,
    )


def nnunets(plans: dict, folds: list, images: dict[str, Volume], *, step: float, axes: tuple) -> tuple:
    """Mask and probabilities of nnU-Net's own predictor."""
    manager = PlansManager(plans)
    with redirect_stdout(StringIO()):
        predictor = nnUNetPredictor(tile_step_size=step, use_mirroring=bool(axes), device=CPU, allow_tqdm=False)
    predictor.manual_initialization(
        maker.make_network(plans),
        manager,
        manager.get_configuration(maker.CONFIGURATION),
        folds,
        maker.DATASET,
        "nnUNetTrainer",
        axes,
    )
    voxels = np.stack([images[name].array.astype(np.float32) for name in maker.CHANNELS])
    spacing_mm = list(images["PET"].spacing_zyx_mm)
    with redirect_stdout(StringIO()):
        return predictor.predict_single_npy_array(voxels, {"spacing": spacing_mm}, None, None, True)


# --- equality with nnU-Net -------------------------------------------------------------------------------------------

MANY_TILES, FEW_TILES = (22, 30, 27), (17, 21, 20)  # voxels; at the networks' usual spacing 18 and 4 tiles of 16x16x16
CASES = {
    "one fold": ({}, 1, ()),
    "folds, mirrored": ({}, 2, (0, 1, 2)),
    "slices apart": ({"spacing_mm": (9.5, 2.5, 2.5)}, 3, (0, 2)),  # their distance is over three times the others
    "transposed": ({"transpose": (2, 0, 1), "spacing_mm": (2.5, 3.0, 2.5)}, 1, (1,)),
    "not resampled": ({"spacing_mm": (3.4, 2.04, 2.04)}, 1, ()),
    "patch larger than the image": ({"patch": (32, 32, 32)}, 2, (2,)),
}


@pytest.mark.parametrize("name", CASES)
def test_probabilities_and_mask_equal_nnunets(name: str):
    grid, count, axes = CASES[name]
    plans = maker.make_plans(**grid)
    folds, images = maker.make_folds(plans, count), maker.make_images(FEW_TILES if count > 1 else MANY_TILES)
    mask, probabilities = nnunets(plans, folds, images, step=0.6, axes=axes)
    model = ours(plans, folds, Policy(tile_step=0.6, mirror_axes=axes))
    found = model.probabilities(images, Deadline())
    assert probabilities[1].std() > 0.05  # not a comparison of constants
    assert np.abs(found - probabilities).max() < 1e-4
    np.testing.assert_array_equal(model.segment(images, Deadline()).array, mask)
    assert 0 < mask.mean() < 1


def test_a_limit_that_is_long_enough_changes_nothing():
    plans = maker.make_plans()
    folds, images = maker.make_folds(plans, 5), maker.make_images(FEW_TILES)
    _, probabilities = nnunets(plans, folds, images, step=0.5, axes=(0,))
    deadline = Deadline(3600.0)
    found = ours(plans, folds, Policy(mirror_axes=(0,))).probabilities(images, deadline)
    assert np.abs(found - probabilities).max() < 1e-4
    assert deadline.journal.dropped == []


def test_cropping_away_zeros_is_undone():
    plans = maker.make_plans()
    folds = maker.make_folds(plans, 1)
    images = {name: volume.with_array(volume.array.copy()) for name, volume in maker.make_images().items()}
    for volume in images.values():
        volume.array[:4], volume.array[:, :, -6:] = 0, 0
    mask, probabilities = nnunets(plans, folds, images, step=0.5, axes=())
    model = ours(plans, folds, Policy(mirror_axes=()))
    assert np.abs(model.probabilities(images, Deadline()) - probabilities).max() < 1e-4
    np.testing.assert_array_equal(model.segment(images, Deadline()).array, mask)
    assert mask[4:, :, :-6].any()
    assert not mask[:4].any()


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("separate", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", [(23, 31, 50), (40, 20, 24), (20, 60, 20)])
def test_resampling_equals_nnunets(order: int, separate: int | None, shape: tuple):
    data = np.random.default_rng(0).normal(size=(2, 20, 30, 41))
    expected = resample_data_or_seg(data, shape, False, separate, order, separate is not None, 0)
    found = resize_channels(data, shape, order=order, separate_axis=separate, device=CPU)
    assert np.abs(found - expected).max() < 1e-12


def test_a_resampling_that_is_not_known_is_nnunets_own():
    plans = maker.make_plans()["configurations"][maker.CONFIGURATION]
    plans["resampling_fn_probabilities"] = "resample_torch_fornnunet"
    plans["resampling_fn_probabilities_kwargs"] = {"is_seg": False}
    configuration = InferenceConfiguration(plans, CPU)
    assert configuration.resampling_fn_probabilities.func.__name__ == "resample_torch_fornnunet"
    assert configuration.resampling_fn_data.func.__name__ == "_resample"
    assert faster(print, CPU) is print


def test_channels_by_name_and_empty_images():
    plans = maker.make_plans()
    images = maker.make_images()
    model = ours(plans, maker.make_folds(plans, 1), Policy())
    assert (model._stack(dict(reversed(images.items())))[0] == images["CT"].array).all()
    with pytest.raises(AutopetError, match="the model wants the channels"):
        model.segment({"PET": images["PET"]}, Deadline())
    nothing = {name: volume.with_array(volume.array * 0) for name, volume in images.items()}
    assert not model.segment(nothing, Deadline(60.0)).array.any()


# --- the clock -------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that only the network moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Network(torch.nn.Module):
    """Takes `tile_s[fold]` on the clock per tile; says the first input channel is the lesion."""

    def __init__(self, clock: Clock, tile_s: list) -> None:
        super().__init__()
        self.register_buffer("fold", torch.zeros((), dtype=torch.long))
        self.clock, self.tile_s, self.seen = clock, tile_s, []

    def forward(self, x):
        fold = int(self.fold)
        cost = self.tile_s[fold]
        if isinstance(cost, Exception):
            raise cost
        self.clock.now += cost(len(self.seen)) if callable(cost) else cost
        self.seen.append(fold)
        return torch.cat([-x[:, :1], x[:, :1]], dim=1)


def scene(tile_s: list, *, limit_s: float, step: float = 0.6, first: bool = False) -> tuple[Folds, Network, Deadline]:
    """The folds of a case of 8x8x22 voxels in tiles of 8x8x8: 4 tiles at step 0.6, 4 at 0.8, 3 at 1.0."""
    clock = Clock()
    network = Network(clock, tile_s)
    deadline = Deadline(limit_s, clock=clock)
    predictor = TilePredictor(tile_step=step, device=CPU)
    manager = PlansManager(maker.make_plans(patch=(8, 8, 8)))
    folds = [{"fold": torch.tensor(index)} for index in range(len(tile_s))]
    configuration = manager.get_configuration(maker.CONFIGURATION)
    predictor.manual_initialization(network, manager, configuration, folds, maker.DATASET, "nnUNetTrainer", None)
    data = torch.ones((2, 8, 8, 22))
    policy = Policy(tile_step=step, mirror_first=first)
    return Folds(predictor, policy, data, Budget(deadline, reserve_s=20.0)), network, deadline


def planned(folds: Folds) -> list[tuple]:
    return [(one["fold"], tuple(one["mirror_axes"])) for one in folds.passes]


def test_five_folds_share_300_seconds():
    folds, network, deadline = scene([3.0] * 5, limit_s=300.0)  # 12 s for a pass of four tiles
    logits = folds.run()
    # after fold 0: 268 s are left, 67 s per fold: 12 * 2**2 * 1.2 = 57.6 fits, 115.2 does not. Then 220/3 = 73.3 and
    # 172/2 = 86 s: two axes again; at last 124 s for one fold: 115.2 fits, all three axes
    assert planned(folds) == [(0, ()), (1, (0, 1)), (2, (0, 1)), (3, (0, 1)), (4, (0, 1, 2))]
    assert network.seen == [0] * 4 + [1] * 16 + [2] * 16 + [3] * 16 + [4] * 32
    assert deadline.elapsed_s == 3.0 * (4 + 48 + 32) == 252.0
    assert [line.split(":")[0] for line in deadline.journal.dropped] == [
        f"mirroring of fold {fold} along axes 2" for fold in (1, 2, 3)
    ]
    assert logits.shape == (2, 8, 8, 22)
    assert (logits[1] > logits[0]).all()
    assert deadline.journal.notes["passes"] == folds.passes
    assert deadline.journal.stages == {"fold 0": 12.0, "fold 1": 48.0, "fold 2": 48.0, "fold 3": 48.0, "fold 4": 96.0}


def test_a_slow_fold_is_planned_around():
    folds, _, deadline = scene([2.0, 2.0, 24.0, 2.0, 2.0], limit_s=300.0)
    folds.run()
    # fold 0: 8 s, 272 left, 68 each: 8 * 4 * 1.2 = 38.4 fits and 8 * 8 * 1.2 = 76.8 does not: two axes, 32 s. Then
    # 240/3 = 80: three axes for fold 2, but its first tile takes 8 * 24 = 192 s and a second one would be too late.
    # 48/2 = 24 and then 32 s are left: 8 * 2 * 1.2 = 19.2 fits, 38.4 does not
    assert planned(folds) == [(0, ()), (1, (0, 1)), (2, (0, 1, 2)), (3, (0,)), (4, (0,))]
    assert [one["complete"] for one in folds.passes] == [True, True, False, True, True]
    assert sorted(folds.logits) == [0, 1, 3, 4]
    said = " | ".join(deadline.journal.dropped)
    assert "fold 2 mirrored along axes 0, 1, 2: it was not ready after 192.0 s" in said
    assert "mirroring of fold 3 along axes 1, 2: 24.0 s each left for folds 3, 4" in said
    assert deadline.elapsed_s == 8 + 32 + 192 + 16 + 16


def test_no_fold_is_started_that_cannot_end():
    folds, network, deadline = scene([20.0] * 5, limit_s=220.0)
    folds.run()
    # 80 s per pass, 200 - 80 = 120 left: 96 fits once; then 40 s are left
    assert planned(folds) == [(0, ()), (1, ())]
    assert deadline.journal.dropped[-1] == "folds 2, 3, 4: about 80.0 s needed, 40.0 s left for the networks"
    assert set(network.seen) == {0, 1}


def test_a_failing_fold_is_left_out():
    folds, _, deadline = scene([ValueError("bad weights"), 1.0, 1.0], limit_s=300.0)
    logits = folds.run()
    assert planned(folds) == [(1, ()), (2, (0, 1, 2))]  # the first that succeeds is the measure, not mirrored
    assert deadline.journal.dropped == ["fold 0: ValueError: bad weights"]
    assert (logits[1] > logits[0]).all()
    folds, _, _ = scene([ValueError("bad weights")] * 2, limit_s=300.0)
    with pytest.raises(ValueError, match="bad weights"):
        folds.run()


def test_a_failing_fold_is_left_out_without_a_limit_too():
    folds, _, deadline = scene([1.0, RuntimeError("no")], limit_s=float("inf"))
    folds.run()
    assert planned(folds) == [(0, ())]
    assert deadline.journal.dropped == ["fold 1: RuntimeError: no"]


def test_a_single_fold_is_mirrored_when_that_fits():
    for limit_s, expected in ((300.0, [(0, ()), (0, (0, 1, 2))]), (90.0, [(0, ()), (0, (0, 1))]), (35.0, [(0, ())])):
        folds, _, deadline = scene([2.5], limit_s=limit_s)
        folds.run()
        assert planned(folds) == expected
        assert bool(deadline.journal.dropped) == (limit_s < 300)
    folds, _, _ = scene([2.5], limit_s=float("inf"))
    folds.run()
    assert planned(folds) == [(0, (0, 1, 2))]


def test_the_first_of_many_is_mirrored_by_nnunet_only():
    for first, limit_s in ((False, float("inf")), (True, float("inf")), (False, 1e4), (True, 1e4)):
        folds, _, deadline = scene([1.0, 1.0], limit_s=limit_s, first=first)
        folds.run()
        unlimited = limit_s == float("inf")
        start = [(0, (0, 1, 2) if first and unlimited else ()), (1, (0, 1, 2))]
        assert planned(folds) == start + ([(0, (0, 1, 2))] if first and not unlimited else [])
        assert deadline.journal.dropped == []


def test_slow_tiles_take_larger_steps():
    # at step 0.5 the tiles begin at 0, 4, 8, 11, 14 (5), at 0.6 and 0.8 four, at 1.0 three: 0, 7, 14
    folds, network, deadline = scene([50.0], limit_s=220.0, step=0.5)
    folds.run()
    assert (folds.passes[0]["tile_step"], folds.passes[0]["tiles"], folds.complete) == (1.0, 3, True)
    assert deadline.journal.dropped[0] == "tile step 0.5: 1 instead, the tiles would not have fitted"
    assert deadline.elapsed_s == 150.0
    assert network.seen == [0, 0, 0]


def test_where_the_time_ends_the_rest_is_background():
    folds, _, deadline = scene([95.0, 1.0], limit_s=220.0)
    logits = folds.run()
    lesion = (logits[1] > logits[0]).numpy()
    assert lesion[:, :, :8].all()  # one tile, from 0 to 7: 105 s are left, 95 * 1.2 = 114 are asked for
    assert not lesion[:, :, 8:].any()
    assert deadline.elapsed_s == 95.0
    said = deadline.journal.dropped
    assert "the rest of fold 0: time was up after 1 tiles, what they miss is background" in said
    assert any(line.startswith("fold 1:") for line in said)


def test_tiles_that_become_slow_take_larger_steps_in_the_middle():
    folds, _, deadline = scene([lambda done: 10.0 if done == 0 else 55.0], limit_s=220.0, step=0.5)
    logits = folds.run()
    assert folds.complete
    assert deadline.elapsed_s <= 200.0
    assert (logits[1] > logits[0]).all()


def test_a_slow_first_tile_costs_neither_overlap_nor_mirroring():
    # as on a GPU, where the first tile loads libraries: 19 tiles at step 0.1, 10 s for the first, 1 s for each other
    folds, _, deadline = scene([lambda done: 1.0 if done else 10.0, 1.0], limit_s=180.0, step=0.1)
    folds.run()
    assert (folds.passes[0]["tile_step"], folds.passes[0]["tiles"]) == (0.1, 19)
    # a pass takes 19 s; 160 - 28 = 132 s are left: 19 * 2**2 * 1.2 = 91.2 fits, which 28 * 2**2 * 1.2 would not
    assert planned(folds) == [(0, ()), (1, (0, 1))]
    assert [line.split(":")[0] for line in deadline.journal.dropped] == ["mirroring of fold 1 along axes 2"]


@pytest.mark.parametrize("limit_s", [300.0, float("inf")])
def test_a_fold_that_gives_no_numbers_is_left_out(limit_s: float):
    folds, network, deadline = scene([1.0, 1.0, 1.0], limit_s=limit_s)
    network.register_forward_hook(lambda module, _, found: found * (float("nan") if int(module.fold) == 1 else 1.0))
    logits = folds.run()
    assert sorted(folds.logits) == [0, 2]
    assert deadline.journal.dropped == [
        "fold 1: RuntimeError: a logit is not a number; the weights of this fold are not sound"
    ]
    assert (logits[1] > logits[0]).all()


def test_a_failed_fold_lets_go_of_its_memory():
    for error, on_device in ((ValueError("no"), False), (torch.OutOfMemoryError("no"), True)):
        folds, network, _ = scene([1.0, 1.0], limit_s=300.0)
        folds.predictor.perform_everything_on_device = on_device  # so that a fold without memory is tried again
        tiles, fail = [], [error]

        def forget(module, inputs, tiles=tiles, fail=fail):
            tiles.append(weakref.ref(inputs[0]))
            if fail:
                raise fail.pop()

        network.register_forward_pre_hook(forget)
        gc.disable()
        try:
            folds.run()
            assert tiles[0]() is None
        finally:
            gc.enable()
        assert len(folds.journal.dropped) == 1


def test_time_that_is_over_before_the_first_tile_gives_background():
    folds, network, deadline = scene([1.0, 1.0], limit_s=100.0)
    folds.budget.deadline.clock.now = 90.0
    logits = folds.run()
    assert not (logits[1] > logits[0]).any()
    assert network.seen == []
    assert deadline.journal.dropped == [
        "the rest of fold 0: time was up after 0 tiles, what they miss is background",
        "fold 1: the first fold took all the time",
    ]


def test_without_memory_on_the_gpu_the_sums_move_then_the_network():
    folds, network, deadline = scene([1.0, 1.0], limit_s=float("inf"))
    predictor = folds.predictor
    predictor.perform_everything_on_device = True
    predictor.device = torch.device("meta")  # stands for a GPU that has no room
    real, places = predictor.run_pass, []

    def run_pass(*arguments, **options):
        places.append((predictor.device.type, predictor.perform_everything_on_device))
        if predictor.device.type != "cpu":
            raise torch.OutOfMemoryError("out of memory")
        return real(*arguments, **options)

    predictor.run_pass = run_pass
    network.to = lambda device: network
    folds.run()
    assert places == [("meta", True), ("meta", False), ("cpu", False), ("cpu", False)]
    assert sorted(folds.logits) == [0, 1]
    assert [line.split(" of ")[0] for line in deadline.journal.dropped] == ["the sums", "the network"]
    assert deadline.limit_s == float("inf")
    predictor.reset()
    assert (predictor.device, predictor.perform_everything_on_device) == (CPU, False)


def test_most_axes_and_reserve():
    lefts_s = (12.0, 12.1, 24.1, 48.1, 97.0, 1e9)
    assert [most_axes(3, pass_s=10.0, left_s=left_s) for left_s in lefts_s] == [-1, 0, 1, 2, 3, 3]
    clock = Clock()
    deadline = Deadline(300.0, clock=clock)
    deadline.journal.add("read", 2.0)
    deadline.journal.add("preprocess", 8.0)
    assert reserve_s(deadline) == pytest.approx(MARGIN_S + 3.0 + SLACK * 10.0)
    assert reserve_s(deadline, 30.0) == pytest.approx(MARGIN_S + 3.0 + SLACK * 32.0)  # read on the CPU, done on the GPU
    assert reserve_s(Deadline(clock=clock)) == 0.0


def test_resampling_back_is_timed_on_a_block_and_reserved(monkeypatch: pytest.MonkeyPatch):
    plans = maker.make_plans()
    model, clock = ours(plans, maker.make_folds(plans, 1), Policy()), Clock()

    def resample_back(logits, shape, properties):
        assert logits.shape == (2, 64, 64, 64)
        assert shape == [96, 96, 96]
        clock.now += float(np.prod(shape)) / 1e4

    monkeypatch.setattr(model, "_resample_back", resample_back)
    properties = {"shape_after_cropping_and_before_resampling": (150, 120, 105)}
    assert model._back_s((100, 80, 70), properties, Deadline(300.0, clock=clock)) == pytest.approx(189.0)
    monkeypatch.undo()
    deadline = Deadline(60.0)
    assert 0 < model._back_s((100, 80, 70), {**properties, "spacing": [3.0, 2.0, 2.0]}, deadline) < 10
    monkeypatch.setattr(model, "_back_s", lambda *_: 100.0)
    assert not model.segment(maker.make_images(), deadline).array.any()
    assert "time was up after 0 tiles" in deadline.journal.dropped[0]


def test_a_lone_thin_slice_and_a_lone_voxel_are_segmented():
    plans = maker.make_plans()  # slices of 3 mm: half a slice of them is none
    model = ours(plans, maker.make_folds(plans, 1), Policy(mirror_axes=()))
    images = {name: Volume(volume.array[:1], (2.04, 2.04, 1.0)) for name, volume in maker.make_images().items()}
    mask = model.segment(images, Deadline()).array
    assert mask.shape == (1, 30, 27)
    assert 0 < mask.mean() < 1
    for volume in images.values():
        volume.array[:], volume.array[0, 3, 4] = 0, 7
    assert model.segment(images, Deadline(60.0)).array.sum() <= 1  # cropping left one voxel


# --- a real clock ----------------------------------------------------------------------------------------------------


class Sleeper(torch.nn.Module):
    """Sleeps, then says that everything is a lesion."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.register_buffer("unused", torch.zeros(()))
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return torch.cat([torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])], dim=1)


@pytest.mark.parametrize(("tile_s", "limit_s", "whole"), [(0.02, 4.0, True), (0.4, 4.0, False), (30.0, 2.5, False)])
def test_a_network_that_sleeps_is_in_time(tile_s: float, limit_s: float, whole: bool):
    plans = maker.make_plans(spacing_mm=(3.4, 2.04, 2.04))
    model = ours(plans, maker.make_folds(plans, 1) * 5, Policy(tile_step=0.6, mirror_first=False))
    model.predictor.network = Sleeper(tile_s)
    model.predictor.list_of_parameters = [{"unused": torch.zeros(())}] * 5
    images = maker.make_images()
    deadline = Deadline(limit_s)
    mask = model.segment(images, deadline).array
    assert deadline.elapsed_s < limit_s - MARGIN_S / 2
    assert (mask == 1).all() == whole
    assert mask.any() == (tile_s < limit_s)
    assert deadline.journal.dropped
    if whole:
        assert len(deadline.journal.notes["passes"]) > 1
    assert deadline.journal.stages.keys() >= {"preprocess", "fold 0", "export"}


def test_a_worker_is_given_up_and_replaced():
    worker, release = Worker(), threading.Event()
    assert worker.run(lambda: 1, 5.0) == 1
    with pytest.raises(OutOfTimeError):
        worker.run(release.wait, 0.05)
    assert worker.run(lambda: 2, 5.0) == 2
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0, 5.0)
    release.set()
