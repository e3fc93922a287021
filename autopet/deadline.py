"""A time limit that starts with the case and is asked, never guessed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from autopet.errors import AutopetError


@dataclass
class Deadline:
    """Counts down from the moment it is made.

    Parameters
    ----------
    limit_s : float
        Seconds allowed for the whole case; infinity when there is no limit.
    clock : callable
        Monotonic seconds; tests pass their own.
    """

    limit_s: float = math.inf
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        if self.limit_s <= 0:
            raise AutopetError(f"a time limit must be positive, found {self.limit_s} s")
        self.started_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started_s

    @property
    def remaining_s(self) -> float:
        """Seconds left; negative once the limit has passed."""
        return self.limit_s - self.elapsed_s

    def allows(self, needed_s: float) -> bool:
        """Whether work of `needed_s` seconds still fits."""
        return self.remaining_s >= needed_s

    @property
    def expired(self) -> bool:
        """Whether the limit has passed."""
        return self.remaining_s <= 0
