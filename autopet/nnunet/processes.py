"""Training on several GPUs of one machine: `torchrun --nproc_per_node 2 --no-python autopet train ...`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from autopet.errors import AutopetError
from autopet.progress import console

WAIT = timedelta(days=2)  # the others wait while the first process preprocesses a large cohort


@contextmanager
def processes(device: str) -> Iterator[bool]:
    """Join the processes that `torchrun` started, for as long as the context lasts.

    Yields
    ------
    bool
        Whether this is the first process, which alone preprocesses and publishes. True without `torchrun`.
    """
    if started() < 2 or distributed.is_initialized():
        yield rank() == 0
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=WAIT)
    console.quiet = rank() > 0
    try:
        yield rank() == 0
    finally:
        console.quiet = False
        distributed.destroy_process_group()


def started() -> int:
    """Number of processes that `torchrun` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_several(what: str) -> None:
    """For trainings of one process: under `torchrun` every process would write to the same work folder.

    Raises
    ------
    AutopetError
        Several processes were started.
    """
    if started() > 1:
        raise AutopetError(f"{what} runs in one process, on one GPU; start it without torchrun")


def rank() -> int:
    """Number of this process, 0 without `torchrun`."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait_for_all() -> None:
    """Go on when every process has come to this line."""
    if distributed.is_initialized():
        distributed.barrier()
