"""The network of a pretraining: nnU-Net's residual encoder U-Net with a head, and perhaps a stem, per data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import nn

PATH = f"{__name__}.SharedBodyUNet"  # where plans find the class


class SharedBodyUNet(ResidualEncoderUNet):
    """One body for all data sets (Ulrich et al. 2023, MultiTalent; Rokuss et al., section 2.3).

    State-dict keys are MultiTalent's: `decoder.seg_layers.<name>.<stage>.*` and, when the data sets' channels differ
    in number, `encoder.stem.<name>.*`; one stem `encoder.stem.*` serves all when they do not.

    Parameters
    ----------
    input_channels, num_classes : mapping
        Channels and outputs by data set.
    **architecture
        Arguments of ResidualEncoderUNet.
    """

    def __init__(self, *, input_channels: Mapping[str, int], num_classes: Mapping[str, int], **architecture: Any):
        several = len(set(input_channels.values())) > 1
        super().__init__(input_channels=max(input_channels.values()), num_classes=1, **architecture)
        if several:
            self.encoder.stem = nn.ModuleDict({name: _stem(self.encoder, n) for name, n in input_channels.items()})
        widths = [layer.in_channels for layer in self.decoder.seg_layers]
        convolution = self.encoder.conv_op
        self.decoder.seg_layers = nn.ModuleDict(
            {name: nn.ModuleList(convolution(width, n, 1) for width in widths) for name, n in num_classes.items()}
        )

    def forward(self, x: torch.Tensor, name: str) -> list[torch.Tensor]:
        """Logits of one data set's head at every stage, finest first.

        Parameters
        ----------
        x : (patch, channel, z, y, x) tensor
        name : str
            The data set, of which all patches are.
        """
        stem = self.encoder.stem[name] if self.several_stems else self.encoder.stem
        x = stem(x)
        skips = []
        for stage in self.encoder.stages:
            x = stage(x)
            skips.append(x)
        logits = []
        below = zip(self.decoder.transpconvs, self.decoder.stages, self.decoder.seg_layers[name], strict=True)
        for skip, (up, stage, head) in zip(reversed(skips[:-1]), below, strict=True):
            x = stage(torch.cat((up(x), skip), dim=1))
            logits.append(head(x))
        return logits[::-1]

    @property
    def several_stems(self) -> bool:
        """Whether every data set has a stem of its own."""
        return isinstance(self.encoder.stem, nn.ModuleDict)

    def weights(self) -> dict[str, torch.Tensor]:
        """Every tensor once, by its first name, in main memory: what is published."""
        named = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}


def _stem(encoder: ResidualEncoder, channels: int) -> StackedConvBlocks:
    """A stem like nnU-Net's for a number of channels."""
    return StackedConvBlocks(
        1,
        encoder.conv_op,
        channels,
        encoder.stem.output_channels,
        encoder.kernel_sizes[0],
        1,
        encoder.conv_bias,
        encoder.norm_op,
        encoder.norm_op_kwargs,
        encoder.dropout_op,
        encoder.dropout_op_kwargs,
        encoder.nonlin,
        encoder.nonlin_kwargs,
    )
