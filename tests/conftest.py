"""Small cohorts and cases that the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import TABLE, Case, read_cohort, write_table
from autopet.images import write_image
from autopet.volume import Volume

SPACING_MM = (4.0, 4.0, 6.0)
COLUMNS = ["case", "patient_id", "status", "reason", "folder", "tracer", "centre", "lesion_voxels"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a skip that says so."""
    folder = os.environ.get("AUTOPET_REAL_DATA", "")
    if not folder:
        pytest.skip("AUTOPET_REAL_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks on patches of 16 voxels a side are faster in one thread than in two that wait for each other."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(
    rng: np.random.Generator, *, lesions: int, shape: tuple[int, int, int] = (40, 44, 42)
) -> dict[str, Volume]:
    """A body of SUV about 1 with a hot organ and cubic lesions; CT is water in air."""
    suv = rng.normal(0.02, 0.01, shape).clip(0)
    body = np.zeros(shape, bool)
    body[:, 6:-6, 6:-6] = True
    suv[body] = rng.normal(1.0, 0.1, body.sum()).clip(0)
    suv[2:8, 18:26, 18:26] = rng.normal(6.0, 0.3, (6, 8, 8))  # physiological uptake that a threshold cannot tell apart
    mask = np.zeros(shape, np.uint8)
    for _ in range(lesions):
        z, y, x = (int(rng.integers(low, high)) for low, high in ((14, 32), (10, 28), (10, 26)))
        mask[z : z + 4, y : y + 5, x : x + 5] = 1
    suv[mask == 1] = rng.normal(8.0, 0.3, int(mask.sum()))
    place = {"spacing_mm": SPACING_MM, "origin_mm": (-80.0, -90.0, -500.0)}
    return {
        "SUV": Volume(suv.astype(np.float32), **place),
        "CTres": Volume(np.where(body, 40, -1000).astype(np.int16), **place),
        "SEG": Volume(mask, **place),
    }


def write_cases(folder: Path, count: int, *, seed: int = 0) -> list[Case]:
    """A converted cohort of `count` patients; every fourth has no lesion."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        name = f"case{index:02d}"
        images = make_case(rng, lesions=0 if index % 4 == 3 else 1 + index % 3)
        for kind, volume in images.items():
            write_image(folder / name / f"{kind}.nii.gz", volume)
        row = {"case": name, "patient_id": f"patient{index:02d}", "status": "converted", "reason": "", "folder": name}
        tracer = ("FDG", "PSMA")[index % 2]
        rows.append(row | {"tracer": tracer, "centre": "A", "lesion_voxels": int(images["SEG"].array.sum())})
    write_table(folder / TABLE, rows, COLUMNS)
    return read_cohort(folder)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Eight small cases; read only."""
    return write_cases(tmp_path_factory.mktemp("cohort"), 8)


@pytest.fixture
def input_folder(tmp_path: Path) -> Path:
    """/input of one case, by folders, without inputs.json."""
    images = make_case(np.random.default_rng(3), lesions=2)
    write_image(tmp_path / "input/images/pet/pet_name.mha", images["SUV"])
    write_image(tmp_path / "input/images/ct/ct_name.mha", images["CTres"])
    return tmp_path / "input"
