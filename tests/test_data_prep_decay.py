from __future__ import annotations

import math

import pytest
from dicom_maker import altered

from autopet.errors import AutopetError
from data_prep.decay import GE_CREATOR
from data_prep.suv import suv_bw_factor


def test_none_decays_to_each_frames_mean():
    """Frames of 120 s: mean activity after ln(x / (1 - exp(-x))) / lambda, x = ln 2 * 120 / 6000 (59.9 s)."""
    headers = altered(DecayCorrection="NONE", CorrectedImage=["ATTN"])
    for header in headers[3:]:
        header.AcquisitionTime = "100200"  # the second bed
    x = math.log(2) * 120 / 6000
    delay_s = math.log(x / (1 - math.exp(-x))) * 6000 / math.log(2)
    first = 4e-4 * 2 ** (delay_s / 6000)
    assert 59.8 < delay_s < 60
    expected = [first] * 3 + [first * 2 ** (120 / 6000)] * 3
    assert suv_bw_factor(headers).slice_factors == pytest.approx(expected, rel=1e-9)


def test_midnight_from_the_time_of_day():
    """Injected at 23:10, scanned at 00:50 of the next day: 6000 s."""
    found = suv_bw_factor(altered(SeriesTime="005000", AcquisitionTime="005000", RadiopharmaceuticalStartTime="231000"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "taken as the day before" in found.warnings[0]


def test_midnight_from_the_date_time():
    headers = altered(
        SeriesTime="005000", AcquisitionTime="005000", RadiopharmaceuticalStartTime="231000",
        RadiopharmaceuticalStartDateTime="20200101231000.00+0100",
    )  # fmt: skip
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert found.warnings == ()


def test_midnight_between_the_first_and_the_last_bed():
    headers = altered(SeriesTime="235900", AcquisitionTime="235900", RadiopharmaceuticalStartTime="221900")
    headers[0].AcquisitionDate, headers[0].AcquisitionTime = "20200103", "000100"
    assert suv_bw_factor(headers).factor == pytest.approx(4e-4, rel=1e-12)


def test_date_time_goes_before_the_time():
    """The date-time says 6000 s, the time of day 3000 s."""
    headers = altered(RadiopharmaceuticalStartTime="091000", RadiopharmaceuticalStartDateTime="20200102082000")
    assert suv_bw_factor(headers).factor == pytest.approx(4e-4, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "zone"), [("20200102062000+0000", "+0200"), ("20200102012000-0500", "+0200"), ("20200102082000", "+0200")]
)
def test_offset_from_utc_is_converted(text, zone):
    """08:20 in the zone of the other times."""
    found = suv_bw_factor(
        altered(RadiopharmaceuticalStartDateTime=text, RadiopharmaceuticalStartTime=None, TimezoneOffsetFromUTC=zone)
    )
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert found.warnings == ()


def test_offset_from_utc_across_midnight():
    headers = altered(
        RadiopharmaceuticalStartDateTime="20200101232000+0000", RadiopharmaceuticalStartTime=None,
        TimezoneOffsetFromUTC="+0900",
    )  # fmt: skip
    assert suv_bw_factor(headers).factor == pytest.approx(4e-4, rel=1e-12)


def test_offset_from_an_unknown_zone_gives_way_to_the_time_of_day():
    """06:20 UTC and 08:20: two hours are a time zone. 07:43 and 08:20: 37 minutes are not."""
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102062000+0000"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    (warning,) = found.warnings
    for name in (
        "RadiopharmaceuticalStartDateTime (0018,1078) 20200102062000+0000",
        "RadiopharmaceuticalStartTime (0018,1072) 082000.00",
        "TimezoneOffsetFromUTC (0008,0201) is missing",
    ):
        assert name in warning
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102074300+0000"))
    assert found.factor == pytest.approx(4e-4 * 2 ** (37 * 60 / 6000), rel=1e-12)
    assert "RadiopharmaceuticalStartDateTime (0018,1078) is used" in found.warnings[0]


def test_offset_with_the_same_time_of_day_is_local():
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20200102082000+0100"))
    assert (found.factor, found.warnings) == (pytest.approx(4e-4, rel=1e-12), ())


def test_offset_from_an_unknown_zone_without_time_of_day():
    headers = altered(RadiopharmaceuticalStartDateTime="20200102082000+0100", RadiopharmaceuticalStartTime=None)
    found = suv_bw_factor(headers)
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "taken as local" in found.warnings[0]


def test_date_shifted_by_an_anonymiser():
    found = suv_bw_factor(altered(RadiopharmaceuticalStartDateTime="20191120082000"))
    assert found.factor == pytest.approx(4e-4, rel=1e-12)
    assert "only its time is used" in found.warnings[0]


def test_series_time_of_a_later_reconstruction():
    """Acquired at 10:00 as the first frame of a series; SeriesTime is two hours later and must not count."""
    x = math.log(2) * 120 / 6000
    mean_ms = 1000 * math.log(x / (1 - math.exp(-x))) * 6000 / math.log(2)
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
    assert found.factor == pytest.approx(4e-4 / 2 ** (600 / 6000), rel=1e-12)
    assert any("only its time is used" in warning for warning in found.warnings)


def test_injection_after_the_scan():
    headers = altered(RadiopharmaceuticalStartDateTime="20200102110000")
    with pytest.raises(AutopetError, match=r"RadiopharmaceuticalStartDateTime \(0018,1078\) .* 3600 s after"):
        suv_bw_factor(headers)
