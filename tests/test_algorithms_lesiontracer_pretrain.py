"""Pretraining on several data sets: what is sampled, what each head learns, what a resumed and a published run hold."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.checkpoint import read_config
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from safetensors.torch import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from algorithms.lesiontracer import pretrain as pretraining  # noqa: E402
from algorithms.lesiontracer import pretrain_training  # noqa: E402
from algorithms.lesiontracer.model import build_network as lesiontracer_network  # noqa: E402
from algorithms.lesiontracer.pretrain import METHOD, PRESETS, Settings, pretrain  # noqa: E402
from algorithms.lesiontracer.pretrain_data import MixedPatches, read_cases, read_raw, safe_name, shares  # noqa: E402
from algorithms.lesiontracer.pretrain_network import SharedBodyUNet  # noqa: E402
from algorithms.lesiontracer.pretrain_preprocessing import architecture  # noqa: E402
from algorithms.lesiontracer.transfer import load_pretrained  # noqa: E402
from autopet.commands.pretrain import app  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    epochs=3,
    iterations_per_epoch=2,
    validation_iterations=3,
    spacing_mm=(8.0, 8.0, 8.0),
    patch=(16, 16, 16),
    batch=3,
    features=(4, 8, 8),
    blocks=(1, 1, 1),
    checkpoint_every=1,
    workers=1,
)
ORGAN_LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}


def write_raw(folder: Path, *, channels: tuple[str, ...] = ("MR",), cases: int = 2, labels: dict | None = None) -> Path:
    """A data set in nnU-Net's raw layout: bright cubes, one per label."""
    labels = labels or ORGAN_LABELS
    rng = np.random.default_rng(5)
    place = {"spacing_mm": (6.0, 7.0, 8.0), "origin_mm": (0.0, 0.0, 0.0)}
    for case in range(cases):
        mask = np.zeros((20, 22, 24), np.uint8)
        for number in range(1, len(labels)):
            mask[3:9, 3:9, 5 * number : 5 * number + 4] = number
        for channel in range(len(channels)):
            image = rng.normal(0, 0.1, mask.shape) + mask * (channel + 1)
            name = f"case{case}_{channel:04d}.nii.gz"
            write_image(folder / "imagesTr" / name, Volume(image.astype(np.float32), **place))
        write_image(folder / "labelsTr" / f"case{case}.nii.gz", Volume(mask, **place))
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


# sampling


def test_shares_by_hand():
    # roots of 4, 16, 100 are 2, 4, 10; their inverses 1/2, 1/4, 1/10 have the common denominator 20: 10, 5, 2
    counts = {"a": 4, "b": 16, "c": 100}
    assert shares(counts, "image") == pytest.approx({"a": 2 / 16, "b": 4 / 16, "c": 10 / 16})
    assert shares(counts, "data set") == pytest.approx({"a": 10 / 17, "b": 5 / 17, "c": 2 / 17})
    assert shares({"only": 7}, "image") == {"only": 1.0}
    with pytest.raises(AutopetError, match="use 'data set' or 'image'"):
        shares(counts, "uniform")


def test_an_image_of_a_set_of_n_weighs_one_over_root_n():
    counts = {"a": 4, "b": 100}
    per_image = {name: share / counts[name] for name, share in shares(counts, "image").items()}
    assert per_image["a"] / per_image["b"] == pytest.approx(math.sqrt(100) / math.sqrt(4))


class Endless:
    """In place of nnU-Net's loader."""

    def __init__(self) -> None:
        self.thread = -1

    def set_thread_id(self, thread: int) -> None:
        self.thread = thread

    def __next__(self) -> dict:
        return {"data": 0, "target": []}


def draw(sampling: str, thread: int | None = None, count: int = 20_000) -> Counter:
    counts = {"a": 1, "b": 4, "c": 25}
    mixed = MixedPatches({name: Endless() for name in counts}, shares(counts, sampling), seed=3)
    if thread is not None:
        mixed.set_thread_id(thread)
    return Counter(next(mixed)["name"] for _ in range(count))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("image", {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}), ("data set", {"a": 10 / 17, "b": 5 / 17, "c": 2 / 17})],
)
def test_drawn_frequencies(sampling: str, expected: dict[str, float]):
    found = draw(sampling)
    for name, share in expected.items():
        error = math.sqrt(share * (1 - share) / 20_000)
        assert abs(found[name] / 20_000 - share) < 4 * error


def test_processes_draw_different_patches():
    assert draw("image", thread=0) != draw("image", thread=1)
    assert draw("image", thread=0) == draw("image", thread=0)


# data sets


def test_a_raw_data_set(tmp_path: Path):
    source = read_raw(write_raw(tmp_path / "Dataset003_Liver.v2", channels=("T1", "T2")))
    assert (source.name, source.channels, source.labels) == ("Liver-v2", ("T1", "T2"), ORGAN_LABELS)
    assert [path.name for path in source.images["case1"]] == ["case1_0000.nii.gz", "case1_0001.nii.gz"]
    assert source.targets["case1"] == (tmp_path / "Dataset003_Liver.v2/labelsTr/case1.nii.gz").resolve()


def test_a_raw_data_set_that_lists_its_files(tmp_path: Path):
    folder = write_raw(tmp_path / "x")
    content = json.loads((folder / "dataset.json").read_text())
    content["dataset"] = {"one": {"images": ["imagesTr/case0_0000.nii.gz"], "label": "labelsTr/case0.nii.gz"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert list(read_raw(folder).images) == ["one"]


def test_a_raw_data_set_that_lacks_something(tmp_path: Path):
    folder = write_raw(tmp_path / "x")
    (folder / "imagesTr/case1_0000.nii.gz").unlink()
    with pytest.raises(AutopetError, match=r"case1_0000.nii.gz is missing"):
        read_raw(folder)
    (folder / "dataset.json").write_text('{"labels": {"a": 1}}')
    with pytest.raises(AutopetError, match="expected channel_names, labels and file_ending"):
        read_raw(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(AutopetError, match="expected nnU-Net's dataset.json"):
        read_raw(folder)


def test_a_cohort_with_organ_labels_is_two_data_sets(cohort: list[Case], tmp_path: Path):
    cases = []
    for case in cohort[:3]:
        folder = tmp_path / case.name
        for role in ("CTres", "SUV", "SEG"):
            (folder / f"{role}.nii.gz").parent.mkdir(exist_ok=True)
            (folder / f"{role}.nii.gz").symlink_to(case.image(role))
        cases.append(replace(case, folder=folder))
    assert [source.name for source in read_cases(cases, "pet")] == ["pet"]
    organs = read_image(cases[1].mask)
    write_image(cases[1].image("ORGANS"), organs.with_array(organs.array * 3))
    cases[0] = replace(cases[0], lesion_voxels=None)
    lesions, mapped = read_cases(cases, "pet")
    assert (lesions.name, list(lesions.images), lesions.labels) == (
        "pet",
        [case.name for case in cases[1:]],
        {"background": 0, "lesion": 1},
    )
    assert (mapped.name, list(mapped.images), len(mapped.labels)) == ("pet-organs", [cases[1].name], 11)
    assert mapped.targets[cases[1].name].name == "ORGANS.nii.gz"
    with pytest.raises(AutopetError, match="no case has a lesion segmentation"):
        read_cases([cases[0]], "pet")


def test_names_that_a_state_dict_cannot_have():
    assert [safe_name(text) for text in ("Dataset221_AutoPETII", "a.b c", "convs", "keys")] == [
        "AutoPETII",
        "a-b-c",
        "convs_",
        "keys_",
    ]


# network


def network(channels: dict[str, int], classes: dict[str, int]) -> SharedBodyUNet:
    described = architecture((4, 8, 8), (1, 1, 1))["arch_kwargs"]
    modules = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    torch.manual_seed(0)
    return SharedBodyUNet(input_channels=channels, num_classes=classes, **(described | modules), deep_supervision=True)


def touched(net: torch.nn.Module) -> set[str]:
    return {name for name, tensor in net.named_parameters() if tensor.grad is not None and tensor.grad.abs().sum() > 0}


def test_gradients_of_one_data_set_leave_the_other_s_head_and_stem():
    net = network({"mr": 1, "pet": 2}, {"mr": 4, "pet": 2})
    outputs = net(torch.randn(1, 1, 16, 16, 16), "mr")
    assert [tuple(output.shape) for output in outputs] == [(1, 4, 16, 16, 16), (1, 4, 8, 8, 8)]
    sum(output.pow(2).mean() for output in outputs).backward()
    reached = touched(net)
    own = {name for name, _ in net.named_parameters() if ".mr." in name}
    other = {name for name, _ in net.named_parameters() if ".pet." in name}
    body = {name for name, _ in net.named_parameters()} - own - other
    assert len(own) == len(other) == 4 + 2 * 2  # a stem, and a convolution at both decoder stages
    assert not reached & other
    assert own <= reached | {"encoder.stem.mr.convs.0.conv.bias"}  # a norm behind it takes a constant out
    assert {name for name in body if name.endswith("weight")} <= reached


def test_one_stem_when_the_channels_agree():
    net = network({"a": 2, "b": 2}, {"a": 2, "b": 3})
    keys = set(net.state_dict())
    assert "encoder.stem.convs.0.conv.weight" in keys
    assert {f"decoder.seg_layers.{name}.{stage}.weight" for name in "ab" for stage in (0, 1)} <= keys
    several = set(network({"a": 1, "b": 2}, {"a": 2, "b": 3}).state_dict())
    assert {"encoder.stem.a.convs.0.conv.weight", "decoder.encoder.stem.b.convs.0.conv.weight"} <= several


# the whole way


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("data") / "Dataset007_MR")


@pytest.fixture(scope="module")
def published(raw: Path, cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained on one channel with three labels and on CT and PET with one; killed in its second epoch, resumed."""
    root = tmp_path_factory.mktemp("pretraining")
    sources = [read_raw(raw), *read_cases(cohort[:3], "pet")]
    step = pretrain_training.Training.step
    seen: list[int] = []

    def broken(self, patches):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return step(self, patches)

    def counted(self, patches):
        seen.append(self.epoch)
        return step(self, patches)

    arguments = {"settings": TINY, "work": root / "work", "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_training.Training, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            pretrain(sources, root / "out", **arguments)
        assert not (root / "out").exists()
        with pytest.raises(AutopetError, match="unfinished pretraining on other data sets or settings"):
            pretrain(sources, root / "out", **(arguments | {"settings": replace(TINY, batch=4)}))
        patch.setattr(pretrain_training.Training, "step", counted)
        patch.setattr(pretraining, "preprocess", checked(pretraining.preprocess, root / "work"))
        pretrain(sources, root / "out", **arguments)
    assert seen == [1, 1, 2, 2]  # epoch 0 was not trained again
    assert not (root / "work").exists()
    return root / "out"


def checked(preprocess, work: Path):
    """The second call preprocesses nothing again."""
    files = {path: path.stat().st_mtime_ns for path in (work / "preprocessed").rglob("*.b2nd")}
    assert len(files) == 2 * (2 + 3)  # image and labels of every case

    def run(*arguments, **options):
        preprocess(*arguments, **options)
        assert {path: path.stat().st_mtime_ns for path in (work / "preprocessed").rglob("*.b2nd")} == files

    return run


def test_published_folder_describes_itself(published: Path):
    config = read_config(published, method=METHOD)
    assert config["channels"] == {"MR": ["MR"], "pet": ["CT", "PET"]}
    assert config["labels"] == {"MR": ORGAN_LABELS, "pet": {"background": 0, "lesion": 1}}
    assert config["images"] == {"MR": 2, "pet": 3}
    # the paper's sentence: each data set weighs 1/sqrt(n), so MR to pet are as sqrt(3) to sqrt(2)
    total = math.sqrt(2) + math.sqrt(3)
    assert config["sampling_probabilities"] == pytest.approx({"MR": math.sqrt(3) / total, "pet": math.sqrt(2) / total})
    assert config["training_cases"]["pet"] == ["case00", "case01", "case02"]
    keys = set(load_file(published / "pretrained.safetensors"))
    assert "encoder.stem.MR.convs.0.conv.weight" in keys
    assert "decoder.seg_layers.pet.1.bias" in keys
    assert not [key for key in keys if key.startswith("decoder.encoder.") or "all_modules" in key]


def test_every_epoch_is_in_the_table_once(published: Path):
    with (published / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["data_set"]) for row in rows] == [(e, d) for e in "012" for d in ("MR", "pet")]
    for epoch in range(3):
        patches = [int(row["patches"]) for row in rows if row["epoch"] == str(epoch)]
        assert sum(patches) == TINY.batch * TINY.iterations_per_epoch
        for row in rows[2 * epoch : 2 * epoch + 2]:
            assert (row["train_loss"] != "") == (row["patches"] != "0")
            expected = TINY.learning_rate * (1 - epoch / 3) ** 0.9
            assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-5)


def lesiontracer() -> torch.nn.Module:
    """LesionTracer's own network for the same body."""
    described = architecture(TINY.features, TINY.blocks)
    described["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    configuration = {"patch_size": [16] * 3, "architecture": described}
    plans = {"configurations": {"3d_fullres": configuration}, "label_manager": "LabelManager"}
    dataset = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "lesion": 1}}
    torch.manual_seed(9)
    return lesiontracer_network(plans, dataset, organs=True, deep_supervision=True)


@pytest.mark.parametrize("name", ["", "pretrained.safetensors"])
def test_fine_tuning_starts_from_the_pretrained_weights(published: Path, name: str):
    net = lesiontracer()
    report = load_pretrained(net, published / name)
    weights = load_file(published / "pretrained.safetensors")
    assert (report.stem, report.other_stems) == ("pet", ())
    state = net.state_dict()
    encoder = [key for key in report.loaded if key.startswith("encoder.")]
    decoder = [key for key in report.loaded if key.startswith("decoder.")]
    for key in encoder + decoder:
        assert torch.equal(state[key], weights[key.replace("encoder.stem.", "encoder.stem.pet.")])
    for key in encoder:
        assert torch.equal(state[f"decoder.{key}"], state[key])
    assert len(encoder) == 4 + 8 + 11 + 8  # the third stage is no wider than the second: no projection
    assert len(decoder) == 2 * (2 + 4)
    heads = {
        f"decoder.{kind}.{stage}.{part}"
        for kind in ("seg_layers", "organ_seg_layers")
        for stage in (0, 1)
        for part in ("weight", "bias")
    }
    assert set(report.missing) == heads


def test_training_moves_what_was_sampled_only(raw: Path, cohort: list[Case], tmp_path: Path):
    """One optimiser step on patches of one data set: its head and the body move, the other's head and stem do not."""
    net = network({"mr": 1, "pet": 2}, {"mr": 4, "pet": 2})

    class Keeper:
        def __init__(self, name: str) -> None:
            self.name = name

        def network(self, image):
            return net(image, self.name)

        @staticmethod
        def loss(outputs, targets):
            return sum((output - target).pow(2).mean() for output, target in zip(outputs, targets, strict=True))

    settings = replace(TINY, optimizer="sgd", learning_rate=0.1, batch=2)
    keepers = {name: Keeper(name) for name in ("mr", "pet")}
    training = pretrain_training.Training(net, keepers, settings, torch.device("cpu"))

    def patches(name: str, channels: int, classes: int):
        while True:
            targets = [torch.randn(1, classes, edge, edge, edge) for edge in (16, 8)]
            yield {"name": name, "data": torch.randn(1, channels, 16, 16, 16), "target": targets}

    def moved(name: str, channels: int, classes: int) -> set[str]:
        before = {key: tensor.detach().clone() for key, tensor in net.named_parameters()}
        losses = training.step(patches(name, channels, classes))
        assert [found for found, _ in losses] == [name, name]
        return {key for key, tensor in net.named_parameters() if not torch.equal(tensor, before[key])}

    first = moved("mr", 1, 4)
    assert not [key for key in first if ".pet." in key]
    assert [key for key in first if ".mr." in key]
    assert [key for key in first if key.startswith("encoder.stages")]
    second = moved("pet", 2, 2)  # neither momentum nor weight decay moves the data set that is not in this batch
    assert not [key for key in second if ".mr." in key]
    assert [key for key in second if ".pet." in key]


def test_gradients_added_patch_by_patch_are_the_batch_s(monkeypatch: pytest.MonkeyPatch):
    net = network({"a": 1}, {"a": 2})
    images = torch.randn(3, 1, 16, 16, 16)
    targets = [torch.randint(0, 2, (3, 1, edge, edge, edge)) for edge in (16, 8)]
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    options = {"batch_dice": False, "smooth": 0.0, "do_bg": False, "ddp": False}
    loss = DeepSupervisionWrapper(DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss), (2 / 3, 1 / 3))
    loss(net(images, "a"), targets).backward()
    whole = {name: tensor.grad.clone() for name, tensor in net.named_parameters()}

    class Keeper:
        network = staticmethod(lambda image: net(image, "a"))

    Keeper.loss = staticmethod(loss)
    training = pretrain_training.Training(net, {"a": Keeper()}, replace(TINY, batch=3), torch.device("cpu"))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    stream = ({"name": "a", "data": images[i : i + 1], "target": [t[i : i + 1] for t in targets]} for i in range(3))
    training.step(stream)
    for name, tensor in net.named_parameters():
        torch.testing.assert_close(tensor.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_a_label_that_dataset_json_does_not_name(tmp_path: Path):
    folder = write_raw(tmp_path / "x", cases=1)
    content = json.loads((folder / "dataset.json").read_text())
    del content["labels"]["kidney"]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(AutopetError, match="data set x, case case0: label 3 is not among the labels"):
        pretrain([read_raw(folder)], tmp_path / "out", settings=TINY, work=tmp_path / "work", device="cpu")


def test_settings_that_cannot_be():
    assert PRESETS["paper"] == Settings()
    paper = Settings()
    assert (paper.epochs, paper.batch, paper.patch, paper.spacing_mm) == (4000, 24, (192,) * 3, (1.0,) * 3)
    assert paper.sampling == "data set"
    assert (paper.features, paper.blocks) == ((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6))
    for wrong in (
        {"sampling": "all"},
        {"optimizer": "lion"},
        {"blocks": (1, 1)},
        {"patch": (100, 96, 96)},
        {"checkpoint_every": 0},
    ):
        with pytest.raises(AutopetError):
            Settings(**wrong)


# the command


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_command_reads_both_kinds_and_names(raw: Path, cohort: list[Case], tmp_path: Path, monkeypatch):
    called: dict = {}
    monkeypatch.setattr(
        pretraining, "pretrain", lambda sources, out, **options: called.update(options, sources=sources)
    )
    cohort_folder = cohort[0].folder.parent
    arguments = ["lesiontracer", "--data", str(raw), "--data", f"pet={cohort_folder}", "--out", str(tmp_path / "out")]
    result = run(*arguments, "--preset", "demo", "--set", "epochs=2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert [source.name for source in called["sources"]] == ["MR", "pet"]
    assert (called["settings"].epochs, called["device"]) == (2, "cpu")
    rows = [f"{case.name},{'test' if number < 2 else 'train'}" for number, case in enumerate(cohort)]
    (tmp_path / "split.csv").write_text("\n".join(["case,part", *rows]) + "\n")
    assert run(*arguments, "--split", str(tmp_path / "split.csv")).exit_code == 0
    assert list(called["sources"][1].images) == [case.name for case in cohort[2:]]  # test patients stay unseen
    assert called["settings"] == PRESETS["paper"]
    empty = run("lesiontracer", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "expected a folder with dataset.json" in str(empty.exception)


def test_two_data_sets_of_one_name(raw: Path, tmp_path: Path):
    sources = [read_raw(raw), read_raw(raw)]
    with pytest.raises(AutopetError, match="two data sets are called MR; give one of them as --data NAME=FOLDER"):
        pretrain(sources, tmp_path / "out", settings=TINY, work=tmp_path / "work", device="cpu")


REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


@pytest.mark.parametrize(("labels", "order"), [(REGIONS, [1, 2]), ({"background": 0, "a": [1, 3], "b": 2}, [3, 2])])
def test_regions_and_an_ignore_label_train_too(tmp_path: Path, labels: dict, order: list[int]):
    folder = write_raw(tmp_path / "regions", cases=1)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"labels": labels, "regions_class_order": order}))
    settings = replace(TINY, epochs=1, iterations_per_epoch=1, validation_iterations=1, batch=1)
    pretrain([read_raw(folder)], tmp_path / "out", settings=settings, work=tmp_path / "work", device="cpu")
    weights = load_file(tmp_path / "out/pretrained.safetensors")
    assert len(weights["decoder.seg_layers.regions.0.bias"]) == 2  # one output for each region
    with (tmp_path / "out/metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert math.isfinite(float(row["train_loss"]))
