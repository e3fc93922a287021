"""What the nnU-Net methods share: work folder, schedule, metrics table, model folder, several processes."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image, write_image

torch = pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

from autopet.nnunet.folds import check_folds, write_folds  # noqa: E402
from autopet.nnunet.model_folder import FoldResult, load_weights, publish_folds, save_weights  # noqa: E402
from autopet.nnunet.processes import processes, rank, refuse_several  # noqa: E402
from autopet.nnunet.schedule import Schedule  # noqa: E402
from autopet.nnunet.trainer import Trainer, _Batches, _in_workers, epoch_rows  # noqa: E402
from autopet.nnunet.workspace import Workspace, claim_workspace, environment, write_dataset  # noqa: E402


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    iterations_per_epoch: int = 5
    validation_iterations: int = 1
    learning_rate: float = 0.1
    optimizer: str = "sgd"
    foreground_share: float = 0.5
    checkpoint_every: int = 1
    seed: int = 7
    workers: int = 1
    other: str = "not of the schedule"


def test_schedule_takes_the_fields_of_its_names():
    schedule = Schedule.of(Settings(), learning_rate=0.2)
    assert (schedule.epochs, schedule.learning_rate, schedule.seed) == (3, 0.2, 7)
    with pytest.raises(AutopetError, match="use sgd or adam"):
        Schedule.of(Settings(optimizer="lion"))


@pytest.mark.parametrize("name", ["epochs", "iterations_per_epoch", "validation_iterations", "checkpoint_every"])
def test_a_schedule_without_work_is_refused_at_once(name: str):
    """checkpoint_every=0 would divide by zero after the first epoch."""
    with pytest.raises(AutopetError, match=f"{name}: expected at least 1, found 0"):
        Schedule.of(Settings(**{name: 0}))
    with pytest.raises(AutopetError, match="foreground_share: expected 0 to 1, found 33"):
        Schedule.of(Settings(foreground_share=33))


def six_patients(cohort: list[Case]) -> list[Case]:
    """Eight cases; the last two are second studies of the first two patients."""
    return [*cohort[:6], *(replace(case, patient_id=cohort[i].patient_id) for i, case in enumerate(cohort[6:]))]


def test_folds_divide_patients(cohort: list[Case], tmp_path: Path):
    cases = six_patients(cohort)
    patient = {case.name: case.patient_id for case in cases}
    space = Workspace(tmp_path)
    space.raw.mkdir(parents=True)
    splits = json.loads(write_folds(space, cases).read_text())
    assert len(splits) == 5
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(patient)
        assert not {patient[case] for case in split["train"]} & {patient[case] for case in split["val"]}
    assert sorted(case for split in splits for case in split["val"]) == sorted(patient)  # each in one fold
    assert json.loads(write_folds(space, cases[::-1]).read_text()) == splits


def test_folds_that_cannot_be(cohort: list[Case]):
    check_folds(("all",), cohort[:1])
    check_folds((0, 4), cohort[:5])
    with pytest.raises(AutopetError, match="needs 5 patients at least, found 4; train one network on all cases"):
        check_folds((0,), [*cohort[:4], replace(cohort[4], patient_id=cohort[0].patient_id)])
    for folds in ((), (5,), (-1,), ("0",), (0, 0), (True,), (1.0,), ([0],)):
        with pytest.raises(AutopetError, match="folds: expected some of 0 to 4"):
            check_folds(folds, cohort)


def test_images_on_another_grid_are_named(cohort: list[Case], tmp_path: Path):
    """Equal shapes do not help: the organs lie one voxel (4 mm) beside the patient's."""
    case = replace(cohort[0], folder=tmp_path / "case")
    for path in (cohort[0].ct, cohort[0].suv, cohort[0].mask):
        case.folder.mkdir(exist_ok=True)
        (case.folder / path.name).symlink_to(path)
    space = Workspace(tmp_path / "work")
    write_dataset(space, [case])
    mask = read_image(case.mask)
    write_image(case.image("ORGANS"), replace(mask, origin_mm=(-76.0, -90.0, -500.0)))
    with pytest.raises(AutopetError, match=r"ORGANS.nii.gz is not on the grid of SUV.nii.gz: corner voxels .* 4 mm"):
        write_dataset(space, [case])
    write_image(case.image("ORGANS"), mask)
    write_dataset(space, [case])
    case.image("ORGANS").write_bytes(b"nothing")
    with pytest.raises(AutopetError, match=r"ORGANS.nii.gz: cannot be read"):
        write_dataset(space, [case])


def test_a_work_folder_belongs_to_its_organ_labels_too(cohort: list[Case], tmp_path: Path):
    case = Case("a", "p", tmp_path / "a")
    case.folder.mkdir()
    for role in ("CTres", "SUV", "SEG"):
        case.image(role).write_bytes(b"x")
    claim_workspace(tmp_path / "work", [case], Settings())
    claim_workspace(tmp_path / "work", [case], Settings(workers=4))
    case.image("ORGANS").write_bytes(b"xy")
    with pytest.raises(AutopetError, match="unfinished training with other cases or settings"):
        claim_workspace(tmp_path / "work", [case], Settings())


def test_a_claim_survives_a_full_disk_and_a_kill(cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work = tmp_path / "work"
    work.mkdir()  # killed between the folder and its stamp
    (work / ".part-0123abcd-recipe").touch()
    claim_workspace(work, cohort[:2], Settings())
    (work / "checkpoint").touch()
    monkeypatch.setattr(Path, "write_text", lambda *_: pytest.fail("a full disk would leave an empty stamp"))
    claim_workspace(work, cohort[:2], Settings())


def variable(name: str) -> str | None:
    return dict(os.environ).get(name)


def test_the_environment_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_raw", "mine")
    monkeypatch.delenv("nnUNet_results", raising=False)
    with Workspace(tmp_path).active(3):
        assert variable("nnUNet_raw") == str(tmp_path / "raw")
        with environment({"nnUNet_n_proc_DA": "0"}):
            assert variable("nnUNet_n_proc_DA") == "0"
        assert variable("nnUNet_n_proc_DA") == "3"
    assert variable("nnUNet_raw") == "mine"
    assert variable("nnUNet_results") is None


def test_one_row_per_finished_epoch():
    logged = {
        "lrs": [0.01, 0.005, 0.001],  # the third epoch has begun and has no end
        "train_losses": [1.0, 0.5, 0.2],
        "val_losses": [0.9, 0.6],
        "mean_fg_dice": [0.0, 0.25],
        "epoch_start_timestamps": [100.0, 110.0, 130.0],
        "epoch_end_timestamps": [110.0, 130.0],
    }
    assert epoch_rows(logged) == [
        {
            "epoch": 0,
            "learning_rate": "0.01",
            "train_loss": "1",
            "val_loss": "0.9",
            "pseudo_dice": "0",
            "seconds": "10.0",
        },
        {
            "epoch": 1,
            "learning_rate": "0.005",
            "train_loss": "0.5",
            "val_loss": "0.6",
            "pseudo_dice": "0.25",
            "seconds": "20.0",
        },
    ]


def test_a_tensor_with_two_keys_is_stored_once(tmp_path: Path):
    encoder = torch.arange(100_000, dtype=torch.float32)
    weights = {"encoder.w": encoder, "decoder.encoder.w": encoder, "head": torch.ones(3), "empty": torch.zeros(0)}
    weights["equal_but_another"] = encoder.clone()
    save_weights(tmp_path, {"plans": 1}, {"labels": {}, "dataset": {"case": "/home/someone"}}, {"0": weights})
    assert 800_000 < (tmp_path / "fold_0.safetensors").stat().st_size < 810_000
    plans, dataset, [loaded] = load_weights(tmp_path)
    assert (plans, dataset) == ({"plans": 1}, {"labels": {}})
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert loaded["encoder.w"].data_ptr() == loaded["decoder.encoder.w"].data_ptr()


def test_folds_come_in_the_order_of_their_names_and_notes_go_to_the_config(tmp_path: Path):
    folds = {str(k): FoldResult({"w": torch.full((1,), float(k))}, f"epoch\n{k}\n") for k in (1, 0)}
    folds["2"] = FoldResult({"w": torch.full((1,), 2.0)}, notes={"pretrained": {"loaded": ["w"]}})
    publish_folds(tmp_path / "model", {}, {}, folds, config={"method": "m"})
    assert [float(weights["w"]) for weights in load_weights(tmp_path / "model")[2]] == [0.0, 1.0, 2.0]
    assert (tmp_path / "model/fold_1.csv").read_text() == "epoch\n1\n"
    config = (tmp_path / "model/config.json").read_text()
    assert '"notes"' in config
    assert '"loaded"' in config
    with pytest.raises(AutopetError, match="weights missing"):
        load_weights(tmp_path)


class Draws:
    """A data loader that draws from both generators."""

    def set_thread_id(self, thread: int) -> None:
        self.thread = thread

    def __next__(self) -> dict:
        return {"thread": self.thread, "numpy": int(np.random.randint(10**9)), "torch": float(torch.rand(1))}


def draw(seed: int, count: int = 8) -> list[dict]:
    class Single:
        data_loader = Draws()

    loader = _in_workers(Single(), 2, seed, pin_memory=False)
    found = [next(loader) for _ in range(count)]
    loader._finish()
    return found


def test_batches_repeat_with_the_seed_and_differ_between_workers():
    first = draw(1)
    assert draw(1) == first
    assert [batch["thread"] for batch in first] == [0, 1] * 4
    assert len({batch["torch"] for batch in first}) == 8  # workers that share torch's state would draw the same
    assert len({batch["numpy"] for batch in first}) == 8
    assert draw(2) != first
    threads = torch.get_num_threads()
    _Batches(Draws(), 0).set_thread_id(0)
    torch.set_num_threads(threads)


def test_the_largest_seed_has_successors():
    assert len(draw(2**32 - 1, count=2)) == 2


def test_half_a_checkpoint_is_removed_and_the_last_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def disk_full(self, filename: str) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device", filename)

    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", disk_full)
    trainer = object.__new__(Trainer)
    trainer.local_rank = 0
    latest = tmp_path / "checkpoint_latest.pth"
    latest.write_bytes(b"whole")
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(latest))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {latest.name: b"whole"}


def test_trainings_of_one_process_refuse_torchrun(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_several("this")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AutopetError, match="this runs in one process, on one GPU; start it without torchrun"):
        refuse_several("this")


def test_one_process_is_the_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as first:
        assert first
        assert rank() == 0
        assert not torch.distributed.is_initialized()


def test_metrics_are_read_by_csv(tmp_path: Path):
    """The published table has one line per epoch that csv.DictReader understands."""
    table = "epoch,learning_rate,train_loss,val_loss,pseudo_dice,seconds\n0,0.01,1,0.9,0,10.0\n"
    publish_folds(tmp_path / "model", {}, {}, {"all": FoldResult({"w": torch.ones(1)}, table)}, config={"method": "m"})
    with (tmp_path / "model/fold_all.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0"]
