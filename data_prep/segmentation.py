"""The lesion mask of a study: which segments of its Segmentations and RT Structure Sets count, united on the PET grid.

`data_prep.segmentation_frames` draws the frames of a Segmentation, `data_prep.contours` the contours of a
Structure Set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep.attributes import tag_name
from data_prep.contours import read_structure_set
from data_prep.mask_objects import Drawn, MaskObject
from data_prep.segmentation_frames import read_seg
from data_prep.series import Series


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Mask on the PET grid, and how it came about.

    `mask` is uint8, 0 or 1. `segments` are the labels united in it, `frames_placed` the frames (of an RT Structure Set:
    the contours) with these segments, `grid` says per object whether it lay on the PET grid or was resampled.
    """

    mask: Volume
    seg_uids: tuple[str, ...]
    segments: tuple[str, ...]
    frames_placed: int
    grid: tuple[str, ...]
    warnings: tuple[str, ...]


READERS: dict[str, Callable[..., MaskObject]] = {"SEG": read_seg, "RTSTRUCT": read_structure_set}


def load_segmentation(
    series: Sequence[Series], *, pet: Volume, pet_uid: str, frame_uid: str = "", segments: Sequence[str] = (),
    pet_headers: Sequence[Dataset] = (),
) -> Segmentation:  # fmt: skip
    """Unite segments of a study's Segmentation objects and RT Structure Sets on the PET grid.

    Named segments come from the objects that have them; without names, all segments count. Objects on the PET grid, or
    that refer to the PET series, go before others; of those that are left, Segmentations go before Structure Sets (both
    are often exports of one drawing, and voxels come through unchanged). What is left out is named in the warnings.

    Parameters
    ----------
    series : sequence of Series
        The study's SEG and RTSTRUCT series, one or more.
    pet : Volume
        The reference grid (its voxels are not read).
    pet_uid : str
        SeriesInstanceUID of the PET series.
    frame_uid : str
        Its FrameOfReferenceUID; a segmentation in another frame is placed all the same, with a warning.
    segments : sequence of str
        SegmentLabel or SegmentNumber, ROIName or ROINumber; labels go first, whatever their case.
    pet_headers : sequence of Dataset
        Headers of the PET slices, full or those of `scan`: places for frames that have no position of their own and
        refer to a slice by SOPInstanceUID.

    Raises
    ------
    AutopetError
        No object has a named segment (the message lists the labels there are), or a chosen object is broken;
        a broken object that is not chosen is a warning. What is chosen is not empty, and nothing of it is left on the
        PET grid; an object of which nothing is left beside others is a warning.
    """
    count = Counter(str(header.get("SOPInstanceUID", "")) for header in pet_headers)  # more than 1: a multi-frame PET
    slices = {uid: header for header in pet_headers if count[uid := str(header.get("SOPInstanceUID", ""))] == 1}
    objects = [
        READERS.get(item.role, read_seg)(path, pet=pet, pet_uid=pet_uid, pet_headers=slices)
        for item in series
        for path in item.paths
    ]
    if not objects:
        raise AutopetError("no Segmentation object and no RT Structure Set to load")
    warnings: list[str] = []
    chosen = _choose_named(objects, segments) if segments else _choose_all(objects, warnings)
    broken = next((item for item, _ in chosen if item.problem), None)
    if broken:
        raise AutopetError(broken.problem)
    _warn_of_choice(objects, chosen, warnings, named=bool(segments))
    return _unite(chosen, pet, frame_uid, warnings)


def _unite(
    chosen: Sequence[tuple[MaskObject, set[int]]], pet: Volume, frame_uid: str, warnings: list[str]
) -> Segmentation:
    mask = np.zeros(pet.shape, dtype=bool)
    drawings: list[Drawn] = []
    for item, numbers in chosen:
        if frame_uid and item.frame_uids and frame_uid not in item.frame_uids:
            tag = tag_name("FrameOfReferenceUID")
            warnings.append(f"{item.title}: another {tag} than the PET, check where it lies")
        drawn = item.draw(numbers, pet, warnings)
        mask |= drawn.mask
        drawings.append(replace(drawn, mask=mask))  # keeps no mask of its own alive
    lost = [drawn.vanished for drawn in drawings if drawn.vanished]
    if lost and not mask.any():  # a patient with a lesion must not become one without
        raise AutopetError(lost[0])
    labels = dict.fromkeys(item.labels[number] for item, numbers in chosen for number in sorted(numbers))
    return Segmentation(
        mask=pet.with_array(mask.astype(np.uint8)),
        seg_uids=tuple(str(item.header.SOPInstanceUID) for item, _ in chosen),
        segments=tuple(labels),
        frames_placed=sum(drawn.count for drawn in drawings),
        grid=tuple(drawn.grid for drawn in drawings),
        warnings=(*warnings, *lost),
    )


# --- choosing --------------------------------------------------------------------------------------------------------


def _preferred(objects: Sequence[MaskObject]) -> list[MaskObject]:
    """Those drawn on the PET, or all when none is; of these the Segmentations, or all when there is none."""
    kept = [item for item in objects if item.belongs] or list(objects)
    return [item for item in kept if item.kind == "SEG"] or kept


def _choose_named(objects: Sequence[MaskObject], segments: Sequence[str]) -> list[tuple[MaskObject, set[int]]]:
    chosen: dict[int, set[int]] = {}
    for name in segments:
        found = {index: numbers for index, item in enumerate(objects) if (numbers := _numbers_of(item, name))}
        unknown = next((item for item in objects if item.problem and not item.labels), None)
        if not found and unknown:  # it may be the one that has the segment
            raise AutopetError(unknown.problem)
        if not found:
            listed = "; ".join(f"{item.title}" for item in objects)
            tags = " or ".join(dict.fromkeys(LABEL_TAGS[item.kind] for item in objects))
            raise AutopetError(f"no segment {name!r} in {tags}; segments there: {listed}")
        preferred = _preferred([objects[index] for index in found])
        for index, numbers in found.items():
            if objects[index] in preferred:
                chosen.setdefault(index, set()).update(numbers)
    return [(objects[index], chosen[index]) for index in sorted(chosen)]


LABEL_TAGS = {"SEG": tag_name("SegmentLabel"), "RTSTRUCT": tag_name("ROIName")}


def _numbers_of(item: MaskObject, name: str) -> set[int]:
    wanted = name.strip()
    by_label = {number for number, label in item.labels.items() if label == wanted}
    by_case = {number for number, label in item.labels.items() if label.casefold() == wanted.casefold()}
    by_number = {number for number in item.labels if str(number) == wanted}
    return by_label or by_case or by_number


def _choose_all(objects: Sequence[MaskObject], warnings: list[str]) -> list[tuple[MaskObject, set[int]]]:
    kept = _preferred(objects)
    total = sum(len(item.labels) for item in kept)
    if total > 1:
        listed = "; ".join(item.title for item in kept)
        warnings.append(f"{total} segments united as lesion, name the ones to use with `--segments`: {listed}")
    return [(item, set(item.labels)) for item in kept]


def _warn_of_choice(
    objects: Sequence[MaskObject], chosen: Sequence[tuple[MaskObject, set[int]]], warnings: list[str], *, named: bool
) -> None:
    used = [item for item, _ in chosen]
    if named and len(used) > 1:
        warnings.append(f"named segments come from {len(used)} objects: {'; '.join(item.title for item in used)}")
    warnings += [f"segmentation not used: {item.problem}" for item in objects if item.problem]
    unused = [item.title for item in objects if item not in used and not item.problem]
    if unused:
        warnings.append(f"segmentations not used: {'; '.join(unused)}")
