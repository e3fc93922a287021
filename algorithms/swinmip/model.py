"""Galdran's solution of autoPET II: Swin-UNETR with cross-entropy, and a classifier of projections as a gate (004).

This file holds the settings, the two networks and the model folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.networks.nets import SwinUNETR

from autopet.checkpoint import CONFIG, load_config, load_weights, no_weights, settings_from_dict, verify_sums
from autopet.errors import AutopetError

METHOD = "swinmip"
CHANNELS = ("CT", "PET")
LOSSES = ("ce", "dice", "dice_ce", "dice_focal")
PROTOCOLS = ("paper", "holdout")
PROJECTIONS = ("x", "y", "z")  # left-right, front-back, head-feet
SWIN_STEP = 32  # Swin-UNETR halves its grid five times
SWIN_STAGES = 4
COUNTS = (  # settings that must be at least 1
    *("patches_per_volume", "batch", "cycles", "epochs_per_cycle", "window", "checkpoint_every"),
    *("cls_batch", "cls_cycles", "cls_epochs_per_cycle", "cls_window"),
)
DESCRIBED = ("settings", "channels", "spacing_mm", "ranges", "threshold", "gate")  # what config.json must say


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters. The defaults are the `paper` preset; README.md says which are published.

    Fields that begin with `cls_` belong to the classifier, the others to the segmentation or to both.
    """

    protocol: str = "paper"  # paper: thresholds come from test cases, which then join the training of all folds again
    # holdout: the networks that the thresholds were chosen for are kept, and the test cases are not trained on
    folds: int = 5
    test_share: float = 0.1  # of the patients, positive and negative ones alike
    spacing_mm: tuple = (2.04, 2.04, 3.0)  # working grid x, y, z; empty: median of the training cases
    percentiles: tuple = (5.0, 95.0)  # of the lesion voxels of the training set, that intensities are clipped to
    ct_range_hu: tuple = ()  # clipped to; empty: computed. Published: -799.2, 557.91
    pet_range_suv: tuple = ()  # likewise. Published: 1.14, 30.17
    feature_size: int = 12  # channels of the first stage
    depths: tuple = (2, 2, 2, 2)  # Swin blocks per stage
    heads: tuple = (3, 6, 12, 24)  # attention heads per stage
    window: int = 7  # edge of the attention windows, in places of a stage's grid, which is padded to a multiple
    patch: tuple = (96, 96, 96)  # voxels; also the tiles of inference
    patches_per_volume: int = 12
    batch: int = 4  # patches per iteration
    lesion_share: float = 2 / 3  # of the patches, centred on a lesion voxel (the released code: 1/3)
    augmentation_probability: float = 0.1  # of each random operation on a patch
    loss: str = "ce"  # ce, dice, dice_ce, dice_focal: section 4.1
    learning_rate: float = 5e-4  # of NAdam, at the start of a cycle
    weight_decay: float = 0.0
    cycles: int = 50
    epochs_per_cycle: int = 5
    btcv: str = ""  # file of a Swin-UNETR trained on BTCV; empty: random weights
    overlap: float = 0.25  # of neighbouring tiles, as a share of the tile
    cls_projections: tuple = ("x", "y")
    cls_size: tuple = (224, 352)  # pixels of a projection along x or y: width or depth, height. z: width, width
    cls_spacing_mm: tuple = (2.04, 2.04, 3.0)  # of the volume before the projection
    cls_embedding: int = 96  # Swin-T
    cls_depths: tuple = (2, 2, 6, 2)
    cls_heads: tuple = (3, 6, 12, 24)
    cls_window: int = 7
    cls_drop_path: float = 0.2  # largest probability that a block is left out in training
    cls_start_deviation: float = 0.02  # of the random weights of linear layers; 0: 1 / sqrt(inputs), see swin.py
    cls_batch: int = 8
    cls_learning_rate: float = 1e-4
    cls_weight_decay: float = 1e-3
    cls_cycles: int = 5
    cls_epochs_per_cycle: int = 3
    cls_augmentation_probability: float = 0.5
    imagenet: str = ""  # file of a Swin-T trained on ImageNet; empty: random weights
    gate: bool = True  # scans that the classifier holds for lesion-free are not segmented
    gate_margin: float = 0.1  # the gate lies this share below the highest threshold of sensitivity 1
    checkpoint_every: int = 1  # epochs between checkpoints that a killed training resumes from
    workers: int = 8  # processes that cut and deform patches, at most one per core; 0: in the training process
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("protocol", PROTOCOLS)):
            if getattr(self, name) not in known:
                raise AutopetError(f"{name} {getattr(self, name)!r} is unknown; use {', '.join(known)}")
        if len(self.patch) != 3 or any(edge <= 0 or edge % SWIN_STEP for edge in self.patch):
            raise AutopetError(f"patch needs three edges that divide by {SWIN_STEP}, found {self.patch}")
        self._check_segmenter()
        self._check_numbers()
        if not self.cls_projections or set(self.cls_projections) - set(PROJECTIONS):
            raise AutopetError(f"cls_projections may name {', '.join(PROJECTIONS)}, found {self.cls_projections}")
        for name in ("spacing_mm", "cls_spacing_mm"):
            if len(getattr(self, name)) not in (0, 3) or min(getattr(self, name), default=1) <= 0:
                raise AutopetError(f"{name} needs three positive numbers x, y, z, or none, found {getattr(self, name)}")

    def _check_numbers(self) -> None:
        """Shares and counts."""
        for name in ("test_share", "overlap", "gate_margin", "cls_drop_path", "cls_start_deviation"):
            if not 0 <= getattr(self, name) < 1:
                raise AutopetError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")
        if not 0 <= self.lesion_share <= 1:
            raise AutopetError(f"lesion_share must be from 0 to 1, found {self.lesion_share}")
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise AutopetError(f"percentiles needs a low and a higher one from 0 to 100, found {self.percentiles}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise AutopetError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.folds < 2:
            raise AutopetError(f"cross-validation needs at least 2 folds, found {self.folds}")

    def _check_segmenter(self) -> None:
        """What MONAI's Swin-UNETR asks for."""
        if self.feature_size <= 0 or self.feature_size % 12:
            raise AutopetError(f"feature_size must be a multiple of 12 (MONAI's SwinUNETR), found {self.feature_size}")
        if len(self.depths) != SWIN_STAGES or len(self.heads) != SWIN_STAGES:
            raise AutopetError(f"depths and heads need {SWIN_STAGES} numbers each, found {self.depths}, {self.heads}")
        widths = [self.feature_size * 2**stage for stage in range(SWIN_STAGES)]
        if any(heads <= 0 or width % heads for width, heads in zip(widths, self.heads, strict=True)):
            raise AutopetError(f"heads must divide the widths of the stages, {widths}; found {self.heads}")


PRESETS = {
    "paper": Settings(),
    "demo": Settings(
        protocol="holdout",
        folds=2,
        test_share=0.25,
        spacing_mm=(),
        window=4,
        patch=(32, 32, 64),
        patches_per_volume=4,
        batch=2,
        learning_rate=6e-3,
        cycles=8,
        epochs_per_cycle=5,
        cls_size=(64, 96),
        cls_spacing_mm=(8.0, 8.0, 8.0),
        cls_embedding=24,
        cls_depths=(2, 2, 2),
        cls_heads=(2, 4, 8),
        cls_window=4,
        cls_drop_path=0.0,
        cls_start_deviation=0.0,
        cls_cycles=4,
        cls_learning_rate=1e-3,
        workers=0,
    ),
}


def build_segmenter(settings: Settings) -> SwinUNETR:
    """MONAI's Swin-UNETR: (batch, 2, x, y, z) to the lesion's logits (batch, 1, x, y, z); the sigmoid is the caller's.

    The edges of x, y and z must divide by 32 (paper, section 3 and 4.2: one output channel).

    Raises
    ------
    AutopetError
        Patches of 32 voxels on all sides: one voxel is left at the bottom, and instance norm wants two.
    """
    if max(settings.patch) == SWIN_STEP:
        raise AutopetError(
            f"patch needs an edge of {2 * SWIN_STEP} or more voxels: at {settings.patch} a single voxel is left at the "
            "bottom of Swin-UNETR, and instance norm wants two"
        )
    return SwinUNETR(
        in_channels=len(CHANNELS),
        out_channels=1,
        feature_size=settings.feature_size,
        depths=settings.depths,
        num_heads=settings.heads,
        window_size=settings.window,
    )


# The model folder


def segmenter_file(fold: int) -> str:
    """Name of a fold's segmentation weights in the model folder; folds count from 0."""
    return f"segmenter_fold{fold}.safetensors"


def classifier_file(axis: str, fold: int) -> str:
    """Name of the weights of a fold's classifier of the projections along `axis`."""
    return f"classifier_{axis}_fold{fold}.safetensors"


def load_segmenter(path: Path, settings: Settings) -> SwinUNETR:
    """The network of one fold with its weights, on the CPU, in evaluation mode.

    Raises
    ------
    AutopetError
        The file is missing or damaged, or holds the weights of another network.
    """
    what = "the segmentation network that config.json describes"
    return load_weights(build_segmenter(settings), path, what=what)


def read_model(folder: Path) -> tuple[Settings, dict[str, Any]]:
    """Settings and config.json of a model folder. Weights are neither read nor checked, see `verify_sums`:
    the segmentation's are not read for a scan that the gate keeps out.

    Raises
    ------
    AutopetError
        No model of this method there, or config.json lacks something or differs from its checksum.
    """
    if not (Path(folder) / CONFIG).is_file():
        raise no_weights(folder, METHOD)
    config = load_config(Path(folder))
    if config.get("method") != METHOD:
        raise AutopetError(f"{folder}/config.json: a model of method {config.get('method')!r}, expected {METHOD!r}")
    verify_sums(folder, [CONFIG])
    lost = sorted(set(DESCRIBED) - set(config))
    if lost:
        raise AutopetError(f"{folder}/config.json lacks {', '.join(lost)}; train or copy the model again")
    if tuple(config["channels"]) != CHANNELS:
        raise AutopetError(
            f"{folder}/config.json: channels {config['channels']}, expected {list(CHANNELS)}; train the model again"
        )
    return settings_from_dict(Settings, config["settings"], str(folder)), config
