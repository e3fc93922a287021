"""nnU-Net as an algorithm container: PET in SUV and CT in HU in, lesion mask out."""

from __future__ import annotations

from pathlib import Path

from autopet.checkpoint import read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.nnunet.inference import MIRROR_AXES, Ensemble, Policy
from autopet.nnunet.model_folder import load_weights
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from baselines.nnunet.model import CONFIGURATION, Settings, build_network

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)


def load(model_dir: Path, device: str) -> Ensemble:
    """Build the network from the model folder's plans and load the weights of every fold."""
    config = read_config(model_dir, method="nnunet")
    settings = settings_from_dict(Settings, config["settings"], str(model_dir))
    plans, dataset, folds = load_weights(model_dir)
    return Ensemble(
        build_network(plans, dataset),
        plans,
        dataset,
        folds,
        channels=config["channels"],
        configuration=CONFIGURATION,
        device=device,
        policy=Policy(settings.tile_step, MIRROR_AXES if settings.mirroring else ()),
    )


def predict(model: Ensemble, inputs: Inputs, deadline: Deadline) -> dict:
    """Segment the lesions; folds and mirrored copies are averaged as far as the time allows."""
    mask = model.segment({"CT": inputs[CT.slug], "PET": inputs[PET.slug]}, deadline)
    return {LESIONS.slug: mask, DATA_CENTRIC.slug: False}
