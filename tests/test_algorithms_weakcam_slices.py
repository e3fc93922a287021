"""What the classifier is shown, its probabilities and their AUROC."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.images import read_image
from autopet.slices import read_slices

torch = pytest.importorskip("torch")

from algorithms.weakcam import slices  # noqa: E402
from algorithms.weakcam.model import PRESETS, build_network  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    size=32,
    pixel_mm=4.0,
    widths=(4, 8),
    convolutions=(1, 1),
    pooled_blocks=(1,),
    ct_range_hu=(-200.0, 300.0),
    pet_range_suv=(0.0, 10.0),
)


# What the classifier is shown


def test_training_and_prediction_see_the_same_slices(cohort: list[Case], tmp_path: Path):
    """The cache is float16: relative rounding of 2**-11."""
    case = cohort[0]
    folder = slices.cache([case], tmp_path / "slices", TINY)[case.name]
    kept, masks, labels = read_slices(folder)
    images, grid = slices.cut({"CT": read_image(case.ct), "PET": read_image(case.suv)}, TINY)
    assert kept.shape == images.shape == (40, 2, 32, 32)
    assert grid.shape == (40, 32, 32)
    np.testing.assert_allclose(kept, images, rtol=2**-11, atol=1e-3)
    np.testing.assert_array_equal(labels, read_image(case.mask).array.any(axis=(1, 2)))
    assert masks.any(axis=(1, 2)).sum() == labels.sum()
    # the hottest pixel lies in a lesion: SUV 8, and 6 in the organ
    assert 7 < images[:, slices.PET].max() < 11
    place = np.unravel_index(np.argmax(images[:, slices.PET]), masks.shape)
    assert masks[place]


def test_training_slices_come_with_labels_and_are_changed_at_random(cohort: list[Case], tmp_path: Path):
    folders = list(slices.cache(cohort[:2], tmp_path / "slices", TINY).values())
    data = slices.training_slices(folders, replace(TINY, epochs=2))
    assert len(data) == 2 * 80
    truth = np.concatenate([read_slices(folder)[2] for folder in folders])
    first = [data[index] for index in range(80)]
    assert sum(int(label) for _, label in first) == truth.sum()
    image, _ = first[0]
    assert (image.shape, image.dtype) == ((2, 32, 32), torch.float32)
    assert 0 <= float(min(image.min() for image, _ in first)) <= float(max(image.max() for image, _ in first)) <= 1
    still = slices.training_slices(
        folders, replace(TINY, rotation_degrees=0.0, scale_share=0.0, shift_share=0.0, contrast_share=0.0)
    )
    as_is = [still[index][0] for index in range(80)]
    changed = [not torch.equal(image, other) for (image, _), other in zip(first, as_is, strict=True)]
    assert sum(changed) > 70
    plain = slices.as_input(read_slices(folders[0])[0][:1], TINY)[0]
    assert any(torch.allclose(plain, other, atol=1e-6) for other in as_is)  # a contrast of 1 rounds


def test_ranges_become_0_to_1_and_air_0():
    images = np.array([[-1000.0, -200.0, 50.0, 900.0], [-1.0, 0.0, 2.5, 20.0]], np.float32).reshape(1, 2, 1, 4)
    found = slices.as_input(images, TINY)
    assert found[0, :, 0].numpy() == pytest.approx(np.array([[0, 0, 0.5, 1], [0, 0, 0.25, 1]]))


# What it says


def test_probabilities_do_not_depend_on_how_many_go_together():
    torch.manual_seed(0)
    network = build_network(TINY).train()
    rng = np.random.default_rng(0)
    images = np.stack([rng.normal(50, 100, (19, 32, 32)), rng.gamma(2, 2, (19, 32, 32))], axis=1).astype(np.float16)
    parts = list(slices.probabilities(network, images, settings=TINY, device="cpu"))
    assert [len(part) for part in parts] == [8, 8, 3]
    together = np.concatenate(parts)
    alone = [slices.lesion_probability(network, images[n : n + 1], settings=TINY, device="cpu")[0] for n in range(19)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    with torch.no_grad():
        logits = network.eval()(slices.as_input(images, TINY)).double().numpy()
    np.testing.assert_allclose(together, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), rtol=1e-5)
    assert len(set(np.round(together, 6))) > 1


def test_auroc_by_hand_and_by_counting_pairs():
    assert slices.auroc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0])) == pytest.approx(3.5 / 4)
    assert slices.auroc(np.array([0.1, 0.9]), np.array([True, False])) == 0.0
    assert math.isnan(slices.auroc(np.array([0.1, 0.9]), np.array([True, True])))
    assert math.isnan(slices.auroc(np.array([0.1, 0.9]), np.array([False, False])))
    rng = np.random.default_rng(0)
    labels, values = rng.random(60) < 0.3, np.round(rng.random(60), 1)  # with ties
    pairs = [(p > n) + 0.5 * (p == n) for p in values[labels] for n in values[~labels]]
    assert slices.auroc(values, labels) == pytest.approx(np.mean(pairs))
