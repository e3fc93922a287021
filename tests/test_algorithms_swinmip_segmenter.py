"""Training of one fold: broken off and resumed, the cycle that is kept, what is left out, what validation measures."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from monai.networks.nets import SwinUNETR  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from algorithms.swinmip import segmenter  # noqa: E402
from algorithms.swinmip.model import PRESETS, load_segmenter  # noqa: E402
from algorithms.swinmip.patches import Patches  # noqa: E402
from autopet.patches import save_case  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    patch=(32, 32, 64),  # 32 voxels a side would leave one voxel after five halvings, and nothing to normalise over
    window=4,
    depths=(1, 1, 1, 1),
    patches_per_volume=1,
    batch=1,
    cycles=2,
    epochs_per_cycle=2,
    learning_rate=1e-3,
)
STEPS = 2  # per epoch: a batch of each of two training cases


def write(folder: Path, *, seed: int, lesion: bool = True, everywhere: bool = False, depth: int = 64) -> Path:
    """A case of 32 x 32 x `depth` voxels whose lesion is the brightest in the second channel, but not in the first."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    label = np.zeros((32, 32, depth), bool)
    if lesion:
        x, y, z = rng.integers(6, 20, 3)
        label[x : x + 6, y : y + 6, z : z + 8] = True
    label |= everywhere
    image = rng.normal(0, 0.3, (2, *label.shape))
    image[1] += 2 * label
    save_case(folder, image, label, foreground=np.flatnonzero(label), background=np.flatnonzero(~label))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cases")
    made = {name: write(root / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))}
    return made | {"none": write(root / "none", seed=3, lesion=False)}


def train(folders: dict[str, Path], root: Path, **changes: object) -> dict:
    arguments = {"settings": TINY, "device": "cpu", "fold": 0, "out": root / "weights.safetensors"} | changes
    return segmenter.train_segmenter([folders["one"], folders["two"]], [folders["three"]], root / "work", **arguments)


def rows_of(work: Path) -> list[dict[str, str]]:
    with (work / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """A training without a break."""
    root = tmp_path_factory.mktemp("whole")
    return train(folders, root), root


# Broken off and resumed


def test_a_resumed_training_ends_with_the_same_weights(folders, whole, tmp_path: Path, monkeypatch):
    """Broken off in the second epoch, the middle of the first cycle."""
    step, steps, broken_at = segmenter.Run.step, [], STEPS + 1

    def counted(self, *batch):
        if len(steps) == broken_at:
            raise KeyboardInterrupt
        steps.append((self.epoch, self.optimizer.param_groups[0]["lr"]))
        return step(self, *batch)

    monkeypatch.setattr(segmenter.Run, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        train(folders, tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()
    steps, broken_at = [], math.inf
    result = train(folders, tmp_path)
    assert [epoch for epoch, _ in steps] == [1, 1, 2, 2, 3, 3]  # epoch 0 was not trained again
    rates = [1e-3 * (1 + math.cos(math.pi * place / 4)) / 2 for place in range(4)] * 2
    assert [rate for _, rate in steps] == pytest.approx(rates[STEPS:])
    expected, root = whole
    assert result == expected
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (tmp_path, root))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    kept = [{key: row[key] for key in row if key != "seconds"} for row in rows_of(tmp_path / "work")]
    assert kept == [{key: row[key] for key in row if key != "seconds"} for row in rows_of(root / "work")]


def test_a_finished_training_is_not_done_again(folders, whole, monkeypatch: pytest.MonkeyPatch):
    expected, root = whole
    before = (root / "weights.safetensors").read_bytes()
    (root / "weights.safetensors").unlink()
    monkeypatch.setattr(segmenter.Run, "step", None)  # would fail if it were called
    assert train(folders, root) == expected
    assert (root / "weights.safetensors").read_bytes() == before


def test_the_table_of_a_training(whole):
    result, root = whole
    rows = rows_of(root / "work")
    assert tuple(rows[0]) == ("cycle", "epoch", "learning_rate", "train_loss", "val_topk_auroc", "seconds")
    assert [(row["cycle"], row["epoch"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "2"), ("1", "3")]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, 5e-4] * 2)  # two steps of four
    assert [bool(row["val_topk_auroc"]) for row in rows] == [False, True] * 2  # after each cycle
    scores = [float(row["val_topk_auroc"]) for row in rows[1::2]]
    assert result == {"kept_cycle": int(np.argmax(scores)), "topk_auroc": max(scores)}
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)


def test_the_weights_are_those_of_a_segmenter(whole):
    network = load_segmenter(whole[1] / "weights.safetensors", TINY)
    assert isinstance(network, SwinUNETR)


def test_folds_start_apart_and_a_fold_starts_the_same(folders, tmp_path: Path):
    def start(fold: int) -> torch.Tensor:
        return fresh(folders, tmp_path, fold=fold).network.swinViT.patch_embed.proj.weight

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


def test_another_training_is_never_thrown_away(folders, whole):
    _, root = whole
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        train(folders, root, settings=replace(TINY, loss="dice"))
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        train(folders, root, fold=1)
    assert train(folders, root, settings=replace(TINY, checkpoint_every=3)) == whole[0]


# The cycle that is kept


def quick_step(run: segmenter.Run, image: torch.Tensor, label: torch.Tensor) -> float:
    """Instead of `Run.step`: every step adds 1 to a weight."""
    with torch.no_grad():
        run.network.out.conv.conv.bias += 1
    return 0.5


@pytest.mark.parametrize(
    ("values", "kept"),
    [((0.4, 0.9, 0.7), 1), ((0.5, 0.5, 0.4), 1), ((0.9, 0.8, 0.7), 0), ((math.nan, 0.6, 0.5), 1)],
)
def test_the_best_cycle_is_kept_and_of_equal_ones_the_later(
    folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple, kept: int
):
    left = list(values)
    monkeypatch.setattr(segmenter, "topk_auroc", lambda lesions, scores: left.pop(0))
    monkeypatch.setattr(segmenter, "sliding_window_inference", lambda *_, **__: torch.zeros(1, 1, 1, 1, 1))
    monkeypatch.setattr(segmenter.Run, "step", quick_step)
    settings = replace(TINY, cycles=3)
    assert train(folders, tmp_path, settings=settings) == {"kept_cycle": kept, "topk_auroc": values[kept]}
    start = fresh(folders, tmp_path).network.out.conv.conv.bias.detach()
    weights = load_file(tmp_path / "weights.safetensors")["out.conv.conv.bias"]
    assert float(weights - start) == pytest.approx((kept + 1) * 2 * STEPS)  # two epochs a cycle


def test_the_best_cycle_of_before_a_break_is_kept(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left, steps = [0.9, 0.7], []
    monkeypatch.setattr(segmenter, "topk_auroc", lambda lesions, scores: left.pop(0))
    monkeypatch.setattr(segmenter, "sliding_window_inference", lambda *_, **__: torch.zeros(1, 1, 1, 1, 1))

    def broken_once(run, image, label):
        steps.append(run.epoch)
        if len(steps) == 2 * STEPS + 1:
            raise KeyboardInterrupt
        return quick_step(run, image, label)

    monkeypatch.setattr(segmenter.Run, "step", broken_once)
    with pytest.raises(KeyboardInterrupt):
        train(folders, tmp_path)
    assert train(folders, tmp_path) == {"kept_cycle": 0, "topk_auroc": 0.9}
    assert steps == [0, 0, 1, 1, 2, 2, 2, 3, 3]


def fresh(folders: dict[str, Path], work: Path, *, fold: int = 0, **changes: object) -> segmenter.Run:
    """A run that has not begun."""
    settings = replace(TINY, **changes)
    patches = Patches([folders["one"]], settings, seed=segmenter.fold_seed(settings.seed, fold))
    return segmenter.Run(settings, work, "cpu", patches, fold)


def test_without_validation_the_last_cycle_is_kept(folders, tmp_path: Path, capsys, monkeypatch):
    """A validation case without lesion voxels has no top-k AUROC, so it counts as none."""
    monkeypatch.setattr(segmenter.Run, "step", quick_step)
    result = segmenter.train_segmenter(
        [folders["one"]],
        [folders["none"]],
        tmp_path / "work",
        settings=replace(TINY, cycles=2, epochs_per_cycle=1),
        device="cpu",
        fold=3,
        out=tmp_path / "out.safetensors",
    )
    assert result["kept_cycle"] == 1
    assert math.isnan(result["topk_auroc"])
    state = torch.load(tmp_path / "work" / "checkpoint.pth", weights_only=True)
    last = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(last[key], tensor) for key, tensor in state["network"].items())
    said = " ".join(capsys.readouterr().err.split())
    assert "fold 3: without lesion voxels on the working grid, so not validated on: none" in said


def test_validation_cases_that_are_all_lesion_are_none(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They have no top-k AUROC; NaN in the first cycle would keep it for good, as nothing is above NaN."""
    monkeypatch.setattr(segmenter.Run, "step", quick_step)
    full = write(tmp_path / "full", seed=5, everywhere=True)
    settings = replace(TINY, cycles=2, epochs_per_cycle=1)
    arguments = {"settings": settings, "device": "cpu", "fold": 0, "out": tmp_path / "out.safetensors"}
    result = segmenter.train_segmenter([folders["one"]], [full], tmp_path / "work", **arguments)
    assert result["kept_cycle"] == 1
    assert math.isnan(result["topk_auroc"])
    assert [row["val_topk_auroc"] for row in rows_of(tmp_path / "work")] == ["", ""]


# What is trained on


def test_cases_without_lesions_are_not_trained_on(folders, tmp_path: Path, monkeypatch, capsys):
    used: set[str] = set()
    monkeypatch.setattr(segmenter.Run, "step", quick_step)
    case_of = Patches.case_of
    monkeypatch.setattr(
        Patches, "case_of", lambda self, index: used.add(case_of(self, index).name) or case_of(self, index)
    )
    settings = replace(TINY, cycles=1, epochs_per_cycle=1)
    arguments = {"settings": settings, "device": "cpu", "fold": 0, "out": tmp_path / "out.safetensors"}
    segmenter.train_segmenter([folders["none"], folders["two"]], [], tmp_path / "work", **arguments)
    assert used == {"two"}
    assert "so not trained on: none" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(AutopetError, match="fold 0 has no training case with lesion voxels"):
        segmenter.train_segmenter([folders["none"]], [folders["one"]], tmp_path / "other", **arguments)


def test_a_btcv_start_is_read_once(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(11)
    released = SwinUNETR(in_channels=1, out_channels=14, feature_size=12, depths=TINY.depths, window_size=TINY.window)
    torch.save({"state_dict": released.state_dict()}, tmp_path / "btcv.pt")
    settings = replace(TINY, cycles=1, btcv=str(tmp_path / "btcv.pt"))
    monkeypatch.setattr(segmenter.Run, "step", lambda *_: 0.5)
    first = train(folders, tmp_path, settings=settings)
    weights = load_file(tmp_path / "weights.safetensors")
    name = "decoder5.transp_conv.conv.weight"
    assert torch.equal(weights[name], released.state_dict()[name])
    assert torch.equal(weights["swinViT.patch_embed.proj.weight"][:, 1:], released.swinViT.patch_embed.proj.weight)
    (tmp_path / "btcv.pt").unlink()
    assert train(folders, tmp_path, settings=settings) == first
    with pytest.raises(AutopetError, match="no BTCV weights at"):
        train(folders, tmp_path / "anew", settings=settings)


# Steps and validation


def test_training_learns_a_batch_by_heart(folders, tmp_path: Path):
    run = fresh(folders, tmp_path, epochs_per_cycle=40, learning_rate=5e-3)
    image = torch.rand(1, 2, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    label = (image[:, 1:] > 0.8).float()
    losses = [run.step(image, label) for _ in range(5)]
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(AutopetError, match="the loss of epoch 0 is nan; lower learning_rate"):
        run.step(image * torch.nan, label)


class Channel(torch.nn.Module):
    """A network whose logits are a channel of its input, all of them higher by `offset`."""

    def __init__(self, number: int, offset: float = 0.0) -> None:
        super().__init__()
        self.number, self.offset = number, offset

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, self.number : self.number + 1] + self.offset  # no view: MONAI weights it in place


@pytest.mark.parametrize(("channel", "offset"), [(0, 0.0), (1, 0.0), (0, 24.0), (1, 24.0)])
def test_validation_is_the_auroc_of_the_lesion_and_the_worst_background(
    folders, tmp_path: Path, channel: int, offset: float
):
    """On two tiles that overlap, and on one; also where probabilities are 1 to single precision, and so all equal."""
    cases = [write(tmp_path / "long", seed=8, depth=80), folders["three"]]
    run = fresh(folders, tmp_path)
    run.network = Channel(channel, offset)
    expected = []
    for folder in cases:
        scores = np.load(folder / "image.npy")[channel].astype(np.float64)
        lesions = np.load(folder / "label.npy")[0] == 1
        worst = np.sort(scores[~lesions])[-int(lesions.sum()) :]
        values = np.concatenate([scores[lesions], worst])
        expected.append(roc_auc_score(np.arange(len(values)) < lesions.sum(), values))
    found = run._validate(cases, cycle=4)
    assert found == pytest.approx(np.mean(expected), abs=1e-4)  # tiles are averaged in single precision
    assert (found > 0.95) == (channel == 1)
    assert (run.best["cycle"], run.best["topk_auroc"]) == (4, found)


def test_a_case_without_a_top_k_auroc_does_not_count(folders, tmp_path: Path):
    """One whose lesion got lost on the working grid, and one that is all lesion."""
    run = fresh(folders, tmp_path)
    run.network = Channel(0)
    alone = run._validate([folders["three"]], cycle=0)
    full = write(tmp_path / "full", seed=5, everywhere=True)
    assert run._validate([folders["none"], folders["three"], full], cycle=1) == alone
    kept = dict(run.best)
    assert (kept["cycle"], kept["topk_auroc"]) == (1, alone)
    assert run._validate([folders["none"], full], cycle=2) is None
    assert run.best == kept
