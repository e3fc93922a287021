"""The losses of section 4.1: binary cross-entropy, the authors' choice, and the three it was compared with."""

from __future__ import annotations

from collections.abc import Callable

from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from torch import nn

from algorithms.swinmip.model import LOSSES
from autopet.errors import AutopetError

_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "ce": nn.BCEWithLogitsLoss,
    "dice": lambda: DiceLoss(sigmoid=True),
    "dice_ce": lambda: DiceCELoss(sigmoid=True),  # of one channel MONAI takes the binary cross-entropy
    "dice_focal": lambda: DiceFocalLoss(sigmoid=True),
}


def build_loss(name: str) -> nn.Module:
    """A loss of logits and labels, both (batch, 1, x, y, z) floating point; labels are 0 or 1.

    Cross-entropy and focal loss (gamma 2, no alpha) are means over all voxels. Dice is computed per patch, with 1e-5
    added above and below the fraction, and averaged. The sums weigh both parts equally. For a patch without lesion,
    Dice is ``1 - 1e-5 / (sum of probabilities + 1e-5)``: flat as soon as anything is predicted, so that it does not
    tell the network to take false positives back, whereas cross-entropy pulls the harder the surer they are.

    Parameters
    ----------
    name : str
        ce, dice, dice_ce or dice_focal.

    Raises
    ------
    AutopetError
        Another name.
    """
    if name not in _BUILDERS:
        raise AutopetError(f"loss {name!r} is unknown; use {', '.join(LOSSES)}")
    return _BUILDERS[name]()
