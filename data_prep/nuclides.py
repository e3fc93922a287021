"""The radionuclides of PET and their half-lives, and which of them a header means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, tag_name, values

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
# Headers hold rounded (15O: 120 s) and outdated values (82Rb: 76.4 s; 44Sc: 4.04 h), all within 2 % of the table's. One
# hour after an injection of 18F, 2 % of the half-life are 0.8 % of the SUV. What is further off is another nuclide.
HALF_LIFE_TOLERANCE = 0.02
OTHER_UNITS_S = {"milliseconds": 0.001, "minutes": MINUTE_S, "hours": HOUR_S, "days": DAY_S}


@dataclass(frozen=True)
class Nuclide:
    """A radionuclide, mass number first (`18F`, `94mTc`), with its physical half-life."""

    name: str
    half_life_s: float

    @property
    def lasts_days(self) -> bool:
        """Whether an eighth is left after a day, so that imaging on a later day than the injection is usual."""
        return 3 * self.half_life_s >= DAY_S


# Evaluated half-lives: NuDat 3, National Nuclear Data Center, Brookhaven (ENSDF); 44Sc and 66Ga as adopted by the IAEA
# for diagnostic positron emitters (Tarkanyi et al., J Radioanal Nucl Chem 319:533, 2019). The nuclides are those of
# DICOM PS3.16 CID 4020 (PET Radionuclide), with 55Co and 120I; 22Na and 68Ge are those of phantoms.
NUCLIDES = tuple(
    Nuclide(name, value * unit_s)
    for name, value, unit_s in (
        ("11C", 20.364, MINUTE_S), ("13N", 9.965, MINUTE_S), ("14O", 70.62, 1.0), ("15O", 122.24, 1.0),
        ("18F", 109.77, MINUTE_S), ("22Na", 950.3, DAY_S), ("38K", 7.636, MINUTE_S), ("43Sc", 3.891, HOUR_S),
        ("44Sc", 3.97, HOUR_S), ("45Ti", 184.8, MINUTE_S), ("51Mn", 46.2, MINUTE_S), ("52Mn", 5.591, DAY_S),
        ("52mMn", 21.1, MINUTE_S), ("52Fe", 8.275, HOUR_S), ("55Co", 17.53, HOUR_S), ("60Cu", 23.7, MINUTE_S),
        ("61Cu", 3.339, HOUR_S), ("62Cu", 9.67, MINUTE_S), ("62Zn", 9.193, HOUR_S), ("64Cu", 12.701, HOUR_S),
        ("66Ga", 9.49, HOUR_S), ("68Ga", 67.71, MINUTE_S), ("68Ge", 270.93, DAY_S), ("70As", 52.6, MINUTE_S),
        ("72As", 26.0, HOUR_S), ("73Se", 7.15, HOUR_S), ("75Br", 96.7, MINUTE_S), ("76Br", 16.2, HOUR_S),
        ("77Br", 57.04, HOUR_S), ("82Rb", 1.2575, MINUTE_S), ("86Y", 14.74, HOUR_S), ("89Zr", 78.41, HOUR_S),
        ("90Nb", 14.6, HOUR_S), ("90Y", 64.05, HOUR_S), ("94mTc", 52.0, MINUTE_S), ("120I", 81.6, MINUTE_S),
        ("124I", 4.176, DAY_S), ("152Tb", 17.5, HOUR_S),
    )
)  # fmt: skip
BY_NAME = {nuclide.name: nuclide for nuclide in NUCLIDES}
ELEMENTS = {
    "C": "carbon", "N": "nitrogen", "O": "oxygen", "F": "fluorine", "Na": "sodium", "K": "potassium",
    "Sc": "scandium", "Ti": "titanium", "Mn": "manganese", "Fe": "iron", "Co": "cobalt", "Cu": "copper", "Zn": "zinc",
    "Ga": "gallium", "Ge": "germanium", "As": "arsenic", "Se": "selenium", "Br": "bromine", "Rb": "rubidium",
    "Y": "yttrium", "Zr": "zirconium", "Nb": "niobium", "Tc": "technetium", "I": "iodine", "Tb": "terbium",
}  # fmt: skip
SYMBOLS = {
    spelt: symbol
    for symbol, name in ELEMENTS.items()
    for spelt in (symbol, symbol.upper(), name, name.capitalize(), name.upper())  # not `as`, which is an English word
}
_ANY = "|".join(sorted(SYMBOLS, key=len, reverse=True))
_MASS_FIRST = re.compile(rf"(?<![\w.])(?P<mass>\d{{1,3}})(?P<state>[mg]?)[ -]?(?P<element>{_ANY})(?![A-Za-z])")
_ELEMENT_FIRST = re.compile(rf"(?<![A-Za-z])(?P<element>{_ANY})[ -]?(?P<mass>\d{{1,3}})(?P<state>[mg]?)(?!\d)")


def fits(half_life_s: float, nuclide: Nuclide) -> bool:
    """Whether a half-life is that of the nuclide, within `HALF_LIFE_TOLERANCE`."""
    return abs(half_life_s / nuclide.half_life_s - 1.0) <= HALF_LIFE_TOLERANCE


def nearest(half_life_s: float) -> Nuclide:
    """The nuclide whose half-life has the ratio nearest to one."""
    return min(NUCLIDES, key=lambda nuclide: abs(math.log(half_life_s / nuclide.half_life_s)))


def nuclide_of(half_life_s: float) -> Nuclide | None:
    """The nuclide of a half-life in seconds, None when it fits none.

    Examples
    --------
    >>> nuclide_of(6588).name
    '18F'
    """
    found = nearest(half_life_s)
    return found if fits(half_life_s, found) else None


def nuclides_in(text: str) -> tuple[Nuclide, ...]:
    """The nuclides of `NUCLIDES` that a text names, such as `68Ga-PSMA-11`, `F-18 FDG` or `^11^Carbon`.

    Examples
    --------
    >>> [nuclide.name for nuclide in nuclides_in("[18F]PSMA-1007")]
    ['18F']
    """
    plain = re.sub(r"[\[\](){}]", " ", text.replace("^", ""))
    found: dict[str, Nuclide] = {}
    for match in (*_MASS_FIRST.finditer(plain), *_ELEMENT_FIRST.finditer(plain)):
        mass, state, symbol = match["mass"], match["state"], SYMBOLS[match["element"]]
        metastable = mass + ("m" if state == "m" else "") + symbol
        name = metastable if metastable in BY_NAME else mass + symbol
        if name in BY_NAME:
            found[name] = BY_NAME[name]
    return tuple(found.values())


def read_half_life_s(reader: Reader) -> float:
    """RadionuclideHalfLife of a PET header; a warning when the header names another nuclide beside it.

    Raises
    ------
    AutopetError
        It is missing, or no PET nuclide has it.
    """
    tag = tag_name("RadionuclideHalfLife")
    half_life_s = reader.positive("RadionuclideHalfLife", "seconds", reader.injection)
    nuclide = nuclide_of(half_life_s)
    if nuclide is None:
        raise AutopetError(_no_nuclide(tag, half_life_s))
    agreeing = []
    for place, text in _names(reader.injection):
        for named in nuclides_in(text):
            if fits(half_life_s, named):
                agreeing.append(named)
            else:
                reader.warnings.append(
                    f"{place} {text!r} names {named.name} (half-life {named.half_life_s:.6g} s), but {tag} is "
                    f"{half_life_s:g} s, that of {nuclide.name}: the half-life of the header is used, check the nuclide"
                )
    reader.inputs["nuclide"] = (agreeing[0] if agreeing else nuclide).name
    return half_life_s


def _no_nuclide(tag: str, half_life_s: float) -> str:
    close = nearest(half_life_s)
    units = [(unit, nuclide_of(half_life_s * size_s)) for unit, size_s in OTHER_UNITS_S.items()]
    hints = [f"{unit} of {found.name}" for unit, found in units if found]
    return (
        f"{tag} is {half_life_s:g} s, expected that of a PET nuclide within {100 * HALF_LIFE_TOLERANCE:g} %, such as "
        f"18F 6586.2 s or 68Ga 4062.6 s (the nearest is {close.name} with {close.half_life_s:.6g} s"
        + (f"; are these {' or '.join(hints)}?" if hints else "")
        + "); correct the PET headers"
    )


def _names(injection: Dataset) -> Iterator[tuple[str, str]]:
    """Where and how the radiopharmaceutical item (C.8.9.2) names its nuclide."""
    for keyword in ("RadionuclideCodeSequence", "RadiopharmaceuticalCodeSequence"):
        for code in injection.get(keyword) or ():
            meaning = " ".join(values(code, "CodeMeaning"))
            if not nuclides_in(meaning) and keyword == "RadionuclideCodeSequence":
                meaning = _meaning_of(code) or meaning
            yield tag_name(keyword), meaning
    for text in values(injection, "Radiopharmaceutical"):
        yield tag_name("Radiopharmaceutical"), text


def _meaning_of(code: Dataset) -> str:
    """What PS3.16 CID 4020 calls a code of SNOMED (new or old form), empty when it is not in there."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    value, scheme = (" ".join(values(code, keyword)).strip() for keyword in ("CodeValue", "CodingSchemeDesignator"))
    asked = Code(value, scheme, "")
    return next((known.meaning for known in codes.cid4020.concepts.values() if known == asked), "")
