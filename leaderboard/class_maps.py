"""Class activation maps of a submission's cases as images beside their masks, for `autopet biomarkers` to draw.

<case's folder>/maps/cam_<name>.nii.gz   a map
<case's folder>/maps/maps.json           which model's maps of which images they are
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autopet.checkpoint import SUMS, sha256
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.images import image_stem, write_image
from autopet.methods import find_method
from autopet.progress import console, track
from autopet.sockets import read_inputs
from autopet.work import file_sizes
from leaderboard.overlay_files import Masks, find_masks
from leaderboard.runner import read_origin, stage_case

MAPS = "maps"  # folder below a case's; the mask's own holds the mask alone
ORIGIN = "maps.json"


def write_class_maps(
    method: str, model: Path, submission: Path, cases: Sequence[Case], *, cams: Sequence[str] = (), device: str = "cpu"
) -> list[Path]:
    """Write `maps/cam_<name>.nii.gz` for every case of a submission that has a mask.

    Maps that are there are kept. Those of another model, or of a case that was converted anew, are removed.

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
        A method without such maps, an unknown map, a submission without a mask of any of the cases, or a link in it.
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
    origin = {"method": method, "model": sha256(model / SUMS)}
    _warn_of_other_model(submission, origin["model"])
    paths: list[Path] = []
    for case in track([case for case in cases if case.name in folders], f"{method}: class activation maps"):
        known = {name: folders[case.name] / f"cam_{name}.nii.gz" for name in predict.CAM_METHODS}
        _remove_others(known, {**origin, "image_bytes": file_sizes((case.suv, case.ct))})
        wanted = {name: known[name] for name in names}
        lost = [name for name, path in wanted.items() if not path.is_file()]
        if lost:
            for name, volume in predict.map_volumes(loaded, _inputs(case, predict.INPUTS), lost).items():
                write_image(wanted[name], volume)
        paths += wanted.values()
    return paths


def _warn_of_other_model(submission: Path, model: str) -> None:
    """Maps of one model beside masks of another would be taken for what made the masks."""
    if (read_origin(submission) or {}).get("model") not in (None, "", model):
        console.print(
            f"warning: {submission}: its masks are of another model than these maps, or of other options; run the "
            "model on the cases first (`autopet run`)", highlight=False, markup=False,
        )  # fmt: skip


def _folder(masks: Masks, case: Case) -> Path | None:
    """Where a case's maps lie, so that `overlay_files.find_maps` finds them; None without a mask."""
    pair = masks.pairs.get(case.name)
    if pair is None or pair.prediction is None:
        return None
    inside = pair.prediction.relative_to(masks.root)
    folder = masks.root / (inside.parts[0] if len(inside.parts) > 1 else image_stem(pair.prediction)) / MAPS
    linked = next((path for path in (folder.parent, folder) if path.is_symlink()), None)
    if linked:
        raise AutopetError(f"{linked} is a link; put the folder itself there")
    return folder


def _remove_others(maps: Mapping[str, Path], origin: Mapping[str, object]) -> None:
    """Remove a case's maps unless they are of this origin, which is noted before the first is written."""
    note, text = next(iter(maps.values())).with_name(ORIGIN), json.dumps(origin, indent=2) + "\n"
    if note.is_file() and note.read_bytes() == text.encode():
        return
    for path in maps.values():
        path.unlink(missing_ok=True)
    with whole_file(note) as part:
        part.write_text(text, encoding="utf-8")


def _inputs(case: Case, sockets: tuple):
    """A case as the method's container is given it."""
    with tempfile.TemporaryDirectory(prefix="autopet-maps-") as name:
        return read_inputs(stage_case(case, Path(name)), sockets)
