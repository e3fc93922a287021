"""How long and how fast a network is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

from autopet.errors import AutopetError

OPTIMIZERS = ("sgd", "adam")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The part of a method's settings that `autopet.nnunet.trainer` reads. `Schedule.of` picks it."""

    epochs: int
    iterations_per_epoch: int
    validation_iterations: int
    learning_rate: float
    optimizer: str  # sgd (Nesterov, nnU-Net's default) or adam (AdamW, as nnU-Net's own Adam trainers)
    foreground_share: float
    checkpoint_every: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise AutopetError(f"optimizer {self.optimizer!r} is unknown; use {' or '.join(OPTIMIZERS)}")
        for name in ("epochs", "iterations_per_epoch", "validation_iterations", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise AutopetError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.foreground_share <= 1:
            raise AutopetError(f"foreground_share: expected 0 to 1, found {self.foreground_share}")

    @classmethod
    def of(cls, settings: Any, **replaced: Any) -> Schedule:
        """The fields of the same names of a settings dataclass, some of them replaced."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(settings, field.name)]
        return cls(**({name: getattr(settings, name) for name in names} | replaced))
