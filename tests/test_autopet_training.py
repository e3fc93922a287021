"""The training that methods share: broken off it ends the same; what is kept, who is held out, files of weights."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autopet.checkpoint import load_weights, save_weights
from autopet.cohort import Case
from autopet.errors import AutopetError

torch = pytest.importorskip("torch")

from autopet import training  # noqa: E402
from autopet.training import (  # noqa: E402
    CHECKPOINT,
    METRICS,
    Training,
    epoch_batches,
    hold_out,
    polynomial_rate,
)

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, BATCH = 5, 2  # items of an epoch, and of a batch: three batches, the last of one item
STEPS = 3


@dataclass(frozen=True)
class Settings:
    epochs: int = 4
    learning_rate: float = 0.1
    decay_power: float = 0.9
    validation_every: int = 2
    checkpoint_every: int = 1
    workers: int = 0


class Points(torch.utils.data.Dataset):
    """Item i is the same whoever asks for it, and when."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        point = torch.rand(3, generator=torch.Generator().manual_seed(index))
        return point, (point.sum(dim=0, keepdim=True) > 1.5).float()


@dataclass
class Toy(Training):
    """A network of four weights, validated in every second epoch by what `answers` says."""

    answers: tuple[float, ...] = ()
    lowest: bool = False

    columns = ("twice", "epoch", "learning_rate", "train_loss", "val_answer", "seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        torch.manual_seed(5)
        self.network = torch.nn.Linear(3, 1).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.settings.learning_rate)
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.started, self.trained = 0, []

    def start(self) -> None:
        self.started += 1

    def begin_epoch(self) -> dict[str, Any]:
        self.set_rate(polynomial_rate(self.settings, self.epoch))
        return {"twice": 2 * self.epoch}

    def validate(self) -> dict[str, Any]:
        if not self.answers or not self.ends(self.settings.validation_every):
            return {"val_answer": None}
        answer = self.answers[self.epoch // self.settings.validation_every]
        self.keep_best("answer", answer, lowest=self.lowest, epoch=self.epoch)
        return {"val_answer": answer}

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> float:
        self.trained.append(self.epoch)
        return super().step(images, targets)

    def fit(self) -> Toy:
        batches = partial(epoch_batches, epochs=self.epochs, count=COUNT, batch=BATCH)
        self.train(Points(), batches, steps=STEPS, title="toy")
        return self


class Cyclic(Toy):
    """With momentum, whose rate falls with every batch and jumps up again after two epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer = torch.optim.SGD(self.network.parameters(), self.settings.learning_rate, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.optimizer, T_0=2 * STEPS)
        self.rates = []

    def begin_epoch(self) -> dict[str, Any]:
        return {"twice": 2 * self.epoch}

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> float:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().step(images, targets)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: row[key] for key in row if key != "seconds"} for row in rows]


def rows_of(work: Path) -> list[dict[str, str]]:
    with (work / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


def break_off(run: Toy, *, before: int) -> None:
    """Train as far as `before` steps, then stop as a kill would."""
    step, left = run.step, [None] * before

    def dying(*batch: torch.Tensor) -> float:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return step(*batch)

    run.step = dying
    with pytest.raises(KeyboardInterrupt):
        run.fit()


# Broken off and resumed


@pytest.mark.parametrize("kind", [Toy, Cyclic])
@pytest.mark.parametrize("checkpoint_every", [1, 2, 3])
def test_a_training_broken_off_anywhere_ends_the_same(kind: type[Toy], checkpoint_every: int, tmp_path: Path):
    """Weights, optimizer, what was kept, and the table, to the last bit."""
    settings = Settings(checkpoint_every=checkpoint_every)
    answers = (0.8, 0.7)
    whole = kind(settings, tmp_path / "whole", "cpu", answers).fit()
    for before in range(settings.epochs * STEPS):
        work = tmp_path / str(before)
        break_off(kind(settings, work, "cpu", answers), before=before)
        torch.rand(3)  # random numbers of others do not matter
        again = kind(settings, work, "cpu", answers).fit()
        first = before // STEPS // checkpoint_every * checkpoint_every  # epoch after the last checkpoint
        assert again.trained == [epoch for epoch in range(first, 4) for _ in range(STEPS)]
        assert again.started == (first == 0)
        assert same(again.network.state_dict(), whole.network.state_dict())
        assert same(again.final_weights(), whole.final_weights())
        assert (again.best["epoch"], again.best["answer"]) == (1, 0.8)
        assert without_seconds(again.rows) == without_seconds(whole.rows)
        assert without_seconds(rows_of(work)) == without_seconds(rows_of(tmp_path / "whole"))
        ours, theirs = again.optimizer.state_dict(), whole.optimizer.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert all(same(ours["state"][number], theirs["state"][number]) for number in theirs["state"])


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = Toy(Settings(), tmp_path / "whole", "cpu").fit()
    save, count = torch.save, 0

    def dying(state: dict, path: Path) -> None:
        nonlocal count
        count += 1
        if count == 3:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        Toy(Settings(), tmp_path / "work", "cpu").fit()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [CHECKPOINT, METRICS]
    again = Toy(Settings(), tmp_path / "work", "cpu").fit()
    assert again.trained == [2] * STEPS + [3] * STEPS
    assert same(again.network.state_dict(), whole.network.state_dict())


def test_a_finished_training_is_not_done_again(tmp_path: Path):
    first = Toy(Settings(), tmp_path, "cpu", (0.5, 0.6)).fit()
    (tmp_path / METRICS).unlink()
    again = Toy(Settings(), tmp_path, "cpu", (0.5, 0.6)).fit()
    assert (again.trained, again.started) == ([], 0)
    assert same(again.final_weights(), first.final_weights())
    assert len(rows_of(tmp_path)) == 4


def test_workers_do_not_change_the_weights(tmp_path: Path):
    alone, helped = (
        Toy(Settings(epochs=2, workers=workers), tmp_path / str(workers), "cpu").fit() for workers in (0, 2)
    )
    assert same(alone.network.state_dict(), helped.network.state_dict())


def test_a_scheduler_is_stepped_after_every_batch_and_keeps_its_place(tmp_path: Path):
    by_hand = [0.1 * (1 + math.cos(math.pi * place / 6)) / 2 for place in range(6)] * 2
    broken = Cyclic(Settings(), tmp_path, "cpu")
    break_off(broken, before=4)  # the second batch of the second epoch is to come
    assert broken.rates == pytest.approx(by_hand[:4])
    again = Cyclic(Settings(), tmp_path, "cpu").fit()
    assert again.rates == pytest.approx(by_hand[STEPS:])
    assert [row["learning_rate"] for row in again.rows] == pytest.approx(by_hand[::STEPS])  # of an epoch's first batch


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_counters_of_the_optimizer_stay_in_main_memory_on_every_device(tmp_path: Path):
    """Torch makes Adam's there; read back to the weights' device, every step of a resumed training would wait."""
    Toy(Settings(epochs=1), tmp_path, "cpu").fit()
    elsewhere = Toy(Settings(epochs=1), tmp_path, "meta")  # a device that is on every machine
    assert elsewhere._resume()
    for state in elsewhere.optimizer.state.values():
        assert {name: state[name].device.type for name in state} == {
            "step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"
        }  # fmt: skip
        assert float(state["step"]) == STEPS


# The loop


def test_the_table_of_a_training(tmp_path: Path):
    run = Toy(Settings(), tmp_path, "cpu", (0.25, 0.5)).fit()
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == Toy.columns
    assert [(row["twice"], row["epoch"]) for row in rows] == [("0", "0"), ("2", "1"), ("4", "2"), ("6", "3")]
    rates = [0.1 * share**0.9 for share in (1.0, 0.75, 0.5, 0.25)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)
    assert [row["val_answer"] for row in rows] == ["", "0.25", "", "0.5"]
    assert all(float(row["seconds"]) >= 0 for row in rows)
    # the first epoch by hand: Adam on the first five points, by twos
    torch.manual_seed(5)
    network = torch.nn.Linear(3, 1)
    optimizer, losses = torch.optim.Adam(network.parameters(), 0.1), []
    for places in ((0, 1), (2, 3), (4,)):
        points, targets = (torch.stack(part) for part in zip(*(Points()[place] for place in places), strict=True))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(points), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert run.rows[0]["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Toy(Settings(), tmp_path, "cpu")
    before = {key: tensor.clone() for key, tensor in run.network.state_dict().items()}
    batch = torch.full((2, 3), torch.nan), torch.zeros(2, 1)
    with pytest.raises(AutopetError) as caught:
        run.step(*batch)
    assert str(caught.value) == "the loss of epoch 0 is nan; lower learning_rate, or look at the images"
    assert same(run.network.state_dict(), before)
    monkeypatch.setattr(Toy, "epoch_name", "the helper's epoch")
    monkeypatch.setattr(Toy, "rate_setting", "helper_rate")
    run.epoch = 7
    with pytest.raises(AutopetError, match="^the loss of the helper's epoch 7 is nan; lower helper_rate, or look"):
        run.step(*batch)


def test_epochs_that_end_something():
    run = Toy(Settings(epochs=8), Path(), "cpu")

    def ending(count: int) -> list[int]:
        found = []
        for run.epoch in range(8):
            found += [run.epoch] if run.ends(count) else []
        return found

    assert (ending(3), ending(8), ending(10)) == ([2, 5, 7], [7], [7])


@pytest.mark.parametrize(
    ("first_epoch", "count", "batch", "found"),
    [
        (0, 5, 2, [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]),
        (1, 5, 2, [[5, 6], [7, 8], [9]]),
        (1, 4, 2, [[4, 5], [6, 7]]),
        (0, 2, 5, [[0, 1], [2, 3]]),
        (2, 5, 2, []),
    ],
)
def test_no_batch_holds_items_of_two_epochs(first_epoch: int, count: int, batch: int, found: list[list[int]]):
    assert list(epoch_batches(first_epoch, epochs=2, count=count, batch=batch)) == found


def test_polynomial_decay_by_hand():
    rates = [polynomial_rate(Settings(epochs=4, learning_rate=8.0, decay_power=2.0), epoch) for epoch in range(4)]
    assert rates == [8.0, 8.0 * 9 / 16, 2.0, 0.5]
    assert {polynomial_rate(Settings(decay_power=0.0), epoch) for epoch in range(4)} == {0.1}


# What is kept


@pytest.mark.parametrize(
    ("answers", "lowest", "kept"),
    [
        ((0.4, 0.9, 0.7), False, 1),
        ((0.5, 0.5, 0.4), False, 1),  # of equal ones the later
        ((0.0, -1.0, -2.0), False, 0),
        ((0.4, 0.9, 0.7), True, 0),
        ((0.9, 0.4, 0.4), True, 2),
        ((0.9, math.nan, 0.4), False, 0),
    ],
)
def test_the_weights_of_the_best_validation_are_kept(answers: tuple, lowest: bool, kept: int, tmp_path: Path):
    """Of three validations, the last one after an odd epoch, which is the last."""
    seen = []

    class Watched(Toy):
        def validate(self) -> dict[str, Any]:
            if self.ends(2):
                seen.append({key: tensor.clone() for key, tensor in self.network.state_dict().items()})
            return super().validate()

    run = Watched(Settings(epochs=5), tmp_path, "cpu", answers, lowest).fit()
    assert len(seen) == 3
    assert run.best.keys() == {"epoch", "answer", "weights"}
    assert (run.best["epoch"], run.best["answer"]) == ((1, 3, 4)[kept], answers[kept])
    assert same(run.final_weights(), seen[kept])
    assert not any(same(run.final_weights(), other) for number, other in enumerate(seen) if number != kept)


def test_without_validation_the_last_weights_are_kept(tmp_path: Path):
    run = Toy(Settings(), tmp_path, "cpu").fit()
    assert run.best == {}
    assert same(run.final_weights(), run.network.state_dict())
    assert [row["val_answer"] for row in run.rows] == [None] * 4


# Who is held out

BY_LESIONS = partial(hold_out, by_lesions=True)


def _case(patient: str, lesion_voxels: int, study: int = 0) -> Case:
    return Case(f"{patient}-{study}", patient, Path("nowhere"), lesion_voxels=lesion_voxels)


@pytest.mark.parametrize(
    ("by_lesions", "held"),
    [(False, ["p02", "p04", "p06", "p13", "p19"]), (True, ["p03", "p04", "p06", "p11", "p16"])],
)
def test_who_is_held_out_is_the_same_for_good(by_lesions: bool, held: list[str]):
    """As in the trainings before this function was shared: a resumed or repeated one must not see its validation."""
    cases = [_case(f"p{number:02d}", 5 * (number % 3), study) for number in range(20) for study in range(2)]
    _, validation = hold_out(cases, 0.25, seed=0, by_lesions=by_lesions)
    assert sorted({case.patient_id for case in validation}) == held


@pytest.mark.parametrize("divide", [hold_out, BY_LESIONS])
def test_patients_are_held_out_and_not_studies(divide: Callable):
    cases = [_case(f"p{number}", number % 3, study) for number in range(12) for study in range(2)]
    parts = divide(cases, 0.25, seed=0)
    held = {case.patient_id for case in parts[1]}
    assert len(held) == 3
    assert held.isdisjoint(case.patient_id for case in parts[0])
    assert sorted([*parts[0], *parts[1]], key=lambda case: case.name) == sorted(cases, key=lambda case: case.name)
    if divide is BY_LESIONS:  # 8 of 12 patients have lesions: a quarter of either kind
        assert sorted(int(patient[1:]) % 3 > 0 for patient in held) == [False, True, True]


def test_a_patient_counts_as_one_with_lesions_when_one_study_has_some():
    cases = [_case("a", 0, 0), _case("a", 5, 1), _case("b", 5), _case("c", 0)]
    parts = BY_LESIONS(cases, 0.1, seed=0)
    assert {case.patient_id for case in parts[1]} in ({"a"}, {"b"})  # one with lesions although a tenth is none
    assert len(parts[0]) + len(parts[1]) == 4
    assert hold_out(cases, 0.1, seed=0) == (cases, [])


@pytest.mark.parametrize(
    ("lesions", "share", "held"),
    [
        ([5], 0.5, 0),
        ([5, 5], 0.9, 1),
        ([5, 5, 0, 0], 0.0, 0),
        ([0, 0, 0, 0], 0.5, 2),
        ([5, 5, 5, 5, 0, 0], 0.5, 3),
        ([5, 0], 0.6, 1),  # the one with lesions is what training needs
    ],
)
def test_how_many_are_held_out(lesions: list[int], share: float, held: int):
    cases = [_case(f"p{number}", voxels) for number, voxels in enumerate(lesions)]
    assert len(BY_LESIONS(cases, share, seed=3)[1]) == held


@pytest.mark.parametrize("divide", [hold_out, BY_LESIONS])
def test_who_is_held_out_depends_on_the_seed_and_not_on_the_order(divide: Callable):
    cases = [_case(f"p{number}", number % 2) for number in range(10)]
    drawn = {tuple(sorted(case.name for case in divide(cases, 0.3, seed=seed)[1])) for seed in range(8)}
    assert len(drawn) > 3
    again = divide(cases[::-1], 0.3, seed=2)[1]
    assert sorted(case.name for case in again) == sorted(case.name for case in divide(cases, 0.3, seed=2)[1])


@pytest.mark.parametrize("divide", [hold_out, BY_LESIONS])
def test_somebody_must_be_left_to_train_on(divide: Callable):
    cases = [_case("a", 0, 0), _case("a", 0, 1), _case("b", 0)]
    with pytest.raises(AutopetError, match="validation_share=0.9 holds out all 2 patients; lower it, or give more"):
        divide(cases, 0.9, seed=0)


# Weights and their files


def test_weights_travel_through_a_file(tmp_path: Path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = tmp_path / "deep" / "weights.safetensors"
    weights = network.state_dict()
    weights["0.weight"] = weights["0.weight"].T.contiguous().T  # columns first in memory, which safetensors refuses
    save_weights(path, weights)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    loaded = load_weights(other, path, what="the toy")
    assert loaded is other
    assert not loaded.training
    assert same(loaded.state_dict(), network.state_dict())


def test_a_failed_write_leaves_the_weights_before(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_weights(path, {"a": torch.zeros(2), "b": "no tensor"})
    assert (path.read_bytes(), [file.name for file in tmp_path.iterdir()]) == (before, [path.name])


def test_weights_that_do_not_belong_are_refused(tmp_path: Path):
    path, end = tmp_path / "weights.safetensors", "; train or copy the model again$"

    def load() -> None:
        load_weights(torch.nn.Linear(3, 2), path, what="the toy that config.json describes")

    with pytest.raises(AutopetError, match=f"does not hold the weights of the toy that config.json describes .*{end}"):
        load()
    save_weights(path, torch.nn.Linear(4, 2).state_dict())
    with pytest.raises(AutopetError, match=f"size mismatch.*{end}"):
        load()
    save_weights(path, {"weight": torch.zeros(2, 3)})
    with pytest.raises(AutopetError, match=f'Missing key.*"bias".*{end}'):
        load()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(AutopetError, match=f"does not hold the weights.*{end}") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_model_folders_are_read_without_torch():
    """Methods without a network have neither torch nor safetensors in their containers."""
    code = "import sys, autopet.checkpoint; print({'torch', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_large_blocks_are_kept_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(training, "keep_large_blocks", lambda: called.append(1))
    for device in ("cpu", "meta"):
        Toy(replace(Settings(), epochs=1), Path(), device)
    assert called == [1]
