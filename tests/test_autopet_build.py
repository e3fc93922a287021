from __future__ import annotations

from pathlib import Path

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
        assert not any("nnunet" in name or "data_prep" in name for name in code)
        assert (context / "model/weights").stat().st_mode & 0o777 == 0o644
        assert list((context / "wheelhouse").iterdir()) == [context / "wheelhouse/.keep"]
    assert not context.exists()


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
