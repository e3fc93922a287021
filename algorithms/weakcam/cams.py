"""Class activation maps of the class lesion: CAM, Grad-CAM, Grad-CAM++ and Score-CAM over one owner of hooks.

Maps are A^k (k channels) of a block of the classifier after its last ReLU, M the class's map, S the class's score (the
logit) and w its row of the linear layer. Equations are those of Früh et al. (J. Med. Imaging 8(5), 054003, 2021,
section 2.2.1), the sources are named with each method. Every method ends with a ReLU, also CAM, whose equation 1 has
none: what speaks against the class is no region of it.

With global average pooling and one linear layer, and maps of the last block, dS/dA^k is w_k / N at all N places. Then
Grad-CAM is CAM / N, the same map from 0 to 1, and Grad-CAM++ weighs A^k with relu(w_k) / (2 + w_k mean(A^k)). The
methods part ways in an earlier block (`cam_block`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from algorithms.weakcam.model import LESION, Classifier, Settings
from algorithms.weakcam.windows import EmptySlice, possible
from autopet.errors import AutopetError

# places in a list of masks, logits (b, classes) and means (b, k) of the watched block's maps
Passes = Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
ROUNDING = 1e-6  # differences within a map below this share of its largest value are not looked at
DENSE = 0.25  # share of a slice's pixels that is seen through masks, below which more of them make a batch
UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the number of a map's axes


def class_maps(network: nn.Module, x: np.ndarray | torch.Tensor, *, method: str, settings: Settings) -> np.ndarray:
    """Where the classifier sees lesions.

    Parameters
    ----------
    network : Classifier
        On any device; what is changed on it meanwhile is undone at the end, also after an error.
    x : (n, channels, y, x) array or tensor
        Slices as the network is trained on: from 0 to 1, 0 for air.
    method : str
        A key of METHODS: cam, gradcam, gradcam++ or scorecam.
    settings : Settings
        `cam_block`, `cam_batch` and what begins with `score_cam_`.

    Returns
    -------
    (n, hm, wm) float32 array
        From 0 to 1 in every slice (0 and 1 both occur); a constant map, as where the ReLU leaves nothing, is 0
        everywhere. 32 x 32 places at 256 x 256 pixels, more in an earlier block.

    Raises
    ------
    AutopetError
        An unknown method, or maps that are not finite.
    """
    if method not in METHODS:
        raise AutopetError(f"class activation map {method!r} is unknown; use one of {', '.join(METHODS)}")
    device = next(network.parameters()).device
    found = []
    for images in torch.as_tensor(x, dtype=torch.float32).split(settings.cam_batch):
        maps = METHODS[method](network, images.to(device), settings)
        if not maps.isfinite().all():
            raise AutopetError(
                f"{method}: expected finite maps, found others in {int((~maps.isfinite().flatten(1).all(1)).sum())} of "
                f"{len(maps)} slices; look for values that are not finite in the images or in the weights"
            )
        found.append(min_max(maps).cpu())
    return torch.cat(found).numpy()


# The owner of hooks


class Seen:
    """What the watched layer gave in the last forward pass: `maps`, (n, k, *places)."""

    maps: torch.Tensor

    def keep(self, _layer: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """The hook. Where gradients are wanted they start here: nothing before the layer is kept for them."""
        self.maps = output.detach().requires_grad_() if torch.is_grad_enabled() else output
        return self.maps


@contextmanager
def watched(network: nn.Module, layer: nn.Module) -> Iterator[Seen]:
    """The one place that changes a network: a hook on `layer`, parameters without gradients, evaluation mode.

    All of it is undone when the context ends, however it ends.
    """
    seen = Seen()
    modes = [(module, module.training) for module in network.modules()]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    handle = layer.register_forward_hook(seen.keep)
    try:
        network.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield seen
    finally:
        handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


# The methods: (n, channels, *pixels) to (n, *places), not normalised


def cam(network: nn.Module, x: torch.Tensor, settings: Settings) -> torch.Tensor:
    """M = relu(sum_k w_k A^k): the linear layer at every place, before the average (equation 1).

    Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016. Always of the last block.
    """
    classifier = cast(Classifier, network)
    with watched(network, classifier.blocks[-1]) as seen, torch.inference_mode():
        network(x)
        return combine(seen.maps, classifier.head.weight[LESION].expand(seen.maps.shape[:2]))


def grad_cam(network: nn.Module, x: torch.Tensor, settings: Settings) -> torch.Tensor:
    """M = relu(sum_k d_k A^k) with d_k the mean of dS/dA^k over the places (equations 2 and 3).

    Selvaraju et al., Grad-CAM, ICCV 2017.
    """
    maps, gradients = maps_and_gradients(network, x, settings)
    return combine(maps, gradients.flatten(2).mean(2))


def grad_cam_plus_plus(network: nn.Module, x: torch.Tensor, settings: Settings) -> torch.Tensor:
    """M = relu(sum_k v_k A^k) with v_k from `plus_plus_weights` (equations 4 and 5).

    Chattopadhay et al., Grad-CAM++, WACV 2018.
    """
    maps, gradients = maps_and_gradients(network, x, settings)
    return combine(maps, plus_plus_weights(maps, gradients))


def score_cam(network: nn.Module, x: torch.Tensor, settings: Settings) -> torch.Tensor:
    """M = relu(sum_k a_k A^k) with a_k from what the network says to the slice seen through A^k alone (equation 6).

    A^k is upsampled (linear), brought to 0 to 1 and multiplied with the slice: H^k. `score_cam_weights` says what
    becomes of the network's answers to H^k:

    - `scores`, the default: a = softmax over k of S(H^k) - S(0), the increase of the class's score (Wang et al.,
      Score-CAM, CVPR workshops 2020, Algorithm 1). The score of the empty slice is the same for all k and drops out.
    - `probabilities`: a_k = probability of the class for H^k, without another softmax: what the authors' code does.
    - `features`: a = softmax over k of the mean of A^k - A'^k, A' being the maps of H^k: Früh et al. subtract maps, not
      scores. How a map of differences becomes one number, and where the class comes in, they do not say; this takes the
      mean of the channel's own map, and the class does not come in.

    Of a `Classifier` only what can be seen through a mask is computed (`windows.py`), to the same result. Channels that
    are the same everywhere mask nothing and get no weight. `score_cam_top_channels` is an approximation: only the
    channels with the largest variance are tried (Faster Score-CAM, github.com/tabayashi0117/Score-CAM).
    """
    with watched(network, _layer(network, settings)) as seen, torch.inference_mode():
        network(x)
        maps = seen.maps
        weights = maps.new_zeros(maps.shape[:2])
        empty = EmptySlice(network, x.shape[1:]) if possible(network, x.shape[1:]) else None
        for image, own, row in zip(x, maps, weights, strict=True):
            channels = varied_channels(own, settings.score_cam_top_channels)
            masks = channel_masks(own[channels], image.shape[1:])
            if empty is None:
                passes = whole_passes(network, image, masks, seen=seen, settings=settings)
            else:
                passes = window_passes(empty, image, masks, settings=settings)
            row[channels] = channel_weights(own, channels, passes, kind=settings.score_cam_weights)
        return combine(maps, weights)


METHODS = {"cam": cam, "gradcam": grad_cam, "gradcam++": grad_cam_plus_plus, "scorecam": score_cam}


# Their parts


def combine(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """relu(sum_k weights_k A^k) of maps (n, k, *places) and weights (n, k): (n, *places)."""
    return torch.einsum("nkp,nk->np", maps.flatten(2), weights).relu().reshape(len(maps), *maps.shape[2:])


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """Every map of (n, *places) from 0 to 1; one that is the same everywhere becomes 0."""
    flat = maps.flatten(1)
    low, span, varied = spread(flat)
    return torch.where(varied, (flat - low) / span.where(varied, 1.0), 0.0).reshape(maps.shape)


def spread(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lowest value of every row of (n, m), what lies between it and the highest, and whether that is anything, (n, 1).

    What rounding makes of a constant is nothing: from 0 to 1, it would be as loud as a lesion.
    """
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return low, high - low, high - low > ROUNDING * torch.maximum(low.abs(), high.abs())


def maps_and_gradients(network: nn.Module, x: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """A^k of the block `cam_block`, and dS/dA^k, both (n, k, *places)."""
    with watched(network, _layer(network, settings)) as seen, torch.inference_mode(False), torch.enable_grad():
        score = network(x)[:, LESION].sum()  # slices do not see each other: every one gets its own gradient
        (gradients,) = torch.autograd.grad(score, seen.maps)
    return seen.maps.detach(), gradients


def plus_plus_weights(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """v_k = sum_ij alpha_ij^k relu(dY/dA_ij^k) of Grad-CAM++ for Y = exp(S), but for the factor exp(S).

    With s = dS/dA_ij^k, and S piecewise linear in the maps, the n-th derivative of Y is Y s^n. Equation 5,

        alpha_ij^k = d2Y / (2 d2Y + sum_ab A_ab^k d3Y),

    becomes 1 / (2 + s sum_ab A_ab^k) wherever s is positive; where it is not, the ReLU makes alpha irrelevant. The
    factor Y = exp(S) that is left in v_k is the same for all channels of a slice; without it nothing overflows, and a
    map from 0 to 1 is the same.

    Parameters
    ----------
    maps : (n, k, *places) tensor
        Not negative, as after a ReLU.
    gradients : (n, k, *places) tensor
        dS/dA.

    Returns
    -------
    (n, k) tensor
    """
    upwards = gradients.flatten(2).relu()
    return (upwards / (2 + upwards * maps.flatten(2).sum(2, keepdim=True))).sum(2)


def varied_channels(maps: torch.Tensor, top: int = 0) -> torch.Tensor:
    """Indices of the channels of maps (k, *places) that are not the same everywhere, in their order.

    Parameters
    ----------
    top : int
        Only so many of them, those with the largest variance; 0: all.
    """
    flat = maps.flatten(1)
    varied = spread(flat)[2][:, 0].nonzero()[:, 0]
    if not 0 < top < len(varied):
        return varied
    best = flat[varied].var(1).sort(descending=True, stable=True).indices[:top]  # of equal ones the first
    return varied[best].sort().values


def channel_masks(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Masks from 0 to 1 of the size of a slice from maps (b, *places): (b, 1, *size)."""
    if not len(maps):
        return maps.new_empty(0, 1, *size)
    grown = functional.interpolate(maps[:, None], size=size, mode=UPSAMPLING[len(size)], align_corners=False)
    return min_max(grown)


def whole_passes(
    network: nn.Module, image: torch.Tensor, masks: torch.Tensor, *, seen: Seen, settings: Settings
) -> Passes:
    """What a network says to a slice (channel, *pixels) through masks (b, 1, *pixels), and its means of maps."""
    for part in torch.arange(len(masks)).split(settings.cam_batch) if len(masks) else ():
        logits = network(image * masks[part])
        yield part, logits, seen.maps.flatten(2).mean(2)


def window_passes(empty: EmptySlice, image: torch.Tensor, masks: torch.Tensor, *, settings: Settings) -> Passes:
    """The same of a `Classifier`, which computes only what can be seen through the masks, and its surroundings."""
    blocks = len(empty.network.blocks)
    watched_block = (settings.cam_block or blocks) - 1
    seen = ((masks[:, 0] != 0) & (image != 0).any(0)).sum() / max(masks.numel(), 1)  # share of the pixels
    more = int((DENSE / seen).clamp(1, 1 / DENSE))  # batches of about the same cost, whatever the masks hide
    for part in torch.arange(len(masks)).split(settings.cam_batch * more) if len(masks) else ():
        last, own = empty.means(image * masks[part], blocks=(blocks - 1, watched_block))
        yield part, empty.network.head(last), own


def channel_weights(maps: torch.Tensor, channels: torch.Tensor, passes: Passes, *, kind: str) -> torch.Tensor:
    """a_k of Score-CAM for some of the channels of a slice's maps (k, *places); see `score_cam` for the kinds."""
    values = maps.new_empty(len(channels))
    for part, logits, means in passes:
        if kind == "features":
            tried = channels[part]
            own = means[torch.arange(len(tried)), tried]  # mean of A'^k of H^k
            values[part] = maps[tried].flatten(1).mean(1) - own
        else:
            values[part] = (logits.softmax(1) if kind == "probabilities" else logits)[:, LESION]
    return values if kind == "probabilities" else values.softmax(0)


def _layer(network: nn.Module, settings: Settings) -> nn.Module:
    return cast(Classifier, network).blocks[settings.cam_block - 1]  # 0 is the last
