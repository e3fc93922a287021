"""Image files in and out (mha, NIfTI); the only module that reads or writes them. Geometry is always kept."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from isal import igzip

from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.integrity import NIFTI_HEADER, check_file
from autopet.volume import Volume, from_sitk, to_sitk

READERS = {  # by suffix, never by content: a file that says it is .mha must not be read as something else
    ".mha": "MetaImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
}
SUFFIXES = tuple(READERS)
GZIP_LEVEL = 2  # of isal, 0 to 3: within 4 % of zlib's size on SUV, CT and masks, in a fifth of the time
CHUNK = 1 << 22
NIFTI_MOST_VOXELS = 2**15 - 1
Triple = tuple[float, float, float]


def is_image(path: Path) -> bool:
    """Whether the name ends like an image file that `read_image` opens (hidden files do not count)."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def image_stem(path: Path | str) -> str:
    """File name without its image suffix: `case.nii.gz` -> `case`."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def read_image(path: Path) -> Volume:
    """Read a 3D image with its geometry.

    Raises
    ------
    AutopetError
        The file is missing, cannot be decoded, or is not three-dimensional with one value per voxel.
    """
    path = Path(path)
    with _opened(path, keep=True) as (reader, voxels):
        size = reader.GetSize()[:3]
        if voxels is None or voxels.size != np.prod(size):
            return from_sitk(reader.Execute())
        return Volume(voxels.reshape(size[::-1]), *_geometry(reader))


def read_grid(path: Path) -> Volume:
    """The grid of an image from its header alone: shape and geometry, all voxels a read-only 0.

    The file is checked to be whole, but its voxels are not kept: a small file can announce a huge image.
    """
    with _opened(Path(path)) as (reader, _):
        return Volume(np.broadcast_to(np.uint8(0), reader.GetSize()[2::-1]), *_geometry(reader))


def _geometry(reader: sitk.ImageFileReader) -> tuple[Triple, Triple, tuple[float, ...]]:
    """Spacing, origin and direction of the first three axes."""
    matrix = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:3, :3]
    direction = tuple(float(value) for value in matrix.ravel())
    return _first_three(reader.GetSpacing()), _first_three(reader.GetOrigin()), direction


def _first_three(values: tuple[float, ...]) -> Triple:
    return values[0], values[1], values[2]


@contextmanager
def _opened(path: Path, *, keep: bool = False) -> Iterator[tuple[sitk.ImageFileReader, np.ndarray | None]]:
    """A reader whose header has been read and found three-dimensional; ITK's errors become one line.

    With it come the voxels, in one line as they lie in the file, where the check for damage could `keep` them.
    """
    if not path.is_file():
        raise AutopetError(f"{path}: no such image file")
    if not is_image(path):
        raise AutopetError(f"{path}: unknown image suffix, use one of {', '.join(SUFFIXES)}")
    try:
        voxels = check_file(path, keep=keep)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(READERS[next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))])
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        _refuse_other_dimensions(reader, path)
        yield reader, voxels
    except (RuntimeError, ValueError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[-1]
        raise AutopetError(f"{path}: cannot be read as an image, write or copy it anew ({reason})") from error


def _refuse_other_dimensions(reader: sitk.ImageFileReader, path: Path) -> None:
    size = [n for n in reader.GetSize()]
    while len(size) > 3 and size[-1] == 1:  # NIfTI writers pad with axes of length 1
        size.pop()
    if len(size) != 3:
        raise AutopetError(
            f"{path}: expected a 3D image, found {len(size)}D of size {tuple(size)}; export one 3D volume"
        )
    if reader.GetNumberOfComponents() != 1:
        raise AutopetError(f"{path}: expected one value per voxel, found {reader.GetNumberOfComponents()} channels")
    if reader.GetDimension() > 3:
        reader.SetExtractSize(size + [0] * (reader.GetDimension() - 3))


def write_image(path: Path, volume: Volume) -> Path:
    """Write a volume; the suffix names the format. The file appears whole or not at all.

    Boolean voxels become uint8, float64 becomes float32; .mha and .nii.gz are compressed.
    """
    path = Path(path)
    if not is_image(path):
        raise AutopetError(f"{path}: unknown image suffix, use one of {', '.join(SUFFIXES)}")
    array = volume.array.astype(np.float32) if volume.array.dtype == np.float64 else volume.array
    try:
        with whole_file(path) as part:
            if path.name.lower().endswith(".nii.gz"):
                _write_nifti_gz(part, volume.with_array(array))
            else:
                sitk.WriteImage(to_sitk(volume.with_array(array)), str(part), useCompression=True)
    except (RuntimeError, OSError) as error:
        raise AutopetError(
            f"{path}: cannot be written (disk full or no permission?): {str(error).strip()[-200:]}"
        ) from error
    return path


def _write_nifti_gz(path: Path, volume: Volume) -> None:
    """Stream a volume into a compressed NIfTI file: ITK makes the header, isal compresses, nothing is copied whole."""
    array = np.ascontiguousarray(volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    header = _nifti_header(path, replace(volume, array=array[:1, :1, :1]), array.shape)
    voxels = array.reshape(-1).view(np.uint8)
    # no name and no time in the gzip header: the same volume is the same file
    with path.open("wb") as file, igzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as stream:
        stream.write(header)
        for start in range(0, len(voxels), CHUNK):
            stream.write(voxels[start : start + CHUNK].data)


def _nifti_header(path: Path, corner: Volume, shape: tuple[int, ...]) -> bytes:
    """The header that ITK writes for one voxel of an image, with the image's size filled in (`dim`, bytes 42 to 47).

    Spacing, origin, direction and type of the voxels are ITK's business, so that there is one way to write them.
    """
    small = path.with_name(f"{path.name}.header.nii")
    try:
        sitk.WriteImage(to_sitk(corner), str(small), useCompression=False)
        header = bytearray(small.read_bytes()[:NIFTI_HEADER])
    finally:
        small.unlink(missing_ok=True)
    if max(shape) > NIFTI_MOST_VOXELS:
        raise RuntimeError(f"a NIfTI file holds {NIFTI_MOST_VOXELS} voxels along an axis, the volume has {max(shape)}")
    struct.pack_into("=3h", header, 42, *shape[::-1])
    return bytes(header)


def find_images(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted by name."""
    return sorted(path for path in Path(folder).iterdir() if path.is_file() and is_image(path))
