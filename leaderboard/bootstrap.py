"""Is the rank real? The whole scheme on resampled cases: rank intervals, chances of the first place, Kendall's tau."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leaderboard.rank_arithmetic import kendall_tau_b
from leaderboard.ranking import rank_samples
from leaderboard.scheme import Scheme
from leaderboard.table import CaseTable

CHUNK_BYTES = 64 * 2**20  # of the largest array that one chunk of samples needs


@dataclass(frozen=True, eq=False)
class Stability:
    """Ranks of n submissions in b bootstrap samples.

    Attributes
    ----------
    final : (n,) array
        The rank on all cases.
    ranks : (b, n) array
        The rank in each sample.
    low, high : (n,) arrays
        Interval that holds the scheme's share (`interval`) of the sampled ranks; its ends are ranks that occurred.
    p_first : (n,) array
        Share of samples with rank 1 (a shared first place counts for each).
    tau : (b,) array
        Kendall's tau-b of each sample's ranking with the full one; NaN where one ties everything.
    """

    names: tuple[str, ...]
    final: np.ndarray
    ranks: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_first: np.ndarray
    tau: np.ndarray

    @property
    def tau_mean(self) -> float:
        """Mean of Kendall's tau over the samples in which it is defined; NaN when there is none."""
        defined = self.tau[~np.isnan(self.tau)]
        return float(defined.mean()) if defined.size else float("nan")

    def shares(self) -> np.ndarray:
        """(n, n) shares of samples: row submission, column rank 1 to n (the mean of tied ranks is rounded down)."""
        count = len(self.names)
        places = np.clip(self.ranks.astype(int), 1, count)
        return np.stack([np.bincount(column - 1, minlength=count) for column in places.T]) / max(len(places), 1)


def bootstrap_ranks(table: CaseTable, scheme: Scheme) -> Stability | None:
    """Resample the cases jointly (one sample for all submissions) within each subset.

    None when `bootstraps` is 0, and when no subset has two cases: all samples would be the cohort itself.

    A sample holds as many cases of each subset as the cohort. The seed is the scheme's, and the result does not depend
    on the size of the chunks that the samples are worked off in.

    References
    ----------
    Wiesenfarth et al. 2021, "Methods and open-source toolkit for analyzing and visualizing challenge results".
    """
    if scheme.bootstraps == 0 or not can_vary(table):
        return None
    full = rank_samples(table, scheme, table.every_case_once).final[0]
    chunks = resampled_counts(table.groups, scheme.bootstraps, seed=scheme.seed, chunk=chunk_size(table))
    ranks = np.concatenate([rank_samples(table, scheme, counts).final for counts in chunks])
    tail = round((1 - scheme.interval) / 2, 12)  # 0.025, not a little more, which would be the next sample
    low, high = np.quantile(ranks, (tail, 1 - tail), axis=0, method="inverted_cdf")
    return Stability(
        names=table.names,
        final=full,
        ranks=ranks,
        low=low,
        high=high,
        p_first=(ranks == 1).mean(axis=0),
        tau=np.concatenate([kendall_tau_b(full, part) for part in _parts(ranks, chunk_size(table))]),
    )


def can_vary(table: CaseTable) -> bool:
    """Whether a bootstrap sample can be another one than the cohort."""
    return any(len(group) > 1 for group in table.groups)


def resampled_counts(groups: tuple[np.ndarray, ...], samples: int, *, seed: int, chunk: int) -> Iterator[np.ndarray]:
    """How often each case is drawn, in chunks of (at most `chunk`, k) counts.

    Parameters
    ----------
    groups : tuple of int arrays
        Indices of the cases of each subset; together every case once. Each subset keeps its size, and has a stream of
        random numbers of its own.
    """
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(len(groups))]
    cases = sum(len(group) for group in groups)
    for start in range(0, samples, chunk):
        number = min(chunk, samples - start)
        counts = np.zeros((number, cases), dtype=np.int32)
        rows = np.arange(number)[:, None]
        for group, stream in zip(groups, streams, strict=True):
            drawn = stream.integers(len(group), size=(number, len(group)))
            np.add.at(counts, (rows, group[drawn]), 1)
        yield counts


def chunk_size(table: CaseTable) -> int:
    """How many samples are ranked at once, so that memory stays bounded."""
    submissions, cases, metrics = table.costs.shape
    per_sample = 8 * max(submissions**2 * metrics, submissions * metrics * len(table.groups) * 4, cases * 4)
    if table.steps is not None:
        per_sample = max(per_sample, 8 * 6 * submissions * table.steps.shape[2])
    return max(1, CHUNK_BYTES // per_sample)


def _parts(ranks: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(ranks), size):
        yield ranks[start : start + size]
