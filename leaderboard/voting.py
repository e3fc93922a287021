"""The vote over submissions: masks that are there already become a new submission that the evaluation takes.

This is how the organisers of autoPET I made their ensemble (`baselines/majority` is the same vote as a method).

out/predictions.json                        the platform's list of jobs, one per case
out/<pk>/output/images/<socket>/<case>.mha  the vote's mask
out/vote.json                               per case: which submissions voted, and why others did not
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autopet.errors import AutopetError, one_line
from autopet.folders import remove_leftovers, whole_folder
from autopet.images import read_grid, write_image
from autopet.parallel import LostProcessError
from autopet.progress import console, track
from autopet.sockets import LESIONS
from autopet.volume import Volume
from baselines.majority.model import vote, votes_needed
from evaluation.aggregate import printable
from evaluation.jobs import FOUND, Candidate, find_candidates, find_steps
from evaluation.processes import run_apart
from evaluation.scoring import read_mask
from leaderboard.runner import FAILED, JOBS, SUCCEEDED

RECORD = "vote.json"
UNSAFE = re.compile(r"[^A-Za-z0-9_-]")  # in a file's name; case names are a participant's
SOCKET = {"slug": LESIONS.slug, "relative_path": LESIONS.relative_path, "kind": "Segmentation", "super_kind": "Image"}


@dataclass(frozen=True)
class Ballot:
    """A submission's mask of one case, or why it has none."""

    submission: str
    path: Path | None
    reason: str = ""


@dataclass(frozen=True)
class Poll:
    """One case: the names of its input images, and a ballot of every submission, in the submissions' order."""

    case: str
    inputs: tuple[str, ...]
    ballots: tuple[Ballot, ...]

    @property
    def pk(self) -> str:
        """A stable job identifier, that of the case in `autopet run`."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"autopet:{self.case}"))

    @property
    def mask(self) -> str:
        """Where the vote's mask lies in the submission."""
        name = UNSAFE.sub("_", self.case)[:100] or "mask"
        return f"{self.pk}/output/{LESIONS.relative_path}/{name}.mha"


def vote_submissions(submissions: Sequence[Path], out: Path, *, votes: int = 0) -> list[dict[str, Any]]:
    """Vote voxel by voxel over submissions, and write the result as a submission.

    Parameters
    ----------
    submissions : sequence of Path
        Folders with predictions.json, or plain folders of masks; with interactive steps (`step00/`, ...) all of them
        or none. At least two, of different names.
    out : Path
        New folder, or one that an earlier vote wrote; it appears whole or not at all.
    votes : int
        Votes that make a voxel lesion; 0: more than half of the masks that a case has, so a tie is background.

    Returns
    -------
    list of dict
        The record of vote.json: per case (and step) who voted, and who did not, with the reason.

    Raises
    ------
    AutopetError
        Fewer than two submissions, two of one name, more votes than submissions, a folder that is missing or holds
        other files.
    """
    folders = {Path(folder).resolve().name: Path(folder).resolve() for folder in submissions}
    _refuse_nonsense(folders, submissions, Path(out).resolve(), votes)
    steps = {name: find_steps(folder) for name, folder in folders.items()}
    counts = {name: len(found) for name, found in steps.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise AutopetError(f"submissions of equally many interactive steps can vote, found {listed}")
    out = Path(out).resolve()
    remove_leftovers(out.parent, out.name)
    with whole_folder(out) as partial:
        record = []
        for number in range(next(iter(counts.values())) or 1):
            with_steps = {name: found[number] for name, found in steps.items() if found}
            target = partial / f"step{number:02d}" if with_steps else partial
            rows = _vote_folder(with_steps or folders, target, votes)
            record += [{"step": number, **row} for row in rows] if with_steps else rows
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return record


def _refuse_nonsense(folders: dict[str, Path], submissions: Sequence[Path], out: Path, votes: int) -> None:
    if len(submissions) < 2:
        raise AutopetError("a vote needs at least two submissions")
    if len(folders) < len(submissions):
        raise AutopetError("two submissions have the same folder name; rename one, or name each once")
    if not 0 <= votes <= len(folders):
        raise AutopetError(f"--votes: expected 0 (more than half) to {len(folders)}, found {votes}")
    for folder in folders.values():
        if out == folder or folder in out.parents or out in folder.parents:
            raise AutopetError(f"{out} and the submission {folder} lie in each other; choose another folder")
    if out.exists() and not out.is_dir():
        raise AutopetError(f"{out} is a file; choose a new folder for the vote")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise AutopetError(f"{out} holds other files; choose a new folder for the vote")


def _vote_folder(folders: dict[str, Path], out: Path, votes: int) -> list[dict[str, Any]]:
    """One set of masks per submission -> jobs and masks in `out`; the record of every case."""
    polls = _checked(find_polls(folders))
    jobs, record = [], []
    for poll in track(polls, "vote"):
        poll = _on_one_grid(poll)  # noqa: PLW2901
        voters = [ballot for ballot in poll.ballots if ballot.path]
        if voters:
            mask = _count(voters, votes)
            write_image(out / poll.mask, mask)
        jobs.append(_job(poll, bool(voters)))
        record.append(_row(poll, voters, votes))
    out.mkdir(parents=True, exist_ok=True)
    (out / JOBS).write_text(json.dumps(jobs, indent=2) + "\n")
    return record


def find_polls(folders: dict[str, Path]) -> list[Poll]:
    """Which masks belong to the same case, by the names of the input images; sorted by case.

    A submission that lacks a case, or has two masks for it, has a ballot without mask there, with the reason.
    """
    cases: dict[str, dict[str, list[Candidate]]] = {}
    known: dict[str, str] = {}  # every name that a case goes by -> the case
    for name, folder in folders.items():
        for candidate in find_candidates(folder):
            names = _case_names(candidate)
            hits = {known[entry] for entry in names if entry in known}
            if not names or len(hits) > 1:
                reason = candidate.reason or f"its inputs name several cases: {', '.join(sorted(hits))}"
                console.print(f"{name}: {candidate.label} is not counted: {reason}", highlight=False, markup=False)
                continue
            case = hits.pop() if hits else names[0]
            known |= dict.fromkeys(names, case)
            cases.setdefault(case, {}).setdefault(name, []).append(candidate)
    if not cases:
        raise AutopetError("the submissions hold no mask that names a case")
    return [_poll(case, found, list(folders)) for case, found in sorted(cases.items())]


def _case_names(candidate: Candidate) -> tuple[str, ...]:
    """The names that a case goes by, the best first: without channel numbers if they are ones, the CT's, the PET's."""
    if not candidate.names:
        return ()
    stems = tuple(dict.fromkeys(reversed(candidate.names[0])))
    bare = set(candidate.names[-1])
    # case_0000 and case_0001 in one job are channels of one case; alone, case_0001 may be the name of a case
    return (*bare, *stems) if len(stems) > len(bare) == 1 else stems


def _poll(case: str, found: dict[str, list[Candidate]], submissions: Sequence[str]) -> Poll:
    # the names as uploaded are a level of their own only for jobs; a plain mask has its stem
    levels = [one.names[min(1, len(one.names) - 1)] for candidates in found.values() for one in candidates]
    inputs = tuple(dict.fromkeys(name for level in levels for name in level))
    return Poll(case, inputs, tuple(_ballot(name, found.get(name, [])) for name in submissions))


def _ballot(submission: str, candidates: Sequence[Candidate]) -> Ballot:
    if not candidates:
        return Ballot(submission, None, "no prediction for this case")
    if len(candidates) > 1:
        labels = ", ".join(candidate.label for candidate in candidates)
        return Ballot(submission, None, f"expected one prediction, found {len(candidates)} ({labels})")
    only = candidates[0]
    return Ballot(submission, only.path if only.status == FOUND else None, only.reason)


def _checked(polls: Sequence[Poll]) -> list[Poll]:
    """Read every mask once in a process of its own: what breaks or hangs its reader has no vote."""
    paths = [ballot.path for poll in polls for ballot in poll.ballots if ballot.path]
    reasons: dict[Path, str] = {}
    for path, result in track(run_apart(why_no_mask, paths), "checking masks", total=len(paths)):
        reasons[path] = f"{path.name}: {result}" if isinstance(result, LostProcessError) else result

    def check(ballot: Ballot) -> Ballot:
        reason = reasons.get(ballot.path, "") if ballot.path else ""
        return replace(ballot, path=None, reason=reason) if reason else ballot

    return [replace(poll, ballots=tuple(check(ballot) for ballot in poll.ballots)) for poll in polls]


def why_no_mask(path: Path) -> str:
    """Why a file cannot vote; empty when it is a mask of 0 and 1."""
    try:
        read_mask(path)
    except Exception as error:  # whatever a participant's file does to its reader, the others vote
        return printable(one_line(error))
    return ""


def _on_one_grid(poll: Poll) -> Poll:
    """Leave out the masks that are not on the grid of most (of the first submission's, when grids are equally many)."""
    grids = {ballot.submission: read_grid(ballot.path) for ballot in poll.ballots if ballot.path}
    if not grids:
        return poll
    shared = {name: sum(grid.same_grid(other) for other in grids.values()) for name, grid in grids.items()}
    chosen = max(shared, key=lambda name: shared[name])  # the first of those with the most

    def check(ballot: Ballot) -> Ballot:
        if ballot.path is None:
            return ballot
        difference = grids[ballot.submission].grid_difference(grids[chosen])
        reason = f"not on the grid of {chosen}, which {shared[chosen]} of {len(grids)} masks have: {difference}"
        return replace(ballot, path=None, reason=reason) if difference else ballot

    return replace(poll, ballots=tuple(check(ballot) for ballot in poll.ballots))


def _count(voters: Sequence[Ballot], votes: int) -> Volume:
    """The vote's mask on the grid of the first voter; one mask is in memory at a time."""
    paths = [ballot.path for ballot in voters if ballot.path]
    elected = vote((read_mask(path).array for path in paths), votes=votes)
    return replace(read_grid(paths[0]), array=elected.astype(np.uint8))


def _job(poll: Poll, done: bool) -> dict[str, Any]:
    reasons = "; ".join(f"{ballot.submission}: {ballot.reason}" for ballot in poll.ballots if ballot.reason)
    return {
        "pk": poll.pk,
        "status": SUCCEEDED if done else FAILED,
        "error_message": "" if done else f"no submission has a mask ({reasons})",
        "inputs": [{"image": {"name": name}} for name in poll.inputs],
        "outputs": [{"socket": SOCKET, "interface": SOCKET, "value": None, "file": None}],
    }


def _row(poll: Poll, voters: Sequence[Ballot], votes: int) -> dict[str, Any]:
    return {
        "case": printable(poll.case),
        "voted": [ballot.submission for ballot in voters],
        "votes_needed": votes_needed(len(voters), votes=votes) if voters else None,
        "left_out": {ballot.submission: ballot.reason for ballot in poll.ballots if not ballot.path},
    }
