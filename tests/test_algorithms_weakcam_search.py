"""Algorithm 1 by hand, and its grid search against trying every point one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from algorithms.weakcam import search
from algorithms.weakcam.search import GLOBAL_GRID, Choice, Grid
from autopet.errors import AutopetError

SUV = np.array(
    [
        [9.0, 9.0, 1.0, 2.0],
        [9.0, 9.0, 3.0, 4.0],
        [0.0, 0.0, 5.0, 6.0],
        [0.0, 0.0, 7.0, 8.0],
    ],
    np.float32,
)
CAM = np.array([[0.1, 0.5], [0.25, 1.0]], np.float32)  # each value stands for 2x2 pixels


# A slice


def test_the_published_grid():
    grid = Grid()
    assert (len(grid.t_m), grid.t_m[0], grid.t_m[-1]) == (10, pytest.approx(0.1), pytest.approx(0.9))
    assert (len(grid.q_m), grid.q_m[0], grid.q_m[-1]) == (20, 20.0, 50.0)
    assert np.diff(grid.t_m) == pytest.approx(0.8 / 9)
    assert np.diff(grid.q_m) == pytest.approx(30 / 19)


def test_fraction_of_the_region_s_maximum_by_hand():
    """The region is the right half, its maximum 8: half of it is 4. The hotter left half is not in the region."""
    mask = search.segment_slice(CAM, SUV, t_m=0.5, q_m=50.0, reading="fraction")
    assert mask.dtype == bool
    assert mask.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_percentile_of_the_region_by_hand():
    """The region's SUVs are 1 to 8: the 25th percentile is 1 + 7 / 4 = 2.75."""
    mask = search.segment_slice(CAM, SUV, t_m=0.5, q_m=25.0, reading="percentile")
    assert mask.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_t_m_decides_before_the_map_is_made_larger():
    """Interpolated to 4x4, the map would reach 0.5 in other places than its own four values do."""
    one = search.segment_slice(CAM, np.ones((4, 4), np.float32), t_m=0.51, q_m=20.0, reading="fraction")
    assert one.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    exactly = search.segment_slice(CAM, np.ones((4, 4), np.float32), t_m=0.25, q_m=20.0, reading="fraction")
    assert exactly.sum() == 12  # all values >= t_m


@pytest.mark.parametrize("reading", search.READINGS)
def test_empty_regions_and_regions_without_uptake_have_no_lesion(reading: str):
    options = {"t_m": 0.5, "q_m": 20.0, "reading": reading}
    constant = np.zeros((2, 2), np.float32)  # what a constant map becomes
    assert not search.segment_slice(constant, SUV, **options).any()
    cold = np.zeros((4, 4), np.float32)
    assert not search.segment_slice(CAM, cold, **options).any()


def test_unusable_options_are_refused():
    with pytest.raises(AutopetError, match="fraction or percentile, found 'median'"):
        search.segment_slice(CAM, SUV, t_m=0.5, q_m=20.0, reading="median")
    for t_m in (0.0, 1.5):
        with pytest.raises(AutopetError, match="t_m must be above 0"):
            search.segment_slice(CAM, SUV, t_m=t_m, q_m=20.0, reading="fraction")
    with pytest.raises(AutopetError, match=r"q_m needs values above 0 and up to 100, found \(20.0, 101.0\)"):
        Grid(q_m=(20.0, 101.0))
    with pytest.raises(AutopetError, match="t_m needs values"):
        Grid(t_m=())


@pytest.mark.parametrize(("small", "large"), [((2, 3), (8, 6)), ((3, 4), (7, 10)), ((5, 5), (5, 5)), ((4, 4), (3, 2))])
def test_upscaling_is_torch_s_nearest_of_pixel_centres(small: tuple[int, int], large: tuple[int, int]):
    torch = pytest.importorskip("torch")
    values = np.arange(np.prod(small), dtype=np.float32).reshape(small)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=large, mode="nearest-exact")
    np.testing.assert_array_equal(search.upscale(values, large), expected[0, 0].numpy())


def test_the_body_is_what_the_global_threshold_looks_at():
    suv = np.array([[0.0, 0.05, 1.0], [2.0, 4.0, 10.0]], np.float32)
    cam = search.body_map(suv)
    assert cam.tolist() == [[0, 0, 1], [1, 1, 1]]
    mask = search.segment_slice(cam, suv, t_m=1.0, q_m=50.0, reading="percentile")
    assert mask.tolist() == [[False, False, False], [False, True, True]]  # the median of 1, 2, 4, 10 is 3
    mask = search.segment_slice(cam, suv, t_m=1.0, q_m=40.0, reading="fraction")
    assert mask.tolist() == [[False, False, False], [False, True, True]]  # 40 percent of 10


# The search


def _slices(count: int, *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        cam = rng.random((4, 4)).astype(np.float32)
        suv = rng.gamma(2.0, 1.5, (16, 16)).astype(np.float32)
        if index % 2:
            suv = np.round(suv)  # many equal pixels, some of them 0
        lesion = (rng.random((16, 16)) < 0.2) & (suv > 2)
        made.append((cam, suv, lesion))
    return made


@pytest.mark.parametrize("grid", [Grid(), Grid(t_m=(0.25, 0.5, 1.0), q_m=(1.0, 33.3, 50.0, 100.0))])
def test_counts_equal_those_of_trying_every_point(grid: Grid):
    slices = _slices(4)
    slices.append((np.zeros((4, 4), np.float32), slices[0][1], slices[0][2]))  # a constant map
    slices.append((slices[0][0], np.zeros((16, 16), np.float32), slices[0][2]))  # no uptake
    slices.append((np.full((4, 4), np.float32(grid.t_m[1])), *slices[0][1:]))  # a map that is t_m, but for rounding
    for cam, suv, lesion in slices:
        found = search.count_slice(cam, suv, lesion, grid)
        for index, reading in enumerate(search.READINGS):
            for row, t_m in enumerate(grid.t_m):
                for column, q_m in enumerate(grid.q_m):
                    mask = search.segment_slice(cam, suv, t_m=t_m, q_m=q_m, reading=reading)
                    assert found[search.PREDICTED, index, row, column] == mask.sum()
                    assert found[search.HITS, index, row, column] == (mask & lesion).sum()


def test_the_search_finds_the_best_point_of_a_brute_force_search():
    cases = {"a": _slices(3, seed=1), "b": _slices(2, seed=2), "healthy": _slices(1, seed=3)}
    cases["healthy"] = [(cam, suv, np.zeros_like(lesion)) for cam, suv, lesion in cases["healthy"]]
    missed = 7  # lesion pixels of case b in a slice that the classifier called negative
    grid = Grid(t_m=(0.2, 0.5, 0.8), q_m=(20.0, 40.0, 60.0, 80.0))
    counts = {name: sum(search.count_slice(*each, grid) for each in slices) for name, slices in cases.items()}
    lesions = {name: sum(int(lesion.sum()) for _, _, lesion in slices) for name, slices in cases.items()}
    lesions["b"] += missed
    best = search.choose(*search.dice_grid(counts, lesions), grid)
    for reading in search.READINGS:
        scores = {
            (t_m, q_m): _brute_force(cases, missed, t_m=t_m, q_m=q_m, reading=reading)
            for t_m in grid.t_m
            for q_m in grid.q_m
        }
        place = max(scores, key=lambda point: scores[point][0])
        assert (best[reading].t_m, best[reading].q_m) == place
        assert (best[reading].dice, best[reading].pooled_dice) == pytest.approx(scores[place])


def _brute_force(cases: dict, missed: int, *, t_m: float, q_m: float, reading: str) -> tuple[float, float]:
    dice, both, sizes = [], 0, 0
    for name, slices in cases.items():
        masks = np.stack([search.segment_slice(c, s, t_m=t_m, q_m=q_m, reading=reading) for c, s, _ in slices])
        truth = np.stack([lesion for _, _, lesion in slices])
        hit, size = int((masks & truth).sum()), int(masks.sum() + truth.sum()) + (missed if name == "b" else 0)
        both, sizes = both + hit, sizes + size
        if truth.any():
            dice.append(2 * hit / size)
    return float(np.mean(dice)), 2 * both / sizes


def test_dice_by_hand_and_its_table():
    """One case of 4 lesion pixels: 2 marked, both right, at the first point; 6 marked, 3 of them right, at the second.

    The case without lesions has 2 marked at the first point only.
    """
    grid = Grid(t_m=(0.5,), q_m=(20.0, 50.0))
    counts = {"a": np.zeros((2, 2, 1, 2), np.int64), "healthy": np.zeros((2, 2, 1, 2), np.int64)}
    counts["a"][search.PREDICTED, :, 0] = [2, 6]
    counts["a"][search.HITS, :, 0] = [2, 3]
    counts["healthy"][search.PREDICTED, :, 0, 0] = 2
    mean, pooled = search.dice_grid(counts, {"a": 4, "healthy": 0})
    assert mean[0, 0] == pytest.approx([2 * 2 / 6, 2 * 3 / 10])
    assert pooled[0, 0] == pytest.approx([2 * 2 / 8, 2 * 3 / 10])
    best = search.choose(mean, pooled, grid)
    assert best["fraction"] == best["percentile"] == Choice(0.5, 20.0, pytest.approx(2 / 3), 0.5)
    rows = search.table("cam", mean, pooled, grid)
    assert [(row["reading"], row["q_m"], row["dice"]) for row in rows] == [
        ("fraction", "20.0000", "0.666667"),
        ("fraction", "50.0000", "0.600000"),
        ("percentile", "20.0000", "0.666667"),
        ("percentile", "50.0000", "0.600000"),
    ]


def test_of_equal_points_the_lowest_is_chosen():
    grid = Grid(t_m=(0.2, 0.4), q_m=(30.0, 40.0))
    mean = np.array([[[0.1, 0.3], [0.3, 0.3]], [[0.0, 0.0], [0.0, 0.0]]])
    best = search.choose(mean, mean, grid)
    assert (best["fraction"].t_m, best["fraction"].q_m) == (0.2, 40.0)
    assert (best["percentile"].t_m, best["percentile"].q_m) == (0.2, 30.0)


def test_without_lesions_nothing_can_be_chosen():
    counts = {"healthy": search.count_slice(CAM, SUV, np.zeros((4, 4)), GLOBAL_GRID)}
    with pytest.raises(AutopetError, match="hold out more patients"):
        search.dice_grid(counts, {"healthy": 0})


def test_the_search_sorts_a_slice_once(monkeypatch: pytest.MonkeyPatch):
    """One sort for 2 x 10 x 20 points."""
    calls = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda *args, **kwargs: calls.append(1) or argsort(*args, **kwargs))
    monkeypatch.setattr(np, "sort", lambda *_, **__: pytest.fail("sorted again"))
    search.count_slice(CAM, SUV, SUV > 3, Grid())
    assert len(calls) == 1
