from __future__ import annotations

import pytest
from dicom_maker import altered, pet_slices
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from autopet.errors import AutopetError
from data_prep.attributes import Reader
from data_prep.nuclides import BY_NAME, HALF_LIFE_TOLERANCE, NUCLIDES, nuclide_of, nuclides_in, read_half_life_s
from data_prep.suv import suv_bw_factor


@pytest.mark.parametrize(
    ("half_life_s", "name"),
    [
        (6586.2, "18F"), (6588, "18F"), (6586.2001953125, "18F"), (6600, "18F"), (6594, "18F"), (6583.8, "18F"),
        (4057.74, "68Ga"), (4080, "68Ga"), (4098, "68Ga"), (1220, "11C"), (1200, "11C"), (598, "13N"), (600, "13N"),
        (120, "15O"), (122.24, "15O"), (75, "82Rb"), (76.38, "82Rb"), (45720, "64Cu"), (282240, "89Zr"),
        (282528, "89Zr"), (360806.4, "124I"), (361152, "124I"), (14292, "44Sc"), (14551, "44Sc"), (582, "62Cu"),
        (58700, "76Br"), (230400, "90Y"), (23760000, "68Ge"), (82080000, "22Na"),
    ],
)  # fmt: skip
def test_half_lives_seen_in_headers(half_life_s, name):
    assert nuclide_of(half_life_s).name == name


@pytest.mark.parametrize("half_life_s", [6000, 7200, 109.77, 109.8, 68, 67.71, 12.7, 78.4, 1.83, 6586200, 100, 1e9])
def test_half_lives_of_nothing(half_life_s):
    assert nuclide_of(half_life_s) is None


def test_the_table_is_that_of_dicom():
    """Every nuclide of PS3.16 CID 4020 is in the table under its name, and each finds itself within the tolerance."""
    named = {nuclides_in(code.meaning)[0].name for code in codes.cid4020.concepts.values()}
    assert {*BY_NAME} - named == {"55Co", "120I"}
    assert named <= {*BY_NAME}
    for nuclide in NUCLIDES:
        assert nuclide_of(nuclide.half_life_s) == nuclide
        for edge in (1 - HALF_LIFE_TOLERANCE, 1 + HALF_LIFE_TOLERANCE):
            assert nuclide_of(nuclide.half_life_s * (1 + 0.999 * (edge - 1))) is not None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("F-18", ["18F"]), ("18F-FDG", ["18F"]), ("[18F]PSMA-1007", ["18F"]), ("Fluorine F^18^", ["18F"]),
        ("^18^Fluorine", ["18F"]), ("68Ga-PSMA-11", ["68Ga"]), ("GA68 DOTATOC", ["68Ga"]), ("Gallium-68", ["68Ga"]),
        ("Tc-94m", ["94mTc"]), ("52gMn", ["52Mn"]), ("52mMn", ["52mMn"]), ("Zr89-trastuzumab", ["89Zr"]),
        ("FDG -- fluorodeoxyglucose", []), ("PSMA-11", []), ("given as 72 MBq", []), ("Tc-99m", []), ("", []),
    ],
)  # fmt: skip
def test_names_in_text(text, names):
    assert [nuclide.name for nuclide in nuclides_in(text)] == names


def test_lasting_for_days():
    lasting = {nuclide.name for nuclide in NUCLIDES if nuclide.lasts_days}
    assert {"64Cu", "89Zr", "124I", "86Y", "52Mn", "76Br"} < lasting
    assert not lasting & {"18F", "68Ga", "11C", "44Sc", "61Cu", "45Ti"}


def _coded(meaning: str, value: str = "", scheme: str = "SRT") -> Dataset:
    code = Dataset()
    code.CodeMeaning, code.CodeValue, code.CodingSchemeDesignator = meaning, value, scheme
    return code


@pytest.mark.parametrize("mode", ["qiba", "challenge"])
@pytest.mark.parametrize(("half_life_s", "hint"), [(6000, ""), (109.77, "minutes of 18F"), (1.129, "hours of 68Ga")])
def test_a_half_life_of_nothing_names_the_tag(mode, half_life_s, hint):
    with pytest.raises(
        AutopetError, match=r"RadionuclideHalfLife \(0018,1075\) is .* expected .* 18F 6586.2 s"
    ) as error:
        suv_bw_factor(altered(RadionuclideHalfLife=half_life_s), mode)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (_coded("^68^Gallium"), None),
        (_coded("nuclide", "C-131A3", "SRT"), None),
        (_coded("nuclide", "35337001", "SCT"), None),
        (None, "68Ga-PSMA-11"),
    ],
)
def test_a_nuclide_that_disagrees_with_the_half_life(code, text):
    """The half-life of the header is used: the factor stays that of 18F."""
    headers = pet_slices()
    for header in headers:
        item = header.RadiopharmaceuticalInformationSequence[0]
        if code:
            item.RadionuclideCodeSequence = [code]
        if text:
            item.Radiopharmaceutical = text
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    (warning,) = found.warnings
    assert "names 68Ga (half-life 4062.6 s)" in warning
    assert "RadionuclideHalfLife (0018,1075) is 6586.2 s, that of 18F" in warning
    assert ("RadionuclideCodeSequence (0054,0300)" if code else "Radiopharmaceutical (0018,0031)") in warning


def test_a_nuclide_that_agrees():
    """90Nb (52560 s) and 86Y (53064 s) are one per cent apart: the name decides, and nothing is wrong."""
    (header, *_) = altered(RadionuclideHalfLife=52800)
    header.RadiopharmaceuticalInformationSequence[0].RadionuclideCodeSequence = [_coded("^90^Niobium")]
    for name in ("90Nb", "86Y"):
        header.RadiopharmaceuticalInformationSequence[0].Radiopharmaceutical = name
        reader = Reader(header)
        assert read_half_life_s(reader) == 52800
        assert reader.warnings == []
    assert reader.inputs["nuclide"] == "90Nb"
