"""Bodies around real organ maps: the reference adult is stretched to fit, the map's organs are painted over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from autopet.components import label_components
from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.anatomy import TORSO, Builder, Frame, Habitus, add_body, add_details, finish
from data_prep.tissues import ORGAN_TISSUES, Anatomy, Layer, MapLayer, Tissue

MAP_TISSUES = ORGAN_TISSUES  # of the organ maps' labels: 1 spleen ... 10 head glands


def around_organs(rng: np.random.Generator, organs: Volume, habitus: Habitus) -> Anatomy:
    """A body around a real organ map.

    The reference adult is stretched until its landmarks meet those of the map (bladder, kidneys, lungs, head glands,
    brain); its own organs of the ten kinds are left out and the map's are painted instead, and the trunk is widened
    where they would stick out.

    Parameters
    ----------
    organs : Volume
        Labels 0..10 as in `MAP_TISSUES`; axes parallel to the patient's (direction cosines of 1 or -1).

    Raises
    ------
    AutopetError
        The map is oblique, has labels above 10, or lacks lungs, kidneys or bladder.
    """
    organs = _without_specks(_upright(organs))
    frame = _fit_frame(organs)
    tissues = np.array(MAP_TISSUES, dtype=np.uint8)[organs.array]
    build = Builder(rng, frame, spread=0.3)
    add_body(build, habitus, _widened_torso(organs, frame))
    replaced = set(np.unique(tissues).tolist()) | {Tissue.MYOCARDIUM}
    kept = [layer for layer in build.layers if isinstance(layer, Layer) and layer.tissue not in replaced]
    mapped = set(np.unique(organs.array).tolist())  # what the reference heart's blood shows of it is no heart here
    kept = [replace(layer, organ=0) if layer.organ in mapped else layer for layer in kept]
    build.layers = [*kept, MapLayer(organs.with_array(_hollow_heart(tissues, organs)), organs)]
    add_details(build, habitus)
    top = organs.origin_mm[2] + (organs.shape[0] - 1) * organs.spacing_mm[2]
    return replace(finish(build, habitus), bottom_mm=organs.origin_mm[2], top_mm=top)


def _upright(organs: Volume) -> Volume:
    """The same voxels with the identity as direction, by flipping axes."""
    matrix = np.reshape(organs.direction, (3, 3))
    if not np.allclose(np.abs(matrix), np.eye(3), atol=1e-3):
        raise AutopetError(f"organ map with direction {organs.direction}: resample it to axes along x, y, z first")
    if organs.array.min() < 0 or organs.array.max() >= len(MAP_TISSUES):
        raise AutopetError(f"organ map with labels up to {organs.array.max()}: expected whole numbers from 0 to 10")
    flips = [axis for axis in range(3) if matrix[2 - axis, 2 - axis] < 0]
    extent = np.diag(matrix) * (np.array(organs.shape[::-1]) - 1) * organs.spacing_mm
    x, y, z = (float(v) for v in np.add(organs.origin_mm, np.minimum(extent, 0)))
    return Volume(np.flip(organs.array, tuple(flips)).astype(np.uint8), organs.spacing_mm, (x, y, z))


def _without_specks(organs: Volume) -> Volume:
    """The map less the islands below 1 ml that automatic segmentations scatter, some of them outside the body."""
    islands, _ = label_components(organs.array)
    keep = np.bincount(islands.ravel()) * organs.voxel_volume_ml >= 1.0
    return organs.with_array(np.where(keep[islands], organs.array, 0).astype(np.uint8))


def _extent_mm(organs: Volume, label: int) -> np.ndarray | None:
    """(3, 3): 2nd percentile, mean and 98th percentile of x, y, z of an organ; None below 5 ml."""
    index = np.argwhere(organs.array == label)
    if len(index) * organs.voxel_volume_ml < 5:
        return None
    points = index[:, ::-1] * np.array(organs.spacing_mm) + organs.origin_mm
    low, high = np.percentile(points, [2, 98], axis=0)
    return np.stack([low, points.mean(axis=0), high])


def _fit_frame(organs: Volume) -> Frame:
    kidneys, bladder, lungs = (_extent_mm(organs, label) for label in (2, 4, 5))
    if kidneys is None or bladder is None or lungs is None:
        raise AutopetError("organ map without lungs, kidneys or bladder; give a whole-body map with labels 5, 2 and 4")
    middle_y = lungs[1, 1] - 8
    knots = [
        (918.0, bladder[1, 2], bladder[1, 0], bladder[1, 1] + 20),
        (1175.0, kidneys[1, 2], kidneys[1, 0], kidneys[1, 1] - 48),
        (1270.0, lungs[0, 2], lungs[1, 0], middle_y),
        (1455.0, lungs[2, 2], lungs[1, 0], middle_y),
    ]
    glands, brain = _extent_mm(organs, 10), _extent_mm(organs, 6)
    if glands is not None:
        knots.append((1556.0, glands[1, 2], glands[1, 0], glands[1, 1] + 22))
    if brain is not None and (organs.array == 6).sum() * organs.voxel_volume_ml > 700:
        knots.append((1652.0, brain[1, 2], brain[1, 0], brain[1, 1] - 2))
    rising = [knots[0]]
    for knot in knots[1:]:  # landmarks out of order (an organ that is cut off) do not count
        if knot[1] > rising[-1][1] + 20:
            rising.append(knot)
    table = np.array(rising)
    scale = float(np.clip((lungs[2, 0] - lungs[0, 0]) / 228.0, 0.85, 1.15))
    return Frame(table[:, 0], table[:, 1], table[:, 2:], scale)


def _widened_torso(organs: Volume, frame: Frame) -> list[tuple[float, float, float, float, float]]:
    """The reference trunk, as wide and deep as the organs between two of its sections need."""
    rows = []
    heights = organs.origin_mm[2] + np.arange(organs.shape[0]) * organs.spacing_mm[2]
    for z, x, y, a, b in TORSO:
        px, py, pz = frame.point(x, y, z)
        near = np.abs(heights - pz) < 45
        half_x, half_y = a, b
        trunk = (organs.array[near] > 0).any(axis=0) if z < 1500 else np.zeros(organs.shape[1:], bool)
        if trunk.any():
            ys, xs = np.nonzero(trunk)
            reach_x = np.abs(xs * organs.spacing_mm[0] + organs.origin_mm[0] - px).max() + 18
            reach_y = np.abs(ys * organs.spacing_mm[1] + organs.origin_mm[1] - py).max() + 14
            half_x, half_y = max(a, reach_x / frame.scale), max(b, reach_y / frame.scale)
        rows.append((float(z), float(x), float(y), float(half_x), float(half_y)))
    return rows


def _hollow_heart(tissues: np.ndarray, grid: Volume) -> np.ndarray:
    """Myocardium as a shell about the left ventricle's middle, in the heart's left half; the rest becomes blood."""
    heart = tissues == Tissue.MYOCARDIUM
    if not heart.any():
        return tissues
    box = ndimage.find_objects(heart.astype(np.uint8))[0]
    inside = heart[box]
    centre = np.array(ndimage.center_of_mass(inside)) + np.array([-0.05, 0.0, 0.17]) * inside.shape
    steps = np.ogrid[tuple(slice(0, n) for n in inside.shape)]
    squares = [((step - c) * mm) ** 2 for step, c, mm in zip(steps, centre, grid.spacing_zyx_mm, strict=True)]
    radius = np.sqrt(squares[0] + squares[1] + squares[2])
    result = tissues.copy()
    result[box][inside & ((radius < 22) | (radius > 36))] = Tissue.BLOOD
    return result
