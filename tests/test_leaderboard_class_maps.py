"""Class activation maps beside the masks of a submission, and the run-time options of a trained model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autopet.checkpoint import SUMS, publish_model, read_config, save_weights, sha256
from autopet.cli import app
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.sockets import CT, LESIONS, PET, Inputs
from evaluation.jobs import find_candidates
from leaderboard.class_maps import write_class_maps
from leaderboard.overlay_files import find_maps, find_masks, read_slice
from leaderboard.runner import ORIGIN

torch = pytest.importorskip("torch")

from algorithms.weakcam import predict  # noqa: E402
from algorithms.weakcam.model import CAM_METHODS, METHOD, PRESETS, WEIGHTS, build_network  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(
    PRESETS["demo"], size=32, pixel_mm=4.0, widths=(4, 8), convolutions=(1, 1), pooled_blocks=(1,)
)  # fmt: skip
VALUES = {"t_m": 0.5, "q_m": 40.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Random weights that call every slice positive."""
    torch.manual_seed(3)
    network = build_network(TINY)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(2, 8))

    def fill(folder: Path) -> dict:
        save_weights(folder / WEIGHTS, network.state_dict())
        thresholds = {cam: {"fraction": VALUES, "percentile": VALUES} for cam in CAM_METHODS}
        return {
            "method": METHOD,
            "settings": asdict(TINY),
            "channels": ["CT", "PET"],
            "cam": "cam",
            "reading": "fraction",
            "class_threshold": 0.0,
            "thresholds": thresholds,
        }

    return publish_model(tmp_path / "model", fill)


@pytest.fixture
def submission(cohort: list[Case], tmp_path: Path) -> Path:
    """Masks of two of the cases."""
    for case in cohort[:2]:
        write_image(tmp_path / "masks" / f"{case.name}.nii.gz", read_image(case.mask))
    return tmp_path / "masks"


def test_maps_lie_where_the_overlays_look_for_them(model: Path, submission: Path, cohort: list[Case]):
    paths = write_class_maps("weakcam", model, submission, cohort[:3], cams=["cam", "gradcam++"])
    assert len(paths) == 4  # the third case has no mask
    loaded = predict.load(model, "cpu")
    for case in cohort[:2]:
        found = find_maps(submission, submission / f"{case.name}.nii.gz")
        assert sorted(found) == ["cam", "gradcam++"]
        suv = read_image(case.suv)
        inputs = Inputs({PET.slug: suv, CT.slug: read_image(case.ct)}, case.name)
        expected = predict.map_volumes(loaded, inputs, ["cam"])["cam"]
        assert 0 < expected.array.max() <= 1
        written = read_image(found["cam"])
        assert written.same_grid(suv)
        np.testing.assert_allclose(written.array, expected.array, atol=1e-6)


def test_maps_of_a_submission_of_the_platform_leave_its_masks_alone(model: Path, cohort: list[Case], tmp_path: Path):
    run, jobs = tmp_path / "run", []
    for case in cohort[:3]:
        job = {"pk": f"pk-{case.name}", "status": "Failed" if case is cohort[1] else "Succeeded"}
        job["inputs"] = [{"image": {"name": f"{case.name}.mha"}}]
        jobs.append(job | {"outputs": [{"socket": {"relative_path": LESIONS.relative_path}}]})
        write_image(run / job["pk"] / "output" / LESIONS.relative_path / "x.mha", read_image(case.mask))
    (run / "predictions.json").write_text(json.dumps(jobs))
    before = find_candidates(run)
    paths = write_class_maps("weakcam", model, run, cohort, cams=["cam"])
    assert [path.relative_to(run).as_posix() for path in paths] == [
        "pk-case00/maps/cam_cam.nii.gz", "pk-case02/maps/cam_cam.nii.gz",
    ]  # fmt: skip
    assert find_candidates(run) == before
    view, _ = read_slice(cohort[2], [find_masks("run", run, cohort)])
    assert list(view.guesses[0].maps) == ["cam"]


def test_maps_that_are_there_are_kept(model: Path, submission: Path, cohort: list[Case]):
    (path, *_) = write_class_maps("weakcam", model, submission, cohort[:1], cams=["cam"])
    before = path.stat().st_mtime_ns
    paths = write_class_maps("weakcam", model, submission, cohort[:1], cams=["cam", "gradcam"])
    assert path.stat().st_mtime_ns == before
    assert [found.name for found in paths] == ["cam_cam.nii.gz", "cam_gradcam.nii.gz"]
    assert all(found.is_file() for found in paths)


def test_maps_of_a_model_that_has_changed_are_made_anew(model: Path, submission: Path, cohort: list[Case]):
    made = write_class_maps("weakcam", model, submission, cohort[:1], cams=["cam", "gradcam++"])
    before = {path: read_image(path).array for path in made}

    def fill(folder: Path) -> dict:
        config = read_config(model, method=METHOD)
        torch.manual_seed(8)
        network = build_network(TINY)
        with torch.no_grad():
            network.head.weight.copy_(torch.randn(2, 8))
        save_weights(folder / WEIGHTS, network.state_dict())
        return config

    other = publish_model(model.with_name("other"), fill)
    (path,) = write_class_maps("weakcam", other, submission, cohort[:1], cams=["cam"])
    assert not np.allclose(read_image(path).array, before[path])
    suv, ct = read_image(cohort[0].suv), read_image(cohort[0].ct)
    expected = predict.map_volumes(predict.load(other, "cpu"), Inputs({PET.slug: suv, CT.slug: ct}, "x"), ["cam"])
    np.testing.assert_allclose(read_image(path).array, expected["cam"].array, atol=1e-6)
    assert list(find_maps(submission, submission / f"{cohort[0].name}.nii.gz")) == ["cam"]  # no old one beside it


@pytest.mark.parametrize(("known", "warned"), [("", False), ("0" * 64, True), (None, False)])
def test_masks_of_another_model_are_told(
    model: Path, submission: Path, cohort: list[Case], capsys: pytest.CaptureFixture, known: str | None, warned: bool
):
    """None: of this model."""
    origin = {"entry": "weakcam", "model": sha256(model / SUMS) if known is None else known}
    (submission / ORIGIN).write_text(json.dumps(origin))
    write_class_maps("weakcam", model, submission, cohort[:1], cams=["cam"])
    assert ("its masks are of another model" in " ".join(capsys.readouterr().err.split())) is warned


def test_maps_of_a_case_that_was_converted_anew_are_made_anew(model: Path, submission: Path, cohort: list[Case]):
    (path,) = write_class_maps("weakcam", model, submission, cohort[:1], cams=["cam"])
    case = replace(cohort[0], folder=submission.parent / "anew")
    for image in ("suv", "ct", "mask"):
        volume = read_image(getattr(cohort[0], image))
        write_image(getattr(case, image), replace(volume, array=volume.array[:-2]))
    write_image(submission / f"{case.name}.nii.gz", read_image(case.mask))
    write_class_maps("weakcam", model, submission, [case], cams=["cam"])
    assert read_image(path).same_grid(read_image(case.suv))


@pytest.mark.parametrize("place", ["case00", "case00/maps"])
def test_nothing_is_written_through_a_link(model: Path, submission: Path, cohort: list[Case], place: str):
    assert cohort[0].name == "case00"
    outside = submission.parent / "outside"
    outside.mkdir()
    (submission / place).parent.mkdir(exist_ok=True)
    (submission / place).symlink_to(outside, target_is_directory=True)
    with pytest.raises(AutopetError, match=r"is a link; .* the folder itself"):
        write_class_maps("weakcam", model, submission, cohort[:1], cams=["cam"])
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "cams", "masks", "words"),
    [
        ("threshold", [], "masks", "threshold has no class activation maps"),
        ("weakcam", ["lime"], "masks", "weakcam has no map lime; known are cam, gradcam, gradcam"),
        ("weakcam", [], "model", "has a mask of none of the 2 cases"),
    ],
)
def test_mistakes_are_named(
    model: Path, submission: Path, cohort: list[Case], method: str, cams: list[str], masks: str, words: str
):
    with pytest.raises(AutopetError, match=words):
        write_class_maps(method, model, submission.parent / masks, cohort[:2], cams=cams)


def test_the_commands(model: Path, submission: Path, cohort: list[Case], tmp_path: Path):
    run = CliRunner()
    done = run.invoke(app, ["configure", str(model), "--set", "cam=gradcam", "--set", "class_threshold=0.25"])
    assert done.exit_code == 0, done.output
    assert {key: read_config(model, method=METHOD)[key] for key in ("cam", "class_threshold")} == {
        "cam": "gradcam",
        "class_threshold": 0.25,
    }
    shown = run.invoke(app, ["configure", str(model)]).output
    assert "cam = gradcam, reading = fraction, class_threshold = 0.25" in shown
    options = ["--model", str(model), "--data", str(cohort[0].folder.parent), "--submission", str(submission)]
    done = run.invoke(app, ["maps", "weakcam", *options, "--cam", "cam"])
    assert done.exit_code == 0, done.output
    assert len(list(submission.rglob("cam_cam.nii.gz"))) == 2


def test_a_method_without_options_says_so(tmp_path: Path):
    model = publish_model(tmp_path / "threshold", lambda folder: {"method": "threshold"})
    assert json.loads((model / "config.json").read_text())["method"] == "threshold"
    done = CliRunner().invoke(app, ["configure", str(model)])
    assert isinstance(done.exception, AutopetError)
    assert "threshold has no options of its own" in str(done.exception)
