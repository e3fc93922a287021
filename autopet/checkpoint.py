"""Model folders that describe themselves: config.json, weights, and SHA256SUMS over both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autopet import __version__
from autopet.errors import AutopetError, one_line
from autopet.folders import remove_leftovers, whole_file, whole_folder

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
SUMS = "SHA256SUMS"
T = TypeVar("T")
Network = TypeVar("Network", bound="torch.nn.Module")


def settings_from_dict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a settings dataclass; unknown keys are errors. Lists become tuples."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise AutopetError(f"{where}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def override(settings: T, assignments: list[str]) -> T:
    """Apply `key=value` texts to a settings dataclass: values in JSON, plain words, or `(8, 8)` and `8,8` for lists."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign:
            raise AutopetError(f"--set expects key=value, found {assignment!r}")
        old = values.get(key)
        new = _value(text, listed=isinstance(old, tuple))
        numeric = isinstance(old, int | float) and not isinstance(old, bool)
        if old is not None and not isinstance(
            new, float | int if numeric else list if isinstance(old, tuple) else type(old)
        ):
            raise AutopetError(f"--set {key}: expected a value like {json.dumps(old)}, found {text!r}")
        values[key] = new
    return settings_from_dict(type(settings), values, "--set")


def _value(text: str, *, listed: bool) -> Any:
    """What a text says; itself where it says nothing else."""
    bare = text.strip().removeprefix("(").removesuffix(")")
    if listed and "," in bare and not bare.startswith("["):
        text = f"[{bare}]"
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(name: str) -> float:
    raise ValueError(name)  # Python's JSON has NaN and Infinity, which pass every `value <= 0`


def publish_model(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Write a model folder that appears whole or not at all.

    `fill` is given an empty folder, writes the weights there and returns what goes into config.json.
    """
    folder = Path(folder).resolve()
    refuse_other_content(folder)
    remove_leftovers(folder.parent, folder.name)
    with whole_folder(folder) as partial:
        config = {"bundle_version": __version__, **fill(partial)}
        _write_config(partial, config)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        _write_sums(partial, {path.relative_to(partial).as_posix(): sha256(path) for path in files})
        open_to_all(partial)
    return folder


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """Change config.json of a model folder and renew its checksum; the folder changes as a whole or not at all.

    Parameters
    ----------
    change : callable
        Is given the configuration and returns the new one.

    Returns
    -------
    dict
        The new configuration.

    Raises
    ------
    AutopetError
        No model there, or a file of it is damaged: a new checksum must not hide that.
    """
    folder = Path(folder).resolve()
    old = load_config(folder)
    verify_sums(folder)
    new = dict(change(json.loads(json.dumps(old))))
    if new == old:
        return new
    sums = {name: digest for digest, name in _read_sums(folder)}
    with whole_folder(folder) as partial:
        shutil.copytree(folder, partial, copy_function=link_or_copy, dirs_exist_ok=True)
        for name in (CONFIG, SUMS):  # these two are links to the old files, which stay what they are until the end
            (partial / name).unlink()
        _write_config(partial, new)
        _write_sums(partial, sums | {CONFIG: sha256(partial / CONFIG)})
        open_to_all(partial)
    return new


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file that is never changed in place (weights, wheels); a copy where no link can be made."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy(source, target)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """`sums` are the checksums by file name."""
    (folder / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def _read_sums(folder: Path) -> list[tuple[str, str]]:
    """(checksum, file name) of every line of SHA256SUMS."""
    path = folder / SUMS
    if not path.is_file():
        raise AutopetError(f"{path} is missing; the model folder is incomplete, copy or train it again")
    parts = [line.partition("  ") for line in path.read_text().splitlines()]
    return [(digest, name) for digest, _, name in parts]


def refuse_other_content(folder: Path) -> None:
    """A folder that holds anything but a model is not replaced by one."""
    if folder.is_dir() and any(folder.iterdir()) and not ((folder / CONFIG).is_file() and (folder / SUMS).is_file()):
        raise AutopetError(f"{folder} holds other files; choose a new folder for the model")


def open_to_all(folder: Path) -> None:
    """Let every user read a folder: a container's user is not the one who trained (safetensors writes mode 0600)."""
    for path in [folder, *folder.rglob("*")]:
        mode, least = stat.S_IMODE(path.stat().st_mode), 0o755 if path.is_dir() else 0o644
        if mode & least != least:  # what is open already may be a link to another's file, whose mode is not ours
            path.chmod(least)


def read_config(folder: Path, *, method: str, needs: Iterable[str] = ()) -> dict[str, Any]:
    """config.json of a model folder, after checking that it belongs to `method` and that every file is intact.

    Parameters
    ----------
    needs : names
        What must stand in it.

    Raises
    ------
    AutopetError
        No model there, another method's model, a file whose checksum differs, or something that is needed is missing.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise no_weights(folder, method)
    config = load_config(Path(folder))
    if config.get("method") != method:
        raise AutopetError(f"{path}: a model of method {config.get('method')!r}, expected {method!r}")
    verify_sums(Path(folder))
    if lost := sorted(set(needs) - set(config)):
        raise AutopetError(f"{path} lacks {', '.join(lost)}; train or copy the model again")
    return config


def no_weights(folder: Path, method: str) -> AutopetError:
    """The error of a method without a model folder."""
    missing = Path(folder) / CONFIG
    return AutopetError(
        f"no weights for {method}: {missing} is missing; train it, mount a model at {folder}, or bake one in"
    )


def load_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder of any method, unchecked otherwise."""
    path = folder / CONFIG
    if not path.is_file():
        raise AutopetError(f"{folder} is no model folder: {CONFIG} is missing; train with `autopet train` first")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AutopetError(f"{path}: not valid JSON ({error}); train or copy the model again") from error
    if not isinstance(config, dict):
        raise AutopetError(f"{path}: expected a JSON object; train or copy the model again")
    return config


def verify_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files of a model folder with SHA256SUMS: all that it names, or those of `names` alone.

    Raises
    ------
    AutopetError
        A file is not there, or differs; SHA256SUMS is missing, or does not name one of `names`.
    """
    folder, sums = Path(folder), _read_sums(Path(folder))
    wanted = {name for _, name in sums} if names is None else set(names)
    unknown = sorted(wanted - {name for _, name in sums})
    if unknown:
        raise AutopetError(
            f"weights missing: {folder / unknown[0]} is not named in {SUMS}; copy or train the model again"
        )
    for expected, name in sums:
        if name not in wanted:
            continue
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


# Weights; torch and safetensors are not there for methods without a network


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a state dict as safetensors; the file appears whole or not at all."""
    from safetensors.torch import save_file

    with whole_file(path) as part:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, part)


def load_weights(network: Network, path: Path, *, what: str) -> Network:
    """Give a network the weights of a safetensors file, in evaluation mode.

    Parameters
    ----------
    what : str
        Whose weights these should be, for the error: `the network that config.json describes`.

    Raises
    ------
    AutopetError
        The file is missing or damaged, or holds the weights of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, OSError, json.JSONDecodeError) as error:
        raise AutopetError(
            f"{path} does not hold the weights of {what} ({one_line(error)[:200]}); train or copy the model again"
        ) from error
    return network.eval()
