from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from autopet.errors import AutopetError
from autopet.images import find_images, image_stem, is_image, read_image, write_image
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
