"""Whether an image file is whole, asked before ITK reads it.

ITK fills the rest of a truncated .nii.gz with zeros, returns a buffer that failed to decompress, reads NaN in NIfTI as
0, and crashes on absurd headers. A damaged or hostile file must be an error instead.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError

from autopet.errors import AutopetError

CHUNK = 1 << 22
HEADER_LIMIT = 1 << 16
NIFTI_HEADER = 352
NIFTI_FLOATS = {16: "f4", 64: "f8"}  # datatype codes whose voxels can be NaN (NIfTI-1 standard, `datatype`)
META_BYTES = {"UCHAR": 1, "CHAR": 1, "USHORT": 2, "SHORT": 2, "UINT": 4, "INT": 4, "FLOAT": 4, "DOUBLE": 8}
META_BYTES |= {"ULONG": 4, "LONG": 4, "ULONG_LONG": 8, "LONG_LONG": 8}
MOST_DIMENSIONS = 7
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
MOST_DEFLATION = 1032  # times that deflate can shrink data (zlib's technical notes); a header may not announce more


def check_file(path: Path, *, keep: bool = False) -> np.ndarray | None:
    """Refuse a damaged MetaImage or NIfTI file; other formats are left to their reader.

    Parameters
    ----------
    keep : bool
        Keep the voxels of a .nii.gz, so that it need not be decompressed a second time.

    Returns
    -------
    (n,) array or None
        The voxels in the order of the file, if they were to be kept and are stored as they are (not rescaled).

    Raises
    ------
    AutopetError
        Truncated or damaged data, NaN or infinite voxels in a NIfTI file, a header that makes no sense.
    """
    name = path.name.lower()
    try:
        if name.endswith(".nii.gz"):
            with igzip.open(path, "rb") as file:
                return _check_nifti(file, path, keep=keep)
        elif name.endswith(".nii"):
            with path.open("rb") as file:
                _check_nifti(file, path)
        elif name.endswith((".mha", ".mhd")):
            _check_meta(path)
    except (EOFError, gzip.BadGzipFile, zlib.error, IsalError, struct.error, ValueError) as error:  # type: ignore[misc]
        raise _damaged(path, str(error) or type(error).__name__) from error
    return None


def _damaged(path: Path, reason: str) -> AutopetError:
    return AutopetError(f"{path}: cannot be read as an image, write or copy it anew ({reason})")


def _chunks(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


@dataclass(frozen=True)
class _NiftiHeader:
    """What the header says about the voxels that follow it."""

    order: str  # of bytes, as NumPy writes it
    datatype: int
    expected: int  # bytes of voxels
    skip: int  # bytes between header and voxels
    rescaled: bool

    @property
    def kind(self) -> str | None:
        """NumPy's name of the voxels' type, None for colours, complex numbers and such."""
        return NIFTI_TYPES.get(self.datatype)


def _nifti_header(header: bytes) -> _NiftiHeader | None:
    """The fields of a NIfTI-1 header; None for NIfTI-2 or Analyze, which are the reader's business."""
    order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", header[:4])[0] != 348:
        return None
    dimensions = struct.unpack(order + "8h", header[40:56])
    datatype, bits = struct.unpack(order + "2h", header[70:74])
    offset, slope, intercept = struct.unpack(order + "3f", header[108:120])
    if not 1 <= dimensions[0] <= MOST_DIMENSIONS:
        raise ValueError(f"{dimensions[0]} dimensions")
    expected = math.prod(max(size, 1) for size in dimensions[1 : dimensions[0] + 1]) * bits // 8
    rescaled = slope not in {0, 1} or (slope == 1 and intercept != 0)  # 0: no scaling (NIfTI-1 standard, `scl_slope`)
    return _NiftiHeader(order, datatype, expected, max(int(offset) - NIFTI_HEADER, 0), rescaled)


def _check_nifti(file: BinaryIO | gzip.GzipFile, path: Path, *, keep: bool = False) -> np.ndarray | None:
    """Header, then all voxels: enough of them, and finite. Reading a .gz to its end checks its checksum, too."""
    header = _nifti_header(file.read(NIFTI_HEADER))
    if header is None:
        return None
    if header.expected > path.stat().st_size * MOST_DEFLATION:
        raise ValueError(f"{path.stat().st_size} bytes cannot hold the {header.expected} bytes of voxels announced")
    kept = np.empty(header.expected, np.uint8) if keep and header.kind and not header.rescaled else None
    voxels, bad, skip = 0, 0, header.skip
    rest = b""
    for chunk in _chunks(file):
        body, skip = chunk[skip:], max(skip - len(chunk), 0)
        if kept is not None and voxels < header.expected:
            part = np.frombuffer(body, np.uint8)[: header.expected - voxels]
            kept[voxels : voxels + len(part)] = part
        voxels += len(body)
        if voxels > header.expected + CHUNK:
            raise ValueError(f"more than the {header.expected} bytes of voxels that its header announces")
        if header.datatype in NIFTI_FLOATS:
            more, rest = _not_finite(rest + body, header.order + NIFTI_FLOATS[header.datatype])
            bad += more
    if voxels < header.expected:
        raise ValueError(f"{voxels} of {header.expected} bytes of voxels")
    if bad:
        raise AutopetError(f"{path}: {bad} voxels are NaN or infinite; convert the study again or fill them")
    if kept is None or header.expected % np.dtype(header.kind).itemsize:
        return None
    return kept.view(f"{header.order}{header.kind}").astype(f"={header.kind}", copy=False)


def _not_finite(data: bytes, kind: str) -> tuple[int, bytes]:
    """How many numbers are NaN or infinite, and the bytes of an unfinished number at the end."""
    whole = len(data) - len(data) % int(kind[-1])
    return int(np.count_nonzero(~np.isfinite(np.frombuffer(data[:whole], kind)))), data[whole:]


def _check_meta(path: Path) -> None:
    """Header fields that crash the reader, and the compressed body's length and end."""
    with path.open("rb") as file:
        head = file.read(HEADER_LIMIT)
        match = re.search(rb"(?:^|\n)ElementDataFile *= *([^\r\n]*)\r?\n", head)
        if not match:
            raise ValueError("no MetaImage header")
        fields = {
            key.strip().decode("latin-1"): value.strip().decode("latin-1")
            for key, _, value in (line.partition(b"=") for line in head[: match.end()].splitlines())
        }
        sizes = [int(size) for size in fields.get("DimSize", "").split()]
        dimensions = int(fields.get("NDims", "0"))
        if not 1 <= dimensions <= MOST_DIMENSIONS or len(sizes) != dimensions or min(sizes) < 1:
            raise ValueError(f"NDims {fields.get('NDims')} with DimSize {fields.get('DimSize')}")
        if fields.get("CompressedData", "False").lower() != "true" or match.group(1).strip() != b"LOCAL":
            return
        width = META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"), 0)
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        expected = math.prod(sizes) * width * channels
        file.seek(match.end())
        _check_zlib(file, expected)


def _check_zlib(file: BinaryIO, expected: int) -> None:
    """Decompress piece by piece, keeping nothing: the stream must end where the header says."""
    stream = zlib.decompressobj()
    length = 0
    for chunk in _chunks(file):
        data = chunk
        while data and not stream.eof:
            length += len(stream.decompress(data, CHUNK))
            data = stream.unconsumed_tail
            if expected and length > expected:
                raise ValueError(f"more than the {expected} bytes of voxels that its header announces")
    if not stream.eof or (expected and length != expected):
        raise ValueError(f"{length} of {expected} bytes of voxels")
