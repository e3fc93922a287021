from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from evaluation import container
from evaluation.container import evaluate_in_container
from evaluation.previews import Preview, write_preview


def test_what_is_mounted_and_what_comes_back(cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def run(image: str, folder: Path, output: Path, *, mounts, command, limits):
        seen.update(image=image, command=command)
        seen["files"] = {where: sorted(path.name for path in place.iterdir()) for where, place in mounts.items()}
        (output / "previews").mkdir(parents=True)
        (output / "previews/case01.npz").write_bytes(b"x")
        (output / "metrics.json").write_text('{"results": []}')

    monkeypatch.setattr(container, "run_container", run)
    (tmp_path / "run").mkdir()
    out = tmp_path / "results/metrics.json"
    data = cohort[0].folder.parent
    found = evaluate_in_container("image:1", data, tmp_path / "run", out, options=["--edition", "I"], cases=["case01"])
    assert found == json.loads(out.read_text()) == {"results": []}
    assert (out.parent / "previews/case01.npz").is_file()
    assert seen["command"] == ["--edition", "I"]
    assert seen["files"] == {
        "/opt/ml/input/data/ground_truth": ["case01.nii.gz", "cases.csv"],
        "/opt/ml/input/data/images": ["case01.nii.gz"],
    }


def test_earlier_previews_go(cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(image: str, folder: Path, output: Path, *, mounts, command, limits):
        output.mkdir()
        (output / "metrics.json").write_text("{}")

    monkeypatch.setattr(container, "run_container", run)
    mask = np.ones((2, 3), bool)
    earlier = write_preview(tmp_path / "previews/case00.npz", Preview(mask, mask, (1.0, 1.0)))
    (tmp_path / "run").mkdir()
    evaluate_in_container("image:1", cohort[0].folder.parent, tmp_path / "run", tmp_path / "metrics.json")
    assert not earlier.parent.exists()


def test_links_in_predictions_are_refused(cohort: list[Case], tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/case00.nii.gz").symlink_to(cohort[0].mask)
    with pytest.raises(AutopetError, match=r"case00.nii.gz is a link"):
        evaluate_in_container("image:1", cohort[0].folder.parent, tmp_path / "run", tmp_path / "m.json")
