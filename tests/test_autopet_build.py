from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from autopet import build
from autopet.build import Recipe, requirements
from autopet.checkpoint import publish_model
from autopet.errors import AutopetError


def toy_model(folder: Path) -> dict:
    (folder / "weights").write_bytes(b"1")
    (folder / "weights").chmod(0o600)
    return {"method": "threshold"}


def test_requirements_are_the_method_s_own():
    assert any(line.startswith("nnunetv2") for line in requirements("nnunet"))
    assert not any(line.startswith(("torch", "nnunetv2", "pydicom")) for line in requirements("threshold"))
    with pytest.raises(AutopetError, match="no extra 'volumenet'"):
        requirements("volumenet")


def test_context_holds_one_method_and_nothing_else(tmp_path: Path):
    model = publish_model(tmp_path / "model", toy_model)
    (model / "weights").chmod(0o600)
    with build._context(Recipe("threshold", model=model)) as context:
        code = {path.relative_to(context / "code").as_posix() for path in context.glob("code/**/*.py")}
        assert "baselines/threshold/predict.py" in code
        assert "baselines/__init__.py" in code
        assert "autopet/container.py" in code
        methods = {name.split("/")[1] for name in code if name.startswith(("baselines/", "algorithms/"))}
        assert methods == {"__init__.py", "threshold"}
        assert not any(name.startswith(("data_prep", "evaluation", "leaderboard")) for name in code)
        assert (context / "model/weights").stat().st_mode & 0o777 == 0o644
        assert list((context / "wheelhouse").iterdir()) == [context / "wheelhouse/.keep"]
    assert not context.exists()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose pyproject.toml a test writes; everything else is this one's."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("autopet", "baselines", "algorithms", "docker", "constraints.txt"):
        (root / name).symlink_to(build.REPOSITORY / name)
    monkeypatch.setattr(build, "REPOSITORY", root)
    return root


def write_project(root: Path, **extras: list[str]) -> None:
    lines = [f"{name} = {json.dumps(needs)}" for name, needs in extras.items()]
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["wheel"]\n[project]\nname = "our-bundle"\ndependencies = ["numpy"]\n'
        "[project.optional-dependencies]\n" + "\n".join(lines) + "\n"
    )


def test_an_extra_that_names_others_brings_their_requirements(checkout: Path):
    write_project(
        checkout,
        majority=["our-bundle[threshold, nnunet]", "voting>=1"],
        threshold=[],
        nnunet=["torch>=2", "our-bundle[threshold,speed]", "numpy"],
        speed=["fast[extra]>=2", "our-bundle[majority]"],  # in a circle
        other=["torch>=2", "numpy"],
        again=["numpy", "torch>=2"],
    )
    assert build.extras_of("majority") == ["majority", "threshold", "nnunet", "speed"]
    assert requirements("majority") == ["fast[extra]>=2", "numpy", "torch>=2", "voting>=1", "wheel"]
    assert requirements("other") == requirements("again") == ["numpy", "torch>=2", "wheel"]  # one layer for both
    assert requirements("threshold") == ["numpy", "wheel"]


def test_an_extra_that_names_none_of_ours(checkout: Path):
    write_project(checkout, majority=["our-bundle[threshold,volumenet]"], threshold=[])
    with pytest.raises(AutopetError, match="no extra 'volumenet', which that of 'majority' names"):
        requirements("majority")


def test_an_extra_that_names_others_brings_their_code(checkout: Path):
    write_project(checkout, majority=["our-bundle[threshold,speed]"], threshold=[], speed=["fast"], nnunet=["torch"])
    with build._context(Recipe("majority")) as context:
        folders = {path.parent.relative_to(context / "code").as_posix() for path in context.glob("code/*/*/predict.py")}
        assert folders == {"baselines/threshold", "baselines/majority"}
        assert (context / "code/baselines/__init__.py").is_file()
        assert (context / "requirements.txt").read_text().split() == ["fast", "numpy", "wheel"]


def test_the_vote_s_image_holds_the_methods_that_its_extra_names():
    """Of the real pyproject.toml: whoever writes a method decides there whether it can vote."""
    voters = build.extras_of("majority")[1:]
    assert {"threshold", "nnunet", "unet3d", "lesiontracer"} <= set(voters)
    assert requirements("nnunet") == requirements("lesiontracer")  # so their images share the layer of 1 GB
    for name in voters:
        assert set(requirements(name)) <= set(requirements("majority"))


def test_wheels_are_one_file_under_several_names(tmp_path: Path):
    pool = tmp_path / "pool"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "torch-2-py3-none-any.whl").write_text("big")
        (tmp_path / folder / "local-1-py3-none-any.whl").write_text(f"built for {folder}")
        build._share(tmp_path / folder, pool)
    assert len({(tmp_path / folder / "torch-2-py3-none-any.whl").stat().st_ino for folder in ("a", "b", "pool")}) == 1
    assert (tmp_path / "b/local-1-py3-none-any.whl").read_text() == "built for b"  # other bytes are another wheel
    assert (pool / "local-1-py3-none-any.whl").read_text() == "built for a"
    build._share(tmp_path / "b", pool)
    assert sorted(path.name for path in pool.iterdir()) == ["local-1-py3-none-any.whl", "torch-2-py3-none-any.whl"]


def test_pip_looks_into_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = []

    def pip(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(build.subprocess, "run", pip)
    (tmp_path / "pool").mkdir()
    build.make_wheelhouse("threshold", tmp_path / "wheels", pool=tmp_path / "pool")
    build.make_wheelhouse("threshold", tmp_path / "wheels")
    links = [[after for before, after in pairwise(command) if before == "--find-links"] for command in commands]
    assert links == [[str(tmp_path / "wheels"), str(tmp_path / "pool")], [str(tmp_path / "wheels")]]


def test_evaluation_context():
    with build._context(Recipe("evaluation")) as context:
        assert (context / "code/evaluation/__main__.py").is_file()
        assert not (context / "code/baselines").exists()


def test_wheels_and_certificates_travel(tmp_path: Path):
    (tmp_path / "wheels").mkdir()
    with pytest.raises(AutopetError, match=r"holds no \*.whl; fill it with `autopet wheelhouse"):
        _enter(Recipe("threshold", wheelhouse=tmp_path / "wheels"))
    (tmp_path / "wheels/a-1-py3-none-any.whl").touch()
    (tmp_path / "hospital.pem").write_text("certificate")
    with build._context(
        Recipe("threshold", wheelhouse=tmp_path / "wheels", ca_bundle=tmp_path / "hospital.pem")
    ) as context:
        assert (context / "wheelhouse/a-1-py3-none-any.whl").is_file()
        assert (context / "ca/bundle.crt").read_text() == "certificate"


def _enter(recipe: Recipe) -> None:
    with build._context(recipe):
        pass


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(AutopetError, match="is no model folder"):
        _enter(Recipe("threshold", model=tmp_path))
    with pytest.raises(AutopetError, match="does not exist"):
        _enter(Recipe("threshold", model=tmp_path / "none"))
    with pytest.raises(AutopetError, match="CA bundle .* does not exist"):
        _enter(Recipe("threshold", ca_bundle=tmp_path / "none"))
