"""A 3D image whose geometry travels with its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from autopet.errors import AutopetError

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie in the patient.

    Parameters
    ----------
    array : (z, y, x) array
        The voxels, slice first, as NumPy and SimpleITK's array view order them.
    spacing_mm, origin_mm : three floats, in the order x, y, z
        Distance between voxel centres, and the centre of voxel (0, 0, 0), in the LPS patient coordinates of
        DICOM (PS3.3 C.7.6.2.1.1) and ITK.
    direction : nine floats
        3x3 matrix by rows; its columns are the unit vectors of the x, y and z axes of the grid.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise AutopetError(f"a volume needs 3 dimensions (z, y, x), found {self.array.ndim}: {self.array.shape}")
        if min(self.spacing_mm) <= 0:
            raise AutopetError(f"voxel spacing must be positive, found {self.spacing_mm}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        depth, height, width = self.array.shape
        return depth, height, width

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Spacing in the order of the array's axes."""
        x, y, z = self.spacing_mm
        return z, y, x

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) matrix from voxel indices (x, y, z, 1) to LPS millimetres."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    def with_array(self, array: np.ndarray) -> Volume:
        """Other voxels on the same grid."""
        if array.shape != self.array.shape:
            raise AutopetError(f"expected voxels of shape {self.array.shape} for this grid, found {array.shape}")
        return replace(self, array=array)

    def grid_difference(self, other: Volume, tolerance_mm: float = 1e-2) -> str:
        """What tells two grids apart, in words; empty when they are the same.

        Shapes must be equal. The positions of the eight corner voxels may differ by `tolerance_mm` (file formats
        round spacing and direction; corners see what that adds up to over the volume).
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape} (z, y, x)"
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
        corners[:, :3] *= np.array(self.shape[::-1]) - 1
        apart_mm = np.abs((corners @ (self.affine - other.affine).T)[:, :3]).max()
        if apart_mm <= tolerance_mm:
            return ""
        return (
            f"corner voxels lie up to {apart_mm:.3g} mm apart (spacing {_mm(self.spacing_mm)} against "
            f"{_mm(other.spacing_mm)}, origin {_mm(self.origin_mm)} against {_mm(other.origin_mm)})"
        )

    def same_grid(self, other: Volume, tolerance_mm: float = 1e-2) -> bool:
        """Whether two volumes share shape and position to within `tolerance_mm`."""
        return not self.grid_difference(other, tolerance_mm)


def to_sitk(volume: Volume) -> sitk.Image:
    """A SimpleITK image that shares no memory with the volume."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in volume.spacing_mm])
    image.SetOrigin([float(value) for value in volume.origin_mm])
    image.SetDirection([float(value) for value in volume.direction])
    return image


def from_sitk(image: sitk.Image) -> Volume:
    """A volume from a three-dimensional, one-channel SimpleITK image."""
    return Volume(
        sitk.GetArrayFromImage(image), _triple(image.GetSpacing()), _triple(image.GetOrigin()), image.GetDirection()
    )


def resample(volume: Volume, grid: Volume, *, nearest: bool = False, fill: float = 0.0) -> Volume:
    """The volume on another grid, through the patient's coordinates.

    Parameters
    ----------
    volume, grid : Volume
        What to resample, and the volume whose grid the result has (its voxels are not read).
    nearest : bool
        Nearest neighbour, for label maps; linear otherwise.
    fill : float
        Value outside the field of view (-1024 HU for CT).
    """
    moving = to_sitk(volume)
    if not nearest:
        moving = sitk.Cast(moving, sitk.sitkFloat32)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in grid.shape[::-1]])
    resampler.SetOutputSpacing([float(value) for value in grid.spacing_mm])
    resampler.SetOutputOrigin([float(value) for value in grid.origin_mm])
    resampler.SetOutputDirection([float(value) for value in grid.direction])
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    resampler.SetDefaultPixelValue(float(fill))
    return grid.with_array(sitk.GetArrayFromImage(resampler.Execute(moving)))


def overlap_mm(first: Volume, second: Volume) -> tuple[float, float, float]:
    """Extent (x, y, z) in mm of the overlap of two volumes' bounding boxes; 0 along an axis without overlap."""
    low_a, high_a = _bounds_mm(first)
    low_b, high_b = _bounds_mm(second)
    shared = np.minimum(high_a, high_b) - np.maximum(low_a, low_b)
    return _triple(np.clip(shared, 0.0, None))


def _bounds_mm(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    ends = [(-0.5, n - 0.5) for n in volume.shape[::-1]]
    corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]])
    points = (corners @ volume.affine.T)[:, :3]
    return points.min(axis=0), points.max(axis=0)


def _triple(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _mm(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
