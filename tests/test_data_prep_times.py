from __future__ import annotations

import datetime as dt

import pytest
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.times import moment_of, split_datetime, time_of_day, utc_offset


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
