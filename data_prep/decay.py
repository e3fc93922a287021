"""The moment that PET voxels are decay-corrected to, and the moment of the injection before it.

After the QIBA FDG-PET/CT profile, appendix G; section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, tag_name, values
from data_prep.nuclides import nuclide_of
from data_prep.times import DAY, acquisition_moment, moment_of, split_datetime, time_of_day, utc_offset

LONGEST_UPTAKE_HALF_LIVES = 10.0  # beyond this nothing is left to image: a date or time is wrong
SAME_MOMENT_S = 1.0
HALF_HOUR = dt.timedelta(minutes=30)  # time zones differ by multiples of it
GE_CREATOR, GE_GROUP, GE_SCAN_DATETIME = "GEMS_PETD_01", 0x0009, 0x0D
GE_INJECTED = {0x3B: "administration", 0x3D: "measurement of the residual dose, shortly after the injection"}


def decay_moments(
    reader: Reader, series: Sequence[Dataset], correction: str, half_life_s: float
) -> tuple[list[dt.datetime], str]:
    """The moment of every slice's activity, and a name of it."""
    if correction == "NONE":  # each slice has the mean activity of its own frame
        moments = [acquisition_moment(header) + _mean_delay(header, half_life_s) for header in series]
        _note_acquisition(reader, min(series, key=acquisition_moment))
        return moments, "AcquisitionTime + time of the frame's mean activity"
    moment, named = _series_start(reader, series, half_life_s)
    return [moment] * len(series), named


def _series_start(reader: Reader, series: Sequence[Dataset], half_life_s: float) -> tuple[dt.datetime, str]:
    """Start of the first acquisition: SeriesTime, unless a later reconstruction has overwritten it."""
    earliest = min(series, key=acquisition_moment)
    acquired = acquisition_moment(earliest)
    if reader.text("SeriesTime"):
        reader.text("SeriesDate")
        started = moment_of(reader.header, "SeriesDate", "SeriesTime")
        if started <= acquired:
            return started, "SeriesTime"
        text = (
            f"{tag_name('SeriesTime')} {started.isoformat()} is later than the earliest {tag_name('AcquisitionTime')}"
        )
    else:
        text = f"{tag_name('SeriesTime')} is missing"
    _note_acquisition(reader, earliest)
    private = reader.private(GE_GROUP, GE_CREATOR, GE_SCAN_DATETIME)
    if private:
        reader.warnings.append(f"{text} {acquired.isoformat()}: the scan start is (0009,100D) of {GE_CREATOR}")
        return _ge_start(reader, private, acquired), "(0009,100D)"
    return _derived_start(reader, series, half_life_s, text)


def _ge_start(reader: Reader, private: str, acquired: dt.datetime) -> dt.datetime:
    """GE's private scan start; its date is not shifted by anonymisers that shift the others."""
    started = _ge_moment(reader, private, "(0009,100D)")
    if abs(started - acquired) > DAY:
        reader.warnings.append(
            f"(0009,100D) is dated {started.date()}, the acquisition {acquired.date()}: only its time is used"
        )
        started = dt.datetime.combine(acquired.date(), started.time())
        started -= DAY if started - acquired > DAY / 2 else dt.timedelta()
    return started


def _ge_moment(reader: Reader, private: str, tag: str) -> dt.datetime:
    """A private date-time of GE in the zone of the other times."""
    moment, is_local = _local(reader, private, tag)
    if not is_local:
        zone = tag_name("TimezoneOffsetFromUTC")
        reader.warnings.append(f"{tag} {private} has an offset from UTC, but {zone} is missing: taken as local")
    return moment


def _derived_start(reader: Reader, series: Sequence[Dataset], half_life_s: float, text: str) -> tuple[dt.datetime, str]:
    """Start of the series from its slices: AcquisitionTime - FrameReferenceTime + delay of the frame's mean activity.

    FrameReferenceTime (0054,1300) counts from the series' start to the moment of a frame's mean activity (C.8.9.4.1.5).
    """
    starts = []
    for header in series:
        reference_ms = Reader(header).number("FrameReferenceTime")
        if reference_ms is None or not values(header, "ActualFrameDuration"):
            acquired = min(acquisition_moment(item) for item in series)
            reader.warnings.append(
                f"{text}, and {tag_name('FrameReferenceTime')} or {tag_name('ActualFrameDuration')} is missing: the "
                f"earliest acquisition {acquired.isoformat()} is taken as the start of the series"
            )
            return acquired, "earliest AcquisitionTime"
        reference, delay = dt.timedelta(milliseconds=reference_ms), _mean_delay(header, half_life_s)
        early = reference + dt.timedelta(seconds=SAME_MOMENT_S) < delay  # counted to the frame's start, not to its mean
        starts.append(acquisition_moment(header) - reference + (dt.timedelta() if early else delay))
    spread_s = (max(starts) - min(starts)).total_seconds()
    if spread_s > SAME_MOMENT_S:
        reader.warnings.append(f"slices disagree by {spread_s:.1f} s on the start of the series; the earliest is used")
    reader.warnings.append(f"{text}: the start of the series is derived from {tag_name('FrameReferenceTime')}")
    return min(starts), "AcquisitionTime - FrameReferenceTime + time of the frame's mean activity"


def _mean_delay(header: Dataset, half_life_s: float) -> dt.timedelta:
    """From a frame's start to the moment that has its mean activity: ln(x / (1 - exp(-x))) / lambda, x = lambda T."""
    duration_ms = Reader(header).positive("ActualFrameDuration", "ms")
    decay = np.log(2.0) / half_life_s
    x = decay * duration_ms / 1000.0
    return dt.timedelta(seconds=float(np.log(x / -np.expm1(-x)) / decay))


def _note_acquisition(reader: Reader, header: Dataset) -> None:
    for keyword in ("AcquisitionDate", "AcquisitionTime", "FrameReferenceTime", "ActualFrameDuration"):
        reader.text(keyword, header)


# --- injection -------------------------------------------------------------------------------------------------------


def injection_moment(reader: Reader, reference: dt.datetime, half_life_s: float) -> dt.datetime:
    """Moment of the injection, before `reference`.

    Raises
    ------
    AutopetError
        It is unknown, after `reference`, or more than `LONGEST_UPTAKE_HALF_LIVES` before it.
    """
    injection = reader.injection
    full = reader.text("RadiopharmaceuticalStartDateTime", injection)
    time = reader.text("RadiopharmaceuticalStartTime", injection)
    tag, time_tag = tag_name("RadiopharmaceuticalStartDateTime"), tag_name("RadiopharmaceuticalStartTime")
    if not full and not time:
        return _ge_injection(reader, reference, half_life_s)
    injected = _local_injection(reader, full, time) if full else None
    if injected:
        problem = _impossible_uptake(reference - injected, half_life_s)
        if not problem:
            return injected
        apart = time_of_day(time, time_tag) - (injected - _midnight(injected)) if time else DAY
        shifted = abs(apart) < dt.timedelta(minutes=1)
        if not shifted or abs(reference - injected) < DAY:
            raise AutopetError(
                f"{tag} is {injected.isoformat()}: {problem} {reference.isoformat()}; correct the PET headers"
            )
        reader.warnings.append(f"{tag} is dated {injected.date()}, the scan {reference.date()}: only its time is used")
    return _injected_at(reader, time_of_day(time, time_tag), reference, half_life_s, named=f"{time_tag} {time}")


def _ge_injection(reader: Reader, reference: dt.datetime, half_life_s: float) -> dt.datetime:
    """GE's private moment of the injection, for headers that lack the standard ones."""
    names = f"{tag_name('RadiopharmaceuticalStartDateTime')} and {tag_name('RadiopharmaceuticalStartTime')} are missing"
    for element, meaning in GE_INJECTED.items():
        private = reader.private(GE_GROUP, GE_CREATOR, element)
        if not private:
            continue
        tag = f"(0009,10{element:02X})"
        reader.warnings.append(f"{names}: the injection is {tag} of {GE_CREATOR}, the {meaning}")
        injected = _ge_moment(reader, private, tag)
        problem = _impossible_uptake(reference - injected, half_life_s)
        if not problem:
            return injected
        if abs(reference - injected) < DAY:
            raise AutopetError(
                f"{tag} is {injected.isoformat()}: {problem} {reference.isoformat()}; correct the PET headers"
            )
        reader.warnings.append(f"{tag} is dated {injected.date()}, the scan {reference.date()}: only its time is used")
        since_midnight = injected - _midnight(injected)
        return _injected_at(reader, since_midnight, reference, half_life_s, named=f"{tag} {private}")
    raise AutopetError(f"{names}: the injection time is unknown; add one to the PET headers")


def _local_injection(reader: Reader, full: str, time: str) -> dt.datetime | None:
    """RadiopharmaceuticalStartDateTime in the zone of the other times; None when the time of day is to be used.

    When its zone is unknown, a time of day that differs from the date-time by whole half hours shows that the zones
    differ.
    """
    tag, time_tag = tag_name("RadiopharmaceuticalStartDateTime"), tag_name("RadiopharmaceuticalStartTime")
    injected, is_local = _local(reader, full, tag)
    if is_local:
        return injected
    text = f"{tag} {full} has an offset from UTC, but {tag_name('TimezoneOffsetFromUTC')} is missing"
    if not time:
        reader.warnings.append(f"{text}: taken as local, like the other times")
        return injected
    apart = abs(time_of_day(time, time_tag) - (injected - _midnight(injected)))
    if apart.total_seconds() < SAME_MOMENT_S:
        return injected
    is_zone = abs(apart - round(apart / HALF_HOUR) * HALF_HOUR).total_seconds() < SAME_MOMENT_S
    used = time_tag if is_zone else tag
    reader.warnings.append(f"{text}, and {time_tag} {time} differs from it: {used} is used, check the time zone")
    return None if is_zone else injected


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
