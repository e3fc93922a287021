"""Uptake, resolution and noise of the phantom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autopet.volume import Volume
from data_prep.imaging import (
    SCANNERS,
    blur,
    ct_image,
    make_grid,
    pet_noise,
    sample_hu,
    sample_uptake,
    texture,
    uptake_image,
)
from data_prep.tissues import Tissue


@pytest.mark.parametrize("fwhm_mm", [5.0, 7.0])
def test_the_point_spread_has_its_stated_width(fwhm_mm):
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1.0
    spread = blur(point, (1.0, 1.0, 1.0), fwhm_mm)
    assert spread.sum() == pytest.approx(1.0, abs=1e-3)
    for line in (spread[:, 20, 20], spread[20, :, 20], spread[20, 20, :]):
        above = np.interp(line.max() / 2, line[:21], np.arange(21))  # half maximum on the rising side
        assert 2 * (20 - above) == pytest.approx(fwhm_mm, abs=0.15)


def test_the_point_spread_respects_anisotropic_voxels():
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1.0
    spread = blur(point, (2.0, 1.0, 1.0), 8.0)
    steps = np.arange(41) - 20
    along_z = (spread.sum(axis=(1, 2)) * (2.0 * steps) ** 2).sum()
    along_x = (spread.sum(axis=(0, 1)) * steps**2.0).sum()
    assert along_z == pytest.approx(along_x, rel=0.05)


def test_noise_variance_is_proportional_to_activity():
    rng = np.random.default_rng(0)
    scanner = replace(SCANNERS["B", "small"], noise=0.1)
    spreads = []
    for suv in (4.0, 16.0):
        noisy = pet_noise(rng, np.full((40, 40, 40), suv, np.float32), (2.0, 2.0, 2.0), scanner)
        assert noisy.mean() == pytest.approx(suv, rel=0.01)
        spreads.append(noisy[6:-6, 6:-6, 6:-6].std())
    assert spreads[0] == pytest.approx(0.1 * np.sqrt(4.0), rel=0.1)
    assert spreads[1] / spreads[0] == pytest.approx(2.0, rel=0.1)


def test_noise_is_correlated_and_never_negative():
    noisy = pet_noise(
        np.random.default_rng(1), np.full((30, 30, 30), 0.02, np.float32), (2.0, 2.0, 2.0), SCANNERS["A", "full"]
    )
    assert noisy.min() >= 0
    residual = noisy - noisy.mean()
    neighbours = (residual[..., 1:] * residual[..., :-1]).mean() / residual.var()
    assert neighbours > 0.3


def test_centre_b_is_blurrier_and_noisier():
    for size in ("small", "full"):
        a, b = SCANNERS["A", size], SCANNERS["B", size]
        assert a.fwhm_mm < b.fwhm_mm
        assert a.noise < b.noise


@pytest.mark.parametrize("seed", range(5))
def test_uptake_orders_organs_by_tracer(seed):
    fdg = sample_uptake(np.random.default_rng(seed), "FDG")
    psma = sample_uptake(np.random.default_rng(seed), "PSMA")
    assert fdg[Tissue.BRAIN] > fdg[Tissue.KIDNEY] > fdg[Tissue.BLOOD] > fdg[Tissue.MUSCLE] > fdg[Tissue.FAT]
    assert fdg[Tissue.URINE] > fdg[Tissue.LIVER] > fdg[Tissue.LUNG]
    assert psma[Tissue.KIDNEY] > psma[Tissue.SALIVARY] > psma[Tissue.LIVER] > psma[Tissue.BLOOD] > psma[Tissue.BRAIN]
    assert psma[Tissue.DUODENUM] > psma[Tissue.MUSCLE]
    assert psma[Tissue.MARROW] < 1 < fdg[Tissue.MARROW]


def test_texture_keeps_the_mean_uptake():
    grid = make_grid((4.0, 4.0, 4.0), (60, 60), centre_mm=(0, 0), z_mm=(0, 240))
    labels = np.full(grid.shape, Tissue.BOWEL, np.uint8)
    waves = texture(np.random.default_rng(0), grid)
    assert waves.std() == pytest.approx(0.75, abs=0.25)
    image = uptake_image(labels, np.full(len(Tissue), 3.0), waves)
    assert image.mean() == pytest.approx(3.0, rel=0.1)
    assert image.std() > 0.5


def test_ct_values_and_their_limits():
    rng = np.random.default_rng(0)
    hu = sample_hu(rng)
    labels = np.full((12, 12, 12), Tissue.LIVER, np.uint8)
    image = ct_image(rng, labels, hu, 10.0)
    assert image.dtype == np.int16
    assert image.mean() == pytest.approx(hu[Tissue.LIVER], abs=2)
    assert ct_image(rng, np.zeros_like(labels), hu, 100.0).min() == -1024
    assert hu[Tissue.LUNG] < hu[Tissue.FAT] < hu[Tissue.MUSCLE] < hu[Tissue.MARROW] < hu[Tissue.BONE]


def test_grid_is_centred_and_costs_no_memory():
    grid = make_grid((2.0, 4.0, 3.0), (5, 4), centre_mm=(10.0, -6.0), z_mm=(100.0, 130.0))
    assert isinstance(grid, Volume)
    assert grid.shape == (11, 4, 5)
    assert grid.origin_mm == (6.0, -12.0, 100.0)
    assert grid.array.strides == (0, 0, 0)
