"""The 2D U-Net as an algorithm container: PET in SUV and CT in HU in, lesion mask out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from autopet.deadline import Deadline
from autopet.slices import slice_grid, slice_images, slices_to_mask
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from baselines.unet2d.model import Settings, lesion_probability, load_network

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)
EXPORT_SHARE = 0.05  # of the time limit, kept for the mask's way back and its file


@dataclass(frozen=True)
class Model:
    """The network with its weights, and what feeds it."""

    network: torch.nn.Module
    settings: Settings
    channels: tuple[str, ...]
    device: str


def load(model_dir: Path, device: str) -> Model:
    """Build the network that config.json describes and load its weights."""
    network, settings, channels = load_network(model_dir)
    return Model(network.to(device).eval(), settings, channels, str(device))


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """Segment the lesions slice by slice, as many slices as the limit leaves time for (see `lesion_probability`)."""
    images = {"CT": inputs[CT.slug], "PET": inputs[PET.slug]}
    settings = model.settings
    started_s = deadline.elapsed_s
    with deadline.journal.stage("resample"):
        grid = slice_grid(images["PET"], **asdict(settings.frame))
        slices = slice_images(images, grid, channels=model.channels)
    # back goes one image instead of two; the file that follows takes a time of the same order
    reserve_s = deadline.elapsed_s - started_s
    if deadline.limited:
        reserve_s += EXPORT_SHARE * deadline.limit_s
    with deadline.journal.stage("network"):
        probability = lesion_probability(
            model.network,
            slices,
            settings=settings,
            channels=model.channels,
            device=model.device,
            deadline=deadline,
            reserve_s=reserve_s,
        )
    with deadline.journal.stage("export"):
        mask = slices_to_mask(probability, grid, images["PET"])
    return {LESIONS.slug: mask, DATA_CENTRIC.slug: False}
