"""nnU-Net's result folders (plans.json, dataset.json, fold_<k>/checkpoint_final.pth) as model folders of ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from autopet.checkpoint import sha256
from autopet.errors import AutopetError, one_line
from autopet.nnunet.model_folder import save_weights
from autopet.nnunet.plans import CONFIGURATION
from autopet.progress import console, track
from autopet.safe_load import safe_load

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")  # the first that is there
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
NAMES = {"CT": "CT", "PET": "PET", "PT": "PET", "SUV": "PET"}  # channel names of dataset.json -> ours
OWN_HEADS = "decoder.organ_seg_layers."  # LesionTracer's second head, which the plans do not mention
DIMENSIONS = 3
ALL_AXES = tuple(range(DIMENSIONS))


@dataclass(frozen=True)
class Results:
    """What nnU-Net's result folder holds, in the form of a model folder."""

    plans: dict[str, Any]
    dataset: dict[str, Any]
    folds: dict[str, dict[str, torch.Tensor]]
    sha256: dict[str, str]  # of the checkpoints, by fold
    trainer: str
    mirroring: bool


def find_results(folder: Path, inside: str = "") -> Path:
    """The folder with fold_<k>/checkpoint_final.pth, at `folder` or below it; `inside` is a part of its path.

    Raises
    ------
    AutopetError
        None there, or several.
    """
    parents = {path.parent.parent for name in CHECKPOINTS for path in folder.rglob(f"fold_*/{name}")}
    found = sorted(parents)
    matching = [path for path in found if inside in path.as_posix()]
    if folder in parents:
        matching = [folder]  # the user named it
    if len(matching) != 1:
        listed = ", ".join(path.relative_to(folder).as_posix() for path in found[:10]) or "none"
        wanted = f" whose path has {inside!r}" if inside else ""
        raise AutopetError(
            f"{folder}: expected one nnU-Net result folder with fold_<k>/{CHECKPOINTS[0]}{wanted}, found {listed};"
            " name it with --from FOLDER"
        )
    return matching[0]


def read_results(folder: Path) -> Results:
    """Read every fold; the configuration that was trained (e.g. 3d_fullres_bs3) becomes `3d_fullres`."""
    plans, dataset = (_json(folder / name) for name in ("plans.json", "dataset.json"))
    folds, sums, seen = {}, {}, set()
    for path in track(_checkpoints(folder), "reading checkpoints"):
        checkpoint = safe_load(path)
        name = path.parent.name.removeprefix("fold_")
        folds[name], sums[name] = _weights(checkpoint, path), sha256(path)
        arguments = _plain(checkpoint.get("init_args"))
        seen.add(
            (str(arguments.get("configuration", CONFIGURATION)), str(checkpoint.get("trainer_name")), _axes(checkpoint))
        )
    if len(seen) != 1:
        raise AutopetError(f"{folder}: the folds come from different trainings: {sorted(seen)}; import them apart")
    configuration, trainer, axes = seen.pop()
    mirroring = axes == ALL_AXES
    if axes and not mirroring:
        console.print(f"warning: {folder}: trained with mirroring along axes {axes} only; none is used", style="yellow")
    plans = _as_full_resolution(plans, configuration, folder)
    _check_fit(plans, dataset, folds, folder)
    return Results(plans, dataset, folds, sums, trainer, mirroring)


def _axes(checkpoint: Mapping[str, Any]) -> tuple[int, ...]:
    """Axes that may be mirrored; as for nnU-Net, None and a missing entry stand for no axis."""
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    return tuple(sorted(int(axis) for axis in axes)) if isinstance(axes, list | tuple) else ()


def _check_fit(plans: dict[str, Any], dataset: dict[str, Any], folds: Mapping[str, Mapping], folder: Path) -> None:
    """Every fold has every tensor of the network that the plans describe; heads of its own are the method's affair."""
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    with torch.device("meta"):  # shapes only
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, configuration, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            allow_init=False,
            deep_supervision=False,
        )
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    for name, weights in folds.items():
        wrong = [key for key, shape in expected.items() if key not in weights or tuple(weights[key].shape) != shape]
        wrong += [key for key in weights if key not in expected and not key.startswith(OWN_HEADS)]
        if wrong:
            raise AutopetError(
                f"{folder}: fold {name} does not fit plans.json and dataset.json beside it: {len(wrong)} tensors are"
                f" missing, strange or of another shape, {wrong[0]} first; give the folder as its authors released it"
            )


def write_results(folder: Path, results: Results) -> None:
    """plans.json, dataset.json and fold_<k>.safetensors."""
    save_weights(folder, results.plans, results.dataset, results.folds)


def channels(results: Results, known: Sequence[str] = ()) -> list[str]:
    """Names of the input channels in their order: those of dataset.json where they tell, else the `known` ones.

    Many data sets call the PET channel `CT`, too, because nnU-Net chooses the normalisation by that name.
    """
    stated = results.dataset.get("channel_names") or results.dataset.get("modality") or {}
    names = [str(stated[key]) for key in sorted(stated, key=int)]
    ours = [NAMES.get(name.upper(), "") for name in names]
    if all(ours) and len(set(ours)) == len(ours):
        return ours
    if len(known) == len(names):
        return list(known)
    raise AutopetError(f"dataset.json names the channels {names}; expected CT and PET, in any order")


def settings_of(results: Results, preset: Any) -> dict[str, Any]:
    """The method's settings with what the checkpoints say: which folds, and whether mirroring is allowed."""
    folds = tuple(int(name) if name.isdigit() else name for name in sorted(results.folds))
    fields = {field.name for field in dataclasses.fields(preset)}
    change: dict[str, Any] = {"folds": folds} if "folds" in fields else {}
    if "mirroring" in fields and not results.mirroring:
        change["mirroring"] = False
    return dataclasses.asdict(dataclasses.replace(preset, **change))


def read_pretraining(found: Path) -> Results:
    """One checkpoint to start trainings from; it may have several heads and stems, and no plans beside it."""
    (path, *more) = _checkpoints(found) if found.is_dir() else [found]
    if more:
        raise AutopetError(
            f"{found}: expected one fold of pretrained weights, found {len(more) + 1}; name a checkpoint"
        )
    checkpoint = safe_load(path)
    arguments = _plain(checkpoint.get("init_args"))
    plans, dataset = (
        _json(beside) if (beside := path.parent.parent / file).is_file() else _plain(arguments.get(key))
        for file, key in (("plans.json", "plans"), ("dataset.json", "dataset_json"))
    )
    name = path.parent.name.removeprefix("fold_") if path.parent.name.startswith("fold_") else "all"
    weights, trainer = {name: _weights(checkpoint, path)}, str(checkpoint.get("trainer_name"))
    return Results(plans, dataset, weights, {name: sha256(path)}, trainer, True)


def _plain(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _checkpoints(folder: Path) -> list[Path]:
    """One checkpoint for every fold that has one."""
    chosen = []
    for fold in sorted(folder.glob("fold_*")):
        path = next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)
        if path is None:
            console.print(f"warning: {fold} has no checkpoint and is left out", style="yellow", highlight=False)
            continue
        if path.name != CHECKPOINTS[0]:
            console.print(f"warning: {fold} has no {CHECKPOINTS[0]}, {path.name} is taken", style="yellow")
        chosen.append(path)
    if not chosen:
        raise AutopetError(f"{folder}: no fold_<k>/{CHECKPOINTS[0]}; give nnU-Net's result folder")
    return chosen


def _weights(checkpoint: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.get("network_weights")
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise AutopetError(
            f"{path}: expected nnU-Net v2's network_weights, found {', '.join(map(str, list(checkpoint)[:10]))};"
            " checkpoints of nnU-Net v1 and of other programs cannot be imported"
        )
    weights = {}
    for key, tensor in found.items():
        while key.startswith(WRAPPERS):
            key = key.partition(".")[2]  # noqa: PLW2901
        weights[key] = tensor
    return weights


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise AutopetError(f"{path} is missing; it belongs to nnU-Net's result folder, copy it, too") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AutopetError(f"{path}: not valid JSON ({one_line(error)}); download or copy it again") from error
    if not isinstance(found, dict):
        raise AutopetError(f"{path}: expected a JSON object, found {type(found).__name__}; copy nnU-Net's own file")
    return found


def _as_full_resolution(plans: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Plans with the trained configuration as the only one, what it inherits written out."""
    try:
        chosen = PlansManager(plans).get_configuration(name).configuration
    except (RuntimeError, KeyError) as error:
        raise AutopetError(
            f"{folder}: plans.json lacks the configuration {name!r} of the checkpoints ({one_line(error)})"
        ) from error
    if len(chosen["patch_size"]) != DIMENSIONS or chosen.get("previous_stage"):
        raise AutopetError(f"{folder}: configuration {name!r} is 2D or a cascade; only single 3D networks can be used")
    chosen.pop("inherits_from", None)
    return {**plans, "configurations": {CONFIGURATION: chosen}}
