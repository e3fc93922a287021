"""Evaluated submissions of a small made-up challenge, written as `autopet evaluate` writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopet.volume import Volume
from evaluation.aggregate import build_metrics, json_number
from evaluation.metrics import REGISTRY, score_case
from evaluation.previews import make_preview, write_preview
from evaluation.report import write_lesions

HOSTILE = "<script>alert(1)</script>\"'&"
SHAPE = (48, 28, 36)  # z, y, x
SPACING_MM = (5.0, 5.0, 6.0)  # x, y, z
TRACERS, CENTRES = ("FDG", "PSMA"), ("A", "B")


@dataclass(frozen=True)
class Rival:
    """An algorithm: how far it shifts lesions (voxels), how often it misses one, and how often it invents one."""

    name: str
    shift: int
    misses: float
    invents: float


RIVALS = (
    Rival("Lesion Tracer", 0, 0.05, 0.1),
    Rival("nnU-Net ensemble with a rather long name of many words", 0, 0.2, 0.2),
    Rival(HOSTILE, 1, 0.2, 0.4),
    Rival("Threshold SUV 4", 1, 0.35, 1.5),
    Rival("=majority()", 2, 0.5, 0.3),
)


def patient(number: int) -> tuple[Volume, Volume]:
    """Truth and SUV: a warm ellipsoid of a body with one to four hot balls; the sixth has none."""
    rng = np.random.default_rng(number)
    z, y, x = np.indices(SHAPE)
    body = ((y - 14) / 11) ** 2 + ((x - 18) / 14) ** 2 < 1
    suv = np.where(body, 0.9 + 0.3 * rng.random(SHAPE), 0.0)
    suv += 6.0 * np.exp(-(((z - 43) / 3) ** 2 + ((y - 14) / 4) ** 2 + ((x - 18) / 4) ** 2))  # a brain
    truth = np.zeros(SHAPE, bool)
    for _ in range(0 if number == 5 else int(rng.integers(1, 5))):
        cz, cy, cx = rng.integers((4, 9, 11), (36, 20, 26))
        ball = (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(2, 12)
        truth |= ball
        suv[ball] = rng.uniform(4, 14)
    return _volume(truth), _volume(suv.astype(np.float32))


def guess(truth: np.ndarray, rival: Rival, rng: np.random.Generator) -> np.ndarray:
    """What a rival makes of a truth."""
    from scipy import ndimage

    labels, count = ndimage.label(truth)
    kept = np.zeros_like(truth)
    for lesion in range(1, count + 1):
        if rng.random() >= rival.misses:
            kept |= np.roll(labels == lesion, rival.shift, axis=1)
    for _ in range(rng.poisson(rival.invents)):
        z, y, x = rng.integers((2, 8, 8), (44, 18, 26))
        kept[z : z + 3, y : y + 2, x : x + 3] = True
    return kept


def write_results(folder: Path, *, cases: int = 12, rivals: tuple[Rival, ...] = RIVALS) -> list[str]:
    """One folder for each rival with metrics.json, lesions.csv and previews; the last rival's third case failed."""
    patients = [patient(number) for number in range(cases)]
    paths = []
    for place, rival in enumerate(rivals):
        rng = np.random.default_rng(100 + place)
        rows, lesions = [], {}
        for number, (truth, suv) in enumerate(patients):
            failed = place == len(rivals) - 1 and number == 2
            mask = truth.with_array(np.zeros_like(truth.array) if failed else guess(truth.array, rival, rng))
            scored = score_case(truth, mask, suv=suv, edition="III", surface=False)
            row: dict[str, Any] = {m.name: json_number(scored.values[m.name]) for m in REGISTRY}
            row |= {"case": f"case{number:02}", "status": "scored", "reason": ""}
            row |= {"tracer": TRACERS[number % 2], "centre": CENTRES[number // 2 % 2]}
            if failed:
                row |= {"status": "failed", "reason": f"the container was killed after 300 s {HOSTILE}"}
            rows.append(row)
            lesions[row["case"]] = scored.lesions
            preview = make_preview(truth, None if failed else mask, suv)
            write_preview(folder / f"r{place}" / "previews" / f"{row['case']}.npz", preview)
        everything = [lesion for found in lesions.values() for lesion in found]
        metrics = build_metrics(rows, name=rival.name, edition="III", failed="empty", lesions=everything)
        (folder / f"r{place}" / "metrics.json").write_text(json.dumps(metrics, allow_nan=False))
        write_lesions(folder / f"r{place}" / "lesions.csv", lesions)
        paths.append(str(folder / f"r{place}"))
    return paths


def _volume(array: np.ndarray) -> Volume:
    return Volume(array, SPACING_MM, (-90.0, -70.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
