"""Bodies around real organ maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.volume import Volume
from data_prep.anatomy import Habitus
from data_prep.imaging import make_grid
from data_prep.organ_maps import around_organs
from data_prep.shapes import rotation_matrix
from data_prep.tissues import Tissue


def test_maps_that_cannot_be_used_are_refused():
    rng = np.random.default_rng(0)
    blank = Volume(np.zeros((20, 20, 20), np.uint8), (10, 10, 10))
    with pytest.raises(AutopetError, match="whole-body"):
        around_organs(rng, blank, Habitus())
    with pytest.raises(AutopetError, match="0 to 10"):
        around_organs(rng, blank.with_array(np.full((20, 20, 20), 11, np.uint8)), Habitus())
    oblique = tuple(rotation_matrix((0.2, 0, 0)).ravel())
    with pytest.raises(AutopetError, match="direction"):
        around_organs(rng, Volume(blank.array, blank.spacing_mm, blank.origin_mm, oblique), Habitus())


def test_real_organ_maps_keep_their_organs():
    if "AUTOPET_REAL_DATA" not in os.environ:
        pytest.skip("AUTOPET_REAL_DATA is not set")
    paths = sorted((Path(os.environ["AUTOPET_REAL_DATA"]) / "organ-labels").glob("*.nii.gz"))[::16]
    assert paths
    for path in paths:
        organs = read_image(path)
        anatomy = around_organs(np.random.default_rng(1), organs, Habitus())
        heights = (anatomy.bottom_mm, anatomy.top_mm)
        grid = make_grid((4.0, 4.0, 5.0), (120, 80), centre_mm=anatomy.centre_mm, z_mm=heights)
        labels = anatomy.paint(grid)
        for label, tissue in ((3, Tissue.LIVER), (5, Tissue.LUNG), (4, Tissue.URINE)):
            real_ml = (organs.array == label).sum() * organs.voxel_volume_ml
            assert (labels == tissue).sum() * grid.voxel_volume_ml == pytest.approx(real_ml, rel=0.1), (path, tissue)
        assert (labels > 0).sum() * grid.voxel_volume_ml > 30_000  # a body around them
        assert (labels == Tissue.MARROW).any()
