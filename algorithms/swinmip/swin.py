"""The classifier of projections: a Swin transformer with one logit (Liu et al. 2021), and ImageNet weights from a file.

It is put together from the blocks of MONAI's Swin-UNETR in two dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging
from torch import nn

from algorithms.swinmip.model import Settings
from algorithms.swinmip.projections import IMAGE_CHANNELS, projection_size
from autopet.errors import AutopetError
from autopet.pretrained import SHOWN, Report, copy_fitting, read_weights

PATCH_PIXELS = 4  # edge of a patch, of which the network makes one place of its first grid


class Classifier(nn.Module):
    """A Swin transformer: images (batch, 3, height, width) to logits (batch,) of lesions.

    With embedding 96, depths 2-2-6-2, heads 3-6-12-24 and window 7 it is the Swin-T that the authors took from
    torchvision: the same function, also where grids are padded to multiples of the window (224 x 352).

    Parameters
    ----------
    drop_path : float
        Largest probability that a block is left out in training; 0.2 in torchvision's.
    start_deviation : float
        Of the random weights of linear layers; 0.02 in torchvision's. 0: 1 / sqrt(inputs) (LeCun et al., "Efficient
        BackProp", 1998), with which what a layer gives is as large as what it gets, however narrow it is. On
        projections of phantoms a narrow network without ImageNet weights learnt nothing from 0.02 in hundreds of steps.
    """

    def __init__(
        self,
        embedding: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        *,
        drop_path: float = 0.2,
        start_deviation: float = 0.02,
    ) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()  # of all blocks in turn
        last = len(depths) - 1
        self.embedding = PatchEmbed(PATCH_PIXELS, IMAGE_CHANNELS, embedding, nn.LayerNorm, spatial_dims=2)
        self.stages = nn.Sequential(
            *(
                BasicLayer(
                    dim=embedding * 2**stage,
                    depth=depth,
                    num_heads=heads[stage],
                    window_size=(window, window),
                    drop_path=rates[sum(depths[:stage]) : sum(depths[: stage + 1])],
                    qkv_bias=True,
                    downsample=PatchMerging if stage < last else None,  # type: ignore[arg-type]
                )
                for stage, depth in enumerate(depths)
            )
        )
        self.norm = nn.LayerNorm(embedding * 2**last)
        self.head = nn.Linear(embedding * 2**last, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=start_deviation or module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, whose sigmoid is the probability of a lesion."""
        grid = self.stages(self.embedding(images))  # (batch, channels, rows, columns)
        places = self.norm(grid.flatten(2).transpose(1, 2))  # (batch, places, channels)
        return self.head(places.mean(dim=1))[:, 0]


def build_classifier(settings: Settings, axis: str) -> Classifier:
    """The network for projections along `axis`, with random weights; the `paper` settings make a Swin-T.

    Raises
    ------
    AutopetError
        Stages that do not fit each other, or a projection too small for them.
    """
    depths, heads = tuple(settings.cls_depths), tuple(settings.cls_heads)
    if not depths or len(depths) != len(heads):
        raise AutopetError(f"cls_depths and cls_heads need one number per stage, found {depths} and {heads}")
    channels = tuple(settings.cls_embedding * 2**stage for stage in range(len(heads)))
    if any(count < 1 or width % count for width, count in zip(channels, heads, strict=True)):
        raise AutopetError(f"cls_heads {heads} must divide the channels of their stages, {channels}")
    size = projection_size(settings, axis)
    last = [-(-pixels // (PATCH_PIXELS * 2 ** (len(depths) - 1))) for pixels in size]  # rounded up: grids are padded
    if min(last) < settings.cls_window:
        raise AutopetError(
            f"a projection of {size[0]} x {size[1]} pixels leaves the last of {len(depths)} stages {last[0]} x "
            f"{last[1]} places, fewer than cls_window={settings.cls_window}; enlarge cls_size, or lower cls_window"
        )
    return Classifier(
        settings.cls_embedding,
        depths,
        heads,
        settings.cls_window,
        drop_path=settings.cls_drop_path,
        start_deviation=settings.cls_start_deviation,
    )


# ImageNet weights

GIVE = "a Swin-T of torchvision (.pth) or Hugging Face (safetensors), or set imagenet to nothing"


@dataclass(frozen=True)
class ImageNetReport(Report):
    """What became of the tensors of a file: `loaded` and `missing` are the network's, `skipped` the file's."""

    title: ClassVar[str] = "ImageNet weights"


@torch.no_grad()
def load_imagenet(classifier: Classifier, path: Path) -> ImageNetReport:
    """Copy the weights of a Swin-T trained on ImageNet into a classifier, in place, as far as the shapes agree.

    Parameters
    ----------
    path : Path
        A state dict of torchvision's `swin_t` (`.pth`, which the authors used, or safetensors), or the safetensors file
        of a Swin on the Hugging Face hub. Nothing in it is executed. The head for ImageNet's classes is skipped.

    Raises
    ------
    AutopetError
        No such file, another kind of file, or no tensor that fits.
    """
    renamed, skipped = our_names(read_weights(Path(path), what="ImageNet weights", give=GIVE))
    own = dict(classifier.named_parameters())
    loaded = copy_fitting(renamed, own, skipped)
    if not loaded:
        raise AutopetError(
            f"{path}: none of its {len(renamed)} tensors fits the classifier's {len(own)} "
            f"({', '.join(list(renamed)[:SHOWN])}); give a Swin-T of torchvision or Hugging Face, and leave "
            "cls_embedding as in the paper preset"
        )
    return ImageNetReport.of(own, loaded, skipped)


HEADS = ("head.", "classifier.")
TORCHVISION = (  # pairs of pattern and name; blocks are in odd places of the list `features`, mergings in even ones
    (r"features\.0\.0\.", "embedding.proj."),
    (r"features\.0\.2\.", "embedding.norm."),
    (r"\.mlp\.0\.", ".mlp.linear1."),
    (r"\.mlp\.3\.", ".mlp.linear2."),
)
HUGGING_FACE = (  # transformers renamed tensors in its version 5; files on the hub have the names before it
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "embedding.proj."),
    (r"^embeddings\.norm\.", "embedding.norm."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layers\.", "stages."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self|relative_position_bias)\.relative_position_bias_table", ".attn.relative_position_bias_table"),
    (r"\.attention\.(self\.query|q_proj)\.", ".attn.qkv0."),
    (r"\.attention\.(self\.key|k_proj)\.", ".attn.qkv1."),
    (r"\.attention\.(self\.value|v_proj)\.", ".attn.qkv2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.linear1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".mlp.linear2."),
)


def our_names(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of torchvision or Hugging Face by the network's names, and the names of the others with reasons.

    Query, key and value are one tensor in torchvision and here, three at Hugging Face.
    """
    patterns = TORCHVISION if any(name.startswith("features.") for name in weights) else HUGGING_FACE
    renamed: dict[str, torch.Tensor] = {}
    skipped: dict[str, str] = {}
    for name, tensor in weights.items():
        if name.startswith(HEADS):
            skipped[name] = "of the head for other classes"
        elif name.endswith("relative_position_index"):
            skipped[name] = "computed from the window"
        else:
            new = name
            for pattern, replacement in patterns:
                new = re.sub(pattern, replacement, new)
            renamed[re.sub(r"^features\.(\d+)\.", _stage, new)] = tensor
    for name in [name for name in renamed if ".qkv0." in name]:
        thirds = [name.replace(".qkv0.", f".qkv{third}.") for third in range(3)]
        if all(third in renamed for third in thirds):
            renamed[name.replace(".qkv0.", ".qkv.")] = torch.cat([renamed.pop(third) for third in thirds])
    return renamed, skipped


def _stage(place: re.Match) -> str:
    """torchvision's list `features`: 1 the blocks of stage 0, 2 the merging after it, 3 the blocks of stage 1 ..."""
    stage, merging = divmod(int(place[1]) - 1, 2)
    return f"stages.{stage}.{'downsample' if merging else 'blocks'}."
