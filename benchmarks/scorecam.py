"""How fast Score-CAM is, against the loop that shows the network one masked slice after the other.

    python benchmarks/scorecam.py --imagenet vgg16.safetensors --out scorecam-benchmark.json --require 5

The slice is a made chest with lesions, or the middle one of `--scan PET CT`. The network is the paper's with ImageNet's
weights (`--imagenet`) or with random ones, which leave more of a slice to be seen through a mask than those of trained
networks do, or that of a model folder (`--model`). Each way runs `--repeat` times in turns, the best time counts:

- loop: every channel that is not constant in turn; its map upsampled, brought to 0 to 1, times the slice, one pass.
- whole: `algorithms.weakcam.cams` as for any network, masked slices in batches, each computed whole.
- ours: `algorithms.weakcam.cams` as it is used: only tiles that a mask leaves something of, with fewer multiply-adds
  for each, or whole slices where that costs less (`algorithms/weakcam/windows.py`).
- approximation: the same with `--top-channels` channels only (`score_cam_top_channels`), which gives another map.

`gmac` are the multiply-adds of the convolutions, `gmac_per_s` how fast they went. `fastest_gmac_per_s` is what a wide
convolution reaches: divided by the loop's, it is the most that computing whole slices in any batch can gain, as
`most_for_whole_slices`. Where that is below what is asked for, less must be computed:

- The paper's network has 72.5 gmac for a slice, and one slice alone keeps the cores busy, so batches gain nothing. With
  ImageNet's weights and an average mask, tiles leave 20 of the 72.5 in the made chest, 28 in a real chest that fills
  the slice, 9 in a sarcoma's cut-out; of that, Winograd's filtering leaves a quarter.
- The demo's network has 0.29 gmac, and with random weights its masks hide little. Most of what can be gained there is
  from the loop's speed to the processor's, about twice to three times.

Maps, 0 to 1, of loop, whole and ours must differ by less than 1e-4. The benchmark ends with an error if they do not, or
if `ours` is not as many times faster than `loop` as `--require` says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from algorithms.weakcam.cams import channel_masks, class_maps, varied_channels  # noqa: E402
from algorithms.weakcam.imagenet import load_imagenet  # noqa: E402
from algorithms.weakcam.model import LESION, PRESETS, Classifier, Settings, build_network, load_network  # noqa: E402
from autopet.images import read_image  # noqa: E402
from autopet.slices import normalise, slice_grid, slice_images  # noqa: E402

MOST_APART = 1e-4
HEAD_GAIN = 100  # of an untrained linear layer
AIR_HU, SOFT_HU, LUNG_HU, BONE_HU = -1000.0, 40.0, -800.0, 400.0


def main() -> None:
    """Time every way in turns, compare what they found, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="the network's settings")
    parser.add_argument("--imagenet", type=Path, help="file of a VGG16 trained on ImageNet")
    parser.add_argument("--model", type=Path, help="folder of a trained model, in place of a preset")
    parser.add_argument("--scan", type=Path, nargs=2, metavar=("PET", "CT"), help="images of a real scan, SUV and HU")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way")
    parser.add_argument("--batch", type=int, help="masked slices of a pass; default: the settings'")
    parser.add_argument("--channels", type=int, help="silence the others, for a shorter run; default: all are tried")
    parser.add_argument("--top-channels", type=int, default=64, help="channels of the approximation")
    parser.add_argument("--skip-whole", action="store_true", help="leave out the second way")
    parser.add_argument("--out", type=Path, default=Path("scorecam-benchmark.json"), help="file for the figures")
    parser.add_argument("--require", type=float, default=0.0, help="least times faster; end with status 1 below it")
    flags = parser.parse_args()
    network, settings = make_network(flags)
    if flags.batch:
        settings = replace(settings, cam_batch=flags.batch)
    if flags.channels:
        silence(network, flags.channels)
    image = read_slice(*flags.scan, settings) if flags.scan else made_slice(settings)
    ways = {name: way for name, way in WAYS.items() if not (flags.skip_whole and name == "whole")}
    figures, maps = compare(network, settings, image, ways=ways, repeat=flags.repeat)
    found = approximation(network, settings, image, expected=maps["ours"], top=flags.top_channels)
    figures["approximation"] = found | {"times_faster": round(min(figures["seconds"]["loop"]) / found["seconds"], 2)}
    flags.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    check(figures, least_times_faster=flags.require)


def check(figures: dict, *, least_times_faster: float) -> None:
    """End with status 1 when a figure is not what the project promises."""
    for way, apart in figures["largest_difference"].items():
        if not apart < MOST_APART:
            sys.exit(f"the maps of {way} and loop differ by {apart:g}, expected less than {MOST_APART:g}")
    faster = figures["times_faster"]["ours"]
    if faster < least_times_faster:
        sys.exit(f"{faster} times faster, expected at least {least_times_faster:g}")


Way = Callable[[Classifier, torch.Tensor, Settings], np.ndarray]


def compare(
    network: Classifier, settings: Settings, image: torch.Tensor, *, ways: dict[str, Way], repeat: int
) -> tuple[dict, dict[str, np.ndarray]]:
    """Every way on the same slice (channel, y, x); seconds, multiply-adds, how far the maps are apart; and the maps."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    maps: dict[str, np.ndarray] = {}
    gmac = {}
    with torch.inference_mode():
        network.features(image[None])  # the first pass of a process is slower
        channels = network.features(image[None])[0].flatten(1)
    for _ in range(repeat):
        for way, function in ways.items():
            with counted() as counts:
                started = time.perf_counter()
                maps[way] = function(network, image, settings)
                seconds[way].append(time.perf_counter() - started)
            gmac[way] = sum(counts) / 1e9
    best = {way: min(found) for way, found in seconds.items()}
    others = [way for way in ways if way != "loop"]
    fastest, looped = fastest_gmac_per_s(), gmac["loop"] / best["loop"]
    figures = {
        "cpu_cores": multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "shape": list(image.shape),
        "channels": len(channels),
        "channels_tried": int((channels.amax(1) > channels.amin(1)).sum()),
        "share_of_zeros": round(float((channels == 0).float().mean()), 3),
        "share_seen": round(share_seen(network, image), 3),
        "seconds": {way: [round(one, 2) for one in found] for way, found in seconds.items()},
        "gmac": {way: round(value, 3) for way, value in gmac.items()},
        "gmac_per_s": {way: round(gmac[way] / best[way], 1) for way in ways},
        "fastest_gmac_per_s": round(fastest, 1),
        "most_for_whole_slices": round(fastest / looped, 2),
        "times_faster": {way: round(best["loop"] / best[way], 2) for way in others},
        "largest_difference": {way: float(np.abs(maps[way] - maps["loop"]).max()) for way in others},
    }
    return figures, maps


def approximation(
    network: Classifier, settings: Settings, image: torch.Tensor, *, expected: np.ndarray, top: int
) -> dict:
    """Seconds with few channels, and how far the map is from the one that all channels give."""
    started = time.perf_counter()
    found = ours(network, image, replace(settings, score_cam_top_channels=top))
    seconds = time.perf_counter() - started
    apart = np.abs(found - expected)
    return {
        "score_cam_top_channels": top,
        "seconds": round(seconds, 3),
        "largest_difference": round(float(apart.max()), 3),
        "mean_difference": round(float(apart.mean()), 4),
    }


@torch.inference_mode()
def share_seen(network: Classifier, image: torch.Tensor) -> float:
    """Of the pixels of all masked slices, how many are not 0."""
    maps = network.features(image[None])[0]
    masks = channel_masks(maps[varied_channels(maps)], image.shape[1:])[:, 0]
    body = (image != 0).any(0)
    return sum(float(((mask != 0) & body).float().mean()) for mask in masks) / max(len(masks), 1)


@torch.inference_mode()
def fastest_gmac_per_s() -> float:
    """Of a convolution of 256 channels that a processor computes at its best."""
    convolution = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.rand(4, 256, 64, 64).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        convolution(x)
        seconds.append(time.perf_counter() - started)
    return x.numel() * 256 * 9 / min(seconds) / 1e9


@contextmanager
def counted() -> Iterator[list[int]]:
    """Multiply-adds of the convolutions while the context is open, one number per call."""
    counts: list[int] = []
    convolve = functional.conv2d

    def count(x: torch.Tensor, weight: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        out = convolve(x, weight, *rest, **more)  # type: ignore[arg-type]
        counts.append(out.numel() * weight[0].numel())
        return out

    functional.conv2d = count  # type: ignore[assignment]
    try:
        yield counts
    finally:
        functional.conv2d = convolve


# --- the ways --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def loop(network: Classifier, image: torch.Tensor, settings: Settings) -> np.ndarray:
    """Score-CAM as its authors describe it (Wang et al. 2020, Algorithm 1)."""
    maps = network.features(image[None])
    scores, kept = [], []
    for channel in range(maps.shape[1]):
        own = functional.interpolate(maps[:, [channel]], image.shape[1:], mode="bilinear", align_corners=False)
        if own.max() == own.min():
            continue
        mask = (own - own.min()) / (own.max() - own.min())
        scores.append(network(image[None] * mask)[0, LESION])
        kept.append(channel)
    weights = torch.stack(scores).softmax(0)
    found = (weights[:, None, None] * maps[0, kept]).sum(0).relu()
    return ((found - found.min()) / (found.max() - found.min())).numpy()


def ours(network: nn.Module, image: torch.Tensor, settings: Settings) -> np.ndarray:
    """This project's."""
    return class_maps(network, image[None], method="scorecam", settings=settings)[0]


class Whole(nn.Module):
    """A classifier that does not say it is one, so that every masked slice is computed whole."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network, self.blocks, self.head = network, network.blocks, network.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


def whole(network: Classifier, image: torch.Tensor, settings: Settings) -> np.ndarray:
    """This project's, as for any network."""
    return ours(Whole(network), image, settings)


WAYS: dict[str, Way] = {"loop": loop, "whole": whole, "ours": ours}


# --- the network and the slice ---------------------------------------------------------------------------------------


def make_network(flags: argparse.Namespace) -> tuple[Classifier, Settings]:
    """A trained model, or a preset's network with weights for its convolutions."""
    if flags.model:
        network, settings, _ = load_network(flags.model)
        return network, settings
    settings = PRESETS[flags.preset]
    torch.manual_seed(0)
    network = build_network(settings).eval()
    if flags.imagenet:
        print(load_imagenet(network, flags.imagenet).summary(), file=sys.stderr)
    with torch.no_grad():  # as it starts, it hardly tells slices apart, and all ways would agree whatever they computed
        network.head.weight.mul_(HEAD_GAIN)
    return network, settings


@torch.no_grad()
def silence(network: Classifier, left: int) -> None:
    """Make all but so many channels of the last block 0, evenly spread: no way tries channels that are constant."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)][-1]
    silent = torch.ones(len(last.bias), dtype=torch.bool)
    silent[torch.linspace(0, len(silent) - 1, left).round().long()] = False
    last.weight[silent], last.bias[silent] = 0.0, 0.0


def read_slice(pet: Path, ct: Path, settings: Settings) -> torch.Tensor:
    """The middle slice of a scan as the network is shown it, (channel, y, x)."""
    images = {"PET": read_image(pet), "CT": read_image(ct)}
    grid = slice_grid(images["PET"], size=settings.size, pixel_mm=settings.pixel_mm)
    return torch.from_numpy(normalise(slice_images(images, grid)[grid.shape[0] // 2], settings.ranges))


def made_slice(settings: Settings) -> torch.Tensor:
    """A chest with noise, also in the air around it: lungs, spine, heart, three lesions; (channel, y, x)."""
    rng = np.random.default_rng(1)
    y_mm, x_mm = (np.indices((settings.size,) * 2) - (settings.size - 1) / 2) * settings.pixel_mm

    def ellipse(centre_mm: tuple[float, float], radii_mm: tuple[float, float]) -> np.ndarray:
        return ((y_mm - centre_mm[0]) / radii_mm[0]) ** 2 + ((x_mm - centre_mm[1]) / radii_mm[1]) ** 2 <= 1

    body = ellipse((0, 0), (115, 180))
    hu, suv = np.where(body, SOFT_HU, AIR_HU), np.where(body, 0.8, 0.0)
    for side in (-1, 1):
        lung = ellipse((0, 85 * side), (75, 60))
        hu[lung], suv[lung] = LUNG_HU, 0.4
    for centre_mm, radii_mm, own_hu, own_suv in (
        ((80, 0), (18, 20), BONE_HU, 1.2),
        ((-20, 25), (38, 42), SOFT_HU, 4.0),  # the heart
        ((-15, -95), (9, 12), SOFT_HU, 9.0),
        ((10, 110), (6, 6), SOFT_HU, 6.0),
        ((30, -20), (7, 7), SOFT_HU, 7.0),
    ):
        part = ellipse(centre_mm, radii_mm)
        hu[part], suv[part] = own_hu, own_suv
    hu += rng.normal(0, 20, hu.shape)
    suv += rng.normal(0, 0.02, suv.shape) + rng.normal(0, 0.1, suv.shape) * suv
    return torch.from_numpy(normalise(np.stack([hu, suv.clip(0)]).astype(np.float32), settings.ranges))


if __name__ == "__main__":
    main()
