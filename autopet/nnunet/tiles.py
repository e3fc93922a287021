"""One pass of a network over a case, tile by tile, with an eye on the clock.

The arithmetic is nnU-Net's: its tiles, its Gaussian weights, its mirroring, half-precision sums, so that a pass that
had all the time it wanted gives nnU-Net's logits to the last bit. What differs is the loop around it: nnU-Net's cannot
be asked how far it is, and keeps nothing when it is broken off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from queue import SimpleQueue
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from autopet.deadline import Deadline
from autopet.errors import AutopetError

COARSER_STEPS = (0.8, 1.0)  # shares of the patch; what is left of the overlap when the time is short
SLACK = 1.2  # work that has not started may take this much longer than the same work before
AMPLE = 10.0  # times the first tile: so much time left is enough to measure a second one before giving up overlap


class OutOfTimeError(AutopetError):
    """Raised when a tile was not ready when its time was up."""


@dataclass(frozen=True)
class Budget:
    """The time a case's networks may take: what is left of the limit, but for a reserve for export and writing."""

    deadline: Deadline
    reserve_s: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds left; infinity without a limit."""
        return self.deadline.remaining_s - self.reserve_s

    def allows(self, needed_s: float) -> bool:
        """Whether work that is expected to take `needed_s` may start."""
        return self.left_s > needed_s * SLACK


@dataclass(frozen=True)
class Pass:
    """What a pass over the tiles gave.

    Parameters
    ----------
    logits : (class, z, y, x) float16 tensor on the CPU
        Voxels that no tile reached are background.
    complete : bool
        Whether every voxel lies in a tile that was predicted.
    tile_step : float
        Share of the patch between the tiles at the end of the pass.
    tiles : int
        How many were predicted.
    warm_up_s : float
        What the first tile took longer than the others did: on a GPU, loading libraries and choosing kernels.
    """

    logits: torch.Tensor
    complete: bool
    tile_step: float
    tiles: int
    warm_up_s: float = 0.0


class Blend:
    """Gaussian-weighted sums of the tiles seen so far, in half precision as nnU-Net's."""

    def __init__(self, classes: int, shape: tuple[int, ...], gaussian: torch.Tensor) -> None:
        self.gaussian = gaussian
        self.logits = torch.zeros((classes, *shape), dtype=torch.half, device=gaussian.device)
        self.weights = torch.zeros(shape, dtype=torch.half, device=gaussian.device)

    def add(self, where: tuple[slice, ...], tile: torch.Tensor) -> None:
        """Add a tile's logits (class, z, y, x)."""
        tile *= self.gaussian
        self.logits[where] += tile
        self.weights[where[1:]] += self.gaussian

    def lacks(self, where: tuple[slice, ...]) -> bool:
        """Whether a place has voxels that no tile has reached."""
        return bool((self.weights[where[1:]] == 0).any())

    def finish(self) -> torch.Tensor:
        """The mean logits; background where there is none."""
        torch.div(self.logits, self.weights, out=self.logits)
        unseen = self.weights == 0
        if unseen.any():
            self.logits[:, unseen] = 0
            self.logits[0, unseen] = 1
        if torch.isinf(self.logits).any():
            raise RuntimeError("a logit exceeded half precision (65504); the weights of this fold are not sound")
        if torch.isnan(self.logits).any():  # it would pass for background, and take the other folds' lesions with it
            raise RuntimeError("a logit is not a number; the weights of this fold are not sound")
        return self.logits


class Worker:
    """A thread that computes for one who cannot wait for ever; a new one takes over when it is given up."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue | None = None

    def run(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """The function's result; OutOfTimeError when it is not there in time (the thread goes on, unheard)."""
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), daemon=True).start()
        done = threading.Event()
        answer: dict[str, Any] = {}
        self._jobs.put((function, done, answer))
        if not done.wait(max(0.0, min(timeout_s, threading.TIMEOUT_MAX))):
            self._jobs.put(None)
            self._jobs = None
            raise OutOfTimeError(f"a tile took longer than {timeout_s:.1f} s")
        if "error" in answer:  # nothing here may refer to it: its traceback holds the tiles, and this frame
            raise answer.pop("error")
        return answer["value"]


class Pace:
    """How long a tile takes, from those that were predicted."""

    def __init__(self) -> None:
        self.first_s, self.later_s, self.tiles = 0.0, 0.0, 0

    def count(self, seconds: float) -> None:
        """One more tile."""
        if self.tiles:
            self.later_s += seconds
        else:
            self.first_s = seconds
        self.tiles += 1

    @property
    def tile_s(self) -> float:
        """Seconds to expect of the next one; 0 when nothing is known."""
        return self.later_s / (self.tiles - 1) if self.tiles > 1 else self.first_s

    @property
    def warm_up_s(self) -> float:
        """What the first tile took longer than the others."""
        return max(0.0, self.first_s - self.tile_s)

    def is_guess(self, budget: Budget) -> bool:
        """Whether only the first tile is known, which may have been slow, and there is ample time for a second."""
        return self.tiles == 1 and budget.left_s > AMPLE * self.first_s


def _work(jobs: SimpleQueue) -> None:
    while (job := jobs.get()) is not None:
        function, done, answer = job
        try:
            answer["value"] = function()
        except BaseException as error:  # raised again where the result is wanted
            answer["error"] = error
        done.set()
        del job, function, done, answer


class TilePredictor(nnUNetPredictor):
    """nnU-Net's predictor with a pass that can be hurried and broken off."""

    def __init__(self, *, tile_step: float, device: torch.device) -> None:
        with redirect_stdout(StringIO()):  # nnU-Net says that it keeps its sums on the CPU
            super().__init__(tile_step_size=tile_step, device=device, allow_tqdm=False)
        self.worker = Worker()
        self._first_choice = (tile_step, device, device.type == "cuda")

    def reset(self) -> None:
        """Forget what an earlier case had to do without: the step, the device, the place of the sums."""
        self.tile_step_size, self.device, self.perform_everything_on_device = self._first_choice

    def use(self, weights: dict[str, torch.Tensor], axes: tuple[int, ...]) -> None:
        """Take a fold's weights, and mirror along these axes."""
        self.network.load_state_dict(weights)
        self.network.to(self.device).eval()
        self.use_mirroring, self.allowed_mirroring_axes = bool(axes), axes

    @torch.inference_mode()
    def run_pass(self, data: torch.Tensor, budget: Budget, *, hurry: bool = False) -> Pass:
        """Predict a preprocessed case.

        Parameters
        ----------
        data : (channel, z, y, x) float32 tensor
            As nnU-Net's preprocessing made it.
        budget : Budget
            Asked before every tile.
        hurry : bool
            Take larger steps as soon as the tiles turn out not to fit; else the pass keeps to its step.
        """
        patch = tuple(self.configuration_manager.patch_size)
        padded, inside = pad_nd_image(data, patch, "constant", {"value": 0}, True, None)
        sums_on = self.device if self.perform_everything_on_device else torch.device("cpu")
        gaussian = compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=sums_on)
        blend = Blend(self.label_manager.num_segmentation_heads, padded.shape[1:], gaussian)
        pace = Pace()
        complete, step = self._walk(padded.to(sums_on), blend, budget, pace, hurry=hurry)
        logits = blend.finish().to("cpu")[(slice(None), *inside[1:])]
        return Pass(logits, complete, step, pace.tiles, pace.warm_up_s)

    def _walk(self, data: torch.Tensor, blend: Blend, budget: Budget, pace: Pace, *, hurry: bool) -> tuple[bool, float]:
        """All tiles, or as many as there is time for; whether they cover the case, and the last step between them."""
        clock = budget.deadline.clock
        step = self.tile_step_size
        coarser = [larger for larger in COARSER_STEPS if larger > step] if hurry else []
        todo = self._tiles(data, step)
        while todo:
            while coarser and not pace.is_guess(budget) and not budget.allows(pace.tile_s * len(todo)):
                step = coarser.pop(0)
                todo = [where for where in self._tiles(data, step) if blend.lacks(where)]
            if not budget.allows(pace.tile_s):
                return False, step
            where, started = todo.pop(0), clock()
            try:
                tile = self._predict(data, where, budget)
            except OutOfTimeError:
                return False, step
            blend.add(where, tile)
            pace.count(clock() - started)
        return True, step

    def _tiles(self, data: torch.Tensor, step: float) -> list[tuple[slice, ...]]:
        kept, self.tile_step_size = self.tile_step_size, step
        try:
            return self._internal_get_sliding_window_slicers(data.shape[1:])
        finally:
            self.tile_step_size = kept

    def _predict(self, data: torch.Tensor, where: tuple[slice, ...], budget: Budget) -> torch.Tensor:
        """The logits of one tile, on the device of the sums; with a limit, nobody waits beyond it."""
        limited = budget.deadline.limited

        @torch.inference_mode()  # a thread has its own modes
        def compute() -> torch.Tensor:
            on_gpu = self.device.type == "cuda"
            with torch.autocast("cuda") if on_gpu else nullcontext():
                tile = data[where][None].clone(memory_format=torch.contiguous_format).to(self.device)
                logits = self._internal_maybe_mirror_and_predict(tile)[0].to(data.device)
            if limited and on_gpu:
                torch.cuda.synchronize(self.device)
            return logits

        return self.worker.run(compute, budget.left_s) if limited else compute()
