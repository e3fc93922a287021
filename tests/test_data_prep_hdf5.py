from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.case_store import Entry
from data_prep.hdf5 import CHUNK_BYTES, Hdf5Source, Hdf5Target, open_file, read_case

ROW = {"case": "a", "patient_id": "p", "status": "converted", "lesion_voxels": ""}
PLACE = {"spacing_mm": (2.0, 2.5, 3.0), "origin_mm": (-1.0, 2.0, 1 / 3), "direction": (0, 1, 0, 1, 0, 0, 0, 0, -1)}


def write(path: Path, *, audit: str = "", shape: tuple[int, int, int] = (7, 300, 310), **images: np.ndarray) -> Path:
    """One case; SUV and CTres are there in any case."""
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    volumes = {role: Volume(array, **PLACE) for role, array in ({"SUV": noise, "CTres": noise} | images).items()}
    with h5py.File(path, "w") as file:
        target = Hdf5Target(file)
        target.finish([target.write(Entry(ROW, volumes, audit))])
    return path


@pytest.mark.parametrize("kind", ["bool", "uint8", "int8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 300, 310), (1, 1, 1), (3, 900, 800), (65, 20, 20)])
def test_plain_h5py_reads_what_was_written(tmp_path: Path, kind: str, shape: tuple[int, int, int]):
    """The chunks are compressed outside HDF5; its own filters must give the voxels back, also of a short last one."""
    voxels = np.random.default_rng(1).integers(-100, 100, shape).astype(kind)
    path = write(tmp_path / "a.h5", shape=shape, SEG=voxels)
    with h5py.File(path) as file:
        dataset = file["cases/a/SEG"]
        np.testing.assert_array_equal(dataset[()], voxels)
        assert dataset.dtype == (np.uint8 if kind == "bool" else voxels.dtype)
        assert dataset.compression == "gzip"
        assert dataset.shuffle == (kind in {"int16", "uint16", "int32"})
        assert dataset.chunks[1:] == shape[1:]
        assert np.prod(dataset.chunks) * dataset.dtype.itemsize <= max(CHUNK_BYTES, voxels[0].nbytes)
        np.testing.assert_array_equal(dataset[-1, : shape[1] // 2], voxels[-1, : shape[1] // 2])


def test_what_the_file_says_of_itself(tmp_path: Path):
    audit = json.dumps({"settings": {"suv_kind": "bsa"}})
    with h5py.File(write(tmp_path / "a.h5", audit=audit)) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("autopet-cohort", 1)
        group = file["cases/a"]
        assert group.attrs["patient_id"] == "p"
        assert group["audit.json"].asstr()[()] == audit
        attributes = dict(group["SUV"].attrs)
    assert attributes["units"] == "cm2/ml"
    assert attributes["axes"] == "zyx"
    assert tuple(attributes["origin_mm"]) == PLACE["origin_mm"]
    assert tuple(attributes["spacing_mm"]) == PLACE["spacing_mm"]
    assert tuple(attributes["direction"]) == PLACE["direction"]


def test_geometry_is_exact(tmp_path: Path):
    back = read_case(write(tmp_path / "a.h5"), "a")["SUV"]
    assert back.spacing_mm == PLACE["spacing_mm"]
    assert back.origin_mm == PLACE["origin_mm"]
    assert back.direction == PLACE["direction"]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, share: float):
    path = write(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(AutopetError, match=r"a.h5: cannot be read as an HDF5 cohort, write or copy it anew"):
        read_case(path, "a")


def test_a_damaged_chunk_is_one_line_and_costs_its_case_only(tmp_path: Path):
    path = tmp_path / "a.h5"
    noise = np.random.default_rng(0).normal(size=(3, 300, 310)).astype(np.float32)
    images = {"SUV": Volume(noise), "CTres": Volume(noise)}
    with h5py.File(path, "w") as file:
        target = Hdf5Target(file)
        rows = [target.write(Entry(ROW | {"case": name}, images)) for name in "ab"]
        target.finish(rows)
        chunk = file["cases/a/SUV"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with open_file(path) as opened:
        source = Hdf5Source(opened, path)
        with pytest.raises(AutopetError, match="cannot be read as an HDF5 cohort"):
            source.read(source.rows[0])
        np.testing.assert_array_equal(source.read(source.rows[1]).images["SUV"].array, noise)


def test_other_hdf5_files(tmp_path: Path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(AutopetError, match="expected an HDF5 file of format autopet-cohort 1, found None"):
        read_case(tmp_path / "other.h5", "a")
    with h5py.File(tmp_path / "newer.h5", "w") as file:
        file.attrs.update(format="autopet-cohort", format_version=2)
    with pytest.raises(AutopetError, match="found autopet-cohort 2"):
        read_case(tmp_path / "newer.h5", "a")
    with pytest.raises(AutopetError, match="no such HDF5 file"):
        read_case(tmp_path / "none.h5", "a")


def test_a_case_that_cannot_be_written_leaves_no_group(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        target = Hdf5Target(file)
        bad = Volume(np.zeros((2, 2, 2), "V3"))
        with pytest.raises(Exception):  # noqa: B017
            target.write(Entry(ROW, {"CT": Volume(np.zeros((2, 2, 2))), "unknown": bad}))
        assert list(file["cases"]) == []
