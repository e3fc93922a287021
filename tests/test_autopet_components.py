from __future__ import annotations

import numpy as np

from autopet.components import component_voxels, components_apart, label_components


def test_edges_join_and_corners_do_not():
    edge, corner = np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    edge[0, 0, 0] = edge[0, 1, 1] = True
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert label_components(edge)[1] == 1
    assert label_components(corner)[1] == 2


def test_sizes_by_hand():
    mask = np.zeros((1, 1, 8), np.uint8)
    mask[0, 0, [0, 1, 2, 5]] = 1
    labels, count = label_components(mask)
    assert sorted(component_voxels(labels, count)) == [1, 3]


def test_empty_mask():
    labels, count = label_components(np.zeros((2, 2, 2)))
    assert count == 0
    assert component_voxels(labels, count).size == 0
    assert components_apart(np.zeros((2, 2, 2)), np.ones((2, 2, 2))) == 0


def test_components_apart_counts_whole_components_only():
    mask, other = np.zeros((1, 1, 10), np.uint8), np.zeros((1, 1, 10), np.uint8)
    mask[0, 0, [0, 1, 2, 5, 6, 9]] = 1  # components of 3, 2 and 1 voxels
    other[0, 0, 2] = 1  # one voxel is enough to touch
    assert components_apart(mask, other) == 3
