"""The command as users call it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from autopet import __version__, cli
from autopet.cohort import Case
from autopet.images import find_images, write_image


def autopet(*arguments: str | Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "COLUMNS": "300"}
    command = [sys.executable, "-m", "autopet.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def predict(folder: Path, out: Path, model: Path) -> subprocess.CompletedProcess:
    options = ("--input", folder, "--output", out, "--model", model, "--engine", "local")
    return autopet("predict", "threshold", *options)


def last_line(done: subprocess.CompletedProcess) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_every_command_has_help_and_an_example():
    commands = get_command(cli.app).commands
    for group in ("weights", "experiment"):
        subcommands = commands.pop(group).commands
        commands |= {f"{group} {name}": command for name, command in subcommands.items()}
    data, methods = "phantom prep collect convert split to-dicom organs", "train predict run wheelhouse build pretrain"
    methods += " configure maps postprocess vote pseudolabel"
    expected = {*f"{data} {methods} evaluate biomarkers leaderboard demo rank explain".split()}
    expected |= {"weights list", "weights fetch", "experiment lesiontracer", "experiment swinmip", "experiment weakcam"}
    assert expected == set(commands)
    for name, command in commands.items():
        assert command.help, name
        assert f"{command.epilog} ".startswith(f"Example: autopet {name} "), name
        for parameter in command.params:
            assert parameter.name == "help" or parameter.help, f"{name} {parameter.name}"


def test_version():
    assert autopet("--version").stdout.strip() == __version__


def test_train_run_evaluate_leaderboard(cohort: list[Case], tmp_path: Path):
    data, run = cohort[0].folder.parent, tmp_path / "run"
    part = ("--split", tmp_path / "split.csv")
    steps = [
        ("split", data, tmp_path / "split.csv", "--test-fraction", "0.4"),
        ("train", "threshold", "--data", data, "--out", tmp_path / "model", *part),
        ("run", "threshold", "--data", data, "--out", run, *part, "--engine", "local", "--model", tmp_path / "model"),
        (
            "evaluate",
            "--ground-truth",
            data,
            "--predictions",
            run,
            *part,
            "--out",
            tmp_path / "results/threshold/metrics.json",
        ),
        ("leaderboard", tmp_path / "results/threshold", "--out", tmp_path / "site"),
    ]
    for step in steps:
        done = autopet(*step)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "results/threshold/metrics.json").read_text())
    assert {"case", "status", "dice", "fpv_ml", "fnv_ml"} <= set(metrics["results"][0])
    assert (tmp_path / "site/index.html").is_file()


@pytest.mark.parametrize(("tracer", "collection"), [("fdg", "FDG-PET-CT-Lesions"), ("psma", "PSMA-PET-CT-Lesions")])
def test_phantom_and_prep(tmp_path: Path, tracer: str, collection: str):
    done = autopet("phantom", tmp_path / "dicom", "--cases", "1", "--tracer", tracer)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((tmp_path / "dicom").iterdir()) if path.is_dir()] == [
        collection,
        "organs",
    ]
    done = autopet("prep", tmp_path / "dicom", tmp_path / "nifti")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 studies converted" in done.stderr
    assert {path.name for path in (tmp_path / "nifti").glob("*/*")} == {
        "CT.nii.gz", "PET.nii.gz", "SUV.nii.gz", "CTres.nii.gz", "SEG.nii.gz", "audit.json", "mip.png"
    }  # fmt: skip


def test_predict_on_one_folder(cohort: list[Case], input_folder: Path, tmp_path: Path):
    model = tmp_path / "model"
    assert autopet("train", "threshold", "--data", cohort[0].folder.parent, "--out", model).returncode == 0
    done = predict(input_folder, tmp_path / "out", model)
    assert done.returncode == 0, done.stderr
    assert find_images(tmp_path / "out/images/automated-petct-lesion-segmentation")[0].name == "ct_name.mha"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prep", "{tmp}", "{tmp}/out"), "error: "),
        (("train", "threshold", "--data", "{tmp}", "--out", "{tmp}/m"), "prep.csv is missing"),
        (("train", "nothing", "--data", "{tmp}", "--out", "{tmp}/m"), "no method called 'nothing'"),
        (("evaluate", "--ground-truth", "{tmp}", "--predictions", "{tmp}", "--out", "{tmp}/m.json"), "error: "),
        (("leaderboard", "{tmp}", "--out", "{tmp}/site"), "error: "),
        (
            ("predict", "threshold", "--input", "{tmp}", "--output", "{tmp}/o", "--engine", "local"),
            "no weights for threshold",
        ),
        (("build", "nothing"), "error: "),
    ],
)
def test_mistakes_are_one_line_and_exit_status_1(arguments: tuple[str, ...], words: str, tmp_path: Path):
    done = autopet(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 1
    assert last_line(done).startswith("error: ")
    assert words in last_line(done)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(cohort: list[Case], tmp_path: Path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "model"
    done = autopet("train", "threshold", "--data", cohort[0].folder.parent, "--out", out)
    assert done.returncode == 1
    assert "Not a directory" in last_line(done)
    assert "Traceback" not in done.stderr


def test_train_refuses_wrong_settings(cohort: list[Case], tmp_path: Path):
    data = cohort[0].folder.parent
    done = autopet("train", "threshold", "--data", data, "--out", tmp_path / "m", "--set", "rulle=fixed")
    assert "unknown setting rulle" in last_line(done)
    done = autopet("train", "threshold", "--data", data, "--out", tmp_path / "m", "--preset", "huge")
    assert "it has paper, demo" in last_line(done)


def test_resampled_ct_is_said(cohort: list[Case], input_folder: Path, tmp_path: Path):
    from dataclasses import replace

    from autopet.images import read_image

    model = tmp_path / "model"
    autopet("train", "threshold", "--data", cohort[0].folder.parent, "--out", model)
    path = find_images(input_folder / "images/ct")[0]
    ct = read_image(path)
    write_image(path, replace(ct, array=ct.array[:-1]))
    done = predict(input_folder, tmp_path / "out", model)
    assert done.returncode == 0
    assert "warning: ct is not on the pet grid" in done.stderr
