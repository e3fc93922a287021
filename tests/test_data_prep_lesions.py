"""Growing lesions in a body that is known."""

from __future__ import annotations

import numpy as np
import pytest

from autopet.errors import AutopetError
from data_prep.anatomy import STATIONS
from data_prep.imaging import make_grid
from data_prep.lesions import NOT_IN, SITES, Grower, lesion_shape
from data_prep.shapes import coverage
from data_prep.tissues import Anatomy, Tissue

GRID = make_grid((4.0, 4.0, 4.0), (60, 60), centre_mm=(0.0, 0.0), z_mm=(-120.0, 120.0))
OUTSIDE = {name: ((1000.0, 0.0, 0.0),) for name in STATIONS}
NOWHERE = Anatomy((), OUTSIDE, -120.0, 120.0)


def grower(seed: int, labels: np.ndarray, anatomy: Anatomy = NOWHERE) -> Grower:
    activity = np.ones(labels.shape, np.float32)
    return Grower(np.random.default_rng(seed), anatomy, GRID, labels=labels, activity=activity, fine=3)


def body_of(tissue: Tissue) -> np.ndarray:
    return np.full(GRID.shape, tissue, np.uint8)


@pytest.mark.parametrize("volume_ml", [2.0, 30.0])
def test_a_lesion_has_about_the_volume_that_was_asked_for(volume_ml):
    rng = np.random.default_rng(0)
    drawn = [
        coverage(lesion_shape(rng, (0.0, 0.0, 0.0), volume_ml), GRID)[1].sum() * GRID.voxel_volume_ml for _ in range(10)
    ]
    assert np.mean(drawn) == pytest.approx(volume_ml, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_lesions_grow_apart_in_their_tissue_and_are_hot(seed):
    growing = grower(seed, body_of(Tissue.LIVER))
    growing.grow("MELANOMA")
    assert 1 <= len(growing.lesions) <= 12
    assert {lesion.site for lesion in growing.lesions} == {"LIVER"}  # the only place that this body has
    assert int(growing.mask.sum()) == sum(lesion.voxels for lesion in growing.lesions)
    assert growing.activity[growing.mask > 0].mean() > 1.5
    assert growing.activity.min() > 0


def test_lesions_at_a_station_are_near_it():
    anatomy = Anatomy((), OUTSIDE | {"pelvis": ((40.0, -20.0, 30.0),)}, -120.0, 120.0)
    growing = grower(1, body_of(Tissue.SOFT), anatomy)
    growing.grow("PROSTATE_CANCER")
    for lesion in growing.lesions:
        assert lesion.site == "pelvis"
        assert np.all(np.abs(np.subtract(lesion.centre_mm, (40.0, -20.0, 30.0))) < 30)


@pytest.mark.parametrize("tissue", NOT_IN)
def test_a_body_without_a_place_is_refused(tissue):
    anatomy = Anatomy((), dict.fromkeys(STATIONS, ((0.0, 0.0, 0.0),)), -120.0, 120.0)
    with pytest.raises(AutopetError, match="another organ map or seed"):
        grower(0, body_of(tissue), anatomy).grow("PROSTATE_CANCER")


def test_every_place_of_a_diagnosis_is_a_tissue_or_a_station():
    for places in SITES.values():
        for place in places:
            assert place in STATIONS or place in Tissue.__members__, place
