"""MONAI's U-Net: the published facts, its grids, a tiny training that is broken off, prediction under a clock."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.checkpoint import CONFIG, SUMS, read_config, sha256
from autopet.cohort import Case
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from autopet.volume import Volume

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai")

from monai.inferers import sliding_window_inference  # noqa: E402
from monai.transforms import ScaleIntensityRanged  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from baselines.unet3d import model as unet3d  # noqa: E402
from baselines.unet3d import patches, predict, train  # noqa: E402
from baselines.unet3d.model import PRESETS, Settings  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    epochs=3,
    iterations_per_epoch=2,
    batch=2,
    patch=(16, 16, 16),
    features=(4, 8, 8),
    window=(32, 32, 32),
    validation_share=0.25,
    validation_every=1,
    checkpoint_every=1,
)
PLAIN = replace(TINY, rotation_degrees=0.0, scale_share=0.0, flip_probability=0.0)  # patches as they were cut


# The published facts


def test_paper_preset_is_the_published_one():
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.batch, paper.learning_rate, paper.decay_power) == (800, 12, 1e-4, 0.0)
    assert paper.patch[::-1] == (128, 128, 32)
    assert paper.window == (160, 160, 160)
    assert (paper.loss, paper.overlap) == ("dice", 0.25)
    assert paper.epochs * paper.iterations_per_epoch == 66400  # the released checkpoint: 64574 steps after 778 epochs
    assert 778 * paper.iterations_per_epoch == 64574


def test_network_is_monai_s_with_the_published_arguments():
    published = monai.networks.nets.UNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=2,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm=monai.networks.layers.Norm.BATCH,
    )
    ours = unet3d.build_network(PRESETS["paper"])
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in published.state_dict().items()}
    # the first residual unit by hand: two convolutions 2->16 (one is the shortcut), one 16->16, two norms, two PReLUs
    first = sum(parameter.numel() for parameter in ours.model[0].parameters())
    assert first == 2 * (2 * 16 * 27 + 16) + (16 * 16 * 27 + 16) + 2 * 32 + 2
    sizes = []
    ours.model[1].submodule[1].submodule[1].submodule[1].submodule.register_forward_hook(
        lambda module, inputs, output: sizes.append((tuple(inputs[0].shape), tuple(output.shape)))
    )
    with torch.inference_mode():
        assert ours.eval()(torch.zeros(1, 2, 32, 64, 64)).shape == (1, 2, 32, 64, 64)
    assert sizes == [((1, 128, 2, 4, 4), (1, 256, 2, 4, 4))]  # sixteenth of the grid, 256 channels at the bottom


@pytest.mark.parametrize(
    ("name", "values", "scaled"),
    [
        ("CT", [-1000, -100, 75, 250, 600], [-900 / 350, 0.0, 0.5, 1.0, 2.0]),
        ("PET", [0, 7.5, 15, 45], [0.0, 0.5, 1.0, 3.0]),
    ],
)
def test_intensities_are_scaled_and_not_clipped(name: str, values: list[float], scaled: list[float]):
    found = unet3d.scale(np.array(values).reshape(1, 1, -1), name, PRESETS["paper"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), scaled, atol=1e-6)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(AutopetError, match="use dice or dice_ce"):
        Settings(loss="focal")
    with pytest.raises(AutopetError, match="divide by 16 with 5 stages"):
        Settings(patch=(24, 128, 128))
    for wrong in ({"overlap": 1.0}, {"validation_share": 1.0}, {"foreground_share": 1.5}, {"spacing_mm": (2.0, 3.0)}):
        with pytest.raises(AutopetError, match=f"{next(iter(wrong))} .* found"):
            Settings(**wrong)


def test_loss_is_the_dice_of_the_lesion_class_over_the_batch():
    logits = torch.zeros(2, 2, 1, 1, 2)
    logits[0, 1] = math.log(3.0)  # lesion 0.75 in the first patch, 0.5 in the second
    label = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(2, 1, 1, 1, 2)
    found = float(train.build_loss(PRESETS["paper"])(logits, label))
    assert found == pytest.approx(1 - 2 * (0.75 + 0.75) / (2.5 + 2), abs=1e-5)
    # binary cross-entropy on top: -ln 0.75 for lesion voxels, -ln 0.5 for the others
    entropy = (-math.log(0.75) - math.log(0.5)) / 2
    assert float(train.build_loss(TINY)(logits, label)) == pytest.approx(found + entropy, abs=1e-5)
    empty = train.build_loss(PRESETS["paper"])(logits, torch.zeros_like(label))
    assert torch.isfinite(empty)


# Grids


def test_a_grid_near_the_working_spacing_is_used_as_it_is():
    challenge = Volume(np.zeros((4, 5, 6), np.float32), (2.0364, 2.0364, 3.0), (1.0, 2.0, 3.0))
    assert unet3d.working_grid(challenge, PRESETS["paper"].spacing_mm) is challenge


def test_working_grid_turns_flipped_axes_by_hand():
    flipped = Volume(np.zeros((6, 5, 4)), (4.0, 5.0, 3.0), (10.0, 20.0, 30.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    made = unet3d.working_grid(flipped, (4.0, 5.0, 3.0))
    assert made.shape == (6, 5, 4)
    assert made.origin_mm == pytest.approx((10 - 3 * 4, 20 - 4 * 5, 30))
    finer = unet3d.working_grid(flipped, (2.0, 5.0, 6.0))  # x in halves, z in pairs
    assert finer.shape == (3, 5, 8)
    assert finer.origin_mm == pytest.approx((-2 - 1, 0, 30 + 1.5))


def test_median_spacing_is_along_the_patient_s_axes(tmp_path: Path):
    """Rows of this grid run to the front in steps of 3 mm, columns upwards in 4 mm, slices to the left in 6 mm."""
    sagittal = Volume(np.zeros((2, 3, 4), np.float32), (3.0, 4.0, 6.0), direction=(0, 0, 1, -1, 0, 0, 0, 1, 0))
    case = Case("a", "p", tmp_path)
    write_image(case.suv, sagittal)
    assert train.median_spacing_mm([case]) == (6.0, 3.0, 4.0)
    assert unet3d.working_grid(sagittal, (6.0, 3.0, 4.0)).shape == (3, 4, 2)


@pytest.mark.parametrize("direction", [(-1, 0, 0, 0, 1, 0, 0, 0, -1), (0, 0, 1, -1, 0, 0, 0, 1, 0)])
def test_mask_comes_back_on_an_anisotropic_turned_grid(direction: tuple[int, ...]):
    rng = np.random.default_rng(0)
    spacing = (3.0, 4.0, 6.0)
    image = Volume(rng.normal(size=(9, 8, 7)).astype(np.float32), spacing, (-7.0, 11.0, 40.0), direction)
    along = tuple(np.abs(image.affine[:3, :3]).sum(axis=1))  # spacing along the patient's axes
    settings = replace(TINY, pet_range_suv=(0.0, 1.0), ct_range_hu=(0.0, 1.0))
    array, grid = unet3d.prepare({"CT": image, "PET": image}, ("CT", "PET"), settings, along)
    assert np.allclose(np.reshape(grid.direction, (3, 3)), np.eye(3))
    for voxel in [(0, 0, 0), (6, 5, 2), (1, 7, 8)]:  # the same value at the same place in the patient
        place = image.affine @ [*voxel, 1]
        x, y, z = np.rint(np.linalg.inv(grid.affine) @ place)[:3].astype(int)
        assert array[1, z, y, x] == pytest.approx(image.array[voxel[::-1]], abs=1e-5)
    back = unet3d.lesion_mask(array[1], grid, image)
    assert back.same_grid(image)
    np.testing.assert_array_equal(back.array, image.array > 0.5)


def test_mask_of_another_spacing_is_resampled_as_probabilities():
    target = Volume(np.zeros((10, 20, 20)), (2.0, 2.0, 4.0))
    grid = unet3d.working_grid(target, (4.0, 4.0, 4.0))
    assert grid.shape == (10, 10, 10)
    probability = np.zeros((10, 10, 10), np.float32)
    probability[4, 5, 5] = 1.0  # its 4 mm cube is 2x2 fine voxels, each at a quarter of a coarse voxel: 0.75^2 = 0.5625
    mask = unet3d.lesion_mask(probability, grid, target).array
    assert mask.dtype == np.uint8
    assert sorted(map(tuple, np.argwhere(mask))) == [(4, y, x) for y in (10, 11) for x in (10, 11)]


# Patches


@pytest.fixture(scope="module")
def cached(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """case00 to case03 (without lesion) on their own grid."""
    folder = tmp_path_factory.mktemp("cached")
    spacing_mm = train.median_spacing_mm(cohort)
    assert spacing_mm == (4.0, 4.0, 6.0)
    return list(patches.cache_cases(cohort[:4], folder, PLAIN, spacing_mm).values())


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_patches_are_centred_by_label(cached: list[Path], share: float):
    data = patches.Patches(cached[:3], replace(PLAIN, foreground_share=share))
    with patches.plain_tensors():
        for index in range(6):
            image, label = data[index]
            assert (image.shape, label.shape) == ((2, 16, 16, 16), (1, 16, 16, 16))
            assert label[0, 8, 8, 8] == share  # no lesion of these cases lies within a half patch of the border
            assert share or image[1, 8, 8, 8] > 0.1 / 15  # in the body


def test_channels_are_ct_then_pet(cached: list[Path]):
    with patches.plain_tensors():
        image, _ = patches.Patches(cached, PLAIN)[0]
    assert float(image[0].max()) == pytest.approx((40 + 100) / 350, abs=1e-3)  # the body is 40 HU


def test_cases_without_lesion_take_their_turn(cached: list[Path]):
    data = patches.Patches(cached, TINY)
    rounds = [[data.case_of(4 * turn + place).name for place in range(4)] for turn in range(3)]
    assert all(sorted(names) == ["case00", "case01", "case02", "case03"] for names in rounds)
    index = rounds[0].index("case03")
    with patches.plain_tensors():
        image, label = data[index]
    assert not label.any()
    assert image[1].max() > 0.1 / 15


def test_patches_do_not_depend_on_who_cuts_them(cached: list[Path]):
    data = patches.Patches(cached, TINY)
    with patches.plain_tensors():
        alone = [data[index][0] for index in (5, 2, 5)]
        loader = torch.utils.data.DataLoader(data, batch_size=1, sampler=[2, 5], num_workers=2)
        by_workers = [image[0] for image, _ in loader]
    assert torch.equal(alone[0], alone[2])
    assert torch.equal(by_workers[0], alone[1])
    assert torch.equal(by_workers[1], alone[0])


def test_a_case_smaller_than_the_patch_is_padded(cohort: list[Case], tmp_path: Path):
    settings = replace(PLAIN, patch=(48, 16, 16))
    folder = patches.cache_cases(cohort[:1], tmp_path, settings, (4.0, 4.0, 6.0))["case00"]
    assert np.load(folder / "image.npy", mmap_mode="r").shape == (2, 48, 44, 42)


# Training


@pytest.fixture(scope="module")
def model(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny model; its training was broken off in the second epoch and resumed."""
    root = tmp_path_factory.mktemp("unet3d")
    seen: list[int] = []
    step = train.Run.step

    def broken(self, *batch):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return step(self, *batch)

    def counted(self, *batch):
        seen.append(self.epoch)
        return step(self, *batch)

    arguments = {"settings": TINY, "work": root / "work", "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            train.train(cohort[:4], root / "model", **arguments)
        assert not (root / "model").exists()
        patch.setattr(train.Run, "step", counted)
        train.train(cohort[:4], root / "model", **arguments)
    assert seen == [1, 1, 2, 2]  # epoch 0 was not trained again
    assert not (root / "work").exists()
    return root / "model"


def test_resumed_training_ends_with_the_weights_of_an_unbroken_one(model: Path, cohort: list[Case], tmp_path: Path):
    train.train(cohort[:4], tmp_path / "model", settings=TINY, work=tmp_path / "work", device="cpu")
    broken, whole = (load_file(folder / unet3d.WEIGHTS) for folder in (model, tmp_path / "model"))
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[key], whole[key]) for key in whole)


def test_model_folder_describes_itself(model: Path):
    assert sorted(path.name for path in model.iterdir()) == [SUMS, CONFIG, train.METRICS, unet3d.WEIGHTS]
    config = read_config(model, method="unet3d")
    assert config["channels"] == ["CT", "PET"]
    assert config["spacing_mm"] == [4.0, 4.0, 6.0]
    assert len(config["validation_cases"]) == 1
    assert sorted(config["training_cases"] + config["validation_cases"]) == ["case00", "case01", "case02", "case03"]
    with (model / train.METRICS).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert tuple(rows[0]) == ("epoch", "learning_rate", "train_loss", "val_dice", "seconds")
    assert float(rows[1]["learning_rate"]) == pytest.approx(2e-3 * (2 / 3) ** 0.9)


def test_the_best_validated_epoch_is_kept(cached: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Validation masks that hit 20, 70 and 40 % of the lesion, and nothing else: Dice 1/3, 0.82 and 0.57."""
    run = train.Run(TINY, tmp_path, "cpu")
    label = np.load(cached[0] / "label.npy")[0].astype(np.float32)
    weights = []

    def probability(network, image, **_):
        weights.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
        found = np.zeros_like(label)
        share = (0.2, 0.7, 0.4)[run.epoch]
        inside = np.flatnonzero(label)
        found.ravel()[inside[: round(share * len(inside))]] = 1
        return found

    monkeypatch.setattr(train, "lesion_probability", probability)
    run.fit(cached[1:], cached[:1])
    assert [row["val_dice"] for row in run.rows] == pytest.approx([2 * s / (1 + s) for s in (0.2, 0.7, 0.4)])
    assert run.best["epoch"] == 1
    assert all(torch.equal(run.final_weights()[key], weights[1][key]) for key in weights[1])
    assert any(not torch.equal(weights[1][key], weights[2][key]) for key in weights[1])


def test_training_learns_a_batch_by_heart(tmp_path: Path):
    run = train.Run(replace(TINY, learning_rate=2e-2), tmp_path, "cpu")
    image = torch.rand(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    label = (image[:, 1:] > 0.8).float()
    run.optimizer.param_groups[0]["lr"] = 2e-2
    losses = [run.step(image, label) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(AutopetError, match="the loss of epoch 0 is nan; lower learning_rate"):
        run.step(image * torch.nan, label)


def test_an_unfinished_training_is_never_thrown_away(cohort: list[Case], tmp_path: Path):
    work = tmp_path / "work"
    train._claim(work, cohort[:2], TINY)
    (work / "remains").touch()
    train._claim(work, cohort[:2], replace(TINY, workers=2, checkpoint_every=5))
    arguments = {"settings": TINY, "work": work, "device": "cpu"}
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        train.train(cohort[:3], tmp_path / "model", **arguments)
    with pytest.raises(AutopetError, match="unfinished training"):
        train.train(cohort[:2], tmp_path / "model", **(arguments | {"settings": replace(TINY, epochs=4)}))
    assert (work / "remains").exists()


def test_validation_holds_out_whole_patients(cohort: list[Case]):
    cases = [replace(case, patient_id=f"patient{index // 2}") for index, case in enumerate(cohort)]
    training, validation = train.hold_out(cases, 0.25, seed=0)
    assert (len(training), len(validation)) == (6, 2)
    assert not {case.patient_id for case in training} & {case.patient_id for case in validation}
    assert train.hold_out(cases, 0.0, seed=0) == (cases, [])
    with pytest.raises(AutopetError, match="holds out all 1 patients"):
        train.hold_out(cases[:2], 0.6, seed=0)


# Prediction


@pytest.fixture
def inputs(cohort: list[Case]) -> Inputs:
    case = cohort[5]
    return Inputs({PET.slug: read_image(case.suv), CT.slug: read_image(case.ct)}, case.name)


def test_prediction_is_on_the_input_grid_and_deterministic(model: Path, inputs: Inputs):
    deadline = Deadline()
    first = predict.predict(predict.load(model, "cpu"), inputs, deadline)
    second = predict.predict(predict.load(model, "cpu"), inputs, Deadline(1000.0))
    assert first[LESIONS.slug].same_grid(inputs["pet"])
    assert first[LESIONS.slug].array.dtype == np.uint8
    assert first[DATA_CENTRIC.slug] is False
    np.testing.assert_array_equal(first[LESIONS.slug].array, second[LESIONS.slug].array)
    assert list(deadline.journal.stages) == ["resample", "network", "export"]


def test_probabilities_are_those_of_monai_s_own_pipeline(inputs: Inputs):
    """MONAI's dictionary transforms and sliding window, put together as the published container does, decide."""
    torch.manual_seed(3)
    network = unet3d.build_network(TINY).eval()
    data = {"ct": inputs["ct"].array[None].astype(np.float32), "pet": inputs["pet"].array[None]}
    data = ScaleIntensityRanged("ct", -100, 250, 0.0, 1.0, clip=False)(data)
    data = ScaleIntensityRanged("pet", 0, 15, 0.0, 1.0, clip=False)(data)
    stacked = torch.cat([torch.as_tensor(data[name]) for name in ("ct", "pet")])[None]
    with torch.inference_mode():
        logits = sliding_window_inference(stacked, (32, 32, 32), 4, network)
    image, grid = unet3d.prepare({"CT": inputs["ct"], "PET": inputs["pet"]}, ("CT", "PET"), TINY, (4.0, 4.0, 6.0))
    assert grid is inputs["pet"]
    for deadline in (Deadline(), Deadline(1e6)):
        found = unet3d.lesion_probability(network, image, settings=TINY, device="cpu", deadline=deadline)
        assert deadline.journal.dropped == []
        np.testing.assert_allclose(found, torch.softmax(logits, dim=1)[0, 1].numpy(), atol=1e-5)


def test_an_image_smaller_than_the_window_needs_less(inputs: Inputs):
    network = unet3d.build_network(TINY).eval()
    sizes = []
    network.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[2:])))
    image = np.zeros((2, 5, 40, 18), np.float32)
    found = unet3d.lesion_probability(network, image, settings=TINY, device="cpu")
    assert found.shape == (5, 40, 18)
    assert set(sizes) == {(8, 32, 20)}  # multiples of 4, the step of three stages


class Slow(torch.nn.Module):
    """Logits 0 and 2 everywhere, each call taking the next of `seconds` on a clock of its own."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.seconds, self.calls, self.now = seconds, 0, 0.0

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        self.now += self.seconds(self.calls)
        self.calls += 1
        return torch.stack([torch.zeros_like(tile[:, 0]), torch.full_like(tile[:, 0], 2.0)], dim=1)


TALL = np.zeros((2, 96, 32, 32), np.float32)  # 4 tiles of 32 with overlap 0.25 or 0.125 (z 0, 24, 48, 64), 3 without


@pytest.mark.parametrize(
    ("limit_s", "reserve_s", "calls", "covered", "dropped"),
    [
        (1000.0, 5.0, 4, 96, []),
        (55.0, 0.0, 4, 96, []),  # 45 s left after the first tile: three more at 1.5 times 10 s
        (50.0, 0.0, 3, 96, ["overlap of tiles 0 instead of 0.25"]),
        (50.0, 16.0, 2, 64, ["overlap of tiles 0 instead of 0.25", "1 of 3 tiles: no time left"]),
        (24.0, 0.0, 1, 32, ["overlap of tiles 0 instead of 0.25", "2 of 3 tiles: no time left"]),
        (5.0, 6.0, 0, 0, ["3 of 3 tiles: no time left"]),
    ],
)
def test_what_the_time_allows(limit_s: float, reserve_s: float, calls: int, covered: int, dropped: list[str]):
    network = Slow(lambda call: 10.0)
    deadline = Deadline(limit_s, clock=lambda: network.now)
    found = unet3d.lesion_probability(
        network, TALL, settings=TINY, device="cpu", deadline=deadline, reserve_s=reserve_s
    )
    assert network.calls == calls
    assert deadline.elapsed_s <= limit_s - reserve_s or not calls
    assert len(deadline.journal.dropped) == len(dropped)
    assert all(text.startswith(start) for text, start in zip(deadline.journal.dropped, dropped, strict=True))
    np.testing.assert_allclose(found[:covered], 1 / (1 + math.exp(-2)), atol=1e-6)  # averages over the tiles that ran
    assert not found[covered:].any()


def test_a_network_that_becomes_slow_is_stopped_in_time():
    network = Slow(lambda call: 10.0 if call == 0 else 30.0)
    deadline = Deadline(100.0, clock=lambda: network.now)
    found = unet3d.lesion_probability(network, TALL, settings=TINY, device="cpu", deadline=deadline)
    assert (network.calls, deadline.elapsed_s) == (3, 70.0)  # 30 s left, the next would take up to 45 s
    assert deadline.journal.dropped == ["1 of 4 tiles: no time left, their voxels count as background"]
    np.testing.assert_allclose(found[:80], 1 / (1 + math.exp(-2)), atol=1e-6)
    assert not found[80:].any()


def test_a_mask_is_written_before_the_deadline(model: Path, inputs: Inputs):
    network = Slow(lambda call: 10.0)
    deadline = Deadline(60.0, clock=lambda: network.now)
    outputs = predict.predict(replace(predict.load(model, "cpu"), network=network), inputs, deadline)
    assert outputs[LESIONS.slug].same_grid(inputs["pet"])
    assert outputs[LESIONS.slug].array.any()
    assert deadline.elapsed_s <= 60.0
    assert deadline.journal.dropped


# Broken model folders


def test_weights_missing_or_damaged(model: Path, tmp_path: Path):
    with pytest.raises(AutopetError, match="no weights for unet3d"):
        predict.load(tmp_path, "cpu")
    copy_folder(model, tmp_path / "cut")
    weights = tmp_path / "cut" / unet3d.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AutopetError, match="checksum differs"):
        predict.load(tmp_path / "cut", "cpu")
    sign(tmp_path / "cut")
    with pytest.raises(AutopetError, match="does not hold the weights of the network .* train or copy the model again"):
        predict.load(tmp_path / "cut", "cpu")


def test_config_that_does_not_fit_the_weights(model: Path, tmp_path: Path):
    folder = copy_folder(model, tmp_path / "other")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"settings": config["settings"] | {"features": [4, 8, 16]}}))
    sign(folder)
    with pytest.raises(AutopetError, match="size mismatch"):
        predict.load(folder, "cpu")
    (folder / CONFIG).write_text(json.dumps({key: config[key] for key in ("method", "settings", "channels")}))
    sign(folder)
    with pytest.raises(AutopetError, match="lacks spacing_mm"):
        predict.load(folder, "cpu")
    (folder / CONFIG).write_text(json.dumps(config | {"channels": ["PET", "MR"]}))
    sign(folder)
    image = Volume(np.zeros((8, 8, 8), np.float32), (4.0, 4.0, 6.0))
    with pytest.raises(AutopetError, match="the model wants the channels PET, MR; there are CT, PET"):
        predict.predict(predict.load(folder, "cpu"), Inputs({"pet": image, "ct": image}, "x"), Deadline())


def test_channel_order_is_the_config_s(model: Path, tmp_path: Path, inputs: Inputs):
    folder = copy_folder(model, tmp_path / "swapped")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"channels": ["PET", "CT"]}))
    sign(folder)
    fed = []
    network = Slow(lambda call: 0.0)
    network.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    predict.predict(replace(predict.load(folder, "cpu"), network=network), inputs, Deadline())
    np.testing.assert_allclose(fed[0][0, 0].numpy(), inputs["pet"].array[:32, :32, :32] / 15, atol=1e-6)


def copy_folder(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def sign(folder: Path) -> None:
    """Make the checksums fit, as somebody who edits a model would."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names))


def test_other_files_in_the_model_s_place_are_noticed_before_the_training(cohort: list[Case], tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AutopetError, match="holds other files; choose a new folder for the model"):
        train.train(cohort[:2], tmp_path, settings=TINY, work=tmp_path / "work", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]
