"""Small pictures of a case for the leaderboard: coronal maximum-intensity projections, head up, as arrays."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from autopet.views import coronal_projection
from autopet.volume import Volume

FOLDER = "previews"
PART = ".part-"
MEMBERS = {"ground_truth.npy", "prediction.npy", "spacing_mm.npy"}  # of every preview


@dataclass(frozen=True, eq=False)
class Preview:
    """Coronal projections of one case.

    All arrays are (rows, columns): row 0 is the head's end, column 0 the patient's right (radiological view).
    `pet` is float16 in SUV, or None; the masks are boolean; `spacing_mm` is the distance of rows and of columns.
    """

    ground_truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, float]
    pet: np.ndarray | None = None


def make_preview(ground_truth: Volume, prediction: Volume | None, pet: Volume | None) -> Preview:
    """Project masks and PET, which share a grid; without a prediction its projection is empty."""
    truth, spacing_mm = coronal_projection(ground_truth)
    guess = coronal_projection(prediction)[0] if prediction is not None else np.zeros_like(truth)
    image = None
    if pet is not None:
        image = np.nan_to_num(coronal_projection(pet)[0].astype(np.float32), nan=0.0)
        image = np.clip(image, 0.0, np.finfo(np.float16).max).astype(np.float16)
    return Preview(truth != 0, guess != 0, spacing_mm, image)


def write_preview(path: Path, preview: Preview) -> Path:
    """Write a preview as a compressed .npz; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"ground_truth": preview.ground_truth, "prediction": preview.prediction}
    arrays["spacing_mm"] = np.array(preview.spacing_mm)
    if preview.pet is not None:
        arrays["pet"] = preview.pet
    partial = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_preview(path: Path) -> Preview:
    """Read what `write_preview` wrote."""
    with np.load(path, allow_pickle=False) as data:
        row_mm, column_mm = (float(value) for value in data["spacing_mm"])
        pet = data["pet"] if "pet" in data.files else None
        return Preview(data["ground_truth"], data["prediction"], (row_mm, column_mm), pet)


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
            return MEMBERS <= set(archive.namelist()) <= {*MEMBERS, "pet.npy"}
    except zipfile.BadZipFile:
        return False
