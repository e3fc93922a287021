"""Dates and times of DICOM headers (PS3.5 6.2, DA, TM and DT)."""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache

from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import tag_name, values

DAY = dt.timedelta(days=1)
NO_DATE = dt.date(1900, 1, 2)  # for headers without any date
LONGEST_SCAN = dt.timedelta(hours=6)


def acquisition_moment(header: Dataset) -> dt.datetime:
    """AcquisitionDate and AcquisitionTime, local; the date is `is_past_midnight`'s when there is none."""
    moment = moment_of(header, "AcquisitionDate", "AcquisitionTime")
    return moment + DAY if is_past_midnight(header) else moment


def is_past_midnight(header: Dataset) -> bool:
    """Whether a header without AcquisitionDate was acquired on the day after its series began.

    Its AcquisitionTime is so long before SeriesTime that on the same date the series would begin long after its own
    slices, while on the next day it is within `LONGEST_SCAN` of the beginning. Less long before is a SeriesTime that a
    later reconstruction has overwritten: a scan of 10:00, reconstructed at 23:00, is no scan of the next day.
    """
    series, acquired = values(header, "SeriesTime"), values(header, "AcquisitionTime")
    if values(header, "AcquisitionDate") or not series or not acquired:
        return False
    began = time_of_day(series[0], tag_name("SeriesTime"))
    return began - time_of_day(acquired[0], tag_name("AcquisitionTime")) >= DAY - LONGEST_SCAN


def moment_of(header: Dataset, date_keyword: str, time_keyword: str) -> dt.datetime:
    """Date and time of two attributes; the date falls back on that of acquisition, series and study."""
    time = values(header, time_keyword)
    if not time:
        raise AutopetError(f"{tag_name(time_keyword)} is missing; correct the PET headers")
    keywords = (date_keyword, "AcquisitionDate", "SeriesDate", "StudyDate")
    found = next(((keyword, values(header, keyword)[0]) for keyword in keywords if values(header, keyword)), None)
    date = _date(found[1], tag_name(found[0])) if found else NO_DATE
    return dt.datetime.combine(date, dt.time()) + time_of_day(time[0], tag_name(time_keyword))


@lru_cache(maxsize=1024)
def _date(text: str, tag: str) -> dt.date:
    try:
        return dt.datetime.strptime(text.strip().replace(".", "").replace("-", ""), "%Y%m%d").date()
    except ValueError as error:
        raise AutopetError(f"{tag} is {text!r}, expected YYYYMMDD; correct the PET headers") from error


@lru_cache(maxsize=4096)  # the slices of a series share a few times
def time_of_day(text: str, tag: str) -> dt.timedelta:
    """HH, HHMM, HHMMSS or HHMMSS.ffffff since midnight; colons of old files are allowed."""
    match = re.fullmatch(r"(\d\d)(?:(\d\d)(?:(\d\d)(\.\d*)?)?)?", text.strip().replace(":", ""))
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3]) if match else (99, 0, 0)
    if match is None or hours > 23 or minutes > 59 or seconds > 60:
        raise AutopetError(f"{tag} is {text!r}, expected HHMMSS.ffffff; correct the PET headers")
    fraction = float(match[4]) if match[4] and len(match[4]) > 1 else 0.0
    return dt.timedelta(hours=hours, minutes=minutes, seconds=seconds + fraction)


def split_datetime(text: str, tag: str) -> tuple[dt.date, dt.timedelta]:
    """YYYYMMDDHHMMSS.ffffff, without the offset from UTC at its end: see `utc_offset`."""
    local = re.sub(r"[+-]\d{4}$", "", text.strip())
    if len(local) < 10:
        raise AutopetError(f"{tag} is {text!r}, expected YYYYMMDDHHMMSS; correct the PET headers")
    return _date(local[:8], tag), time_of_day(local[8:], tag)


def utc_offset(text: str, tag: str) -> dt.timedelta | None:
    """The offset +HHMM or -HHMM at the end of a date-time, or of TimezoneOffsetFromUTC; None without one."""
    match = re.search(r"([+-])(\d\d)(\d\d)$", text.strip())
    if match is None:
        return None
    offset = dt.timedelta(hours=int(match[2]), minutes=int(match[3])) * (-1 if match[1] == "-" else 1)
    if int(match[3]) > 59 or not dt.timedelta(hours=-12) <= offset <= dt.timedelta(hours=14):
        raise AutopetError(f"{tag} is {text!r}, expected an offset from UTC of -1200 to +1400; correct the PET headers")
    return offset
