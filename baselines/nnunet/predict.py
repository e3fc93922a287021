"""nnU-Net as an algorithm container: PET in SUV and CT in HU in, lesion mask out."""

from __future__ import annotations

import logging
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from autopet.checkpoint import read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from baselines.nnunet.model import CONFIGURATION, Settings, build_network, load_weights

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)
MIRROR_AXES = (0, 1, 2)
MIRRORED_PASSES = 2 ** len(MIRROR_AXES)
SLACK = 1.5  # a mirrored prediction may take this much longer than the passes that were timed
logger = logging.getLogger("autopet.nnunet")


@dataclass(frozen=True)
class Model:
    """nnU-Net's predictor with the weights of every fold, and what feeds it."""

    predictor: nnUNetPredictor
    channels: tuple[str, ...]
    mirroring: bool


def load(model_dir: Path, device: str) -> Model:
    """Build the network from the model folder's plans and load the weights of every fold."""
    config = read_config(model_dir, method="nnunet")
    settings = settings_from_dict(Settings, config["settings"], str(model_dir))
    plans, dataset, folds = load_weights(model_dir)
    network = build_network(plans, dataset).to(device)
    network.load_state_dict(folds[0])
    network.eval()
    manager = PlansManager(plans)
    with redirect_stdout(StringIO()):  # nnU-Net prints its settings
        predictor = nnUNetPredictor(tile_step_size=settings.tile_step, device=torch.device(device), allow_tqdm=False)
    predictor.manual_initialization(
        network, manager, manager.get_configuration(CONFIGURATION), folds, dataset, "nnUNetTrainer", MIRROR_AXES
    )
    return Model(predictor, tuple(config["channels"]), settings.mirroring)


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """Segment the lesions; mirrored copies are averaged when the settings want it and the time allows it."""
    images = {"CT": inputs[CT.slug], "PET": inputs[PET.slug]}
    unknown = set(model.channels) - set(images)
    if unknown:
        raise AutopetError(f"the model wants the channels {model.channels}, this container has {tuple(images)}")
    grid = images["PET"]
    voxels = np.stack([images[name].array.astype(np.float32) for name in model.channels])  # (channel, z, y, x)
    mask = _mirror_as_time_allows(model, voxels, list(grid.spacing_zyx_mm), deadline)
    return {LESIONS.slug: grid.with_array((mask == 1).astype(np.uint8)), DATA_CENTRIC.slug: False}


def _mirror_as_time_allows(model: Model, voxels: np.ndarray, spacing: list[float], deadline: Deadline) -> np.ndarray:
    """A prediction without mirroring first when there is a time limit: it is the answer if mirroring does not fit."""
    unlimited = deadline.limit_s == float("inf")
    if model.mirroring and unlimited:
        return _run(model, voxels, spacing, mirroring=True)
    started = time.monotonic()
    mask = _run(model, voxels, spacing, mirroring=False)
    needed_s = (time.monotonic() - started) * MIRRORED_PASSES * SLACK
    if not model.mirroring:
        return mask
    if not deadline.allows(needed_s):
        logger.warning("mirroring dropped: it needs about %.0f s, %.0f s are left", needed_s, deadline.remaining_s)
        return mask
    return _run(model, voxels, spacing, mirroring=True)


def _run(model: Model, voxels: np.ndarray, spacing: list[float], *, mirroring: bool) -> np.ndarray:
    model.predictor.use_mirroring = mirroring
    with redirect_stdout(StringIO()):
        return model.predictor.predict_single_npy_array(voxels, {"spacing": spacing})
