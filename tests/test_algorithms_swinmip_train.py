"""swinmip from a cohort to a model folder with tiny real networks, and `autopet train --protocol`."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from conftest import COLUMNS, make_case  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import baselines.threshold.train  # noqa: E402
from algorithms.swinmip import predict, segmenter, train  # noqa: E402
from algorithms.swinmip.division import divide  # noqa: E402
from algorithms.swinmip.model import PRESETS, Settings, load_segmenter  # noqa: E402
from algorithms.swinmip.protocol import Frame  # noqa: E402
from autopet.checkpoint import CONFIG, read_config, rewrite_config  # noqa: E402
from autopet.cli import app  # noqa: E402
from autopet.cohort import TABLE, Case, read_cohort, write_table  # noqa: E402
from autopet.deadline import Deadline  # noqa: E402
from autopet.errors import AutopetError  # noqa: E402
from autopet.images import read_image, write_image  # noqa: E402
from autopet.sockets import CT, LESIONS, PET, Inputs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    protocol="paper",
    patch=(32, 32, 64),
    depths=(1, 1, 1, 1),
    heads=(1, 1, 1, 1),
    patches_per_volume=1,
    batch=2,
    cycles=1,
    epochs_per_cycle=1,
    overlap=0.0,
    cls_size=(32, 32),
    cls_embedding=8,
    cls_depths=(1, 1),
    cls_heads=(1, 2),
    cls_cycles=1,
    cls_epochs_per_cycle=1,
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Five patients with lesions and five without: one and one are tested on, and four and four make two folds."""
    folder, rng, rows = tmp_path_factory.mktemp("swinmip"), np.random.default_rng(5), []
    for index in range(10):
        name, images = f"case{index}", make_case(rng, lesions=1 + index % 2 if index < 5 else 0, shape=(36, 32, 32))
        for kind, volume in images.items():
            write_image(folder / name / f"{kind}.nii.gz", volume)
        row = {"case": name, "patient_id": name, "status": "converted", "reason": "", "folder": name, "tracer": "FDG"}
        rows.append(row | {"centre": "A", "lesion_voxels": int(images["SEG"].array.sum())})
    write_table(folder / TABLE, rows, COLUMNS)
    return read_cohort(folder)


@pytest.fixture(scope="module")
def model(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Broken off in the second round, in a training, and resumed."""
    root = tmp_path_factory.mktemp("model")
    arguments = {"settings": TINY, "work": root / ".work-model", "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        real, seen = segmenter.Run.fit, []

        def broken(self, *parts):
            seen.append(self.fold)
            if len(seen) == 4:
                raise KeyboardInterrupt
            return real(self, *parts)

        patch.setattr(segmenter.Run, "fit", broken)
        with pytest.raises(KeyboardInterrupt):
            train.train(cases, root / "model", **arguments)
        assert not (root / "model").exists()
        train.train(cases, root / "model", **arguments)
    assert seen == [0, 1, 0, 1, 1]
    return root / "model"


@pytest.fixture(scope="module")
def held(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a second round, and never broken off."""
    root = tmp_path_factory.mktemp("held")
    settings = replace(TINY, protocol="holdout")
    return train.train(cases, root / "model", settings=settings, work=root / "w", device="cpu")


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_model_folder_of_real_networks(model: Path, cases: list[Case]):
    config = read_config(model, method="swinmip")
    assert (len(config["training_cases"]), len(config["test_cases"])) == (9, 2)  # the positive test case is in both
    assert config["spacing_mm"] == [4.0, 4.0, 6.0]
    low, high = config["ranges"]["pet_suv"]
    assert 7.0 < low < 8.0 < high < 9.0  # the lesions' SUV is 8.0, give or take 0.3
    for fold in (0, 1):
        load_segmenter(model / f"segmenter_fold{fold}.safetensors", TINY)
    rows = table(model / "thresholds.csv")
    assert all(0 <= float(row["mean_dice"]) <= 1 for row in rows)
    best = {row["networks"]: float(row["mean_dice"]) for row in rows if row["choice"] == "best"}
    assert all(float(row["mean_dice"]) <= best[row["networks"]] for row in rows)
    aurocs = [row["auroc"] for row in table(model / "projections.csv") if row["fold"] in ("0", "1")]
    assert len(aurocs) == 4
    assert all(0 <= float(value) <= 1 for value in aurocs)
    assert [row["cycle"] for row in table(model / "metrics/segmenter_fold0.csv")] == ["0"]
    assert not (model.parent / ".work-model").exists()


def test_second_round_s_networks_are_other_networks(model: Path, held: Path):
    """Those of `holdout` are the first round of `paper`; thresholds and classifiers are the same."""
    first, second = (load_file(folder / "segmenter_fold0.safetensors") for folder in (held, model))
    assert any(not torch.equal(first[key], second[key]) for key in first)
    for axis in ("x", "y"):
        ours, theirs = (load_file(folder / f"classifier_{axis}_fold1.safetensors") for folder in (held, model))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for name in ("thresholds.csv", "gate.csv", "scores.csv", "projections.csv", "dice.svg"):
        assert (held / name).read_bytes() == (model / name).read_bytes()


def inputs(case: Case) -> Inputs:
    return Inputs({PET.slug: read_image(case.suv), CT.slug: read_image(case.ct)}, case.name)


def test_gate_lets_the_positive_test_case_through_and_predicts_its_score(model: Path, cases: list[Case]):
    config = read_config(model, method="swinmip")
    scores = {row["case"]: float(row["score"]) for row in table(model / "scores.csv")}
    loaded = predict.load(model, "cpu")
    for case in cases:
        if case.name in config["test_cases"]:
            deadline = Deadline()
            found = predict.predict(loaded, inputs(case), deadline)[LESIONS.slug]
            assert found.same_grid(read_image(case.suv))
            noted = deadline.journal.notes["gate"]
            assert noted["score"] == pytest.approx(scores[case.name], abs=1e-6)
            assert noted["segmented"] == (scores[case.name] >= config["gate"]["threshold"])
            assert noted["segmented"] or not case.lesion_voxels


def test_threshold_s_dice_is_that_of_the_container_s_mask(held: Path, cases: list[Case], tmp_path: Path):
    """`holdout` publishes the networks that the threshold was chosen for: its Dice comes back out of `predict`."""
    model = tmp_path / "model"
    shutil.copytree(held, model)
    config = read_config(model, method="swinmip")
    case = next(case for case in cases if case.name in config["test_cases"] and case.lesion_voxels)
    truth = read_image(case.mask).array != 0
    row = next(row for row in table(model / "thresholds.csv") if row["choice"] == "best" and row["cases"] == "test")

    def dice() -> float:
        mask = predict.predict(predict.load(model, "cpu"), inputs(case), Deadline())[LESIONS.slug].array
        return 2 * float((truth & (mask != 0)).sum()) / float(truth.sum() + mask.sum())

    assert dice() == pytest.approx(float(row["mean_dice"]), abs=1e-6)
    assert float(row["mean_dice"]) > 0
    half = next(r for r in table(model / "thresholds.csv") if r["choice"] == "0.5" and r["cases"] == "test")
    rewrite_config(model, lambda old: {**old, "threshold": 0.5})
    assert dice() == pytest.approx(float(half["mean_dice"]), abs=1e-6)


def test_measure_takes_what_the_settings_give(cases: list[Case], tmp_path: Path):
    given = replace(TINY, spacing_mm=(5.0, 5.0, 5.0), ct_range_hu=(-100.0, 200.0), pet_range_suv=(1.0, 20.0))
    networks = train.SwinNetworks(given, tmp_path, "cpu")
    assert networks.measure(cases) == Frame((-100.0, 200.0), (1.0, 20.0), (5.0, 5.0, 5.0))


def test_networks_stay_loaded_until_others_are_wanted(tmp_path: Path):
    networks, loads = train.SwinNetworks(TINY, tmp_path, "cpu"), []

    def load() -> list[int]:
        loads.append(len(loads))
        return loads[-1:]

    a, b = tmp_path / "a", tmp_path / "b"
    found = [
        networks._networks(kind, files, load) for kind, files in (("s", [a]), ("s", [a]), ("s", [a, b]), ("c", [a]))
    ]
    assert found == [[0], [0], [1], [2]]


def test_masks_that_do_not_fit_are_errors(cases: list[Case], tmp_path: Path):
    suv = read_image(cases[0].suv)
    broken = replace(cases[0], folder=tmp_path)
    write_image(broken.mask, replace(suv, array=np.zeros(suv.shape, np.uint8)))
    with pytest.raises(AutopetError, match="has no lesion voxel, and the cohort's table counts"):
        train.lesion_mask(broken, suv)
    write_image(broken.mask, replace(suv, array=np.ones(suv.shape, np.uint8), origin_mm=(0.0, 0.0, 0.0)))
    with pytest.raises(AutopetError, match="is not on the grid of"):
        train.lesion_mask(broken, suv)


@pytest.mark.parametrize("kind", ["emptied", "drawn", "cut"])
def test_masks_changed_since_the_cohort_s_table_are_refused_before_any_training(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Those of test cases were opened only when all folds were trained; one drawn into a negative case never."""
    monkeypatch.setattr(train, "train_segmenter", lambda *_, **__: pytest.fail("was trained"))
    rows = {row["case"]: row for row in divide(cases, TINY)}
    lesions = "negative" if kind == "drawn" else "positive"
    old = next(case for case in cases if (rows[case.name]["part"], rows[case.name]["lesions"]) == ("test", lesions))
    new = replace(old, folder=tmp_path / old.name)
    shutil.copytree(old.folder, new.folder)
    mask = read_image(old.mask)
    changed = {
        "emptied": replace(mask, array=np.zeros(mask.shape, np.uint8)),
        "drawn": replace(mask, array=np.ones(mask.shape, np.uint8)),
        "cut": replace(mask, array=mask.array[1:]),
    }
    write_image(new.mask, changed[kind])
    cohort = [new if case is old else case for case in cases]
    message = {"emptied": "has no lesion voxel", "drawn": "table counts none", "cut": "is not on the grid"}[kind]
    with pytest.raises(AutopetError, match=message):
        train.train(cohort, tmp_path / "model", settings=TINY, work=tmp_path / "w", device="cpu")
    write_image(new.mask, mask)  # put right: nothing has to be deleted for the next call
    with pytest.raises(pytest.fail.Exception, match="was trained"):
        train.train(cohort, tmp_path / "model", settings=TINY, work=tmp_path / "w", device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_heads": (1, 3)}, r"cls_heads \(1, 3\) must divide"),
        ({"cls_size": (16, 16)}, "enlarge cls_size"),
        ({"imagenet": "other.safetensors"}, "give a Swin-T of torchvision"),
        ({"btcv": "other.safetensors"}, "give a checkpoint of MONAI's Swin-UNETR"),
    ],
)
def test_what_the_classifiers_would_fail_on_is_told_before_the_segmenters_are_trained(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
):
    """And before the work folder is taken, so that the next call may have other settings."""
    monkeypatch.setattr(train, "training_ranges", lambda *_: pytest.fail("went on"))
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AutopetError, match=message):
        train.train(cases, tmp_path / "m", settings=replace(TINY, **changes), work=tmp_path / "w", device="cpu")
    assert not (tmp_path / "w").exists()


# The command


def call(cases: list[Case], out: Path, *arguments: str):
    cohort = cases[0].folder.parent
    return CliRunner().invoke(app, ["train", *arguments, "--data", str(cohort), "--out", str(out), "--device", "cpu"])


@pytest.mark.parametrize(("arguments", "expected"), [((), "holdout"), (("--protocol", "paper"), "paper")])
def test_protocol_is_an_option(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, expected: str
):
    seen: list[Settings] = []
    monkeypatch.setattr(train, "train", lambda cases, out, *, settings, work, device: seen.append(settings))
    found = call(cases, tmp_path / "m", "swinmip", "--preset", "demo", "--set", "folds=3", *arguments)
    assert found.exit_code == 0, found.output
    assert [(settings.protocol, settings.folds) for settings in seen] == [(expected, 3)]


@pytest.mark.parametrize(
    ("method", "protocol", "message"),
    [
        ("swinmip", "both", "protocol 'both' is unknown; use paper, holdout"),
        ("threshold", "paper", "leave --protocol out"),
    ],
)
def test_protocols_that_are_unknown_are_refused(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, protocol: str, message: str
):
    for module in (train, baselines.threshold.train):
        monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("was trained"))
    found = call(cases, tmp_path / "m", method, "--protocol", protocol)
    assert isinstance(found.exception, AutopetError)
    assert message in str(found.exception)
    assert not (tmp_path / "m" / CONFIG).exists()
