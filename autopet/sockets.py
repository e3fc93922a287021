"""Sockets: what a method reads from /input and writes to /output, declared once in its predict.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.images import find_images, image_stem, read_image, write_image
from autopet.volume import Volume, overlap_mm, resample

INPUTS_JSON = "inputs.json"


@dataclass(frozen=True)
class Socket:
    """One input or output of an algorithm.

    Parameters
    ----------
    slug : str
        The platform's name of the socket; how a method's code refers to the value.
    relative_path : str
        Folder (images) or file (values) below /input or /output. For inputs it is the default that
        /input/inputs.json overrules.
    kind : str
        `image`, `mask` or `json`.
    fill : float
        For images: the value outside the field of view, should the image need resampling.
    fallback : JSON value
        For values: what is written when a method is not ready in time. Masks are empty then.
    """

    slug: str
    relative_path: str
    kind: str = "image"
    fill: float = 0.0
    fallback: Any = None


PET = Socket("pet", "images/pet")  # SUV
CT = Socket("ct", "images/ct", fill=-1024.0)  # HU
LESIONS = Socket("automated-petct-lesion-segmentation", "images/automated-petct-lesion-segmentation", kind="mask")
DATA_CENTRIC = Socket("data-centric-model", "data-centric-model.json", kind="json", fallback=False)  # edition III


@dataclass(frozen=True)
class Inputs:
    """The input images of one case on one grid, by slug; the output's file name; what had to be mended."""

    images: Mapping[str, Volume]
    stem: str
    warnings: tuple[str, ...] = ()

    def __getitem__(self, slug: str) -> Volume:
        return self.images[slug]


def read_inputs(folder: Path, sockets: tuple[Socket, ...]) -> Inputs:
    """Read every input socket of a case and bring all images onto the grid of the first one.

    Parameters
    ----------
    folder : Path
        /input: with inputs.json its `relative_path` entries say where to look, else the sockets' own folders.
    sockets : tuple of Socket
        The first (the PET) sets the grid. The last (the CT, in the official baselines) names the output file.

    Raises
    ------
    AutopetError
        Missing folder or image, two files in one socket, a file that is no 3D image, NaN or infinite voxels,
        or images that do not overlap in space.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise AutopetError(
            f"{folder} is empty or missing; mount a folder that holds {sockets[0].relative_path}/<name>.mha"
        )
    paths = {socket.slug: _single_image(folder / where, socket) for socket, where in _locations(folder, sockets)}
    images = {slug: _finite(read_image(path), path) for slug, path in paths.items()}
    grid = images[sockets[0].slug]
    warnings = []
    for socket in sockets[1:]:
        difference = grid.grid_difference(images[socket.slug])
        if difference:
            _refuse_apart(images[socket.slug], grid, socket, sockets[0])
            warnings.append(f"{socket.slug} is not on the {sockets[0].slug} grid ({difference}); resampled, linear")
            images[socket.slug] = resample(images[socket.slug], grid, fill=socket.fill)
    return Inputs(images, image_stem(paths[sockets[-1].slug]), tuple(warnings))


def _locations(folder: Path, sockets: tuple[Socket, ...]) -> list[tuple[Socket, str]]:
    listing = folder / INPUTS_JSON
    if not listing.is_file():
        return [(socket, socket.relative_path) for socket in sockets]
    try:
        entries = json.loads(listing.read_text())
        # the same object under two names: old files know only `interface`, new ones may know only `socket`
        known = [entry.get("socket") or entry["interface"] for entry in entries]
        paths = {entry["slug"]: entry["relative_path"] for entry in known}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AutopetError(
            f"{listing}: expected a list of objects with socket.slug and socket.relative_path ({error!r})"
        ) from error
    return [(socket, _match(paths, socket, listing)) for socket in sockets]


def _match(paths: dict[str, str], socket: Socket, listing: Path) -> str:
    """By slug, by the default path, or by the slug with `-image` behind it."""
    where = paths.get(socket.slug) or paths.get(f"{socket.slug}-image")
    if where is None and socket.relative_path in paths.values():
        where = socket.relative_path
    if where is None:
        raise AutopetError(f"{listing} names no socket {socket.slug!r}; it has {', '.join(sorted(paths)) or 'none'}")
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise AutopetError(
            f"{listing}: socket {socket.slug!r} has relative_path {where!r}, which leaves the input folder"
        )
    return where


def _single_image(folder: Path, socket: Socket) -> Path:
    found = find_images(folder) if folder.is_dir() else []
    if not found:
        raise AutopetError(f"no {socket.slug.upper()} image: expected exactly one .mha in {folder}, found none")
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise AutopetError(
            f"expected exactly one {socket.slug.upper()} image in {folder}, found {len(found)} ({names}); keep one"
        )
    return found[0]


def _finite(volume: Volume, path: Path) -> Volume:
    bad = 0 if volume.array.dtype.kind in "iub" else int(np.count_nonzero(~np.isfinite(volume.array)))
    if bad:
        raise AutopetError(f"{path}: {bad} voxels are NaN or infinite; convert the study again or fill them")
    return volume


def _refuse_apart(image: Volume, grid: Volume, socket: Socket, reference: Socket) -> None:
    if min(overlap_mm(image, grid)) <= 0:
        raise AutopetError(
            f"{socket.slug} and {reference.slug} do not overlap in space; are they of the same patient and study?"
        )


def fallback_outputs(sockets: tuple[Socket, ...], inputs: Inputs) -> dict[str, Any]:
    """Outputs of a method that was not ready: empty masks on the input grid, and the sockets' own values."""
    grid = next(iter(inputs.images.values()))
    empty = grid.with_array(np.zeros(grid.shape, np.uint8))
    return {socket.slug: empty if socket.kind == "mask" else socket.fallback for socket in sockets}


def write_outputs(folder: Path, sockets: tuple[Socket, ...], outputs: Mapping[str, Any], inputs: Inputs) -> list[Path]:
    """Check all outputs against their sockets, then write them; nothing is written when one is wrong."""
    grid = next(iter(inputs.images.values()))
    for socket in sockets:
        if socket.slug not in outputs:
            raise AutopetError(
                f"the method returned no output {socket.slug!r}; it returned {', '.join(outputs) or 'nothing'}"
            )
        if socket.kind == "mask":
            _check_mask(outputs[socket.slug], grid, socket)
    written: list[Path] = []
    try:
        for socket in sockets:
            written.append(_write(folder, socket, outputs[socket.slug], inputs.stem))
    except BaseException:  # a full disk, say: half of the outputs is no output
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def _write(folder: Path, socket: Socket, value: Any, stem: str) -> Path:
    path = folder / socket.relative_path
    if socket.kind == "json":
        with whole_file(path) as part:
            part.write_text(json.dumps(value) + "\n")
        return path
    for stale in find_images(path) if path.is_dir() else []:  # exactly one image per socket, also on a second run
        stale.unlink()
    return write_image(path / f"{stem}.mha", value)


def _check_mask(mask: Volume, grid: Volume, socket: Socket) -> None:
    difference = grid.grid_difference(mask)
    if difference:
        raise AutopetError(f"the method's output {socket.slug!r} is not on the input grid: {difference}")
    if mask.array.dtype not in (np.uint8, bool) or (mask.array > 1).any():
        raise AutopetError(
            f"the method's output {socket.slug!r} must be a mask of 0 and 1 (uint8), found {mask.array.dtype}"
        )
