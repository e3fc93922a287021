"""Loaded by every local worker process: Ctrl-C is the main process's to answer, which then ends its workers."""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Called by Dask when a worker starts (`preload`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
