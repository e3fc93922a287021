"""What happened to a case: seconds per stage, what was left out for want of time, and other facts worth keeping."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("autopet")


@dataclass
class Journal:
    """The record of one case; `Deadline` carries it to whoever does the work.

    Parameters
    ----------
    clock : callable
        Monotonic seconds; the deadline's own.
    """

    clock: Callable[[], float] = time.monotonic
    stages: dict[str, float] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    _inner_s: list[float] = field(default_factory=list)  # per open stage: seconds that belong to stages inside it

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the body to a stage; those of a stage inside the body count for that one only."""
        started = self.clock()
        self._inner_s.append(0.0)
        try:
            yield
        finally:
            spent_s = self.clock() - started
            self.add(name, spent_s - self._inner_s.pop())
            if self._inner_s:
                self._inner_s[-1] += spent_s

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to a stage."""
        self.stages[name] = self.stages.get(name, 0.0) + seconds

    def drop(self, what: str) -> None:
        """Record, and warn, that something was left out: one sentence with the reason."""
        logger.warning("dropped: %s", what)
        self.dropped.append(what)

    def note(self, key: str, value: Any) -> None:
        """Record a value that JSON can hold; the last one of a key stays."""
        self.notes[key] = value

    def fork(self) -> Journal:
        """A copy for another thread, which `join` takes back; what the thread writes later never comes here."""
        return Journal(self.clock, dict(self.stages), list(self.dropped), dict(self.notes))

    def join(self, other: Journal) -> None:
        """Take over what a fork has recorded, its stages as stages inside the one that is open here."""
        seconds = {name: spent - self.stages.get(name, 0.0) for name, spent in dict(other.stages).items()}
        for name, spent_s in seconds.items():
            self.add(name, spent_s)
        if self._inner_s:
            self._inner_s[-1] += sum(seconds.values())
        self.dropped, self.notes = list(other.dropped), dict(other.notes)
