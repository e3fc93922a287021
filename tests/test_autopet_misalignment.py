"""Misalignment augmentation: what moves, by how much, and what must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, center_of_mass

from autopet.errors import AutopetError
from autopet.misalignment import MisalignTransform, rotate, rotation_matrix, shift


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> torch.Tensor:
    """A ball with a soft edge of one voxel, so that its sum is its volume to within a per mille."""
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) for size in shape], indexing="ij")
    distance = sum((axis - at) ** 2 for axis, at in zip(axes, centre, strict=True)) ** 0.5
    return (radius + 0.5 - distance).clamp(0, 1)


def always(channel: int = 0, **changes: object) -> MisalignTransform:
    """Moves every patch."""
    return MisalignTransform(channel, rotation_probability=1.0, shift_probability=1.0, **changes)


def test_only_the_named_channel_moves_and_labels_stay():
    torch.manual_seed(0)
    image = torch.rand(2, 12, 20, 16)
    labels = (torch.rand(2, 12, 20, 16) > 0.5).to(torch.int16)
    before = image.clone(), labels.clone()
    moved = always(channel=0)(image=image, segmentation=labels)
    assert not torch.equal(moved["image"][0], before[0][0])
    assert torch.equal(moved["image"][1], before[0][1])
    assert torch.equal(moved["segmentation"], before[1])
    assert torch.equal(image, before[0])  # the caller's own array is not written to


def test_identity_at_zero_is_exact():
    image = torch.rand(2, 7, 9, 5)
    still = always(rotation_degrees=0.0, shift_voxels=(0, 0, 0))
    assert torch.equal(still(image=image.clone())["image"], image)
    assert torch.equal(shift(image[0], (0, 0, 0)), image[0])
    torch.testing.assert_close(rotate(image[0], (0.0, 0.0, 0.0)), image[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(40, 40, 40), (24, 60, 40), (60, 30, 80)])
@pytest.mark.parametrize("angles", [(5.0, 0.0, 0.0), (0.0, -5.0, 0.0), (4.0, -3.0, 5.0), (30.0, 20.0, -25.0)])
def test_rotation_preserves_volume_and_place_on_patches_that_are_not_cubes(shape, angles):
    centre = np.array(shape) / 2 - 0.5
    offset = np.array([3.0, -4.0, 4.0])
    image = ball(shape, tuple(centre + offset), radius=5)
    turned = rotate(image, angles)
    assert float(turned.sum()) == pytest.approx(float(image.sum()), rel=2e-3)
    expected = centre + rotation_matrix(angles).numpy() @ offset
    np.testing.assert_allclose(center_of_mass(turned.numpy()), expected, atol=0.02)


@pytest.mark.parametrize("angles", [(5.0, 0.0, 0.0), (0.0, 5.0, 0.0), (0.0, 0.0, 5.0), (3.0, -2.0, 4.0)])
def test_rotation_equals_scipy(angles):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(10, 24, 16)).astype(np.float32)
    matrix = rotation_matrix(angles).numpy().astype(float).T
    centre = (np.array(image.shape) - 1) / 2
    expected = affine_transform(image, matrix, centre - matrix @ centre, order=1, mode="grid-constant", cval=0.0)
    np.testing.assert_allclose(rotate(torch.from_numpy(image), angles).numpy(), expected, atol=2e-4)


def test_a_quarter_turn_about_z_by_hand():
    image = torch.zeros(1, 3, 3)
    image[0, 1, 2] = 1.0  # offset (0, 0, +1): along x
    turned = rotate(image, (90.0, 0.0, 0.0))
    # y' = cos 90 * 0 - sin 90 * 1 = -1, x' = 0: the voxel above the centre
    expected = torch.zeros(1, 3, 3)
    expected[0, 0, 1] = 1.0
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)


def test_shift_by_hand():
    image = torch.arange(1.0, 7.0).reshape(1, 2, 3)  # 1 2 3 / 4 5 6
    assert shift(image, (0, 1, -1)).tolist() == [[[0, 0, 0], [2, 3, 0]]]
    assert shift(image, (0, 0, 2)).tolist() == [[[0, 0, 1], [0, 0, 4]]]
    assert shift(image, (1, 0, 0)).abs().sum() == 0  # moved out of the patch


def test_amounts_follow_the_paper():
    """Uniform in +-5 degrees and +-(0, 2, 2) voxels, each with probability 0.1 (paper 003, section 2.2)."""
    torch.manual_seed(3)
    drawn = [MisalignTransform(0).get_parameters() for _ in range(20000)]
    angles = np.array([one["angles_degrees"] for one in drawn])
    shifts = np.array([one["shifts"] for one in drawn])
    rotated = angles.any(axis=1)
    assert rotated.mean() == pytest.approx(0.1, abs=0.007)
    assert np.abs(angles).max() <= 5
    np.testing.assert_allclose(angles[rotated].std(axis=0), 10 / 12**0.5, rtol=0.05)
    np.testing.assert_allclose(angles[rotated].mean(axis=0), 0, atol=0.25)
    assert (shifts[:, 0] == 0).all()
    # a tenth of the patches is drawn; of those 1 in 25 draws (0, 0)
    assert shifts.any(axis=1).mean() == pytest.approx(0.1 * 24 / 25, abs=0.007)
    for axis in (1, 2):
        values, counts = np.unique(shifts[shifts.any(axis=1)][:, axis], return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        # 24 pairs are left without (0, 0): 5 with each value other than 0, 4 with 0
        np.testing.assert_allclose(counts / counts.sum(), np.array([5, 5, 4, 5, 5]) / 24, atol=0.04)


def test_same_seed_same_movement():
    image = torch.rand(2, 8, 8, 8)
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(always()(image=image.clone())["image"])
    assert torch.equal(*results)


def test_rotation_comes_before_the_shift():
    """A border voxel that the shift would push out is first turned to its place."""
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 4] = 1.0
    move = always()
    moved = move._apply_to_image(image, angles_degrees=(90.0, 0.0, 0.0), shifts=(0, 0, 1))
    expected = torch.zeros(1, 1, 5, 5)
    expected[0, 0, 0, 3] = 1.0  # turned to (0, 2), then one to the right
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel": -1}, "counted from 0"),
        ({"channel": 0, "rotation_degrees": -1.0}, "at least 0 degrees"),
        ({"channel": 0, "shift_voxels": (2, 2)}, "three largest shifts"),
        ({"channel": 0, "shift_probability": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_parameters_are_named(arguments, message):
    with pytest.raises(AutopetError, match=message):
        MisalignTransform(**arguments)


def test_a_channel_that_is_not_there_is_named():
    with pytest.raises(AutopetError, match="channel 2 .* has 2 channels"):
        always(channel=2)(image=torch.zeros(2, 4, 4, 4))
