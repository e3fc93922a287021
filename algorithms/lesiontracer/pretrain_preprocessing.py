"""All data sets under one plan, and their cases preprocessed by nnU-Net."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from algorithms.lesiontracer.pretrain_data import Source
from algorithms.lesiontracer.pretrain_network import PATH
from autopet.errors import AutopetError, one_line
from autopet.nnunet.plans import CONFIGURATION
from autopet.nnunet.workspace import PLANS, Workspace
from autopet.progress import track

OUTSIDE = -1  # nnU-Net's label of what lies outside the bounding mask
RESAMPLING = {  # nnU-Net's defaults
    "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "seg": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def architecture(features: Sequence[int], blocks: Sequence[int]) -> dict[str, Any]:
    """nnU-Net's ResEncL body as plans describe it; the `paper` widths and blocks are its 6 stages."""
    stages = len(features)
    return {
        "network_class_name": PATH,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_blocks_per_stage": list(blocks),
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans_for(
    source: Source, *, spacing_mm: Sequence[float], patch: Sequence[int], batch: int, network: Mapping[str, Any]
) -> dict[str, Any]:
    """The plans of one data set: the same for all but for the number of channels and the reader of its files.

    They are written here and not planned from a fingerprint: a shared body wants one spacing, one patch and one
    normalisation that needs no statistics of the data set (z-scores per image; Rokuss et al., section 2.3).
    """
    example = str(next(iter(source.images.values()))[0])
    reader = determine_reader_writer_from_dataset_json(source.description(), example, verbose=False)
    channels = len(source.channels)
    resampling = {f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in RESAMPLING}
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(patch),
        "spacing": list(spacing_mm),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "architecture": dict(network),
        "batch_dice": False,  # a batch is mixed of data sets
    }
    options = {f"resampling_fn_{kind}_kwargs": values for kind, values in RESAMPLING.items()}
    return {
        "dataset_name": source.name,
        "plans_name": PLANS,
        "image_reader_writer": reader.__name__,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration | resampling | options},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(channels)},
    }


class CheckedPreprocessor(DefaultPreprocessor):
    """nnU-Net's, and labels that dataset.json does not name are an error here, not a crash of the loss."""

    def modify_seg_fn(
        self, seg: np.ndarray, plans_manager: PlansManager, dataset_json: dict, configuration_manager: Any
    ) -> np.ndarray:
        """Called with the resampled label map of every case."""
        groups = (value if isinstance(value, list) else [value] for value in dataset_json["labels"].values())
        known = {OUTSIDE, *(int(label) for group in groups for label in group)}
        unknown = sorted(set(pd.unique(seg.ravel()).tolist()) - known)
        if unknown:
            raise AutopetError(f"label {unknown[0]:g} is not among the labels of dataset.json; name it there")
        return seg


@dataclass(frozen=True)
class _Job:
    source: Source
    case: str
    folder: Path  # of this data set below nnUNet_preprocessed

    @property
    def target(self) -> Path:
        """Without a suffix: nnU-Net writes several files."""
        return self.folder / f"{PLANS}_{CONFIGURATION}" / self.case

    @property
    def done(self) -> Path:
        return self.target.with_name(f"{self.case}.done")


def preprocess(
    space: Workspace, sources: Sequence[Source], plans: Mapping[str, dict[str, Any]], *, workers: int
) -> None:
    """Preprocess every case of every data set that an earlier call has not finished.

    Raises
    ------
    AutopetError
        A case that cannot be read, whose images and labels differ in shape, or that has unknown labels.
    """
    jobs = []
    for source in sources:
        folder = space.root / "preprocessed" / source.name
        (folder / f"{PLANS}_{CONFIGURATION}").mkdir(parents=True, exist_ok=True)
        (folder / f"{PLANS}.json").write_text(json.dumps(plans[source.name], indent=2))
        (folder / "dataset.json").write_text(json.dumps(source.description(), indent=2))
        jobs += [_Job(source, case, folder) for case in source.images]
    waiting = [job for job in jobs if not job.done.is_file()]
    if waiting:
        for _ in track(_run(waiting, workers, space.log), "preprocessing", total=len(waiting)):
            pass


def _run(jobs: list[_Job], workers: int, log: Path) -> Iterator[None]:
    if workers == 1:
        with log.open("a") as file, redirect_stdout(file):
            yield from map(_preprocess_case, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_preprocess_case, jobs)


def _preprocess_case(job: _Job) -> None:
    for leftover in job.target.parent.glob(f"{job.case}*.b2nd"):  # of a call that was killed
        if leftover.name in {f"{job.case}.b2nd", f"{job.case}_seg.b2nd"}:
            leftover.unlink()
    plans, dataset = (json.loads((job.folder / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    manager = PlansManager(plans)
    images = [str(path) for path in job.source.images[job.case]]
    label = str(job.source.targets[job.case])
    configuration = manager.get_configuration(CONFIGURATION)
    try:
        CheckedPreprocessor(verbose=False).run_case_save(
            str(job.target), images, label, manager, configuration, dataset
        )
    except (AutopetError, AssertionError, RuntimeError, ValueError, OSError) as error:
        raise AutopetError(f"data set {job.source.name}, case {job.case}: {one_line(error)[:300]}") from error
    job.done.touch()
