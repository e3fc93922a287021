"""Volumes of a case for the slice viewer, as a script that a page from file:// may load.

The viewer (`assets/viewer.js`) is a small canvas viewer of our own. NiiVue was looked at first: the packages on PyPI
that ship it (ipyniivue, niivue-streamlit, gradio-niivueviewer) bundle it inside a widget for a notebook or a server,
as an ECMAScript module of 5 MB (with a model that talks to Python) or an application of 3.5 MB. Browsers load no
module and fetch no volume from file://, and WebGL2 is not there on every hospital desktop. Masks of one byte per voxel
in three planes need none of that.

The script assigns one object. PET and masks are deflated (zlib) and in base64; masks are bits, eight voxels a byte.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.coarse import SUV_WINDOW, CoarseVolume

COMPRESSION = 6


@dataclass(frozen=True, eq=False)
class SharedGrid:
    """The masks of all submissions on one grid, (z, y, x) arrays; `suv` is uint8, or None without a PET."""

    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    suv: np.ndarray | None
    ground_truth: np.ndarray
    predictions: dict[str, np.ndarray]


def share_grid(volumes: Mapping[str, CoarseVolume]) -> SharedGrid | None:
    """Lay volumes of one case over each other; None without any.

    Each was cut to the body and to its own prediction, so their boxes differ by whole coarse voxels (or by fine ones:
    those are rounded). The grid shared is the box around all. A volume with another voxel size is left out.
    """
    if not volumes:
        return None
    first = next((volume for volume in volumes.values() if volume.suv is not None), next(iter(volumes.values())))
    usable = {key: v for key, v in volumes.items() if np.allclose(v.spacing_mm, first.spacing_mm)}
    starts = {key: _offset(volume, first) for key, volume in usable.items()}
    low = np.min(list(starts.values()), axis=0)
    high = np.max([starts[key] + volume.ground_truth.shape for key, volume in usable.items()], axis=0)
    shape = tuple(int(n) for n in high - low)

    def placed(array: np.ndarray, start: np.ndarray) -> np.ndarray:
        target = np.zeros(shape, array.dtype)
        target[tuple(slice(a, a + n) for a, n in zip(start - low, array.shape, strict=True))] = array
        return target

    zero = np.zeros(3, int)
    z_mm, y_mm, x_mm = first.spacing_mm
    x, y, z = first.origin_mm
    return SharedGrid(
        spacing_mm=first.spacing_mm,
        origin_mm=(x + float(low[2]) * x_mm, y + float(low[1]) * y_mm, z - float(low[0]) * z_mm),
        suv=None if first.suv is None else placed(first.suv, zero),
        ground_truth=placed(first.ground_truth, zero),
        predictions={key: placed(volume.prediction, starts[key]) for key, volume in usable.items()},
    )


def _offset(volume: CoarseVolume, first: CoarseVolume) -> np.ndarray:
    """Voxel (0, 0, 0) of a volume in voxels of the first; z runs to the feet, against LPS."""
    x, y, z = np.subtract(volume.origin_mm, first.origin_mm)
    return np.rint(np.array([-z, y, x]) / first.spacing_mm).astype(int)


def volume_script(grid: SharedGrid, names: Sequence[tuple[str, str]]) -> str:
    """The script that a case's page loads.

    Parameters
    ----------
    grid : SharedGrid
    names : sequence of (key, name)
        Keys of the predictions and the submissions' names, in the order to offer them.
    """
    content = {
        "shape": list(grid.ground_truth.shape),
        "spacing_mm": list(grid.spacing_mm),
        "origin_mm": list(grid.origin_mm),
        "suv_window": SUV_WINDOW,
        "suv": None if grid.suv is None else _packed(grid.suv),
        "ground_truth": _packed(np.packbits(grid.ground_truth)),
        "predictions": [
            {"name": name, "mask": _packed(np.packbits(grid.predictions[key]))}
            for key, name in names
            if key in grid.predictions
        ],
    }
    return f"window.AUTOPET_CASE = {script_json(content)};\n"


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), COMPRESSION)).decode("ascii")


def script_json(content: Any) -> str:
    """JSON that can stand in a script: nothing in it ends the element or begins a comment, whatever names hold."""
    text = json.dumps(content, allow_nan=False)  # ASCII only: line separators are escaped, too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
