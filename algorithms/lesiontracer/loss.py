"""LesionTracer's loss: Dice and cross-entropy for lesions and for organs, at every decoder stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from algorithms.lesiontracer.model import LESION_CLASSES
from algorithms.lesiontracer.preprocessing import LESION, ORGAN, UNLABELLED

KEPT_ALIVE = 1e-6  # weight of the coarsest stage with several processes: DDP wants a gradient for every parameter


def stage_weights(stages: int, *, distributed: bool = False) -> tuple[float, ...]:
    """Weights of deep supervision: 1, 1/2, 1/4 ... from the finest stage on, the coarsest 0, with sum 1.

    A single stage has the weight 1.
    """
    weights = [1 / 2**stage for stage in range(stages)]
    if stages > 1:
        weights[-1] = KEPT_ALIVE if distributed else 0.0
    return tuple(weight / sum(weights) for weight in weights)


def dice_and_cross_entropy() -> DC_and_CE_loss:
    """Cross-entropy minus the mean Dice of the foreground classes of each sample, without smoothing.

    A class that is absent from a sample has Dice 0, whatever is predicted: the denominator never falls below 1e-8.
    """
    dice = {"batch_dice": False, "do_bg": False, "smooth": 0, "ddp": False}
    return DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)


class LesionOrganLoss(torch.nn.Module):
    """Lesion loss plus organ loss with equal weight, averaged over the decoder stages (paper, section 2.4).

    Samples without organ labels count for the lesion loss alone, and so do network outputs without organ channels.

    Parameters
    ----------
    weights : sequence of float
        Weight of each stage, the finest first.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.term = dice_and_cross_entropy()

    def forward(
        self, outputs: Sequence[torch.Tensor] | torch.Tensor, targets: Sequence[torch.Tensor] | torch.Tensor
    ) -> torch.Tensor:
        """Loss of logits (batch, 2 or 13, z, y, x) against label maps (batch, 1 or 2, z, y, x), one pair per stage."""
        if isinstance(outputs, torch.Tensor):
            outputs = [outputs]
        if isinstance(targets, torch.Tensor):
            targets = [targets]
        labelled = has_organ_labels(targets[0])
        total = outputs[0].new_zeros(())
        for weight, logits, labels in zip(self.weights, outputs, targets, strict=True):
            if weight:
                total = total + weight * self._stage(logits, labels, labelled)
        return total

    def _stage(self, logits: torch.Tensor, labels: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        loss = self.term(logits[:, :LESION_CLASSES], labels[:, LESION : LESION + 1])
        if logits.shape[1] > LESION_CLASSES and labelled.any():
            organs = logits[labelled, LESION_CLASSES:], labels[labelled, ORGAN : ORGAN + 1]
            loss = loss + self.term(*organs)
        return loss


def has_organ_labels(labels: torch.Tensor) -> torch.Tensor:
    """(batch,) truth values for label maps (batch, 1 or 2, z, y, x): is there an organ channel with labels in it?"""
    if labels.shape[1] <= ORGAN:
        return torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    return (labels[:, ORGAN] != UNLABELLED).flatten(1).all(1)
