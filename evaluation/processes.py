"""Cases side by side in processes of their own, which a hostile file may crash or keep for ever."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from autopet.errors import AutopetError
from autopet.parallel import LostProcessError, run_jobs

Job = TypeVar("Job")
Result = TypeVar("Result")

CASE_LIMIT_S = 600.0
NO_PROCESS = (
    "no process can be started to score cases (out of memory, or a script without "
    "`if __name__ == '__main__':` around the evaluation?)"
)


def run_apart(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int = 1,
    scheduler: str = "",
    limit_s: float = CASE_LIMIT_S,
) -> Iterator[tuple[Job, Result | LostProcessError]]:
    """Call a function on every job, never in this process; jobs and results are yielded as they are done.

    Several workers, or those of a Dask scheduler, are those of `autopet.parallel.run_jobs`. One worker is one process
    at a time, which needs no Dask and is started again after a crash.

    Parameters
    ----------
    function : callable
        Importable by the processes; what it raises ends the run.
    limit_s : float
        A job that takes longer loses its process.

    Yields
    ------
    (job, result)
        The result is a LostProcessError when the process that worked on it died.
    """
    limited = partial(_limited, function, limit_s)
    if workers == 1 and not scheduler:
        yield from _one_after_the_other(limited, jobs)
        return
    try:
        yield from run_jobs(limited, jobs, workers=workers, scheduler=scheduler)
    except RuntimeError as error:
        if "failed to start" not in str(error):  # what Dask says of its processes
            raise
        raise AutopetError(NO_PROCESS) from error


def _limited(function: Callable[[Job], Result], limit_s: float, job: Job) -> Result:
    """The result, or the end of this process: a decoder that hangs in C code cannot be interrupted otherwise."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(limit_s, file=nowhere, exit=True)
        try:
            return function(job)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _one_after_the_other(
    function: Callable[[Job], Result], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Result | LostProcessError]]:
    pool: ProcessPoolExecutor | None = None
    try:
        for job in jobs:
            pool = pool or _process()
            try:
                result: Result | LostProcessError = pool.submit(function, job).result()
            except BrokenProcessPool:
                pool.shutdown()
                pool, result = None, LostProcessError("the process that worked on it died")
            yield job, result
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _process() -> ProcessPoolExecutor:
    """A fresh process that is known to work, so that whatever breaks it later is the fault of a case."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        pool.shutdown()
        raise AutopetError(NO_PROCESS) from error
    return pool
