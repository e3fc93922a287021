"""Metrics against a slow oracle: own flood fill, one component and one voxel at a time, from the definitions."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from grand_challenge_metrics.stats import percentile_hausdorff_distance

from autopet.images import read_image
from autopet.volume import Volume
from evaluation.lesions import MATCHED, PREDICTION, TRUTH
from evaluation.metrics import EDITIONS, CaseScore, score, score_case

Voxel = tuple[int, int, int]
NEIGHBOURS = [step for step in itertools.product((-1, 0, 1), repeat=3) if 1 <= sum(map(abs, step)) <= 2]
CASES = 2000
BLOCKS = 8
SPACING_MM = (1.5, 2.0, 4.0)  # x, y, z
VOXEL_ML = 0.012


def flood(mask: np.ndarray) -> list[set[Voxel]]:
    """Components of a mask, voxels that share a face or an edge being neighbours."""
    left = {tuple(int(i) for i in place) for place in np.argwhere(mask)}
    found = []
    while left:
        seed = left.pop()
        part, front = {seed}, [seed]
        while front:
            z, y, x = front.pop()
            for dz, dy, dx in NEIGHBOURS:
                near = (z + dz, y + dy, x + dx)
                if near in left:
                    left.remove(near)
                    part.add(near)
                    front.append(near)
        found.append(part)
    return found


class Oracle:
    """Integer counts of a case, by sets of voxels."""

    def __init__(self, truth: np.ndarray, guess: np.ndarray) -> None:
        self.lesions, self.parts = flood(truth), flood(guess)
        true, guessed = set().union(*self.lesions), set().union(*self.parts)
        self.true, self.guessed, self.shared = len(true), len(guessed), len(true & guessed)
        self.missed = sum(len(lesion) for lesion in self.lesions if not lesion & guessed)
        self.false = sum(len(part) for part in self.parts if not part & true)
        # 10 |A and B| >= |A or B|: the IoU of 0.1 without a division
        self.tp = sum(any(10 * len(a & b) >= len(a | b) for b in self.parts) for a in self.lesions)
        self.fp = sum(not any(10 * len(a & b) >= len(a | b) for a in self.lesions) for b in self.parts)

    def values(self, edition: str) -> dict[str, float]:
        """Dice, FPV and FNV in ml, written out edition by edition."""
        total = self.true + self.guessed
        dice = 2 * self.shared / total if total else math.nan
        fnv = self.missed * VOXEL_ML
        if not self.lesions:
            dice = math.nan if edition in ("II", "III", "V") else dice
            fnv = math.nan if edition in ("III", "V") else fnv
        return {"dice": dice, "fpv_ml": self.false * VOXEL_ML, "fnv_ml": fnv}


def random_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of specks or of touching blocks; now and then empty or full."""
    share = rng.choice([0.0, 0.03, 0.1, 0.2, 0.35, 0.6, 1.0], p=[0.08, 0.25, 0.25, 0.2, 0.12, 0.08, 0.02])
    mask = rng.random(shape) < share
    for _ in range(rng.integers(0, 3) if share else 0):
        corner = [rng.integers(0, n) for n in shape]
        mask[tuple(slice(start, start + rng.integers(1, 4)) for start in corner)] = True
    return mask


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Independent masks, or a prediction that is the truth with a few voxels changed."""
    shape = tuple(int(n) for n in rng.integers(1, 10, size=3))
    truth = random_mask(rng, shape)
    if rng.random() < 0.5:
        return truth, random_mask(rng, shape)
    return truth, truth ^ (rng.random(shape) < 0.1)


def volume(mask: np.ndarray) -> Volume:
    return Volume(mask, SPACING_MM)


def check(case: CaseScore, truth: np.ndarray, guess: np.ndarray, oracle: Oracle, *, edition: str) -> None:
    values = case.values
    np.testing.assert_equal({name: values[name] for name in ("dice", "fpv_ml", "fnv_ml")}, oracle.values(edition))
    counts = {"lesion_tp": oracle.tp, "lesion_fp": oracle.fp, "lesion_fn": len(oracle.lesions) - oracle.tp}
    counts |= {"gt_lesions": len(oracle.lesions), "pred_lesions": len(oracle.parts)}
    assert {name: values[name] for name in counts} == counts
    ml = {"fpv_ml": oracle.false, "fnv_ml": oracle.missed, "gt_ml": oracle.true, "pred_ml": oracle.guessed}
    for name, voxels in ml.items():
        assert math.isnan(values[name]) or values[name] == voxels * VOXEL_ML  # to the voxel
    for kind, parts, other in ((TRUTH, oracle.lesions, guess), (PREDICTION, oracle.parts, truth)):
        mine = sorted((row.volume_ml, row.overlap_voxels) for row in case.lesions if row.kind == kind)
        theirs = sorted((len(part) * VOXEL_ML, sum(bool(other[voxel]) for voxel in part)) for part in parts)
        assert mine == theirs
    assert sum(row.kind == TRUTH and row.status == MATCHED for row in case.lesions) == oracle.tp


@pytest.mark.parametrize("block", range(BLOCKS))
def test_two_thousand_random_volumes_equal_the_oracle(block: int):
    rng = np.random.default_rng(block)
    kinds = set()
    for number in range(CASES // BLOCKS):
        truth, guess = random_pair(rng)
        edition = sorted(EDITIONS)[number % len(EDITIONS)]
        oracle = Oracle(truth, guess)
        check(score_case(volume(truth), volume(guess), edition=edition), truth, guess, oracle, edition=edition)
        kinds.add((bool(oracle.lesions), bool(oracle.parts), oracle.shared > 0, oracle.missed > 0, oracle.false > 0))
    assert len(kinds) == 8  # empty masks, hits, misses and false components in every combination that there is


@pytest.mark.parametrize("edition", sorted(EDITIONS))
@pytest.mark.parametrize("lesions", [False, True])
@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("overlapping", [False, True])
def test_every_empty_case_in_every_edition(edition: str, lesions: bool, predicted: bool, overlapping: bool):
    truth, guess = np.zeros((4, 4, 6), bool), np.zeros((4, 4, 6), bool)
    truth[1, 1, 1:4] = lesions
    guess[1, 1, 3] = predicted and overlapping
    guess[3, 3, 4:] = predicted and not overlapping
    oracle = Oracle(truth, guess)
    check(score_case(volume(truth), volume(guess), edition=edition), truth, guess, oracle, edition=edition)
    short = score(truth, guess, voxel_volume_ml=VOXEL_ML, edition=edition)
    np.testing.assert_equal({name: short[name] for name in oracle.values(edition)}, oracle.values(edition))


CONTACTS = [  # second voxel beside (2, 2, 2), components under 6-, 18- and 26-connectivity
    ((2, 2, 3), 1, 1, 1),  # a face
    ((2, 3, 3), 2, 1, 1),  # edges, in all three planes
    ((3, 2, 3), 2, 1, 1),
    ((3, 3, 2), 2, 1, 1),
    ((1, 3, 2), 2, 1, 1),
    ((3, 3, 3), 2, 2, 1),  # corners
    ((1, 3, 1), 2, 2, 1),
    ((2, 2, 4), 2, 2, 2),  # apart
]


@pytest.mark.parametrize(("voxel", "by_6", "by_18", "by_26"), CONTACTS)
def test_contacts_that_separate_the_connectivities(voxel: Voxel, by_6: int, by_18: int, by_26: int):
    from autopet.components import label_components

    both, first = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    both[2, 2, 2] = both[voxel] = first[2, 2, 2] = True
    assert [label_components(both, connectivity=n)[1] for n in (6, 18, 26)] == [by_6, by_18, by_26]
    missed = score_case(volume(both), volume(first)).values
    false = score_case(volume(first), volume(both)).values
    alone = (by_18 - 1) * VOXEL_ML  # the second voxel counts only as a component of its own
    assert (missed["gt_lesions"], missed["fnv_ml"]) == (by_18, alone)
    assert (false["pred_lesions"], false["fpv_ml"]) == (by_18, alone)
    assert len(flood(both)) == by_18


@pytest.mark.parametrize("spacing_mm", [(2.0364, 2.0364, 3.0), (4.07, 4.07, 5.0), (0.5, 1.0, 7.5)])
def test_spacing_changes_millilitres_and_nothing_else(spacing_mm: tuple[float, float, float]):
    rng = np.random.default_rng(5)
    truth, guess = rng.random((6, 7, 8)) < 0.1, rng.random((6, 7, 8)) < 0.1
    oracle, voxel_ml = Oracle(truth, guess), math.prod(spacing_mm) / 1000
    values = score_case(Volume(truth, spacing_mm), Volume(guess, spacing_mm)).values
    assert values["dice"] == 2 * oracle.shared / (oracle.true + oracle.guessed)
    assert values["lesion_tp"] == oracle.tp
    found_ml = [values[name] for name in ("fpv_ml", "fnv_ml", "gt_ml", "pred_ml")]
    voxels = [oracle.false, oracle.missed, oracle.true, oracle.guessed]
    assert found_ml == pytest.approx([count * voxel_ml for count in voxels], rel=1e-12)


def test_real_sarcomas_against_a_threshold(real_data: Path):
    """Tumour masks of real patients, SUV above 4 as the prediction, with TLG and surfaces."""
    for folder in sorted((real_data / "sts-petct").glob("STS_*"))[:3]:
        suv, truth = (read_image(folder / f"PET_{name}.nii.gz") for name in ("image", "mask"))
        guess = suv.with_array(suv.array > 4)
        oracle, ml = Oracle(truth.array, guess.array), truth.voxel_volume_ml
        values = score_case(truth, guess, suv=suv, surface=True).values
        assert values["dice"] == 2 * oracle.shared / (oracle.true + oracle.guessed)
        assert (values["fpv_ml"], values["fnv_ml"]) == (oracle.false * ml, oracle.missed * ml)
        assert (values["lesion_tp"], values["lesion_fp"]) == (oracle.tp, oracle.fp)
        masks = [mask.array != 0 for mask in (truth, guess)]
        tlg = [suv.array[mask].mean(dtype=float) * ml * np.count_nonzero(mask) for mask in masks]
        assert [values["gt_tlg_g"], values["pred_tlg_g"]] == pytest.approx(tlg, rel=1e-9)
        theirs = percentile_hausdorff_distance(truth.array, guess.array, 0.95, voxelspacing=truth.spacing_zyx_mm)
        assert values["hd95_mm"] == pytest.approx(theirs, rel=1e-9)
