"""The factor from PET voxels to standardised uptake values, from DICOM headers.

SUV = activity [Bq/ml] * size / dose [Bq], with dose and activity decayed to the same moment. The size is the weight
(SUVbw), the lean mass (SUVlbm) or the surface (SUVbsa) of the body. Vendors differ in which moment that is and in which
attribute says so: the QIBA profile's vendor-neutral rules tell them apart (QIBA FDG-PET/CT profile, appendix G;
attributes after DICOM PS3.3 C.8.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.agreement import check_agreement
from data_prep.attributes import Reader, orientation, position, tag_name
from data_prep.body import read_lean_mass_kg, read_surface_cm2, read_weight_kg
from data_prep.nuclides import BY_NAME, read_half_life_s
from data_prep.suv_units import UNIT_RULES, Factors, read_dose_bq
from data_prep.times import time_of_day

MODES = ("qiba", "challenge")
KINDS = ("bw", "lbm", "bsa")
SUV_UNITS = {"bw": "g/ml", "lbm": "g/ml", "bsa": "cm2/ml"}  # DICOM's GML, GML and CM2ML


@dataclass(frozen=True)
class SuvFactor:
    """How to make SUV from the rescaled voxels of a PET series.

    `factor` is in `suv_units` per unit of the voxels (`units`), e.g. g/ml per Bq/ml. `slice_factors` has one per
    header, in the order given; they differ only when the voxels are not decay-corrected, or counts with a factor for
    each slice. `kind` says by what the uptake is normalised (`KINDS`). `inputs` are the values used, by keyword.
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
        A value is missing or impossible, headers contradict each other, or no PET nuclide has the half-life; names
        the tag.
    """
    if mode not in MODES:
        raise AutopetError(f"unknown SUV mode {mode!r}; use one of {', '.join(MODES)}")
    if not series:
        raise AutopetError("an SUV factor needs the headers of the PET slices, found none")
    check_agreement(series)
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
    return _result(reader, rule(reader, series), mode=mode, units=units)


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
    check_agreement(series, ("PatientSize", "PatientSex"))
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
    check_agreement(series, ("PatientSize",))
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


def _result(reader: Reader, factors: Factors, *, mode: str, units: str) -> SuvFactor:
    return SuvFactor(
        factor=float(factors.per_slice[0]),
        kind="bw",
        suv_units=SUV_UNITS["bw"],
        mode=mode,
        units=units,
        decay_reference=factors.decay_reference,
        formula=factors.formula,
        inputs=dict(reader.inputs),
        warnings=_once(reader.warnings),
        slice_factors=tuple(float(factor) for factor in factors.per_slice),
    )


def _once(warnings: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warnings))


# --- the challenge's equation ----------------------------------------------------------------------------------------


def _challenge(reader: Reader, series: Sequence[Dataset]) -> SuvFactor:
    weight_g, dose_bq, half_life_s = 1000.0 * read_weight_kg(reader), read_dose_bq(reader), read_half_life_s(reader)
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
    return _result(reader, Factors([factor] * len(series), reference, formula), mode="challenge", units=units)
