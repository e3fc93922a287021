"""Misalignment augmentation: one image channel is moved against the others, the labels stay where they are.

Patients breathe and move between the CT and the PET, so the two never fit perfectly. A network that sees one of them
rotated and shifted a little in training does not rely on a perfect fit (Kovacs et al., Scientific Reports 13, 19805
(2023); LesionTracer, paper 003, section 2.2, moves the CT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from torch.nn.functional import affine_grid, grid_sample

from autopet.errors import AutopetError


class MisalignTransform(ImageOnlyTransform):
    """Rotate and then shift one channel of a (channel, z, y, x) image by random amounts, with zeros moving in.

    It comes first in a chain of batchgeneratorsv2 transforms, on the patch that is still larger than the network's, so
    that most of the zeros are cropped away by the spatial transform behind it. Segmentations are not touched.

    Parameters
    ----------
    channel : int
        The channel that moves; the caller finds it by name (the CT, in the paper).
    rotation_degrees : float
        Largest angle about each of the three axes; uniform in plus and minus this.
    rotation_probability, shift_probability : float
        Chance that a patch is rotated, and that it is shifted.
    shift_voxels : three ints
        Largest shift along z, y, x; uniform over the integers from minus to plus this. The paper's [2, 2, 0] is in the
        order x, y, z.

    Notes
    -----
    Angles are drawn for voxel axes and applied in voxel space, which keeps volumes on patches that are not cubes. (The
    authors' released code rotates in coordinates normalised to [-1, 1], which shears such patches.)
    """

    def __init__(
        self,
        channel: int,
        *,
        rotation_degrees: float = 5.0,
        rotation_probability: float = 0.1,
        shift_voxels: Sequence[int] = (0, 2, 2),
        shift_probability: float = 0.1,
    ) -> None:
        super().__init__()
        if channel < 0:
            raise AutopetError(f"the channel to misalign must be counted from 0, found {channel}")
        if rotation_degrees < 0 or len(shift_voxels) != 3 or min(shift_voxels) < 0:
            raise AutopetError(
                "misalignment needs a largest angle of at least 0 degrees and three largest shifts (z, y, x) of at "
                f"least 0 voxels, found {rotation_degrees} and {tuple(shift_voxels)}"
            )
        for probability in (rotation_probability, shift_probability):
            if not 0 <= probability <= 1:
                raise AutopetError(f"a probability lies between 0 and 1, found {probability}")
        self.channel = channel
        self.rotation_degrees = rotation_degrees
        self.rotation_probability = rotation_probability
        self.shift_voxels = tuple(int(voxels) for voxels in shift_voxels)
        self.shift_probability = shift_probability

    def get_parameters(self, **data_dict: object) -> dict:
        """Angles in degrees about the axes z, y, x, and shifts in voxels along them; zeros where nothing is drawn."""
        angles: Sequence[float] = (0.0, 0.0, 0.0)
        shifts: Sequence[int] = (0, 0, 0)
        if torch.rand(1).item() < self.rotation_probability:
            angles = tuple(((2 * torch.rand(3) - 1) * self.rotation_degrees).tolist())
        if torch.rand(1).item() < self.shift_probability:
            shifts = tuple(int(torch.randint(-most, most + 1, (1,))) for most in self.shift_voxels)
        return {"angles_degrees": angles, "shifts": shifts}

    def _apply_to_image(
        self, img: torch.Tensor, *, angles_degrees: Sequence[float], shifts: Sequence[int]
    ) -> torch.Tensor:
        if self.channel >= img.shape[0]:
            raise AutopetError(f"channel {self.channel} is to be misaligned, the image has {img.shape[0]} channels")
        if not any(angles_degrees) and not any(shifts):
            return img
        moved = img[self.channel]
        if any(angles_degrees):
            moved = rotate(moved, angles_degrees)
        if any(shifts):
            moved = shift(moved, shifts)
        img = img.clone()
        img[self.channel] = moved
        return img


def rotation_matrix(angles_degrees: Sequence[float]) -> torch.Tensor:
    """(3, 3) matrix in the axis order z, y, x: first about z, then about y, then about x, in voxel space."""
    z, y, x = (math.radians(angle) for angle in angles_degrees)
    about_z = torch.tensor([[1, 0, 0], [0, math.cos(z), -math.sin(z)], [0, math.sin(z), math.cos(z)]])
    about_y = torch.tensor([[math.cos(y), 0, -math.sin(y)], [0, 1, 0], [math.sin(y), 0, math.cos(y)]])
    about_x = torch.tensor([[math.cos(x), -math.sin(x), 0], [math.sin(x), math.cos(x), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def rotate(image: torch.Tensor, angles_degrees: Sequence[float]) -> torch.Tensor:
    """A (z, y, x) image turned about its centre in voxel space, linear, zeros from outside.

    The point at offset v from the centre moves to `rotation_matrix(angles_degrees) @ v`.
    """
    half = (torch.tensor(image.shape, dtype=torch.float32) - 1) / 2
    half = half.clamp(min=0.5)  # an axis of one voxel has no extent to turn
    # an output voxel at offset v looks up the input at R^T v; grid_sample counts in half extents, in the order x, y, z
    look_up = rotation_matrix(angles_degrees).T
    normalised = (look_up * half[None, :] / half[:, None]).flip(0, 1)
    theta = torch.cat([normalised, torch.zeros(3, 1)], dim=1)[None]  # (1, 3, 4)
    grid = affine_grid(theta, [1, 1, *image.shape], align_corners=True)
    moved = grid_sample(image[None, None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return moved[0, 0].to(image.dtype)


def shift(image: torch.Tensor, voxels: Sequence[int]) -> torch.Tensor:
    """A (z, y, x) image moved by whole voxels towards higher indices (lower ones if negative), zeros moving in."""
    moved = torch.zeros_like(image)
    if any(abs(by) >= size for by, size in zip(voxels, image.shape, strict=True)):
        return moved
    to = tuple(slice(max(by, 0), size + min(by, 0)) for by, size in zip(voxels, image.shape, strict=True))
    source = tuple(slice(max(-by, 0), size + min(-by, 0)) for by, size in zip(voxels, image.shape, strict=True))
    moved[to] = image[source]
    return moved
