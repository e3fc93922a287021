"""Run TotalSegmentator on a CT, through its command, and read the structures that it writes.

Wasserthal et al., TotalSegmentator, Radiology: AI 5(5), 2023. It is not imported: it brings its own nnU-Net settings
and threads, and a command that dies takes one case with it only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from autopet.errors import AutopetError
from autopet.images import read_grid, read_image, write_image
from autopet.organs import CORRECTED, TOTAL, task_structures
from data_prep.organ_sources import OrganMap, read_organs

COMMAND = "TotalSegmentator"
NETWORK_FAILURES = (  # what it prints when a weight file cannot be fetched
    "ConnectionError", "Max retries exceeded", "NameResolutionError", "ConnectTimeout", "HTTPError", "ProxyError",
    "SSLError",
)  # fmt: skip


EMPTY_CROP = "Crop is empty"  # it says so of a CT without the region of a task, such as the skull


class WeightsError(AutopetError):
    """TotalSegmentator has no weights and cannot fetch them: every case would fail alike."""


@dataclass(frozen=True)
class TotalSegmentator:
    """The installed command.

    Parameters
    ----------
    command : path of the executable.
    device : `gpu`, `gpu:1`, `cpu` or `mps`; empty for its own choice.
    variant : mapping of its structures, see `autopet.organs.parts_of`.
    """

    command: str
    device: str = ""
    variant: str = CORRECTED

    @classmethod
    def find(cls, *, device: str = "", variant: str = CORRECTED) -> TotalSegmentator:
        """The command in PATH or beside this Python; an error that says how to install it."""
        found = shutil.which(COMMAND) or shutil.which(COMMAND, path=str(Path(sys.executable).parent))
        if found is None:
            raise AutopetError(
                f"{COMMAND} is not installed; install it with `pip install 'autopet-bundle[organs]'` (or "
                "`pip install TotalSegmentator`), or give a folder of organ maps with --maps"
            )
        return cls(found, device, variant)

    def segment(self, ct: Path) -> OrganMap:
        """The organs of a CT in HU, on its own grid; both tasks are run, minutes each.

        Raises
        ------
        WeightsError
            Its weights are not there and cannot be fetched.
        AutopetError
            It failed otherwise, or wrote other structures than it was asked for.
        """
        with tempfile.TemporaryDirectory(prefix="autopet-organs-") as name:
            work = Path(name)
            if not ct.name.lower().endswith(".nii.gz"):  # it reads NIfTI only
                ct = write_image(work / "ct.nii.gz", read_image(ct))
            for task, structures in task_structures(self.variant).items():
                folder = work / "out" / task
                if not self._run(ct, folder, task=task, structures=structures):
                    grid = read_grid(ct)
                    for structure in structures:
                        write_image(folder / f"{structure}.nii.gz", grid)
            organs = read_organs([work / "out"], self.variant)
        if organs.absent:
            raise AutopetError(f"{COMMAND} wrote no structure of {', '.join(organs.absent)}; update it (v2.3 or later)")
        return organs

    def _run(self, ct: Path, out: Path, *, task: str, structures: tuple[str, ...]) -> bool:
        """Run one task; False when the region that it looks at is not in the CT and it wrote nothing for that."""
        out.mkdir(parents=True)
        command = [self.command, "-i", str(ct), "-o", str(out), "--task", task]
        command += ["--roi_subset", *structures] if task == TOTAL else []  # it takes subsets of this task only
        command += ["--device", self.device] if self.device else []
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode == 0:
            return True
        if EMPTY_CROP in done.stdout:  # versions that want to save one image into our folder then, and cannot
            return False
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = (lines[-1] if lines else "it said nothing")[:300]
        if any(word in done.stderr for word in NETWORK_FAILURES):
            raise WeightsError(
                f"{COMMAND} could not fetch the weights of its task {task}; run it once on any CT "
                "where there is a network and copy ~/.totalsegmentator here, or set TOTALSEG_HOME_DIR to a copy "
                f"({reason})"
            )
        raise AutopetError(f"{COMMAND} --task {task} ended with status {done.returncode} on {ct}: {reason}")
