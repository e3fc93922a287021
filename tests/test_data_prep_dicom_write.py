"""What the phantom's DICOM files say, read back with pydicom and highdicom."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.dicom_write import StudyHeader, write_segmentation, write_study

DIGEST_OF_AXIAL = "5ea02fec1f6a5c2e2943474807d26b2e02f1aee279b3ab92d73ad3e3aaa59e0f"
SPACING, ORIGIN = (4.07283, 4.2, 6.0), (-33.123, 20.5, -812.25)


def make_header(**changes) -> StudyHeader:
    injected = dt.datetime(2004, 5, 6, 10, 2, 0)
    values: dict[str, Any] = {
        "entropy": "test",
        "patient_id": "PETCT_0123456789",
        "description": "PET-CT",
        "sex": "F",
        "age_years": 61,
        "weight_kg": 71.3,
        "height_m": 1.68,
        "tracer": "FDG",
        "nuclide": "18F",
        "dose_bq": 3.01e8,
        "injected": injected,
        "start": injected + dt.timedelta(minutes=63),
        "manufacturer": "SIEMENS",
        "model": "Biograph64_mCT",
    }
    return StudyHeader(**(values | changes))


def make_volumes(slices=50):
    rng = np.random.default_rng(0)
    suv = rng.gamma(1.0, 2.0, (slices, 7, 9)).astype(np.float32)
    suv[3] = 0  # a slice without counts
    mask = np.zeros(suv.shape, np.uint8)
    mask[5:8, 2:4, 3:6] = 1
    mask[min(20, slices - 1), 6, 8] = 1
    pet = Volume(suv, SPACING, ORIGIN)
    ct = Volume(rng.integers(-1024, 3000, (6, 8, 10)).astype(np.int16), (3.0, 3.0, 5.0), ORIGIN)
    return pet, ct, pet.with_array(mask)


def read_series(folder):
    return sorted((pydicom.dcmread(path) for path in folder.glob("*.dcm")), key=lambda d: d.ImagePositionPatient[2])


def seconds(time):
    return int(time[:2]) * 3600 + int(time[2:4]) * 60 + float(time[4:])


@pytest.mark.parametrize(
    "changes", [{}, {"tracer": "PSMA", "nuclide": "68Ga", "manufacturer": "GE MEDICAL SYSTEMS", "weight_kg": 99.0}]
)
def test_suv_survives_the_headers(tmp_path, changes):
    pet, ct, mask = make_volumes()
    write_study(tmp_path, make_header(**changes), pet=pet, ct=ct, mask=mask)
    files = read_series(tmp_path / "PT")
    first = files[0]
    assert (first.Units, first.DecayCorrection) == ("BQML", "START")
    assert {"ATTN", "DECY"} <= set(first.CorrectedImage)
    assert len({float(f.RescaleSlope) for f in files}) > 40  # each slice has its own
    assert len({f.AcquisitionTime for f in files}) == 2  # two beds, but one series time
    dose = first.RadiopharmaceuticalInformationSequence[0]
    elapsed_s = seconds(first.SeriesTime) - seconds(dose.RadiopharmaceuticalStartTime)
    assert elapsed_s == 63 * 60
    decayed = float(dose.RadionuclideTotalDose) * 2 ** (-elapsed_s / float(dose.RadionuclideHalfLife))
    factor = 1000 * float(first.PatientWeight) / decayed
    suv = np.stack([f.pixel_array * float(f.RescaleSlope) for f in files]) * factor
    step = pet.array.max(axis=(1, 2)) / 32767
    assert np.all(np.abs(suv - pet.array).max(axis=(1, 2)) <= 0.51 * step + 1e-5)
    assert suv.sum() == pytest.approx(pet.array.sum(), rel=1e-4)


def test_geometry_is_written_slice_by_slice(tmp_path):
    pet, ct, mask = make_volumes()
    write_study(tmp_path, make_header(), pet=pet, ct=ct, mask=mask)
    for name, volume in (("PT", pet), ("CT", ct)):
        files = read_series(tmp_path / name)
        assert len(files) == volume.shape[0]
        for index, file in enumerate(files):
            expected = (*ORIGIN[:2], ORIGIN[2] + index * volume.spacing_mm[2])
            assert np.allclose(file.ImagePositionPatient, expected, atol=1e-5)
            assert np.allclose(file.PixelSpacing, (volume.spacing_mm[1], volume.spacing_mm[0]))
            assert list(file.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert len({f.FrameOfReferenceUID for name in ("PT", "CT") for f in read_series(tmp_path / name)}) == 1


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "GE MEDICAL SYSTEMS"])
def test_ct_is_exact(tmp_path, manufacturer):
    pet, ct, mask = make_volumes()
    write_study(tmp_path, make_header(manufacturer=manufacturer), pet=pet, ct=ct, mask=mask)
    files = read_series(tmp_path / "CT")
    hu = np.stack([f.pixel_array.astype(int) * int(f.RescaleSlope) + int(f.RescaleIntercept) for f in files])
    assert np.array_equal(hu, ct.array)


def test_segmentation_frames_lie_on_the_pet_planes(tmp_path):
    pet, ct, mask = make_volumes()
    write_study(tmp_path, make_header(), pet=pet, ct=ct, mask=mask)
    heights = {f.SOPInstanceUID: float(f.ImagePositionPatient[2]) for f in read_series(tmp_path / "PT")}
    segmentation = hd.seg.segread(tmp_path / "SEG" / "lesion.dcm")
    assert segmentation.NumberOfFrames == 4  # only planes with lesion
    assert segmentation.get_segment_description(1).segment_label == "Lesion"
    for frame, group in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        z = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        index = round((z - ORIGIN[2]) / SPACING[2])
        assert np.array_equal(frame, mask.array[index])
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert heights[source] == pytest.approx(z)


def test_highdicom_rebuilds_the_mask_from_its_sources(tmp_path):
    pet, ct, mask = make_volumes()
    write_study(tmp_path, make_header(), pet=pet, ct=ct, mask=mask)
    sources = [f.SOPInstanceUID for f in read_series(tmp_path / "PT")]
    segmentation = hd.seg.segread(tmp_path / "SEG" / "lesion.dcm")
    rebuilt = segmentation.get_pixels_by_source_instance(
        sources, segment_numbers=[1], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(rebuilt[..., 0], mask.array)


def test_an_empty_mask_is_one_frame_of_zeros(tmp_path):
    pet, _, mask = make_volumes()
    write_segmentation(tmp_path / "SEG", make_header(), mask.with_array(np.zeros_like(mask.array)), pet)
    segmentation = hd.seg.segread(tmp_path / "SEG" / "lesion.dcm")
    assert segmentation.NumberOfFrames == 1
    assert segmentation.pixel_array.shape == (7, 9)
    assert not segmentation.pixel_array.any()


def test_same_arguments_same_bytes(tmp_path):
    pet, ct, mask = make_volumes(slices=8)
    for name in ("a", "b"):
        write_study(tmp_path / name, make_header(), pet=pet, ct=ct, mask=mask)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.dcm"))
    assert len(files) == 8 + 6 + 1
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_uids_are_valid_and_differ():
    header = make_header()
    uids = {header.uid(f"PT/{k}") for k in range(100)} | {make_header(entropy="other").uid("PT/1")}
    assert len(uids) == 101
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)


def turned(volume: Volume, matrix: np.ndarray) -> Volume:
    return Volume(volume.array, volume.spacing_mm, volume.origin_mm, tuple(float(value) for value in matrix.ravel()))


COS, SIN = np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))
OBLIQUE = np.array([[1, 0, 0], [0, COS, -SIN], [0, SIN, COS]]) @ np.array([[COS, 0, SIN], [0, 1, 0], [-SIN, 0, COS]])


@pytest.mark.parametrize(
    ("matrix", "lie", "relation"),
    [
        (np.diag([-1.0, 1.0, -1.0]), "FFS", "feet-first"),
        (OBLIQUE, "HFS", "headfirst"),
        (OBLIQUE @ np.diag([-1.0, 1.0, -1.0]), "FFS", "feet-first"),
        (np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]), "HFS", "headfirst"),  # sagittal
    ],
)
def test_any_right_handed_direction_is_written(tmp_path, matrix, lie, relation):
    """Slices follow the third axis of the direction; the first two are ImageOrientationPatient."""
    pet, ct, mask = (turned(volume, matrix) for volume in make_volumes(slices=9))
    write_study(tmp_path, make_header(), pet=pet, ct=ct, mask=mask)
    for name, volume in (("PT", pet), ("CT", ct)):
        for path in (tmp_path / name).iterdir():
            file = pydicom.dcmread(path)
            index = file.InstanceNumber - 1
            expected = np.array(ORIGIN) + index * volume.spacing_mm[2] * matrix[:, 2]
            np.testing.assert_allclose(np.array(file.ImagePositionPatient, dtype=float), expected, atol=1e-6)
            cosines = np.array(file.ImageOrientationPatient, dtype=float)
            np.testing.assert_allclose(cosines, [*matrix[:, 0], *matrix[:, 1]], atol=1e-13)
            assert file.PatientPosition == lie
            assert float(file.SliceLocation) == pytest.approx(expected @ matrix[:, 2], abs=1e-6)
    assert pydicom.dcmread(tmp_path / "PT/0001.dcm").PatientGantryRelationshipCodeSequence[0].CodeMeaning == relation
    segmentation = hd.seg.segread(tmp_path / "SEG" / "lesion.dcm")
    geometry = segmentation.get_volume_geometry()
    assert geometry is not None
    frame = segmentation.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    plane = int(np.flatnonzero(mask.array.any(axis=(1, 2)))[0])
    expected = np.array(ORIGIN) + plane * SPACING[2] * matrix[:, 2]
    np.testing.assert_allclose(np.array(frame, dtype=float), expected, atol=1e-6)
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted((tmp_path / "PT").iterdir())]
    rebuilt = segmentation.get_pixels_by_source_instance(
        [file.SOPInstanceUID for file in sources], segment_numbers=[1], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(rebuilt[..., 0], mask.array)


def test_the_bytes_of_an_axial_study_do_not_change(tmp_path):
    """The phantom's files are compared between versions: this digest is from before directions other than axial."""
    digest = hashlib.sha256()
    for number, changes in enumerate([{}, {"manufacturer": "GE MEDICAL SYSTEMS", "nuclide": "68Ga", "tracer": "PSMA"}]):
        pet, ct, mask = make_volumes()
        write_study(tmp_path / str(number), make_header(**changes), pet=pet, ct=ct, mask=mask)
    for path in sorted(tmp_path.rglob("*.dcm")):
        content = path.read_bytes()
        length = int.from_bytes(content[140:144], "little")  # of the file meta information: names pydicom
        digest.update(path.relative_to(tmp_path).as_posix().encode() + content[144 + length :])
    assert digest.hexdigest() == DIGEST_OF_AXIAL


def test_other_grids_are_refused(tmp_path):
    pet, ct, mask = make_volumes()
    with pytest.raises(AutopetError, match="PET grid"):
        write_segmentation(tmp_path / "SEG", make_header(), Volume(mask.array, SPACING), pet)
    tilted = Volume(ct.array, ct.spacing_mm, ct.origin_mm, (1, 0, 0, 0, -1, 0, 0, 0, 1))
    with pytest.raises(AutopetError, match="direction"):
        write_study(tmp_path / "study", make_header(), pet=pet, ct=tilted, mask=mask)
