"""The factor from PET voxels to standardised uptake values, from DICOM headers.

SUV = activity [Bq/ml] * size / dose [Bq], with dose and activity decayed to the same moment. The size is the weight
(SUVbw), the lean mass (SUVlbm) or the surface (SUVbsa) of the body. Vendors differ in which moment that is and in which
attribute says so: the QIBA profile's vendor-neutral rules tell them apart (QIBA FDG-PET/CT profile, appendix G;
attributes after DICOM PS3.3 C.8.9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, orientation, position, tag_name, values
from data_prep.body import read_ideal_weight_kg, read_lean_mass_kg, read_surface_cm2, read_weight_kg
from data_prep.decay import decay_moments, injection_moment
from data_prep.nuclides import BY_NAME, read_half_life_s
from data_prep.times import time_of_day

MODES = ("qiba", "challenge")
KINDS = ("bw", "lbm", "bsa")
SUV_UNITS = {"bw": "g/ml", "lbm": "g/ml", "bsa": "cm2/ml"}  # DICOM's GML, GML and CM2ML
LEAN_TYPES = {"LBM": "james120", "LBMJAMES128": "james128", "LBMJANMA": "janmahasatian"}  # SUVType -> formula
SMALLEST_DOSE_BQ = 1e4  # less is a dose in MBq
USUAL_DOSE_BQ = (1e6, 5e9)  # 89Zr and 124I are given from some 10 MBq, 82Rb and 15O up to some 3 GBq
PHILIPS_CREATOR, PHILIPS_GROUP = "Philips PET Private Group", 0x7053
PHILIPS_SUV, PHILIPS_ACTIVITY = 0x00, 0x09


@dataclass(frozen=True)
class SuvFactor:
    """How to make SUV from the rescaled voxels of a PET series.

    `factor` is in `suv_units` per unit of the voxels (`units`), e.g. g/ml per Bq/ml. `slice_factors` has one per
    header, in the order given; they differ only when the voxels are not decay-corrected. `kind` says by what the
    uptake is normalised (`KINDS`). `inputs` are the values used, by keyword.
    """

    factor: float
    kind: str
    suv_units: str
    mode: str
    units: str
    decay_reference: str
    formula: str
    inputs: dict[str, str]
    warnings: tuple[str, ...]
    slice_factors: tuple[float, ...] = field(repr=False)


def suv_factor(series: Sequence[Dataset], *, kind: str = "bw", mode: str = "qiba") -> SuvFactor:
    """The factor to SUV of one of `KINDS`, by the default formula of lean mass or surface.

    Raises
    ------
    AutopetError
        The kind is unknown; or as `suv_bw_factor`, `suv_lbm` and `suv_bsa`.
    """
    rules = {"bw": suv_bw_factor, "lbm": suv_lbm, "bsa": suv_bsa}
    if kind not in rules:
        raise AutopetError(f"unknown kind of SUV {kind!r}; use one of {', '.join(KINDS)}")
    return rules[kind](series, mode)


def suv_bw_factor(series: Sequence[Dataset], mode: str = "qiba") -> SuvFactor:
    """The factor to SUV by body weight, in g/ml.

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
        A value is missing or impossible, or no PET nuclide has the half-life; names the tag.
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


def suv_lbm(series: Sequence[Dataset], mode: str = "qiba", *, formula: str = "janmahasatian") -> SuvFactor:
    """The factor to SUV by lean body mass (SUL), in g/ml: that by weight times lean mass over weight.

    Parameters
    ----------
    series, mode
        As of `suv_bw_factor`.
    formula : str
        One of `data_prep.body.LEAN_MASS_KG`, with sources in `data_prep.body.lean_mass_kg`. `janmahasatian` is DICOM's
        SUVType LBMJANMA, which does not fall with the weight of heavy patients; `james128` is LBMJAMES128.

    Raises
    ------
    AutopetError
        As `suv_bw_factor`; PatientSize (0010,1020) or PatientSex (0010,0040) is missing or impossible.
    """
    by_weight = suv_bw_factor(series, mode)
    reader = Reader(_first_by_position(series))
    ratio = read_lean_mass_kg(reader, formula) / read_weight_kg(reader)
    return _normalised(by_weight, reader, ratio, kind="lbm", symbol=f"lean mass ({formula}) / PatientWeight")


def suv_bsa(series: Sequence[Dataset], mode: str = "qiba", *, formula: str = "dubois") -> SuvFactor:
    """The factor to SUV by body surface, in DICOM's cm2/ml (CM2ML): that by weight times surface over weight.

    Parameters
    ----------
    series, mode
        As of `suv_bw_factor`.
    formula : str
        One of `data_prep.body.SURFACE_M2`, with sources in `data_prep.body.surface_cm2`.

    Raises
    ------
    AutopetError
        As `suv_bw_factor`; PatientSize (0010,1020) is missing or impossible.
    """
    by_weight = suv_bw_factor(series, mode)
    reader = Reader(_first_by_position(series))
    ratio = read_surface_cm2(reader, formula) / (1000.0 * read_weight_kg(reader))
    return _normalised(by_weight, reader, ratio, kind="bsa", symbol=f"surface ({formula}) / (1000 * PatientWeight)")


def _normalised(by_weight: SuvFactor, reader: Reader, ratio: float, *, kind: str, symbol: str) -> SuvFactor:
    return replace(
        by_weight,
        factor=by_weight.factor * ratio,
        kind=kind,
        suv_units=SUV_UNITS[kind],
        formula=f"{by_weight.formula} * {symbol}",
        inputs={**by_weight.inputs, **reader.inputs},
        warnings=_once((*by_weight.warnings, *reader.warnings)),
        slice_factors=tuple(factor * ratio for factor in by_weight.slice_factors),
    )


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
        kind="bw",
        suv_units=SUV_UNITS["bw"],
        mode=mode,
        units=units,
        decay_reference=decay_reference,
        formula=formula,
        inputs=dict(reader.inputs),
        warnings=_once(reader.warnings),
        slice_factors=tuple(float(factor) for factor in factors),
    )


def _once(warnings: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warnings))


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
    """GML and CM2ML: voxels are SUV already; which one says SUVType (0054,1006), else body weight and surface."""
    units = reader.text("Units")
    kind = reader.text("SUVType") or ("BSA" if units == "CM2ML" else "BW")
    known = ("BSA",) if units == "CM2ML" else ("BW", *LEAN_TYPES, "IBW")
    if kind not in known:
        raise AutopetError(
            f"{tag_name('SUVType')} is {kind}, expected one of {', '.join(known)} with {tag_name('Units')} {units}; "
            "choose another PET series"
        )
    factor, formula = (1.0, "1 (SUV)") if kind == "BW" else _to_weight(reader, kind, units)
    return _result(
        reader,
        [factor] * len(series),
        mode="qiba",
        units=units,
        decay_reference="set by the scanner",
        formula=formula,
    )


def _to_weight(reader: Reader, kind: str, units: str) -> tuple[float, str]:
    """From SUV of another SUVType (C.8.9.1) to SUV by weight: dose and decay are in both, only the size differs."""
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
        f"voxels are SUV of {tag_name('SUVType')} {kind} ({tag_name('Units')} {units}): turned into SUV by weight, "
        f"times {ratio:.6g} (PatientWeight / {size})"
    )
    return ratio, f"PatientWeight / ({size})"


UNIT_RULES: dict[str, Callable[[Reader, Sequence[Dataset]], SuvFactor]] = {
    "BQML": _from_activity,
    "CNTS": _from_counts,
    "GML": _from_suv,
    "CM2ML": _from_suv,
}


def _decayed(reader: Reader, series: Sequence[Dataset], *, units: str, to_activity: float, symbol: str) -> SuvFactor:
    """Weight over dose, decayed to the moment that DecayCorrection (0054,1102) says the voxels are corrected to."""
    weight_g = 1000.0 * read_weight_kg(reader)
    dose_bq, half_life_s = _dose_bq(reader), read_half_life_s(reader)
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


def _dose_bq(reader: Reader) -> float:
    dose_bq = reader.positive("RadionuclideTotalDose", "Bq", reader.injection)
    if dose_bq < SMALLEST_DOSE_BQ:
        raise AutopetError(
            f"{tag_name('RadionuclideTotalDose')} is {dose_bq:g}, expected Bq, not MBq; correct the PET headers"
        )
    low, high = USUAL_DOSE_BQ
    if not low <= dose_bq <= high:
        reader.warnings.append(
            f"{tag_name('RadionuclideTotalDose')} is {dose_bq:g} Bq, usual are {low:g} to {high:g} Bq: check its unit"
        )
    return dose_bq


# --- the challenge's equation ----------------------------------------------------------------------------------------


def _challenge(reader: Reader, series: Sequence[Dataset]) -> SuvFactor:
    weight_g, dose_bq, half_life_s = 1000.0 * read_weight_kg(reader), _dose_bq(reader), read_half_life_s(reader)
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
    factor = weight_g / (dose_bq * 0.5 ** (uptake_s / half_life_s))
    units = reader.text("Units")
    if units != "BQML":
        reader.warnings.append(
            f"{tag_name('Units')} is {units or 'missing'}, the challenge's equation takes it for BQML"
        )
    if BY_NAME[reader.inputs["nuclide"]].lasts_days:
        reader.warnings.append(
            f"the challenge's equation takes no dates: {reader.inputs['nuclide']} is taken as injected on the day of "
            "the scan; use the SUV mode qiba"
        )
    formula = (
        "1000 * PatientWeight / (RadionuclideTotalDose * 0.5 ** "
        "((AcquisitionTime - RadiopharmaceuticalStartTime) / RadionuclideHalfLife))"
    )
    reference = f"{reader.inputs['AcquisitionTime']} (AcquisitionTime of the first slice by position)"
    return _result(
        reader, [factor] * len(series), mode="challenge", units=units, decay_reference=reference, formula=formula
    )
