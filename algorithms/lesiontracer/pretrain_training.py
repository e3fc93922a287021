"""The training loop of a pretraining: mixed batches, one head per data set, whole checkpoints."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from algorithms.lesiontracer.pretrain_data import MixedPatches, Source, by_name, shares
from algorithms.lesiontracer.pretrain_network import SharedBodyUNet
from autopet.cohort import write_table
from autopet.folders import remove_leftovers, whole_file
from autopet.nnunet.plans import CONFIGURATION
from autopet.nnunet.trainer import Trainer
from autopet.nnunet.workspace import Workspace, worker_count
from autopet.progress import Meter
from autopet.safe_load import safe_load

if TYPE_CHECKING:
    from algorithms.lesiontracer.pretrain import Settings

METRICS, CHECKPOINT = "metrics.csv", "checkpoint.pth"
MOMENTUM, WEIGHT_DECAY, LARGEST_GRADIENT = 0.99, 3e-5, 12.0  # nnU-Net's
CACHED_PATCHES = 6
COLUMNS = ("epoch", "data_set", "learning_rate", "patches", "train_loss", "pseudo_dice", "seconds")


class Keeper(Trainer):
    """nnU-Net's trainer as the keeper of one data set: its patches, loss and measures. It trains nothing itself."""

    @classmethod
    def of(cls, plans: Mapping[str, Any], dataset: dict[str, Any], device: torch.device) -> Keeper:
        """The keeper of the data set that plans and dataset.json describe; all its cases are for training."""
        return cls({**plans, "continue_training": False}, CONFIGURATION, "all", dataset, device)

    def attach(self, network: SharedBodyUNet, name: str, settings: Settings) -> None:
        """Make the shared network's head for this data set ours."""
        self.network = partial(network, name=name)
        self.loss = self._build_loss()
        self.loss.loss.dc.smooth = settings.dice_smooth

    def patches(self, foreground_share: float, *, augmented: bool) -> nnUNetDataLoader:
        """Endless patches, one at a time, with nnU-Net's augmentation or without."""
        plan, labels = self.configuration_manager, self.label_manager
        rotation, as_slices, enlarged, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        scales = self._get_deep_supervision_scales()
        options = {
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        if augmented:
            transforms = self.get_training_transforms(
                plan.patch_size, rotation, scales, mirror_axes, as_slices, plan.use_mask_for_norm, **options
            )
        else:
            transforms = self.get_validation_transforms(scales, **options)
        return nnUNetDataLoader(
            nnUNetDatasetBlosc2(self.preprocessed_dataset_folder),
            1,
            enlarged if augmented else plan.patch_size,
            plan.patch_size,
            labels,
            oversample_foreground_percent=foreground_share,
            probabilistic_oversampling=True,  # nnU-Net's other way fixes a share of the batch, and a batch here is one
            transforms=transforms,
        )


class Training:
    """What a checkpoint holds: network, optimiser, epoch, table of measures. `keepers` know the data sets."""

    def __init__(
        self, network: SharedBodyUNet, keepers: Mapping[str, Keeper], settings: Settings, device: torch.device
    ) -> None:
        self.network, self.keepers, self.settings, self.device = network, keepers, settings, device
        self.optimizer = _optimizer(network, settings)
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")
        self.schedule = PolyLRScheduler(self.optimizer, settings.learning_rate, settings.epochs)
        self.epoch = 0
        self.rows: list[dict[str, str]] = []

    def step(self, patches: Iterator[dict[str, Any]]) -> list[tuple[str, float]]:
        """One optimiser step over a mixed batch; returns each patch's data set and loss.

        The loss is a mean over patches, so that gradients added up patch by patch are those of the whole batch, in the
        memory of one patch. Heads and stems of data sets that are not in the batch have no gradient and stay as they
        are: neither momentum nor weight decay moves them.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for _ in range(self.settings.batch):
            patch = next(patches)
            loss = self._loss(patch)
            self.scaler.scale(loss / self.settings.batch).backward()
            losses.append((patch["name"], loss.detach()))
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return [(name, float(loss)) for name, loss in losses]

    def _loss(self, patch: Mapping[str, Any]) -> torch.Tensor:
        keeper = self.keepers[patch["name"]]
        image = patch["data"].to(self.device, non_blocking=True)  # (1, channel, z, y, x)
        targets = [target.to(self.device, non_blocking=True) for target in patch["target"]]
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            return keeper.loss(keeper.network(image), targets)

    @torch.no_grad()
    def pseudo_dice(self, patches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Mean Dice of the foreground classes over some patches of each data set, as nnU-Net's "pseudo Dice"."""
        self.network.eval()
        counts: dict[str, list[np.ndarray]] = defaultdict(list)
        for _ in range(self.settings.validation_iterations):
            patch = next(patches)
            found = self.keepers[patch["name"]].validation_step(patch)
            counts[patch["name"]].append(np.stack([found[key] for key in ("tp_hard", "fp_hard", "fn_hard")]))
        dice = {}
        for name, parts in counts.items():
            tp, fp, fn = np.sum(parts, axis=0)
            seen = (tp + fp + fn) > 0
            dice[name] = float(np.mean(2 * tp[seen] / (2 * tp + fp + fn)[seen])) if seen.any() else float("nan")
        return dice

    def run_epoch(self, training: Iterator, validation: Iterator, meter: Meter) -> None:
        """One epoch, and its rows in the table."""
        started = time.monotonic()
        self.schedule.step(self.epoch)
        losses: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.settings.iterations_per_epoch):
            batch = self.step(training)
            for name, loss in batch:
                losses[name].append(loss)
            meter.advance(note=f"loss {np.mean([loss for _, loss in batch]):.3f}")
        dice = self.pseudo_dice(validation)
        for name in self.keepers:
            self.rows.append(
                {
                    "epoch": str(self.epoch),
                    "data_set": name,
                    "learning_rate": f"{self.optimizer.param_groups[0]['lr']:.6g}",
                    "patches": str(len(losses[name])),
                    "train_loss": f"{np.mean(losses[name]):.6g}" if losses[name] else "",
                    "pseudo_dice": f"{dice[name]:.6g}" if name in dice else "",
                    "seconds": f"{time.monotonic() - started:.1f}",
                }
            )
        self.epoch += 1

    def save(self, path: Path) -> None:
        """Whole or not at all, so that a kill in the middle leaves the previous checkpoint."""
        with whole_file(path) as part:
            torch.save(
                {
                    "network_weights": self.network.state_dict(),
                    "optimizer_state": self.optimizer.state_dict(),
                    "grad_scaler_state": self.scaler.state_dict(),
                    "current_epoch": self.epoch,
                    "rows": self.rows,
                },
                part,
            )

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        checkpoint = safe_load(path, self.device)
        self.network.load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        self.scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.epoch, self.rows = checkpoint["current_epoch"], checkpoint["rows"]


def _optimizer(network: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY)
    return torch.optim.SGD(
        network.parameters(), settings.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )


def build_network(plans: Mapping[str, dict[str, Any]], keepers: Mapping[str, Keeper]) -> SharedBodyUNet:
    """The shared network with random weights; every data set's plans describe the same body."""
    described = next(iter(plans.values()))["configurations"][CONFIGURATION]["architecture"]
    return get_network_from_plans(
        described["network_class_name"],
        described["arch_kwargs"],
        described["_kw_requires_import"],
        {name: len(keeper.dataset_json["channel_names"]) for name, keeper in keepers.items()},
        {name: keeper.label_manager.num_segmentation_heads for name, keeper in keepers.items()},
        allow_init=True,
        deep_supervision=True,
    )


def train_network(
    space: Workspace,
    sources: Sequence[Source],
    plans: Mapping[str, dict[str, Any]],
    settings: Settings,
    device: torch.device,
) -> Training:
    """Train to the last epoch, from the checkpoint where there is one; called with nnU-Net's environment set."""
    checkpoint = space.root / CHECKPOINT
    remove_leftovers(space.root, CHECKPOINT)  # of a call that was killed while it wrote one: a gigabyte each
    total = settings.epochs * settings.iterations_per_epoch
    with space.log.open("a") as log, redirect_stdout(log), Meter(f"pretraining on {device}", total) as meter:
        torch.manual_seed(settings.seed)
        keepers = by_name(sources, lambda source: Keeper.of(plans[source.name], source.description(), device))
        network = build_network(plans, keepers).to(device)
        for name, keeper in keepers.items():
            keeper.attach(network, name, settings)
        training = Training(network, keepers, settings, device)
        if checkpoint.is_file():
            training.resume(checkpoint)
            meter.advance(training.epoch * settings.iterations_per_epoch, note=f"resumed from {CHECKPOINT}")
        if training.epoch < settings.epochs:
            probabilities = shares(by_name(sources, lambda source: len(source.images)), settings.sampling)
            with _streams(training, probabilities) as (patches, validation):
                while training.epoch < settings.epochs:
                    training.run_epoch(patches, validation, meter)
                    if training.epoch % settings.checkpoint_every == 0 or training.epoch == settings.epochs:
                        training.save(checkpoint)
                    write_table(space.root / METRICS, training.rows, COLUMNS)
    return training


@contextmanager
def _streams(training: Training, probabilities: Mapping[str, float]) -> Iterator[tuple[Iterator, Iterator]]:
    """Endless mixed patches for training and for validation, made by processes that end with the block."""
    settings = training.settings
    workers = worker_count(settings.workers)
    # other seeds after a resume: the first patches of the training are not drawn a second time
    seeds = np.random.SeedSequence((settings.seed, training.epoch)).generate_state(2)
    streams = []
    for seed, augmented, count in zip(seeds.tolist(), (True, False), (workers, max(1, workers // 2)), strict=True):
        loaders = {
            name: keeper.patches(settings.foreground_share, augmented=augmented)
            for name, keeper in training.keepers.items()
        }
        mixed = MixedPatches(loaders, probabilities, seed)
        cached = max(1, CACHED_PATCHES // count)
        numbers = [(seed + worker) % 2**32 for worker in range(count)]
        pin = training.device.type == "cuda"
        streams.append(MultiThreadedAugmenter(mixed, None, count, cached, numbers, pin_memory=pin, wait_time=0.002))
    try:
        yield streams[0], streams[1]
    finally:
        for stream in streams:
            stream._finish()
