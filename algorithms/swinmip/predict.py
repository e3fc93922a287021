"""Galdran's solution as an algorithm container: PET in SUV and CT in HU in, lesion mask out.

The classifiers of projections look first: a scan that they hold for lesion-free gets an empty mask at once, and the
segmentation networks are not even read (paper, section 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from algorithms.swinmip.classifier import load_classifier, scan_score
from algorithms.swinmip.inference import lesion_probability
from algorithms.swinmip.model import (
    Settings,
    classifier_file,
    load_segmenter,
    read_model,
    segmenter_file,
)
from algorithms.swinmip.preprocessing import Ranges
from autopet.checkpoint import verify_sums
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.sliding_window import export_reserve_s
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)


@dataclass(frozen=True)
class Model:
    """What a model folder says, the classifiers, and the segmentation networks once a scan needed them.

    Attributes
    ----------
    threshold : float
        Voxels of at least this mean probability are lesions.
    gate : float or None
        Scans of a lower score are lesion-free; None: all scans are segmented.
    """

    folder: Path
    settings: Settings
    ranges: Ranges
    spacing_mm: tuple[float, ...]
    threshold: float
    gate: float | None
    classifiers: Mapping[str, Sequence[torch.nn.Module]]  # by axis
    device: str
    segmenters: dict[int, torch.nn.Module] = field(default_factory=dict)  # by fold

    def segmenter(self, fold: int) -> torch.nn.Module:
        """The network of a fold; loaded when it is asked for first, and kept for the cases that follow."""
        if fold not in self.segmenters:
            name = segmenter_file(fold)
            verify_sums(self.folder, [name])
            self.segmenters[fold] = load_segmenter(self.folder / name, self.settings).to(self.device)
        return self.segmenters[fold]


def load(model_dir: Path, device: str) -> Model:
    """Read config.json and, where the model has a gate, the classifiers; the segmentation networks wait."""
    settings, config = read_model(model_dir)
    try:
        x_mm, y_mm, z_mm = map(float, config["spacing_mm"])
        ranges = Ranges(**{name: tuple(ends) for name, ends in config["ranges"].items()})
        threshold = float(config["threshold"])
        gate = None if config["gate"] is None else float(config["gate"]["threshold"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AutopetError(
            f"{model_dir}/config.json: {error!r}; expected ranges with ct_hu and pet_suv, three numbers in spacing_mm, "
            "a threshold, and a gate with a threshold, or null; train or copy the model again"
        ) from error
    return Model(
        folder=Path(model_dir),
        settings=settings,
        ranges=ranges,
        spacing_mm=(x_mm, y_mm, z_mm),
        threshold=threshold,
        gate=gate,
        classifiers={} if gate is None else _load_classifiers(Path(model_dir), settings, device),
        device=str(device),
    )


def _load_classifiers(folder: Path, settings: Settings, device: str) -> dict[str, list[torch.nn.Module]]:
    found: dict[str, list[torch.nn.Module]] = {}
    for axis in settings.cls_projections:
        names = [classifier_file(axis, fold) for fold in range(settings.folds)]
        verify_sums(folder, names)
        found[axis] = [load_classifier(folder / name, settings).to(device).eval() for name in names]
    return found


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """Look at the projections, then segment the lesions with as many folds as the time allows."""
    pet = inputs[PET.slug]
    if model.gate is not None and _lesion_free(model, inputs, deadline):
        return {LESIONS.slug: pet.with_array(np.zeros(pet.shape, np.uint8)), DATA_CENTRIC.slug: False}
    probability = lesion_probability(
        [partial(model.segmenter, fold) for fold in range(model.settings.folds)],
        {"CT": inputs[CT.slug], "PET": pet},
        ranges=model.ranges,
        settings=model.settings,
        spacing_mm=model.spacing_mm,
        device=model.device,
        deadline=deadline,
        reserve_s=export_reserve_s(deadline),
    )
    with deadline.journal.stage("export"):
        mask = pet.with_array((probability.array >= model.threshold).astype(np.uint8))
    return {LESIONS.slug: mask, DATA_CENTRIC.slug: False}


def _lesion_free(model: Model, inputs: Inputs, deadline: Deadline) -> bool:
    """Whether the score of the scan lies below the gate; the journal notes both."""
    with deadline.journal.stage("gate"):
        score = scan_score(
            model.classifiers, inputs[PET.slug], ranges=model.ranges, settings=model.settings, device=model.device
        )
    below = score < model.gate
    deadline.journal.note("gate", {"score": float(score), "threshold": model.gate, "segmented": not below})
    return below
