"""Projections of volumes that lie in every possible way; expectations are placed by hand."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from autopet.views import coronal_projection, patient_axes, radiological, sagittal_projection
from autopet.volume import Volume


def placed(direction: np.ndarray, size: int = 9) -> Volume:
    """A volume with one voxel of 7 near the patient's head, front and right, and one of 5 at the feet, back and left.

    Looked for through the patient's coordinates alone: the corner with the largest z, smallest y and smallest x (LPS).
    """
    array = np.zeros((size, size, size), np.float32)
    volume = Volume(array, (2.0, 2.0, 2.0), direction=tuple(direction.ravel()))
    corners = np.array(list(product((0, size - 1), repeat=3)))
    points = (np.c_[corners, np.ones(8)] @ volume.affine.T)[:, :3]
    for value, sign in ((7.0, 1), (5.0, -1)):
        x, y, z = corners[int((points @ np.array([-1, -1, 1]) * sign).argmax())]
        array[z, y, x] = value
    return volume


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_head_is_up_and_right_is_left_however_the_grid_lies(axes, signs):
    direction = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[row, column] = sign
    volume = placed(direction)
    projection, spacing_mm = coronal_projection(volume)
    assert np.argwhere(projection == 7).tolist() == [[0, 0]]
    assert np.argwhere(projection == 5).tolist() == [[8, 8]]
    assert spacing_mm == (2.0, 2.0)
    turned, _ = radiological(volume)
    assert turned[0, 0, 0] == 7  # head, front, right
    assert turned[8, 8, 8] == 5
    assert np.shares_memory(turned, volume.array)


def test_oblique_grid_goes_along_the_nearest_axes():
    angle = np.deg2rad(30)
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    assert patient_axes(Volume(np.zeros((2, 2, 2)), direction=tuple(about_x.ravel()))) == (2, 1, 0)
    # gantry turned by 60 degrees: the grid's y axis runs head to foot more than front to back
    about_x = np.array([[1, 0, 0], [0, 0.5, -0.866], [0, 0.866, 0.5]])
    assert patient_axes(Volume(np.zeros((2, 2, 2)), direction=tuple(about_x.ravel()))) == (2, 0, 1)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, 1, -1), (-1, 1, -1)])
def test_projection_has_the_head_up_and_the_right_hand_left(signs: tuple[int, int, int]):
    array = np.zeros((4, 5, 6), np.uint8)
    array[3 if signs[2] > 0 else 0, 2, 0 if signs[0] > 0 else 5] = 1  # uppermost slice, patient's right
    volume = Volume(array, spacing_mm=(1.0, 2.0, 3.0), direction=tuple(np.diag(signs).astype(float).ravel()))
    projected, spacing_mm = coronal_projection(volume)
    assert projected.shape == (4, 6)
    assert projected[0, 0] == 1
    assert spacing_mm == (3.0, 1.0)


def test_projection_of_a_volume_sliced_from_front_to_back():
    direction = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)  # grid y runs to the feet, grid z to the back
    array = np.zeros((3, 4, 5), np.uint8)
    array[1, 0, 4] = 1
    projected, spacing_mm = coronal_projection(Volume(array, (1.0, 2.0, 3.0), direction=direction))
    assert projected.shape == (4, 5)
    assert projected[0, 4] == 1
    assert spacing_mm == (2.0, 1.0)


def test_sagittal_view_has_the_head_up_and_the_front_left():
    array = np.zeros((4, 5, 6), np.float32)  # slices from the feet, rows from the front, columns from the right
    array[3, 0, 0] = array[0, 4, 3] = 1  # head and front, foot and back
    projected, spacing_mm = sagittal_projection(Volume(array, (2.0, 3.5, 5.0)))
    assert projected.shape == (4, 5)
    assert np.argwhere(projected).tolist() == [[0, 0], [3, 4]]
    assert spacing_mm == (5.0, 3.5)
