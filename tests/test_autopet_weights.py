"""Released weights: from a server, an archive or a folder to a model folder that runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_server import QUICK, Faults, FileServer, serving
from typer.testing import CliRunner

from autopet import weights
from autopet.checkpoint import read_config, verify_sums
from autopet.commands.weights import app
from autopet.errors import AutopetError
from autopet.weights import FILES, MODEL, PRETRAINING, TABLE, USES, Released, fetch

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from autopet.nnunet.model_folder import load_weights  # noqa: E402
from autopet.nnunet.released import channels, read_results  # noqa: E402
from baselines.nnunet.model import build_network  # noqa: E402

KIND = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
FULL = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [16, 16, 16],
    "median_image_size_in_voxels": [20.0, 20.0, 20.0],
    "spacing": [3.0, 2.0, 2.0],
    "normalization_schemes": ["CTNormalization", "CTNormalization"],
    "use_mask_for_norm": [False, False],
    **{f"resampling_fn_{part}": "resample_data_or_seg_to_shape" for part in ("data", "seg", "probabilities")},
    **{
        f"resampling_fn_{part}_kwargs": {"is_seg": part == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
        for part in ("data", "seg", "probabilities")
    },
    "architecture": {
        "network_class_name": KIND,
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2,
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
    "batch_dice": False,
}
STATISTICS = {key: 1.0 for key in ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")}
PLANS = {
    "dataset_name": "Dataset222_AutoPETIII_2024",
    "plans_name": "plans",
    "original_median_spacing_after_transp": [3.0, 2.0, 2.0],
    "original_median_shape_after_transp": [20, 20, 20],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {"3d_fullres": FULL, "3d_fullres_bs3": {"inherits_from": "3d_fullres", "batch_size": 3}},
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": STATISTICS, "1": STATISTICS},
}
DATASET = {  # LesionTracer calls both channels CT, for the sake of the normalisation
    "channel_names": {"0": "CT", "1": "CT"},
    "labels": {"background": 0, "tumor": 1},
    "numTraining": 1611,
    "file_ending": ".nii.gz",
    "dataset": {"patient": {"images": ["/home/someone/patient_0000.nii.gz"]}},
}
TRAINED = "Dataset222_AutoPETIII_2024/Trainer__plans__3d_fullres_bs3"
TOY = Released(
    name="toy", title="two tiny folds", use=MODEL, seen="this test", record="7", file="toy.zip", method="nnunet",
    preset="paper", channels=("CT", "PET"),
)  # fmt: skip
LOOSE = Released(name="loose", title="files", use=FILES, seen="this test", url="http://127.0.0.1:9/loose.zip")


def make_results(root: Path, *, wrapper: str = "", plans: dict = PLANS, build=build_network, **change) -> list[dict]:
    """nnU-Net's result folder with two folds, as `save_checkpoint` leaves it; returns their weights."""
    folder, folds = root / TRAINED, []
    for fold in range(2):
        torch.manual_seed(fold)
        network = build(plans, DATASET)
        folds.append(network.state_dict())
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {
            "network_weights": {wrapper + key: value for key, value in network.state_dict().items()},
            "optimizer_state": torch.optim.SGD(network.parameters(), 0.01, momentum=0.9).state_dict(),
            "grad_scaler_state": None,
            "logging": {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.25)]},
            "_best_ema": np.float64(0.25),
            "current_epoch": 1500,
            "init_args": {"plans": plans, "configuration": "3d_fullres_bs3", "fold": fold, "dataset_json": DATASET},
            "trainer_name": "autoPET3_Trainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        } | change
        torch.save(checkpoint, folder / f"fold_{fold}/checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folds


def pack(folder: Path, archive: Path) -> bytes:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    return archive.read_bytes()


@pytest.fixture
def release(tmp_path: Path) -> tuple[bytes, list[dict]]:
    """A zip of two folds, and their weights."""
    folds = make_results(tmp_path / "released")
    return pack(tmp_path / "released", tmp_path / "toy.zip"), folds


@pytest.fixture
def server(release: tuple[bytes, list[dict]], monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Zenodo with the toy's record."""
    content, _ = release
    with serving(content) as running:
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        running.record = {
            "files": [{"key": "other.txt"}, {"key": "toy.zip", "size": len(content), "checksum": checksum}]
        }
        monkeypatch.setattr(weights, "ZENODO", running.url)
        yield running


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "TABLE", (*TABLE, TOY, LOOSE))


def check_model(folder: Path, folds: list[dict]) -> dict:
    """The folder is whole, and nnU-Net's network takes every fold of it strictly."""
    config = read_config(folder, method="nnunet")  # compares SHA256SUMS
    plans, dataset, found = load_weights(folder)
    assert list(plans["configurations"]) == ["3d_fullres"]
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 3  # of the configuration that was trained
    assert "dataset" not in dataset  # somebody's paths
    assert len(found) == len(folds)
    for ours, theirs in zip(found, folds, strict=True):
        network = build_network(plans, dataset)
        network.load_state_dict(ours, strict=True)
        assert list(ours) == list(theirs) or set(ours) == set(theirs)
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())
    return config


def test_from_zenodo_broken_in_the_middle_to_a_model_folder(server: FileServer, release, tmp_path: Path):
    content, folds = release
    server.faults = Faults(breaks=[-1, 3000])  # the record comes whole, the file breaks off
    server.faults.breaks = [-1, 3000]
    folder = fetch("toy", tmp_path / "models/toy", patience=QUICK)
    assert server.ranges == ["", "bytes=3000-"]
    assert {request["path"] for request in server.requests} == {
        "/api/records/7",
        "/api/records/7/files/toy.zip/content",
    }
    config = check_model(folder, folds)
    assert config["channels"] == ["CT", "PET"]
    assert config["settings"]["folds"] == [0, 1]
    assert config["settings"]["mirroring"] is True
    assert config["settings"]["epochs"] == 1000  # of the preset
    assert config["source"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert config["source"]["url"] == f"{server.url}/records/7/files/toy.zip"
    assert config["source"]["trainer"] == "autoPET3_Trainer"
    assert config["source"]["training_cases"] == 1611
    assert len(config["source"]["checkpoints_sha256"]["1"]) == 64
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["toy"]  # the archive and the scratch are gone


def test_the_same_from_a_folder_an_archive_a_checkpoint_and_an_address(server: FileServer, release, tmp_path: Path):
    _, folds = release
    results = tmp_path / "released"
    checkpoint = results / TRAINED / "fold_0/checkpoint_final.pth"
    modes = {path: path.stat().st_mode for path in results.rglob("*")}
    for source in (results, results / TRAINED, tmp_path / "toy.zip", checkpoint, f"{server.url}/mirror/toy.zip"):
        config = check_model(fetch("toy", tmp_path / "m", source=str(source), patience=QUICK), folds)
        assert config["source"]["url"] == (str(source) if isinstance(source, str) else source.name)
    assert server.ranges == [""]
    assert {path: path.stat().st_mode for path in results.rglob("*")} == modes  # the user's copy is not touched


def test_an_imported_model_segments(release, tmp_path: Path):
    from autopet.deadline import Deadline
    from autopet.sockets import CT, LESIONS, PET, Inputs
    from autopet.volume import Volume
    from baselines.nnunet import predict

    folder = fetch("toy", tmp_path / "m", source=str(tmp_path / "toy.zip"))
    image = Volume(np.ones((16, 16, 16), np.float32), (2.0, 2.0, 3.0))
    inputs = Inputs({CT.slug: image, PET.slug: image}, "case")
    mask = predict.predict(predict.load(folder, "cpu"), inputs, Deadline())[LESIONS.slug]
    assert mask.array.shape == (16, 16, 16)


def test_lesiontracers_release_with_its_organ_heads(tmp_path: Path):
    """The entry of the table, on a small network of the authors' kind under the authors' folder names."""
    from algorithms.lesiontracer import model, predict

    plans = json.loads(json.dumps(PLANS))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")

    def build(plans: dict, dataset: dict) -> torch.nn.Module:
        return model.build_network(plans, dataset, organs=True, deep_supervision=True)

    folds = make_results(tmp_path / "r", plans=plans, build=build)
    assert "decoder.organ_seg_layers.0.weight" in folds[0]
    pack(tmp_path / "r", tmp_path / "autoPET-3-LesionTracer.zip")
    folder = fetch("lesiontracer", tmp_path / "m", source=str(tmp_path / "autoPET-3-LesionTracer.zip"))
    config = read_config(folder, method="lesiontracer")
    assert config["channels"] == ["CT", "PET"]
    assert (config["settings"]["epochs"], config["settings"]["batch"]) == (1500, 3)
    plans, dataset, found = load_weights(folder)
    for ours, theirs in zip(found, folds, strict=True):
        network = build(plans, dataset)
        network.load_state_dict(ours, strict=True)
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())
    predict.load(folder, "cpu")


def test_wrappers_and_mirroring_of_the_checkpoint(tmp_path: Path):
    folds = make_results(tmp_path / "r", wrapper="module._orig_mod.", inference_allowed_mirroring_axes=())
    config = check_model(fetch("toy", tmp_path / "m", source=str(tmp_path / "r")), folds)
    assert config["settings"]["mirroring"] is False


def test_channel_names_of_the_release_are_heard_when_they_tell(tmp_path: Path):
    make_results(tmp_path / "r")
    stated = tmp_path / "r" / TRAINED / "dataset.json"
    stated.write_text(json.dumps(DATASET | {"channel_names": {"1": "CT", "0": "SUV"}}))
    folder = fetch("toy", tmp_path / "m", source=str(tmp_path / "r"))
    assert read_config(folder, method="nnunet")["channels"] == ["PET", "CT"]
    clicks = replace(read_results(stated.parent), dataset={"channel_names": {"0": "CT", "1": "PET", "2": "clicks"}})
    with pytest.raises(AutopetError, match=r"names the channels \['CT', 'PET', 'clicks'\]; expected CT and PET"):
        channels(clicks, ("CT", "PET"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "plans.json").unlink(), "plans.json is missing"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json: not valid JSON"),
        (lambda folder: (folder / "plans.json").write_text("[]"), "plans.json: expected a JSON object, found list"),
        (lambda folder: shutil.copytree(folder, folder.with_name("other")), "found .*/other; name it with --from"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.pth")], "expected one nnU-Net result.*none"),
        (lambda folder: (folder / "fold_1/checkpoint_final.pth").write_bytes(b"<html>"), "a web page"),
        (lambda folder: (folder / "plans.json").write_text(json.dumps(PLANS | {"configurations": {}})), "lacks"),
    ],
)  # fmt: skip
def test_a_release_that_is_not_whole_leaves_no_model(tmp_path: Path, break_it, message: str):
    make_results(tmp_path / "r")
    break_it(tmp_path / "r" / TRAINED)
    with pytest.raises(AutopetError, match=message):
        fetch("toy", tmp_path / "m", source=str(tmp_path / "r"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("axes", "allowed"), [(None, False), ((0, 1), False), ((2, 0, 1), True), ([0, 1, 2], True)])
def test_mirroring_is_what_nnunet_would_do(tmp_path: Path, axes, allowed: bool):
    """None is what nnU-Net's trainers without mirroring leave; two axes of three would need a setting of their own."""
    make_results(tmp_path / "r", inference_allowed_mirroring_axes=axes)
    assert read_results(tmp_path / "r" / TRAINED).mirroring is allowed


def test_an_archive_without_its_end_is_no_reason_to_look_elsewhere(tmp_path: Path):
    make_results(tmp_path / "home/other/trained")  # of somebody else
    content = pack(tmp_path / "home/other", tmp_path / "whole.zip")
    downloads = tmp_path / "home/downloads"
    downloads.mkdir()
    (downloads / "toy.zip").write_bytes(content[:-100])
    (downloads / "toy").write_bytes(content[:-100])
    for name, message in (("toy.zip", "no whole archive"), ("toy", "expected an archive, a folder, or a checkpoint")):
        with pytest.raises(AutopetError, match=message):
            fetch("toy", tmp_path / "m", source=str(downloads / name))
    with pytest.raises(AutopetError, match="no whole archive"):
        fetch("loose", tmp_path / "m", source=str(downloads / "toy.zip"))
    assert not (tmp_path / "m").exists()


def test_a_folder_is_not_copied_into_itself(tmp_path: Path):
    (tmp_path / "weights.ckpt").write_bytes(b"weights")
    with pytest.raises(AutopetError, match="holds --out, too"):
        fetch("loose", tmp_path / "models/loose", source=str(tmp_path))
    assert not (tmp_path / "models/loose").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.popitem(),
        lambda w: w.update(other=torch.zeros(1)),
        lambda w: w.update({next(iter(w)): torch.zeros(2)}),
    ],
)
def test_a_network_that_does_not_fit_leaves_the_old_model(release, tmp_path: Path, change):
    _, folds = release
    fetch("toy", tmp_path / "m", source=str(tmp_path / "toy.zip"))
    path = tmp_path / "released" / TRAINED / "fold_1/checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["network_weights"])
    torch.save(checkpoint, path)
    with pytest.raises(AutopetError, match="fold 1 does not fit plans.json and dataset.json beside it: 1 tensors"):
        fetch("toy", tmp_path / "m", source=str(tmp_path / "released"))
    check_model(tmp_path / "m", folds)


def test_a_wrong_checksum_at_zenodo(server: FileServer, tmp_path: Path):
    server.record["files"][1]["checksum"] = "md5:" + "0" * 32
    with pytest.raises(AutopetError, match="expected md5 000.*removed.*weights fetch toy --from"):
        fetch("toy", tmp_path / "m", patience=QUICK)
    server.record["files"][1]["key"] = "new.zip"
    with pytest.raises(AutopetError, match=r"expected the file toy\.zip, found other\.txt, new\.zip"):
        fetch("toy", tmp_path / "m", patience=QUICK)
    server.record["files"] = [{"key": "toy.zip", "checksum": ""}]
    with pytest.raises(AutopetError, match=r"expected an MD5 of toy\.zip"):
        fetch("toy", tmp_path / "m", patience=QUICK)
    assert not (tmp_path / "m").exists()


def test_without_a_network_the_way_by_hand_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(weights, "ZENODO", "http://127.0.0.1:9")
    with pytest.raises(AutopetError) as caught:
        fetch("toy", tmp_path / "m", patience=QUICK)
    for part in ("no connection", "load http://127.0.0.1:9/records/7 (the file toy.zip)",
                 "autopet weights fetch toy --from FILE_OR_FOLDER"):  # fmt: skip
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing came, nothing is left


def test_a_known_sha256_holds_for_a_copy_by_hand_and_files_stay_as_they_came(tmp_path: Path, monkeypatch):
    (tmp_path / "d/deep").mkdir(parents=True)
    (tmp_path / "d/deep/last.ckpt").write_bytes(b"weights")
    content = pack(tmp_path / "d", tmp_path / "loose.zip")
    known = replace(LOOSE, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    monkeypatch.setattr(weights, "TABLE", (known,))
    folder = fetch("loose", tmp_path / "m", source=str(tmp_path / "loose.zip"))
    verify_sums(folder)
    assert (folder / "files/deep/last.ckpt").read_bytes() == b"weights"
    assert (folder / "SHA256SUMS").read_text().count("files/deep/last.ckpt") == 1
    with pytest.raises(AutopetError, match="a model of method 'files', expected 'nnunet'"):
        read_config(folder, method="nnunet")
    lone = fetch("loose", tmp_path / "m2", source=str(tmp_path / "d"))
    assert (lone / "files/deep/last.ckpt").read_bytes() == b"weights"
    assert (tmp_path / "d/deep/last.ckpt").stat().st_ino != (lone / "files/deep/last.ckpt").stat().st_ino
    (tmp_path / "loose.zip").write_bytes(content + b"1")
    with pytest.raises(AutopetError, match="expected SHA-256"):
        fetch("loose", tmp_path / "m3", source=str(tmp_path / "loose.zip"))
    with pytest.raises(AutopetError, match="no such file or folder"):
        fetch("loose", tmp_path / "m3", source=str(tmp_path / "none"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(AutopetError, match="holds other files"):
        fetch("loose", tmp_path / "mine", source=str(tmp_path / "d"))


def test_an_evil_archive_writes_nothing_outside(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(AutopetError, match="leaves the folder"):
        fetch("loose", tmp_path / "a/b/m", source=str(tmp_path / "evil.zip"))
    assert not list(tmp_path.rglob("evil"))


def test_pretraining_becomes_one_file_that_a_training_starts_from(tmp_path: Path, monkeypatch):
    from algorithms.lesiontracer.transfer import load_pretrained

    entry = replace(LOOSE, name="pre", use=PRETRAINING, inside="Dataset619")
    monkeypatch.setattr(weights, "TABLE", (entry,))
    make_results(tmp_path / "r")
    make_results(tmp_path / "r2")
    wanted = tmp_path / "all/Dataset619_nativemultistem/t__p__3d_fullres"
    shutil.copytree(tmp_path / "r" / TRAINED, tmp_path / "all/Dataset617_nativect/t__p__3d_fullres")
    shutil.copytree(tmp_path / "r2" / TRAINED, wanted)
    (wanted / "fold_1").rename(wanted / "fold_all")
    shutil.rmtree(wanted / "fold_0")
    for source in (tmp_path / "all", wanted / "fold_all/checkpoint_final.pth"):
        folder = fetch("pre", tmp_path / "m", source=str(source))
        assert [path.name for path in folder.glob("*.safetensors")] == ["fold_all.safetensors"]
        network = build_network(PLANS, DATASET)
        report = load_pretrained(network, folder)
        assert {name.split(".")[-3] for name in report.missing} == {"seg_layers"}
        torch.manual_seed(1)  # of fold 1
        expected = build_network(PLANS, DATASET).state_dict()
        loaded = network.state_dict()
        assert all(torch.equal(loaded[name], expected[name]) for name in report.loaded)
        assert len(report.loaded) > 5


def test_a_killed_command_goes_on_in_the_next_call(tmp_path: Path):
    content = pack_of(os.urandom(3_000_000), tmp_path)
    command = [sys.executable, "-c", "from autopet.commands.weights import app; app()", "weights", "fetch",
               "autopet3-datacentric", "--out", str(tmp_path / "m"), "--from"]  # fmt: skip
    with serving(content) as server:
        server.faults = Faults(drip_s=0.0005)
        running = subprocess.Popen([*command, f"{server.url}/loose.zip"], stderr=subprocess.PIPE)
        part = tmp_path / ".work-m/loose.zip.part"
        deadline = time.monotonic() + 30
        while not (part.is_file() and part.stat().st_size > 2000) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        assert running.wait(10) == -signal.SIGKILL
        running.stderr.close()
        have = part.stat().st_size
        assert 2000 < have < len(content)
        assert not (tmp_path / "m").exists()
        server.faults = Faults()
        ended = subprocess.run([*command, f"{server.url}/loose.zip"], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert server.ranges == ["", f"bytes={have}-"]
        assert "going on after" in ended.stderr
    assert (
        hashlib.sha256((tmp_path / "m/files/weights").read_bytes()).digest()
        == hashlib.sha256(zipfile.ZipFile(tmp_path / "packed.zip").read("weights")).digest()
    )
    assert not (tmp_path / ".work-m").exists()


def pack_of(content: bytes, folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("weights", content)
    return (folder / "packed.zip").read_bytes()


def test_the_table_is_in_order():
    assert len({entry.name for entry in TABLE}) == len(TABLE)
    for entry in TABLE:
        assert entry.use in USES
        assert bool(entry.url) != bool(entry.record and entry.file)
        assert entry.page.startswith("https://")
        assert entry.seen
        assert bool(entry.method and entry.preset and entry.channels) == (entry.use == MODEL)
        assert len(entry.sha256) in (0, 64)


def test_commands(release, tmp_path: Path):
    listed = CliRunner().invoke(app, ["weights", "list"])
    assert listed.exit_code == 0
    for entry in TABLE:
        assert f"{entry.name}: " in listed.output
        assert entry.page in listed.output
    fetched = CliRunner().invoke(
        app, ["weights", "fetch", "toy", "--from", str(tmp_path / "toy.zip"), "--out", str(tmp_path / "m")]
    )
    assert fetched.exit_code == 0, fetched.output
    assert read_config(tmp_path / "m", method="nnunet")["source"]["name"] == "toy"
    failed = CliRunner().invoke(app, ["weights", "fetch", "none"])
    assert isinstance(failed.exception, AutopetError)
    assert "there are lesiontracer, multitalent" in str(failed.exception)
