"""A call of an experiment's command, from the lock on its folder to the words of its report."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError
from autopet.folders import sole_writer
from autopet.parallel import default_workers
from leaderboard.experiments.cohort import CohortSettings, Phantom, fingerprint, write_cohort
from leaderboard.experiments.common import Cell, Outcome, claim, machine, run_cells
from leaderboard.experiments.report import Story

COHORT = "cohort"


@dataclass(frozen=True)
class Call:
    """What was asked for, and when.

    Attributes
    ----------
    name : str
        Of the experiment.
    seeds : int
        Repetitions: seeds 0 to seeds - 1.
    device : str
        `cpu` or `cuda`.
    command : str
        For the report.
    workers : int
        Phantoms and cells that are worked on side by side; 0: as many as the machine is made for.
    """

    name: str
    out: Path
    seeds: int
    device: str
    command: str
    workers: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise AutopetError(f"an experiment needs at least 1 seed, found {self.seeds}")

    @contextmanager
    def held(self, budget: Any, **more: Any) -> Iterator[None]:
        """The folder, for this experiment with this budget alone.

        Parameters
        ----------
        budget : dataclass
        more
            What else results depend on, as JSON keeps it.

        Raises
        ------
        AutopetError
            Another call writes there, or another experiment lies there.
        """
        with sole_writer(self.out):
            claim(self.out, {"experiment": self.name, "budget": asdict(budget), "device": self.device, **more})
            yield

    def phantoms(self, organ_maps: Path, settings: CohortSettings, *, moved: bool) -> tuple[Phantom, ...]:
        """The cohort around real organ maps, or what is missing of it; see `write_cohort`."""
        folder, workers = self.out / COHORT, self.workers or default_workers()
        return tuple(write_cohort(folder, organ_maps=organ_maps, settings=settings, workers=workers, moved=moved))

    def run(
        self,
        cells: Sequence[Cell],
        work: Callable[[Cell], Outcome],
        *,
        needs: Mapping[Cell, Sequence[Cell]] | None = None,
    ) -> dict[Cell, Outcome]:
        """`run_cells`, one at a time per core, or one on a GPU."""
        cores = 1 if self.device.startswith("cuda") else len(os.sched_getaffinity(0))
        return run_cells(self.out, cells, work, workers=self.workers or cores, needs=needs)

    def story(
        self,
        outcomes: Mapping[Cell, Outcome],
        *,
        title: str,
        question: str,
        reference: str,
        explanations: Mapping[str, str],
        settings: Mapping[str, Any],
        notes: Sequence[str],
    ) -> Story:
        """The report's story: what the experiment says of itself, with machine, date and times."""
        call_min = (time.monotonic() - self.started_s) / 60
        return Story(
            title=title,
            question=question,
            reference=reference,
            command=self.command,
            machine=machine(self.device),
            date=f"{dt.date.today():%Y-%m-%d}",
            minutes=sum(outcome.seconds for outcome in outcomes.values()) / 60,
            explanations=explanations,
            settings={**settings, "minutes of the call that wrote this report": f"{call_min:.1f}"},
            notes=notes,
        )

    def cohort_words(self, settings: CohortSettings) -> dict[str, str]:
        """The phantoms, for the report's settings."""
        return {
            "cohort": worded(settings),
            "cohort's fingerprint": f"SHA-256 {fingerprint(self.out / COHORT)}",
        }


def worded(settings: Any) -> str:
    """A settings dataclass on one line."""
    return ", ".join(f"{key} {value}" for key, value in asdict(settings).items())
