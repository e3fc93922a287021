"""The moment of the injection, from DICOM headers.

After the QIBA FDG-PET/CT profile, appendix G; section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import datetime as dt
import re

from autopet.errors import AutopetError
from data_prep.attributes import Reader, tag_name
from data_prep.nuclides import nuclide_of
from data_prep.times import DAY, split_datetime, time_of_day, utc_offset

LONGEST_UPTAKE_HALF_LIVES = 10.0  # beyond this nothing is left to image: a date or time is wrong
SAME_MOMENT_S = 1.0
HALF_HOUR = dt.timedelta(minutes=30)  # time zones differ by multiples of it
GE_CREATOR, GE_GROUP = "GEMS_PETD_01", 0x0009
GE_INJECTED = {0x3B: "administration", 0x3D: "measurement of the residual dose, shortly after the injection"}


def injection_moment(reader: Reader, reference: dt.datetime, half_life_s: float) -> dt.datetime:
    """Moment of the injection, before `reference`.

    RadiopharmaceuticalStartDateTime (0018,1078) goes before RadiopharmaceuticalStartTime (0018,1072), unless their
    difference says that the former has no time of day or one of another time zone.

    Raises
    ------
    AutopetError
        It is unknown, after `reference`, or more than `LONGEST_UPTAKE_HALF_LIVES` before it.
    """
    injection = reader.injection
    full = reader.text("RadiopharmaceuticalStartDateTime", injection)
    time = reader.text("RadiopharmaceuticalStartTime", injection)
    if not full and not time:
        return _ge_injection(reader, reference, half_life_s)
    time_tag = tag_name("RadiopharmaceuticalStartTime")
    if full:
        injected, is_of_time = _dated_injection(reader, full, time)
        problem = _impossible_uptake(reference - injected, half_life_s)
        if not problem:
            return injected
        _only_time_is_used(reader, injected, reference, f"{problem} {reference.isoformat()}", is_of_time=is_of_time)
    return _injected_at(reader, time_of_day(time, time_tag), reference, half_life_s, named=f"{time_tag} {time}")


def _dated_injection(reader: Reader, full: str, time: str) -> tuple[dt.datetime, bool]:
    """The injection on the date of RadiopharmaceuticalStartDateTime, and whether its time of day is StartTime's."""
    tag, time_tag = tag_name("RadiopharmaceuticalStartDateTime"), tag_name("RadiopharmaceuticalStartTime")
    if re.fullmatch(r"\d{8}([+-]\d{4})?", full):  # a DT may end after any of its parts (PS3.5 6.2)
        if not time:
            raise AutopetError(
                f"{tag} is {full!r}, a date without a time, and {time_tag} is missing: the injection time is unknown; "
                "add one to the PET headers"
            )
        date, _ = split_datetime(full[:8] + "00", tag)
        return dt.datetime.combine(date, dt.time()) + time_of_day(time, time_tag), True
    injected, is_local = _local(reader, full, tag)
    zone = f"{tag} {full} has an offset from UTC, but {tag_name('TimezoneOffsetFromUTC')} is missing"
    if not time:
        if not is_local:
            reader.warnings.append(f"{zone}: taken as local, like the other times")
        return injected, False
    stated = time_of_day(time, time_tag)
    apart = (stated - _since_midnight(injected)) % DAY
    if min(apart, DAY - apart).total_seconds() < SAME_MOMENT_S:
        return injected, False
    start = f"{tag} {full}" if is_local else zone
    why = _why_time(full, stated, apart)
    reader.warnings.append(
        f"{start}, and {time_tag} {time} differs from it{why}: {time_tag if why else tag} is used, check the injection"
        + ("" if is_local else " and the time zone")
    )
    if not why:
        return injected, False
    near = [_midnight(injected) + stated + shift for shift in (-DAY, dt.timedelta(), DAY)]
    has_no_time = not _time_text(full).strip("0.")
    return (near[1] if has_no_time else min(near, key=lambda moment: abs(moment - injected))), True


def _why_time(full: str, stated: dt.timedelta, apart: dt.timedelta) -> str:
    """Why StartTime is to be used rather than a date-time that differs from it; empty when there is no reason."""
    if not stated:  # the time of day is what is empty, not the date-time
        return ""
    if not _time_text(full).strip("0."):
        return ", whose time of day is empty (midnight)"
    from_zone = abs(apart - round(apart / HALF_HOUR) * HALF_HOUR).total_seconds()
    return " by whole half hours, like another time zone" if from_zone < SAME_MOMENT_S else ""


def _time_text(full: str) -> str:
    return re.sub(r"[+-]\d{4}$", "", full.strip())[8:]


def _only_time_is_used(
    reader: Reader, injected: dt.datetime, reference: dt.datetime, problem: str, *, is_of_time: bool
) -> None:
    """Warn that an impossible date is dropped, or raise when it is not the date that is wrong.

    Anonymisers shift the date-time by other days than the other dates. A time of day that is there twice is sure.
    """
    tag = tag_name("RadiopharmaceuticalStartDateTime")
    time = reader.inputs.get("RadiopharmaceuticalStartTime", "")
    apart = time_of_day(time, tag) - _since_midnight(injected) if time else DAY
    is_sure = is_of_time or (abs(apart) < dt.timedelta(minutes=1) and abs(reference - injected) >= DAY)
    if not is_sure:
        raise AutopetError(f"{tag} is {injected.isoformat()}: {problem}; correct the PET headers")
    reader.warnings.append(f"{tag} is dated {injected.date()}, the scan {reference.date()}: only its time is used")


def _ge_injection(reader: Reader, reference: dt.datetime, half_life_s: float) -> dt.datetime:
    """GE's private moment of the injection, for headers that lack the standard ones."""
    names = f"{tag_name('RadiopharmaceuticalStartDateTime')} and {tag_name('RadiopharmaceuticalStartTime')} are missing"
    for element, meaning in GE_INJECTED.items():
        private = reader.private(GE_GROUP, GE_CREATOR, element)
        if not private:
            continue
        tag = f"(0009,10{element:02X})"
        reader.warnings.append(f"{names}: the injection is {tag} of {GE_CREATOR}, the {meaning}")
        injected = ge_moment(reader, private, tag)
        problem = _impossible_uptake(reference - injected, half_life_s)
        if not problem:
            return injected
        if abs(reference - injected) < DAY:
            raise AutopetError(
                f"{tag} is {injected.isoformat()}: {problem} {reference.isoformat()}; correct the PET headers"
            )
        reader.warnings.append(f"{tag} is dated {injected.date()}, the scan {reference.date()}: only its time is used")
        return _injected_at(reader, _since_midnight(injected), reference, half_life_s, named=f"{tag} {private}")
    raise AutopetError(f"{names}: the injection time is unknown; add one to the PET headers")


def ge_moment(reader: Reader, private: str, tag: str) -> dt.datetime:
    """A private date-time of GE in the zone of the other times."""
    moment, is_local = _local(reader, private, tag)
    if not is_local:
        zone = tag_name("TimezoneOffsetFromUTC")
        reader.warnings.append(f"{tag} {private} has an offset from UTC, but {zone} is missing: taken as local")
    return moment


def _local(reader: Reader, text: str, tag: str) -> tuple[dt.datetime, bool]:
    """A date-time in the zone of the other times, TimezoneOffsetFromUTC (C.12.1.1.8), and whether it is sure to be."""
    date, moment = split_datetime(text, tag)
    local = dt.datetime.combine(date, dt.time()) + moment
    offset = utc_offset(text, tag)
    if offset is None:
        return local, True
    zone, zone_tag = reader.text("TimezoneOffsetFromUTC"), tag_name("TimezoneOffsetFromUTC")
    if not zone:
        return local, False
    zone_offset = utc_offset(zone, zone_tag)
    if zone_offset is None:
        raise AutopetError(f"{zone_tag} is {zone!r}, expected +HHMM or -HHMM; correct the PET headers")
    return local - offset + zone_offset, True


def _midnight(moment: dt.datetime) -> dt.datetime:
    return dt.datetime.combine(moment.date(), dt.time())


def _since_midnight(moment: dt.datetime) -> dt.timedelta:
    return moment - _midnight(moment)


def _injected_at(
    reader: Reader, time: dt.timedelta, reference: dt.datetime, half_life_s: float, *, named: str
) -> dt.datetime:
    """The injection from its time of day: on the day of the scan, or the day before when midnight lies between."""
    moment = _midnight(reference) + time
    injected = moment - DAY if moment > reference else moment
    problem = _impossible_uptake(reference - injected, half_life_s)
    if problem:
        raise AutopetError(f"{named}: {problem} {reference.isoformat()}; correct the PET headers")
    if injected != moment:
        reader.warnings.append(f"{named} is later than the scan {reference.isoformat()}: taken as the day before")
    nuclide = nuclide_of(half_life_s)
    if nuclide and nuclide.lasts_days:
        reader.warnings.append(
            f"{named} has no date that can be used, and {nuclide.name} is imaged up to days after the injection: "
            f"taken as {injected.date()}; add {tag_name('RadiopharmaceuticalStartDateTime')}"
        )
    return injected


def _impossible_uptake(uptake: dt.timedelta, half_life_s: float) -> str:
    seconds = uptake.total_seconds()
    if seconds < 0:
        return f"{-seconds:.0f} s after the scan's decay reference"
    if seconds > LONGEST_UPTAKE_HALF_LIVES * half_life_s:
        return f"{seconds / half_life_s:.0f} half-lives ({seconds / 3600:.1f} h) before the scan's decay reference"
    return ""
