"""How fast Dice, FPV and FNV are, against one search of the volume per component.

    python benchmarks/metrics.py --out metrics-benchmark.json --require 100

Two masks of 400x400x326 voxels with about 200 components each are written as .nii.gz. Then they are loaded and scored,
each time in a process of its own:

- slow: nibabel's float64 voxels, and one `numpy.isin` over the whole volume for every component, as the challenge's
  scripts do it.
- ours: `autopet.images.read_image` and `evaluation.metrics.score`.
- case: the same, with `score_case` (detection, volumes, one row per lesion) instead of `score`.
- surface: `score_case` with surface distances.

Seconds are those of loading and scoring (interpreter and imports excluded), memory is the highest of the process. The
numbers of voxels that both methods find must be the same, or the benchmark ends with an error; so it does when `ours`
is not as many times faster than `slow` as `--require` says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (326, 400, 400)  # z, y, x
SPACING_MM = (2.0364, 2.0364, 3.0)  # x, y, z
WAYS = ("slow", "ours", "case", "surface")
REACH = 12  # voxels; no lesion is larger to any side


def main() -> None:
    """Write the masks, time every way, compare what they found, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="processes per way (the slow one runs once)")
    parser.add_argument("--components", type=int, default=200, help="lesions drawn per mask")
    parser.add_argument("--out", type=Path, default=Path("metrics-benchmark.json"), help="file for the figures")
    parser.add_argument("--require", type=float, default=0.0, help="least times faster; end with status 1 below it")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.only:
        print(json.dumps(run(flags.only, *flags.files)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = compare(Path(scratch), repeat=flags.repeat, components=flags.components)
    flags.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if figures["times_faster"] < flags.require:
        sys.exit(f"{figures['times_faster']} times faster, expected at least {flags.require:g}")


def compare(scratch: Path, *, repeat: int, components: int) -> dict:
    """Every way on the same two files; seconds, megabytes, their ratios."""
    files = write_masks(scratch, components=components)
    runs = {way: [measured(way, files) for _ in range(1 if way == "slow" else repeat)] for way in WAYS}
    counts = {way: found[0]["voxels"] for way, found in runs.items()}
    if any(voxels != counts["slow"] for voxels in counts.values()):
        raise SystemExit(f"the ways disagree on the numbers of voxels: {counts}")
    best = {way: min(one["seconds"] for one in found) for way, found in runs.items()}
    peaks = {way: max(one["peak_mb"] for one in found) for way, found in runs.items()}
    return {
        "cpu_cores": multiprocessing.cpu_count(),
        "shape": list(SHAPE[::-1]),
        "components": runs["case"][0]["components"],
        "voxels": counts["slow"],
        "seconds": {way: [round(one["seconds"], 3) for one in found] for way, found in runs.items()},
        "loading_s": {way: round(min(one["loading_s"] for one in found), 3) for way, found in runs.items()},
        "peak_mb": {way: round(peak) for way, peak in peaks.items()},
        "times_faster": round(best["slow"] / best["ours"], 1),
        "times_faster_without_loading": round(
            min(one["seconds"] - one["loading_s"] for one in runs["slow"])
            / min(one["seconds"] - one["loading_s"] for one in runs["ours"]),
            1,
        ),
        "memory_ratio": round(peaks["ours"] / peaks["slow"], 3),
    }


def measured(way: str, files: list[Path]) -> dict:
    """What a process of its own says, and its peak memory."""
    command = [sys.executable, __file__, "--only", way, *map(str, files)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return {**json.loads(answer), "peak_mb": usage.ru_maxrss / 1024}


def write_masks(folder: Path, *, components: int, shape: tuple[int, int, int] = SHAPE) -> list[Path]:
    """Truth and prediction: ellipsoids, of which the prediction finds about two thirds, shifted, and adds its own."""
    from autopet.images import write_image
    from autopet.volume import Volume

    rng = np.random.default_rng(1)
    places = np.stack([rng.integers(REACH, n - REACH, size=components) for n in shape], axis=1)
    radii = rng.uniform(1.5, REACH - 3, size=(components, 3))
    moved = places + rng.integers(-1, 2, size=places.shape)
    others = np.stack([rng.integers(REACH, n - REACH, size=components) for n in shape], axis=1)
    guessed = np.where(rng.random((components, 1)) < 2 / 3, moved, others)
    files = []
    for name, centres in (("truth", places), ("prediction", guessed)):
        volume = Volume(ellipsoids(centres, radii, shape), SPACING_MM)
        files.append(write_image(folder / f"{name}.nii.gz", volume))
    return files


def ellipsoids(centres: np.ndarray, radii: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A mask of ellipsoids; centres and radii (z, y, x) in voxels."""
    mask = np.zeros(shape, dtype=bool)
    steps = np.ogrid[-REACH + 1 : REACH, -REACH + 1 : REACH, -REACH + 1 : REACH]
    for centre, radius in zip(centres, radii, strict=True):
        inside = sum((step / size) ** 2 for step, size in zip(steps, radius, strict=True)) <= 1
        mask[tuple(slice(c - REACH + 1, c + REACH) for c in centre)] |= inside
    return mask


def run(way: str, truth: Path, prediction: Path) -> dict:
    """Load both masks and score them, in this process."""
    return run_slow(truth, prediction) if way == "slow" else run_ours(way, truth, prediction)


def run_ours(way: str, truth_file: Path, prediction_file: Path) -> dict:
    """Seconds and voxels of this project's ways."""
    from autopet.images import read_image
    from evaluation.metrics import score, score_case

    started = time.perf_counter()
    truth, prediction = read_image(truth_file), read_image(prediction_file)
    loaded = time.perf_counter()
    if way == "ours":
        values = score(truth.array, prediction.array, voxel_volume_ml=truth.voxel_volume_ml)
    else:
        values = score_case(truth, prediction, surface=way == "surface").values
    ended = time.perf_counter()
    ml = truth.voxel_volume_ml
    voxels = {name: round(values[f"{name}_ml"] / ml) for name in ("fpv", "fnv", "gt", "pred")}
    voxels["shared"] = round(values["dice"] * (voxels["gt"] + voxels["pred"]) / 2)
    counts = [values.get("gt_lesions"), values.get("pred_lesions")]
    return {"seconds": ended - started, "loading_s": loaded - started, "voxels": voxels, "components": counts}


# --- one search of the volume per component --------------------------------------------------------------------------


def run_slow(truth_file: Path, prediction_file: Path) -> dict:
    """Seconds and voxels of the slow method."""
    import nibabel

    started = time.perf_counter()
    truth, prediction = (nibabel.load(path).get_fdata() for path in (truth_file, prediction_file))
    loaded = time.perf_counter()
    voxels = {"fpv": alone(prediction, truth), "fnv": alone(truth, prediction)}
    voxels |= {"gt": int(truth.sum()), "pred": int(prediction.sum()), "shared": int((truth * prediction).sum())}
    ended = time.perf_counter()
    return {"seconds": ended - started, "loading_s": loaded - started, "voxels": voxels}


def alone(mask: np.ndarray, other: np.ndarray) -> int:
    """Voxels of the components of a mask that share no voxel with another mask, one component at a time."""
    import cc3d

    labels = cc3d.connected_components(mask.astype(np.uint8), connectivity=18)
    total = 0
    for number in range(1, int(labels.max()) + 1):
        component = np.isin(labels, number)
        if not (component * other).any():
            total += int(component.sum())
    return total


if __name__ == "__main__":
    main()
