"""What the networks see, counted by hand; and the way back onto oblique, flipped, turned and anisotropic grids."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume, resample, to_sitk

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip.model import PRESETS  # noqa: E402
from algorithms.swinmip.preprocessing import Ranges, prepare, rehearse, restore, training_ranges  # noqa: E402

SMALL = replace(PRESETS["demo"], patch=(32, 32, 32))
WIDE = Ranges((-2000.0, 4000.0), (-1000.0, 1000.0))  # crops and clips nothing
SHAPE = (34, 45, 40)  # z, y, x
SPACING_MM = (3.0, 4.0, 5.0)


def turned(*degrees: float) -> np.ndarray:
    """Rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, two = [(1, 2), (2, 0), (0, 1)][axis]
        step = np.eye(3)
        step[[one, two], [one, two]] = math.cos(angle)
        step[one, two], step[two, one] = -math.sin(angle), math.sin(angle)
        matrix = step @ matrix
    return matrix


GRIDS = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]),
    "mirrored": np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]),  # of another handedness
    "oblique": turned(8.0, -17.0, 24.0),
    "oblique and turned": turned(-21.0, 12.0, 9.0) @ np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
}


def make_grid(direction: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> Volume:
    return Volume(np.zeros(shape, np.float32), SPACING_MM, (-70.0, 31.0, 410.0), tuple(direction.ravel()))


def along_patient(grid: Volume) -> tuple[float, ...]:
    """Spacing along the patient's axes: a column of the direction belongs to its largest component."""
    owner = np.abs(np.reshape(grid.direction, (3, 3))).argmax(axis=0)
    return tuple(np.asarray(grid.spacing_mm)[np.argsort(owner)])


def positions_mm(grid: Volume) -> np.ndarray:
    """LPS millimetres of all voxels, (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)[..., ::-1]
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def body(grid: Volume) -> Volume:
    """A CT of 40 HU in air, leaving a border of 3 to 6 voxels."""
    ct = np.full(grid.shape, -1000, np.int16)
    ct[3:-4, 5:-6, 4:-3] = 40
    return grid.with_array(ct)


def ball(grid: Volume, radius_mm: float = 24.0) -> np.ndarray:
    centre = (grid.affine @ [*((np.asarray(grid.shape[::-1]) - 1) / 2), 1])[:3]
    return (np.linalg.norm(positions_mm(grid) - centre, axis=-1) <= radius_mm).astype(np.uint8)


def blob(grid: Volume, rng: np.random.Generator) -> np.ndarray:
    """A ball with a tenth of its voxels missing, and a lonely voxel in a corner of the body."""
    mask = ball(grid) * (rng.random(grid.shape) > 0.1).astype(np.uint8)
    mask[4, 6, 5] = 1
    return mask


# What the networks see


def test_the_chain_by_hand():
    """Axial LPS slices at the working spacing: crop, flip to RAS, clip, normalise, pad; NumPy decides."""
    rng = np.random.default_rng(0)
    grid = make_grid(np.eye(3), (10, 44, 42))
    ct = rng.uniform(-1100, -850, grid.shape).astype(np.float32)
    ct[2:9, 3:40, 4:38] = rng.uniform(-700, 900, (7, 37, 34))
    suv = rng.gamma(2.0, 4.0, grid.shape).astype(np.float32)
    mask = (suv > 12).astype(np.uint8)
    ranges = Ranges((-800.0, 500.0), (1.0, 20.0))
    images = {"CT": grid.with_array(ct), "PET": grid.with_array(suv)}
    found = prepare(images, ranges, SMALL, SPACING_MM, mask=grid.with_array(mask))
    assert (found.image.dtype, found.label.dtype) == (torch.float32, torch.uint8)
    assert found.image.shape == (2, 34, 37, 32)  # z 7 is padded to the patch: 12 and 13
    box = (slice(2, 9), slice(3, 40), slice(4, 38))
    for channel, array, ends in ((0, ct, ranges.ct_hu), (1, suv, ranges.pet_suv)):
        seen = np.clip(array[box].astype(np.float64), *ends)[:, ::-1, ::-1].transpose(2, 1, 0)
        expected = np.pad((seen - seen.mean()) / seen.std(), [(0, 0), (0, 0), (12, 13)])
        np.testing.assert_allclose(found.image[channel].numpy(), expected, atol=2e-5)
    label = np.pad(mask[box][:, ::-1, ::-1].transpose(2, 1, 0), [(0, 0), (0, 0), (12, 13)])
    np.testing.assert_array_equal(found.label[0].numpy(), label)
    # nothing of the caller's was changed, and read-only arrays will do
    assert suv.max() > 20
    for array in (ct, suv, mask):
        array.flags.writeable = False
    again = prepare(images, ranges, SMALL, SPACING_MM)
    assert torch.equal(again.image, found.image)
    assert again.label is None


def test_a_ct_without_foreground_is_not_cropped():
    grid = make_grid(np.eye(3))
    images = {"CT": grid.with_array(np.full(SHAPE, -1000.0)), "PET": grid}
    found = prepare(images, Ranges((-800.0, 500.0), (1.0, 20.0)), SMALL, SPACING_MM)
    assert found.image.shape == (2, *SHAPE[::-1])
    assert not found.image.any()  # constant images have no deviation to divide by
    assert restore(torch.ones(1, *SHAPE[::-1]), found, grid).array.all()


@pytest.mark.parametrize("suv", [0.3, 5.13])  # below the range; in it, where resampling rounds
@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (4.1, 3.3, 6.2)])
def test_an_empty_pet_stays_empty(suv: float, spacing_mm: tuple[float, ...]):
    """What rounding leaves of a constant image is no deviation to divide by: it would become noise of up to 4."""
    grid = make_grid(np.eye(3), (60, 100, 75))
    ct = np.random.default_rng(3).uniform(-700, 500, grid.shape)
    images = {"CT": grid.with_array(ct), "PET": grid.with_array(np.full(grid.shape, suv, np.float32))}
    found = prepare(images, Ranges((-799.2, 557.91), (1.14, 30.17)), SMALL, spacing_mm)
    assert found.image[0].std() > 0.5
    assert not found.image[1].any()
    np.testing.assert_allclose(restore(torch.ones_like(found.image[:1]), found, grid).array, 1, atol=1e-6)


def test_grids_that_are_one_within_the_tolerance_are_one():
    """At 45 degrees the last digit of a file decides which axis of the grid is the patient's; the PET's counts."""
    grid, other = (make_grid(turned(0.0, 0.0, 45.0 + error)) for error in (1e-6, -1e-6))
    assert grid.same_grid(other)
    ct = body(other)
    ranges = Ranges((-800.0, 500.0), (1.0, 20.0))
    found = prepare({"CT": ct, "PET": grid}, ranges, SMALL, SPACING_MM, mask=other)
    expected = prepare({"CT": grid.with_array(ct.array), "PET": grid}, ranges, SMALL, SPACING_MM)
    assert torch.equal(found.image, expected.image)


def test_images_that_do_not_fit_are_refused():
    grid = make_grid(np.eye(3))
    images = {"CT": body(grid), "PET": grid}
    with pytest.raises(AutopetError, match="wants the images CT, PET; there are PET"):
        prepare({"PET": grid}, WIDE, SMALL, SPACING_MM)
    with pytest.raises(AutopetError, match=r"CT is not on the PET's grid \(shape .* resample it"):
        prepare(images | {"CT": make_grid(np.eye(3), (34, 45, 41))}, WIDE, SMALL, SPACING_MM)
    with pytest.raises(AutopetError, match="mask is not on the PET's grid"):
        prepare(images, WIDE, SMALL, SPACING_MM, mask=replace(grid, origin_mm=(0.0, 0.0, 0.0)))
    found = prepare(images, WIDE, SMALL, SPACING_MM)
    with pytest.raises(
        AutopetError, match=r"expected probabilities of shape \(1, 40, 45, 34\), found \(1, 40, 45, 33\)"
    ):
        restore(torch.zeros(1, 40, 45, 33), found, grid)
    with pytest.raises(AutopetError, match="not the grid of the image that was prepared"):
        restore(torch.zeros(1, 40, 45, 34), found, replace(grid, spacing_mm=(3.0, 4.0, 5.5)))


# Grids


@pytest.mark.parametrize("name", GRIDS)
def test_a_mask_comes_back_exactly_at_the_working_spacing(name: str):
    grid = make_grid(GRIDS[name])
    mask = blob(grid, np.random.default_rng(1))
    images = {"CT": body(grid), "PET": grid.with_array(mask * 5.0)}
    ranges = Ranges((-800.0, 500.0), (1.0, 20.0))
    found = prepare(images, ranges, SMALL, along_patient(grid), mask=grid.with_array(mask))
    assert int(found.label.sum()) == int(mask.sum())  # voxels were moved, none was made up
    back = restore(found.label.float(), found, grid)
    np.testing.assert_array_equal(back.array, mask)
    assert back.array.dtype == np.float32
    assert (back.shape, back.spacing_mm) == (grid.shape, grid.spacing_mm)
    assert (back.origin_mm, back.direction) == (grid.origin_mm, grid.direction)
    # everything inside the crop, nothing outside of it
    ones = restore(torch.ones_like(found.label), found, grid).array
    np.testing.assert_array_equal(ones == 1, body(grid).array == 40)
    assert not ones[body(grid).array != 40].any()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("spacing_mm", [(2.1, 2.1, 2.9), (5.0, 3.3, 6.1)], ids=["finer", "coarser"])
def test_a_mask_of_another_spacing_comes_back_within_a_voxel(name: str, spacing_mm: tuple[float, ...]):
    """A voxel's value is made of the 8 working voxels around it, and each of those took the label of the nearest voxel
    of the image. So nothing further from the surface than a working diagonal and half an own diagonal can change.
    """
    grid = make_grid(GRIDS[name])
    mask = ball(grid)
    images = {"CT": body(grid), "PET": grid.with_array(mask * 5.0)}
    found = prepare(images, Ranges((-800.0, 500.0), (1.0, 20.0)), SMALL, spacing_mm, mask=grid.with_array(mask))
    back = restore(found.label.float(), found, grid)
    assert back.same_grid(grid, tolerance_mm=0.0)
    again = back.array >= 0.5
    depth_mm = np.where(
        mask, *(distance_transform_edt(part, sampling=grid.spacing_zyx_mm) for part in (mask, mask == 0))
    )
    reach_mm = np.linalg.norm(spacing_mm) + np.linalg.norm(SPACING_MM) / 2
    assert depth_mm[again != mask].max(initial=0) <= reach_mm
    # the bound alone would allow a shift of a voxel; a ball of 24 mm that was moved by half a voxel (2.5 mm) has 0.92
    assert 2 * (again & (mask == 1)).sum() / (again.sum() + mask.sum()) > 0.93


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("spacing_mm", [None, (2.1, 2.1, 2.9), (5.0, 3.3, 6.1)], ids=["own", "finer", "coarser"])
def test_both_ways_keep_places_in_the_patient(name: str, spacing_mm: tuple[float, ...] | None):
    """Linear interpolation keeps linear functions: a PET that is one of the place, and probabilities that are."""
    grid = make_grid(GRIDS[name])
    slope = np.array([0.013, -0.008, 0.011])  # per mm along L, P, S
    ramp = positions_mm(grid) @ slope
    images = {"CT": body(grid), "PET": grid.with_array(ramp)}
    ranges = Ranges((-800.0, 500.0), WIDE.pet_suv)
    found = prepare(images, ranges, SMALL, spacing_mm or along_patient(grid))
    size = found.image.shape[1:]
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    affine = found.affine.numpy()
    ras_mm = index @ affine[:3, :3].T + affine[:3, 3]
    there = (ras_mm * [-1, -1, 1]) @ slope
    cropped = grid.with_array((body(grid).array == 40).astype(np.float32))
    inside = _well_inside(cropped, ras_mm * [-1, -1, 1])
    assert inside.mean() > 0.35  # the rest is padding, and voxels whose neighbours were cropped
    # the image was normalised: a straight line leads back to the ramp
    seen = found.image[1].numpy()[inside]
    line = np.polynomial.Polynomial.fit(seen, there[inside], 1)
    assert np.abs(line(seen) - there[inside]).max() < 2e-3  # the ramp spans 4, a voxel at least 0.02
    back = restore(torch.from_numpy(there)[None], found, grid).array
    middle = distance_transform_edt(cropped.array, sampling=grid.spacing_zyx_mm) > np.linalg.norm(SPACING_MM) + 7
    assert middle.sum() > 500
    assert np.abs(back - ramp)[middle].max() < 2e-3


def _well_inside(cropped: Volume, points_mm: np.ndarray) -> np.ndarray:
    """Points between the centres of voxels of the crop."""
    index = (points_mm - cropped.affine[:3, 3]) @ np.linalg.inv(cropped.affine[:3, :3]).T
    ends = [np.flatnonzero(cropped.array.any(axis=axes))[[0, -1]] for axes in ((0, 1), (0, 2), (1, 2))]
    return np.logical_and.reduce(
        [(index[..., axis] >= low) & (index[..., axis] <= high) for axis, (low, high) in enumerate(ends)]
    )


@pytest.mark.parametrize("name", ["flipped", "oblique and turned"])
def test_resampling_is_simpleitk_s(name: str):
    """SimpleITK, which knows nothing of RAS, resamples a PET of noise onto the working grid, and the answer back."""
    rng = np.random.default_rng(2)
    grid = make_grid(GRIDS[name])
    pet = grid.with_array(rng.uniform(0, 10, SHAPE).astype(np.float32))
    images = {"CT": grid.with_array(np.zeros(SHAPE)), "PET": pet}
    found = prepare(images, WIDE, SMALL, (4.1, 2.7, 3.9))
    size, affine = found.image.shape[1:], np.diag([-1, -1, 1, 1]) @ found.affine.numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, (4.1, 2.7, 3.9), atol=1e-9)
    working = Volume(
        np.zeros(size[::-1], np.float32),
        tuple(spacing),
        tuple(affine[:3, 3]),
        tuple((affine[:3, :3] / spacing).ravel()),
    )
    theirs = resample(pet, working, fill=np.nan).array.transpose(2, 1, 0)
    known = np.isfinite(theirs)
    assert known.mean() > 0.8
    line = np.polynomial.Polynomial.fit(found.image[1].numpy()[known], theirs[known], 1)
    assert np.abs(line(found.image[1].numpy()[known]) - theirs[known]).max() < 5e-3
    probability = rng.random(size).astype(np.float32)
    ours = restore(torch.from_numpy(probability)[None], found, grid).array
    back = resample(working.with_array(np.ascontiguousarray(probability.transpose(2, 1, 0))), grid, fill=np.nan).array
    known = np.isfinite(back)
    assert known.mean() > 0.8
    assert np.abs(ours - back)[known].max() < 1e-3


@pytest.mark.parametrize("name", GRIDS)
def test_the_way_back_is_rehearsed_where_it_resamples(name: str):
    """34 slices: 3 are resampled. At the scan's own spacing, in the order of the patient's axes, voxels are moved."""
    grid = make_grid(GRIDS[name])
    images = {"CT": body(grid), "PET": grid}
    own = along_patient(grid)
    for spacing_mm, times in ((own, 0.0), (own[::-1], 34 / 3), ((2.1, 2.1, 2.9), 34 / 3)):
        assert rehearse(prepare(images, WIDE, SMALL, spacing_mm)) == pytest.approx(times)


def test_a_hand_placed_voxel():
    """Voxel x 7, y 11, z 5 of a flipped grid, found again in the input and in the patient."""
    grid = make_grid(GRIDS["flipped"])  # x runs to the right, y to the back, z to the feet
    pet = np.zeros(SHAPE, np.float32)
    pet[5, 11, 7] = 9.0
    found = prepare({"CT": grid.with_array(np.zeros(SHAPE)), "PET": grid.with_array(pet)}, WIDE, SMALL, SPACING_MM)
    where = np.unravel_index(int(found.image[1].argmax()), found.image.shape[1:])
    assert where == (7, 45 - 1 - 11, 34 - 1 - 5)  # RAS: x stays, y and z turn round
    ras_mm = (found.affine.numpy() @ [*where, 1])[:3]
    assert ras_mm * [-1, -1, 1] == pytest.approx((-70 - 7 * 3, 31 + 11 * 4, 410 - 5 * 5))


def test_the_working_grid_is_not_resampled(monkeypatch: pytest.MonkeyPatch):
    """Also one whose spacing is the challenge's 2.0364, not 2.04."""

    def refuse(*_, **__):
        raise AssertionError("resampled")

    monkeypatch.setattr("monai.transforms.spatial.functional.AffineTransform", refuse)
    grid = Volume(np.zeros(SHAPE, np.float32), (2.0364, 2.0364, 3.0))
    mask = blob(grid, np.random.default_rng(0))
    found = prepare(
        {"CT": body(grid), "PET": grid}, WIDE, SMALL, PRESETS["paper"].spacing_mm, mask=grid.with_array(mask)
    )
    np.testing.assert_array_equal(restore(found.label, found, grid).array, mask)
    with pytest.raises(RuntimeError, match="Spacingd"):
        prepare({"CT": body(grid), "PET": grid}, WIDE, SMALL, (2.0, 2.04, 2.9))


MEMORY = """
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from algorithms.swinmip.model import PRESETS
from algorithms.swinmip.preprocessing import Ranges, prepare, restore
from autopet.volume import Volume
torch.set_num_threads(1)
SETTINGS = replace(PRESETS["demo"], patch=(32, 32, 32))

def peak_bytes():  # of this program; getrusage's would be the parent's, if that is larger
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def there_and_back(shape, spacing_mm):
    pet = Volume(np.ones(shape, np.float32), (2.04, 2.04, 3.0))
    images = {"CT": pet.with_array(np.zeros(shape, np.int16)), "PET": pet}
    found = prepare(images, Ranges((-800.0, 500.0), (1.0, 30.0)), SETTINGS, spacing_mm)
    restore(found.image[:1], found, pet)

there_and_back((32, 32, 32), (1.9, 1.9, 3.0))
before = peak_bytes()
for spacing_mm in ((2.04, 2.04, 3.0), (2.2, 2.2, 3.2)):
    there_and_back((120, 140, 140), spacing_mm)
    print((peak_bytes() - before) / (120 * 140 * 140 * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_a_handful_of_images():
    """Peak of a case there and back, in float32 images of its size (0.21 GB for 400x400x326), the given ones included.

    First on the working grid, then resampled.
    """
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=root)
    same_grid, resampled = map(float, ran.stdout.split())
    assert 3 < same_grid < 10
    assert resampled < 16


# What is computed from the training set


@pytest.fixture(scope="module")
def lesion_cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Two cases with 100 and 300 lesion voxels among hotter and denser surroundings, one without, one unlabelled."""
    root = tmp_path_factory.mktemp("lesions")
    rng = np.random.default_rng(5)
    cases = []
    for index, count in enumerate([100, 300, 0]):
        mask = np.zeros(1000, np.uint8)
        mask[rng.permutation(1000)[:count]] = 1
        suv = np.where(mask, rng.uniform(2, 20, 1000), 90.0)
        ct = np.where(mask, rng.integers(-400, 300, 1000), 3000)
        cases.append(_write_case(root / f"case{index}", ct.astype(np.int16), suv.astype(np.float32), mask))
    return [*cases, replace(cases[0], name="unlabelled", lesion_voxels=None)]


def _write_case(folder: Path, ct: np.ndarray, suv: np.ndarray, mask: np.ndarray) -> Case:
    case = Case(folder.name, folder.name, folder, lesion_voxels=int(mask.sum()))
    for path, array in ((case.ct, ct), (case.suv, suv), (case.mask, mask)):
        write_image(path, Volume(array.reshape(10, 10, 10)))
    return case


def test_ranges_are_percentiles_of_the_lesion_voxels_of_all_cases(lesion_cases: list[Case]):
    values = {"ct": [], "suv": []}
    for case in lesion_cases[:2]:
        inside = read_image(case.mask).array.ravel() == 1
        values["ct"] += list(read_image(case.ct).array.ravel()[inside])
        values["suv"] += list(read_image(case.suv).array.ravel()[inside])
    assert len(values["ct"]) == 400
    found = training_ranges(lesion_cases, SMALL)
    for name, ends in (("ct", found.ct_hu), ("suv", found.pet_suv)):
        ordered = np.sort(np.asarray(values[name], float))
        for share, value in zip((0.05, 0.95), ends, strict=True):  # between order statistics 399 * share and the next
            place = 399 * share
            low = int(place)
            assert value == pytest.approx(ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]), abs=1e-3)
    assert found.pet_suv[1] < 20  # the surroundings, of SUV 90, do not count
    assert training_ranges(lesion_cases, replace(SMALL, percentiles=(0.0, 100.0))).ct_hu == (
        min(values["ct"]),
        max(values["ct"]),
    )


def test_ranges_that_are_given_win(lesion_cases: list[Case]):
    given = replace(SMALL, ct_range_hu=(-799.2, 557.91))
    found = training_ranges(lesion_cases, given)
    assert found.ct_hu == (-799.2, 557.91)
    assert found.pet_suv == training_ranges(lesion_cases, SMALL).pet_suv
    published = Ranges((-799.2, 557.91), (1.14, 30.17))
    assert training_ranges([], replace(given, pet_range_suv=(1.14, 30.17))) == published


def test_ranges_that_cannot_be_computed(lesion_cases: list[Case], tmp_path: Path):
    with pytest.raises(
        AutopetError, match="none of the 2 training cases has a lesion.* set ct_range_hu and pet_range_suv"
    ):
        training_ranges(lesion_cases[2:], SMALL)
    one = np.zeros(1000, np.uint8)
    one[3] = 1
    broken = _write_case(tmp_path / "broken", one.astype(np.int16), np.where(one, np.nan, 1).astype(np.float32), one)
    with pytest.raises(AutopetError, match=r"broken.SUV.nii.gz: 1 voxels are NaN or infinite"):
        training_ranges([broken], SMALL)
    write_image(broken.suv, Volume(np.ones((10, 10, 11), np.float32)))
    with pytest.raises(AutopetError, match="SUV.nii.gz: not on the grid of the mask"):
        training_ranges([broken], SMALL)


def test_equal_percentiles_are_widened_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    mask = np.ones(1000, np.uint8)
    case = _write_case(tmp_path / "flat", np.full(1000, 40, np.int16), np.full(1000, 8.0, np.float32), mask)
    assert training_ranges([case], SMALL) == Ranges((-10.0, 90.0), (7.5, 8.5))
    assert [record.getMessage() for record in caplog.records] == [
        "warning: 5 % to 95 % of the lesion voxels have ct_hu 40; the range is widened to 100 around it",
        "warning: 5 % to 95 % of the lesion voxels have pet_suv 8; the range is widened to 1 around it",
    ]


@pytest.mark.parametrize("ends", [(5.0, 5.0), (5.0, 1.0), (math.nan, 1.0), (1.0,)])
def test_a_range_needs_two_ends(ends: tuple[float, ...]):
    with pytest.raises(AutopetError, match="pet_suv needs a low and a higher number"):
        Ranges((-800.0, 500.0), ends)


# Real data


def test_a_real_sarcoma(real_data: Path):
    """A real PET with its CT: the tumour comes back, and lies where SimpleITK puts it on the working grid."""
    folder = sorted((real_data / "sts-petct").glob("STS_*"))[0]
    pet, mask, ct = (read_image(folder / f"{name}.nii.gz") for name in ("PET_image", "PET_mask", "CT_image"))
    ct = resample(ct, pet, fill=-1024.0)
    ranges = Ranges((-799.2, 557.91), (1.14, 30.17))
    found = prepare({"CT": ct, "PET": pet}, ranges, SMALL, (2.04, 2.04, 3.0), mask=mask)
    lesions = mask.array != 0
    back = restore(found.label.float(), found, pet)
    assert back.same_grid(pet, tolerance_mm=0.0)
    again = back.array >= 0.5
    assert 2 * (again & lesions).sum() / (again.sum() + lesions.sum()) > 0.97
    filter_ = sitk.LabelShapeStatisticsImageFilter()
    filter_.Execute(to_sitk(mask.with_array(lesions.astype(np.uint8))))
    centre_mm = np.asarray(filter_.GetCentroid(1))
    index = np.argwhere(found.label[0].numpy()).mean(axis=0)
    assert (found.affine.numpy() @ [*index, 1])[:3] * [-1, -1, 1] == pytest.approx(centre_mm, abs=0.5)
    # inside the tumour the PET is brighter than around it, on the working grid, too
    assert found.image[1][found.label[0] == 1].mean() > found.image[1][found.label[0] == 0].mean() + 0.5
