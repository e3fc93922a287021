"""Lesions from slice labels alone: settings, the classifier of slices, and its model folder (paper 002 of the bundle).

The method is that of Früh et al., "Weakly supervised segmentation of tumor lesions in PET-CT hybrid imaging", J. Med.
Imaging 8(5), 054003, 2021: a network learns which slices hold a lesion, and maps of what convinced it (`cams.py`) are
turned into masks (`search.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from autopet.checkpoint import load_weights, read_config, settings_from_dict
from autopet.errors import AutopetError
from autopet.slice_changes import Augmentation
from autopet.slices import CHANNELS, Frame

METHOD = "weakcam"
WEIGHTS = "weights.safetensors"
CLASSES = ("no lesion", "lesion")  # of the two logits
LESION = 1
CAM_METHODS = ("cam", "gradcam", "gradcam++", "scorecam")
CHOICES = {  # settings that are one of a few words; an empty one leaves the choice to validation
    "cam": ("", *CAM_METHODS, "global"),
    "reading": ("fraction", "percentile"),
    "score_cam_weights": ("scores", "probabilities", "features"),
}
COUNTS = ("epochs", "batch", "cam_batch", "checkpoint_every", "size")  # settings that must be at least 1
GREY_MEAN, GREY_DEVIATION = 0.449, 0.226  # ImageNet's, for grey pictures from 0 to 1: means over red, green and blue
HEAD_DEVIATION = 0.01  # of the random weights of the linear layer, as torchvision's VGG


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset; README.md says which are published."""

    size: int = 256  # pixels along both edges of a slice
    pixel_mm: float = 2.0  # smallest edge of a pixel; bodies that are larger than the slice get larger ones
    slice_mm: float = 0.0  # distance of slices; 0: the scan's own
    ct_range_hu: tuple = (-200.0, 300.0)  # becomes 0 to 1, clipped; air is 0, as it is in PET
    pet_range_suv: tuple = (0.0, 15.0)  # likewise
    widths: tuple = (64, 128, 256, 512, 512)  # channels of VGG16's five blocks
    convolutions: tuple = (2, 2, 3, 3, 3)  # of each block
    pooled_blocks: tuple = (2, 3, 4)  # followed by a max-pooling. VGG16: 1 to 5; the paper leaves out the first, and
    # only without the fifth is the last map 32 x 32 at 256 x 256
    batch_norm: bool = False  # after every convolution, as torchvision's vgg16_bn
    imagenet: str = ""  # file of a VGG16 trained on ImageNet (torchvision's names); empty: random weights
    epochs: int = 50
    batch: int = 64  # slices per iteration
    learning_rate: float = 1e-3  # of SGD
    momentum: float = 0.9
    lesion_weight: float = 0.0  # of the class lesion in the cross-entropy; 0: computed. Published: 7.7
    rotation_degrees: float = 15.0  # largest changes in training, see `autopet.slice_changes.Augmentation`
    scale_share: float = 0.15
    shift_share: float = 0.05
    contrast_share: float = 0.2
    validation_share: float = 0.25  # of the patients: 20 % of all, of the 80 % that are not for testing
    class_threshold: float = 0.5  # probability from which on a slice is segmented
    cam: str = ""  # cam, gradcam, gradcam++, scorecam or global; empty: what validation chose
    cam_block: int = 0  # whose maps Grad-CAM, Grad-CAM++ and Score-CAM weigh, 1 to 5; 0: the last, the only one CAM has
    cam_batch: int = 16  # images of a forward pass; Score-CAM's masked copies count
    score_cam_weights: str = "scores"  # scores (the original's), probabilities or features (paper 002): see `cams.py`
    score_cam_top_channels: int = 0  # an approximation: only so many channels are tried; 0: all
    reading: str = "fraction"  # of the SUV threshold: fraction of the region's maximum, or percentile of its SUVs
    search_slices: int = 0  # positive validation slices, drawn evenly, that thresholds are searched on; 0: all
    checkpoint_every: int = 1  # epochs between checkpoints that a killed training resumes from
    workers: int = 8  # processes that read and deform slices, at most one per core; 0: in the training process
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                words = ", ".join(filter(None, known))
                raise AutopetError(f"{name} {getattr(self, name)!r} is unknown; use one of {words}")
        for each in fields(self):
            found = getattr(self, each.name)
            if type(each.default) is int and type(found) is not int:
                raise AutopetError(f"{each.name} must be a whole number, found {found}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise AutopetError(f"{name} must be at least 1, found {getattr(self, name)}")
        self._check_network()
        self._check_numbers()
        _ = self.augmentation, self.frame  # these check their own

    def _check_network(self) -> None:
        """That the blocks fit each other and the slices."""
        blocks = len(self.widths)
        if not blocks or len(self.convolutions) != blocks or min(*self.widths, *self.convolutions) < 1:
            raise AutopetError(
                "widths and convolutions need one positive number per block, found "
                f"{self.widths} and {self.convolutions}"
            )
        for name, found in (("pooled_blocks", self.pooled_blocks), ("cam_block", (self.cam_block or blocks,))):
            if set(found) - set(range(1, blocks + 1)) or len(set(found)) != len(found):
                raise AutopetError(f"{name} may name the blocks 1 to {blocks}, each once, found {found}")
        step = 2 ** len(self.pooled_blocks)
        if self.size % step:
            raise AutopetError(
                f"size must divide by {step} with {len(self.pooled_blocks)} max-poolings, found {self.size}"
            )

    def _check_numbers(self) -> None:
        """Ranges, shares and what may be zero."""
        for name in ("ct_range_hu", "pet_range_suv"):
            if len(getattr(self, name)) != 2 or not getattr(self, name)[0] < getattr(self, name)[1]:
                raise AutopetError(f"{name} needs a low and a higher number, found {getattr(self, name)}")
        if not 0 <= self.validation_share < 1:
            raise AutopetError(f"validation_share must be at least 0 and below 1, found {self.validation_share}")
        if not 0 <= self.class_threshold <= 1:
            raise AutopetError(f"class_threshold is a probability, from 0 to 1, found {self.class_threshold}")
        for name in ("lesion_weight", "score_cam_top_channels", "search_slices", "workers"):
            if getattr(self, name) < 0:
                raise AutopetError(f"{name} must be at least 0, found {getattr(self, name)}")

    @property
    def augmentation(self) -> Augmentation:
        """Largest changes of training slices."""
        return Augmentation(self.rotation_degrees, self.scale_share, self.shift_share, self.contrast_share)

    @property
    def frame(self) -> Frame:
        """Size and spacing of the slices."""
        return Frame(self.size, self.pixel_mm, self.slice_mm)

    @property
    def ranges(self) -> tuple[tuple[float, ...], ...]:
        """(low, high) of every channel, in the order of CHANNELS."""
        named = {"CT": self.ct_range_hu, "PET": self.pet_range_suv}
        return tuple(tuple(named[name]) for name in CHANNELS)

    @property
    def map_size(self) -> int:
        """Places along both edges of the last map."""
        return self.size // 2 ** len(self.pooled_blocks)


PRESETS = {
    "paper": Settings(),
    "demo": Settings(
        size=128,
        pixel_mm=4.0,
        widths=(8, 16, 32, 64, 64),
        batch_norm=True,
        epochs=12,
        batch=16,
        learning_rate=0.02,
        checkpoint_every=2,
        workers=0,
    ),
}


class Classifier(nn.Module):
    """VGG16's convolutions, global average pooling and one linear layer: (n, channels, y, x) to logits (n, 2).

    Slices come in from 0 to 1, with 0 for air, and are shifted and scaled here as ImageNet's pictures are: what
    Score-CAM masks is air, not grey. A max-pooling is the first layer of the block after it, so that what a block gives
    out is what its last ReLU does.

    The linear layer starts with opposite rows for its two classes. Cross-entropy moves them in opposite directions and
    by equal amounts, so they stay opposite: the class's row says all that the classifier knows, as the paper's equation
    1 has it. From independent rows, every map would carry the random start of their sum, which training never changes.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, settings: Settings, channels: int = len(CHANNELS)) -> None:
        super().__init__()
        before = channels
        blocks = []
        for block, width in enumerate(settings.widths):
            pool = block in settings.pooled_blocks  # that is the block before this one, as they count from 1
            blocks.append(_block(before, width, settings.convolutions[block], pool=pool, norm=settings.batch_norm))
            before = width
        if len(settings.widths) in settings.pooled_blocks:
            blocks[-1].add_module("pool_after", nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, len(CLASSES))
        self.register_buffer("mean", torch.full((channels, 1, 1), GREY_MEAN))
        self.register_buffer("deviation", torch.full((channels, 1, 1), GREY_DEVIATION))
        with torch.no_grad():
            row = nn.init.normal_(torch.empty(before), std=HEAD_DEVIATION)
            self.head.weight.copy_(torch.stack([-row, row]))
            self.head.bias.zero_()

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """What the first convolution sees."""
        return (x - self.mean) / self.deviation

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps of the last convolution after its ReLU: (n, widths[-1], y, x); 512 of 32 x 32 at 256 x 256."""
        return self.blocks(self.scaled(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of CLASSES, (n, 2)."""
        return self.head(self.features(x).mean(dim=(2, 3)))


def _block(before: int, width: int, convolutions: int, *, pool: bool, norm: bool) -> nn.Sequential:
    """Convolutions of 3 x 3, each with its ReLU, started as torchvision's (He et al., fan-out)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if pool:
        layers["pool"] = nn.MaxPool2d(2)
    for place in range(1, convolutions + 1):
        convolution = nn.Conv2d(before, width, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        layers[f"conv{place}"] = convolution
        if norm:
            layers[f"norm{place}"] = nn.BatchNorm2d(width)
        layers[f"relu{place}"] = nn.ReLU(inplace=True)
        before = width
    return nn.Sequential(layers)


def build_network(settings: Settings, channels: int = len(CHANNELS)) -> Classifier:
    """The classifier of slices with random weights from torch's generator; `imagenet.load_imagenet` gives it others.

    The last maps have `settings.map_size` places along both edges, 32 at 256 pixels.
    """
    return Classifier(settings, channels)


# The model folder


def load_network(folder: Path) -> tuple[Classifier, Settings, dict]:
    """The classifier of a model folder with its weights, its settings, and config.json; on the CPU, ready to be asked.

    Raises
    ------
    AutopetError
        No model of this method, a damaged file, or weights and settings that do not belong together.
    """
    config = read_config(folder, method=METHOD, needs=("settings", "channels"))
    settings = settings_from_dict(Settings, config["settings"], str(folder))
    network = build_network(settings, len(config["channels"]))
    load_weights(network, folder / WEIGHTS, what="the network that config.json describes")
    return network, settings, config
