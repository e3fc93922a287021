from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopet.deadline import Deadline, process_started_s
from autopet.errors import AutopetError


def test_counts_down_on_its_clock():
    now = [100.0]
    deadline = Deadline(60.0, clock=lambda: now[0])
    now[0] = 145.0
    assert deadline.elapsed_s == 45.0
    assert deadline.remaining_s == 15.0
    assert deadline.allows(15.0)
    assert not deadline.allows(15.1)
    now[0] = 160.0
    assert deadline.expired


def test_without_limit_everything_fits():
    deadline = Deadline()
    assert deadline.remaining_s == math.inf
    assert deadline.allows(1e12)


def test_a_limit_must_be_positive():
    with pytest.raises(AutopetError, match="positive"):
        Deadline(0.0)
    with pytest.raises(AutopetError, match="positive"):
        Deadline(math.nan)


def test_a_case_may_have_started_earlier():
    deadline = Deadline(60.0, clock=lambda: 100.0, started_s=70.0)
    assert (deadline.elapsed_s, deadline.remaining_s, deadline.limited) == (30.0, 30.0, True)
    assert not Deadline().limited


def test_the_process_s_start_counts_what_came_before_our_code():
    code = "import time; time.sleep(1.0); from autopet.deadline import process_started_s as s; "
    code += "print(time.monotonic() - s())"
    started = time.monotonic()
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    age_s = float(done.stdout)
    assert 1.0 <= age_s <= time.monotonic() - started + 0.05  # clock ticks are 10 ms


def test_a_system_that_does_not_say_when_means_now(tmp_path: Path):
    for text in (None, "1 (a) b) R 1", "1 (name) " + "0 " * 18 + "9" * 15 + " 0"):
        path = tmp_path / "stat"
        if text:
            path.write_text(text)
        before = time.monotonic()
        assert before <= process_started_s(path) <= time.monotonic()
