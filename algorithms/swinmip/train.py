"""Training by the paper's protocol: the networks' side of it, and the model folder. Resumable at every step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.swinmip.btcv import load_btcv
from algorithms.swinmip.classifier import load_classifier, scan_score, train_classifier
from algorithms.swinmip.division import negatives, positives
from algorithms.swinmip.figures import dice_picture, gate_picture
from algorithms.swinmip.inference import lesion_probability
from algorithms.swinmip.model import (
    CHANNELS,
    METHOD,
    Settings,
    build_segmenter,
    classifier_file,
    load_segmenter,
    segmenter_file,
)
from algorithms.swinmip.patches import cache_cases
from algorithms.swinmip.preprocessing import Ranges, training_ranges
from algorithms.swinmip.projections import cache_volumes
from algorithms.swinmip.protocol import Frame, Networks, Outcome, Trained, follow, say
from algorithms.swinmip.segmenter import train_segmenter
from algorithms.swinmip.swin import build_classifier, load_imagenet
from algorithms.swinmip.tables import (
    GATE,
    PROJECTIONS,
    SCORES,
    THRESHOLDS,
    gate_rows,
    gate_sentence,
    projection_rows,
    projection_sentence,
    score_rows,
    summary,
    threshold_rows,
    threshold_table,
)
from autopet.checkpoint import link_or_copy, publish_model, refuse_other_content
from autopet.cohort import SPLIT, Case, labelled, write_table
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.folders import remove_at_once
from autopet.images import read_grid, read_image
from autopet.progress import console, track
from autopet.spacing import median_spacing_mm
from autopet.volume import Volume
from autopet.work import claim_work, file_sizes

WEIGHT_FILES = ("btcv", "imagenet")  # settings that name a file
COUNTED = ("threshold", "highest", "margin", "positives", "negatives", "negatives_caught")  # of the gate in config.json


def train(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, device: str) -> Path:
    """Follow the protocol and publish the model folder.

    Parameters
    ----------
    cases : sequence of Case
        Those without a lesion mask are named and left out; those with an empty mask teach and test the gate.
    out : Path
        Model folder to publish: weights of all folds, config.json, README.md, split.csv, tables, figures, and the
        metrics.csv of every training in `metrics/`.
    settings : Settings
    work : Path
        Scratch folder; a second call with the same cases and settings goes on from the last finished step, and inside
        a training from its last checkpoint. It is removed once the model is published.
    device : str
        `cpu` or `cuda`.

    Raises
    ------
    AutopetError
        Too few cases with lesions for the test part or the folds, a mask that does not fit its PET or the cohort's
        table, a file of weights that is missing, another training's work folder, or a loss that is not finite.
    """
    networks = SwinNetworks(settings, work, device)
    return run_protocol(cases, out, settings=settings, work=work, networks=networks)


def run_protocol(cases: Sequence[Case], out: Path, *, settings: Settings, work: Path, networks: Networks) -> Path:
    """`train` with networks of any kind."""
    refuse_other_content(out)
    for name in WEIGHT_FILES:
        if getattr(settings, name) and not Path(getattr(settings, name)).is_file():
            raise AutopetError(f"{name}={getattr(settings, name)}: there is no such file; give another, or none")
    known = sorted(labelled(cases), key=lambda case: case.name)
    left_out = sorted({case.name for case in cases} - {case.name for case in known})
    if left_out:
        say(f"warning: left out, without a lesion mask: {', '.join(left_out)}", style="yellow")
    if not (work / SPLIT).is_file():  # else an earlier call has looked
        networks.check(known)
    _claim(work, known, settings)
    outcome = follow(known, settings=settings, networks=networks, work=work)
    publish(out, outcome, settings, work)
    remove_at_once(work)
    console.print(threshold_table(outcome), highlight=False)
    for sentence in filter(None, (projection_sentence(outcome), gate_sentence(outcome))):
        say(sentence)
    return out


def _claim(work: Path, cases: Sequence[Case], settings: Settings) -> None:
    """Take the work folder for exactly these cases: all that the split, the networks and the tables depend on."""
    inputs = [
        (
            case.name,
            case.patient_id,
            case.tracer,
            case.centre,
            case.lesion_voxels,
            file_sizes((case.ct, case.suv, case.mask)),
        )
        for case in cases
    ]
    claim_work(work, settings, inputs)


# The networks


@dataclass
class SwinNetworks:
    """`protocol.Networks` of this method: Swin-UNETR for lesions, Swin for projections."""

    settings: Settings
    work: Path  # caches of prepared cases
    device: str
    _loaded: dict[str, Any] = field(default_factory=dict)  # the networks that were used last, and their files

    def check(self, cases: Sequence[Case]) -> None:
        """Classifiers and masks of test cases are needed only when all segmenters are trained: too late to be wrong."""
        self._check_networks()
        for case in track(cases, "masks"):
            if case.lesion_voxels:
                lesion_mask(case, read_grid(case.suv))
            elif read_image(case.mask).array.any():
                raise AutopetError(f"{case.mask} has lesions, and the cohort's table counts none; convert it again")

    def _check_networks(self) -> None:
        segmenter = build_segmenter(self.settings)
        if self.settings.btcv:
            load_btcv(segmenter, Path(self.settings.btcv))
        for axis in self.settings.cls_projections if self.settings.gate else ():
            classifier = build_classifier(self.settings, axis)
            if self.settings.imagenet:
                load_imagenet(classifier, Path(self.settings.imagenet))

    def measure(self, cases: Sequence[Case]) -> Frame:
        """Ranges of the lesions' intensities; the settings' spacing, or the median of all cases."""
        ranges = training_ranges(positives(cases), self.settings)
        spacing_mm = self.settings.spacing_mm or median_spacing_mm(cases)
        return Frame(ranges.ct_hu, ranges.pet_suv, tuple(spacing_mm))

    def train_segmenter(
        self, training: Sequence[Case], validation: Sequence[Case], frame: Frame, *, fold: int, work: Path, out: Path
    ) -> Mapping[str, Any]:
        """On cases cached in the work folder of the protocol."""
        self._loaded.clear()  # trainings want the memory
        cached = cache_cases(
            [*training, *validation], self.work / "cases", self.settings, _ranges(frame), frame.spacing_mm
        )
        return train_segmenter(
            [cached[case.name] for case in training],
            [cached[case.name] for case in validation],
            work,
            settings=self.settings,
            device=self.device,
            fold=fold,
            out=out,
        )

    def probability(self, weights: Sequence[Path], case: Case, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """On the original grid, as in the container."""
        networks = self._networks("segmenters", weights, lambda: [load_segmenter(p, self.settings) for p in weights])
        images = {"CT": read_image(case.ct), "PET": read_image(case.suv)}
        found = lesion_probability(
            networks,
            images,
            ranges=_ranges(frame),
            settings=self.settings,
            spacing_mm=frame.spacing_mm,
            device=self.device,
            deadline=Deadline(),
        )
        return lesion_mask(case, found), found.array

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
        """On volumes cached in the work folder of the protocol."""
        self._loaded.clear()
        cached = cache_volumes([*training, *validation], self.work / "volumes", self.settings, _ranges(frame))

        def paths(part: Sequence[Case]) -> list[Path]:
            return [cached[case.name] for case in part]

        return train_classifier(
            paths(positives(training)),
            paths(negatives(training)),
            paths(positives(validation)),
            paths(negatives(validation)),
            work,
            axis=axis,
            settings=self.settings,
            device=self.device,
            fold=fold,
            out=out,
        )

    def score(self, weights: Mapping[str, Sequence[Path]], case: Case, frame: Frame) -> float:
        """As in the container."""
        files = [path for paths in weights.values() for path in paths]

        def load() -> dict[str, list]:
            return {axis: [load_classifier(p, self.settings) for p in paths] for axis, paths in weights.items()}

        networks = self._networks("classifiers", files, load)
        return scan_score(
            networks, read_image(case.suv), ranges=_ranges(frame), settings=self.settings, device=self.device
        )

    def _networks(self, kind: str, files: Sequence[Path], load: Any) -> Any:
        """Networks stay loaded from one case to the next; others take their place in memory."""
        if self._loaded.get("of") != (kind, tuple(files)):
            self._loaded.clear()
            self._loaded.update(of=(kind, tuple(files)), networks=load())
        return self._loaded["networks"]


def _ranges(frame: Frame) -> Ranges:
    return Ranges(frame.ct_range_hu, frame.pet_range_suv)


def lesion_mask(case: Case, grid: Volume) -> np.ndarray:
    """Lesion voxels of a case that has some, on the grid that was predicted on."""
    mask = read_image(case.mask)
    difference = mask.grid_difference(grid)
    if difference:
        raise AutopetError(f"{case.mask} is not on the grid of {case.suv.name}: {difference}; convert the study again")
    lesions = mask.array != 0
    if not lesions.any():
        raise AutopetError(
            f"{case.mask} has no lesion voxel, and the cohort's table counts {case.lesion_voxels}; convert it again"
        )
    return lesions


# The model folder


def publish(out: Path, outcome: Outcome, settings: Settings, work: Path) -> None:
    """Weights, config.json, tables, figures and README.md, whole or not at all."""

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "metrics").mkdir()
        for fold, network in enumerate(outcome.segmenters):
            _publish_network(network, folder, segmenter_file(fold))
        if outcome.first != outcome.segmenters:
            for fold, network in enumerate(outcome.first):
                shutil.copyfile(network.metrics, folder / "metrics" / f"first_round_segmenter_fold{fold}.csv")
        for axis, trained in outcome.classifiers.items():
            for fold, network in enumerate(trained):
                _publish_network(network, folder, classifier_file(axis, fold))
        shutil.copyfile(work / SPLIT, folder / SPLIT)
        _write_tables(folder, outcome)
        _draw(folder, outcome)
        (folder / "README.md").write_text(summary(outcome, protocol=settings.protocol), encoding="utf-8")
        return _config(outcome, settings)

    publish_model(out, fill)


def _publish_network(network: Trained, folder: Path, name: str) -> None:
    link_or_copy(network.weights, folder / name)
    shutil.copyfile(network.metrics, folder / "metrics" / f"{Path(name).stem}.csv")


def _write_tables(folder: Path, outcome: Outcome) -> None:
    write_table(folder / "thresholds.csv", threshold_rows(outcome), THRESHOLDS)
    if outcome.gate:
        write_table(folder / "projections.csv", projection_rows(outcome), PROJECTIONS)
        write_table(folder / "gate.csv", gate_rows(outcome), GATE)
        write_table(folder / "scores.csv", score_rows(outcome), SCORES)


def _draw(folder: Path, outcome: Outcome) -> None:
    found = {f"fold {fold}": result for fold, result in enumerate(outcome.folds)} | {"ensemble": outcome.ensemble}
    curves = {name: result.curve for name, result in found.items()}
    optima = {name: (result.threshold, result.dice) for name, result in found.items()}
    (folder / "dice.svg").write_text(dice_picture(curves, optima), encoding="utf-8")
    if outcome.gate:
        scores = outcome.gate["scores"]
        kinds = [[scores[case.name] for case in kind(outcome.division.test)] for kind in (positives, negatives)]
        picture = gate_picture(*kinds, highest=outcome.gate["highest"], threshold=outcome.gate["threshold"])
        (folder / "gate.svg").write_text(picture, encoding="utf-8")


def _config(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """`training_cases` are those of the published networks; in protocol `paper` the positive test cases are among them,
    and `test_cases` those that the thresholds were chosen on. Cases without lesions teach the classifiers alone."""
    test, rest, frame = outcome.division.test, outcome.division.rest, outcome.frame
    joined = positives(test) if settings.protocol == "paper" else []
    trained = sorted(case.name for case in [*(rest if outcome.classifiers else positives(rest)), *joined])
    return {
        "method": METHOD,
        "settings": asdict(settings),
        "channels": list(CHANNELS),
        "spacing_mm": list(frame.spacing_mm),
        "ranges": {"ct_hu": list(frame.ct_range_hu), "pet_suv": list(frame.pet_range_suv)},
        "threshold": outcome.ensemble.threshold,
        "gate": {key: outcome.gate[key] for key in COUNTED} if outcome.gate else None,
        "gate_reason": outcome.gate_reason,
        "training_cases": trained,
        "test_cases": [case.name for case in test],
        "kept_cycles": _kept_cycles(outcome),
    }


def _kept_cycles(outcome: Outcome) -> dict[str, list[int | None]]:
    found = {"segmenter": [network.kept_cycle for network in outcome.segmenters]}
    for axis, trained in outcome.classifiers.items():
        found[f"classifier_{axis}"] = [network.kept_cycle for network in trained]
    return found
