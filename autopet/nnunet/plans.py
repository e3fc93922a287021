"""Changes to nnU-Net's plans that the methods share, and what of the plans every method fixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopet.errors import AutopetError

CONFIGURATION = "3d_fullres"
CHANNELS = ("CT", "PET")  # from edition III on; editions I and II used PET, CT


def set_patch(plans: dict[str, Any], *, patch: Sequence[int], batch: int) -> None:
    """Replace the planner's patch size (z, y, x in voxels) and batch size, where they are given."""
    configuration = plans["configurations"][CONFIGURATION]
    if batch:
        configuration["batch_size"] = batch
    if patch:
        configuration["patch_size"] = list(patch)


def set_stages(plans: dict[str, Any], features: Sequence[int], **per_stage: Sequence[int]) -> None:
    """Replace the planner's network stages: strides halve every axis at each further stage, kernels are 3x3x3.

    Parameters
    ----------
    features : sequence of int
        Channels per stage; empty keeps the planner's choice.
    **per_stage
        Further arguments of the network class, such as `n_conv_per_stage`.
    """
    if not features:
        return
    configuration = plans["configurations"][CONFIGURATION]
    stages = len(features)
    check_patch(configuration["patch_size"], stages)
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=list(features),
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        **{name: list(values) for name, values in per_stage.items()},
    )


def check_patch(patch: Sequence[int], stages: int) -> None:
    """Refuse patches that cannot be halved in every stage but the first."""
    step = 2 ** (stages - 1)
    if any(edge % step for edge in patch):
        raise AutopetError(
            f"a network of {stages} stages needs patch edges that divide by {step}, found {list(patch)}; set patch"
        )
