"""How fast `autopet prep` is, against the pipeline that people otherwise build from public libraries.

    python benchmarks/prep.py --out prep-benchmark.json

One full-size phantom study is written as DICOM. Then both pipelines convert it in turns, each in a process of its own,
and write the same five files (CT, PET, SUV, CTres, SEG):

- usual: dicom2nifti for both series with reorientation, the SUV factor of the challenge's equation, nilearn's
  resample_to_img for the CT, pydicom for the segmentation, nibabel to write.
- ours: `autopet prep --workers 2`, with everything it does besides (checks, both SUV modes, audit, thumbnail, report).

The best wall-clock time of the repetitions counts, and the highest memory of a process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data_prep.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Write the study, time both pipelines, compare what they wrote, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of each pipeline")
    parser.add_argument("--out", type=Path, default=Path("prep-benchmark.json"), help="file for the figures")
    parser.add_argument("--only", choices=["usual"], help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        usual_pipeline(*arguments.folders)
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = compare(Path(scratch), repeat=arguments.repeat)
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def compare(scratch: Path, *, repeat: int) -> dict:
    """Both pipelines in turns on one study; seconds, megabytes, their ratios."""
    write_cohort(scratch / "dicom", cases=1, seed=1, size="full", tracer="FDG", positive_fraction=1.0)
    study = next((scratch / "dicom").glob("FDG*/*/*"))
    commands = {
        "usual": [sys.executable, __file__, "--only", "usual", str(study)],
        "ours": [sys.executable, "-m", "autopet.cli", "prep", str(study)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            out = scratch / name
            shutil.rmtree(out, ignore_errors=True)
            workers = ["--workers", "2"] if name == "ours" else []
            took_s, peak_mb = timed([*command, str(out), *workers])
            seconds[name].append(round(took_s, 2))
            peaks[name].append(round(peak_mb))
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "cpu_cores": multiprocessing.cpu_count(),
        "seconds": seconds,
        "peak_mb": peaks,
        "times_faster": round(best["usual"] / best["ours"], 2),
        "memory_ratio": round(max(peaks["ours"]) / max(peaks["usual"]), 2),
        "file_mb": {name: size_mb(scratch / name) for name in commands},
        "largest_difference": differences(scratch / "usual", next((scratch / "ours").glob("*/"))),
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Wall-clock seconds and peak resident megabytes of a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    messages = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {messages[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def size_mb(folder: Path) -> float:
    """Megabytes of the images below a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*.nii.gz")) / 1e6, 1)


def differences(usual: Path, ours: Path) -> dict[str, float]:
    """Largest difference of the voxels that both pipelines wrote, in the patient's orientation."""
    import nibabel

    found = {}
    for name in ("CT", "PET", "SUV", "CTres", "SEG"):
        images = [nibabel.as_closest_canonical(nibabel.load(folder / f"{name}.nii.gz")) for folder in (usual, ours)]
        first, second = (np.asanyarray(image.dataobj, dtype=np.float32) for image in images)
        found[name] = float(np.abs(first - second).max())
    return found


# --- the usual pipeline ----------------------------------------------------------------------------------------------


def usual_pipeline(study: Path, out: Path) -> None:
    """CT, PET, SUV, CTres and SEG.nii.gz of a study, by public libraries alone."""
    import dicom2nifti
    import nibabel
    import nilearn.image

    out.mkdir(parents=True)
    for series, name in (("CT", "CT"), ("PT", "PET")):
        folder = out / series
        folder.mkdir()
        dicom2nifti.convert_directory(str(study / series), str(folder), compression=True, reorient=True)
        next(folder.glob("*.nii.gz")).rename(out / f"{name}.nii.gz")
        folder.rmdir()
    pet = nibabel.load(out / "PET.nii.gz")
    suv = (np.asanyarray(pet.dataobj) * challenge_factor(study / "PT")).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(suv, pet.affine), out / "SUV.nii.gz")
    resampled = nilearn.image.resample_to_img(
        nibabel.load(out / "CT.nii.gz"), pet, fill_value=-1024, force_resample=True, copy_header=True
    )
    nibabel.save(resampled, out / "CTres.nii.gz")
    mask = segmentation(study, pet.shape, pet.affine)
    nibabel.save(nibabel.Nifti1Image(mask, pet.affine), out / "SEG.nii.gz")


def challenge_factor(folder: Path) -> float:
    """SUV per Bq/ml from the first file's header."""
    import pydicom

    header = pydicom.dcmread(min(folder.iterdir()), stop_before_pixels=True)
    injection = header.RadiopharmaceuticalInformationSequence[0]
    scanned, injected = (
        3600 * int(text[:2]) + 60 * int(text[2:4]) + float(text[4:])
        for text in (str(header.AcquisitionTime), str(injection.RadiopharmaceuticalStartTime))
    )
    decay = 0.5 ** ((scanned - injected) / float(injection.RadionuclideHalfLife))
    return 1000 * float(header.PatientWeight) / (float(injection.RadionuclideTotalDose) * decay)


def segmentation(study: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The frames of the study's segmentation placed by position, (x, y, z) like nibabel's PET."""
    import pydicom

    data = pydicom.dcmread(next((study / "SEG").iterdir()))
    mask = np.zeros(shape, np.uint8)
    to_voxel = np.linalg.inv(affine)
    for plane, group in zip(np.atleast_3d(data.pixel_array), data.PerFrameFunctionalGroupsSequence, strict=True):
        x, y, z = (float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient)
        corner = np.rint(to_voxel @ [-x, -y, z, 1])[:3].astype(int)
        upright = plane.T[:: -1 if corner[0] else 1, :: -1 if corner[1] else 1]
        mask[:, :, corner[2]] |= upright
    return mask


if __name__ == "__main__":
    main()
