"""nnU-Net's resampling in less time.

Images: nnU-Net resizes with scikit-image, which for a spline of order 3 weighs 64 neighbours per voxel. The resize is
linear and separable (tensor-product B-splines, half-pixel centres, edge voxels repeated; Thevenaz et al. 2000, section
VI), so that one matrix per axis does the same. The matrices are made by scikit-image itself, from unit vectors;
everything is float64 until the end, as in nnU-Net. Differences are of the order of 1e-14 before the final rounding.

Logits: nnU-Net rounds them to half precision, where ties are frequent (weights of 1/2, values of 11 bits) and a
difference of 1e-17 becomes one of 1e-3. So they are resized by nnU-Net's own function, one thread per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg,
    resample_data_or_seg_to_shape,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from scipy.ndimage import map_coordinates
from skimage.transform import resize

LINEAR = 1
KNOWN_OPTIONS = {"is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"}


class InferenceConfiguration(ConfigurationManager):
    """nnU-Net's configuration of a network, with the resampling of this module where it does the same.

    Parameters
    ----------
    configuration : dict
        Resolved configuration of the plans.
    device : torch.device
        Where to resample; the CPU when there is no room.
    """

    def __init__(self, configuration: dict[str, Any], device: torch.device) -> None:
        super().__init__(configuration)
        self.resampling_device = device

    @property
    def resampling_fn_data(self) -> Callable:
        """Of the image channels."""
        return faster(super().resampling_fn_data, self.resampling_device)

    @property
    def resampling_fn_probabilities(self) -> Callable:
        """Of the logits."""
        return faster(super().resampling_fn_probabilities, self.resampling_device)

    @property
    def resampling_fn_seg(self) -> Callable:
        """Not done: without a label map there is only the mask of nonzero voxels, which nobody reads afterwards."""
        return lambda segmentation, *_: segmentation


def faster(function: Callable, device: torch.device) -> Callable:
    """A function with the arguments and voxels of nnU-Net's `function`; that itself when it is one we do not know."""
    options = getattr(function, "keywords", {})
    known = getattr(function, "func", None) is resample_data_or_seg_to_shape and set(options) <= KNOWN_OPTIONS
    if not known or options.get("is_seg") or options.get("order_z", 0) != 0:
        return function
    choice = {key: options[key] for key in ("force_separate_z", "separate_z_anisotropy_threshold") if key in options}
    return partial(_resample, order=options.get("order", 3), choice={"force_separate_z": False} | choice, device=device)


def _resample(
    data: np.ndarray | torch.Tensor,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    order: int,
    choice: dict[str, Any],
    device: torch.device,
) -> np.ndarray:
    voxels = data.numpy() if isinstance(data, torch.Tensor) else data
    separate, axis = determine_do_sep_z_and_axis(current_spacing=current_spacing, new_spacing=new_spacing, **choice)
    shape = tuple(max(1, int(n)) for n in new_shape)  # a lone slice that is thinner than half of the network's
    resize_on = partial(resize_channels, voxels, shape, order=order, separate_axis=axis if separate else None)
    try:
        return resize_on(device=device)
    except torch.OutOfMemoryError:
        return resize_on(device=torch.device("cpu"))


def resize_channels(
    data: np.ndarray, shape: tuple[int, ...], *, order: int, separate_axis: int | None, device: torch.device
) -> np.ndarray:
    """Resize every channel as nnU-Net's `resample_data_or_seg` does for images and logits.

    Parameters
    ----------
    data : (channel, z, y, x) array
        Images or logits, of any floating type; the result has the same.
    shape : three ints
        New z, y, x.
    order : int
        Order of the spline.
    separate_axis : int or None
        For anisotropic images: this axis is resampled by the nearest slice, the others slice by slice.
    device : torch.device
        Where to compute.
    """
    if data.shape[1:] == shape:
        return data
    result = np.empty((len(data), *shape), dtype=data.dtype)

    def fill(index: int) -> None:
        if order > LINEAR:
            voxels = torch.from_numpy(np.ascontiguousarray(data[index])).to(device).double()
            result[index] = _resize(voxels, shape, order=order, separate_axis=separate_axis).cpu().numpy()
        else:
            one = data[index : index + 1]
            separate = separate_axis is not None
            result[index] = resample_data_or_seg(one, shape, False, separate_axis, order, separate, order_z=0)[0]

    if order > LINEAR:  # torch has threads of its own
        for index in range(len(data)):
            fill(index)
    else:
        with ThreadPoolExecutor(len(data)) as pool:
            list(pool.map(fill, range(len(data))))
    return result


def _resize(voxels: torch.Tensor, shape: tuple[int, ...], *, order: int, separate_axis: int | None) -> torch.Tensor:
    """One float64 volume; slices along the separate axis are chosen last, as nnU-Net does."""
    inside = tuple(axis for axis in range(3) if axis != separate_axis)
    # scikit-image keeps what overshoots within the image's range: the volume's, or each slice's
    low, high = voxels.amin(dim=inside, keepdim=True), voxels.amax(dim=inside, keepdim=True)
    for axis in inside:
        voxels = _along(voxels, axis, shape[axis], order)
    voxels = torch.clamp(voxels, low, high)
    if separate_axis is not None and voxels.shape[separate_axis] != shape[separate_axis]:
        nearest = torch.from_numpy(_nearest(voxels.shape[separate_axis], shape[separate_axis]))
        voxels = voxels.index_select(separate_axis, nearest.to(voxels.device))
    return voxels


def _along(voxels: torch.Tensor, axis: int, new: int, order: int) -> torch.Tensor:
    old = voxels.shape[axis]
    if old == new:
        return voxels
    matrix = torch.from_numpy(_matrix(old, new, order)).to(voxels.device)
    return torch.movedim(torch.tensordot(matrix, voxels, dims=([1], [axis])), 0, axis)


@lru_cache(maxsize=16)
def _matrix(old: int, new: int, order: int) -> np.ndarray:
    """(new, old) matrix of scikit-image's resize of one axis: its answers to unit vectors."""
    options = {"order": order, "mode": "edge", "anti_aliasing": False, "clip": False}
    return np.stack([resize(unit, (new,), **options) for unit in np.eye(old)], axis=1)


def _nearest(old: int, new: int) -> np.ndarray:
    """Which of the old slices each new one is, with SciPy's rounding."""
    places = old / new * (np.arange(new) + 0.5) - 0.5
    return map_coordinates(np.arange(old), places[None], order=0, mode="nearest")
