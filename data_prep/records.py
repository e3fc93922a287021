"""What a cohort is written with: the rows of prep.csv, and the folder of a case with its images and audit.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from autopet.cohort import TABLE, write_table
from autopet.components import label_components
from autopet.errors import AutopetError, one_line
from autopet.images import write_image
from autopet.volume import Volume

AUDIT = "audit.json"
MIP = "mip.png"  # coronal projection for prep.html
FORMATS = {"nifti": ".nii.gz", "mha": ".mha"}
WRITERS = 2  # images written side by side: compressing and writing take turns in waiting
COLUMNS = (
    "case", "patient_id", "study_uid", "study_date", "status", "reason", "folder", "tracer", "centre", "diagnosis",
    "suv_kind", "suv_factor", "suv_factor_qiba", "suv_factor_challenge", "suv_max",
    "lesions", "lesion_voxels", "lesion_ml", "pet_shape", "pet_spacing_mm", "ct_shape", "ct_spacing_mm", "warnings",
    "ct_series_uid", "pet_series_uid",
)  # fmt: skip


# --- rows ------------------------------------------------------------------------------------------------------------


def write_rows(out: Path, rows: Sequence[dict]) -> list[dict]:
    """Write prep.csv, sorted by case, and return its rows."""
    ordered = sorted(rows, key=lambda row: row["case"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_table(out / TABLE, ordered, COLUMNS)
    except OSError as error:
        raise AutopetError(
            f"{out / TABLE}: cannot be written (disk full or no permission?): {one_line(error)}"
        ) from error
    return ordered


def row_of(case: str, **filled: object) -> dict:
    """A row of prep.csv with its unknown columns empty."""
    unknown = set(filled) - set(COLUMNS)
    assert not unknown, f"no such columns: {unknown}"
    return {**dict.fromkeys(COLUMNS, ""), "case": case, **filled}


def measures(suv: Volume, mask: Volume | None, ct: Volume) -> dict[str, object]:
    """Columns of sizes, spacings, suv_max (of the whole image), and lesions; the last empty without a mask.

    Lesions are 18-connected components. Shapes are written z, y, x; spacings x, y, z.
    """
    columns: dict[str, object] = {"suv_max": round(float(suv.array.max()), 4)}
    for role, volume in (("pet", suv), ("ct", ct)):
        columns[f"{role}_shape"] = "x".join(str(size) for size in volume.shape)
        columns[f"{role}_spacing_mm"] = "x".join(f"{step:.6g}" for step in volume.spacing_mm)
    if mask is not None:
        voxels = int(np.count_nonzero(mask.array))
        lesions = label_components(mask.array)[1]
        columns.update(lesions=lesions, lesion_voxels=voxels, lesion_ml=round(voxels * mask.voxel_volume_ml, 4))
    return columns


def safe_name(text: str) -> str:
    """Text as a file name: letters, digits, `_` and `-`, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:100] or "case"


def reason_of(error: BaseException) -> str:
    """One line; with the type of errors that nobody expected."""
    return one_line(error) if isinstance(error, AutopetError) else f"{type(error).__name__}: {one_line(error)}"


# --- folders ---------------------------------------------------------------------------------------------------------


def refuse_strangers(folder: Path, *, source: Path) -> None:
    """An error when a case's folder holds other files, or is or holds the source: it would be replaced."""
    if source.resolve().is_relative_to(folder.resolve()):
        raise AutopetError(f"{folder} is the source itself, or holds it; choose another folder for the cohort")
    if folder.exists() and not (folder / AUDIT).is_file():
        raise AutopetError(f"{folder} is there and is no case of a cohort; move it away, or choose another folder")


def write_images(folder: Path, images: dict[str, Volume], *, suffix: str = ".nii.gz") -> list[str]:
    """Write images, named by their role; returns the files' names."""
    with ThreadPoolExecutor(WRITERS) as pool:
        written = [pool.submit(write_image, folder / f"{name}{suffix}", volume) for name, volume in images.items()]
        return [path.result().name for path in written]


def write_audit(
    folder: Path, *, files: Sequence[str], row: dict, images: dict[str, Volume], **sections: object
) -> None:
    """Write audit.json: settings, source, how each value came about, and the geometry of every image."""
    geometry = {
        name: {
            "shape_zyx": volume.shape,
            "spacing_mm": volume.spacing_mm,
            "origin_mm": volume.origin_mm,
            "direction": volume.direction,
            "dtype": str(volume.array.dtype),
        }
        for name, volume in images.items()
    }
    sizes = {name: (folder / name).stat().st_size for name in files}
    audit = {**sections, "geometry": geometry, "files": list(files), "file_bytes": sizes, "row": row}
    (folder / AUDIT).write_text(json.dumps(audit, indent=2) + "\n", encoding="utf-8")


def read_audit(folder: Path) -> dict | None:
    """The audit of a case whose files are all there in the size they were written in; None otherwise."""
    try:
        audit = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in audit["file_bytes"].items())
        return audit if whole and isinstance(audit["row"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
