"""What counts as a method: a package with a predict.py in one of the rooms."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import baselines
from autopet.errors import AutopetError
from autopet.methods import find_method, list_methods


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages are baselines, too."""
    for name, files in {"halfway": ["model.py"], "whole": ["model.py", "predict.py"], "loose": []}.items():
        (tmp_path / name).mkdir()
        for file in ["__init__.py", *files] if name != "loose" else []:
            (tmp_path / name / file).touch()
    (tmp_path / "helpers.py").touch()
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    return tmp_path


def test_only_packages_that_predict_are_methods(room: Path):
    names = list_methods()
    assert {"whole", "threshold", "nnunet", "majority"} <= set(names)
    assert not {"halfway", "loose", "helpers"} & set(names)
    assert find_method("whole").package == "baselines.whole"
    with pytest.raises(AutopetError, match="no method called 'halfway'"):
        find_method("halfway")
    with pytest.raises(AutopetError, match=r"method whole has no train\.py"):
        find_method("whole").module("train")
