"""How fast inference is, against nnU-Net's own predictor on the same case and weights.

    python benchmarks/nnunet_inference.py --out nnunet-inference-benchmark.json --require 1.0

A case of 200x200x200 voxels of 2.04 x 2.04 x 3 mm and a residual-encoder network on a grid of 2.6 x 2.6 x 3.5 mm, with
seeded weights: two folds, tiles of 64x64x64 with a step of 0.6, no mirroring (`--mirror` averages all eight copies).
Both predictors run in turns in this process, each `--repeat` times, the best counts:

- nnunet: `nnUNetPredictor.predict_single_npy_array`, arrays in, mask out.
- ours: `autopet.nnunet.inference.Ensemble.segment`, the same.

Then both give the probabilities once, which must differ by less than 1e-4. The benchmark ends with an error if they do
not, if the masks differ, if ours takes more than `--require` of nnU-Net's time, or if resampling back and export take
more than 15 % of ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import nnunet_maker as maker  # noqa: E402

from autopet.deadline import Deadline  # noqa: E402
from autopet.nnunet.inference import Ensemble, Policy  # noqa: E402
from autopet.volume import Volume  # noqa: E402

SHAPE = (200, 200, 200)  # z, y, x
SPACING_MM = (2.04, 2.04, 3.0)  # x, y, z
NETWORK_SPACING_MM = (3.5, 2.6, 2.6)  # z, y, x
PATCH = (64, 64, 64)
FEATURES = (16, 32, 64, 96)
STEP = 0.6
MOST_APART = 1e-4  # of two probabilities
MOST_EXPORT = 0.15  # of our time


def main() -> None:
    """Time both predictors in turns, compare what they found, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each predictor")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--mirror", action="store_true", help="average over all mirrored copies")
    parser.add_argument("--size", type=int, default=SHAPE[0], help="voxels per axis of the case")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("nnunet-inference-benchmark.json"), help="the figures' file")
    parser.add_argument("--require", type=float, default=0.0, help="most of nnU-Net's time; end with status 1 above it")
    flags = parser.parse_args()
    plans = maker.make_plans(patch=PATCH, spacing_mm=NETWORK_SPACING_MM, features=FEATURES)
    folds = maker.make_folds(plans, flags.folds)
    axes = (0, 1, 2) if flags.mirror else ()
    figures = compare(plans, folds, images=make_case(flags.size), axes=axes, device=flags.device, repeat=flags.repeat)
    flags.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    check(figures, most_of_nnunet=flags.require)


def compare(
    plans: dict, folds: list, *, images: dict[str, Volume], axes: tuple[int, ...], device: str, repeat: int
) -> dict[str, Any]:
    """Seconds of both predictors, our stages, and how far apart their answers are."""
    theirs, ours = make_nnunet(plans, folds, axes, device), make_ours(plans, folds, axes, device)
    voxels = np.stack([images[name].array.astype(np.float32) for name in maker.CHANNELS])
    spacing_mm = list(images["PET"].spacing_zyx_mm)
    seconds: dict[str, list[float]] = {"nnunet": [], "ours": []}
    stages: list[dict[str, float]] = []
    for _ in range(repeat):
        took_s, their_mask = timed(lambda: theirs.predict_single_npy_array(voxels, {"spacing": spacing_mm}))
        seconds["nnunet"].append(took_s)
        deadline = Deadline()
        took_s, our_mask = timed(lambda at=deadline: ours.segment(images, at).array)
        seconds["ours"].append(took_s)
        stages.append(deadline.journal.stages)
    with redirect_stdout(StringIO()):
        _, expected = theirs.predict_single_npy_array(voxels, {"spacing": spacing_mm}, None, None, True)
    apart = float(np.abs(ours.probabilities(images, Deadline()) - expected).max())
    best = int(np.argmin(seconds["ours"]))
    back_s = stages[best]["resample"] + stages[best]["export"]
    return {
        "cpu_cores": multiprocessing.cpu_count(),
        "device": device,
        "shape": list(voxels.shape[1:]),
        "parameters": sum(tensor.numel() for tensor in ours.predictor.network.parameters()),
        "folds": len(folds),
        "mirror_axes": list(axes),
        "seconds": {name: [round(one, 2) for one in found] for name, found in seconds.items()},
        "stages_s": {name: round(one, 2) for name, one in stages[best].items()},
        "share_of_nnunet": round(min(seconds["ours"]) / min(seconds["nnunet"]), 3),
        "export_share": round(back_s / seconds["ours"][best], 3),
        "largest_difference": apart,
        "different_mask_voxels": int(np.count_nonzero(our_mask != their_mask)),
        "lesion_voxels": int(our_mask.sum()),
    }


def timed(function: Any) -> tuple[float, Any]:
    """Seconds and result; nnU-Net prints what it does."""
    started = time.perf_counter()
    with redirect_stdout(StringIO()):
        result = function()
    return time.perf_counter() - started, result


def check(figures: dict[str, Any], *, most_of_nnunet: float) -> None:
    """End with status 1 when a figure is not what the project promises."""
    faults = []
    if figures["largest_difference"] >= MOST_APART or figures["different_mask_voxels"]:
        faults.append("the predictors disagree")
    if most_of_nnunet and figures["share_of_nnunet"] > most_of_nnunet:
        faults.append(f"{figures['share_of_nnunet']} of nnU-Net's time, expected at most {most_of_nnunet:g}")
    if most_of_nnunet and figures["export_share"] > MOST_EXPORT:
        faults.append(f"export takes {figures['export_share']} of the time, expected at most {MOST_EXPORT:g}")
    if faults:
        sys.exit("; ".join(faults))


def make_nnunet(plans: dict, folds: list, axes: tuple[int, ...], device: str) -> nnUNetPredictor:
    """nnU-Net's own predictor."""
    manager = PlansManager(plans)
    with redirect_stdout(StringIO()):
        predictor = nnUNetPredictor(
            tile_step_size=STEP, use_mirroring=bool(axes), device=torch.device(device), allow_tqdm=False
        )
    configuration = manager.get_configuration(maker.CONFIGURATION)
    network = maker.make_network(plans)
    predictor.manual_initialization(network, manager, configuration, folds, maker.DATASET, "nnUNetTrainer", axes)
    return predictor


def make_ours(plans: dict, folds: list, axes: tuple[int, ...], device: str) -> Ensemble:
    """This project's."""
    return Ensemble(
        maker.make_network(plans),
        plans,
        maker.DATASET,
        folds,
        channels=maker.CHANNELS,
        configuration=maker.CONFIGURATION,
        device=device,
        policy=Policy(STEP, axes),
    )


def make_case(size: int) -> dict[str, Volume]:
    """Smooth random CT and PET."""
    images = maker.make_images((size, size, size))
    return {name: Volume(volume.array, SPACING_MM) for name, volume in images.items()}


if __name__ == "__main__":
    main()
