"""Which prediction belongs to which ground truth: the platform's predictions.json, or a plain folder of masks."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError, one_line
from autopet.images import image_stem, is_image
from evaluation.aggregate import NAME_CHARACTERS, printable
from evaluation.statuses import FAILED, MISSING, REFUSED
from evaluation.truths import Truth

JOBS_FILE = "predictions.json"
FOUND = "found"
CHANNEL_SUFFIX = re.compile(r"_000[01]$")  # nnU-Net's channel numbers, which organisers' uploads often keep
STEP_FOLDER = re.compile(r"step(\d+)")
MASK_SUFFIXES = (".mha", ".nii.gz", ".nii")  # formats whose header and voxels lie in one file
MHA_DATA_FIELD = b"ElementDataFile"
MHA_LOCAL = re.compile(MHA_DATA_FIELD + rb"[ \t]*=[ \t]*LOCAL[ \t]*\r?\n")
HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Candidate:
    """A prediction before it is matched.

    `names` are the case names that it may go by, the best first; a level holds names of equal standing. `path`
    is None, and `reason` says why, unless `status` is 'found'.
    """

    label: str
    names: tuple[tuple[str, ...], ...]
    path: Path | None = None
    status: str = FOUND
    reason: str = ""


@dataclass(frozen=True)
class Pair:
    """A ground-truth case and what was predicted for it; `status` is 'found', 'missing', 'failed' or 'refused'.

    With interactive steps `prediction` is that of the last step, and `earlier` holds those of the steps before it.
    """

    truth: Truth
    prediction: Path | None
    status: str
    reason: str
    earlier: tuple[Path | None, ...] = ()


@dataclass(frozen=True)
class Pairing:
    """One pair for every ground-truth case, and the predictions that belong to none, with the reason."""

    pairs: tuple[Pair, ...]
    unmatched: tuple[dict[str, str], ...]
    notes: tuple[str, ...]


def find_candidates(folder: Path) -> list[Candidate]:
    """All predictions of a submission, from predictions.json where there is one, else from the folder's masks.

    The folder is a participant's: links are refused, not followed, and so are files whose voxels lie elsewhere. What
    is no prediction (a job that is no object, a predictions.json that is no JSON, an empty folder) comes back as a
    candidate without names, which says why; only a missing folder is an error.
    """
    if not folder.is_dir():
        raise AutopetError(f"{folder}: no such folder of predictions")
    root = folder.resolve()
    if (root / JOBS_FILE).is_file():
        candidates = _of_jobs(root)
    else:
        masks = sorted(path for path in root.iterdir() if is_image(path))
        candidates = [_checked(root, path, label=path.name, names=((image_stem(path),),)) for path in masks]
        candidates = candidates or [_unusable("the submission", "the folder holds no masks <case>.nii.gz or .mha")]
    return [_printable(candidate) for candidate in candidates]


def _printable(candidate: Candidate) -> Candidate:
    """Labels and reasons end up in files, terminals and pages; path and names stay what they are, to be matched."""
    label = printable(candidate.label, limit=NAME_CHARACTERS)
    return replace(candidate, label=label, reason=printable(candidate.reason))


def _unusable(label: str, reason: str) -> Candidate:
    return Candidate(label, (), None, REFUSED, reason)


def find_steps(folder: Path) -> list[Path]:
    """Folders `step00`, `step01`, ... of a submission with interactive steps, the one without clicks first.

    Each holds what `find_candidates` reads. The list is empty when there are no such folders; a gap is an error.
    """
    if not folder.is_dir() or (folder / JOBS_FILE).is_file():
        return []
    found = {int(match[1]): path for path in sorted(folder.iterdir()) if (match := STEP_FOLDER.fullmatch(path.name))}
    linked = [path for path in found.values() if path.is_symlink()]
    if linked:
        raise AutopetError(f"{linked[0]} is a link; submit the folder itself")
    if sorted(found) != list(range(len(found))):
        listed = ", ".join(found[number].name for number in sorted(found))
        raise AutopetError(f"{folder}: expected a folder for every step from step00 on, found {listed}")
    return [found[number] for number in sorted(found)]


def join_steps(pairings: Sequence[Pairing]) -> Pairing:
    """One pairing out of those of every step, for the same cases; a case that is lost in one step is lost."""
    pairs = []
    for steps in zip(*(pairing.pairs for pairing in pairings), strict=True):
        lost = [
            replace(pair, reason=f"step {n}: {pair.reason}") for n, pair in enumerate(steps) if pair.status != FOUND
        ]
        earlier = tuple(pair.prediction for pair in steps[:-1])
        pairs.append(replace(lost[0] if lost else steps[-1], earlier=earlier))
    unmatched = [
        {**entry, "reason": f"step {n}: {entry['reason']}"} for n, one in enumerate(pairings) for entry in one.unmatched
    ]
    notes = [f"step {n}: {note}" for n, one in enumerate(pairings) for note in one.notes]
    return Pairing(tuple(pairs), tuple(unmatched), tuple(notes))


def pair_up(truths: Sequence[Truth], candidates: Iterable[Candidate], *, ignored: Iterable[str] = ()) -> Pairing:
    """Give every ground-truth case its prediction or the reason why there is none.

    When not one prediction belongs to any ground truth, every case is missing, and the first note says so.

    Parameters
    ----------
    truths, candidates
        What `find_truths` and `find_candidates` found.
    ignored : names
        Ground-truth cases that are not evaluated now: their predictions are counted, not reported as unmatched.
    """
    cases = {truth.case for truth in truths}
    known = cases | set(ignored)
    taken: dict[str, list[Candidate]] = {name: [] for name in known}
    unmatched = []
    for candidate in candidates:
        hits = _matches(candidate, known)
        if len(hits) == 1:
            taken[hits[0]].append(candidate)
        else:
            unmatched.append({"prediction": candidate.label, "reason": _why_unmatched(candidate, hits)})
    notes = [] if any(taken.values()) else [_nothing_fits(unmatched, known)]
    notes += [f"prediction {entry['prediction']} is not evaluated: {entry['reason']}" for entry in unmatched]
    left_out = sum(len(taken[name]) for name in known - cases)
    if left_out:
        notes.append(f"{left_out} predictions belong to cases that were not selected")
    return Pairing(tuple(_pair(truth, taken[truth.case]) for truth in truths), tuple(unmatched), tuple(notes))


def _nothing_fits(unmatched: Sequence[dict[str, str]], known: set[str]) -> str:
    first = f" (first: {unmatched[0]['prediction']}, {unmatched[0]['reason']})" if unmatched else ""
    return (
        f"none of the {len(unmatched)} predictions belongs to a ground-truth case{first}, so every case is missing; "
        f"expected names like {min(known)}: are these the predictions of this ground truth?"
    )


def _matches(candidate: Candidate, known: set[str]) -> list[str]:
    for level in candidate.names:
        hits = sorted(set(level) & known)
        if hits:
            return hits
    return []


def _why_unmatched(candidate: Candidate, hits: Sequence[str]) -> str:
    if not candidate.names:
        return candidate.reason
    if hits:
        return printable(f"its inputs name several ground-truth cases: {', '.join(hits)}")
    names = ", ".join(name for level in candidate.names[:1] for name in level) or "nothing: no input image has a name"
    return printable(f"no ground truth for the name(s) {names}")


def _pair(truth: Truth, candidates: Sequence[Candidate]) -> Pair:
    if not candidates:
        return Pair(
            truth, None, MISSING, f"no prediction for this case: expected a mask named {truth.case}, found none"
        )
    if len(candidates) > 1:
        labels = ", ".join(candidate.label for candidate in candidates)
        reason = printable(f"expected one prediction, found {len(candidates)} ({labels}); submit one")
        return Pair(truth, None, REFUSED, reason)
    only = candidates[0]
    return Pair(truth, only.path, only.status, only.reason)


def _of_jobs(root: Path) -> list[Candidate]:
    """Of every entry of predictions.json; what is wrong with one entry costs no other its score."""
    try:
        jobs = json.loads((root / JOBS_FILE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return [_unusable(JOBS_FILE, f"cannot be read as JSON ({one_line(error)})")]
    if not isinstance(jobs, list):
        return [_unusable(JOBS_FILE, f"expected a list of jobs, found {_kind(jobs)}")]
    if not jobs:
        return [_unusable(JOBS_FILE, "expected a list of jobs, found an empty one")]
    return [
        _of_job(root, job)
        if isinstance(job, dict)
        else _unusable(f"entry {number} of {JOBS_FILE}", f"expected a job (an object), found {_kind(job)}")
        for number, job in enumerate(jobs)
    ]


def _kind(value: object) -> str:
    """In the words of JSON."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _of_job(root: Path, job: dict[str, Any]) -> Candidate:
    label = f"job {job.get('pk')}"
    names = _names(job)
    if job.get("status") != "Succeeded":
        message = one_line(Exception(f"{job.get('error_message') or 'no error message'}"))
        reason = f"{label} has status {job.get('status')!r}, expected 'Succeeded' ({message})"
        return Candidate(label, names, None, FAILED, reason)
    try:
        folder = _output_folder(root, job)
        _refuse_links(root, folder)
        images = sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []
    except (AutopetError, OSError) as error:  # an OSError for a path that is too long, or a folder that is closed
        return Candidate(label, names, None, REFUSED, one_line(error))
    place = folder.relative_to(root)
    if not images:
        return Candidate(label, names, None, MISSING, f"expected one image in {place}, found none")
    if len(images) > 1:
        listed = ", ".join(path.name for path in images)
        return Candidate(label, names, None, REFUSED, f"expected one image in {place}, found {len(images)}: {listed}")
    return _checked(root, images[0], label=label, names=names)


def _names(job: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Names of the input images as uploaded, then without image suffix, then without a channel number."""
    named = [_object(entry, "image").get("name") for entry in _entries(job, "inputs")]
    plain = tuple(str(name) for name in named if name)
    stems = tuple(image_stem(name) if is_image(Path(name)) else name for name in plain)
    return stems, plain, tuple(CHANNEL_SUFFIX.sub("", stem) for stem in stems)


def _entries(job: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = job.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _object(entry: dict[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def _output_folder(root: Path, job: dict[str, Any]) -> Path:
    """Where the job's mask lies: the one output whose socket is under images/."""
    found = {_relative_path(entry) for entry in _entries(job, "outputs")}
    places = sorted(place for place in found if place.startswith("images/"))
    if len(places) != 1:
        raise AutopetError(f"expected one image output in the job, found {len(places)}: {', '.join(places) or 'none'}")
    parts = (str(job.get("pk")), "output", *places[0].strip("/").split("/"))
    if any(part in ("", "..") or "/" in part for part in parts):
        raise AutopetError(f"the output's path {'/'.join(parts)} leaves the job's folder")
    return root.joinpath(*parts)


def _relative_path(entry: dict[str, Any]) -> str:
    """Of an output: its socket (`interface` in older files) says so; the oldest give an image's slug only."""
    socket = _object(entry, "socket") or _object(entry, "interface")
    if socket.get("relative_path"):
        return str(socket["relative_path"])
    is_picture = bool(_object(entry, "image")) or str(socket.get("super_kind")).lower() == "image"
    return f"images/{socket['slug']}" if is_picture and socket.get("slug") else ""


def _checked(root: Path, path: Path, *, label: str, names: tuple[tuple[str, ...], ...]) -> Candidate:
    try:
        _refuse_links(root, path)
        if not path.is_file():
            raise AutopetError(f"{path.relative_to(root)} is not a file")
        refuse_foreign_voxels(path)
    except AutopetError as error:
        return Candidate(label, names, None, REFUSED, one_line(error))
    return Candidate(label, names, path)


def _refuse_links(root: Path, path: Path) -> None:
    for place in (path, *path.parents):
        if place == root:
            return
        if place.is_symlink():
            raise AutopetError(f"{place.relative_to(root)} is a link; submit the file itself")


def refuse_foreign_voxels(path: Path) -> None:
    """Headers can name another file for the voxels, which would let a submission hand in the ground truth itself."""
    name = path.name.lower()
    if not name.endswith(MASK_SUFFIXES):
        raise AutopetError(f"{path.name}: expected a mask as .mha, .nii.gz or .nii, in one file; convert it")
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise AutopetError(f"{path.name}: cannot be read, write it anew ({one_line(error)})") from error
    if not (_local_mha(header) if name.endswith(".mha") else _single_nifti(header)):
        raise AutopetError(
            f"{path.name}: expected header and voxels in this one file; the file is damaged or names another"
        )


def _local_mha(header: bytes) -> bool:
    """MetaIO stops reading its header at the first field of this name."""
    start = header.find(MHA_DATA_FIELD)
    return start >= 0 and (start == 0 or header[start - 1 : start] == b"\n") and bool(MHA_LOCAL.match(header, start))


def _single_nifti(header: bytes) -> bool:
    """NIfTI-1 and -2 in one file; without this mark readers look for voxels in an .img file."""
    return header[344:348] == b"n+1\0" or header[4:8] == b"n+2\0"
