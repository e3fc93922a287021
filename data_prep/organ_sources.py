"""Organ maps in a folder: which file is a case's, and what it holds.

A case's map is an image of labels 0 to 10, TotalSegmentator's multilabel images with the table of their names, or a
folder of one image per structure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import find_images, image_stem, is_image, read_image
from autopet.label_names import label_names
from autopet.organs import (
    CORRECTED,
    absent_organs,
    check_organ_map,
    structure_labels,
    task_structures,
    translate_labels,
)
from autopet.volume import Volume

MISSING, AMBIGUOUS = "missing", "ambiguous"


@dataclass(frozen=True)
class Source:
    """Where the organs of a case come from: `paths`, or what is wrong with them."""

    paths: tuple[Path, ...] = ()
    status: str = ""
    reason: str = ""


@dataclass(frozen=True)
class OrganMap:
    """Labels of the ten organs, uint8, on any grid.

    `absent` names the organs that the source does not know, `variant` how structures were mapped (see
    `autopet.organs.parts_of`; empty for a map that came with the labels of the organs).
    """

    volume: Volume
    absent: tuple[str, ...] = ()
    variant: str = ""


# --- which file is whose ---------------------------------------------------------------------------------------------


def find_sources(folder: Path, cases: Sequence[Case]) -> dict[str, Source]:
    """The source of every case, by its name.

    A file or folder belongs to a case when its stem is the case's name or patient ID, or begins with it and goes on
    with anything but a letter or digit; the longest name that fits decides. What is named after the case goes before
    what is named after the patient, and the exact name before a longer one. Several of a rank are ambiguous (unless
    each is named after another task of TotalSegmentator), and so is a patient's only map when there are several cases.

    Raises
    ------
    AutopetError
        The folder is missing, or holds no image and no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder of organ maps; give the one that holds a map per case")
    entries = sorted(path for path in folder.iterdir() if is_image(path) or _is_visible_folder(path))
    if not entries:
        raise AutopetError(f"{folder} holds no organ map; expected an image, or a folder of structures, per case")
    owners = _owners(entries, {key for case in cases for key in (case.name, case.patient_id) if key})
    cases_of = Counter(case.patient_id for case in cases)
    return {case.name: _choose(case, owners, cases_of[case.patient_id], folder) for case in cases}


def _is_visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else image_stem(path)


def _owners(entries: Iterable[Path], keys: set[str]) -> dict[str, list[Path]]:
    """Entries by the longest key that their name is or begins with."""
    owners: dict[str, list[Path]] = {}
    for path in entries:
        stem = _stem(path)
        # every prefix that ends where a word does, the longest first
        ends = [len(stem), *(end for end in range(len(stem) - 1, 0, -1) if not stem[end].isalnum())]
        key = next((stem[:end] for end in ends if stem[:end] in keys), None)
        if key is not None:
            owners.setdefault(key, []).append(path)
    return owners


def _choose(case: Case, owners: dict[str, list[Path]], cases_of_patient: int, folder: Path) -> Source:
    key = case.name if case.name in owners else case.patient_id
    candidates = owners.get(key, [])
    if not candidates:
        return Source(status=MISSING, reason=f"no map named {case.name} or {case.patient_id} in {folder}")
    exact = [path for path in candidates if _stem(path) == key]
    chosen = exact or candidates
    listed = ", ".join(path.name for path in chosen[:3])
    if len(chosen) > 1 and not _are_tasks(chosen):
        reason = f"{len(chosen)} maps fit {key} ({listed}); name one of them {case.name}"
        return Source(status=AMBIGUOUS, reason=reason)
    if key != case.name and cases_of_patient > 1:
        reason = f"{listed} is named after patient {key}, who has {cases_of_patient} cases; name maps after cases"
        return Source(status=AMBIGUOUS, reason=reason)
    return Source(tuple(chosen))


def _are_tasks(paths: Sequence[Path]) -> bool:
    """Whether each is the image of another task of TotalSegmentator, by the end of its name."""
    ends = [next((task for task in task_structures() if _stem(path).endswith(f"_{task}")), "") for path in paths]
    return all(ends) and len(set(ends)) == len(ends) and all(path.is_file() for path in paths)


# --- what it holds ---------------------------------------------------------------------------------------------------


def read_organs(paths: Sequence[Path], variant: str = CORRECTED) -> OrganMap:
    """The organs of a case, of one image or folder, or of the images of several tasks.

    Raises
    ------
    AutopetError
        An image cannot be read, has labels that nothing names, or lies on another grid than the others; or the
        structures do not make up an organ, see `autopet.organs.absent_organs`.
    """
    if len(paths) == 1 and paths[0].is_file() and not label_names(paths[0]):
        volume = read_image(paths[0])
        with _naming(paths[0]):
            return OrganMap(volume.with_array(check_organ_map(volume.array)))
    files = [file for path in paths for file in _files_of(path)]
    parts = _Parts(variant)
    for file in files:
        parts.add(file)
    with _naming(paths[0]):
        return parts.merged()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts a path before the message of an error."""
    try:
        yield
    except AutopetError as error:
        raise AutopetError(f"{path}: {error}") from error


def _files_of(path: Path) -> list[Path]:
    """An image itself; of a folder the images in it and one level below (TotalSegmentator's tasks)."""
    if path.is_file():
        return [path]
    places = [path, *filter(_is_visible_folder, sorted(path.iterdir()))]
    return [file for place in places for file in find_images(place)]


class _Parts:
    """Organs, put together of images of structures that lie on one grid."""

    def __init__(self, variant: str) -> None:
        self.variant, self.labels = variant, structure_labels(variant)
        self.names: dict[str, Path] = {}
        self.merged_so_far: Volume | None = None

    def add(self, path: Path) -> None:
        """A structure's mask, or a multilabel image with its table; anything else is not looked at."""
        if _stem(path) in self.labels:
            volume = read_image(path)
            organs = np.where(volume.array > 0, np.uint8(self.labels[_stem(path)]), np.uint8(0))
            self._add(path, volume.with_array(organs), [_stem(path)])
        elif names := label_names(path):
            volume = read_image(path)
            with _naming(path):
                organs = translate_labels(volume.array, names, self.variant)
            self._add(path, volume.with_array(organs), [name for name in names.values() if name in self.labels])

    def _add(self, path: Path, organs: Volume, names: Sequence[str]) -> None:
        for name in names:
            if name in self.names:
                raise AutopetError(f"{path}: {name} is in {self.names[name]}, too; take one of them away")
            self.names[name] = path
        if self.merged_so_far is None:
            self.merged_so_far = organs
            return
        difference = organs.grid_difference(self.merged_so_far)
        if difference:
            raise AutopetError(f"{path}: another grid than {next(iter(self.names.values()))}: {difference}")
        np.maximum(self.merged_so_far.array, organs.array, out=self.merged_so_far.array)

    def merged(self) -> OrganMap:
        """All of them; where two overlap, the higher label."""
        absent = absent_organs(self.names, self.variant)
        assert self.merged_so_far is not None
        return OrganMap(self.merged_so_far, absent, self.variant)
