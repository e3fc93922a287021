"""nnU-Net's trainer with settings of our own: schedule, seed, progress bar, metrics as CSV, whole checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from autopet.cohort import write_table
from autopet.memory import keep_large_blocks
from autopet.nnunet.model_folder import FoldResult
from autopet.nnunet.plans import CONFIGURATION
from autopet.nnunet.schedule import Schedule
from autopet.nnunet.workspace import Workspace, environment
from autopet.progress import Meter
from autopet.safe_load import safe_load

METRICS = "metrics.csv"
NOTES = "notes.json"  # a trainer may leave it beside its checkpoints, for the model's config.json
COLUMNS = {  # in metrics.csv -> in nnU-Net's logger
    "learning_rate": "lrs",
    "train_loss": "train_losses",
    "val_loss": "val_losses",
    "pseudo_dice": "mean_fg_dice",
}


class Trainer(nnUNetTrainer):
    """nnU-Net's trainer under a `Schedule`; the method itself is untouched.

    Batches come in a fixed order: the same seed, schedule and number of workers give the same patches.
    """

    schedule: Schedule
    meter: Meter

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if device.type == "cpu":  # nnU-Net takes CUDA for granted when torch.distributed is up
            self.device, self.grad_scaler = device, None

    def configure(self, schedule: Schedule, meter: Meter) -> None:
        """Take over the schedule; called before `initialize`."""
        self.schedule, self.meter = schedule, meter
        self.num_epochs = schedule.epochs
        self.num_iterations_per_epoch = schedule.iterations_per_epoch
        self.num_val_iterations_per_epoch = schedule.validation_iterations
        self.initial_lr = schedule.learning_rate
        self.oversample_foreground_percent = schedule.foreground_share
        self.save_every = schedule.checkpoint_every

    def begin(self) -> None:
        """Called after `initialize` when there is no checkpoint to go on from."""

    def result(self) -> FoldResult:
        """The weights as they are now, in main memory, with metrics.csv as text and the notes."""
        moved: dict[int, torch.Tensor] = {}  # a tensor with two keys stays one tensor
        weights = {
            key: moved.setdefault(tensor.data_ptr(), tensor.detach().cpu()).view_as(tensor)
            for key, tensor in self.bare_network.state_dict().items()
        }
        table, notes = (Path(self.output_folder) / name for name in (METRICS, NOTES))
        return FoldResult(
            weights,
            table.read_text() if table.is_file() else "",
            json.loads(notes.read_text()) if notes.is_file() else {},
        )

    @property
    def bare_network(self) -> torch.nn.Module:
        """The network without torch's wrapper for several processes."""
        return self.network.module if self.is_ddp else self.network

    def configure_optimizers(self) -> tuple:
        """nnU-Net's SGD, or AdamW under the same polynomial decay, which learns faster in a short training."""
        if self.schedule.optimizer == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def get_dataloaders(self) -> tuple:
        """nnU-Net's loaders in worker processes with seeds (nnU-Net's own workers have none, and share torch's)."""
        workers = get_allowed_n_proc_DA()
        with environment({"nnUNet_n_proc_DA": "0"}):
            loaders = super().get_dataloaders()
        if not workers:
            return loaders
        # another seed after a resume: the first patches of the training are not drawn a second time
        seed = np.random.SeedSequence((self.schedule.seed, self.current_epoch, self.local_rank)).generate_state(2)
        counts = (workers, max(1, workers // 2))
        return tuple(
            _in_workers(loader, count, int(start), pin_memory=self.device.type == "cuda")
            for loader, count, start in zip(loaders, counts, seed, strict=True)
        )

    def on_train_start(self) -> None:
        """As nnU-Net, without its picture of the curves: metrics.csv has the numbers."""
        self.logger.plot_progress_png = lambda folder: None
        super().on_train_start()

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True) -> None:
        """Into the log file only: the terminal has the progress bar."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def plot_network_architecture(self) -> None:
        """Not drawn: it needs a package that is not maintained any more."""

    def train_step(self, batch: dict) -> dict:
        """One iteration, shown."""
        result = super().train_step(batch)
        self.meter.advance(note=f"loss {float(result['loss']):.3f}")
        return result

    def on_epoch_end(self) -> None:
        """As nnU-Net, and the table of all epochs so far, written anew: a resumed training doubles no row."""
        super().on_epoch_end()
        if self.local_rank == 0:
            rows = epoch_rows(self.logger.get_checkpoint())
            write_table(Path(self.output_folder) / METRICS, rows, ["epoch", *COLUMNS, "seconds"])

    def save_checkpoint(self, filename: str) -> None:
        """Whole or not at all, so that a kill in the middle leaves the previous one. The best epoch's is not kept:
        the last epoch is published, as in nnU-Net."""
        if self.local_rank == 0 and not filename.endswith("checkpoint_best.pth"):
            part = Path(filename + ".part")
            try:
                super().save_checkpoint(str(part))
                os.replace(part, filename)
            finally:
                part.unlink(missing_ok=True)  # a full disk is not kept full by half a checkpoint

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. nnU-Net's own `load_checkpoint` unpickles whatever the file holds."""
        checkpoint = safe_load(path, self.device)
        self.bare_network.load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.meter.advance(self.current_epoch * self.num_iterations_per_epoch, note=f"resumed from {path.name}")


def epoch_rows(logged: Mapping[str, list]) -> list[dict[str, Any]]:
    """One row per finished epoch, from the lists that nnU-Net's logger keeps (one value per epoch in each)."""
    ends = logged["epoch_end_timestamps"]
    seconds = [end - start for start, end in zip(logged["epoch_start_timestamps"], ends, strict=False)]
    return [
        {"epoch": epoch}
        | {column: f"{float(logged[key][epoch]):.6g}" for column, key in COLUMNS.items()}
        | {"seconds": f"{seconds[epoch]:.1f}"}
        for epoch in range(len(ends))
    ]


def train_fold(
    space: Workspace,
    fold: int | str,
    *,
    make: Callable[..., Trainer],
    schedule: Schedule,
    device: str,
    title: str,
) -> FoldResult:
    """Train one fold to its end, from its checkpoint where there is one; a finished fold is only loaded.

    Parameters
    ----------
    make : callable
        A `Trainer` class, or anything that takes the same arguments and returns a trainer.
    title : str
        Shown beside the progress bar, before the fold.

    """
    plans, dataset = space.plans()
    total = schedule.epochs * schedule.iterations_per_epoch
    with (
        space.log.open("a") as log,
        redirect_stdout(log),
        Meter(f"{title} fold {fold} on {device}", total) as meter,
    ):
        np.random.seed(schedule.seed)
        torch.manual_seed(schedule.seed)
        if device == "cpu":
            keep_large_blocks()
        torch.backends.cudnn.benchmark = device.startswith("cuda")  # as nnU-Net's command: all patches are of one size
        plans = {**plans, "continue_training": False}
        trainer = make(plans, CONFIGURATION, fold, dataset, torch.device(device))
        trainer.configure(schedule, meter)
        trainer.initialize()
        folder = Path(trainer.output_folder)
        checkpoints = [folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"]
        found = next((path for path in checkpoints if path.is_file()), None)
        if found:
            trainer.resume(found)
        else:
            trainer.begin()
        if found != checkpoints[0]:
            trainer.run_training()
        return trainer.result()


class _Batches:
    """A data loader whose copy in a worker process draws random numbers of its own, from torch as from NumPy."""

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader, self.seed = loader, seed

    def set_thread_id(self, thread: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(self.seed + thread)
        self.loader.set_thread_id(thread)

    def __next__(self) -> dict:
        return next(self.loader)


def _in_workers(
    single: SingleThreadedAugmenter, workers: int, seed: int, *, pin_memory: bool
) -> MultiThreadedAugmenter:
    seeds = [(seed + worker) % 2**32 for worker in range(workers)]  # NumPy's seeds have 32 bits
    cached = max(1, 6 // workers)
    loader = _Batches(single.data_loader, seed)
    return MultiThreadedAugmenter(loader, None, workers, cached, seeds, pin_memory=pin_memory, wait_time=0.002)
