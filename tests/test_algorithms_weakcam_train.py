"""Training of the slice classifier: broken off and resumed, from slice labels alone, and the model folder."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.checkpoint import CONFIG, SUMS, read_config
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.slices import MASK, lesion_weight, read_labels, read_slices

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from algorithms.weakcam import model as weakcam  # noqa: E402
from algorithms.weakcam import slices, thresholds, train  # noqa: E402
from algorithms.weakcam.model import CAM_METHODS, METHOD, PRESETS, Settings  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    size=32,
    pixel_mm=4.0,
    widths=(4, 8),
    convolutions=(1, 1),
    pooled_blocks=(1,),
    epochs=3,
    batch=32,
    learning_rate=0.05,
    validation_share=0.3,
    checkpoint_every=1,
    search_slices=12,
    class_threshold=0.3,
)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / weakcam.WEIGHTS)


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# The published facts


def test_paper_preset_is_the_published_one():
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.batch, paper.learning_rate, paper.momentum) == (50, 64, 1e-3, 0.9)


def test_the_optimizer_is_sgd_with_momentum_at_a_constant_rate(cached: list[Path], tmp_path: Path):
    run = train.Run(replace(TINY, learning_rate=0.5, momentum=0.25), tmp_path, "cpu", cached)
    parameter = run.network.head.bias
    parameter.data.zero_()
    values = []
    for gradient in ([1.0, 0.0], [1.0, 2.0]):  # velocity 1, 0; then 0.25 + 1, 2
        run.optimizer.zero_grad()
        parameter.grad = torch.tensor(gradient)
        run.optimizer.step()
        values.append(parameter.tolist())
    assert values == [[-0.5, 0.0], [-0.5 - 0.5 * 1.25, -1.0]]


# The loss


@pytest.fixture(scope="module")
def cached(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """case00 to case03, of which the last has no lesion."""
    return list(slices.cache(cohort[:4], tmp_path_factory.mktemp("cached"), TINY).values())


def test_the_weight_of_a_lesion_comes_from_the_training_slices(cached: list[Path], tmp_path: Path):
    labels = np.concatenate([read_slices(folder)[2] for folder in cached])
    run = train.Run(TINY, tmp_path, "cpu", cached)
    assert run.lesion_weight == lesion_weight(labels) == pytest.approx((~labels).sum() / labels.sum())
    assert run.loss.weight.tolist() == pytest.approx([1.0, run.lesion_weight])
    given = train.Run(replace(TINY, lesion_weight=7.7), tmp_path, "cpu", cached)
    assert given.loss.weight.tolist() == pytest.approx([1.0, 7.7])
    for settings in (TINY, replace(TINY, lesion_weight=7.7)):  # also with a weight there is nothing to tell apart
        with pytest.raises(AutopetError, match="slices with and without lesions, found 0"):
            train.Run(settings, tmp_path, "cpu", cached[3:])


def test_weighted_loss_by_hand_and_as_torch_has_it():
    probability, labels = np.array([0.5, 0.25, 0.75]), np.array([True, False, True])
    by_hand = (3 * -math.log(0.5) - math.log(0.75) + 3 * -math.log(0.75)) / 7
    assert train.weighted_loss(probability, labels, 3.0) == pytest.approx(by_hand)
    logits = torch.tensor(np.stack([np.log(1 - probability), np.log(probability)], axis=1))
    torchs = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 3.0], dtype=float))(logits, torch.tensor(labels).long())
    assert by_hand == pytest.approx(float(torchs))
    assert math.isfinite(train.weighted_loss(np.array([1.0]), np.array([False]), 3.0))


def test_a_loss_that_is_not_finite_ends_the_training(cached: list[Path], tmp_path: Path):
    run = train.Run(TINY, tmp_path, "cpu", cached)
    with pytest.raises(AutopetError, match="the loss of epoch 0 is nan; lower learning_rate"):
        run.step(torch.full((2, 2, 32, 32), torch.nan), torch.tensor([0, 1]))


def test_training_learns_from_slice_labels(cached: list[Path], tmp_path: Path):
    """Lesions of SUV 8, an organ of SUV 6 in other slices: whoever has learnt nothing has a loss of ln 2 = 0.69."""
    settings = replace(TINY, epochs=20, learning_rate=0.1, contrast_share=0.0, checkpoint_every=20)
    run = train.Run(settings, tmp_path, "cpu", cached[:3])
    run.fit([])
    losses = [row["train_loss"] for row in run.rows]
    assert losses[0] > 0.65
    assert losses[-1] < 0.5
    found = [
        np.concatenate([*slices.probabilities(run.network, read_slices(folder)[0], settings=settings, device="cpu")])
        for folder in cached[:3]
    ]
    assert slices.auroc(np.concatenate(found), read_labels(cached[:3])) > 0.8


# A training that is broken off


@pytest.fixture(scope="module")
def model(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; its training was broken off in the second epoch, and its search in the second method."""
    root = tmp_path_factory.mktemp("weakcam")
    steps: list[int] = []
    methods: set[str] = set()
    step, maps = train.Run.step, thresholds.slice_maps

    def broken_step(self, *batch):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return step(self, *batch)

    def counted_step(self, *batch):
        steps.append(self.epoch)
        return step(self, *batch)

    def broken_maps(*args, method: str, **options):
        if method == "gradcam++":
            raise KeyboardInterrupt
        return maps(*args, method=method, **options)

    def counted_maps(*args, method: str, **options):
        methods.add(method)
        return maps(*args, method=method, **options)

    arguments = {"settings": TINY, "work": root / "work", "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, "step", broken_step)
        with pytest.raises(KeyboardInterrupt):
            train.train(cohort[:6], root / "model", **arguments)
        patch.setattr(train.Run, "step", counted_step)
        patch.setattr(thresholds, "slice_maps", broken_maps)
        with pytest.raises(KeyboardInterrupt):
            train.train(cohort[:6], root / "model", **arguments)
        assert sorted(set(steps)) == [1, 2]  # epoch 0 was not trained again
        assert not (root / "model").exists()
        steps.clear()
        patch.setattr(thresholds, "slice_maps", counted_maps)
        train.train(cohort[:6], root / "model", **arguments)
    assert not steps  # nor any other, once all were done
    assert methods == {"gradcam++", "scorecam", "global"}
    assert not (root / "work").exists()
    return root / "model"


@pytest.fixture(scope="module")
def unbroken(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unbroken")
    return train.train(cohort[:6], root / "model", settings=TINY, work=root / "work", device="cpu")


def test_resumed_training_ends_with_the_weights_of_an_unbroken_one(model: Path, unbroken: Path):
    assert _same(_weights(model), _weights(unbroken))
    assert (model / train.SEARCH).read_text() == (unbroken / train.SEARCH).read_text()
    assert read_config(model, method=METHOD) == read_config(unbroken, method=METHOD)


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(
    cached: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = train.Run(TINY, tmp_path / "whole", "cpu", cached[:3])
    whole.fit(cached[3:])
    save, count = torch.save, 0

    def dying(state, path):
        nonlocal count
        count += 1
        if count == 2:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        train.Run(TINY, tmp_path / "work", "cpu", cached[:3]).fit(cached[3:])
    again = train.Run(TINY, tmp_path / "work", "cpu", cached[:3])
    again.fit(cached[3:])
    assert [row["epoch"] for row in again.rows] == [0, 1, 2]
    assert _same(dict(again.final_weights()), dict(whole.final_weights()))
    assert _same(again.network.state_dict(), whole.network.state_dict())


def test_training_sees_slice_labels_and_no_masks(cohort: list[Case], unbroken: Path, tmp_path: Path):
    """The masks of training cases shrink to one voxel per slice, somewhere: the classifier is the same to the bit."""
    training = set(read_config(unbroken, method=METHOD)["training_cases"])
    rng = np.random.default_rng(0)
    changed = []
    for case in cohort[:6]:
        folder = tmp_path / case.name
        mask = read_image(case.mask)
        array = mask.array
        if case.name in training:
            array = np.zeros_like(mask.array)
            positive = np.flatnonzero(mask.array.any(axis=(1, 2)))
            array[positive, rng.integers(10, 30, len(positive)), rng.integers(10, 30, len(positive))] = 1
        other = replace(case, folder=folder)
        for source, target in ((case.suv, other.suv), (case.ct, other.ct)):
            write_image(target, read_image(source))
        write_image(other.mask, mask.with_array(array))
        changed.append(other)
    out = train.train(changed, tmp_path / "model", settings=TINY, work=tmp_path / "work", device="cpu")
    assert _same(_weights(out), _weights(unbroken))
    assert (out / train.SEARCH).read_text() == (unbroken / train.SEARCH).read_text()


def test_an_unfinished_training_is_never_thrown_away(cohort: list[Case], tmp_path: Path):
    work = tmp_path / "work"
    train._claim(work, cohort[:2], TINY)
    (work / "remains").touch()
    train._claim(work, cohort[:2], replace(TINY, workers=2, checkpoint_every=5))
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        train.train(cohort[:3], tmp_path / "model", settings=TINY, work=work, device="cpu")
    assert (work / "remains").exists()


def test_weights_that_are_missing_are_missed_before_the_work(cohort: list[Case], tmp_path: Path):
    settings = replace(TINY, imagenet=str(tmp_path / "vgg16.safetensors"))
    with pytest.raises(AutopetError, match=r"imagenet=.*vgg16.safetensors: there is no such file"):
        train.train(cohort[:2], tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")
    assert not (tmp_path / "work").exists()


def test_imagenet_weights_are_read_once_and_not_after_a_resume(
    cached: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Said:
        def summary(self) -> str:
            return "said"

    read: list[Path] = []
    monkeypatch.setattr(train, "load_imagenet", lambda network, path: read.append(path) or Said())
    settings = replace(TINY, imagenet="vgg16.safetensors", epochs=1)
    for _ in range(2):
        train.Run(settings, tmp_path, "cpu", cached).fit([])
    assert read == [Path("vgg16.safetensors")]


# Validation


def test_the_epoch_of_the_lowest_validation_loss_is_kept(
    cached: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = train.Run(TINY, tmp_path, "cpu", cached[1:])
    labels = read_labels(cached[:1])
    weights = []

    def probability(network, images, **_):
        weights.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
        right = (0.6, 0.9, 0.7)[run.epoch]  # for every slice
        yield np.where(labels, right, 1 - right)

    monkeypatch.setattr(train, "probabilities", probability)
    run.fit(cached[:1])
    assert [row["val_loss"] for row in run.rows] == pytest.approx([-math.log(p) for p in (0.6, 0.9, 0.7)])
    assert [row["val_auroc"] for row in run.rows] == [1.0, 1.0, 1.0]
    assert run.best["epoch"] == 1
    assert _same(dict(run.final_weights()), weights[1])
    assert _same(run.final_network().state_dict(), weights[1])
    assert not _same(weights[1], weights[2])


def test_without_validation_the_last_epoch_is_kept_and_thresholds_come_from_training_cases(
    cohort: list[Case], tmp_path: Path
):
    settings = replace(TINY, epochs=1, validation_share=0.0, search_slices=4, class_threshold=0.0)
    out = train.train(cohort[:2], tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")
    config = read_config(out, method=METHOD)
    assert (config["training_cases"], config["validation_cases"]) == (["case00", "case01"], [])
    assert config["kept_epoch"] == 0
    assert config["searched_slices"] == 4
    row = next(csv.DictReader((out / train.METRICS).open()))
    assert (row["val_loss"], row["val_auroc"]) == ("", "")


def test_without_a_second_patient_with_lesions_nobody_is_held_out(cohort: list[Case], tmp_path: Path):
    """case00 has lesions, case03 and case07 have none: on these neither an epoch nor thresholds can be chosen."""
    few = [cohort[0], cohort[3], cohort[7]]
    settings = replace(TINY, epochs=1, validation_share=0.5, search_slices=4, class_threshold=0.0)
    out = train.train(few, tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")
    config = read_config(out, method=METHOD)
    assert (config["training_cases"], config["validation_cases"]) == (["case00", "case03", "case07"], [])


def _with_lesion(case: Case, folder: Path, *box: slice) -> Case:
    """The same images with another lesion."""
    other = replace(case, folder=folder)
    for source, target in ((case.suv, other.suv), (case.ct, other.ct)):
        write_image(target, read_image(source))
    mask = read_image(case.mask)
    array = np.zeros_like(mask.array)
    array[box] = 1
    write_image(other.mask, mask.with_array(array))
    return other


VOXEL = (slice(20, 21), slice(11, 12), slice(11, 12))  # that no pixel of 40 mm reads
LARGE = (slice(15, 25), slice(10, 32), slice(10, 32))


def test_lesions_between_the_pixels_leave_the_thresholds_to_training_cases(cohort: list[Case], tmp_path: Path):
    settings = replace(TINY, epochs=1, pixel_mm=40.0, search_slices=4, class_threshold=0.0)
    _, (held,) = train.hold_out(cohort[:2], 0.3, seed=settings.seed, by_lesions=True)
    cases = [
        _with_lesion(case, tmp_path / case.name, *(VOXEL if case.name == held.name else LARGE)) for case in cohort[:2]
    ]
    out = train.train(cases, tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")
    config = read_config(out, method=METHOD)
    assert config["validation_cases"] == [held.name]  # its slices' labels still choose the epoch
    assert config["searched_slices"] == 4
    assert config["thresholds"]["global"]["percentile"]["dice"] > 0


def test_that_no_lesion_reaches_a_pixel_is_said_before_the_training(
    cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cases = [_with_lesion(case, tmp_path / case.name, *VOXEL) for case in cohort[:2]]
    monkeypatch.setattr(train.Run, "fit", lambda *_: pytest.fail("trained for nothing"))
    settings = replace(TINY, pixel_mm=40.0)
    with pytest.raises(AutopetError, match="no lesion of 2 cases reaches the centre of a pixel of 40 mm"):
        train.train(cases, tmp_path / "model", settings=settings, work=tmp_path / "work", device="cpu")


# The model folder


def test_model_folder_describes_itself(model: Path):
    names = [SUMS, CONFIG, train.METRICS, train.SEARCH, weakcam.WEIGHTS]
    assert sorted(path.name for path in model.iterdir()) == sorted(names)
    config = read_config(model, method=METHOD)
    assert config["channels"] == ["CT", "PET"]
    assert (config["reading"], config["class_threshold"]) == ("fraction", 0.3)
    assert config["cam"] in thresholds.DEFAULTS
    assert set(config["thresholds"]) == {*CAM_METHODS, "global"}
    for by_reading in config["thresholds"].values():
        assert set(by_reading) == {"fraction", "percentile"}
        assert all(set(values) == {"t_m", "q_m", "dice", "pooled_dice"} for values in by_reading.values())
    assert sorted(config["training_cases"] + config["validation_cases"]) == [f"case0{n}" for n in range(6)]
    assert len(config["validation_cases"]) == 2  # three tenths of the five patients with lesions and of the one without
    assert config["lesion_weight"] > 1
    assert config["searched_slices"] <= 12
    network, settings, _ = weakcam.load_network(model)
    assert settings == TINY
    assert isinstance(settings, Settings)
    assert not network.training


def test_metrics_have_a_row_per_epoch(model: Path):
    with (model / train.METRICS).open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("epoch", "learning_rate", "train_loss", "val_loss", "val_auroc", "seconds")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(0 <= float(row["val_auroc"]) <= 1 and float(row["val_loss"]) > 0 for row in rows)
    kept = read_config(model, method=METHOD)["kept_epoch"]
    assert float(rows[kept]["val_loss"]) == min(float(row["val_loss"]) for row in rows)


def test_the_chosen_values_are_the_best_of_the_table(model: Path):
    config = read_config(model, method=METHOD)
    with (model / train.SEARCH).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 20 * (4 * 10 + 1)
    for method, by_reading in config["thresholds"].items():
        for reading, chosen in by_reading.items():
            mine = [row for row in rows if (row["method"], row["reading"]) == (method, reading)]
            place = (f"{chosen['t_m']:.4f}", f"{chosen['q_m']:.4f}")
            (at,) = [row for row in mine if (row["t_m"], row["q_m"]) == place]
            assert float(at["dice"]) == max(float(row["dice"]) for row in mine)
            assert (chosen["dice"], chosen["pooled_dice"]) == pytest.approx(
                (float(at["dice"]), float(at["pooled_dice"])), abs=1e-6
            )
    dice = {method: config["thresholds"][method]["fraction"]["dice"] for method in thresholds.DEFAULTS}
    assert dice[config["cam"]] == max(dice.values())


def test_a_damaged_cache_is_not_hidden(cohort: list[Case], tmp_path: Path):
    """The masks of a cached case are what thresholds are scored with: without them there is an error, not a zero."""
    folder = slices.cache(cohort[:1], tmp_path, TINY)["case00"]
    (folder / MASK).unlink()
    with pytest.raises(FileNotFoundError):
        read_slices(folder)
