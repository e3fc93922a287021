"""A cohort in one HDF5 file, which any HDF5 library reads without plug-ins.

Layout::

    /                     attributes: format "autopet-cohort", format_version, bundle_version
    /prep.csv             the table of the cohort, text
    /convert.json         from which files each case came, text
    /cases/<case>         attributes: the case's row of prep.csv, one per column
    /cases/<case>/audit.json   text
    /cases/<case>/mip.png      bytes of the picture
    /cases/<case>/SUV     (and CT, PET, CTres, SEG, ORGANS) voxels, axes z, y, x; chunks of whole slices of about 1 MB,
                          gzip; attributes: spacing_mm, origin_mm (x, y, z; LPS), direction (3x3 by rows), units, axes
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from isal import isal_zlib

from autopet import __version__
from autopet.cohort import TABLE
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.organs import ORGANS
from autopet.volume import IDENTITY, Volume
from data_prep.case_store import ROLES, Entry, Row, check_entry, check_rows, columns_of
from data_prep.records import AUDIT, MIP
from data_prep.staging import MARKER, Receipt, described, parse_receipts

FORMAT = "autopet-cohort"
FORMAT_VERSION = 1
CASES = "cases"
COHORT = "cohort.h5"
CHUNK_BYTES = 1 << 20
GZIP_LEVEL = 2  # of isal
UNITS = {
    "CT": "HU",
    "CTres": "HU",
    "PET": "as in the DICOM series",
    "SUV": "g/ml",
    "SEG": "1 is lesion",
    "ORGANS": ", ".join(f"{organ.label} is {organ.name}" for organ in ORGANS),
}


def read_case(file: Path, case: str) -> dict[str, Volume]:
    """The images of one case of an HDF5 cohort, by role.

    Raises
    ------
    AutopetError
        No such file or case, or a damaged file.

    Examples
    --------
    >>> read_case(Path("cohort.h5"), "PETCT_0011_2004")["SUV"].spacing_mm  # doctest: +SKIP
    (2.04, 2.04, 3.0)
    """
    file = Path(file)
    with open_file(file) as opened, _damage_of(file):
        group = opened[CASES].get(case)
        if group is None:
            names = ", ".join(list(opened[CASES])[:3])
            raise AutopetError(f"{file}: no case {case!r} in it; it holds {len(opened[CASES])} cases: {names} ...")
        return _read_volumes(group)


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 cohort; a file that is damaged or something else is one line."""
    if not path.is_file():
        raise AutopetError(f"{path}: no such HDF5 file")
    with _damage_of(path):
        file = h5py.File(path, "r")
        found = (file.attrs.get("format"), file.attrs.get("format_version"))
        if found == (FORMAT, FORMAT_VERSION):
            return file
        file.close()
    raise AutopetError(
        f"{path}: expected an HDF5 file of format {FORMAT} {FORMAT_VERSION}, found {found[0]} {found[1]}; "
        "write one with `autopet convert`"
    )


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """What h5py raises while it reads becomes one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = one_line(error)[:200]
        raise AutopetError(f"{path}: cannot be read as an HDF5 cohort, write or copy it anew ({reason})") from error


def _read_volumes(group: h5py.Group) -> dict[str, Volume]:
    return {role: _read_volume(group[role]) for role in ROLES if role in group}


def _read_volume(dataset: h5py.Dataset) -> Volume:
    spacing, origin = ([float(value) for value in dataset.attrs[key]] for key in ("spacing_mm", "origin_mm"))
    direction = tuple(float(value) for value in dataset.attrs["direction"])
    if (len(spacing), len(origin), len(direction), dataset.ndim) != (3, 3, len(IDENTITY), 3):
        raise ValueError(f"{dataset.name}: geometry or voxels are not three-dimensional")
    return Volume(dataset[()], (spacing[0], spacing[1], spacing[2]), (origin[0], origin[1], origin[2]), direction)


class Hdf5Source:
    """Cases of an opened file."""

    kind = "HDF5 cohort"

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path = path.resolve()
        with _damage_of(path):
            table = file[TABLE].asstr()[()]
        self.rows = check_rows(list(csv.DictReader(io.StringIO(table))), path)

    def case(self, row: Row) -> Hdf5Case:
        """The case of a row."""
        return Hdf5Case(row, self.path)

    def read(self, row: Row) -> Entry:
        """One case; damage in it does not spoil the others."""
        return self.case(row).read()


@dataclass(frozen=True)
class Hdf5Case:
    """One case of a file."""

    row: Row
    path: Path

    def files(self) -> list[Path]:
        """The one file."""
        return [self.path]

    def read(self) -> Entry:
        """Its group."""
        with open_file(self.path) as file, _damage_of(self.path):
            group = file[CASES][self.row["case"]]
            audit = group[AUDIT].asstr()[()] if AUDIT in group else ""
            picture = group[MIP][()].tobytes() if MIP in group else b""
            images = _read_volumes(group)
        return check_entry(Entry(self.row, images, audit, picture), self.path)


class Hdf5Target:
    """A new file; the caller gives it its name when it is whole."""

    left_out = ""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, bundle_version=__version__)
        file.create_group(CASES)

    def write(self, entry: Entry) -> Row:
        """The group of a case."""
        row = {**entry.row, "folder": entry.name}
        group = self._file[CASES].create_group(entry.name)
        try:
            group.attrs.update({key: str(value) for key, value in row.items()})
            if entry.audit:
                group[AUDIT] = entry.audit
            if entry.picture:
                group[MIP] = np.frombuffer(entry.picture, np.uint8)
            for role, volume in entry.images.items():
                _write_volume(group, role, volume, units=_suv_units(entry.audit) if role == "SUV" else UNITS[role])
        except BaseException:
            del self._file[CASES][entry.name]
            raise
        return row

    def finish(self, rows: Sequence[Row]) -> None:
        """The table."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._file[TABLE] = text.getvalue()


@dataclass(frozen=True)
class Hdf5Writer:
    """A case as a file of its own: many processes write side by side, and what is whole survives an interruption."""

    folder: Path
    key: str = "hdf5"

    def write(self, entry: Entry) -> tuple[Row, list[str]]:
        """The file of a case, whole or not at all."""
        with self._new_file(entry.name) as file:
            row = Hdf5Target(file).write(entry)
        return row, [self._name(entry.name)]

    def take(self, earlier: Path, receipt: Receipt) -> bool:
        """Copy the group of a case from an earlier result, without compressing it anew."""
        name = receipt.row["case"]
        try:
            with open_file(earlier) as old, _damage_of(earlier), self._new_file(name) as file:
                file.copy(old[CASES][name], file.create_group(CASES), name)
        except AutopetError:
            return False
        return True

    @staticmethod
    def _name(case: str) -> str:
        return f"{CASES}/{case}.h5"

    @contextmanager
    def _new_file(self, case: str) -> Iterator[h5py.File]:
        with whole_file(self.folder / self._name(case)) as part, h5py.File(part, "w") as file:
            yield file


class Hdf5Cohort:
    """One file, put together of the files of its cases at the end."""

    left_out = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def writer(self, row: Row) -> Hdf5Writer:
        """The same for every case."""
        return Hdf5Writer(self.folder)

    def earlier(self, result: Path) -> dict[str, Receipt]:
        """The cases of an earlier result."""
        try:
            with open_file(result) as file, _damage_of(result):
                return parse_receipts(file[MARKER].asstr()[()])
        except AutopetError:
            return {}

    def finish(self, rows: Sequence[Row], receipts: Mapping[str, Receipt]) -> Path:
        """Copy the groups of the cases as they are compressed, and write the table."""
        path = self.folder / COHORT
        try:
            with h5py.File(path, "w") as file:
                target = Hdf5Target(file)
                for name, receipt in sorted(receipts.items()):
                    (part,) = receipt.file_bytes
                    with h5py.File(self.folder / part) as whole:
                        whole.copy(whole[CASES][name], file[CASES], name)
                file[MARKER] = described("hdf5", receipts)
                target.finish(rows)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            raise AutopetError(f"{path}: cannot be written (disk full or no permission?): {one_line(error)}") from error
        return path


def _suv_units(audit: str) -> str:
    """SUV by body surface area has other units than SUV by weight or lean body mass."""
    try:
        settings = json.loads(audit).get("settings") or {}
        return "cm2/ml" if settings.get("suv_kind") == "bsa" else UNITS["SUV"]
    except (ValueError, AttributeError):
        return UNITS["SUV"]


def _write_volume(group: h5py.Group, role: str, volume: Volume, *, units: str) -> None:
    """Chunks are compressed by isal, about four times as fast as by HDF5's own zlib, and read by any HDF5 library.

    Integers of two bytes and more are shuffled (a fifth smaller CT); PET is stored integers times a factor, whose
    repeated floats deflate finds better whole (113 MB against 161 MB of a 209 MB SUV image).
    """
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    depth = max(1, min(len(array), CHUNK_BYTES // max(array[:1].nbytes, 1)))
    shape = (depth, *array.shape[1:])
    shuffle = array.dtype.kind in "iu" and array.dtype.itemsize > 1
    dataset = group.create_dataset(
        role, array.shape, array.dtype, chunks=shape, compression="gzip", compression_opts=GZIP_LEVEL, shuffle=shuffle
    )
    for start in range(0, len(array), depth):
        part = array[start : start + depth]
        chunk = np.zeros(shape, array.dtype)  # the last one is stored whole, too
        chunk[: len(part)] = part
        data = chunk.reshape(-1).view(np.uint8)
        if shuffle:  # first all first bytes of the numbers, then all second bytes (HDF5's filter 2)
            data = np.ascontiguousarray(data.reshape(-1, array.dtype.itemsize).T)
        dataset.id.write_direct_chunk((start, 0, 0), isal_zlib.compress(data, GZIP_LEVEL))
    dataset.attrs.update(
        spacing_mm=volume.spacing_mm, origin_mm=volume.origin_mm, direction=volume.direction, units=units, axes="zyx"
    )
