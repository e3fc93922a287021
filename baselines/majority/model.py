"""The voxel-wise vote of several methods: autoPET I's ensemble, better than each of its members (mean Dice 0.81).

Gatidis et al., "The autoPET challenge", section "Ensemble model (out of competition)": "Based on the predictions of
these above-described best performing algorithms, including the baseline model, an ensemble model output was computed
by pixel-wise majority voting."
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError

NAME = "majority"
MEMBERS = "members"  # folder of the members' model folders, in the vote's own


@dataclass(frozen=True)
class Settings:
    """What the method is; saved as config.json."""

    members: tuple[str, ...] = ()  # model folders that vote; none: every other model folder beside the vote's own
    votes: int = 0  # votes that make a voxel lesion; 0: more than half, so a tie is background

    def __post_init__(self) -> None:
        if isinstance(self.votes, bool) or not isinstance(self.votes, int) or self.votes < 0:
            raise AutopetError(f"votes: expected a whole number of at least 0, found {self.votes!r}")


PRESETS = {"paper": Settings(), "demo": Settings()}


def votes_needed(voters: int, *, votes: int = 0) -> int:
    """Votes that make a voxel lesion.

    Parameters
    ----------
    voters : int
        How many masks there are.
    votes : int
        0: more than half of them. Else this many, or all of them when there are fewer.

    Examples
    --------
    >>> [votes_needed(n) for n in (1, 2, 3, 4, 5)]
    [1, 2, 2, 3, 3]
    >>> votes_needed(5, votes=2), votes_needed(2, votes=3)
    (2, 2)
    """
    return min(votes, voters) if votes else voters // 2 + 1


def vote(masks: Iterable[np.ndarray], *, votes: int = 0) -> np.ndarray:
    """Count the masks that mark each voxel.

    Parameters
    ----------
    masks : iterable of (z, y, x) arrays
        Lesion where they are not zero; taken one after the other, so that a generator keeps one in memory. None at all,
        or two shapes, are errors.
    votes : int
        As in `votes_needed`.

    Returns
    -------
    (z, y, x) uint8 array
        1 where enough masks agree. Masks without lesions vote for background.

    Examples
    --------
    >>> vote([np.array([[[1, 1, 0]]]), np.array([[[1, 0, 0]]])])  # of two both must agree: a tie is background
    array([[[1, 0, 0]]], dtype=uint8)
    """
    count, voters = np.zeros(0, np.uint16), 0
    for mask in masks:
        if not voters:
            count = np.zeros(mask.shape, np.uint16)
        if mask.shape != count.shape:
            raise AutopetError(f"masks of one shape can vote, found {mask.shape} beside {count.shape}")
        count += mask != 0
        voters += 1
    if not voters:
        raise AutopetError("there is no mask to vote with")
    return (count >= votes_needed(voters, votes=votes)).astype(np.uint8)
