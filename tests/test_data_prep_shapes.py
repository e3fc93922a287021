"""Solids, their bounds and their volumes."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.imaging import make_grid
from data_prep.shapes import Blob, Capsule, Tube, Wobble, coverage, rotation_matrix

GRID = make_grid((2.0, 3.0, 4.0), (60, 40), centre_mm=(0.0, 0.0), z_mm=(-60.0, 60.0))


def volume_ml(shape, grid=GRID):
    return float(coverage(shape, grid)[1].sum()) * grid.voxel_volume_ml


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, 1.0, -0.5)])
def test_coverage_of_an_ellipsoid_is_its_volume(angles):
    shape = Blob((1.3, -2.1, 0.7), (30.0, 20.0, 25.0), rotation_matrix(angles))
    assert volume_ml(shape) == pytest.approx(4 / 3 * np.pi * 30 * 20 * 25 / 1000, rel=0.01)


def test_coverage_of_a_capsule_is_its_volume():
    shape = Capsule((-20, 0, 0), (20, 0, 0), 10, 10)
    assert volume_ml(shape) == pytest.approx((np.pi * 100 * 40 + 4 / 3 * np.pi * 1000) / 1000, rel=0.02)


def test_coverage_of_a_shape_outside_the_grid_is_empty():
    assert coverage(Blob((500, 0, 0), (5, 5, 5)), GRID)[1].size == 0


def test_shapes_stay_inside_their_bounds():
    rng = np.random.default_rng(0)
    for _ in range(5):
        radius = float(rng.uniform(8, 20))
        turn = rotation_matrix(rng.uniform(0, 3, 3))
        shape = Blob((0, 0, 0), (radius, radius * 0.7, radius * 1.3), turn, Wobble.sample(rng, 0.09, radius))
        everywhere = shape.inside(*np.meshgrid(*[np.linspace(-40, 40, 81)] * 3, indexing="ij", sparse=True))
        points = np.argwhere(everywhere) - 40.0
        low, high = shape.bounds_mm()
        assert np.all(points >= low)
        assert np.all(points <= high)


def test_tube_is_empty_beyond_its_ends():
    tube = Tube(np.array([[-10.0, 0, 0, 20, 10], [10.0, 0, 0, 20, 10]]), power=2.0)
    assert volume_ml(tube) == pytest.approx(np.pi * 20 * 10 * 20 / 1000, rel=0.1)
    assert not tube.inside(np.zeros(1), np.zeros(1), np.array([11.0])).any()
