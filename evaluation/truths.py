"""The ground truth: a cohort that `autopet prep` wrote, or a plain folder of masks, with a table beside them or not."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autopet.cohort import TABLE, read_cohort, read_table
from autopet.errors import AutopetError, one_line
from autopet.images import find_images, image_stem

CASES_TABLE = "cases.csv"
CASES_COLUMNS = ("case", "tracer", "centre")


@dataclass(frozen=True)
class Truth:
    """One case's ground-truth mask, its PET in SUV where there is one, and the subset that it belongs to."""

    case: str
    mask: Path
    pet: Path | None = None
    tracer: str = ""
    centre: str = ""


def find_truths(folder: Path, *, images: Path | None = None) -> list[Truth]:
    """The ground truth, sorted by case: a cohort that `autopet prep` wrote, or a plain folder of `<case>.nii.gz|.mha`.

    Parameters
    ----------
    folder : Path
        Where the masks are. Studies of a cohort that have no segmentation are no ground truth. A cohort's prep.csv
        says tracer and centre; beside plain masks a cases.csv with the columns case, tracer and centre may.
    images : Path, optional
        Plain folder of PET images `<case>.nii.gz|.mha` in SUV; a cohort's own SUV images are used without it.
    """
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such ground-truth folder")
    pets = _by_stem(images) if images is not None else {}
    if (folder / TABLE).is_file():
        cases = [case for case in read_cohort(folder) if case.lesion_voxels is not None]
        truths = [
            Truth(case.name, case.mask, pets.get(case.name, case.suv), case.tracer, case.centre) for case in cases
        ]
    else:
        truths = [Truth(name, mask, pets.get(name)) for name, mask in _by_stem(folder).items()]
        truths = _with_subsets(truths, folder / CASES_TABLE)
    if not truths:
        raise AutopetError(
            f"{folder}: no ground truth found, expected masks <case>.nii.gz or .mha, or a cohort with {TABLE}"
        )
    return sorted(truths, key=lambda truth: truth.case)


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in find_images(folder):
        twin = found.setdefault(image_stem(path), path)
        if twin != path:
            raise AutopetError(f"{folder}: two images for one case, {twin.name} and {path.name}; keep one of them")
    return found


def _with_subsets(truths: Sequence[Truth], table: Path) -> list[Truth]:
    """Tracer and centre of every mask from cases.csv, where there is one; rows of other cases are left alone."""
    if not table.is_file():
        return list(truths)
    try:
        rows = read_table(table)
    except (OSError, ValueError, csv.Error) as error:
        raise AutopetError(f"{table}: cannot be read as CSV ({one_line(error)})") from error
    missing = [column for column in CASES_COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise AutopetError(f"{table}: expected the columns {', '.join(CASES_COLUMNS)}, {', '.join(missing)} not found")
    found = {row["case"]: row for row in rows}
    if len(found) != len(rows):
        raise AutopetError(f"{table}: expected every case once, found {len(rows)} rows for {len(found)} cases")
    unnamed = [truth.case for truth in truths if truth.case not in found]
    if unnamed:
        raise AutopetError(f"{table} does not name the case {unnamed[0]} ({len(unnamed)} such masks); add it")
    return [
        replace(truth, tracer=found[truth.case]["tracer"] or "", centre=found[truth.case]["centre"] or "")
        for truth in truths
    ]


def select_truths(truths: Sequence[Truth], cases: Sequence[str] | None) -> list[Truth]:
    """Those of the named cases (all without names); a name without ground truth is an error."""
    if cases is None:
        return list(truths)
    unknown = sorted(set(cases) - {truth.case for truth in truths})
    if unknown:
        raise AutopetError(
            f"no ground truth for case {unknown[0]!r} ({len(unknown)} such names); mend the list of cases"
        )
    if not cases:
        raise AutopetError("the list of cases to evaluate is empty")
    return [truth for truth in truths if truth.case in set(cases)]
