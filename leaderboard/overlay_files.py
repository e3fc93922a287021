"""The files behind a case's overlay: SUV, CT and truth of a cohort, masks and class activation maps of submissions.

A submission may hold class activation maps in [0, 1] beside its masks: `cam_<method>.nii.gz` (or .nii, .mha) anywhere
below the case's folder, or images in a folder of such a name (`output/images/cam-scorecam/x.mha`). Beside plain masks
`<case>.nii.gz` a folder `<case>/` may hold them. The mask's own folder holds the mask alone, as on the platform.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopet.cohort import Case
from autopet.errors import AutopetError, one_line
from autopet.images import image_stem, is_image, read_grid, read_image
from autopet.progress import console
from autopet.views import radiological
from autopet.volume import Volume, resample
from evaluation.aggregate import printable
from evaluation.jobs import Pair, find_candidates, find_steps, pair_up, refuse_foreign_voxels
from evaluation.scoring import read_mask
from evaluation.truths import Truth
from leaderboard.overlays import Guess, Slice, choose_slice

MAP_NAME = re.compile(r"cam[_-](?P<method>[a-z0-9+_-]+)", re.IGNORECASE)
MOST_MAPS = 16  # of a case that are looked at; a submission may hold any number
MOST_MAP_VOXELS = 2**27  # 512 x 512 x 512; a small file can announce more than memory holds


@dataclass(frozen=True)
class Masks:
    """A submission's masks: its name, its folder, and by case what was predicted."""

    name: str
    root: Path
    pairs: Mapping[str, Pair]


def find_masks(name: str, folder: Path, cases: Sequence[Case]) -> Masks:
    """Which mask of a submission (predictions.json, or masks named by case) belongs to which case of a cohort.

    Of a submission with interactive steps it is the last step's.
    """
    folder = (find_steps(folder) or [folder])[-1]
    truths = [Truth(case.name, case.mask) for case in cases]
    pairs = pair_up(truths, find_candidates(folder)).pairs
    return Masks(name, folder.resolve(), {pair.truth.case: pair for pair in pairs})


def find_maps(root: Path, prediction: Path) -> dict[str, Path]:
    """Class activation maps that belong to a mask of a submission, by method in lower case, `MOST_MAPS` at most.

    Links are not followed.
    """
    inside = prediction.relative_to(root)
    folder = root / (inside.parts[0] if len(inside.parts) > 1 else image_stem(prediction))
    found: dict[str, Path] = {}
    if folder.is_symlink() or not folder.is_dir():
        return found
    for path in sorted(folder.rglob("*")):
        match = MAP_NAME.fullmatch(image_stem(path)) or MAP_NAME.fullmatch(path.parent.name)
        if match and is_image(path) and path.is_file() and not path.is_symlink() and path != prediction:
            found.setdefault(match["method"].lower(), path)
        if len(found) == MOST_MAPS:
            break
    return found


def read_slice(case: Case, submissions: Sequence[Masks]) -> tuple[Slice, str]:
    """The slice of a case to show, and where it lies in words.

    Masks that cannot be read, or lie on another grid than the SUV image, are left out with the reason; maps on
    another grid are resampled, and those that cannot be read are left out with a warning.

    Raises
    ------
    AutopetError
        The cohort's own images cannot be read, or do not lie on one grid.
    """
    suv = read_image(case.suv)
    truth = _on_grid(read_mask(case.mask), suv, case.mask)
    ct = _on_grid(read_image(case.ct), suv, case.ct) if case.ct.is_file() else None
    read = [_read_mask(masks.pairs.get(case.name), suv) for masks in submissions]
    volumes = [truth, *(mask for mask, _ in read if mask is not None)]
    turned, (slice_mm, *spacing_mm) = radiological(suv)
    index = choose_slice(turned, [radiological(volume)[0] for volume in volumes])

    def cut(volume: Volume) -> np.ndarray:
        return np.ascontiguousarray(radiological(volume)[0][index])

    guesses = tuple(
        Guess(masks.name, None if mask is None else cut(mask), _read_maps(masks, case, suv, cut), reason)
        for masks, (mask, reason) in zip(submissions, read, strict=True)
    )
    row_mm, column_mm = spacing_mm
    shown = Slice(cut(suv), None if ct is None else cut(ct), cut(truth), guesses, (row_mm, column_mm))
    return shown, f"axial slice {index + 1} of {len(turned)} from the head ({index * slice_mm:.0f} mm)"


def _on_grid(volume: Volume, suv: Volume, path: Path) -> Volume:
    """The voxels with the geometry of the SUV image itself: in an oblique scan rounding can turn them differently."""
    difference = volume.grid_difference(suv)
    if difference:
        raise AutopetError(f"{path}: expected the grid of the SUV image, found {difference}; convert the case anew")
    return suv.with_array(volume.array)


def _read_mask(pair: Pair | None, suv: Volume) -> tuple[Volume | None, str]:
    if pair is None or pair.prediction is None:
        return None, "no mask" if pair is None else pair.reason
    try:
        _on_grid(read_grid(pair.prediction), suv, pair.prediction)  # before its voxels are read
        return _on_grid(read_mask(pair.prediction), suv, pair.prediction), ""
    except Exception as error:  # whatever a participant's file does to its reader, the picture is drawn without it
        return None, printable(one_line(error))


def _read_maps(masks: Masks, case: Case, suv: Volume, cut: Callable[[Volume], np.ndarray]) -> dict[str, np.ndarray]:
    pair = masks.pairs.get(case.name)
    if pair is None or pair.prediction is None:
        return {}
    found = {}
    for method, path in find_maps(masks.root, pair.prediction).items():
        try:
            found[method] = cut(_read_map(path, suv)).astype(np.float32)
        except Exception as error:
            text = f"{masks.name}: {case.name} is shown without its map {path.name}: {one_line(error)}"
            console.print(printable(text), style="yellow", highlight=False, markup=False, soft_wrap=True)
    return found


def _read_map(path: Path, suv: Volume) -> Volume:
    """A participant's map on the grid of the SUV image."""
    refuse_foreign_voxels(path)
    announced = math.prod(read_grid(path).shape)
    if announced > MOST_MAP_VOXELS:
        raise AutopetError(f"{path.name}: expected at most {MOST_MAP_VOXELS} voxels, found {announced}")
    volume = read_image(path)
    return suv.with_array(volume.array) if volume.same_grid(suv) else resample(volume, suv)
