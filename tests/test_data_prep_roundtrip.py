"""A full-size phantom study written as DICOM and converted again: the simulated voxels come back, where they were."""

from __future__ import annotations

import datetime as dt
import functools
from pathlib import Path

import numpy as np
import pytest

from autopet.images import read_image
from autopet.volume import Volume
from data_prep.anatomy import Habitus
from data_prep.attributes import read_dicom
from data_prep.convert import prepare
from data_prep.dicom_write import StudyHeader, write_study
from data_prep.formats import convert_cohort
from data_prep.imaging import SCANNERS
from data_prep.simulation import SimulatedStudy, simulate

CORNER_MM = 1e-4
ALL = ("CT", "PET", "SUV", "CTres", "SEG")
INJECTED = dt.datetime(2004, 5, 6, 23, 32, 0)  # midnight lies between injection and scan
HEADER = StudyHeader(
    entropy="round trip", patient_id="PETCT_1", description="PET-CT", sex="F", age_years=61, weight_kg=71.3,
    height_m=1.68, tracer="FDG", nuclide="18F", dose_bq=3.01e8, injected=INJECTED,
    start=INJECTED + dt.timedelta(minutes=63), manufacturer="SIEMENS", model="Biograph64_mCT",
)  # fmt: skip


def _turned(axis: int, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix[[first, second], [first, second]] = cos
    matrix[second, first], matrix[first, second] = sin, -sin
    return matrix


DIRECTIONS = {
    "head first": np.eye(3),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "oblique": _turned(0, 12.0) @ _turned(1, 12.0),
}


@pytest.fixture(scope="module")
def simulated() -> SimulatedStudy:
    """One patient on the grid of the FDG collection: 400 x 400 pixels of 2.04 mm, slices of 3 mm."""
    rng = np.random.default_rng(17)
    habitus = Habitus.sample(rng, male=True, brown_fat=0.0)
    return simulate(rng, scanner=SCANNERS["A", "full"], tracer="FDG", diagnosis="LUNG_CANCER", habitus=habitus, fine=2)


def _placed(volume: Volume, matrix: np.ndarray) -> Volume:
    origin_mm = tuple(float(value) for value in matrix @ np.asarray(volume.origin_mm))
    direction = tuple(float(value) for value in matrix.ravel())
    return Volume(volume.array, volume.spacing_mm, (origin_mm[0], origin_mm[1], origin_mm[2]), direction)


def _half_steps(folder: Path, volume: Volume) -> np.ndarray:
    """Half a quantisation step of each slice in SUV, by hand: slope times weight over the decayed dose."""
    seconds = (HEADER.start - HEADER.injected).total_seconds()
    factor = 1000.0 * 71.3 / (3.01e8 * 0.5 ** (seconds / 6586.2))
    normal = np.reshape(volume.direction, (3, 3))[:, 2]
    headers = [read_dicom(path, pixels=False) for path in folder.iterdir()]
    headers.sort(key=lambda header: float(np.asarray(header.ImagePositionPatient, dtype=float) @ normal))
    return np.array([float(header.RescaleSlope) for header in headers]) * factor / 2


@pytest.fixture(scope="module")
def converted(simulated, tmp_path_factory):
    """DICOM and cohort of the study as it lies in the scanner; made once for each way to lie."""

    @functools.cache
    def convert(lie: str) -> tuple[Path, Path, dict]:
        folder = tmp_path_factory.mktemp("study")
        pet, ct, mask = (_placed(volume, DIRECTIONS[lie]) for volume in (simulated.pet, simulated.ct, simulated.mask))
        write_study(folder / "in", HEADER, pet=pet, ct=ct, mask=mask)
        (row,) = prepare(folder / "in", folder / "out")
        return folder / "in", folder / "out", row

    return convert


@pytest.mark.parametrize("lie", DIRECTIONS)
def test_full_size_study_comes_back(simulated, converted, lie):
    pet, ct, mask = (_placed(volume, DIRECTIONS[lie]) for volume in (simulated.pet, simulated.ct, simulated.mask))
    assert pet.shape[1:] == (400, 400)
    assert pet.shape[0] >= 326
    assert mask.array.any()
    source, out, row = converted(lie)
    assert (row["status"], row["reason"]) == ("converted", "")
    images = {path.name: read_image(path) for path in (out / row["case"]).glob("*.nii.gz")}
    for name, truth in (("CT", ct), ("PET", pet), ("SUV", pet), ("CTres", pet), ("SEG", mask)):
        assert images[f"{name}.nii.gz"].grid_difference(truth, CORNER_MM) == ""
    found, expected = images["SUV.nii.gz"].array, np.maximum(pet.array, 0)
    rounding = 4 * np.finfo(np.float32).eps * expected.max(axis=(1, 2))  # of the product, the factor and the file
    apart = np.abs(found - expected).max(axis=(1, 2))
    assert (apart <= _half_steps(source / "PT", pet) + rounding).all()
    np.testing.assert_array_equal(images["SEG.nii.gz"].array, mask.array)
    np.testing.assert_array_equal(images["CT.nii.gz"].array, np.clip(ct.array, -1024, None))


@pytest.mark.parametrize(("form", "roles"), [("mha", ALL), ("hdf5", ALL), ("nnunet", ("SUV", "CTres", "SEG"))])
def test_full_size_cohort_goes_through_every_format_and_back(tmp_path, converted, form, roles):
    """The oblique one, whose geometry is the hardest to keep: voxels and types are equal, corners to 1e-4 mm."""
    _, cohort, row = converted("oblique")
    there = convert_cohort(cohort, tmp_path / ("c.h5" if form == "hdf5" else "there"), to=form)
    back = convert_cohort(there.path, tmp_path / "back", to="nifti")
    assert [found["status"] for found in back.rows] == ["converted"]
    for role in roles:
        first = read_image(cohort / row["case"] / f"{role}.nii.gz")
        second = read_image(tmp_path / "back" / row["case"] / f"{role}.nii.gz")
        assert second.grid_difference(first, CORNER_MM) == ""
        assert second.array.dtype == first.array.dtype
        np.testing.assert_array_equal(second.array, first.array)
