from __future__ import annotations

import io
import time

import numpy as np
import pydicom
import pytest
from dicom_maker import altered, pet_slices

from autopet.errors import AutopetError
from data_prep.agreement import check_agreement
from data_prep.attributes import alike
from data_prep.suv import MODES, suv_bsa, suv_bw_factor, suv_lbm

INJECTED = ("Radionuclide", "Radiopharmaceutical")


def _differing(keyword: str, value: object, count: int = 3) -> list[pydicom.Dataset]:
    headers = altered(PatientSize=1.75, PatientSex="M")
    for header in headers[6 - count :]:
        item = header.RadiopharmaceuticalInformationSequence[0] if keyword.startswith(INJECTED) else header
        setattr(item, keyword, value)
    return headers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("Units", "GML", r"Units \(0054,1001\) differs over the slices: BQML and GML"),
        ("SUVType", "LBM", r"SUVType \(0054,1006\) differs over the slices: missing and LBM"),
        ("DecayCorrection", "ADMIN", r"DecayCorrection \(0054,1102\) differs over the slices: START and ADMIN"),
        ("PatientWeight", 90, r"PatientWeight \(0010,1030\) differs over the slices: 70.* and 90"),
        ("PatientWeight", None, r"PatientWeight \(0010,1030\) differs over the slices: 70.* and missing"),
        ("RadionuclideTotalDose", 300e6, r"RadionuclideTotalDose \(0018,1074\) differs .*: 350000000.0 and 300000000"),
        ("RadionuclideHalfLife", 4062.6, r"RadionuclideHalfLife \(0018,1075\) differs .*: 6586.2 and 4062.6"),
        ("RadiopharmaceuticalStartTime", "082013.80", r"\(0018,1072\) differs .*: 081013.80 and 082013.80"),
        ("RadiopharmaceuticalStartDateTime", "20200102081013", r"\(0018,1078\) differs .*: missing and 20200102081013"),
    ],
)
def test_what_decides_the_suv_is_one_value(mode, keyword, value, message):
    """In one slice or half of them, in any order."""
    for count in (1, 3):
        headers = _differing(keyword, value, count)
        with pytest.raises(AutopetError, match=message):
            suv_bw_factor(headers, mode)
    with pytest.raises(AutopetError, match=keyword):
        suv_bw_factor(headers[::-1], mode)


def test_an_injection_that_only_some_headers_have():
    headers = altered()
    del headers[2].RadiopharmaceuticalInformationSequence
    with pytest.raises(AutopetError, match=r"RadiopharmaceuticalInformationSequence \(0054,0016\) is missing"):
        suv_bw_factor(headers)


def test_height_and_sex_matter_to_what_uses_them():
    taller, women = _differing("PatientSize", 1.65), _differing("PatientSex", "F")
    assert suv_bw_factor(taller).factor == suv_bw_factor(women).factor == pytest.approx(4e-4)
    assert suv_bsa(women).kind == "bsa"
    for headers, keyword, rules in ((taller, "PatientSize", (suv_lbm, suv_bsa)), (women, "PatientSex", (suv_lbm,))):
        for rule in rules:
            with pytest.raises(AutopetError, match=rf"{keyword} \([0-9,]+\) differs over the slices"):
                rule(headers)
    for header in taller:
        header.Units, header.SUVType = "GML", "LBM"
    with pytest.raises(AutopetError, match="PatientSize"):
        suv_bw_factor(taller)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientWeight", "70.00"), ("RadionuclideHalfLife", "6586.20019531250"), ("RadionuclideTotalDose", "3.5E8"),
        ("RadiopharmaceuticalStartTime", "081013.800000"), ("Units", "BQML "), ("Radiopharmaceutical", "FDG"),
        ("SUVType", ""),
    ],
)  # fmt: skip
def test_other_spellings_are_no_other_values(keyword, value):
    assert suv_bw_factor(_differing(keyword, value)).warnings == ()


def test_headers_written_alike():
    headers = altered()
    headers[1].PatientWeight, headers[4].PatientWeight = 80, 80
    headers[2].Units = None
    assert alike(headers, ("PatientWeight",)) == [[0, 2, 3, 5], [1, 4]]
    assert alike(headers, ("PatientWeight", "Units")) == [[0, 3, 5], [1, 4], [2]]
    assert alike(headers, ("RadiopharmaceuticalInformationSequence",)) == [[0, 1, 2, 3, 4, 5]]
    headers[5].RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose = 1e6
    assert alike(headers, ("RadiopharmaceuticalInformationSequence",)) == [[0, 1, 2, 3, 4], [5]]


def _read_again(headers: list[pydicom.Dataset]) -> list[pydicom.Dataset]:
    found = []
    for header in headers:
        file = io.BytesIO()
        header.save_as(file, enforce_file_format=True)
        file.seek(0)
        found.append(pydicom.dcmread(file))
    return found


def test_files_as_read():
    """Attributes of files are bytes until asked for."""
    assert suv_bw_factor(_read_again(pet_slices())).factor == pytest.approx(4e-4, rel=1e-12)
    for keyword, value in (("PatientWeight", 90), ("RadionuclideTotalDose", 300e6)):
        headers = _read_again(_differing(keyword, value))
        with pytest.raises(AutopetError, match=keyword):
            suv_bw_factor(headers)


def test_a_thousand_headers_take_no_time():
    """Some 10 ms on one core; the processor time does not count what else the machine does."""
    headers = _read_again(pet_slices(np.zeros((1000, 2, 2), int)))
    began = time.process_time()
    check_agreement(headers)
    assert time.process_time() - began < 0.1
