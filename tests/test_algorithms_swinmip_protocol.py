"""The protocol of swinmip with networks whose answers are counted by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip import protocol, train
from algorithms.swinmip.division import Division, divide, gate_problem, positives, read_division
from algorithms.swinmip.model import PRESETS, Settings
from algorithms.swinmip.protocol import Frame, left_out_dice
from algorithms.swinmip.tables import spread
from autopet.checkpoint import CONFIG, SUMS, read_config
from autopet.cohort import Case, read_table, select_part
from autopet.errors import AutopetError

HOLDOUT = replace(PRESETS["demo"], folds=2, test_share=0.25, spacing_mm=(2.0, 2.0, 3.0))
PAPER = replace(HOLDOUT, protocol="paper")
LESIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
# probability of the four lesion voxels and of one background voxel, by fold
VOXELS = {0: (0.602, 0.302), 1: (0.302, 0.094)}
FRAME = Frame((-800.0, 500.0), (1.0, 30.0), (2.0, 2.0, 3.0))


def make_cases(folder: Path, **kinds: int | None) -> list[Case]:
    """Cases named `<patient>_<study>` with files of one byte; values are their lesion voxels."""
    found = []
    for name, voxels in kinds.items():
        case = Case(name, name.partition("_")[0], folder / name, "FDG", "A", voxels)
        case.folder.mkdir(parents=True, exist_ok=True)
        for path in (case.ct, case.suv, case.mask):
            path.write_bytes(b"x")
        found.append(case)
    return found


def mixed(folder: Path) -> list[Case]:
    """Eight patients with lesions and eight without; a quarter of each makes two and two for the test part."""
    return make_cases(folder, **{f"p{i}": 4 for i in range(8)}, **{f"n{i}": 0 for i in range(8)})


@dataclass
class StandIns:
    """Networks that know their fold; the second positive test case is half as bright as all others."""

    faint: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    trained: list[tuple] = field(default_factory=list)  # trainings from the start: kind, fold, training, validation
    frames: list[Frame] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    predicted: list[tuple] = field(default_factory=list)

    def check(self, cases: Sequence[Case]) -> None:
        self.checked += [case.name for case in cases]

    def measure(self, cases: Sequence[Case]) -> Frame:
        self.measured = [case.name for case in cases]
        return FRAME

    def train_segmenter(self, training, validation, frame, *, fold, work, out):
        self._train("segmenter", fold, training, validation, frame, work, out)
        return {"kept_cycle": fold, "topk_auroc": 0.9}

    def train_classifier(self, axis, training, validation, frame, *, fold, work, out):
        self._train(axis, fold, training, validation, frame, work, out)
        auroc = {"x": (0.9, 0.8), "y": (0.7, math.nan)}[axis][fold]
        return {"kept_cycle": None, "auroc": auroc}

    def _train(self, kind, fold, training, validation, frame, work: Path, out: Path) -> None:
        """One whose checkpoint is there goes on; it is no new training."""
        self.frames.append(frame)
        names = [[case.name for case in part] for part in (training, validation)]
        if not (work / "checkpoint").exists():
            self.trained.append((kind, fold, *map(tuple, names)))
        (work / "checkpoint").touch()
        (work / "metrics.csv").write_text(f"cycle\n{fold}\n")
        out.write_text(json.dumps({"kind": kind, "fold": fold, "training": names[0]}))

    def probability(self, weights, case, frame):
        self.predicted.append((len(weights), case.name))
        folds = [json.loads(path.read_text())["fold"] for path in weights]
        bright, dark = np.mean([VOXELS[fold] for fold in folds], axis=0) / (2 if case.name == self.faint else 1)
        return LESIONS, np.array([bright] * 4 + [dark] + [0.0] * 5)

    def score(self, weights, case, frame):
        files = {axis: [json.loads(path.read_text()) for path in paths] for axis, paths in weights.items()}
        assert {axis: [(f["kind"], f["fold"]) for f in found] for axis, found in files.items()} == {
            axis: [(axis, 0), (axis, 1)] for axis in ("x", "y")
        }
        return self.scores[case.name]


def stand_ins(cases: Sequence[Case], settings: Settings) -> StandIns:
    """Scores of the positive test cases 0.5 and 0.8, of the negative ones 0.46 and 0.3."""
    division = division_of(cases, settings)
    with_lesions = [case.name for case in division.test if case.lesion_voxels]
    without = [case.name for case in division.test if not case.lesion_voxels]
    scores = dict(zip(with_lesions, (0.5, 0.8), strict=False)) | dict(zip(without, (0.46, 0.3), strict=False))
    return StandIns(with_lesions[-1] if len(with_lesions) > 1 else "", scores)


def division_of(cases: Sequence[Case], settings: Settings) -> Division:
    rows = [{key: str(value) for key, value in row.items()} for row in divide(cases, settings)]
    return read_division(rows, cases, settings.folds)


def run(cases: Sequence[Case], folder: Path, settings: Settings, networks: StandIns) -> Path:
    return train.run_protocol(
        cases, folder / "model", settings=settings, work=folder / ".work-model", networks=networks
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StandIns, list[Case]]:
    """Protocol `paper`, without interruption."""
    root = tmp_path_factory.mktemp("published")
    cases = mixed(root / "cohort")
    networks = stand_ins(cases, PAPER)
    return run(cases, root, PAPER, networks), networks, cases


# Who goes where


def test_a_share_of_both_kinds_is_tested_on_and_the_rest_dealt_into_folds(tmp_path: Path):
    division = division_of(mixed(tmp_path), HOLDOUT)
    assert len(positives(division.test)) == 2
    assert len(division.test) == 4
    assert [len(fold) for fold in division.folds] == [6, 6]
    assert [len(positives(fold)) for fold in division.folds] == [3, 3]
    everybody = [case.name for part in (division.test, *division.folds) for case in part]
    assert sorted(everybody) == sorted(case.name for case in mixed(tmp_path))
    assert [case.name for case in division.training(0)] == [case.name for case in division.folds[1]]


def test_the_studies_of_a_patient_stay_together(tmp_path: Path):
    """Also those without lesions of a patient with lesions."""
    studies = {f"p{i}_{k}": voxels for i in range(8) for k, voxels in enumerate((4, 0, 7))}
    division = division_of(make_cases(tmp_path, **studies, **{f"n{i}_0": 0 for i in range(4)}), HOLDOUT)
    homes: dict[str, set[int]] = {}
    for place, part in enumerate((division.test, *division.folds)):
        for case in part:
            homes.setdefault(case.patient_id, set()).add(place)
    assert all(len(places) == 1 for places in homes.values())
    assert Counter(next(iter(places)) for patient, places in homes.items() if patient[0] == "p") == {0: 2, 1: 3, 2: 3}
    assert len(positives(division.test)) == 4  # two patients with two such studies each


@pytest.mark.parametrize(
    ("kinds", "changes", "message"),
    [
        ({"n0": 0, "n1": 0}, {}, "no case has lesions"),
        (
            {f"p{i}": 4 for i in range(4)},
            {"test_share": 0.1},
            "0.1 of 4 patients .* nobody.* test_share to 0.25",
        ),
        ({f"p{i}": 4 for i in range(5)}, {"folds": 5}, "each of 5 folds .* 4 of 5 are left .* use 4 folds"),
        ({"p0": 4, "p1": 4, "n0": 0}, {"test_share": 0.5}, "1 of 2 are left .* use a smaller test_share"),
    ],
)
def test_too_few_cases_are_an_error_that_says_what_to_do(tmp_path: Path, kinds: dict, changes: dict, message: str):
    cases = make_cases(tmp_path / "cohort", **kinds)
    with pytest.raises(AutopetError, match=message):
        run(cases, tmp_path, replace(HOLDOUT, **changes), StandIns())


def test_the_advice_on_the_test_share_helps(tmp_path: Path):
    cases = make_cases(tmp_path, **{f"p{i}": 4 for i in range(4)})
    assert len(division_of(cases, replace(HOLDOUT, test_share=0.25)).test) == 1


def test_written_split_is_one_of_autopet_split(published: tuple):
    folder, _, cases = published
    division = division_of(cases, PAPER)
    assert {case.name for case in select_part(cases, folder / "split.csv", "test")} == {c.name for c in division.test}
    for fold in (0, 1):
        for part, expected in ((f"fold{fold}", division.folds[fold]), (f"not-fold{fold}", division.training(fold))):
            found = select_part(cases, folder / "split.csv", part)
            assert {case.name for case in found} == {case.name for case in expected}


# The course of it


def test_trainings_see_the_cases_of_figure_2(published: tuple):
    _, networks, cases = published
    division = division_of(cases, PAPER)
    names = {0: tuple(c.name for c in division.folds[0]), 1: tuple(c.name for c in division.folds[1])}
    marked = {fold: tuple(name for name in names[fold] if name[0] == "p") for fold in names}
    joined = {
        fold: tuple(sorted([*marked[fold], *(c.name for c in division.test if c.name[0] == "p")])) for fold in names
    }
    first = [("segmenter", fold, marked[1 - fold], marked[fold]) for fold in (0, 1)]
    classifiers = [(axis, fold, names[1 - fold], names[fold]) for axis in ("x", "y") for fold in (0, 1)]
    second = [("segmenter", fold, joined[1 - fold], marked[fold]) for fold in (0, 1)]
    assert networks.trained == [*first, *classifiers, *second]
    assert sorted(networks.measured) == sorted([*names[0], *names[1]])  # ranges and spacing: without the test part
    assert set(networks.frames) == {FRAME}  # in the second round, too


def test_networks_are_judged_by_cases_that_they_did_not_see(published: tuple):
    _, networks, cases = published
    division = division_of(cases, PAPER)
    alone = [(1, case.name) for fold in division.folds for case in positives(fold)]
    together = [(2, case.name) for case in positives(division.test)]
    assert networks.predicted == [*alone, *together]


def test_holdout_publishes_the_first_round_and_paper_the_second(published: tuple, tmp_path: Path):
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, HOLDOUT)
    folder = run(cases, tmp_path, HOLDOUT, networks)
    assert [kind for kind, *_ in networks.trained] == ["segmenter", "segmenter", "x", "x", "y", "y"]
    test = {case.name for case in division_of(cases, HOLDOUT).test if case.lesion_voxels}
    for model, seen in ((folder, set()), (published[0], test)):
        for fold in (0, 1):
            training = set(json.loads((model / f"segmenter_fold{fold}.safetensors").read_text())["training"])
            assert training & test == seen
            assert len(training) == 3 + len(seen)
        config = read_config(model, method="swinmip")
        assert set(config["training_cases"]) & test == seen
        assert set(config["test_cases"]) >= test
    assert not (folder / "metrics/first_round_segmenter_fold0.csv").exists()


def test_console_counts_the_steps_and_ends_with_the_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    cases = [*mixed(tmp_path / "cohort"), *make_cases(tmp_path / "cohort", u0=None, u1=None)]
    run(cases, tmp_path, PAPER, stand_ins(cases[:16], PAPER))
    text = capsys.readouterr().err
    # split, ranges; 2 segmenters, 2 thresholds, 1 of the ensemble; 4 classifiers, the gate; 2 segmenters; publishing
    assert re.findall(r"step (\d+) of (\d+)", text) == [(str(i), "15") for i in range(1, 16)]
    assert "left out, without a lesion mask: u0, u1" in text
    table = text[text.index("step 15") :]
    assert re.search(r"ensemble\W+2 test\W+best\W+0\.21\W+1\.0000", table)
    assert "y 70.00 (1 of 2 folds). Each fold kept its best cycle by it, so it is too high for new cases." in table
    assert "all 2 test cases with lesions reach is 0.5 and would catch 2 of 2" in table


# What comes out


def test_thresholds_by_hand(published: tuple):
    """Fold 0 has 0.602 in lesions and 0.302 beside them: Dice 1 from 0.305 to 0.6, 60 thresholds, the 30th is 0.45.

    Fold 1: 0.302 and 0.094, so 0.095 to 0.3, the middle of 42 is 0.195. The ensemble: 0.452 and 0.198, in the faint
    case 0.226 and 0.099; both are right from 0.2 to 0.225, the 3rd of 6 is 0.21. Below 0.198 the other case has a
    voxel too many, 8/9; above 0.226 the faint one is empty. Without the faint case the best is the middle of 0.2 to
    0.45, 0.325, where that case has Dice 0; without the other one that of 0.1 to 0.225, 0.16, where that has 8/9.
    """
    folder = published[0]
    found = [
        (
            row["networks"],
            row["cases"],
            row["number_of_cases"],
            row["choice"],
            row["threshold"],
            float(row["mean_dice"]),
        )
        for row in rows_of(folder / "thresholds.csv")
    ]
    expected = [
        ("fold0", "validation", "3", "best", "0.45", 1.0),
        ("fold0", "validation", "3", "0.5", "0.5", 1.0),
        ("fold0", "validation", "3", "best on the other cases", "", 1.0),
        ("fold1", "validation", "3", "best", "0.195", 1.0),
        ("fold1", "validation", "3", "0.5", "0.5", 0.0),
        ("fold1", "validation", "3", "best on the other cases", "", 1.0),
        ("ensemble", "test", "2", "best", "0.21", 1.0),
        ("ensemble", "test", "2", "0.5", "0.5", 0.0),
        ("ensemble", "test", "2", "mean of the folds", "0.3225", 0.5),
        ("ensemble", "test", "2", "minimum of the folds", "0.195", 17 / 18),
        ("ensemble", "test", "2", "best on the other cases", "", 4 / 9),
    ]
    assert [row[:5] for row in found] == [row[:5] for row in expected]
    assert [row[5] for row in found] == pytest.approx([row[5] for row in expected], abs=1e-6)
    assert read_config(folder, method="swinmip")["threshold"] == 0.21


def test_left_out_dice_of_two_opposite_cases():
    """One is best at 0.2 alone, the other at 0.6 alone; each gets the other's threshold."""
    curves = np.zeros((2, 199))
    curves[0, [39, 119]] = (0.9, 0.3)
    curves[1, [39, 119]] = (0.1, 0.8)
    assert left_out_dice(curves) == pytest.approx((0.3 + 0.1) / 2)


def test_gate_by_hand(published: tuple):
    folder, networks, _ = published
    gate = read_config(folder, method="swinmip")["gate"]
    assert gate.pop("threshold") == pytest.approx(0.45, abs=1e-6)
    counts = {"positives": 2, "negatives": 2, "negatives_caught": 1}
    assert gate == {"highest": 0.5, "margin": 0.1, **counts}
    caught = {float(row["margin"]): (int(row["negatives_caught"]), row["used"]) for row in rows_of(folder / "gate.csv")}
    assert caught[0.0] == (2, "no")  # 0.46 and 0.3 lie below 0.5
    assert caught[0.1] == (1, "yes")  # 0.3 lies below 0.45
    assert caught[0.3] == (1, "no")
    assert caught[0.5] == (0, "no")  # none below 0.25
    assert {row["case"]: float(row["score"]) for row in rows_of(folder / "scores.csv")} == networks.scores


def test_projections_by_hand(published: tuple):
    rows = {(row["projection"], row["fold"]): row["auroc"] for row in rows_of(published[0] / "projections.csv")}
    expected = {("x", "0"): 0.9, ("x", "1"): 0.8, ("x", "mean"): 0.85, ("x", "std"): math.sqrt(0.005)}
    assert {key: float(rows[key]) for key in expected} == pytest.approx(expected, abs=1e-6)
    assert rows["y", "1"] == ""  # unknown, and not 0 or nan
    assert (rows["y", "mean"], rows["y", "std"]) == ("0.7", "")
    assert spread([None]).known == 0


def test_model_folder_is_whole(published: tuple):
    folder, _, cases = published
    weights = [f"segmenter_fold{f}" for f in (0, 1)] + [f"classifier_{a}_fold{f}" for a in "xy" for f in (0, 1)]
    metrics = [*weights, "first_round_segmenter_fold0", "first_round_segmenter_fold1"]
    tables = ["split.csv", "thresholds.csv", "projections.csv", "gate.csv", "scores.csv"]
    texts = [CONFIG, SUMS, "README.md", "dice.svg", "gate.svg"]
    names = {*tables, *texts, *(f"{w}.safetensors" for w in weights), *(f"metrics/{m}.csv" for m in metrics)}
    assert set(files_of(folder)) == names
    assert not (folder.parent / ".work-model").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cohort", "model"]
    config = read_config(folder, method="swinmip")
    assert config["channels"] == ["CT", "PET"]
    assert config["spacing_mm"] == [2.0, 2.0, 3.0]
    assert config["ranges"] == {"ct_hu": [-800.0, 500.0], "pet_suv": [1.0, 30.0]}
    assert config["kept_cycles"] == {"segmenter": [0, 1], "classifier_x": [None, None], "classifier_y": [None, None]}
    assert config["gate_reason"] == ""
    assert sorted({*config["training_cases"], *config["test_cases"]}) == sorted(case.name for case in cases)
    assert "0.21" in (folder / "README.md").read_text()


def test_figures_show_the_numbers(published: tuple):
    """Positions are linear: threshold 0.21 lies 0.21 of the way along the axis, Dice 1 at the top."""
    space = {"svg": "http://www.w3.org/2000/svg"}
    dice = ElementTree.parse(published[0] / "dice.svg").getroot()
    lines = dice.findall("svg:polyline", space)
    assert len(lines) == 3
    assert all(len(line.attrib["points"].split()) == 199 for line in lines)
    frame = dice.findall("svg:rect", space)[1].attrib
    left, top, width, height = (float(frame[key]) for key in ("x", "y", "width", "height"))
    marks = [circle.attrib for circle in dice.findall("svg:circle", space) if float(circle.attrib["cx"]) < left + width]
    assert [(float(m["cx"]) - left) / width for m in marks] == pytest.approx([0.45, 0.195, 0.21], abs=1e-4)
    assert [(float(m["cy"]) - top) / height for m in marks] == pytest.approx([0, 0, 0], abs=1e-4)
    ensemble = [point.split(",") for point in lines[-1].attrib["points"].split()]
    heights = [1 - (float(y) - top) / height for _, y in ensemble]
    assert [heights[k - 1] for k in (10, 30, 41, 60, 100)] == pytest.approx([8 / 9, 17 / 18, 1, 0.5, 0], abs=1e-3)
    gate = ElementTree.parse(published[0] / "gate.svg").getroot()
    dots = [(float(circle.attrib["cx"]) - left) / width for circle in gate.findall("svg:circle", space)]
    assert dots == pytest.approx([0.5, 0.8, 0.3, 0.46], abs=1e-4)
    upright = [line.attrib for line in gate.findall("svg:line", space) if "stroke-dasharray" in line.attrib]
    assert [(float(line["x1"]) - left) / width for line in upright] == pytest.approx([0.5, 0.45], abs=1e-4)


@pytest.mark.parametrize("name", ["dice.svg", "gate.svg"])
def test_no_words_of_the_figures_are_cut_off(published: tuple, name: str):
    """A letter of DejaVu Sans, which Linux shows, is 0.55 of the font's height wide on average in such words."""
    picture = ElementTree.parse(published[0] / name).getroot()
    height = float(picture.attrib["font-size"])
    shares = {"start": 0.0, "middle": 0.5, "end": 1.0}  # of the words before their x
    upright = [text for text in picture.findall("{http://www.w3.org/2000/svg}text") if "transform" not in text.attrib]
    assert len(upright) > 9
    for text in upright:
        wide = 0.55 * height * len(text.text or "")
        left = float(text.attrib["x"]) - shares[text.attrib.get("text-anchor", "start")] * wide
        assert left >= 0, text.text
        assert left + wide <= float(picture.attrib["width"]), text.text


# Without a gate


def test_sixteen_patients_without_any_negative_need_no_gate(tmp_path: Path, capsys: pytest.CaptureFixture):
    """The paper's own settings: 5 folds, and a tenth of the patients, two, for the test part."""
    settings = PRESETS["paper"]
    cases = make_cases(tmp_path / "cohort", **{f"p{i:02d}": 4 for i in range(16)})
    networks = stand_ins(cases, settings)
    networks.probability = lambda weights, case, frame: (LESIONS, np.where(LESIONS, 0.9, 0.1))  # type: ignore[method-assign]
    folder = run(cases, tmp_path, settings, networks)
    assert [entry[:2] for entry in networks.trained] == [("segmenter", fold) for fold in (*range(5), *range(5))]
    assert [len(entry[2]) + len(entry[3]) for entry in networks.trained] == [14] * 5 + [16] * 5
    config = read_config(folder, method="swinmip")
    assert config["gate"] is None
    assert "no case without lesions" in config["gate_reason"]
    assert "no case without lesions" in (folder / "README.md").read_text()
    text = capsys.readouterr().err
    assert "no classifiers are trained: the cohort has no case without lesions" in text
    assert re.findall(r"step (\d+) of (\d+)", text)[-1] == ("19", "19")
    absent = {"gate.csv", "scores.csv", "projections.csv", "gate.svg"}
    assert not absent & {path.name for path in folder.iterdir()}
    assert not list(folder.glob("classifier*"))


@pytest.mark.parametrize(
    ("negatives", "changes", "reason"),
    [
        (8, {"gate": False}, "the setting gate is off"),
        (1, {}, "cases of at least two patients"),
        (2, {"test_share": 0.2}, "the test part has no case without lesions"),
        (8, {}, ""),
    ],
)
def test_reasons_for_no_gate(tmp_path: Path, negatives: int, changes: dict, reason: str):
    settings = replace(HOLDOUT, **changes)
    cases = make_cases(tmp_path, **{f"p{i}": 4 for i in range(8)}, **{f"n{i}": 0 for i in range(negatives)})
    found = gate_problem(division_of(cases, settings), settings)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize("settings", [PAPER, HOLDOUT])
def test_without_a_gate_no_network_has_seen_a_case_without_lesions(tmp_path: Path, settings: Settings):
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, settings)
    folder = run(cases, tmp_path, replace(settings, gate=False), networks)
    published = networks.trained[-settings.folds :]
    seen = {name for _, _, training, validation in published for name in (*training, *validation)}
    assert read_config(folder, method="swinmip")["training_cases"] == sorted(seen)
    assert {name[0] for name in seen} == {"p"}


# Broken off and resumed


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@contextmanager
def killed_after(count: int, monkeypatch: pytest.MonkeyPatch, *, suffix: str = "") -> Iterator[None]:
    """The process ends after its `count`-th file of the work folder, or its `count`-th of a kind."""
    written = [0]
    whole_file = protocol.whole_file

    @contextmanager
    def counting(path: Path) -> Iterator[Path]:
        with whole_file(path) as part:
            yield part
        written[0] += path.name.endswith(suffix)
        if written[0] == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "whole_file", counting)
        yield


def test_a_protocol_killed_after_every_result_goes_on_and_publishes_the_same(
    published: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every call is killed after one new result, until one has nothing left to write."""
    folder, unbroken, _ = published
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, PAPER)
    calls = 0
    while not (tmp_path / "model").exists():
        calls += 1
        assert calls < 100
        with killed_after(1, monkeypatch, suffix=".json"):
            try:
                run(cases, tmp_path, PAPER, networks)
            except Killed:
                assert not (tmp_path / "model").exists()
    # ranges 1; 8 trainings; 6 cases and 2 thresholds of folds; 2 cases and the ensemble's; 4 scores and the gate
    assert calls == 1 + 8 + 8 + 3 + 5 + 1
    assert networks.checked == unbroken.checked == sorted(case.name for case in cases)  # by the first call alone
    assert networks.trained == unbroken.trained  # each one once, in the same order
    assert networks.predicted == unbroken.predicted
    assert files_of(tmp_path / "model") == files_of(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 9, 12, 13, 16, 24, 29, 33])
def test_one_kill_late_or_early(published: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int):
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, PAPER)
    with killed_after(count, monkeypatch), pytest.raises(Killed):
        run(cases, tmp_path, PAPER, networks)
    run(cases, tmp_path, PAPER, networks)
    assert networks.trained == published[1].trained
    assert files_of(tmp_path / "model") == files_of(published[0])


@pytest.mark.parametrize("name", ["publish_model", "remove_at_once"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_publishing(
    published: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
):
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, PAPER)
    real = getattr(train, name)

    def broken(*arguments):
        if moment == "after":
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, name, broken)
        with pytest.raises(Killed):
            run(cases, tmp_path, PAPER, networks)
    if (name, moment) != ("remove_at_once", "after"):  # after it all is done, and a new call a new training
        run(cases, tmp_path, PAPER, networks)
    assert networks.trained == published[1].trained
    assert files_of(tmp_path / "model") == files_of(published[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "model"]


def test_a_half_removed_work_folder_does_not_stand_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = mixed(tmp_path / "cohort")
    with monkeypatch.context() as patch:
        patch.setattr(train.shutil, "rmtree", lambda path, **_: path.name.startswith(".old-.work") and kill())
        with pytest.raises(Killed):
            run(cases, tmp_path, HOLDOUT, stand_ins(cases, HOLDOUT))
    assert any(path.name.startswith(".old-.work-model-") for path in tmp_path.iterdir())
    run(cases, tmp_path, HOLDOUT, stand_ins(cases, HOLDOUT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "model"]


def kill() -> None:
    raise Killed


def test_a_broken_training_keeps_its_checkpoint(tmp_path: Path):
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, HOLDOUT)
    whole, seen = networks._train, []

    def broken(kind, fold, training, validation, frame, work, out):
        whole(kind, fold, training, validation, frame, work, out)
        seen.append(kind)
        if len(seen) == 4:
            raise Killed

    networks._train = broken  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(cases, tmp_path, HOLDOUT, networks)
    assert (tmp_path / ".work-model/first/classifier_x_fold1/work/checkpoint").exists()
    assert not (tmp_path / ".work-model/first/classifier_x_fold0").exists()  # done: its checkpoint is gone
    run(cases, tmp_path, HOLDOUT, networks)
    assert [entry[:2] for entry in networks.trained] == [
        (kind, fold) for kind in ("segmenter", "x", "y") for fold in (0, 1)
    ]


def test_half_written_checkpoints_and_weights_of_killed_calls_do_not_pile_up(tmp_path: Path):
    """A gigabyte each time that a job is thrown off its machine while it saves."""
    cases = mixed(tmp_path / "cohort")
    networks = stand_ins(cases, HOLDOUT)
    whole, found = networks._train, []

    def broken(kind, fold, training, validation, frame, work, out):
        found.append([path.name for folder in (work, out.parent) for path in folder.glob(".part-*")])
        whole(kind, fold, training, validation, frame, work, out)
        for path in (work / "checkpoint.pth", out):
            path.with_name(f".part-0123456{len(found)}-{path.name}").touch()
        if len(found) < 3:
            raise Killed

    networks._train = broken  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(Killed):
            run(cases, tmp_path, HOLDOUT, networks)
        assert (tmp_path / ".work-model/first/segmenter_fold0/work/checkpoint").exists()
    run(cases, tmp_path, HOLDOUT, networks)
    assert found == [[]] * 8


def test_another_training_s_work_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = mixed(tmp_path / "cohort")
    with killed_after(4, monkeypatch), pytest.raises(Killed):
        run(cases, tmp_path, PAPER, stand_ins(cases, PAPER))
    before = files_of(tmp_path / ".work-model")
    for other, settings in (
        (cases[1:], PAPER),
        (cases, HOLDOUT),
        ([replace(cases[0], tracer="PSMA"), *cases[1:]], PAPER),
    ):
        with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
            run(other, tmp_path, settings, StandIns())
    assert files_of(tmp_path / ".work-model") == before
    changed = replace(PAPER, workers=3, checkpoint_every=7)  # how it is run, not what it makes
    run(cases, tmp_path, changed, stand_ins(cases, PAPER))


def test_what_would_fail_at_the_end_is_refused_at_the_start(tmp_path: Path):
    cases, networks = mixed(tmp_path / "cohort"), StandIns()
    for name in ("btcv", "imagenet"):
        with pytest.raises(AutopetError, match=f"{name}=/nowhere/w.pt: there is no such file"):
            run(cases, tmp_path, replace(HOLDOUT, **{name: "/nowhere/w.pt"}), networks)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/holiday.jpg").touch()
    with pytest.raises(AutopetError, match="holds other files"):
        run(cases, tmp_path, HOLDOUT, networks)
    assert networks.trained == []


def test_table_of_the_split_names_the_lesions(published: tuple):
    rows = read_table(published[0] / "split.csv")
    assert {row["case"][0]: row["lesions"] for row in rows} == {"p": "positive", "n": "negative"}
