"""Galdran's solution: the published settings, MONAI's Swin-UNETR, the model folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autopet.checkpoint import CONFIG, SUMS, publish_model, save_weights, settings_from_dict, verify_sums
from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip import model as swinmip  # noqa: E402
from algorithms.swinmip.model import PRESETS, Settings  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_paper_preset_is_the_published_one():
    paper = PRESETS["paper"]
    assert (paper.feature_size, paper.patch, paper.patches_per_volume, paper.batch) == (12, (96, 96, 96), 12, 4)
    assert paper.lesion_share == pytest.approx(2 / 3)
    assert (paper.cycles, paper.epochs_per_cycle, paper.learning_rate, paper.weight_decay) == (50, 5, 5e-4, 0.0)
    assert (paper.spacing_mm, paper.percentiles) == ((2.04, 2.04, 3.0), (5.0, 95.0))
    assert (paper.folds, paper.loss, paper.protocol) == (5, "ce", "paper")
    assert (paper.cls_projections, paper.cls_size) == (("x", "y"), (224, 352))
    assert (paper.cls_cycles, paper.cls_epochs_per_cycle, paper.cls_batch) == (5, 3, 8)
    assert (paper.cls_learning_rate, paper.cls_weight_decay) == (1e-4, 1e-3)
    assert settings_from_dict(Settings, json.loads(json.dumps(asdict(paper))), "here") == paper


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss": "focal"}, "use ce, dice, dice_ce, dice_focal"),
        ({"protocol": "none"}, "use paper, holdout"),
        ({"patch": (96, 96, 48)}, "three edges that divide by 32"),
        ({"feature_size": 16}, "feature_size must be a multiple of 12"),
        ({"depths": (2, 2, 2)}, "depths and heads need 4 numbers each"),
        ({"heads": (3, 6, 12, 25)}, r"heads must divide the widths of the stages, \[12, 24, 48, 96\]"),
        ({"cls_projections": ("x", "w")}, "cls_projections may name x, y, z"),
        ({"spacing_mm": (2.0, 3.0)}, "spacing_mm needs three positive numbers"),
        ({"overlap": 1.0}, "overlap must be at least 0 and below 1"),
        ({"folds": 1}, "at least 2 folds"),
        ({"patch": (0, 32, 64)}, "three edges that divide by 32"),
        ({"lesion_share": 1.5}, "lesion_share must be from 0 to 1, found 1.5"),
        ({"percentiles": (95.0, 5.0)}, "percentiles needs a low and a higher one from 0 to 100"),
        ({"percentiles": (5.0, 101.0)}, "percentiles needs a low and a higher one from 0 to 100"),
        ({"cycles": 0}, "cycles must be at least 1, found 0"),
        ({"cls_batch": 0}, "cls_batch must be at least 1, found 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict, says: str):
    with pytest.raises(AutopetError, match=says):
        Settings(**wrong)


def test_network_is_monai_s_with_the_published_size():
    """Parts of the parameter count by hand; the shapes of the stages at the smallest input."""
    network = swinmip.build_segmenter(PRESETS["paper"])
    size = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert size["out"] == 12 + 1  # a 1x1x1 convolution to one logit
    # residual block 2 -> 12: 3x3x3, 3x3x3 and the 1x1x1 shortcut without bias; instance norm has no parameters
    assert size["encoder1"] == 2 * 12 * 27 + 12 * 12 * 27 + 2 * 12
    embedding = sum(p.numel() for p in network.swinViT.patch_embed.parameters())
    assert embedding == 2 * 12 * 2**3 + 12
    assert [len(stage[0].blocks) for stage in (network.swinViT.layers1, network.swinViT.layers4)] == [2, 2]
    assert [stage[0].blocks[0].attn.num_heads for stage in (network.swinViT.layers1, network.swinViT.layers4)] == [
        3,
        24,
    ]
    seen = []
    network.encoder10.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    with torch.inference_mode():
        logits = network.eval()(torch.randn(1, 2, 32, 64, 32))
    assert logits.shape == (1, 1, 32, 64, 32)
    assert seen == [(1, 16 * 12, 1, 2, 1)]  # 1/32 of the grid
    assert logits.min() < 0 < logits.max()  # no sigmoid inside


def test_a_patch_that_the_network_cannot_see_is_refused():
    smallest = replace(PRESETS["demo"], patch=(32, 64, 32))
    with torch.inference_mode():
        assert swinmip.build_segmenter(smallest).eval()(torch.zeros(1, 2, 32, 64, 32)).shape[2:] == (32, 64, 32)
    with pytest.raises(AutopetError, match=r"patch needs an edge of 64 or more voxels: at \(32, 32, 32\)"):
        swinmip.build_segmenter(replace(smallest, patch=(32, 32, 32)))


def test_weights_travel_through_a_file(tmp_path: Path):
    torch.manual_seed(1)
    network = swinmip.build_segmenter(PRESETS["demo"])
    path = tmp_path / "deep" / swinmip.segmenter_file(3)
    save_weights(path, network.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["segmenter_fold3.safetensors"]
    loaded = swinmip.load_segmenter(path, PRESETS["demo"])
    assert not loaded.training
    tile = torch.randn(1, 2, 32, 32, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(tile), network.eval()(tile))
    assert swinmip.classifier_file("x", 0) == "classifier_x_fold0.safetensors"


def test_weights_that_do_not_belong_are_refused(tmp_path: Path):
    settings = PRESETS["demo"]
    path = tmp_path / "weights.safetensors"
    with pytest.raises(AutopetError, match="does not hold the weights of the segmentation network"):
        swinmip.load_segmenter(path, settings)
    save_weights(path, swinmip.build_segmenter(replace(settings, depths=(1, 1, 1, 1))).state_dict())
    with pytest.raises(AutopetError, match="Missing key.* train or copy the model again"):
        swinmip.load_segmenter(path, settings)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AutopetError, match="does not hold the weights"):
        swinmip.load_segmenter(path, settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with one file that stands for weights."""

    def fill(partial: Path) -> dict:
        (partial / "weights").write_bytes(b"weights")
        return {
            "method": "swinmip",
            "settings": asdict(PRESETS["demo"]),
            "channels": ["CT", "PET"],
            "spacing_mm": [4.0, 4.0, 6.0],
            "ranges": {"ct_hu": [-800.0, 500.0], "pet_suv": [1.0, 30.0]},
            "threshold": 0.4,
            "gate": None,
        }

    return publish_model(tmp_path / "model", fill)


def test_config_is_read_without_the_weights(folder: Path):
    (folder / "weights").unlink()
    settings, config = swinmip.read_model(folder)
    assert settings == PRESETS["demo"]
    assert config["threshold"] == 0.4
    with pytest.raises(AutopetError, match=r"weights missing: .*weights is named in SHA256SUMS but not there"):
        verify_sums(folder, ["weights"])
    (folder / "weights").write_bytes(b"other")
    with pytest.raises(AutopetError, match="checksum differs"):
        verify_sums(folder, ["weights"])


def test_files_that_nobody_signed_are_refused(folder: Path):
    (folder / "more").touch()
    with pytest.raises(AutopetError, match="weights missing: .*more is not named in SHA256SUMS"):
        verify_sums(folder, ["more"])
    (folder / SUMS).unlink()
    with pytest.raises(AutopetError, match=f"{SUMS} is missing"):
        swinmip.read_model(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "unet3d"}, "a model of method 'unet3d', expected 'swinmip'"),
        ({"channels": ["PET", "CT"]}, r"channels \['PET', 'CT'\], expected \['CT', 'PET'\]"),
        ({"gate": ...}, "lacks gate"),
        ({"threshold": ...}, "lacks threshold"),
    ],
)
def test_config_that_cannot_be_used(folder: Path, tmp_path: Path, change: dict, says: str):
    config = json.loads((folder / CONFIG).read_text()) | change
    config = {key: value for key, value in config.items() if value is not ...}
    other = publish_model(tmp_path / "other", lambda partial: config)
    with pytest.raises(AutopetError, match=says):
        swinmip.read_model(other)


def test_a_folder_without_a_model(tmp_path: Path, folder: Path):
    with pytest.raises(AutopetError, match="no weights for swinmip"):
        swinmip.read_model(tmp_path)
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("0.4", "0.5"))
    with pytest.raises(AutopetError, match="checksum differs"):
        swinmip.read_model(folder)
