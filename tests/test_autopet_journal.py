from __future__ import annotations

import logging

import pytest

from autopet.deadline import Deadline
from autopet.journal import Journal


def test_stages_add_up_and_an_inner_one_counts_once():
    now = [0.0]
    journal = Journal(clock=lambda: now[0])
    for _ in range(2):
        with journal.stage("export"):
            now[0] += 1.0
            with journal.stage("resample"):
                now[0] += 5.0
                with journal.stage("copy"):
                    now[0] += 0.25
            now[0] += 2.0
    journal.add("export", 10.0)
    assert journal.stages == {"export": 16.0, "resample": 10.0, "copy": 0.5}


def test_a_stage_that_fails_is_measured():
    now = [0.0]
    journal = Journal(clock=lambda: now[0])

    def fail() -> None:
        with journal.stage("outer"), journal.stage("inner"):
            now[0] += 3.0
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    with journal.stage("outer"):
        now[0] += 1.0
    assert journal.stages == {"inner": 3.0, "outer": 1.0}


def test_what_is_dropped_is_kept_and_logged(caplog: pytest.LogCaptureFixture):
    deadline = Deadline(60.0, clock=lambda: 0.0)
    with caplog.at_level(logging.WARNING, "autopet"):
        deadline.journal.drop("fold 4: 40 s needed, 12 s left")
    assert deadline.journal.dropped == ["fold 4: 40 s needed, 12 s left"]
    assert "dropped: fold 4: 40 s needed, 12 s left" in caplog.text
    deadline.journal.note("passes", [1])
    deadline.journal.note("passes", [1, 2])
    assert deadline.journal.notes == {"passes": [1, 2]}
    assert Deadline().journal.dropped == []  # each case has its own
