"""Segmentation by class activation maps as an algorithm container: PET in SUV and CT in HU in, lesion mask out.

Algorithm 1 of the paper for every slice: classify; where there is a lesion, map what convinced the classifier, and
threshold map and SUV. Every slice's probability goes into run.json.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithms.weakcam.model import CAM_METHODS, METHOD, Settings, load_network
from algorithms.weakcam.search import GLOBAL, lowest_suv, upscale
from algorithms.weakcam.slices import AT_ONCE, cut, lesion_probability
from algorithms.weakcam.slices import PET as PET_CHANNEL
from algorithms.weakcam.thresholds import slice_maps
from autopet.checkpoint import override, read_config, rewrite_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.slices import CHANNELS
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from autopet.volume import Volume, resample

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)
EXPORT_SHARE = 0.05  # of the time limit, kept for the mask's file
FALLBACK = "cam"  # its maps cost one forward pass: for slices that the chosen method has no time for
BACKWARD = 3.0  # a forward and a backward pass, in forward passes
SLACK = 1.25  # a few slices may take that much longer than those before them
UNASKED = 0.1  # share of the time left that may pass between two looks at the clock, but for a single slice
TRIAL_CHANNELS = 16  # of Score-CAM's, to see how long one takes
OPTIONS = ("cam", "reading", "class_threshold", "score_cam_top_channels")  # that a trained model can be run with
logger = logging.getLogger("autopet")


@dataclass(frozen=True)
class Model:
    """The classifier, and how its maps become masks.

    Attributes
    ----------
    cam : str
        The CAM method, or `global`.
    thresholds : mapping
        From a method and a reading to `t_m` and `q_m`.
    """

    network: torch.nn.Module
    settings: Settings
    cam: str
    reading: str
    class_threshold: float
    thresholds: Mapping[str, Mapping[str, Mapping[str, float]]]
    device: str

    def values(self, method: str) -> dict[str, float]:
        """t_m and q_m of a method in this model's reading."""
        try:
            return {name: float(self.thresholds[method][self.reading][name]) for name in ("t_m", "q_m")}
        except (KeyError, TypeError, ValueError) as error:
            raise AutopetError(
                f"config.json has no t_m and q_m for {method} and the reading {self.reading}; train the model again"
            ) from error

    def with_options(self, **options: Any) -> Model:
        """The same model run another way, by `OPTIONS`.

        Examples
        --------
        >>> model.with_options(cam="gradcam++", reading="percentile")  # doctest: +SKIP
        """
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise AutopetError(f"unknown option {', '.join(unknown)}; known are {', '.join(OPTIONS)}")
        settings = replace(self.settings, **options)  # checks them
        cam = settings.cam if "cam" in options and settings.cam else self.cam
        other = replace(
            self,
            settings=settings,
            cam=cam,
            reading=options.get("reading", self.reading),
            class_threshold=float(options.get("class_threshold", self.class_threshold)),
        )
        other.values(cam)
        return other


def load(model_dir: Path, device: str) -> Model:
    """Build the classifier that config.json describes, load its weights, and read the thresholds."""
    network, settings, config = load_network(model_dir)
    if tuple(config["channels"]) != CHANNELS:
        raise AutopetError(
            f"{model_dir}/config.json has the channels {config['channels']}, expected {list(CHANNELS)}; train it again"
        )
    try:
        model = Model(
            network=network.to(device).eval(),
            settings=settings,
            cam=str(config["cam"]),
            reading=str(config["reading"]),
            class_threshold=float(config["class_threshold"]),
            thresholds=config["thresholds"],
            device=str(device),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AutopetError(
            f"{model_dir}/config.json: {error!r}; expected cam, reading, class_threshold and thresholds; train or copy "
            "the model again"
        ) from error
    model.values(model.cam)
    return model


def set_options(model_dir: Path, assignments: Sequence[str]) -> dict[str, Any]:
    """Change how a trained model is run: `option=value` texts for `OPTIONS` go into its config.json.

    Returns
    -------
    dict
        The options after the change.
    """
    known = ("cam", "reading", "class_threshold")
    config = read_config(model_dir, method=METHOD, needs=("settings", "thresholds", *known))
    settings = settings_from_dict(Settings, config["settings"], str(model_dir))
    before, methods = replace(settings, **{name: config[name] for name in known}), ", ".join(config["thresholds"])
    strange = sorted({text.partition("=")[0] for text in assignments} - set(OPTIONS))
    if strange:
        raise AutopetError(f"unknown option {', '.join(strange)}; known are {', '.join(OPTIONS)}")
    after = override(before, list(assignments))
    chosen = {name: getattr(after, name) for name in OPTIONS}
    if not chosen["cam"]:
        raise AutopetError(f"cam needs a method's name, {methods}, found nothing")

    def change(old: dict[str, Any]) -> dict[str, Any]:
        kept = old["settings"] | {"score_cam_top_channels": chosen["score_cam_top_channels"]}
        return old | {name: chosen[name] for name in known} | {"settings": kept}

    rewrite_config(model_dir, change)
    return chosen


# A case


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """Classify the slices, then segment the positive ones, the most certain first, for as long as the limit allows."""
    pet = inputs[PET.slug]
    started_s = deadline.elapsed_s
    with deadline.journal.stage("slices"):
        images, grid = cut({"CT": inputs[CT.slug], "PET": pet}, model.settings)
    # back goes one image instead of two, and the body needs not be looked for
    reserve_s = deadline.elapsed_s - started_s
    if deadline.limited:
        reserve_s += EXPORT_SHARE * deadline.limit_s
    case = Work(model, images, deadline, reserve_s)
    with deadline.journal.stage("classify"):
        case.classify()
    with deadline.journal.stage("maps"):
        case.segment()
    case.report()
    with deadline.journal.stage("export"):
        mask = to_mask(case.lowest, grid, pet)
    return {LESIONS.slug: mask, DATA_CENTRIC.slug: False}


def to_mask(lowest: np.ndarray, grid: Volume, pet: Volume) -> Volume:
    """The mask on the PET's own grid: voxels of at least the SUV that their place in the slices asks for.

    Regions of a map are coarse and go back by nearest neighbour; the SUV threshold meets the PET's own voxels, so that
    a mask has their resolution and not the slices'.

    Parameters
    ----------
    lowest : (slice, y, x) float32 array
        On the grid of the slices: the SUV from which on a pixel is lesion, infinity where there is none.
    """
    if np.isinf(lowest).all():
        return pet.with_array(np.zeros(pet.shape, np.uint8))
    moved = resample(grid.with_array(lowest), pet, nearest=True, fill=math.inf)
    return pet.with_array((pet.array >= moved.array).astype(np.uint8))


def map_volumes(model: Model, inputs: Inputs, methods: Sequence[str] = CAM_METHODS) -> dict[str, Volume]:
    """Class activation maps of a case for pictures (the paper's figure 4), by method: on the PET's grid, float32.

    From 0 to 1 in the slices that the classifier calls positive, 0 elsewhere; nearest neighbour, as Algorithm 1 sees
    them. There is no time limit.
    """
    images, grid = cut({"CT": inputs[CT.slug], "PET": inputs[PET.slug]}, model.settings)
    case = Work(model, images, Deadline(), 0.0)
    case.classify()
    found = {}
    for method in methods:
        maps = np.zeros(grid.shape, np.float32)
        for first in range(0, len(case.positive), AT_ONCE):
            places = case.positive[first : first + AT_ONCE]
            for place, cam in zip(places, case.maps(method, places), strict=True):
                maps[place] = upscale(cam, maps.shape[1:])
        found[method] = resample(grid.with_array(maps), inputs[PET.slug], nearest=True)
    return found


@dataclass
class Work:
    """A case on its way: what is known of its slices, and how long a slice takes.

    Slices are counted from the feet, as `autopet.slices.slice_grid` orders them.
    """

    model: Model
    images: np.ndarray  # (slice, channel, y, x), HU and SUV
    deadline: Deadline
    reserve_s: float  # kept for what comes after
    forward_s: float = 0.0  # of one slice, as measured
    late: list[int] = field(default_factory=list)  # positive slices that FALLBACK's maps segmented
    dropped: list[int] = field(default_factory=list)  # positive slices without any map

    def __post_init__(self) -> None:
        count, _, height, width = self.images.shape
        self.probability = np.full(count, np.nan)  # NaN: not looked at
        self.lowest = np.full((count, height, width), np.inf, np.float32)

    def _fitting(self, per_slice_s: float, most: int, *, keep_s: float = 0.0) -> int:
        """How many slices there is time for, before the clock is looked at again.

        Score-CAM's slices differ in cost, and what one of them took says little about many others.
        """
        if not self.deadline.limited or per_slice_s <= 0:
            return most if not self.deadline.expired else 0
        left = max(self.deadline.remaining_s - self.reserve_s - keep_s, 0.0) / per_slice_s  # in slices
        return int(min(left / SLACK, max(UNASKED * left, 1.0), most))

    # the classifier

    def classify(self) -> None:
        """Probability of every slice, of those with the highest SUVs first; the rest is not looked at in time."""
        order = np.argsort(-self.images[:, PET_CHANNEL].max(axis=(1, 2)), kind="stable")
        done = 0
        while done < len(order):
            most = min(AT_ONCE if done or not self.deadline.limited else 1, len(order) - done)
            count = self._fitting(self.forward_s, most)
            if not count:
                break
            places = order[done : done + count]
            started_s = self.deadline.elapsed_s
            self.probability[places] = lesion_probability(
                self.model.network, self.images[places], settings=self.model.settings, device=self.model.device
            )
            self.forward_s = (self.deadline.elapsed_s - started_s) / count
            done += count

    @property
    def positive(self) -> list[int]:
        """Slices that the classifier calls positive, the most certain first."""
        order = np.argsort(-np.nan_to_num(self.probability, nan=-1.0), kind="stable")
        return [int(place) for place in order if self.probability[place] >= self.model.class_threshold]

    # the maps

    def segment(self) -> None:
        """The positive slices by the model's method; those that it has no time for by `FALLBACK`, or not at all."""
        cam = self.model.cam
        fallback = FALLBACK if cam not in (FALLBACK, GLOBAL) and FALLBACK in self.model.thresholds else ""
        keep_s = SLACK * self.forward_s if fallback else 0.0
        self.late = self.dropped = self._segment(cam, self.positive, keep_s=keep_s)
        if fallback:
            self.dropped = self._segment(fallback, self.late)
        self.late = self.late[: len(self.late) - len(self.dropped)] if fallback else []

    def _segment(self, method: str, places: list[int], *, keep_s: float = 0.0) -> list[int]:
        """By one method, in order; returns the slices that it had no time for. `keep_s` is left for each of those."""
        values, done = self.model.values(method), 0
        per_slice_s = self._estimate_s(method, places, keep_s=keep_s * len(places))
        while done < len(places):
            left = len(places) - done
            most = min(AT_ONCE if done or not self.deadline.limited else 1, left)
            count = self._fitting(per_slice_s, most, keep_s=keep_s * left)
            if not count:
                break
            started_s, chosen = self.deadline.elapsed_s, places[done : done + count]
            for place, cam in zip(chosen, self.maps(method, chosen), strict=True):
                suv = self.images[place, PET_CHANNEL]
                self.lowest[place] = lowest_suv(cam, suv, reading=self.model.reading, **values)
            per_slice_s = (self.deadline.elapsed_s - started_s) / count
            done += count
        return places[done:]

    def _estimate_s(self, method: str, places: Sequence[int], *, keep_s: float) -> float:
        """Seconds of a slice by a method that has not been measured: a count of forward passes.

        Score-CAM's passes see little of a slice each and cost less than the classifier's, so that they are tried out
        with a few channels of the first slice.
        """
        settings, tried = self.model.settings, replace(self.model.settings, score_cam_top_channels=TRIAL_CHANNELS)
        whole, few = passes(method, settings), passes(method, tried)
        worthwhile = bool(places) and self.deadline.limited and 2 * few < whole
        if not worthwhile or not self._fitting(self.forward_s * few, 1, keep_s=keep_s):
            return self.forward_s * whole
        started_s = self.deadline.elapsed_s
        self.maps(method, places[:1], tried)
        return (self.deadline.elapsed_s - started_s) * whole / few

    def maps(self, method: str, places: Sequence[int], settings: Settings | None = None) -> np.ndarray:
        """Maps of slices that go through the network together, (n, hm, wm), 0 to 1."""
        model, chosen = self.model, self.images[list(places)]
        return slice_maps(
            model.network, chosen, method=method, settings=settings or model.settings, device=model.device
        )

    # what is said of it

    def report(self) -> None:
        """Every slice's probability and what was done into the journal, what was left out as dropped."""
        journal, total, positive = self.deadline.journal, len(self.probability), self.positive
        unseen = np.flatnonzero(np.isnan(self.probability))
        said = [None if math.isnan(value) else round(float(value), 4) for value in self.probability]
        journal.note(
            "slices",
            {
                "method": self.model.cam,
                "reading": self.model.reading,
                **self.model.values(self.model.cam),
                "class_threshold": self.model.class_threshold,
                "probability": said,  # from the feet; null: not looked at in time
                "positive": sorted(positive),
            },
        )
        logger.info("positive slices: %s", ", ".join(f"{p} ({said[p]:.2f})" for p in sorted(positive)) or "none")
        if len(unseen):
            journal.drop(f"the classification of {len(unseen)} of {total} slices, for want of time: {_listed(unseen)}")
        if self.late:
            journal.drop(
                f"{self.model.cam} for {len(self.late)} of {len(positive)} positive slices, for want of time; "
                f"{FALLBACK} instead: {_listed(self.late)}"
            )
        if self.dropped:
            journal.drop(
                f"{len(self.dropped)} of {len(positive)} positive slices, for want of time: {_listed(self.dropped)}"
            )


def passes(method: str, settings: Settings) -> float:
    """About how many forward passes the map of one slice costs, before it has been measured."""
    if method == GLOBAL:
        return 0.0
    if method == "cam":
        return 1.0
    if method != "scorecam":
        return BACKWARD
    channels = settings.widths[(settings.cam_block or len(settings.widths)) - 1]
    return 1.0 + min(settings.score_cam_top_channels or channels, channels)


def _listed(places: Sequence[int] | np.ndarray) -> str:
    return ", ".join(str(int(place)) for place in sorted(places))
