"""LesionTracer (winner of autoPET III): nnU-Net's residual encoder U-Net with a second head for organs.

The network is dynamic_network_architectures' ResidualEncoderUNet, planned by nnU-Net's ResEncL planner. What is added
is one 1x1x1 convolution per decoder stage that names the organ of every voxel (paper, section 2.4): encoder and decoder
learn anatomy from it, and stop taking bladder, brain or heart for lesions. At inference only the lesion head runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from autopet.errors import AutopetError
from autopet.nnunet.plans import CHANNELS, CONFIGURATION, check_patch, set_patch, set_stages
from autopet.nnunet.schedule import Schedule
from autopet.organs import ORGANS, VARIANTS

LESION_CLASSES = 2  # background, lesion
ORGAN_CLASSES = 1 + len(ORGANS)  # background and the ten organs


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset: the cross-validated model of the paper, section 2."""

    epochs: int = 1000
    iterations_per_epoch: int = 250
    validation_iterations: int = 50
    learning_rate: float = 0.0  # 0: the rule of `initial_learning_rate`
    optimizer: str = "sgd"  # sgd (Nesterov, momentum 0.99) or adam (AdamW); weight decay 3e-5 in both
    folds: tuple = (0, 1, 2, 3, 4)  # or ("all",): one network trained on every case
    spacing: tuple = (3.0, 2.0364, 2.0364)  # mm, z, y, x; empty: the median of the training cases
    patch: tuple = (192, 192, 192)  # patch size z, y, x in voxels; empty: the planner's choice
    batch: int = 2  # patches per iteration, over all GPUs together; 0: the planner's choice
    features: tuple = (32, 64, 128, 256, 320, 320)  # channels per stage; empty: the planner's choice
    blocks: tuple = (1, 3, 4, 6, 6, 6)  # residual blocks per stage, one for each entry of features
    foreground_share: float = 0.33  # of the patches of a batch, centred on a lesion voxel
    organs: bool = True  # train the organ head, on the cases that have organ labels
    organ_map: str = "corrected"  # which mapping made the organ labels (autopet organs): only noted here
    misalignment: bool = True  # move the CT against the PET in training
    rotation_degrees: float = 5.0  # largest angle about each axis
    rotation_probability: float = 0.1
    shift_voxels: tuple = (0, 2, 2)  # largest shift z, y, x
    shift_probability: float = 0.1
    pretrained: str = ""  # checkpoint to start from: its path; empty: from scratch
    pretrained_stem: str = ""  # which stem of a checkpoint with several; empty: the first one that fits
    mirroring: bool = True  # average over mirrored copies at inference, as far as the time limit allows
    tile_step: float = 0.6  # step between tiles, as a share of the patch
    checkpoint_every: int = 10  # epochs between checkpoints that a killed training resumes from
    workers: int = 0  # augmentation and preprocessing processes; 0: one per core, at most 8
    seed: int = 0  # of the first weights and of the patches

    def __post_init__(self) -> None:
        Schedule.of(self)  # checks what the two have in common
        if self.organ_map not in VARIANTS:
            raise AutopetError(f"organ_map {self.organ_map!r} is unknown; use {' or '.join(VARIANTS)}")
        if len(self.features) != len(self.blocks):
            raise AutopetError(
                f"features names {len(self.features)} stages and blocks {len(self.blocks)}; give both the same length"
            )
        for name in ("spacing", "patch"):
            values = getattr(self, name)
            if values and (len(values) != 3 or min(values) <= 0):
                raise AutopetError(f"{name}: expected three positive numbers z, y, x, or none, found {list(values)}")
        if self.features and self.patch:
            check_patch(self.patch, len(self.features))

    @property
    def initial_learning_rate(self) -> float:
        """As set, else 1e-2 from scratch and 1e-3 from pretrained weights (paper, section 2.3)."""
        return self.learning_rate or (1e-3 if self.pretrained else 1e-2)


PRESETS = {
    "paper": Settings(),
    "paper-final": Settings(epochs=1500, batch=3),
    "demo": Settings(
        epochs=30,
        iterations_per_epoch=40,
        validation_iterations=2,
        learning_rate=2e-3,
        optimizer="adam",  # with SGD a network of this size still predicts nothing after 1200 iterations
        folds=("all",),
        spacing=(),
        patch=(48, 48, 48),
        features=(8, 16, 32, 64),
        blocks=(1, 1, 1, 1),
        foreground_share=0.5,
        mirroring=False,
        checkpoint_every=3,
    ),
}


def adapt_plans(plans: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The ResEncL planner's plans as the paper changed them.

    CT normalisation (clipping to the 0.5 and 99.5 percentiles of the lesions' values, then z-scores with their mean
    and deviation) is used for both channels; nnU-Net would choose it by the channel's name, for CT alone.
    """
    configuration = plans["configurations"][CONFIGURATION]
    configuration["normalization_schemes"] = ["CTNormalization"] * len(CHANNELS)
    configuration["use_mask_for_norm"] = [False] * len(CHANNELS)
    configuration["batch_dice"] = False
    set_patch(plans, patch=settings.patch, batch=settings.batch)
    set_stages(
        plans,
        settings.features,
        n_blocks_per_stage=settings.blocks,
        n_conv_per_stage_decoder=[1] * (len(settings.features) - 1),
    )
    return plans


class OrganDecoder(UNetDecoder):
    """nnU-Net's decoder with a second 1x1x1 convolution at every stage.

    With `organs_enabled`, an output holds 2 lesion and then 11 organ channels: (batch, 13, z, y, x). Both heads are
    one convolution with the weights of both, so the two never wait for each other nor copy what they share.
    """

    def __init__(self, *args: Any, organs: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.organs_enabled = organs
        if organs:
            heads = [type(head)(head.in_channels, ORGAN_CLASSES, 1, 1, 0, bias=True) for head in self.seg_layers]
            self.organ_seg_layers = torch.nn.ModuleList(heads)
        else:
            self.register_load_state_dict_pre_hook(_drop_organ_heads)

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Logits at full resolution, or with deep supervision those of every stage, the finest first."""
        features, outputs = skips[-1], []
        for stage in range(len(self.stages)):
            features = self.transpconvs[stage](features)
            features = self.stages[stage](torch.cat((features, skips[-(stage + 2)]), 1))
            if self.deep_supervision or stage == len(self.stages) - 1:
                outputs.append(self._heads(stage, features))
        return outputs[::-1] if self.deep_supervision else outputs[0]

    def _heads(self, stage: int, features: torch.Tensor) -> torch.Tensor:
        lesion = self.seg_layers[stage]
        if not self.organs_enabled:
            return lesion(features)
        organ: Any = self.organ_seg_layers[stage]
        return torch.nn.functional.conv3d(
            features, torch.cat((lesion.weight, organ.weight)), torch.cat((lesion.bias, organ.bias))
        )


def _drop_organ_heads(module: OrganDecoder, weights: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """A network without organ heads loads a file that has them."""
    for key in [key for key in weights if key.startswith(f"{prefix}organ_seg_layers.")]:
        del weights[key]


class LesionTracer(ResidualEncoderUNet):
    """ResidualEncoderUNet with an `OrganDecoder`.

    State-dict keys are those of the authors' network: the standard ones and `decoder.organ_seg_layers.<i>.*`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        n_conv_per_stage_decoder: int | list[int],
        deep_supervision: bool = False,
        organs: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            n_conv_per_stage_decoder=n_conv_per_stage_decoder,
            deep_supervision=deep_supervision,
            **options,
        )
        self.decoder = OrganDecoder(
            self.encoder, num_classes, n_conv_per_stage_decoder, deep_supervision, organs=organs
        )


def build_network(
    plans: dict[str, Any], dataset: dict[str, Any], *, organs: bool, deep_supervision: bool
) -> LesionTracer:
    """The network that the plans describe, with random weights.

    Parameters
    ----------
    plans, dataset : dict
        nnU-Net's plans.json and dataset.json.
    organs : bool
        With the organ heads, for training. Without them the network loads files with and without organ heads.
    deep_supervision : bool
        Return the logits of every decoder stage (training) or of the last one alone.
    """
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    return get_network_from_plans(
        f"{LesionTracer.__module__}.{LesionTracer.__qualname__}",
        {**configuration.network_arch_init_kwargs, "organs": organs},
        configuration.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, configuration, dataset),
        manager.get_label_manager(dataset).num_segmentation_heads,
        allow_init=True,
        deep_supervision=deep_supervision,
    )


def schedule(settings: Settings) -> Schedule:
    """The settings' training schedule, with the learning rate that the rule gives."""
    return Schedule.of(settings, learning_rate=settings.initial_learning_rate)
