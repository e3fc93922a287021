"""Frames of multi-frame CT and PET as headers of their own, with the attributes of single-slice images.

Enhanced and legacy-converted objects keep what differs between frames in functional groups (PS3.3 C.7.6.16), and
Enhanced PET says some things in other words (C.8.22). Here they become the words of the PET modules (C.8.9), so that
all other code knows one kind of header. Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from copy import deepcopy

from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)

from autopet.errors import AutopetError
from data_prep.attributes import tag_name, values, whole_number
from data_prep.times import acquisition_moment, split_datetime, utc_offset

MULTIFRAME_CLASSES = (
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)
# Functional groups whose attributes are those of single-slice images; later ones go before earlier ones.
MERGED_GROUPS = (
    "UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence",
    "PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence", "PixelValueTransformationSequence",
    "FrameContentSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "RealWorldValueMappingSequence",
)  # fmt: skip
GROUP_SEQUENCES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
CORRECTIONS = {  # C.8.22.6 in the terms of Corrected Image (0028,0051)
    "DecayCorrected": "DECY",
    "AttenuationCorrected": "ATTN",
    "ScatterCorrected": "SCAT",
    "DeadTimeCorrected": "DTIM",
    "GantryMotionCorrected": "MOTN",
    "PatientMotionCorrected": "PMOT",
    "CountLossNormalizationCorrected": "CLN",
    "RandomsCorrected": "RAN",
    "NonUniformRadialSamplingCorrected": "RADL",
    "SensitivityCalibrated": "DCAL",
    "DetectorNormalizationCorrection": "NORM",
}
UNIT_CODES = {"Bq/ml": "BQML", "Bq/mL": "BQML", "{SUVbw}g/ml": "GML", "g/ml{SUVbw}": "GML"}  # UCUM, CID 84
SCAN_KEYWORDS = (
    *GROUP_SEQUENCES, *CORRECTIONS, "DecayCorrection", "DecayCorrectionDateTime", "AcquisitionDateTime",
    "TimezoneOffsetFromUTC",
)  # fmt: skip
LARGEST_DOSE_MBQ = 1e4  # more is a dose in Bq


def is_multiframe(header: Dataset) -> bool:
    """Whether a file is a multi-frame CT or PET, from SOPClassUID (0008,0016)."""
    return str(header.get("SOPClassUID", "")) in MULTIFRAME_CLASSES


def frame_headers(header: Dataset) -> tuple[Dataset, ...]:
    """One header per frame of a multi-frame CT or PET, in the order of the pixels.

    Each has the attributes of the file and of its functional groups (shared, then its own) on one level. Added are,
    when the file has no such attribute yet:

    - ImageType from FrameType; AcquisitionDate and AcquisitionTime from FrameAcquisitionDateTime, else from
      AcquisitionDateTime; ActualFrameDuration from FrameAcquisitionDuration (both in ms)
    - CorrectedImage from the YES of the Enhanced PET Corrections module; DecayCorrection NONE when DecayCorrected is
      NO, START when it is YES, with DecayCorrectionDateTime as SeriesDate and SeriesTime: the moment that voxels are
      corrected to, which is what START means to the code that makes SUV
    - Units from RescaleType, or from a Real World Value Map in Bq/ml or SUVbw, whose slope and intercept then replace
      those of the rescale

    RadionuclideTotalDose of Enhanced PET is in MBq (C.8.22.4) and becomes Bq, as in single-slice PET (C.8.9.2).

    Raises
    ------
    AutopetError
        The functional groups are missing or not one per frame.
    """
    count = whole_number(header, "NumberOfFrames", default=1, least=1)
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != count:
        raise AutopetError(
            f"{tag_name('PerFrameFunctionalGroupsSequence')} has {len(groups)} items, but {tag_name('NumberOfFrames')} "
            f"is {count}; export the series anew"
        )
    common = Dataset()
    common.update({element.tag: element for element in header if element.keyword not in GROUP_SEQUENCES})
    common.pop("NumberOfFrames", None)
    for item in header.get("SharedFunctionalGroupsSequence") or []:
        _merge(common, item)
    _dose_in_bq(common)
    return tuple(_frame(common, group, number) for number, group in enumerate(groups, start=1))


def refuse_late_reference(frames: Sequence[Dataset]) -> None:
    """Raise when an Enhanced PET is decay-corrected to a moment after the start of its first frame.

    The moment then is not the start of the series that DecayCorrection START speaks of.
    """
    given = values(frames[0], "DecayCorrectionDateTime")
    if not given or any(not values(frame, "AcquisitionTime") for frame in frames):
        return
    earliest = min(acquisition_moment(frame) for frame in frames)
    if _local(frames[0], "DecayCorrectionDateTime") > earliest:
        raise AutopetError(
            f"{tag_name('DecayCorrectionDateTime')} is {given[0]}, after the start of the first frame "
            f"({earliest.isoformat()}); export a series that is decay-corrected to its start or to the injection"
        )


def _frame(common: Dataset, group: Dataset, number: int) -> Dataset:
    frame = Dataset()
    frame.update(common)
    _merge(frame, group)
    frame.InstanceNumber = number
    _translate_image(frame)
    if frame.get("Modality") == "PT":
        _translate_pet(frame)
    return frame


def _merge(target: Dataset, group: Dataset) -> None:
    for keyword in MERGED_GROUPS:
        items = group.get(keyword)
        if keyword == "RealWorldValueMappingSequence" and items:
            target.RealWorldValueMappingSequence = items
        elif items:
            target.update(items[0])


def _translate_image(frame: Dataset) -> None:
    if "FrameType" in frame:
        frame.ImageType = frame.FrameType
    for keyword in ("FrameAcquisitionDateTime", "AcquisitionDateTime"):
        if values(frame, keyword) and "AcquisitionTime" not in frame:
            frame.AcquisitionDate, frame.AcquisitionTime = _date_and_time(_local(frame, keyword))
    if values(frame, "FrameAcquisitionDuration") and "ActualFrameDuration" not in frame:
        frame.ActualFrameDuration = round(float(frame.FrameAcquisitionDuration))


def _translate_pet(frame: Dataset) -> None:
    if "CorrectedImage" not in frame:
        frame.CorrectedImage = [term for keyword, term in CORRECTIONS.items() if frame.get(keyword) == "YES"]
    corrected = frame.get("DecayCorrected")
    if "DecayCorrection" not in frame and corrected == "NO":
        frame.DecayCorrection = "NONE"
    elif "DecayCorrection" not in frame and corrected == "YES" and values(frame, "DecayCorrectionDateTime"):
        frame.DecayCorrection = "START"
        frame.SeriesDate, frame.SeriesTime = _date_and_time(_local(frame, "DecayCorrectionDateTime"))
    if "Units" not in frame:
        _find_units(frame)


def _find_units(frame: Dataset) -> None:
    if frame.get("RescaleType") in ("BQML", "CNTS", "GML"):
        frame.Units = frame.RescaleType
        return
    for units, item in sorted(_mapped_units(frame), key=lambda found: found[0]):  # BQML before GML
        frame.Units = units
        frame.RescaleSlope, frame.RescaleIntercept = item.RealWorldValueSlope, item.RealWorldValueIntercept
        return


def _mapped_units(frame: Dataset) -> Iterator[tuple[str, Dataset]]:
    """Real World Value Maps with a linear function in units that can become SUV (C.7.6.16.2.11)."""
    for item in frame.get("RealWorldValueMappingSequence") or []:
        codes = item.get("MeasurementUnitsCodeSequence") or [Dataset()]
        units = UNIT_CODES.get(str(codes[0].get("CodeValue", "")))
        if units and "RealWorldValueSlope" in item and "RealWorldValueIntercept" in item:
            yield units, item


def _dose_in_bq(common: Dataset) -> None:
    if str(common.get("SOPClassUID", "")) != EnhancedPETImageStorage:
        return  # legacy-converted objects keep the attribute of their source, in Bq
    items = deepcopy(common.get("RadiopharmaceuticalInformationSequence"))
    for item in items or []:
        dose = item.get("RadionuclideTotalDose")
        if dose is not None and 0 < float(dose) < LARGEST_DOSE_MBQ:
            item.RadionuclideTotalDose = f"{1e6 * float(dose):.10g}"
    if items:
        common.RadiopharmaceuticalInformationSequence = items


def _local(header: Dataset, keyword: str) -> dt.datetime:
    """A date-time in the zone of TimezoneOffsetFromUTC when both say theirs, else as it is written."""
    text, tag = values(header, keyword)[0], tag_name(keyword)
    date, time = split_datetime(text, tag)
    moment = dt.datetime.combine(date, dt.time()) + time
    offset, zone = utc_offset(text, tag), values(header, "TimezoneOffsetFromUTC")
    local = utc_offset(zone[0], tag_name("TimezoneOffsetFromUTC")) if zone else None
    return moment if offset is None or local is None else moment - offset + local


def _date_and_time(moment: dt.datetime) -> tuple[str, str]:
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
