"""Decode the pixels of CT and PET files, with bounds that a damaged or hostile file cannot exceed.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders import JPEGLSLosslessDecoder
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from autopet.errors import AutopetError, one_line
from data_prep.attributes import tag_name, whole_number
from data_prep.inventory import Series
from data_prep.multiframe import is_multiframe
from data_prep.stacking import named

LARGEST_SIDE = 8192  # rows or columns of a plane; CT has up to 2048
LARGEST_VOLUME = 2_000_000_000  # voxels of a series: 8 GB of float32; 1500 slices of 1024 x 1024 are below
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
JPEGS = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, *JPEG_LS)
JPEGS_2000 = (JPEG2000Lossless, JPEG2000)
JPEG_END = b"\xff\xd9"  # the marker EOI, ISO 10918-1 B.1.1.3
JPEG_SCAN = 0xDA  # the marker SOS: what comes behind is compressed
JPEG_SIZES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers, SOF, ISO 10918-1 B.2.2 and 14495-1 C.2.2
JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, ISO 15444-1 A.5.1
PADDING_BYTES = 16  # behind the end of a stream; archives pad with zeros, 0xff or blanks


def stored_values(data: Dataset, path: Path) -> np.ndarray:
    """The stored values of a file with pixels, as the decoder gives them.

    Raises
    ------
    AutopetError
        There are no pixels, they cannot be decoded, or would be larger than the bounds; names the tag.
    """
    if not data.get("PixelData"):
        raise AutopetError(f"{path}: {tag_name('PixelData')} is missing or empty; export the file anew")
    try:
        _refuse_size(data)
    except AutopetError as error:
        raise AutopetError(f"{path}: {error}") from error
    try:
        return _decoded(data)
    except Exception as error:  # decoders raise what they like
        syntax = data.file_meta.get("TransferSyntaxUID")
        raise AutopetError(
            f"{path}: {tag_name('PixelData')} cannot be decoded, {tag_name('TransferSyntaxUID')} "
            f"{getattr(syntax, 'name', 'missing')}: {one_line(error)}"
        ) from error


def refuse_volume(series: Series) -> None:
    """Raise when the headers of a series tell of more voxels than a study can have; before any is decoded."""
    voxels = 0
    for path, header in zip(series.paths, series.headers, strict=True):
        try:
            size = _size(header)
        except AutopetError:  # a number is missing: reading the file says what is wrong with it
            continue
        voxels += named(path, partial(_bounded, size=size), header)
    if voxels > LARGEST_VOLUME:
        raise AutopetError(
            f"{series.title} has {voxels:.3g} voxels ({tag_name('Rows')}, {tag_name('Columns')}, "
            f"{tag_name('NumberOfFrames')}), expected {LARGEST_VOLUME:.3g} at most; export one reconstruction only"
        )


def _size(header: Dataset) -> tuple[int, int, int]:
    """Rows, columns and frames (C.7.6.3, C.7.6.6) that decoders build upon and take memory for."""
    rows, columns = whole_number(header, "Rows", least=1), whole_number(header, "Columns", least=1)
    return rows, columns, whole_number(header, "NumberOfFrames", default=1, least=1)


def _bounded(header: Dataset, *, size: tuple[int, int, int], samples: int = 1) -> int:
    """Number of values of a file of so many rows, columns and frames; an error when it is absurd."""
    rows, columns, frames = size
    if max(rows, columns) > LARGEST_SIDE:
        raise AutopetError(
            f"{tag_name('Rows')} and {tag_name('Columns')} are {rows} and {columns}, expected {LARGEST_SIDE} at most; "
            "export the file anew"
        )
    if frames > 1 and not is_multiframe(header):
        raise AutopetError(
            f"{tag_name('NumberOfFrames')} is {frames}, expected one frame in a file of this "
            f"{tag_name('SOPClassUID')}; export the file anew"
        )
    if rows * columns * frames * samples > LARGEST_VOLUME:
        raise AutopetError(
            f"{tag_name('NumberOfFrames')} is {frames}, of {rows} {tag_name('Rows')}, {columns} "
            f"{tag_name('Columns')} and {samples} {tag_name('SamplesPerPixel')}: expected {LARGEST_VOLUME:.3g} values "
            "at most; export the file anew"
        )
    return rows * columns * frames * samples


def _refuse_size(data: Dataset) -> None:
    samples, _ = (whole_number(data, keyword, least=1) for keyword in ("SamplesPerPixel", "BitsAllocated"))
    _bounded(data, size=_size(data), samples=samples)


def _decoded(data: Dataset) -> np.ndarray:
    """Stored values; of a JPEG stream only when it is whole and of the size that the header says.

    The last decoder that pydicom tries, libjpeg, fills what a cut stream lacks with zeros and does not say so.
    """
    syntax = data.file_meta.TransferSyntaxUID
    if syntax in (*JPEGS, *JPEGS_2000):
        number = whole_number(data, "NumberOfFrames", default=1)
        frames = list(generate_frames(data.PixelData, number_of_frames=number))
        for size in map(_stream_size, frames):
            if size and size != (data.Rows, data.Columns):
                raise ValueError(
                    f"the stream has {size[0]} rows and {size[1]} columns, {tag_name('Rows')} is {data.Rows} and "
                    f"{tag_name('Columns')} is {data.Columns}; export the file anew"
                )
        if syntax in JPEGS:
            trimmed = [_without_padding(frame) for frame in frames]
            if trimmed != [frame.rstrip(b"\0") for frame in frames]:  # other padding is damage to decoders
                data.PixelData = encapsulate(trimmed)
                for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # those of the padded frames
                    data.pop(keyword, None)
    if syntax in JPEG_LS and "pyjpegls" in JPEGLSLosslessDecoder.available_plugins:
        data.pixel_array_options(decoding_plugin="pyjpegls")  # the strict one
    return data.pixel_array


def _without_padding(frame: bytes) -> bytes:
    """A JPEG stream up to its end; compressed bytes never look like the marker (ISO 10918-1 B.1.1.5)."""
    end = frame.rstrip(b"\0 \xff").rfind(JPEG_END, -PADDING_BYTES - len(JPEG_END))
    if end < 0:
        raise ValueError("the JPEG stream is cut off: it does not end with the marker EOI; export the file anew")
    return frame[: end + len(JPEG_END)]


def _stream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG or JPEG 2000 stream says itself; None when it does not, or is no such stream."""
    if frame.startswith(JPEG_2000_START) and len(frame) >= 24:
        right, bottom, left, top = (int.from_bytes(frame[start : start + 4]) for start in (8, 12, 16, 20))
        return bottom - top, right - left
    for marker, segment in _segments(frame):
        if marker in JPEG_SIZES:
            rows, columns = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
            return (rows, columns) if rows else None  # 0: said later, by the marker DNL
    return None


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers of a JPEG stream with the bytes of their segments, up to the first scan."""
    start = 2  # behind SOI
    while start + 4 <= len(frame) and frame[start] == 0xFF and frame[start + 1] != JPEG_SCAN:
        if frame[start + 1] == 0xFF:  # fill byte
            start += 1
            continue
        length = int.from_bytes(frame[start + 2 : start + 4])
        yield frame[start + 1], frame[start + 4 : start + 2 + length]
        start += 2 + length
