"""What counts as a method: a package with a predict.py in one of the rooms."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
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


NOT_OF_NNUNET = ("monai", "pydicom", "highdicom", "docker", "distributed")  # and the rest comes with it
HEAVY = ("torch", "nnunetv2", "scipy", "pandas", "skimage", "sklearn", "matplotlib", "PIL", "jinja2", *NOT_OF_NNUNET)
EXTRAS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", [name for name in list_methods() if name != "majority"])  # which has all of them
def test_a_container_has_what_its_method_imports(name: str):
    """The image of a method holds the packages of its extra alone."""
    brought = {re.split(r"[^\w-]", requirement)[0] for requirement in EXTRAS[name]}
    absent = NOT_OF_NNUNET if "nnunetv2" in brought else HEAVY
    blocked = [package for package in absent if package not in brought]
    code = f"import sys; sys.modules |= dict.fromkeys({blocked}); import {find_method(name).package}.predict"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
