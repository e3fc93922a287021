"""nnU-Net (Isensee et al. 2021), the challenge's own baseline: nnunetv2 plans it, trains it and runs it.

This file holds what is ours: the settings, and the change that the `demo` preset makes to the plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from autopet.nnunet.model_folder import load_weights
from autopet.nnunet.plans import CHANNELS, CONFIGURATION, set_patch, set_stages
from autopet.nnunet.schedule import Schedule

__all__ = ["CHANNELS", "CONFIGURATION", "PRESETS", "Settings", "adapt_plans", "build_network", "load_weights"]


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
    seed: int = 0  # of the first weights and of the patches

    def __post_init__(self) -> None:
        Schedule.of(self)  # checks what the two have in common


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

    Two convolutions per stage, as nnU-Net's default.
    """
    stages = len(settings.features)
    set_patch(plans, patch=settings.patch, batch=settings.batch)
    set_stages(plans, settings.features, n_conv_per_stage=[2] * stages, n_conv_per_stage_decoder=[2] * (stages - 1))
    return plans


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
