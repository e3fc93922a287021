"""Weights of other networks: which files are read, what the report says of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from autopet.errors import AutopetError

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import save_file  # noqa: E402

from autopet.pretrained import Report, misfit, read_weights, shape_text, unwrapped  # noqa: E402

WORDS = {"what": "weights of a cat", "give": "a state dict of cats"}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"module.one.weight": torch.arange(6.0).reshape(2, 3), "two": torch.tensor(4)}


@pytest.mark.parametrize("layout", ["plain.pth", "network_weights.pth", "state_dict.pt", "model.pth", "a.safetensors"])
def test_every_kind_of_file_gives_the_tensors_by_their_names(tmp_path: Path, weights, layout: str):
    path = tmp_path / layout
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.stem == "plain":
        torch.save(weights, path)
    else:
        torch.save({"epoch": 3, "best": np.float64(0.5), path.stem: weights}, path)
    found = read_weights(path, **WORDS)
    assert found.keys() == weights.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in weights.items()
    )


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors"])
def test_a_missing_file_says_what_to_give(tmp_path: Path, name: str):
    with pytest.raises(AutopetError, match=f"no weights of a cat at .*{name}; give a state dict of cats"):
        read_weights(tmp_path / name, **WORDS)


@pytest.mark.parametrize("content", [b"\x01" * 40, b"no weights", b""])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(AutopetError, match=r"a\.safetensors: not a whole safetensors file"):
        read_weights(tmp_path / "a.safetensors", **WORDS)
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(AutopetError, match=r"a\.pth: "):
        read_weights(tmp_path / "a.pth", **WORDS)


@pytest.mark.parametrize("content", [{"epoch": 3, "note": "x"}, {"state_dict": 3, "note": "x"}, {"model": {"a": 1.0}}])
def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path, content: dict):
    torch.save(content, tmp_path / "a.pth")
    said = f"alone or below network_weights, state_dict or model, found the keys {', '.join(content)}; give a state"
    with pytest.raises(AutopetError, match=f"expected tensors by name, {said}"):
        read_weights(tmp_path / "a.pth", **WORDS)


def test_nothing_in_the_file_is_run(tmp_path: Path, weights):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": weights, "args": Trap()}, tmp_path / "a.pth")
    with pytest.raises(AutopetError, match="nothing was loaded"):
        read_weights(tmp_path / "a.pth", **WORDS)
    assert not (tmp_path / "sprung").exists()


def test_wrappers_go_however_many_there_are():
    assert unwrapped("module._orig_mod.module.a.weight") == "a.weight"
    assert unwrapped("a.module.weight") == "a.module.weight"  # a part of the network
    assert unwrapped("modules.a") == "modules.a"


def test_why_a_tensor_does_not_fit():
    own = {"a": torch.zeros(4, 2, 3), "one": torch.tensor(1)}
    assert misfit("a", torch.ones(4, 2, 3), own) == ""
    assert misfit("b", torch.ones(4, 2, 3), own) == "not in this network"
    assert misfit("a", torch.ones(4, 6), own) == "of shape 4x6 where the network has 4x2x3"
    assert misfit("one", torch.ones(1), own) == "of shape 1 where the network has one number"
    assert shape_text(torch.zeros(())) == "one number"


def test_a_report_is_in_the_order_of_the_network():
    report = Report.of(iter("abcde"), {"d", "b"}, {"x": "odd", "y": "even", "z": "odd"})
    assert report == Report(("b", "d"), (("x", "odd"), ("y", "even"), ("z", "odd")), ("a", "c", "e"))
    assert report.summary() == (
        "pretrained weights: 2 of 5 tensors loaded; 3 of the file skipped: 2 odd, 1 even; "
        "3 keep their random start: a, c, e"
    )


def test_a_summary_says_only_what_there_is_to_say():
    assert Report(("a",), (), ()).summary() == "pretrained weights: 1 of 1 tensors loaded"
    assert Report((), (), tuple("abcd")).summary().endswith("4 keep their random start: a, b, c, d")
    assert Report((), (), tuple("abcdef")).summary().endswith("6 keep their random start: a, b, c, d and 2 more")


@dataclass(frozen=True)
class Cats(Report):
    title: ClassVar[str] = "weights of a cat"
    breed: str = ""

    def remarks(self) -> list[str]:
        return [f"a {self.breed}"]


def test_a_method_adds_fields_and_remarks():
    report = Cats.of(["a", "b"], ["a"], {}, breed="manx")
    assert asdict(report) == {"loaded": ("a",), "skipped": (), "missing": ("b",), "breed": "manx"}
    assert report.summary() == "weights of a cat: 1 of 2 tensors loaded; a manx; 1 keep their random start: b"
