"""Whether all headers of a PET series say the same about what its SUV depends on.

An SUV factor is one per series: two weights or doses mean that files of two series are mixed, or that some were edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, alike, tag_name, values

OF_SERIES = ("Units", "SUVType", "DecayCorrection", "PatientWeight")
OF_INJECTION = (
    "RadionuclideTotalDose",
    "RadionuclideHalfLife",
    "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)
SEQUENCE = "RadiopharmaceuticalInformationSequence"
NUMBER_TOLERANCE = 1e-6  # 6586.2 and 6586.2001953125 s are one half-life


def check_agreement(series: Sequence[Dataset], keywords: Iterable[str] = OF_SERIES) -> None:
    """Check that attributes have one value over all headers, and those of the injection, too.

    Raises
    ------
    AutopetError
        One has two values, or is missing in some headers only; names the tag and the values.
    """
    for keyword in keywords:
        _check(keyword, series)
    spellings = alike(series, (SEQUENCE,))
    if len(spellings) < 2:
        return
    items = [Reader(series[first]).injection for first, *_ in spellings]
    for keyword in OF_INJECTION:
        _check(keyword, items)


def _check(keyword: str, headers: Sequence[Dataset]) -> None:
    spellings = alike(headers, (keyword,))
    if len(spellings) < 2:
        return
    found: dict[object, str] = {}
    for first, *_ in spellings:
        text = "\\".join(values(headers[first], keyword)).strip()
        found.setdefault(_comparable(keyword, text), text or "missing")
    texts = list(found.values())
    numbers = [number for number in found if isinstance(number, float)]
    if len(numbers) == len(texts) and max(numbers) - min(numbers) <= NUMBER_TOLERANCE * max(numbers):
        return
    if len(texts) > 1:
        listed = f"{', '.join(texts[:-1])[:80]} and {texts[-1]}"
        raise AutopetError(
            f"{tag_name(keyword)} differs over the slices: {listed}, expected one value, since SUV depends on it; are "
            "files of two series mixed? Take them apart or correct the PET headers"
        )


def _comparable(keyword: str, text: str) -> object:
    """What two spellings of one value have in common: 70 and 70.0 kg, 081013.8 and 081013.800 h."""
    if keyword.endswith("Time"):
        return text.rstrip("0").rstrip(".") if "." in text else text
    try:
        return float(text)
    except ValueError:
        return text
