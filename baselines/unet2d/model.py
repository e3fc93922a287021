"""A U-Net on axial slices, trained with full masks: the upper baseline of weak supervision from slice labels.

Früh et al., "Weakly supervised segmentation of tumor lesions in PET-CT hybrid imaging", J. Med. Imaging 8(5), 054003,
2021, sections 2.3.2 and 2.3.3. This file holds the settings, the network and the timed pass over the slices of a scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet

from autopet.checkpoint import load_weights, read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.slice_changes import Augmentation
from autopet.slices import CHANNELS, Frame, normalise

METHOD = "unet2d"
WEIGHTS = "weights.safetensors"
LEVELS = 5  # of double convolutions going down, the bottom among them; four of them have a partner on the way up
STEP = 2 ** (LEVELS - 1)  # edges of a slice divide by this
SAFETY = 1.5  # a batch of slices may take this much longer than the slowest before it


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset; README.md says which are published."""

    epochs: int = 200
    batch: int = 64  # slices per iteration
    slices_per_epoch: int = 0  # drawn anew for every epoch; 0: all slices of all cases
    lesion_share: float = 0.0  # of the drawn slices, with lesions; 0: as they come
    size: int = 256  # pixels along both edges of a slice
    pixel_mm: float = 2.0  # smallest edge of a pixel; larger for a body that would not fit
    slice_mm: float = 3.0  # distance of the slices; 0: as the scan's own
    features: tuple = (64, 128, 256, 512, 1024)  # channels of the levels from the top to the bottom
    learning_rate: float = 5e-5  # of Adam
    decay_power: float = 0.0  # of polynomial decay over the epochs; 0: constant
    lesion_weight: float = 0.0  # of the class lesion in the cross-entropy; 0: slices without lesions per slice with
    rotation_degrees: float = 15.0  # largest random rotation
    scale_share: float = 0.15  # largest random change of size
    shift_share: float = 0.05  # largest random shift, as a share of the edge
    contrast_share: float = 0.2  # largest random change of contrast
    ct_range_hu: tuple = (-1000.0, 400.0)  # becomes 0 to 1, clipped
    pet_range_suv: tuple = (0.0, 20.0)  # becomes 0 to 1, clipped
    inference_batch: int = 8  # slices per pass; the clock is asked before each
    validation_share: float = 0.1  # of the patients, held out to choose the epoch that is kept; 0: the last one
    validation_every: int = 10  # epochs
    checkpoint_every: int = 1  # epochs between checkpoints that a killed training resumes from
    workers: int = 8  # processes that read and change slices, at most one per core; 0: in the training process
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < STEP or self.size % STEP:
            raise AutopetError(f"size must divide by {STEP}, found {self.size}")
        if len(self.features) != LEVELS or min(self.features) < 1:
            raise AutopetError(f"features needs {LEVELS} numbers of channels, found {self.features}")
        for name in ("validation_share", "lesion_share"):
            if not 0 <= getattr(self, name) < 1:
                raise AutopetError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")
        for name in ("epochs", "batch", "inference_batch", "validation_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AutopetError(f"{name} must be 1 or more, found {getattr(self, name)}")
        if self.lesion_share and not self.slices_per_epoch:
            raise AutopetError("lesion_share is of the slices that are drawn; give slices_per_epoch, too")
        if self.lesion_weight < 0:
            raise AutopetError(f"lesion_weight must be 0 or more, found {self.lesion_weight}")
        _ = self.augmentation, self.frame  # these check their own

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training slices."""
        return Augmentation(self.rotation_degrees, self.scale_share, self.shift_share, self.contrast_share)

    @property
    def frame(self) -> Frame:
        """Size and spacing of the slices."""
        return Frame(self.size, self.pixel_mm, self.slice_mm)

    def ranges(self, channels: Sequence[str]) -> list[tuple]:
        """Intensity ranges of channels in their order, for `autopet.slices.normalise`."""
        known = {"CT": self.ct_range_hu, "PET": self.pet_range_suv}
        return [known[name] for name in channels]


PRESETS = {
    "paper": Settings(),
    "demo": Settings(
        epochs=20,
        batch=4,  # many small steps: with 16 slices each the network predicted nothing after as many slices
        slices_per_epoch=640,
        lesion_share=0.5,  # more, and organs in slices without lesions are taken for them
        size=96,
        pixel_mm=4.0,
        slice_mm=0.0,
        features=(16, 32, 64, 128, 256),
        learning_rate=2e-3,
        decay_power=0.9,
        lesion_weight=3.0,  # half of the slices have lesions, which is a weight, too
        validation_share=0.0,
        checkpoint_every=2,
        workers=0,
    ),
}


def build_network(settings: Settings, channels: int = len(CHANNELS)) -> BasicUNet:
    """MONAI's BasicUNet: slices (batch, channels, y, x) to logits (batch, 2, y, x) of background and lesion.

    Four double convolutions on the way down, each followed by max-pooling, one at the bottom, and four on the way up,
    each joined with what its partner saw (section 2.3.2; Ronneberger et al., "U-Net", MICCAI 2015, figure 1), with
    batch normalisation and ReLU.
    """
    return BasicUNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=2,
        features=(*settings.features, settings.features[0]),  # the sixth: after the last joint
        act=("RELU", {"inplace": True}),
        norm="batch",
    )


# A scan's slices under a clock


@torch.inference_mode()
def lesion_probability(
    network: torch.nn.Module,
    images: np.ndarray,
    *,
    settings: Settings,
    device: str,
    channels: Sequence[str] = CHANNELS,
    deadline: Deadline | None = None,
    reserve_s: float = 0.0,
) -> np.ndarray:
    """Lesion probabilities of a scan's slices, the hottest slices first, until `reserve_s` seconds before the deadline.

    The first batch is always tried while there is time at all; another one is begun when 1.5 times the slowest before
    it fits. Slices for which no time is left have probability 0, and the journal is told.

    Parameters
    ----------
    images : (slice, channel, y, x) array
        HU and SUV.
    channels : sequence of str
        What the channels are: CT and PET, in any order.

    Returns
    -------
    (slice, y, x) float32 array
    """
    deadline = deadline or Deadline()
    network.eval()
    found = np.zeros((len(images), *images.shape[2:]), np.float32)
    order = np.argsort(-images[:, channels.index("PET")].max(axis=(1, 2)), kind="stable")
    slowest_s, done = 0.0, 0
    while done < len(order):
        if deadline.limited and not deadline.remaining_s - reserve_s > SAFETY * slowest_s:
            deadline.journal.drop(f"{len(order) - done} of {len(order)} slices: no time left, they count as background")
            break
        started_s = deadline.elapsed_s
        chosen = order[done : done + settings.inference_batch]
        logits = network(torch.from_numpy(normalise(images[chosen], settings.ranges(channels))).to(device))
        found[chosen] = torch.softmax(logits, dim=1)[:, 1].float().cpu().numpy()
        slowest_s = max(slowest_s, deadline.elapsed_s - started_s)
        done += len(chosen)
    return found


# The model folder


def load_network(folder: Path) -> tuple[BasicUNet, Settings, tuple[str, ...]]:
    """The network of a model folder with its weights, its settings, and its channels in their order.

    Raises
    ------
    AutopetError
        No model of this method, a damaged file, or weights and settings that do not belong together.
    """
    config = read_config(folder, method=METHOD, needs=("settings", "channels"))
    settings = settings_from_dict(Settings, config["settings"], str(folder))
    channels = tuple(config["channels"])
    if sorted(channels) != sorted(CHANNELS):
        raise AutopetError(
            f"{folder}/config.json has the channels {', '.join(channels)}, expected {' and '.join(CHANNELS)} in any "
            "order; train or copy the model again"
        )
    network = build_network(settings, len(channels))
    load_weights(network, folder / WEIGHTS, what="the network that config.json describes")
    return network, settings, channels
