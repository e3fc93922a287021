"""Surface metrics by hand, by brute force over all pairs of voxels, and as two other libraries compute them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from grand_challenge_metrics.stats import percentile_hausdorff_distance

from autopet.components import Components
from autopet.volume import Volume
from evaluation import surface
from evaluation.metrics import score_case
from evaluation.surface import hausdorff_95_mm, surface_dice, surface_distances

SPACINGS_ZYX_MM = [(1.0, 1.0, 1.0), (3.0, 2.0, 2.0), (5.0, 0.8, 1.3)]
FACES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]


def block(*ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((9, 10, 12), bool)
    mask[tuple(slice(*pair) for pair in ranges)] = True
    return mask


def brute_force(truth: np.ndarray, guess: np.ndarray, spacing_zyx_mm: tuple[float, ...]) -> list[list[float]]:
    """Every distance from a surface voxel of one mask to the nearest of the other, both ways."""

    def shell(mask: np.ndarray) -> list[tuple[float, ...]]:
        voxels = {tuple(int(i) for i in place) for place in np.argwhere(mask)}
        edge = [v for v in voxels if any(tuple(map(sum, zip(v, f, strict=True))) not in voxels for f in FACES)]
        return [tuple(i * mm for i, mm in zip(v, spacing_zyx_mm, strict=True)) for v in edge]

    first, second = shell(truth), shell(guess)
    return [[min(math.dist(a, b) for b in theirs) for a in mine] for mine, theirs in ((first, second), (second, first))]


def random_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(11)
    pairs = []
    for share in (0.02, 0.1, 0.3, 0.7, 1.0):
        for _ in range(6):
            shape = tuple(rng.integers(2, 8, size=3))
            pair = rng.random(shape) < share, rng.random(shape) < share
            pair[0][0, 0, 0] = pair[1][-1, -1, -1] = True  # neither is empty, and both touch the image's border
            pairs.append(pair)
    return pairs


def distances(truth: np.ndarray, guess: np.ndarray, spacing_zyx_mm: tuple[float, float, float]):
    return surface_distances(Components.of(truth), Components.of(guess), spacing_zyx_mm=spacing_zyx_mm)


@pytest.mark.parametrize("spacing_zyx_mm", SPACINGS_ZYX_MM)
def test_brute_force_over_all_pairs_of_voxels(spacing_zyx_mm: tuple[float, float, float]):
    for truth, guess in random_pairs():
        sides = brute_force(truth, guess, spacing_zyx_mm)
        found = distances(truth, guess, spacing_zyx_mm)
        np.testing.assert_allclose(sorted(found.from_truth_mm), sorted(sides[0]), rtol=1e-12)
        np.testing.assert_allclose(sorted(found.from_prediction_mm), sorted(sides[1]), rtol=1e-12)
        for tolerance_mm in (0.0, 1.0, 2.0, 3.0):
            near = sum(value <= tolerance_mm + 1e-9 for value in itertools.chain(*sides))
            assert surface_dice(found, tolerance_mm=tolerance_mm) == near / (len(sides[0]) + len(sides[1]))


@pytest.mark.parametrize("spacing_zyx_mm", SPACINGS_ZYX_MM)
def test_distance_maps_say_the_same_as_trees(
    spacing_zyx_mm: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
):
    pairs = [*random_pairs(), (block((1, 3), (2, 5), (7, 9)), block((4, 8), (1, 3), (2, 11)))]
    trees = [distances(truth, guess, spacing_zyx_mm) for truth, guess in pairs]
    monkeypatch.setattr(surface, "MOST_POINTS", 0)
    monkeypatch.setattr("scipy.spatial.KDTree", None)  # not used any more
    for (truth, guess), tree in zip(pairs, trees, strict=True):
        found = distances(truth, guess, spacing_zyx_mm)
        np.testing.assert_allclose(found.from_truth_mm, tree.from_truth_mm, rtol=1e-12)
        np.testing.assert_allclose(found.from_prediction_mm, tree.from_prediction_mm, rtol=1e-12)


@pytest.mark.parametrize("spacing_zyx_mm", SPACINGS_ZYX_MM)
def test_hausdorff_equals_grand_challenge_metrics(spacing_zyx_mm: tuple[float, float, float]):
    for truth, guess in random_pairs():
        theirs = percentile_hausdorff_distance(truth, guess, 0.95, voxelspacing=spacing_zyx_mm)
        assert hausdorff_95_mm(distances(truth, guess, spacing_zyx_mm)) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("spacing_zyx_mm", SPACINGS_ZYX_MM)
def test_surface_dice_equals_monai(spacing_zyx_mm: tuple[float, float, float]):
    pytest.importorskip("monai", reason="MONAI is an oracle here, and no dependency")
    import torch
    from monai.metrics import compute_surface_dice

    for truth, guess in random_pairs():
        masks = [torch.from_numpy(np.pad(mask, 1).astype(np.uint8))[None, None] for mask in (guess, truth)]
        theirs = compute_surface_dice(*masks, [2.5], include_background=True, spacing=spacing_zyx_mm)
        found = distances(truth, guess, spacing_zyx_mm)
        assert surface_dice(found, tolerance_mm=2.5) == pytest.approx(float(theirs), abs=1e-6)


def test_two_blocks_by_hand():
    # 1 x 1 x 4 voxels and the same one voxel (3 mm) further along x: all are surface, the ends lie 3 mm off, the rest 0
    truth, guess = block((4, 5), (4, 5), (2, 6)), block((4, 5), (4, 5), (3, 7))
    found = distances(truth, guess, (7.0, 5.0, 3.0))
    assert sorted(found.from_truth_mm) == [0.0, 0.0, 0.0, 3.0]
    assert surface_dice(found, tolerance_mm=2.9) == 6 / 8
    assert surface_dice(found, tolerance_mm=3.0) == 1.0
    assert hausdorff_95_mm(found) == 0.0  # the 95th of 4 sorted distances is the one at floor(0.95 * 3) = 2


def test_the_inside_of_a_block_is_no_surface():
    cube, hollow = block((2, 5), (2, 5), (2, 5)), block((2, 5), (2, 5), (2, 5))
    hollow[3, 3, 3] = False  # its six neighbours lie inside the cube's surface, 1 mm below their own faces
    found = distances(cube, hollow, (1.0, 1.0, 1.0))
    assert found.from_truth_mm.size == found.from_prediction_mm.size == 26
    assert hausdorff_95_mm(found) == 0.0


def test_a_case_has_both_in_millimetres_with_its_own_spacing():
    truth, guess = block((1, 2), (1, 2), (1, 2)), block((3, 4), (1, 2), (1, 2))
    grid = (2.0, 3.0, 5.0)  # x, y, z: two slices are 10 mm
    case = score_case(Volume(truth, grid), Volume(guess, grid), surface=True, tolerance_mm=9.9)
    assert (case.values["hd95_mm"], case.values["nsd"]) == (10.0, 0.0)
    assert score_case(Volume(truth, grid), Volume(guess, grid), surface=True, tolerance_mm=10).values["nsd"] == 1.0
    unasked = score_case(Volume(truth, grid), Volume(guess, grid)).values
    assert math.isnan(unasked["nsd"])
    assert math.isnan(unasked["hd95_mm"])


@pytest.mark.parametrize("edition", ["I", "III", "V"])
def test_empty_masks(edition: str):
    lesion, nothing = block((1, 2), (1, 2), (1, 3)), block((0, 0), (0, 0), (0, 0))
    grid = (2.0, 3.0, 5.0)

    def values(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
        case = score_case(Volume(truth, grid), Volume(guess, grid), surface=True, edition=edition)
        return case.values["nsd"], case.values["hd95_mm"]

    diagonal_mm = math.sqrt((8 * 5) ** 2 + (9 * 3) ** 2 + (11 * 2) ** 2)  # 9 x 10 x 12 voxels
    assert values(lesion, nothing) == (0.0, pytest.approx(diagonal_mm))
    np.testing.assert_equal(values(nothing, lesion), (math.nan, math.nan))
    np.testing.assert_equal(values(nothing, nothing), (math.nan, math.nan))
    assert values(lesion, lesion) == (1.0, 0.0)
