"""One study of an invented patient: body, lesions, PET, CT and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopet.volume import Volume
from data_prep.anatomy import Habitus, procedural
from data_prep.imaging import (
    Scanner,
    blur,
    ct_image,
    make_grid,
    pet_noise,
    sample_hu,
    sample_uptake,
    texture,
    uptake_image,
)
from data_prep.lesions import Grower, Lesion
from data_prep.organ_maps import around_organs
from data_prep.shapes import Blob, coverage
from data_prep.tissues import Anatomy, Tissue


@dataclass(frozen=True)
class SimulatedStudy:
    """A study and its truth.

    `pet` is in SUV with noise, before it is quantised; `mask` lies on the same grid; `ct` is in HU on its own.
    """

    pet: Volume
    ct: Volume
    mask: Volume
    lesions: tuple[Lesion, ...]
    habitus: Habitus
    labels: Volume  # tissues on the PET grid
    organs: Volume  # the organs among them, labels as in `autopet.organs.ORGANS`; lesions do not change them


def simulate(
    rng: np.random.Generator,
    *,
    scanner: Scanner,
    tracer: str,
    diagnosis: str,
    habitus: Habitus,
    organs: Volume | None = None,
    fine: int = 3,
) -> SimulatedStudy:
    """One study of an invented patient.

    Parameters
    ----------
    tracer, diagnosis : str
        FDG or PSMA; a key of `SITES`, or NEGATIVE for a patient without lesions.
    organs : Volume, optional
        Real organ map to build the body around; procedural without.
    fine : int
        Sample points per voxel edge where the share of a voxel that a lesion fills is counted.
    """
    anatomy = around_organs(rng, organs, habitus) if organs is not None else procedural(rng, habitus)
    stretch = (anatomy.bottom_mm, anatomy.top_mm)
    grid = make_grid(scanner.pet_spacing_mm, scanner.pet_size, centre_mm=anatomy.centre_mm, z_mm=stretch)
    labels, organ_labels = anatomy.paint_with_organs(grid)
    suv = sample_uptake(rng, tracer)
    activity = uptake_image(labels, suv, texture(rng, grid))
    grower = Grower(rng, anatomy, grid, labels=labels, activity=activity, fine=fine)
    if diagnosis != "NEGATIVE":
        grower.grow(diagnosis)
    pet = blur(grower.activity, grid.spacing_zyx_mm, scanner.fwhm_mm)
    pet = pet_noise(rng, pet, grid.spacing_zyx_mm, scanner)
    ct_grid = make_grid(scanner.ct_spacing_mm, scanner.ct_size, centre_mm=anatomy.centre_mm, z_mm=stretch)
    ct = _ct(rng, anatomy, ct_grid, scanner, grower.shapes)
    return SimulatedStudy(
        pet=grid.with_array(pet),
        ct=ct_grid.with_array(ct),
        mask=grid.with_array(grower.mask),
        lesions=tuple(grower.lesions),
        habitus=habitus,
        labels=grid.with_array(labels),
        organs=grid.with_array(organ_labels),
    )


def _ct(rng: np.random.Generator, anatomy: Anatomy, grid: Volume, scanner: Scanner, shapes: list[Blob]) -> np.ndarray:
    """CT with lesions that differ from muscle by a few HU only; in lung and fat they are soft tissue as in patients."""
    labels = anatomy.paint(grid)
    hu = sample_hu(rng)
    for shape in shapes:
        box, filled = coverage(shape, grid, fine=1)
        here = labels[box]
        here[(filled > 0.5) & np.isin(here, (Tissue.LUNG, Tissue.FAT))] = Tissue.SOFT
    ct = ct_image(rng, labels, hu, scanner.ct_noise_hu)
    for shape in shapes:
        box, filled = coverage(shape, grid, fine=1)
        ct[box] += np.rint(filled * rng.normal(0, 8)).astype(np.int16)
    return ct
