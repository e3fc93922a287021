"""The container's side: Algorithm 1 slice by slice, options of a trained model, and prediction under a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from autopet.checkpoint import CONFIG, publish_model, read_config, save_weights
from autopet.container import Runner
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from autopet.volume import Volume, resample

torch = pytest.importorskip("torch")

from algorithms.weakcam import predict, search, slices  # noqa: E402
from algorithms.weakcam.cams import class_maps  # noqa: E402
from algorithms.weakcam.model import CAM_METHODS, METHOD, PRESETS, WEIGHTS, build_network  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["demo"],
    size=32,
    pixel_mm=4.0,
    widths=(4, 8),
    convolutions=(1, 1),
    pooled_blocks=(1,),
)
THRESHOLDS = {
    method: {
        "fraction": {"t_m": 0.3 + 0.1 * number, "q_m": 30.0 + number},
        "percentile": {"t_m": 0.2 + 0.1 * number, "q_m": 60.0 + number},
    }
    for number, method in enumerate(CAM_METHODS)
} | {"global": {"fraction": {"t_m": 1.0, "q_m": 41.0}, "percentile": {"t_m": 1.0, "q_m": 97.0}}}


@pytest.fixture(scope="module")
def scan() -> Inputs:
    """A body of 28 pixels of 4 mm in the middle of 32: the slices that the classifier sees are the PET's own."""
    rng = np.random.default_rng(0)
    suv = np.zeros((12, 32, 32), np.float32)
    suv[:, 2:30, 2:30] = rng.uniform(0.5, 1.5, (12, 28, 28))
    for z, y, x in ((3, 8, 10), (4, 9, 10), (8, 20, 20)):
        suv[z, y : y + 5, x : x + 4] = rng.uniform(5, 9, (5, 4))
    ct = np.where(suv > 0, 40, -1000).astype(np.int16)
    place = {"spacing_mm": (4.0, 4.0, 5.0), "origin_mm": (-60.0, -50.0, -400.0)}
    return Inputs({PET.slug: Volume(suv, **place), CT.slug: Volume(ct, **place)}, "case")


@pytest.fixture(scope="module")
def folder(scan: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, of a class threshold that half of the scan's slices reach."""
    torch.manual_seed(3)
    network = build_network(TINY).eval()
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(2, 8))
    images, _ = slices.cut({"CT": scan[CT.slug], "PET": scan[PET.slug]}, TINY)
    said = slices.lesion_probability(network, images, settings=TINY, device="cpu")
    middle = np.sort(said)[5:7]
    assert middle[0] < middle[1]

    def fill(part: Path) -> dict:
        save_weights(part / WEIGHTS, network.state_dict())
        return {
            "method": METHOD,
            "settings": asdict(TINY),
            "channels": ["CT", "PET"],
            "cam": "scorecam",
            "reading": "fraction",
            "class_threshold": float(middle.mean()),
            "thresholds": THRESHOLDS,
        }

    return publish_model(tmp_path_factory.mktemp("weakcam") / "model", fill)


@pytest.fixture(scope="module")
def model(folder: Path) -> predict.Model:
    return predict.load(folder, "cpu")


# Algorithm 1


def test_the_scan_s_slices_are_the_pet_s(scan: Inputs):
    images, grid = slices.cut({"CT": scan[CT.slug], "PET": scan[PET.slug]}, TINY)
    assert scan[PET.slug].same_grid(grid)
    np.testing.assert_allclose(images[:, slices.PET], scan[PET.slug].array, rtol=1e-5)


@pytest.mark.parametrize("reading", search.READINGS)
@pytest.mark.parametrize("method", [*CAM_METHODS, "global"])
def test_prediction_is_algorithm_1_slice_by_slice(model: predict.Model, scan: Inputs, method: str, reading: str):
    run = model.with_options(cam=method, reading=reading)
    outputs = predict.predict(run, scan, Deadline())
    suv = scan[PET.slug].array
    expected = np.zeros(suv.shape, bool)
    values = THRESHOLDS[method][reading]
    for place in range(len(suv)):
        image = np.stack([scan[CT.slug].array[place], suv[place]]).astype(np.float32)[None]
        x = torch.from_numpy((image - [[[-200.0]], [[0.0]]]) / [[[500.0]], [[15.0]]]).clamp(0, 1).float()
        with torch.no_grad():
            positive = float(torch.softmax(model.network(x), 1)[0, 1]) >= model.class_threshold
        if not positive:
            continue
        if method == "global":  # every voxel of the body
            inside = suv[place][suv[place] > 0.1]
            lowest = np.percentile(inside, 97.0) if reading == "percentile" else 0.41 * inside.max()
            expected[place] = suv[place] >= lowest
            continue
        cam = class_maps(model.network, x, method=method, settings=TINY)[0]
        expected[place] = search.segment_slice(cam, suv[place], reading=reading, **values)
    mask = outputs[LESIONS.slug]
    assert mask.same_grid(scan[PET.slug])
    assert mask.array.dtype == np.uint8
    np.testing.assert_array_equal(mask.array, expected)
    assert expected.any()
    assert outputs[DATA_CENTRIC.slug] is False


def test_the_preset_s_ranges_are_those_of_the_test_above():
    assert (TINY.ct_range_hu, TINY.pet_range_suv) == ((-200.0, 300.0), (0.0, 15.0))


def test_grad_cam_s_mask_is_cam_s_where_their_thresholds_are_the_same(model: predict.Model, scan: Inputs):
    """With global average pooling and one linear layer both maps are the same from 0 to 1."""
    same = replace(model, thresholds={**THRESHOLDS, "gradcam": THRESHOLDS["cam"]})
    masks = [
        predict.predict(same.with_options(cam=method), scan, Deadline())[LESIONS.slug].array
        for method in ("cam", "gradcam")
    ]
    np.testing.assert_array_equal(*masks)


def test_the_mask_has_the_pet_s_resolution():
    """Pixels of 4 mm ask for an SUV; voxels of 2 mm answer, each for itself."""
    grid = Volume(np.zeros((2, 2, 2), np.float32), (4.0, 4.0, 3.0))
    lowest = np.full((2, 2, 2), np.inf, np.float32)
    lowest[1, 0, 1] = 3.0
    rng = np.random.default_rng(0)
    pet = Volume(rng.uniform(0, 6, (2, 4, 4)).astype(np.float32), (2.0, 2.0, 3.0), (-1.0, -1.0, 0.0))
    expected = np.zeros((2, 4, 4), bool)
    expected[1, :2, 2:] = pet.array[1, :2, 2:] >= 3
    found = predict.to_mask(lowest, grid, pet)
    assert found.same_grid(pet)
    np.testing.assert_array_equal(found.array, expected)
    assert 0 < expected.sum() < 4
    assert not predict.to_mask(np.full((2, 2, 2), np.inf, np.float32), grid, pet).array.any()


def test_air_in_a_region_without_uptake_is_no_lesion():
    cold = Volume(np.zeros((1, 4, 4), np.float32))
    lowest = search.lowest_suv(np.ones((2, 2)), cold.array[0], t_m=0.5, q_m=20.0, reading="fraction")
    assert not predict.to_mask(lowest[None].astype(np.float32), cold, cold).array.any()


def test_on_a_real_patient_perfect_maps_find_the_tumour(real_data: Path):
    """Maps that are 1 wherever a place of 32 x 32 holds tumour, and a real PET: what is left is geometry and uptake."""
    folder = sorted((real_data / "sts-petct").glob("STS_*"))[0]
    pet, ct, truth = (read_image(folder / f"{name}.nii.gz") for name in ("PET_image", "CT_image", "PET_mask"))
    paper = PRESETS["paper"]
    images, grid = slices.cut({"CT": ct, "PET": pet}, paper)
    tumour = resample(truth.with_array((truth.array != 0).astype(np.uint8)), grid, nearest=True).array
    maps = tumour.reshape(len(tumour), 32, 8, 32, 8).max(axis=(2, 4)).astype(np.float32)
    lowest = np.stack(
        [
            search.lowest_suv(cam, image[slices.PET], t_m=0.5, q_m=31.0, reading="fraction")
            for cam, image in zip(maps, images, strict=True)
        ]
    ).astype(np.float32)
    mask = predict.to_mask(lowest, grid, pet)
    assert mask.same_grid(truth)
    both, sizes = (mask.array & (truth.array != 0)).sum(), mask.array.sum() + (truth.array != 0).sum()
    assert 2 * both / sizes > 0.6


def test_every_slice_s_probability_is_in_the_journal(model: predict.Model, scan: Inputs):
    deadline = Deadline()
    mask = predict.predict(model, scan, deadline)[LESIONS.slug].array
    note = deadline.journal.notes["slices"]
    images, _ = slices.cut({"CT": scan[CT.slug], "PET": scan[PET.slug]}, TINY)
    said = slices.lesion_probability(model.network, images, settings=TINY, device="cpu")
    assert note["probability"] == pytest.approx(said, abs=6e-5)
    assert note["positive"] == np.flatnonzero(said >= model.class_threshold).tolist()
    assert len(note["positive"]) == 6
    assert (note["method"], note["t_m"], note["q_m"]) == ("scorecam", pytest.approx(0.6), 33.0)
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) <= set(note["positive"])
    assert deadline.journal.dropped == []
    assert {"slices", "classify", "maps", "export"} <= set(deadline.journal.stages)


def test_maps_for_pictures_lie_on_the_pet(model: predict.Model, scan: Inputs):
    deadline = Deadline()
    predict.predict(model, scan, deadline)
    positive = deadline.journal.notes["slices"]["positive"]
    images, _ = slices.cut({"CT": scan[CT.slug], "PET": scan[PET.slug]}, TINY)
    found = predict.map_volumes(model, scan)
    assert tuple(found) == CAM_METHODS
    for method, volume in found.items():
        assert volume.same_grid(scan[PET.slug])
        assert set(np.flatnonzero(volume.array.any(axis=(1, 2)))) <= set(positive)
        maps = class_maps(model.network, slices.as_input(images[positive], TINY), method=method, settings=TINY)
        np.testing.assert_allclose(volume.array[positive], maps.repeat(2, axis=1).repeat(2, axis=2), atol=1e-5)
    assert found["cam"].array.max() == 1.0


def test_without_a_positive_slice_the_mask_is_empty(model: predict.Model, scan: Inputs):
    deadline = Deadline()
    outputs = predict.predict(model.with_options(class_threshold=1.0), scan, deadline)
    assert not outputs[LESIONS.slug].array.any()
    assert deadline.journal.notes["slices"]["positive"] == []


def test_it_runs_as_a_container(model: predict.Model, folder: Path, input_folder: Path, tmp_path: Path):
    """case of the conftest: 40 slices of 44 x 42 pixels, whose grid is not the slices'."""
    Runner(predict, folder, input_folder, tmp_path / "out", "cpu").run()
    pet = read_image(input_folder / "images/pet/pet_name.mha")
    mask = read_image(tmp_path / "out" / LESIONS.relative_path / "ct_name.mha")
    assert mask.same_grid(pet)
    assert set(np.unique(mask.array)) <= {0, 1}
    assert (pet.array[mask.array == 1] > 0).all()


# Options of a trained model


def test_options_are_kept_in_the_model_folder(folder: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    before = (copy / WEIGHTS).read_bytes()
    chosen = predict.set_options(copy, ["cam=gradcam++", "reading=percentile", "score_cam_top_channels=2"])
    assert chosen["cam"] == "gradcam++"
    model = predict.load(copy, "cpu")
    assert (model.cam, model.reading, model.settings.score_cam_top_channels) == ("gradcam++", "percentile", 2)
    assert model.values(model.cam) == THRESHOLDS["gradcam++"]["percentile"]
    assert (copy / WEIGHTS).read_bytes() == before
    old, new = read_config(folder, method=METHOD), read_config(copy, method=METHOD)  # checks the sums
    assert old["class_threshold"] == new["class_threshold"]
    assert old["thresholds"] == new["thresholds"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cam=eigencam", "cam 'eigencam' is unknown"),
        ("cam=", "cam needs a method's name"),
        ("reading=median", "reading 'median' is unknown"),
        ("class_threshold=2", "class_threshold is a probability"),
        ("score_cam_top_channels=2.5", "score_cam_top_channels must be a whole number"),
        ("epochs=3", "unknown option epochs; known are cam, reading"),
    ],
)
def test_options_that_cannot_be_are_refused(folder: Path, text: str, said: str):
    before = (folder / CONFIG).read_bytes()
    with pytest.raises(AutopetError, match=said):
        predict.set_options(folder, [text])
    assert (folder / CONFIG).read_bytes() == before


def test_a_model_run_another_way_is_another_object(model: predict.Model):
    other = model.with_options(score_cam_top_channels=3, class_threshold=0.9)
    assert (other.cam, other.class_threshold, other.settings.score_cam_top_channels) == ("scorecam", 0.9, 3)
    assert other.network is model.network
    assert model.settings.score_cam_top_channels == 0
    with pytest.raises(AutopetError, match="unknown option epochs"):
        model.with_options(epochs=3)
    with pytest.raises(AutopetError, match="no t_m and q_m for cam and the reading fraction"):
        replace(model, thresholds={}).with_options(cam="cam")


@pytest.mark.parametrize("key", ["cam", "reading", "class_threshold", "thresholds"])
def test_a_model_folder_without_thresholds_is_refused(folder: Path, tmp_path: Path, key: str):
    config = {name: value for name, value in read_config(folder, method=METHOD).items() if name != key}

    def fill(part: Path) -> dict:
        (part / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
        return config

    broken = publish_model(tmp_path / "model", fill)
    with pytest.raises(AutopetError, match=f"'{key}'.*train or copy the model again"):
        predict.load(broken, "cpu")
    with pytest.raises(AutopetError, match=f"lacks {key}; train or copy the model again"):
        predict.set_options(broken, ["cam=cam"])


# Under a clock


@dataclass
class Clock:
    """Seconds that pass only where the test says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


SAID = np.array([0.9, 0.1, 0.6, 0.8, 0.2, 0.7, 0.95, 0.3, 0.55, 0.05, 0.85, 0.65])  # of the scan's twelve slices
CERTAIN = [6, 0, 10, 3, 5, 11, 2, 8]  # 0.5 and more, the most certain first
COST_S = {"scorecam": 9.0, "cam": 1.0, "gradcam": 3.0, "gradcam++": 3.0, "global": 0.0}  # of a slice


@pytest.fixture
def timed(model: predict.Model, scan: Inputs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
    """Runs the scan with a fake network: classifying a slice takes 1 s, a map what COST_S says."""
    suv = scan[PET.slug].array
    clock = Clock()

    def place_of(image: np.ndarray) -> int:
        (place,) = [z for z in range(len(suv)) if np.allclose(image[slices.PET], suv[z], rtol=1e-4)]
        return place

    def lesion_probability(network, images, **_) -> np.ndarray:
        clock.now_s += 1.0 * len(images)
        return SAID[[place_of(image) for image in images]]

    made: list[tuple[str, int]] = []

    def slice_maps(network, images, *, method, settings, **_) -> np.ndarray:
        share = (1 + settings.score_cam_top_channels) / 9 if settings.score_cam_top_channels else 1.0
        clock.now_s += COST_S[method] * share * len(images)
        made.extend((method, place_of(image)) for image in images)
        return np.ones((len(images), 4, 4), np.float32)

    monkeypatch.setattr(predict, "lesion_probability", lesion_probability)
    monkeypatch.setattr(predict, "slice_maps", slice_maps)

    def run(limit_s: float, cam: str = "scorecam", spent_s: float = 0.0) -> tuple:
        clock.now_s = spent_s
        made.clear()
        deadline = Deadline(limit_s, clock=clock, started_s=0.0)
        mask = predict.predict(model.with_options(cam=cam, class_threshold=0.5), scan, deadline)[LESIONS.slug]
        assert mask.same_grid(scan[PET.slug])
        return list(made), deadline, mask.array

    return run


def test_with_time_enough_all_positive_slices_are_segmented_the_most_certain_first(timed: Callable[..., tuple]):
    made, deadline, mask = timed(1000.0)
    assert made == [("scorecam", place) for place in CERTAIN]
    assert deadline.journal.dropped == []
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == set(CERTAIN)
    assert deadline.journal.notes["slices"]["positive"] == sorted(CERTAIN)


def test_late_slices_get_the_map_that_costs_one_pass(timed: Callable[..., tuple]):
    """Of 72 s the classifier takes 12; all eight slices by Score-CAM would take 72 more."""
    made, deadline, mask = timed(72.0)
    methods = [method for method, _ in made]
    late = methods.count("cam")
    assert methods == ["scorecam"] * (8 - late) + ["cam"] * late
    assert 0 < late < 8
    assert [place for _, place in made] == CERTAIN
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == set(CERTAIN)
    (said,) = deadline.journal.dropped
    listed = ", ".join(map(str, sorted(CERTAIN[8 - late :])))
    assert said == f"scorecam for {late} of 8 positive slices, for want of time; cam instead: {listed}"


def test_score_cam_is_tried_out_before_it_is_given_up(timed: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch):
    """Nine passes of a second each for a slice, by count; they take a quarter of that, as a trial of three shows."""
    monkeypatch.setitem(COST_S, "scorecam", 9 / 4)
    by_count, *_ = timed(30.0)
    assert {method for method, _ in by_count} == {"cam"}
    monkeypatch.setattr(predict, "TRIAL_CHANNELS", 2)
    tried, deadline, mask = timed(30.0)
    assert tried[0] == ("scorecam", CERTAIN[0])  # the trial
    assert tried[1] == ("scorecam", CERTAIN[0])
    assert [place for _, place in tried[1:]] == CERTAIN  # some of them by cam
    assert [method for method, _ in tried].count("scorecam") == 1 + 3
    assert deadline.elapsed_s <= 0.95 * 30
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == set(CERTAIN)
    in_no_time, *_ = timed(15.0)  # 2 s are left after the classifier: not even a trial fits
    assert "scorecam" not in {method for method, _ in in_no_time}
    unlimited, *_ = timed(float("inf"))
    assert len(unlimited) == 8


def test_slices_that_take_longer_than_the_first_do_not_break_the_limit(
    timed: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
):
    """Score-CAM costs what the masks let through: a slice of 2 s, then slices of 6 s. The clock is asked in time."""
    before = predict.slice_maps

    def slice_maps(network, images, **options):
        maps = before(network, images[:1], **options)
        monkeypatch.setitem(COST_S, "scorecam", 6.0)
        rest = [before(network, images[place : place + 1], **options) for place in range(1, len(images))]
        return np.concatenate([maps, *rest])

    monkeypatch.setattr(predict, "slice_maps", slice_maps)
    monkeypatch.setattr(predict, "passes", lambda method, _: {"scorecam": 2.0, "cam": 1.0}[method])
    counts = []
    for limit_s in range(24, 100, 4):
        monkeypatch.setitem(COST_S, "scorecam", 2.0)
        made, deadline, mask = timed(float(limit_s))
        assert deadline.elapsed_s <= limit_s
        assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == set(CERTAIN)
        counts.append([method for method, _ in made].count("scorecam"))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 8)


def test_slices_without_any_map_are_told(timed: Callable[..., tuple]):
    made, deadline, mask = timed(20.0, cam="cam")
    done = [place for _, place in made]
    assert 0 < len(done) < 8
    assert done == CERTAIN[: len(done)]
    lost = sorted(CERTAIN[len(done) :])
    assert deadline.journal.dropped == [
        f"{len(lost)} of 8 positive slices, for want of time: {', '.join(map(str, lost))}"
    ]
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == set(done)


def test_slices_that_are_not_classified_are_told_the_coldest_ones(timed: Callable[..., tuple], scan: Inputs):
    _, deadline, _ = timed(8.0)
    said = deadline.journal.notes["slices"]["probability"]
    unseen = [place for place, value in enumerate(said) if value is None]
    assert 0 < len(unseen) < 12
    order = np.argsort(-scan[PET.slug].array.max(axis=(1, 2)))
    assert sorted(order[-len(unseen) :]) == unseen
    listed = ", ".join(map(str, unseen))
    expected = f"the classification of {len(unseen)} of 12 slices, for want of time: {listed}"
    assert deadline.journal.dropped[0] == expected


@pytest.mark.parametrize("cam", ["scorecam", "cam", "gradcam++", "global"])
def test_the_mask_is_in_time_whatever_the_limit(timed: Callable[..., tuple], cam: str):
    """Limits from 2 s on: the first slice's second must be spent before anything is known of the network."""
    counts = []
    for limit_s in [*np.arange(2.0, 60.0, 4.3), 118.0]:
        made, deadline, mask = timed(float(limit_s), cam=cam)
        assert deadline.elapsed_s <= 0.95 * limit_s
        assert set(np.flatnonzero(mask.any(axis=(1, 2)))) == {place for _, place in made}
        counts.append(len(made))
    assert counts[-1] == 8
    assert counts[0] == 0 or cam == "global"


def test_a_limit_that_has_passed_gives_an_empty_mask_at_once(timed: Callable[..., tuple]):
    made, deadline, mask = timed(10.0, spent_s=11.0)
    assert made == []
    assert not mask.any()
    assert deadline.elapsed_s == 11.0
    assert "the classification of 12 of 12 slices" in deadline.journal.dropped[0]


def test_passes_count_the_channels_of_the_block():
    paper = PRESETS["paper"]
    assert predict.passes("scorecam", paper) == 513
    assert predict.passes("scorecam", replace(paper, score_cam_top_channels=32)) == 33
    assert predict.passes("scorecam", replace(paper, cam_block=3)) == 257
    assert (predict.passes("cam", paper), predict.passes("gradcam", paper), predict.passes("global", paper)) == (
        1,
        3,
        0,
    )
