"""A converted cohort of phantoms around real organ maps, made for experiments: no DICOM, coarse voxels, known truth.

<out>/<patient>/        SUV, CTres, SEG, ORGANS: a patient whose CT fits the PET
<out>/<patient>-moved/  the same patient with the CT turned and shifted against the PET; everything else is equal;
                        not in cohorts made without these copies
<out>/<patient>-scan2/  a further scan of the patient, in cohorts of `RepeatedSettings`
<out>/prep.csv          as `autopet prep` writes it, so that training and running read the cohort
<out>/phantoms.csv      what is known about every case: map, lesions, motion of the CT
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from autopet.cohort import Case, read_cohort, read_table, write_table
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, sole_writer, whole_file, whole_folder
from autopet.images import find_images, read_image
from autopet.parallel import LostProcessError, run_jobs
from autopet.progress import track
from autopet.volume import Volume
from data_prep.alignment import ct_on_grid
from data_prep.imaging import SCANNERS, Scanner
from data_prep.phantom import Patient, habitus_of, map_of, plan
from data_prep.records import measures, read_audit, row_of, write_audit, write_images, write_rows
from data_prep.simulation import SimulatedStudy, simulate
from data_prep.tissues import Tissue
from leaderboard.experiments.rigid import RigidMotion, displacement_mm, draw_motion, move

FIELD_MM = (448.0, 312.0)  # width and depth of the images
RECIPE = "recipe.json"
PHANTOMS = "phantoms.csv"
MOVED = "-moved"  # at the end of the names of cases whose CT does not fit
SCAN = "-scan"  # and a number: at the end of the names of a patient's further scans
NEGATIVE = "NEGATIVE"  # the diagnosis of scans without lesions
CANCERS = {"FDG": ("LUNG_CANCER", "LYMPHOMA", "MELANOMA"), "PSMA": ("PROSTATE_CANCER",)}
COLUMNS = (
    "case", "patient_id", "map", "tracer", "centre", "positive", "lesions", "lesion_ml", "misaligned", "rotation_x_deg",
    "rotation_y_deg", "rotation_z_deg", "shift_x_mm", "shift_y_mm", "shift_z_mm", "displacement_mm",
)  # fmt: skip


@dataclass(frozen=True)
class CohortSettings:
    """Size and grid of a cohort."""

    patients: int = 48
    seed: int = 2024
    positive_fraction: float = 0.5
    pet_spacing_mm: float = 8.0  # of all three axes
    ct_spacing_mm: float = 4.0
    largest_degrees: float = 5.0  # of the CT's rotation about each axis; LesionTracer (paper 003), section 2.2
    largest_shift_voxels: tuple = (2.0, 2.0, 0.0)  # of the CT along x, y, z, in PET voxels; the same section


@dataclass(frozen=True)
class RepeatedSettings(CohortSettings):
    """A cohort with several scans of every patient: the same organs and build, other uptake, lesions and noise.

    Scans with and without lesions take turns, so that a patient's organs do not tell which of them it is. The first is
    as the plan of the cohort says.
    """

    scans_per_patient: int = 4
    map_spacing_mm: float = 8.0  # organ maps are thinned to about this: fine ones cost more than the rest of a scan


def scans_of(settings: CohortSettings) -> int:
    """How often each patient is scanned."""
    return settings.scans_per_patient if isinstance(settings, RepeatedSettings) else 1


@dataclass(frozen=True)
class Phantom:
    """A case and what is known about it."""

    case: Case
    positive: bool
    misaligned: bool

    @property
    def first(self) -> bool:
        """Whether it is its patient's first scan, with the CT in place."""
        return self.case.name == self.case.patient_id


@dataclass(frozen=True)
class Scan:
    """One of a patient's scans."""

    patient: Patient
    number: int  # from 1

    @property
    def name(self) -> str:
        """Of its case."""
        return self.patient.patient_id + (f"{SCAN}{self.number}" if self.number > 1 else "")

    @property
    def positive(self) -> bool:
        """Whether it has lesions."""
        return self.patient.positive == (self.number % 2 == 1)

    @property
    def diagnosis(self) -> str:
        """Where lesions grow. Of a patient who is planned without any it is drawn."""
        if not self.positive:
            return NEGATIVE
        if self.patient.positive:
            return self.patient.diagnosis
        known = CANCERS[self.patient.tracer]
        return known[int(self.generator("diagnosis").integers(len(known)))]

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that only the scan and a purpose decide."""
        return self.patient.generator(purpose if self.number == 1 else f"{purpose}-{self.number}")


def write_cohort(
    out: Path, *, organ_maps: Path, settings: CohortSettings, workers: int = 1, moved: bool = True
) -> list[Phantom]:
    """Write the cohort, or what is missing of it.

    Parameters
    ----------
    out : Path
        Cohort folder; one with other settings or maps is refused.
    organ_maps : Path
        Folder of label maps (.nii.gz, labels of `data_prep.organ_maps.MAP_TISSUES`), one for each patient.
    workers : int
        Phantoms simulated side by side.
    moved : bool
        Whether every patient comes a second time, with the CT moved. The first is the same either way.

    Returns
    -------
    list of Phantom
        Sorted by name; for each scan one with the CT in place and, with `moved`, one with it moved.

    Raises
    ------
    AutopetError
        There are fewer maps than patients, or `out` holds another cohort.
    """
    maps = _find_maps(organ_maps, settings)
    with sole_writer(out):
        _check_recipe(out, maps, settings, moved)
        remove_leftovers(out)
        patients = plan(
            settings.patients,
            seed=settings.seed,
            size="small",
            tracer="mixed",
            positive_fraction=settings.positive_fraction,
            maps=maps,
        )
        if not (out / PHANTOMS).is_file():
            write = partial(_write_patient, out=out, maps=maps, settings=settings, moved=moved)
            known = _write_patients(patients, write, workers)
            write_rows(out, [row for rows, _ in known for row in rows])
            write_table(out / PHANTOMS, [fact for _, facts in known for fact in facts], COLUMNS)
    return read_phantoms(out)


def read_phantoms(folder: Path) -> list[Phantom]:
    """The cases of a cohort that `write_cohort` finished, sorted by name."""
    facts = {row["case"]: row for row in read_table(folder / PHANTOMS)}
    return [
        Phantom(case, facts[case.name]["positive"] == "1", facts[case.name]["misaligned"] == "1")
        for case in read_cohort(folder)
    ]


def _find_maps(folder: Path, settings: CohortSettings) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder; give the folder that holds the organ maps (.nii.gz)")
    maps = tuple(find_images(folder))
    for tracer in ("fdg", "psma"):  # no map serves two patients: one could be trained on, the other tested
        found = sum(path.name.lower().startswith(tracer) for path in maps)
        if 2 * found < settings.patients:
            raise AutopetError(
                f"{folder} holds {found} maps named {tracer}_*, expected at least {(settings.patients + 1) // 2} "
                "(one for each patient); add maps or ask for fewer patients"
            )
    return maps


def _check_recipe(out: Path, maps: Sequence[Path], settings: CohortSettings, moved: bool) -> None:
    recipe = {"settings": asdict(settings), "maps": [path.name for path in maps]}
    text = json.dumps(recipe | ({} if moved else {"moved": False}), indent=2) + "\n"
    path = out / RECIPE
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise AutopetError(f"{out} holds a cohort with other settings or maps; give another folder or delete it")
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _write_patients(
    patients: Sequence[Patient], write: Callable[[Patient], tuple[list[dict], list[dict]]], workers: int
) -> list[tuple[list[dict], list[dict]]]:
    jobs = run_jobs(write, patients, workers=min(workers, len(patients)))
    known = []
    for _, result in track(jobs, "phantoms", total=len(patients)):
        if isinstance(result, LostProcessError):
            raise result
        known.append(result)
    return sorted(known, key=lambda pair: pair[1][0]["case"])


def _write_patient(
    patient: Patient, *, out: Path, maps: tuple[Path, ...], settings: CohortSettings, moved: bool
) -> tuple[list[dict], list[dict]]:
    """A patient's cases: rows of prep.csv and of phantoms.csv. A patient written earlier is read, not redone."""
    scans = [Scan(patient, number + 1) for number in range(scans_of(settings))]
    audits = [read_audit(out / (scan.name + end)) for scan in scans for end in ("", MOVED)[: 1 + moved]]
    if not all(audits):
        chosen = map_of(patient, maps, settings.seed)
        organs = read_image(chosen)
        if isinstance(settings, RepeatedSettings):
            organs = thinned(organs, settings.map_spacing_mm)
        simulate_scan = partial(_simulate_scan, out=out, map_name=chosen.name, settings=settings, moved=moved)
        audits = [audit for scan in scans for audit in simulate_scan(scan, organs)]
    return [audit["row"] for audit in audits if audit], [audit["phantom"] for audit in audits if audit]


def thinned(volume: Volume, spacing_mm: float) -> Volume:
    """Every n-th voxel along each axis, the first included, so that they lie about `spacing_mm` apart."""
    x, y, z = (max(1, round(spacing_mm / own_mm)) for own_mm in volume.spacing_mm)
    width, depth, height = volume.spacing_mm
    array = np.ascontiguousarray(volume.array[::z, ::y, ::x])
    return replace(volume, array=array, spacing_mm=(width * x, depth * y, height * z))


def _simulate_scan(
    scan: Scan, organs: Volume, *, out: Path, map_name: str, settings: CohortSettings, moved: bool
) -> list[dict | None]:
    patient = scan.patient
    study = simulate(
        scan.generator("study"),
        scanner=scanner_of(patient.centre, settings),
        tracer=patient.tracer,
        diagnosis=scan.diagnosis,
        habitus=habitus_of(patient),
        organs=organs,
    )
    facts = {
        "patient_id": patient.patient_id,
        "map": map_name,
        "tracer": patient.tracer,
        "centre": patient.centre,
        "positive": int(scan.positive),
    }
    motions = [None, *([_motion_of(scan, study, settings)] if moved else [])]
    return [
        _write_case(
            out / (scan.name + (MOVED if motion else "")), study, facts | _motion_facts(study, motion), motion=motion
        )
        for motion in motions
    ]


def _motion_of(scan: Scan, study: SimulatedStudy, settings: CohortSettings) -> RigidMotion:
    x, y, z = (step * settings.pet_spacing_mm for step in settings.largest_shift_voxels)
    return draw_motion(
        scan.generator("motion"),
        around=study.pet,
        largest_degrees=settings.largest_degrees,
        largest_mm=(x, y, z),
    )


def scanner_of(centre: str, settings: CohortSettings) -> Scanner:
    """A centre's scanner with its own resolution and noise, on the cohort's grid."""
    known = SCANNERS[centre, "small"]
    pet, ct = settings.pet_spacing_mm, settings.ct_spacing_mm
    width, depth = FIELD_MM
    return Scanner(
        manufacturer=known.manufacturer,
        model=known.model,
        pet_spacing_mm=(pet, pet, pet),
        pet_size=(round(width / pet), round(depth / pet)),
        ct_spacing_mm=(ct, ct, ct),
        ct_size=(round(width / ct), round(depth / ct)),
        fwhm_mm=known.fwhm_mm,
        filter_fwhm_mm=known.filter_fwhm_mm,
        noise=known.noise,
        ct_noise_hu=known.ct_noise_hu,
    )


def _motion_facts(study: SimulatedStudy, motion: RigidMotion | None) -> dict[str, object]:
    if motion is None:
        return {"misaligned": 0, **dict.fromkeys(COLUMNS[9:], 0.0)}
    numbers = (*motion.rotation_degrees, *motion.shift_mm)
    body = study.labels.array != Tissue.AIR
    moved_mm = round(displacement_mm(motion, study.pet, body), 2)
    return {"misaligned": 1, **dict(zip(COLUMNS[9:-1], numbers, strict=True)), COLUMNS[-1]: moved_mm}


def _write_case(folder: Path, study: SimulatedStudy, facts: dict, *, motion: RigidMotion | None = None) -> dict:
    """One case folder, whole or not at all; returns what its audit.json says."""
    name = folder.name
    ct = move(study.ct, motion) if motion else study.ct
    images = {
        "SUV": study.pet.with_array(study.pet.array.astype(np.float32)),
        "CTres": ct_on_grid(ct, study.pet),
        "SEG": study.mask,
        "ORGANS": study.organs,
    }
    found = measures(images["SUV"], study.mask, images["CTres"])
    row = row_of(name, patient_id=facts["patient_id"], status="converted", folder=name, suv_kind="phantom", **found)
    row |= {"tracer": facts["tracer"], "centre": facts["centre"]}
    facts = {"case": name, **facts, "lesions": found["lesions"], "lesion_ml": found["lesion_ml"]}
    with whole_folder(folder) as part:
        files = write_images(part, images)
        write_audit(part, files=files, row=row, images=images, phantom=facts)
    return {"row": row, "phantom": facts}


def fingerprint(folder: Path) -> str:
    """SHA-256 of what is known about the cohort's cases, to tell whether results belong to it."""
    return hashlib.sha256((folder / PHANTOMS).read_bytes()).hexdigest()
