from __future__ import annotations

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.alignment import ct_cover_warnings, ct_on_grid

PET = Volume(np.zeros((4, 2, 2), np.float32), (2.0, 2.0, 2.0))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_ct_is_minus_1024_beyond_its_end_and_keeps_its_kind(dtype):
    result = ct_on_grid(Volume(np.full((2, 2, 2), 40, dtype), (2.0, 2.0, 2.0)), PET)
    assert result.array.dtype == dtype
    assert result.same_grid(PET)
    assert result.array[:, 0, 0].tolist() == [40, 40, -1024, -1024]


def test_cover():
    assert ct_cover_warnings(PET, PET) == []
    short = Volume(np.zeros((2, 2, 2), np.int16), (2.0, 2.0, 2.0))
    assert "beyond" in ct_cover_warnings(short, PET)[0]
    with pytest.raises(AutopetError, match="do not overlap"):
        ct_cover_warnings(Volume(short.array, (2.0, 2.0, 2.0), (0.0, 0.0, 100.0)), PET)


@pytest.mark.parametrize("degrees", [0, 12, 25])
def test_cover_of_an_oblique_acquisition(degrees):
    """CT and PET of the same place and orientation: all of the PET is covered, however both lie in the room."""
    angle = np.deg2rad(degrees)
    tilted = (1.0, 0.0, 0.0, 0.0, np.cos(angle), -np.sin(angle), 0.0, np.sin(angle), np.cos(angle))
    pet = Volume(np.zeros((40, 20, 20), np.float32), (4.0, 4.0, 3.0), direction=tilted)
    whole = Volume(np.zeros((40, 40, 40), np.int16), (2.0, 2.0, 3.0), direction=tilted)
    assert ct_cover_warnings(whole, pet) == []
    half = Volume(np.zeros((20, 40, 40), np.int16), (2.0, 2.0, 3.0), direction=tilted)
    assert ct_cover_warnings(half, pet) == ["the CT covers 50 % of the PET's length, -1024 HU beyond"]
