"""Projections: the patient's axes on any grid, hand-made pictures, deformation in 3D, the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.volume import Volume

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip import projections  # noqa: E402
from algorithms.swinmip.model import PRESETS  # noqa: E402
from algorithms.swinmip.preprocessing import Ranges  # noqa: E402
from algorithms.swinmip.projections import (  # noqa: E402
    Projections,
    augmentation,
    cache_volumes,
    project,
    projection_size,
    read_volume,
    standard_volume,
)
from autopet.patches import plain_tensors  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = PRESETS["paper"]
PUBLISHED = Ranges((-799.2, 557.91), (1.14, 30.17))
TINY = replace(
    PRESETS["demo"],
    cls_size=(32, 32),
    cls_spacing_mm=(4.0, 4.0, 4.0),
    cls_cycles=2,
    cls_epochs_per_cycle=2,
    cls_batch=4,
)


# One picture


def test_published_sizes():
    assert [projection_size(PAPER, axis) for axis in "xyz"] == [(224, 352), (224, 352), (224, 224)]
    assert (PAPER.cls_spacing_mm, PAPER.cls_augmentation_probability) == ((2.04, 2.04, 3.0), 0.5)
    with pytest.raises(AutopetError, match="along x, y, z, found 'w'"):
        projection_size(PAPER, "w")


@pytest.mark.parametrize(
    ("axis", "size", "place"), [("x", (5, 6), (2, 3)), ("y", (4, 6), (1, 3)), ("z", (4, 6), (1, 2))]
)
def test_projection_is_the_normalised_maximum_along_its_axis(axis: str, size: tuple, place: tuple):
    volume = torch.ones(1, 4, 5 if axis != "z" else 4, 6)
    volume[0, 1, 2, 3] = 5
    volume[0, 1, 2 if axis == "x" else 0, 3 if axis == "y" else 0] += 1  # some 2 that the 5 hides
    settings = replace(PAPER, cls_size=size)
    image = project(volume.clone(), axis, settings)
    rows, columns = projection_size(settings, axis)
    assert image.shape == (3, rows, columns)
    expected = volume[0].numpy().max(axis="xyz".index(axis))
    assert expected[place] == 5
    expected = (expected - expected.mean()) / expected.std()
    for channel in image:
        np.testing.assert_allclose(channel.numpy(), expected, atol=1e-5)


def test_only_nonzero_pixels_are_normalised():
    volume = torch.zeros(1, 3, 4, 4)
    volume[0, 0, 1, 1], volume[0, 1, 2, 2] = 2.0, 6.0  # mean 4, deviation 2
    image = project(volume, "x", replace(PAPER, cls_size=(4, 4)))[0]
    assert (float(image[1, 1]), float(image[2, 2])) == (-1.0, 1.0)
    assert int((image == 0).sum()) == 14


def test_a_projection_is_resized_by_averaging():
    volume = torch.zeros(1, 2, 4, 4) + 1.0
    volume[0, 0, :2, :2] = torch.tensor([[1.0, 3.0], [5.0, 7.0]])  # mean 4
    image = project(volume, "x", replace(PAPER, cls_size=(2, 2)))[0]
    small = np.array([[4.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(image.numpy(), (small - small.mean()) / small.std(), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 5.0, 1000.0])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_empty_and_constant_scans_give_finite_numbers(value: float, axis: str):
    volume = standard_volume(Volume(np.full((7, 6, 5), value, np.float32), (4.0, 4.0, 4.0)), PUBLISHED, TINY)
    assert volume.shape == (1, 5, 6, 7)  # nothing to crop to, nothing cropped
    image = project(volume, axis, TINY)
    assert image.shape == (3, 32, 32)
    assert not image.any()


# A scan on any grid

CORNER_MM = np.array([80.0, 60.0, 100.0])  # of the body, a box around 0
HOT_MM = np.array([40.0, -30.0, 50.0])  # LPS: on the left, in front, towards the head


def make_scan(direction: np.ndarray, spacing_mm: tuple[float, float, float]) -> Volume:
    """A box of SUV 3 with a ball of SUV 20 on a grid that reaches 160 mm from the centre along each of its axes."""
    size = np.ceil(320 / np.asarray(spacing_mm)).astype(int)
    origin = -direction @ ((size - 1) / 2 * np.asarray(spacing_mm))
    grid = Volume(np.zeros(size[::-1], np.float32), spacing_mm, tuple(origin), tuple(direction.ravel()))
    z, y, x = np.indices(grid.shape)
    places = np.stack([x, y, z, np.ones_like(x)], axis=-1) @ grid.affine.T
    body = (np.abs(places[..., :3]) <= CORNER_MM).all(axis=-1)
    ball = np.linalg.norm(places[..., :3] - HOT_MM, axis=-1) < 10
    return grid.with_array(np.where(ball, 20.0, np.where(body, 3.0, 0.0)).astype(np.float32))


def turned(degrees: float, axis: int) -> np.ndarray:
    """Rotation about an axis."""
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first], matrix[first, second], matrix[second, first], matrix[second, second] = cos, -sin, sin, cos
    return matrix


GRIDS = {
    "standard": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "swapped": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": turned(20, 2) @ turned(-12, 0),
    "oblique and flipped": turned(-25, 1) @ np.diag([1.0, -1.0, -1.0]),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_projections_are_along_the_patient_s_axes(grid: str):
    scan = make_scan(GRIDS[grid], (5.0, 4.0, 6.0))
    volume = standard_volume(scan, PUBLISHED, TINY)
    extent_mm = np.array(volume.shape[1:]) * 4.0
    np.testing.assert_allclose(extent_mm, 2 * CORNER_MM, atol=13)  # cropped to the body, to a voxel on either side
    # shares of the body: left to right (80 - 40) / 160, back to front (60 + 30) / 120, feet to head (50 + 100) / 200
    shares = {"x": (0.75, 0.75), "y": (0.25, 0.75), "z": (0.25, 0.75)}
    settings = replace(TINY, cls_size=(60, 100))
    for axis, (row_share, column_share) in shares.items():
        image = project(volume, axis, settings)[0].numpy()
        row, column = ndimage.center_of_mass(image > 0.5 * image.max())
        rows, columns = image.shape
        assert (row + 0.5) / rows == pytest.approx(row_share, abs=0.04)
        assert (column + 0.5) / columns == pytest.approx(column_share, abs=0.04)


def test_a_scan_is_cropped_spaced_and_clipped():
    array = np.full((20, 24, 28), 0.5, np.float32)  # z, y, x of 2 mm
    array[4:12, 6:18, 8:24] = 2.0
    array[5, 7, 9] = 99.0
    scan = Volume(array, (2.0, 2.0, 2.0))
    same = standard_volume(scan, PUBLISHED, replace(TINY, cls_spacing_mm=(2.0, 2.02, 1.99)))
    assert same.shape == (1, 16, 12, 8)
    values, counts = np.unique(same.numpy(), return_counts=True)
    np.testing.assert_allclose(values, [2.0, 30.17], rtol=1e-6)
    assert counts.tolist() == [16 * 12 * 8 - 1, 1]
    # LPS: x rises to the left and y to the back; RAS turns both round
    assert np.argwhere(same[0].numpy() > 30).tolist() == [[23 - 9, 17 - 7, 5 - 4]]
    assert standard_volume(scan, PUBLISHED, replace(TINY, cls_spacing_mm=())).shape == (1, 16, 12, 8)
    assert standard_volume(scan, PUBLISHED, TINY).shape == (1, 8, 6, 4)  # 4 mm
    low = standard_volume(Volume(np.full((4, 4, 4), 0.5, np.float32)), PUBLISHED, TINY)
    assert float(low.max()) == float(low.min()) == pytest.approx(1.14)


# Deformation in 3D


@pytest.fixture
def ball() -> Callable[..., torch.Tensor]:
    def make(*balls: tuple[tuple[int, int, int], float], shape: tuple[int, int, int] = (64, 32, 32)) -> torch.Tensor:
        volume = torch.full((1, *shape), 1.14)
        places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), dim=-1)
        for centre, value in balls:
            volume[0, (places - torch.tensor(centre)).square().sum(-1) <= 5] = value
        return volume

    return make


def spots(image: torch.Tensor) -> int:
    """Separate bright spots of a picture."""
    picture = image[0].numpy()
    return ndimage.label(picture > picture.min() + 0.3 * (picture.max() - picture.min()))[1]


def test_volumes_are_deformed_before_they_are_projected(ball: Callable[..., torch.Tensor], tmp_path: Path):
    """A ball that another hides comes into view when the volume turns; no change of the picture could show it."""
    volume = ball(((8, 16, 16), 30.0), ((56, 16, 16), 20.0))
    assert spots(project(volume, "x", TINY)) == 1
    assert spots(project(volume, "y", TINY)) == 2
    np.save(tmp_path / "a.npy", volume.numpy().astype(np.float16))
    settings = replace(TINY, cls_augmentation_probability=1.0, cls_cycles=5, cls_epochs_per_cycle=2)
    with plain_tensors():
        data = Projections([tmp_path / "a.npy"], [1.0], axis="x", settings=settings, key=(0,))
        found = [spots(data[index][0]) for index in range(10)]
        still = Projections(
            [tmp_path / "a.npy"],
            [1.0],
            axis="x",
            settings=replace(settings, cls_augmentation_probability=0.0),
            key=(0,),
        )
        assert [spots(still[index][0]) for index in range(10)] == [1] * 10
    assert set(found) == {1, 2}


def test_random_changes_stay_within_their_bounds(ball: Callable[..., torch.Tensor]):
    change = augmentation(replace(TINY, cls_augmentation_probability=1.0)).set_random_state(seed=0)
    with plain_tensors():
        values = [float(change(torch.full((1, 8, 8, 8), 10.0)).mean()) for _ in range(30)]
        assert 8.9 <= min(values) < 9.3
        assert 10.7 < max(values) <= 11.1
        # a ball 24 voxels from the centre along x; all three mirrorings always happen
        centres = []
        for _ in range(30):
            image = change(ball(((8, 16, 16), 30.0)))[0].numpy()
            centres.append(ndimage.center_of_mass(image > 0.5 * image.max()))
    away = np.array(centres) - np.array([31.5, 15.5, 15.5])
    lengths = np.linalg.norm(away, axis=1)
    assert lengths.min() > 0.93 * 23.5
    assert lengths.max() < 1.07 * 23.5
    assert (away[:, 0] > 0).all()  # mirrored
    angles = np.degrees(np.arccos(away[:, 0] / lengths))
    assert angles.max() < math.hypot(10, 10) + 3  # about y and about z
    assert angles.max() > 6


def test_mirroring_happens_along_every_axis_at_its_probability(ball: Callable[..., torch.Tensor]):
    volume = ball(((3, 4, 5), 30.0), shape=(24, 24, 24))
    change = augmentation(replace(TINY, cls_augmentation_probability=0.5)).set_random_state(seed=1)
    with plain_tensors():
        sides = [np.array(ndimage.center_of_mass(change(volume.clone())[0].numpy() > 15)) > 12 for _ in range(60)]
        never = augmentation(replace(TINY, cls_augmentation_probability=0.0))
        assert torch.equal(never(volume.clone()), volume)
    assert (np.abs(np.mean(sides, axis=0) - 0.5) < 0.2).all()
    assert len({tuple(side) for side in sides}) == 8  # independently of each other


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 1), (3, 1, 9)])
def test_a_scan_with_hardly_any_foreground_can_be_deformed(shape: tuple[int, int, int]):
    """One hot voxel, a line, a plane: a training would stop at each of them at every zoom below 1."""
    array = np.full((20, 20, 20), 0.5, np.float32)
    array[tuple(slice(5, 5 + edge) for edge in shape)] = 9.0
    volume = standard_volume(Volume(array, (4.0, 4.0, 4.0)), PUBLISHED, TINY)
    assert volume.shape[1:] == tuple(max(edge, 2) for edge in reversed(shape))
    assert int((volume > 8).sum()) == math.prod(shape)
    assert volume.amin() == pytest.approx(1.14 if 1 in shape else 9.0)  # what is added is background
    change = augmentation(replace(TINY, cls_augmentation_probability=1.0))
    with plain_tensors():
        for seed in range(10):
            image = project(change.set_random_state(seed=seed)(volume.clone()), "x", TINY)
            assert torch.isfinite(image).all()


def test_images_do_not_depend_on_who_makes_them(ball: Callable[..., torch.Tensor], tmp_path: Path):
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.npy")
        np.save(paths[-1], ball(((8 + 8 * index, 12, 20), 20.0)).numpy().astype(np.float16))
    with plain_tensors():
        data = Projections(paths, [1.0, 0.0, 0.0], axis="y", settings=TINY, key=(0, 1, 2))
        assert len(data) == 4 * 3
        rounds = [sorted(data.volume_of(3 * epoch + place) for place in range(3)) for epoch in range(4)]
        assert rounds == [[0, 1, 2]] * 4
        assert len({tuple(data.volume_of(3 * epoch + place) for place in range(3)) for epoch in range(4)}) > 1
        alone = [data[index] for index in (7, 2, 7)]
        loader = torch.utils.data.DataLoader(data, batch_size=1, sampler=[2, 7], num_workers=2)
        by_workers = list(loader)
        other = Projections(paths, [1.0, 0.0, 0.0], axis="y", settings=TINY, key=(0, 1, 3))
        assert not all(torch.equal(data[index][0], other[index][0]) for index in range(12))
    assert torch.equal(alone[0][0], alone[2][0])
    assert torch.equal(by_workers[0][0][0], alone[1][0])
    assert torch.equal(by_workers[1][0][0], alone[0][0])
    assert [alone[index][1] for index in (0, 1)] == [float(data.volume_of(index) == 0) for index in (7, 2)]


# The cache


def test_volumes_are_cached_once_and_whole(cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read, seen = read_image, []

    def broken(path: Path) -> Volume:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path.parent.name)
        return read(path)

    folder = tmp_path / "volumes"
    monkeypatch.setattr(projections, "read_image", broken)
    with pytest.raises(KeyboardInterrupt):
        cache_volumes(cohort[:3], folder, TINY, PUBLISHED)
    assert sorted(path.name for path in folder.glob("*.npy")) == ["case00.npy", "case01.npy"]
    monkeypatch.setattr(projections, "read_image", lambda path: seen.append(path.parent.name) or read(path))
    paths = cache_volumes(cohort[:3], folder, TINY, PUBLISHED)
    assert seen == ["case00", "case01", "case02"]
    assert {name: path.name for name, path in paths.items()} == {f"case0{n}": f"case0{n}.npy" for n in range(3)}
    assert np.load(paths["case00"]).dtype == np.float16
    expected = standard_volume(read(cohort[0].suv), PUBLISHED, TINY)
    volume = read_volume(paths["case00"])
    assert volume.dtype == torch.float32
    torch.testing.assert_close(volume, expected, rtol=1e-3, atol=0)
    with pytest.raises(AutopetError, match="another SUV range or cls_spacing_mm"):
        cache_volumes(cohort[:3], folder, TINY, Ranges((-799.2, 557.91), (1.14, 31.0)))
    with pytest.raises(AutopetError, match="another SUV range or cls_spacing_mm"):
        cache_volumes(cohort[:3], folder, replace(TINY, cls_spacing_mm=(5.0, 5.0, 5.0)), PUBLISHED)


def test_a_real_scan_is_projected_as_simpleitk_does(real_data: Path):
    """SimpleITK turns the axes; the box of the foreground and the maxima are NumPy's."""
    sitk = pytest.importorskip("SimpleITK")
    path = sorted((real_data / "sts-petct").glob("STS_*"))[0] / "PET_image.nii.gz"
    turned_image = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS")
    voxels = sitk.GetArrayFromImage(turned_image)[:, ::-1, ::-1].transpose(2, 1, 0)  # RAS, (x, y, z)
    inside = np.argwhere(voxels > 1.14)
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
    voxels = voxels[box].clip(1.14, 30.17)
    volume = standard_volume(read_image(path), PUBLISHED, replace(TINY, cls_spacing_mm=()))
    assert volume.shape[1:] == voxels.shape
    for number, axis in enumerate("xy"):
        flat = voxels.max(axis=number)
        found = project(volume, axis, replace(TINY, cls_size=flat.shape))[0].numpy()
        np.testing.assert_allclose(found, (flat - flat.mean()) / flat.std(), atol=1e-4)
