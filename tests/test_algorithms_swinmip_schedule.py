"""The cyclic learning rate: its cycles are counted, its values come from the formula written out."""

from __future__ import annotations

import math

import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")

from algorithms.swinmip.schedule import cyclic, load_state  # noqa: E402

RATE = 5e-4


def make(cycle_steps: int, rate: float = RATE) -> tuple:
    optimizer = torch.optim.NAdam([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    return optimizer, cyclic(optimizer, cycle_steps=cycle_steps)


def rates(optimizer: torch.optim.Optimizer, scheduler: object, steps: int) -> list[float]:
    """The learning rate that every one of the next `steps` batches is done with."""
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize(("cycles", "epochs", "per_epoch"), [(50, 5, 7), (5, 3, 4), (3, 1, 10)])
def test_the_curve_has_the_right_cycles(cycles: int, epochs: int, per_epoch: int):
    length = epochs * per_epoch
    curve = rates(*make(length), cycles * length)
    assert [step for step, rate in enumerate(curve) if rate == RATE] == [cycle * length for cycle in range(cycles)]
    rises = [step for step in range(1, len(curve)) if curve[step] > curve[step - 1]]
    assert rises == [cycle * length for cycle in range(1, cycles)]  # it falls with every batch, and jumps up between
    by_hand = [RATE * 0.5 * (1 + math.cos(math.pi * step / length)) for step in range(length)]
    assert curve == pytest.approx(by_hand * cycles, rel=1e-12)
    assert min(curve) == pytest.approx(RATE * math.sin(math.pi / (2 * length)) ** 2)  # of the last batch of a cycle
    assert [step for step, rate in enumerate(curve) if rate < 1.001 * min(curve)] == [
        cycle * length + length - 1 for cycle in range(cycles)
    ]


def test_the_last_batch_of_the_paper_is_done_with_nearly_nothing():
    """500 volumes, 12 patches each, 4 per batch, 5 epochs: 7500 batches."""
    optimizer, scheduler = make(500 * 3 * 5)
    curve = rates(optimizer, scheduler, 7501)
    assert curve[3750] == pytest.approx(RATE / 2)
    assert curve[7499] < 1e-7 * RATE
    assert curve[7500] == RATE


@pytest.mark.parametrize("broken", [1, 6, 7, 8, 13])
def test_a_resumed_schedule_keeps_its_place(broken: int):
    whole = rates(*make(7), 21)
    optimizer, scheduler = make(7)
    before = rates(optimizer, scheduler, broken)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = make(7)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert before + rates(optimizer, scheduler, 21 - broken) == whole


def test_the_optimizer_s_counters_stay_in_main_memory_on_every_device():
    """NAdam makes them there; torch would move them to the weights' device, and then wait for it in every step."""
    optimizer, scheduler = make(7)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    before = rates(optimizer, scheduler, 3)
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    weight = torch.nn.Parameter(torch.zeros(1, device="meta"))  # a device that is on every machine
    other = torch.optim.NAdam([weight], lr=1.0)
    place = cyclic(other, cycle_steps=7)
    load_state(other, place, state)
    ours, theirs = other.state[weight], optimizer.state_dict()["state"][0]
    assert ours.keys() == theirs.keys()
    assert {name: ours[name].device.type for name in ours} == {
        "step": "cpu", "mu_product": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"
    }  # fmt: skip
    assert (float(ours["step"]), float(ours["mu_product"])) == (3, float(theirs["mu_product"]))
    assert len(before) == place.last_epoch == 3
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < RATE


def test_a_cycle_without_a_batch_is_an_error():
    with pytest.raises(AutopetError, match="at least one batch, found 0"):
        make(0)
