"""The classifier's convolutions from a VGG16 that was trained on ImageNet (Früh et al., section 2.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from algorithms.weakcam.model import Classifier
from autopet.errors import AutopetError
from autopet.pretrained import Report, Weights, copy_fitting, read_weights, unwrapped

GIVE = "a VGG16 of torchvision (.pth or safetensors), or set imagenet to nothing"
OTHER = -1  # number of a tensor that is not of torchvision's `features`


@dataclass(frozen=True)
class ImageNetReport(Report):
    """What became of the tensors of a file: `loaded` and `missing` are the network's, `skipped` the file's."""

    title: ClassVar[str] = "ImageNet weights"
    adapted: str = ""  # what was done to the first layer

    def remarks(self) -> list[str]:
        return [self.adapted] if self.adapted else []


@torch.no_grad()
def load_imagenet(network: Classifier, path: Path) -> ImageNetReport:
    """Copy the convolutions of a VGG16 trained on ImageNet into a classifier, in place; the linear layer keeps its own.

    Convolutions are matched by their order: torchvision counts poolings and ReLUs too, so that a network with fewer
    poolings would have other numbers. The first one has weights for red, green and blue; every channel of ours takes
    the sum of the three divided by the number of our channels: a slice with the same values in all channels gets the
    answer that the grey picture gets.

    Parameters
    ----------
    path : Path
        A state dict of torchvision's `vgg16` or `vgg16_bn`, whole or `features` alone; `.pth` or safetensors, of any
        precision. Nothing in it is executed.

    Raises
    ------
    AutopetError
        No such file, another kind of file, another architecture, or no tensor that fits.
    """
    weights = {
        unwrapped(name): tensor for name, tensor in read_weights(path, what="ImageNet weights", give=GIVE).items()
    }
    renamed, skipped = _our_names(weights, network, path)
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(("blocks.", "head."))}
    first = next(name for name in own if name.endswith(".weight"))
    channels, found = own[first].shape[1], renamed[first].shape[1]
    adapted = ""
    if found != channels:
        renamed[first] = renamed[first].float().sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
        adapted = f"the first layer's {found} input channels became {channels}, each their sum / {channels}"
    loaded = copy_fitting(renamed, own, skipped)
    if not loaded:
        raise AutopetError(
            f"{path}: none of its {len(renamed)} tensors fits the classifier's ({skipped[first]} in {first}); give a "
            "VGG16 of torchvision, and leave widths as in the paper preset, or set imagenet to nothing"
        )
    return ImageNetReport.of(own, loaded, skipped, adapted=adapted)


def _our_names(weights: Weights, network: Classifier, path: Path) -> tuple[Weights, dict[str, str]]:
    """torchvision's convolutions and norms by the network's names, and the names of the others with reasons.

    Raises
    ------
    AutopetError
        Another number of convolutions, or norms that the network lacks: the convolutions would be worth nothing.
    """
    layers = {name: _layer(name) for name in weights}
    convolutions = sorted({layers[name][0] for name, tensor in weights.items() if tensor.ndim == 4} - {OTHER})
    norms = sorted({number for number, rest in layers.values() if rest == "running_mean"} - {OTHER})
    own = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    own_norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if len(convolutions) != len(own):
        raise AutopetError(
            f"{path}: expected a VGG16 with {len(own)} convolutions named features.<number>, found "
            f"{len(convolutions)}; give {GIVE}"
        )
    if norms and len(norms) != len(own_norms):
        raise AutopetError(
            f"{path}: a VGG16 with batch norms, which the classifier lacks; set batch_norm=true, or give one without"
        )
    names = dict(zip(convolutions, own, strict=True)) | dict(zip(norms, own_norms[: len(norms)], strict=True))
    renamed = {f"{names[number]}.{rest}": weights[name] for name, (number, rest) in layers.items() if number in names}
    skipped = {name: "outside the convolutions" for name, (number, _) in layers.items() if number not in names}
    return renamed, skipped


def _layer(name: str) -> tuple[int, str]:
    """Number and kind of a tensor of torchvision's `features`: features.10.bias is (10, bias)."""
    place, _, rest = name.removeprefix("features.").partition(".")
    return (int(place), rest) if place.isdecimal() else (OTHER, rest)
