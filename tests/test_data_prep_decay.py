from __future__ import annotations

import datetime as dt
import math

import pytest
from dicom_maker import altered
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.injection import GE_CREATOR
from data_prep.suv import suv_bw_factor


def test_none_decays_to_each_frames_mean():
    """Frames of 120 s: mean activity after ln(x / (1 - exp(-x))) / lambda, x = ln 2 * 120 / 6586.2 (59.9 s)."""
    headers = altered(DecayCorrection="NONE", CorrectedImage=["ATTN"])
    for header in headers[3:]:
        header.AcquisitionTime = "100200"  # the second bed
    x = math.log(2) * 120 / 6586.2
    delay_s = math.log(x / (1 - math.exp(-x))) * 6586.2 / math.log(2)
    first = 4e-4 * 2 ** (delay_s / 6586.2)
    assert 59.8 < delay_s < 60
    expected = [first] * 3 + [first * 2 ** (120 / 6586.2)] * 3
    assert suv_bw_factor(headers).slice_factors == pytest.approx(expected, rel=1e-9)


def test_midnight_from_the_time_of_day():
    """Injected at 23:00:13.8, scanned at 00:50 of the next day: 6586.2 s."""
    found = suv_bw_factor(
        altered(SeriesTime="005000", AcquisitionTime="005000", RadiopharmaceuticalStartTime="230013.8")
    )
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "taken as the day before" in found.warnings[0]


def test_midnight_from_the_date_time():
    headers = altered(
        SeriesTime="005000", AcquisitionTime="005000", RadiopharmaceuticalStartTime="230013.8",
        RadiopharmaceuticalStartDateTime="20200101230013.80+0100",
    )  # fmt: skip
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert found.warnings == ()


def test_midnight_between_the_first_and_the_last_bed():
    headers = altered(SeriesTime="235900", AcquisitionTime="235900", RadiopharmaceuticalStartTime="220913.8")
    headers[0].AcquisitionDate, headers[0].AcquisitionTime = "20200103", "000100"
    assert suv_bw_factor(headers).factor == pytest.approx(4e-4, rel=1e-12)


def test_date_time_goes_before_the_time():
    """The date-time says 6586.2 s, the time of day 3000 s."""
    headers = altered(RadiopharmaceuticalStartTime="091000", RadiopharmaceuticalStartDateTime="20200102081013.8")
    assert suv_bw_factor(headers).factor == pytest.approx(4e-4, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("20200102061013.8+0000", "+0200"),
        ("20200102011013.8-0500", "+0200"),
        ("20200102081013.8", "+0200"),
    ],
)
def test_offset_from_utc_is_converted(text, zone):
    """08:10:13.8 in the zone of the other times."""
    found = suv_bw_factor(
        altered(RadiopharmaceuticalStartDateTime=text, RadiopharmaceuticalStartTime=None, TimezoneOffsetFromUTC=zone)
    )
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert found.warnings == ()


def test_offset_from_utc_across_midnight():
    headers = altered(
        RadiopharmaceuticalStartDateTime="20200101231013.8+0000", RadiopharmaceuticalStartTime=None,
        TimezoneOffsetFromUTC="+0900",
    )  # fmt: skip
    assert suv_bw_factor(headers).factor == pytest.approx(4e-4, rel=1e-12)


def test_offset_from_an_unknown_zone_gives_way_to_the_time_of_day():
    """06:10 UTC and 08:10: two hours are a time zone. 07:33 and 08:10: 37 minutes are not."""
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102061013.8+0000"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    (warning,) = found.warnings
    for name in (
        "RadiopharmaceuticalStartDateTime (0018,1078) 20200102061013.8+0000",
        "RadiopharmaceuticalStartTime (0018,1072) 081013.80",
        "TimezoneOffsetFromUTC (0008,0201) is missing",
    ):
        assert name in warning
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102073313.8+0000"))
    assert found.factor == pytest.approx(4e-4 * 2 ** (37 * 60 / 6586.2), rel=1e-12)
    assert "RadiopharmaceuticalStartDateTime (0018,1078) is used" in found.warnings[0]


def test_offset_with_the_same_time_of_day_is_local():
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102081013.8+0100"))
    assert (found.factor, found.warnings) == (pytest.approx(4e-4, rel=1e-12), ())


def test_offset_from_an_unknown_zone_without_time_of_day():
    headers = altered(RadiopharmaceuticalStartDateTime="20200102081013.8+0100", RadiopharmaceuticalStartTime=None)
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "taken as local" in found.warnings[0]


def test_date_shifted_by_an_anonymiser():
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20191120081013.8"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "only its time is used" in found.warnings[0]


def test_series_time_of_a_later_reconstruction():
    """Acquired at 10:00 as the first frame of a series; SeriesTime is two hours later and must not count."""
    x = math.log(2) * 120 / 6586.2
    mean_ms = 1000 * math.log(x / (1 - math.exp(-x))) * 6586.2 / math.log(2)
    headers = altered(SeriesTime="120000")
    for index, header in enumerate(headers):
        bed = index // 3
        header.AcquisitionTime = f"100{2 * bed}00"
        header.FrameReferenceTime = f"{mean_ms + 120000 * bed:.6f}"
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-6)
    assert "SeriesTime (0008,0031) 2020-01-02T12:00:00 is later" in found.warnings[0]


def test_series_time_later_without_frame_times():
    found = suv_bw_factor(altered(SeriesTime="120000", FrameReferenceTime=None))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "FrameReferenceTime (0054,1300)" in found.warnings[0]


def test_ge_scan_start():
    """GE keeps the scan's start in a private tag, here ten minutes before and with a date that was not shifted."""
    headers = altered(SeriesTime="120000")
    for header in headers:
        block = header.private_block(0x0009, GE_CREATOR, create=True)
        block.add_new(0x0D, "DT", "19991231095000.00")
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4 / 2 ** (600 / 6586.2), rel=1e-12)
    assert any("only its time is used" in warning for warning in found.warnings)


def test_injection_after_the_scan():
    headers = altered(RadiopharmaceuticalStartDateTime="20200102110000")
    with pytest.raises(AutopetError, match=r"RadiopharmaceuticalStartDateTime \(0018,1078\) .* 3600 s after"):
        suv_bw_factor(headers)


# --- GE's private times ----------------------------------------------------------------------------------------------


def _ge(headers: list[Dataset], **elements: object) -> list[Dataset]:
    """Headers with elements of GEMS_PETD_01: start (0009,100D), given (0009,103B), residual (0009,103D)."""
    numbers = {"start": 0x0D, "given": 0x3B, "residual": 0x3D}
    for header in headers:
        block = header.private_block(0x0009, GE_CREATOR, create=True)
        for name, value in elements.items():
            block.add_new(numbers[name], "UN" if isinstance(value, bytes) else "DT", value)
    return headers


@pytest.mark.parametrize(
    ("start", "zone"),
    [
        ("20200102075000.00+0000", "+0200"), ("20200102025000-0500", "+0200"), ("20200102095000", "+0200"),
        (b"20200102095000.00 ", None),
    ],
)  # fmt: skip
def test_ge_scan_start_with_an_offset_from_utc(start, zone):
    """09:50 in the zone of the other times, 600 s less than one half-life after the injection."""
    changes = {"TimezoneOffsetFromUTC": zone} if zone else {}
    found = suv_bw_factor(_ge(altered(SeriesTime="120000", **changes), start=start))
    assert found.factor == pytest.approx(4e-4 / 2 ** (600 / 6586.2), rel=1e-12)
    assert len(found.warnings) == 1


def test_ge_scan_start_with_an_offset_from_an_unknown_zone():
    found = suv_bw_factor(_ge(altered(SeriesTime="120000"), start="20200102095000+0100"))
    assert found.factor == pytest.approx(4e-4 / 2 ** (600 / 6586.2), rel=1e-12)
    assert any("TimezoneOffsetFromUTC (0008,0201) is missing: taken as local" in item for item in found.warnings)


@pytest.mark.parametrize(
    ("text", "zone"), [("20200102081013.80", None), (b"20200102081013.80", None), ("20200102061013.8+0000", "+0200")]
)
def test_ge_administration_time_is_a_fallback(text, zone):
    """70000 g / 350e6 Bq, one half-life before 10:00:00: 4e-4. The residual was measured later and does not count."""
    changes = {"TimezoneOffsetFromUTC": zone} if zone else {}
    headers = altered(RadiopharmaceuticalStartTime=None, **changes)
    found = suv_bw_factor(_ge(headers, given=text, residual="20200102082000"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    (warning,) = found.warnings
    assert "RadiopharmaceuticalStartTime (0018,1072) are missing" in warning
    assert "(0009,103B) of GEMS_PETD_01, the administration" in warning


def test_ge_administration_time_gives_way_to_the_standard():
    found = suv_bw_factor(_ge(altered(), given="20200102070000"))
    assert (found.factor, found.warnings) == (pytest.approx(4e-4, rel=1e-12), ())


def test_ge_post_injection_time_is_the_last_resort():
    """Residual measured 08:15:13.8, five minutes after the injection: 4e-4 / 2^(300/6586.2) = 4e-4 / 1.0320764."""
    found = suv_bw_factor(
        _ge(altered(RadiopharmaceuticalStartTime=None), residual="20200102081513.80", given=None)
    )  # an empty administration time is no administration time
    assert found.factor == pytest.approx(4e-4 / 1.0320764, rel=1e-6)
    assert "(0009,103D) of GEMS_PETD_01, the measurement of the residual dose" in found.warnings[0]


def test_ge_administration_date_that_was_not_shifted():
    found = suv_bw_factor(_ge(altered(RadiopharmaceuticalStartTime=None), given="19991231081013.80"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "(0009,103B) is dated 1999-12-31, the scan 2020-01-02: only its time is used" in found.warnings[1]
    with pytest.raises(AutopetError, match=r"\(0009,103B\) is 2020-01-02T10:30:00: 1800 s after"):
        suv_bw_factor(_ge(altered(RadiopharmaceuticalStartTime=None), given="20200102103000"))


# --- long-lived nuclides ---------------------------------------------------------------------------------------------


def test_zirconium_three_days_after_the_injection():
    """37 MBq of 89Zr (282276 s) for 70 kg, 72 h before: 70000 / 37e6 * 2^(259200/282276) = 1.8918919e-3 * 1.8898225."""
    zirconium = {"RadionuclideHalfLife": 282276, "RadionuclideTotalDose": 37e6, "RadiopharmaceuticalStartTime": "1000"}
    found = suv_bw_factor(altered(**zirconium, RadiopharmaceuticalStartDateTime="20191230100000"))
    assert found.factor == pytest.approx(1.8918919e-3 * 1.8898225, rel=1e-6)
    assert found.warnings == ()
    assert found.inputs["nuclide"] == "89Zr"


@pytest.mark.parametrize("half_life_s", [45723.6, 282276, 360806.4])
def test_long_lived_without_a_date_says_that_the_day_is_assumed(half_life_s):
    """6586.2 s between 08:10:13.8 and 10:00 of the same day; it may have been another day."""
    found = suv_bw_factor(altered(RadionuclideHalfLife=half_life_s))
    assert found.factor == pytest.approx(2e-4 * 2 ** (6586.2 / half_life_s), rel=1e-12)
    (warning,) = found.warnings
    assert "RadiopharmaceuticalStartTime (0018,1072) 081013.80 has no date" in warning
    assert "taken as 2020-01-02; add RadiopharmaceuticalStartDateTime (0018,1078)" in warning
    challenge = suv_bw_factor(altered(RadionuclideHalfLife=half_life_s), "challenge")
    assert "the challenge's equation takes no dates" in challenge.warnings[0]


def test_more_than_ten_half_lives_are_an_error():
    """10 half-lives of 89Zr are 32.67 days: 32 days pass, 33 do not."""
    zirconium = {"RadionuclideHalfLife": 282276, "RadionuclideTotalDose": 37e6, "RadiopharmaceuticalStartTime": None}
    found = suv_bw_factor(altered(**zirconium, RadiopharmaceuticalStartDateTime="20191201100000"))
    assert found.factor == pytest.approx(70000 / 37e6 * 2 ** (32 * 86400 / 282276), rel=1e-12)
    with pytest.raises(AutopetError, match=r"RadiopharmaceuticalStartDateTime \(0018,1078\) .* 10 half-lives"):
        suv_bw_factor(altered(**zirconium, RadiopharmaceuticalStartDateTime="20191130100000"))


# --- laws that hold for every date -----------------------------------------------------------------------------------

EDGES = (
    "2019-12-31T23:59:59.900", "2020-01-01T00:00:00", "2020-02-29T00:01:30.250", "2020-03-01T00:15:00",
    "2021-03-01T00:00:01", "2020-01-31T23:30:00",
)  # fmt: skip
MOMENTS = st.one_of(
    st.sampled_from([dt.datetime.fromisoformat(text) for text in EDGES]),
    st.datetimes(dt.datetime(2019, 12, 1), dt.datetime(2021, 3, 31)),
)
HALF_LIVES_S = st.sampled_from([122.24, 1221.84, 4057.74, 6586.2, 45723.6, 282276.0])
SECONDS = st.decimals(0, 86399, places=3).map(float)


def _scanned(moment: dt.datetime, injected: dt.datetime, half_life_s: float, **more: object) -> list[Dataset]:
    date, time = f"{moment:%Y%m%d}", f"{moment:%H%M%S.%f}"
    return altered(
        SeriesDate=date, SeriesTime=time, AcquisitionDate=date, AcquisitionTime=time, RadionuclideHalfLife=half_life_s,
        **{
            "RadiopharmaceuticalStartDateTime": f"{injected:%Y%m%d%H%M%S.%f}", "RadiopharmaceuticalStartTime": None,
            **more,
        },
    )  # fmt: skip


@given(moment=MOMENTS, half_life_s=HALF_LIVES_S, part=st.floats(0, 8))
@settings(max_examples=80, deadline=None)
def test_law_one_more_half_life_doubles(moment, half_life_s, part):
    uptake, half_life = dt.timedelta(seconds=part * half_life_s), dt.timedelta(seconds=half_life_s)
    near = suv_bw_factor(_scanned(moment, moment - uptake, half_life_s))
    far = suv_bw_factor(_scanned(moment, moment - uptake - half_life, half_life_s))
    assert far.factor / near.factor == pytest.approx(2, rel=1e-6)
    assert near.factor == pytest.approx(2e-4 * 2 ** (uptake.total_seconds() / half_life_s), rel=1e-6)
    assert near.warnings == far.warnings == ()


@given(moment=MOMENTS, half_life_s=HALF_LIVES_S, part=st.floats(0, 9))
@settings(max_examples=60, deadline=None)
def test_law_start_is_admin_times_the_decay_between(moment, half_life_s, part):
    """Activity at the scan is that at the injection times 2^(-uptake/h), and SUV is the same: factors differ by it."""
    injected = moment - dt.timedelta(seconds=part * half_life_s)
    start = suv_bw_factor(_scanned(moment, injected, half_life_s))
    admin = suv_bw_factor(_scanned(moment, injected, half_life_s, DecayCorrection="ADMIN"))
    assert start.factor == pytest.approx(admin.factor * 2**part, rel=1e-6)


@given(moment=MOMENTS, uptake_s=SECONDS.filter(lambda seconds: seconds < 65000))
@settings(max_examples=80, deadline=None)
def test_law_a_time_of_day_is_that_of_the_day_or_of_the_day_before(moment, uptake_s):
    """18F within ten half-lives (18.3 h): the date adds nothing, midnight or not."""
    injected = moment - dt.timedelta(seconds=uptake_s)
    dated = suv_bw_factor(_scanned(moment, injected, 6586.2))
    headers = _scanned(moment, injected, 6586.2)
    for header in headers:
        item = header.RadiopharmaceuticalInformationSequence[0]
        del item.RadiopharmaceuticalStartDateTime
        item.RadiopharmaceuticalStartTime = f"{injected:%H%M%S.%f}"
    timed = suv_bw_factor(headers)
    assert timed.factor == pytest.approx(dated.factor, rel=1e-12)
    assert len(timed.warnings) == (injected.date() != moment.date())


@given(moment=MOMENTS, hours=st.integers(-12, 14), half=st.booleans(), zone_hours=st.integers(-11, 13))
@settings(max_examples=60, deadline=None)
def test_law_an_offset_from_utc_changes_nothing(moment, hours, half, zone_hours):
    """An hour before the scan, written in any zone."""
    minutes = 60 * hours + (30 if half and -12 < hours < 14 else 0)
    local = moment - dt.timedelta(hours=1)
    elsewhere = local - dt.timedelta(hours=zone_hours) + dt.timedelta(minutes=minutes)
    text = f"{elsewhere:%Y%m%d%H%M%S.%f}" + _offset(minutes)
    headers = _scanned(moment, local, 6586.2, RadiopharmaceuticalStartDateTime=text)
    for header in headers:
        header.TimezoneOffsetFromUTC = _offset(60 * zone_hours)
    assert suv_bw_factor(headers).factor == pytest.approx(2e-4 * 2 ** (3600 / 6586.2), rel=1e-9)


def _offset(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}{abs(minutes) % 60:02d}"


# --- a start of the series that the slices contradict ----------------------------------------------------------------
# dicom_maker's frames of 120 s with FrameReferenceTime 60 s: the slices say 10:00:00 - 60 s + 59.936854 s.

DERIVED = 4e-4 * 2 ** (-0.063146 / 6586.2)


@pytest.mark.parametrize(("time", "factor"), [("090000", 2.7385317e-4), ("083000", 2.265931e-4)])
def test_a_series_time_long_before_the_slices_is_told(time, factor):
    """2e-4 * 2^(2986.2/6586.2) = 2.73853e-4 at 09:00, 1.461 times less; 2e-4 * e^0.1248386 = 2.265931e-4 at 08:30."""
    found = suv_bw_factor(altered(SeriesTime=time))
    assert found.factor == pytest.approx(factor, rel=1e-6)
    (warning,) = found.warnings
    assert f"SeriesTime (0008,0031) 2020-01-02T{time[:2]}:{time[2:4]}:00 is used as the start" in warning
    assert "FrameReferenceTime (0054,1300) say 2020-01-02T09:59:59.936" in warning
    assert f"SUVs {4e-4 / factor:.4g} times as large" in warning


@pytest.mark.parametrize(("reference_ms", "warned"), [(0, 0), (119000, 0), (122000, 1), (900000, 1)])
def test_a_minute_of_the_frame_reference_time_is_no_contradiction(reference_ms, warned):
    """SeriesTime and AcquisitionTime are 10:00. 0 counts to the frame's start; 900 s say that it began at 09:46."""
    found = suv_bw_factor(altered(FrameReferenceTime=reference_ms))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert len(found.warnings) == warned


def test_frame_reference_time_zero_with_long_frames():
    """Real GE headers: 0 in frames of 300 s, whose mean is at 149.6 s."""
    assert suv_bw_factor(altered(FrameReferenceTime=0, ActualFrameDuration=300000)).warnings == ()


def test_the_series_start_in_every_acquisition_time():
    """Real GE headers: AcquisitionTime is the series' for all beds, FrameReferenceTime that of the beds from 0."""
    headers = altered(ActualFrameDuration=300000)
    for index, header in enumerate(headers):
        header.FrameReferenceTime = 303000 * (index // 2)
    assert suv_bw_factor(headers).warnings == ()
    for header in headers:
        header.SeriesTime = "120000"
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert any("slices disagree by" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("time", "text"),
    [
        ("000000", "is empty (midnight), long before the acquisition 2020-01-02T09:59:59.936"),
        ("000000.00", "is empty (midnight)"),
        ("080000", "2020-01-02T08:00:00 is before the injection 2020-01-02T08:10:13.8"),
        ("081013.70", "2020-01-02T08:10:13.700000 is before the injection"),
    ],
)
def test_a_series_time_that_cannot_be_true(time, text):
    found = suv_bw_factor(altered(SeriesTime=time))
    assert found.factor == pytest.approx(DERIVED, rel=1e-9)
    (warning,) = found.warnings
    assert f"SeriesTime (0008,0031) {text}" in warning
    assert "the start of the series is derived from FrameReferenceTime (0054,1300)" in warning


@pytest.mark.parametrize("time", ["000000", "080000"])
def test_a_series_time_that_cannot_be_true_without_frame_times(time):
    found = suv_bw_factor(altered(SeriesTime=time, FrameReferenceTime=None))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "FrameReferenceTime (0054,1300) or ActualFrameDuration (0018,1242) is missing" in found.warnings[0]


def test_a_scan_that_begins_at_midnight():
    headers = altered(SeriesTime="000000", AcquisitionTime="000000", RadiopharmaceuticalStartTime="221013.80")
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert found.decay_reference == "2020-01-02T00:00:00 (START: SeriesTime)"


def test_frame_times_that_are_no_numbers_do_not_matter_to_a_good_series_time():
    found = suv_bw_factor(altered(ActualFrameDuration=0))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "SeriesTime (0008,0031) cannot be checked: ActualFrameDuration (0018,1242) is 0" in found.warnings[0]


def test_series_times_that_differ_are_told():
    headers = altered()
    for header in headers[:3]:
        header.SeriesTime = "101000"
    for order in (headers, headers[::-1]):
        found = suv_bw_factor(order)
        assert found.factor == pytest.approx(4e-4, rel=1e-12)
        (warning,) = found.warnings
        assert "SeriesTime (0008,0031) differ over the slices, from 2020-01-02T10:00:00 to 2020-01-02T10:10" in warning


@pytest.mark.parametrize("start", ["20200102110000.00", "20200102100002.00", "19991231100500.00"])
def test_ge_scan_start_after_the_acquisition_is_refused(start):
    found = suv_bw_factor(_ge(altered(SeriesTime="120000"), start=start))
    assert found.factor == pytest.approx(DERIVED, rel=1e-9)
    assert any("(0009,100D) of GEMS_PETD_01, 2020-01-02T1" in item and "not used" in item for item in found.warnings)
    assert "derived from FrameReferenceTime (0054,1300)" in found.warnings[-1]


def test_ge_scan_start_far_from_the_slices_is_told():
    """08:30 is 1186.2 s after the injection. Within a minute, and with FrameReferenceTime 0, nothing is said."""
    found = suv_bw_factor(_ge(altered(SeriesTime="120000"), start="20200102083000.00"))
    assert found.factor == pytest.approx(2e-4 * 2 ** (1186.2 / 6586.2), rel=1e-12)
    (warning,) = found.warnings
    assert "2020-01-02T08:30:00, 5400 s from what AcquisitionTime (0008,0032)" in warning
    for reference_ms in (0, 60000):
        headers = altered(SeriesTime="120000", FrameReferenceTime=reference_ms, ActualFrameDuration=300000)
        (warning,) = suv_bw_factor(_ge(headers, start="20200102100000.00")).warnings
        assert " s from what" not in warning


def test_a_scan_across_midnight_without_acquisition_dates():
    """23:50 and, of the later beds, 00:05 of the next day; injected an hour before, at 22:50."""
    headers = altered(
        SeriesTime="235000", AcquisitionTime="235000", AcquisitionDate=None, RadiopharmaceuticalStartTime="225000",
        RadiopharmaceuticalStartDateTime="20200102225000",
    )  # fmt: skip
    for header in headers[3:]:
        header.AcquisitionTime, header.FrameReferenceTime = "000500", 960000
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(2e-4 * 2 ** (3600 / 6586.2), rel=1e-12)
    (warning,) = found.warnings
    assert "AcquisitionDate (0008,0022) is missing, and AcquisitionTime (0008,0032) of 3 slices" in warning
    for header in headers:
        header.DecayCorrection = "NONE"
    none = suv_bw_factor(headers).slice_factors
    assert none[5] / none[0] == pytest.approx(2 ** (900 / 6586.2), rel=1e-9)
