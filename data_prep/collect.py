"""Make a cohort of images that are converted already: one folder per patient, PET in SUV, CT in HU, a lesion mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, sole_writer, whole_folder
from autopet.images import is_image, read_image
from autopet.progress import track
from autopet.volume import Volume, resample
from data_prep.alignment import ct_cover_warnings, ct_on_grid
from data_prep.records import (
    MIP,
    measures,
    reason_of,
    refuse_strangers,
    row_of,
    safe_name,
    write_audit,
    write_images,
    write_rows,
)
from data_prep.report import write_report
from data_prep.thumbnails import coronal_mip

HIGHEST_SUV = 1000.0  # a PET beyond is in Bq/ml


def collect(source: Path, out: Path, *, pet: str, ct: str, mask: str | None) -> list[dict]:
    """Copy existing images into the layout that `prepare` writes.

    Parameters
    ----------
    source : Path
        A folder with one folder per patient; its name becomes case and patient ID.
    pet, ct, mask : str
        File names or glob patterns within a patient's folder: PET in SUV, CT in HU on any grid, lesion mask (not 0 is
        lesion) on the PET grid; on another grid it is resampled by nearest neighbour, with a warning. None: no masks.

    Returns
    -------
    list of dict
        The rows of prep.csv: `converted`; `skipped` without PET or CT file; `failed` when a file cannot be used.
        A patient without a mask file is converted without SEG, with a warning.
    """
    source, out = Path(source), Path(out)
    folders = _patient_folders(source, out)
    with sole_writer(out):
        remove_leftovers(out)
        patients = zip(_case_names(folders), folders, strict=True)
        rows = [
            _attempt(case, folder, out, pet=pet, ct=ct, mask=mask)
            for case, folder in track(patients, "collecting", total=len(folders))
        ]
        ordered = write_rows(out, rows)
        write_report(out, ordered)
    return ordered


def _patient_folders(source: Path, out: Path) -> list[Path]:
    if not source.is_dir():
        raise AutopetError(f"{source}: no such folder; give the folder that holds one folder per patient")
    if source.resolve() == out.resolve():
        raise AutopetError(f"{source}: source and cohort are the same folder; choose another one for the cohort")
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders = [path for path in folders if path.resolve() != out.resolve()]
    if not folders:
        raise AutopetError(f"{source}: no folder in it; expected one folder of images per patient")
    return folders


def _case_names(folders: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for folder in folders:
        name, count = safe_name(folder.name), 1
        while name in names:
            count += 1
            name = f"{safe_name(folder.name)}_{count}"
        names.append(name)
    return names


def _attempt(case: str, folder: Path, out: Path, *, pet: str, ct: str, mask: str | None) -> dict:
    """Collect one patient; whatever goes wrong becomes the row."""
    person = row_of(case, patient_id=folder.name)
    try:
        found = {role: _find(folder, pattern) for role, pattern in (("PET", pet), ("CT", ct), ("mask", mask))}
        missing = [f"no {role} image {pattern}" for role, pattern in (("PET", pet), ("CT", ct)) if found[role] is None]
        if missing:
            return {**person, "status": "skipped", "reason": f"{' and '.join(missing)} in {folder}"}
        refuse_strangers(out / case, source=folder)
        return _collect_patient(person, out / case, found, wants_mask=mask is not None)
    except Exception as error:
        return {**person, "status": "failed", "reason": reason_of(error)}


def _find(folder: Path, pattern: str | None) -> Path | None:
    """The one image of a folder that a pattern matches."""
    if pattern is None:
        return None
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and is_image(path))
    if len(found) > 1:
        listed = ", ".join(path.name for path in found[:3])
        raise AutopetError(
            f"{folder}: {len(found)} images match {pattern!r} ({listed}); give a pattern that only one matches"
        )
    return found[0] if found else None


def _collect_patient(row: dict, target: Path, found: dict[str, Path | None], *, wants_mask: bool) -> dict:
    pet_path, ct_path, mask_path = found["PET"], found["CT"], found["mask"]
    assert pet_path is not None
    assert ct_path is not None
    suv, ct, warnings = _read_suv(pet_path), read_image(ct_path), []
    warnings += ct_cover_warnings(ct, suv)
    mask = None
    if mask_path is not None:
        mask = _mask_on_grid(read_image(mask_path), suv, warnings)
    elif wants_mask:
        warnings.append("no mask image: not annotated")
    images = {"CT": ct, "SUV": suv, "CTres": ct_on_grid(ct, suv), **({} if mask is None else {"SEG": mask})}
    row = {
        **row,
        **measures(suv, mask, ct),
        "status": "converted",
        "folder": target.name,
        "warnings": " | ".join(warnings),
    }
    sources = {role: str(path) for role, path in found.items() if path is not None}
    with whole_folder(target) as part:
        files = write_images(part, images)
        (part / MIP).write_bytes(coronal_mip(suv, mask))
        write_audit(part, files=[*files, MIP], row=row, images=images, source=sources, warnings=warnings)
    return row


def _read_suv(path: Path) -> Volume:
    suv = read_image(path)
    highest = float(np.nanmax(suv.array))
    if not 0 < highest <= HIGHEST_SUV:
        raise AutopetError(
            f"{path}: its highest voxel is {highest:g}, expected SUV in (0, {HIGHEST_SUV:g}]; convert it to SUV"
        )
    return suv.with_array(suv.array.astype(np.float32))


def _mask_on_grid(mask: Volume, suv: Volume, warnings: list[str]) -> Volume:
    binary = mask.with_array((mask.array > 0).astype(np.uint8))
    difference = binary.grid_difference(suv)
    if not difference:
        return suv.with_array(binary.array)
    warnings.append(f"the mask is not on the PET grid, resampled by nearest neighbour: {difference}")
    return resample(binary, suv, nearest=True)
