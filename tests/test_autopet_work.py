"""Work folders: whose they are, and what a call that was broken off leaves behind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autopet import work as module
from autopet.errors import AutopetError
from autopet.work import STAMP, claim_work, file_sizes


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    workers: int = 2
    checkpoint_every: int = 1


INPUTS = [("case00", [10, 20, 30])]


def test_a_folder_belongs_to_its_inputs_and_settings(tmp_path: Path):
    work = tmp_path / "a/work"
    claim_work(work, Settings(), INPUTS)
    before = (work / STAMP).stat().st_mtime_ns
    (work / "checkpoint").touch()
    claim_work(work, replace(Settings(), workers=0, checkpoint_every=5), INPUTS)
    assert (work / STAMP).stat().st_mtime_ns == before
    for settings, inputs in ((Settings(epochs=4), INPUTS), (Settings(), [("case00", [10, 20, 31])])):
        with pytest.raises(AutopetError, match="work holds an unfinished training with other cases or settings"):
            claim_work(work, settings, inputs)
    with pytest.raises(AutopetError, match="an unfinished pretraining; finish that"):
        claim_work(work, Settings(), [], what="pretraining")
    assert (work / "checkpoint").exists()


def test_a_folder_of_other_files_is_not_taken(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(AutopetError, match="delete the folder"):
        claim_work(tmp_path, Settings(), INPUTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_leaves_a_folder_that_can_be_claimed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, text: str) -> None:
        path.touch()  # the name is made, the content finds no place
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            claim_work(tmp_path / "work", Settings(), INPUTS)
    (tmp_path / "work" / f".part-0123abcd-{STAMP}").touch()  # of a killed one
    claim_work(tmp_path / "work", Settings(), INPUTS)
    assert [path.name for path in (tmp_path / "work").iterdir()] == [STAMP]


def test_sizes_of_files(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"123")
    assert file_sizes([tmp_path / "a", tmp_path / "a"]) == [3, 3]
    with pytest.raises(AutopetError, match="SEG.nii.gz is missing; convert the study again"):
        file_sizes([tmp_path / "SEG.nii.gz"])


def test_methods_without_torch_can_use_it():
    code = "import sys, autopet.work; assert not {'torch', 'nnunetv2', 'SimpleITK'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_kill_left_of_an_earlier_folder_goes(tmp_path: Path):
    for name in (".old-work-0123abcd", ".old-other-0123abcd"):
        (tmp_path / name / "cases").mkdir(parents=True)
    claim_work(tmp_path / "work", Settings(), INPUTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".old-other-0123abcd", "work"]
