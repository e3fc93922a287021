"""Broken inputs, each beside a good study: the good one is converted, the broken one is a row that says why.

Trees of folders, permissions, full disks and killed runs are in test_data_prep_broken_trees.py.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_maker import (
    PET_ORIGIN,
    PET_SHAPE,
    lesion_seg,
    pet_slices,
    save,
    save_study,
    seg_object,
    structure_set,
)
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.tag import Tag
from pydicom.uid import (
    MPEG2MPML,
    UID,
    EnhancedPETImageStorage,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from autopet.cohort import read_table
from autopet.images import read_image
from data_prep.convert import prepare
from data_prep.study import Settings

GOOD, BAD = "1.2.826.0.1.11111", "1.2.826.0.1.22222"  # StudyInstanceUIDs
GOOD_CASE, BAD_CASE = "GOOD_20200102_11111", "BAD_20200102_22222"
TABLES = ["prep.csv", "prep.html"]
SUV_OF_STORED = 4e-4  # see dicom_maker.pet_slices
MISSING = object()
Spoil = Callable[[Path], None]  # changes the folder of a study


# --- spoiling --------------------------------------------------------------------------------------------------------


def files_of(study: Path, role: str) -> list[Path]:
    """Files of a role in the order of the slices."""
    found = [path for path in (study / role).iterdir()]
    return sorted(found, key=lambda path: int(pydicom.dcmread(path).SOPInstanceUID.rsplit(".", 1)[1]))


def put(data: Dataset, keyword: str, value: object) -> None:
    """Set an attribute, also to what its VR forbids: text is written as it is; `MISSING` removes it."""
    inside = keyword.startswith(("Radionuclide", "RadiopharmaceuticalStart"))
    target = data.RadiopharmaceuticalInformationSequence[0] if inside else data
    tag = Tag(tag_for_keyword(keyword))
    if value is MISSING:
        del target[tag]
    elif isinstance(value, str):
        raw = value.encode() + b" " * (len(value.encode()) % 2)
        target._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(raw), raw, 0, False, True)
    else:
        setattr(target, keyword, value)


def change(role: str, *which: int, **values: object) -> Spoil:
    """Attributes of some slices of a series (all of them when none is named)."""

    def spoil(study: Path) -> None:
        for index, path in enumerate(files_of(study, role)):
            if index in which or not which:
                data = pydicom.dcmread(path)
                for keyword, value in values.items():
                    put(data, keyword, value)
                data.save_as(path)

    return spoil


def edit(role: str, index: int, alter: Callable[[Dataset], None]) -> Spoil:
    """One slice, by a function."""

    def spoil(study: Path) -> None:
        path = files_of(study, role)[index]
        data = pydicom.dcmread(path)
        alter(data)
        data.save_as(path)

    return spoil


def cut(role: str, keep: float, index: int = 2) -> Spoil:
    """One file cut to a share of its bytes."""

    def spoil(study: Path) -> None:
        path = files_of(study, role)[index]
        content = path.read_bytes()
        path.write_bytes(content[: round(keep * len(content))])

    return spoil


def overwrite(role: str, content: bytes, index: int = 2) -> Spoil:
    """Other bytes in the place of a file."""
    return lambda study: files_of(study, role)[index].write_bytes(content) and None


def drop(role: str, *which: int) -> Spoil:
    """Without some slices."""

    def spoil(study: Path) -> None:
        for index, path in enumerate(files_of(study, role)):
            if index in which:
                path.unlink()

    return spoil


def add(role: str, make: Callable[[], Dataset]) -> Spoil:
    """With another object of the same study."""

    def spoil(study: Path) -> None:
        data = make()
        data.StudyInstanceUID, data.PatientID = BAD, "BAD"
        save(study / role, [data])

    return spoil


def resized(data: Dataset) -> None:
    rows, columns = data.Rows - 2, data.Columns
    data.PixelData = data.pixel_array[:rows].tobytes()
    data.Rows, data.Columns = rows, columns


def other_pixels(study: Path) -> None:
    """A copy of a slice with the same SOPInstanceUID and other voxels."""
    data = pydicom.dcmread(files_of(study, "pet")[2])
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(study / "pet" / "copy")


def damaged(syntax: UID, damage: Callable[[bytes], bytes]) -> Callable[[Dataset], None]:
    """Compressed, and the code stream then damaged."""

    def alter(data: Dataset) -> None:
        data.Rows = data.Columns = 64  # JPEG 2000 needs some size
        data.PixelData = np.random.default_rng(0).integers(0, 3000, (64, 64), dtype=np.int16).tobytes()
        data.compress(syntax)
        stream = next(generate_frames(data.PixelData, number_of_frames=1))
        data.PixelData = encapsulate([damage(stream)])
        data["PixelData"].is_undefined_length = True

    return alter


def garbage(syntax: UID) -> Callable[[Dataset], None]:
    def alter(data: Dataset) -> None:
        data.PixelData = encapsulate([np.random.default_rng(1).bytes(400)])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax

    return alter


def shift(role: str, by_mm: float) -> Spoil:
    """A series moved along the body."""

    def spoil(study: Path) -> None:
        for path in files_of(study, role):
            data = pydicom.dcmread(path)
            data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + by_mm
            data.save_as(path)

    return spoil


def mixed(study: Path) -> None:
    """The slices of another patient's PET lie in the same folder and say the same series."""
    others = pet_slices()
    for index, data in enumerate(others):
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = BAD, f"{BAD}.2", "BAD"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{BAD}.7.{index}"
        data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + 1.3
        data.save_as(study / "pet" / f"other{index}")


def enhanced(frames: int | str, groups: int) -> Spoil:
    """The PET as one Enhanced object, with `groups` functional groups for its frames."""

    def spoil(study: Path) -> None:
        slices = pet_slices()
        data = slices[0]
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedPETImageStorage
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = BAD, f"{BAD}.2", "BAD"
        put(data, "NumberOfFrames", frames)
        data.PixelData = b"".join(item.PixelData for item in slices)
        data.PerFrameFunctionalGroupsSequence = [_plane(item) for item in slices[:groups]]
        for path in files_of(study, "pet"):
            path.unlink()
        save(study / "pet", [data])

    return spoil


def _plane(item: Dataset) -> Dataset:
    place, group = Dataset(), Dataset()
    place.ImagePositionPatient = item.ImagePositionPatient
    group.PlanePositionSequence = [place]
    return group


def broken_seg(**values: object) -> Spoil:
    def make() -> Dataset:
        data = lesion_seg()
        for keyword, value in values.items():
            put(data, keyword, value)
        return data

    return add("seg", make)


def off_grid_seg() -> Dataset:
    """Two frames at the same height, a third of a voxel apart: on no grid together."""
    plane = np.ones(PET_SHAPE[1:])
    x, y, z = PET_ORIGIN
    return seg_object([(1, (x + 1.3, y, z), plane), (1, (x, y + 2.5, z + 4), plane), (1, (x, y, z + 6), plane)])


def contours(alter: Callable[[Dataset], None]) -> Spoil:
    """A structure set with one square, altered."""

    def make() -> Dataset:
        x, y, z = PET_ORIGIN
        corners = [(0, 0), (12, 0), (12, 15), (0, 15)]
        data = structure_set({"GTV": [np.array([(x + dx, y + dy, z + 6) for dx, dy in corners])]})
        alter(data)
        return data

    return add("rt", make)


def _points(data: Dataset) -> Dataset:
    return data.ROIContourSequence[0].ContourSequence[0]


def both(*spoils: Spoil) -> Spoil:
    def spoil(study: Path) -> None:
        for each in spoils:
            each(study)

    return spoil


# --- the cases: name -> how it is spoilt, and what the reason says ----------------------------------------------------

FILES: dict[str, tuple[Spoil, str]] = {
    "pet cut in its pixels": (cut("pet", 0.95), r"pet/014: PixelData \(7FE0,0010\)"),
    "pet cut in its header": (cut("pet", 0.4), r"pet/014"),
    "pet cut in its preamble": (cut("pet", 0.02), r"pet/014"),
    "pet of no bytes": (overwrite("pet", b""), r"pet/014"),
    "ct cut in its pixels": (cut("ct", 0.9), r"ct/014: PixelData \(7FE0,0010\)"),
    "ct of no bytes": (overwrite("ct", b""), r"ct/014"),
    "the first pet slice of no bytes": (overwrite("pet", b"", 0), r"pet/000 lies among the files of .* not readable"),
    "the last ct slice of no bytes": (overwrite("ct", b"", 5), r"ct/035 lies among the files of .* not readable"),
    "all pet slices of no bytes": (
        lambda study: [path.write_bytes(b"") for path in files_of(study, "pet")] and None,
        r"no PET series .*6 files .*pet/000"),
    "random bytes behind the magic": (
        overwrite("pet", bytes(128) + b"DICM" + np.random.default_rng(0).bytes(900)), r"pet/014"),
    "text in place of a slice": (overwrite("ct", b"404 not found\n" * 50), r"ct/014"),
    "pixels missing": (change("pet", 2, PixelData=MISSING), r"pet/014: PixelData \(7FE0,0010\) is missing"),
    "pixels too short": (
        edit("ct", 3, lambda data: setattr(data, "PixelData", data.PixelData[:-100])), r"ct/021: PixelData"),
    "pixels too long": (
        edit("pet", 3, lambda data: setattr(data, "PixelData", data.PixelData * 2)), r"pet/021: PixelData"),
    "pixels of no bytes": (edit("pet", 3, lambda data: setattr(data, "PixelData", b"")), r"pet/021: PixelData"),
    "transfer syntax of a film": (edit("pet", 2, garbage(MPEG2MPML)), r"pet/014: PixelData.*TransferSyntaxUID.*MPEG2"),
    "transfer syntax unknown": (edit("pet", 2, garbage(UID("1.2.3.4.5"))), r"pet/014: PixelData.*1\.2\.3\.4\.5"),
    "jpeg-ls cut": (
        edit("pet", 2, damaged(JPEGLSLossless, lambda stream: stream[:-500])), r"pet/014: PixelData.*JPEG-LS"),
    "jpeg-ls cut, with an end": (
        edit("pet", 2, damaged(JPEGLSLossless, lambda stream: stream[:3000] + stream[-2:])), r"pet/014: PixelData"),
    "jpeg-ls garbage": (edit("pet", 2, garbage(JPEGLSLossless)), r"pet/014: PixelData.*JPEG-LS"),
    "jpeg 2000 cut": (
        edit("ct", 2, damaged(JPEG2000Lossless, lambda stream: stream[:-3000])), r"ct/014: PixelData.*JPEG 2000"),
    "jpeg 2000 garbage": (edit("ct", 2, garbage(JPEG2000Lossless)), r"ct/014: PixelData.*JPEG 2000"),
    "jpeg lossless garbage": (edit("ct", 2, garbage(JPEGLosslessSV1)), r"ct/014: PixelData.*JPEG Lossless"),
    "rle cut": (edit("pet", 2, damaged(RLELossless, lambda stream: stream[:-70])), r"pet/014: PixelData.*RLE"),
    "rle header": (edit("pet", 2, damaged(RLELossless, lambda stream: b"\xff" * 64 + stream[64:])), r"pet/014.*RLE"),
}  # fmt: skip
GEOMETRY: dict[str, tuple[Spoil, str]] = {
    "rows missing": (change("pet", 2, Rows=MISSING), r"pet/014: .*Rows \(0028,0010\)"),
    "rows 0": (change("pet", 2, Rows=0), r"pet/014: .*Rows \(0028,0010\)"),
    "rows of a longer text": (change("pet", 2, Rows="eight!"), r"pet/014: .*Rows"),
    "rows of a longer text in all": (change("pet", Rows="eight!"), r"pet/000: Rows \(0028,0010\)"),
    "columns missing in all": (change("ct", Columns=MISSING), r"ct/000: .*Columns"),
    "bits allocated 12": (change("pet", 2, BitsAllocated=12), r"pet/014: .*Bits ?Allocated"),
    "bits allocated missing": (change("pet", 2, BitsAllocated=MISSING), r"pet/014: .*Bits ?Allocated"),
    "bits stored 40": (change("pet", 2, BitsStored=40), r"pet/014: .*Bits ?Stored"),
    "pixel representation missing": (change("pet", 2, PixelRepresentation=MISSING), r"pet/014: .*Representation"),
    "colour": (change("ct", 2, SamplesPerPixel=3, PhotometricInterpretation="RGB"), r"ct/014: "),
    "spacing missing": (change("pet", PixelSpacing=MISSING), r"PixelSpacing \(0028,0030\) needs 2 numbers, found none"),
    "spacing 0": (change("pet", PixelSpacing=[0, 4]), r"PixelSpacing \(0028,0030\) is 0\\4, expected mm above 0"),
    "spacing of one value": (change("ct", PixelSpacing=2), r"PixelSpacing \(0028,0030\) needs 2 numbers"),
    "spacing text": (change("pet", 1, PixelSpacing="wide\\wide"), r"PixelSpacing \(0028,0030\)"),
    "spacing nan": (change("pet", 1, PixelSpacing="nan\\4"), r"PixelSpacing \(0028,0030\) needs 2 numbers"),
    "another spacing in one": (change("pet", 4, PixelSpacing=[5, 4.2]), r"PixelSpacing \(0028,0030\) differs within"),
    "another size in one": (edit("pet", 4, resized), r"Rows \(0028,0010\) and Columns \(0028,0011\) differ within"),
    "position missing in one": (change("pet", 1, ImagePositionPatient=MISSING), r"ImagePositionPatient \(0020,0032\)"),
    "position missing in all": (change("pet", ImagePositionPatient=MISSING), r"ImagePositionPatient \(0020,0032\)"),
    "position of two values": (change("ct", 1, ImagePositionPatient="1\\2"), r"ImagePositionPatient .*found \[1"),
    "position text": (change("pet", 1, ImagePositionPatient="a\\b\\c"), r"ImagePositionPatient \(0020,0032\)|pet/007"),
    "position infinite": (change("pet", 1, ImagePositionPatient="0\\0\\inf"), r"ImagePositionPatient .*found \[0"),
    "orientation missing": (change("pet", ImageOrientationPatient=MISSING), r"ImageOrientationPatient \(0020,0037\)"),
    "orientation 0": (
        change("pet", ImageOrientationPatient=[0] * 6), r"ImageOrientationPatient .* not two orthogonal unit vectors"),
    "orientation not orthogonal": (
        change("ct", ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), r"ImageOrientationPatient .* orthogonal"),
    "another orientation in one": (
        change("pet", 2, ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), r"ImageOrientationPatient .* differs within"),
    "two slices at one place": (
        change("pet", 2, ImagePositionPatient=[-20, -16, -27]), r"duplicate slices at .*ImagePositionPatient"),
    "one instance with two contents": (other_pixels, r"SOPInstanceUID \(0008,0018\) .*differ in pixels"),
    "a gap": (drop("pet", 3), r"6 mm after .*1 slice seems to be missing"),
    "a gap in the ct": (drop("ct", 2, 3), r"2 slices seem to be missing"),
    "a single pet slice": (drop("pet", 1, 2, 3, 4, 5), r"single slice"),
    "two patients in one folder": (mixed, r"ImagePositionPatient .*(several stacks are mixed|not evenly spaced)"),
    "enhanced, fewer groups than frames": (enhanced(6, 5), r"PerFrameFunctionalGroupsSequence .*5 items.*is 6"),
    "enhanced, frames text": (enhanced("all", 6), r"NumberOfFrames \(0028,0008\) is all, expected a whole number"),
    "enhanced, fewer frames than pixels": (enhanced(5, 5), r"pet/000: .*PixelData"),
    "ct and pet apart": (shift("ct", 9000), r"CT .*PET"),
}  # fmt: skip
VALUES: dict[str, tuple[Spoil, str]] = {
    "slope 0": (change("pet", 2, RescaleSlope=0), r"pet/014: RescaleSlope \(0028,1053\) is 0"),
    "slope negative in one": (change("pet", 2, RescaleSlope=-1), r"pet/014: RescaleSlope \(0028,1053\) is -1"),
    "slope text": (change("pet", 2, RescaleSlope="steep"), r"pet/014: RescaleSlope \(0028,1053\)"),
    "slope infinite": (change("pet", 2, RescaleSlope="1e400"), r"pet/014: RescaleSlope \(0028,1053\)"),
    "slope so large that voxels overflow": (change("pet", 2, RescaleSlope=1e38), r"pet/014: .*RescaleSlope"),
    "intercept text": (change("ct", 2, RescaleIntercept="none"), r"ct/014: RescaleIntercept \(0028,1052\)"),
    "intercept of two values": (change("pet", RescaleIntercept="1\\2"), r"pet/000: RescaleIntercept \(0028,1052\)"),
    "units missing": (change("pet", Units=MISSING), r"Units \(0054,1001\) is missing"),
    "units proportional to counts": (change("pet", Units="PROPCNTS"), r"Units \(0054,1001\) is PROPCNTS"),
    "not corrected for attenuation": (change("pet", CorrectedImage=["DECY"]), r"CorrectedImage \(0028,0051\) is DECY"),
    "correction not said": (change("pet", CorrectedImage=MISSING), r"CorrectedImage \(0028,0051\) is missing"),
    "weight missing": (change("pet", PatientWeight=MISSING), r"PatientWeight \(0010,1030\) is missing"),
    "weight 0": (change("pet", PatientWeight=0), r"PatientWeight \(0010,1030\) is 0"),
    "weight text": (change("pet", PatientWeight="heavy"), r"PatientWeight \(0010,1030\).*heavy"),
    "weight negative": (change("pet", PatientWeight=-70), r"PatientWeight \(0010,1030\) is -70"),
    "weight in grams": (change("pet", PatientWeight=70000), r"PatientWeight \(0010,1030\) is 70000, expected kg"),
    "weight of two values": (change("pet", PatientWeight="7\\70"), r"PatientWeight \(0010,1030\) is '7\\\\70'"),
    "weight empty": (change("pet", PatientWeight=""), r"PatientWeight \(0010,1030\) is missing"),
    "dose missing": (change("pet", RadionuclideTotalDose=MISSING), r"RadionuclideTotalDose \(0018,1074\) is missing"),
    "dose 0": (change("pet", RadionuclideTotalDose=0), r"RadionuclideTotalDose \(0018,1074\) is 0"),
    "dose in mbq": (change("pet", RadionuclideTotalDose=350), r"RadionuclideTotalDose .* is 350, expected Bq, not MBq"),
    "dose beyond all": (change("pet", RadionuclideTotalDose="1e39"), r"RadionuclideTotalDose .* is 1e\+39, expected"),
    "dose text": (change("pet", RadionuclideTotalDose="350 MBq"), r"RadionuclideTotalDose \(0018,1074\).*350 MBq"),
    "half-life missing": (change("pet", RadionuclideHalfLife=MISSING), r"RadionuclideHalfLife \(0018,1075\) is miss"),
    "half-life 0": (change("pet", RadionuclideHalfLife=0), r"RadionuclideHalfLife \(0018,1075\) is 0"),
    "half-life in minutes": (change("pet", RadionuclideHalfLife=109.77), r"RadionuclideHalfLife .*minutes of 18F"),
    "half-life of nothing": (change("pet", RadionuclideHalfLife=5000), r"RadionuclideHalfLife .*expected that of a"),
    "half-life text": (change("pet", RadionuclideHalfLife="110 min"), r"RadionuclideHalfLife \(0018,1075\).*110 min"),
    "injection missing": (
        change("pet", RadiopharmaceuticalStartTime=MISSING), r"RadiopharmaceuticalStartTime .*the injection time is"),
    "injection after the scan": (
        change("pet", RadiopharmaceuticalStartDateTime="20200102113000"), r"RadiopharmaceuticalStartDateTime .*after"),
    "injection at no time": (
        change("pet", RadiopharmaceuticalStartTime="at nine"), r"RadiopharmaceuticalStartTime \(0018,1072\)"),
    "injection at 25 o'clock": (
        change("pet", RadiopharmaceuticalStartTime="250000"), r"RadiopharmaceuticalStartTime .*'250000'"),
    "acquisition time text": (change("pet", AcquisitionTime="noon"), r"AcquisitionTime \(0008,0032\).*noon"),
    "acquisition time missing": (change("pet", AcquisitionTime=MISSING), r"AcquisitionTime \(0008,0032\) is missing"),
    "series date text": (change("pet", SeriesDate="tomorrow"), r"SeriesDate \(0008,0021\)"),
    "decay correction missing": (change("pet", DecayCorrection=MISSING), r"DecayCorrection \(0054,1102\) is missing"),
    "decay correction unknown": (change("pet", DecayCorrection="SOMETIMES"), r"DecayCorrection .* is SOMETIMES"),
    "injection item missing": (
        change("pet", RadiopharmaceuticalInformationSequence=MISSING), r"RadiopharmaceuticalInformationSequence .*mis"),
    "injection item unreadable": (
        change("pet", RadiopharmaceuticalInformationSequence="1e39"), r"RadiopharmaceuticalInformationSequence .*can"),
    "injection item empty": (
        change("pet", RadiopharmaceuticalInformationSequence=[]), r"RadiopharmaceuticalInformationSequence .*missing"),
    "frame duration text": (
        change("pet", DecayCorrection="NONE", ActualFrameDuration="long"), r"ActualFrameDuration \(0018,1242\)"),
}  # fmt: skip
MASKS: dict[str, tuple[Spoil, str]] = {
    "seg cut in its pixels": (both(broken_seg(), cut("seg", 0.99, 0)), r"seg/000: PixelData \(7FE0,0010\)"),
    "seg cut in its header": (both(broken_seg(), cut("seg", 0.5, 0)), r"seg/000"),
    "seg with more groups than frames": (broken_seg(NumberOfFrames=1), r"seg/000: PerFrameFunctionalGroupsSequence .*"),
    "seg frames text": (broken_seg(NumberOfFrames="some"), r"seg/000: .*NumberOfFrames"),
    "seg without groups": (
        broken_seg(PerFrameFunctionalGroupsSequence=MISSING), r"seg/000: PerFrameFunctionalGroupsSequence"),
    "seg without shared groups": (broken_seg(SharedFunctionalGroupsSequence=MISSING), r"seg/000: PlaneOrientation"),
    "seg without segments": (broken_seg(SegmentSequence=MISSING), r"seg/000: SegmentSequence \(0062,0002\) is missing"),
    "seg of an unknown type": (broken_seg(SegmentationType="SKETCH"), r"seg/000: SegmentationType .* is SKETCH"),
    "seg without a type": (broken_seg(SegmentationType=MISSING), r"seg/000: SegmentationType \(0062,0001\) is missing"),
    "seg without pixels": (broken_seg(PixelData=MISSING), r"seg/000: PixelData"),
    "seg without a number": (
        add("seg", lambda: _without_number(lesion_seg())), r"seg/000: .*ReferencedSegmentNumber"),
    "seg of frames off any grid": (add("seg", off_grid_seg), r"seg/000: PlanePositionSequence .*frame"),
    "contour of an odd number": (
        contours(lambda data: _points(data).ContourData.pop() and None), r"rt/000: .*ContourData \(3006,0050\)"),
    "contour of text": (
        contours(lambda data: put(_points(data), "ContourData", "a\\b\\c")), r"rt/000: .*ContourData \(3006,0050\)"),
    "contour of fewer points than said": (
        contours(lambda data: setattr(_points(data), "NumberOfContourPoints", 9)), r"rt/000: .*NumberOfContourPoints"),
    "contours missing": (
        contours(lambda data: put(data, "ROIContourSequence", MISSING)), r"rt/000: ROIContourSequence .*missing"),
    "regions missing": (
        contours(lambda data: put(data, "StructureSetROISequence", MISSING)), r"rt/000: StructureSetROISequence"),
    "structure set cut": (both(contours(lambda data: None), cut("rt", 0.6, 0)), r"rt/000"),
}  # fmt: skip
SKIPPED: dict[str, tuple[Spoil, str]] = {
    "no ct": (drop("ct", *range(6)), r"no CT series in the study"),
    "no pet": (drop("pet", *range(6)), r"no PET series in the study"),
    "only a localizer": (change("ct", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), r"localizer"),
    "only screenshots": (
        change("pet", SOPClassUID=SecondaryCaptureImageStorage, Modality="OT"), r"no PET series in the study"),
}  # fmt: skip


def _without_number(data: Dataset) -> Dataset:
    del data.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return data


# --- the tests -------------------------------------------------------------------------------------------------------


def converted(source: Path, out: Path) -> dict[str, dict]:
    """Rows by StudyInstanceUID, after checks that hold whatever was broken."""
    save_study(source / "good", uid=GOOD, patient="GOOD")
    rows = {row["study_uid"]: row for row in prepare(source, out)}
    assert rows[GOOD]["status"] == "converted"
    stored = np.arange(np.prod(PET_SHAPE)).reshape(PET_SHAPE)
    np.testing.assert_allclose(read_image(out / GOOD_CASE / "SUV.nii.gz").array, SUV_OF_STORED * stored, rtol=1e-5)
    return rows


def parameters(cases: dict[str, tuple[Spoil, str]]) -> Iterable:
    return [pytest.param(spoil, reason, id=name.replace(" ", "-")) for name, (spoil, reason) in cases.items()]


def check(tmp_path: Path, spoil: Spoil, reason: str, status: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    spoil(save_study(source / "bad", uid=BAD, patient="BAD"))
    row = converted(source, out)[BAD]
    assert (row["status"], bool(re.search(reason, row["reason"]))) == (status, True), row
    assert len(row["reason"].splitlines()) == 1
    assert not re.match(r"\w*(Error|Exception|Interrupt)\b", row["reason"]), "an error that nobody expected"
    assert sorted(path.name for path in out.iterdir()) == [GOOD_CASE, *TABLES]
    (listed,) = [entry for entry in read_table(out / "prep.csv") if entry["case"] == BAD_CASE]
    assert (listed["status"], listed["reason"]) == (status, row["reason"])
    page = html.unescape((out / "prep.html").read_text())
    assert BAD_CASE in page
    assert row["reason"] in page


@pytest.mark.parametrize(("spoil", "reason"), parameters(FILES))
def test_broken_files(tmp_path, spoil, reason):
    check(tmp_path, spoil, reason, "failed")


@pytest.mark.parametrize(("spoil", "reason"), parameters(GEOMETRY))
def test_broken_geometry(tmp_path, spoil, reason):
    check(tmp_path, spoil, reason, "failed")


@pytest.mark.parametrize(("spoil", "reason"), parameters(VALUES))
def test_broken_values(tmp_path, spoil, reason):
    check(tmp_path, spoil, reason, "failed")


@pytest.mark.parametrize(("spoil", "reason"), parameters(MASKS))
def test_broken_masks(tmp_path, spoil, reason):
    check(tmp_path, spoil, reason, "failed")


@pytest.mark.parametrize(("spoil", "reason"), parameters(SKIPPED))
def test_nothing_to_convert(tmp_path, spoil, reason):
    check(tmp_path, spoil, reason, "skipped")


def test_a_segment_that_is_not_there(tmp_path):
    """A named segment is asked of the studies that have a segmentation."""
    source, out = tmp_path / "in", tmp_path / "out"
    save_study(source / "good", uid=GOOD, patient="GOOD")
    broken_seg()(save_study(source / "bad", uid=BAD, patient="BAD"))
    rows = {row["study_uid"]: row for row in prepare(source, out, Settings(segments=("Tumour",)))}
    assert (rows[GOOD]["status"], rows[BAD]["status"]) == ("converted", "failed")
    assert re.search(r"no segment 'Tumour' in SegmentLabel \(0062,0005\)", rows[BAD]["reason"])


def test_a_damaged_file_in_a_folder_of_its_own_fails_the_study(tmp_path):
    """It may be the segmentation: without it the study would be taken for one that nobody annotated."""
    source, out = tmp_path / "in", tmp_path / "out"
    both(broken_seg(), overwrite("seg", b"", 0))(save_study(source / "bad", uid=BAD, patient="BAD"))
    (row,) = prepare(source, out)
    assert row["status"] == "failed"
    assert re.search(r"1 files .* not readable as DICOM .*seg/000", row["reason"])


def test_a_link_to_a_lost_file_fails_the_study(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    save_study(source / "bad", uid=BAD, patient="BAD")
    (source / "bad" / "gone.dcm").symlink_to("/nowhere/at/all.dcm")
    (row,) = prepare(source, out)
    assert row["status"] == "failed"
    assert "gone.dcm" in row["reason"]
