"""The model folder of an nnU-Net method: plans.json and dataset.json beside one safetensors file per fold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from autopet.checkpoint import publish_model
from autopet.errors import AutopetError
from autopet.nnunet.plans import CHANNELS

SAME = "same_as"  # metadata: key of a tensor -> key under which it is stored


@dataclass(frozen=True)
class FoldResult:
    """What a trained fold leaves: its weights, the table of its epochs as CSV text, and notes for config.json."""

    weights: Mapping[str, torch.Tensor]
    metrics: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


def publish_folds(
    out: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    folds: Mapping[str, FoldResult],
    *,
    config: Mapping[str, Any],
) -> Path:
    """Publish trained folds as a model folder, each with its fold_<k>.csv.

    Added to the config are `channels`, and `notes` per fold where a training left some.
    """

    def fill(folder: Path) -> dict[str, Any]:
        save_weights(folder, plans, dataset, {name: fold.weights for name, fold in folds.items()})
        for name, fold in folds.items():
            (folder / f"fold_{name}.csv").write_text(fold.metrics)
        notes = {name: dict(fold.notes) for name, fold in folds.items() if fold.notes}
        return {"channels": list(CHANNELS), **({"notes": notes} if notes else {}), **config}

    return publish_model(out, fill)


def save_weights(
    folder: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    folds: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """Write plans.json, dataset.json and fold_<k>.safetensors; a tensor that has two keys is stored once.

    (nnU-Net's decoder refers to its encoder, so the whole encoder has two keys in the state dictionary.)
    The paths of the training cases, which nnU-Net keeps in dataset.json, are left out.
    """
    dataset = {key: value for key, value in dataset.items() if key != "dataset"}
    (folder / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n")
    for name, weights in folds.items():
        stored, same = _without_copies(weights)
        save_file(stored, folder / f"fold_{name}.safetensors", metadata={SAME: json.dumps(same)})


def _without_copies(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors to store, and for the keys of the others the key of the same tensor."""
    first: dict[tuple, str] = {}
    stored, same = {}, {}
    for key, tensor in weights.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        known = first.setdefault(place, key) if tensor.numel() else key
        if known == key:
            stored[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            same[key] = known
    return stored, same


def load_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, torch.Tensor]]]:
    """plans, dataset and the weights of every fold, in the order of their names.

    Raises
    ------
    AutopetError
        No fold there.
    """
    files = sorted(folder.glob("fold_*.safetensors"))
    if not files:
        raise AutopetError(f"weights missing: no fold_*.safetensors in {folder}; train or copy the model again")
    plans = json.loads((folder / "plans.json").read_text())
    dataset = json.loads((folder / "dataset.json").read_text())
    return plans, dataset, [_load(path) for path in files]


def _load(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        same = json.loads((file.metadata() or {}).get(SAME, "{}"))
    return weights | {key: weights[known] for key, known in same.items()}
