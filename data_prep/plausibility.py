"""Does a converted study look like a patient? Checks on arrays that find wrong units, shifts and masks.

Everything is computed on every n-th voxel (at most 6 mm apart), so that a full-size study takes about a second. The
checks look for gross mistakes; none of them says that a study is right. In images that are cropped (the body reaches
their sides) outlines cannot be compared, and only voxel values are checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autopet.components import component_voxels, label_components
from autopet.errors import AutopetError
from autopet.views import radiological
from autopet.volume import Volume

COARSE_MM = 6.0
BODY_HU = -500  # skin and fat are above, air is below
SOFT_HU = (-50, 150)  # muscle, organs, blood with and without contrast agent
LIVER_HU = (35, 140)  # unenhanced to portal venous
# Body-weight SUV is 1 everywhere if the dose spreads evenly and stays in the body (Huang, Nucl Med Biol 2000;27:643).
# The median of soft tissue is mostly muscle. Found: 0.45 to 0.95 in 22 real FDG studies of two collections, so a factor
# of 10 leaves this range on either side.
SOFT_SUV = (0.15, 2.5)
# FDG: 1.5 to 3 (PERCIST, Wahl et al., J Nucl Med 2009;50:122S; 2.2 +- 0.4 in Boktor et al., J Nucl Med 2013;54:677);
# PSMA ligands: about 4 (PSMA-11) to 12 (PSMA-1007), so the estimate only words the warning.
LIVER_TEXT = "livers have about 1.5 to 3 with FDG, 3 to 15 with PSMA ligands"
SCALES = {"bw": 1.0, "lbm": 0.75, "bsa": 0.25}  # typical ratio to SUV by body weight: 55 kg or 1.9e4 cm2 for 75 kg
HIGHEST_SUV = 200.0
LOWEST_SUV = -0.5
LEAST_LESION_SUV = 1.0
LEAST_IMAGE_ML = 1000.0  # a smaller image holds too little of a body to judge more than voxel values
LEAST_LIVER_ML = 200.0  # without its outer 1.5 cm
BELOW_LUNGS_MM = 150.0  # where a liver may end
LEAST_SOFT_ML = 50.0
MOST_OUTSIDE = 0.1  # of the lesions' voxels outside the body
MOST_SHIFT_MM = 20.0
SHORTEST_MM = 400.0  # a shorter piece of a body has too few features to tell a shift along the patient
FARTHEST_SHIFT_MM = 120.0  # that is looked for along the patient


@dataclass(frozen=True, eq=False)
class _Coarse:
    """Every n-th voxel as (head to foot, front to back, right to left)."""

    suv: np.ndarray
    ct: np.ndarray
    mask: np.ndarray | None
    body: np.ndarray  # from CT, lungs filled
    spacing_mm: tuple[float, float, float]

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000


def plausibility_warnings(suv: Volume, ct: Volume, mask: Volume | None = None, *, kind: str = "bw") -> list[str]:
    """What looks wrong with a converted study, in sentences; empty when nothing does.

    Parameters
    ----------
    suv : Volume
        SUV in g/ml.
    ct : Volume
        HU on the grid of `suv`, about -1000 where there is no CT.
    mask : Volume, optional
        Lesions (not 0) on the same grid; an empty one is checked like none.
    kind : str
        What the SUV is normalised by: `bw` body weight, `lbm` lean body mass, `bsa` body surface area; decides the
        range of plausible values.

    Raises
    ------
    AutopetError
        The images are not on one grid.
    """
    for name, other in (("CT", ct), ("mask", mask)):
        difference = other.grid_difference(suv) if other is not None else ""
        if difference:
            raise AutopetError(f"expected the {name} on the grid of the SUV image, found {difference}; resample it")
    warnings = list(_value_warnings(suv.array))
    highest = float(np.fmax.reduce(suv.array, axis=None))
    if not np.isfinite(highest) or highest <= 0 or suv.array.size * suv.voxel_volume_ml < LEAST_IMAGE_ML:
        return warnings
    coarse = _coarse(suv, ct, mask)
    level = _soft_tissue_suv(coarse)
    warnings += _level_warnings(coarse, level, SCALES[kind])
    warnings += _lesion_warnings(suv, mask, SCALES[kind]) if mask is not None else []
    warnings += _outside_warnings(coarse)
    if level is not None and not _is_cut_off(coarse.body):
        warnings += _shift_warnings(coarse, level)
    return warnings


# --- values ----------------------------------------------------------------------------------------------------------


def _value_warnings(suv: np.ndarray) -> Iterator[str]:
    lowest, highest = float(suv.min()), float(suv.max())  # NaN and infinity show in these
    if not np.isfinite((lowest, highest)).all():
        count = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in suv)
        yield f"{count} SUV voxels are no finite numbers, expected none: check the series' rescale slopes"
    elif lowest == highest == 0:
        yield "the PET is zero everywhere, expected uptake: check the series that was chosen"
    if lowest < LOWEST_SUV:
        yield f"the lowest SUV is {lowest:.3g}, expected none below 0: check rescale intercept and pixel signedness"
    if np.isfinite(highest) and highest > HIGHEST_SUV:
        yield (
            f"the highest SUV is {highest:.4g}, expected at most {HIGHEST_SUV:g}: check dose, weight and units (a hot "
            "bladder or an injection site can explain it)"
        )


def _soft_tissue_suv(coarse: _Coarse) -> float | None:
    """Median SUV of soft tissue without the lesions; None when there is hardly any."""
    soft = coarse.body & (coarse.ct > SOFT_HU[0]) & (coarse.ct < SOFT_HU[1])
    if coarse.mask is not None:
        soft &= ~coarse.mask
    found = coarse.suv[soft]
    return float(np.median(found)) if found.size * coarse.voxel_ml >= LEAST_SOFT_ML else None


def _level_warnings(coarse: _Coarse, level: float | None, scale: float) -> Iterator[str]:
    if level is None:
        yield (
            f"less than {LEAST_SOFT_ML:g} ml of soft tissue ({SOFT_HU[0]} to {SOFT_HU[1]} HU) on the CT, expected a "
            "body; SUVs are not checked: does the CT belong to the PET, and is it in HU?"
        )
        return
    low, high = (bound * scale for bound in SOFT_SUV)
    if low <= level <= high:
        return
    liver = liver_suv(coarse.suv, coarse.ct, coarse.body, coarse.spacing_mm)
    estimate = f", the liver (an estimate, without organ labels) {liver:.3g}" if liver is not None else ""
    off = level / (0.65 * scale)  # 0.65 is the middle of what was found in patients
    yield (
        f"soft tissue has a median SUV of {level:.3g}{estimate}, expected {low:.2g} to {high:.2g} ({LIVER_TEXT}): "
        f"about {off:.2g} times what is usual; check dose (Bq or MBq), weight (kg or g), decay times and Units "
        "(0054,1001)"
    )


def liver_suv(
    suv: np.ndarray, ct: np.ndarray, body: np.ndarray, spacing_mm: tuple[float, float, float]
) -> float | None:
    """An estimate of the liver's median SUV without organ labels, from CT alone.

    The liver is taken to be the largest solid region (CT averaged over about 2 cm, 35 to 140 HU, more than 1.5 cm
    from anything else) in the right half of the body, from the middle of the lungs to 15 cm below them.

    Parameters
    ----------
    suv, ct, body : (rows, depth, columns) arrays
        Head to foot, front to back, patient's right to left; SUV, HU, and the body as bool.

    Returns
    -------
    float or None
        None when there are no lungs, or no such region of 200 ml: the liver is not in the field of view, or too noisy.
    """
    lungs = _largest(body & (ct < BODY_HU))
    if not lungs.any():
        return None
    columns, rows = np.flatnonzero(body.any(axis=(0, 1))), np.flatnonzero(lungs.any(axis=(1, 2)))
    last_row = int(rows[-1] + BELOW_LUNGS_MM / spacing_mm[0])
    where = np.s_[int(rows.mean()) : last_row, :, : max(1, int(columns.mean()))]  # columns begin at the patient's right
    width = [max(1, round(20.0 / step)) for step in spacing_mm]
    smooth = ndimage.uniform_filter(np.clip(ct[where], -200, 300).astype(np.float32), width, mode="nearest")
    solid = body[where] & (smooth > LIVER_HU[0]) & (smooth < LIVER_HU[1])
    solid[0] = False  # the distance from where the search began counts, too
    core = _largest(ndimage.distance_transform_edt(solid, sampling=spacing_mm) > 15.0)
    if np.count_nonzero(core) * float(np.prod(spacing_mm)) / 1000 < LEAST_LIVER_ML:
        return None
    return float(np.median(suv[where][core]))


# --- lesions ---------------------------------------------------------------------------------------------------------


def _lesion_warnings(suv: Volume, mask: Volume, scale: float) -> Iterator[str]:
    lesions = suv.array[mask.array != 0]
    highest = float(np.fmax.reduce(lesions)) if lesions.size else np.inf
    if highest < LEAST_LESION_SUV * scale:
        yield (
            f"the lesions' highest SUV is {highest:.3g}, expected uptake above {LEAST_LESION_SUV * scale:g}: "
            "check that the mask belongs to this PET and is not mirrored"
        )


def _outside_warnings(coarse: _Coarse) -> Iterator[str]:
    if coarse.mask is None or not coarse.body.any():
        return
    # one voxel more than the body: lesions of the skin, and what striding takes away
    body = ndimage.binary_dilation(coarse.body)
    voxels = int(np.count_nonzero(coarse.mask))
    outside = int(np.count_nonzero(coarse.mask & ~body))
    if voxels and outside > MOST_OUTSIDE * voxels:
        yield (
            f"{100 * outside / voxels:.0f} % of the lesions lie outside the body on CT, expected none: check that "
            "mask, PET and CT belong together, and that the CT covers the lesions"
        )


# --- outlines --------------------------------------------------------------------------------------------------------


def _coarse(suv: Volume, ct: Volume, mask: Volume | None) -> _Coarse:
    (fine_suv, spacing_mm), (fine_ct, _) = radiological(suv), radiological(ct)
    steps = [max(1, int(COARSE_MM // step)) for step in spacing_mm]
    strided = tuple(slice(None, None, step) for step in steps)
    hu = fine_ct[strided]
    return _Coarse(
        suv=np.nan_to_num(fine_suv[strided], nan=0.0, posinf=0.0, neginf=0.0),
        ct=hu,
        mask=None if mask is None else _any_of_blocks(radiological(mask)[0], steps),
        body=filled_outline(hu > BODY_HU),
        spacing_mm=(spacing_mm[0] * steps[0], spacing_mm[1] * steps[1], spacing_mm[2] * steps[2]),
    )


def _any_of_blocks(mask: np.ndarray, steps: list[int]) -> np.ndarray:
    """A mask on the strided grid: where a block has a lesion (striding alone would lose small ones)."""
    coarse = np.zeros([-(-size // step) for size, step in zip(mask.shape, steps, strict=True)], bool)
    for offsets in np.ndindex(*steps):
        part = mask[tuple(slice(offset, None, step) for offset, step in zip(offsets, steps, strict=True))]
        coarse[tuple(slice(size) for size in part.shape)] |= part != 0
    return coarse


def filled_outline(above: np.ndarray) -> np.ndarray:
    """The largest component of a mask, with what it encloses in each slice (the first axis) filled.

    Eroded by two voxels first and regrown, so that a table's thin shell and blankets do not belong to the body.
    """
    opened = _largest(ndimage.binary_erosion(above, iterations=2, border_value=1))
    body = ndimage.binary_dilation(opened, iterations=3, mask=above)
    # air that reaches the edge of its slice is outside; the lungs do not, although they reach the last slice
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    rest, _ = ndimage.label(~body, structure=in_slice)
    edges = (rest[:, 0], rest[:, -1], rest[:, :, 0], rest[:, :, -1])
    reached = np.zeros(int(rest.max()) + 1, bool)
    for edge in edges:
        reached[edge.ravel()] = True
    reached[0] = False
    return ~reached[rest]


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = label_components(mask, connectivity=6)
    if count == 0:
        return np.zeros(mask.shape, bool)
    return labels == int(component_voxels(labels, count).argmax()) + 1


def _is_cut_off(body: np.ndarray) -> bool:
    """Whether the body reaches a side of the image in a tenth of its slices: then it has no outline there."""
    slices = body.any(axis=(1, 2))
    if not slices.any():
        return True
    sides = (body[:, 0], body[:, -1], body[:, :, 0], body[:, :, -1])
    return any(np.count_nonzero(side.any(axis=1)) > 0.1 * np.count_nonzero(slices) for side in sides)


def _shift_warnings(coarse: _Coarse, level: float) -> Iterator[str]:
    """Compare the body on CT and on PET: centres across, areas along the patient."""
    on_pet = filled_outline(ndimage.gaussian_filter(coarse.suv, 1.0) > 0.3 * level)
    covered = coarse.body.any(axis=(1, 2)) & on_pet.any(axis=(1, 2))
    if np.count_nonzero(covered) < 5:
        return
    row_mm, depth_mm, column_mm = coarse.spacing_mm
    across = {"front to back": (2, depth_mm), "right to left": (1, column_mm)}
    found = {}
    for name, (axis, step_mm) in across.items():
        outlines = [np.asarray(body[covered].any(axis=axis)) for body in (coarse.body, on_pet)]
        found[name] = step_mm * (_centre(outlines[1]) - _centre(outlines[0]))
    if coarse.body.shape[0] * row_mm >= SHORTEST_MM:
        areas = [body.sum(axis=(1, 2)).astype(float) for body in (coarse.body, on_pet)]
        found["head to foot"] = row_mm * best_shift(*areas, farthest=int(FARTHEST_SHIFT_MM / row_mm))
    far = {name: value for name, value in found.items() if abs(value) > MOST_SHIFT_MM}
    if far:
        said = ", ".join(f"{abs(value):.0f} mm {name}" for name, value in far.items())
        yield (
            f"the body lies {said} apart on CT and PET, expected at most {MOST_SHIFT_MM:g} mm: check that both are of "
            "one examination and have the same FrameOfReferenceUID (0020,0052)"
        )


def _centre(outline: np.ndarray) -> float:
    """Median over the slices of the middle between a body's two ends, in voxels; (slices, width) bool."""
    first = outline.argmax(axis=1)
    last = outline.shape[1] - 1 - outline[:, ::-1].argmax(axis=1)
    return float(np.median((first + last) / 2))


def best_shift(first: np.ndarray, second: np.ndarray, *, farthest: int) -> int:
    """By how many places `second` runs behind `first`: the shift with the highest correlation; 0 in doubt.

    Two profiles of one body look alike where they overlap. A shift counts only when its correlation is 0.85 or more and
    leaves less than 40 % of what is missing to 1 without a shift, so profiles without features say nothing.
    """
    shifts = range(-farthest, farthest + 1)
    scores = {shift: _correlation(first, second, shift) for shift in shifts}
    best = max(scores, key=lambda shift: (scores[shift], -abs(shift)))
    return best if scores[best] >= 0.85 and 1 - scores[best] < 0.4 * (1 - scores[0]) else 0


def _correlation(first: np.ndarray, second: np.ndarray, shift: int) -> float:
    size = len(first)
    a, b = first[max(0, -shift) : size - max(0, shift)], second[max(0, shift) : size - max(0, -shift)]
    if len(a) < size / 2 or a.std() == 0 or b.std() == 0:
        return -1.0
    return float(np.corrcoef(a, b)[0, 1])
