"""From tissue labels to PET and CT voxels: uptake, attenuation, texture, resolution and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autopet.volume import Volume, resample
from data_prep.tissues import Tissue

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
TEXTURE_GRID_MM = 9.0
Triple = tuple[float, float, float]

# SUV between patients: (low, high), drawn log-uniformly. Typical adult ranges about an hour after injection, chosen so
# that the organs named hot for each tracer are hot: a simulation's assumptions, not a reference for normal uptake.
FDG_SUV: dict[Tissue, tuple[float, float]] = {
    Tissue.AIR: (0.01, 0.02),
    Tissue.FAT: (0.2, 0.35),
    Tissue.MUSCLE: (0.5, 0.8),
    Tissue.BONE: (0.6, 0.9),
    Tissue.MARROW: (1.0, 1.8),
    Tissue.LUNG: (0.3, 0.55),
    Tissue.SOFT: (0.9, 1.3),
    Tissue.BLOOD: (1.4, 2.1),
    Tissue.MYOCARDIUM: (1.5, 12.0),
    Tissue.BRAIN: (8.0, 14.0),
    Tissue.LIVER: (2.0, 3.0),
    Tissue.SPLEEN: (1.6, 2.4),
    Tissue.KIDNEY: (3.0, 8.0),
    Tissue.URINE: (10.0, 40.0),
    Tissue.STOMACH: (1.5, 3.5),
    Tissue.BOWEL: (1.0, 3.0),
    Tissue.DUODENUM: (1.2, 3.0),
    Tissue.SALIVARY: (1.5, 3.5),
    Tissue.PROSTATE: (1.2, 2.2),
    Tissue.BROWN_FAT: (3.0, 9.0),
    Tissue.URETER: (4.0, 18.0),
    Tissue.GAS: (0.05, 0.1),
    Tissue.TABLE: (0.01, 0.02),
}
PSMA_SUV: dict[Tissue, tuple[float, float]] = FDG_SUV | {
    Tissue.MUSCLE: (0.4, 0.7),
    Tissue.BONE: (0.4, 0.6),
    Tissue.MARROW: (0.4, 0.8),
    Tissue.MYOCARDIUM: (1.3, 2.0),
    Tissue.BLOOD: (1.1, 1.8),
    Tissue.BRAIN: (0.2, 0.4),
    Tissue.LIVER: (4.0, 7.0),
    Tissue.SPLEEN: (5.0, 9.0),
    Tissue.KIDNEY: (20.0, 50.0),
    Tissue.URINE: (5.0, 40.0),
    Tissue.STOMACH: (1.5, 3.0),
    Tissue.BOWEL: (1.5, 3.5),
    Tissue.DUODENUM: (5.0, 10.0),
    Tissue.SALIVARY: (10.0, 20.0),
    Tissue.PROSTATE: (1.5, 3.0),
    Tissue.BROWN_FAT: (0.3, 0.5),
    Tissue.URETER: (4.0, 25.0),
}
# Standard deviation of the uptake within a tissue, relative to its mean.
PATCHINESS = dict.fromkeys(Tissue, 0.08) | {
    Tissue.BOWEL: 0.35,
    Tissue.DUODENUM: 0.3,
    Tissue.STOMACH: 0.25,
    Tissue.MYOCARDIUM: 0.2,
    Tissue.MUSCLE: 0.12,
}
HU: dict[Tissue, float] = {
    Tissue.AIR: -1000,
    Tissue.FAT: -100,
    Tissue.MUSCLE: 50,
    Tissue.BONE: 550,
    Tissue.MARROW: 250,
    Tissue.LUNG: -800,
    Tissue.SOFT: 40,
    Tissue.BLOOD: 45,
    Tissue.MYOCARDIUM: 55,
    Tissue.BRAIN: 35,
    Tissue.LIVER: 60,
    Tissue.SPLEEN: 50,
    Tissue.KIDNEY: 35,
    Tissue.URINE: 5,
    Tissue.STOMACH: 25,
    Tissue.BOWEL: 25,
    Tissue.DUODENUM: 30,
    Tissue.SALIVARY: 30,
    Tissue.PROSTATE: 40,
    Tissue.BROWN_FAT: -80,
    Tissue.URETER: 20,
    Tissue.GAS: -950,
    Tissue.TABLE: -150,
}
# HU that iodine in the portal-venous phase adds.
ENHANCEMENT = {
    Tissue.BLOOD: 110.0,
    Tissue.MYOCARDIUM: 60.0,
    Tissue.LIVER: 50.0,
    Tissue.SPLEEN: 65.0,
    Tissue.KIDNEY: 120.0,
    Tissue.BOWEL: 25.0,
    Tissue.DUODENUM: 30.0,
    Tissue.PROSTATE: 20.0,
    Tissue.MUSCLE: 8.0,
    Tissue.SALIVARY: 30.0,
}


@dataclass(frozen=True)
class Scanner:
    """One centre's PET/CT at one resolution.

    Lengths in mm, order x, y (, z). `noise` is the standard deviation at SUV 1, relative; the variance grows in
    proportion to the activity.
    """

    manufacturer: str
    model: str
    pet_spacing_mm: Triple
    pet_size: tuple[int, int]
    ct_spacing_mm: Triple
    ct_size: tuple[int, int]
    fwhm_mm: float
    filter_fwhm_mm: float
    noise: float
    ct_noise_hu: float


SCANNERS: dict[tuple[str, str], Scanner] = {
    ("A", "full"): Scanner(
        "SIEMENS",
        "Biograph64_mCT",
        (2.03642, 2.03642, 3.0),
        (400, 400),
        (0.9765625, 0.9765625, 3.0),
        (512, 512),
        5.0,
        4.0,
        0.20,
        18.0,
    ),
    ("B", "full"): Scanner(
        "GE MEDICAL SYSTEMS",
        "Discovery 690",
        (2.734375, 2.734375, 3.27),
        (256, 256),
        (0.9765625, 0.9765625, 3.27),
        (512, 512),
        7.0,
        5.0,
        0.28,
        22.0,
    ),
    ("A", "small"): Scanner(
        "SIEMENS",
        "Biograph64_mCT",
        (4.07283, 4.07283, 6.0),
        (120, 80),
        (3.05, 3.05, 5.0),
        (160, 112),
        5.0,
        4.0,
        0.14,
        10.0,
    ),
    ("B", "small"): Scanner(
        "GE MEDICAL SYSTEMS",
        "Discovery 690",
        (4.6875, 4.6875, 6.54),
        (104, 72),
        (3.05, 3.05, 5.0),
        (160, 112),
        7.0,
        5.0,
        0.20,
        12.0,
    ),
}


def make_grid(
    spacing_mm: Triple, size: tuple[int, int], *, centre_mm: tuple[float, float], z_mm: tuple[float, float]
) -> Volume:
    """An empty axial grid: `size` columns and rows about a centre, and slices from the first height to the second.

    The voxels are one zero that is repeated by strides: a grid costs no memory.
    """
    slices = max(int(np.floor((z_mm[1] - z_mm[0]) / spacing_mm[2])) + 1, 1)
    x, y = (centre_mm[k] - (size[k] - 1) / 2 * spacing_mm[k] for k in range(2))
    nothing = np.broadcast_to(np.zeros((), np.float32), (slices, size[1], size[0]))
    return Volume(nothing, spacing_mm, (round(x, 4), round(y, 4), round(z_mm[0], 4)))


def sample_uptake(rng: np.random.Generator, tracer: str) -> np.ndarray:
    """One patient's SUV for every tissue, indexed by `Tissue`; tracer FDG or PSMA."""
    table = FDG_SUV if tracer == "FDG" else PSMA_SUV
    low, high = np.array([table[tissue] for tissue in Tissue]).T
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def sample_hu(rng: np.random.Generator) -> np.ndarray:
    """One patient's HU for every tissue, indexed by `Tissue`; with contrast medium in two patients of three."""
    contrast = rng.uniform(0.5, 1.2) if rng.random() < 2 / 3 else 0.0
    values = np.array([HU[tissue] + contrast * ENHANCEMENT.get(tissue, 0.0) for tissue in Tissue])
    solid = (values > -500) & (values < 200)
    return values + np.where(solid, rng.normal(0, 5, len(values)), 0) + np.where(values > 200, rng.normal(0, 40), 0)


def texture(rng: np.random.Generator, grid: Volume, *, scale_mm: float = TEXTURE_GRID_MM) -> np.ndarray:
    """Smooth noise with mean 0 and standard deviation of about 1, float32, correlated over about `scale_mm`."""
    extent = np.array(grid.shape) * grid.spacing_zyx_mm
    shape = tuple(int(n) for n in np.ceil(extent / scale_mm) + 2)
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 0.7)
    spacing = (scale_mm, scale_mm, scale_mm)
    fine = resample(Volume(coarse / coarse.std(), spacing, grid.origin_mm), _geometry(grid))
    return fine.array


def _geometry(grid: Volume) -> Volume:
    """The grid without its voxels, which `resample` does not read."""
    return Volume(np.broadcast_to(np.zeros((), np.float32), grid.shape), grid.spacing_mm, grid.origin_mm)


def uptake_image(labels: np.ndarray, suv: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Activity before the scanner, in SUV: the tissue's value times a log-normal texture whose mean is 1."""
    patchy = np.array([PATCHINESS[tissue] for tissue in Tissue])
    mean = np.asarray(suv, np.float32) * np.exp(-0.5 * patchy**2).astype(np.float32)
    return mean[labels] * np.exp(patchy.astype(np.float32)[labels] * waves)


def blur(array: np.ndarray, spacing_zyx_mm: Triple, fwhm_mm: float) -> np.ndarray:
    """Gaussian point spread with a full width at half maximum in mm."""
    sigma = [fwhm_mm / FWHM_PER_SIGMA / spacing for spacing in spacing_zyx_mm]
    return ndimage.gaussian_filter(array.astype(np.float32, copy=False), sigma, mode="nearest", truncate=3.5)


def pet_noise(rng: np.random.Generator, activity: np.ndarray, spacing_zyx_mm: Triple, scanner: Scanner) -> np.ndarray:
    """An activity image with Poisson-like noise.

    White noise with a variance in proportion to the activity is smoothed by the reconstruction's post-filter and
    scaled so that in a uniform region of SUV s the standard deviation is `scanner.noise` * sqrt(s).
    """
    white = rng.standard_normal(activity.shape, dtype=np.float32)
    impulse = np.zeros((15, 15, 15), np.float32)
    impulse[7, 7, 7] = 1.0
    kernel = blur(impulse, spacing_zyx_mm, scanner.filter_fwhm_mm)
    gain = scanner.noise / float(np.sqrt((kernel**2).sum()))
    white *= np.sqrt(np.maximum(activity, 0.0))
    noisy = activity + gain * blur(white, spacing_zyx_mm, scanner.filter_fwhm_mm)
    return np.maximum(noisy, 0.0)


def ct_image(rng: np.random.Generator, labels: np.ndarray, hu: np.ndarray, noise_hu: float) -> np.ndarray:
    """HU of a label map with slightly blurred edges and noise, int16, limited to -1024..3071."""
    clean = ndimage.gaussian_filter(np.asarray(hu, np.float32)[labels], (0.4, 0.5, 0.5), truncate=3.0)
    clean += rng.standard_normal(labels.shape, dtype=np.float32) * np.float32(noise_hu)
    return np.clip(np.rint(clean), -1024, 3071).astype(np.int16)
