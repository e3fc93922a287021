"""Top-k AUROC against scikit-learn on the set that the paper defines, at its edges, and within its memory."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from sklearn.metrics import roc_auc_score

from autopet import topk_auroc as module
from autopet.errors import AutopetError
from autopet.topk_auroc import auroc, topk_auroc

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "topk_auroc.py"
FEW_LEVELS = st.integers(-3, 3).map(lambda level: level / 4)  # many ties
ANY = st.floats(-100, 100, width=32)
SCORES = st.one_of(FEW_LEVELS, ANY, st.sampled_from([-math.inf, math.inf]))
SIZES = st.integers(2, 60)
CHUNKS = st.sampled_from([1, 2, 7, 16, module.CHUNK])  # small ones: the cut moves many times


@st.composite
def scans(draw: st.DrawFn, values: st.SearchStrategy[float] = SCORES) -> tuple[np.ndarray, np.ndarray]:
    """Lesions and scores with a voxel of each kind at least, of every share of lesions."""
    size = draw(SIZES)
    scores = draw(numpy_strategies.arrays(draw(st.sampled_from([np.float32, np.float64])), size, elements=values))
    lesions = np.arange(size) < draw(st.integers(1, size - 1))
    return lesions[draw(st.permutations(range(size)))], scores


@st.composite
def separable(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scans in which lesions are where scores are high, but for up to one voxel."""
    _, scores = draw(scans())
    lesions = scores >= draw(st.sampled_from(scores.tolist()))
    if draw(st.booleans()):
        voxel = draw(st.integers(0, scores.size - 1))
        lesions[voxel] = ~lesions[voxel]
    return lesions, scores


def expected(lesions: np.ndarray, scores: np.ndarray) -> float:
    """Sort the background, take its end, ask scikit-learn."""
    background = np.sort(scores[~lesions])[::-1][: int(lesions.sum())]
    labels = np.repeat([1, 0], [int(lesions.sum()), background.size])
    chosen = np.concatenate([scores[lesions], background])
    ranks = np.unique(chosen, return_inverse=True)[1]  # it refuses infinite scores
    return float(roc_auc_score(labels, ranks))


def all_lesions_above_all_background(lesions: np.ndarray, scores: np.ndarray) -> bool:
    return all(hot > cold for hot, cold in itertools.product(scores[lesions], scores[~lesions]))


# All pairs


def test_auroc_counts_pairs():
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 1
    assert auroc(np.array([0.0]), np.array([1.0, 2.0])) == 0
    assert auroc(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == (0.5 + 0 + 1 + 1) / 4
    assert math.isnan(auroc(np.array([]), np.array([1.0])))
    assert math.isnan(auroc(np.array([1.0]), np.array([])))


def test_auroc_is_sklearn_s_and_leaves_its_arguments_as_they_are():
    rng = np.random.default_rng(0)
    for decimals in (1, 8):  # with and without ties
        positives, negatives = np.round(rng.normal(0.3, 1, 40), decimals), np.round(rng.normal(0, 1, 60), decimals)
        expected = roc_auc_score([1] * 40 + [0] * 60, np.concatenate([positives, negatives]))
        before = positives.copy(), negatives.copy()
        assert auroc(positives, negatives) == pytest.approx(expected, abs=1e-12)
        np.testing.assert_array_equal(positives, before[0])
        np.testing.assert_array_equal(negatives, before[1])


# Of the worst background


def test_pairs_counted_by_hand():
    lesions = np.array([True, False, False, True, False, False])
    scores = np.array([0.9, 0.3, 0.1, 0.3, 0.4, 0.0])
    # the worst background is 0.4 and 0.3; 0.9 wins twice, 0.3 loses once and ties once
    assert topk_auroc(lesions, scores) == 2.5 / 4


@settings(max_examples=150, deadline=None)
@given(scans(), CHUNKS)
def test_it_is_scikit_learns_auroc_of_the_selected_set(scan: tuple[np.ndarray, np.ndarray], chunk: int):
    with patch.object(module, "CHUNK", chunk):
        assert topk_auroc(*scan) == pytest.approx(expected(*scan), abs=1e-12)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.7])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("levels", [None, 50])
def test_volumes_of_many_chunks(share: float, order: str, levels: int | None):
    rng = np.random.default_rng(0)
    lesions = rng.random((40, 60, 110)) < share
    assert lesions.size > 4 * module.CHUNK
    scores = (rng.normal(size=lesions.shape) + lesions).astype(np.float32)
    if levels:
        scores = np.round(scores * levels) / levels
    if order != "random":
        scores = np.sort(scores, axis=None).reshape(lesions.shape)[:: 1 if order == "ascending" else -1]
    value = topk_auroc(lesions, scores)
    assert value == pytest.approx(expected(lesions, scores), abs=1e-12)
    assert value > 0 or (order != "random" and share < 0.01)  # few lesion voxels, none of them among the highest


def test_which_of_the_tied_background_voxels_are_taken_changes_nothing():
    lesions = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    scores = np.array([0.8, 0.5, 0.2, 0.7, 0.5, 0.5, 0.5, 0.5, 0.1])  # 0.7 and two of four at 0.5
    choices = [[3, *two] for two in itertools.combinations([4, 5, 6, 7], 2)]
    values = [float(roc_auc_score([1, 1, 1, 0, 0, 0], scores[[0, 1, 2, *choice]])) for choice in choices]
    assert topk_auroc(lesions, scores) == 4 / 9  # 0.8 beats three, 0.5 ties with two, 0.2 loses to all
    assert values == pytest.approx([4 / 9] * 6, abs=1e-12)


@settings(deadline=None)
@given(scans(FEW_LEVELS), st.randoms(use_true_random=False), CHUNKS)
def test_the_order_of_the_voxels_changes_nothing(scan: tuple[np.ndarray, np.ndarray], random, chunk: int):
    lesions, scores = scan
    order = list(range(lesions.size))
    random.shuffle(order)
    with patch.object(module, "CHUNK", chunk):
        assert topk_auroc(lesions[order], scores[order]) == topk_auroc(lesions, scores)


@settings(max_examples=150, deadline=None)
@given(st.one_of(separable(), scans()), CHUNKS)
def test_it_is_1_exactly_when_the_auroc_of_the_whole_scan_is(scan: tuple[np.ndarray, np.ndarray], chunk: int):
    with patch.object(module, "CHUNK", chunk):
        value = topk_auroc(*scan)
    if scan[0].any() and not scan[0].all():
        assert (value == 1.0) == all_lesions_above_all_background(*scan)
    else:
        assert math.isnan(value)


def test_a_single_tie_among_many_voxels_is_seen():
    count = 300_000
    lesions = np.arange(4 * count) < count
    scores = np.where(lesions, 0.75, 0.25).astype(np.float32)
    assert topk_auroc(lesions, scores) == 1.0
    scores[[0, -1]] = 0.5  # the lowest lesion voxel and the highest background voxel
    assert topk_auroc(lesions, scores) == 1 - 0.5 / count**2 < 1


def test_fewer_background_voxels_than_lesion_voxels_are_all_taken():
    lesions = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    assert topk_auroc(lesions, np.array([0.9, 0.8, 0.4, 0.1, 0.5, 0.2])) == 5 / 8
    assert topk_auroc(lesions, np.array([0.9, 0.8, 0.4, 0.2, 0.5, 0.2])) == 5.5 / 8


@pytest.mark.parametrize("lesion", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 2), (0, 3, 2)])
def test_scans_of_one_kind_of_voxel_have_no_value(lesion: bool, shape: tuple[int, int, int]):
    assert math.isnan(topk_auroc(np.full(shape, lesion), np.zeros(shape, np.float32)))


@pytest.mark.parametrize("lesions", [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
def test_a_score_that_is_no_number_is_an_error_in_every_scan(lesions: list[int]):
    with pytest.raises(AutopetError, match=r"expected a number .* found NaN; look at the network's output"):
        topk_auroc(np.array(lesions, dtype=bool), np.array([np.nan, 0.1, 0.2], dtype=np.float32))


def test_scores_of_another_shape_or_kind_are_errors():
    with pytest.raises(AutopetError, match=r"shape \(2, 3\) of the lesions, found scores of shape \(3, 2\)"):
        topk_auroc(np.ones((2, 3), bool), np.ones((3, 2)))
    with pytest.raises(AutopetError, match="real numbers, found complex128"):
        topk_auroc(np.ones(2, bool), np.ones(2, complex))


def scan_of(shape: tuple[int, ...], share: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    lesions = rng.random(shape) < share
    return lesions, (rng.normal(size=shape) + lesions).astype(np.float32)


LAYOUTS = {
    "as it is": lambda lesions, scores: (lesions, scores),
    "transposed": lambda lesions, scores: (lesions.T, scores.T),
    "mixed orders": lambda lesions, scores: (lesions, np.asfortranarray(scores)),
    "flipped": lambda lesions, scores: (lesions[::-1, :, ::-1], scores[::-1, :, ::-1]),
    "channel first": lambda lesions, scores: (lesions[None], scores[None]),
    "every second voxel twice": lambda lesions, scores: (np.repeat(lesions, 2, 2)[..., ::2], scores),
    "labels": lambda lesions, scores: (lesions.astype(np.uint8) * 7, scores),
    "big endian": lambda lesions, scores: (lesions, scores.astype(">f4")),
    "read only": lambda lesions, scores: (
        np.broadcast_to(lesions, lesions.shape),
        np.broadcast_to(scores, scores.shape),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_changes_the_value_or_is_copied(layout: str):
    plain = scan_of((100, 120, 160), 0.002)
    lesions, scores = LAYOUTS[layout](*plain)
    before = lesions.copy(), scores.copy()
    peak, value = traced(lesions, scores)
    assert value == pytest.approx(expected(*plain), abs=1e-12)
    assert peak < most_bytes(int(plain[0].sum())) < plain[1].nbytes / 2
    np.testing.assert_array_equal(lesions, before[0])
    np.testing.assert_array_equal(scores, before[1])


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("ascending", [False, True])
def test_memory_follows_the_lesion_voxels_not_the_volume(share: float, ascending: bool):
    lesions, scores = scan_of((100, 120, 160), share)
    if ascending:  # every voxel is among the highest so far
        scores = np.sort(scores, axis=None).reshape(scores.shape)
    assert traced(lesions, scores)[0] < most_bytes(int(lesions.sum()))


def traced(lesions: np.ndarray, scores: np.ndarray) -> tuple[int, float]:
    """Bytes at the highest, and the value."""
    tracemalloc.start()
    try:
        value = topk_auroc(lesions, scores)
        return tracemalloc.get_traced_memory()[1], value
    finally:
        tracemalloc.stop()


def most_bytes(count: int) -> int:
    """Three float32 per lesion voxel, and what chunks need: values, masks, places in the order."""
    return 12 * count + 40 * module.CHUNK


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int16, np.uint8, bool])
def test_scores_of_every_real_type(dtype: type):
    rng = np.random.default_rng(4)
    lesions = rng.random(5000) < 0.05
    scores = (rng.integers(0, 90, 5000) + 60 * lesions).astype(dtype)
    assert topk_auroc(lesions, scores) == pytest.approx(expected(lesions, scores.astype(float)), abs=1e-12)


# --- benchmark -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("topk_auroc_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_benchmark_runs_small(tmp_path: Path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--size", "96", "--repeat", "2", "--lesions", "3", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(out.read_text())
    assert json.loads(ended.stdout) == figures
    assert figures["shape"] == [96, 96, 96]
    assert 0 < figures["lesion_voxels"] < 0.02 * 96**3
    assert figures["value"]["ours"] == pytest.approx(figures["value"]["selected"], abs=1e-12)
    assert figures["value"]["ours"] < figures["value"]["whole"] < 1
    assert all(len(found) == 2 for found in figures["seconds"].values())
    assert figures["times_faster"]["whole"] > figures["times_faster"]["selected"]
    assert figures["extra_mb"]["ours"] < figures["extra_mb"]["selected"] < figures["extra_mb"]["whole"]


@pytest.mark.parametrize(
    ("value", "faster", "status"),
    [
        ({"ours": 0.5, "selected": 0.5}, 5.0, None),
        ({"ours": 0.5, "selected": 0.5}, 4.9, "4.9 times faster, expected at least 5"),
        ({"ours": 0.5, "selected": 0.5001}, 9.0, "the ways disagree: 0.5 (ours) and 0.5001 (selected)"),
        ({"ours": math.nan, "selected": 0.5}, 9.0, "the ways disagree: nan (ours) and 0.5 (selected)"),
    ],
)
def test_the_benchmark_ends_with_an_error_below_what_is_required(
    benchmark: ModuleType, value: dict[str, float], faster: float, status: str | None
):
    figures = {"value": value, "times_faster": {"selected": faster}}
    if status is None:
        benchmark.check(figures, least_times_faster=5)
        return
    with pytest.raises(SystemExit) as ended:
        benchmark.check(figures, least_times_faster=5)
    assert ended.value.code == status  # a text, so that Python prints it and exits with 1
