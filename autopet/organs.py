"""Organ labels that travel beside a PET/CT: the ten classes, and how TotalSegmentator's structures become them.

The classes are those of LesionTracer (Rokuss et al., From FDG to PSMA, autoPET III 2024, section 2.4). Structures are
named as TotalSegmentator v2 names them; its numbers differ between tasks and versions, so that only names count here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError

ROLE = "ORGANS"  # of the image in a case's folder
TOTAL, HEAD_GLANDS = "total", "head_glands_cavities"  # tasks of TotalSegmentator
CORRECTED, RELEASED = "corrected", "released"
VARIANTS = (CORRECTED, RELEASED)
SHOWN = 5  # items that an error lists


@dataclass(frozen=True)
class Organ:
    """A class of the label map: its number and name, and the structures that make it up (`CORRECTED`)."""

    label: int
    name: str
    structures: tuple[str, ...]
    task: str = TOTAL


ORGANS = (
    Organ(1, "spleen", ("spleen",)),
    Organ(2, "kidneys", ("kidney_right", "kidney_left")),
    Organ(3, "liver", ("liver",)),
    Organ(4, "bladder", ("urinary_bladder",)),
    Organ(
        5,
        "lung",
        (
            "lung_upper_lobe_left",
            "lung_lower_lobe_left",
            "lung_upper_lobe_right",
            "lung_middle_lobe_right",
            "lung_lower_lobe_right",
        ),
    ),
    Organ(6, "brain", ("brain",)),
    Organ(7, "heart", ("heart",)),
    Organ(8, "stomach", ("stomach",)),
    Organ(9, "prostate", ("prostate",)),
    Organ(
        10,
        "head_glands",
        ("parotid_gland_left", "parotid_gland_right", "submandibular_gland_right", "submandibular_gland_left"),
        HEAD_GLANDS,
    ),
)
LABELS = {"background": 0} | {organ.name: organ.label for organ in ORGANS}
# The authors' labels were made with numbers 6 to 9 of head_glands_cavities, which are these: an eye's nerve is in, the
# left submandibular gland is not. `CORRECTED` takes the four glands, numbers 7 to 10.
RELEASED_GLANDS = ("optic_nerve_right", "parotid_gland_left", "parotid_gland_right", "submandibular_gland_right")


def parts_of(organ: Organ, variant: str = CORRECTED) -> tuple[str, ...]:
    """The structures of an organ in a mapping: `corrected`, or `released` for that of the published labels."""
    if variant not in VARIANTS:
        raise AutopetError(f"unknown organ mapping {variant!r}; use one of {', '.join(VARIANTS)}")
    return RELEASED_GLANDS if variant == RELEASED and organ.task == HEAD_GLANDS else organ.structures


def structure_labels(variant: str = CORRECTED) -> dict[str, int]:
    """Label by name of structure, for the names of the ten classes too."""
    names = {organ.name: organ.label for organ in ORGANS}
    return names | {part: organ.label for organ in ORGANS for part in parts_of(organ, variant)}


def task_structures(variant: str = CORRECTED) -> dict[str, tuple[str, ...]]:
    """The structures that are wanted of each task of TotalSegmentator."""
    tasks: dict[str, tuple[str, ...]] = {}
    for organ in ORGANS:
        tasks[organ.task] = (*tasks.get(organ.task, ()), *parts_of(organ, variant))
    return tasks


def absent_organs(names: Collection[str], variant: str = CORRECTED) -> tuple[str, ...]:
    """The organs of which a source has no structure at all.

    Parameters
    ----------
    names : collection of str
        The structures that the source knows, empty ones too; names of the ten classes count as the whole organ.

    Raises
    ------
    AutopetError
        The source knows none of the structures, or only some of an organ (a lung of four lobes would teach a network
        that the fifth is none).
    """
    absent = []
    for organ in ORGANS:
        parts = parts_of(organ, variant)
        missing = [part for part in parts if part not in names]
        if organ.name in names or not missing:
            continue
        if len(missing) < len(parts):
            raise AutopetError(
                f"{organ.name}: expected the structures {', '.join(parts)}, found no {', '.join(missing)}; "
                "segment or export them too"
            )
        absent.append(organ.name)
    if len(absent) == len(ORGANS):
        raise AutopetError(f"expected structures such as {', '.join(list(structure_labels(variant))[:3])}, found none")
    return tuple(absent)


def merge_structures(structures: Mapping[str, np.ndarray], variant: str = CORRECTED) -> np.ndarray:
    """One label map of masks of structures, as TotalSegmentator writes them.

    Parameters
    ----------
    structures : mapping of str to array
        Masks of one shape, above 0 is inside; structures that belong to no organ are not looked at.
    variant : str
        See `parts_of`.

    Returns
    -------
    uint8 array
        Labels as in `ORGANS`; where two organs overlap, the higher number.

    Raises
    ------
    AutopetError
        See `absent_organs`; or the shapes differ.
    """
    labels = structure_labels(variant)
    absent_organs(structures.keys(), variant)
    masks = {name: mask for name, mask in structures.items() if name in labels}
    shapes = {mask.shape for mask in masks.values()}
    if len(shapes) > 1:
        raise AutopetError(f"expected structures of one shape, found {sorted(shapes)}; segment them in the same CT")
    merged = np.zeros(shapes.pop(), np.uint8)
    for name, mask in masks.items():
        np.maximum(merged, np.uint8(labels[name]), out=merged, where=mask > 0)
    return merged


def merge_labels(labels: np.ndarray, names: Mapping[int, str], variant: str = CORRECTED) -> np.ndarray:
    """A label map of the ten organs, uint8, of a label map of structures and its table from number to name.

    Raises
    ------
    AutopetError
        The table knows none of the structures or only some of an organ, or the map has numbers that it does not name.
    """
    absent_organs(names.values(), variant)
    return translate_labels(labels, names, variant)


def translate_labels(labels: np.ndarray, names: Mapping[int, str], variant: str = CORRECTED) -> np.ndarray:
    """`merge_labels` for a part of the structures, such as those of one task; the rest is not asked for."""
    known = np.array(sorted({0, *names}))
    if known[0] < 0:
        raise AutopetError(f"the map's table of names has the number {known[0]}, expected 0 and more; mend it")
    whole = whole_numbers(labels)
    strangers = _outside(whole, known)
    if strangers:
        raise AutopetError(f"labels {_listed(strangers)} are not in the map's table of {len(names)} names; mend it")
    targets = structure_labels(variant)
    numbers = np.zeros(int(known.max()) + 1, np.uint8)
    for number, name in names.items():
        numbers[number] = targets.get(name, 0) if number else 0
    return numbers[whole]


def check_organ_map(labels: np.ndarray) -> np.ndarray:
    """A label map of the ten organs as uint8; other labels than 0 to 10 are an error that names them."""
    whole = whole_numbers(labels)
    strangers = _outside(whole, np.arange(len(ORGANS) + 1))
    if strangers:
        raise AutopetError(
            f"expected organ labels 0 to {len(ORGANS)}, found {_listed(strangers)}; for TotalSegmentator's own numbers "
            "give the table of their names, too"
        )
    return whole.astype(np.uint8)


def count_voxels(labels: np.ndarray) -> dict[str, int]:
    """Voxels by the name of an organ, 0 for those that are not there."""
    # ten comparisons of bytes: bincount makes integers of eight bytes of a map, and takes twenty times as long
    return {organ.name: int(np.count_nonzero(labels == organ.label)) for organ in ORGANS}


def whole_numbers(labels: np.ndarray) -> np.ndarray:
    """The labels as integers; others are an error that names them."""
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    if labels.dtype.kind in "iu":
        return labels
    with np.errstate(invalid="ignore"):
        broken = labels[~(labels == np.rint(labels))]
    if broken.size or np.abs(labels).max(initial=0) >= 2**31:
        found = np.unique(broken) if broken.size else labels[np.abs(labels) >= 2**31][:1]
        raise AutopetError(f"expected whole numbers as labels, found {_listed(found)}; this is no label map")
    return labels.astype(np.int32)


def _outside(labels: np.ndarray, known: np.ndarray) -> list[int]:
    """The labels of a map that are not among the known ones, which are sorted."""
    low, high = labels.min(initial=0), labels.max(initial=0)
    if known[0] <= low and high <= known[-1]:
        named = np.zeros(known[-1] + 1, bool)
        named[known] = True
        if named.all() or named[labels].all():  # no sort of a whole map
            return []
    return [int(value) for value in np.unique(labels[~np.isin(labels, known)])]


def _listed(values: Collection | np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in list(values)[:SHOWN])
    return f"{shown} and {len(values) - SHOWN} more" if len(values) > SHOWN else shown
