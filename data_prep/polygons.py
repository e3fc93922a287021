"""Fill polygons on a pixel grid: pure maths, without DICOM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME_POINT_MM = 0.01
NEARLY_ALL = 0.98  # of the area of a polygon: one inside of it that is larger than this is its copy, not its hole
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


def same_path(points_mm: np.ndarray) -> bytes:
    """What a closed path has in common with its copies: corners to a hundredth of a millimetre, in a fixed order.

    `points_mm` is (points, 3); it does not matter which corner comes first, which way round they go, or whether the
    first is repeated as the last.
    """
    corners = np.rint(np.asarray(points_mm, dtype=np.float64) / SAME_POINT_MM).astype(np.int64)
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)] if len(corners) else corners
    if not len(corners):
        return np.rint(np.asarray(points_mm)[:1] / SAME_POINT_MM).astype(np.int64).tobytes()
    orders = []
    for path in (corners, corners[::-1]):
        first = path[np.lexsort(path.T[::-1])[0]]
        starts = np.flatnonzero((path == first).all(axis=1))  # more than one where a path touches itself
        orders += [np.roll(path, -int(start), axis=0).tobytes() for start in starts]
    return min(orders)


def cancelled_pixels(polygons: Sequence[np.ndarray]) -> int:
    """Pixels inside of polygons that the even-odd rule leaves out although no hole is meant.

    A polygon that lies within another one is meant as its hole (or as an island in a hole). Two that cross, or are
    nearly the same, are not: what they share is lost. Pairs are counted one by one.

    Parameters
    ----------
    polygons : sequence of (points, 2) float arrays
        As for `fill_even_odd`; those of one plane.
    """
    low = np.array([polygon.min(axis=0) for polygon in polygons])
    high = np.array([polygon.max(axis=0) for polygon in polygons])
    lost = 0
    for one in range(len(polygons)):
        for two in range(one + 1, len(polygons)):
            if (low[one] <= high[two]).all() and (low[two] <= high[one]).all():
                lost += _shared(polygons[one], polygons[two])
    return lost


def _shared(one: np.ndarray, two: np.ndarray) -> int:
    """Pixels that two polygons lose to each other; 0 when one is the other's hole."""
    small, large = sorted((one, two), key=_area)
    corner = np.floor(small.min(axis=0)) - 1
    columns, rows = (int(size) for size in np.ceil(small.max(axis=0)) + 2 - corner)
    small, large = small - corner, large - corner
    inner, outer = fill_even_odd([small], (rows, columns)), fill_even_odd([large], (rows, columns))
    if not (inner & ~outer).any() and _area(small) <= NEARLY_ALL * _area(large):
        return 0
    return int((inner & outer & ~fill_even_odd([small, large], (rows, columns))).sum())


def _area(polygon: np.ndarray) -> float:
    """In square pixels, by the shoelace formula."""
    x, y = np.asarray(polygon, dtype=np.float64).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
