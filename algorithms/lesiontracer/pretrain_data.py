"""The data sets of a pretraining: what they are, how often each is sampled, and their patches from one loader."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.nnunet.plans import CHANNELS
from autopet.organs import LABELS as ORGAN_LABELS
from autopet.organs import ROLE as ORGANS

SAMPLINGS = ("data set", "image")
LESIONS = {"background": 0, "lesion": 1}
RESERVED = {"convs", *dir(nn.ModuleDict)}  # names that a stem or a head cannot have in a state dict
DATASET_NUMBER = re.compile(r"Dataset\d+_")


@dataclass(frozen=True)
class Source:
    """One data set: its images and labels stay where they are.

    `images` holds, for every case, one file per channel in the order of `channels`; `labels` is nnU-Net's dictionary
    from name to number (or to a list of numbers, for regions). `reader` names nnU-Net's class for these files, or is
    empty for nnU-Net to find it.
    """

    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    images: Mapping[str, tuple[Path, ...]]
    targets: Mapping[str, Path]
    suffix: str
    reader: str = ""
    regions_class_order: tuple[int, ...] | None = None

    def description(self) -> dict[str, Any]:
        """nnU-Net's dataset.json, without the paths."""
        content = {
            "channel_names": {str(number): name for number, name in enumerate(self.channels)},
            "labels": dict(self.labels),
            "numTraining": len(self.images),
            "file_ending": self.suffix,
        }
        if self.regions_class_order is not None:
            content["regions_class_order"] = list(self.regions_class_order)
        return content | ({"overwrite_image_reader_writer": self.reader} if self.reader else {})


def read_raw(folder: Path, name: str = "") -> Source:
    """A data set in nnU-Net's raw layout: dataset.json, imagesTr/<case>_<channel>.*, labelsTr/<case>.*.

    Raises
    ------
    AutopetError
        dataset.json without channels, labels or file ending; no case; an image or a label that is not there.
    """
    content = _read_json(folder / "dataset.json")
    channels, labels = content.get("channel_names") or content.get("modality"), content.get("labels")
    if not channels or not labels or not content.get("file_ending"):
        raise AutopetError(f"{folder / 'dataset.json'}: expected channel_names, labels and file_ending (nnU-Net v2)")
    suffix = content["file_ending"]
    images, targets = _listed(folder, content) if "dataset" in content else _found(folder, suffix, len(channels))
    missing = [path for path in (*(file for files in images.values() for file in files), *targets.values())]
    missing = [path for path in missing if not path.is_file()]
    if missing or not images:
        raise AutopetError(
            f"{folder}: expected imagesTr/<case>_0000{suffix} and labelsTr/<case>{suffix} for every case, "
            + (f"{missing[0]} is missing" if missing else "found no case")
        )
    order = content.get("regions_class_order")
    return Source(
        name=name or safe_name(folder.resolve().name),
        channels=tuple(channels[key] for key in sorted(channels, key=int)),
        labels=labels,
        images=images,
        targets=targets,
        suffix=suffix,
        reader=content.get("overwrite_image_reader_writer", ""),
        regions_class_order=None if order is None else tuple(order),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AutopetError(f"{path}: expected nnU-Net's dataset.json ({error})") from error


def _found(folder: Path, suffix: str, channels: int) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    targets = {path.name.removesuffix(suffix): path for path in sorted((folder / "labelsTr").glob(f"*{suffix}"))}
    files = folder.resolve() / "imagesTr"
    images = {case: tuple(files / f"{case}_{number:04d}{suffix}" for number in range(channels)) for case in targets}
    return images, {case: path.resolve() for case, path in targets.items()}


def _listed(folder: Path, content: Mapping[str, Any]) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    """Cases that dataset.json lists itself, with paths relative to it."""
    cases = sorted(content["dataset"].items())
    images = {case: tuple((folder / file).resolve() for file in entry["images"]) for case, entry in cases}
    return images, {case: (folder / entry["label"]).resolve() for case, entry in cases}


def read_cases(cases: Sequence[Case], name: str) -> list[Source]:
    """A converted cohort as one data set of lesions and, where ORGANS images exist, a second one of organs.

    A head of its own for the organs lets cases without organ labels, or without lesion labels, take part.
    """
    made = []
    labelled = [case for case in cases if case.lesion_voxels is not None]
    if labelled:
        made.append(_from_cases(labelled, safe_name(name), LESIONS, "SEG"))
    mapped = [case for case in cases if case.image(ORGANS).is_file()]
    if mapped:
        made.append(_from_cases(mapped, safe_name(f"{name}-organs"), ORGAN_LABELS, ORGANS))
    if not made:
        raise AutopetError(f"{name}: no case has a lesion segmentation (SEG) or organ labels (ORGANS)")
    return made


def _from_cases(cases: Sequence[Case], name: str, labels: Mapping[str, int], role: str) -> Source:
    suffixes = sorted({case.suffix for case in cases})
    if len(suffixes) > 1:
        raise AutopetError(f"{name} has {' and '.join(suffixes)} images, nnU-Net takes one format: `autopet convert`")
    return Source(
        name=name,
        channels=CHANNELS,
        labels=labels,
        images={case.name: (case.ct.resolve(), case.suv.resolve()) for case in cases},
        targets={case.name: case.image(role).resolve() for case in cases},
        suffix=suffixes[0],
        reader="SimpleITKIO",
    )


def safe_name(text: str) -> str:
    """A data set's name in a state dict: letters, digits, - and _; without nnU-Net's number."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", DATASET_NUMBER.sub("", text)).strip("-") or "data"
    return f"{name}_" if name in RESERVED else name


def check_names(sources: Sequence[Source]) -> None:
    """Two data sets of one name would share a head."""
    names = [source.name for source in sources]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise AutopetError(f"two data sets are called {doubled[0]}; give one of them as --data NAME=FOLDER")


def shares(counts: Mapping[str, int], sampling: str) -> dict[str, float]:
    """The probability that a patch comes from each data set.

    Parameters
    ----------
    counts : mapping
        Images n per data set.
    sampling : {"data set", "image"}
        What is "inversely proportional to the square root of the number of images per dataset" (Rokuss et al., section
        2.3). `data set`, as the sentence says: the share of the whole data set is 1/sqrt(n), so that small ones come
        more often than large ones. `image`, as MultiTalent (Ulrich et al. 2023) and the authors' public trainer have
        it: the weight of each image is 1/sqrt(n), so that a data set's share grows with sqrt(n).

    Examples
    --------
    >>> shares({"a": 1, "b": 9}, "data set")
    {'a': 0.75, 'b': 0.25}
    >>> shares({"a": 1, "b": 9}, "image")
    {'a': 0.25, 'b': 0.75}
    """
    if sampling not in SAMPLINGS:
        raise AutopetError(f"sampling {sampling!r} is unknown; use {' or '.join(map(repr, SAMPLINGS))}")
    weights = {name: math.sqrt(n) if sampling == "image" else 1 / math.sqrt(n) for name, n in counts.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


class MixedPatches:
    """Patches of all data sets in one stream: each is drawn on its own, so that a batch is mixed.

    A batch of one data set would make each step follow one task; the authors draw image by image, too. Items are
    nnU-Net's (`data` of shape (1, channel, z, y, x), `target`: one label map per deep-supervision scale) and `name`.

    Parameters
    ----------
    loaders : mapping
        Per data set a callable or iterator whose `next` is a batch of one patch (nnU-Net's loaders are).
    probabilities : mapping
        As `shares` returns them.
    seed : int
        Of this process; augmentation processes add their number.
    """

    def __init__(self, loaders: Mapping[str, Any], probabilities: Mapping[str, float], seed: int) -> None:
        self.loaders, self.seed = dict(loaders), seed
        self.names = list(loaders)
        self.probabilities = [probabilities[name] for name in self.names]
        self.random = np.random.default_rng(seed)

    def set_thread_id(self, thread: int) -> None:
        """Called once in each augmentation process: a copy of the parent's generators would repeat its patches."""
        torch.set_num_threads(1)
        torch.manual_seed(self.seed + thread)  # the transforms draw from torch, nnU-Net's loaders from NumPy
        self.random = np.random.default_rng((self.seed, thread))
        for loader in self.loaders.values():
            loader.set_thread_id(thread)

    def __iter__(self) -> MixedPatches:
        return self

    def __next__(self) -> dict[str, Any]:
        name = self.names[int(self.random.choice(len(self.names), p=self.probabilities))]
        return next(self.loaders[name]) | {"name": name}


def by_name(sources: Sequence[Source], value: Callable[[Source], Any]) -> dict[str, Any]:
    """`value` of every data set."""
    return {source.name: value(source) for source in sources}
