"""The vote: counted by hand, gathered from trained models, run under a deadline that members break."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopet.checkpoint import publish_model, read_config, rewrite_config
from autopet.cohort import Case
from autopet.container import LAST_MARGIN_S, LAST_MARGIN_SHARE
from autopet.deadline import Deadline
from autopet.engine import Limits, run_case
from autopet.errors import AutopetError
from autopet.images import find_images, read_image, write_image
from autopet.methods import find_method
from autopet.postprocessing import Rules
from autopet.sockets import CT, LESIONS, PET, Inputs, Socket
from autopet.volume import Volume
from baselines.majority import predict as majority
from baselines.majority.model import Settings, vote, votes_needed
from baselines.majority.predict import Member, Model, load, predict
from baselines.majority.train import NEEDS_MODELS, train
from baselines.threshold.model import Settings as Threshold
from baselines.threshold.train import train as train_threshold

RULES = {"loose": Threshold(rule="fixed", fixed_suv=3.0), "strict": Threshold(rule="fixed", fixed_suv=7.5)}


def row(*values: int) -> np.ndarray:
    return np.array([[values]], np.uint8)


def test_more_than_half_by_hand():
    a, b, c, d = row(1, 1, 1, 0, 0), row(1, 1, 0, 1, 0), row(1, 0, 0, 0, 0), row(1, 0, 1, 0, 0)
    assert vote([a]).tolist() == a.tolist()
    assert vote([a, b]).ravel().tolist() == [1, 1, 0, 0, 0]  # two: both
    assert vote([a, b, c]).ravel().tolist() == [1, 1, 0, 0, 0]  # three: two of them
    assert vote([a, b, c, d]).ravel().tolist() == [1, 0, 0, 0, 0]  # four: a tie of two is background
    assert vote([a, b, c, d], votes=2).ravel().tolist() == [1, 1, 1, 0, 0]
    assert vote([a, b, c, d], votes=1).ravel().tolist() == [1, 1, 1, 1, 0]
    assert vote([a, b], votes=3).ravel().tolist() == [1, 1, 0, 0, 0]  # three asked for, two there: both
    assert vote(iter([a.astype(bool), b * 1.0])).dtype == np.uint8


def test_a_vote_of_nothing_and_of_other_shapes():
    assert vote([row(0, 0), row(0, 0), row(1, 0)]).sum() == 0
    with pytest.raises(AutopetError, match="no mask"):
        vote([])
    with pytest.raises(AutopetError, match="one shape"):
        vote([row(1, 0), row(1, 0, 0)])
    for wrong in (-1, 1.5, True):
        with pytest.raises(AutopetError, match="votes"):
            Settings(votes=wrong)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_more_than_half_is_the_strict_median(voters: int, seed: int):
    masks = np.random.default_rng(seed).integers(0, 2, (voters, 2, 3, 4))
    np.testing.assert_array_equal(vote(masks), np.median(masks, axis=0) > 0.5)
    assert votes_needed(voters) * 2 > voters >= (votes_needed(voters) - 1) * 2


@pytest.fixture(scope="module")
def models(cohort: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two thresholds that differ, and what training leaves beside them."""
    root = tmp_path_factory.mktemp("models")
    for name, rule in RULES.items():
        train_threshold(cohort, root / name, settings=rule, work=root, device="cpu")
    (root / ".work-loose").mkdir()
    (root / "notes").mkdir()
    return root


def gather(cases: list[Case], out: Path, **values: Any) -> Path:
    return train(cases, out, settings=Settings(**values), work=out.parent / ".work", device="cpu")


def test_training_gathers_what_lies_beside(cohort: list[Case], models: Path):
    assert NEEDS_MODELS
    out = gather(cohort, models / "majority")
    config = read_config(out, method="majority")
    assert sorted(member["name"] for member in config["members"]) == ["loose", "strict"]
    assert config["training_cases"] == read_config(models / "loose", method="threshold")["training_cases"]
    for name in RULES:  # each is a model folder of its own, and the vote's checksums cover it
        assert read_config(out / "members" / name, method="threshold") == read_config(models / name, method="threshold")
    assert "members/loose/config.json" in (out / "SHA256SUMS").read_text()
    before = (out / "config.json").stat().st_mtime_ns
    gather(cohort, out)
    assert (out / "config.json").stat().st_mtime_ns == before  # the same members: nothing is written
    gather(cohort, out, votes=1)
    assert read_config(out, method="majority")["settings"]["votes"] == 1


def test_small_models_go_first(cohort: list[Case], tmp_path: Path):
    """What a quick member leaves of its share of the time goes to those after it."""
    for name, size in (("a", 3000), ("b", 10), ("c", 200)):

        def fill(folder: Path, size: int = size) -> dict:
            (folder / "weights").write_bytes(b"0" * size)
            return {"method": "threshold"}

        publish_model(tmp_path / name, fill)
    config = read_config(gather(cohort, tmp_path / "vote"), method="majority")
    assert [member["name"] for member in config["members"]] == ["b", "c", "a"]


def test_a_member_trained_anew_is_gathered_anew(cohort: list[Case], tmp_path: Path):
    member = train_threshold(cohort, tmp_path / "a", settings=Threshold(), work=tmp_path, device="cpu")
    out = gather(cohort, tmp_path / "vote")
    rewrite_config(member, lambda config: {**config, "postprocessing": {"min_suv": 1}})
    assert "postprocessing" not in json.loads((out / "members/a/config.json").read_text())  # no change through the link
    gather(cohort, out)
    assert json.loads((out / "members/a/config.json").read_text())["postprocessing"] == {"min_suv": 1}


def test_what_cannot_vote(cohort: list[Case], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(AutopetError, match="no trained model in .* can vote"):
        gather(cohort, tmp_path / "majority")
    with pytest.raises(AutopetError, match="two members are called loose"):
        gather(cohort, tmp_path / "m", members=(str(models / "loose"), str(models / "loose")))
    with pytest.raises(AutopetError, match="votes = 3, but there are 2 members"):
        gather(cohort, tmp_path / "m", members=(str(models / "loose"), str(models / "strict")), votes=3)
    publish_model(tmp_path / "models/other", lambda _: {"method": "magic"})
    with pytest.raises(AutopetError, match="no method called 'magic'"):
        gather(cohort, tmp_path / "m", members=(str(tmp_path / "models/other"),))
    first = gather(cohort, tmp_path / "models/first", members=(str(models / "loose"),))
    with pytest.raises(AutopetError, match="is a vote itself"):
        gather(cohort, tmp_path / "m", members=(str(first),))
    train_threshold(cohort, tmp_path / "models/good", settings=Threshold(), work=tmp_path, device="cpu")
    out = gather(cohort, tmp_path / "models/majority")  # beside it: what cannot vote is named, the rest votes
    assert [member["name"] for member in read_config(out, method="majority")["members"]] == ["good"]
    said = " ".join(capsys.readouterr().err.split())
    assert "other does not vote: no method called 'magic'" in said
    assert "first does not vote" in said
    (tmp_path / "models/good/search.csv").write_text("damaged")
    with pytest.raises(AutopetError, match=r"search.csv: checksum differs"):
        gather(cohort, tmp_path / "models/majority")


def test_a_link_to_a_model_has_no_second_vote(
    cohort: list[Case], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Two copies of one model of three would decide alone."""
    root = tmp_path / "models"
    root.mkdir()
    shutil.copytree(models / "loose", root / "loose")
    shutil.copytree(models / "loose", root / "loose-backup")
    (root / "best").symlink_to(root / "loose")
    (root / "strict").symlink_to(models / "strict")
    out = gather(cohort, root / "majority")
    assert sorted(member["name"] for member in read_config(out, method="majority")["members"]) == ["loose", "strict"]
    said = " ".join(capsys.readouterr().err.split())
    assert "loose-backup does not vote: it is the same model as loose" in said
    assert "best does not vote" in said
    assert not (out / "members/strict").is_symlink()  # what a container mounts is whole
    with pytest.raises(AutopetError, match="loose and best are the same model; a model has one vote"):
        gather(cohort, tmp_path / "m", members=(str(root / "loose"), str(root / "best")))


def test_a_named_link_is_called_as_it_is_named(cohort: list[Case], models: Path, tmp_path: Path):
    """`runs/3/model` and `runs/7/model` have one name; links tell them apart."""
    for run, name in (("3", "loose"), ("7", "strict")):
        shutil.copytree(models / name, tmp_path / "runs" / run / "model")
        (tmp_path / f"run{run}").symlink_to(tmp_path / "runs" / run / "model")
    out = gather(cohort, tmp_path / "vote", members=(str(tmp_path / "run3"), str(tmp_path / "x/../run7")))
    assert sorted(member["name"] for member in read_config(out, method="majority")["members"]) == ["run3", "run7"]


def test_a_method_with_other_sockets_does_not_fit(
    cohort: list[Case], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = find_method("threshold").module("predict")
    monkeypatch.setattr(module, "INPUTS", (PET, CT, Socket("lesion-clicks", "lesion-clicks.json", kind="json")))
    with pytest.raises(AutopetError, match="threshold needs the input lesion-clicks"):
        gather(cohort, tmp_path / "m", members=(str(models / "loose"),))
    monkeypatch.undo()
    monkeypatch.setattr(module, "OUTPUTS", ())
    with pytest.raises(AutopetError, match="threshold writes no automated-petct-lesion-segmentation"):
        gather(cohort, tmp_path / "m", members=(str(models / "loose"),))


def test_end_to_end_as_the_container_runs_it(cohort: list[Case], models: Path, tmp_path: Path):
    out = gather(cohort, tmp_path / "vote", members=tuple(str(models / name) for name in RULES))
    case = cohort[1]
    for socket, path in ((PET, case.suv), (CT, case.ct)):
        write_image(tmp_path / "input" / socket.relative_path / "x.mha", read_image(path))
    outcome = run_case(
        "majority", tmp_path / "input", tmp_path / "output", engine="local", model=out, limits=Limits(time_limit_s=60)
    )
    assert outcome.ok, outcome.log
    mask = read_image(find_images(tmp_path / "output" / LESIONS.relative_path)[0])
    suv = read_image(case.suv)
    np.testing.assert_array_equal(mask.array, suv.array >= 7.5)  # of two both must agree: the stricter one
    assert 0 < mask.array.sum() < mask.array.size
    assert mask.same_grid(suv)


def test_one_vote_is_enough_when_asked_for(cohort: list[Case], models: Path, tmp_path: Path):
    out = gather(cohort, tmp_path / "vote", members=tuple(str(models / name) for name in RULES), votes=1)
    inputs = case_inputs(cohort[1])
    mask = predict(load(out, "cpu"), inputs, Deadline())[LESIONS.slug]
    np.testing.assert_array_equal(mask.array, inputs["pet"].array >= 3.0)


def test_a_member_s_own_post_processing_comes_first(cohort: list[Case], models: Path, tmp_path: Path):
    member = train_threshold(cohort, tmp_path / "a", settings=RULES["loose"], work=tmp_path, device="cpu")
    rewrite_config(member, lambda config: {**config, "postprocessing": {"min_suv": 7.0}})
    model = load(gather(cohort, tmp_path / "vote", members=(str(member),)), "cpu")
    assert model.members[0].rules == Rules(min_suv=7.0)
    inputs = case_inputs(cohort[1])
    deadline = Deadline(60)
    mask = predict(model, inputs, deadline)[LESIONS.slug]
    np.testing.assert_array_equal(mask.array, inputs["pet"].array >= 7.0)
    assert "SUV below 7" in deadline.journal.notes["members"][0]["removed"][0]


def test_post_processing_that_is_null_is_off_and_nonsense_is_named(cohort: list[Case], tmp_path: Path):
    member = train_threshold(cohort, tmp_path / "a", settings=RULES["loose"], work=tmp_path, device="cpu")
    rewrite_config(member, lambda config: {**config, "postprocessing": None})
    assert load(gather(cohort, tmp_path / "vote", members=(str(member),)), "cpu").members[0].rules == Rules()
    rewrite_config(member, lambda config: {**config, "postprocessing": ["min_suv"]})
    with pytest.raises(AutopetError, match=r"a: postprocessing is expected as an object .* found \['min_suv'\]"):
        load(gather(cohort, tmp_path / "vote", members=(str(member),)), "cpu")


def test_a_config_that_is_no_vote_s(tmp_path: Path):
    folder = publish_model(tmp_path / "m", lambda _: {"method": "majority", "settings": {}})
    with pytest.raises(AutopetError, match="lacks members; gather the members again"):
        load(folder, "cpu")


def test_an_image_without_a_member_s_method(
    cohort: list[Case], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = gather(cohort, tmp_path / "vote", members=(str(models / "loose"),))

    def nothing(name: str) -> None:
        raise AutopetError(f"no method called {name!r}; there are majority")

    monkeypatch.setattr(majority, "find_method", nothing)
    with pytest.raises(AutopetError, match=r"members loose \(no method called 'threshold'.*autopet build majority"):
        load(out, "cpu")


def case_inputs(case: Case) -> Inputs:
    return Inputs({"pet": read_image(case.suv), "ct": read_image(case.ct)}, "x")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


GRID = Volume(np.ones((1, 1, 4), np.float32))
INPUTS = Inputs({"pet": GRID, "ct": GRID}, "x")


def toy(name: str, mask: Callable[[Deadline], Any], *, events: list[str] | None = None) -> Member:
    """A member that records when it is loaded and predicts what `mask` returns."""
    events = [] if events is None else events

    def load(folder: Path, device: str) -> str:
        events.append(f"load {name} on {device}")
        return name

    def run(model: str, inputs: Inputs, deadline: Deadline) -> dict:
        events.append(f"predict {model}")
        made = mask(deadline)
        return {LESIONS.slug: made if isinstance(made, Volume) else GRID.with_array(made)}

    return Member(name, SimpleNamespace(load=load, predict=run), Path(name), Rules())  # type: ignore[arg-type]


def run_toys(members: list[Member], deadline: Deadline, *, votes: int = 0) -> list[int]:
    made = predict(Model(tuple(members), votes, "cpu"), INPUTS, deadline)
    assert made["data-centric-model"] is False
    return made[LESIONS.slug].array.ravel().tolist()


def test_one_network_at_a_time():
    events: list[str] = []
    members = [toy(name, lambda _: row(1, 1, 0, 0), events=events) for name in "ab"]
    assert run_toys(members, Deadline()) == [1, 1, 0, 0]
    assert events == ["load a on cpu", "predict a", "load b on cpu", "predict b"]


def broken(_: Deadline) -> np.ndarray:
    raise RuntimeError("CUDA out of memory")


def test_a_member_that_fails_does_not_vote():
    deadline = Deadline()
    foreign = Volume(np.ones((1, 1, 4), np.uint8), origin_mm=(9.0, 0.0, 0.0))
    members = [
        toy("a", lambda _: row(1, 1, 0, 0)),
        toy("bad", broken),
        toy("foreign", lambda _: foreign),
        toy("labels", lambda _: row(1, 2, 0, 0)),
        toy("b", lambda _: row(1, 0, 1, 0)),
    ]
    assert run_toys(members, deadline) == [1, 0, 0, 0]  # two masks are left: both must agree
    assert len(deadline.journal.dropped) == 3
    assert "the vote of bad: RuntimeError('CUDA out of memory')" in deadline.journal.dropped[0]
    assert "foreign: its mask is not on the input grid" in deadline.journal.dropped[1]
    assert "labels: expected a mask of 0 and 1" in deadline.journal.dropped[2]
    assert [entry.get("lesion_voxels") for entry in deadline.journal.notes["members"]] == [2, None, None, None, 2]
    json.dumps(deadline.journal.notes)


def test_no_member_left_is_an_error():
    with pytest.raises(AutopetError, match=r"none of the 2 members made a mask; first reason: RuntimeError"):
        run_toys([toy("a", broken), toy("b", broken)], Deadline())


def test_fair_shares_of_the_time_that_is_left():
    clock, limits = Clock(), {}

    def spends(name: str, seconds: float) -> Callable[[Deadline], np.ndarray]:
        def mask(deadline: Deadline) -> np.ndarray:
            limits[name] = deadline.remaining_s
            clock.now += seconds
            deadline.journal.drop("mirroring")
            return row(1, 1, 0, 0)

        return mask

    deadline = Deadline(100, clock=clock)
    members = [toy(name, spends(name, seconds)) for name, seconds in (("a", 5.0), ("b", 50.0), ("c", 10.0))]
    assert run_toys(members, deadline) == [1, 1, 0, 0]
    # 5 s of 100 are kept for the vote: 95 / 3, then (95 - 5) / 2, then what b has left over
    assert limits == pytest.approx({"a": 95 / 3, "b": 45.0, "c": 40.0})
    assert deadline.journal.dropped == ["a: mirroring", "b: mirroring", "c: mirroring"]
    assert deadline.journal.stages == pytest.approx({"member a": 5.0, "member b": 50.0, "member c": 10.0})


def test_a_member_that_hangs_does_not_cost_the_votes_that_are_in():
    """The container would write an empty mask: it gives up the whole vote shortly before the limit."""
    clock, hung = Clock(), threading.Event()

    def quick(_: Deadline) -> np.ndarray:
        clock.now += 94.8  # 5 of 100 s are kept for the vote: 0.2 s are left to wait for the other
        return row(1, 1, 0, 0)

    def hangs(_: Deadline) -> np.ndarray:
        hung.wait(300)
        return row(0, 0, 0, 0)

    deadline, started = Deadline(100, clock=clock), time.monotonic()
    try:
        assert run_toys([toy("quick", quick), toy("hung", hangs)], deadline) == [1, 1, 0, 0]
    finally:
        hung.set()
    assert time.monotonic() - started < 100  # it was not waited for
    assert deadline.journal.dropped == ["the vote of hung: not ready after 0.2 s, and no time is left to wait for it"]


@pytest.mark.parametrize("limit_s", [3.0, 20.0, 60.0, 300.0, 1200.0])
def test_the_vote_ends_before_the_container_gives_up(limit_s: float):
    limits: list[float] = []
    clock = Clock()

    def mask(deadline: Deadline) -> np.ndarray:
        limits.append(deadline.remaining_s)
        return row(1, 0, 0, 0)

    run_toys([toy("a", mask)], Deadline(limit_s, clock=clock))
    assert limits[0] < limit_s - LAST_MARGIN_S - LAST_MARGIN_SHARE * limit_s


def test_a_member_without_time_is_not_started():
    clock, events = Clock(), []

    def slow(_: Deadline) -> np.ndarray:
        clock.now += 96.0
        return row(1, 1, 0, 0)

    deadline = Deadline(100, clock=clock)
    members = [toy("slow", slow, events=events), toy("late", broken, events=events)]
    assert run_toys(members, deadline) == [1, 1, 0, 0]
    assert events == ["load slow on cpu", "predict slow"]
    assert deadline.journal.dropped == ["the vote of late: no time is left for it"]


def test_methods_are_found_by_name_not_imported():
    """Methods never import each other: the vote's own modules name no other method's package."""
    for part in ("model", "train", "predict"):
        source = Path(sys.modules[f"baselines.majority.{part}"].__file__ or "").read_text()
        lines = [
            line for line in source.splitlines() if "import" in line and ("baselines." in line or "algorithms." in line)
        ]
        assert all("baselines.majority" in line for line in lines)


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob(".part-*"))
