"""What the U-Net is trained on: cases on the working grid, cached, and patches cut from them by label."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import CastToTyped, Compose, RandAffined, RandCropByPosNegLabeld, RandFlipd
from torch.utils.data import Dataset

from autopet.cohort import Case
from autopet.folders import remove_leftovers, whole_folder
from autopet.images import read_image
from autopet.intensity import BODY_SUV
from autopet.progress import track
from autopet.volume import resample
from baselines.unet3d.model import CHANNELS, Settings, prepare

MOST_CENTRES = 100_000  # voxels of a case that patches may be centred on, of each kind
LEFT_RIGHT = 2  # axis of a (z, y, x) array along the patient's left and right


def cache_cases(
    cases: Sequence[Case], folder: Path, settings: Settings, spacing_mm: Sequence[float]
) -> dict[str, Path]:
    """Every case as the network sees it, one folder each; those of an earlier call are kept.

    image.npy (channel, z, y, x) float16 and label.npy (1, z, y, x) uint8 are memory-mapped in training, so that a patch
    costs what it holds and not what the scan holds; foreground.npy and background.npy are the voxels to centre on.
    """
    folders = {case.name: folder / case.name for case in cases}
    if folder.is_dir():
        remove_leftovers(folder)
    missing = [case for case in cases if not folders[case.name].is_dir()]
    for case in track(missing, "U-Net: cases onto the working grid") if missing else ():
        with whole_folder(folders[case.name]) as part:
            _cache_case(case, part, settings, spacing_mm)
    return folders


def _cache_case(case: Case, folder: Path, settings: Settings, spacing_mm: Sequence[float]) -> None:
    pet, mask = read_image(case.suv), read_image(case.mask)
    image, grid = prepare({"CT": read_image(case.ct), "PET": pet}, CHANNELS, settings, spacing_mm)
    label = (mask if grid is pet else resample(mask, grid, nearest=True)).array != 0
    missing = [(0, max(edge - n, 0)) for n, edge in zip(label.shape, settings.patch, strict=True)]
    image, label = np.pad(image, [(0, 0), *missing]), np.pad(label, missing)
    low, high = settings.pet_range_suv
    body = image[CHANNELS.index("PET")] > (BODY_SUV - low) / (high - low)
    rng = np.random.default_rng([settings.seed, int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:4])])
    foreground = _some(np.flatnonzero(label), rng)
    background = _some(np.flatnonzero(body & ~label), rng)
    if not len(foreground) + len(background):  # an empty scan
        background = _some(np.flatnonzero(~label), rng)
    arrays: dict[str, np.ndarray] = {"image": image.astype(np.float16), "label": label[None].astype(np.uint8)}
    arrays |= {"foreground": foreground, "background": background}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _some(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return indices if len(indices) <= MOST_CENTRES else np.sort(rng.choice(indices, MOST_CENTRES, replace=False))


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


class Patches(Dataset):
    """All patches of a training in their order: patch i is the same in every run, whoever cuts it, and when.

    The cases take turns, in another order each round.
    """

    def __init__(self, folders: Sequence[Path], settings: Settings) -> None:
        self.folders, self.settings = list(folders), settings
        self.transform = patch_transform(settings)

    def __len__(self) -> int:
        return self.settings.epochs * self.settings.iterations_per_epoch * self.settings.batch

    def case_of(self, index: int) -> Path:
        """The case that patch `index` is cut from."""
        turn, place = divmod(index, len(self.folders))
        return self.folders[np.random.default_rng([self.settings.seed, 0, turn]).permutation(len(self.folders))[place]]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        folder = self.case_of(index)
        sample = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("image", "label")}
        sample |= {name: np.load(folder / f"{name}.npy") for name in ("foreground", "background")}
        seed = np.random.default_rng([self.settings.seed, 1, index]).integers(2**32)
        cut: Any = self.transform.set_random_state(seed=int(seed))(sample)
        return cut[0]["image"], cut[0]["label"]


def patch_transform(settings: Settings) -> Compose:
    """MONAI's chain: cut by label, mirror left and right, rotate about the body axis and change the size."""
    keys = ("image", "label")
    angle, share = math.radians(settings.rotation_degrees), settings.scale_share
    return Compose(
        [
            RandCropByPosNegLabeld(
                keys,
                label_key="label",
                spatial_size=settings.patch,
                pos=settings.foreground_share,
                neg=1 - settings.foreground_share,
                num_samples=1,
                fg_indices_key="foreground",
                bg_indices_key="background",
            ),
            CastToTyped(keys, dtype=torch.float32),
            RandFlipd(keys, prob=settings.flip_probability, spatial_axis=LEFT_RIGHT),
            RandAffined(
                keys,
                prob=1.0 if angle or share else 0.0,
                rotate_range=(angle, 0.0, 0.0),
                scale_range=(share, share, share),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
        ]
    )
