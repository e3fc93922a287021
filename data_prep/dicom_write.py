"""Write a PET/CT study with a lesion segmentation as DICOM, section numbers after PS3.3 of the standard.

The images are those of a scanner (CT Image IOD A.3, PET Image IOD A.21) and the mask is a binary Segmentation (A.51).
UIDs and bytes depend only on the arguments.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, PositronEmissionTomographyImageStorage
from pydicom.valuerep import format_number_as_ds

from autopet.volume import Volume
from data_prep.dicom_header import (
    HALF_LIFE_S,
    StudyHeader,
    coded,
    common_dataset,
    dicom_date,
    dicom_time,
    lies_head_first,
    plane_orientation,
    refuse_skewed,
    save,
    set_instance,
    slice_location,
    slice_position,
)
from data_prep.dicom_segmentation import write_segmentation

STORED_MAX = 32767  # of PET images, so that signed and unsigned readers agree
CT_INTERCEPT = -1024
BED_SLICES = 40
BED_SECONDS = 150
POSITRON_FRACTION = {"18F": 0.97, "68Ga": 0.89}
NUCLIDE_CODES = {"18F": ("77004003", "SCT", "^18^Fluorine"), "68Ga": ("35337001", "SCT", "^68^Gallium")}
PHARMACEUTICALS = {
    ("FDG", "18F"): ("Fluorodeoxyglucose", ("35321007", "SCT", "Fluorodeoxyglucose F^18^")),
    ("PSMA", "18F"): ("PSMA-1007", ("126758", "DCM", "PSMA-1007 F^18^")),
    ("PSMA", "68Ga"): ("PSMA-617", ("126759", "DCM", "PSMA-617 Ga^68^")),
}


def write_study(folder: Path, header: StudyHeader, *, pet: Volume, ct: Volume, mask: Volume) -> None:
    """Write `CT`, `PT` and `SEG` below a folder.

    Volumes may lie anyhow, with orthogonal, right-handed axes: one whose slices go towards the feet is that of a
    patient who lies feet first (FFS), and oblique ones have their axes in ImageOrientationPatient.

    Parameters
    ----------
    pet : Volume
        SUV (body weight), not negative.
    ct : Volume
        HU, on a grid of its own.
    mask : Volume
        Lesions, on the PET grid; may be empty.
    """
    write_ct(folder / "CT", header, ct)
    write_pet(folder / "PT", header, pet)
    write_segmentation(folder / "SEG", header, mask, pet)


def write_ct(folder: Path, header: StudyHeader, ct: Volume) -> None:
    """Write CT slices, one file each: slope 1, intercept -1024 (C.8.2.1)."""
    refuse_skewed(ct)
    folder.mkdir(parents=True)
    signed = header.manufacturer.startswith("GE")
    stored = np.clip(np.rint(ct.array) - CT_INTERCEPT, 0, STORED_MAX).astype("<i2" if signed else "<u2")
    start = header.start - dt.timedelta(minutes=2)
    data = _image_dataset(header, ct, "CT", CTImageStorage, start)
    data.SeriesNumber, data.SeriesDescription = 2, "CT WB 3.0 B30f"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.KVP, data.XRayTubeCurrent, data.AcquisitionNumber = 120, 180, 1
    data.ConvolutionKernel = "STANDARD" if signed else "B30f"
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, CT_INTERCEPT, "HU"
    data.WindowCenter, data.WindowWidth = 40, 400
    _pixel_format(data, ct, signed=signed)
    data.AcquisitionDate, data.AcquisitionTime = dicom_date(start), dicom_time(start)
    for index in range(ct.shape[0]):
        _place_slice(data, header, ct, index, "CT")
        data.PixelData = stored[index].tobytes()
        save(data, folder / f"{index + 1:04d}.dcm")


def write_pet(folder: Path, header: StudyHeader, pet: Volume) -> None:
    """Write attenuation- and decay-corrected PET slices in Bq/ml, each slice with its own slope (C.8.9.4).

    The slope is rounded to the 16 characters of a DS before the voxels are divided by it, so that what is read back
    differs from `pet` by half a step at most: 1/65534 of the slice's maximum.
    """
    refuse_skewed(pet)
    folder.mkdir(parents=True)
    signed = header.manufacturer.startswith("GE")
    data = _image_dataset(header, pet, "PT", PositronEmissionTomographyImageStorage, header.start)
    data.SeriesNumber, data.SeriesDescription = 3, "PET corr."
    _pet_series(data, header, pet.shape[0])
    gantry = ("102540008", "SCT", "headfirst") if lies_head_first(pet) else ("102541007", "SCT", "feet-first")
    data.PatientGantryRelationshipCodeSequence = coded(*gantry)
    _pixel_format(data, pet, signed=signed)
    for index, suv in enumerate(pet.array):
        activity = np.maximum(suv, 0.0).astype(np.float64) * header.suv_bq_per_ml
        slope = format_number_as_ds(max(float(activity.max()), 1e-3) / STORED_MAX * (1 + 1e-9))
        data.RescaleSlope = slope
        stored = np.minimum(np.rint(activity / float(slope)), STORED_MAX)
        _place_slice(data, header, pet, index, "PT")
        _pet_timing(data, header, index, pet.shape[0])
        data.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
        save(data, folder / f"{index + 1:04d}.dcm")


def _image_dataset(header: StudyHeader, volume: Volume, modality: str, sop_class: UID, when: dt.datetime) -> Dataset:
    """What the slices of a CT or PET series share (C.7.6.2)."""
    data = common_dataset(header, modality, sop_class, when)
    data.PatientPosition = "HFS" if lies_head_first(volume) else "FFS"
    data.BodyPartExamined = "WHOLEBODY"
    data.ImageOrientationPatient = plane_orientation(volume)
    x, y, z = volume.spacing_mm
    data.PixelSpacing = [format_number_as_ds(float(y)), format_number_as_ds(float(x))]
    data.SliceThickness = format_number_as_ds(float(z))
    return data


def _pixel_format(data: Dataset, volume: Volume, *, signed: bool) -> None:
    """Image Pixel module (C.7.6.3)."""
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = volume.shape[1], volume.shape[2]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(signed)


def _place_slice(data: Dataset, header: StudyHeader, volume: Volume, index: int, modality: str) -> None:
    set_instance(data, header.uid(f"{modality}/{index + 1}"))
    data.InstanceNumber = index + 1
    data.ImagePositionPatient = slice_position(volume, index)
    data.SliceLocation = slice_location(volume, index)


def _pet_series(data: Dataset, header: StudyHeader, slices: int) -> None:
    """PET Series and PET Isotope modules (C.8.9.1, C.8.9.2)."""
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.Units, data.CountsSource, data.SeriesType = "BQML", "EMISSION", ["WHOLE BODY", "IMAGE"]
    data.CorrectedImage = ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"]
    data.DecayCorrection, data.RescaleIntercept = "START", 0
    data.CollimatorType, data.NumberOfSlices = "NONE", slices
    data.ReconstructionMethod = "VPFX" if header.manufacturer.startswith("GE") else "PSF+TOF 3i21s"
    data.AttenuationCorrectionMethod, data.ScatterCorrectionMethod = "CT-based", "Model-based"
    data.RandomsCorrectionMethod = "DLYD"
    name, code = PHARMACEUTICALS[header.tracer, header.nuclide]
    isotope = Dataset()
    isotope.Radiopharmaceutical = name
    isotope.RadiopharmaceuticalRoute = "Intravenous route"
    isotope.RadiopharmaceuticalStartTime = dicom_time(header.injected)
    isotope.RadiopharmaceuticalStartDateTime = dicom_date(header.injected) + dicom_time(header.injected)
    isotope.RadionuclideTotalDose = format_number_as_ds(float(header.dose_bq))
    isotope.RadionuclideHalfLife = HALF_LIFE_S[header.nuclide]
    isotope.RadionuclidePositronFraction = POSITRON_FRACTION[header.nuclide]
    isotope.RadionuclideCodeSequence = coded(*NUCLIDE_CODES[header.nuclide])
    isotope.RadiopharmaceuticalCodeSequence = coded(*code)
    data.RadiopharmaceuticalInformationSequence = Sequence([isotope])
    data.PatientOrientationCodeSequence = coded("102538003", "SCT", "recumbent")
    data.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = coded("40199007", "SCT", "supine")


def _pet_timing(data: Dataset, header: StudyHeader, index: int, slices: int) -> None:
    """PET Image module (C.8.9.4): beds go from the thighs to the head, decay is corrected to the first bed's start."""
    delay_s = BED_SECONDS * (index // BED_SLICES)
    acquired = header.start + dt.timedelta(seconds=delay_s)
    data.AcquisitionDate, data.AcquisitionTime = dicom_date(acquired), dicom_time(acquired)
    data.ImageIndex = slices - index
    data.ActualFrameDuration = BED_SECONDS * 1000
    middle_s = delay_s + BED_SECONDS / 2
    data.FrameReferenceTime = middle_s * 1000
    data.DecayFactor = format_number_as_ds(2.0 ** (middle_s / HALF_LIFE_S[header.nuclide]))
    data.DoseCalibrationFactor = 1
