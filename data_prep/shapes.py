"""Solids in millimetres and how much of a grid's voxels they fill.

Coordinates are LPS (x to the patient's left, y to the back, z to the head); arrays are z, y, x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autopet.volume import Volume

Point = tuple[float, float, float]
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Wobble:
    """Smooth irregularity of a surface: a sum of plane waves, in units of the radius."""

    amplitude: float
    waves_per_mm: np.ndarray  # (n, 3) wave vectors x, y, z in radians per mm
    phases: np.ndarray  # (n,)

    @staticmethod
    def sample(rng: np.random.Generator, amplitude: float, size_mm: float, count: int = 5) -> Wobble:
        """Waves about as long as an organ of radius `size_mm`."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = rng.uniform(1.1, 3.0, size=(count, 1)) * size_mm
        return Wobble(amplitude, 2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, size=count))

    def at(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Relative displacement of the surface at open-grid coordinates; standard deviation `amplitude`."""
        total: np.ndarray | float = 0.0
        for (kx, ky, kz), phase in zip(self.waves_per_mm, self.phases, strict=True):
            # exp(i k.r) factorises over the axes: three short exponentials instead of one per voxel
            total = total + (np.exp(1j * (kz * z + phase)) * np.exp(1j * ky * y) * np.exp(1j * kx * x)).real
        return np.asarray(total) * self.amplitude * np.sqrt(2.0 / len(self.phases))


class Shape(Protocol):
    """A solid that knows its bounding box and which points it holds."""

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner (x, y, z)."""

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Which points of the open grid lie inside; arrays broadcast against each other."""


@dataclass(frozen=True)
class Blob:
    """Ellipsoid, possibly rotated and with an irregular surface."""

    centre_mm: Point
    radii_mm: Point
    rotation: np.ndarray | None = None  # (3, 3), rows are the axes of the ellipsoid
    wobble: Wobble | None = None

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        axes = np.eye(3) if self.rotation is None else self.rotation
        reach = np.sqrt(((axes.T * self.radii_mm) ** 2).sum(axis=1))
        reach *= 1.0 if self.wobble is None else 1.0 + 3 * self.wobble.amplitude
        return np.subtract(self.centre_mm, reach), np.add(self.centre_mm, reach)

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """See `Shape`."""
        u, v, w = x - self.centre_mm[0], y - self.centre_mm[1], z - self.centre_mm[2]
        axes = np.eye(3) if self.rotation is None else self.rotation
        squares = [
            ((u * axis[0] + v * axis[1] + w * axis[2] if self.rotation is not None else (u, v, w)[k]) / radius) ** 2
            for k, (axis, radius) in enumerate(zip(axes, self.radii_mm, strict=True))
        ]
        distance = squares[0] + squares[1] + squares[2]
        return distance < (1.0 if self.wobble is None else (1.0 + self.wobble.at(x, y, z)) ** 2)


@dataclass(frozen=True)
class Capsule:
    """Round cone between two points."""

    start_mm: Point
    end_mm: Point
    radius_start_mm: float
    radius_end_mm: float

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        reach = max(self.radius_start_mm, self.radius_end_mm)
        return np.minimum(self.start_mm, self.end_mm) - reach, np.maximum(self.start_mm, self.end_mm) + reach

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """See `Shape`."""
        axis = np.subtract(self.end_mm, self.start_mm)
        u, v, w = x - self.start_mm[0], y - self.start_mm[1], z - self.start_mm[2]
        along = np.clip((u * axis[0] + v * axis[1] + w * axis[2]) / max(float(axis @ axis), 1e-6), 0.0, 1.0)
        radius = self.radius_start_mm + along * (self.radius_end_mm - self.radius_start_mm)
        return (u - along * axis[0]) ** 2 + (v - along * axis[1]) ** 2 + (w - along * axis[2]) ** 2 < radius**2


@dataclass(frozen=True)
class Tube:
    """Stack of rounded cross-sections, interpolated over z: columns z, x, y, half width, half depth (mm)."""

    sections_mm: np.ndarray
    power: float = 2.4  # 2 is an ellipse, more is boxier

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        z, x, y, a, b = self.sections_mm.T
        return np.array([(x - a).min(), (y - b).min(), z.min()]), np.array([(x + a).max(), (y + b).max(), z.max()])

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """See `Shape`."""
        knots = self.sections_mm[:, 0]
        cx, cy, a, b = (np.interp(z, knots, column) for column in self.sections_mm.T[1:])
        within = (z >= knots[0]) & (z <= knots[-1])
        return (np.abs((x - cx) / a) ** self.power + np.abs((y - cy) / b) ** self.power < 1.0) & within


@dataclass(frozen=True)
class Hoop:
    """A rib: elliptic ring that falls towards the front."""

    centre_mm: Point
    half_width_mm: float
    half_depth_mm: float
    thickness_mm: float
    slope: float

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        drop = self.half_depth_mm * self.slope + self.thickness_mm
        reach = np.array([self.half_width_mm, self.half_depth_mm, drop]) + self.thickness_mm
        return np.subtract(self.centre_mm, reach), np.add(self.centre_mm, reach)

    def inside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """See `Shape`."""
        u, v, w = x - self.centre_mm[0], y - self.centre_mm[1], z - self.centre_mm[2]
        radius = np.sqrt((u / self.half_width_mm) ** 2 + (v / self.half_depth_mm) ** 2)
        in_plane = np.abs(radius - 1.0) * min(self.half_width_mm, self.half_depth_mm) < self.thickness_mm / 2
        return in_plane & (np.abs(w - self.slope * v) < self.thickness_mm * 0.6)


def rotation_matrix(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z, by angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def axes_mm(grid: Volume, box: Slices | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates x (1, 1, nx), y (1, ny, 1), z (nz, 1, 1) of the voxel centres, as an open grid."""
    starts = [(part.start, part.stop) for part in box] if box else [(0, n) for n in grid.shape]
    z, y, x = (
        (np.arange(*ends) * spacing + origin).astype(np.float32)
        for ends, spacing, origin in zip(starts, grid.spacing_zyx_mm, grid.origin_mm[::-1], strict=True)
    )
    return x[None, None, :], y[None, :, None], z[:, None, None]


def bounding_box(shape: Shape, grid: Volume) -> Slices:
    """The part of the grid that the shape can reach, possibly empty."""
    low, high = shape.bounds_mm()
    origin, spacing = np.array(grid.origin_mm), np.array(grid.spacing_mm)
    first = np.clip(np.floor((low - origin) / spacing), 0, grid.shape[::-1]).astype(int)
    last = np.clip(np.ceil((high - origin) / spacing) + 1, first, grid.shape[::-1]).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first[::-1], last[::-1], strict=True))
    return z, y, x


def coverage(shape: Shape, grid: Volume, *, fine: int = 3) -> tuple[Slices, np.ndarray]:
    """Fraction of each voxel that a shape fills, from `fine`^3 sample points.

    Returns
    -------
    tuple
        The part of the grid, and the fractions in it, float32 in 0..1.
    """
    box = bounding_box(shape, grid)
    size = np.array([part.stop - part.start for part in box])
    if not size.all():
        return box, np.zeros(size, dtype=np.float32)
    offsets = (np.arange(fine) + 0.5) / fine - 0.5
    x, y, z = (
        (axis.ravel()[:, None] + offsets * spacing).ravel()
        for axis, spacing in zip(axes_mm(grid, box), grid.spacing_mm, strict=True)
    )
    hit = shape.inside(x[None, None, :], y[None, :, None], z[:, None, None]).astype(np.float32)
    return box, hit.reshape(size[0], fine, size[1], fine, size[2], fine).mean(axis=(1, 3, 5))
