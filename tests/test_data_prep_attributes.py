from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from data_prep.attributes import Reader, orientation, pixel_spacing, tag_name, values


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
