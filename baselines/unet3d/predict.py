"""MONAI's U-Net as an algorithm container: PET in SUV and CT in HU in, lesion mask out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from autopet.deadline import Deadline
from autopet.sliding_window import export_reserve_s
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from baselines.unet3d.model import Settings, lesion_mask, lesion_probability, load_network, prepare

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)


@dataclass(frozen=True)
class Model:
    """The network with its weights, and what feeds it."""

    network: torch.nn.Module
    settings: Settings
    channels: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    device: str


def load(model_dir: Path, device: str) -> Model:
    """Build the network that config.json describes and load its weights."""
    network, settings, config = load_network(model_dir)
    return Model(
        network.to(device).eval(), settings, tuple(config["channels"]), tuple(config["spacing_mm"]), str(device)
    )


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """Segment the lesions; the sliding window takes what time the limit leaves (see `lesion_probability`)."""
    images = {"CT": inputs[CT.slug], "PET": inputs[PET.slug]}
    started_s = deadline.elapsed_s
    with deadline.journal.stage("resample"):
        image, grid = prepare(images, model.channels, model.settings, model.spacing_mm)
    # back goes one image instead of two; the file that follows takes a time of the same order
    reserve_s = deadline.elapsed_s - started_s + export_reserve_s(deadline)
    with deadline.journal.stage("network"):
        probability = lesion_probability(
            model.network, image, settings=model.settings, device=model.device, deadline=deadline, reserve_s=reserve_s
        )
    with deadline.journal.stage("export"):
        mask = lesion_mask(probability, grid, images["PET"])
    return {LESIONS.slug: mask, DATA_CENTRIC.slug: False}
