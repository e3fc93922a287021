"""The global threshold as an algorithm container: PET in SUV in, lesion mask out (the CT is read but not used)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopet.checkpoint import read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from baselines.threshold.model import Settings, thresholds_suv

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)


@dataclass(frozen=True)
class Model:
    """A rule and the value it was trained to."""

    rule: str
    value: float


def load(model_dir: Path, device: str) -> Model:
    """Read the rule and its value from config.json; the device is not used."""
    config = read_config(model_dir, method="threshold")
    settings = settings_from_dict(Settings, config["settings"], str(model_dir))
    return Model(settings.rule, float(config["values"][settings.rule]))


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """Mark every voxel at or above the scan's threshold; a scan without uptake has no lesion."""
    pet = inputs[PET.slug]
    threshold = thresholds_suv(pet.array, model.rule, np.array([model.value]))[0]
    mask = ((pet.array >= threshold) & (pet.array > 0)).astype(np.uint8)
    return {LESIONS.slug: pet.with_array(mask), DATA_CENTRIC.slug: False}
