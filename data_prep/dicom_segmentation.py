"""Write a lesion mask as a binary DICOM Segmentation (PS3.3 A.51) that refers to the slices of its PET series."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence
from pydicom.uid import PositronEmissionTomographyImageStorage, SegmentationStorage
from pydicom.valuerep import format_number_as_ds

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.dicom_header import (
    StudyHeader,
    coded,
    common_dataset,
    dataset,
    plane_orientation,
    refuse_skewed,
    save,
    set_instance,
    slice_position,
)


def write_segmentation(folder: Path, header: StudyHeader, mask: Volume, pet: Volume) -> None:
    """Write the mask as a binary multi-frame Segmentation with one segment, `Lesion` (C.8.20).

    Only planes with lesion voxels become frames. An empty mask becomes one frame of zeros, so that "no lesion" differs
    from "not annotated".
    """
    difference = mask.grid_difference(pet)
    if difference:
        raise AutopetError(f"the mask must lie on the PET grid, found {difference}; resample it first")
    refuse_skewed(mask)
    folder.mkdir(parents=True)
    planes = np.flatnonzero(mask.array.any(axis=(1, 2)))
    planes = planes if len(planes) else np.array([mask.shape[0] // 2])
    frames = (mask.array[planes] > 0).astype(np.uint8)
    data = common_dataset(header, "SEG", SegmentationStorage, header.start + dt.timedelta(hours=1))
    set_instance(data, header.uid("SEG/1"))
    _segmentation_header(data, header)
    data.Rows, data.Columns, data.NumberOfFrames = mask.shape[1], mask.shape[2], len(planes)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit = data.PixelRepresentation = 0
    _frame_groups(data, header, mask, planes)
    data.PixelData = pack_bits(frames.ravel(), pad=True)
    save(data, folder / "lesion.dcm")


def _segmentation_header(data: Dataset, header: StudyHeader) -> None:
    """Segmentation Series and Image modules (C.8.20.1, C.8.20.2)."""
    data.SeriesNumber, data.InstanceNumber, data.SeriesDescription = 300, 1, "Segmentation"
    data.ImageType, data.SegmentationType = ["DERIVED", "PRIMARY"], "BINARY"
    data.SegmentsOverlap = "NO"
    data.ContentLabel, data.ContentDescription, data.ContentCreatorName = "LESION", "Tracer-avid lesions", ""
    data.LossyImageCompression = "00"
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Lesion"
    segment.SegmentAlgorithmType = "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = coded("49755003", "SCT", "Morphologically Altered Structure")
    segment.SegmentedPropertyTypeCodeSequence = coded("52988006", "SCT", "Lesion")
    data.SegmentSequence = Sequence([segment])


def _frame_groups(data: Dataset, header: StudyHeader, mask: Volume, planes: np.ndarray) -> None:
    """Functional groups, dimensions and references to the PET slices (C.7.6.16, C.7.6.17, C.12.2)."""
    organisation = header.uid("SEG/dimensions")
    if np.all(np.diff(planes) == 1):
        data.DimensionOrganizationType = "3D"
    data.DimensionOrganizationSequence = Sequence([dataset(DimensionOrganizationUID=organisation)])
    data.DimensionIndexSequence = Sequence(
        dataset(DimensionOrganizationUID=organisation, DimensionIndexPointer=pointer, FunctionalGroupPointer=group)
        for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
    )
    x, y, z = (format_number_as_ds(float(v)) for v in mask.spacing_mm)
    measures = dataset(PixelSpacing=[y, x], SliceThickness=z, SpacingBetweenSlices=z)
    shared = dataset(
        PixelMeasuresSequence=Sequence([measures]),
        PlaneOrientationSequence=Sequence([dataset(ImageOrientationPatient=plane_orientation(mask))]),
        SegmentIdentificationSequence=Sequence([dataset(ReferencedSegmentNumber=1)]),
    )
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence(
        _frame(header, mask, number=number, plane=int(plane)) for number, plane in enumerate(planes, start=1)
    )
    references = Sequence(dataset(**_source(header, int(plane))) for plane in planes)
    series = dataset(SeriesInstanceUID=header.uid("PT/series"), ReferencedInstanceSequence=references)
    data.ReferencedSeriesSequence = Sequence([series])


def _frame(header: StudyHeader, mask: Volume, *, number: int, plane: int) -> Dataset:
    """Functional groups of one frame: its place, and the PET slice that was segmented."""
    image = dataset(**_source(header, plane), SpatialLocationsPreserved="YES")
    image.PurposeOfReferenceCodeSequence = coded("121322", "DCM", "Source image for image processing operation")
    derivation = dataset(SourceImageSequence=Sequence([image]))
    derivation.DerivationCodeSequence = coded("113076", "DCM", "Segmentation")
    return dataset(
        DerivationImageSequence=Sequence([derivation]),
        FrameContentSequence=Sequence([dataset(DimensionIndexValues=[1, number])]),
        PlanePositionSequence=Sequence([dataset(ImagePositionPatient=slice_position(mask, plane))]),
    )


def _source(header: StudyHeader, plane: int) -> dict[str, str]:
    """Reference to the PET slice of a plane (10.8)."""
    return {
        "ReferencedSOPClassUID": PositronEmissionTomographyImageStorage,
        "ReferencedSOPInstanceUID": header.uid(f"PT/{plane + 1}"),
    }
