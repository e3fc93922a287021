"""Axial slices: their grid by hand and through the patient's coordinates, the cache, batches, deformations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume, resample

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from autopet.slice_changes import Augmentation, Change, apply_change, augment, draw_change  # noqa: E402
from autopet.slices import (  # noqa: E402
    IMAGE,
    Slices,
    cache_slices,
    lesion_weight,
    normalise,
    read_labels,
    read_slices,
    slice_grid,
    slice_images,
    slice_labels,
    slices_to_mask,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TURNED = (0, 0, 1, -1, 0, 0, 0, 1, 0)  # rows run to the front, columns upwards, slices to the left
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, -1)
OBLIQUE = (math.cos(0.3), -math.sin(0.3), 0, math.sin(0.3), math.cos(0.3), 0, 0, 0, 1)
RANGES = ((-100.0, 250.0), (0.0, 20.0))


def body_in_air() -> Volume:
    """4 slices of 20 rows x 30 columns, 4 mm x 2 mm x 5 mm; the body is rows 4 to 11, columns 10 to 19."""
    suv = np.zeros((4, 20, 30), np.float32)
    suv[:, 4:12, 10:20] = 1.0
    return Volume(suv, (2.0, 4.0, 5.0), (10.0, -20.0, 100.0))


# The grid


def test_slices_lie_around_the_body_by_hand():
    """The body's middle is column 14.5, x = 10 + 29 = 39 mm, and row 7.5, y = -20 + 30 = 10 mm."""
    grid = slice_grid(body_in_air(), size=16, pixel_mm=4.0)
    assert grid.shape == (4, 16, 16)
    assert grid.spacing_mm == (4.0, 4.0, 5.0)
    assert grid.origin_mm == pytest.approx((39 - 7.5 * 4, 10 - 7.5 * 4, 100))
    assert grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_a_body_that_does_not_fit_gets_larger_pixels():
    """32 mm from front to back in the 12 pixels that the rim of 2 leaves of 16: 8 / 3 mm instead of 2 mm."""
    pet = body_in_air()
    grid = slice_grid(pet, size=16, pixel_mm=2.0)
    assert grid.spacing_mm == pytest.approx((32 / 12, 32 / 12, 5.0))
    seen = slice_images({"CT": pet, "PET": pet}, grid)[:, 1]
    assert not seen[:, :, 0].any()
    assert not seen[:, 0].any()
    assert float(seen.sum()) * (32 / 12) ** 2 == pytest.approx(8 * 10 * 4 * 4 * 2, rel=0.1)  # mm2 of body


def test_noise_in_the_air_does_not_move_the_window():
    quiet = Volume(np.zeros((20, 40, 40), np.float32), (4.0, 4.0, 5.0))
    quiet.array[:, 10:20, 12:22] = 1.0  # 2000 voxels
    noisy = quiet.with_array(quiet.array.copy())
    noisy.array[0, 0, 0] = noisy.array[3, 39, 39] = 0.5
    expected = slice_grid(quiet, size=16, pixel_mm=4.0)
    assert expected.origin_mm == pytest.approx((16.5 * 4 - 30, 14.5 * 4 - 30, 0))
    assert slice_grid(noisy, size=16, pixel_mm=4.0).same_grid(expected)


def test_a_scan_without_body_is_seen_around_its_middle():
    empty = Volume(np.zeros((2, 8, 10), np.float32), (4.0, 4.0, 5.0), (100.0, 200.0, 300.0))
    grid = slice_grid(empty, size=16, pixel_mm=4.0)
    assert grid.origin_mm == pytest.approx((100 + 4.5 * 4 - 30, 200 + 3.5 * 4 - 30, 300))


@pytest.mark.parametrize(
    ("slice_mm", "count", "step_mm", "first_mm"),
    [
        (0.0, 6, 3.0, 50.0),
        (3.05, 6, 3.0, 50.0),  # within 2 %: the scan's own
        (6.0, 3, 6.0, 51.5),  # pairs
        (2.0, 9, 2.0, 49.5),
        (4.0, 5, 4.0, 49.5),  # 18 mm: 4.5 slices, so that 1 mm is outside at either end
    ],
)
def test_distance_of_slices_by_hand(slice_mm: float, count: int, step_mm: float, first_mm: float):
    pet = Volume(np.ones((6, 4, 4), np.float32), (4.0, 4.0, 3.0), (0.0, 0.0, 50.0))
    grid = slice_grid(pet, size=16, pixel_mm=4.0, slice_mm=slice_mm)
    assert (grid.shape[0], grid.spacing_mm[2]) == (count, step_mm)
    assert grid.origin_mm[2] == pytest.approx(first_mm)


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), TURNED, FLIPPED, OBLIQUE])
def test_every_pixel_shows_its_place_in_the_patient(direction: tuple[float, ...]):
    """Linear interpolation of an intensity that is linear in the patient's millimetres is exact."""
    blank = Volume(np.zeros((14, 15, 16), np.float32), (3.0, 4.0, 6.0), (-20.0, 30.0, 70.0), direction)

    def intensity(grid: Volume) -> np.ndarray:
        z, y, x = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
        places_mm = np.stack([x, y, z, np.ones_like(x)], axis=-1) @ grid.affine.T
        return 100 + places_mm[..., :3] @ [0.1, 0.2, 0.3]

    pet = blank.with_array(intensity(blank).astype(np.float32))
    grid = slice_grid(pet, size=32, pixel_mm=2.0)
    seen = slice_images({"CT": pet, "PET": pet}, grid)
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    voxels = np.stack([x, y, z, np.ones_like(x)], axis=-1) @ (np.linalg.inv(blank.affine) @ grid.affine).T
    inside = ((voxels[..., :3] >= 0) & (voxels[..., :3] <= np.array(blank.shape[::-1]) - 1)).all(axis=-1)
    assert seen.shape == (grid.shape[0], 2, 32, 32)
    assert inside.mean() > 0.25
    for channel in range(2):
        np.testing.assert_allclose(seen[:, channel][inside], intensity(grid)[inside], rtol=1e-5)


TILTED = (1, 0, 0, 0, math.cos(0.2), -math.sin(0.2), 0, math.sin(0.2), math.cos(0.2))


@pytest.mark.parametrize("direction", [TURNED, FLIPPED, OBLIQUE, TILTED])
def test_no_part_of_the_body_is_cut_off(direction: tuple[float, ...]):
    """A body of 60 x 60 x 84 mm, away from the middle of its scan; the window of 56 mm has to grow."""
    suv = np.zeros((14, 30, 40), np.float32)
    suv[:, 2:17, 18:38] = 1.0
    pet = Volume(suv, (3.0, 4.0, 6.0), (-20.0, 30.0, 70.0), direction)
    grid = slice_grid(pet, size=32, pixel_mm=1.75)
    z, y, x = np.nonzero(suv)
    voxels = np.stack([x, y, z, np.ones_like(x)], axis=1) @ (np.linalg.inv(grid.affine) @ pet.affine).T
    assert (voxels[:, :3] > -0.5).all()
    assert (voxels[:, :3] < np.array(grid.shape[::-1]) - 0.5).all()
    filled = np.ptp(voxels[:, :2], axis=0).max() + 1  # pixels
    assert 22 < filled <= 30  # and it is not made smaller than it has to be


def test_outside_the_scan_there_is_air():
    pet = body_in_air()
    ct = pet.with_array(np.full(pet.shape, 40, np.int16))
    seen = slice_images({"PET": pet, "CT": ct}, slice_grid(pet, size=48, pixel_mm=4.0), channels=("PET", "CT"))
    assert seen.dtype == np.float32
    assert (seen[0, 0, 0, 0], seen[0, 1, 0, 0]) == (0.0, -1024.0)
    assert (seen[0, 0, 24, 24], seen[0, 1, 24, 24]) == (1.0, 40.0)
    with pytest.raises(AutopetError, match="the model wants the channels PET, MR; there are PET, CT"):
        slice_images({"PET": pet, "CT": ct}, pet, channels=("PET", "MR"))


# Labels, and the way back


def test_a_single_voxel_between_the_pixels_makes_its_slice_positive():
    pet = body_in_air()
    mask = np.zeros(pet.shape, np.uint8)
    mask[2, 5, 13] = 1
    grid = slice_grid(pet, size=16, pixel_mm=20.0)
    assert not resample(pet.with_array(mask), grid, nearest=True).array.any()
    assert slice_labels(pet.with_array(mask), grid).tolist() == [False, False, True, False]
    assert slice_labels(pet.with_array(mask), grid).dtype == bool
    # slices of 10 mm reach from 97.5 to 107.5 and from there to 117.5 mm; the voxel is at 110 mm
    pairs = slice_grid(pet, size=16, pixel_mm=20.0, slice_mm=10.0)
    assert pairs.origin_mm[2] == pytest.approx(102.5)
    assert slice_labels(pet.with_array(mask), pairs).tolist() == [False, True]


def test_labels_of_a_turned_mask_follow_the_patient_s_height():
    """Columns run upwards in steps of 4 mm: a lesion in rows (array axis 1) 2 and 3 is in the slices 2 and 3."""
    mask = np.zeros((5, 6, 7), np.uint8)
    mask[1, 2:4, 4] = 1
    turned = Volume(mask, (3.0, 4.0, 6.0), direction=TURNED)
    grid = slice_grid(turned.with_array(np.ones(mask.shape, np.float32)), size=16, pixel_mm=6.0)
    assert grid.shape[0] == 6
    assert np.flatnonzero(slice_labels(turned, grid)).tolist() == [2, 3]
    elsewhere = replace(grid, origin_mm=(0.0, 0.0, 1000.0))
    assert not slice_labels(turned, elsewhere).any()


def test_masks_come_back_where_they_were():
    mask = np.zeros((4, 12, 12), np.uint8)
    mask[1, 3:6, 4:9] = 1
    volume = Volume(mask, (4.0, 4.0, 5.0), (-7.0, 11.0, 40.0), FLIPPED)
    grid = slice_grid(volume.with_array(np.ones(mask.shape, np.float32)), size=16, pixel_mm=4.0)
    there = resample(volume, grid, nearest=True).array
    assert there.sum() == 15
    assert not np.array_equal(there[:, 2:14, 2:14], mask)  # turned round on the way
    for values in (there, there.astype(bool), there * np.float32(0.6)):
        back = slices_to_mask(values, grid, volume)
        assert back.same_grid(volume)
        assert back.array.dtype == np.uint8
        np.testing.assert_array_equal(back.array, mask)
    assert not slices_to_mask(there * np.float32(0.5), grid, volume).array.any()  # above 0.5, not at it


def test_a_coarse_pixel_comes_back_as_four_fine_ones():
    """Its probability 1 is 0.75 * 0.75 = 0.5625 at the four voxels a quarter of a pixel away, 0.19 at the next ones."""
    target = Volume(np.ones((3, 16, 16), np.float32), (2.0, 2.0, 4.0))
    grid = slice_grid(target, size=16, pixel_mm=4.0)
    values = np.zeros(grid.shape, np.float32)
    values[1, 8, 8] = 1.0  # its centre is 2 mm behind the grid's, at 15 + 2 = 17 mm: voxels 8 (16 mm) and 9 (18 mm)
    mask = slices_to_mask(values, grid, target).array
    assert sorted(map(tuple, np.argwhere(mask))) == [(1, y, x) for y in (8, 9) for x in (8, 9)]


def test_ranges_become_0_to_1_and_are_clipped():
    images = np.array([[-1000, -100, 75, 250, 600], [-1, 0, 5, 20, 45]], np.float16)[:, None]
    found = normalise(images, RANGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 0], [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(found[1, 0], [0, 0, 0.25, 1, 1])
    np.testing.assert_array_equal(normalise(images[None].repeat(3, axis=0), RANGES)[2], found)
    for wrong in (RANGES[:1], ((0.0, 0.0), (0.0, 1.0))):
        with pytest.raises(AutopetError, match="2 channels need as many ranges from low to high"):
            normalise(images, wrong)


def test_weight_of_the_rarer_class():
    assert lesion_weight(np.array([True, False, False, False])) == 3.0
    assert lesion_weight(np.arange(1000) < 135) == pytest.approx(6.41, abs=0.01)  # the paper's training slices
    for labels in (np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)):
        with pytest.raises(AutopetError, match="needs slices with and without lesions, found"):
            lesion_weight(labels)


def test_frames_that_cannot_work_are_refused():
    for wrong in ({"size": 0}, {"pixel_mm": 0.0}, {"slice_mm": -1.0}):
        with pytest.raises(AutopetError, match="slices need size and pixel_mm above 0"):
            slice_grid(body_in_air(), **wrong)


# The cache


@pytest.fixture(scope="module")
def folders(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """case00 to case03 (without lesion) as 40 slices of 48 x 48 pixels each."""
    return list(cache_slices(cohort[:4], tmp_path_factory.mktemp("slices"), size=48, pixel_mm=4.0).values())


def test_cached_slices_are_the_case_s(cohort: list[Case], folders: list[Path]):
    for case, folder in zip(cohort, folders, strict=False):
        images, masks, labels = read_slices(folder)
        assert (images.shape, masks.shape, labels.shape) == ((40, 2, 48, 48), (40, 48, 48), (40,))
        assert (images.dtype, masks.dtype, labels.dtype) == (np.float16, np.uint8, bool)
        true = read_image(case.mask)
        np.testing.assert_array_equal(labels, true.array.any(axis=(1, 2)))
        assert int(masks.sum()) == int(true.array.sum()) == case.lesion_voxels  # the same voxels of 4 mm, elsewhere
        assert float(images[:, 1][masks == 1].astype(float).sum()) == pytest.approx(
            float(read_image(case.suv).array[true.array == 1].sum()), rel=1e-3, abs=1e-9
        )
        assert set(np.unique(images[:, 0][images[:, 1] > 0.5])) == {40}  # the body
    assert read_labels(folders).tolist() == [bool(x) for folder in folders for x in np.load(folder / "label.npy")]
    assert not np.load(folders[3] / "label.npy").any()


def test_cached_cases_are_kept_and_other_slices_refused(cohort: list[Case], tmp_path: Path):
    first = cache_slices(cohort[:1], tmp_path / "cache", size=48, pixel_mm=4.0)["case00"]
    np.save(first / "label.npy", np.zeros(40, bool))
    both = cache_slices(cohort[:2], tmp_path / "cache", size=48, pixel_mm=4.0)
    assert list(both) == ["case00", "case01"]
    assert not np.load(first / "label.npy").any()
    for other in (
        {"size": 32, "pixel_mm": 4.0},
        {"size": 48, "pixel_mm": 2.0},
        {"size": 48, "pixel_mm": 4.0, "slice_mm": 3.0},
    ):
        with pytest.raises(AutopetError, match="cache of slices of another size or spacing"):
            cache_slices(cohort[:1], tmp_path / "cache", **other)


def test_labels_other_than_1_are_lesions_too(cohort: list[Case], tmp_path: Path):
    case = replace(cohort[0], name="many", folder=tmp_path / "many")
    for role in ("SUV", "CTres", "SEG"):
        image = read_image(cohort[0].image(role))
        write_image(case.image(role), image.with_array(image.array * 2) if role == "SEG" else image)
    _, masks, _ = read_slices(cache_slices([case], tmp_path / "cache", size=48, pixel_mm=4.0)["many"])
    assert np.unique(masks).tolist() == [0, 1]


# Batches


def slices_of(folders: list[Path], **changes: object) -> Slices:
    usual = {"ranges": RANGES, "target": "label", "augmentation": None, "epochs": 3, "seed": 5}
    return Slices(folders, **(usual | changes))


def test_every_epoch_shows_every_slice_once(folders: list[Path]):
    data = slices_of(folders)
    assert (data.per_epoch, len(data)) == (160, 480)
    epochs = [[data.slice_of(160 * epoch + place) for place in range(160)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(160)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(range(160))


@pytest.mark.parametrize("target", ["label", "mask"])
def test_slices_come_with_what_they_are_trained_on(folders: list[Path], target: str):
    data = slices_of(folders, target=target)
    seen = set()
    for index in range(160):
        case, place = divmod(data.slice_of(index), 40)
        images, masks, labels = read_slices(folders[case])
        image, wanted = data[index]
        np.testing.assert_array_equal(image.numpy(), normalise(images[place], RANGES))
        expected = masks[place] if target == "mask" else labels[place]
        np.testing.assert_array_equal(wanted.numpy(), expected)
        assert wanted.dtype == torch.int64
        seen.add(bool(labels[place]))
    assert seen == {False, True}
    with pytest.raises(AutopetError, match="use label or mask"):
        slices_of(folders, target="box")


def test_slices_do_not_depend_on_who_reads_them(folders: list[Path]):
    data = slices_of(folders, target="mask", augmentation=Augmentation())
    alone = [data[index] for index in (170, 2, 170)]
    loader = torch.utils.data.DataLoader(data, batch_sampler=[[2, 170], [170, 2]], num_workers=2)
    (first, masks), (second, _) = list(loader)
    assert torch.equal(alone[0][0], alone[2][0])
    assert torch.equal(first, second.flip(0))
    assert torch.equal(first[1], alone[0][0])
    assert torch.equal(masks[0], alone[1][1])
    assert not torch.equal(alone[0][0], slices_of(folders, target="mask")[170][0])


def test_drawn_slices_have_lesions_as_often_as_wanted(folders: list[Path]):
    data = slices_of(folders, limit=20, lesion_share=0.25)
    assert (data.per_epoch, len(data)) == (20, 60)
    drawn = [[data.slice_of(20 * epoch + place) for place in range(20)] for epoch in range(3)]
    assert [int(data.labels[epoch].sum()) for epoch in drawn] == [5, 5, 5]
    assert all(len(set(epoch)) == 20 for epoch in drawn)
    assert drawn[0] != drawn[1]
    positives = int(data.labels.sum())
    many = slices_of(folders, limit=4 * positives, lesion_share=0.5)  # each positive slice has to come twice
    chosen = [many.slice_of(place) for place in range(4 * positives)]
    twice = np.bincount(chosen, minlength=160)[data.labels]
    assert (twice == 2).all()
    plain = slices_of(folders, limit=20)
    assert len({plain.slice_of(place) for place in range(20)}) == plain.per_epoch == 20
    assert slices_of(folders, limit=1000).per_epoch == 160
    with pytest.raises(AutopetError, match="found 0 with one among 40"):
        slices_of(folders[3:4], limit=20, lesion_share=0.25)


# Deformations


def numbered() -> tuple[torch.Tensor, torch.Tensor]:
    """A slice of two channels of 8 x 8 pixels, all different, and a mask."""
    image = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))
    return image, (image[0] > 0.5).to(torch.uint8)


def test_no_change_changes_nothing():
    image, mask = numbered()
    same, same_mask = apply_change(Change(contrast=(1.0, 1.0)), image, mask)
    torch.testing.assert_close(same, image)
    assert torch.equal(same_mask, mask)
    none = Augmentation(0.0, 0.0, 0.0, 0.0)
    torch.testing.assert_close(augment(image, rng=np.random.default_rng(0), augmentation=none)[0], image)


def test_a_shift_is_towards_higher_rows_and_columns():
    image, mask = numbered()
    moved, moved_mask = apply_change(Change(shift=(2 / 8, 1 / 8)), image, mask)
    expected = torch.zeros_like(image)
    expected[:, 2:, 1:] = image[:, :-2, :-1]
    torch.testing.assert_close(moved, expected)
    assert moved_mask.dtype == torch.uint8
    assert torch.equal(moved_mask[2:, 1:], mask[:-2, :-1])
    assert not moved_mask[:2].any()


def test_a_quarter_turn_is_numpy_s():
    """From the columns' axis to the rows': NumPy's rot90 turns from the first axis to the second, so minus once."""
    image, mask = numbered()
    turned, turned_mask = apply_change(Change(angle_rad=math.pi / 2), image, mask)
    np.testing.assert_allclose(turned.numpy(), np.rot90(image.numpy(), -1, axes=(1, 2)), atol=1e-5)
    np.testing.assert_array_equal(turned_mask.numpy(), np.rot90(mask.numpy(), -1))
    # turned first, shifted then: the shift is along the result's rows and columns
    both, _ = apply_change(Change(angle_rad=math.pi / 2, shift=(1 / 8, 2 / 8)), image)
    np.testing.assert_allclose(both.numpy()[:, 1:, 2:], turned.numpy()[:, :-1, :-2], atol=1e-5)


def test_twice_the_size_shows_the_middle_half():
    image, mask = torch.zeros(1, 8, 8), torch.zeros(8, 8, dtype=torch.uint8)
    mask[3:5, 3:5] = 1
    image[0, 3:5, 3:5] = 1.0
    grown, grown_mask = apply_change(Change(scale=2.0), image, mask)
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(grown_mask.numpy(), expected)
    assert float(grown.sum()) == pytest.approx(4 * 4, abs=1e-4)  # an area four times as large


def test_contrast_by_hand():
    """Means 0.5 and 0.25. The first channel's distances double and are cut at its range, the second's are halved."""
    image = torch.tensor([[[0.0, 0.4], [0.6, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    found, _ = apply_change(Change(contrast=(2.0, 0.5)), image)
    expected = torch.tensor([[[0.0, 0.3], [0.7, 1.0]], [[0.125, 0.125], [0.125, 0.625]]])
    torch.testing.assert_close(found, expected)


def test_draws_stay_within_their_limits_and_fill_them():
    rng = np.random.default_rng(0)
    largest = Augmentation(rotation_degrees=10.0, scale_share=0.2, shift_share=0.1, contrast_share=0.3)
    drawn = [draw_change(rng, largest, channels=2) for _ in range(500)]
    values = {
        math.radians(10): [change.angle_rad for change in drawn],
        0.2: [change.scale - 1 for change in drawn],
        0.1: [value for change in drawn for value in change.shift],
        0.3: [value - 1 for change in drawn for value in change.contrast],
    }
    for limit, found in values.items():
        assert 0.95 * limit < max(found) <= limit
        assert -limit <= min(found) < -0.95 * limit
    assert all(len(change.contrast) == 2 for change in drawn)
    assert draw_change(np.random.default_rng(3), largest, channels=2) == draw_change(
        np.random.default_rng(3), largest, channels=2
    )
    with pytest.raises(AutopetError, match="scale_share must be at least 0 and below 1"):
        Augmentation(scale_share=1.0)


def test_masks_move_with_their_image():
    image = torch.zeros(2, 64, 64)
    image[:, 20:34, 28:44] = 1.0
    mask = image[0].to(torch.uint8)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        moved, moved_mask = augment(image, mask, rng=rng, augmentation=Augmentation(contrast_share=0.0))
        assert float(((moved[0] > 0.5) != (moved_mask == 1)).sum()) <= 0.05 * float(moved_mask.sum())
        assert not torch.equal(moved_mask, mask)


# Real scans


def test_a_real_scan_in_slices(real_data: Path, tmp_path: Path):
    """SimpleITK turns the axes and SciPy interpolates; labels and the tumour's volume are NumPy's."""
    sitk = pytest.importorskip("SimpleITK")
    ndimage = pytest.importorskip("scipy.ndimage")
    folder = sorted((real_data / "sts-petct").glob("STS_*"))[0]
    pet = read_image(folder / "PET_image.nii.gz")
    case = Case("real", "p", tmp_path / "real", lesion_voxels=1)
    write_image(case.suv, pet)
    write_image(case.ct, resample(read_image(folder / "CT_image.nii.gz"), pet, fill=-1024.0))
    write_image(case.mask, read_image(folder / "PET_mask.nii.gz"))
    images, masks, labels = read_slices(cache_slices([case], tmp_path / "cache", size=256, pixel_mm=2.0)["real"])
    turned = sitk.DICOMOrient(sitk.ReadImage(str(folder / "PET_mask.nii.gz")), "LPS")
    true = sitk.GetArrayFromImage(turned) != 0
    np.testing.assert_array_equal(labels, true.any(axis=(1, 2)))
    assert 0 < labels.sum() < len(labels)  # the margin of 5 cm has no tumour
    grid = slice_grid(pet, size=256, pixel_mm=2.0)
    volume_ml = masks.sum() * grid.voxel_volume_ml
    assert volume_ml == pytest.approx(true.sum() * pet.voxel_volume_ml, rel=0.02)
    z, y, x = np.nonzero(masks)
    voxels = np.stack([x, y, z, np.ones_like(x)], axis=1) @ (np.linalg.inv(pet.affine) @ grid.affine).T
    suv = ndimage.map_coordinates(pet.array.astype(float), voxels[:, 2::-1].T, order=1, mode="nearest")
    np.testing.assert_allclose(images[:, 1][masks == 1], suv, rtol=2e-3, atol=2e-3)
    back = slices_to_mask(masks, grid, read_image(folder / "PET_mask.nii.gz"))
    original = read_image(folder / "PET_mask.nii.gz").array != 0
    dice = 2 * (back.array & original).sum() / (back.array.sum() + original.sum())
    assert dice > 0.97
    assert np.load(tmp_path / "cache" / "real" / IMAGE, mmap_mode="r").dtype == np.float16
