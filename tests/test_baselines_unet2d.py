"""The 2D U-Net: the published facts, a tiny training that is broken off, prediction under a clock."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from autopet.checkpoint import CONFIG, SUMS, read_config, sha256
from autopet.cohort import Case
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from autopet.volume import Volume
from autopet.work import STAMP

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from safetensors.torch import load_file  # noqa: E402

from autopet.slices import cache_slices, read_slices  # noqa: E402
from baselines.unet2d import model as unet2d  # noqa: E402
from baselines.unet2d import predict, train  # noqa: E402
from baselines.unet2d.model import PRESETS, Settings  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    epochs=3,
    batch=4,
    slices_per_epoch=8,
    lesion_share=0.5,
    size=48,
    features=(4, 4, 8, 8, 8),
    learning_rate=2e-3,
    lesion_weight=0.0,
    inference_batch=16,
    validation_share=0.25,
    validation_every=1,
    checkpoint_every=1,
)


# The published facts


def test_paper_preset_is_the_published_one():
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.batch, paper.learning_rate, paper.decay_power) == (200, 64, 5e-5, 0.0)
    assert (paper.size, paper.pixel_mm, paper.slice_mm) == (256, 2.0, 3.0)
    assert (paper.slices_per_epoch, paper.lesion_share) == (0, 0.0)  # all slices, as they come
    assert train.polynomial_rate(paper, 199) == 5e-5
    group = train.Run(TINY, Path("unused"), "cpu", 1.0).optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0)


def test_network_has_four_double_convolutions_down_and_up():
    """Sizes and numbers counted by hand after figure 1 of the U-Net's paper, convolutions padded."""
    network = unet2d.build_network(PRESETS["paper"]).eval()
    shapes: dict[str, list[tuple[int, ...]]] = {"into": [], "out of": []}

    def look(module, inputs, output):
        shapes["into"].append(tuple(inputs[0].shape[1:]))
        shapes["out of"].append(tuple(output.shape[1:]))

    doubles = [module for module in network.modules() if type(module).__name__ == "TwoConv"]
    for module in doubles:
        module.register_forward_hook(look)
    with torch.inference_mode():
        assert network(torch.zeros(1, 2, 32, 32)).shape == (1, 2, 32, 32)
    down = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 2, 2)]
    up = [(512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32)]
    assert shapes["out of"] == down + up
    # a skip connection: half of what enters is the partner's (of the last, a third: see README.md)
    assert shapes["into"][5:] == [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (192, 32, 32)]

    def double(before: int, after: int) -> int:
        return (before + after) * after * 9 + 2 * after + 4 * after  # two convolutions with bias, two normalisations

    channels = [2, 64, 128, 256, 512, 1024]
    going_down = sum(double(a, b) for a, b in pairwise(channels))
    going_up = double(1024, 512) + double(512, 256) + double(256, 128) + double(192, 64)
    enlarging = sum(4 * a * b + b for a, b in ((1024, 512), (512, 256), (256, 128), (128, 128)))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == going_down + going_up + enlarging + 64 * 2 + 2


def test_what_a_partner_saw_reaches_the_way_up():
    """With nothing coming from below, the output still depends on every level of the way down."""
    torch.manual_seed(0)
    network = unet2d.build_network(TINY).eval()
    images = torch.rand(1, 2, 32, 32)
    with torch.inference_mode():
        usual = network(images)
        for level in ("conv_0", "down_1", "down_2", "down_3", "down_4"):
            handle = getattr(network, level).register_forward_hook(lambda module, inputs, output: output + 1.0)
            assert not torch.allclose(network(images), usual)
            handle.remove()


def test_loss_weighs_lesions_by_hand(tmp_path: Path):
    """Lesion probability 0.75 at a lesion and 0.5 at background, weights 3 and 1."""
    run = train.Run(TINY, tmp_path, "cpu", 3.0)
    logits = torch.tensor([[[0.0, 0.0]], [[math.log(3.0), 0.0]]])[None]  # (1, 2, 1, 2)
    masks = torch.tensor([[[1, 0]]])
    expected = (3 * -math.log(0.75) + -math.log(0.5)) / 4
    assert float(run.loss(logits, masks)) == pytest.approx(expected)


def test_settings_that_cannot_work_are_refused():
    for wrong, message in (
        ({"size": 100}, "size must divide by 16"),
        ({"size": 0}, "size must divide by 16"),
        ({"features": (8, 16)}, "features needs 5 numbers"),
        ({"validation_share": 1.0}, "validation_share must be"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"lesion_share": 0.5}, "give slices_per_epoch, too"),
        ({"lesion_weight": -1.0}, "lesion_weight must be 0 or more"),
        ({"pixel_mm": 0.0}, "slices need size and pixel_mm above 0"),
        ({"shift_share": 1.0}, "shift_share must be"),
    ):
        with pytest.raises(AutopetError, match=message):
            Settings(**wrong)


# Training


@pytest.fixture(scope="module")
def model(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny model; its training was broken off in the second epoch and resumed."""
    root = tmp_path_factory.mktemp("unet2d")
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
    broken, whole = (load_file(folder / unet2d.WEIGHTS) for folder in (model, tmp_path / "model"))
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[key], whole[key]) for key in whole)


def test_model_folder_describes_itself(model: Path, cohort: list[Case]):
    assert sorted(path.name for path in model.iterdir()) == [SUMS, CONFIG, train.METRICS, unet2d.WEIGHTS]
    config = read_config(model, method="unet2d")
    assert config["channels"] == ["CT", "PET"]
    assert len(config["validation_cases"]) == 1
    assert sorted(config["training_cases"] + config["validation_cases"]) == ["case00", "case01", "case02", "case03"]
    masks = [read_image(case.mask).array for case in cohort[:4] if case.name in config["training_cases"]]
    positives = sum(int(mask.any(axis=(1, 2)).sum()) for mask in masks)
    assert config["lesion_weight"] == pytest.approx((3 * 40 - positives) / positives)
    with (model / train.METRICS).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert tuple(rows[0]) == ("epoch", "learning_rate", "train_loss", "val_dice", "seconds")
    assert float(rows[1]["learning_rate"]) == pytest.approx(2e-3 * (2 / 3) ** 0.9)


@pytest.fixture(scope="module")
def cached(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """case00 to case03 (without lesion) in slices."""
    return list(cache_slices(cohort[:4], tmp_path_factory.mktemp("slices"), size=48, pixel_mm=4.0).values())


def test_the_best_validated_epoch_is_kept(cached: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Validation masks that hit 20, 70 and 40 % of the lesion, and nothing else: Dice 1/3, 0.82 and 0.57."""
    run = train.Run(TINY, tmp_path, "cpu", 1.0)
    mask = read_slices(cached[0])[1]
    weights = []

    def probability(network, images, **_):
        weights.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
        found = np.zeros(mask.shape, np.float32)
        inside = np.flatnonzero(mask)
        found.ravel()[inside[: round((0.2, 0.7, 0.4)[run.epoch] * len(inside))]] = 1
        return found

    monkeypatch.setattr(train, "lesion_probability", probability)
    run.fit(cached[1:], [cached[0], cached[3]])  # the second has no lesion and does not count
    assert [row["val_dice"] for row in run.rows] == pytest.approx([2 * s / (1 + s) for s in (0.2, 0.7, 0.4)])
    assert run.best["epoch"] == 1
    assert all(torch.equal(run.final_weights()[key], weights[1][key]) for key in weights[1])
    assert any(not torch.equal(weights[1][key], weights[2][key]) for key in weights[1])


def test_without_lesions_to_validate_on_the_last_epoch_is_kept(cached: list[Path], tmp_path: Path):
    run = train.Run(replace(TINY, epochs=1), tmp_path, "cpu", 1.0)
    run.fit(cached[:2], cached[3:])
    assert run.rows[0]["val_dice"] is None
    assert not run.best
    assert run.final_weights().keys() == run.network.state_dict().keys()


def test_training_learns_a_batch_by_heart(tmp_path: Path):
    run = train.Run(replace(TINY, learning_rate=1e-2), tmp_path, "cpu", 1.0)
    images = torch.rand(4, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 1] > 0.8).long()
    losses = [run.step(images, masks) for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    with pytest.raises(AutopetError, match="the loss of epoch 0 is nan; lower learning_rate"):
        run.step(images * torch.nan, masks)


def test_a_trained_network_finds_lesions_of_a_patient_it_has_not_seen(cohort: list[Case], tmp_path: Path):
    """Cubes of SUV 8; a hot organ of SUV 6 in other slices must stay out, which a threshold of 5 lets in."""
    settings = replace(
        TINY,
        epochs=10,
        slices_per_epoch=64,
        batch=8,
        features=(8, 8, 16, 16, 16),
        learning_rate=1e-2,
        lesion_weight=3.0,
        contrast_share=0.0,  # which would make SUV 6 and 8 alike
        pet_range_suv=(5.0, 10.0),
        validation_share=0.0,
    )
    train.train(cohort[:5], tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")
    dice, by_threshold = [], []
    for case in cohort[5:7]:
        pet, mask = read_image(case.suv), read_image(case.mask).array != 0
        inputs = Inputs({PET.slug: pet, CT.slug: read_image(case.ct)}, case.name)
        found = predict.predict(predict.load(tmp_path / "model", "cpu"), inputs, Deadline())[LESIONS.slug].array != 0
        dice.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
        hot = pet.array > 5
        by_threshold.append(2 * (hot & mask).sum() / (hot.sum() + mask.sum()))
    assert min(dice) > 0.8
    assert max(by_threshold) < 0.65


def test_an_unfinished_training_is_never_thrown_away(cohort: list[Case], tmp_path: Path):
    work = tmp_path / "work"
    arguments = {"settings": TINY, "work": work, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "cache_slices", lambda *_, **__: (work / "remains").touch() or {}["stop"])
        with pytest.raises(KeyError, match="stop"):
            train.train(cohort[:2], tmp_path / "model", **arguments)
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        train.train(cohort[:3], tmp_path / "model", **arguments)
    with pytest.raises(AutopetError, match="unfinished training"):
        train.train(cohort[:2], tmp_path / "model", **(arguments | {"settings": replace(TINY, epochs=4)}))
    assert (work / "remains").exists()


def test_validation_holds_out_whole_patients(cohort: list[Case]):
    cases = [replace(case, patient_id=f"patient{index // 2}") for index, case in enumerate(cohort)]
    training, validation = train.hold_out(cases, 0.25, seed=0, by_lesions=True)
    assert (len(training), len(validation)) == (6, 2)
    assert not {case.patient_id for case in training} & {case.patient_id for case in validation}
    assert train.hold_out(cases, 0.0, seed=0, by_lesions=True) == (cases, [])
    with pytest.raises(AutopetError, match=r"validation_share=0.9 holds out all 1 patients; lower it"):
        train.hold_out(cases[3:4], 0.9, seed=0, by_lesions=True)  # one without lesions


def test_a_kill_while_the_work_folder_is_removed_stops_no_later_training(
    cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = {"settings": replace(TINY, epochs=1), "work": tmp_path / "work", "device": "cpu"}

    def dying(folder: Path, **_) -> None:
        if (folder / STAMP).exists():  # the work folder's, whatever it is called by now
            (folder / STAMP).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.shutil, "rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            train.train(cohort[:4], tmp_path / "model", **arguments)
    train.train(cohort[:4], tmp_path / "model", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_files_in_the_model_s_place_are_noticed_before_the_training(cohort: list[Case], tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AutopetError, match="holds other files; choose a new folder for the model"):
        train.train(cohort[:2], tmp_path, settings=TINY, work=tmp_path / "work", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_a_cohort_without_lesions_cannot_be_trained_on(cohort: list[Case], tmp_path: Path):
    settings = replace(TINY, validation_share=0.0)
    with pytest.raises(AutopetError, match="needs slices with and without lesions, found 0 with one among 40"):
        train.train(cohort[3:4], tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")


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
    assert deadline.journal.dropped == []


def random_model(inputs: Inputs, channels: tuple[str, ...] = ("CT", "PET")) -> predict.Model:
    """Weights of a network that has seen nothing, but for the one that makes half of this body a lesion."""
    torch.manual_seed(3)
    model = predict.Model(unet2d.build_network(TINY).eval(), TINY, channels, "cpu")
    logits = logits_by_hand(model, inputs)
    body = torch.from_numpy(inputs["pet"].array > 0.5)
    with torch.no_grad():
        model.network.final_conv.bias[1] -= (logits[:, 1] - logits[:, 0])[body].median()
    return model


@torch.inference_mode()
def logits_by_hand(model: predict.Model, inputs: Inputs) -> torch.Tensor:
    """Of voxels of 4 mm that need no resampling: rows padded from 44 to 48, columns from 42 to 48, then cut."""
    rim = ((0, 0), (2, 2), (3, 3))
    scaled = {
        "CT": np.clip((np.pad(inputs["ct"].array.astype(np.float32), rim, constant_values=-1024) + 1000) / 1400, 0, 1),
        "PET": np.clip(np.pad(inputs["pet"].array, rim) / 20, 0, 1),
    }
    images = np.stack([scaled[name] for name in model.channels], axis=1)
    return model.network(torch.from_numpy(images))[:, :, 2:-2, 3:-3]


def test_masks_are_the_network_s_slice_by_slice(inputs: Inputs):
    model = random_model(inputs)
    found = predict.predict(model, inputs, Deadline())[LESIONS.slug].array
    logits = logits_by_hand(model, inputs)
    expected = logits.argmax(dim=1).numpy()
    clear = (logits[:, 1] - logits[:, 0]).abs().numpy() > 1e-5  # others: rounding at 0.5
    assert 0.2 < expected[inputs["pet"].array > 0.5].mean() < 0.8
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_channel_order_is_the_model_s(inputs: Inputs):
    fed = []
    model = random_model(inputs, ("PET", "CT"))
    model.network.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    predict.predict(model, inputs, Deadline())
    pet, ct = (torch.cat(fed)[:, channel] for channel in range(2))
    assert float(pet.max()) == pytest.approx(float(inputs["pet"].array.max()) / 20, abs=1e-5)
    assert float(ct.max()) == pytest.approx(1040 / 1400, abs=1e-5)
    assert float(fed[0][:, 0].amax((1, 2)).min()) == float(torch.cat(fed)[:, 0].amax((1, 2)).sort()[0][-16])


def test_a_scan_that_lies_the_other_way_round_gets_the_same_mask(inputs: Inputs):
    def turn(volume: Volume) -> Volume:
        """The same patient, stored from head to feet, back to front, left to right."""
        ends_mm = (volume.affine @ [*(np.array(volume.shape[::-1]) - 1), 1.0])[:3]
        return Volume(
            volume.array[::-1, ::-1, ::-1].copy(), volume.spacing_mm, tuple(ends_mm), (-1, 0, 0, 0, -1, 0, 0, 0, -1)
        )

    turned = Inputs({slug: turn(inputs[slug]) for slug in ("pet", "ct")}, "turned")
    model = random_model(inputs)
    first, second = (predict.predict(model, case, Deadline())[LESIONS.slug] for case in (inputs, turned))
    assert second.same_grid(turned["pet"])
    assert (first.array != second.array[::-1, ::-1, ::-1]).mean() < 1e-3  # rounding at 0.5
    assert (first.array != second.array).mean() > 0.01


class Slow(torch.nn.Module):
    """Logits 0 and 2 everywhere, each call taking the next of `seconds` on a clock of its own."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.seconds, self.calls, self.now = seconds, 0, 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.now += self.seconds(self.calls)
        self.calls += 1
        return torch.stack([torch.zeros_like(images[:, 0]), torch.full_like(images[:, 0], 2.0)], dim=1)


SEVEN = np.zeros((7, 2, 16, 16), np.float32)
SEVEN[:, 0] = np.arange(7)[:, None, None] * 100.0  # HU, which must not matter
SEVEN[:, 1, 3, 4] = (2, 9, 1, 5, 8, 0, 3)  # SUV: from hot to cold the slices 1, 4, 3, 6, 0, 2, 5


@pytest.mark.parametrize(
    ("limit_s", "reserve_s", "calls", "covered", "dropped"),
    [
        (math.inf, 0.0, 4, [0, 1, 2, 3, 4, 5, 6], []),
        (1000.0, 5.0, 4, [0, 1, 2, 3, 4, 5, 6], []),
        (46.0, 0.0, 4, [0, 1, 2, 3, 4, 5, 6], []),  # 16 s left after three passes of two, 15 s needed
        (45.0, 0.0, 3, [0, 1, 2, 3, 4, 6], ["1 of 7 slices: no time left, they count as background"]),
        (46.0, 12.0, 2, [1, 3, 4, 6], ["3 of 7 slices: no time left, they count as background"]),
        (12.0, 0.0, 1, [1, 4], ["5 of 7 slices: no time left, they count as background"]),
        (5.0, 6.0, 0, [], ["7 of 7 slices: no time left, they count as background"]),
    ],
)
def test_what_the_time_allows(limit_s: float, reserve_s: float, calls: int, covered: list[int], dropped: list[str]):
    network = Slow(lambda call: 10.0)
    deadline = Deadline(limit_s, clock=lambda: network.now)
    settings = replace(TINY, inference_batch=2)
    found = unet2d.lesion_probability(
        network, SEVEN, settings=settings, device="cpu", deadline=deadline, reserve_s=reserve_s
    )
    assert network.calls == calls
    assert deadline.journal.dropped == dropped
    expected = np.zeros((7, 16, 16))
    expected[covered] = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_network_that_becomes_slow_is_stopped_in_time():
    network = Slow(lambda call: 10.0 if call == 0 else 30.0)
    deadline = Deadline(80.0, clock=lambda: network.now)
    unet2d.lesion_probability(
        network, SEVEN, settings=replace(TINY, inference_batch=2), device="cpu", deadline=deadline
    )
    assert (network.calls, deadline.elapsed_s) == (2, 40.0)  # 40 s left, the next may take 45 s


def test_a_mask_is_written_before_the_deadline(model: Path, inputs: Inputs):
    network = Slow(lambda call: 10.0)
    deadline = Deadline(30.0, clock=lambda: network.now)
    outputs = predict.predict(replace(predict.load(model, "cpu"), network=network), inputs, deadline)
    assert outputs[LESIONS.slug].same_grid(inputs["pet"])
    assert outputs[LESIONS.slug].array.any(axis=(1, 2)).sum() == 32  # two passes of 16 slices; a third has no 15 s
    assert deadline.elapsed_s == 20.0
    assert deadline.journal.dropped


# Broken model folders


def test_weights_missing_or_damaged(model: Path, tmp_path: Path):
    with pytest.raises(AutopetError, match="no weights for unet2d"):
        predict.load(tmp_path, "cpu")
    copy_folder(model, tmp_path / "cut")
    weights = tmp_path / "cut" / unet2d.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AutopetError, match="checksum differs"):
        predict.load(tmp_path / "cut", "cpu")
    sign(tmp_path / "cut")
    with pytest.raises(AutopetError, match="does not hold the weights of the network .* train or copy the model again"):
        predict.load(tmp_path / "cut", "cpu")


def test_config_that_does_not_fit_the_weights(model: Path, tmp_path: Path):
    folder = copy_folder(model, tmp_path / "other")
    config = json.loads((folder / CONFIG).read_text())
    for changed, message in (
        (config | {"settings": config["settings"] | {"features": [8, 8, 8, 8, 8]}}, "size mismatch"),
        ({key: config[key] for key in ("method", "settings")}, "lacks channels"),
        (config | {"channels": ["PET", "MR"]}, "has the channels PET, MR, expected CT and PET"),
        (config | {"settings": config["settings"] | {"colour": 1}}, "unknown setting colour"),
    ):
        (folder / CONFIG).write_text(json.dumps(changed))
        sign(folder)
        with pytest.raises(AutopetError, match=message):
            predict.load(folder, "cpu")


def copy_folder(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def sign(folder: Path) -> None:
    """Make the checksums fit, as somebody who edits a model would."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names))
