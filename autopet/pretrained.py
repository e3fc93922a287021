"""Start a network from the weights of another: reading them without running code, and saying what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from autopet.errors import AutopetError, one_line
from autopet.safe_load import safe_load

Weights = dict[str, torch.Tensor]
HOLDERS = ("network_weights", "state_dict", "model")  # where checkpoints keep the weights: nnU-Net, MONAI, others
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
SHOWN = 4  # names in a sentence


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file.

    `loaded` and `missing` together are the network's tensors, those in `missing` keep the values they had; `skipped`
    are the file's, each with the reason. A method with more to say adds fields and overrides `remarks`.
    """

    title: ClassVar[str] = "pretrained weights"
    loaded: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]

    @classmethod
    def of(cls, own: Iterable[str], taken: Collection[str], skipped: Mapping[str, str], **more: Any) -> Self:
        """A report in the order of the network.

        Parameters
        ----------
        own : names
            Of the network's tensors.
        taken : names
            Those of them that were loaded.
        skipped : mapping
            The file's other tensors, and why they were left out.
        **more
            Fields of a subclass.
        """
        own = list(own)
        return cls(
            loaded=tuple(name for name in own if name in taken),
            skipped=tuple(skipped.items()),
            missing=tuple(name for name in own if name not in taken),
            **more,
        )

    def remarks(self) -> list[str]:
        """What the summary says besides, after the number of loaded tensors."""
        return []

    def summary(self) -> str:
        """The report in words."""
        parts = [f"{self.title}: {len(self.loaded)} of {len(self.loaded) + len(self.missing)} tensors loaded"]
        parts += self.remarks()
        if self.skipped:
            counted = Counter(reason for _, reason in self.skipped)
            listed = ", ".join(f"{count} {reason}" for reason, count in counted.items())
            parts.append(f"{len(self.skipped)} of the file skipped: {listed}")
        if self.missing:
            more = f" and {len(self.missing) - SHOWN} more" if len(self.missing) > SHOWN else ""
            parts.append(f"{len(self.missing)} keep their random start: {', '.join(self.missing[:SHOWN])}{more}")
        return "; ".join(parts)


def read_weights(path: Path, *, what: str, give: str) -> Weights:
    """The tensors of a file by the names that they have there, on the CPU. Nothing in the file is executed.

    Parameters
    ----------
    path : Path
        safetensors, or a file of `torch.save`: a state dict, alone or below one of `HOLDERS`.
    what, give : str
        For the errors: what was looked for, and what to give.

    Raises
    ------
    AutopetError
        No such file, a damaged one, one that would run code, or one without tensors by name.
    """
    if not path.is_file():
        raise AutopetError(f"no {what} at {path}; give {give}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise AutopetError(
                f"{path}: not a whole safetensors file ({one_line(error)[:200]}); download or copy it again"
            ) from error
    checkpoint = safe_load(path)
    weights = next((checkpoint[key] for key in HOLDERS if key in checkpoint), checkpoint)
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise AutopetError(
            f"{path}: expected tensors by name, alone or below {', '.join(HOLDERS[:-1])} or {HOLDERS[-1]}, found the "
            f"keys {', '.join(map(str, list(checkpoint)[:SHOWN]))}; give {give}"
        )
    return dict(weights)


def unwrapped(name: str) -> str:
    """A tensor's name without the prefixes of wrappers around the network, however many there are."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def misfit(name: str, tensor: torch.Tensor, own: Mapping[str, torch.Tensor]) -> str:
    """Why a tensor cannot take the place of the network's of that name; empty when it can."""
    if name not in own:
        return "not in this network"
    if tensor.shape != own[name].shape:
        return f"of shape {shape_text(tensor)} where the network has {shape_text(own[name])}"
    return ""


@torch.no_grad()
def copy_fitting(given: Weights, own: Mapping[str, torch.Tensor], skipped: dict[str, str]) -> list[str]:
    """Copy the tensors that fit into the network's of the same name, in place.

    Parameters
    ----------
    given, own : mappings
        By the network's names: the file's tensors, and the network's own.
    skipped : dict
        Gets the others, each with the reason.

    Returns
    -------
    list of str
        Names of those that were copied.
    """
    copied = []
    for name, tensor in given.items():
        if reason := misfit(name, tensor, own):
            skipped[name] = reason
        else:
            own[name].copy_(tensor)
            copied.append(name)
    return copied


def shape_text(tensor: torch.Tensor) -> str:
    """A shape in words: `4x2x3`."""
    return "x".join(map(str, tensor.shape)) or "one number"
