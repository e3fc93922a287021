"""Model folders that describe themselves: config.json, weights, and SHA256SUMS over both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from autopet import __version__
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, whole_folder

CONFIG = "config.json"
SUMS = "SHA256SUMS"
T = TypeVar("T")


def settings_from_dict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a settings dataclass; unknown keys are errors. Lists become tuples."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise AutopetError(f"{where}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def override(settings: T, assignments: list[str]) -> T:
    """Apply `key=value` texts (values in JSON, or plain words) to a settings dataclass."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign:
            raise AutopetError(f"--set expects key=value, found {assignment!r}")
        try:
            new = json.loads(text)
        except json.JSONDecodeError:
            new = text
        old = values.get(key)
        numeric = isinstance(old, int | float) and not isinstance(old, bool)
        if old is not None and not isinstance(
            new, float | int if numeric else list if isinstance(old, tuple) else type(old)
        ):
            raise AutopetError(f"--set {key}: expected a value like {old!r}, found {text!r}")
        values[key] = new
    return settings_from_dict(type(settings), values, "--set")


def publish_model(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Write a model folder that appears whole or not at all.

    `fill` is given an empty folder, writes the weights there and returns what goes into config.json.
    """
    folder = Path(folder).resolve()
    refuse_other_content(folder)
    remove_leftovers(folder.parent, folder.name)
    with whole_folder(folder) as partial:
        config = {"bundle_version": __version__, **fill(partial)}
        (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = [f"{sha256(path)}  {path.relative_to(partial).as_posix()}" for path in files]
        (partial / SUMS).write_text("\n".join(sums) + "\n")
        open_to_all(partial)
    return folder


def refuse_other_content(folder: Path) -> None:
    """A folder that holds anything but a model is not replaced by one."""
    if folder.is_dir() and any(folder.iterdir()) and not ((folder / CONFIG).is_file() and (folder / SUMS).is_file()):
        raise AutopetError(f"{folder} holds other files; choose a new folder for the model")


def open_to_all(folder: Path) -> None:
    """Let every user read a folder: a container's user is not the one who trained (safetensors writes mode 0600)."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def read_config(folder: Path, *, method: str) -> dict[str, Any]:
    """config.json of a model folder, after checking that it belongs to `method` and that every file is intact.

    Raises
    ------
    AutopetError
        No model there, another method's model, or a file whose checksum differs.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise AutopetError(
            f"no weights for {method}: {path} is missing; train it, mount a model at {folder}, or bake one in"
        )
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AutopetError(f"{path}: not valid JSON ({error}); train or copy the model again") from error
    if config.get("method") != method:
        raise AutopetError(f"{path}: a model of method {config.get('method')!r}, expected {method!r}")
    verify_sums(Path(folder))
    return config


def verify_sums(folder: Path) -> None:
    """Compare every file named in SHA256SUMS with its checksum."""
    sums = folder / SUMS
    if not sums.is_file():
        raise AutopetError(f"{sums} is missing; the model folder is incomplete, copy or train it again")
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise AutopetError(f"weights missing: {path} is named in {SUMS} but not there; copy the model again")
        if sha256(path) != expected:
            raise AutopetError(
                f"{path}: checksum differs from {SUMS}; the file is damaged, copy or train the model again"
            )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
