"""Write a lesion mask as a DICOM Segmentation that refers to the slices of its PET series (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import format_number_as_ds

from autopet import __version__
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.progress import console
from autopet.volume import Volume, resample
from data_prep.attributes import tag_name, values
from data_prep.loading import LoadedSeries, load_series
from data_prep.series import Series, scan

MANUFACTURER = "autopet-bundle"
DEVICE_SERIAL_NUMBER = "none"  # software has none, but the attribute must have a value (C.7.5.2)
DEFAULT_FAMILY = "Artificial Intelligence"
LONGEST_TEXT = 64  # characters of a Long String (PS3.5 6.2)
SEXES = ("M", "F", "O")
MAY_BE_EMPTY = (  # attributes that a Segmentation must have, if only without a value (C.7.1, C.7.2)
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def write_dicom_seg(
    mask: Volume, reference: Path | Sequence[Path], out: Path, *, algorithm: str = "", version: str = "",
    label: str = "Lesion", description: str = "Lesions in PET/CT", creator: str = "", series_number: int = 1000,
    algorithm_family: str = DEFAULT_FAMILY,
) -> Path:  # fmt: skip
    """Write a mask as one binary multi-frame Segmentation with one segment, found by an algorithm.

    Patient, study and frame of reference are those of the PET. Planes without lesion become no frames; a mask without
    any lesion becomes a frame of zeros for every PET slice, so that "no lesion" differs from "not looked at". A mask on
    another grid is resampled by nearest neighbour, with a warning. The file appears whole or not at all.

    Parameters
    ----------
    mask : Volume
        Voxels above 0 are lesion; values other than 0 and 1 are said in a warning.
    reference : Path or sequence of Path
        The PET series: a folder, or files and folders; files of other kinds may lie beside it.
    out : Path
        File to write, `.dcm`.
    algorithm, version : str
        SegmentationAlgorithmIdentificationSequence, which must have them; `autopet-bundle` and its version when empty.
    label, description, creator : str
        SegmentLabel, ContentDescription, ContentCreatorName.
    series_number : int
        SeriesNumber (0020,0011) of the new series.
    algorithm_family : str
        AlgorithmFamilyCodeSequence: a meaning of PS3.16 CID 7162, whatever its case. The group has no code for a
        threshold on SUVs; `Histogram Analysis` comes nearest.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    AutopetError
        There is no PET series or more than one, its slices lack what a Segmentation must refer to, a text is too
        long, or the family is not one of CID 7162.
    """
    texts = _Texts(algorithm or MANUFACTURER, version or __version__, label, description, creator)
    family = _family(algorithm_family)
    pet = read_reference(reference)
    lesion = on_pet_grid(mask, pet.volume)
    data = _segmentation(pet, lesion, _segment(texts, family), texts, series_number)
    _save(data, Path(out))
    count = int(lesion.array.sum())
    volume_ml = count * lesion.voxel_volume_ml
    _say(f"{out}: {count} voxels ({volume_ml:.2f} ml) of {label} in {data.NumberOfFrames} frames", style="")
    return Path(out)


# --- the PET ---------------------------------------------------------------------------------------------------------


def read_reference(reference: Path | Sequence[Path]) -> LoadedSeries:
    """The only PET series among files or below folders; raises AutopetError when there is none, or more than one."""
    paths = [Path(reference)] if isinstance(reference, str | os.PathLike) else [Path(path) for path in reference]
    found = list(_series_of(paths))
    listed = "; ".join(f"{series.role or series.first.get('Modality', '?')}: {series.title}" for series in found)
    where = ", ".join(str(path) for path in paths[:3]) + (" ..." if len(paths) > 3 else "")
    pets = [series for series in found if series.role == "PET"]
    if len(pets) != 1:
        what = "no PET series" if not pets else f"{len(pets)} PET series"
        raise AutopetError(f"{where}: {what}, expected one; give the folder of the PET series alone. Found {listed}")
    pet = load_series(pets[0])
    if len({str(header.SOPInstanceUID) for header in pet.headers}) != len(pet.headers):
        raise AutopetError(
            f"{pets[0].title} is multi-frame ({tag_name('NumberOfFrames')}): a Segmentation can refer to a PET of one "
            "file per slice only; convert the PET"
        )
    if not values(pet.headers[0], "FrameOfReferenceUID"):
        raise AutopetError(f"{pets[0].title}: {tag_name('FrameOfReferenceUID')} is missing; correct the PET headers")
    return pet


def _series_of(paths: Sequence[Path]) -> Iterable[Series]:
    """Series below folders, and those of single files."""
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    singles = {path for path in paths if not path.is_dir()}
    missing = next((path for path in paths if not path.exists()), None)
    if missing:
        raise AutopetError(f"{missing}: no such file or folder; give the folder of the PET series")
    for folder in folders:
        for series in (series for study in scan(folder).studies for series in study.series):
            pairs = zip(series.headers, series.paths, strict=True)
            kept = [pair for pair in pairs if folder in paths or pair[1] in singles]
            if kept:
                headers, files = zip(*kept, strict=True)
                yield Series(series.uid, headers, files)


def on_pet_grid(mask: Volume, pet: Volume) -> Volume:
    """The mask as uint8 0 and 1 on the PET grid; what had to be changed for it is said in warnings."""
    lesion = mask.with_array((mask.array > 0).astype(np.uint8))
    if not (mask.array == np.rint(mask.array)).all():
        raise AutopetError(
            f"the mask has values like {float(mask.array.max()):g}, expected 0 and 1: is it a PET or a map of "
            "probabilities? Give the lesion mask"
        )
    if not (mask.array == lesion.array).all():
        found = ", ".join(f"{value:g}" for value in np.unique(mask.array)[:5])
        _say(f"the mask has values other than 0 and 1 ({found} ...): every value above 0 is taken as lesion")
    difference = lesion.grid_difference(pet)
    if not difference:
        return lesion
    moved = resample(lesion, pet, nearest=True)
    before, after = int(lesion.array.sum()), int(moved.array.sum())
    became = f"{before * lesion.voxel_volume_ml:.2f} ml) became {after} voxels ({after * pet.voxel_volume_ml:.2f} ml)"
    _say(
        f"the mask lies on another grid than the PET ({difference}) and was resampled by nearest neighbour: {before} "
        f"voxels ({became}"
    )
    return moved


def _sources(pet: LoadedSeries) -> list[Dataset]:
    """Headers of the slices as a Segmentation needs them: one orientation and spacing, no attribute missing.

    The spacing is that of the grid: what slices say of their thickness and distance is often rounded, or missing.
    """
    first = pet.headers[0]
    x, y, z = (format_number_as_ds(float(value)) for value in pet.volume.spacing_mm)
    for header in pet.headers:
        header.ImageOrientationPatient = first.ImageOrientationPatient
        header.PixelSpacing = [y, x]
        header.SliceThickness = header.SpacingBetweenSlices = z
    for keyword in MAY_BE_EMPTY:
        if not values(first, keyword) or (keyword == "PatientSex" and first.PatientSex not in SEXES):
            setattr(first, keyword, None)
    return list(pet.headers)


# --- the segmentation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """What the object says in words; all fit a Long String."""

    algorithm: str
    version: str
    label: str
    description: str
    creator: str

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            optional = name in ("description", "creator")
            if not (text.strip() or optional) or len(text) > LONGEST_TEXT or "\\" in text:
                raise AutopetError(f"{name} is {text!r}, expected 1 to {LONGEST_TEXT} characters without a backslash")


def _segmentation(
    pet: LoadedSeries, lesion: Volume, segment: hd.seg.SegmentDescription, texts: _Texts, series_number: int
) -> hd.seg.Segmentation:
    """The whole object; highdicom writes the references to the PET slices, frame by frame."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name.*")
            data = hd.seg.Segmentation(
                _sources(pet), lesion.array, hd.seg.SegmentationTypeValues.BINARY, [segment],
                series_instance_uid=hd.UID(), series_number=series_number, sop_instance_uid=hd.UID(),
                instance_number=1, manufacturer=MANUFACTURER, manufacturer_model_name=texts.algorithm,
                software_versions=texts.version, device_serial_number=DEVICE_SERIAL_NUMBER,
                omit_empty_frames=bool(lesion.array.any()), content_label=_code_string(texts.label),
                series_description=f"{texts.label} {texts.algorithm}"[:LONGEST_TEXT],
                specific_character_set="ISO_IR 192",  # UTF-8 holds the texts of every other set
            )  # fmt: skip
    except (ValueError, TypeError, AttributeError) as error:
        raise AutopetError(f"the PET headers do not allow a Segmentation: {one_line(error)}; correct them") from error
    data.ContentDescription, data.ContentCreatorName = texts.description, texts.creator  # there, if only empty (10.9)
    return data


def _family(meaning: str) -> Code:
    """A code of CID 7162 by its meaning."""
    families = {code.meaning.casefold(): code for code in codes.cid7162.concepts.values()}
    if meaning.strip().casefold() not in families:
        listed = ", ".join(sorted(code.meaning for code in families.values()))
        raise AutopetError(
            f"algorithm family {meaning!r} is not one of DICOM's (PS3.16 CID 7162); use one of: {listed}"
        )
    return families[meaning.strip().casefold()]


def _segment(texts: _Texts, family: Code) -> hd.seg.SegmentDescription:
    """The one segment (C.8.20.2): categories of CID 7150 and 7151, algorithm family of CID 7162."""
    uid = hd.UID()
    return hd.seg.SegmentDescription(
        1, texts.label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        hd.AlgorithmIdentificationSequence(texts.algorithm, family, texts.version),
        tracking_uid=uid, tracking_id=f"{texts.label} {uid}",
    )  # fmt: skip


def _code_string(text: str) -> str:
    """A text as a Code String: up to 16 capitals, digits, spaces and underscores (PS3.5 6.2), a letter first."""
    return re.sub("[^A-Z0-9_ ]+", "_", text.upper()).lstrip("0123456789_ ")[:16].rstrip("_ ") or "SEGMENTATION"


def _save(data: Dataset, out: Path) -> None:
    try:
        with whole_file(out) as part:
            data.save_as(part, enforce_file_format=True)
    except OSError as error:
        raise AutopetError(f"{out}: cannot be written (disk full or no permission?): {one_line(error)}") from error


def _say(text: str, *, style: str = "yellow") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
