"""Inference of nnU-Net's family: preprocessing, folds as time allows, export; a mask before the deadline.

Without a limit the nnU-Net baseline does what nnU-Net's own predictor does, voxel for voxel. With one, the first fold
runs without mirroring, and the time it took says how many mirror axes the remaining folds get (LesionTracer, section
3.1: tile step 0.6, Gaussian weights, test-time augmentation adjusted to the limit of 5 min per case). Whatever is left
out, the deadline's journal says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from traceback import format_exception
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from autopet.deadline import Deadline
from autopet.errors import AutopetError, one_line
from autopet.nnunet.resampling import InferenceConfiguration
from autopet.nnunet.tiles import SLACK, Budget, Pass, TilePredictor
from autopet.volume import Volume

LESION = 1  # label of the lesions in every method here
MIRROR_AXES = (0, 1, 2)  # all of a volume
MARGIN_S = 1.0  # kept free at the end, for the process to stop
MARGIN_SHARE = 0.01  # and this share of the limit
BLOCK = 64  # edge of the block whose resampling is timed


@dataclass(frozen=True)
class Policy:
    """How far the tiles overlap and what is mirrored when there is time.

    Parameters
    ----------
    tile_step : float
        Step between tiles, as a share of the patch.
    mirror_axes : tuple of int
        Axes of the preprocessed image; all combinations of those that fit are averaged. They are taken from the left.
    mirror_first : bool
        Whether the first fold is mirrored, too, when there is time. A single fold always is.
    """

    tile_step: float = 0.5
    mirror_axes: tuple[int, ...] = MIRROR_AXES
    mirror_first: bool = True


class Ensemble:
    """A network and the weights of its folds, ready to segment.

    Parameters
    ----------
    network : Module
        For inference: without deep supervision.
    plans, dataset : dict
        nnU-Net's plans.json and dataset.json.
    folds : sequence of state dicts
        One per fold.
    channels : sequence of str
        Which image is which channel of the network, by name.
    configuration : str
        Of the plans.
    device : str
        `cpu` or `cuda`.
    policy : Policy
    """

    def __init__(
        self,
        network: torch.nn.Module,
        plans: dict[str, Any],
        dataset: dict[str, Any],
        folds: Sequence[Mapping[str, torch.Tensor]],
        *,
        channels: Sequence[str],
        configuration: str,
        device: str,
        policy: Policy,
    ) -> None:
        manager = PlansManager(plans)
        where = torch.device(device)
        self.channels, self.policy = tuple(channels), policy
        self.predictor = TilePredictor(tile_step=policy.tile_step, device=where)
        resolved = InferenceConfiguration(manager.get_configuration(configuration).configuration, where)
        self.predictor.manual_initialization(network, manager, resolved, list(folds), dataset, "nnUNetTrainer", None)

    def segment(self, images: Mapping[str, Volume], deadline: Deadline) -> Volume:
        """The lesions as a mask (uint8, 0 and 1) on the PET's grid, in time."""
        voxels = self._stack(images)
        if not voxels.any():  # nnU-Net cannot crop what is empty
            return images["PET"].with_array(np.zeros(voxels.shape[1:], np.uint8))
        logits, properties = self._logits(voxels, images["PET"].spacing_zyx_mm, deadline)
        with deadline.journal.stage("export"):
            return images["PET"].with_array(self._mask(logits, properties, deadline))

    def probabilities(self, images: Mapping[str, Volume], deadline: Deadline) -> np.ndarray:
        """Softmax probabilities (class, z, y, x), float32, on the PET's grid."""
        logits, properties = self._logits(self._stack(images), images["PET"].spacing_zyx_mm, deadline)
        with deadline.journal.stage("export"):
            return self._export(logits, properties, probabilities=True)[1]

    def _stack(self, images: Mapping[str, Volume]) -> np.ndarray:
        """The channels in the model's order, (channel, z, y, x)."""
        unknown = set(self.channels) - set(images)
        if unknown:
            raise AutopetError(f"the model wants the channels {self.channels}, this container has {tuple(images)}")
        return np.stack([images[name].array.astype(np.float32) for name in self.channels])

    def _logits(
        self, voxels: np.ndarray, spacing_mm: Sequence[float], deadline: Deadline
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The folds' mean logits on the network's grid, and what nnU-Net needs to bring them back."""
        predictor, journal = self.predictor, deadline.journal
        predictor.reset()
        manager, configuration = predictor.plans_manager, predictor.configuration_manager
        with journal.stage("preprocess"):
            data, _, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
                voxels, None, {"spacing": list(spacing_mm)}, manager, configuration, predictor.dataset_json
            )
            back_s = self._back_s(data.shape[1:], properties, deadline) if deadline.limited else 0.0
        budget = Budget(deadline, reserve_s(deadline, back_s))
        return Folds(predictor, self.policy, torch.from_numpy(data).contiguous(), budget).run(), properties

    def _back_s(self, shape: Sequence[int], properties: dict[str, Any], deadline: Deadline) -> float:
        """Seconds that resampling the logits to the image's grid will take: of a block, times the blocks there are."""
        wanted = properties["shape_after_cropping_and_before_resampling"]
        block = [min(n, BLOCK) for n in shape]
        to = [max(1, round(new * part / n)) for new, part, n in zip(wanted, block, shape, strict=True)]
        logits = torch.zeros((self.predictor.label_manager.num_segmentation_heads, *block), dtype=torch.half)
        started = deadline.clock()
        self._resample_back(logits, to, properties)
        return (deadline.clock() - started) * float(np.prod(wanted)) / float(np.prod(to))

    def _resample_back(self, logits: torch.Tensor, shape: Sequence[int], properties: dict[str, Any]) -> torch.Tensor:
        manager, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
        spacing_mm = [properties["spacing"][axis] for axis in manager.transpose_forward]
        resample = configuration.resampling_fn_probabilities
        return torch.as_tensor(resample(logits, shape, configuration.spacing, spacing_mm))

    def _mask(self, logits: torch.Tensor, properties: dict[str, Any], deadline: Deadline) -> np.ndarray:
        labels, manager = self.predictor.label_manager, self.predictor.plans_manager
        if labels.has_regions or labels.num_segmentation_heads != 2:
            return (self._export(logits, properties, probabilities=False) == LESION).astype(np.uint8)
        shape = properties["shape_after_cropping_and_before_resampling"]
        with deadline.journal.stage("resample"):
            background, lesion = self._resample_back(logits, shape, properties)
        mask = np.zeros(properties["shape_before_cropping"], np.uint8)
        inside = (lesion > background).numpy()  # what the argmax of two classes says
        return insert_crop_into_image(mask, inside, properties["bbox_used_for_cropping"]).transpose(
            manager.transpose_backward
        )

    def _export(self, logits: torch.Tensor, properties: dict[str, Any], *, probabilities: bool) -> Any:
        predictor = self.predictor
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.label_manager,
            properties,
            return_probabilities=probabilities,
            num_threads_torch=torch.get_num_threads(),
        )


def reserve_s(deadline: Deadline, back_s: float = 0.0) -> float:
    """Seconds to keep for export and writing.

    They handle the same voxels as preprocessing and reading did, with less work per voxel (order 1 instead of 3, a
    mask instead of two images). But preprocessing may have had a GPU to resample with, where resampling back has none:
    it is kept at least the `back_s` that were measured on a block.
    """
    if not deadline.limited:
        return 0.0
    stages = deadline.journal.stages
    measured_s = stages.get("preprocess", 0.0) + stages.get("read", 0.0)
    return MARGIN_S + MARGIN_SHARE * deadline.limit_s + SLACK * max(measured_s, stages.get("read", 0.0) + back_s)


def most_axes(allowed: int, *, pass_s: float, left_s: float) -> int:
    """How many mirror axes fit: each doubles the time of a pass; -1 when not even an unmirrored one does."""
    return max((n for n in range(allowed + 1) if pass_s * 2**n * SLACK < left_s), default=-1)


class Folds:
    """The passes of one case: which folds, with which mirror axes, as time allows."""

    def __init__(self, predictor: TilePredictor, policy: Policy, data: torch.Tensor, budget: Budget) -> None:
        self.predictor, self.policy, self.data, self.budget = predictor, policy, data, budget
        self.journal = budget.deadline.journal
        self.logits: dict[int, torch.Tensor] = {}  # per fold
        self.passes: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.pass_s = 0.0  # of an unmirrored pass
        self.complete = True  # whether the first pass reached every voxel

    @torch.inference_mode()
    def run(self) -> torch.Tensor:
        """The mean logits of the folds that succeeded (float16, as nnU-Net sums them)."""
        count = len(self.predictor.list_of_parameters)
        first_too = self.policy.mirror_first or count == 1
        if self.budget.deadline.limited:
            self._as_time_allows(list(range(count)), first_too)
        else:
            for fold in range(count):
                self._try(fold, self.policy.mirror_axes if fold or first_too else ())
        self.journal.note("passes", self.passes)
        if not self.logits:
            raise self.error or AutopetError("the model folder holds no fold")
        mean, *others = (self.logits[fold] for fold in sorted(self.logits))
        for logits in others:
            mean += logits
        return mean / len(self.logits) if others else mean

    def _as_time_allows(self, todo: list[int], first_too: bool) -> None:
        while todo and not self.logits:  # the first one that succeeds is the measure
            self._try(todo.pop(0), (), hurry=True)
        first = next(iter(self.logits), None)
        allowed = self.policy.mirror_axes
        while todo:
            fold, left_s = todo[0], self.budget.left_s
            axes = most_axes(len(allowed), pass_s=self.pass_s, left_s=left_s / len(todo))
            if not self.complete or max(axes, most_axes(0, pass_s=self.pass_s, left_s=left_s)) < 0:
                needed = f"about {self.pass_s:.1f} s needed, {max(left_s, 0):.1f} s left for the networks"
                self.journal.drop(f"{_named(todo)}: {needed if self.complete else 'the first fold took all the time'}")
                break
            axes = max(axes, 0)
            if axes < len(allowed):
                share = f"{left_s / len(todo):.1f} s each left for {_named(todo)}"
                self.journal.drop(f"mirroring of fold {fold} along {_axes(allowed[axes:])}: {share}")
            self._try(todo.pop(0), allowed[:axes])
        if first is not None and first_too and allowed and self.complete:
            self._mirror_first(first)

    def _mirror_first(self, first: int) -> None:
        """The first fold again, mirrored, when that fits; its unmirrored answer stands until then."""
        allowed, left_s = self.policy.mirror_axes, self.budget.left_s
        axes = most_axes(len(allowed), pass_s=self.pass_s, left_s=left_s)
        if axes < len(allowed):
            kept = max(axes, 0)
            needed = f"about {self.pass_s * 2 ** len(allowed):.1f} s needed, {max(left_s, 0):.1f} s left"
            self.journal.drop(f"mirroring of fold {first} along {_axes(allowed[kept:])}: {needed}")
        if axes > 0:
            self._try(first, allowed[:axes])

    def _try(self, fold: int, axes: tuple[int, ...], *, hurry: bool = False) -> None:
        """One pass; what fails or does not end in time is dropped as long as another fold can answer."""
        clock = self.budget.deadline.clock
        started = clock()
        try:
            with self.journal.stage(f"fold {fold}"):
                done = self._somewhere(fold, axes, hurry=hurry)
        except Exception as error:
            self.error = _without_frames(error)  # the next fold needs the memory
            self.journal.drop(f"fold {fold}: {type(error).__name__}: {one_line(error)}")
            return
        seconds = clock() - started
        self.passes.append(
            {"fold": fold, "mirror_axes": list(axes), "tile_step": done.tile_step, "tiles": done.tiles}
            | {"seconds": round(seconds, 3), "complete": done.complete}
        )
        if hurry:
            self._report_hurry(fold, done)
        elif not done.complete:
            self.journal.drop(f"fold {fold} mirrored along {_axes(axes)}: it was not ready after {seconds:.1f} s")
            return
        self.logits[fold] = done.logits
        self.pass_s = max(self.pass_s, (seconds - done.warm_up_s) / 2 ** len(axes))

    def _report_hurry(self, fold: int, done: Pass) -> None:
        wanted = self.policy.tile_step
        if done.tiles and done.tile_step != wanted:
            self.predictor.tile_step_size = done.tile_step
            self.journal.drop(f"tile step {wanted:g}: {done.tile_step:g} instead, the tiles would not have fitted")
        if not done.complete:
            self.complete = False
            self.journal.drop(
                f"the rest of fold {fold}: time was up after {done.tiles} tiles, what they miss is background"
            )

    def _somewhere(self, fold: int, axes: tuple[int, ...], *, hurry: bool) -> Pass:
        """A pass on the device; without enough memory with the sums on the CPU, or, for want of any fold, all of it."""
        predictor = self.predictor
        predictor.use(predictor.list_of_parameters[fold], axes)
        while True:
            try:
                return predictor.run_pass(self.data, self.budget, hurry=hurry)
            except torch.OutOfMemoryError as error:
                if predictor.perform_everything_on_device:
                    predictor.perform_everything_on_device = False
                    place = "the sums"
                elif predictor.device.type != "cpu" and not self.logits:
                    predictor.device, place = torch.device("cpu"), "the network"
                    predictor.network.to(predictor.device)
                else:
                    raise
                self.journal.drop(f"{place} of fold {fold} on the GPU: {one_line(error)}; on the CPU instead")
                _without_frames(error)
                torch.cuda.empty_cache()


def _without_frames(error: Exception) -> Exception:
    """The error without the frames it went through, which hold tiles and sums; where it came from stays as a note."""
    error.add_note("".join(format_exception(error)))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _named(folds: Sequence[int]) -> str:
    return f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(map(str, folds))}"


def _axes(axes: Sequence[int]) -> str:
    return f"axes {', '.join(map(str, axes))}" if axes else "no axis"
