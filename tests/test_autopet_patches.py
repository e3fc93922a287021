"""Cached cases and seeded patches: what is kept, what is made again, and that patch i never changes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai")

from monai.data import get_track_meta  # noqa: E402
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd  # noqa: E402

from autopet import case_folders, patches  # noqa: E402

CASES = [Case(name, name, Path("nowhere")) for name in ("a", "b", "c")]
SIZE, PATCH = 12, 4


def volume(offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Every voxel has a value of its own, so that a patch tells where it was cut; one lesion in the middle."""
    image = (np.arange(SIZE**3).reshape(1, SIZE, SIZE, SIZE) % 2048 + offset).astype(np.float16)
    label = np.zeros((SIZE, SIZE, SIZE), bool)
    label[4:8, 4:8, 4:8] = True
    return image, label


def write(case: Case, folder: Path) -> None:
    image, label = volume(ord(case.name))
    inside, outside = np.flatnonzero(label), np.flatnonzero(~label)
    patches.save_case(folder, image, label, foreground=inside, background=outside)


def chain(share: float = 0.5) -> Compose:
    keys = ("image", "label")
    return Compose(
        [
            RandCropByPosNegLabeld(
                keys,
                label_key="label",
                spatial_size=(PATCH,) * 3,
                pos=share,
                neg=1 - share,
                num_samples=1,
                fg_indices_key="foreground",
                bg_indices_key="background",
            ),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
        ]
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(case_folders.cache_folders(CASES, tmp_path_factory.mktemp("cache"), write, title="").values())


def test_cases_of_an_earlier_call_are_kept(tmp_path: Path):
    made = []

    def counted(case: Case, folder: Path) -> None:
        made.append(case.name)
        write(case, folder)

    first = case_folders.cache_folders(CASES[:2], tmp_path, counted, title="cases")
    assert list(first) == ["a", "b"]
    assert sorted(path.name for path in first["a"].iterdir()) == [
        "background.npy", "foreground.npy", "image.npy", "label.npy"
    ]  # fmt: skip
    (tmp_path / ".part-b-01234567").mkdir()  # what a killed call leaves
    again = case_folders.cache_folders(CASES, tmp_path, counted, title="cases")
    assert made == ["a", "b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert again == {case.name: tmp_path / case.name for case in CASES}


def test_a_case_that_breaks_off_leaves_nothing(tmp_path: Path):
    def broken(case: Case, folder: Path) -> None:
        write(case, folder)
        if case.name == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case_folders.cache_folders(CASES, tmp_path, broken, title="cases")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_cached_case_holds(folders: list[Path]):
    image, label = (np.load(folders[0] / f"{name}.npy") for name in ("image", "label"))
    assert (image.dtype, image.shape) == (np.float16, (1, SIZE, SIZE, SIZE))
    assert (label.dtype, label.shape, int(label.sum())) == (np.uint8, (1, SIZE, SIZE, SIZE), 64)
    assert (len(np.load(folders[0] / "foreground.npy")), len(np.load(folders[0] / "background.npy"))) == (64, 1664)


def test_centres_are_drawn_evenly_up_to_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patches, "MOST_CENTRES", 100)
    few, many = np.arange(100), np.arange(10_000)
    assert patches.some_centres(few, np.random.default_rng(0)) is few
    some = patches.some_centres(many, np.random.default_rng(0))
    assert len(np.unique(some)) == 100
    assert list(some) == sorted(some)
    assert 4000 < some.mean() < 6000


def test_a_case_has_random_numbers_of_its_own():
    numbers = {(seed, name): patches.case_generator(seed, name).integers(2**60) for seed in (0, 1) for name in "ab"}
    assert len(set(numbers.values())) == 4
    assert patches.case_generator(1, "b").integers(2**60) == numbers[1, "b"]


@pytest.mark.parametrize("per_turn", [1, 3])
def test_cases_take_turns_in_another_order_each_round(folders: list[Path], per_turn: int):
    data = patches.SeededPatches(folders, chain(), count=60 * per_turn, seed=5, per_turn=per_turn)
    names = [data.case_of(index).name for index in range(len(data))]
    turns = [names[start : start + per_turn] for start in range(0, len(names), per_turn)]
    assert all(len(set(turn)) == 1 for turn in turns)
    rounds = ["".join(turn[0] for turn in turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert all(sorted(letters) == ["a", "b", "c"] for letters in rounds)
    assert len(set(rounds)) > 3
    order = np.random.default_rng([5, 0, 7]).permutation(3)  # of round 7
    assert rounds[7] == "".join("abc"[place] for place in order)


def test_a_patch_is_cut_with_the_seed_of_its_number(folders: list[Path]):
    """Against MONAI's chain on whole arrays in memory."""
    data = patches.SeededPatches(folders, chain(), count=30, seed=5)
    with patches.plain_tensors():
        for index in (0, 7, 29):
            image, label = volume(ord(data.case_of(index).name))
            inside, outside = np.flatnonzero(label), np.flatnonzero(~label)
            sample = {"image": image, "label": label[None], "foreground": inside, "background": outside}
            seed = int(np.random.default_rng([5, 1, index]).integers(2**32))
            expected = chain().set_random_state(seed=seed)(sample)[0]
            found = data[index]
            assert torch.equal(found[0], torch.as_tensor(expected["image"]))
            assert np.array_equal(found[1], expected["label"])
            assert found[0].shape == (1, PATCH, PATCH, PATCH)
    assert len(data) == 30


def test_patches_do_not_depend_on_who_cuts_them(folders: list[Path]):
    data = patches.SeededPatches(folders, chain(), count=30, seed=5)
    with patches.plain_tensors():
        alone = [data[index][0] for index in (5, 2, 5)]
        loader = torch.utils.data.DataLoader(data, batch_size=1, sampler=[2, 5], num_workers=2)
        by_workers = [image[0] for image, _ in loader]
        other = patches.SeededPatches(folders, chain(), count=30, seed=6)[5][0]
    assert torch.equal(alone[0], alone[2])
    assert torch.equal(by_workers[0], alone[1])
    assert torch.equal(by_workers[1], alone[0])
    assert not torch.equal(other, alone[0])


def test_reading_a_patch_does_not_change_the_cache(folders: list[Path]):
    before = [(folder / "image.npy").read_bytes() for folder in folders]
    data = patches.SeededPatches(folders, chain(), count=6, seed=0)
    with patches.plain_tensors():
        for index in range(6):
            data[index][0].mul_(0)
    assert [(folder / "image.npy").read_bytes() for folder in folders] == before


def test_metadata_and_warnings_are_off_inside_only():
    def fail() -> None:
        with patches.plain_tensors():
            assert not get_track_meta()
            warnings.warn("Num foregrounds 0, Num backgrounds 7", stacklevel=1)
            raise KeyError("inside")

    assert get_track_meta()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(KeyError, match="inside"):
            fail()
        warnings.warn("Num foregrounds 0, Num backgrounds 8", stacklevel=1)
    assert get_track_meta()
    assert [str(entry.message)[-1] for entry in heard] == ["8"]
