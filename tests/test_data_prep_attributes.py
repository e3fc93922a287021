from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, orientation, pixel_spacing, position, tag_name, values


def test_tag_name():
    assert tag_name("PatientWeight") == "PatientWeight (0010,1030)"


def test_values():
    header = Dataset()
    header.CorrectedImage, header.Units, header.PatientWeight = ["DECY", "ATTN"], "", "70"
    assert values(header, "CorrectedImage") == ("DECY", "ATTN")
    assert values(header, "Units") == values(header, "SeriesTime") == ()
    assert values(header, "PatientWeight") == ("70",)


def test_pixel_spacing_is_turned_to_x_y():
    header = Dataset()
    header.PixelSpacing = [5, 4]
    assert pixel_spacing(header) == (4.0, 5.0)


def test_orientation_is_made_orthonormal():
    header = Dataset()
    header.ImageOrientationPatient = [1, 0, 0, 0, 0.8, 0.6]
    np.testing.assert_allclose(orientation(header), [[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]], atol=1e-12)
    header.ImageOrientationPatient = [1, 0, 0, 0.5, 0.8, 0.6]
    with pytest.raises(AutopetError, match=r"ImageOrientationPatient \(0020,0037\) .* not two orthogonal"):
        orientation(header)


def test_reader_records_what_it_reads():
    header = Dataset()
    header.PatientWeight, header.CorrectedImage = "70", ["DECY", "ATTN"]
    reader = Reader(header)
    assert reader.positive("PatientWeight", "kg") == 70
    assert reader.text("CorrectedImage") == "DECY"
    assert reader.text("Units") == ""
    assert reader.inputs == {"PatientWeight": "70", "CorrectedImage": "DECY\\ATTN"}


@pytest.mark.parametrize("spacing", [[0, 4], [5, -4]])
def test_pixel_spacing_is_above_zero(spacing):
    header = Dataset()
    header.PixelSpacing = spacing
    with pytest.raises(AutopetError, match=r"PixelSpacing \(0028,0030\) is .* expected mm above 0"):
        pixel_spacing(header)


def test_a_place_that_is_no_number_names_the_tag(tmp_path):
    """pydicom converts a value when it is first asked for: what a file holds is found out late."""
    header = Dataset()
    header.add_new("ImagePositionPatient", "DS", ["1", "2", "3"])
    path = tmp_path / "file"
    header.save_as(path, implicit_vr=True, little_endian=True)
    path.write_bytes(path.read_bytes().replace(b"1\\2\\3", b"1\\x\\3"))
    damaged = pydicom.dcmread(path, force=True)
    with pytest.raises(AutopetError, match=r"ImagePositionPatient \(0020,0032\) cannot be read .*; export"):
        position(damaged)
    header.ImagePositionPatient = [1, 2]
    with pytest.raises(AutopetError, match=r"ImagePositionPatient \(0020,0032\) needs 3 numbers, found \[1.0, 2.0\]"):
        position(header)
