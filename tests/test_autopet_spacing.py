"""The spacing of a cohort, on grids that lie any way in the patient."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from autopet.cohort import Case
from autopet.images import write_image
from autopet.spacing import median_spacing_mm
from autopet.volume import Volume


def written(path: Path, spacing_mm: tuple[float, float, float], direction: np.ndarray) -> Case:
    case = Case(path.name, "p", path)
    write_image(case.suv, Volume(np.zeros((2, 3, 4), np.float32), spacing_mm, direction=tuple(direction.ravel())))
    return case


def test_median_spacing_is_along_the_patient_s_axes(tmp_path: Path):
    """Rows to the front in 3 mm, columns upwards in 4 mm, slices to the left in 6 mm; also turned by 20 degrees."""
    sagittal = np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]])
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ sagittal
    cases = [
        written(tmp_path / "straight", (3.0, 4.0, 6.0), sagittal),
        written(tmp_path / "oblique", (3.0, 4.2, 6.0), turned),
    ]
    assert median_spacing_mm(cases[:1]) == (6.0, 3.0, 4.0)
    assert median_spacing_mm(cases) == (6.0, 3.0, 4.1)


def test_the_median_of_each_axis_apart(tmp_path: Path):
    spacings = [(2.0, 2.0, 5.0), (4.0, 3.0, 1.0), (3.00004, 9.0, 3.0)]
    cases = [written(tmp_path / str(index), spacing, np.eye(3)) for index, spacing in enumerate(spacings)]
    assert median_spacing_mm(cases) == (3.0, 3.0, 3.0)
