"""What the DICOM files of a phantom study share: patient, study and equipment, codes, dates, unique identifiers.

Section numbers are those of PS3.3. Everything depends only on the arguments.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from autopet.errors import AutopetError
from autopet.volume import Volume

HALF_LIFE_S = {"18F": 6586.2, "68Ga": 4057.7}
_IMPLEMENTATION = UID("2.25." + str(uuid.uuid5(uuid.NAMESPACE_URL, "autopet.data_prep.dicom_write").int))


@dataclass(frozen=True)
class StudyHeader:
    """What a study's files say about patient, injection and scanner.

    `entropy` seeds every UID; `start` is the beginning of the PET acquisition, to which the decay is corrected.
    """

    entropy: str
    patient_id: str
    description: str
    sex: str  # F or M
    age_years: int
    weight_kg: float
    height_m: float
    tracer: str  # FDG or PSMA
    nuclide: str  # 18F or 68Ga
    dose_bq: float  # injected
    injected: dt.datetime
    start: dt.datetime
    manufacturer: str
    model: str

    def uid(self, role: str) -> str:
        """A UID for a role within the study: UUID-derived (PS3.5 B.2), the same every time."""
        return "2.25." + str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.entropy}/{role}").int)

    @property
    def suv_bq_per_ml(self) -> float:
        """Activity concentration at `start` that is an SUV of 1: decayed dose over body weight (1 ml weighs 1 g)."""
        elapsed_s = (self.start - self.injected).total_seconds()
        return self.dose_bq * 2.0 ** (-elapsed_s / HALF_LIFE_S[self.nuclide]) / (1000.0 * self.weight_kg)


def common_dataset(header: StudyHeader, modality: str, sop_class: UID, when: dt.datetime) -> Dataset:
    """Patient, Study, Series, Equipment and Frame of Reference modules (C.7.1 to C.7.5)."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = sop_class
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.ImplementationClassUID = _IMPLEMENTATION
    data.SOPClassUID, data.Modality = sop_class, modality
    data.PatientName = data.PatientID = header.patient_id
    data.PatientBirthDate, data.PatientSex = "", header.sex
    data.PatientAge = f"{header.age_years:03d}Y"
    data.PatientWeight, data.PatientSize = round(header.weight_kg, 1), round(header.height_m, 2)
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "phantom"
    data.StudyInstanceUID = header.uid("study")
    data.StudyDate, data.StudyTime = dicom_date(header.start), dicom_time(header.start - dt.timedelta(minutes=5))
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", "", ""
    data.StudyDescription = header.description
    data.SeriesInstanceUID = header.uid(f"{modality}/series")
    data.SeriesDate = data.ContentDate = dicom_date(when)
    data.SeriesTime = data.ContentTime = dicom_time(when)
    data.Manufacturer, data.ManufacturerModelName = header.manufacturer, header.model
    data.DeviceSerialNumber, data.SoftwareVersions = "0", "phantom"
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = header.uid("frame of reference"), ""
    return data


def refuse_skewed(volume: Volume) -> None:
    """Raise unless a volume's axes are orthogonal and right-handed: DICOM planes have no other (C.7.6.2.1.1)."""
    axes = np.reshape(volume.direction, (3, 3))
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-6) or np.linalg.det(axes) < 0:
        raise AutopetError(
            f"expected a direction with orthogonal, right-handed axes, found {volume.direction}; resample the volume"
        )


def plane_orientation(volume: Volume) -> list[str]:
    """Image Orientation (Patient): along a row, then along a column, as unit vectors (C.7.6.2)."""
    x, y, _ = np.reshape(volume.direction, (3, 3)).T
    return [_cosine(float(value)) for value in (*x, *y)]


def _cosine(value: float) -> str:
    return str(value + 0.0) if value in (-1, 0, 1) else format_number_as_ds(value)  # + 0.0: no sign of zero


def slice_position(volume: Volume, index: int) -> list[str]:
    """Image Position (Patient) of a slice, to a millionth of a millimetre (C.7.6.2)."""
    step = index * volume.spacing_mm[2] * np.reshape(volume.direction, (3, 3))[:, 2]
    return [format_number_as_ds(round(float(value), 6)) for value in np.asarray(volume.origin_mm) + step]


def slice_location(volume: Volume, index: int) -> str:
    """Slice Location: the slice's place along the normal (C.7.6.2.1.2)."""
    normal = np.reshape(volume.direction, (3, 3))[:, 2]
    along = float(np.asarray(volume.origin_mm) @ normal + index * volume.spacing_mm[2])
    return format_number_as_ds(round(along, 6))


def lies_head_first(volume: Volume) -> bool:
    """Whether slices go towards the head, as those of a patient do who went into the gantry head first."""
    return volume.direction[8] >= 0


def set_instance(data: Dataset, uid: str) -> None:
    """Give a file its SOP Instance UID, in the data set and in the file meta information (PS3.10 7.1)."""
    data.SOPInstanceUID = uid
    data.file_meta.MediaStorageSOPInstanceUID = UID(uid)


def save(data: Dataset, path: Path) -> None:
    """Write a DICOM file with preamble and file meta information."""
    data.save_as(path, enforce_file_format=True)


def dataset(**values: object) -> Dataset:
    """A data set of keywords and values, e.g. an item of a sequence."""
    data = Dataset()
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def coded(value: str, scheme: str, meaning: str) -> Sequence:
    """A code sequence of one item (8.8)."""
    return Sequence([dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)])


def dicom_date(when: dt.datetime) -> str:
    """Value of a DA element (PS3.5 6.2)."""
    return when.strftime("%Y%m%d")


def dicom_time(when: dt.datetime) -> str:
    """Value of a TM element (PS3.5 6.2), in whole seconds."""
    return when.strftime("%H%M%S")
