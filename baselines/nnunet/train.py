"""Plan, preprocess and train through nnunetv2's Python API, in a work folder of our own, resumable at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from autopet.checkpoint import refuse_other_content
from autopet.cohort import Case, labelled
from autopet.folders import remove_at_once
from autopet.nnunet.folds import ALL, check_folds, write_folds
from autopet.nnunet.model_folder import publish_folds
from autopet.nnunet.processes import refuse_several
from autopet.nnunet.schedule import Schedule
from autopet.nnunet.trainer import Trainer, train_fold
from autopet.nnunet.workspace import claim_workspace, plan_and_preprocess, worker_count, write_dataset
from baselines.nnunet.model import Settings, adapt_plans


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
    refuse_several("the nnU-Net baseline")
    refuse_other_content(out)
    cases = labelled(cases)
    check_folds(settings.folds, cases)
    space = claim_workspace(work, cases, settings)
    workers = worker_count(settings.workers)
    schedule = Schedule.of(settings)
    with space.active(workers):
        write_dataset(space, cases)
        if set(settings.folds) != {ALL}:
            write_folds(space, cases)
        plan_and_preprocess(
            space,
            planner=ExperimentPlanner,
            planner_options={"gpu_memory_target_in_gb": settings.gpu_memory_gb},
            adapt=partial(adapt_plans, settings=settings),
            workers=workers,
        )
        trained = {
            str(fold): train_fold(space, fold, make=Trainer, schedule=schedule, device=device, title="nnU-Net")
            for fold in settings.folds
        }
    config = {"method": "nnunet", "settings": asdict(settings), "training_cases": [case.name for case in cases]}
    publish_folds(out, *space.plans(), trained, config=config)
    remove_at_once(space.root)
    return out
