"""A time limit that starts with the case and is asked, never guessed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autopet.errors import AutopetError
from autopet.journal import Journal

LONGEST_START_S = 600.0  # a process that seems to have started earlier has a clock that means something else


@dataclass
class Deadline:
    """Counts down from the moment it is made, or from an earlier one.

    Parameters
    ----------
    limit_s : float
        Seconds allowed for the whole case; infinity when there is no limit.
    clock : callable
        Monotonic seconds; tests pass their own.
    started_s : float or None
        When the case started, on that clock; None: now.

    Attributes
    ----------
    journal : Journal
        Stages, and what was left out; kept as run.json beside the outputs.
    """

    limit_s: float = math.inf
    clock: Callable[[], float] = time.monotonic
    started_s: float | None = None
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        if not self.limit_s > 0:
            raise AutopetError(f"a time limit must be positive, found {self.limit_s} s")
        if self.started_s is None:
            self.started_s = self.clock()
        self.journal = Journal(self.clock)

    def fork(self) -> Deadline:
        """The same deadline for another thread, with a fork of the journal."""
        other = Deadline(self.limit_s, self.clock, self.started_s)
        other.journal = self.journal.fork()
        return other

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        assert self.started_s is not None  # set in __post_init__
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

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return math.isfinite(self.limit_s)


def process_started_s(stat: Path = Path("/proc/self/stat")) -> float:
    """When this process started, on `time.monotonic`'s clock; now where the system does not say.

    Linux keeps the start in clock ticks since boot (proc(5), field 22 of /proc/pid/stat). So the interpreter's start
    and the imports count towards a time limit, too.
    """
    now = time.monotonic()
    try:
        fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold blanks and brackets
        since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - age_s if 0 <= age_s <= LONGEST_START_S else now
