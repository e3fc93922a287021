"""What SUV is normalised by: weight, lean mass, ideal weight and surface of the body, from DICOM headers.

Section numbers are those of DICOM PS3.3; the formulas of ideal weight, of surface and of lean mass with the coefficient
120 are those that PS3.16 annex D gives for the SUV units 126404, 126403 and 126402.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from autopet.errors import AutopetError
from data_prep.attributes import Reader, tag_name

LARGEST_WEIGHT_KG = 700.0  # more is a weight in grams
USUAL_WEIGHT_KG = (20.0, 250.0)
HEIGHT_M = (0.3, 2.6)  # outside is a height in cm or mm, or in feet
SEXES = ("M", "F")


def read_weight_kg(reader: Reader) -> float:
    """PatientWeight (0010,1030); with a warning outside of `USUAL_WEIGHT_KG`.

    There is no fallback: every SUV is proportional to it. Children and phantoms weigh less than 20 kg, so that a small
    weight is no error.
    """
    found = reader.positive("PatientWeight", "kg")
    tag, (low, high) = tag_name("PatientWeight"), USUAL_WEIGHT_KG
    if found > LARGEST_WEIGHT_KG:
        raise AutopetError(f"{tag} is {found:g}, expected kg; correct the PET headers")
    if not low <= found <= high:
        reader.warnings.append(f"{tag} is {found:g} kg, usual are {low:g} to {high:g} kg: check it, SUV depends on it")
    return found


def read_height_m(reader: Reader) -> float:
    """PatientSize (0010,1020), which is in metres (C.7.2.2)."""
    found = reader.positive("PatientSize", "metres")
    low, high = HEIGHT_M
    if not low <= found <= high:
        raise AutopetError(
            f"{tag_name('PatientSize')} is {found:g}, expected metres from {low} to {high}; correct the PET headers"
        )
    return found


def read_sex(reader: Reader) -> str:
    """PatientSex (0010,0040) as M or F; the formulas know no other."""
    found = reader.text("PatientSex").upper()
    if found not in SEXES:
        raise AutopetError(
            f"{tag_name('PatientSex')} is {found or 'missing'}, expected M or F, which the formula needs; "
            "correct the PET headers or use SUV by body weight"
        )
    return found


def read_lean_mass_kg(reader: Reader, formula: str) -> float:
    """Lean mass of the header's patient, see `lean_mass_kg`; a warning where the formula is past its maximum."""
    weight_kg, height_m, sex = read_weight_kg(reader), read_height_m(reader), read_sex(reader)
    found = lean_mass_kg(weight_kg, height_m, sex, formula=formula)
    if falls_with_weight(weight_kg, height_m, sex, formula=formula):
        reader.warnings.append(
            f"{tag_name('PatientWeight')} {weight_kg:g} kg is so much for {tag_name('PatientSize')} {height_m:g} m "
            f"that the lean mass of {formula}, {found:.1f} kg, falls with weight: use janmahasatian"
        )
    reader.inputs["lean_mass_kg"] = f"{found:.3f}"
    return found


def read_ideal_weight_kg(reader: Reader) -> float:
    """Ideal weight of the header's patient, see `ideal_weight_kg`."""
    found = ideal_weight_kg(read_height_m(reader), read_sex(reader))
    reader.inputs["ideal_weight_kg"] = f"{found:.3f}"
    return found


def read_surface_cm2(reader: Reader, formula: str) -> float:
    """Body surface of the header's patient, see `surface_cm2`."""
    found = surface_cm2(read_weight_kg(reader), read_height_m(reader), formula=formula)
    reader.inputs["surface_cm2"] = f"{found:.1f}"
    return found


# --- formulas --------------------------------------------------------------------------------------------------------


def _janmahasatian_kg(weight_kg: float, height_m: float, sex: str) -> float:
    body_mass_index = weight_kg / height_m**2
    offset, slope = (6680.0, 216.0) if sex == "M" else (8780.0, 244.0)
    return 9270.0 * weight_kg / (offset + slope * body_mass_index)


def _james_kg(weight_kg: float, height_m: float, sex: str, *, male: float) -> float:
    linear, square = (1.10, male) if sex == "M" else (1.07, 148.0)
    return linear * weight_kg - square * (weight_kg / (100.0 * height_m)) ** 2


LEAN_MASS_KG: dict[str, Callable[[float, float, str], float]] = {
    "janmahasatian": _janmahasatian_kg,
    "james128": lambda weight_kg, height_m, sex: _james_kg(weight_kg, height_m, sex, male=128.0),
    "james120": lambda weight_kg, height_m, sex: _james_kg(weight_kg, height_m, sex, male=120.0),
}
SURFACE_M2: dict[str, Callable[[float, float], float]] = {
    "dubois": lambda weight_kg, height_m: 0.007184 * weight_kg**0.425 * (100.0 * height_m) ** 0.725,
    "mosteller": lambda weight_kg, height_m: math.sqrt(weight_kg * 100.0 * height_m / 3600.0),
}


def lean_mass_kg(weight_kg: float, height_m: float, sex: str, *, formula: str = "janmahasatian") -> float:
    """Lean mass of the body.

    Parameters
    ----------
    weight_kg, height_m : float
        Above 0.
    sex : str
        `M` or `F`.
    formula : str
        `janmahasatian`: 9270 W / (6680 + 216 BMI) of men, 9270 W / (8780 + 244 BMI) of women (Janmahasatian et al.,
        Clin Pharmacokinet 44:1051, 2005). `james128`: 1.10 W - 128 (W/H)^2 of men, 1.07 W - 148 (W/H)^2 of women, H in
        cm (James, Research on Obesity, HMSO 1976). `james120`: the same with 120 for 128, as DICOM's SUVType LBM has it
        (PS3.16 annex D, 126402; printed so by Sugawara et al., Radiology 213:521, 1999).

    Raises
    ------
    AutopetError
        The formula is unknown, or its lean mass is not above 0 (James at a body mass index above 72).
    """
    rule = _known(formula, LEAN_MASS_KG, "lean mass")
    found = rule(weight_kg, height_m, sex)
    return _above_zero(found, f"lean mass by {formula}", weight_kg, height_m)


def ideal_weight_kg(height_m: float, sex: str) -> float:
    """Ideal weight: 48 + 1.06 (H - 152) of men, 45.5 + 0.91 (H - 152) of women, H in cm.

    Sugawara et al., Radiology 213:521, 1999; PS3.16 annex D, 126404. Not above 0 (below 1.07 m) is an `AutopetError`.
    """
    start, slope = (48.0, 1.06) if sex == "M" else (45.5, 0.91)
    found = start + slope * (100.0 * height_m - 152.0)
    return _above_zero(found, "ideal weight", None, height_m)


def surface_cm2(weight_kg: float, height_m: float, *, formula: str = "dubois") -> float:
    """Surface of the body in cm2, so that SUV by surface is in DICOM's CM2ML.

    Parameters
    ----------
    weight_kg, height_m : float
        Above 0.
    formula : str
        `dubois`: 0.007184 W^0.425 H^0.725 m2, H in cm (Du Bois and Du Bois, Arch Intern Med 17:863, 1916; PS3.16
        annex D, 126403). `mosteller`: sqrt(W H / 3600) m2 (Mosteller, N Engl J Med 317:1098, 1987).

    Raises
    ------
    AutopetError
        The formula is unknown.
    """
    return 1e4 * _known(formula, SURFACE_M2, "body surface")(weight_kg, height_m)


def falls_with_weight(weight_kg: float, height_m: float, sex: str, *, formula: str) -> bool:
    """Whether a formula of James is past its maximum, where more weight gives less lean mass.

    d(a W - b (W/H)^2)/dW = 0 at a body mass index of 10^4 a / (2 b): 43 for men (128), 36 for women.
    """
    if not formula.startswith("james"):
        return False
    rule = LEAN_MASS_KG[formula]
    return rule(1.001 * weight_kg, height_m, sex) < rule(weight_kg, height_m, sex)


def _known(formula: str, rules: dict[str, Callable], what: str) -> Callable:
    if formula not in rules:
        raise AutopetError(f"unknown formula of {what} {formula!r}; use one of {', '.join(rules)}")
    return rules[formula]


def _above_zero(found: float, what: str, weight_kg: float | None, height_m: float) -> float:
    if found <= 0:
        weight = "" if weight_kg is None else f"{tag_name('PatientWeight')} {weight_kg:g} kg and "
        raise AutopetError(
            f"{what} is {found:.1f} kg for {weight}{tag_name('PatientSize')} {height_m:g} m, expected above 0; "
            "correct the PET headers or use another formula"
        )
    return found
