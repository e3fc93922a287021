"""How fast the top-k AUROC is, and how much memory it needs, against scikit-learn.

    python benchmarks/topk_auroc.py --out topk-auroc-benchmark.json --require 5

A scan of 400x400x326 voxels with about 30 lesions: probabilities of a network, float32, that holds most of the
background for background, some hot organs for lesions, and misses parts of the lesions. Each way runs `--repeat` times
in turns in this process, the best time counts; then each runs once in a process of its own, for its memory:

- ours: `autopet.topk_auroc.topk_auroc`.
- selected: the background by a boolean index, `numpy.argpartition` for its n highest scores, and scikit-learn's
  `roc_auc_score` of these and the n lesion voxels.
- whole: `roc_auc_score` of all voxels, which is another number (and, with a lesion voxel in 2000, one close to 1).

Peak memory is that of the process (interpreter and imports included); `extra` is what the peak rose by during the call,
with scan and imports there already. The benchmark ends with an error if `ours` and `selected` differ by more than 1e-9,
or if `ours` is not as many times faster than `selected` as `--require` says.
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
sys.path.insert(0, str(ROOT))

SHAPE = (326, 400, 400)  # z, y, x
REACH = 12  # voxels; no lesion is larger to any side
MOST_APART = 1e-9
FILES = ("lesions.npy", "scores.npy")


def main() -> None:
    """Make the scan, run every way, compare what they found, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way in this process")
    parser.add_argument("--size", type=int, help="voxels per axis of a smaller scan")
    parser.add_argument("--lesions", type=int, default=30, help="lesions drawn")
    parser.add_argument("--out", type=Path, default=Path("topk-auroc-benchmark.json"), help="file for the figures")
    parser.add_argument("--require", type=float, default=0.0, help="least times faster; end with status 1 below it")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.only:
        print(json.dumps(memory_of(flags.only, flags.folder)))
        return
    shape = (flags.size,) * 3 if flags.size else SHAPE
    with tempfile.TemporaryDirectory() as scratch:
        write_scan(Path(scratch), shape=shape, lesions=flags.lesions)
        figures = compare(Path(scratch), repeat=flags.repeat)
    flags.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    check(figures, least_times_faster=flags.require)


def check(figures: dict, *, least_times_faster: float) -> None:
    """End with status 1 when a figure is not what the project promises."""
    values = figures["value"]
    if not abs(values["ours"] - values["selected"]) <= MOST_APART:
        sys.exit(f"the ways disagree: {values['ours']!r} (ours) and {values['selected']!r} (selected)")
    faster = figures["times_faster"]["selected"]
    if faster < least_times_faster:
        sys.exit(f"{faster} times faster, expected at least {least_times_faster:g}")


def compare(folder: Path, *, repeat: int) -> dict:
    """Every way on the same scan; seconds, megabytes, their ratios."""
    for way in WAYS:
        warm_up(way)
    lesions, scores = load(folder)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    values = {}
    for _ in range(repeat):
        for way, function in WAYS.items():
            started = time.perf_counter()
            values[way] = function(lesions, scores)
            seconds[way].append(time.perf_counter() - started)
    memory = {way: measured(way, folder) for way in WAYS}
    best = {way: min(found) for way, found in seconds.items()}
    others = [way for way in WAYS if way != "ours"]
    return {
        "cpu_cores": multiprocessing.cpu_count(),
        "shape": list(scores.shape[::-1]),
        "lesion_voxels": int(np.count_nonzero(lesions)),
        "scan_mb": round((lesions.nbytes + scores.nbytes) / 2**20),
        "value": values,
        "seconds": {way: [round(one, 4) for one in found] for way, found in seconds.items()},
        "peak_mb": {way: round(found["peak_mb"]) for way, found in memory.items()},
        "extra_mb": {way: round(found["extra_mb"], 1) for way, found in memory.items()},
        "times_faster": {way: round(best[way] / best["ours"], 1) for way in others},
        "memory_ratio": {way: round(memory["ours"]["peak_mb"] / memory[way]["peak_mb"], 3) for way in others},
    }


def measured(way: str, folder: Path) -> dict[str, float]:
    """The memory of one way, in a process of its own."""
    command = [sys.executable, __file__, "--only", way, str(folder)]
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(process.stdout)


def memory_of(way: str, folder: Path) -> dict[str, float]:
    """This process's highest memory after one call, and what it rose by."""
    warm_up(way)
    lesions, scores = load(folder)
    before_mb = peak_mb()
    WAYS[way](lesions, scores)
    return {"peak_mb": peak_mb(), "extra_mb": peak_mb() - before_mb}


def warm_up(way: str) -> None:
    """One call on a few voxels, which does the imports."""
    few = np.arange(4)
    WAYS[way](few > 2, few.astype(np.float32))


def peak_mb() -> float:
    """The highest memory of this process so far (Linux)."""
    # not ru_maxrss: Linux starts a child's with the memory of the process that called it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# --- the ways --------------------------------------------------------------------------------------------------------


def ours(lesions: np.ndarray, scores: np.ndarray) -> float:
    """This project's."""
    from autopet.topk_auroc import topk_auroc

    return topk_auroc(lesions, scores)


def selected(lesions: np.ndarray, scores: np.ndarray) -> float:
    """The straightforward way."""
    from sklearn.metrics import roc_auc_score

    positives, background = scores[lesions], scores[~lesions]
    count = min(positives.size, background.size)
    negatives = background[np.argpartition(background, background.size - count)[background.size - count :]]
    labels = np.concatenate([np.ones(positives.size, dtype=np.uint8), np.zeros(count, dtype=np.uint8)])
    return float(roc_auc_score(labels, np.concatenate([positives, negatives])))


def whole(lesions: np.ndarray, scores: np.ndarray) -> float:
    """All voxels."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(lesions.reshape(-1), scores.reshape(-1)))


WAYS = {"ours": ours, "selected": selected, "whole": whole}


# --- the scan --------------------------------------------------------------------------------------------------------


def write_scan(folder: Path, *, shape: tuple[int, ...], lesions: int) -> None:
    """A mask of ellipsoids and the probabilities of a network that is good, not perfect."""
    rng = np.random.default_rng(1)
    mask = ellipsoids(rng, lesions, shape)
    organs = ellipsoids(rng, 2 * lesions, shape) & ~mask
    logits = rng.standard_normal(shape, dtype=np.float32)
    logits *= 1.5
    logits -= 8
    logits[organs] += 5
    logits[mask] += 9
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    for name, array in zip(FILES, (mask, np.reciprocal(logits, out=logits)), strict=True):
        np.save(folder / name, array)


def ellipsoids(rng: np.random.Generator, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of so many ellipsoids, which may overlap."""
    mask = np.zeros(shape, dtype=bool)
    steps = np.ogrid[-REACH + 1 : REACH, -REACH + 1 : REACH, -REACH + 1 : REACH]
    for _ in range(count):
        centre = [int(rng.integers(REACH, n - REACH)) for n in shape]
        radii = rng.uniform(1.5, REACH - 3, size=3)
        inside = sum((step / size) ** 2 for step, size in zip(steps, radii, strict=True)) <= 1
        mask[tuple(slice(c - REACH + 1, c + REACH) for c in centre)] |= inside
    return mask


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mask and probabilities."""
    lesions, scores = (np.load(folder / name) for name in FILES)
    return lesions, scores


if __name__ == "__main__":
    main()
