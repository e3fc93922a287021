"""Training of LesionTracer: nnU-Net's trainer with the organ head, its loss and the misalignment of the CT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from algorithms.lesiontracer.loss import LesionOrganLoss, stage_weights
from algorithms.lesiontracer.model import Settings, adapt_plans, build_network, schedule
from algorithms.lesiontracer.preprocessing import LESION, OrganPreprocessor, organ_files
from autopet.checkpoint import refuse_other_content
from autopet.cohort import Case, labelled
from autopet.errors import AutopetError
from autopet.folders import remove_at_once, whole_file
from autopet.misalignment import MisalignTransform
from autopet.nnunet.folds import ALL, check_folds, write_folds
from autopet.nnunet.model_folder import FoldResult, publish_folds
from autopet.nnunet.plans import CHANNELS
from autopet.nnunet.processes import processes, started, wait_for_all
from autopet.nnunet.trainer import NOTES, Trainer, train_fold
from autopet.nnunet.workspace import (
    Workspace,
    claim_workspace,
    plan_and_preprocess,
    worker_count,
    write_dataset,
)
from autopet.progress import console


class LesionTracerTrainer(Trainer):
    """nnU-Net's trainer for label maps of two channels, lesions and organs."""

    settings: Settings

    def build_network_architecture(
        self,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """The network with organ heads, when the settings want them."""
        return build_network(
            plans_manager.plans,
            self.dataset_json,
            organs=self.settings.organs,
            deep_supervision=enable_deep_supervision,
        )

    def begin(self) -> None:
        """Start from the pretrained weights, and say what was taken from them."""
        if self.settings.pretrained:
            from algorithms.lesiontracer.transfer import load_pretrained

            path = Path(self.settings.pretrained)
            report = load_pretrained(self.bare_network, path, stem=self.settings.pretrained_stem)
            console.print(f"{path}: {report.summary()}", highlight=False, markup=False)
            if self.local_rank == 0:
                with whole_file(Path(self.output_folder) / NOTES) as part:
                    part.write_text(json.dumps({"pretrained": asdict(report)}))

    def _build_loss(self) -> LesionOrganLoss:
        stages = len(self._get_deep_supervision_scales()) if self.enable_deep_supervision else 1
        return LesionOrganLoss(stage_weights(stages, distributed=self.is_ddp))

    def get_training_transforms(self, *args: Any, **options: Any) -> BasicTransform:
        """nnU-Net's transforms, behind the misalignment of the CT."""
        chain = nnUNetTrainer.get_training_transforms(*args, **options)
        if self.settings.misalignment:
            chain.transforms.insert(0, misalignment(self.settings))
        return chain

    def on_train_epoch_start(self) -> None:
        """Both heads in training."""
        self._use_organ_heads(self.settings.organs)
        super().on_train_epoch_start()

    def on_validation_epoch_start(self) -> None:
        """The lesion head alone in validation: loss and pseudo Dice are those of the lesions."""
        self._use_organ_heads(False)
        super().on_validation_epoch_start()

    def _use_organ_heads(self, wanted: bool) -> None:
        decoder: Any = self.bare_network.decoder
        decoder.organs_enabled = wanted

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net, against the lesion channel."""
        lesions = [labels[:, LESION : LESION + 1] for labels in batch["target"]]
        return super().validation_step({**batch, "target": lesions})


def misalignment(settings: Settings) -> MisalignTransform:
    """The transform that moves the CT, with the settings' parameters."""
    return MisalignTransform(
        CHANNELS.index("CT"),
        rotation_degrees=settings.rotation_degrees,
        rotation_probability=settings.rotation_probability,
        shift_voxels=settings.shift_voxels,
        shift_probability=settings.shift_probability,
    )


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Train every fold of the settings and publish the model folder.

    Under `torchrun` all processes call this; the first one preprocesses and publishes.

    Parameters
    ----------
    cases : sequence of Case
        Training cases with a lesion mask (empty masks included). Organ labels are their images `ORGANS`; a case without
        them trains the lesion head alone.
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
    _check(cases, out, settings)
    with processes(device) as first:
        space = prepared(cases, settings, work, first=first)
        with space.active(worker_count(settings.workers)):
            folds = {str(fold): _train_fold(space, fold, settings, device) for fold in settings.folds}
        if first:
            _publish(space, out, folds, settings, cases)
        wait_for_all()
    return out


def _check(cases: Sequence[Case], out: Path, settings: Settings) -> None:
    """Refuse now what would end the training after hours of preprocessing, or at its very end."""
    refuse_other_content(out)
    check_folds(settings.folds, cases)
    misalignment(settings)
    if settings.pretrained and not Path(settings.pretrained).exists():
        raise AutopetError(f"no pretrained weights at {settings.pretrained}; give the path of a file or folder")
    if 0 < settings.batch < started():
        raise AutopetError(
            f"a batch of {settings.batch} patches cannot be divided over {started()} processes; start fewer"
        )


def prepared(cases: Sequence[Case], settings: Settings, work: Path, *, first: bool) -> Workspace:
    """The work folder with plans and preprocessed cases, made by the first process while the others wait."""
    space = Workspace(work)
    workers = worker_count(settings.workers)
    if first:
        space = claim_workspace(work, cases, settings)
        organs = organ_files(cases) if settings.organs else {}
        if settings.organs:
            advice = "" if organs else "; the organ head learns nothing, make labels with `autopet organs`"
            console.print(
                f"LesionTracer: organ labels for {len(organs)} of {len(cases)} cases{advice}", highlight=False
            )
        with space.active(workers):
            write_dataset(space, cases)
            if set(settings.folds) != {ALL}:
                write_folds(space, cases)
            plan_and_preprocess(
                space,
                planner=nnUNetPlannerResEncL,
                planner_options={
                    "overwrite_target_spacing": [float(mm) for mm in settings.spacing] or None,
                    "suppress_transpose": True,  # axes stay z, y, x, in which patch and shifts are given
                },
                adapt=partial(adapt_plans, settings=settings),
                preprocessor=OrganPreprocessor(organs),
                workers=workers,
            )
    wait_for_all()
    return space


def _train_fold(space: Workspace, fold: int | str, settings: Settings, device: str) -> FoldResult:
    def make(*arguments: Any) -> LesionTracerTrainer:
        trainer = LesionTracerTrainer(*arguments)
        trainer.settings = settings
        return trainer

    return train_fold(space, fold, make=make, schedule=schedule(settings), device=device, title="LesionTracer")


def _publish(
    space: Workspace, out: Path, folds: dict[str, FoldResult], settings: Settings, cases: Sequence[Case]
) -> None:
    config = {
        "method": "lesiontracer",
        "settings": asdict(settings),
        "training_cases": [case.name for case in cases],
        "organ_cases": [case.name for case in cases if settings.organs and organ_files([case])],
    }
    publish_folds(out, *space.plans(), folds, config=config)
    remove_at_once(space.root)
