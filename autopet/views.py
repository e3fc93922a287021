"""Volumes as one looks at them: turned to the patient, and projected."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from autopet.volume import Volume


def patient_axes(volume: Volume) -> tuple[int, int, int]:
    """Array axes that run closest to the patient's left-right, front-back and foot-head axes (LPS x, y, z).

    Of the six assignments of the grid's axes to the patient's, the one with the largest sum of |cosines|: each patient
    axis gets another grid axis also when the grid is oblique by 45 degrees.
    """
    cosines = np.abs(np.reshape(volume.direction, (3, 3)))  # rows are patient axes, columns grid axes x, y, z
    best = max(permutations(range(3)), key=lambda axes: sum(cosines[row, axis] for row, axis in enumerate(axes)))
    left, back, head = (2 - axis for axis in best)  # grid axes x, y, z are array axes 2, 1, 0
    return left, back, head


def radiological(volume: Volume) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The voxels as (head to foot, front to back, patient's right to left): a view, nothing is copied.

    Returns
    -------
    array : (rows, depth, columns) view
    spacing_mm : float x 3
        Of the array's axes, in its order.
    """
    left, back, head = patient_axes(volume)
    matrix, spacing_mm = np.reshape(volume.direction, (3, 3)), volume.spacing_zyx_mm
    # rows run towards the feet, depth towards the back, columns towards the patient's left
    signs = (-matrix[2, 2 - head], matrix[1, 2 - back], matrix[0, 2 - left])
    turned = np.transpose(volume.array, (head, back, left))
    turned = turned[tuple(slice(None, None, 1 if sign >= 0 else -1) for sign in signs)]
    return turned, (spacing_mm[head], spacing_mm[back], spacing_mm[left])


def coronal_projection(volume: Volume) -> tuple[np.ndarray, tuple[float, float]]:
    """Maximum along the patient's front-back axis: (rows, columns) array, head up, patient's right on the left.

    NaN counts as the lowest value. Oblique volumes are projected along the nearest grid axis.

    Returns
    -------
    projection : (rows, columns) array of the volume's dtype
    spacing_mm : (row, column) distance in mm
    """
    array, (row_mm, _, column_mm) = radiological(volume)
    # numpy reduces quickest along memory: one front-back slab after the other, without a turned copy of the volume
    return np.fmax.reduce(array, axis=1), (row_mm, column_mm)


def sagittal_projection(volume: Volume) -> tuple[np.ndarray, tuple[float, float]]:
    """Maximum from the patient's right to left: (rows, columns) array, head up, front on the left; NaN counts least.

    Returns
    -------
    projection : (rows, columns) array of the volume's dtype
    spacing_mm : (row, column) distance in mm
    """
    array, (row_mm, column_mm, _) = radiological(volume)
    return np.fmax.reduce(array, axis=2), (row_mm, column_mm)
