"""Where the two standard attributes of the injection's time contradict each other. 4e-4 is one half-life of uptake."""

from __future__ import annotations

import pytest
from dicom_maker import altered
from hypothesis import given, settings
from hypothesis import strategies as st

from autopet.errors import AutopetError
from data_prep.suv import suv_bw_factor

DATE_TIME, TIME = "RadiopharmaceuticalStartDateTime (0018,1078)", "RadiopharmaceuticalStartTime (0018,1072)"


@pytest.mark.parametrize("text", ["20200102000000.00", "20200102000000", "2020010200", "20200102000000.00+0100"])
def test_a_date_time_without_a_time_of_day(text):
    """Midnight would be ten hours of uptake, 22 times the SUV."""
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime=text))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    (warning,) = found.warnings
    assert f"{DATE_TIME} {text}" in warning
    assert f"{TIME} 081013.80 differs from it, whose time of day is empty (midnight): {TIME} is used" in warning


@pytest.mark.parametrize("text", ["20200102071013.80", "20200102024013.8", "20200101231013.800"])
def test_a_date_time_of_another_zone_without_an_offset(text):
    """UTC, -0530 and UTC of a place at +0900."""
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime=text))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    (warning,) = found.warnings
    assert f"{DATE_TIME} {text}" in warning
    assert f"{TIME} 081013.80 differs from it by whole half hours, like another time zone: {TIME} is used" in warning


def test_any_other_difference_is_told():
    """08:23 and 08:10:13.80 are no time zones: the date-time is used, 97 minutes before 10:00."""
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102082300"))
    assert found.factor == pytest.approx(2e-4 * 2 ** (97 * 60 / 6586.2), rel=1e-12)
    (warning,) = found.warnings
    assert f"{DATE_TIME} 20200102082300, and {TIME} 081013.80 differs from it: {DATE_TIME} is used" in warning


@pytest.mark.parametrize("time", ["083000", "083007"])
def test_an_empty_time_of_day_is_not_used(time):
    """08:30 is whole half hours after midnight; a StartTime of 000000 is the one that is empty. 90 minutes."""
    headers = altered(RadiopharmaceuticalStartDateTime=f"20200102{time}", RadiopharmaceuticalStartTime="000000.00")
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(2e-4 * 2 ** ((5400 - int(time) % 100) / 6586.2), rel=1e-12)
    assert f"{DATE_TIME} is used" in found.warnings[0]


@pytest.mark.parametrize(
    ("text", "time"),
    [("20200102081013.80", "081013.8"), ("202001020810", "0810"), ("20200102081013.8", "08:10:13.80")],
)
def test_two_spellings_of_one_time_are_no_contradiction(text, time):
    assert (
        suv_bw_factor(altered(RadiopharmaceuticalStartDateTime=text, RadiopharmaceuticalStartTime=time)).warnings == ()
    )


@pytest.mark.parametrize("text", ["20200102", "20200102+0100"])
def test_a_date_alone_is_completed_by_the_time(text):
    """PS3.5 6.2 lets a DT end after any of its parts."""
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime=text))
    assert (found.factor, found.warnings) == (pytest.approx(4e-4, rel=1e-12), ())
    with pytest.raises(AutopetError, match=r"\(0018,1078\) is '20200102.*', a date without a time, and .* is missing"):
        suv_bw_factor(altered(RadiopharmaceuticalStartDateTime=text, RadiopharmaceuticalStartTime=None))


ZIRCONIUM = {"RadionuclideHalfLife": 282276, "RadionuclideTotalDose": 350e6}


@pytest.mark.parametrize("text", ["20191230", "20191230000000.00", "20191230071013.80"])
def test_the_date_is_kept_where_only_the_time_is_replaced(text):
    """89Zr, three days and 6586.2 s before the scan: a time of day alone would say 6586.2 s."""
    found = suv_bw_factor(altered(**ZIRCONIUM, RadiopharmaceuticalStartDateTime=text))
    assert found.factor == pytest.approx(2e-4 * 2 ** ((3 * 86400 + 6586.2) / 282276), rel=1e-12)


def test_a_date_that_an_anonymiser_has_shifted():
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20191120"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert f"{DATE_TIME} is dated 2019-11-20, the scan 2020-01-02: only its time is used" in found.warnings[0]
    with pytest.raises(AutopetError, match=r"RadiopharmaceuticalStartTime \(0018,1072\) 103000: 13 half-lives"):
        suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102", RadiopharmaceuticalStartTime="103000"))


@given(half_hours=st.integers(1, 16))
@settings(max_examples=16, deadline=None)
def test_law_a_shift_by_half_hours_changes_nothing(half_hours):
    minutes = 8 * 60 + 10 - 30 * half_hours
    text = f"20200102{minutes // 60:02d}{minutes % 60:02d}13.80"
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime=text))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert len(found.warnings) == 1
