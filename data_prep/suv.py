"""The factor from PET voxels to standardised uptake values by body weight, from DICOM headers.

SUVbw [g/ml] = activity [Bq/ml] * weight [g] / dose [Bq], with dose and activity decayed to the same moment. Vendors
differ in which moment that is and in which attribute says so: the QIBA profile's vendor-neutral rules tell them apart
(QIBA FDG-PET/CT profile, appendix G; attributes after DICOM PS3.3 C.8.9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, orientation, position, tag_name, values
from data_prep.decay import decay_moments, injection_moment
from data_prep.times import time_of_day

MODES = ("qiba", "challenge")
SMALLEST_DOSE_BQ = 1e4  # less is a dose in MBq
LARGEST_WEIGHT_KG = 700.0  # more is a weight in grams
PHILIPS_CREATOR, PHILIPS_GROUP = "Philips PET Private Group", 0x7053
PHILIPS_SUV, PHILIPS_ACTIVITY = 0x00, 0x09


@dataclass(frozen=True)
class SuvFactor:
    """How to make SUV from the rescaled voxels of a PET series.

    `factor` is in g/ml per unit of the voxels (`units`), e.g. g/ml per Bq/ml. `slice_factors` has one per header, in
    the order given; they differ only when the voxels are not decay-corrected. `inputs` are the values used, by keyword.
    """

    factor: float
    mode: str
    units: str
    decay_reference: str
    formula: str
    inputs: dict[str, str]
    warnings: tuple[str, ...]
    slice_factors: tuple[float, ...] = field(repr=False)


def suv_bw_factor(series: Sequence[Dataset], mode: str = "qiba") -> SuvFactor:
    """The SUV factor of a PET series.

    Parameters
    ----------
    series : sequence of pydicom datasets
        Headers of all slices, in any order; pixel data are not needed.
    mode : str
        `qiba`: the vendor-neutral rules. `challenge`: the equation of the autoPET script,
        ``1000 * weight_kg / (dose_Bq * 0.5 ** ((AcquisitionTime - StartTime) / half_life))``, of the first slice by
        position; it ignores Units, DecayCorrection and dates.

    Raises
    ------
    AutopetError
        A value is missing or impossible; names the tag.
    """
    if mode not in MODES:
        raise AutopetError(f"unknown SUV mode {mode!r}; use one of {', '.join(MODES)}")
    if not series:
        raise AutopetError("an SUV factor needs the headers of the PET slices, found none")
    reader = Reader(_first_by_position(series))
    if mode == "challenge":
        return _challenge(reader, series)
    units = reader.text("Units")
    rule = UNIT_RULES.get(units)
    if rule is None:
        known = ", ".join(UNIT_RULES)
        raise AutopetError(
            f"{tag_name('Units')} is {units or 'missing'}, expected one of {known}; choose another PET series"
        )
    return rule(reader, series)


def _first_by_position(series: Sequence[Dataset]) -> Dataset:
    if any("ImagePositionPatient" not in header for header in series):
        return series[0]
    normal = orientation(series[0])[2]
    return min(series, key=lambda header: float(position(header) @ normal))


def _result(
    reader: Reader, factors: Sequence[float], *, mode: str, units: str, decay_reference: str, formula: str
) -> SuvFactor:
    return SuvFactor(
        factor=float(factors[0]),
        mode=mode,
        units=units,
        decay_reference=decay_reference,
        formula=formula,
        inputs=dict(reader.inputs),
        warnings=tuple(reader.warnings),
        slice_factors=tuple(float(factor) for factor in factors),
    )


# --- units (C.8.9.1, Units) ------------------------------------------------------------------------------------------


def _from_activity(reader: Reader, series: Sequence[Dataset]) -> SuvFactor:
    """BQML: voxels are Bq/ml."""
    return _decayed(reader, series, units="BQML", to_activity=1.0, symbol="")


def _from_counts(reader: Reader, series: Sequence[Dataset]) -> SuvFactor:
    """CNTS of Philips: counts with a private factor to SUV, (7053,1000), or to Bq/ml, (7053,1009)."""
    suv = _private_number(reader, PHILIPS_SUV)
    if suv:
        formula = "(7053,1000) SUV scale factor"
        return _result(
            reader,
            [suv] * len(series),
            mode="qiba",
            units="CNTS",
            decay_reference="set by the scanner",
            formula=formula,
        )
    activity = _private_number(reader, PHILIPS_ACTIVITY)
    if activity:
        return _decayed(reader, series, units="CNTS", to_activity=activity, symbol="(7053,1009) * ")
    raise AutopetError(
        f"{tag_name('Units')} is CNTS, but neither (7053,1000) SUV scale factor nor (7053,1009) activity concentration "
        f"factor of {PHILIPS_CREATOR!r} is above 0; keep private tags when anonymising"
    )


def _private_number(reader: Reader, element: int) -> float:
    text = reader.private(PHILIPS_GROUP, PHILIPS_CREATOR, element)
    try:
        number = float(text or 0)
    except ValueError:
        number = -1.0
    if number < 0 or not np.isfinite(number):
        raise AutopetError(f"(7053,10{element:02X}) of {PHILIPS_CREATOR!r} is {text!r}, expected a number above 0")
    return number


def _from_suv(reader: Reader, series: Sequence[Dataset]) -> SuvFactor:
    """GML: voxels are SUV already; which one says SUVType (0054,1006), body weight when absent."""
    kind = reader.text("SUVType") or "BW"
    if kind != "BW":
        raise AutopetError(f"{tag_name('SUVType')} is {kind}, expected BW (body weight); choose another PET series")
    factors = [1.0] * len(series)
    return _result(reader, factors, mode="qiba", units="GML", decay_reference="set by the scanner", formula="1 (SUV)")


UNIT_RULES: dict[str, Callable[[Reader, Sequence[Dataset]], SuvFactor]] = {
    "BQML": _from_activity,
    "CNTS": _from_counts,
    "GML": _from_suv,
}


def _decayed(reader: Reader, series: Sequence[Dataset], *, units: str, to_activity: float, symbol: str) -> SuvFactor:
    """Weight over dose, decayed to the moment that DecayCorrection (0054,1102) says the voxels are corrected to."""
    weight_g = 1000.0 * _weight_kg(reader)
    dose_bq, half_life_s = _dose_bq(reader), reader.positive("RadionuclideHalfLife", "seconds", reader.injection)
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
    factors = [to_activity * weight_g / (dose_bq * 0.5 ** (seconds / half_life_s)) for seconds in uptake_s]
    reader.inputs["uptake_s"] = f"{min(uptake_s):.3f}"
    return _result(reader, factors, mode="qiba", units=units, decay_reference=decay_reference, formula=formula)


def _weight_kg(reader: Reader) -> float:
    weight_kg = reader.positive("PatientWeight", "kg")
    if weight_kg > LARGEST_WEIGHT_KG:
        raise AutopetError(f"{tag_name('PatientWeight')} is {weight_kg:g}, expected kg; correct the PET headers")
    return weight_kg


def _dose_bq(reader: Reader) -> float:
    dose_bq = reader.positive("RadionuclideTotalDose", "Bq", reader.injection)
    if dose_bq < SMALLEST_DOSE_BQ:
        raise AutopetError(
            f"{tag_name('RadionuclideTotalDose')} is {dose_bq:g}, expected Bq, not MBq; correct the PET headers"
        )
    return dose_bq


# --- the challenge's equation ----------------------------------------------------------------------------------------


def _challenge(reader: Reader, series: Sequence[Dataset]) -> SuvFactor:
    weight_kg, dose_bq = _weight_kg(reader), _dose_bq(reader)
    half_life_s = reader.positive("RadionuclideHalfLife", "seconds", reader.injection)
    times_s = []
    for keyword, source in (("AcquisitionTime", None), ("RadiopharmaceuticalStartTime", reader.injection)):
        text = reader.text(keyword, source)
        if not text:
            raise AutopetError(f"{tag_name(keyword)} is missing; correct the PET headers or use the SUV mode qiba")
        times_s.append(time_of_day(text, tag_name(keyword)).total_seconds())
    uptake_s = times_s[0] - times_s[1]
    if uptake_s < 0:
        raise AutopetError(
            f"{tag_name('AcquisitionTime')} is {-uptake_s:.0f} s before {tag_name('RadiopharmaceuticalStartTime')}, "
            "which the challenge's equation cannot do (midnight?); use the SUV mode qiba"
        )
    factor = 1000.0 * weight_kg / (dose_bq * 0.5 ** (uptake_s / half_life_s))
    units = reader.text("Units")
    if units != "BQML":
        reader.warnings.append(
            f"{tag_name('Units')} is {units or 'missing'}, the challenge's equation takes it for BQML"
        )
    formula = (
        "1000 * PatientWeight / (RadionuclideTotalDose * 0.5 ** "
        "((AcquisitionTime - RadiopharmaceuticalStartTime) / RadionuclideHalfLife))"
    )
    reference = f"{reader.inputs['AcquisitionTime']} (AcquisitionTime of the first slice by position)"
    return _result(
        reader, [factor] * len(series), mode="challenge", units=units, decay_reference=reference, formula=formula
    )
