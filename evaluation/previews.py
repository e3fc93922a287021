"""Small pictures of a case for the leaderboard: projections and a coarse volume, head up, as arrays.

Members of `previews/<case>.npz`, all in the order head to foot, front to back, patient's right to left:

- `ground_truth`, `prediction` (rows, columns) bool and `pet` float16: coronal projections; `spacing_mm` (2,)
- `sagittal_ground_truth`, `sagittal_prediction`, `sagittal_pet`, `sagittal_spacing_mm`: the same from the side
- `volume_ground_truth`, `volume_prediction` (z, y, x) bool, `volume_suv` uint8, `volume_spacing_mm`, `volume_origin_mm`

`pet`, `sagittal_pet` and `volume_suv` are missing without a PET image; earlier versions wrote the first line only.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.views import coronal_projection, sagittal_projection
from autopet.volume import Volume
from evaluation.coarse import CoarseVolume, coarse_volume

FOLDER = "previews"
PART = ".part-"
PET_LEVELS = 32  # per SUV
MEMBERS = {"ground_truth.npy", "prediction.npy", "spacing_mm.npy"}  # of every preview
CORONAL = ("ground_truth", "prediction", "spacing_mm", "pet")
SAGITTAL = tuple(f"sagittal_{name}" for name in CORONAL)
VOLUME = tuple(f"volume_{name}" for name in ("ground_truth", "prediction", "suv", "spacing_mm", "origin_mm"))
KNOWN_MEMBERS = {f"{name}.npy" for name in (*CORONAL, *SAGITTAL, *VOLUME)}


@dataclass(frozen=True, eq=False)
class Preview:
    """Projections of one case, and a coarse volume to look through.

    Projections are (rows, columns) arrays: row 0 is the head's end. Column 0 of the coronal ones is the patient's right
    (radiological view), column 0 of the sagittal ones is the front. `pet` is float16 in SUV, or None; the masks are
    boolean; `spacing_mm` is the distance of rows and of columns. What starts with `sagittal_`, and `volume`, is None
    in previews of earlier versions.
    """

    ground_truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, float]
    pet: np.ndarray | None = None
    sagittal_ground_truth: np.ndarray | None = None
    sagittal_prediction: np.ndarray | None = None
    sagittal_spacing_mm: tuple[float, float] | None = None
    sagittal_pet: np.ndarray | None = None
    volume: CoarseVolume | None = None


def make_preview(ground_truth: Volume, prediction: Volume | None, pet: Volume | None) -> Preview:
    """Project masks and PET, which share a grid; without a prediction its projections are empty."""
    truth, spacing_mm = coronal_projection(ground_truth)
    guess = coronal_projection(prediction)[0] if prediction is not None else np.zeros_like(truth)
    side, side_spacing_mm = sagittal_projection(ground_truth)
    side_guess = sagittal_projection(prediction)[0] if prediction is not None else np.zeros_like(side)
    return Preview(
        truth != 0,
        guess != 0,
        spacing_mm,
        None if pet is None else _as_float16(coronal_projection(pet)[0]),
        sagittal_ground_truth=side != 0,
        sagittal_prediction=side_guess != 0,
        sagittal_spacing_mm=side_spacing_mm,
        sagittal_pet=None if pet is None else _as_float16(sagittal_projection(pet)[0]),
        volume=coarse_volume(ground_truth, prediction, pet),
    )


def _as_float16(image: np.ndarray) -> np.ndarray:
    """Rounded to 1/32 of an SUV, which no eye can tell and halves the file."""
    image = np.nan_to_num(image.astype(np.float32), nan=0.0)
    image = np.clip(image, 0.0, np.finfo(np.float16).max)
    return (np.round(image * PET_LEVELS) / PET_LEVELS).astype(np.float16)


def write_preview(path: Path, preview: Preview) -> Path:
    """Write a preview as a compressed .npz; the file appears whole or not at all."""
    members = {name: getattr(preview, name) for name in (*CORONAL, *SAGITTAL)}
    if preview.volume is not None:
        members |= {name: getattr(preview.volume, name.removeprefix("volume_")) for name in VOLUME}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in members.items() if value is not None}
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def read_preview(path: Path) -> Preview:
    """Read what `write_preview` wrote, in this version or an earlier one."""
    with np.load(path, allow_pickle=False) as data:
        found: dict[str, Any] = {name: data[name] for name in (*CORONAL, *SAGITTAL) if name in data.files}
        parts = {name.removeprefix("volume_"): data[name] for name in VOLUME if name in data.files}
    for name in ("spacing_mm", "sagittal_spacing_mm"):
        if name in found:
            row_mm, column_mm = (float(value) for value in found[name])
            found[name] = (row_mm, column_mm)
    if not parts:
        return Preview(**found)
    for name in ("spacing_mm", "origin_mm"):
        first, second, third = (float(value) for value in parts[name])
        parts[name] = (first, second, third)
    return Preview(**found, volume=CoarseVolume(**parts))


def remove_previews(folder: Path) -> None:
    """Remove an earlier evaluation's previews, and the folder if nothing else is in it; other files are left."""
    if folder.is_symlink() or not folder.is_dir():
        return
    try:
        for path in sorted(folder.glob("*.npz")):
            if _is_preview(path):
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise AutopetError(f"{folder}: earlier previews cannot be removed ({one_line(error)})") from error


def _is_preview(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if path.name.startswith(PART):  # of a process that was killed while it wrote
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return MEMBERS <= set(archive.namelist()) <= KNOWN_MEMBERS
    except zipfile.BadZipFile:
        return False
