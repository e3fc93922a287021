"""Who is trained on what in swinmip's experiment, with which settings, and where it is kept.

<out>/preprocessed/seed<k>/   cases of a seed's trainings, which its cells share; removed at the end
<out>/models/seed<k>/         weights, and what their training said, as .json beside them; the seed's ranges.json
<out>/work/seed<k>/<name>/    an unfinished training
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from algorithms.swinmip.model import LOSSES, Settings
from algorithms.swinmip.patches import cache_cases
from algorithms.swinmip.preprocessing import Ranges, training_ranges
from algorithms.swinmip.projections import cache_volumes
from autopet.folders import whole_file
from autopet.splitting import split_cohort
from leaderboard.experiments.cohort import CohortSettings, Phantom

SHARED, WORK, MODELS = "preprocessed", "work", "models"
RANGES = "ranges.json"
ENSEMBLE, GATE = "ensemble", "gate"  # cells beside those that train a segmentation
HALF = 0.5
TUNED, GATED, GATED_MARGIN = "-tuned", "-gate", "-gate-margin"  # at the end of the names of variants


@dataclass(frozen=True)
class Budget:
    """Size of the experiment; every variant gets the same."""

    cohort: CohortSettings
    held_fraction: float  # of the patients, to choose thresholds on: the paper's first test set
    test_fraction: float
    classifier_folds: int
    training: Settings  # loss and seed are set per cell; `folds` are those of the segmentation


@dataclass(frozen=True)
class Experiment:
    """Where the experiment happens, and how."""

    out: Path
    budget: Budget
    phantoms: tuple[Phantom, ...]
    device: str

    def part(self, seed: int, part: str) -> list[Phantom]:
        """All scans of the patients in `train`, `val` (held out for the thresholds) or `test`."""
        held, test = self.budget.held_fraction, self.budget.test_fraction
        # without centres, which would leave strata of six patients that do not divide into quarters
        cases = [replace(phantom.case, centre="") for phantom in first_scans(self.phantoms)]
        places = split_cohort(cases, fractions=(1 - held - test, held, test), seed=seed)
        chosen = {place.patient_id for place in places if place.part == part}
        return [phantom for phantom in self.phantoms if phantom.case.patient_id in chosen]

    def fold(self, seed: int, fold: int, *, of: int) -> tuple[list[Phantom], list[Phantom]]:
        """All scans of the training and of the validation patients of one of `of` folds of the part `train`."""
        phantoms = self.part(seed, "train")
        cases = [phantom.case for phantom in first_scans(phantoms)]
        places = split_cohort(cases, fractions=(1.0, 0.0), folds=of, seed=seed)
        held = {place.patient_id for place in places if place.fold == fold}
        validation = [phantom for phantom in phantoms if phantom.case.patient_id in held]
        return [phantom for phantom in phantoms if phantom.case.patient_id not in held], validation

    def settings(self, seed: int, loss: str = LOSSES[0]) -> Settings:
        """The settings of a seed's trainings."""
        return replace(self.budget.training, loss=loss, seed=seed)

    def shared(self, seed: int) -> Path:
        """Preprocessed cases of a seed."""
        return self.out / SHARED / f"seed{seed}"

    def model(self, seed: int, name: str) -> Path:
        """A file of a seed that stays: weights, or the ranges."""
        return self.out / MODELS / f"seed{seed}" / name

    def work(self, seed: int, name: str) -> Path:
        """Scratch folder of the training of weights of that name."""
        return self.out / WORK / f"seed{seed}" / name

    def ranges(self, seed: int) -> Ranges:
        """Intensity ranges of a seed's training cases, see `prepare_seed`."""
        known = json.loads(self.model(seed, RANGES).read_text(encoding="utf-8"))
        return Ranges(**{name: tuple(values) for name, values in known.items()})


def first_scans(phantoms: Sequence[Phantom]) -> list[Phantom]:
    """One scan of each patient: half of them have lesions. Segmentation is trained and tested on these alone."""
    return [phantom for phantom in phantoms if phantom.first]


def loss_variants() -> tuple[str, ...]:
    """Cells that train fold 0 with each loss."""
    return LOSSES


def fold_variants(folds: int) -> list[str]:
    """Cells that train the folds of the cross-entropy ensemble; the first is the one that is compared with losses."""
    return [LOSSES[0], *(f"{LOSSES[0]}-fold{fold}" for fold in range(1, folds))]


def segmenter_name(variant: str) -> str:
    """Name of the weights of a cell."""
    return f"{variant}.safetensors"


def loss_and_fold(variant: str) -> tuple[str, int]:
    """What a cell of `loss_variants` or `fold_variants` trains."""
    loss, _, fold = variant.partition("-fold")
    return loss, int(fold or 0)


# --- before the cells ------------------------------------------------------------------------------------------------


def prepare_seed(experiment: Experiment, seed: int) -> None:
    """Write what several cells of a seed share: intensity ranges, and the training cases of the segmentation."""
    settings = experiment.settings(seed)
    cases = [phantom.case for phantom in first_scans(experiment.part(seed, "train"))]
    path = experiment.model(seed, RANGES)
    if not path.is_file():
        with whole_file(path) as part:
            part.write_text(json.dumps(asdict(training_ranges(cases, settings))), encoding="utf-8")
    cached_cases(experiment, seed)


def cached_cases(experiment: Experiment, seed: int) -> dict[str, Path]:
    """Folders of the training cases of the segmentation, by name; see `cache_cases`."""
    settings = experiment.settings(seed)
    cases = [phantom.case for phantom in first_scans(experiment.part(seed, "train")) if phantom.positive]
    folder = experiment.shared(seed) / "cases"
    return cache_cases(cases, folder, settings, experiment.ranges(seed), settings.spacing_mm)


def cached_volumes(experiment: Experiment, seed: int) -> dict[str, Path]:
    """Files of the training cases of the classifiers, all scans, by name; see `cache_volumes`."""
    cases = [phantom.case for phantom in experiment.part(seed, "train")]
    folder = experiment.shared(seed) / "volumes"
    return cache_volumes(cases, folder, experiment.settings(seed), experiment.ranges(seed))
