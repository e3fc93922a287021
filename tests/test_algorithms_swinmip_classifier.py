"""The classifier: a tiny training that is broken off, the cycle that is kept, the score of a scan."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from safetensors.torch import load_file, save_file  # noqa: E402

from algorithms.swinmip.classifier import Run, load_classifier, scan_score, train_classifier  # noqa: E402
from algorithms.swinmip.model import PRESETS  # noqa: E402
from algorithms.swinmip.preprocessing import Ranges  # noqa: E402
from algorithms.swinmip.projections import project, standard_volume  # noqa: E402
from algorithms.swinmip.swin import build_classifier  # noqa: E402
from autopet.training import CHECKPOINT  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

RANGES = Ranges((-800.0, 500.0), (1.0, 30.0))
TINY = replace(
    PRESETS["demo"],
    cls_size=(32, 32),
    cls_spacing_mm=(4.0, 4.0, 4.0),
    cls_embedding=8,
    cls_depths=(2, 2),
    cls_heads=(1, 2),
    cls_cycles=3,
    cls_epochs_per_cycle=2,
    cls_batch=3,
    checkpoint_every=1,
)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Six volumes with a bright ball somewhere and six without, as `cache_volumes` writes them."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    paths: tuple[list[Path], list[Path]] = ([], [])
    for index in range(12):
        volume = rng.uniform(1, 2, (1, 20, 18, 24)).astype(np.float16)
        if index < 6:
            x, y, z = rng.integers(5, 12, 3)
            volume[0, x : x + 4, y : y + 4, z : z + 4] = 20
        path = folder / f"case{index:02d}.npy"
        np.save(path, volume)
        paths[index >= 6].append(path)
    return paths


def train(volumes: tuple[list[Path], list[Path]], root: Path, settings: Any = TINY, **changed: Any) -> dict:
    """Four volumes of each kind to train on, two to validate."""
    positives, negatives = volumes
    parts = [positives[:4], negatives[:4], positives[4:], negatives[4:]]
    arguments = {"axis": "y", "settings": settings, "device": "cpu", "fold": 1, "out": root / "weights.safetensors"}
    return train_classifier(*(changed.pop("parts", parts)), root / "work", **(arguments | changed))


# Training


@pytest.fixture(scope="module")
def trained(volumes: tuple[list[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A training that was broken off in its third epoch and resumed."""
    root = tmp_path_factory.mktemp("classifier")
    seen: list[int] = []
    step = Run.step

    def broken(self: Run, *batch: Any) -> float:
        if self.epoch == 2:
            raise KeyboardInterrupt
        return step(self, *batch)

    def counted(self: Run, *batch: Any) -> float:
        seen.append(self.epoch)
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            train(volumes, root)
        assert not (root / "weights.safetensors").exists()
        patch.setattr(Run, "step", counted)
        found = train(volumes, root)
    assert seen == [epoch for epoch in range(2, 6) for _ in range(3)]  # 8 volumes are 3 batches of 3
    return root, found


def test_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    trained: tuple[Path, dict], volumes: tuple[list[Path], list[Path]], tmp_path: Path
):
    root, found = trained
    torch.rand(5)  # random numbers of others do not matter
    assert train(volumes, tmp_path) == found
    broken, whole = (load_file(folder / "weights.safetensors") for folder in (root, tmp_path))
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[key], whole[key]) for key in whole)
    again = train(volumes, tmp_path)  # everything is there already
    assert again == found
    other = train(volumes, tmp_path / "fold0", fold=0)
    assert other.keys() == {"kept_cycle", "auroc"}
    different = load_file(tmp_path / "fold0" / "weights.safetensors")
    assert not all(torch.equal(different[key], whole[key]) for key in whole)


def test_metrics_follow_the_cycles(trained: tuple[Path, dict]):
    root, found = trained
    with (root / "work" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("cycle", "epoch", "learning_rate", "train_loss", "val_auroc", "seconds")
    assert [(row["cycle"], row["epoch"]) for row in rows] == [(str(n // 2), str(n)) for n in range(6)]
    # six batches per cycle: the second epoch begins with the fourth, at half of the cosine
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, 5e-4] * 3)
    areas = [float(row["val_auroc"]) for row in rows if row["val_auroc"]]
    assert [bool(row["val_auroc"]) for row in rows] == [False, True] * 3
    assert found["auroc"] == max(areas)
    assert found["kept_cycle"] == 2 - areas[::-1].index(max(areas))


def test_the_best_validated_cycle_is_kept(
    volumes: tuple[list[Path], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of 4 pairs 2, 4 and 3 in order: AUROC 0.5, 1 and 0.75."""
    answers = iter([[0.0, 1.0], [0.5, 0.5], [0.8, 0.9], [0.1, 0.2], [0.3, 0.9], [0.1, 0.5]])
    weights = []

    def probabilities(self: Run, images: Any) -> np.ndarray:
        assert images.shape == (2, 1, 32, 32)
        weights.append({key: tensor.clone() for key, tensor in self.network.state_dict().items()})
        return np.array(next(answers))

    monkeypatch.setattr(Run, "_probabilities", probabilities)
    assert train(volumes, tmp_path) == {"kept_cycle": 1, "auroc": 1.0}
    kept = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(kept[key], weights[2][key]) for key in kept)
    assert any(not torch.equal(weights[4][key], weights[2][key]) for key in kept)


@pytest.mark.parametrize("lacking", ["positives", "negatives"])
def test_without_one_kind_to_validate_the_last_cycle_is_kept(
    lacking: str, volumes: tuple[list[Path], list[Path]], tmp_path: Path
):
    positives, negatives = volumes
    validation = [[], negatives[4:]] if lacking == "positives" else [positives[4:], []]
    settings = replace(TINY, cls_cycles=2, cls_epochs_per_cycle=1)
    found = train(volumes, tmp_path, settings, parts=[positives[:2], negatives[:2], *validation])
    assert found == {"kept_cycle": 1, "auroc": None}
    last = torch.load(tmp_path / "work" / CHECKPOINT, weights_only=True)
    kept = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(kept[key], last["network"][key]) for key in kept)


def test_what_cannot_be_trained_is_refused(volumes: tuple[list[Path], list[Path]], tmp_path: Path):
    positives, negatives = volumes
    with pytest.raises(
        AutopetError, match="scans with and without lesions, found 6 and 0; give both kinds, or set gate"
    ):
        train(volumes, tmp_path, parts=[positives, [], positives, negatives])
    with pytest.raises(AutopetError, match="no ImageNet weights at"):
        train(volumes, tmp_path / "imagenet", replace(TINY, imagenet="missing.pth"))
    run = Run(TINY, tmp_path, device="cpu", axis="x", fold=0)
    with pytest.raises(AutopetError, match="the loss of the classifier's epoch 0 is nan"):
        run.step(torch.full((2, 3, 32, 32), torch.nan), torch.tensor([0.0, 1.0]))
    train(volumes, tmp_path / "one", replace(TINY, cls_cycles=1, cls_epochs_per_cycle=1))
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        train(volumes, tmp_path / "one", replace(TINY, cls_cycles=1, cls_epochs_per_cycle=1), axis="x")


def test_a_training_starts_from_imagenet_weights(volumes: tuple[list[Path], list[Path]], tmp_path: Path, capsys: Any):
    source = build_classifier(TINY, "x")
    save_file({"features.0.0.weight": source.embedding.proj.weight.detach()}, tmp_path / "imagenet.safetensors")
    run = Run(replace(TINY, imagenet=str(tmp_path / "imagenet.safetensors")), tmp_path, device="cpu", axis="y", fold=0)
    assert torch.equal(run.network.embedding.proj.weight, source.embedding.proj.weight)
    assert not torch.equal(run.network.head.weight, source.head.weight)
    assert "ImageNet weights: 1 of " in capsys.readouterr().err


def test_training_tells_balls_from_none(volumes: tuple[list[Path], list[Path]], tmp_path: Path):
    settings = replace(TINY, cls_cycles=2, cls_epochs_per_cycle=10, cls_learning_rate=2e-3)
    assert train(volumes, tmp_path, settings)["auroc"] == 1
    with (tmp_path / "work" / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.5 * losses[0]


# Asking


class Answer(torch.nn.Module):
    """A network of known logit that remembers its images."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.logit, self.images = math.log(probability / (1 - probability)), []

    def forward(self, images: Any) -> Any:
        assert not self.training
        self.images.append(images)
        return torch.full((len(images),), self.logit)


@pytest.fixture
def scan() -> Callable[[], Volume]:
    def make() -> Volume:
        array = np.full((24, 18, 20), 0.5, np.float32)
        array[3:21, 4:14, 2:18] = 3.0
        array[10:13, 6:9, 5:8] = 12.0
        return Volume(array, (4.0, 4.0, 4.0), (-5.0, 3.0, 10.0))

    return make


def test_a_scan_s_score_is_the_mean_over_projections_and_folds(scan: Callable[[], Volume]):
    networks = {"x": [Answer(0.2), Answer(0.4)], "y": [Answer(0.9), Answer(0.3)]}
    score = scan_score(networks, scan(), ranges=RANGES, settings=TINY, device="cpu")
    assert score == pytest.approx((0.2 + 0.4 + 0.9 + 0.3) / 4, abs=1e-6)
    volume = standard_volume(scan(), RANGES, TINY)
    for axis, folds in networks.items():
        for network in folds:
            assert torch.equal(network.images[0][0], project(volume, axis, TINY))
    with pytest.raises(AutopetError, match="no classifier to score the scan with"):
        scan_score({"x": []}, scan(), ranges=RANGES, settings=TINY, device="cpu")


def test_weights_come_back_from_their_file(trained: tuple[Path, dict], scan: Callable[[], Volume], tmp_path: Path):
    root, _ = trained
    network = load_classifier(root / "weights.safetensors", TINY)
    assert not network.training
    score = scan_score({"y": [network]}, scan(), ranges=RANGES, settings=TINY, device="cpu")
    image = project(standard_volume(scan(), RANGES, TINY), "y", TINY)[None]
    with torch.inference_mode():
        assert score == pytest.approx(float(torch.sigmoid(network(image))))
    assert 0 < score < 1
    for path, settings in (
        (tmp_path / "missing.safetensors", TINY),
        (root / "weights.safetensors", replace(TINY, cls_embedding=16)),
    ):
        with pytest.raises(
            AutopetError, match="does not hold the weights of the classifier that the settings describe"
        ):
            load_classifier(path, settings)


def test_an_empty_scan_has_a_score(trained: tuple[Path, dict]):
    network = load_classifier(trained[0] / "weights.safetensors", TINY)
    empty = Volume(np.zeros((10, 10, 10), np.float32), (4.0, 4.0, 4.0))
    assert 0 <= scan_score({"x": [network]}, empty, ranges=RANGES, settings=TINY, device="cpu") <= 1
