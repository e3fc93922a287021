"""Jobs that crash or hang lose their own process, and nobody else's."""

from __future__ import annotations

import os
import re
import time

import pytest

from autopet.parallel import LostProcessError
from evaluation.processes import run_apart


def work(job: int) -> int:
    if job == 1:
        os.abort()
    if job == 2:  # backtracking in C code that lets no other thread run
        re.match(r"(a+)+$", "a" * 60 + "b")
    return os.getpid()


def fail(job: int) -> int:
    raise RuntimeError(f"a bug in job {job}")


def test_crashes_and_hangs_cost_their_own_job():
    start = time.monotonic()
    found = dict(run_apart(work, range(4), limit_s=2.0))
    assert [isinstance(found[job], LostProcessError) for job in range(4)] == [False, True, True, False]
    assert found[0] != os.getpid() != found[3]
    assert time.monotonic() - start < 30


def test_hangs_are_ended_in_the_processes_of_dask_too():
    found = dict(run_apart(work, [0, 2, 3], workers=2, limit_s=2.0))
    assert [isinstance(found[job], LostProcessError) for job in (0, 2, 3)] == [False, True, False]


@pytest.mark.parametrize("workers", [1, 2])
def test_bugs_end_the_run(workers: int):
    with pytest.raises(RuntimeError, match="a bug in job"):
        list(run_apart(fail, [1, 2], workers=workers))
