from __future__ import annotations

import numpy as np
import pytest

from autopet.components import Components, component_voxels, foreground_box, label_components
from autopet.errors import AutopetError


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
    empty = Components.of(np.zeros((2, 2, 2)))
    assert (empty.voxels, empty.count, empty.sizes.size, len(empty.centroids)) == (0, 0, 0, 0)
    assert not empty.inside(Components.of(np.ones((2, 2, 2)))).any()


def test_the_box_around_the_foreground():
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[2, 3, 4] = mask[4, 1, 6] = 1
    assert foreground_box(mask) == (slice(2, 5), slice(1, 4), slice(4, 7))
    assert foreground_box(np.zeros((6, 7, 8))) == (slice(0, 0),) * 3


def test_components_by_hand():
    mask, other = np.zeros((1, 3, 10), np.uint8), np.zeros((1, 3, 10), np.uint8)
    mask[0, 1, [0, 1, 2, 5, 6, 9]] = 1  # components of 3, 2 and 1 voxels
    other[0, 1, 2] = other[0, 1, 3] = other[0, 2, 9] = 1
    parts = Components.of(mask)
    assert sorted(zip(parts.sizes, parts.centroids[:, 2], strict=True)) == [(1, 9.0), (2, 5.5), (3, 1.0)]
    assert parts.centroids[:, 1].tolist() == [1.0, 1.0, 1.0]
    assert parts.inside(Components.of(other)).tolist() == [False, False, True, False, False, False]
    assert Components.of(other).inside(parts).tolist() == [True, False, False]
    assert parts.values_of(np.arange(30).reshape(1, 3, 10)).tolist() == [10, 11, 12, 15, 16, 19]


def test_a_mask_is_labelled_once(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr("autopet.components.label_components", lambda m: calls.append(1) or label_components(m))
    parts = Components.of(np.eye(5)[None])
    assert (parts.count, parts.sizes.tolist(), parts.labels.tolist(), len(parts.centroids)) == (1, [5], [1] * 5, 1)
    assert calls == [1]


def test_masks_need_three_axes():
    with pytest.raises(AutopetError, match="expected a mask with 3 axes"):
        Components.of(np.zeros((4, 4)))
