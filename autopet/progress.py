"""Progress bars on standard error; plain lines when it is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
console = Console(stderr=True)
PLAIN_LINE_EVERY_S = 15.0


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar (or, in a log file, a line now and then, and always the last)."""
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if console.is_terminal:
        with Progress(*_columns(), console=console) as progress:
            yield from progress.track(items, total=total, description=title)
        return
    started = shown = time.monotonic()
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= PLAIN_LINE_EVERY_S and count != total:
            shown = now
            console.print(f"{title}: {count}/{total or '?'} after {now - started:.0f} s", highlight=False)
    console.print(f"{title}: {count}/{count} in {time.monotonic() - started:.1f} s", highlight=False)


class Meter:
    """Progress of work that cannot be iterated over, such as a trainer's steps.

    Examples
    --------
    >>> with Meter("training", total=2) as meter:  # doctest: +SKIP
    ...     meter.advance(note="loss 0.5")
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.count = title, total, 0
        self._started = self._shown = time.monotonic()
        # rich would catch what is printed inside; standard output belongs to the caller here
        self._bar = Progress(*_columns(), console=console, redirect_stdout=False, redirect_stderr=False)
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Meter:
        if console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if not console.is_terminal:
            self._line()

    def advance(self, steps: int = 1, *, note: str = "") -> None:
        """Count steps; the note (a loss, say) is shown beside the title."""
        self.count += steps
        self._bar.update(self._task, advance=steps, description=f"{self.title} {note}".rstrip())
        now = time.monotonic()
        if not console.is_terminal and now - self._shown >= PLAIN_LINE_EVERY_S:
            self._shown = now
            self._line(note)

    def _line(self, note: str = "") -> None:
        seconds = time.monotonic() - self._started
        console.print(f"{self.title}: {self.count}/{self.total} after {seconds:.0f} s {note}".rstrip(), highlight=False)
