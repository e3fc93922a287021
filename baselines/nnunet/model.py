"""nnU-Net (Isensee et al. 2021), the challenge's own baseline: nnunetv2 plans it, trains it and runs it.

This file holds what is ours: the settings, the change that the `demo` preset makes to the plans, and the model folder
(nnU-Net's plans.json and dataset.json beside one safetensors file per fold).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors.torch import load_file, save_file

from autopet.errors import AutopetError

CONFIGURATION = "3d_fullres"
OPTIMIZERS = ("sgd", "adam")
CHANNELS = ("CT", "PET")  # from edition III on; editions I and II used PET, CT


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset: the challenge's nnU-Net baseline (thesis, chapter 3)."""

    epochs: int = 1000
    iterations_per_epoch: int = 250
    validation_iterations: int = 50
    learning_rate: float = 1e-4
    optimizer: str = "sgd"  # sgd (Nesterov, nnU-Net's default) or adam (AdamW, as nnU-Net's own Adam trainers)
    folds: tuple = (0, 1, 2, 3, 4)  # or ("all",): one network trained on every case
    gpu_memory_gb: float = 8.0  # what nnU-Net's planner may fill
    patch: tuple = ()  # patch size z, y, x in voxels; empty: the planner's choice
    batch: int = 0  # patches per iteration; 0: the planner's choice
    features: tuple = ()  # channels per stage; empty: the planner's choice
    foreground_share: float = 0.33  # of the patches of a batch, centred on a lesion voxel
    mirroring: bool = True  # average over mirrored copies at inference, as far as the time limit allows
    tile_step: float = 0.5  # step between tiles, as a share of the patch
    checkpoint_every: int = 10  # epochs between checkpoints that a killed training resumes from
    workers: int = 0  # augmentation and preprocessing processes; 0: one per core, at most 8

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise AutopetError(f"optimizer {self.optimizer!r} is unknown; use {' or '.join(OPTIMIZERS)}")


PRESETS = {
    "paper": Settings(),
    "demo": Settings(
        epochs=30,
        iterations_per_epoch=40,
        validation_iterations=2,
        learning_rate=2e-3,
        optimizer="adam",  # with SGD the network still predicted nothing after 600 iterations
        folds=("all",),
        patch=(48, 48, 48),
        batch=2,
        features=(8, 16, 32, 64),
        foreground_share=0.5,
        mirroring=False,
        checkpoint_every=3,
    ),
}


def adapt_plans(plans: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The planner's plans with the settings' own patch, batch and network width, where they are given.

    Strides halve every axis at each further stage; kernels are 3x3x3; two convolutions per stage, as nnU-Net's default.
    """
    configuration = plans["configurations"][CONFIGURATION]
    if settings.batch:
        configuration["batch_size"] = settings.batch
    if settings.patch:
        configuration["patch_size"] = list(settings.patch)
    if settings.features:
        stages = len(settings.features)
        _check_patch(configuration["patch_size"], stages)
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=stages,
            features_per_stage=list(settings.features),
            kernel_sizes=[[3, 3, 3]] * stages,
            strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            n_conv_per_stage=[2] * stages,
            n_conv_per_stage_decoder=[2] * (stages - 1),
        )
    return plans


def _check_patch(patch: list[int], stages: int) -> None:
    step = 2 ** (stages - 1)
    if any(edge % step for edge in patch):
        raise AutopetError(
            f"a network of {stages} stages needs patch edges that divide by {step}, found {patch}; set patch"
        )


def build_network(plans: dict[str, Any], dataset: dict[str, Any]) -> torch.nn.Module:
    """The network that the plans describe, without deep supervision, for inference."""
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    return get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, configuration, dataset),
        manager.get_label_manager(dataset).num_segmentation_heads,
        allow_init=True,
        deep_supervision=False,
    )


def save_weights(folder: Path, plans: dict, dataset: dict, folds: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write plans.json, dataset.json and fold_<k>.safetensors (shared tensors are stored once per key)."""
    (folder / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n")
    for name, weights in folds.items():
        save_file(
            {key: tensor.detach().cpu().clone() for key, tensor in weights.items()}, folder / f"fold_{name}.safetensors"
        )


def load_weights(folder: Path) -> tuple[dict, dict, list[dict[str, torch.Tensor]]]:
    """plans, dataset and the weights of every fold, in the order of their names."""
    files = sorted(folder.glob("fold_*.safetensors"))
    if not files:
        raise AutopetError(f"weights missing: no fold_*.safetensors in {folder}; train or copy the model again")
    plans = json.loads((folder / "plans.json").read_text())
    dataset = json.loads((folder / "dataset.json").read_text())
    return plans, dataset, [load_file(path) for path in files]
