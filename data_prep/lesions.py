"""Lesions of the phantom: where a diagnosis puts them, how they grow, what is known about each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.shapes import Blob, Point, Slices, Wobble, coverage, rotation_matrix
from data_prep.tissues import Anatomy, Tissue

MEDIAN_LESION_ML, LESION_SPREAD = 8.0, 1.0
SMALLEST_ML, LARGEST_ML = 0.12, 85.0  # of the drawn ellipsoids; irregular surfaces stay within 0.1 to 100 ml
HARD_FRACTION = 0.1  # lesions hardly above their surroundings

# Where a diagnosis puts lesions: weights of places. A name in capitals is a tissue, the others are stations.
NODES = ("mediastinum", "hilum", "neck", "supraclavicular", "axilla", "retroperitoneum", "mesentery", "pelvis", "groin")
SITES: dict[str, dict[str, float]] = {
    "LUNG_CANCER": {"LUNG": 5, "mediastinum": 3, "hilum": 2, "supraclavicular": 1, "LIVER": 1, "MARROW": 2, "BONE": 1},
    "LYMPHOMA": dict.fromkeys(NODES, 1.0) | {"mediastinum": 3.0, "neck": 2.0, "SPLEEN": 0.7, "MARROW": 0.7},
    "MELANOMA": {"LIVER": 2, "LUNG": 2, "FAT": 2, "MUSCLE": 1, "axilla": 1.5, "groin": 1.5, "MARROW": 1.5, "neck": 1},
    "PROSTATE_CANCER": {"prostate bed": 3, "pelvis": 3, "retroperitoneum": 3, "MARROW": 4, "BONE": 3},
}
# Where a lesion does not grow.
NOT_IN = tuple(Tissue[name] for name in ("AIR", "BRAIN", "URINE", "KIDNEY", "MYOCARDIUM", "SALIVARY", "GAS"))

# For lesions that grow in a tissue: where most of their volume must be, and how much of it.
BONES = (Tissue.BONE, Tissue.MARROW)
SITE_TISSUES: dict[str, tuple[tuple[Tissue, ...], float]] = {
    "BONE": (BONES, 0.35),
    "MARROW": (BONES, 0.35),
    **{name: ((Tissue[name],), 0.6) for name in ("LUNG", "LIVER", "SPLEEN", "FAT", "MUSCLE")},
}


@dataclass(frozen=True)
class Lesion:
    """One lesion as it was drawn, before the scanner."""

    site: str
    centre_mm: Point
    volume_ml: float  # of the drawn shape, without a necrotic core taken off
    suv: float
    voxels: int  # in the mask


class Grower:
    """Places lesions one after another in an activity image and keeps the truth."""

    def __init__(
        self,
        rng: np.random.Generator,
        anatomy: Anatomy,
        grid: Volume,
        *,
        labels: np.ndarray,
        activity: np.ndarray,
        fine: int,
    ) -> None:
        self.rng, self.anatomy, self.grid, self.labels, self.fine = rng, anatomy, grid, labels, fine
        self.activity = activity
        self.mask = np.zeros(labels.shape, dtype=np.uint8)
        self.lesions: list[Lesion] = []
        self.shapes: list[Blob] = []

    def grow(self, diagnosis: str) -> None:
        """Add 1 to 12 lesions, often few."""
        weights = SITES[diagnosis]
        count = int(np.clip(np.rint(self.rng.lognormal(np.log(5.0), 0.6)), 1, 12))
        names, shares = list(weights), np.array(list(weights.values()))
        for _ in range(20 * count):
            if len(self.lesions) == count:
                return
            site = str(self.rng.choice(names, p=shares / shares.sum()))
            # the first is the largest of three draws: few patients have specks only
            volume_ml = max(self._draw_volume() for _ in range(1 if self.lesions else 3))
            for _ in range(8):
                if self._try(site, volume_ml):
                    break
                volume_ml = max(volume_ml * 0.75, SMALLEST_ML)
        if not self.lesions:
            raise AutopetError(f"no lesion of {diagnosis} fits into this body; use another organ map or seed")

    def _draw_volume(self) -> float:
        while True:
            volume = float(self.rng.lognormal(np.log(MEDIAN_LESION_ML), LESION_SPREAD))
            if SMALLEST_ML <= volume <= LARGEST_ML:
                return volume

    def _centre(self, site: str) -> Point | None:
        rng = self.rng
        if site in self.anatomy.stations:
            points = self.anatomy.stations[site]
            x, y, z = np.add(points[int(rng.integers(len(points)))], rng.normal(0, 6, 3))
            return float(x), float(y), float(z)
        found = np.flatnonzero(self.labels == Tissue[site])
        if not len(found):
            return None
        index = np.unravel_index(found[int(rng.integers(len(found)))], self.labels.shape)
        jitter = rng.uniform(-0.5, 0.5, 3)
        x, y, z = (
            float(o + (i + j) * s)
            for o, i, j, s in zip(self.grid.origin_mm, index[::-1], jitter, self.grid.spacing_mm, strict=True)
        )
        return x, y, z

    def _try(self, site: str, volume_ml: float) -> bool:
        centre = self._centre(site)
        if centre is None:
            return False
        shape = lesion_shape(self.rng, centre, volume_ml)
        box, filled = coverage(shape, self.grid, fine=self.fine)
        if not self._fits(site, box, filled):
            return False
        chosen = filled >= 0.5
        if not chosen.any():
            chosen = filled == filled.max()
            chosen.ravel()[np.flatnonzero(chosen)[1:]] = False
        suv = self._draw_suv(box, filled)
        here = self.activity[box]
        core = self._core(shape, box, volume_ml)
        speckle = np.exp(0.1 * self.rng.standard_normal(filled.shape))
        hot = suv * speckle * (1.0 - 0.75 * core)
        here[...] = here * (1 - filled) + hot * filled
        self.mask[box] |= chosen
        self.shapes.append(shape)
        drawn_ml = float(filled.sum()) * self.grid.voxel_volume_ml
        self.lesions.append(Lesion(site, shape.centre_mm, drawn_ml, suv, int(chosen.sum())))
        return True

    def _fits(self, site: str, box: Slices, filled: np.ndarray) -> bool:
        """Inside the field of view and the body, mostly in its tissue, off other lesions and hot organs."""
        volume = float(filled.sum())
        edges = [part.start > 0 and part.stop < n for part, n in zip(box, self.labels.shape, strict=True)]
        if volume * self.grid.voxel_volume_ml < 0.1 or not all(edges):
            return False
        around = tuple(slice(part.start - 1, part.stop + 1) for part in box)
        if self.mask[around].any():
            return False
        here = self.labels[box]
        if filled[np.isin(here, NOT_IN)].sum() > 0.02 * volume:
            return False
        if site in SITE_TISSUES:
            tissues, share = SITE_TISSUES[site]
            return filled[np.isin(here, tissues)].sum() > share * volume
        return filled[here == Tissue.LUNG].sum() < 0.5 * volume

    def _draw_suv(self, box: Slices, filled: np.ndarray) -> float:
        """From 1.5 times the surroundings to 30; most lesions stand out, `HARD_FRACTION` of them hardly."""
        rng = self.rng
        local = float(np.average(self.activity[box], weights=filled))
        if rng.random() < HARD_FRACTION:
            return float(max(local, 0.8) * rng.uniform(1.5, 2.2))
        return float(np.clip(rng.lognormal(np.log(10.0), 0.4), max(2.5 * local, 4.0), 30.0))

    def _core(self, shape: Blob, box: Slices, volume_ml: float) -> np.ndarray:
        """Share of each voxel that is necrotic: the inner half of some lesions above 20 ml."""
        core = np.zeros([part.stop - part.start for part in box], dtype=np.float32)
        if volume_ml < 20 or self.rng.random() > 0.4:
            return core
        radii = tuple(0.5 * radius for radius in shape.radii_mm)
        inner, filled = coverage(Blob(shape.centre_mm, radii, shape.rotation), self.grid, fine=self.fine)  # type: ignore[arg-type]
        local = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, box, strict=True))
        core[local] = filled
        return core


def lesion_shape(rng: np.random.Generator, centre: Point, volume_ml: float) -> Blob:
    """An irregular, tilted ellipsoid of a volume."""
    ratios = np.exp(rng.normal(0, 0.2, 3))
    ratios /= np.prod(ratios) ** (1 / 3)
    radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    x, y, z = (float(value) for value in radius * ratios)
    return Blob(centre, (x, y, z), rotation_matrix(rng.uniform(0, np.pi, 3)), Wobble.sample(rng, 0.09, radius))
