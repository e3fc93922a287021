"""Convert one DICOM study into a folder of images with an audit, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_folder
from autopet.volume import Volume
from data_prep.alignment import ct_cover_warnings, ct_on_grid
from data_prep.attributes import values
from data_prep.loading import LoadedSeries, load_series
from data_prep.metadata import TRACERS
from data_prep.plausibility import plausibility_warnings
from data_prep.records import FORMATS, MIP, measures, read_audit, refuse_strangers, row_of, write_audit, write_images
from data_prep.segmentation import Segmentation, load_segmentation
from data_prep.series import Choice, Series, Study
from data_prep.suv import KINDS, MODES, SuvFactor, suv_factor
from data_prep.thumbnails import coronal_mip

FORMAT = 4  # raise it when the same files and settings give other results


@dataclass(frozen=True)
class Settings:
    """What decides the result besides the files; kept in the audit.

    Raises
    ------
    AutopetError
        A value is unknown.
    """

    segments: tuple[str, ...] = ()  # labels or numbers of the lesion's segments; all of them when none is named
    suv_mode: str = "qiba"  # qiba or challenge, see data_prep.suv
    suv_kind: str = "bw"  # bw, lbm or bsa: by body weight, lean body mass or body surface area
    image_format: str = "nifti"  # nifti or mha
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name, known in (("suv_mode", MODES), ("suv_kind", KINDS), ("image_format", tuple(FORMATS))):
            if getattr(self, name) not in known:
                raise AutopetError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")


@dataclass(frozen=True)
class Conversion:
    """One study to convert, with the series chosen."""

    case: str
    study: Study
    choice: Choice
    out: Path
    settings: Settings

    @property
    def folder(self) -> Path:
        """Where the images go."""
        return self.out / self.case

    @property
    def audited_settings(self) -> dict:
        """The settings as audit.json holds them."""
        return json.loads(json.dumps(asdict(self.settings)))

    @property
    def source(self) -> dict:
        """Series UIDs, and a digest of the files' UIDs, sizes and times."""
        choice = self.choice
        digest = hashlib.sha256()
        for series in (choice.ct, choice.pet, *choice.segmentations):
            uids = (str(header.SOPInstanceUID) for header in series.headers)
            for uid, path in sorted(zip(uids, series.paths, strict=True)):
                stat = path.stat()
                digest.update(f"{uid} {stat.st_size} {int(stat.st_mtime)}\n".encode())
        for path in self.study.unreadable:
            digest.update(f"unreadable {path.name}\n".encode(errors="replace"))
        return {
            "ct_series_uid": choice.ct.uid,
            "pet_series_uid": choice.pet.uid,
            "seg_series_uids": [series.uid for series in choice.segmentations],
            "digest": digest.hexdigest(),
        }


def study_row(case: str, study: Study, **filled: object) -> dict:
    """A row of prep.csv with what the study's headers say."""
    warned = {"warnings": " | ".join(study.warnings), **filled}
    return row_of(case, patient_id=study.patient_id, study_uid=study.uid, study_date=study.date, **warned)


def earlier_row(conversion: Conversion) -> dict | None:
    """The row of an earlier run with the same files and settings, if its folder is whole."""
    audit = read_audit(conversion.folder)
    if not audit or audit.get("settings") != conversion.audited_settings or audit.get("source") != conversion.source:
        return None
    return {**row_of(conversion.case), **audit["row"]}


def convert_study(conversion: Conversion) -> dict:
    """Write the folder of one study, whole or not at all; returns its row."""
    choice, settings = conversion.choice, conversion.settings
    refuse_strangers(conversion.folder, source=choice.pet.paths[0])
    pet = load_series(choice.pet)
    factors = _factors(pet.headers, settings)
    factor = factors[settings.suv_mode]
    assert isinstance(factor, SuvFactor)
    suv = _suv(pet, factor)
    segmentation = _segmentation(conversion, pet)
    mask = segmentation.mask if segmentation else None
    ct = load_series(choice.ct)
    ct_on_pet = ct_on_grid(ct.volume, pet.volume)
    warnings = [
        *conversion.study.warnings,
        *choice.warnings,
        *pet.warnings,
        *ct.warnings,
        *factor.warnings,
        *ct_cover_warnings(ct.volume, pet.volume),
        *_segmentation_warnings(conversion, segmentation),
        *plausibility_warnings(suv, ct_on_pet, mask, kind=settings.suv_kind),
    ]
    row = study_row(
        conversion.case, conversion.study, status="converted", folder=conversion.case, tracer=_tracer(pet.headers[0]),
        suv_kind=factor.kind, suv_factor=factor.factor, warnings=" | ".join(warnings),
        ct_series_uid=choice.ct.uid, pet_series_uid=choice.pet.uid,
        **{f"suv_factor_{mode}": found.factor for mode, found in factors.items() if isinstance(found, SuvFactor)},
        **measures(suv, mask, ct.volume),
    )  # fmt: skip
    images = {"CT": ct.volume, "PET": pet.volume, "SUV": suv, "CTres": ct_on_pet}
    if mask is not None:
        images["SEG"] = mask
    with whole_folder(conversion.folder) as folder:
        files = write_images(folder, images, suffix=FORMATS[settings.image_format])
        (folder / MIP).write_bytes(coronal_mip(suv, mask))
        sections = _audit(conversion, factors, segmentation, warnings)
        write_audit(folder, files=[*files, MIP], row=row, images=images, **sections)
    return row


def _factors(headers: Sequence[Dataset], settings: Settings) -> dict[str, SuvFactor | str]:
    """The factor by every mode, or why there is none; the chosen mode's must be there."""
    found: dict[str, SuvFactor | str] = {
        settings.suv_mode: suv_factor(headers, kind=settings.suv_kind, mode=settings.suv_mode)
    }
    for mode in MODES:
        if mode != settings.suv_mode:
            try:
                found[mode] = suv_factor(headers, kind=settings.suv_kind, mode=mode)
            except AutopetError as error:
                found[mode] = one_line(error)
    return found


def _suv(pet: LoadedSeries, factor: SuvFactor) -> Volume:
    per_slice = np.array(factor.slice_factors)[:, None, None]
    suv = np.empty(pet.volume.shape, dtype=np.float32)
    return pet.volume.with_array(np.multiply(pet.volume.array, per_slice, out=suv, casting="same_kind"))


def _segmentation(conversion: Conversion, pet: LoadedSeries) -> Segmentation | None:
    choice = conversion.choice
    if not choice.segmentations:
        return None
    frame_uid = str(choice.pet.first.get("FrameOfReferenceUID") or "")
    return load_segmentation(
        choice.segmentations, pet=pet.volume, pet_uid=choice.pet.uid, frame_uid=frame_uid,
        segments=conversion.settings.segments, pet_headers=pet.headers,
    )  # fmt: skip


def _segmentation_warnings(conversion: Conversion, segmentation: Segmentation | None) -> tuple[str, ...]:
    if segmentation:
        return segmentation.warnings
    return ("the study has no segmentation: the named segments are unknown",) if conversion.settings.segments else ()


def _audit(
    conversion: Conversion,
    factors: dict[str, SuvFactor | str],
    segmentation: Segmentation | None,
    warnings: Sequence[str],
) -> dict[str, object]:
    chosen = factors[conversion.settings.suv_mode]
    others = {mode: _factor_audit(found) for mode, found in factors.items() if found is not chosen}
    return {
        "settings": conversion.audited_settings,
        "source": conversion.source,
        "series": {"reasons": conversion.choice.reasons, **_found(conversion.study.series)},
        "suv": _factor_audit(chosen),
        "suv_by_other_modes": others,
        "segmentation": _segmentation_audit(segmentation),
        "warnings": list(warnings),
    }


def _factor_audit(found: SuvFactor | str) -> dict:
    if isinstance(found, str):
        return {"error": found}
    audit = {key: value for key, value in asdict(found).items() if key != "slice_factors"}
    if len(set(found.slice_factors)) > 1:
        audit["slice_factors"] = found.slice_factors
    return audit


def _found(series: Sequence[Series]) -> dict[str, list[str]]:
    return {"found": [f"{item.first.get('Modality', '?')}: {item.title}" for item in series]}


def _segmentation_audit(segmentation: Segmentation | None) -> dict | None:
    if segmentation is None:
        return None
    return {
        "seg_uids": segmentation.seg_uids,
        "segments": segmentation.segments,
        "frames_placed": segmentation.frames_placed,
        "grid": segmentation.grid,
    }


def _tracer(header: Dataset) -> str:
    """FDG or PSMA from Radiopharmaceutical (0018,0031) or its code, empty when it says neither."""
    item = (header.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    code = (item.get("RadiopharmaceuticalCodeSequence") or [Dataset()])[0]
    text = " ".join(values(item, "Radiopharmaceutical") + values(code, "CodeMeaning")).upper()
    return next((tracer for tracer, words in TRACERS.items() if any(word in text for word in words)), "")
