"""nnU-Net's folders below one work folder: dataset, fingerprint, plans, preprocessed cases; resumable at each step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from autopet.cohort import Case
from autopet.errors import AutopetError, one_line
from autopet.nnunet.plans import CHANNELS, CONFIGURATION
from autopet.organs import ROLE
from autopet.progress import console
from autopet.volume import Volume
from autopet.work import claim_work, file_sizes

DATASET = "Dataset001_PETCT"
PLANS = "nnUNetPlans"  # one name for every planner: a work folder holds one method's plans
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

    @property
    def log(self) -> Path:
        """What nnU-Net prints."""
        return self.root / "nnunet.log"

    def done(self, step: str) -> Path:
        """Marker of a finished step."""
        return self.root / f"{step}.done"

    def plans(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """plans.json and dataset.json, once `plan_and_preprocess` has written them."""
        plans, dataset = (self.preprocessed / f"{name}.json" for name in (PLANS, "dataset"))
        return json.loads(plans.read_text()), json.loads(dataset.read_text())

    @contextmanager
    def active(self, workers: int) -> Iterator[None]:
        """nnU-Net's environment, set for our own processes only and put back afterwards."""
        ours = {name: str(self.root / folder) for name, folder in VARIABLES.items()}
        with environment(ours | {"nnUNet_n_proc_DA": str(workers), "nnUNet_compile": "false"}):
            yield


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, set for our own processes only and put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def worker_count(workers: int) -> int:
    """Processes for preprocessing and augmentation: as set, or one per core and at most 8."""
    return workers or min(os.cpu_count() or 1, 8)


def claim_workspace(work: Path, cases: Sequence[Case], settings: Any) -> Workspace:
    """The work folder of exactly these cases and settings; another's unfinished training is never thrown away.

    Parameters
    ----------
    work : Path
        Made when it is not there.
    cases : sequence of Case
        Known by their names and the sizes of their files.
    settings : dataclass
        The method's settings; those in `autopet.work.RUN_TIME_ONLY` may differ.

    Raises
    ------
    AutopetError
        The folder holds something else.
    """
    claim_work(work, settings, [(case.name, file_sizes(_files(case))) for case in cases])
    return Workspace(work)


def _files(case: Case) -> list[Path]:
    """What a training reads of a case; its organ labels too, where it has some."""
    organs = case.image(ROLE)
    return [case.ct, case.suv, case.mask, *([organs] if organs.is_file() else [])]


def write_dataset(space: Workspace, cases: Sequence[Case]) -> None:
    """dataset.json with the paths of the cohort's files: nothing is copied. Channel names choose the normalisation.

    Raises
    ------
    AutopetError
        Images of two formats; a case whose images are not on one grid.
    """
    if not space.done("preprocess").is_file():
        for case in cases:
            _check_grid(case)
    space.raw.mkdir(parents=True, exist_ok=True)
    description = {
        "channel_names": dict(zip("01", CHANNELS, strict=True)),
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(cases),
        "file_ending": _suffix(cases),
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {
            case.name: {"images": [os.path.abspath(case.ct), os.path.abspath(case.suv)], "label": label_path(case)}
            for case in cases
        },
    }
    (space.raw / "dataset.json").write_text(json.dumps(description, indent=2))


def label_path(case: Case) -> str:
    """The lesion mask's path as nnU-Net gives it to a preprocessor, which tells the case by it.

    Links are not followed: empty masks may be links to one file.
    """
    return os.path.abspath(case.mask)


def _check_grid(case: Case) -> None:
    """nnU-Net compares shapes at most: labels that lie elsewhere in the patient would train in silence."""
    suv = _grid(case.suv)
    for path in _files(case):
        difference = suv.grid_difference(_grid(path))
        if difference:
            raise AutopetError(f"{path} is not on the grid of {case.suv.name}: {difference}; resample or make it anew")


def _grid(path: Path) -> Volume:
    """An image's grid from its header; the voxels are not read, there may be thousands of images."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise AutopetError(f"{path}: cannot be read ({one_line(error)[-200:]}); make it anew") from error
    voxels = np.broadcast_to(np.uint8(0), reader.GetSize()[::-1])
    return Volume(voxels, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _suffix(cases: Sequence[Case]) -> str:
    """The suffix of the images; nnU-Net keeps one for the whole data set."""
    suffixes = sorted({case.suffix for case in cases})
    if len(suffixes) > 1:
        raise AutopetError(
            f"the cohort has {' and '.join(suffixes)} images, nnU-Net takes one format; use `autopet convert`"
        )
    return suffixes[0]


def plan_and_preprocess(
    space: Workspace,
    *,
    planner: type[ExperimentPlanner],
    planner_options: Mapping[str, Any],
    adapt: Callable[[dict[str, Any]], dict[str, Any]],
    preprocessor: DefaultPreprocessor | None = None,
    workers: int,
) -> None:
    """Fingerprint, plans and preprocessed cases, or nothing when an earlier call has finished them.

    Parameters
    ----------
    planner : type
        nnU-Net's planner class.
    planner_options : mapping
        Further arguments of the planner.
    adapt : callable
        The planner's plans in, the plans to train with out.
    preprocessor : DefaultPreprocessor, optional
        nnU-Net's own, or a subclass that its worker processes can unpickle.
    """
    marker = space.done("preprocess")
    if marker.is_file():
        console.print("nnU-Net: preprocessed cases found, going on from there")
        return
    shutil.rmtree(space.preprocessed, ignore_errors=True)
    space.preprocessed.mkdir(parents=True)
    console.print("nnU-Net: fingerprint, plans, preprocessing")
    with space.log.open("a") as log, redirect_stdout(log):
        DatasetFingerprintExtractor(DATASET, num_processes=workers).run(overwrite_existing=True)
        planning = planner(DATASET, plans_name=PLANS, **planner_options)
        planning.save_plans(adapt(planning.plan_experiment()))
        preprocessor = preprocessor or DefaultPreprocessor(verbose=False)
        preprocessor.run(DATASET, CONFIGURATION, PLANS, num_processes=workers)
    marker.touch()
