"""Layers of tissue, painted into a label map."""

from __future__ import annotations

import numpy as np

from autopet.volume import Volume
from data_prep.imaging import make_grid
from data_prep.shapes import Blob
from data_prep.tissues import Anatomy, Layer, MapLayer, Tissue

GRID = make_grid((2.0, 3.0, 4.0), (60, 40), centre_mm=(0.0, 0.0), z_mm=(-60.0, 60.0))


def test_later_layers_win_and_over_limits_them():
    ball = Blob((0, 0, 0), (20, 20, 20))
    layers = (
        Layer(Tissue.FAT, ball),
        Layer(Tissue.LIVER, Blob((0, 0, 0), (10, 10, 10))),
        Layer(Tissue.BOWEL, ball, (Tissue.FAT,)),
    )
    labels = Anatomy(layers, {}, -60, 60).paint(GRID)
    assert set(np.unique(labels)) == {Tissue.AIR, Tissue.LIVER, Tissue.BOWEL}


def test_map_layer_lands_at_its_coordinates():
    array = np.zeros((3, 3, 3), np.uint8)
    array[1, 1, 1] = Tissue.SPLEEN
    labels = Anatomy((MapLayer(Volume(array, (8, 8, 8), (10, -20, 12))),), {}, -60, 60).paint(GRID)
    points = np.argwhere(labels)[:, ::-1] * np.array(GRID.spacing_mm) + GRID.origin_mm
    assert np.all(np.abs(points - (18, -12, 20)) <= 4)
