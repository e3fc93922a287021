"""LesionTracer as an algorithm container: PET in SUV and CT in HU in, lesion mask out, within the time limit.

Five folds, Gaussian-weighted tiles with a step of 0.6; the first fold runs without mirroring, the others with as many
mirror axes as the limit allows (paper, section 3.1). The organ heads are not built.
"""

from __future__ import annotations

from pathlib import Path

from algorithms.lesiontracer.model import CONFIGURATION, Settings, build_network
from autopet.checkpoint import read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.nnunet.inference import MIRROR_AXES, Ensemble, Policy
from autopet.nnunet.model_folder import load_weights
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)


def load(model_dir: Path, device: str) -> Ensemble:
    """Build the network from the model folder's plans and load the weights of every fold."""
    config = read_config(model_dir, method="lesiontracer")
    settings = settings_from_dict(Settings, config["settings"], str(model_dir))
    plans, dataset, folds = load_weights(model_dir)
    return Ensemble(
        build_network(plans, dataset, organs=False, deep_supervision=False),
        plans,
        dataset,
        folds,
        channels=config["channels"],
        configuration=CONFIGURATION,
        device=device,
        policy=Policy(settings.tile_step, MIRROR_AXES if settings.mirroring else (), mirror_first=False),
    )


def predict(model: Ensemble, inputs: Inputs, deadline: Deadline) -> dict:
    """Segment the lesions; folds and mirrored copies are averaged as far as the time allows."""
    mask = model.segment({"CT": inputs[CT.slug], "PET": inputs[PET.slug]}, deadline)
    return {LESIONS.slug: mask, DATA_CENTRIC.slug: False}
