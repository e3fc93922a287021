"""Supervised pretraining on several data sets: one body, a head for each (MultiTalent, Ulrich et al. 2023).

Rokuss et al. (From FDG to PSMA, section 2.3) start LesionTracer from such a network. `pretrain` makes one from data
sets of any labels and channels; `algorithms.lesiontracer.transfer.load_pretrained` takes its result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from algorithms.lesiontracer.model import PRESETS as FINE_TUNING
from algorithms.lesiontracer.pretrain_data import SAMPLINGS, Source, by_name, check_names, shares
from algorithms.lesiontracer.pretrain_preprocessing import architecture, plans_for, preprocess
from algorithms.lesiontracer.pretrain_training import COLUMNS, METRICS, Training, train_network
from autopet.checkpoint import publish_model, refuse_other_content
from autopet.cohort import write_table
from autopet.errors import AutopetError
from autopet.folders import remove_at_once
from autopet.nnunet.plans import check_patch
from autopet.nnunet.processes import refuse_several
from autopet.nnunet.schedule import Schedule
from autopet.nnunet.workspace import Workspace, worker_count
from autopet.work import claim_work, file_sizes

METHOD = "lesiontracer-pretraining"
WEIGHTS = "pretrained.safetensors"


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset (Rokuss et al., section 2.3)."""

    epochs: int = 4000
    iterations_per_epoch: int = 250
    validation_iterations: int = 50  # patches after each epoch, without augmentation, for the pseudo Dice
    learning_rate: float = 1e-3  # of the authors' public MultiTalent trainer; the paper does not say
    optimizer: str = "sgd"  # sgd (Nesterov, momentum 0.99) or adam (AdamW); weight decay 3e-5 in both
    spacing_mm: tuple = (1.0, 1.0, 1.0)  # z, y, x, of all data sets
    patch: tuple = (192, 192, 192)  # patch size z, y, x in voxels
    batch: int = 24  # patches per step, each from a data set of its own; their gradients are added up one by one
    features: tuple = FINE_TUNING["paper"].features  # channels per stage: as LesionTracer's
    blocks: tuple = FINE_TUNING["paper"].blocks  # residual blocks per stage
    sampling: str = "data set"  # each data set weighs 1/sqrt(n); "image": each of its images does (see `shares`)
    foreground_share: float = 0.33  # probability that a patch is centred on a labelled voxel
    dice_smooth: float = 0.0  # smoothing term of the Dice loss, of the authors' trainer; nnU-Net's own is 1e-5
    checkpoint_every: int = 10  # epochs between checkpoints that a killed training resumes from
    workers: int = 0  # augmentation and preprocessing processes; 0: one per core, at most 8
    seed: int = 0  # of the first weights and of the patches

    def __post_init__(self) -> None:
        Schedule.of(self)  # checks what the two have in common
        if self.sampling not in SAMPLINGS:
            raise AutopetError(f"sampling {self.sampling!r} is unknown; use {' or '.join(map(repr, SAMPLINGS))}")
        if len(self.features) != len(self.blocks):
            raise AutopetError(
                f"features names {len(self.features)} stages and blocks {len(self.blocks)}; they pair up"
            )
        check_patch(self.patch, len(self.features))


PRESETS = {
    "paper": Settings(),
    "demo": Settings(
        epochs=15,
        iterations_per_epoch=40,
        validation_iterations=8,
        learning_rate=2e-3,
        optimizer="adam",
        spacing_mm=(4.0, 4.0, 4.0),
        patch=(48, 48, 48),
        batch=2,
        features=FINE_TUNING["demo"].features,
        blocks=FINE_TUNING["demo"].blocks,
        foreground_share=0.5,
        checkpoint_every=3,
    ),
}


def pretrain(sources: Sequence[Source], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Train one network on all data sets and publish it.

    Parameters
    ----------
    sources : sequence of Source
        Data sets (`read_raw`, `read_cases`), each under a name of its own.
    out : Path
        Folder to publish: pretrained.safetensors, plans.json, metrics.csv, config.json.
    settings : Settings
    work : Path
        Scratch folder; a second call with the same data sets and settings goes on where the first one stopped. It is
        removed once the network is published.
    device : str
        `cpu` or `cuda`; one GPU.
    """
    refuse_several("pretraining")
    check_names(sources)
    refuse_other_content(out)
    space = _claim(work, sources, settings)
    workers = worker_count(settings.workers)
    network_plan = architecture(settings.features, settings.blocks)
    plans = by_name(
        sources,
        partial(
            plans_for,
            spacing_mm=settings.spacing_mm,
            patch=settings.patch,
            batch=settings.batch,
            network=network_plan,
        ),
    )
    with space.active(workers):
        preprocess(space, sources, plans, workers=workers)
        training = train_network(space, sources, plans, settings, torch.device(device))
    publish_model(out, partial(_fill, training=training, sources=sources, plans=plans))
    remove_at_once(space.root)
    return out


def _claim(work: Path, sources: Sequence[Source], settings: Settings) -> Workspace:
    """The work folder of exactly these data sets and settings; another's unfinished training is never thrown away."""
    files = {
        source.name: [(case, file_sizes((*source.images[case], source.targets[case]))) for case in source.images]
        for source in sources
    }
    inputs = files, [source.description() for source in sources]
    claim_work(work, settings, inputs, what="pretraining on other data sets or settings")
    return Workspace(work)


def _fill(
    folder: Path, *, training: Training, sources: Sequence[Source], plans: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write the weights, plans and table into a model folder; returns its config.json."""
    settings = training.settings
    counts = by_name(sources, lambda source: len(source.images))
    probabilities = shares(counts, settings.sampling)
    save_file(training.network.weights(), folder / WEIGHTS)
    (folder / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
    write_table(folder / METRICS, training.rows, COLUMNS)
    return {
        "method": METHOD,
        "settings": asdict(settings),
        "channels": by_name(sources, lambda source: list(source.channels)),
        "labels": by_name(sources, lambda source: dict(source.labels)),
        "images": counts,
        "sampling_probabilities": probabilities,
        "stem_per_data_set": training.network.several_stems,
        "training_cases": by_name(sources, lambda source: list(source.images)),
    }
