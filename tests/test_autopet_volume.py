from __future__ import annotations

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume, from_sitk, overlap_mm, resample, to_sitk


def oblique() -> Volume:
    angle = np.deg2rad(20)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    voxels = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    return Volume(voxels, (1.5, 2.0, 3.0), (10.0, -20.0, 30.0), tuple(float(value) for value in direction))


def test_units_and_orders():
    volume = Volume(np.zeros((2, 3, 4)), (1.0, 2.0, 5.0))
    assert volume.spacing_zyx_mm == (5.0, 2.0, 1.0)
    assert volume.voxel_volume_ml == pytest.approx(0.01)


def test_affine_places_a_voxel_by_hand():
    volume = oblique()
    x, y, z = (volume.affine @ [1, 2, 1, 1])[:3]
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    assert (x, y, z) == pytest.approx((10 + cos * 1.5 - sin * 4, -20 + sin * 1.5 + cos * 4, 33))


def test_sitk_round_trip_keeps_geometry():
    volume = oblique()
    back = from_sitk(to_sitk(volume))
    assert back.same_grid(volume, tolerance_mm=1e-9)
    np.testing.assert_array_equal(back.array, volume.array)


def test_shapes_that_are_no_volume_are_refused():
    with pytest.raises(AutopetError, match="3 dimensions"):
        Volume(np.zeros((2, 2)))
    with pytest.raises(AutopetError, match="positive"):
        Volume(np.zeros((1, 1, 1)), (1.0, 0.0, 1.0))
    with pytest.raises(AutopetError, match="expected voxels of shape"):
        oblique().with_array(np.zeros((1, 1, 1)))


def test_grid_difference_says_what_differs():
    base = Volume(np.zeros((10, 10, 10)))
    assert base.grid_difference(Volume(np.zeros((10, 10, 10)), origin_mm=(0.005, 0, 0))) == ""
    assert "origin (0, 0, 0) against (2, 0, 0)" in base.grid_difference(Volume(base.array, origin_mm=(2.0, 0.0, 0.0)))
    assert "shape" in base.grid_difference(Volume(np.zeros((10, 10, 9))))


def test_a_small_error_of_spacing_adds_up_over_the_volume():
    base, other = Volume(np.zeros((1, 1, 1001))), Volume(np.zeros((1, 1, 1001)), (1.0001, 1.0, 1.0))
    assert "0.1 mm apart" in base.grid_difference(other)


def test_resample_linear_and_fill():
    ct = Volume(np.array([[[0.0, 10.0, 20.0]]], np.float32), (2.0, 1.0, 1.0))
    grid = Volume(np.zeros((1, 1, 6)), (1.0, 1.0, 1.0))
    # x = 5 lies beyond the last voxel centre (4) plus half a voxel
    np.testing.assert_allclose(resample(ct, grid, fill=-1024).array[0, 0], [0, 5, 10, 15, 20, -1024])


def test_resample_nearest_keeps_labels():
    labels = Volume(np.array([[[0, 3, 3, 7]]], np.uint8), (2.0, 1.0, 1.0))
    grid = Volume(np.zeros((1, 1, 7)))
    result = resample(labels, grid, nearest=True)
    assert result.array.dtype == np.uint8
    assert set(np.unique(result.array)) <= {0, 3, 7}


def test_overlap_of_boxes():
    a = Volume(np.zeros((10, 10, 10)))
    assert overlap_mm(a, Volume(np.zeros((10, 10, 10)), origin_mm=(4.0, 0.0, 0.0))) == (6.0, 10.0, 10.0)
    assert overlap_mm(a, Volume(np.zeros((10, 10, 10)), origin_mm=(0.0, 0.0, 99.0)))[2] == 0.0
