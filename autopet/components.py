"""Connected components of binary masks and their volumes.

The challenge's metrics use 18-connectivity (voxels that share a face or an edge), as its official scripts do.
"""

from __future__ import annotations

from typing import Literal

import cc3d
import numpy as np

Connectivity = Literal[6, 18, 26]
CONNECTIVITY: Connectivity = 18


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
    foreground = np.ascontiguousarray(mask != 0)
    if not foreground.any():
        return np.zeros(foreground.shape, dtype=np.uint16), 0
    return cc3d.connected_components(foreground, connectivity=connectivity, return_N=True)


def component_voxels(labels: np.ndarray, count: int) -> np.ndarray:
    """(count,) voxels of each component, component 1 first."""
    return np.bincount(labels.ravel(), minlength=count + 1)[1:]


def components_apart(mask: np.ndarray, other: np.ndarray) -> int:
    """Voxels of those components of `mask` that share no voxel with `other`: the basis of FPV and FNV.

    One labelling and one `bincount` over the foreground, instead of one search of the volume per component.
    """
    labels, count = label_components(mask)
    inside = labels[labels != 0]
    touched = np.bincount(inside[other[labels != 0] != 0], minlength=count + 1)
    sizes = np.bincount(inside, minlength=count + 1)
    return int(sizes[touched == 0].sum())
