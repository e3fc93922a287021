"""The paper's protocol (figure 2, sections 5 to 7): which network sees which cases, and the thresholds that come of it.

Nothing here knows what a network is: trainings and predictions come through `Networks`. Every result is a file of the
work folder that appears whole, so that a second call goes on after the last one that was written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from algorithms.swinmip.division import (
    COLUMNS,
    Division,
    divide,
    gate_problem,
    negatives,
    positives,
    read_division,
)
from algorithms.swinmip.model import Settings
from autopet.cohort import SPLIT, Case, read_table, write_table
from autopet.folders import remove_leftovers, whole_file
from autopet.progress import console, track
from autopet.thresholds import GRID, best_threshold, dice_curve, gate_threshold

HALF = 0.5  # the threshold that one takes without looking
METRICS = "metrics.csv"  # what a training leaves in its work folder
LEFT_OUT = "best on the other cases"


# What the protocol asks of the networks


@dataclass(frozen=True)
class Frame:
    """What the cases outside the test part fix for good: a threshold holds for networks with these inputs.

    So the second round keeps it although it has more cases.
    """

    ct_range_hu: tuple[float, float]
    pet_range_suv: tuple[float, float]
    spacing_mm: tuple[float, ...]  # x, y, z


class Networks(Protocol):
    """Trainings and predictions. `work` is a scratch folder that a broken training goes on from; it leaves
    metrics.csv there and its weights, whole, in `out`. `fold` is its number, for seeds and progress bars."""

    def check(self, cases: Sequence[Case]) -> None:
        """An error for what would stop a later step; asked once, before the first."""
        ...

    def measure(self, cases: Sequence[Case]) -> Frame:
        """Intensity ranges and spacing of cases."""
        ...

    def train_segmenter(
        self, training: Sequence[Case], validation: Sequence[Case], frame: Frame, *, fold: int, work: Path, out: Path
    ) -> Mapping[str, Any]:
        """Train on positive cases; returns `kept_cycle` and `topk_auroc`."""
        ...

    def probability(self, weights: Sequence[Path], case: Case, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Lesion voxels (bool) of a case, and the ensemble's lesion probability in them, both on the case's grid."""
        ...

    def train_classifier(
        self,
        axis: str,
        training: Sequence[Case],
        validation: Sequence[Case],
        frame: Frame,
        *,
        fold: int,
        work: Path,
        out: Path,
    ) -> Mapping[str, Any]:
        """Train on positive and negative cases; returns `kept_cycle` and `auroc`."""
        ...

    def score(self, weights: Mapping[str, Sequence[Path]], case: Case, frame: Frame) -> float:
        """Mean probability of lesions over projections and folds."""
        ...


# What comes out


@dataclass(frozen=True)
class Trained:
    """A training's files and its best cycle. `score`: top-k AUROC or AUROC of its validation cases, None if neither."""

    weights: Path
    metrics: Path
    kept_cycle: int | None
    score: float | None


@dataclass(frozen=True)
class Threshold:
    """The threshold of maximal mean Dice over some cases.

    Attributes
    ----------
    curve : sequence of float
        Mean Dice at every threshold of `autopet.thresholds.GRID`.
    others : sequence of (name, threshold or None, mean Dice)
        What other choices would have given on the same cases; None: another threshold for every case.
    """

    threshold: float
    dice: float
    cases: int
    curve: Sequence[float]
    others: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """All results of the protocol.

    `first` are the segmenters that the thresholds were chosen for, `segmenters` those to publish. `gate` holds the
    fields of `autopet.thresholds.Gate` and each test case's score; it is empty, and so are `classifiers`, when
    `gate_reason` says why there is none.
    """

    division: Division
    frame: Frame
    first: tuple[Trained, ...]
    segmenters: tuple[Trained, ...]
    folds: tuple[Threshold, ...]
    ensemble: Threshold
    classifiers: Mapping[str, tuple[Trained, ...]]
    gate: Mapping[str, Any]
    gate_reason: str


def follow(cases: Sequence[Case], *, settings: Settings, networks: Networks, work: Path) -> Outcome:
    """Go through the protocol, or on with it.

    Parameters
    ----------
    cases : sequence of Case
        All with a lesion mask, which may be empty.
    networks : Networks
    work : Path
        Folder of this protocol alone (see `autopet.work.claim_work`); what an earlier call finished is taken from it.
    """
    remove_leftovers(work)
    if not (work / SPLIT).is_file():
        write_table(work / SPLIT, divide(cases, settings), COLUMNS)
    division = read_division(read_table(work / SPLIT), cases, settings.folds)
    gate_reason = gate_problem(division, settings)
    run = Run(settings, division, networks, work, _count_steps(settings, gated=not gate_reason))
    run.begin(_numbers(division))
    frame = run.measure()
    first = run.segmenters("first", frame)
    folds = run.fold_thresholds(first, frame)
    ensemble = run.ensemble_threshold(first, folds, frame)
    classifiers = {} if gate_reason else run.classifiers(frame)
    if gate_reason:
        say(f"no gate, so no classifiers are trained: {gate_reason}", style="yellow")
    gate = {} if gate_reason else run.gate(classifiers, frame)
    published = run.segmenters("second", frame) if settings.protocol == "paper" else first
    run.begin("publish the model")
    return Outcome(division, frame, first, published, folds, ensemble, classifiers, gate, gate_reason)


def _count_steps(settings: Settings, *, gated: bool) -> int:
    rounds = 2 if settings.protocol == "paper" else 1
    classifiers = settings.folds * len(settings.cls_projections) + 1 if gated else 0
    return 4 + settings.folds * (rounds + 1) + classifiers  # split, ranges, ensemble's threshold, publishing


def _numbers(division: Division) -> str:
    parts = [("test", division.test), ("folds", division.rest)]
    words = [f"{name} {len(positives(part))} with and {len(negatives(part))} without lesions" for name, part in parts]
    return f"split: {', '.join(words)}"


def say(text: str, *, style: str | None = None) -> None:
    """A line on standard error."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


@dataclass
class Run:
    """The steps of one protocol, counted; each one's result is a JSON file of the work folder."""

    settings: Settings
    division: Division
    networks: Networks
    work: Path
    steps: int
    step: int = 0

    def begin(self, title: str) -> None:
        """Say which step of how many begins."""
        self.step += 1
        say(f"step {self.step} of {self.steps}: {title}")

    def once(self, title: str, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of a step: read when an earlier call wrote it, else made and written."""
        path = self.work / f"{name}.json"
        self.begin(f"{title}{', done before' if path.is_file() else ''}")
        return _kept(path, make)

    def measure(self) -> Frame:
        """Step 2: ranges and spacing, of the cases outside the test part."""
        found = self.once(
            "intensity ranges and spacing", "frame", lambda: asdict(self.networks.measure(self.division.rest))
        )
        return Frame(**{key: tuple(value) for key, value in found.items()})

    def segmenters(self, name: str, frame: Frame) -> tuple[Trained, ...]:
        """Segmenters of all folds, on positive cases; in the second round those of the test part are trained on."""
        extra = positives(self.division.test) if name == "second" else []

        def one(fold: int) -> Trained:
            training = sorted([*positives(self.division.training(fold)), *extra], key=lambda case: case.name)
            validation = positives(self.division.folds[fold])
            return self._trained(
                f"segmenter of fold {fold}, {name} round",
                Path(name) / f"segmenter_fold{fold}",
                lambda **files: self.networks.train_segmenter(training, validation, frame, fold=fold, **files),
                "topk_auroc",
            )

        return tuple(one(fold) for fold in range(self.settings.folds))

    def classifiers(self, frame: Frame) -> dict[str, tuple[Trained, ...]]:
        """Section 7: a classifier of every projection and fold, on positive and negative cases."""

        def one(axis: str, fold: int) -> Trained:
            training, validation = self.division.training(fold), list(self.division.folds[fold])
            return self._trained(
                f"classifier of projection {axis}, fold {fold}",
                Path("first") / f"classifier_{axis}_fold{fold}",
                lambda **files: self.networks.train_classifier(axis, training, validation, frame, fold=fold, **files),
                "auroc",
            )

        return {
            axis: tuple(one(axis, fold) for fold in range(self.settings.folds))
            for axis in self.settings.cls_projections
        }

    def _trained(self, title: str, name: Path, train: Callable[..., Mapping[str, Any]], score: str) -> Trained:
        """Train once; the training's own scratch folder, with its checkpoints, goes as soon as it is done."""
        place = self.work / name
        out, scratch, metrics = place.with_suffix(".safetensors"), place / "work", place.with_suffix(".csv")

        def make() -> Mapping[str, Any]:
            scratch.mkdir(parents=True, exist_ok=True)
            for folder in (scratch, out.parent):  # of a call that was killed while it wrote a checkpoint, or weights
                remove_leftovers(folder)
            found = train(work=scratch, out=out)
            with whole_file(metrics) as part:
                shutil.copyfile(scratch / METRICS, part)
            return {"kept_cycle": found.get("kept_cycle"), "score": _known(found.get(score))}

        found = self.once(title, str(name), make)
        shutil.rmtree(place, ignore_errors=True)
        return Trained(out, metrics, found["kept_cycle"], found["score"])

    def fold_thresholds(self, segmenters: Sequence[Trained], frame: Frame) -> tuple[Threshold, ...]:
        """Table 1 of the paper: each fold's best threshold and Dice on its own validation cases."""

        def one(fold: int, network: Trained) -> Threshold:
            title = f"threshold of fold {fold} on its validation cases"
            cases = positives(self.division.folds[fold])
            others = {"0.5": HALF}
            name = f"threshold_fold{fold}"
            return Threshold(**self.once(title, name, lambda: self._best(title, name, [network], cases, frame, others)))

        return tuple(one(fold, network) for fold, network in enumerate(segmenters))

    def ensemble_threshold(self, segmenters: Sequence[Trained], folds: Sequence[Threshold], frame: Frame) -> Threshold:
        """Section 6: the ensemble's best threshold on the test cases, and what the folds' would have given there."""
        title, name = "threshold of the ensemble on the test cases", "threshold_ensemble"
        of_folds = [fold.threshold for fold in folds]
        others = {"0.5": HALF, "mean of the folds": float(np.mean(of_folds)), "minimum of the folds": min(of_folds)}
        cases = positives(self.division.test)

        def make() -> dict[str, Any]:
            return self._best(title, name, segmenters, cases, frame, others)

        return Threshold(**self.once(title, name, make))

    def _best(
        self,
        title: str,
        name: str,
        networks: Sequence[Trained],
        cases: Sequence[Case],
        frame: Frame,
        others: Mapping[str, float],
    ) -> dict[str, Any]:
        """The best threshold of an ensemble; every case's Dice is kept, so that a killed step goes on within it."""
        weights = [network.weights for network in networks]
        tried = sorted(set(others.values()))

        def dice(case: Case) -> dict[str, Any]:
            lesions, probability = self.networks.probability(weights, case, frame)
            given = dice_curve(lesions, probability, np.array(tried))
            return {"grid": dice_curve(lesions, probability).tolist(), "tried": given.tolist()}

        rows = [_kept(self.work / name / f"{case.name}.json", partial(dice, case)) for case in track(cases, title)]
        curves = np.array([row["grid"] for row in rows])  # (cases, thresholds)
        means = dict(zip(tried, np.mean([row["tried"] for row in rows], axis=0).tolist(), strict=True))
        table = [(choice, threshold, means[threshold]) for choice, threshold in others.items()]
        left_out = [(LEFT_OUT, None, left_out_dice(curves))] if len(rows) > 1 else []
        threshold, best = best_threshold(curves)
        return {
            "threshold": threshold,
            "dice": best,
            "cases": len(rows),
            "curve": curves.mean(axis=0).tolist(),
            "others": [*table, *left_out],
        }

    def gate(self, classifiers: Mapping[str, Sequence[Trained]], frame: Frame) -> dict[str, Any]:
        """Section 7: the highest threshold that every positive test case reaches, less a margin."""
        title = "gate on the test cases"
        weights = {axis: [network.weights for network in trained] for axis, trained in classifiers.items()}

        def score(case: Case) -> dict[str, Any]:
            return {"score": self.networks.score(weights, case, frame)}

        def make() -> dict[str, Any]:
            test = self.division.test
            files = {case.name: self.work / "scores" / f"{case.name}.json" for case in test}
            scores = {case.name: _kept(files[case.name], partial(score, case))["score"] for case in track(test, title)}
            kinds = (positives(test), negatives(test))
            with_lesions, without = ([scores[case.name] for case in kind] for kind in kinds)
            return {**asdict(gate_threshold(with_lesions, without, margin=self.settings.gate_margin)), "scores": scores}

        return self.once(title, "gate", make)


def left_out_dice(curves: np.ndarray) -> float:
    """Mean Dice when every case gets the threshold that is best for the others: the optimum without its optimism.

    Parameters
    ----------
    curves : (cases, thresholds) array
        Dice at every threshold of `autopet.thresholds.GRID`; two cases at least.
    """
    found = []
    for index in range(len(curves)):
        threshold, _ = best_threshold(np.delete(curves, index, axis=0))
        found.append(curves[index, int(np.argmin(np.abs(GRID - threshold)))])
    return float(np.mean(found))


def _kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A result from its file, which is written first when it is not there: both calls see the same numbers."""
    if not path.is_file():
        text = json.dumps(make())
        with whole_file(path) as part:
            part.write_text(text)
    return json.loads(path.read_text())


def _known(value: float | None) -> float | None:
    """None instead of NaN, which JSON has no word for."""
    return None if value is None or np.isnan(value) else float(value)
