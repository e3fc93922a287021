"""Fill polygons on a pixel grid: pure maths, without DICOM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ON_PATH = 1e-3  # pixels a centre may lie off the path and still be on it; coordinates are rounded text


def fill_even_odd(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie inside closed polygons by the even-odd rule, or on their path.

    A centre is inside when a ray from it crosses the sides of all polygons together an odd number of times: polygons
    are combined by exclusive or, and a keyhole contour has its hole. Centres on the path count as inside, as PS3.3
    C.8.8.6.3 says, also on that of a hole.

    Parameters
    ----------
    polygons : sequence of (points, 2) float arrays
        Corners x, y in pixels; the centre of pixel [row, column] is at x = column, y = row. The last corner is joined
        to the first.
    shape : (rows, columns)
        What lies outside is cut off.

    Returns
    -------
    (rows, columns) bool array

    Examples
    --------
    >>> fill_even_odd([np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 1.5], [0.5, 1.5]])], (3, 4)).astype(int)
    array([[0, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    rows, columns = shape
    starts = [_snapped(polygon) for polygon in polygons]
    ends = [np.roll(polygon, -1, axis=0) for polygon in starts]
    start, end = (np.concatenate([np.empty((0, 2)), *points]) for points in (starts, ends))
    level = start[:, 1] == end[:, 1]
    x, y = _crossings(start[~level], end[~level], rows, closed=False)
    first = np.clip(np.ceil(x), 0, columns).astype(int)  # the ray to the left of this column and the next is crossed
    toggles = np.bincount(y * (columns + 1) + first, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    inside = np.cumsum(toggles, axis=1)[:, :columns] % 2 == 1
    x, y = _crossings(start[~level], end[~level], rows, closed=True)
    near = np.rint(x)
    on = (np.abs(x - near) <= ON_PATH) & (near >= 0) & (near < columns)
    inside[y[on], near[on].astype(int)] = True
    y, x = _crossings(start[level][:, ::-1], end[level][:, ::-1], columns, closed=True)  # along level sides
    on = (y == np.rint(y)) & (y >= 0) & (y < rows)
    inside[y[on].astype(int), x[on]] = True
    return inside


def _snapped(points: np.ndarray) -> np.ndarray:
    """Coordinates within `ON_PATH` of a pixel's centre line are put on it, so that rounding decides nothing."""
    points = np.asarray(points, dtype=np.float64)
    nearest = np.rint(points)
    return np.where(np.abs(points - nearest) <= ON_PATH, nearest, points)


def _crossings(start: np.ndarray, end: np.ndarray, rows: int, *, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where sides cross the centre lines of rows: x (float) and y (row). Sides are half-open: without their upper end.

    `closed` adds the upper end.
    """
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), 0, rows).astype(int)
    last = np.clip(np.floor(high) if closed else np.ceil(high) - 1, -1, rows - 1).astype(int)
    counts = np.maximum(last - first + 1, 0)
    side = np.repeat(np.arange(len(counts)), counts)
    y = np.arange(len(side)) - np.repeat(np.cumsum(counts) - counts, counts) + first[side]
    rise = (end - start)[side]
    slope = np.divide(rise[:, 0], rise[:, 1], out=np.zeros(len(side)), where=rise[:, 1] != 0)
    return start[side, 0] + (y - start[side, 1]) * slope, y
