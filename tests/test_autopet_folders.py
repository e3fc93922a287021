from __future__ import annotations

import os
from pathlib import Path

import pytest

from autopet.folders import whole_folder


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")
    replace = os.replace

    def fails_for_the_new(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".part-"):
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new)
    with pytest.raises(OSError, match="no"), whole_folder(tmp_path / "model") as part:
        (part / "weights").write_text("new")
    assert (tmp_path / "model/weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
