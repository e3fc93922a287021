"""The vote as an algorithm container: it runs its members one after the other, each within its share of the time."""

from __future__ import annotations

import gc
import logging
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import numpy as np

from autopet.checkpoint import load_config, read_config, settings_from_dict
from autopet.deadline import Deadline
from autopet.errors import AutopetError, one_line
from autopet.methods import find_method
from autopet.postprocessing import Rules, apply_rules, rules_of
from autopet.sockets import CT, DATA_CENTRIC, LESIONS, PET, Inputs
from autopet.volume import Volume
from baselines.majority.model import MEMBERS, NAME, Settings, vote, votes_needed

INPUTS = (PET, CT)
OUTPUTS = (LESIONS, DATA_CENTRIC)
RESERVED = 0.05  # of the time limit: for the vote itself and for writing its mask
LEAST_RESERVED_S = 2.0  # more than the container keeps for itself, or it would give up a vote that is nearly there
logger = logging.getLogger("autopet")


@dataclass(frozen=True)
class Member:
    """A method that votes, its model folder, and the post-processing of its masks."""

    name: str
    predict: ModuleType
    folder: Path
    rules: Rules


@dataclass(frozen=True)
class Model:
    """Who votes, how many votes make a lesion (0: more than half), and where networks run."""

    members: tuple[Member, ...]
    votes: int
    device: str


def load(model_dir: Path, device: str) -> Model:
    """Find the members and their code; their weights are loaded when it is their turn, so that one is in memory.

    Raises
    ------
    AutopetError
        The folder is no whole vote, or this image lacks the code of a member's method.
    """
    config = read_config(model_dir, method=NAME)
    if lost := sorted({"settings", "members"} - set(config)):
        raise AutopetError(f"{model_dir}/config.json lacks {', '.join(lost)}; gather the members again")
    settings = settings_from_dict(Settings, config["settings"], str(model_dir))
    members, lacking = [], []
    for entry in config["members"]:
        try:
            members.append(_member(model_dir / MEMBERS / entry["name"], entry))
        except AutopetError as error:
            lacking.append(f"{entry['name']} ({one_line(error)})")
    if lacking:
        raise AutopetError(
            f"the members {', '.join(lacking)} cannot vote here; build the image with `autopet build majority` from a "
            "checkout that has their methods, or gather other members"
        )
    return Model(tuple(members), settings.votes, device)


def _member(folder: Path, entry: dict[str, Any]) -> Member:
    rules = rules_of(load_config(folder), str(folder))
    return Member(entry["name"], find_method(entry["method"]).module("predict"), folder, rules)


def predict(model: Model, inputs: Inputs, deadline: Deadline) -> dict:
    """The vote of the members' masks; one that fails or finds no time is left out, and the journal says so.

    A member's time limit is what remains, divided by the members that remain; its own post-processing is applied. One
    that is not ready when nothing remains is not waited for: the votes that are in count.
    """
    ballots: list[np.ndarray] = []
    records = []
    for index, member in enumerate(model.members):
        share_s = _left_s(deadline) / (len(model.members) - index)
        started = time.monotonic()
        mask, record = _ballot(member, inputs, deadline, share_s=share_s, device=model.device)
        spent_s = round(time.monotonic() - started, 3)
        limit_s = round(share_s, 3) if deadline.limited else None
        records.append({"member": member.name, "limit_s": limit_s, "seconds": spent_s, **record})
        if mask is not None:
            ballots.append(mask)
    deadline.journal.note(MEMBERS, records)
    if not ballots:
        raise AutopetError(f"none of the {len(model.members)} members made a mask; first reason: {records[0]['lost']}")
    if len(ballots) < len(model.members):
        needed = votes_needed(len(ballots), votes=model.votes)
        logger.warning("warning: %d of %d members voted, %d votes make a lesion", len(ballots), len(records), needed)
    elected = vote(ballots, votes=model.votes)
    return {LESIONS.slug: inputs[PET.slug].with_array(elected), DATA_CENTRIC.slug: False}


def _left_s(deadline: Deadline) -> float:
    """Seconds that the members still have."""
    reserved_s = max(RESERVED * deadline.limit_s, LEAST_RESERVED_S) if deadline.limited else 0.0
    return deadline.remaining_s - reserved_s


def _ballot(
    member: Member, inputs: Inputs, deadline: Deadline, *, share_s: float, device: str
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """A member's mask (z, y, x, bool), or None, and what the journal keeps of its turn."""
    if share_s <= 0:
        return _lost(member, deadline, "no time is left for it")
    own = Deadline(share_s, clock=deadline.clock)
    try:
        with deadline.journal.stage(f"member {member.name}"):
            mask, removed = _in_time(_run, member, inputs, own, device, left_s=_left_s(deadline))
    except Exception as error:  # whatever stops one member, the others vote
        return _lost(member, deadline, one_line(error) if isinstance(error, AutopetError) else repr(error))
    finally:
        _free(device)
    deadline.journal.dropped.extend(f"{member.name}: {what}" for what in own.journal.dropped)
    ballot = mask.array != 0
    stages = {name: round(seconds, 3) for name, seconds in own.journal.stages.items()}
    record = {"stages": stages, "notes": own.journal.notes, "removed": list(removed)}
    return ballot, record | {"lesion_voxels": int(ballot.sum())}


def _lost(member: Member, deadline: Deadline, reason: str) -> tuple[None, dict[str, Any]]:
    deadline.journal.drop(f"the vote of {member.name}: {reason}")
    return None, {"lost": reason}


def _in_time(work: Callable[..., Any], *arguments: Any, left_s: float) -> Any:
    """What `work` returns or raises; an error when it is not ready in time.

    Work that is given up goes on in its thread: nothing can stop it, and nothing waits for it.
    """
    if not math.isfinite(left_s):
        return work(*arguments)
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(work(*arguments))
        except BaseException as error:  # raised again where the answer is asked for
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    if not wait([answer], left_s).done:
        raise AutopetError(f"not ready after {left_s:.1f} s, and no time is left to wait for it")
    return answer.result()


def _run(member: Member, inputs: Inputs, deadline: Deadline, device: str) -> tuple[Volume, tuple[str, ...]]:
    """A member's mask, cleaned by its own rules, and what they removed; an error unless it is one on the input grid."""
    loaded = member.predict.load(member.folder, device)
    mask: Volume = member.predict.predict(loaded, inputs, deadline)[LESIONS.slug]
    difference = inputs[PET.slug].grid_difference(mask)
    if difference:
        raise AutopetError(f"its mask is not on the input grid: {difference}")
    if mask.array.dtype not in (np.uint8, bool) or (mask.array > 1).any():
        raise AutopetError(f"expected a mask of 0 and 1 (uint8), found {mask.array.dtype}")
    return apply_rules(mask, member.rules, suv=inputs[PET.slug], ct=inputs[CT.slug])


def _free(device: str) -> None:
    """Give back what a network held before the next one is loaded."""
    gc.collect()
    if device.startswith("cuda") and "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
