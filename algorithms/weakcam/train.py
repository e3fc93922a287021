"""Train the classifier of slices, then choose the thresholds of its maps; resumable after every checkpoint and case."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from algorithms.weakcam.imagenet import load_imagenet
from algorithms.weakcam.model import METHOD, WEIGHTS, Classifier, Settings, build_network
from algorithms.weakcam.slices import auroc, cache, probabilities, training_slices
from algorithms.weakcam.thresholds import COLUMNS as SEARCH_COLUMNS
from algorithms.weakcam.thresholds import Fitted, fit_thresholds
from autopet.checkpoint import publish_model, refuse_other_content, save_weights
from autopet.cohort import Case, labelled, write_table
from autopet.errors import AutopetError
from autopet.folders import remove_at_once
from autopet.progress import console
from autopet.slices import CHANNELS, lesion_weight, read_labels, read_slices
from autopet.training import METRICS, Training, epoch_batches, hold_out
from autopet.work import claim_work, file_sizes

SEARCH = "search.csv"
LEAST = 1e-7  # probability that a logarithm is taken of; single precision rounds closer ones to 0 and 1


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Train the classifier, search the thresholds and publish the model folder.

    Parameters
    ----------
    cases : sequence of Case
        Training cases with a lesion mask, of which training sees only whether a slice has a lesion. `validation_share`
        of their patients is held out: to choose the epoch that is kept, t_m and q_m of every CAM method, and the method
        that is the default. With nobody held out, as with one patient with lesions, that is done on the training cases;
        so is all but the first where no held-out lesion reaches the centre of a pixel.
    out : Path
        Model folder to publish: weights.safetensors, metrics.csv, search.csv (the whole grid), config.json.
    settings : Settings
    work : Path
        Scratch folder; a second call with the same cases and settings goes on from the last checkpoint, and in the
        search from the last case, and ends with the same weights. It is removed once the model is published.
    device : str
        `cpu` or `cuda`.

    Raises
    ------
    AutopetError
        No labelled case, no slice with or none without a lesion, no lesion pixel, another training's work folder, or a
        loss that is not finite.
    """
    refuse_other_content(out)
    known = sorted(labelled(cases), key=lambda case: case.name)
    _claim(work, known, settings)
    training, validation = _divide(known, settings)
    folders = cache(known, work / "slices", settings)
    run = Run(settings, work, device, [folders[case.name] for case in training])
    searched = _searched((validation, training), folders, settings=settings)
    run.fit([folders[case.name] for case in validation])
    fitted = fit_thresholds(
        run.final_network(),
        {case.name: folders[case.name] for case in searched},
        work / "search",
        settings=settings,
        device=device,
    )
    _publish(out, run, fitted, training=training, validation=validation)
    remove_at_once(work)
    where = "validation" if searched is validation else "training"
    console.print(summary(fitted, run.settings, where=where), highlight=False)
    return out


def _claim(work: Path, cases: Sequence[Case], settings: Settings) -> None:
    """Take the work folder for exactly these cases and, where there are some, these ImageNet weights."""
    weights = Path(settings.imagenet)
    if settings.imagenet and not weights.is_file():
        raise AutopetError(f"imagenet={weights}: there is no such file; give another, or none")
    inputs = [
        (case.name, case.patient_id, bool(case.lesion_voxels), file_sizes((case.ct, case.suv, case.mask)))
        for case in cases
    ]
    claim_work(work, settings, (inputs, file_sizes([weights] if settings.imagenet else [])))


def _divide(cases: Sequence[Case], settings: Settings) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; nobody is held out where nobody with lesions can be: they say nothing of maps."""
    training, validation = hold_out(cases, settings.validation_share, seed=settings.seed, by_lesions=True)
    return (training, validation) if any(case.lesion_voxels for case in validation) else (list(cases), [])


def _searched(parts: Sequence[list[Case]], folders: Mapping[str, Path], *, settings: Settings) -> list[Case]:
    """The cases that thresholds are chosen on: the first part of them that has a lesion pixel."""
    for cases in parts:
        if any(read_slices(folders[case.name])[1].any() for case in cases):
            return cases
    raise AutopetError(
        f"no lesion of {len(folders)} cases reaches the centre of a pixel of {settings.pixel_mm:g} mm, so that no "
        "thresholds can be chosen; lower pixel_mm, or give more cases"
    )


def _publish(out: Path, run: Run, fitted: Fitted, *, training: Sequence[Case], validation: Sequence[Case]) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        save_weights(folder / WEIGHTS, run.final_weights())
        shutil.copyfile(run.work / METRICS, folder / METRICS)
        write_table(folder / SEARCH, fitted.rows, SEARCH_COLUMNS)
        return {
            "method": METHOD,
            "settings": asdict(run.settings),
            "channels": list(CHANNELS),
            "reading": run.settings.reading,
            "class_threshold": run.settings.class_threshold,
            **fitted.config(),
            "lesion_weight": run.lesion_weight,
            "kept_epoch": run.best.get("epoch", run.settings.epochs - 1),
            "training_cases": [case.name for case in training],
            "validation_cases": [case.name for case in validation],
        }

    publish_model(out, fill)


def summary(fitted: Fitted, settings: Settings, *, where: str) -> str:
    """The outcome in two sentences."""
    picked, choice = fitted.picked, fitted.choices[fitted.cam][settings.reading]
    return (
        f"{METHOD}: slices of {where} cases: AUROC {picked.auroc:.3f}, sensitivity {picked.sensitivity:.2f}, "
        f"specificity {picked.specificity:.2f}. Default {fitted.cam}: t_m {choice.t_m:.2f}, q_m {choice.q_m:.1f} % "
        f"({settings.reading}), mean Dice there {choice.dice:.3f}"
    )


@dataclass
class Run(Training):
    """The training of the classifier of slices."""

    training: Sequence[Path]  # cached cases

    columns = ("epoch", "learning_rate", "train_loss", "val_loss", "val_auroc", "seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = self.settings
        torch.manual_seed(settings.seed)
        self.data = training_slices(self.training, settings)
        computed = lesion_weight(self.data.labels)  # an error where there is one kind of slices only
        self.lesion_weight = settings.lesion_weight or computed
        self.network = build_network(settings).to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), settings.learning_rate, momentum=settings.momentum)
        self.loss = torch.nn.CrossEntropyLoss(torch.tensor([1.0, self.lesion_weight], device=self.device))

    def fit(self, validation: Sequence[Path]) -> None:
        """Train from the last checkpoint, or from the start, to the last epoch."""
        self.validation = validation
        count, batch = self.data.per_epoch, self.settings.batch
        self.train(
            self.data,
            partial(epoch_batches, epochs=self.settings.epochs, count=count, batch=batch),
            steps=math.ceil(count / batch),
            title=f"classifier of slices on {self.device}",
        )

    def start(self) -> None:
        """From ImageNet's weights, where there are some."""
        if self.settings.imagenet:
            report = load_imagenet(cast(Classifier, self.network), Path(self.settings.imagenet))
            console.print(report.summary(), highlight=False, markup=False)

    def validate(self) -> dict[str, float | None]:
        """Weighted cross-entropy and AUROC of all validation slices; the epoch of the lowest loss is kept."""
        if not self.validation:
            return {}
        settings, said = self.settings, []
        for folder in self.validation:
            images = read_slices(folder)[0]
            said += [*probabilities(self.network, images, settings=settings, device=self.device)]
        labels, probability = read_labels(self.validation), np.concatenate(said).astype(float)
        loss, area = weighted_loss(probability, labels, self.lesion_weight), auroc(probability, labels)
        self.keep_best("loss", loss, lowest=True, epoch=self.epoch)
        return {"val_loss": loss, "val_auroc": None if math.isnan(area) else area}

    def final_network(self) -> torch.nn.Module:
        """The network with the weights that are kept, ready to be asked."""
        network = build_network(self.settings)
        network.load_state_dict(self.final_weights())
        return network.to(self.device).eval()


def weighted_loss(probability: np.ndarray, labels: np.ndarray, weight: float) -> float:
    """Cross-entropy in which positive slices count `weight` times, over the sum of the weights, as torch's.

    Parameters
    ----------
    probability : (n,) float array
        Of a lesion.
    labels : (n,) array of bool
    """
    likely = np.clip(np.where(labels, probability, 1 - probability), LEAST, 1.0)
    return float(np.average(-np.log(likely), weights=np.where(labels, weight, 1.0)))
