"""LesionTracer's network and settings: keys, heads, presets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet  # noqa: E402

from algorithms.lesiontracer.model import PRESETS, Settings, adapt_plans, build_network, schedule  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

DATASET = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".mha"}
FEATURES = (4, 8, 8, 12)


def make_plans() -> dict:
    """Plans as nnU-Net's ResEncL planner writes them, reduced to what is read here."""
    kwargs = {
        "n_stages": 7,
        "features_per_stage": [32, 64, 128, 256, 320, 320, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [],
        "strides": [],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6],
        "n_conv_per_stage_decoder": [1] * 6,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "batch_size": 3,
        "patch_size": [160, 160, 160],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, True],
        "batch_dice": True,
        "spacing": [3, 2, 2],
        "architecture": architecture,
    }
    return {"dataset_name": "D", "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}


def small_plans() -> dict:
    settings = replace(PRESETS["demo"], patch=(16, 16, 16), features=FEATURES, blocks=(1, 2, 1, 1))
    return adapt_plans(make_plans(), settings)


@pytest.fixture
def patch() -> torch.Tensor:
    return torch.randn(1, 2, 16, 16, 24, generator=torch.Generator().manual_seed(1))


def test_presets_are_the_published_ones():
    paper, final = PRESETS["paper"], PRESETS["paper-final"]
    assert (paper.epochs, paper.iterations_per_epoch, paper.batch, paper.patch) == (1000, 250, 2, (192, 192, 192))
    assert (paper.spacing, paper.tile_step, paper.folds) == ((3.0, 2.0364, 2.0364), 0.6, (0, 1, 2, 3, 4))
    assert (paper.optimizer, paper.foreground_share, paper.organs, paper.misalignment) == ("sgd", 0.33, True, True)
    assert (paper.rotation_degrees, paper.rotation_probability) == (5.0, 0.1)
    assert (paper.shift_voxels, paper.shift_probability) == ((0, 2, 2), 0.1)
    assert (final.epochs, final.batch) == (1500, 3)
    assert replace(final, epochs=1000, batch=2) == paper


def test_learning_rate_depends_on_where_training_starts():
    assert schedule(Settings()).learning_rate == 1e-2
    assert schedule(Settings(pretrained="weights.pth")).learning_rate == 1e-3
    assert schedule(Settings(pretrained="weights.pth", learning_rate=5e-4)).learning_rate == 5e-4


def test_settings_that_cannot_be():
    with pytest.raises(AutopetError, match="use corrected or released"):
        Settings(organ_map="mine")
    with pytest.raises(AutopetError, match="give both the same length"):
        Settings(features=(8, 16))
    for wrong in ({"spacing": (2.0, 2.0)}, {"patch": (32, 32)}, {"spacing": (0.0, 2.0, 2.0)}):
        with pytest.raises(AutopetError, match="expected three positive numbers z, y, x, or none"):
            Settings(**wrong)
    with pytest.raises(AutopetError, match="divide by 32"):  # and not after hours of preprocessing
        Settings(patch=(100, 96, 96))


def test_plans_of_the_paper():
    configuration = adapt_plans(make_plans(), PRESETS["paper"])["configurations"]["3d_fullres"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([192, 192, 192], 2)
    assert configuration["normalization_schemes"] == ["CTNormalization", "CTNormalization"]
    assert configuration["use_mask_for_norm"] == [False, False]
    assert configuration["batch_dice"] is False
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert kwargs["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
    assert kwargs["n_conv_per_stage_decoder"] == [1] * 5
    assert kwargs["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 5
    with pytest.raises(AutopetError, match="divide by 32"):
        adapt_plans(make_plans(), replace(PRESETS["paper"], patch=(100, 96, 96)))


def test_the_network_is_the_library_s_with_organ_heads_beside():
    ours = build_network(small_plans(), DATASET, organs=True, deep_supervision=True).state_dict()
    theirs = library_network().state_dict()
    added = set(ours) - set(theirs)
    assert set(theirs) <= set(ours)
    assert added == {f"decoder.organ_seg_layers.{stage}.{kind}" for stage in range(3) for kind in ("weight", "bias")}
    shapes = [tuple(ours[f"decoder.organ_seg_layers.{stage}.weight"].shape) for stage in range(3)]
    assert shapes == [(11, 8, 1, 1, 1), (11, 8, 1, 1, 1), (11, 4, 1, 1, 1)]  # the coarsest decoder stage first


def library_network() -> ResidualEncoderUNet:
    """The same network made from the library's own class, without our code."""
    return ResidualEncoderUNet(
        input_channels=2,
        n_stages=4,
        features_per_stage=FEATURES,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2],
        n_blocks_per_stage=[1, 2, 1, 1],
        num_classes=2,
        n_conv_per_stage_decoder=[1, 1, 1],
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def authors_checkpoint() -> tuple[ResidualEncoderUNet, dict]:
    """The library's network with random weights, and a checkpoint of it with the authors' key names."""
    network = library_network().eval()
    weights = network.state_dict()
    assert any(key.startswith("decoder.encoder.") for key in weights)  # the encoder is in it twice
    for stage, features in enumerate((8, 8, 4)):
        weights[f"decoder.organ_seg_layers.{stage}.weight"] = torch.randn(11, features, 1, 1, 1)
        weights[f"decoder.organ_seg_layers.{stage}.bias"] = torch.randn(11)
    return network, weights


@pytest.mark.parametrize("organs", [True, False])
def test_a_checkpoint_with_the_authors_keys_loads_strictly(organs: bool, patch: torch.Tensor):
    network, weights = authors_checkpoint()
    ours = build_network(small_plans(), DATASET, organs=organs, deep_supervision=False).eval()
    ours.load_state_dict(weights, strict=True)
    with torch.no_grad():
        expected, found = network(patch), ours(patch)
    assert found.shape[1] == (13 if organs else 2)
    torch.testing.assert_close(found[:, :2], expected, rtol=0, atol=1e-5)
    if organs:
        assert torch.equal(ours.decoder.organ_seg_layers[2].weight, weights["decoder.organ_seg_layers.2.weight"])


def test_loading_leaves_the_given_weights_as_they_were():
    _, weights = authors_checkpoint()
    build_network(small_plans(), DATASET, organs=False, deep_supervision=False).load_state_dict(weights)
    assert "decoder.organ_seg_layers.0.weight" in weights


def test_a_network_without_organ_heads_loads_a_file_without_them():
    network = build_network(small_plans(), DATASET, organs=False, deep_supervision=False)
    network.load_state_dict(library_network().state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="organ_seg_layers"):
        build_network(small_plans(), DATASET, organs=True, deep_supervision=False).load_state_dict(
            library_network().state_dict()
        )


def test_inference_without_organ_heads_is_the_training_network_s_lesion_output(patch: torch.Tensor):
    training = build_network(small_plans(), DATASET, organs=True, deep_supervision=True)
    inference = build_network(small_plans(), DATASET, organs=False, deep_supervision=False)
    inference.load_state_dict(training.state_dict())
    assert not hasattr(inference.decoder, "organ_seg_layers")
    with torch.no_grad():
        stages = training(patch)
        torch.testing.assert_close(inference(patch), stages[0][:, :2], rtol=0, atol=1e-5)
    assert [tuple(stage.shape[1:]) for stage in stages] == [(13, 16, 16, 24), (13, 8, 8, 12), (13, 4, 4, 6)]


def test_both_heads_in_one_convolution_are_two_convolutions(patch: torch.Tensor):
    network = build_network(small_plans(), DATASET, organs=True, deep_supervision=False)
    features = torch.randn(1, 4, 3, 4, 5)
    decoder = network.decoder
    expected = torch.cat((decoder.seg_layers[2](features), decoder.organ_seg_layers[2](features)), 1)
    torch.testing.assert_close(decoder._heads(2, features), expected)
    decoder.organs_enabled = False
    torch.testing.assert_close(decoder._heads(2, features), expected[:, :2])
