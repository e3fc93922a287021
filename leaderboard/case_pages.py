"""The page of one case: pictures, values, lesions, and the script with its volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from evaluation.coarse import CoarseVolume
from leaderboard.lesion_table import MOST_SHOWN, Lesion, TrueLesion, false_lesions, true_lesions
from leaderboard.pages import render
from leaderboard.pictures import (
    CLASSES,
    PICTURE_HEIGHT_PX,
    SUV_BLACK,
    Projection,
    draw_masks,
    draw_pet,
    find_preview,
    png_data_uri,
    projections,
)
from leaderboard.view import Board, Entrant, Patient, number_text
from leaderboard.viewer import share_grid, volume_script

READERS = 4  # threads


@dataclass(frozen=True)
class Picture:
    """The masks of one view as a data URI; `over_pet` when they lie over the case's PET."""

    name: str
    uri: str
    width: int
    height: int
    over_pet: bool


@dataclass(frozen=True)
class Pictures:
    """PET by view, and the masks' pictures by submission."""

    pet: dict[str, str]
    masks: dict[str, list[Picture]]


@dataclass(frozen=True)
class LesionTables:
    """True lesions with who found them, and the false ones by submission."""

    truth: list[TrueLesion]
    false: list[tuple[Entrant, list[Lesion]]]


def case_files(board: Board, patient: Patient, lesions: Sequence[Mapping[str, list[Lesion]] | None]) -> dict[str, str]:
    """The case's page and, when there are volumes, its script.

    Parameters
    ----------
    board : Board
    patient : Patient
    lesions : sequence
        Of `read_lesions` by submission, best first; None without a lesions.csv.

    Returns
    -------
    dict
        Texts by file name.
    """
    views, volumes = _read_previews(board, patient)
    grid = share_grid(volumes)
    neighbours = {
        i: board.patients[i] for i in (patient.number - 1, patient.number + 1) if 0 <= i < len(board.patients)
    }
    page = render(
        "case.html.j2",
        board,
        here="",
        c=patient,
        previous=neighbours.get(patient.number - 1),
        next=neighbours.get(patient.number + 1),
        facts=_facts(board, patient),
        measures=[m for m in board.measures if not m.name.startswith("gt_")],
        results=[entrant.standing.submission.cases[patient.number] for entrant in board.entrants],
        pictures=_pictures(views),
        classes=[(key, text, "rgb({},{},{})".format(*colour)) for key, text, colour in CLASSES],
        suv_black=SUV_BLACK,
        has_volumes=grid is not None,
        lesions=_lesion_tables(board, patient, lesions),
        most_shown=MOST_SHOWN,
    )
    files = {patient.page: page}
    if grid is not None:
        files[patient.script] = volume_script(grid, [(entrant.key, entrant.name) for entrant in board.entrants])
    return files


def _read_previews(board: Board, patient: Patient) -> tuple[dict[str, dict[str, Projection]], dict[str, CoarseVolume]]:
    """Projections and volumes by the key of the submission."""
    views: dict[str, dict[str, Projection]] = {}
    volumes = {}
    folders = [entrant.standing.submission.previews for entrant in board.entrants]
    with ThreadPoolExecutor(READERS) as pool:  # unpacking takes most of a site's time, and leaves Python's lock
        found = list(pool.map(lambda folder: find_preview(folder, patient.name), folders))
    for entrant, preview in zip(board.entrants, found, strict=True):
        views[entrant.key] = {} if preview is None else projections(preview)
        if preview is not None and preview.volume is not None:
            volumes[entrant.key] = preview.volume
    return views, volumes


def _pictures(views: Mapping[str, Mapping[str, Projection]]) -> Pictures:
    """The PET of the first submission that has one, and everyone's masks."""
    base: dict[str, Projection] = {}
    for found in views.values():
        for name, view in found.items():
            if view.pet is not None:
                base.setdefault(name, view)
    masks: dict[str, list[Picture]] = {}
    for key, found in views.items():
        masks[key] = []
        for name, view in found.items():
            width, height = view.size_px(PICTURE_HEIGHT_PX)
            over = name in base and view.fits(base[name])
            masks[key].append(Picture(name, png_data_uri(draw_masks(view)), width, height, over))
    return Pictures({name: png_data_uri(draw_pet(view)) for name, view in base.items()}, masks)


def _facts(board: Board, patient: Patient) -> list[tuple[str, str]]:
    facts = [("Tracer", patient.tracer), ("Centre", patient.centre)]
    for term, name, digits, unit in (
        ("True lesions", "gt_lesions", 0, ""),
        ("True MTV", "gt_ml", 1, " ml"),
        ("True TLG", "gt_tlg_g", 1, " g"),
    ):
        value = float(board.truth(name)[patient.number])
        facts.append((term, "" if math.isnan(value) else number_text(value, digits) + unit))
    facts.append(("Without a valid prediction", str(int(np.count_nonzero(board.lost[:, patient.number])))))
    return [(term, text) for term, text in facts if text]


def _lesion_tables(
    board: Board, patient: Patient, lesions: Sequence[Mapping[str, list[Lesion]] | None]
) -> LesionTables | None:
    if all(table is None for table in lesions):
        return None
    rows = [None if table is None else table.get(patient.name, []) for table in lesions]
    false = [(entrant, false_lesions(found)) for entrant, found in zip(board.entrants, rows, strict=True)]
    return LesionTables(true_lesions(rows), false)
