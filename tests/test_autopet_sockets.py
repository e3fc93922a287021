from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.images import find_images, read_image, write_image
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, read_inputs, write_outputs
from autopet.volume import Volume

SOCKETS = (PET, CT)


def listing(folder: Path, *, key: str, ct_path: str, slugs: tuple[str, str] = ("pet", "ct")) -> None:
    entries = [
        {key: {"slug": slugs[0], "relative_path": "images/pet"}, "value": None},
        {key: {"slug": slugs[1], "relative_path": ct_path}, "value": None},
    ]
    (folder / "inputs.json").write_text(json.dumps(entries))


def test_by_folder(input_folder: Path):
    inputs = read_inputs(input_folder, SOCKETS)
    assert inputs.stem == "ct_name"
    assert inputs.warnings == ()
    assert inputs["pet"].shape == inputs["ct"].shape == (40, 44, 42)


@pytest.mark.parametrize("key", ["socket", "interface"])
def test_inputs_json_decides_the_path(input_folder: Path, key: str):
    (input_folder / "images/ct").rename(input_folder / "images/elsewhere")
    listing(input_folder, key=key, ct_path="images/elsewhere", slugs=("pet", "ct-image"))
    assert read_inputs(input_folder, SOCKETS).stem == "ct_name"


def test_inputs_json_that_is_wrong(input_folder: Path):
    listing(input_folder, key="socket", ct_path="../../etc")
    with pytest.raises(AutopetError, match="leaves the input folder"):
        read_inputs(input_folder, SOCKETS)
    listing(input_folder, key="socket", ct_path="images/x", slugs=("pet", "mri"))
    with pytest.raises(AutopetError, match="names no socket 'ct'; it has mri, pet"):
        read_inputs(input_folder, SOCKETS)
    for text in ("{", "[1]", '{"a": 1}', '[{"socket": {"slug": "ct"}}]'):
        (input_folder / "inputs.json").write_text(text)
        with pytest.raises(AutopetError, match=r"inputs.json: expected a list"):
            read_inputs(input_folder, SOCKETS)


def test_what_is_missing_is_named(input_folder: Path, tmp_path: Path):
    with pytest.raises(AutopetError, match="is empty or missing"):
        read_inputs(tmp_path / "none", SOCKETS)
    find_images(input_folder / "images/ct")[0].unlink()
    with pytest.raises(AutopetError, match="no CT image"):
        read_inputs(input_folder, SOCKETS)
    find_images(input_folder / "images/pet")[0].rename(input_folder / "images/ct/x.mha")
    with pytest.raises(AutopetError, match="no PET image"):
        read_inputs(input_folder, SOCKETS)


def test_two_files_in_one_socket(input_folder: Path):
    pet = find_images(input_folder / "images/pet")[0]
    write_image(pet.with_name("second.mha"), read_image(pet))
    with pytest.raises(AutopetError, match=r"exactly one PET image .* found 2 \(pet_name.mha, second.mha\)"):
        read_inputs(input_folder, SOCKETS)


def test_nan_is_refused(input_folder: Path):
    path = find_images(input_folder / "images/pet")[0]
    pet = read_image(path)
    pet.array[0, 0, :2] = (np.nan, np.inf)
    write_image(path, pet)
    with pytest.raises(AutopetError, match="2 voxels are NaN or infinite"):
        read_inputs(input_folder, SOCKETS)


def test_ct_on_its_own_grid_is_resampled_with_a_warning(input_folder: Path):
    path = find_images(input_folder / "images/ct")[0]
    ct = read_image(path)
    write_image(path, replace(ct, array=ct.array[:30], origin_mm=(-80.0, -90.0, -440.0)))
    inputs = read_inputs(input_folder, SOCKETS)
    assert "ct is not on the pet grid" in inputs.warnings[0]
    assert inputs["ct"].same_grid(inputs["pet"])
    assert (inputs["ct"].array[:10] == -1024).all()  # outside the CT's field of view
    np.testing.assert_array_equal(inputs["ct"].array[10:40], ct.array[:30])


def test_ct_of_another_patient_is_refused(input_folder: Path):
    path = find_images(input_folder / "images/ct")[0]
    write_image(path, replace(read_image(path), origin_mm=(0.0, 0.0, 9999.0)))
    with pytest.raises(AutopetError, match="do not overlap"):
        read_inputs(input_folder, SOCKETS)


def test_outputs_are_written_under_the_ct_name(input_folder: Path, tmp_path: Path):
    inputs = read_inputs(input_folder, SOCKETS)
    mask = inputs["pet"].with_array((inputs["pet"].array > 4).astype(np.uint8))
    write_image(tmp_path / "out" / LESIONS.relative_path / "stale.mha", mask)
    outputs = {LESIONS.slug: mask, DATA_CENTRIC.slug: False}
    paths = write_outputs(tmp_path / "out", (LESIONS, DATA_CENTRIC), outputs, inputs)
    assert paths[1].read_text().strip() == "false"
    assert find_images(tmp_path / "out" / LESIONS.relative_path) == [paths[0]]  # exactly one image per socket
    assert paths[0].name == "ct_name.mha"
    assert read_image(paths[0]).same_grid(inputs["pet"])


def test_a_failed_write_leaves_no_half_output(input_folder: Path, tmp_path: Path):
    inputs = read_inputs(input_folder, SOCKETS)
    mask = inputs["pet"].with_array(np.zeros(inputs["pet"].shape, np.uint8))
    outputs = {LESIONS.slug: mask, DATA_CENTRIC.slug: {1, 2}}  # a set is no JSON: stands for a disk that fills up
    with pytest.raises(TypeError):
        write_outputs(tmp_path / "out", (LESIONS, DATA_CENTRIC), outputs, inputs)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_wrong_outputs_write_nothing(input_folder: Path, tmp_path: Path):
    inputs = read_inputs(input_folder, SOCKETS)
    good = inputs["pet"].with_array(np.zeros(inputs["pet"].shape, np.uint8))
    wrong = {
        "not on the input grid": Volume(np.zeros((2, 2, 2), np.uint8)),
        "must be a mask": good.with_array(good.array + 2),
        "found float32": good.with_array(good.array.astype(np.float32)),
    }
    for words, volume in wrong.items():
        with pytest.raises(AutopetError, match=words):
            write_outputs(
                tmp_path / "out", (DATA_CENTRIC, LESIONS), {LESIONS.slug: volume, DATA_CENTRIC.slug: False}, inputs
            )
    with pytest.raises(AutopetError, match="returned no output"):
        write_outputs(tmp_path / "out", (LESIONS,), {}, inputs)
    assert not (tmp_path / "out").exists()
