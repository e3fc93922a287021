"""Who is trained on what in weakcam's experiment, with which settings, and where it is kept.

<out>/models/<cell>/            a trained model, as `autopet train` publishes it
<out>/work/<cell>/              an unfinished training
<out>/predictions/<variant>-seed<k>/<case>.nii.gz   predicted masks of the test cases
<out>/labels/seed<k>/<method>/  masks that the best CAM method predicts for the training cases
<out>/labels/seed<k>/cohort/    the cohort whose lesions they are, see `leaderboard.pseudolabels`
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from algorithms.weakcam.model import CAM_METHODS
from algorithms.weakcam.model import Settings as ClassifierSettings
from algorithms.weakcam.search import GLOBAL, READINGS
from autopet.cohort import Case, labelled, read_cohort, read_table
from autopet.errors import AutopetError
from autopet.splitting import PARTS as KNOWN_PARTS
from autopet.splitting import TEST, split_patients
from autopet.work import file_sizes
from baselines.unet2d.model import Settings as UNetSettings
from leaderboard.experiments.cohort import CohortSettings, Phantom
from leaderboard.experiments.common import Cell, Row

WORK, MODELS, MASKS, LABELS = "work", "models", "predictions", "labels"
WEAKCAM, UNET, PSEUDO, THRESHOLD = "weakcam", "unet2d", "unet2d_pseudo", "threshold"  # cells
KINDS = (WEAKCAM, PSEUDO, UNET, THRESHOLD)  # in the order in which they begin: the longest first, so that none is alone
DEFAULT_READING = READINGS[0]
GRADCAM = "gradcam"
MAPPED = CAM_METHODS[-1]  # Score-CAM: its masks choose the case of the picture, and the maps lie beside them


@dataclass(frozen=True)
class Budget:
    """Size of the experiment; every seed gets the same."""

    cohort: CohortSettings | None  # of phantoms; None: a cohort that is there, with its split
    test_fraction: float  # of the phantom patients; a cohort's split says it itself
    classifier: ClassifierSettings  # the seed is set per cell
    unet: UNetSettings  # likewise
    earlier_block: int = 0  # of the classifier, whose maps Grad-CAM is tried on, too; 0: none


@dataclass(frozen=True)
class Source:
    """Where the patients come from: organ maps to make phantoms around, or a converted cohort with its split.

    Raises
    ------
    AutopetError
        Both or neither, or a cohort without a split.
    """

    organ_maps: Path | None = None
    data: Path | None = None
    split: Path | None = None

    def __post_init__(self) -> None:
        if (self.organ_maps is None) == (self.data is None):
            found = "both" if self.organ_maps else "neither"
            raise AutopetError(f"give either organ maps (--organ-maps) or a cohort (--data and --split), found {found}")
        if (self.data is None) != (self.split is None):
            raise AutopetError("a cohort (--data) and its split.csv (--split) belong together, found one of them")


@dataclass(frozen=True)
class Experiment:
    """Where the experiment happens, and how.

    `data` is the cohort's folder. `parts` says for each of its cases whether it is tested or trained on; without it a
    seed divides the patients.
    """

    out: Path
    data: Path
    budget: Budget
    phantoms: tuple[Phantom, ...]
    device: str
    parts: tuple[tuple[str, str], ...] = ()

    def part(self, seed: int, part: str) -> list[Phantom]:
        """The cases of the patients in `train` or `test`."""
        parts = dict(self.parts) or split_patients(
            [phantom.case for phantom in self.phantoms], test_fraction=self.budget.test_fraction, seed=seed
        )
        return [phantom for phantom in self.phantoms if (parts[phantom.case.name] == TEST) == (part == TEST)]

    def training(self, seed: int) -> list[Case]:
        """The training cases; the classifier holds some of their patients out by itself."""
        return [phantom.case for phantom in self.part(seed, "train")]

    def classifier(self, seed: int) -> ClassifierSettings:
        """Settings of the classifier of a seed."""
        return replace(self.budget.classifier, seed=seed)

    def unet(self, seed: int) -> UNetSettings:
        """Settings of both U-Nets of a seed."""
        return replace(self.budget.unet, seed=seed)

    def model(self, cell: Cell) -> Path:
        """Model folder of a cell."""
        return self.out / MODELS / cell.name

    def work(self, cell: Cell) -> Path:
        """Scratch folder of a cell's training."""
        return self.out / WORK / cell.name

    def masks(self, variant: str, seed: int) -> Path:
        """Predicted masks of the test cases, named by case."""
        return self.out / MASKS / Cell(variant, seed).name

    def labels(self, seed: int) -> Path:
        """Masks of the training cases, and the cohort of which they are the labels."""
        return self.out / LABELS / f"seed{seed}"

    def shown(self, rows: Sequence[Row]) -> Case:
        """The case of the picture: of a seed's test cases with lesions the one with the middle Dice by Score-CAM.

        Of an even number the better of the two in the middle.
        """
        ordered = sorted((row.dice, row.case) for row in rows if row.variant == MAPPED and row.positive)
        name = ordered[len(ordered) // 2][1]
        return next(phantom.case for phantom in self.phantoms if phantom.case.name == name)


def cells_of(seeds: int) -> dict[Cell, list[Cell]]:
    """All cells in the order in which they begin, with what each needs."""
    cells = [Cell(kind, seed) for kind in KINDS for seed in range(seeds)]
    return {cell: [Cell(WEAKCAM, cell.seed)] if cell.variant == PSEUDO else [] for cell in cells}


# --- variants --------------------------------------------------------------------------------------------------------


def read_as(method: str, reading: str) -> str:
    """Name of a method's rows with a reading of q_m; the default reading needs no word."""
    return method if reading == DEFAULT_READING else f"{method}-{reading}"


def earlier(block: int) -> str:
    """Name of Grad-CAM on an earlier block."""
    return f"{GRADCAM}-block{block}"


def thresholded(budget: Budget) -> list[str]:
    """The methods whose rows come in both readings of q_m, in the order of the tables."""
    block = [earlier(budget.earlier_block)] if budget.earlier_block else []
    return [*CAM_METHODS, *block, GLOBAL, THRESHOLD]


# --- a real cohort ---------------------------------------------------------------------------------------------------


def read_patients(data: Path, split_csv: Path) -> tuple[tuple[Phantom, ...], tuple[tuple[str, str], ...]]:
    """The labelled cases of a cohort, and the part of each; a case in `val` is trained on as one in `train` is.

    Raises
    ------
    AutopetError
        A table without the columns of a split, a case that it does not name, a part of another name, a patient in
        two parts, or a part without lesions.
    """
    cases = labelled(read_cohort(data))
    rows = read_table(split_csv)
    if not rows or not {"case", "part"} <= rows[0].keys():
        raise AutopetError(f"{split_csv}: expected the columns case and part; give the split.csv of `autopet split`")
    known = {row["case"]: row["part"] for row in rows}
    missing = [case.name for case in cases if case.name not in known]
    if missing:
        raise AutopetError(f"{split_csv} does not name {missing[0]} ({len(missing)} such); make the split anew")
    odd = next((case.name for case in cases if known[case.name] not in KNOWN_PARTS[3]), None)
    if odd:  # it would be trained on
        raise AutopetError(
            f"{split_csv} has the part {known[odd]!r} ({odd}), expected train, val or test; make the split anew"
        )
    tested = {case.patient_id for case in cases if known[case.name] == TEST}
    both = sorted(tested & {case.patient_id for case in cases if known[case.name] != TEST})
    if both:
        raise AutopetError(f"{split_csv} has patient {both[0]} in the part test and in another; make the split anew")
    for words, chosen in (("tested", True), ("trained on", False)):
        if not any(case.lesion_voxels for case in cases if (known[case.name] == TEST) == chosen):
            raise AutopetError(f"{split_csv}: no case that is {words} has a lesion; make the split anew")
    phantoms = tuple(Phantom(case, bool(case.lesion_voxels), misaligned=False) for case in cases)
    return phantoms, tuple((case.name, known[case.name]) for case in cases)


def refuse_shared_folders(out: Path, data: Path) -> None:
    """An experiment keeps a cohort of its own beside its other files: neither folder may lie in the other."""
    if out == data or data in out.parents or out in data.parents:
        raise AutopetError(f"{out} and {data} lie in each other; give another folder for the experiment (--out)")


def cohort_digest(phantoms: Sequence[Phantom], parts: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of a cohort's cases, the sizes of their files and their parts, to tell whether results belong to it."""
    cases = [phantom.case for phantom in phantoms]
    files = [(case.name, case.patient_id, file_sizes((case.suv, case.ct, case.mask))) for case in cases]
    return hashlib.sha256(repr((files, list(parts))).encode()).hexdigest()
