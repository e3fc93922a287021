from __future__ import annotations

import gzip
import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import nibabel
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


OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)
TYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", ">i2", ">f4")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 4, 3), (1, 1, 1)])
def test_a_compressed_nifti_is_what_itk_and_nibabel_write_and_read(tmp_path: Path, kind: str, shape: tuple):
    """ITK's own .nii of the same volume is the reference, byte for byte; ITK and nibabel read the same voxels."""
    voxels = np.random.default_rng(1).integers(0, 100, shape).astype(kind)
    volume = Volume(voxels, (2.036, 2.5, 3.27), (-101.25, 17.5, -903.1), OBLIQUE)
    path = write_image(tmp_path / "a.nii.gz", volume)
    native = voxels.astype(np.uint8 if kind == "bool" else np.dtype(kind).newbyteorder("="))
    reference = write_image(tmp_path / "b.nii", volume.with_array(native))
    assert gzip.decompress(path.read_bytes()) == reference.read_bytes()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), native)
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, native)
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ volume.affine, atol=1e-4)  # RAS against LPS
    back = read_image(path)
    assert back.array.dtype == native.dtype
    np.testing.assert_array_equal(back.array, native)
    assert back.same_grid(volume, tolerance_mm=1e-4)


def test_the_same_volume_is_the_same_file(tmp_path: Path):
    assert (
        write_image(tmp_path / "a.nii.gz", VOLUME).read_bytes()
        == write_image(tmp_path / "b.nii.gz", VOLUME).read_bytes()
    )


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4", ">f4"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 0.0), (2.0, -1024.0), (1.0, 3.0)])
def test_a_nifti_of_nibabel_is_read_with_its_scaling(tmp_path: Path, kind: str, slope: float, intercept: float):
    stored = np.arange(60).reshape(3, 4, 5).astype(kind)
    header = nibabel.Nifti1Header(endianness=kind[0])
    header.set_data_dtype(kind)
    image = nibabel.Nifti1Image(stored, np.diag([2.0, 3.0, 4.0, 1.0]), header)
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, tmp_path / "a.nii.gz")
    expected = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).T
    back = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(back.array, expected)
    assert back.array.dtype.isnative
    assert back.spacing_mm == (2.0, 3.0, 4.0)


def test_a_small_file_cannot_announce_a_huge_image(tmp_path: Path):
    data = bytearray(gzip.decompress(write_image(tmp_path / "a.nii.gz", VOLUME).read_bytes()))
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(AutopetError, match="bytes cannot hold"):
        read_image(tmp_path / "a.nii.gz")


def _write_with_little_room(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the limit is an error of write() then, like a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    noise = Volume(np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32))
    with pytest.raises(AutopetError, match="cannot be written"):
        write_image(folder / "a.nii.gz", noise)


def test_a_full_disk_leaves_no_half_nifti(tmp_path: Path):
    process = get_context("spawn").Process(target=_write_with_little_room, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert list(tmp_path.iterdir()) == []
