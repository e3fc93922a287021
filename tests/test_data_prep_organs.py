"""Organ labels for a cohort: the right voxels of the right map, and a row for every case."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import COLUMNS, write_cases
from typer.testing import CliRunner

from autopet.cohort import Case, read_cohort, read_table, write_table
from autopet.commands.organs import app
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.organs import ORGANS, task_structures
from autopet.volume import Volume
from data_prep import organs
from data_prep.convert import prepare
from data_prep.formats import convert_cohort, read_case
from data_prep.organ_sources import find_sources, read_organs
from data_prep.organs import label_cohort
from data_prep.phantom import write_cohort
from data_prep.totalsegmentator import TotalSegmentator, WeightsError

# of the cases: 40 x 44 x 42 voxels of 4 x 4 x 6 mm from (-80, -90, -500)
BLOCK = (slice(10, 20), slice(8, 16), slice(20, 30))
RUNNER = CliRunner()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data", 2)
    return tmp_path / "data"


def organ_map(case: Case, label: int = 3) -> Volume:
    """A block of an organ on the PET grid."""
    grid = read_image(case.suv)
    labels = np.zeros(grid.shape, np.uint8)
    labels[BLOCK] = label
    return grid.with_array(labels)


def write_maps(folder: Path, data: Path, label: int = 3) -> Path:
    for case in read_cohort(data):
        write_image(folder / f"{case.name}.nii.gz", organ_map(case, label))
    return folder


def write_structures(folder: Path, masks: dict[str, np.ndarray], grid: Volume) -> None:
    for name, mask in masks.items():
        write_image(folder / f"{name}.nii.gz", grid.with_array(mask.astype(np.uint8)))


def write_multilabel(path: Path, volume: Volume, names: dict[int, str]) -> None:
    """A multilabel image with the table in it, by nibabel, in RAS as nibabel has it."""
    labels = "".join(f'<Label Key="{number}"><![CDATA[{name}]]></Label>' for number, name in names.items())
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    image = nibabel.Nifti1Image(volume.array.transpose(2, 1, 0).astype(np.uint8), ras)
    text = f"<CaretExtension><VolumeInformation><LabelTable>{labels}</LabelTable></VolumeInformation></CaretExtension>"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def table(data: Path) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in read_table(data / "organs.csv")}


def named(name: str, patient: str = "p", folder: Path = Path("x")) -> Case:
    return Case(name, patient, folder)


# --- geometry --------------------------------------------------------------------------------------------------------


def test_a_map_on_the_grid_is_taken_as_it_is(data, tmp_path):
    rows = label_cohort(data, maps=write_maps(tmp_path / "maps", data))
    assert [row["status"] for row in rows] == ["written", "written"]
    for case in read_cohort(data):
        found = read_image(case.organs)
        assert case.organs == case.folder / "ORGANS.nii.gz" == case.image("ORGANS")
        assert found.array.dtype == np.uint8
        assert found.same_grid(read_image(case.suv))
        assert np.array_equal(found.array, organ_map(case).array)
        assert table(data)[case.name]["liver"] == "800"  # 10 x 8 x 10
        assert table(data)[case.name]["spleen"] == "0"


def test_a_flipped_map_lands_on_the_same_voxels(data, tmp_path):
    """The same map with its x and z axes turned round: other first voxel, other directions, mirrored array."""
    case = read_cohort(data)[0]
    straight = organ_map(case)
    x, y, z = straight.origin_mm
    turned = Volume(
        straight.array[::-1, :, ::-1],
        straight.spacing_mm,
        (x + 41 * 4.0, y, z + 39 * 6.0),
        (-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0),
    )
    write_image(tmp_path / "maps/case00.nii.gz", turned)
    assert label_cohort(data, maps=tmp_path / "maps")[0]["status"] == "written"
    assert np.array_equal(read_image(case.organs).array, straight.array)


def test_a_finer_map_of_another_extent_lands_on_the_right_voxels(data, tmp_path):
    """2 x 2 x 3 mm; PET voxels (k, j, i) lie at z = -500 + 6 k, y = -90 + 4 j, x = -80 + 4 i."""
    fine = np.zeros((90, 60, 60), np.float32)
    origin = (-30.6, -60.5, -450.0)
    fine[20:40, 10:30, 30:50] = 8  # x 29.4 to 67.4, y -40.5 to -2.5, z -390 to -333 mm: centres of its voxels
    write_image(tmp_path / "maps/case00.nii.gz", Volume(fine, (2.0, 2.0, 3.0), origin))
    label_cohort(data, maps=tmp_path / "maps")
    found = read_image(read_cohort(data)[0].organs).array
    k, j, i = (axis.astype(float) for axis in np.indices(found.shape))
    z, y, x = -500 + 6 * k, -90 + 4 * j, -80 + 4 * i
    inside = (abs(x - 48.4) < 20) & (abs(y + 21.5) < 20) & (abs(z + 361.5) < 30)  # half a voxel around them
    assert np.array_equal(found == 8, inside)
    assert inside.sum() == 10 * 10 * 10
    assert set(np.unique(found)) == {0, 8}


def test_a_map_beside_the_pet_is_refused_and_one_that_sticks_out_is_told(data, tmp_path):
    first, second = read_cohort(data)
    away = replace(organ_map(first), origin_mm=(2000.0, 0.0, 0.0))
    write_image(tmp_path / "maps/case00.nii.gz", away)
    # the block's ten slices begin 9 slices above the PET's last but five: 4 of them are left
    up = replace(organ_map(second), origin_mm=(-80.0, -90.0, -500.0 + 26 * 6.0))
    write_image(tmp_path / "maps/case01.nii.gz", up)
    label_cohort(data, maps=tmp_path / "maps")
    rows = table(data)
    assert rows["case00"]["status"] == "failed"
    assert "within the PET" in rows["case00"]["reason"]
    assert not first.organs.exists()
    assert rows["case01"]["status"] == "written"
    assert "40 % of the map's organs" in rows["case01"]["reason"]


def test_a_real_organ_map_lands_where_it_was(real_data, tmp_path):
    path = sorted((real_data / "organ-labels").glob("*.nii.gz"))[0]
    real = read_image(path)
    shape = (95, 80, 82)
    centre = real.affine @ [*(np.array(real.shape[::-1]) / 2), 1]
    spacing = np.array([5.3, 5.3, 10.7])
    origin = tuple(float(v) for v in centre[:3] - spacing * np.array(shape[::-1]) / 2)
    grid = Volume(np.ones(shape, np.float32), tuple(spacing), origin)
    write_image(tmp_path / "data/real/SUV.nii.gz", grid)
    row = {"case": "real", "patient_id": "r", "status": "converted", "folder": "real"}
    write_table(tmp_path / "data/prep.csv", [dict.fromkeys(COLUMNS, "") | row], COLUMNS)
    shutil.copytree(path.parent, tmp_path / "maps", ignore=lambda _, names: [n for n in names if n != path.name])
    (tmp_path / "maps" / path.name).rename(tmp_path / "maps/real.nii.gz")
    (row,) = label_cohort(tmp_path / "data", maps=tmp_path / "maps")
    assert row["status"] == "written"
    found = read_image(tmp_path / "data/real/ORGANS.nii.gz").array
    z, y, x = np.indices(shape).reshape(3, -1)
    points = grid.affine @ [x, y, z, np.ones_like(x)]
    i, j, k = np.rint((np.linalg.inv(real.affine) @ points)[:3]).astype(int)
    inside = (i >= 0) & (j >= 0) & (k >= 0) & (i < real.shape[2]) & (j < real.shape[1]) & (k < real.shape[0])
    expected = np.zeros(x.size, np.uint8)
    expected[inside] = real.array[k[inside], j[inside], i[inside]]
    assert np.mean(found.ravel() == expected) > 0.9999  # ties of rounding
    assert len(set(np.unique(expected))) >= 9
    assert int(row["liver"]) == pytest.approx((expected == 3).sum(), abs=2)


# --- which map -------------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if "." not in name else path.touch()
    return folder


def test_maps_are_found_by_case_then_by_patient(tmp_path):
    folder = touch(tmp_path, "a_1.nii.gz", "pat2_total.mha", "pat3", "readme.txt", ".part-1-c.nii.gz")
    cases = [named("a_1", "pat1"), named("b_1", "pat2"), named("c_1", "pat3"), named("d_1", "pat4"), named("e", "pat")]
    found = find_sources(folder, cases)
    assert [tuple(path.name for path in found[case.name].paths) for case in cases] == [
        ("a_1.nii.gz",), ("pat2_total.mha",), ("pat3",), (), (),
    ]  # fmt: skip
    assert found["d_1"].status == "missing"
    assert found["e"].status == "missing"  # pat2 does not begin with pat and an end of word
    assert "d_1 or pat4" in found["d_1"].reason


def test_the_exact_and_the_longest_name_go_first(tmp_path):
    folder = touch(tmp_path, "case1.nii.gz", "case1_old.nii.gz", "case1_2.nii.gz", "case10_x.nii.gz")
    found = find_sources(folder, [named("case1"), named("case1_2", "q"), named("case10", "r")])
    assert [path.name for path in found["case1"].paths] == ["case1.nii.gz"]
    assert [path.name for path in found["case1_2"].paths] == ["case1_2.nii.gz"]
    assert [path.name for path in found["case10"].paths] == ["case10_x.nii.gz"]


def test_several_maps_or_cases_are_ambiguous(tmp_path):
    folder = touch(tmp_path, "a.nii.gz", "a.mha", "b_x.nii.gz", "b_y.nii.gz", "p.nii.gz")
    cases = [named("a", "1"), named("b", "2"), named("c1", "p"), named("c2", "p")]
    found = find_sources(folder, cases)
    assert {name: source.status for name, source in found.items()} == dict.fromkeys(found, "ambiguous")
    assert "a.mha, a.nii.gz" in found["a"].reason
    assert "p, who has 2 cases" in found["c1"].reason
    assert all(not source.paths for source in found.values())


def test_a_map_per_task_belongs_together(tmp_path):
    folder = touch(tmp_path, "a_total.nii.gz", "a_head_glands_cavities.nii.gz")
    assert len(find_sources(folder, [named("a")])["a"].paths) == 2


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(AutopetError, match="no such folder"):
        find_sources(tmp_path / "none", [named("a")])
    with pytest.raises(AutopetError, match="no organ map"):
        find_sources(touch(tmp_path, "notes.txt"), [named("a")])


# --- what it holds ---------------------------------------------------------------------------------------------------


def everything(grid: Volume, variant: str = "corrected") -> dict[str, np.ndarray]:
    """A plane of its own for every structure of both tasks, and for two that belong to no organ."""
    names = [name for structures in task_structures(variant).values() for name in structures]
    names += ["aorta", "submandibular_gland_left" if variant == "released" else "optic_nerve_right"]
    masks = {}
    for plane, name in enumerate(names):
        masks[name] = np.zeros(grid.shape, bool)
        masks[name][plane] = True
    return masks


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_of_structures(tmp_path, nested):
    grid = Volume(np.zeros((20, 3, 4), np.uint8), (2.0, 2.0, 3.0))
    masks = everything(grid)
    for name, mask in masks.items():
        task = "head_glands_cavities" if "gland" in name or "optic" in name else "total"
        write_structures(tmp_path / "case" / (task if nested else ""), {name: mask}, grid)
    found = read_organs([tmp_path / "case"])
    expected = [1, 2, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 10, 10, 10, 0, 0]
    assert found.volume.array[:, 0, 0].tolist() == expected
    assert found.volume.same_grid(grid)
    assert (found.absent, found.variant) == ((), "corrected")


def test_a_folder_with_a_hole_or_two_of_a_kind_is_refused(tmp_path):
    grid = Volume(np.zeros((20, 3, 4), np.uint8))
    write_structures(tmp_path / "case", everything(grid), grid)
    (tmp_path / "case/kidney_left.nii.gz").unlink()
    with pytest.raises(AutopetError, match=r"case: kidneys: .*no kidney_left"):
        read_organs([tmp_path / "case"])
    write_structures(tmp_path / "case", {"kidney_left": np.ones((19, 3, 4))}, Volume(np.zeros((19, 3, 4), np.uint8)))
    with pytest.raises(AutopetError, match=r"another grid than .*shape"):
        read_organs([tmp_path / "case"])
    write_structures(tmp_path / "case", {"kidney_left": np.ones((20, 3, 4))}, grid)
    write_structures(tmp_path / "case/total", {"liver": np.ones((20, 3, 4))}, grid)
    with pytest.raises(AutopetError, match="liver is in .* too"):
        read_organs([tmp_path / "case"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(AutopetError, match="found none"):
        read_organs([tmp_path / "empty"])


def test_multilabel_images_with_their_tables(tmp_path):
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[0], labels[1] = 5, 21
    total = Volume(labels, (4.0, 3.0, 2.0), (-7.0, 9.0, 100.0))
    names = dict(enumerate(task_structures()["total"], start=30)) | {5: "liver", 21: "urinary_bladder"}
    names = {number: name for number, name in names.items() if number < 30 or name not in ("liver", "urinary_bladder")}
    write_multilabel(tmp_path / "a_total.nii.gz", total, names)
    found = read_organs([tmp_path / "a_total.nii.gz"])
    assert found.absent == ("head_glands",)
    assert found.volume.array[:, 0, 0].tolist() == [3, 4, 0]
    assert found.volume.same_grid(total)

    glands = np.zeros_like(labels)
    glands[1, :, 0], glands[2, :, 1], glands[2, :, 2], glands[2, :, 3] = 7, 10, 6, 11
    head = {6: "optic_nerve_right", 7: "parotid_gland_left", 8: "parotid_gland_right"}
    head |= {9: "submandibular_gland_right", 10: "submandibular_gland_left", 11: "nasopharynx"}
    write_multilabel(tmp_path / "a_head_glands_cavities.nii.gz", total.with_array(glands), head)
    paths = sorted(tmp_path.glob("a_*.nii.gz"))
    both = read_organs(paths)
    assert both.absent == ()
    assert both.volume.array[:, 0].tolist() == [[3] * 5, [10, 4, 4, 4, 4], [0, 10, 0, 0, 0]]
    released = read_organs(paths, "released")
    assert released.volume.array[2, 0].tolist() == [0, 0, 10, 0, 0]


def test_a_label_that_its_table_lacks_names_the_file(tmp_path):
    write_multilabel(tmp_path / "a.nii.gz", Volume(np.full((2, 2, 2), 4, np.uint8)), {1: "liver"})
    with pytest.raises(AutopetError, match=r"a\.nii\.gz: labels 4 are not"):
        read_organs([tmp_path / "a.nii.gz"])


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def test_nothing_is_dropped_and_the_status_says_so(tmp_path):
    data = tmp_path / "data"
    cases = write_cases(data, 6)
    maps = write_maps(tmp_path / "maps", data)
    (maps / "case01.nii.gz").unlink()
    shutil.copy(maps / "case02.nii.gz", maps / "case02.copy.nii.gz")
    (maps / "case02.nii.gz").rename(maps / "case02-b.nii.gz")
    (maps / "case03.nii.gz").write_bytes(b"broken")
    write_image(maps / "case04.nii.gz", organ_map(cases[4], 12))
    write_image(maps / "case05.nii.gz", organ_map(cases[5], 0))
    result = command(data, "--maps", maps)
    assert result.exit_code == 3
    rows = table(data)
    statuses = ["written", "missing", "ambiguous", "failed", "failed", "failed"]
    assert [row["status"] for row in rows.values()] == statuses
    assert list(rows) == [case.name for case in cases]
    assert "no map named case01 or patient01" in rows["case01"]["reason"]
    assert "cannot be read" in rows["case03"]["reason"]
    assert "case04.nii.gz: expected organ labels 0 to 10, found 12;" in rows["case04"]["reason"]
    assert "no organ label" in rows["case05"]["reason"]
    assert rows["case01"]["liver"] == ""
    assert rows["case00"]["source"] == str(maps / "case00.nii.gz")
    assert [case.organs.is_file() for case in cases] == [True, False, False, False, False, False]
    assert not list(data.rglob(".*"))  # neither locks nor halves of files


def test_bad_calls_and_cohorts_without_any_labels(data, tmp_path):
    maps = write_maps(tmp_path / "maps", data)
    for arguments in ((data,), (data, "--maps", maps, "--totalsegmentator")):
        assert "one of --maps DIR and --totalsegmentator" in str(command(*arguments).exception)
    touch(tmp_path / "others", "stranger.nii.gz")
    with pytest.raises(AutopetError, match="no case got organ labels; first reason: no map named case00"):
        RUNNER.invoke(app, [str(data), "--maps", str(tmp_path / "others")], catch_exceptions=False)
    assert [row["status"] for row in table(data).values()] == ["missing", "missing"]
    with pytest.raises(AutopetError, match="give one of the two"):
        label_cohort(data)
    with pytest.raises(AutopetError, match="corrected, released"):
        label_cohort(data, maps=maps, variant="best")


def test_workers_and_mha(tmp_path):
    data = tmp_path / "data"
    for case in write_cases(tmp_path / "nifti", 3):
        for role in ("SUV", "CTres", "SEG"):
            write_image(data / case.name / f"{role}.mha", read_image(case.image(role)))
    shutil.copy(tmp_path / "nifti/prep.csv", data)
    result = command(data, "--maps", write_maps(tmp_path / "maps", data), "--workers", 2)
    assert result.exit_code == 0
    assert len(table(data)) == 3
    for case in read_cohort(data):
        assert case.organs.name == "ORGANS.mha"
        assert np.array_equal(read_image(case.organs).array, organ_map(case).array)


# --- again -----------------------------------------------------------------------------------------------------------


def stamp(data: Path) -> dict[str, int]:
    return {case.name: case.organs.stat().st_mtime_ns for case in read_cohort(data)}


def test_labels_are_kept_until_their_source_changes_or_again_is_said(data, tmp_path):
    maps = write_maps(tmp_path / "maps", data)
    label_cohort(data, maps=maps)
    first, before = stamp(data), table(data)
    rows = label_cohort(data, maps=maps)
    assert stamp(data) == first
    assert [row["status"] for row in rows] == ["kept", "kept"]
    assert [row | {"status": "written"} for row in table(data).values()] == list(before.values())

    write_image(maps / "case00.nii.gz", organ_map(read_cohort(data)[0], 9))
    assert [row["status"] for row in label_cohort(data, maps=maps)] == ["written", "kept"]
    assert table(data)["case00"]["prostate"] == "800"

    second = stamp(data)
    assert [row["status"] for row in label_cohort(data, maps=maps, again=True)] == ["written", "written"]
    assert all(time != second[name] for name, time in stamp(data).items())


def test_what_is_damaged_or_on_another_grid_is_made_anew(data, tmp_path):
    maps = write_maps(tmp_path / "maps", data)
    label_cohort(data, maps=maps)
    first, second = read_cohort(data)
    first.organs.write_bytes(first.organs.read_bytes()[:-40])
    write_image(second.organs, Volume(np.ones((3, 3, 3), np.uint8)))
    assert [row["status"] for row in label_cohort(data, maps=maps)] == ["written", "written"]
    for case in (first, second):
        assert np.array_equal(read_image(case.organs).array, organ_map(case).array)


def test_maps_of_two_folders_add_up_and_a_broken_map_is_not_forgotten(data, tmp_path):
    first, second = read_cohort(data)
    write_image(tmp_path / "a/case00.nii.gz", organ_map(first, 1))
    write_image(tmp_path / "b/case01.nii.gz", organ_map(second, 2))
    assert [row["status"] for row in label_cohort(data, maps=tmp_path / "a")] == ["written", "missing"]
    rows = label_cohort(data, maps=tmp_path / "b")
    assert [row["status"] for row in rows] == ["kept", "written"]
    assert "an earlier run stay: no map named case00" in rows[0]["reason"]
    assert rows[0]["source"] == str(tmp_path / "a/case00.nii.gz")
    again = label_cohort(data, maps=tmp_path / "a")
    assert [(row["status"], row["spleen"], row["kidneys"]) for row in again] == [
        ("kept", "800", "0"),
        ("kept", "0", "800"),
    ]
    assert again[0]["reason"] == ""

    # another source that fails leaves the old labels, says so, and is tried again
    write_image(tmp_path / "c/case00.nii.gz", organ_map(first, 99))
    row = label_cohort(data, maps=tmp_path / "c")[0]
    assert row["status"] == "failed"
    assert "found 99" in row["reason"]
    assert "image of an earlier run is still there" in row["reason"]
    write_image(tmp_path / "c/case00.nii.gz", organ_map(first, 7))
    row = label_cohort(data, maps=tmp_path / "c")[0]
    assert (row["status"], row["heart"]) == ("written", "800")


def test_labels_that_no_table_knows_stay(data, tmp_path):
    """Such as those that `autopet convert` carried along, or that a killed call had just written."""
    for case in read_cohort(data):
        write_image(case.organs, organ_map(case, 6))
    rows = label_cohort(data, maps=write_maps(tmp_path / "maps", data))
    assert [(row["status"], row["brain"], row["source"]) for row in rows] == [("kept", "800", "")] * 2


def test_another_run_is_refused(data, tmp_path):
    maps = write_maps(tmp_path / "maps", data)
    with organs.sole_writer(data), pytest.raises(AutopetError, match="another run is writing"):
        label_cohort(data, maps=maps)


# --- TotalSegmentator ------------------------------------------------------------------------------------------------

PYTHON = sys.executable
HEAD = (
    "optic_nerve_right", "parotid_gland_left", "parotid_gland_right", "submandibular_gland_right",
    "submandibular_gland_left", "nasopharynx",
)  # fmt: skip
# what the real one (2.18) does: subsets of task total only, a folder of one mask per class; here liver is CT > 0, and
# the right optic nerve and the left submandibular gland are a plane each
FAKE = """#!{python} -SE
import array, gzip, struct, sys
from pathlib import Path

arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(" ".join(arguments) + "\\n")
options = {{}}
for word in arguments:
    if word.startswith("-"):
        values = options.setdefault(word, [])
    else:
        values.append(word)
if options["--task"] != ["total"] and "--roi_subset" in options:
    sys.exit("ValueError: roi_subset only works with task 'total' or 'total_mr'")
ct, out = gzip.open(options["-i"][0]).read(), Path(options["-o"][0])
header, voxels = bytearray(ct[:352]), array.array("h", ct[352:])
assert struct.unpack_from("<2h", header, 70) == (4, 16), "int16"
nx, ny, nz = struct.unpack_from("<3h", header, 42)
struct.pack_into("<2h", header, 70, 2, 8)  # a mask is uint8
planes = {{"optic_nerve_right": 0, "submandibular_gland_left": 1}}
for name in options["--roi_subset"] if options["--task"] == ["total"] else {head!r}:
    mask = bytearray(value > 0 for value in voxels) if name == "liver" else bytearray(nx * ny * nz)
    if name in planes:
        mask[planes[name] * nx * ny : (planes[name] + 1) * nx * ny] = bytes([1]) * nx * ny
    with gzip.open(out / (name + ".nii.gz"), "wb", 1) as file:
        file.write(header + mask)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts an executable of TotalSegmentator's name into PATH; returns the file that it logs its calls to."""
    place, log = tmp_path / "bin", tmp_path / "calls.txt"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr(sys, "executable", str(place / "python"))  # the command is looked for beside it, too

    def write(text: str) -> Path:
        (place / "TotalSegmentator").write_text(text.format(python=PYTHON, log=str(log), head=HEAD))
        (place / "TotalSegmentator").chmod(0o755)
        return log

    return write


@pytest.mark.parametrize("mapping", ["corrected", "released"])
def test_totalsegmentator_runs_on_every_ct_in_its_own_grid(data, install, mapping):
    log = install(FAKE)
    first, second = read_cohort(data)
    # a CT on a grid of its own: twice as fine, with one hot cube over PET voxels 4 to 9 of every axis
    ct = np.full((80, 88, 84), -1000, np.int16)
    ct[8:20, 8:20, 8:20] = 100
    write_image(first.image("CT"), Volume(ct, (2.0, 2.0, 3.0), (-81.0, -91.0, -501.5)))
    result = command(data, "--totalsegmentator", "--device", "cpu", "--organ-map", mapping)
    assert result.exit_code == 0, result.output
    found = read_image(first.organs).array
    assert (found == 3).sum() == 6**3
    assert (found[4:10, 4:10, 4:10] == 3).all()
    # without a CT of its own the one on the PET grid is taken, where the body is above 0 HU
    body = read_image(second.ct).array > 0
    gland_plane = 0 if mapping == "released" else 1
    expected = np.where(body, 3, 0)
    expected[gland_plane] = 10
    assert np.array_equal(read_image(second.organs).array, expected)
    row = table(data)["case01"]
    assert (row["status"], row["source"], row["organ_map"]) == ("written", "TotalSegmentator", mapping)
    assert row["reason"] == ""

    calls = [line.split() for line in log.read_text().splitlines()]
    assert [call[call.index("--task") + 1] for call in calls] == ["total", "head_glands_cavities"] * 2
    assert calls[0][:2] == ["-i", str(first.image("CT"))]
    assert calls[2][:2] == ["-i", str(second.ct)]
    assert all(call[-2:] == ["--device", "cpu"] for call in calls)
    assert not Path(calls[0][3]).exists()  # nothing is left in the temporary folder

    # a second call has nothing to do; another mapping has
    assert command(data, "--totalsegmentator", "--organ-map", mapping).exit_code == 0
    assert len(log.read_text().splitlines()) == 4
    other = {"corrected": "released", "released": "corrected"}[mapping]
    assert command(data, "--totalsegmentator", "--organ-map", other).exit_code == 0
    assert len(log.read_text().splitlines()) == 8


def test_totalsegmentator_is_given_nifti_of_an_mha(tmp_path, install):
    log = install(FAKE)
    ct = write_image(tmp_path / "CT.mha", Volume(np.full((4, 5, 6), 50, np.int16), (2.0, 3.0, 4.0), (1.0, 2.0, 3.0)))
    found = TotalSegmentator.find().segment(ct)
    assert found.volume.same_grid(read_image(ct))
    assert (found.volume.array[2:] == 3).all()
    assert "--device" not in log.read_text()


def test_without_totalsegmentator_the_error_says_how_to_install_it(data, install):
    result = command(data, "--totalsegmentator")
    assert "pip install" in str(result.exception)
    assert "--maps" in str(result.exception)
    assert not (data / "organs.csv").exists()


def test_a_failure_is_one_case_and_its_last_line_is_the_reason(data, install):
    first, _ = read_cohort(data)
    write_image(first.image("CT"), read_image(first.ct))  # by which the script knows the first case
    install(FAKE.replace("ct, out =", "sys.exit('Traceback\\nRuntimeError: no memory') if "
                         "options['-i'][0].endswith('CT.nii.gz') else None\nct, out ="))  # fmt: skip
    assert command(data, "--totalsegmentator").exit_code == 3
    rows = table(data)
    assert [row["status"] for row in rows.values()] == ["failed", "written"]
    assert rows["case00"]["reason"].endswith("RuntimeError: no memory")
    assert "status 1" in rows["case00"]["reason"]


def test_weights_that_cannot_be_fetched_end_the_run(data, install):
    log = install(
        "#!{python}\nimport sys\nopen({log!r}, 'a').write('called\\n')\n"
        'sys.exit(\'requests.exceptions.ConnectionError: HTTPSConnectionPool(host="github.com", port=443): '
        "Max retries exceeded with url: /wasserth/TotalSegmentator/releases/download/v2.0.0-weights/part1.zip')\n"
    )
    result = command(data, "--totalsegmentator")
    assert isinstance(result.exception, WeightsError)
    assert "could not fetch the weights of its task total" in str(result.exception)
    assert "~/.totalsegmentator" in str(result.exception)
    assert len(log.read_text().splitlines()) == 1  # the other case is not tried


def test_a_ct_without_a_skull_has_no_glands(data, install):
    """Some versions want to save one empty image under the name of our folder, and fail; later ones write masks."""
    fails = (
        "if options['--task'] != ['total']:\n    print('INFO: Crop is empty. Returning empty segmentation.')\n"
        "    sys.exit('nibabel.filebasedimages.ImageFileError: Cannot work out file type')\n"
    )
    install(FAKE.replace("ct, out =", f"{fails}ct, out ="))
    assert command(data, "--totalsegmentator").exit_code == 0
    for case in read_cohort(data):
        assert np.array_equal(read_image(case.organs).array, np.where(read_image(case.ct).array > 0, 3, 0))
    assert {(row["status"], row["reason"], row["head_glands"]) for row in table(data).values()} == {
        ("written", "", "0")
    }


def test_structures_that_were_not_written_are_an_error(data, install):
    install(FAKE.replace("{head!r}", "['nasopharynx']"))
    with pytest.raises(AutopetError, match="wrote no structure of head_glands"):
        RUNNER.invoke(app, [str(data), "--totalsegmentator"], catch_exceptions=False)
    assert [row["status"] for row in table(data).values()] == ["failed", "failed"]


# --- with the rest of the way ----------------------------------------------------------------------------------------


def test_phantoms_from_dicom_to_organ_labels_and_other_formats(tmp_path, capsys):
    dicom, data = tmp_path / "dicom", tmp_path / "nifti"
    write_cohort(dicom, cases=1, seed=7)
    (converted,) = prepare(dicom, data)
    assert (converted["status"], converted["warnings"]) == ("converted", "")
    assert "not readable" not in capsys.readouterr().err
    assert command(data, "--maps", dicom / "organs").exit_code == 0
    cases = read_cohort(data)
    for case in cases:
        expected = read_image(dicom / "organs" / f"{case.patient_id}.nii.gz")
        found = read_image(case.organs)
        assert found.same_grid(read_image(case.suv), 0.05)  # DICOM rounds positions
        assert np.array_equal(found.array, expected.array)
        row = table(data)[case.name]
        assert [int(row[organ.name]) for organ in ORGANS] == [
            int((expected.array == organ.label).sum()) for organ in ORGANS
        ]
        suv = read_image(case.suv).array
        median = {organ.name: np.median(suv[found.array == organ.label]) for organ in ORGANS if row[organ.name] != "0"}
        # FDG: brain and bladder are hot, lungs cold; CT: lungs are air, the others are not
        assert median["bladder"] > 2 * median["liver"] > 4 * median["lung"]
        assert median["brain"] > 2 * median["liver"]
        assert np.median(read_image(case.ct).array[found.array == 5]) < -600
        assert np.median(read_image(case.ct).array[found.array == 3]) > 0
    # a second `prep` keeps them
    prepare(dicom, data)
    assert all(case.organs.is_file() for case in cases)

    convert_cohort(data, tmp_path / "mha", to="mha")
    convert_cohort(tmp_path / "mha", tmp_path / "h5", to="hdf5")
    convert_cohort(tmp_path / "h5/cohort.h5", tmp_path / "back", to="nifti")
    capsys.readouterr()
    convert_cohort(data, tmp_path / "raw", to="nnunet")
    assert "SUV conversion; organ labels" in " ".join(capsys.readouterr().err.split())
    for before, mha, back in zip(cases, read_cohort(tmp_path / "mha"), read_cohort(tmp_path / "back"), strict=True):
        organs_before = read_image(before.organs)
        held = read_case(tmp_path / "h5/cohort.h5", before.name)["ORGANS"]
        for image in (read_image(mha.organs), held, read_image(back.organs)):
            assert image.array.dtype == np.uint8
            assert np.array_equal(image.array, organs_before.array)
            assert image.same_grid(organs_before)
