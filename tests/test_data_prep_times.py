from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.times import (
    acquisition_moment,
    is_past_midnight,
    moment_of,
    split_datetime,
    time_of_day,
    utc_offset,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 36000), ("1030", 37800), ("103005", 37805), ("10:30:05.25", 37805.25), ("103005.", 37805)],
)
def test_time_of_day(text, seconds):
    assert time_of_day(text, "T").total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "1", "2400", "1060", "noon"])
def test_impossible_time_of_day(text):
    with pytest.raises(AutopetError, match="T is .* expected HHMMSS.ffffff"):
        time_of_day(text, "T")


def test_offset_from_utc_is_dropped():
    expected = (dt.date(2020, 1, 2), dt.timedelta(hours=8, minutes=20))
    assert split_datetime("20200102082000.00+0100", "T") == split_datetime("202001020820", "T") == expected
    with pytest.raises(AutopetError, match="expected YYYYMMDDHHMMSS"):
        split_datetime("20200102", "T")


def test_utc_offset():
    assert utc_offset("20200102082000.00-0530", "T") == -dt.timedelta(hours=5, minutes=30)
    assert utc_offset("+0200", "T") == dt.timedelta(hours=2)
    assert utc_offset("20200102082000", "T") is None
    for text in ("+1500", "+0160", "-1300"):
        with pytest.raises(AutopetError, match="T is .* an offset from UTC of"):
            utc_offset(text, "T")


def test_date_falls_back_on_the_study():
    header = Dataset()
    header.SeriesTime, header.StudyDate = "101500", "20200102"
    assert moment_of(header, "SeriesDate", "SeriesTime") == dt.datetime(2020, 1, 2, 10, 15)
    header.SeriesDate = "20200103"
    assert moment_of(header, "SeriesDate", "SeriesTime") == dt.datetime(2020, 1, 3, 10, 15)


@given(moment=st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2100, 1, 1)), places=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_date_times_survive_being_written(moment, places):
    """Fractions of a second of 0 to 6 digits (PS3.5 6.2, DT and TM), any date."""
    text = f"{moment:%Y%m%d%H%M%S}" + (f".{moment.microsecond:06d}"[: places + 1] if places else "")
    kept = moment.replace(microsecond=moment.microsecond - moment.microsecond % 10 ** (6 - places))
    date, time = split_datetime(text, "T")
    assert dt.datetime.combine(date, dt.time()) + time == kept
    assert time_of_day(f" {text[8:]} ", "T") == time


@pytest.mark.parametrize("text", ["20210229", "20200230", "20201301", "2020", "today"])
def test_impossible_dates_name_the_tag(text):
    header = Dataset()
    header.add_new("SeriesTime", "TM", "101500")
    header.add_new("SeriesDate", "LO", text)
    with pytest.raises(AutopetError, match=r"SeriesDate \(0008,0021\) is .* expected YYYYMMDD"):
        moment_of(header, "SeriesDate", "SeriesTime")


@pytest.mark.parametrize(
    ("series", "acquired", "date", "expected"),
    [
        ("235000", "000500", None, dt.datetime(2020, 1, 3, 0, 5)),
        ("235000", "235000", None, dt.datetime(2020, 1, 2, 23, 50)),
        ("235000", "000500", "20200102", dt.datetime(2020, 1, 2, 0, 5)),  # a date that is there is believed
        ("230000", "100000", None, dt.datetime(2020, 1, 2, 10)),  # 13 h later: a reconstruction in the evening
        (None, "000500", None, dt.datetime(2020, 1, 2, 0, 5)),
    ],
)
def test_slices_past_midnight_without_a_date(series, acquired, date, expected):
    header = Dataset()
    header.SeriesDate, header.SeriesTime, header.AcquisitionTime = "20200102", series, acquired
    header.AcquisitionDate = date
    assert acquisition_moment(header) == expected
    assert is_past_midnight(header) == (expected.day == 3)
