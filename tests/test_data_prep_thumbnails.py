"""Thumbnails of studies; expectations are placed by hand."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.thumbnails import SUV_BLACK, coronal_mip


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_grey_is_inverted_and_clipped_and_pixels_are_isotropic():
    array = np.zeros((10, 4, 20), np.float32)
    array[0, 2, :10] = SUV_BLACK / 2  # rows from the feet: the lowest, the patient's right half
    array[0, 2, 10:] = 5 * SUV_BLACK
    data = coronal_mip(Volume(array, (2.0, 1.0, 4.0)), height_px=40)
    pixels = picture(data)
    assert pixels.shape == (40, 40, 3)  # 40 mm by 40 mm
    assert pixels[:30].min() == 255
    assert pixels[-1, 1].tolist() == pytest.approx([127] * 3, abs=4)
    assert pixels[-1, -1].tolist() == [0, 0, 0]


def test_single_lesion_voxel_of_a_full_size_volume_is_red():
    suv = np.zeros((326, 40, 400), np.float32)
    mask = np.zeros(suv.shape, np.uint8)
    mask[100, 20, 300] = 1
    place = {"spacing_mm": (2.04, 2.04, 3.0)}
    pixels = picture(coronal_mip(Volume(suv, **place), Volume(mask, **place)))
    red = np.argwhere(pixels[..., 0] - pixels[..., 1] > 60)
    assert 1 <= len(red) <= 4
    # voxel 100 from the feet of 326, 300 of 400 from the patient's right
    assert red.mean(axis=0).tolist() == pytest.approx([160 * (325.5 - 100) / 326, pixels.shape[1] * 300.5 / 400], abs=1)
    assert (picture(coronal_mip(Volume(suv, **place))) == 255).all()


def test_not_a_number_and_wide_images():
    array = np.full((4, 3, 40), np.nan, np.float32)
    array[0, 1, 0] = np.inf
    pixels = picture(coronal_mip(Volume(array, (10.0, 1.0, 1.0))))
    assert pixels.shape[1] == 480
    assert (pixels[0] == 255).all()
    assert pixels[-1, 0].tolist() == [0, 0, 0]


def test_mask_of_another_grid_is_an_error():
    suv = Volume(np.zeros((3, 3, 3), np.float32))
    with pytest.raises(AutopetError, match="mask on the grid"):
        coronal_mip(suv, Volume(np.zeros((3, 3, 3), np.uint8), (2.0, 1.0, 1.0)))


def test_full_size_is_quick_and_small():
    suv = (
        np.random.default_rng(0)
        .gamma(0.5, 1.0, (82, 100, 100))
        .astype(np.float32)
        .repeat(4, 0)
        .repeat(4, 1)
        .repeat(4, 2)
    )
    volume = Volume(suv[:326], (2.04, 2.04, 3.0))
    mask = volume.with_array((volume.array > 6).astype(np.uint8))
    began = time.process_time()
    data = coronal_mip(volume, mask)
    assert time.process_time() - began < 0.5  # 0.04 s on two idle cores
    assert len(data) < 20_000
