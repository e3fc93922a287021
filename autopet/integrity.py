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
from pathlib import Path
from typing import BinaryIO

import numpy as np

from autopet.errors import AutopetError

CHUNK = 1 << 22
HEADER_LIMIT = 1 << 16
NIFTI_HEADER = 352
NIFTI_FLOATS = {16: "f4", 64: "f8"}  # datatype codes whose voxels can be NaN (NIfTI-1 standard, `datatype`)
META_BYTES = {"UCHAR": 1, "CHAR": 1, "USHORT": 2, "SHORT": 2, "UINT": 4, "INT": 4, "FLOAT": 4, "DOUBLE": 8}
META_BYTES |= {"ULONG": 4, "LONG": 4, "ULONG_LONG": 8, "LONG_LONG": 8}
MOST_DIMENSIONS = 7


def check_file(path: Path) -> None:
    """Refuse a damaged MetaImage or NIfTI file; other formats are left to their reader.

    Raises
    ------
    AutopetError
        Truncated or damaged data, NaN or infinite voxels in a NIfTI file, a header that makes no sense.
    """
    name = path.name.lower()
    try:
        if name.endswith(".nii.gz"):
            with gzip.open(path, "rb") as file:
                _check_nifti(file, path)
        elif name.endswith(".nii"):
            with path.open("rb") as file:
                _check_nifti(file, path)
        elif name.endswith((".mha", ".mhd")):
            _check_meta(path)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error, ValueError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error


def _damaged(path: Path, reason: str) -> AutopetError:
    return AutopetError(f"{path}: cannot be read as an image, write or copy it anew ({reason})")


def _chunks(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _check_nifti(file: BinaryIO | gzip.GzipFile, path: Path) -> None:
    """Header, then all voxels: enough of them, and finite. Reading a .gz to its end checks its checksum, too."""
    header = file.read(NIFTI_HEADER)
    order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", header[:4])[0] != 348:
        return  # NIfTI-2 or Analyze: the reader's business
    dimensions = struct.unpack(order + "8h", header[40:56])
    datatype, bits = struct.unpack(order + "2h", header[70:74])
    offset = int(struct.unpack(order + "f", header[108:112])[0])
    if not 1 <= dimensions[0] <= MOST_DIMENSIONS:
        raise ValueError(f"{dimensions[0]} dimensions")
    expected = math.prod(max(size, 1) for size in dimensions[1 : dimensions[0] + 1]) * bits // 8
    kind = NIFTI_FLOATS.get(datatype)
    voxels, bad = 0, 0
    rest = b""
    skip = max(offset - NIFTI_HEADER, 0)
    for chunk in _chunks(file):
        body, skip = chunk[skip:], max(skip - len(chunk), 0)
        voxels += len(body)
        if voxels > expected + CHUNK:
            raise ValueError(f"more than the {expected} bytes of voxels that its header announces")
        if kind:
            data = rest + body
            whole = len(data) - len(data) % int(kind[1])
            bad += int(np.count_nonzero(~np.isfinite(np.frombuffer(data[:whole], order + kind))))
            rest = data[whole:]
    if voxels < expected:
        raise ValueError(f"{voxels} of {expected} bytes of voxels")
    if bad:
        raise AutopetError(f"{path}: {bad} voxels are NaN or infinite; convert the study again or fill them")


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
