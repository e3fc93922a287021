"""The learning rate of both trainings: a cosine from its maximum to 0 in every cycle, then back at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler

from autopet.errors import AutopetError


def cyclic(optimizer: Optimizer, *, cycle_steps: int) -> CosineAnnealingWarmRestarts:
    """Cyclic learning rate (section 4.3), to be stepped after every batch.

    Step s of a cycle is done with ``learning_rate * (1 + cos(pi * s / cycle_steps)) / 2``: the first with the
    optimizer's own learning rate, the last with nearly 0. State and place in the cycle are in `state_dict()`.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its learning rate is the maximum.
    cycle_steps : int
        Batches per cycle: those of an epoch times the epochs of a cycle.

    Raises
    ------
    AutopetError
        A cycle without a step.
    """
    if cycle_steps < 1:
        raise AutopetError(
            f"a cycle of the learning rate needs at least one batch, found {cycle_steps}; "
            "give training cases, and at least 1 epoch per cycle"
        )
    return CosineAnnealingWarmRestarts(optimizer, T_0=cycle_steps, eta_min=0.0)


def load_state(optimizer: Optimizer, scheduler: LRScheduler | None, state: Mapping[str, Any]) -> None:
    """Go on with NAdam and `cyclic` from a checkpoint, whose `optimizer` and `scheduler` are their `state_dict()`.

    NAdam keeps each weight's two counters in main memory. `load_state_dict` moves one of them to the weight's device,
    where every step of a resumed training would wait for each of them.
    """
    assert scheduler is not None
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, kept in state["optimizer"]["state"].items():
        optimizer.state[weights[number]] |= {name: kept[name].cpu() for name in ("step", "mu_product")}
