"""Bodies built of shapes."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.anatomy import Habitus, procedural
from data_prep.imaging import make_grid
from data_prep.tissues import Tissue


@pytest.mark.parametrize("seed", range(4))
def test_procedural_patients_have_organs_of_human_size(seed):
    rng = np.random.default_rng(seed)
    habitus = Habitus.sample(rng, male=seed % 2 == 0)
    anatomy = procedural(rng, habitus)
    grid = make_grid((5.0, 5.0, 5.0), (100, 66), centre_mm=anatomy.centre_mm, z_mm=(anatomy.bottom_mm, anatomy.top_mm))
    counts = np.bincount(anatomy.paint(grid).ravel(), minlength=len(Tissue)) * grid.voxel_volume_ml
    limits_ml = {"LIVER": (900, 2800), "SPLEEN": (80, 450), "KIDNEY": (150, 500), "URINE": (30, 450)}
    limits_ml |= {"LUNG": (1800, 6500), "MYOCARDIUM": (60, 300), "SALIVARY": (15, 90)}
    for name, (low, high) in limits_ml.items():
        assert low < counts[Tissue[name]] < high, name
    assert (counts[Tissue.PROSTATE] > 0) == habitus.male
    assert (counts[Tissue.BRAIN] > 900) == habitus.from_vertex


def test_the_body_stands_upright_and_the_liver_is_on_the_right():
    rng = np.random.default_rng(5)
    anatomy = procedural(rng, Habitus())
    grid = make_grid((6.0, 6.0, 6.0), (84, 56), centre_mm=anatomy.centre_mm, z_mm=(anatomy.bottom_mm, anatomy.top_mm))
    labels = anatomy.paint(grid)

    def middle(tissue):
        return np.argwhere(labels == tissue).mean(axis=0)[::-1] * grid.spacing_mm + grid.origin_mm

    heights = [middle(tissue)[2] for tissue in (Tissue.URINE, Tissue.KIDNEY, Tissue.MYOCARDIUM, Tissue.BRAIN)]
    assert heights == sorted(heights)
    assert middle(Tissue.LIVER)[0] < 0 < middle(Tissue.SPLEEN)[0]  # x grows to the patient's left
    assert middle(Tissue.KIDNEY)[1] > middle(Tissue.STOMACH)[1]  # y grows to the back
