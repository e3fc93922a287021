"""nnU-Net's folders below one work folder: dataset, fingerprint, plans, preprocessed cases; resumable at each step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.nnunet.plans import CHANNELS, CONFIGURATION
from autopet.organs import ROLE
from autopet.progress import console

DATASET = "Dataset001_PETCT"
PLANS = "nnUNetPlans"  # one name for every planner: a work folder holds one method's plans
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
        The method's settings; those in `RUN_TIME_ONLY` may differ.

    Raises
    ------
    AutopetError
        The folder holds something else.
    """
    chosen = {key: value for key, value in asdict(settings).items() if key not in RUN_TIME_ONLY}
    files = [(case.name, [path.stat().st_size for path in _files(case)]) for case in cases]
    key = hashlib.sha256(repr((chosen, files)).encode()).hexdigest()
    stamp = work / "recipe"
    if work.exists() and (not stamp.is_file() or stamp.read_text() != key):
        raise AutopetError(
            f"{work} holds an unfinished training with other cases or settings; finish that, or delete the folder"
        )
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return Workspace(work)


def _files(case: Case) -> list[Path]:
    """What a training reads of a case; its organ labels too, where it has some."""
    organs = case.image(ROLE)
    return [case.ct, case.suv, case.mask, *([organs] if organs.is_file() else [])]


def write_dataset(space: Workspace, cases: Sequence[Case]) -> None:
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
