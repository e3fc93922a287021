"""Organ labels: structures by name, the published mapping and the right one, tables of names."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.images import write_image
from autopet.label_names import label_names
from autopet.organs import (
    LABELS,
    ORGANS,
    absent_organs,
    check_organ_map,
    count_voxels,
    merge_labels,
    merge_structures,
    structure_labels,
    task_structures,
    translate_labels,
)
from autopet.volume import Volume

# TotalSegmentator v2, task head_glands_cavities, as its class map lists them
HEAD_IDS = {
    1: "eye_left", 2: "eye_right", 3: "eye_lens_left", 4: "eye_lens_right", 5: "optic_nerve_left",
    6: "optic_nerve_right", 7: "parotid_gland_left", 8: "parotid_gland_right", 9: "submandibular_gland_right",
    10: "submandibular_gland_left", 11: "nasopharynx",
}  # fmt: skip
# the same of task total, those that matter and two others
TOTAL_IDS = {
    1: "spleen", 2: "kidney_right", 3: "kidney_left", 4: "gallbladder", 5: "liver", 6: "stomach",
    10: "lung_upper_lobe_left", 11: "lung_lower_lobe_left", 12: "lung_upper_lobe_right", 13: "lung_middle_lobe_right",
    14: "lung_lower_lobe_right", 21: "urinary_bladder", 22: "prostate", 51: "heart", 52: "aorta", 90: "brain",
}  # fmt: skip


def line(*values: int) -> np.ndarray:
    return np.array(values).reshape(1, 1, -1)


def test_the_classes_are_those_of_the_released_labels():
    assert [(organ.label, organ.name) for organ in ORGANS] == [
        (1, "spleen"), (2, "kidneys"), (3, "liver"), (4, "bladder"), (5, "lung"), (6, "brain"), (7, "heart"),
        (8, "stomach"), (9, "prostate"), (10, "head_glands"),
    ]  # fmt: skip
    assert LABELS["background"] == 0
    assert LABELS["head_glands"] == 10


def test_every_number_of_total_becomes_its_organ():
    numbers = line(*TOTAL_IDS)
    merged = merge_labels(numbers, TOTAL_IDS)
    assert merged.dtype == np.uint8
    assert merged.ravel().tolist() == [1, 2, 2, 0, 3, 8, 5, 5, 5, 5, 5, 4, 9, 7, 0, 6]
    assert absent_organs(TOTAL_IDS.values()) == ("head_glands",)


def test_the_left_submandibular_gland_is_in_corrected_only_and_the_optic_nerve_in_released_only():
    numbers = line(0, *HEAD_IDS)
    # published: numbers 6 to 9; right: the four glands, 7 to 10
    assert merge_labels(numbers, HEAD_IDS, "released").ravel().tolist() == [0, 0, 0, 0, 0, 0, 10, 10, 10, 10, 0, 0]
    assert merge_labels(numbers, HEAD_IDS).ravel().tolist() == [0, 0, 0, 0, 0, 0, 0, 10, 10, 10, 10, 0]
    assert "submandibular_gland_left" in structure_labels()
    assert "submandibular_gland_left" not in structure_labels("released")


def test_names_decide_and_not_numbers():
    turned = {31 - number: name for number, name in HEAD_IDS.items()}  # as another version may number them
    numbers = line(*turned)
    assert np.array_equal(merge_labels(numbers, turned), merge_labels(line(*HEAD_IDS), HEAD_IDS))


def test_the_tasks_that_are_run_name_all_structures_once():
    tasks = task_structures()
    assert sorted(tasks) == ["head_glands_cavities", "total"]
    assert set(tasks["head_glands_cavities"]) == {HEAD_IDS[number] for number in (7, 8, 9, 10)}
    assert set(task_structures("released")["head_glands_cavities"]) == {HEAD_IDS[number] for number in (6, 7, 8, 9)}
    assert set(tasks["total"]) == set(TOTAL_IDS.values()) - {"gallbladder", "aorta"}
    assert len(tasks["total"]) == 14
    with pytest.raises(AutopetError, match="corrected, released"):
        task_structures("right")


def test_masks_are_merged_and_the_higher_label_wins_whatever_the_order():
    masks = {
        "liver": line(1, 1, 0, 0, 0),
        "aorta": line(0, 0, 1, 1, 1),
        "stomach": line(0, 1, 0, 1, 0),
        "spleen": line(0, 0, 0, 1, 0).astype(bool),
    }
    for names in (list(masks), list(masks)[::-1]):
        merged = merge_structures({name: masks[name] for name in names})
        assert merged.ravel().tolist() == [3, 8, 0, 8, 0]
        assert merged.dtype == np.uint8


def test_incomplete_structures_are_refused_by_name():
    lobes = [name for name in task_structures()["total"] if name.startswith("lung")]
    four = {name: line(1) for name in lobes if name != "lung_middle_lobe_right"}
    with pytest.raises(AutopetError, match=r"lung: .*found no lung_middle_lobe_right"):
        merge_structures(four)
    with pytest.raises(AutopetError, match="found none"):
        merge_structures({"aorta": line(1)})
    with pytest.raises(AutopetError, match="one shape"):
        merge_structures({"liver": line(1, 0), "spleen": line(1)})
    # the name of a class stands for the whole organ
    assert "lung" not in absent_organs(["lung"])


def test_a_negative_number_is_refused():
    """As an index it would be counted from the end: voxels of number 5 would take the name of -1."""
    with pytest.raises(AutopetError, match="has the number -1, expected 0 and more"):
        translate_labels(np.array([[[5]]]), {-1: "liver", 5: "aorta"})


def test_a_number_without_a_name_is_refused():
    with pytest.raises(AutopetError, match="labels 7, 9 are not in"):
        merge_labels(line(1, 7, 9), {1: "liver"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 11, 3], "found 11;"),
        ([-1, 2, 300], "found -1, 300;"),
        ([0.5, 1.0, 2.5], "whole numbers as labels, found 0.5, 2.5"),
        ([np.nan, 1.0, 2.0], "whole numbers"),
        (list(range(11, 18)), "found 11, 12, 13, 14, 15 and 2 more"),
    ],
)
def test_labels_that_are_no_organs_are_named(labels, message):
    with pytest.raises(AutopetError, match=message):
        check_organ_map(np.array(labels).reshape(1, 1, -1))


def test_whole_numbers_of_any_type_are_labels():
    for kind in (np.uint8, np.int16, np.int64, np.float32, np.float64):
        checked = check_organ_map(line(0, 10, 3).astype(kind))
        assert checked.dtype == np.uint8
        assert checked.ravel().tolist() == [0, 10, 3]
    assert check_organ_map(line(0, 1).astype(bool)).ravel().tolist() == [0, 1]


def test_voxels_are_counted_for_organs_that_are_not_there_too():
    counts = count_voxels(np.array([[[0, 3, 3, 10]]], np.uint8))
    assert counts["liver"] == 2
    assert counts["head_glands"] == 1
    assert sum(counts.values()) == 3
    assert len(counts) == 10


# --- tables of names -------------------------------------------------------------------------------------------------


def write_with_table(path: Path, labels: np.ndarray, names: dict[int, str]) -> Path:
    """A multilabel image as TotalSegmentator writes it: Workbench's label table in a NIfTI extension, by nibabel."""
    rows = "\n".join(
        f'<Label Key="{number}" Red="1.0" Green="0.0" Blue="0.0" Alpha="1"><![CDATA[{name}]]></Label>'
        for number, name in names.items()
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <VolumeInformation Index="0">   <LabelTable>\n'
        f"{rows}\n  </LabelTable>  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>"
    )
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(np.uint8), np.diag([-4.0, -4.0, 6.0, 1.0]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_the_table_in_the_file_is_read(tmp_path, suffix):
    path = write_with_table(tmp_path / f"map{suffix}", line(0, 1, 5), TOTAL_IDS)
    (tmp_path / "map.json").write_text('{"1": "brain"}')
    assert label_names(path) == TOTAL_IDS


def test_tables_beside_the_map_are_read_either_way_round(tmp_path):
    path = write_image(tmp_path / "map.nii.gz", Volume(np.zeros((1, 1, 2), np.uint8)))
    assert label_names(path) == {}
    (tmp_path / "labels.json").write_text(json.dumps({"spleen": 1, "liver": 5}))
    assert label_names(path) == {1: "spleen", 5: "liver"}
    (tmp_path / "map.json").write_text(json.dumps({"1": "heart"}))
    assert label_names(path) == {1: "heart"}


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": "b"}', '{"spleen": 1, "liver": 1}'])
def test_a_broken_table_is_an_error_that_names_it(tmp_path, text):
    path = write_image(tmp_path / "map.mha", Volume(np.zeros((1, 1, 2), np.uint8)))
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(AutopetError, match=r"map\.json: expected a table"):
        label_names(path)


def test_damaged_and_foreign_files_have_no_table(tmp_path):
    whole = write_with_table(tmp_path / "map.nii.gz", line(0, 1), {1: "spleen"})
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.nii").write_text("no image")
    assert label_names(tmp_path / "cut.nii.gz") == {}
    assert label_names(tmp_path / "text.nii") == {}
    (tmp_path / "noise.nii.gz").write_bytes(gzip.compress(b"x" * 400)[:10] + b"\xff" * 100)
    assert label_names(tmp_path / "noise.nii.gz") == {}  # zlib.error is no OSError
    endless = bytearray(nibabel.Nifti1Header().binaryblock) + bytes([1, 0, 0, 0])
    struct.pack_into("<f", endless, 108, float("inf"))  # vox_offset
    (tmp_path / "endless.nii").write_bytes(endless)
    assert label_names(tmp_path / "endless.nii") == {}
