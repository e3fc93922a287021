"""Small synthetic PET/CT studies as pydicom datasets, to be altered by a test and then saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
STUDY = "1.2.3.12345"
CT, PET, SEG = f"{STUDY}.1", f"{STUDY}.2", f"{STUDY}.3"
FRAME = f"{STUDY}.9"
PET_SHAPE = (6, 8, 10)  # z, y, x
PET_SPACING = (4.0, 5.0, 3.0)  # x, y, z in mm
PET_ORIGIN = (-20.0, -16.0, -30.0)


def normal_of(cosines: Sequence[float]) -> np.ndarray:
    return np.cross(cosines[:3], cosines[3:])


def _base(sop_class: str, modality: str, series: str, index: int) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{series}.{index + 1}"
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = modality, series, STUDY
    data.PatientID, data.StudyDate, data.FrameOfReferenceUID = "P/01", "20200102", FRAME
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    return data


def slices(
    stored: np.ndarray, *, sop_class: str, modality: str, series: str, spacing: Sequence[float],
    origin: Sequence[float], cosines: Sequence[float] = UPRIGHT,
) -> list[Dataset]:  # fmt: skip
    """One dataset per plane of (z, y, x) int16 stored values."""
    found = []
    for index, plane in enumerate(stored):
        data = _base(sop_class, modality, series, index)
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing = [spacing[1], spacing[0]]
        data.ImageOrientationPatient = list(cosines)
        place = np.asarray(origin) + index * spacing[2] * normal_of(cosines)
        data.ImagePositionPatient = [round(float(value), 6) for value in place]
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = plane.astype("<i2").tobytes()
        found.append(data)
    return found


def pet_slices(stored: np.ndarray | None = None, *, series: str = PET, **place: Sequence[float]) -> list[Dataset]:
    """PET in Bq/ml: 70 kg, 350 MBq of 18F one half-life (6586.2 s) before the scan at 10:00:00, at 08:10:13.8.

    So the SUV factor is 1000 * 70 / (350e6 / 2) = 4e-4 g/ml per Bq/ml.
    """
    stored = np.arange(np.prod(PET_SHAPE)).reshape(PET_SHAPE) if stored is None else stored
    geometry = {"spacing": PET_SPACING, "origin": PET_ORIGIN, **place}
    found = slices(stored, sop_class=PositronEmissionTomographyImageStorage, modality="PT", series=series, **geometry)
    for data in found:
        data.CorrectedImage, data.Units, data.DecayCorrection = ["DECY", "ATTN", "SCAT"], "BQML", "START"
        data.SeriesType, data.NumberOfSlices = ["STATIC", "IMAGE"], len(found)
        data.PatientWeight = 70
        data.SeriesDate = data.AcquisitionDate = "20200102"
        data.SeriesTime = data.AcquisitionTime = "100000.00"
        data.FrameReferenceTime, data.ActualFrameDuration = 60000, 120000
        injection = Dataset()
        injection.RadionuclideTotalDose, injection.RadionuclideHalfLife = 350e6, 6586.2
        injection.RadiopharmaceuticalStartTime = "081013.80"
        data.RadiopharmaceuticalInformationSequence = [injection]
    return found


def altered(**changes) -> list[Dataset]:
    """The PET headers with other values; None removes one."""
    headers = pet_slices()
    for header in headers:
        for keyword, value in changes.items():
            injected = keyword.startswith(("Radionuclide", "RadiopharmaceuticalStart"))
            target = header.RadiopharmaceuticalInformationSequence[0] if injected else header
            if value is None:
                delattr(target, keyword)
            else:
                setattr(target, keyword, value)
    return headers


def ct_slices(*, series: str = CT) -> list[Dataset]:
    """CT of 2 mm pixels and 3 mm slices over the same place, 40 HU, stored with an intercept of -1024."""
    stored = np.full((6, 20, 20), 1064)
    found = slices(
        stored, sop_class=CTImageStorage, modality="CT", series=series, spacing=(2.0, 2.0, 3.0), origin=PET_ORIGIN
    )
    for data in found:
        data.RescaleIntercept = -1024
    return found


def seg_object(
    frames: Sequence[tuple[int, Sequence[float], np.ndarray]], labels: Sequence[str] = ("Lesion",), *,
    spacing: Sequence[float] = PET_SPACING, cosines: Sequence[float] = UPRIGHT, series: str = SEG,
) -> Dataset:  # fmt: skip
    """A binary Segmentation; a frame is (segment number, position of its first voxel in mm, (y, x) mask)."""
    data = _base(SegmentationStorage, "SEG", series, 0)
    data.SegmentationType = "BINARY"
    data.Rows, data.Columns = frames[0][2].shape
    data.NumberOfFrames = len(frames)
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit = data.PixelRepresentation = 0
    data.SegmentSequence = []
    for number, label in enumerate(labels, start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, label
        data.SegmentSequence.append(segment)
    data.SharedFunctionalGroupsSequence = [_shared(spacing, cosines)]
    data.PerFrameFunctionalGroupsSequence = [_per_frame(number, place) for number, place, _ in frames]
    data.PixelData = pack_bits(np.stack([plane for *_, plane in frames]).astype(np.uint8).ravel(), pad=True)
    return data


def _shared(spacing: Sequence[float], cosines: Sequence[float]) -> Dataset:
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(cosines)
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    measures.SpacingBetweenSlices = spacing[2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    return shared


def _per_frame(number: int, place: Sequence[float]) -> Dataset:
    position, identification, group = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [round(float(value), 6) for value in place]
    identification.ReferencedSegmentNumber = number
    group.PlanePositionSequence, group.SegmentIdentificationSequence = [position], [identification]
    return group


def save(folder: Path, datasets: Sequence[Dataset]) -> Path:
    """Write datasets as files without a suffix, named so that the order of the names is not that of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(datasets):
        data.save_as(folder / f"{(7 * index) % 101:03d}", enforce_file_format=True)
    return folder


def save_study(folder: Path, *, uid: str = STUDY, patient: str = "P/01", seg: Dataset | None = None) -> Path:
    """A whole study: CT, PET and, if given, a segmentation."""
    for name, datasets in (("ct", ct_slices()), ("pet", pet_slices()), ("seg", [seg] if seg else [])):
        for data in datasets:
            data.StudyInstanceUID, data.PatientID = uid, patient
            data.SeriesInstanceUID = f"{uid}.{data.SeriesInstanceUID.rsplit('.', 1)[1]}"
            if datasets:
                save(folder / name, datasets)
    return folder


def lesion_seg() -> Dataset:
    """Segment `Lesion`: 4 voxels on slice 2 and 2 voxels on slice 4 of the PET grid."""
    low, high = np.zeros(PET_SHAPE[1:]), np.zeros(PET_SHAPE[1:])
    low[3:5, 3:5] = 1
    high[2, 5:7] = 1
    x, y, z = PET_ORIGIN
    return seg_object([(1, (x, y, z + 12), high), (1, (x, y, z + 6), low)])


def structure_set(
    regions: dict[str, Sequence[np.ndarray]],
    *,
    refers_to: str = CT,
    uid: str = f"{STUDY}.4",
    kind: str = "CLOSED_PLANAR",
) -> Dataset:
    """An RT Structure Set: per region its contours, (points, 3) in LPS mm; it refers to one image series."""
    data = _base(RTStructureSetStorage, "RTSTRUCT", uid, 0)
    del data.SamplesPerPixel, data.PhotometricInterpretation
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = refers_to
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = FRAME, [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        region, drawing = Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, FRAME
        drawing.ReferencedROINumber, drawing.ContourSequence = number, [_contour(points, kind) for points in contours]
        data.StructureSetROISequence.append(region)
        data.ROIContourSequence.append(drawing)
    return data


def _contour(points: np.ndarray, kind: str) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
    contour.ContourData = [f"{value:.6f}"[:16] for value in np.ravel(points)]
    return contour
