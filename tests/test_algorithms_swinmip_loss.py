"""The losses on two voxels, counted by hand, and the claim of section 4.1 about false positives."""

from __future__ import annotations

import math

import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip.loss import build_loss  # noqa: E402
from algorithms.swinmip.model import LOSSES  # noqa: E402

# Two voxels: a lesion of probability 1/2 (logit 0) and background of probability 3/4 (logit ln 3).
LN2 = math.log(2)
CE = (LN2 + 2 * LN2) / 2  # -ln 1/2 and -ln 1/4
DICE = 1 - (2 * 0.5 + 1e-5) / (1 + 0.5 + 0.75 + 1e-5)
FOCAL = (0.5**2 * LN2 + 0.75**2 * 2 * LN2) / 2
BY_HAND = {"ce": CE, "dice": DICE, "dice_ce": DICE + CE, "dice_focal": DICE + FOCAL}


def two_voxels() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (1, 1, 2, 1, 1)."""
    logits, labels = torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 0.0])
    return logits.reshape(1, 1, 2, 1, 1), labels.reshape(1, 1, 2, 1, 1)


@pytest.mark.parametrize("name", LOSSES)
def test_hand_counted(name: str):
    logits, labels = two_voxels()
    assert float(build_loss(name)(logits, labels)) == pytest.approx(BY_HAND[name], rel=1e-5)


def test_dice_is_averaged_over_patches_and_cross_entropy_over_voxels():
    """The second patch has no lesion, and two voxels of probability 1/4."""
    logits, labels = two_voxels()
    other = torch.full_like(logits, -math.log(3))
    both = torch.cat([logits, other]), torch.cat([labels, torch.zeros_like(labels)])
    of_other = 1 - 1e-5 / (0.5 + 1e-5)
    assert float(build_loss("dice")(*both)) == pytest.approx((DICE + of_other) / 2, rel=1e-5)
    assert float(build_loss("ce")(*both)) == pytest.approx((CE + math.log(4 / 3)) / 2, rel=1e-5)


def test_dice_ce_takes_the_binary_cross_entropy():
    """The softmax cross-entropy of one channel would be 0 whatever the logits."""
    logits, labels = two_voxels()
    loss = build_loss("dice_ce")
    assert float(loss(logits, labels)) - DICE == pytest.approx(CE, rel=1e-4)
    assert float(loss.ce(logits, labels)) == 0.0


def gradients(name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    build_loss(name)(logits, labels).backward()
    return logits.grad


def lesion_free(surety: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch of 512 background voxels; ten are held for lesion with this logit, the others are dismissed with it."""
    logits = torch.full((1, 1, 8, 8, 8), -surety)
    logits[0, 0, 0, 0] = surety
    logits[0, 0, 0, 1, :2] = surety
    return logits, torch.zeros_like(logits)


def test_only_cross_entropy_takes_sure_false_positives_back():
    logits, labels = lesion_free(6.0)
    wrong = logits > 0
    assert int(wrong.sum()) == 10
    probability = 1 / (1 + math.exp(-6))
    ce, dice = gradients("ce", logits, labels), gradients("dice", logits, labels)
    assert ce[wrong].tolist() == pytest.approx([probability / 512] * 10, rel=1e-4)  # down, nearly as hard as can be
    total = 10 * probability + 502 * (1 - probability)
    flat = 1e-5 / total**2 * probability * (1 - probability)  # derivative of 1 - 1e-5 / (total + 1e-5)
    assert dice[wrong].tolist() == pytest.approx([flat] * 10, rel=1e-3)
    assert float(ce[wrong].min() / dice[wrong].max()) > 1e6
    for name, below_half in (("ce", True), ("dice", False), ("dice_ce", True), ("dice_focal", True)):
        moved = logits.clone()
        for _ in range(60):
            moved -= 100 * gradients(name, moved, labels)
        assert bool((moved[wrong] < 0).all()) == below_half, name


def test_dice_pulls_the_less_the_surer_a_false_positive_is_even_beside_a_lesion():
    ce, dice = [], []
    for surety in (1.0, 4.0, 8.0):
        logits, labels = lesion_free(surety)
        labels[0, 0, 7], logits[0, 0, 7] = 1.0, surety  # a lesion of 64 voxels that is found
        wrong = (logits > 0) & (labels == 0)
        ce.append(float(gradients("ce", logits, labels)[wrong].mean()))
        dice.append(float(gradients("dice", logits, labels)[wrong].mean()))
    assert ce == sorted(ce)
    assert dice == sorted(dice, reverse=True)
    assert all(value > 0 for value in ce + dice)
    assert ce[2] == pytest.approx(1 / 512, rel=1e-3)
    assert dice[2] < 0.01 * dice[0]


def test_an_unknown_loss():
    with pytest.raises(AutopetError, match="loss 'tversky' is unknown; use ce, dice, dice_ce, dice_focal"):
        build_loss("tversky")
