"""Folds of a cross-validation by patient, in the file where nnU-Net looks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.nnunet.workspace import Workspace
from autopet.splitting import split_cohort

COUNT = 5
ALL = "all"  # nnU-Net's name for training on every case
SEED = 0  # of who is in which fold: the same whatever the training's seed is, so that trainings can be compared


def check_folds(folds: Sequence[Any], cases: Sequence[Case]) -> None:
    """Refuse folds that cannot be trained, before hours go into preprocessing.

    Raises
    ------
    AutopetError
        No fold, one twice, a name that is none, or fewer patients than folds.
    """
    known = [*range(COUNT), ALL]
    if (
        not folds
        or any(type(fold) not in (int, str) or fold not in known for fold in folds)
        or len(set(folds)) < len(folds)
    ):
        raise AutopetError(f'folds: expected some of 0 to {COUNT - 1}, or "{ALL}", each once; found {list(folds)}')
    patients = {case.patient_id.strip() for case in cases}
    if any(fold != ALL for fold in folds) and len(patients) < COUNT:
        raise AutopetError(
            f"{COUNT}-fold cross-validation needs {COUNT} patients at least, found {len(patients)}; train one network "
            f"""on all cases with --set 'folds=["{ALL}"]'"""
        )


def write_folds(space: Workspace, cases: Sequence[Case]) -> Path:
    """Divide the cases into folds; the planner copies the file to where the trainer reads it.

    nnU-Net's own folds divide cases: two studies of a patient may be in training and in validation. These divide
    patients, with equal shares of lesions, tracers and centres in each fold.

    Returns
    -------
    Path
        splits_final.json beside dataset.json.
    """
    fold_of = {place.case: place.fold for place in split_cohort(cases, fractions=(1.0, 0.0), folds=COUNT, seed=SEED)}
    splits = [
        {
            "train": [case for case, place in fold_of.items() if place != fold],
            "val": [case for case, place in fold_of.items() if place == fold],
        }
        for fold in range(COUNT)
    ]
    path = space.raw / "splits_final.json"
    path.write_text(json.dumps(splits, indent=2))
    return path
