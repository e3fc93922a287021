"""Connected components of binary masks and their volumes.

The challenge's metrics use 18-connectivity (voxels that share a face or an edge), as its official scripts do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cc3d
import numpy as np

from autopet.errors import AutopetError

Connectivity = Literal[6, 18, 26]
CONNECTIVITY: Connectivity = 18
Box = tuple[slice, slice, slice]


def label_components(mask: np.ndarray, *, connectivity: Connectivity = CONNECTIVITY) -> tuple[np.ndarray, int]:
    """Label the components of a mask.

    Parameters
    ----------
    mask : (z, y, x) array, bool or number
        Foreground where it is not zero.

    Returns
    -------
    labels : (z, y, x) unsigned array
        0 is background, components are 1 to `count`.
    count : int
        Number of components; 0 for an empty mask.

    Examples
    --------
    >>> import numpy as np
    >>> label_components(np.eye(3)[None])[1]  # the diagonal's voxels share edges
    1
    """
    foreground = np.ascontiguousarray(mask if mask.dtype == bool else mask != 0)
    if not foreground.any():
        return np.zeros(foreground.shape, dtype=np.uint16), 0
    return cc3d.connected_components(foreground, connectivity=connectivity, return_N=True)


def component_voxels(labels: np.ndarray, count: int) -> np.ndarray:
    """(count,) voxels of each component, component 1 first."""
    return np.bincount(labels.ravel(), minlength=count + 1)[1:]


def foreground_box(mask: np.ndarray) -> Box:
    """Smallest box (z, y, x) that holds the foreground; of size 0 along every axis for an empty mask."""
    box = [slice(0, 0)] * 3
    part = mask
    for axis in range(3):  # slices first: every cut makes the next search cheaper
        used = np.flatnonzero(part.any(axis=tuple(other for other in range(3) if other != axis)))
        if not used.size:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        box[axis] = slice(int(used[0]), int(used[-1]) + 1)
        part = part[tuple(box[axis] if other == axis else slice(None) for other in range(3))]
    return box[0], box[1], box[2]


@dataclass(frozen=True, eq=False)
class Components:
    """The components of one mask: labelled once, when first asked, and shared by whoever measures them.

    Only the box around the foreground is kept, and of the labels only those of foreground voxels, so that memory grows
    with the foreground and not with the image.

    Parameters
    ----------
    mask : (z, y, x) bool array
        The foreground inside `box`, in C order.
    box : three slices
        Where `mask` lies in the image.
    """

    mask: np.ndarray
    box: Box

    @classmethod
    def of(cls, mask: np.ndarray) -> Components:
        """Components of a whole image, foreground where it is not zero; an error unless it has three axes."""
        if mask.ndim != 3:
            raise AutopetError(f"expected a mask with 3 axes (z, y, x), found {mask.ndim}: {mask.shape}")
        box = foreground_box(mask)
        part = mask[box]
        return cls(np.ascontiguousarray(part if part.dtype == bool else part != 0), box)

    @cached_property
    def index(self) -> np.ndarray:
        """(voxels,) position of each foreground voxel in the flattened box, ascending."""
        return np.flatnonzero(self.mask)

    @property
    def voxels(self) -> int:
        """Number of foreground voxels."""
        return self.index.size

    @cached_property
    def _labelled(self) -> tuple[np.ndarray, int]:
        labels, count = label_components(self.mask)
        return labels.ravel()[self.index], count

    @property
    def labels(self) -> np.ndarray:
        """(voxels,) component of each foreground voxel, 1 to `count`, in the order of `index`."""
        return self._labelled[0]

    @property
    def count(self) -> int:
        """Number of components."""
        return self._labelled[1]

    @cached_property
    def sizes(self) -> np.ndarray:
        """(count,) voxels of each component."""
        return np.bincount(self.labels, minlength=self.count + 1)[1:]

    @cached_property
    def centroids(self) -> np.ndarray:
        """(count, 3) mean position (z, y, x) of each component in voxels of the image."""
        corner = [part.start for part in self.box]
        places = np.unravel_index(self.index, self.mask.shape)
        sums = [np.bincount(self.labels, weights=place, minlength=self.count + 1)[1:] for place in places]
        return np.stack(sums, axis=1) / np.maximum(self.sizes, 1)[:, None] + corner

    def values_of(self, image: np.ndarray) -> np.ndarray:
        """(voxels,) what another image of the same grid holds at the foreground voxels, in the order of `index`."""
        return image[self.box][self.mask]

    def inside(self, other: Components) -> np.ndarray:
        """(voxels,) whether each foreground voxel is foreground of `other`, too."""
        window = np.zeros(self.mask.shape, dtype=bool)
        mine, theirs = [], []
        for own, foreign in zip(self.box, other.box, strict=True):
            start, stop = max(own.start, foreign.start), min(own.stop, foreign.stop)
            if start >= stop:
                return np.zeros(self.voxels, dtype=bool)
            mine.append(slice(start - own.start, stop - own.start))
            theirs.append(slice(start - foreign.start, stop - foreign.start))
        window[tuple(mine)] = other.mask[tuple(theirs)]
        return window.ravel()[self.index]
