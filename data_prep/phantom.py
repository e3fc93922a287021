"""A phantom cohort: invented patients with PET, CT and lesions, written as DICOM in the layout of TCIA.

Nothing here is a real patient. The cohort exists so that every stage of the challenge can run anywhere, and so that
its results can be compared with a truth that is known.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autopet.cohort import read_table, write_table
from autopet.errors import AutopetError
from autopet.images import find_images, read_image, write_image
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import track
from data_prep.anatomy import Habitus
from data_prep.dicom_write import StudyHeader, write_study
from data_prep.imaging import SCANNERS, Scanner
from data_prep.simulation import simulate

METADATA = "metadata.csv"
ORGAN_FOLDER = "organs"  # beside the collections
COLUMNS = ("patient_id", "study_uid", "tracer", "centre", "diagnosis", "positive", "lesions", "age", "sex")
COLLECTIONS = {"FDG": "FDG-PET-CT-Lesions", "PSMA": "PSMA-PET-CT-Lesions"}
SIZES = ("small", "full")
TRACERS = ("mixed", "FDG", "PSMA")


@dataclass(frozen=True)
class Patient:
    """The plan of one case, known before anything is simulated."""

    patient_id: str
    tracer: str
    centre: str
    positive: bool
    diagnosis: str
    age_years: int
    sex: str
    rank: int  # among the patients of the same tracer
    entropy: str  # of UIDs and of the generator

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that only the case and a purpose decide."""
        digest = hashlib.sha256(f"{self.entropy}/{purpose}".encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def write_cohort(
    out: Path,
    *,
    cases: int,
    seed: int,
    organ_maps: Path | None = None,
    size: str = "small",
    tracer: str = "mixed",
    positive_fraction: float = 0.75,
    workers: int = 1,
) -> list[dict]:
    """Write a phantom cohort as DICOM, `<out>/<collection>/<patient>/<study>/{CT,PT,SEG}/*.dcm`, and metadata.csv.

    Beside it go the organs of every body, `<out>/organs/<patient>.nii.gz`: uint8 on the PET grid, labels as in
    `autopet.organs.ORGANS`; `autopet organs COHORT --maps <out>/organs` takes them into the converted cohort.

    Every case depends on the seed, its index and the settings only: fewer cases are a prefix of more, and a second call
    writes the same bytes. Studies that are complete are left alone, so a killed call can be repeated.

    Parameters
    ----------
    organ_maps : Path, optional
        Folder of real organ label maps (.nii.gz, labels as in `organ_maps.MAP_TISSUES`) to build the bodies around.
    size : str
        `small` (voxels of about 4 x 4 x 6 mm, for CPUs) or `full` (the scanners' own grids).
    tracer : str
        `FDG`, `PSMA`, or `mixed` for both in turn.
    positive_fraction : float
        Share of patients with lesions, met to within rounding.

    Returns
    -------
    list of dict
        The rows of metadata.csv, in the order of the cases.

    Raises
    ------
    AutopetError
        An argument is out of range, or the folder holds studies of another cohort.
    """
    out = Path(out)
    _check(cases=cases, seed=seed, size=size, tracer=tracer, positive_fraction=positive_fraction, workers=workers)
    maps = _find_maps(organ_maps)
    patients = plan(cases, seed=seed, size=size, tracer=tracer, positive_fraction=positive_fraction, maps=maps)
    _refuse_strangers(out, patients)
    out.mkdir(parents=True, exist_ok=True)
    rows = _finished_rows(out, patients)
    todo = [patient for patient in patients if patient.patient_id not in rows]
    write = partial(_write_case, out=out, size=size, maps=maps, seed=seed)
    for row in track(_run(write, todo, workers), "phantom cases", total=len(todo)):
        rows[row["patient_id"]] = row
        _write_metadata(out, patients, rows)
    _write_metadata(out, patients, rows)
    return [rows[patient.patient_id] for patient in patients]


def _check(*, cases: int, seed: int, size: str, tracer: str, positive_fraction: float, workers: int) -> None:
    if cases < 1:
        raise AutopetError(f"cases must be at least 1, found {cases}")
    if seed < 0:
        raise AutopetError(f"the seed must not be negative, found {seed}")
    if size not in SIZES:
        raise AutopetError(f"unknown size {size!r}; use one of {', '.join(SIZES)}")
    if tracer not in TRACERS:
        raise AutopetError(f"unknown tracer {tracer!r}; use one of {', '.join(TRACERS)}")
    if not 0.0 <= positive_fraction <= 1.0:
        raise AutopetError(f"positive_fraction is a share from 0 to 1, found {positive_fraction}")
    if workers < 1:
        raise AutopetError(f"workers must be at least 1, found {workers}")


def _find_maps(folder: Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    if not Path(folder).is_dir():
        raise AutopetError(f"{folder}: no such folder of organ maps; leave the option out for procedural bodies")
    maps = tuple(find_images(Path(folder)))
    if not maps:
        raise AutopetError(f"{folder} holds no organ map; put label maps (.nii.gz) there or leave the option out")
    return maps


def plan(
    cases: int, *, seed: int, size: str, tracer: str, positive_fraction: float, maps: tuple[Path, ...] = ()
) -> list[Patient]:
    """Who the patients are: tracers and centres in turn, positives spread evenly, the rest drawn per case."""
    settings = f"autopet phantom/{seed}/{size}/{tracer}/{positive_fraction:g}/{','.join(path.name for path in maps)}"
    patients: list[Patient] = []
    for index in range(cases):
        # four combinations of tracer and centre, dealt in blocks whose order turns, so that the negatives (every fourth
        # at the default fraction) do not always fall on the same one
        turn = (index + index // 4) % 4
        centre = "ABBA"[turn]
        traced = ("FDG", "PSMA")[turn % 2] if tracer == "mixed" else tracer
        reached = [int(np.floor(k * positive_fraction + 0.5 + 1e-9)) for k in (index, index + 1)]
        rank = sum(patient.tracer == traced for patient in patients)
        positive = reached[1] > reached[0]
        patients.append(_patient(f"{settings}/{index}", rank, tracer=traced, centre=centre, positive=positive))
    return patients


def _patient(entropy: str, rank: int, *, tracer: str, centre: str, positive: bool) -> Patient:
    digest = hashlib.sha256(f"{entropy}/patient".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    name = f"PETCT_{digest.hex()[:10]}" if tracer == "FDG" else f"PSMA_{digest.hex()[:16]}"
    male = tracer == "PSMA" or bool(rng.random() < 0.55)
    cancer = "PROSTATE_CANCER" if tracer == "PSMA" else str(rng.choice(["LUNG_CANCER", "LYMPHOMA", "MELANOMA"]))
    age = int(np.clip(rng.normal(69 if tracer == "PSMA" else 60, 9 if tracer == "PSMA" else 14), 18, 92))
    diagnosis = cancer if positive else "NEGATIVE"
    return Patient(name, tracer, centre, positive, diagnosis, age, "M" if male else "F", rank, entropy)


def _study_name(header: StudyHeader) -> str:
    return f"{header.start:%m-%d-%Y}-NA-{header.description}-{header.uid('study')[-5:]}"


def make_header(patient: Patient, scanner: Scanner, *, height_mm: float, fat_mm: float) -> StudyHeader:
    """The header of a patient's study; weight follows height and fat, dose follows weight."""
    rng = patient.generator("header")
    bmi = float(np.clip(17.5 + 0.42 * fat_mm + rng.normal(0, 1.2), 16, 42))
    weight = round(bmi * (height_mm / 1000) ** 2, 1)
    nuclide = "18F" if patient.tracer == "FDG" or rng.random() < 0.5 else "68Ga"
    per_kg = {"FDG": 4.0e6, "PSMA": 3.6e6 if nuclide == "18F" else 2.0e6}[patient.tracer]
    day = dt.datetime(2003 if patient.tracer == "FDG" else 2016, 1, 2) + dt.timedelta(days=int(rng.integers(0, 1400)))
    injected = day + dt.timedelta(seconds=int(rng.integers(8 * 3600, 15 * 3600)))
    wait = dt.timedelta(seconds=int(np.clip(rng.normal(62, 7), 50, 95) * 60))
    description = "PET-CT Ganzkoerper primaer mit KM" if patient.tracer == "FDG" else "PETCT whole-body PSMA"
    return StudyHeader(
        entropy=patient.entropy,
        patient_id=patient.patient_id,
        description=description,
        sex=patient.sex,
        age_years=patient.age_years,
        weight_kg=weight,
        height_m=round(height_mm / 1000, 2),
        tracer=patient.tracer,
        nuclide=nuclide,
        dose_bq=float(round(per_kg * weight * rng.uniform(0.85, 1.15), -4)),
        injected=injected,
        start=injected + wait,
        manufacturer=scanner.manufacturer,
        model=scanner.model,
    )


def habitus_of(patient: Patient) -> Habitus:
    """The body of a patient."""
    brown_fat = 0.15 if patient.tracer == "FDG" else 0.0
    return Habitus.sample(patient.generator("habitus"), male=patient.sex == "M", brown_fat=brown_fat)


# ---- the cohort on disk ----------------------------------------------------------------------------------------------


def _write_case(patient: Patient, *, out: Path, size: str, maps: tuple[Path, ...], seed: int) -> dict:
    """Simulate one patient and write the study, whole or not at all; returns the row for metadata.csv."""
    scanner = SCANNERS[patient.centre, size]
    habitus = habitus_of(patient)
    organs = read_image(map_of(patient, maps, seed)) if maps else None
    study = simulate(
        patient.generator("study"),
        scanner=scanner,
        tracer=patient.tracer,
        diagnosis=patient.diagnosis,
        habitus=habitus,
        organs=organs,
        fine=3 if size == "small" else 2,
    )
    header = make_header(patient, scanner, height_mm=habitus.height_mm, fat_mm=habitus.fat_mm)
    folder = out / COLLECTIONS[patient.tracer] / patient.patient_id
    final, hidden = folder / _study_name(header), folder / f".part-{_study_name(header)}"
    for leftover in (hidden, final):
        shutil.rmtree(leftover, ignore_errors=True)
    hidden.mkdir(parents=True)
    write_study(hidden, header, pet=study.pet, ct=study.ct, mask=study.mask)
    write_image(_organ_map(out, patient), study.organs)
    hidden.rename(final)
    return _row(patient, header.uid("study"), len(study.lesions))


def _organ_map(out: Path, patient: Patient) -> Path:
    return out / ORGAN_FOLDER / f"{patient.patient_id}.nii.gz"


def map_of(patient: Patient, maps: tuple[Path, ...], seed: int) -> Path:
    """Another map for every patient until all were used; maps named after the tracer if there are any."""
    named = [path for path in maps if path.name.lower().startswith(patient.tracer.lower())]
    candidates = named or list(maps)
    order = np.random.default_rng([seed, len(candidates)]).permutation(len(candidates))
    return candidates[int(order[patient.rank % len(candidates)])]


def _row(patient: Patient, study_uid: str, lesions: int) -> dict:
    values = (
        patient.patient_id,
        study_uid,
        patient.tracer,
        patient.centre,
        patient.diagnosis,
        int(patient.positive),
        lesions,
        patient.age_years,
        patient.sex,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _finished_rows(out: Path, patients: list[Patient]) -> dict[str, dict]:
    """Rows of the studies that an earlier call finished: listed in metadata.csv and in place, with their organ map."""
    table = out / METADATA
    listed = {row["patient_id"]: row for row in read_table(table)} if table.is_file() else {}
    rows = {}
    for patient in patients:
        folder = out / COLLECTIONS[patient.tracer] / patient.patient_id
        whole = any(not path.name.startswith(".") for path in folder.iterdir()) if folder.is_dir() else False
        if whole and patient.patient_id in listed and _organ_map(out, patient).is_file():
            row = listed[patient.patient_id]
            rows[patient.patient_id] = _row(patient, row["study_uid"], int(row["lesions"]))
    return rows


def _refuse_strangers(out: Path, patients: list[Patient]) -> None:
    known = {patient.patient_id for patient in patients}
    for collection in COLLECTIONS.values():
        for folder in sorted((out / collection).glob("*")):
            if folder.is_dir() and not folder.name.startswith(".") and folder.name not in known:
                raise AutopetError(
                    f"{out} holds {folder.name}, which is not of this cohort (other seed, settings or fewer cases); "
                    "give an empty folder or the arguments of the earlier call"
                )


def _write_metadata(out: Path, patients: list[Patient], rows: dict[str, dict]) -> None:
    write_table(out / METADATA, [rows[p.patient_id] for p in patients if p.patient_id in rows], COLUMNS)


def _run(write: partial, todo: list[Patient], workers: int) -> Iterator[dict]:
    for _, row in run_jobs(write, todo, workers=min(workers, max(len(todo), 1))):
        if isinstance(row, LostProcessError):
            raise row
        yield row
