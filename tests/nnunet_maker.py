"""Small nnU-Net models with seeded weights, without a training."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from autopet.volume import Volume

CONFIGURATION = "3d_fullres"
CHANNELS = ("CT", "PET")
DATASET = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "lesion": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
RESENC = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@contextmanager
def pools_of_threads() -> Iterator[None]:
    """nnU-Net's pools for fingerprint and preprocessing as threads: each spawned process imports torch anew, 5 s."""
    real, threads = multiprocessing.get_context, SimpleNamespace(Pool=ThreadPool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda kind=None: threads if kind == "spawn" else real(kind))
        yield


def make_plans(
    *,
    patch: tuple[int, ...] = (16, 16, 16),
    spacing_mm: tuple[float, ...] = (3.0, 2.5, 2.5),
    features: tuple[int, ...] = (4, 8, 8),
    transpose: tuple[int, ...] = (0, 1, 2),
) -> dict[str, Any]:
    """nnU-Net's plans of a residual-encoder network, as its planner writes them."""
    stages = len(features)
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    intensities = {"mean": 1.0, "std": 2.0, "median": 1.0, "min": -1000.0, "max": 3000.0}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing_mm),
        "median_image_size_in_voxels": [60.0, 60.0, 60.0],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": RESENC,
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                "n_blocks_per_stage": [1] + [2] * (stages - 1),
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset001_PETCT",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": intensities | {"percentile_00_5": -800.0, "percentile_99_5": 1200.0, "mean": 40.0, "std": 200.0},
            "1": intensities | {"percentile_00_5": 0.0, "percentile_99_5": 20.0},
        },
        "configurations": {CONFIGURATION: configuration},
    }


def make_network(plans: dict[str, Any]) -> torch.nn.Module:
    """The plans' network for inference: two channels in, two classes out."""
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        2,
        2,
        allow_init=True,
        deep_supervision=False,
    )


def make_folds(plans: dict[str, Any], count: int, *, gain: float = 4.0) -> list[dict[str, torch.Tensor]]:
    """Seeded weights; the last layer is scaled so that probabilities spread over 0 to 1 as a trained network's."""
    folds = []
    for seed in range(count):
        torch.manual_seed(seed)
        weights = {key: tensor.clone() for key, tensor in make_network(plans).state_dict().items()}
        last = max(key for key in weights if key.startswith("decoder.seg_layers") and key.endswith("weight"))
        weights[last] *= gain
        folds.append(weights)
    return folds


def make_images(shape: tuple[int, int, int] = (22, 30, 27), *, seed: int = 5) -> dict[str, Volume]:
    """Smooth random CT and PET; spacing 2.04 mm in plane, 3.4 mm between slices."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(2, *(n // 3 + 2 for n in shape)))
    fine = [np.kron(channel, np.ones((3, 3, 3)))[: shape[0], : shape[1], : shape[2]] for channel in coarse]
    fine = [channel + rng.normal(scale=0.2, size=shape) for channel in fine]
    spacing_mm = (2.04, 2.04, 3.4)
    return {
        "CT": Volume((fine[0] * 300).astype(np.int16), spacing_mm),
        "PET": Volume(np.abs(fine[1] * 3).astype(np.float32), spacing_mm),
    }
