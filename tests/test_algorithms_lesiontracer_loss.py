"""LesionTracer's loss: weights of the stages, Dice without smoothing, organs only where there are labels."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from test_algorithms_lesiontracer_model import DATASET, small_plans  # noqa: E402

from algorithms.lesiontracer.loss import (  # noqa: E402
    LesionOrganLoss,
    dice_and_cross_entropy,
    has_organ_labels,
    stage_weights,
)
from algorithms.lesiontracer.model import build_network  # noqa: E402
from algorithms.lesiontracer.preprocessing import UNLABELLED  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = ((16, 16, 16), (8, 8, 8), (4, 4, 4))


def test_stage_weights_halve_and_the_last_is_nothing():
    assert stage_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert stage_weights(3) == pytest.approx((2 / 3, 1 / 3, 0))
    assert stage_weights(1) == (1.0,)
    several = stage_weights(3, distributed=True)
    assert several[2] == pytest.approx(1e-6 / 1.500001)
    assert sum(several) == pytest.approx(1)


def test_dice_without_smoothing_is_0_on_an_empty_patch():
    """Zero logits: probabilities 1/2. Patch of 8 voxels without lesions: cross-entropy ln 2, Dice 0/(0 + 4) = 0."""
    logits, labels = torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)
    loss = dice_and_cross_entropy()
    assert float(loss(logits, labels)) == pytest.approx(math.log(2))
    labels[0, 0, 0] = 1  # half of the patch: Dice 2 * 2 / (4 + 4) = 1/2
    assert float(loss(logits, labels)) == pytest.approx(math.log(2) - 0.5)


def test_no_nan_when_nothing_is_there_and_nothing_is_predicted():
    """Probability of a lesion underflows to 0, so that Dice is 0/0."""
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[:, 0] = 200.0
    logits.requires_grad_()
    value = dice_and_cross_entropy()(logits, torch.zeros(1, 1, 2, 2, 2))
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_two_samples_have_a_dice_each():
    """batch_dice is off: the mean of Dice 1/2 and Dice 0, not the Dice of both together (2 * 2 / (4 + 8) = 1/3)."""
    labels = torch.zeros(2, 1, 2, 2, 2)
    labels[0, 0, 0] = 1
    assert float(dice_and_cross_entropy()(torch.zeros(2, 2, 2, 2, 2), labels)) == pytest.approx(math.log(2) - 0.25)


def test_organ_loss_counts_as_much_as_the_lesion_loss():
    """All logits 0, 2 stages of weight 2/3 and 1/3 and a third of 0; every voxel is background.

    Lesions: ln 2 - 0. Organs: ln 11 - 0. Both are the same at each stage.
    """
    outputs = [torch.zeros(1, 13, *shape) for shape in SHAPES]
    targets = [torch.zeros(1, 2, *shape) for shape in SHAPES]
    loss = LesionOrganLoss(stage_weights(3))
    assert float(loss(outputs, targets)) == pytest.approx(math.log(2) + math.log(11))
    lesion_only = [output[:, :2] for output in outputs]
    assert float(loss(lesion_only, targets)) == pytest.approx(math.log(2))
    outputs[2] += torch.arange(13.0)[None, :, None, None, None]
    assert float(loss(outputs, targets)) == pytest.approx(math.log(2) + math.log(11))  # the coarsest has no weight
    outputs[1][:, 0] += 3.0  # the second stage alone: lesions ln(1 + e^-3), weight 1/3
    expected = 2 / 3 * math.log(2) + math.log(1 + math.exp(-3)) / 3 + math.log(11)
    assert float(loss(outputs, targets)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
def test_with_organs_off_it_is_nnunet_s_loss_without_smoothing(channels: int):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import SoftDiceLoss

    torch.manual_seed(4)
    outputs = [torch.randn(2, 2, *shape) for shape in SHAPES]
    targets = [torch.randint(0, 2, (2, channels, *shape), dtype=torch.int16) for shape in SHAPES]
    dice = {"batch_dice": False, "smooth": 0.0, "do_bg": False, "ddp": False}
    theirs = DeepSupervisionWrapper(DC_and_CE_loss(dice, {}, dice_class=SoftDiceLoss), (2 / 3, 1 / 3, 0.0))
    expected = theirs(outputs, [target[:, :1] for target in targets])
    assert float(LesionOrganLoss(stage_weights(3))(outputs, targets)) == pytest.approx(float(expected), rel=1e-5)


def test_samples_without_organ_labels_are_left_out():
    outputs = [torch.zeros(2, 13, *shape) for shape in SHAPES]
    outputs[0][1, 5] = 9.0  # would be punished
    targets = [torch.zeros(2, 2, *shape) for shape in SHAPES]
    for target in targets:
        target[1, 1] = UNLABELLED
    targets[0][1, 1, :4] = 0  # a rim that augmentation moved in from outside the image
    assert has_organ_labels(targets[0]).tolist() == [True, False]
    loss = LesionOrganLoss(stage_weights(3))
    assert float(loss(outputs, targets)) == pytest.approx(math.log(2) + math.log(11))
    for target in targets:
        target[:, 1] = UNLABELLED
    assert float(loss(outputs, targets)) == pytest.approx(math.log(2))


def gradients(*, organ_labels: bool, lesion_weight: float = 1.0) -> dict[str, torch.Tensor]:
    """Gradients of one backward pass on a random patch with an organ in it."""
    torch.manual_seed(0)
    network = build_network(small_plans(), DATASET, organs=True, deep_supervision=True)
    outputs = network(torch.randn(2, 2, 16, 16, 16))
    targets = [torch.zeros(2, 2, *output.shape[2:]) for output in outputs]
    for target in targets:
        target[:, 1] = 3 if organ_labels else UNLABELLED
    if not lesion_weight:
        outputs = [torch.cat((output[:, :2].detach(), output[:, 2:]), 1) for output in outputs]
    loss = LesionOrganLoss(stage_weights(3))(outputs, targets)
    assert torch.isfinite(loss)
    if loss.requires_grad:
        loss.backward()
    return {name: torch.zeros(1) if p.grad is None else p.grad for name, p in network.named_parameters()}


def test_organ_loss_alone_reaches_the_shared_encoder_and_decoder():
    found = gradients(organ_labels=True, lesion_weight=0.0)
    assert found["encoder.stem.convs.0.conv.weight"].abs().max() > 0
    assert found["encoder.stages.3.blocks.0.skip.1.conv.weight"].abs().max() > 0  # the bottleneck
    assert found["decoder.transpconvs.0.weight"].abs().max() > 0
    assert found["decoder.seg_layers.2.weight"].abs().max() == 0
    assert found["decoder.organ_seg_layers.2.weight"].abs().max() > 0


def test_organ_heads_learn_only_where_labels_exist():
    with_labels, without = gradients(organ_labels=True), gradients(organ_labels=False)
    for name in ("decoder.organ_seg_layers.1.weight", "decoder.organ_seg_layers.2.bias"):
        assert with_labels[name].abs().max() > 0
        assert without[name].abs().max() == 0
    assert without["decoder.seg_layers.2.weight"].abs().max() > 0
    assert with_labels["decoder.organ_seg_layers.0.weight"].abs().max() == 0  # the coarsest stage has no weight
    assert all(torch.isfinite(gradient).all() for gradient in (with_labels | without).values())
