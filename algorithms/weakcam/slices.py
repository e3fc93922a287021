"""What the classifier is shown and what it says: slices in its ranges, probabilities, their AUROC.

The cut into slices, their cache and their deformation are in `autopet/slices.py` and `autopet/slice_changes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from algorithms.weakcam.model import LESION, Settings
from autopet import topk_auroc
from autopet.cohort import Case
from autopet.slices import CHANNELS, Slices, cache_slices, normalise, slice_grid, slice_images
from autopet.volume import Volume

PET = CHANNELS.index("PET")
AT_ONCE = 8  # slices; few, so that the clock is asked often


# Slices


def cut(images: Mapping[str, Volume], settings: Settings) -> tuple[np.ndarray, Volume]:
    """A scan as the classifier sees it: (slice, channel, y, x) float32 in HU and SUV, and the grid of these slices.

    Parameters
    ----------
    images : mapping
        `CT` in HU and `PET` in SUV, on any grids.
    """
    grid = slice_grid(images["PET"], **asdict(settings.frame))
    return slice_images(images, grid), grid


def cache(cases: Sequence[Case], folder: Path, settings: Settings) -> dict[str, Path]:
    """`autopet.slices.cache_slices` of the settings' frame."""
    return cache_slices(cases, folder, **asdict(settings.frame))


def training_slices(folders: Sequence[Path], settings: Settings) -> Slices:
    """Every slice of the cases once per epoch with its label, changed at random (section 2.3.3)."""
    return Slices(
        folders,
        ranges=settings.ranges,
        target="label",
        augmentation=settings.augmentation,
        epochs=settings.epochs,
        seed=settings.seed,
    )


# The classifier's word


def probabilities(
    network: torch.nn.Module, images: np.ndarray, *, settings: Settings, device: str
) -> Iterator[np.ndarray]:
    """Probabilities that slices have a lesion, a few slices at a time and in their order.

    Parameters
    ----------
    network : torch.nn.Module
        From (n, channel, y, x) to logits (n, 2).
    images : (slices, channel, y, x) array
        In HU and SUV; may be memory-mapped.

    Yields
    ------
    (n,) float32 array
        At most `AT_ONCE`.
    """
    for first in range(0, len(images), AT_ONCE):
        yield lesion_probability(network, images[first : first + AT_ONCE], settings=settings, device=device)


@torch.inference_mode()
def lesion_probability(network: torch.nn.Module, images: np.ndarray, *, settings: Settings, device: str) -> np.ndarray:
    """The same for slices that go through the network together, (n,) float32."""
    logits = network.eval()(as_input(images, settings).to(device))
    return torch.softmax(logits.float(), dim=1)[:, LESION].cpu().numpy()


def as_input(images: np.ndarray, settings: Settings) -> torch.Tensor:
    """Slices in HU and SUV as the network wants them, (n, channel, y, x) float32, 0 to 1."""
    return torch.from_numpy(normalise(np.asarray(images), settings.ranges))


def auroc(probability: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of slices; NaN without a positive or without a negative one.

    Parameters
    ----------
    probability : (n,) array
        Of a lesion.
    labels : (n,) array of bool
    """
    positive = np.asarray(labels, bool)
    return topk_auroc.auroc(np.asarray(probability)[positive], np.asarray(probability)[~positive])
