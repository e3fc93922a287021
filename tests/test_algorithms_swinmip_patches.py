"""Cached cases and the patches that the Swin-UNETR is trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.images import read_image

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from algorithms.swinmip import patches  # noqa: E402
from algorithms.swinmip.model import PRESETS  # noqa: E402
from algorithms.swinmip.preprocessing import Ranges, prepare  # noqa: E402
from autopet.patches import plain_tensors, save_case  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

RANGES = Ranges((-800.0, 200.0), (1.0, 9.0))
SPACING_MM = (4.0, 4.0, 6.0)  # that of the cohort
EDGE, PATCH = 72, 32
PLAIN = replace(PRESETS["demo"], patch=(PATCH,) * 3, augmentation_probability=0.0)
LESION = (slice(28, 44), slice(24, 36), slice(30, 40))  # a patch around any of its voxels lies inside the volume


def write(folder: Path, *, lesion: bool = True) -> Path:
    """A case whose image tells where a patch was cut: x + y + 4 z, and the lesion smoothed by nothing."""
    folder.mkdir(parents=True)
    x, y, z = np.indices((EDGE,) * 3)
    label = np.zeros((EDGE,) * 3, bool)
    if lesion:
        label[LESION] = True
    image = np.stack([x + y + 4 * z, label]).astype(np.float32)
    save_case(folder, image, label, foreground=np.flatnonzero(label), background=np.flatnonzero(~label))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("patches")
    return [write(root / name) for name in "abc"]


def cut(data: patches.Patches, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    with plain_tensors():
        return [tuple(np.asarray(part) for part in data[index]) for index in range(count)]


# The cache


def test_a_cached_case_is_what_the_network_sees(cohort: list[Case], tmp_path: Path):
    cases = cohort[:4]
    folders = patches.cache_cases(cases, tmp_path, PLAIN, RANGES, SPACING_MM)
    assert list(folders) == ["case00", "case01", "case02", "case03"]
    for case in cases:
        image, label, foreground, background = (
            np.load(folders[case.name] / f"{name}.npy") for name in ("image", "label", "foreground", "background")
        )
        mask = read_image(case.mask)
        assert (image.dtype, label.dtype) == (np.float16, np.uint8)
        assert image.shape == (2, *label.shape[1:])
        assert min(label.shape[1:]) >= PATCH
        assert int(label.sum()) == case.lesion_voxels == int((mask.array != 0).sum())  # no voxel was resampled away
        assert len(foreground) == case.lesion_voxels == patches.lesion_voxels(folders[case.name])
        assert label.ravel()[foreground].all()
        assert not label.ravel()[background].any()
        assert len(foreground) + len(background) == label.size
        images = {"CT": read_image(case.ct), "PET": read_image(case.suv)}
        seen = prepare(images, RANGES, PLAIN, SPACING_MM, mask=mask)
        assert np.allclose(image, seen.image, rtol=1e-3, atol=1e-4)  # half precision
        assert np.array_equal(label, seen.label)
    pet, lesions = np.load(folders["case00"] / "image.npy")[1], np.load(folders["case00"] / "label.npy")[0] != 0
    assert pet[lesions].min() > np.median(pet)  # channel 1 is the PET
    assert patches.lesion_voxels(folders["case03"]) == 0


def test_cached_cases_are_kept(cohort: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = patches.cache_cases(cohort[:1], tmp_path, PLAIN, RANGES, SPACING_MM)
    monkeypatch.setattr(patches, "prepare", None)  # would fail if it were called
    assert patches.cache_cases(cohort[:1], tmp_path, PLAIN, RANGES, SPACING_MM) == first


# The order


def test_every_epoch_visits_every_volume_once_with_twelve_patches(folders: list[Path]):
    settings = replace(PLAIN, patches_per_volume=12, batch=4, cycles=3, epochs_per_cycle=2)
    data = patches.Patches(folders, settings, seed=0)
    assert len(data) == 3 * 2 * 3 * 12
    batches = list(data.batches())
    assert [index for batch in batches for index in batch] == list(range(len(data)))
    assert all(len(batch) == 4 for batch in batches)
    names = [[data.case_of(index).name for index in batch] for batch in batches]
    assert all(len(set(batch)) == 1 for batch in names)  # fed together: of one volume
    assert data.steps_per_epoch == 9
    epochs = ["".join(batch[0] for batch in names[start : start + 9]) for start in range(0, 54, 9)]
    assert all(Counter(epoch) == {"a": 3, "b": 3, "c": 3} for epoch in epochs)
    assert all(epoch[0] == epoch[1] == epoch[2] and epoch[3] == epoch[4] == epoch[5] for epoch in epochs)
    assert len(set(epochs)) > 1
    again = patches.Patches(folders, settings, seed=0)
    assert [again.case_of(index) for index in range(len(data))] == [data.case_of(index) for index in range(len(data))]


def test_a_resumed_order_is_the_rest_of_the_whole_one(folders: list[Path]):
    data = patches.Patches(
        folders, replace(PLAIN, patches_per_volume=12, batch=5, cycles=2, epochs_per_cycle=2), seed=0
    )
    whole = list(data.batches())
    assert [len(batch) for batch in whole] == [5, 5, 2] * 12  # the last group of a volume takes what is left
    assert data.steps_per_epoch == 9
    for epoch in range(5):
        assert list(data.batches(epoch)) == whole[9 * epoch :]


def test_paper_counts():
    paper = PRESETS["paper"]
    assert (paper.patch, paper.patches_per_volume, paper.batch) == ((96, 96, 96), 12, 4)
    assert (paper.cycles, paper.epochs_per_cycle) == (50, 5)
    data = patches.Patches([Path(str(number)) for number in range(500)], paper, seed=0)
    assert data.steps_per_epoch == 1500
    assert len(data) == 250 * 500 * 12


# The centre


@pytest.mark.parametrize("share", [0.0, 1 / 3, 2 / 3, 1.0])
def test_the_share_of_patches_centred_on_a_lesion(folders: list[Path], share: float):
    """The lesion keeps more than half a patch from every side: no other centre is moved into it."""
    count = 160
    data = patches.Patches(folders, replace(PLAIN, lesion_share=share, patches_per_volume=count), seed=3)
    found = sum(int(label[0, PATCH // 2, PATCH // 2, PATCH // 2]) for _, label in cut(data, count))
    assert (
        abs(found - share * count) <= 3 * (share * (1 - share) * count) ** 0.5
    )  # 1/3 and 2/3 are 9 standard deviations apart


def test_patches_as_they_were_cut(folders: list[Path]):
    """Without augmentation a patch is a piece of the volume, image and label of the same place."""
    data = patches.Patches(folders, PLAIN, seed=0)
    whole = np.load(folders[0] / "image.npy")
    label = np.load(folders[0] / "label.npy")
    for image, mask in cut(data, 8):
        assert (image.dtype, mask.dtype) == (np.float32, np.float32)
        corners = np.argwhere(whole[0, : EDGE - PATCH + 1, : EDGE - PATCH + 1, : EDGE - PATCH + 1] == image[0, 0, 0, 0])
        places = [tuple(slice(edge, edge + PATCH) for edge in corner) for corner in corners]
        assert any(
            np.array_equal(whole[:, *place], image) and np.array_equal(label[:, *place], mask) for place in places
        )


# Augmentation


def test_how_many_patches_are_left_alone(folders: list[Path]):
    """Seven random operations of probability 0.1 each: 0.9^7 = 48 % of the patches stay as they are."""
    count = 160
    settings = replace(PLAIN, patches_per_volume=count, lesion_share=1.0)
    plain = cut(patches.Patches(folders, settings, seed=0), count)
    changed = cut(patches.Patches(folders, replace(settings, augmentation_probability=0.1), seed=0), count)
    same = sum(np.array_equal(before[0], after[0]) for before, after in zip(plain, changed, strict=True))
    assert abs(same / count - 0.9**7) < 3 * (0.478 * 0.522 / count) ** 0.5


def test_the_label_goes_where_the_image_goes(folders: list[Path]):
    """Everything at once, 60 times: the lesion that the image shows is the one that the label marks."""
    settings = replace(PLAIN, patches_per_volume=60, lesion_share=1.0, augmentation_probability=1.0)
    overlaps, shifts, sizes = [], [], []
    for image, label in cut(patches.Patches(folders, settings, seed=0), 60):
        assert image.shape == (2, *label.shape[1:]) == (2, PATCH, PATCH, PATCH)
        assert set(np.unique(label)) <= {0.0, 1.0}
        seen = image[1] > (image[1].max() + image[1].min()) / 2
        overlaps.append(2 * (seen & (label[0] > 0)).sum() / (seen.sum() + label.sum()))
        shifts.append(np.argwhere(seen).mean(axis=0) - np.argwhere(label[0]).mean(axis=0))
        sizes.append(label.sum())
    assert min(overlaps) > 0.9
    assert np.mean(overlaps) > 0.94
    assert np.abs(shifts).mean() < 0.2  # voxels; torch's mode `nearest` would move the label by 0.4
    assert len(set(sizes)) > 30  # zoomed, turned and cut in different places


def test_intensities_change_by_five_percent_and_in_both_channels_alike(tmp_path: Path):
    folder = tmp_path / "flat"
    folder.mkdir()
    label = np.zeros((40,) * 3, bool)
    label[20, 20, 20] = True
    image = np.stack([np.ones((40,) * 3), np.full((40,) * 3, 3.0)])
    save_case(folder, image, label, foreground=np.flatnonzero(label), background=np.flatnonzero(~label))
    settings = replace(PLAIN, patches_per_volume=80, augmentation_probability=1.0)
    factors, shifts = [], []
    for changed, _ in cut(patches.Patches([folder], settings, seed=0), 80):
        one, three = changed[0], changed[1]
        assert max(np.ptp(one), np.ptp(three)) < 1e-4  # borders are repeated where the volume was turned away
        factors.append((three.mean() - one.mean()) / 2)  # of a v + b
        shifts.append(one.mean() - factors[-1])
    assert 0.949 <= min(factors) < 0.97
    assert 1.03 < max(factors) <= 1.051
    assert -0.0505 <= min(shifts) < -0.03
    assert 0.03 < max(shifts) <= 0.0505


def test_a_patch_is_the_same_whoever_cuts_it(folders: list[Path]):
    settings = replace(PLAIN, augmentation_probability=1.0)
    data = patches.Patches(folders, settings, seed=1)
    with plain_tensors():
        alone = [data[index][0] for index in (9, 4)]
        loader = torch.utils.data.DataLoader(data, batch_sampler=iter([[9, 4]]), num_workers=1)
        image, label = next(iter(loader))
        other = patches.Patches(folders, settings, seed=2)[9][0]
    assert image.shape == (2, 2, PATCH, PATCH, PATCH)
    assert label.shape == (2, 1, PATCH, PATCH, PATCH)
    assert torch.equal(image, torch.stack(alone))
    assert not torch.equal(other, alone[0])


def test_a_case_without_lesion_gives_background(tmp_path: Path):
    data = patches.Patches([write(tmp_path / "none", lesion=False)], PLAIN, seed=0)
    assert not any(label.any() for _, label in cut(data, 5))
