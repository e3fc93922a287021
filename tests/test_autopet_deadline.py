from __future__ import annotations

import math

import pytest

from autopet.deadline import Deadline
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
