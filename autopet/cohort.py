"""A converted cohort: the folder that `autopet prep` writes and that training, running and evaluating read."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopet.errors import AutopetError

TABLE = "prep.csv"
SPLIT = "split.csv"


@dataclass(frozen=True)
class Case:
    """One converted study.

    `name` is unique in the cohort and safe as a file name. `lesion_voxels` is None when the study came without
    a segmentation, 0 when it has one that is empty.
    """

    name: str
    patient_id: str
    folder: Path
    tracer: str = ""
    centre: str = ""
    lesion_voxels: int | None = None

    @property
    def suv(self) -> Path:
        """PET in standardised uptake values."""
        return self.folder / "SUV.nii.gz"

    @property
    def ct(self) -> Path:
        """CT in HU, on the PET grid."""
        return self.folder / "CTres.nii.gz"

    @property
    def mask(self) -> Path:
        """Lesion mask on the PET grid."""
        return self.folder / "SEG.nii.gz"


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[dict], columns: Sequence[str]) -> None:
    """Write rows as CSV; the file appears whole or not at all."""
    partial = path.with_name(f".part-{path.name}")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read_cohort(folder: Path) -> list[Case]:
    """The converted cases of a cohort, sorted by name. Studies that were skipped or failed stay in prep.csv only."""
    folder = Path(folder)
    table = folder / TABLE
    if not table.is_file():
        raise AutopetError(f"{table} is missing; give the folder that `autopet prep` wrote")
    cases = [_case(folder, row) for row in read_table(table) if row["status"] == "converted"]
    if not cases:
        raise AutopetError(f"{table} lists no converted study; see its column `reason`")
    return sorted(cases, key=lambda case: case.name)


def _case(folder: Path, row: dict[str, str]) -> Case:
    voxels = row.get("lesion_voxels", "")
    return Case(
        name=row["case"],
        patient_id=row["patient_id"],
        folder=folder / row["folder"],
        tracer=row.get("tracer", ""),
        centre=row.get("centre", ""),
        lesion_voxels=int(voxels) if voxels else None,
    )


def labelled(cases: Iterable[Case]) -> list[Case]:
    """Cases with a segmentation, an error when there is none."""
    found = [case for case in cases if case.lesion_voxels is not None]
    if not found:
        raise AutopetError("no case of the cohort has a lesion segmentation; training needs SEG.nii.gz")
    return found


def split_patients(cases: Sequence[Case], *, test_fraction: float, seed: int) -> dict[str, str]:
    """Assign every patient to `train` or `test`, never a patient to both.

    Strata of tracer, centre and whether there are lesions get their share of the test patients, rounded by largest
    remainder, so that small strata are not always rounded away. Who goes where within a stratum depends on the seed
    and the patient's ID alone.

    Returns
    -------
    dict
        Case name -> part.
    """
    patients: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.name):
        patients.setdefault(case.patient_id, []).append(case)
    strata: dict[tuple, list[str]] = {}
    for patient, studies in patients.items():
        stratum = (studies[0].tracer, studies[0].centre, any(study.lesion_voxels for study in studies))
        strata.setdefault(stratum, []).append(patient)
    tested: set[str] = set()
    for stratum, count in _shares({key: len(members) for key, members in strata.items()}, test_fraction).items():
        tested.update(sorted(strata[stratum], key=lambda patient: _order(seed, patient))[:count])
    return {
        study.name: "test" if patient in tested else "train"
        for patient, studies in patients.items()
        for study in studies
    }


def _order(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def _shares(sizes: dict[tuple, int], fraction: float) -> dict[tuple, int]:
    """Whole shares of each stratum that add up to the rounded share of all (largest remainder)."""
    quotas = {key: size * fraction for key, size in sizes.items()}
    shares = {key: int(quota) for key, quota in quotas.items()}
    missing = round(sum(quotas.values())) - sum(shares.values())
    for key in sorted(quotas, key=lambda key: (shares[key] - quotas[key], key))[:missing]:
        shares[key] += 1
    return shares


def select_part(cases: Sequence[Case], split_csv: Path, part: str) -> list[Case]:
    """The cases that split.csv assigns to `part`; a case that it does not name is an error."""
    parts = {row["case"]: row["part"] for row in read_table(split_csv)}
    missing = [case.name for case in cases if case.name not in parts]
    if missing:
        raise AutopetError(f"{split_csv} does not name {missing[0]} and {len(missing) - 1} more; make the split anew")
    chosen = [case for case in cases if parts[case.name] == part]
    if not chosen:
        raise AutopetError(
            f"{split_csv} puts no case into part {part!r}; it knows {', '.join(sorted(set(parts.values())))}"
        )
    return chosen
