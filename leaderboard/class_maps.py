"""Class activation maps of a submission's cases as images beside their masks, for `autopet biomarkers` to draw."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import image_stem, write_image
from autopet.methods import find_method
from autopet.progress import track
from autopet.sockets import read_inputs
from leaderboard.overlay_files import Masks, find_masks
from leaderboard.runner import stage_case

MAPS = "maps"  # folder below a case's; the mask's own holds the mask alone


def write_class_maps(
    method: str, model: Path, submission: Path, cases: Sequence[Case], *, cams: Sequence[str] = (), device: str = "cpu"
) -> list[Path]:
    """Write `maps/cam_<name>.nii.gz` for every case of a submission that has a mask; maps that are there are kept.

    Parameters
    ----------
    method : str
        One whose predict.py has `map_volumes`.
    model : Path
        Its model folder.
    submission : Path
        Folder of `autopet run`, or of masks named by case.
    cams : sequence of str
        Names of the maps; none: all that the method has.
    device : str
        `cpu` or `cuda`.

    Returns
    -------
    list of Path
        The images, those that were there among them: from 0 to 1 on the PET's grid.

    Raises
    ------
    AutopetError
        A method without such maps, an unknown map, or a submission without a mask of any of the cases.
    """
    predict = find_method(method).module("predict")
    if not hasattr(predict, "map_volumes"):
        raise AutopetError(f"{method} has no class activation maps; name a method that has, such as weakcam")
    names = list(cams) or list(predict.CAM_METHODS)
    unknown = sorted(set(names) - set(predict.CAM_METHODS))
    if unknown:
        raise AutopetError(f"{method} has no map {', '.join(unknown)}; known are {', '.join(predict.CAM_METHODS)}")
    masks = find_masks(submission.name, submission, cases)
    folders = {case.name: folder for case in cases if (folder := _folder(masks, case)) is not None}
    if not folders:
        raise AutopetError(f"{submission} has a mask of none of the {len(cases)} cases; give the data it was run on")
    loaded = predict.load(model, device)
    paths: list[Path] = []
    for case in track([case for case in cases if case.name in folders], f"{method}: class activation maps"):
        wanted = {name: folders[case.name] / f"cam_{name}.nii.gz" for name in names}
        lost = [name for name, path in wanted.items() if not path.is_file()]
        if lost:
            for name, volume in predict.map_volumes(loaded, _inputs(case, predict.INPUTS), lost).items():
                write_image(wanted[name], volume)
        paths += wanted.values()
    return paths


def _folder(masks: Masks, case: Case) -> Path | None:
    """Where a case's maps lie, so that `overlay_files.find_maps` finds them; None without a mask."""
    pair = masks.pairs.get(case.name)
    if pair is None or pair.prediction is None:
        return None
    inside = pair.prediction.relative_to(masks.root)
    return masks.root / (inside.parts[0] if len(inside.parts) > 1 else image_stem(pair.prediction)) / MAPS


def _inputs(case: Case, sockets: tuple):
    """A case as the method's container is given it."""
    with tempfile.TemporaryDirectory(prefix="autopet-maps-") as name:
        return read_inputs(stage_case(case, Path(name)), sockets)
