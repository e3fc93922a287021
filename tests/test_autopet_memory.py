"""Freed blocks that are kept: counted in page faults of a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource, sys
import numpy as np
from autopet.memory import keep_large_blocks
if sys.argv[1] == "keep":
    assert keep_large_blocks()
np.ones(4 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(4 << 20)  # 32 MiB, 8192 pages of 4 KiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_blocks_of_the_same_size_are_not_mapped_again():
    assert faults("keep") * 4 < faults("hand back")
