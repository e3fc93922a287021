"""Training on patches with MONAI: cases cached as memory-mapped arrays, and patches that are the same in every run."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose
from torch.utils.data import Dataset

MOST_CENTRES = 100_000  # voxels of a case that patches may be centred on, of each kind
IMAGE, LABEL, FOREGROUND, BACKGROUND = "image", "label", "foreground", "background"


def case_generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that belong to one case, whatever other cases there are."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])])


def some_centres(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most MOST_CENTRES of the voxels, drawn evenly and sorted."""
    return indices if len(indices) <= MOST_CENTRES else np.sort(rng.choice(indices, MOST_CENTRES, replace=False))


def save_case(
    folder: Path, image: np.ndarray, label: np.ndarray, *, foreground: np.ndarray, background: np.ndarray
) -> None:
    """Write a case for `SeededPatches`.

    Parameters
    ----------
    image : (channel, ...) array
        Becomes image.npy, float16.
    label : (...) array of bool
        Becomes label.npy, (1, ...) uint8.
    foreground, background : 1D array of int
        Voxels of the raveled label to centre on.
    """
    arrays: dict[str, np.ndarray] = {IMAGE: image.astype(np.float16), LABEL: label[None].astype(np.uint8)}
    arrays |= {FOREGROUND: foreground, BACKGROUND: background}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


@contextmanager
def plain_tensors() -> Iterator[None]:
    """MONAI without its metadata tensors (geometry is ours to keep), and without its word on every negative case."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Num foregrounds 0")
            yield
    finally:
        set_track_meta(before)


class SeededPatches(Dataset):
    """All patches of a training in their order: patch i is the same in every run, whoever cuts it, and when.

    The cases take turns, in another order each round, and give `per_turn` patches each time. To be used inside
    `plain_tensors`. Arrays are memory-mapped: a patch costs what it holds and not what the scan holds.

    Parameters
    ----------
    folders : sequence of Path
        Of `autopet.case_folders.cache_folders`, each written by `save_case`.
    transform : monai.transforms.Compose
        Begins with a RandCropByPosNegLabeld of one sample; gives a list of one dictionary with `image` and `label`.
    count : int
        Patches in all.
    """

    def __init__(
        self, folders: Sequence[Path], transform: Compose, *, count: int, seed: int, per_turn: int = 1
    ) -> None:
        self.folders, self.transform = list(folders), transform
        self.count, self.seed, self.per_turn = count, seed, per_turn

    def __len__(self) -> int:
        return self.count

    def case_of(self, index: int) -> Path:
        """The case that patch `index` is cut from."""
        turn, place = divmod(index // self.per_turn, len(self.folders))
        return self.folders[np.random.default_rng([self.seed, 0, turn]).permutation(len(self.folders))[place]]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        folder = self.case_of(index)
        sample = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in (IMAGE, LABEL)}
        sample |= {name: np.load(folder / f"{name}.npy") for name in (FOREGROUND, BACKGROUND)}
        seed = np.random.default_rng([self.seed, 1, index]).integers(2**32)
        cut: Any = self.transform.set_random_state(seed=int(seed))(sample)
        return cut[0][IMAGE], cut[0][LABEL]
