"""Loading PyTorch checkpoints of other people without running their code.

A `.pth` file is a pickle, and a pickle may call any function of the machine that opens it. `torch.load` with
`weights_only` builds tensors and plain Python values alone; nnU-Net's checkpoints hold NumPy scalars besides (the
losses in `logging`, `_best_ema`), which torch >= 2.6 refuses by default. `safe_load` allows those, and nothing more.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopet.errors import AutopetError, one_line

# NumPy 2 moved its C functions to numpy._core; files keep the name of the NumPy that wrote them.
SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
SCALAR_KINDS = "biufc"  # truth values and numbers: dtype kinds whose scalars are their bytes and nothing else
HEAD_BYTES = 512
GLOBAL = re.compile(r"GLOBAL (\S+)")  # in the message of torch's unpickler


def safe_load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint whose pickle may name only tensors, plain Python values and NumPy's numbers.

    Parameters
    ----------
    path : Path
        A file of `torch.save` (torch 1.x or 2.x, both file formats), such as nnU-Net's `checkpoint_final.pth`.
    device : str or torch.device
        Where the tensors go.

    Returns
    -------
    dict
        What was saved; for nnU-Net network_weights, optimizer_state, grad_scaler_state, logging, _best_ema,
        current_epoch, init_args, trainer_name and inference_allowed_mirroring_axes.

    Raises
    ------
    AutopetError
        No such file; not a checkpoint, or a damaged one; a pickle that names anything else; not a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise AutopetError(f"no checkpoint at {path}; give the path of a .pth file")
    _check_kind(path)
    try:
        with torch.serialization.safe_globals(_allowed()):
            found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise AutopetError(_refusal(path, error)) from error
    except MemoryError:
        raise
    except Exception as error:  # damage shows as struct.error, EOFError, KeyError, RuntimeError ...
        raise AutopetError(
            f"{path}: not a whole PyTorch checkpoint ({one_line(error)[:200]}); download or copy the file again"
        ) from error
    if not isinstance(found, dict):
        raise AutopetError(
            f"{path}: expected a checkpoint, that is a dictionary with weights, found {type(found).__name__};"
            " give the file that the training wrote"
        )
    return found


def _allowed() -> list[Any]:
    """What nnU-Net's checkpoints hold beyond torch's own list, each with the name that the pickle gives it."""
    dtype_classes = {type(np.dtype(code)) for kind in SCALAR_KINDS for code in np.typecodes["All"] if _is(code, kind)}
    return [
        *((_number, name) for name in SCALAR_NAMES),
        (np.dtype, "numpy.dtype"),
        *((kind, f"{kind.__module__}.{kind.__qualname__}") for kind in sorted(dtype_classes, key=str)),
    ]


def _is(code: str, kind: str) -> bool:
    return np.dtype(code).kind == kind


def _number(dtype: np.dtype, content: bytes = b"") -> np.generic:
    """NumPy's own `multiarray.scalar`, for numbers only (with dtype object it passes any object on)."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in SCALAR_KINDS or dtype.fields is not None:
        raise pickle.UnpicklingError(f"Unsupported NumPy scalar of type {dtype!r}: only numbers are expected")
    return np.frombuffer(content, dtype, count=1)[0]


def _check_kind(path: Path) -> None:
    """Say what a file is that is not a checkpoint; torch's own errors would send the reader the wrong way."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    text = head.lstrip().lower()
    what = ""
    if not head:
        what = "the file is empty; download or copy it again"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        what = "a web page, not a checkpoint (a login or error page was saved?); download the file again"
    elif text.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the checkpoint itself; fetch it with git lfs pull"
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        what = "a safetensors file, not a PyTorch checkpoint; load it with safetensors, it holds no code"
    elif head.startswith(b"PK") and not zipfile.is_zipfile(path):
        what = "the end of the file is missing; download or copy it again"
    elif head.startswith(b"\x1f\x8b"):
        what = "a gzip archive, not a checkpoint; unpack it first"
    if what:
        raise AutopetError(f"{path}: {what}")


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """The error for a pickle that torch would not open: with the name it asked for, or as damaged."""
    message = str(error)
    if match := GLOBAL.search(message):
        return (
            f"{path}: wants to load {match[1]}, which is not part of a checkpoint's weights, so nothing was loaded:"
            " opening it could run any program. If you trust who made it, load it yourself with torch.load(...,"
            " weights_only=False) where nothing can be lost, and save the weights alone with torch.save"
        )
    reason = one_line(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0].strip()
    reason = (reason or one_line(error))[:200]
    return (
        f"{path}: expected tensors, numbers and plain Python values, found something else, or damage ({reason});"
        " download or copy the file again, or ask its authors for the weights alone"
    )
