"""Convert the DICOM studies below a folder into a cohort: SUV, CT on the PET grid, lesion mask and an audit."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from autopet.folders import part_of, whole_folder
from autopet.progress import console, track
from autopet.volume import Volume
from data_prep.alignment import ct_cover_warnings, ct_on_grid
from data_prep.attributes import values
from data_prep.loading import LoadedSeries, load_series
from data_prep.metadata import fill_from_metadata
from data_prep.records import (
    AUDIT,
    measures,
    reason_of,
    remove_leftovers,
    row_of,
    safe_name,
    write_audit,
    write_images,
    write_rows,
)
from data_prep.segmentation import Segmentation, load_segmentation
from data_prep.series import Choice, MissingSeriesError, Series, Study, choose, scan
from data_prep.suv import MODES, SuvFactor, suv_bw_factor

FORMAT = 2  # raise it when the same files and settings give other results
TRACERS = {"FDG": ("FDG", "DEOXYGLUCOSE"), "PSMA": ("PSMA",)}


@dataclass(frozen=True)
class Settings:
    """What decides the result besides the files; kept in the audit."""

    segments: tuple[str, ...] = ()
    suv_mode: str = "qiba"
    format: int = FORMAT


@dataclass(frozen=True)
class Job:
    """One study to convert."""

    case: str
    study: Study
    choice: Choice
    out: Path
    settings: Settings

    @property
    def folder(self) -> Path:
        """Where the images go."""
        return self.out / self.case


def prepare(
    source: Path, out: Path, *, segments: Sequence[str] = (), suv_mode: str = "qiba", workers: int = 1
) -> list[dict]:
    """Convert every study below a folder; studies converted before with the same settings are left as they are.

    Parameters
    ----------
    source, out : Path
        DICOM at any depth, and the cohort: `<case>/{CT,PET,SUV,CTres,SEG}.nii.gz`, `<case>/audit.json`, `prep.csv`.
        PET is in the units of the DICOM series, SUV in g/ml, CT and CTres in HU, SEG 0 or 1 (absent without a SEG).
    segments : sequence of str
        Labels or numbers of the lesion's segments; all of them, with a warning, when none is named.
    suv_mode : str
        `qiba` or `challenge`, see `data_prep.suv`.

    Returns
    -------
    list of dict
        The rows of prep.csv, one per study, sorted by case: `converted`, `skipped` (no CT or no PET) or `failed`.

    Raises
    ------
    AutopetError
        There is no DICOM below `source`, or a setting is unknown. What is wrong with a study is in its row instead.
    """
    if suv_mode not in MODES or workers < 1:
        raise AutopetError(
            f"expected an SUV mode of {', '.join(MODES)} and workers >= 1, found {suv_mode!r} and {workers}"
        )
    source, out = Path(source), Path(out)
    found = scan(source)
    if found.unreadable:
        text = f"{len(found.unreadable)} files are not readable as DICOM (first: {found.unreadable[0]})"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    remove_leftovers(out)
    jobs, rows = _plan(found.studies, out, Settings(tuple(segments), suv_mode))
    kept = [row for row in map(_earlier_row, jobs) if row]
    if kept:
        console.print(f"{len(kept)} studies were converted before with these settings and are kept", highlight=False)
    done = {row["case"] for row in kept}
    todo = [job for job in jobs if job.case not in done]
    rows += kept
    if todo:
        rows += track(_run(todo, workers), "converting", total=len(todo))
    fill_from_metadata(rows, source)
    return write_rows(out, rows)


# --- which studies ---------------------------------------------------------------------------------------------------


def _plan(studies: Sequence[Study], out: Path, settings: Settings) -> tuple[list[Job], list[dict]]:
    """Jobs for the studies that have what it takes, rows for the others."""
    jobs, rows = [], []
    for case, study in zip(case_names(studies), studies, strict=True):
        try:
            jobs.append(Job(case, study, choose(study), out, settings))
        except Exception as error:
            status = "skipped" if isinstance(error, MissingSeriesError) else "failed"
            rows.append(_study_row(case, study, status=status, reason=reason_of(error)))
    return jobs, rows


def _study_row(case: str, study: Study, **filled: object) -> dict:
    warned = {"warnings": " | ".join(study.warnings), **filled}
    return row_of(case, patient_id=study.patient_id, study_uid=study.uid, study_date=study.date, **warned)


def case_names(studies: Sequence[Study]) -> list[str]:
    """`<PatientID>_<StudyDate>_<end of StudyInstanceUID>`, safe as a file name; equal ones get a number."""
    names: list[str] = []
    taken: Counter[str] = Counter()
    for study in studies:
        parts = (study.patient_id or "unknown", study.date or "undated", study.uid[-5:])
        name = safe_name("_".join(parts))
        taken[name.casefold()] += 1
        count = taken[name.casefold()]
        names.append(name if count == 1 else f"{name}_{count}")
    return names


def _earlier_row(job: Job) -> dict | None:
    """The row of an earlier run with the same files and settings, if its folder is whole."""
    try:
        audit = json.loads((job.folder / AUDIT).read_text())
        same = audit["settings"] == _settings(job) and audit["source"] == _source(job)
        whole = all((job.folder / name).is_file() for name in audit["files"])
        return {**row_of(job.case), **audit["row"]} if same and whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _settings(job: Job) -> dict:
    return json.loads(json.dumps(asdict(job.settings)))


def _source(job: Job) -> dict:
    """Series UIDs, and a digest of the files' UIDs, sizes and times."""
    choice = job.choice
    digest = hashlib.sha256()
    for series in (choice.ct, choice.pet, *choice.segmentations):
        uids = (str(header.SOPInstanceUID) for header in series.headers)
        for uid, path in sorted(zip(uids, series.paths, strict=True)):
            stat = path.stat()
            digest.update(f"{uid} {stat.st_size} {int(stat.st_mtime)}\n".encode())
    for path in job.study.unreadable:
        digest.update(f"unreadable {path.name}\n".encode(errors="replace"))
    segmentations = [series.uid for series in choice.segmentations]
    return {
        "ct_series_uid": choice.ct.uid,
        "pet_series_uid": choice.pet.uid,
        "seg_series_uids": segmentations,
        "digest": digest.hexdigest(),
    }


# --- running ---------------------------------------------------------------------------------------------------------


def _run(jobs: Sequence[Job], workers: int) -> Iterator[dict]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_attempt, jobs)
        return
    unfinished = []
    with _pool(min(workers, len(jobs))) as pool:
        futures = {pool.submit(_attempt, job): job for job in jobs}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:  # one process was killed, and took the others' studies with it
                unfinished.append(futures[future])
    for job in unfinished:
        yield _attempt_alone(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _attempt_alone(job: Job) -> dict:
    try:
        with _pool(1) as pool:
            return pool.submit(_attempt, job).result()
    except BrokenProcessPool:
        shutil.rmtree(part_of(job.folder), ignore_errors=True)
        reason = "the process that converted it was killed (out of memory? use fewer workers)"
        return _study_row(job.case, job.study, status="failed", reason=reason)


def _attempt(job: Job) -> dict:
    """Convert a study; whatever goes wrong becomes its row."""
    try:
        return convert_study(job)
    except Exception as error:
        uids = {"ct_series_uid": job.choice.ct.uid, "pet_series_uid": job.choice.pet.uid}
        return _study_row(job.case, job.study, status="failed", reason=reason_of(error), **uids)


# --- one study -------------------------------------------------------------------------------------------------------


def convert_study(job: Job) -> dict:
    """Write the folder of one study, whole or not at all; returns its row."""
    choice = job.choice
    pet = load_series(choice.pet)
    factor = suv_bw_factor(pet.headers, job.settings.suv_mode)
    suv = _suv(pet, factor)
    segmentation = _segmentation(job, pet.volume)
    ct = load_series(choice.ct)
    warnings = [
        *job.study.warnings,
        *choice.warnings,
        *pet.warnings,
        *ct.warnings,
        *factor.warnings,
        *ct_cover_warnings(ct.volume, pet.volume),
    ]
    if segmentation:
        warnings += segmentation.warnings
    elif job.settings.segments:
        warnings.append("the study has no SEG object: the named segments are unknown")
    images = {"CT": ct.volume, "PET": pet.volume, "SUV": suv, "CTres": ct_on_grid(ct.volume, pet.volume)}
    if segmentation:
        images["SEG"] = segmentation.mask
    row = _study_row(
        job.case, job.study, status="converted", folder=job.case,
        tracer=_tracer(pet.headers[0]), suv_factor=factor.factor, warnings=" | ".join(warnings),
        ct_series_uid=choice.ct.uid, pet_series_uid=choice.pet.uid,
        **measures(suv, segmentation.mask if segmentation else None),
    )  # fmt: skip
    with whole_folder(job.folder) as folder:
        files = write_images(folder, images)
        write_audit(folder, files=files, row=row, images=images, **_audit(job, factor, segmentation, warnings))
    return row


def _suv(pet: LoadedSeries, factor: SuvFactor) -> Volume:
    per_slice = np.array(factor.slice_factors)[:, None, None]
    return pet.volume.with_array((pet.volume.array * per_slice).astype(np.float32))


def _segmentation(job: Job, pet: Volume) -> Segmentation | None:
    choice = job.choice
    if not choice.segmentations:
        return None
    frame_uid = str(choice.pet.first.get("FrameOfReferenceUID") or "")
    return load_segmentation(
        choice.segmentations, pet=pet, pet_uid=choice.pet.uid, frame_uid=frame_uid, segments=job.settings.segments
    )


def _audit(
    job: Job, factor: SuvFactor, segmentation: Segmentation | None, warnings: Sequence[str]
) -> dict[str, object]:
    suv = {key: value for key, value in asdict(factor).items() if key != "slice_factors"}
    if len(set(factor.slice_factors)) > 1:
        suv["slice_factors"] = factor.slice_factors
    return {
        "settings": _settings(job),
        "source": _source(job),
        "series": {"reasons": job.choice.reasons, **_found(job.study.series)},
        "suv": suv,
        "segmentation": _segmentation_audit(segmentation),
        "warnings": list(warnings),
    }


def _found(series: Sequence[Series]) -> dict[str, list[str]]:
    return {"found": [f"{item.first.get('Modality', '?')}: {item.title}" for item in series]}


def _segmentation_audit(segmentation: Segmentation | None) -> dict | None:
    if segmentation is None:
        return None
    return {
        "seg_uids": segmentation.seg_uids,
        "segments": segmentation.segments,
        "frames_placed": segmentation.frames_placed,
        "grid": segmentation.grid,
    }


def _tracer(header: Dataset) -> str:
    """FDG or PSMA from Radiopharmaceutical (0018,0031) or its code, empty when it says neither."""
    item = (header.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    code = (item.get("RadiopharmaceuticalCodeSequence") or [Dataset()])[0]
    text = " ".join(values(item, "Radiopharmaceutical") + values(code, "CodeMeaning")).upper()
    return next((tracer for tracer, words in TRACERS.items() if any(word in text for word in words)), "")
