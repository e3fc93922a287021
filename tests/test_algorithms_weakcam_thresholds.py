"""The search on a cohort against applying Algorithm 1 to every slice at every point; which slices it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.slices import read_slices

torch = pytest.importorskip("torch")

from algorithms.weakcam import slices, thresholds  # noqa: E402
from algorithms.weakcam.cams import class_maps  # noqa: E402
from algorithms.weakcam.model import CAM_METHODS, PRESETS, Classifier, Settings, build_network  # noqa: E402
from algorithms.weakcam.search import READINGS, Choice, Grid, segment_slice  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    size=32,
    pixel_mm=4.0,
    widths=(4, 8),
    convolutions=(1, 1),
    pooled_blocks=(1,),
    class_threshold=0.0,
)


@pytest.fixture(scope="module")
def cached(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """case01 to case03, of which the last has no lesion."""
    return slices.cache(cohort[1:4], tmp_path_factory.mktemp("cached"), TINY)


@pytest.fixture(scope="module")
def network() -> Classifier:
    """Random weights, also of the linear layer: some slices of 0.5 and more, others below."""
    torch.manual_seed(1)
    made = build_network(TINY)
    with torch.no_grad():
        made.head.weight.mul_(50)
    return made.eval()


@pytest.fixture
def called_by_hand(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Probabilities of the slices of each case, one case after the other, instead of the network's."""
    said: dict[int, list[float]] = {}
    turn = iter(range(100))

    def probabilities(network, images, **_) -> Iterator[np.ndarray]:
        yield np.asarray(said[next(turn)], np.float32)

    monkeypatch.setattr(thresholds, "probabilities", probabilities)
    return said


def test_the_search_equals_algorithm_1_at_every_point(
    cached: dict[str, Path], network: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    grid = Grid(t_m=(0.2, 0.5, 0.8), q_m=(25.0, 40.0, 55.0))
    monkeypatch.setattr(thresholds, "Grid", lambda: grid)
    cases = [read_slices(folder) for folder in cached.values()]
    said = [np.concatenate([*slices.probabilities(network, c[0], settings=TINY, device="cpu")]) for c in cases]
    of_lesions = np.concatenate([values[labels] for values, (_, _, labels) in zip(said, cases, strict=True)])
    settings = replace(TINY, class_threshold=float(np.median(of_lesions)))  # half of the lesions are missed
    fitted = thresholds.fit_thresholds(network, cached, tmp_path, settings=settings, device="cpu")
    assert set(fitted.choices) == {*CAM_METHODS, "global"}
    rows = {(row["method"], row["reading"], row["t_m"], row["q_m"]): row for row in fitted.rows}
    for method in ("cam", "gradcam++"):
        for reading in READINGS:
            for t_m in grid.t_m:
                for q_m in grid.q_m:
                    values = {"t_m": t_m, "q_m": q_m, "reading": reading}
                    expected = _dice(cached, network, method, settings, **values)
                    row = rows[method, reading, f"{t_m:.4f}", f"{q_m:.4f}"]
                    assert (float(row["dice"]), float(row["pooled_dice"])) == pytest.approx(expected, abs=2e-6)
    assert len({row["dice"] for row in fitted.rows}) > 10  # Dice does differ over the grid


_MADE: dict[tuple[str, str], list] = {}


def _dice(cached, network, method: str, settings: Settings, **values) -> tuple[float, float]:
    """Mean 3D Dice of the cases with lesions, and pooled Dice, slice by slice."""
    per_case, hits, sizes = [], 0, 0
    for name, folder in cached.items():
        images, masks, _ = read_slices(folder)
        if (name, method) not in _MADE:
            x = slices.as_input(images, settings)
            with torch.no_grad():
                positive = torch.softmax(network(x), 1)[:, 1].numpy() >= settings.class_threshold
            _MADE[name, method] = [positive, class_maps(network, x, method=method, settings=settings)]
        positive, maps = _MADE[name, method]
        found = np.zeros(masks.shape, bool)
        for place in np.flatnonzero(positive):
            found[place] = segment_slice(maps[place], images[place, 1].astype(np.float32), **values)
        hit, size = int((found & (masks != 0)).sum()), int(found.sum() + (masks != 0).sum())
        hits, sizes = hits + hit, sizes + size
        if masks.any():
            per_case.append(2 * hit / size)
    return float(np.mean(per_case)), 2 * hits / sizes


def test_what_was_counted_is_not_counted_again(
    cached: dict[str, Path], network: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = thresholds.fit_thresholds(network, cached, tmp_path, settings=TINY, device="cpu")
    (tmp_path / "cam" / "case02.npy").unlink()
    made = []
    slice_maps = thresholds.slice_maps
    monkeypatch.setattr(
        thresholds, "slice_maps", lambda *a, **options: made.append(options["method"]) or slice_maps(*a, **options)
    )
    again = thresholds.fit_thresholds(network, cached, tmp_path, settings=TINY, device="cpu")
    assert again.rows == first.rows
    assert made == ["cam"] * 5  # 40 slices, 8 at a time


# Which slices


def _places(picked: thresholds.Picked, case: str) -> list[int]:
    return [each.place for each in picked.slices if each.case == case]


def test_only_slices_that_are_called_positive_are_searched(
    cached: dict[str, Path], network: Classifier, called_by_hand: dict[int, list[float]]
):
    masks = {name: read_slices(folder)[1] for name, folder in cached.items()}
    truth = {name: read_slices(folder)[2] for name, folder in cached.items()}
    for turn, name in enumerate(cached):  # every slice right but one of each kind, in the first case
        called_by_hand[turn] = np.where(truth[name], 0.7, 0.2).tolist()
    positive, negative = np.flatnonzero(truth["case01"]), np.flatnonzero(~truth["case01"])
    called_by_hand[0][positive[0]], called_by_hand[0][negative[0]] = 0.59, 0.6
    picked = thresholds.pick(network, cached, settings=replace(TINY, class_threshold=0.6), device="cpu")
    assert _places(picked, "case01") == sorted([*positive[1:], negative[0]])
    assert _places(picked, "case02") == np.flatnonzero(truth["case02"]).tolist()
    assert _places(picked, "case03") == []
    # the lesion of the slice that was missed counts
    assert picked.lesions == {name: int((mask != 0).sum()) for name, mask in masks.items()}
    count = sum(int(flags.sum()) for flags in truth.values())
    assert picked.sensitivity == pytest.approx((count - 1) / count)
    assert picked.specificity == pytest.approx((120 - count - 1) / (120 - count))
    assert picked.auroc == pytest.approx(1 - 1 / (count * (120 - count)))  # one pair of all is the wrong way round


def test_a_limit_draws_slices_evenly_and_forgets_the_others(
    cached: dict[str, Path], network: Classifier, called_by_hand: dict[int, list[float]]
):
    """Ten slices of each case are called negative. Of the 90 others 30 are drawn."""
    masks = {name: read_slices(folder)[1] for name, folder in cached.items()}
    for turn in range(3):
        called_by_hand[turn] = [0.1] * 10 + [0.9] * 30
    settings = replace(TINY, class_threshold=0.5, search_slices=30)
    picked = thresholds.pick(network, cached, settings=settings, device="cpu")
    assert len(picked.slices) == len(set(picked.slices)) == 30
    for name, mask in masks.items():
        places = _places(picked, name)
        assert places == sorted(places)
        assert min(places) >= 10
        assert 4 <= len(places) <= 16  # 10 are expected
        assert picked.lesions[name] == int((mask[[*range(10), *places]] != 0).sum())
    for turn in range(3, 6):
        called_by_hand[turn] = called_by_hand[0]
    assert thresholds.pick(network, cached, settings=settings, device="cpu").slices == picked.slices


@pytest.mark.parametrize("said", [0.1, 0.9])
def test_where_no_lesion_is_called_positive_slices_with_lesions_are_searched(
    said: float,
    cached: dict[str, Path],
    network: Classifier,
    called_by_hand: dict[int, list[float]],
    capsys: pytest.CaptureFixture,
):
    """Nothing at all is called positive; or one slice without a lesion."""
    for turn in range(3):
        called_by_hand[turn] = [0.1] * 40
    called_by_hand[2][3] = said  # the case without lesion
    picked = thresholds.pick(network, cached, settings=replace(TINY, class_threshold=0.5), device="cpu")
    for name, folder in cached.items():
        assert _places(picked, name) == np.flatnonzero(read_slices(folder)[2]).tolist()
        assert picked.lesions[name] == np.count_nonzero(read_slices(folder)[1])
    assert picked.sensitivity == 0.0
    assert "no slice that the classifier calls positive has a lesion" in " ".join(capsys.readouterr().err.split())


# The default


@pytest.mark.parametrize(
    ("reading", "dice", "asked", "expected"),
    [
        ("fraction", {"cam": 0.5, "scorecam": 0.6, "gradcam++": 0.9, "global": 0.9}, "", "scorecam"),
        ("fraction", {"cam": 0.6, "scorecam": 0.6}, "", "cam"),
        ("percentile", {"cam": 0.2, "scorecam": 0.1}, "", "cam"),
        ("fraction", {"cam": 0.5, "scorecam": 0.6}, "gradcam", "gradcam"),
    ],
)
def test_validation_chooses_between_cam_and_score_cam(
    reading: str,
    dice: dict[str, float],
    asked: str,
    expected: str,
    cached: dict[str, Path],
    network: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    methods = iter((*CAM_METHODS, "global"))
    other = ({*READINGS} - {reading}).pop()

    def choose(*_) -> dict[str, Choice]:
        value = dice.get(next(methods), 0.1)
        return {reading: Choice(0.5, 30.0, value, value), other: Choice(0.5, 30.0, 1 - value, 0.0)}

    monkeypatch.setattr(thresholds, "choose", choose)
    monkeypatch.setattr(thresholds, "slice_maps", lambda network, images, **_: np.ones((len(images), 2, 2)))
    settings = replace(TINY, reading=reading, cam=asked)
    fitted = thresholds.fit_thresholds(network, cached, tmp_path, settings=settings, device="cpu")
    assert fitted.cam == expected
    assert fitted.config()["thresholds"]["cam"][reading]["dice"] == dice["cam"]


def test_maps_by_name(cached: dict[str, Path], network: Classifier):
    images = read_slices(next(iter(cached.values())))[0][14:17].astype(np.float32)
    arguments = {"settings": TINY, "device": "cpu"}
    for method in CAM_METHODS:
        maps = thresholds.slice_maps(network, images, method=method, **arguments)
        np.testing.assert_array_equal(
            maps, class_maps(network, slices.as_input(images, TINY), method=method, settings=TINY)
        )
        assert maps.shape == (3, 16, 16)
    body = thresholds.slice_maps(network, images, method="global", **arguments)
    np.testing.assert_array_equal(body, images[:, 1] > 0.1)
    with pytest.raises(AutopetError, match="'eigencam' is unknown; use cam, gradcam"):
        thresholds.slice_maps(network, images, method="eigencam", **arguments)
