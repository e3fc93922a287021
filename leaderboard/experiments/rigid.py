"""A CT that does not lie where the PET says: rigid motions of a whole image, through its geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from autopet.volume import Volume

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class RigidMotion:
    """A rotation about a point, then a shift, in the patient's LPS coordinates.

    Parameters
    ----------
    rotation_degrees : three floats
        Angles about the x, y and z axis, applied in this order.
    shift_mm : three floats
        Along x, y and z.
    pivot_mm : three floats
        The point (x, y, z) that only the shift moves.
    """

    rotation_degrees: Triple
    shift_mm: Triple
    pivot_mm: Triple

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) rotation matrix for column vectors (x, y, z)."""
        x, y, z = (math.radians(angle) for angle in self.rotation_degrees)
        about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
        about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
        about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
        return about_z @ about_y @ about_x

    def apply(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points (n, 3) of x, y, z go."""
        centred = np.asarray(points_mm, float) - self.pivot_mm
        return centred @ self.matrix.T + self.pivot_mm + self.shift_mm


def move(volume: Volume, motion: RigidMotion) -> Volume:
    """The same voxels in another place: origin and direction are moved, nothing is interpolated."""
    origin = motion.apply(np.array([volume.origin_mm]))[0]
    direction = motion.matrix @ np.reshape(volume.direction, (3, 3))
    x, y, z = (float(value) for value in origin)
    return replace(volume, origin_mm=(x, y, z), direction=tuple(float(value) for value in direction.ravel()))


def draw_motion(rng: np.random.Generator, *, around: Volume, largest_degrees: float, largest_mm: Triple) -> RigidMotion:
    """A motion about the middle of an image: angles and shifts uniform between minus and plus their largest values."""
    middle = around.affine @ np.array([*(np.array(around.shape[::-1]) - 1) / 2, 1.0])
    rotation = rng.uniform(-largest_degrees, largest_degrees, 3)
    shift = rng.uniform(-1.0, 1.0, 3) * largest_mm
    return RigidMotion(_triple(rotation), _triple(shift), _triple(middle[:3]))


def displacement_mm(motion: RigidMotion, grid: Volume, where: np.ndarray) -> float:
    """How far the voxels of a grid move on average, those where a (z, y, x) mask is true."""
    index = np.argwhere(where)[:, ::-1]
    points = np.c_[index, np.ones(len(index))] @ grid.affine.T
    return float(np.linalg.norm(motion.apply(points[:, :3]) - points[:, :3], axis=1).mean())


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (round(float(value), 4) for value in values)
    return x, y, z
