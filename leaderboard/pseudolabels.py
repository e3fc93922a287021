"""A submission's masks as the labels of a cohort: what a supervised method is trained on when nobody drew lesions.

Lee, "Pseudo-label" (ICML workshop 2013) is the name; with masks from class activation maps it is the use that weakly
supervised segmentation is made for.

out/<case>/            links to the case's images; SEG (the predicted mask), mip.png and audit.json are new; SEG.dcm
out/prep.csv           the cohort's table with the sizes of the predicted lesions; `autopet train` reads it
out/pseudolabel.json   whose masks these are: only folders with it are replaced
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopet.cohort import TABLE, Case, read_table
from autopet.components import label_components
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, sole_writer, whole_folder
from autopet.images import read_grid, read_image, write_image
from autopet.progress import track
from autopet.volume import Volume
from data_prep.records import COLUMNS, MIP, reason_of, row_of, write_audit, write_rows
from data_prep.report import BETWEEN_WARNINGS, write_report
from data_prep.thumbnails import coronal_mip
from evaluation.aggregate import printable
from evaluation.jobs import Pair, find_candidates, pair_up
from evaluation.scoring import read_mask
from evaluation.truths import Truth
from leaderboard.runner import read_origin

MARKER = "pseudolabel.json"
IMAGES = ("CT", "PET", "SUV", "CTres", "ORGANS")  # taken over; SEG never is
DICOM_SEG = "SEG.dcm"
LONGEST_ALGORITHM = 64  # characters of a Long String (DICOM PS3.5 6.2)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Whose masks, for which cohort, and the files of PET series by SeriesInstanceUID (None: no DICOM is written)."""

    submission: Path
    data: Path
    pet_files: Mapping[str, Sequence[Path]] | None

    @property
    def name(self) -> str:
        """The submission's, as tables and DICOM can show it."""
        return printable(self.submission.name, limit=LONGEST_ALGORITHM).replace("\\", "/")


def write_pseudolabels(
    submission: Path, data: Path, out: Path, *, cases: Sequence[Case], dicom: Path | None = None
) -> list[Row]:
    """Write a cohort whose SEG is what a submission predicted; the cohort's own masks are neither read nor copied.

    Parameters
    ----------
    submission : Path
        Folder with predictions.json, or of masks named by case, on the grid of the SUV images.
    data : Path
        Cohort that `autopet prep` wrote, with or without masks.
    out : Path
        New folder, or one that an earlier call wrote; it appears whole or not at all.
    cases : sequence of Case
        The cases of `data` to take.
    dicom : Path, optional
        Folder of the cohort's DICOM studies: every case gets a DICOM Segmentation on its PET series, too.

    Returns
    -------
    list of dict
        The rows of prep.csv, sorted by case: `converted`, or `failed` with the reason (no mask, another grid).

    Raises
    ------
    AutopetError
        No case has a mask, `out` holds something else, the cohort does not know its PET series, the disk is full,
        another call writes to `out`.
    """
    submission, data, out = (Path(path).resolve() for path in (submission, data, out))
    _refuse_other_content(out, submission, data)
    table = {row["case"]: row for row in read_table(data / TABLE)}
    pairs = pair_up([Truth(case.name, case.suv) for case in cases], find_candidates(submission), ignored=table).pairs
    uids = {str(table[case.name].get("pet_series_uid") or "") for case in cases}
    source = Source(submission, data, None if dicom is None else find_pet_files(dicom, uids - {""}))
    with _held(out), whole_folder(out) as folder:
        jobs = zip(cases, pairs, strict=True)
        rows = [_attempt(case, pair, table[case.name], source, folder) for case, pair in track(list(jobs), "labels")]
        if all(row["status"] != "converted" for row in rows):
            raise AutopetError(f"no case has a mask that can be a label; first reason: {rows[0]['reason']}")
        ordered = write_rows(folder, rows)
        write_report(folder, ordered)
        (folder / MARKER).write_text(json.dumps(_origin(source, ordered), indent=2) + "\n", encoding="utf-8")
    return ordered


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold a folder that is replaced as a whole, by a folder beside it, and clear away what a killed call left."""
    lock = out.with_name(f".lock-{out.name}")
    with sole_writer(lock):
        remove_leftovers(out.parent, out.name)
        yield
    with suppress(OSError):  # a killed call's, which `sole_writer` did not make
        lock.rmdir()


def find_pet_files(dicom: Path, uids: Collection[str]) -> dict[str, tuple[Path, ...]]:
    """Files of PET series below a folder, by SeriesInstanceUID; of the series named only.

    Raises
    ------
    AutopetError
        There is no DICOM, or no series is named.
    """
    from data_prep.finding import find_studies
    from data_prep.scanning import read_study

    if not uids:
        raise AutopetError(
            "the cohort's prep.csv names no PET series (pet_series_uid), so no DICOM Segmentation can refer to one; "
            "leave --dicom out, or convert the cohort from DICOM with `autopet prep`"
        )
    studies = [study for study in find_studies(dicom).studies if set(study.series_uids) & set(uids)]
    series = [series for study in studies for series in read_study(study).series]
    return {one.uid: one.paths for one in series if one.role == "PET" and one.uid in uids}


def _refuse_other_content(out: Path, submission: Path, data: Path) -> None:
    for folder in (submission, data):
        if out == folder or folder in out.parents or out in folder.parents:
            raise AutopetError(f"{out} and {folder} lie in each other; choose another folder for the labels")
    if out.exists() and not out.is_dir():
        raise AutopetError(f"{out} is a file; choose a new folder for the labels")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AutopetError(f"{out} holds other files; choose a new folder for the labels")


def _attempt(case: Case, pair: Pair, known: Mapping[str, str], source: Source, out: Path) -> Row:
    """Label one case; whatever is wrong with its mask becomes the row, and the cohort has nothing of the case."""
    row = {**row_of(case.name), **{column: known.get(column) or "" for column in COLUMNS}}
    row |= dict.fromkeys(("lesions", "lesion_voxels", "lesion_ml"), "")
    try:
        if pair.prediction is None:
            raise AutopetError(pair.reason)
        return _label(case, pair.prediction, row, source, out)
    except Exception as error:
        if _no_room(error):  # would replace earlier labels by those there is room for
            raise
        return {**row, "status": "failed", "reason": printable(reason_of(error)), "folder": ""}


def _no_room(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the disk's."""
    while error is not None and not (isinstance(error, OSError) and error.errno in NO_ROOM):
        error = error.__cause__
    return error is not None


def _label(case: Case, prediction: Path, row: Row, source: Source, out: Path) -> Row:
    suv = read_image(case.suv)
    difference = read_grid(prediction).grid_difference(suv)
    if difference:  # known before the voxels are read: a small file can announce more than memory holds
        raise AutopetError(
            f"the predicted mask is not on the grid of the SUV image: {difference}; predict the case anew"
        )
    mask = suv.with_array(read_mask(prediction).array.astype(np.uint8))
    row = {**row, **_measured(mask), "folder": case.name}
    said = f"pseudo-label: the lesions were predicted by {source.name}, nobody drew them"
    row["warnings"] = BETWEEN_WARNINGS.join(filter(None, (row["warnings"], said)))
    with whole_folder(out / case.name) as part:
        files = [_link(case.image(role), part) for role in IMAGES if case.image(role).is_file()]
        files.append(write_image(part / case.mask.name, mask).name)
        (part / MIP).write_bytes(coronal_mip(suv, mask))
        if source.pet_files is not None:
            files.append(_write_dicom(mask, row, source.pet_files, source.name, part))
        origin = {"cohort": str(source.data), "images": str(case.folder), "mask": str(prediction)}
        images = {"SUV": suv, "SEG": mask}
        write_audit(part, files=[*files, MIP], row=row, images=images, source=origin, warnings=[said])
    return row


def _measured(mask: Volume) -> Row:
    """Columns of the lesions, as `autopet prep` counts them."""
    voxels = int(np.count_nonzero(mask.array))
    lesions = label_components(mask.array)[1]
    return {"lesions": lesions, "lesion_voxels": voxels, "lesion_ml": round(voxels * mask.voxel_volume_ml, 4)}


def _link(image: Path, folder: Path) -> str:
    """A second name for an image, a symbolic link across file systems: a cohort of labels takes no room for images."""
    target = folder / image.name
    try:
        os.link(image.resolve(), target)
    except OSError:
        target.symlink_to(image.resolve())
    return target.name


def _write_dicom(mask: Volume, row: Row, pet_files: Mapping[str, Sequence[Path]], name: str, folder: Path) -> str:
    from data_prep.dicom_export import write_dicom_seg

    files = pet_files.get(row["pet_series_uid"])
    if not files:
        raise AutopetError(f"no PET series {row['pet_series_uid'] or '(unknown)'} among the DICOM files given")
    write_dicom_seg(mask, files, folder / DICOM_SEG, algorithm=name, description="Predicted lesions (pseudo-label)")
    return DICOM_SEG


def _origin(source: Source, rows: Sequence[Row]) -> dict[str, Any]:
    """Whose masks these are; origin.json of `autopet run` says with which weights they were made."""
    labelled = sum(row["status"] == "converted" for row in rows)
    return {
        "submission": str(source.submission), "origin": read_origin(source.submission), "cohort": str(source.data),
        "labelled": labelled, "left_out": len(rows) - labelled,
    }  # fmt: skip
