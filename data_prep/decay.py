"""The moment that PET voxels are decay-corrected to.

After the QIBA FDG-PET/CT profile, appendix G; section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, alike, tag_name, values
from data_prep.injection import GE_CREATOR, GE_GROUP, SAME_MOMENT_S, ge_moment, injection_moment
from data_prep.times import DAY, acquisition_moment, is_past_midnight, moment_of

FAR_S = 60.0  # FrameReferenceTime counts to a frame's start or to its mean, which are about a minute apart
GE_SCAN_DATETIME = 0x0D
MOMENT_KEYWORDS = ("AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime", "StudyDate")  # what times reads


@dataclass(frozen=True)
class Acquired:
    """When the slices were acquired: `moments` of all, the `earliest` of them, and the start of the series by them.

    The start is AcquisitionTime - FrameReferenceTime + delay of the frame's mean activity, of the first frame.
    FrameReferenceTime (0054,1300) counts from the series' start to the moment of a frame's mean activity
    (C.8.9.4.1.5). Where that attribute or ActualFrameDuration (0018,1242) is missing it is the earliest acquisition,
    and `is_derived` is False. `spread_s` is by how much slices disagree.
    """

    moments: tuple[dt.datetime, ...]
    start: dt.datetime
    is_derived: bool
    spread_s: float

    @property
    def earliest(self) -> dt.datetime:
        return min(self.moments)

    @property
    def named(self) -> str:
        derived = "AcquisitionTime - FrameReferenceTime + time of the frame's mean activity"
        return derived if self.is_derived else "earliest AcquisitionTime"


def decay_moments(
    reader: Reader, series: Sequence[Dataset], correction: str, half_life_s: float
) -> tuple[list[dt.datetime], str]:
    """The moment of every slice's activity, and a name of it.

    Parameters
    ----------
    correction : str
        DecayCorrection (0054,1102): `START` or `NONE`.

    Raises
    ------
    AutopetError
        A time is missing or impossible; names the tag.
    """
    moments = _acquisition_moments(reader, series)
    if correction == "NONE":  # each slice has the mean activity of its own frame
        _note_acquisition(reader, series[moments.index(min(moments))])
        delayed = [at + _mean_delay(header, half_life_s) for at, header in zip(moments, series, strict=True)]
        return delayed, "AcquisitionTime + time of the frame's mean activity"
    moment, named = _series_start(reader, series, moments, half_life_s)
    return [moment] * len(series), named


def _acquisition_moments(reader: Reader, series: Sequence[Dataset]) -> tuple[dt.datetime, ...]:
    moments, next_day = [dt.datetime.min] * len(series), 0
    for group in alike(series, MOMENT_KEYWORDS):
        moment = acquisition_moment(series[group[0]])
        next_day += len(group) if is_past_midnight(series[group[0]]) else 0
        for index in group:
            moments[index] = moment
    if next_day:
        reader.warnings.append(
            f"{tag_name('AcquisitionDate')} is missing, and {tag_name('AcquisitionTime')} of {next_day} slices is long "
            f"before {tag_name('SeriesTime')}: taken as the day after, past midnight"
        )
    return tuple(moments)


# --- the start of the series -----------------------------------------------------------------------------------------


def _series_start(
    reader: Reader, series: Sequence[Dataset], moments: tuple[dt.datetime, ...], half_life_s: float
) -> tuple[dt.datetime, str]:
    """Start of the first acquisition: SeriesTime, unless the other times show that it is something else."""
    started = _stated_start(reader, series)
    if started is None:
        doubt = f"{tag_name('SeriesTime')} is missing"
    elif started > min(moments):
        doubt = (
            f"{tag_name('SeriesTime')} {started.isoformat()} is later than the earliest {tag_name('AcquisitionTime')} "
            f"{min(moments).isoformat()}"
        )
    else:
        try:
            acquired = _acquired(series, moments, half_life_s)
        except AutopetError as error:
            reader.warnings.append(f"{tag_name('SeriesTime')} cannot be checked: {error}")
            return started, "SeriesTime"
        doubt = _early_doubt(reader, started, acquired, half_life_s)
        if not doubt:
            _compare(reader, started, acquired, half_life_s)
            return started, "SeriesTime"
    acquired = _acquired(series, moments, half_life_s)
    _note_acquisition(reader, series[moments.index(acquired.earliest)])
    private = _ge_start(reader, acquired, doubt)
    return (private, "(0009,100D)") if private else _derived_start(reader, acquired, doubt)


def _stated_start(reader: Reader, series: Sequence[Dataset]) -> dt.datetime | None:
    """The earliest SeriesDate and SeriesTime of the headers, None when no header has a time."""
    stated: dict[dt.datetime, Dataset] = {}
    for index, *_ in alike(series, MOMENT_KEYWORDS):
        header = series[index]
        if values(header, "SeriesTime"):
            stated.setdefault(moment_of(header, "SeriesDate", "SeriesTime"), header)
    if not stated:
        return None
    first, last = min(stated), max(stated)
    reader.text("SeriesTime", stated[first])
    reader.text("SeriesDate", stated[first])
    if first != last:
        reader.warnings.append(
            f"{tag_name('SeriesDate')} and {tag_name('SeriesTime')} differ over the slices, from {first.isoformat()} "
            f"to {last.isoformat()}, expected one moment: the earliest is used"
        )
    return first


def _early_doubt(reader: Reader, started: dt.datetime, acquired: Acquired, half_life_s: float) -> str:
    """What is wrong with a SeriesTime before the slices; empty when nothing is."""
    if (acquired.start - started).total_seconds() <= FAR_S:
        return ""
    tag = tag_name("SeriesTime")
    if started == dt.datetime.combine(started.date(), dt.time()):
        return f"{tag} is empty (midnight), long before the acquisition {acquired.start.isoformat()}"
    try:  # with a reader of its own, which keeps no warnings: the injection is read again with the chosen reference
        injected = injection_moment(Reader(reader.header), acquired.start, half_life_s)
    except AutopetError:
        return ""
    if started < injected:
        return f"{tag} {started.isoformat()} is before the injection {injected.isoformat()}"
    return ""


def _compare(reader: Reader, started: dt.datetime, acquired: Acquired, half_life_s: float) -> None:
    """Warn when FrameReferenceTime says another start than SeriesTime, and what that would do to SUV."""
    apart_s = (acquired.start - started).total_seconds()
    if not acquired.is_derived or abs(apart_s) <= FAR_S:
        return
    reader.warnings.append(
        f"{tag_name('SeriesTime')} {started.isoformat()} is used as the start of the series, but "
        f"{tag_name('AcquisitionTime')} and {tag_name('FrameReferenceTime')} say {acquired.start.isoformat()}, which "
        f"would make SUVs {2 ** (apart_s / half_life_s):.4g} times as large: check which of them is the scan's"
    )


def _ge_start(reader: Reader, acquired: Acquired, doubt: str) -> dt.datetime | None:
    """GE's private scan start, None when there is none or when it cannot be true.

    Its date is not shifted by anonymisers that shift the others.
    """
    private = reader.private(GE_GROUP, GE_CREATOR, GE_SCAN_DATETIME)
    if not private:
        return None
    started = ge_moment(reader, private, "(0009,100D)")
    if abs(started - acquired.earliest) > DAY:
        reader.warnings.append(
            f"(0009,100D) is dated {started.date()}, the acquisition {acquired.earliest.date()}: only its time is used"
        )
        started = dt.datetime.combine(acquired.earliest.date(), started.time())
        started -= DAY if started - acquired.earliest > DAY / 2 else dt.timedelta()
    if (started - acquired.earliest).total_seconds() > SAME_MOMENT_S:
        reader.warnings.append(
            f"(0009,100D) of {GE_CREATOR}, {started.isoformat()}, is later than the earliest acquisition "
            f"{acquired.earliest.isoformat()}: not used"
        )
        return None
    text = f"{doubt}: the scan start is (0009,100D) of {GE_CREATOR}, {started.isoformat()}"
    apart_s = (acquired.start - started).total_seconds()
    if acquired.is_derived and abs(apart_s) > FAR_S:
        text += (
            f", {abs(apart_s):.0f} s from what {tag_name('AcquisitionTime')} and {tag_name('FrameReferenceTime')} say, "
            f"{acquired.start.isoformat()}: check it"
        )
    reader.warnings.append(text)
    return started


def _derived_start(reader: Reader, acquired: Acquired, doubt: str) -> tuple[dt.datetime, str]:
    if acquired.is_derived:
        text = f"{doubt}: the start of the series is derived from {tag_name('FrameReferenceTime')}"
    else:
        text = (
            f"{doubt}, and {tag_name('FrameReferenceTime')} or {tag_name('ActualFrameDuration')} is missing: the "
            f"earliest acquisition {acquired.earliest.isoformat()} is taken as the start of the series"
        )
    reader.warnings.append(text)
    if acquired.spread_s > SAME_MOMENT_S:
        reader.warnings.append(
            f"slices disagree by {acquired.spread_s:.1f} s on the start of the series; that of the first frame is used"
        )
    return acquired.start, acquired.named


# --- the start of the series from its slices -------------------------------------------------------------------------


def _acquired(series: Sequence[Dataset], moments: tuple[dt.datetime, ...], half_life_s: float) -> Acquired:
    """When the slices were acquired, see `Acquired`.

    The first frame decides: the earliest, and of frames with one AcquisitionTime that of the smallest
    FrameReferenceTime. GE writes the series' start into AcquisitionTime of all beds, and counts FrameReferenceTime of
    the first bed from 0; only of the first frame are the two of one start for every vendor.
    """
    starts = {}
    for index, *_ in alike(series, (*MOMENT_KEYWORDS, "FrameReferenceTime", "ActualFrameDuration")):
        moment, header = moments[index], series[index]
        reference_ms = Reader(header).number("FrameReferenceTime")
        if reference_ms is None or not values(header, "ActualFrameDuration"):
            return Acquired(moments, min(moments), is_derived=False, spread_s=0.0)
        delay = _mean_delay(header, half_life_s)
        # before the mean by more than rounding: counted to the frame's start
        is_early = reference_ms / 1000.0 + SAME_MOMENT_S < delay.total_seconds()
        since = dt.timedelta(milliseconds=reference_ms) - (dt.timedelta() if is_early else delay)
        starts[moment, reference_ms, since] = moment - since
    spread = max(starts.values()) - min(starts.values())
    return Acquired(moments, starts[min(starts)], is_derived=True, spread_s=spread.total_seconds())


def _mean_delay(header: Dataset, half_life_s: float) -> dt.timedelta:
    """From a frame's start to the moment that has its mean activity: ln(x / (1 - exp(-x))) / lambda, x = lambda T."""
    duration_ms = Reader(header).positive("ActualFrameDuration", "ms")
    decay = np.log(2.0) / half_life_s
    x = decay * duration_ms / 1000.0
    return dt.timedelta(seconds=float(np.log(x / -np.expm1(-x)) / decay))


def _note_acquisition(reader: Reader, header: Dataset) -> None:
    for keyword in ("AcquisitionDate", "AcquisitionTime", "FrameReferenceTime", "ActualFrameDuration"):
        reader.text(keyword, header)
