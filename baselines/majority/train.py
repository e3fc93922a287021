"""Gathering the members of a vote: there is nothing to learn, their trained models become part of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autopet.checkpoint import CONFIG, SUMS, link_or_copy, load_config, publish_model, sha256, verify_sums
from autopet.cohort import Case
from autopet.errors import AutopetError, one_line
from autopet.methods import find_method
from autopet.progress import console
from autopet.sockets import CT, LESIONS, PET
from baselines.majority.model import MEMBERS, NAME, Settings, votes_needed

NEEDS_MODELS = True  # it is trained after the methods that it gathers


@dataclass(frozen=True)
class Member:
    """A trained model that votes: its name in the vote, its method, and its folder."""

    name: str
    method: str
    folder: Path
    config: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """Size of the model folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Gather trained models into one model folder; `members/<name>/` are model folders of their own.

    Parameters
    ----------
    cases, work, device
        Not needed by this method.
    out : Path
        Model folder to write. When it holds the same members already, it is left as it is.
    settings : Settings
        Which models; without any, every other model folder beside `out` that can vote. What cannot is named.

    Raises
    ------
    AutopetError
        No model to gather, two of one name, the same model twice, one that is damaged or cannot vote, or more votes
        asked for than members.
    """
    members = gather(settings, out)
    if settings.votes > len(members):
        raise AutopetError(f"votes = {settings.votes}, but there are {len(members)} members; ask for at most as many")
    config = _config(members, settings)
    listed = ", ".join(member.name for member in members)
    if _holds(out, config):
        console.print(f"{out.name} holds these members already: {listed}", highlight=False, markup=False)
        return out

    def fill(folder: Path) -> dict[str, Any]:
        for member in members:
            shutil.copytree(member.folder, folder / MEMBERS / member.name, copy_function=link_or_copy)
        return config

    publish_model(out, fill)
    needed = votes_needed(len(members), votes=settings.votes)
    console.print(f"{needed} votes of {len(members)} make a lesion: {listed}", highlight=False, markup=False)
    return out


def gather(settings: Settings, out: Path) -> list[Member]:
    """The models that vote, the smallest first: quick members leave the rest of their time to slow ones."""
    members = _named(settings) if settings.members else _beside(out.resolve())
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise AutopetError(
                f"two members are called {name}; rename one model folder, the folder's name is the member's"
            )
    for member in members:
        verify_sums(member.folder)
    members = _each_once(members, refuse=bool(settings.members))
    return sorted(members, key=lambda member: (member.size_bytes, member.name))


def _each_once(members: Sequence[Member], *, refuse: bool) -> list[Member]:
    """Without links to, and copies of, a model that votes already: two votes of one model could outvote the others."""
    first: dict[str, Member] = {}
    for member in members:
        known = first.setdefault(sha256(member.folder / SUMS), member)
        if known is member:
            continue
        if refuse:
            raise AutopetError(f"{known.name} and {member.name} are the same model; a model has one vote, name it once")
        text = f"{member.name} does not vote: it is the same model as {known.name}"
        console.print(text, style="yellow", highlight=False, markup=False)
    return list(first.values())


def _named(settings: Settings) -> list[Member]:
    # not resolved: a link's name is the member's, as it is for folders beside the vote
    return [_member(Path(os.path.abspath(folder))) for folder in settings.members]


def _beside(out: Path) -> list[Member]:
    """Every model folder beside `out`; one that cannot vote is left out, and the reason is shown."""
    found = []
    beside = out.parent.iterdir() if out.parent.is_dir() else ()
    for folder in sorted(beside, key=lambda path: (path.is_symlink(), path.name)):  # a link is the one left out
        if folder == out or folder.name.startswith(".") or not (folder / CONFIG).is_file():
            continue
        try:
            found.append(_member(folder))
        except AutopetError as error:
            console.print(
                f"{folder.name} does not vote: {one_line(error)}", style="yellow", highlight=False, markup=False
            )
    if not found:
        raise AutopetError(
            f"no trained model in {out.parent} can vote; train the members first, or name their folders with "
            "--set members='[\"models/nnunet\", ...]'"
        )
    return found


def _member(folder: Path) -> Member:
    """A model folder as a member; an error when its method cannot vote."""
    config = load_config(folder)
    name = str(config.get("method"))
    if name == NAME:
        raise AutopetError(f"{folder} is a vote itself; its members would count twice, name them instead")
    predict = find_method(name).module("predict")
    unknown = [socket.slug for socket in predict.INPUTS if socket.slug not in (PET.slug, CT.slug)]
    if unknown:
        raise AutopetError(f"method {name} needs the input {unknown[0]}, which a vote does not have")
    if LESIONS.slug not in [socket.slug for socket in predict.OUTPUTS]:
        raise AutopetError(f"method {name} writes no {LESIONS.slug}")
    return Member(folder.name, name, folder, config)


def _config(members: Sequence[Member], settings: Settings) -> dict[str, Any]:
    seen = {str(case) for member in members for case in member.config.get("training_cases", ())}
    return {
        "method": NAME,
        "settings": asdict(settings),
        "members": [
            {"name": member.name, "method": member.method, "sums_sha256": sha256(member.folder / SUMS)}
            for member in members
        ],
        "training_cases": sorted(seen),
    }


def _holds(out: Path, config: dict[str, Any]) -> bool:
    """Whether a whole model folder with the same members and settings is there."""
    if not (out / CONFIG).is_file():
        return False
    try:
        old = load_config(out)
        verify_sums(out)
    except AutopetError:
        return False
    votes = (old.get("settings") or {}).get("votes")
    return (old.get("members"), votes) == (config["members"], config["settings"]["votes"])
