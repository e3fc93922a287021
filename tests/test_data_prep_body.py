from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader
from data_prep.body import (
    LEAN_MASS_KG,
    falls_with_weight,
    ideal_weight_kg,
    lean_mass_kg,
    read_height_m,
    read_sex,
    read_surface_cm2,
    read_weight_kg,
    surface_cm2,
)


def reader_of(**attributes: object) -> Reader:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return Reader(header)


@pytest.mark.parametrize(
    ("sex", "weight_kg", "height_m", "formula", "expected_kg"),
    [
        # BMI 80 / 3.24 = 24.6914: 741600 / (6680 + 5333.33)
        ("M", 80, 1.80, "janmahasatian", 61.7314),
        # (80 / 180)^2 = 0.197531: 88 - 25.28395, 88 - 23.70370
        ("M", 80, 1.80, "james128", 62.71605),
        ("M", 80, 1.80, "james120", 64.29630),
        # BMI 60 / 2.7225 = 22.03857: 556200 / (8780 + 5377.41)
        ("F", 60, 1.65, "janmahasatian", 39.28685),
        # (60 / 165)^2 = 0.132231: 64.2 - 19.57025
        ("F", 60, 1.65, "james128", 44.62975),
        ("F", 60, 1.65, "james120", 44.62975),
    ],
)
def test_lean_mass(sex, weight_kg, height_m, formula, expected_kg):
    assert lean_mass_kg(weight_kg, height_m, sex, formula=formula) == pytest.approx(expected_kg, abs=1e-4)


def test_ideal_weight():
    assert ideal_weight_kg(1.80, "M") == pytest.approx(77.68)  # 48 + 1.06 * 28
    assert ideal_weight_kg(1.65, "F") == pytest.approx(57.33)  # 45.5 + 0.91 * 13
    with pytest.raises(AutopetError, match=r"ideal weight is .* PatientSize \(0010,1020\) 1 m, expected above 0"):
        ideal_weight_kg(1.00, "M")


def test_surface():
    """ln 70 * 0.425 = 1.80561 and ln 170 * 0.725 = 3.72345: 6.08368 * 41.4072 * 0.007184 = 1.80971 m2."""
    assert surface_cm2(70, 1.70) == pytest.approx(18097.1, abs=0.5)
    assert surface_cm2(70, 1.70, formula="mosteller") == pytest.approx(18181.2, abs=0.1)  # (11900 / 3600)^0.5


@given(weight_kg=st.floats(40, 150), height_m=st.floats(1.4, 2.1), sex=st.sampled_from("MF"))
@settings(max_examples=60, deadline=None)
def test_lean_mass_by_janmahasatian_rises_with_weight(weight_kg, height_m, sex):
    assert lean_mass_kg(1.01 * weight_kg, height_m, sex) > lean_mass_kg(weight_kg, height_m, sex) > 0
    assert not falls_with_weight(weight_kg, height_m, sex, formula="janmahasatian")


def test_james_has_a_maximum():
    """At a body mass index of 1.07e4 / (2 * 148) = 36.1 for women and 1.1e4 / (2 * 128) = 43.0 for men."""
    for sex, limit in (("F", 36.1486), ("M", 42.9688)):
        weight_kg = limit * 1.7**2
        assert not falls_with_weight(0.99 * weight_kg, 1.7, sex, formula="james128")
        assert falls_with_weight(1.01 * weight_kg, 1.7, sex, formula="james128")
    with pytest.raises(AutopetError, match=r"lean mass by james128 is -.* kg for PatientWeight \(0010,1030\) 200 kg"):
        lean_mass_kg(200, 1.5, "M", formula="james128")


def test_unknown_formulas():
    with pytest.raises(AutopetError, match="unknown formula of lean mass 'boer'; use one of janmahasatian, james128"):
        lean_mass_kg(70, 1.7, "M", formula="boer")
    with pytest.raises(AutopetError, match="unknown formula of body surface 'haycock'; use one of dubois, mosteller"):
        surface_cm2(70, 1.7, formula="haycock")
    assert set(LEAN_MASS_KG) == {"janmahasatian", "james128", "james120"}


@pytest.mark.parametrize(("weight_kg", "warned"), [(20, 0), (250, 0), (19.9, 1), (250.1, 1), (3.2, 1), (700, 1)])
def test_unusual_weights_are_told(weight_kg, warned):
    reader = reader_of(PatientWeight=weight_kg)
    assert read_weight_kg(reader) == weight_kg
    assert len(reader.warnings) == warned
    assert all("PatientWeight (0010,1030)" in warning for warning in reader.warnings)


@pytest.mark.parametrize("height", [170, 1700, 5.6, 0.17, 0, None])
def test_height_must_be_in_metres(height):
    with pytest.raises(AutopetError, match=r"PatientSize \(0010,1020\) is .* expected metres"):
        read_height_m(reader_of(PatientSize=height))


@pytest.mark.parametrize("sex", ["O", "", None, "X"])
def test_sex_must_be_known(sex):
    with pytest.raises(AutopetError, match=r"PatientSex \(0010,0040\) is .* expected M or F"):
        read_sex(reader_of(PatientSex=sex))
    assert read_sex(reader_of(PatientSex="F ")) == "F"


def test_what_was_used_is_recorded():
    reader = reader_of(PatientSize="1.70", PatientWeight="70")
    read_surface_cm2(reader, "dubois")
    assert reader.inputs["PatientSize"] == "1.70"
    assert float(reader.inputs["surface_cm2"]) == pytest.approx(18097.1, abs=0.5)
