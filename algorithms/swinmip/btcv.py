"""Start the segmentation from a Swin-UNETR trained on BTCV, 13 abdominal organs on CT (section 3).

The files are MONAI's (`swin_unetr.tiny_5000ep_f12_lr2e-4_pretrained.pt` for feature size 12, `small` for 24, `base` for
48): a `state_dict` whose names are those of MONAI's network today, one input channel, 14 output channels. Names of
older files are understood too: `module.` of several GPUs, `swin_vit`, `mlp.fc1`, and an encoder without `swinViT.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from autopet.errors import AutopetError
from autopet.pretrained import SHOWN, Report, copy_fitting, read_weights, unwrapped

GIVE = "a checkpoint of MONAI's Swin-UNETR, or set btcv to nothing"
ENCODER = "swinViT."
STEM = f"{ENCODER}patch_embed.proj.weight"
INPUT_LAYERS = (STEM, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight")
HEAD = "out."
BARE_ENCODER = re.compile(r"(patch_embed|layers\d)\.")  # a self-supervised encoder, saved without its network


@dataclass(frozen=True)
class BtcvReport(Report):
    """What became of the tensors of a checkpoint; `repeated` are those of `loaded` made for one input channel."""

    title: ClassVar[str] = "BTCV weights"
    repeated: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """How many tensors were repeated."""
        return [f"{len(self.repeated)} of them repeated for every input channel"] if self.repeated else []


def load_btcv(network: nn.Module, path: Path) -> BtcvReport:
    """Copy pretrained weights into a Swin-UNETR, in place, as far as names and shapes agree.

    Layers that see the image and were made for one channel are repeated over the network's, as the authors did: not
    divided by their number, so that CT and PET each act as CT did. The output head is left out.

    Parameters
    ----------
    network : nn.Module
        From `build_segmenter`.
    path : Path
        A `.pt` or `.pth` of MONAI, a plain state dict, or safetensors. Nothing in it is executed.

    Returns
    -------
    BtcvReport

    Raises
    ------
    AutopetError
        No such file, not a checkpoint, or the weights of another network or feature size.
    """
    own = dict(network.state_dict())
    weights = read_weights(Path(path), what="BTCV weights", give=GIVE)
    given = {_plain(name): tensor for name, tensor in weights.items()}
    _check_network(given, own, Path(path))
    heads = [name for name in given if name.startswith(HEAD)]
    skipped = {name: f"of the output head, which has {given.pop(name).shape[0]} classes" for name in heads}
    inputs = [name for name in INPUT_LAYERS if name in given and name in own]
    repeated = [name for name in inputs if given[name].shape[1] == 1 < own[name].shape[1]]
    given |= {name: given[name].expand_as(own[name]) for name in repeated}
    loaded = copy_fitting(given, own, skipped)
    return BtcvReport.of(own, loaded, skipped, repeated=tuple(repeated))


def _plain(name: str) -> str:
    """A tensor's name in MONAI's network today."""
    name = unwrapped(name)
    if BARE_ENCODER.match(name):
        name = ENCODER + name
    name = re.sub(r"^swin_vit\.", ENCODER, name)
    return re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name)


def _check_network(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: Path) -> None:
    """The first layer tells one network from another, and its width is the feature size."""
    if STEM not in given:
        raise AutopetError(
            f"{path}: weights of another network, expected one with {STEM}, found "
            f"{', '.join(list(given)[:SHOWN]) or 'no tensors'}; give a checkpoint of MONAI's Swin-UNETR"
        )
    width, expected = given[STEM].shape[0], own[STEM].shape[0]
    if width != expected:
        raise AutopetError(
            f"{path}: weights of feature size {width}, the network has {expected}; set feature_size={width}, or give "
            "the file of that size (MONAI's tiny has 12, small 24, base 48)"
        )
