"""From the units of PET voxels (Units, C.8.9.1) to SUV by body weight, in g/ml.

One rule for each of `UNIT_RULES`. Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.agreement import check_agreement
from data_prep.attributes import Reader, tag_name, values
from data_prep.body import read_ideal_weight_kg, read_lean_mass_kg, read_surface_cm2, read_weight_kg
from data_prep.decay import decay_moments
from data_prep.injection import injection_moment
from data_prep.nuclides import read_half_life_s

LEAN_TYPES = {"LBM": "james120", "LBMJAMES128": "james128", "LBMJANMA": "janmahasatian"}  # SUVType -> formula
SMALLEST_DOSE_BQ = 1e4  # less is a dose in MBq
LARGEST_DOSE_BQ = 1e12  # more is no dose
USUAL_DOSE_BQ = (1e6, 5e9)  # 89Zr and 124I are given from some 10 MBq, 82Rb and 15O up to some 3 GBq
PHILIPS_CREATOR, PHILIPS_GROUP = "Philips PET Private Group", 0x7053
PHILIPS_SUV, PHILIPS_ACTIVITY = 0x00, 0x09
PHILIPS_NAMES = {PHILIPS_SUV: "(7053,1000)", PHILIPS_ACTIVITY: "(7053,1009)"}


@dataclass(frozen=True)
class Factors:
    """Factors to SUV by weight, one per header, and how they came about."""

    per_slice: Sequence[float]
    decay_reference: str
    formula: str


def _from_activity(reader: Reader, series: Sequence[Dataset]) -> Factors:
    """BQML: voxels are Bq/ml."""
    return _decayed(reader, series, to_activity=[1.0] * len(series), symbol="")


# --- SUV already (GML, CM2ML) ----------------------------------------------------------------------------------------


def _from_suv(reader: Reader, series: Sequence[Dataset]) -> Factors:
    """GML and CM2ML: voxels are SUV already; which one says SUVType (0054,1006), else body weight and surface."""
    units = reader.text("Units")
    kind = reader.text("SUVType") or ("BSA" if units == "CM2ML" else "BW")
    known = ("BSA",) if units == "CM2ML" else ("BW", *LEAN_TYPES, "IBW")
    if kind not in known:
        raise AutopetError(
            f"{tag_name('SUVType')} is {kind}, expected one of {', '.join(known)} with {tag_name('Units')} {units}; "
            "choose another PET series"
        )
    factor, formula = (1.0, "1 (SUV)") if kind == "BW" else _to_weight(reader, series, kind)
    return Factors([factor] * len(series), "set by the scanner", formula)


def _to_weight(reader: Reader, series: Sequence[Dataset], kind: str) -> tuple[float, str]:
    """From SUV of another SUVType (C.8.9.1) to SUV by weight: dose and decay are in both, only the size differs."""
    check_agreement(series, ("PatientSize",) if kind == "BSA" else ("PatientSize", "PatientSex"))
    try:
        weight = read_weight_kg(reader)
        if kind == "BSA":
            ratio, size = 1000.0 * weight / read_surface_cm2(reader, "dubois"), "surface (dubois) / 1000"
        elif kind == "IBW":
            ratio, size = weight / read_ideal_weight_kg(reader), "ideal weight"
        else:
            formula = LEAN_TYPES[kind]
            ratio, size = weight / read_lean_mass_kg(reader, formula), f"lean mass ({formula})"
    except AutopetError as error:
        raise AutopetError(f"{tag_name('SUVType')} is {kind}, which to turn into SUV by weight: {error}") from error
    reader.warnings.append(
        f"voxels are SUV of {tag_name('SUVType')} {kind} ({tag_name('Units')} {reader.text('Units')}): turned into SUV "
        f"by weight, times {ratio:.6g} (PatientWeight / {size})"
    )
    return ratio, f"PatientWeight / ({size})"


# --- counts of Philips (CNTS) ----------------------------------------------------------------------------------------


def _from_counts(reader: Reader, series: Sequence[Dataset]) -> Factors:
    """CNTS of Philips: counts with private factors to SUV, (7053,1000), or to Bq/ml, (7053,1009), of every slice.

    A factor to SUV of another SUVType is left for that to activity, which depends on no SUVType, else converted.
    """
    kind = reader.text("SUVType") or "BW"
    suv = _philips_factors(reader, series, PHILIPS_SUV)
    if suv and kind == "BW":
        return Factors(suv, "set by the scanner", "(7053,1000) SUV scale factor")
    activity = _philips_factors(reader, series, PHILIPS_ACTIVITY)
    if activity:
        if suv:
            reader.warnings.append(
                f"{tag_name('SUVType')} is {kind}, so that (7053,1000) may be no factor to SUV by weight: (7053,1009), "
                "the factor to Bq/ml, is used"
            )
        return _decayed(reader, series, to_activity=activity, symbol="(7053,1009) * ")
    if suv:
        return _from_counts_of_kind(reader, series, suv, kind)
    raise AutopetError(
        f"{tag_name('Units')} is CNTS, but neither (7053,1000) SUV scale factor nor (7053,1009) activity concentration "
        f"factor of {PHILIPS_CREATOR!r} is above 0; keep private tags when anonymising"
    )


def _from_counts_of_kind(reader: Reader, series: Sequence[Dataset], suv: Sequence[float], kind: str) -> Factors:
    known = ("BW", "BSA", "IBW", *LEAN_TYPES)
    if kind not in known:
        raise AutopetError(
            f"{tag_name('SUVType')} is {kind}, expected one of {', '.join(known)}: what (7053,1000) makes of the "
            "counts is unknown; choose another PET series"
        )
    ratio, formula = _to_weight(reader, series, kind)
    return Factors(
        [factor * ratio for factor in suv], "set by the scanner", f"(7053,1000) SUV scale factor * {formula}"
    )


def _philips_factors(reader: Reader, series: Sequence[Dataset], element: int) -> list[float]:
    """A private factor of every header, none when no header has one above 0."""
    name = PHILIPS_NAMES[element]
    _philips_number(reader, element)  # notes the value among the inputs
    found = [_philips_number(Reader(header), element) for header in series]
    low, high = min(found), max(found)
    if not high:
        return []
    if not low:
        raise AutopetError(
            f"{name} of {PHILIPS_CREATOR!r} is {high:g} in some slices, but 0 or missing in {found.count(0.0)} of "
            f"{len(found)}, expected a number above 0 in all; export the PET anew with its private tags"
        )
    if low != high:
        reader.warnings.append(
            f"{name} of {PHILIPS_CREATOR!r} differs over the slices, {low:g} to {high:g}: each slice's own is used"
        )
    return found


def _philips_number(reader: Reader, element: int) -> float:
    text = reader.private(PHILIPS_GROUP, PHILIPS_CREATOR, element)
    try:
        number = float(text or 0)
    except ValueError:
        number = -1.0
    if number < 0 or not np.isfinite(number):
        raise AutopetError(
            f"{PHILIPS_NAMES[element]} of {PHILIPS_CREATOR!r} is {text!r}, expected a number above 0; export the PET "
            "anew"
        )
    return number


UNIT_RULES: dict[str, Callable[[Reader, Sequence[Dataset]], Factors]] = {
    "BQML": _from_activity,
    "CNTS": _from_counts,
    "GML": _from_suv,
    "CM2ML": _from_suv,
}


# --- from activity ---------------------------------------------------------------------------------------------------


def _decayed(reader: Reader, series: Sequence[Dataset], *, to_activity: Sequence[float], symbol: str) -> Factors:
    """Weight over dose, decayed to the moment that DecayCorrection (0054,1102) says the voxels are corrected to."""
    weight_g = 1000.0 * read_weight_kg(reader)
    dose_bq, half_life_s = read_dose_bq(reader), read_half_life_s(reader)
    correction = reader.text("DecayCorrection")
    start = f"{symbol}1000 * PatientWeight / "
    if correction == "ADMIN":
        uptake_s, decay_reference, formula = [0.0] * len(series), "injection (ADMIN)", start + "RadionuclideTotalDose"
    elif correction in ("START", "NONE"):
        moments, named = decay_moments(reader, series, correction, half_life_s)
        injected = injection_moment(reader, min(moments), half_life_s)
        uptake_s = [(moment - injected).total_seconds() for moment in moments]
        decay_reference = f"{min(moments).isoformat()} ({correction}: {named})"
        formula = start + f"(RadionuclideTotalDose * 0.5 ** (({named} - injection) / RadionuclideHalfLife))"
    else:
        tag = tag_name("DecayCorrection")
        raise AutopetError(
            f"{tag} is {correction or 'missing'}, expected START, ADMIN or NONE; correct the PET headers"
        )
    if correction != "NONE" and "DECY" not in values(reader.header, "CorrectedImage"):
        reader.warnings.append(
            f"{tag_name('CorrectedImage')} lacks DECY, but {tag_name('DecayCorrection')} is {correction}"
        )
    reader.inputs["uptake_s"] = f"{min(uptake_s):.3f}"
    factors = [
        scale * weight_g / (dose_bq * 0.5 ** (seconds / half_life_s))
        for scale, seconds in zip(to_activity, uptake_s, strict=True)
    ]
    return Factors(factors, decay_reference, formula)


def read_dose_bq(reader: Reader) -> float:
    """RadionuclideTotalDose (0018,1074) in Bq; with a warning outside of `USUAL_DOSE_BQ`.

    Raises
    ------
    AutopetError
        It is missing, not above 0, or so small or large that it is in another unit.
    """
    dose_bq = reader.positive("RadionuclideTotalDose", "Bq", reader.injection)
    if dose_bq < SMALLEST_DOSE_BQ:
        raise AutopetError(
            f"{tag_name('RadionuclideTotalDose')} is {dose_bq:g}, expected Bq, not MBq; correct the PET headers"
        )
    if dose_bq > LARGEST_DOSE_BQ:
        raise AutopetError(
            f"{tag_name('RadionuclideTotalDose')} is {dose_bq:g}, expected Bq below {LARGEST_DOSE_BQ:g}; correct the "
            "PET headers"
        )
    low, high = USUAL_DOSE_BQ
    if not low <= dose_bq <= high:
        reader.warnings.append(
            f"{tag_name('RadionuclideTotalDose')} is {dose_bq:g} Bq, usual are {low:g} to {high:g} Bq: check its unit"
        )
    return dose_bq
