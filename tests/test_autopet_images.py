from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from autopet.errors import AutopetError
from autopet.images import find_images, image_stem, is_image, read_grid, read_image, write_image
from autopet.volume import Volume

VOLUME = Volume(
    np.arange(24, dtype=np.float32).reshape(2, 3, 4), (2.0, 2.5, 3.0), (-1.0, 2.0, 3.0), (1, 0, 0, 0, -1, 0, 0, 0, -1)
)


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nii", ".nrrd"])
def test_round_trip_keeps_voxels_and_geometry(tmp_path: Path, suffix: str):
    back = read_image(write_image(tmp_path / f"deep/er/case{suffix}", VOLUME))
    np.testing.assert_array_equal(back.array, VOLUME.array)
    assert back.same_grid(VOLUME, tolerance_mm=1e-4)


def test_types_on_disk(tmp_path: Path):
    assert read_image(write_image(tmp_path / "a.mha", VOLUME.with_array(VOLUME.array > 3))).array.dtype == np.uint8
    double = VOLUME.with_array(VOLUME.array.astype(np.float64))
    assert read_image(write_image(tmp_path / "b.mha", double)).array.dtype == np.float32


def test_names():
    assert image_stem("x/case.1.nii.gz") == "case.1"
    assert image_stem(Path("case.mha")) == "case"
    assert not is_image(Path(".part-a.mha"))
    assert not is_image(Path("a.json"))


def test_find_images_is_sorted_and_shallow(tmp_path: Path):
    for name in ("b.mha", "a.nii.gz", "sub/c.mha"):
        write_image(tmp_path / name, VOLUME)
    (tmp_path / "x.json").write_text("1")
    assert [path.name for path in find_images(tmp_path)] == ["a.nii.gz", "b.mha"]


def test_missing_and_corrupt_files_are_one_line(tmp_path: Path):
    with pytest.raises(AutopetError, match="no such image"):
        read_image(tmp_path / "none.mha")
    whole = write_image(tmp_path / "whole.mha", VOLUME).read_bytes()
    (tmp_path / "cut.mha").write_bytes(whole[: len(whole) - 20])
    (tmp_path / "text.mha").write_text("not an image")
    for name in ("cut.mha", "text.mha"):
        with pytest.raises(AutopetError, match=f"{name}: cannot be read"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nii"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_never_read_as_zeros(tmp_path: Path, suffix: str, share: float):
    noise = Volume(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    path = write_image(tmp_path / f"a{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (read_image, read_grid):
        with pytest.raises(AutopetError, match="cannot be read as an image"):
            read(path)


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_a_flipped_byte_is_found(tmp_path: Path, suffix: str):
    noise = Volume(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    path = write_image(tmp_path / f"a{suffix}", noise)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(AutopetError, match="cannot be read as an image"):
        read_image(path)


def test_nan_in_nifti_is_refused_because_itk_reads_it_as_zero(tmp_path: Path):
    voxels = VOLUME.array.copy()
    voxels[0, 0, :2] = (np.nan, np.inf)
    for suffix in (".nii.gz", ".nii"):
        path = write_image(tmp_path / f"a{suffix}", VOLUME.with_array(voxels))
        with pytest.raises(AutopetError, match="2 voxels are NaN or infinite"):
            read_image(path)


def test_absurd_headers_do_not_reach_the_reader(tmp_path: Path):
    head = "ObjectType = Image\nNDims = {n}\nDimSize = {size}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    for n, size in (("99", "1 " * 99), ("3", "4 4"), ("3", "4 4 -4"), ("x", "4 4 4")):
        (tmp_path / "a.mha").write_text(head.format(n=n, size=size) + "0" * 64)
        with pytest.raises(AutopetError, match="cannot be read as an image"):
            read_image(tmp_path / "a.mha")


def test_the_suffix_decides_the_format(tmp_path: Path):
    nifti = write_image(tmp_path / "a.nii", VOLUME)
    nifti.rename(tmp_path / "a.mha")
    with pytest.raises(AutopetError, match="cannot be read as an image"):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_read_grid_is_the_image_s_grid(tmp_path: Path, suffix: str):
    grid = read_grid(write_image(tmp_path / f"a{suffix}", VOLUME))
    assert grid.same_grid(VOLUME, tolerance_mm=1e-4)
    assert not grid.array.flags.writeable


def test_other_dimensions_are_refused(tmp_path: Path):
    sitk.WriteImage(sitk.Image([4, 4, 4, 2], sitk.sitkFloat32), str(tmp_path / "4d.mha"))
    sitk.WriteImage(sitk.Image([4, 4], sitk.sitkFloat32), str(tmp_path / "2d.mha"))
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3), str(tmp_path / "rgb.mha"))
    for name, words in (("4d", "found 4D"), ("2d", "found 2D"), ("rgb", "3 channels")):
        with pytest.raises(AutopetError, match=words):
            read_image(tmp_path / f"{name}.mha")


def test_a_fourth_axis_of_one_is_no_fourth_dimension(tmp_path: Path):
    sitk.WriteImage(sitk.Image([4, 5, 6, 1], sitk.sitkFloat32), str(tmp_path / "padded.nii.gz"))
    assert read_image(tmp_path / "padded.nii.gz").shape == (6, 5, 4)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(image, name, **_):
        Path(name).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(AutopetError, match=r"disk full.*No space left"):
        write_image(tmp_path / "a.mha", VOLUME)
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix(tmp_path: Path):
    with pytest.raises(AutopetError, match="unknown image suffix"):
        write_image(tmp_path / "a.png", VOLUME)
