from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from autopet.errors import AutopetError
from autopet.parallel import LostProcessError, default_workers, run_jobs

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def die_at_3(number: int) -> int:
    if number == 3:
        os._exit(9)
    time.sleep(0.02)
    return number * number


def fail_at_2(number: int) -> int:
    if number == 2:
        raise ZeroDivisionError("two")
    return number


def test_one_worker_is_this_process_and_lazy():
    results = run_jobs(square, iter(range(3)))
    assert next(results) == (0, (0, os.getpid()))
    assert [result[0] for _, result in results] == [1, 4]


def test_two_workers_are_other_processes_and_do_every_job_once():
    done = dict(run_jobs(square, iter(range(25)), workers=2))
    assert {job: result for job, (result, _) in done.items()} == {number: number**2 for number in range(25)}
    processes = {process for _, process in done.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_a_job_that_kills_its_process_costs_nothing_else():
    done = dict(run_jobs(die_at_3, range(8), workers=2))
    lost = done.pop(3)
    assert isinstance(lost, LostProcessError)
    assert "killed" in str(lost)
    assert done == {number: number**2 for number in range(8) if number != 3}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_function_raises_ends_the_run(workers):
    with pytest.raises(ZeroDivisionError, match="two"):
        list(run_jobs(fail_at_2, range(6), workers=workers))


def test_default_workers_fit_cores_and_memory():
    assert 1 <= default_workers() <= len(os.sched_getaffinity(0))


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler in a process of its own, without workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-dashboard"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        yield address
        process.terminate()


def test_a_scheduler_elsewhere(scheduler, tmp_path):
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-dashboard", "--nworkers", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as worker:
        try:
            done = dict(run_jobs(square, range(4), scheduler=scheduler))
        finally:
            worker.terminate()
    assert [done[number][0] for number in range(4)] == [0, 1, 4, 9]
    assert os.getpid() not in {process for _, process in done.values()}


def test_no_scheduler_and_no_workers_are_errors_that_say_what_to_start(scheduler, monkeypatch):
    monkeypatch.setattr("autopet.parallel.CONNECT_S", 1)
    with pytest.raises(AutopetError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9; start one"):
        list(run_jobs(square, [1], scheduler="tcp://127.0.0.1:9"))
    monkeypatch.setattr("autopet.parallel.CONNECT_S", 5)
    with pytest.raises(AutopetError, match="has no workers; start some with `dask worker"):
        list(run_jobs(square, [1], scheduler=scheduler))
