from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopet import checkpoint
from autopet.checkpoint import (
    link_or_copy,
    override,
    publish_model,
    read_config,
    rewrite_config,
    settings_from_dict,
    verify_sums,
)
from autopet.errors import AutopetError


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    rate: float = 0.1
    patch: tuple = (4, 4)
    rule: str = "a"
    mirror: bool = True


def fill(folder: Path) -> dict:
    (folder / "weights.bin").write_bytes(b"123")
    (folder / "weights.bin").chmod(0o600)
    return {"method": "toy"}


def test_published_model_is_read_back_and_open_to_all(tmp_path: Path):
    folder = publish_model(tmp_path / "m", fill)
    assert read_config(folder, method="toy")["method"] == "toy"
    # a container's user is another one than who trained: mode 0600 made `load` fail inside the image
    assert {path.stat().st_mode & 0o444 for path in folder.iterdir()} == {0o444}


def test_a_failed_fill_leaves_the_old_model(tmp_path: Path):
    publish_model(tmp_path / "m", fill)

    def broken(folder: Path) -> dict:
        (folder / "weights.bin").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_model(tmp_path / "m", broken)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    read_config(tmp_path / "m", method="toy")


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path):
    (tmp_path / "m").mkdir()
    publish_model(tmp_path / "m", fill)  # an empty folder is fine
    publish_model(tmp_path / "m", fill)  # and so is an older model
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.txt").write_text("years")
    with pytest.raises(AutopetError, match="holds other files"):
        publish_model(tmp_path / "work", fill)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.txt"]


def test_damage_is_named(tmp_path: Path):
    folder = publish_model(tmp_path / "m", fill)
    with pytest.raises(AutopetError, match="expected 'other'"):
        read_config(folder, method="other")
    (folder / "weights.bin").write_bytes(b"124")
    with pytest.raises(AutopetError, match=r"weights.bin: checksum differs"):
        read_config(folder, method="toy")
    (folder / "weights.bin").unlink()
    with pytest.raises(AutopetError, match="weights missing"):
        read_config(folder, method="toy")
    with pytest.raises(AutopetError, match="no weights for toy"):
        read_config(tmp_path / "none", method="toy")
    (folder / "config.json").write_text("{")
    with pytest.raises(AutopetError, match="not valid JSON"):
        read_config(folder, method="toy")


def test_some_files_are_compared_and_the_others_not_even_read(tmp_path: Path):
    def two(folder: Path) -> dict:
        for name in ("one.bin", "two.bin"):
            (folder / name).write_bytes(b"123")
        return {"method": "toy"}

    folder = publish_model(tmp_path / "m", two)
    (folder / "two.bin").unlink()
    verify_sums(folder, ["one.bin", "config.json"])
    verify_sums(folder, [])
    for names in (["one.bin", "two.bin"], None):
        with pytest.raises(AutopetError, match=r"two.bin is named in SHA256SUMS but not there"):
            verify_sums(folder, names)
    (folder / "two.bin").write_bytes(b"124")
    verify_sums(folder, iter(["one.bin"]))
    for names in (["two.bin"], None):
        with pytest.raises(AutopetError, match=r"two.bin: checksum differs"):
            verify_sums(folder, names)
    (folder / "three.bin").touch()
    with pytest.raises(AutopetError, match=r"weights missing: .*three.bin is not named in SHA256SUMS"):
        verify_sums(folder, ["three.bin"])
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(AutopetError, match="SHA256SUMS is missing"):
        verify_sums(folder, [])


def test_unknown_settings_are_errors():
    assert settings_from_dict(Settings, {"patch": [1, 2]}, "x") == Settings(patch=(1, 2))
    with pytest.raises(AutopetError, match="unknown setting epoch;"):
        settings_from_dict(Settings, {"epoch": 1}, "x")


def test_override_parses_and_checks():
    changed = override(Settings(), ["epochs=7", "rate=1", "patch=[8, 8]", "rule=b", "mirror=false"])
    assert changed == Settings(7, 1, (8, 8), "b", False)
    wrong_values = ("epochs=many", "patch=3", "mirror=no", "rate=NaN", "rate=-Infinity", "patch=4,NaN")
    for wrong in (*wrong_values, "epochs", "epoch=1"):
        with pytest.raises(AutopetError):
            override(Settings(), [wrong])


@pytest.mark.parametrize("text", ["[8, 6]", "(8, 6)", "8,6"])
def test_override_takes_a_tuple_as_people_write_it(text: str):
    assert override(Settings(), [f"patch={text}"]).patch == (8, 6)


def test_override_names_a_form_that_it_takes():
    with pytest.raises(AutopetError, match=r"--set patch: expected a value like \[4, 4\], found 'four'") as caught:
        override(Settings(), ["patch=four"])
    example = str(caught.value).partition("like ")[2].partition(", found")[0]
    assert override(Settings(), [f"patch={example}"]) == Settings()


def test_config_is_plain_json(tmp_path: Path):
    config = json.loads((publish_model(tmp_path / "m", fill) / "config.json").read_text())
    assert set(config) == {"method", "bundle_version"}


def test_a_changed_config_has_its_checksum(tmp_path: Path):
    folder = publish_model(tmp_path / "m", fill)
    weights = (folder / "weights.bin").stat()
    new = rewrite_config(folder, lambda config: {**config, "postprocessing": {"min_suv": 1}})
    assert new == read_config(folder, method="toy")
    assert new["postprocessing"] == {"min_suv": 1}
    assert (folder / "weights.bin").stat().st_ino == weights.st_ino  # gigabytes of weights are not copied
    assert {path.stat().st_mode & 0o444 for path in folder.iterdir()} == {0o444}
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "config.json", "weights.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_config_that_stays_is_not_written(tmp_path: Path):
    folder = publish_model(tmp_path / "m", fill)
    before = (folder / "config.json").stat()
    rewrite_config(folder, lambda config: config)
    after = (folder / "config.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_change_that_fails_leaves_the_old_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = publish_model(tmp_path / "m", fill)
    before = (folder / "config.json").read_bytes(), (folder / "SHA256SUMS").read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "_write_sums", full)
    with pytest.raises(OSError, match="disk full"):
        rewrite_config(folder, lambda config: {**config, "new": 1})
    assert ((folder / "config.json").read_bytes(), (folder / "SHA256SUMS").read_bytes()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_new_checksum_never_hides_damage(tmp_path: Path):
    folder = publish_model(tmp_path / "m", fill)
    (folder / "weights.bin").write_bytes(b"124")
    with pytest.raises(AutopetError, match=r"weights.bin: checksum differs"):
        rewrite_config(folder, lambda config: {**config, "new": 1})
    with pytest.raises(AutopetError, match="is no model folder"):
        rewrite_config(tmp_path, lambda config: config)


def test_the_mode_of_another_s_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A vote links the files of models that may be a colleague's: their mode is not ours to set."""
    theirs = tmp_path / "weights.bin"
    theirs.write_bytes(b"123")
    theirs.chmod(0o664)
    chmod = Path.chmod

    def refused(path: Path, mode: int) -> None:
        if path.stat().st_ino == theirs.stat().st_ino:
            raise PermissionError(1, "Operation not permitted")
        chmod(path, mode)

    monkeypatch.setattr(checkpoint.Path, "chmod", refused)

    def linked(folder: Path) -> dict:
        link_or_copy(theirs, folder / "weights.bin")
        return {"method": "toy"}

    read_config(publish_model(tmp_path / "m", linked), method="toy")
    assert theirs.stat().st_mode & 0o777 == 0o664


def test_a_link_where_one_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_text("weights")
    (tmp_path / "name").symlink_to(tmp_path / "a")
    link_or_copy(tmp_path / "name", tmp_path / "b")
    assert (tmp_path / "b").stat().st_ino == (tmp_path / "a").stat().st_ino
    assert not (tmp_path / "b").is_symlink()

    def other_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(checkpoint.os, "link", other_device)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "weights"
    assert (tmp_path / "c").stat().st_ino != (tmp_path / "a").stat().st_ino
