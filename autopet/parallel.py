"""Run a function over many jobs side by side with dask.distributed: on this machine, or on a cluster.

`--workers 4` starts a cluster of four processes here, `--scheduler tcp://host:8786` joins one that is running; what is
done with the jobs is the same code. A process that dies (out of memory, a crashing decoder) costs its own job only.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autopet import __version__
from autopet.errors import AutopetError, one_line

if TYPE_CHECKING:
    from distributed import Client, Future

Job = TypeVar("Job")
Result = TypeVar("Result")

MEMORY_PER_WORKER_GB = 4.0  # what a full-size study may take
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
CONNECT_S = 20
RETRY_S = 0.2
JOBS_PER_PROCESS = 2  # sent ahead, so that no process waits for the next one
SECOND_CHANCES = 1  # for a job whose process died: it may have been another's fault
SETTINGS = {
    "distributed.scheduler.allowed-failures": SECOND_CHANCES,
    "distributed.scheduler.worker-saturation": 1.0,  # one job per process, so that a crash blames the right one
    "distributed.worker.daemon": True,
    "distributed.admin.log-length": 0,
}


class LostProcessError(AutopetError):
    """The process that worked on a job died, more than once."""


def default_workers() -> int:
    """As many processes as there are cores, and as memory allows at 4 GB each."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if CGROUP_MEMORY.is_file() and (limit := CGROUP_MEMORY.read_text().strip()).isdigit():  # of a container or a job
        memory_gb = min(memory_gb, int(limit) / 1e9)
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gb / MEMORY_PER_WORKER_GB)))


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int = 1, scheduler: str = ""
) -> Iterator[tuple[Job, Result | LostProcessError]]:
    """Call a function on every job; jobs and results are yielded as they are done, in any order.

    Parameters
    ----------
    function : callable
        Importable by the processes; what it raises ends the run.
    workers : int
        Processes on this machine; with 1 the jobs run in this process, one after the other.
    scheduler : str
        Address of a running Dask scheduler, whose workers see the same files; `workers` is not used then.

    Yields
    ------
    (job, result)
        The result is a LostProcessError when the process that worked on it died twice.

    Raises
    ------
    AutopetError
        The scheduler does not answer, has no workers, or its workers lack this package.
    """
    if workers == 1 and not scheduler:
        yield from ((job, function(job)) for job in jobs)
        return
    with _client(workers, scheduler) as client:
        yield from _stream(client, function, iter(jobs))


def _stream(client: Client, function: Callable, jobs: Iterator) -> Iterator[tuple[Any, Any]]:
    """Keep a few jobs per process on their way, whatever the number of jobs."""
    from distributed import as_completed

    started: dict[Future, Any] = {}
    done = as_completed(loop=client.loop)

    def submit(count: int) -> None:
        for job in islice(jobs, count):
            future = client.submit(function, job, pure=False)
            started[future] = job
            done.add(future)

    submit(JOBS_PER_PROCESS * max(1, sum(client.nthreads().values())))
    for future in done:
        job = started.pop(future)
        yield job, _result(future)
        submit(1)


def _result(future: Future) -> Any:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except KilledWorker:
        return LostProcessError("the process that worked on it was killed (out of memory? use fewer workers)")
    except FutureCancelledError as error:
        raise AutopetError(
            f"the connection to the scheduler was lost; run the same command again to go on ({one_line(error)})"
        ) from error


@contextmanager
def _client(workers: int, scheduler: str) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters becomes an error here
    with dask.config.set(SETTINGS):
        if scheduler:
            _check_address(scheduler)
            with Client(scheduler, timeout=CONNECT_S, set_as_default=False) as client:
                _check_workers(client, scheduler)
                yield client
            return
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # any free port: several runs may work side by side
                silence_logs=logging.CRITICAL,
                memory_limit=0,
                preload=["autopet.interrupts"],
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client


def _check_address(scheduler: str) -> None:
    """An error when nothing answers at an address: asked here, because Dask takes its time and prints tracebacks."""
    match = re.fullmatch(r"(?:tcp|tls)://(\[[0-9a-fA-F:]+\]|[^:/]+):(\d{1,5})", scheduler)
    if match is None:
        raise AutopetError(f"--scheduler is {scheduler!r}, expected an address like tcp://host:8786")
    until = time.monotonic() + CONNECT_S  # it may be starting
    while True:
        try:
            socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=CONNECT_S).close()
            return
        except (OSError, OverflowError) as error:
            if isinstance(error, ConnectionRefusedError) and time.monotonic() < until:
                time.sleep(RETRY_S)
                continue
            raise AutopetError(
                f"no Dask scheduler answers at {scheduler}; start one with `dask scheduler` ({one_line(error)})"
            ) from error


def _check_workers(client: Client, scheduler: str) -> None:
    """An error when a cluster has no workers, or lacks this package in this version."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
        versions = {scheduler: client.run_on_scheduler(_version), **client.run(_version)}
    except TimeoutError as error:
        raise AutopetError(
            f"the Dask scheduler {scheduler} has no workers; start some with `dask worker {scheduler}`"
        ) from error
    except ModuleNotFoundError as error:
        raise AutopetError(
            f"the scheduler {scheduler} or a worker lacks this package; install version {__version__} there ({error})"
        ) from error
    strangers = {address: version for address, version in versions.items() if version != __version__}
    if strangers:
        address, version = next(iter(strangers.items()))
        raise AutopetError(
            f"{address} has autopet-bundle {version}, this is {__version__}; install the same everywhere"
        )


def _version() -> str:
    import data_prep  # noqa: F401  (what the jobs need)

    return __version__
