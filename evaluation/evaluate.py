"""Score a folder of predictions against the ground truth and write metrics.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.parallel import LostProcessError
from autopet.progress import track
from evaluation import previews as pictures
from evaluation.aggregate import build_metrics
from evaluation.editions import edition_named
from evaluation.jobs import Pair, Pairing, find_candidates, find_steps, join_steps, pair_up
from evaluation.policies import apply_policy, parse_policy
from evaluation.processes import CASE_LIMIT_S, run_apart
from evaluation.report import LESIONS_FILE, write_lesions
from evaluation.scoring import ScoredCase, Settings, score_pair
from evaluation.statuses import REFUSED
from evaluation.surface import TOLERANCE_MM
from evaluation.truths import Truth, find_truths, select_truths

PLATFORM_OUTPUT = Path("/output")
CRASHED = f"its file crashed the reader, or took it more than {CASE_LIMIT_S:.0f} s; write it anew"


def evaluate(
    ground_truth: Path,
    predictions: Path,
    out: Path,
    *,
    name: str = "",
    edition: str = "III",
    failed: str = "empty",
    images: Path | None = None,
    cases: Sequence[str] | None = None,
    workers: int = 1,
    scheduler: str = "",
    previews: bool = True,
    surface: bool = False,
    tolerance_mm: float = TOLERANCE_MM,
) -> dict[str, Any]:
    """Score a submission; every ground-truth case gets a row, whatever became of its prediction.

    Parameters
    ----------
    ground_truth : Path
        Folder of masks `<case>.nii.gz|.mha` (with a cases.csv that says tracer and centre, or without), or a cohort
        that `autopet prep` wrote.
    predictions : Path
        The platform's /input with predictions.json, or a plain folder of masks `<case>.nii.gz|.mha`; with interactive
        steps, a folder of such folders `step00`, `step01`, ...
    out : Path
        metrics.json to write; lesions.csv and the folder `previews/` go next to it.
    name : str
        The submission's name; the folder of `out` when empty.
    edition : str
        Rules for cases without lesions, see `evaluation.editions.EDITIONS`.
    failed : str
        Policy for cases without a valid prediction, see `evaluation.policies.parse_policy`.
    images : Path, optional
        Folder of PET images `<case>.nii.gz|.mha` (SUV), for TLG and previews; a cohort's own are used without it.
    cases : names, optional
        Evaluate these only.
    workers, scheduler
        Processes on this machine, or the address of a Dask scheduler, see `autopet.parallel.run_jobs`. Even one worker
        is a process of its own, which a hostile file may crash: scripts that call this need
        `if __name__ == "__main__":`.
    previews : bool
        Write previews. Those of an earlier evaluation are removed in any case.
    surface : bool
        Compute surface Dice, with `tolerance_mm`, and the 95 % Hausdorff distance.

    Returns
    -------
    dict
        The content of metrics.json, see `evaluation.aggregate.build_metrics`.

    Raises
    ------
    AutopetError
        There is no ground truth or no folder of predictions, the ground truth itself is broken, an argument is unknown,
        or no process can be started. A submission in which nothing is usable is no error: all its cases are missing.
    """
    edition_named(edition)
    policy = parse_policy(failed)
    out = Path(out).resolve()
    everything = find_truths(Path(ground_truth).resolve(), images=None if images is None else Path(images).resolve())
    pairing = _pair_all(select_truths(everything, cases), everything, Path(predictions), edition=edition)
    folder = out.parent / pictures.FOLDER
    settings = Settings(edition, folder if previews else None, surface, tolerance_mm)
    with _only_whole(out):
        scored = _score_all(pairing.pairs, settings, workers=workers, scheduler=scheduler)
    metrics = build_metrics(
        apply_policy([one.row for one in scored], policy, bounds=[one.bounds for one in scored]),
        name=name or _default_name(out),
        edition=edition,
        failed=policy.spelled,
        unmatched=pairing.unmatched,
        notes=pairing.notes,
        lesions=[row for one in scored for row in one.lesions],
        tolerance_mm=tolerance_mm if surface else None,
    )
    write_lesions(out.parent / LESIONS_FILE, {one.row["case"]: one.lesions for one in scored})
    _write_json(out, metrics)
    return metrics


def _default_name(out: Path) -> str:
    """The folder's name; none for the platform's /output, which every submission shares."""
    return "" if out.parent == PLATFORM_OUTPUT else out.parent.name


def _pair_all(truths: Sequence[Truth], everything: Sequence[Truth], predictions: Path, *, edition: str) -> Pairing:
    """The pairing of all steps, or of the one that there is."""
    names = [truth.case for truth in everything]
    steps = find_steps(predictions)
    expected = edition_named(edition).click_steps
    if steps and len(steps) != expected:
        raise AutopetError(
            f"{predictions}: expected {expected or 'no'} folders of interactive steps for edition {edition}, "
            f"found {len(steps)}; name the edition, and give every step its folder"
        )
    pairings = [pair_up(truths, find_candidates(folder), ignored=names) for folder in steps or [predictions]]
    return join_steps(pairings) if steps else pairings[0]


@contextmanager
def _only_whole(out: Path) -> Iterator[None]:
    """Previews of this evaluation alone, and none when it fails: they are of no use without metrics.json."""
    remove_earlier(out)
    try:
        yield
    except BaseException:
        remove_earlier(out)
        raise


def remove_earlier(out: Path) -> None:
    """What an earlier evaluation left beside metrics.json, so that nothing is taken for this one's."""
    pictures.remove_previews(out.parent / pictures.FOLDER)
    (out.parent / LESIONS_FILE).unlink(missing_ok=True)


def _score_all(pairs: Sequence[Pair], settings: Settings, *, workers: int, scheduler: str) -> list[ScoredCase]:
    """In the order of the pairs; what one file does to the process that reads it costs no other case its score."""
    work = partial(score_pair, settings=settings)
    options: dict[str, Any] = {"workers": max(1, min(workers, len(pairs))), "scheduler": scheduler}
    scored: dict[str, ScoredCase] = {}
    lost = []
    for pair, result in track(run_apart(work, pairs, **options), "scoring", total=len(pairs)):
        if isinstance(result, LostProcessError):
            lost.append(replace(pair, prediction=None, status=REFUSED, reason=CRASHED))
        else:
            scored[pair.truth.case] = result
    for pair, result in run_apart(work, lost):
        if isinstance(result, LostProcessError):
            raise AutopetError(
                f"the process that read the ground truth of {pair.truth.case} died (out of memory?); check its files"
            )
        scored[pair.truth.case] = result
    return [scored[pair.truth.case] for pair in pairs]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that every parser takes (no NaN); the file appears whole or not at all."""
    try:
        with whole_file(path) as part:
            part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise AutopetError(f"{path}: cannot be written ({one_line(error)})") from error
