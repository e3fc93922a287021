"""The container: the gate first, then the folds; what the gate holds back never reads the segmentation weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from autopet import container
from autopet.checkpoint import CONFIG, SUMS, publish_model, save_weights, sha256
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import find_images, read_image
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs, read_inputs

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip import classifier, predict  # noqa: E402
from algorithms.swinmip.inference import lesion_probability  # noqa: E402
from algorithms.swinmip.model import (  # noqa: E402
    PRESETS,
    Settings,
    build_segmenter,
    classifier_file,
    load_segmenter,
    segmenter_file,
)
from algorithms.swinmip.preprocessing import Ranges  # noqa: E402
from algorithms.swinmip.swin import build_classifier  # noqa: E402
from autopet.sliding_window import export_reserve_s  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    patch=(32, 32, 64),
    depths=(1, 1, 1, 1),
    overlap=0.0,
    cls_size=(32, 32),
    cls_embedding=8,
    cls_depths=(1, 1),
    cls_heads=(2, 2),
)
RANGES = {"ct_hu": [-500.0, 500.0], "pet_suv": [0.5, 12.0]}
SPACING_MM = (5.5, 5.5, 7.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with two folds of both kinds of network, random weights, and a gate of 0.5."""

    def fill(folder: Path) -> dict:
        for fold in range(TINY.folds):
            torch.manual_seed(fold)
            save_weights(folder / segmenter_file(fold), build_segmenter(TINY).state_dict())
            for axis in TINY.cls_projections:
                weights = build_classifier(TINY, axis).state_dict()
                save_weights(folder / classifier_file(axis, fold), weights)
        return {
            "method": "swinmip",
            "settings": asdict(TINY),
            "channels": ["CT", "PET"],
            "spacing_mm": list(SPACING_MM),
            "ranges": RANGES,
            "threshold": 0.5,
            "gate": {"threshold": 0.5, "highest": 0.55, "margin": 0.1},
        }

    return publish_model(tmp_path_factory.mktemp("swinmip") / "model", fill)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def inputs(input_folder: Path) -> Inputs:
    return read_inputs(input_folder, predict.INPUTS)


def change(folder: Path, **values) -> Path:
    """Change config.json and sign it again, as somebody who edits a model would."""
    config = json.loads((folder / CONFIG).read_text())
    config = {key: value for key, value in (config | values).items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(config))
    lines = (folder / SUMS).read_text().splitlines()
    kept = [line for line in lines if not line.endswith(f"  {CONFIG}")]
    (folder / SUMS).write_text("\n".join([*kept, f"{sha256(folder / CONFIG)}  {CONFIG}", ""]))
    return folder


def score_of(folder: Path, inputs: Inputs) -> float:
    """The mean probability of the four classifiers, asked one at a time."""
    scores = [
        classifier.scan_score(
            {axis: [classifier.load_classifier(folder / classifier_file(axis, fold), TINY)]},
            inputs["pet"],
            ranges=Ranges(tuple(RANGES["ct_hu"]), tuple(RANGES["pet_suv"])),
            settings=TINY,
            device="cpu",
        )
        for axis in ("x", "y")
        for fold in range(2)
    ]
    assert max(scores) - min(scores) > 1e-4  # four opinions
    return float(np.mean(scores))


# The gate


def test_below_the_gate_the_mask_is_empty_and_segmenters_are_not_read(model: Path, inputs: Inputs):
    score = score_of(model, inputs)
    change(model, gate={"threshold": score + 1e-3})
    (model / segmenter_file(0)).unlink()
    (model / segmenter_file(1)).write_bytes(b"poison")
    loaded = predict.load(model, "cpu")
    assert sum(map(len, loaded.classifiers.values())) == 4
    deadline = Deadline()
    outputs = predict.predict(loaded, inputs, deadline)
    assert outputs[LESIONS.slug].same_grid(inputs["pet"])
    assert outputs[LESIONS.slug].array.dtype == np.uint8
    assert not outputs[LESIONS.slug].array.any()
    assert outputs[DATA_CENTRIC.slug] is False
    assert deadline.journal.stages.keys() == {"gate"}
    gate = deadline.journal.notes["gate"]
    assert gate == {"score": pytest.approx(score, abs=1e-6), "threshold": score + 1e-3, "segmented": False}
    assert loaded.segmenters == {}


def test_above_the_gate_a_damaged_segmenter_is_an_error(model: Path, inputs: Inputs):
    change(model, gate={"threshold": score_of(model, inputs) - 1e-3})
    weights = model / segmenter_file(1)
    weights.write_bytes(b"poison")
    loaded = predict.load(model, "cpu")
    with pytest.raises(AutopetError, match=r"segmenter_fold1.safetensors: checksum differs"):
        predict.predict(loaded, inputs, Deadline())
    weights.unlink()
    with pytest.raises(AutopetError, match=r"weights missing: .*segmenter_fold1.safetensors"):
        predict.predict(loaded, inputs, Deadline())


def test_a_score_at_the_gate_is_segmented(model: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch):
    loaded = predict.load(model, "cpu")
    for score, segmented in ((0.5, True), (0.4999, False)):
        monkeypatch.setattr(predict, "scan_score", lambda *_, answer=score, **__: answer)
        deadline = Deadline()
        predict.predict(loaded, inputs, deadline)
        assert deadline.journal.notes["gate"] == {"score": score, "threshold": 0.5, "segmented": segmented}
        assert ("fold 0" in deadline.journal.stages) == segmented


def test_without_a_gate_classifiers_are_not_needed(model: Path, inputs: Inputs):
    change(model, gate=None, threshold=0.0)
    for path in model.glob("classifier_*"):
        path.unlink()
    deadline = Deadline()
    loaded = predict.load(model, "cpu")
    assert loaded.classifiers == {}
    assert predict.predict(loaded, inputs, deadline)[LESIONS.slug].array.all()  # every probability is at least 0
    assert "gate" not in deadline.journal.stages
    assert "gate" not in deadline.journal.notes


def test_with_a_gate_every_classifier_must_be_there(model: Path):
    (model / classifier_file("y", 1)).unlink()
    with pytest.raises(AutopetError, match=r"weights missing: .*classifier_y_fold1.safetensors"):
        predict.load(model, "cpu")


# The segmentation


def test_mask_is_the_mean_of_the_folds_at_the_ensemble_threshold(model: Path, inputs: Inputs):
    networks = [load_segmenter(model / segmenter_file(fold), TINY) for fold in range(2)]
    probability = lesion_probability(
        networks,
        {"CT": inputs["ct"], "PET": inputs["pet"]},
        ranges=Ranges(tuple(RANGES["ct_hu"]), tuple(RANGES["pet_suv"])),
        settings=TINY,
        spacing_mm=SPACING_MM,
        device="cpu",
    ).array
    inside = probability[probability > 0]
    assert inside.std() > 1e-3
    threshold = float(np.quantile(inside, 0.7))
    loaded = predict.load(change(model, gate=None, threshold=threshold), "cpu")
    mask = predict.predict(loaded, inputs, Deadline())[LESIONS.slug]
    assert mask.same_grid(inputs["pet"])
    np.testing.assert_array_equal(mask.array, probability >= np.float32(threshold))
    assert mask.array.sum() == pytest.approx(0.3 * len(inside), rel=0.01)


def test_networks_are_loaded_once(model: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch):
    read = []

    def counted(path: Path, settings: Settings) -> torch.nn.Module:
        read.append(path.name)
        return load_segmenter(path, settings)

    monkeypatch.setattr(predict, "load_segmenter", counted)
    loaded = predict.load(change(model, gate={"threshold": 0.0}), "cpu")
    assert read == []
    first = predict.predict(loaded, inputs, Deadline())[LESIONS.slug].array
    assert read == [segmenter_file(0), segmenter_file(1)]
    shutil.rmtree(model)
    second = predict.predict(loaded, inputs, Deadline(1e6))[LESIONS.slug].array
    assert len(read) == 2
    np.testing.assert_array_equal(first, second)


def test_a_model_that_is_not_there(tmp_path: Path, model: Path):
    with pytest.raises(AutopetError, match="no weights for swinmip"):
        predict.load(tmp_path / "nowhere", "cpu")
    with pytest.raises(AutopetError, match="lacks ranges, threshold"):
        predict.load(change(model, ranges=..., threshold=...), "cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranges": {"ct_hu": [-500.0, 500.0]}},
        {"ranges": {"CT": [-500.0, 500.0], "PET": [0.5, 12.0]}},
        {"ranges": [[-500.0, 500.0], [0.5, 12.0]]},
        {"gate": {"highest": 0.5}},
        {"spacing_mm": [4.0, 4.0]},
        {"threshold": None},
    ],
)
def test_a_config_whose_numbers_cannot_be_used(model: Path, wrong: dict):
    with pytest.raises(AutopetError, match=r"model/config.json: .* expected ranges .* train or copy the model again"):
        predict.load(change(model, **wrong), "cpu")


# Time


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slow_model(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    *,
    gate_s: float,
    load_s: float = 0.0,
    tile_s: float = 10.0,
):
    """A loaded model whose gate, loading and tiles take their time; everything is a lesion."""

    class Slow(torch.nn.Module):
        def forward(self, tile: torch.Tensor) -> torch.Tensor:
            clock.now += tile_s
            return torch.full_like(tile[:, :1], 3.0)

    def passing(seconds: float, answer: Callable) -> Callable:
        def work(*_, **__):
            clock.now += seconds
            return answer()

        return work

    monkeypatch.setattr(predict, "scan_score", passing(gate_s, lambda: 0.9))
    monkeypatch.setattr(predict, "load_segmenter", passing(load_s, Slow))
    settings = replace(TINY, patch=(32, 32, 32), overlap=0.25)
    # 98 voxels from feet to head, 32 or less across: 4 tiles, with overlap (0, 24, 48, 66) and without (0, 32, 64, 66)
    return replace(predict.load(model, "cpu"), settings=settings, spacing_mm=(4.0, 4.0, 2.4))


@pytest.mark.parametrize(
    ("limit_s", "gate_s", "elapsed_s", "dropped"),
    [
        (1000, 20, 20 + 2 * 40, []),  # 2 folds of 4 tiles
        (1000, 700, 700 + 2 * 40, []),
        (200, 60, 60 + 2 * 40, []),
        (120, 20, 20 + 40, ["fold 1: no time left"]),  # of 114 s 60 are over, 4 tiles may take 60 s
        (140, 60, 60 + 40, ["fold 1: no time left"]),
        (100, 60, 60 + 30, ["fold 0: overlap", "fold 0: 1 of 4 tiles", "fold 1: no time left"]),
        (60, 59, 59, ["fold 0: 4 of 4 tiles", "fold 1: no time left"]),
    ],
)
def test_a_mask_in_time_and_the_gate_counts(
    model: Path,
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    limit_s: float,
    gate_s: float,
    elapsed_s: float,
    dropped: list[str],
):
    clock = Clock()
    loaded = slow_model(model, monkeypatch, clock, gate_s=gate_s)
    deadline = Deadline(limit_s, clock=clock)
    outputs = predict.predict(loaded, inputs, deadline)
    assert deadline.elapsed_s == elapsed_s
    assert deadline.elapsed_s <= limit_s - export_reserve_s(deadline) or elapsed_s == gate_s
    assert outputs[LESIONS.slug].same_grid(inputs["pet"])
    assert outputs[LESIONS.slug].array.any() == (elapsed_s > gate_s)
    assert deadline.journal.stages["gate"] == gate_s
    assert len(deadline.journal.dropped) == len(dropped)
    assert all(text.startswith(start) for text, start in zip(deadline.journal.dropped, dropped, strict=True))


@pytest.mark.parametrize("gate_s", [0.0, 1.0, 2.0, 2.3, 2.45])
def test_a_short_limit_is_over_before_the_container_gives_up(
    model: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, gate_s: float
):
    clock = Clock()
    loaded = slow_model(model, monkeypatch, clock, gate_s=gate_s, tile_s=0.1)
    outputs = predict.predict(loaded, inputs, Deadline(4.0, clock=clock))
    assert outputs[LESIONS.slug].array.any()
    assert clock.now < 4.0 - container.LAST_MARGIN_S - container.LAST_MARGIN_SHARE * 4.0


def test_loading_from_a_slow_disk_counts(model: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    loaded = slow_model(model, monkeypatch, clock, gate_s=10.0, load_s=100.0)
    deadline = Deadline(300.0, clock=clock)
    predict.predict(loaded, inputs, deadline)  # 150 s are over, 135 s left: loading may take 150 s
    assert deadline.elapsed_s == 150.0
    assert deadline.journal.dropped == ["fold 1: no time left after 150.0 s"]


# The front end


@pytest.mark.parametrize("limit_s", [math.inf, 600.0])
def test_in_the_container(model: Path, input_folder: Path, tmp_path: Path, limit_s: float):
    score = score_of(model, read_inputs(input_folder, predict.INPUTS))
    runner = container.Runner(
        predict, change(model, gate={"threshold": score / 2}), input_folder, tmp_path / "out", "cpu", limit_s
    )
    runner.run()
    (mask,) = find_images(tmp_path / "out" / LESIONS.relative_path)
    assert mask.name == "ct_name.mha"
    assert read_image(mask).same_grid(read_image(input_folder / "images/pet/pet_name.mha"))
    record = json.loads((tmp_path / "out" / container.RUN).read_text())
    assert record["method"] == "swinmip"
    assert record["notes"]["gate"]["score"] == pytest.approx(score, abs=1e-6)
    assert record["notes"]["gate"]["segmented"] is True
    assert [entry["fold"] for entry in record["notes"]["folds"]] == [0, 1]
    assert {"gate", "preprocess", "fold 0", "fold 1", "restore", "export"} <= set(record["stages"])
    assert record["dropped"] == []


def test_a_server_never_reads_the_segmentation_of_gated_scans(model: Path, input_folder: Path, tmp_path: Path):
    """`invoke`: the model is loaded before the first case, and two cases come."""
    change(model, gate={"threshold": 1.0})
    for fold in range(TINY.folds):
        (model / segmenter_file(fold)).write_bytes(b"poison")
    runner = container.Runner(predict, model, input_folder, tmp_path / "out", "cpu", 600.0)
    runner.load()
    for _ in range(2):
        runner.run()
        (mask,) = find_images(tmp_path / "out" / LESIONS.relative_path)
        assert not read_image(mask).array.any()
        record = json.loads((tmp_path / "out" / container.RUN).read_text())
        assert record["notes"]["gate"]["segmented"] is False
        assert set(record["stages"]) == {"read", "gate", "predict", "write"}
        mask.unlink()
    change(model, gate=None)
    with pytest.raises(AutopetError, match="checksum differs"):
        container.Runner(predict, model, input_folder, tmp_path / "out", "cpu").run()


def test_sockets_are_the_challenge_s():
    assert (predict.INPUTS, predict.OUTPUTS) == ((PET, CT), (LESIONS, DATA_CENTRIC))
