"""Plan, preprocess and train through nnunetv2's Python API, in a work folder of our own, resumable at every step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from autopet.checkpoint import publish_model
from autopet.cohort import Case, labelled
from autopet.errors import AutopetError
from autopet.progress import Meter, console
from baselines.nnunet.model import CHANNELS, CONFIGURATION, Settings, adapt_plans, save_weights

DATASET = "Dataset001_PETCT"
RUN_TIME_ONLY = ("workers", "checkpoint_every")  # settings that may change when a training goes on
VARIABLES = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's three folders below one work folder."""

    root: Path

    @property
    def raw(self) -> Path:
        """dataset.json, which points at the cohort's own files."""
        return self.root / "raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """Fingerprint, plans and preprocessed cases."""
        return self.root / "preprocessed" / DATASET

    def done(self, step: str) -> Path:
        """Marker of a finished step."""
        return self.root / f"{step}.done"

    @contextmanager
    def active(self, workers: int) -> Iterator[None]:
        """nnU-Net's environment, set for our own processes only and put back afterwards."""
        ours = {name: str(self.root / folder) for name, folder in VARIABLES.items()}
        ours |= {"nnUNet_n_proc_DA": str(workers), "nnUNet_compile": "false"}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


class Trainer(nnUNetTrainer):
    """nnU-Net's trainer with our settings and a progress bar; the method itself is untouched."""

    def configure(self, settings: Settings, meter: Meter) -> Trainer:
        """Take over the settings; called before `initialize`."""
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.validation_iterations
        self.initial_lr = settings.learning_rate
        self.optimizer_name = settings.optimizer
        self.oversample_foreground_percent = settings.foreground_share
        self.save_every = settings.checkpoint_every
        self.meter = meter
        return self

    def configure_optimizers(self) -> tuple:
        """nnU-Net's SGD, or AdamW under the same polynomial decay, which learns faster in a short training."""
        if self.optimizer_name == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

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

    def save_checkpoint(self, filename: str) -> None:
        """Whole or not at all, so that a kill in the middle leaves the previous checkpoint."""
        super().save_checkpoint(filename + ".part")
        os.replace(filename + ".part", filename)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. nnU-Net's own `load_checkpoint` unpickles whatever the file holds."""
        checkpoint = _load_checkpoint(path, self.device)
        self.network.load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.meter.advance(self.current_epoch * self.num_iterations_per_epoch, note=f"resumed from {path.name}")


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Train every fold of the settings and publish the model folder.

    Parameters
    ----------
    cases : sequence of Case
        Training cases with a lesion mask (empty masks included).
    out : Path
        Model folder to publish.
    settings : Settings
    work : Path
        Scratch folder; a second call with the same cases and settings goes on where the first one stopped. It is
        removed once the model is published.
    device : str
        `cpu` or `cuda`.
    """
    cases = labelled(cases)
    space = _workspace(work, cases, settings)
    workers = settings.workers or min(os.cpu_count() or 1, 8)
    with space.active(workers):
        _write_dataset(space, cases)
        _plan_and_preprocess(space, settings, workers)
        weights = {str(fold): _train_fold(space, fold, settings, device) for fold in settings.folds}
    plans, dataset = (
        json.loads((space.preprocessed / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
    )
    dataset.pop("dataset", None)  # the training cases' paths stay at home

    def fill(folder: Path) -> dict:
        save_weights(folder, plans, dataset, weights)
        return {
            "method": "nnunet",
            "settings": asdict(settings),
            "channels": list(CHANNELS),
            "training_cases": [case.name for case in cases],
        }

    publish_model(out, fill)
    shutil.rmtree(space.root, ignore_errors=True)
    return out


def _workspace(work: Path, cases: Sequence[Case], settings: Settings) -> Workspace:
    """The work folder of exactly these cases and settings; another's unfinished training is never thrown away."""
    chosen = {key: value for key, value in asdict(settings).items() if key not in RUN_TIME_ONLY}
    files = [(case.name, [path.stat().st_size for path in (case.ct, case.suv, case.mask)]) for case in cases]
    key = hashlib.sha256(repr((chosen, files)).encode()).hexdigest()
    stamp = work / "recipe"
    if work.exists() and (not stamp.is_file() or stamp.read_text() != key):
        raise AutopetError(
            f"{work} holds an unfinished training with other cases or settings; finish that, or delete the folder"
        )
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return Workspace(work)


def _write_dataset(space: Workspace, cases: Sequence[Case]) -> None:
    """dataset.json with the paths of the cohort's files: nothing is copied. Channel names choose the normalisation."""
    space.raw.mkdir(parents=True, exist_ok=True)
    description = {
        "channel_names": dict(zip("01", CHANNELS, strict=True)),
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(cases),
        "file_ending": _suffix(cases),
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {
            case.name: {"images": [str(case.ct.resolve()), str(case.suv.resolve())], "label": str(case.mask.resolve())}
            for case in cases
        },
    }
    (space.raw / "dataset.json").write_text(json.dumps(description, indent=2))


def _suffix(cases: Sequence[Case]) -> str:
    """The suffix of the images; nnU-Net copies labels under one name."""
    suffixes = sorted({case.suffix for case in cases})
    if len(suffixes) > 1:
        raise AutopetError(
            f"the cohort has {' and '.join(suffixes)} images, nnU-Net takes one format; use `autopet convert`"
        )
    return suffixes[0]


def _plan_and_preprocess(space: Workspace, settings: Settings, workers: int) -> None:
    marker = space.done("preprocess")
    if marker.is_file():
        console.print("nnU-Net: preprocessed cases found, going on from there")
        return
    shutil.rmtree(space.preprocessed, ignore_errors=True)
    space.preprocessed.mkdir(parents=True)
    console.print("nnU-Net: fingerprint, plans, preprocessing")
    with (space.root / "nnunet.log").open("a") as log, redirect_stdout(log):
        DatasetFingerprintExtractor(DATASET, num_processes=workers).run(overwrite_existing=True)
        planner = ExperimentPlanner(DATASET, gpu_memory_target_in_gb=settings.gpu_memory_gb)
        plans = adapt_plans(planner.plan_experiment(), settings)
        planner.save_plans(plans)
        preprocess_dataset(1, configurations=(CONFIGURATION,), num_processes=(workers,))
    marker.touch()


def _train_fold(space: Workspace, fold: int | str, settings: Settings, device: str) -> dict[str, torch.Tensor]:
    """The final weights of one fold, from its checkpoint when it has finished before."""
    plans = json.loads((space.preprocessed / "nnUNetPlans.json").read_text())
    dataset = json.loads((space.preprocessed / "dataset.json").read_text())
    total = settings.epochs * settings.iterations_per_epoch
    with (
        (space.root / "nnunet.log").open("a") as log,
        redirect_stdout(log),
        Meter(f"nnU-Net fold {fold} on {device}", total) as meter,
    ):
        trainer = _trainer(plans, dataset, fold, device, settings, meter)
        folder = Path(trainer.output_folder)
        checkpoints = [folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"]
        found = next((path for path in checkpoints if path.is_file()), None)
        if found:
            trainer.resume(found)
        if found != checkpoints[0]:
            trainer.run_training()
        return trainer.network.state_dict()


def _trainer(plans: dict, dataset: dict, fold: int | str, device: str, settings: Settings, meter: Meter) -> Trainer:
    np.random.seed(0)
    torch.manual_seed(0)
    plans = {**plans, "continue_training": False}
    trainer = Trainer(plans, CONFIGURATION, fold, dataset, torch.device(device)).configure(settings, meter)
    trainer.initialize()
    return trainer


def _load_checkpoint(path: Path, device: torch.device) -> dict:
    """A checkpoint of our own training; only tensors, plain values and NumPy scalars are unpickled."""
    scalars = [np._core.multiarray.scalar, np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))]
    with torch.serialization.safe_globals(scalars):
        return torch.load(path, map_location=device, weights_only=True)
