"""What is taken out of a predicted mask by rule: the recipes of the autoPET I winners, shared by every method.

Pure functions on arrays and spacing, each removes and never adds. A model folder's config.json names the rules under
"postprocessing" (`autopet postprocess` sets them); a folder that names none has none.

Sources: Gatidis et al., "The autoPET challenge: towards fully automated lesion segmentation in oncologic PET/CT
imaging", section "Algorithms" (teams Blackbean, FightTumor and UIH-FL), and the datacentric baseline of autoPET III.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopet.checkpoint import settings_from_dict
from autopet.components import Components
from autopet.errors import AutopetError
from autopet.volume import Volume

CONFIG_KEY = "postprocessing"  # of config.json
TOUCHING, WITHIN = "touching", "within"
VOLUME_TOLERANCE = 1e-6  # relative: file formats round the spacing, a volume of exactly the limit stays


@dataclass(frozen=True)
class Rules:
    """Which rules clean a mask; every one is off by default. `apply_rules` applies them in the order below."""

    min_ct_hu: float | None = None  # voxels with a lower CT are cleared; FightTumor: -1000
    min_suv: float | None = None  # voxels with a lower SUV are cleared; datacentric baseline: 1
    bottom_slices: int = 0  # components on so many slices at the patient's feet end are removed; UIH-FL: 3
    bottom_rule: str = TOUCHING  # `touching`: a voxel on these slices is enough; `within`: it lies on them as a whole
    min_component_voxels: int = 0  # components with fewer voxels are removed; FightTumor: 10, UIH-FL: 4
    min_component_ml: float = 0.0  # components with less volume are removed, ml

    def __post_init__(self) -> None:
        for name in ("min_ct_hu", "min_suv"):
            _require_number(name, getattr(self, name), none_allowed=True)
        _require_number("min_component_ml", self.min_component_ml, least=0)
        for name in ("bottom_slices", "min_component_voxels"):
            _require_number(name, getattr(self, name), least=0, whole=True)
        if self.bottom_rule not in (TOUCHING, WITHIN):
            raise AutopetError(f"bottom_rule {self.bottom_rule!r} is unknown; use {TOUCHING} or {WITHIN}")

    @property
    def active(self) -> dict[str, float | int | str]:
        """The fields that differ from their default: what config.json holds. Empty when no rule is on."""
        changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return changed if set(changed) - {"bottom_rule"} else {}

    @property
    def judge_components(self) -> bool:
        """Whether a rule that looks at components is on."""
        return bool(self.bottom_slices or self.min_component_voxels or self.min_component_ml)


def rules_of(config: Mapping[str, Any], where: str) -> Rules:
    """The rules that a model's config.json names; `where` names the model in errors. Absent, null and empty are off."""
    values = config.get(CONFIG_KEY) or {}
    if not isinstance(values, Mapping):
        raise AutopetError(
            f'{where}: {CONFIG_KEY} is expected as an object such as {{"min_suv": 1}}, found {values!r}; set it with '
            "`autopet postprocess`"
        )
    return settings_from_dict(Rules, values, f"{where}: {CONFIG_KEY}")


def _require_number(
    name: str, value: object, *, least: float = -math.inf, whole: bool = False, none_allowed: bool = False
) -> None:
    if value is None and none_allowed:
        return
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or value < least:  # type: ignore[arg-type, operator]
        kind = "a whole number" if whole else "a number"
        bound = "" if math.isinf(least) else f" of at least {least:g}"
        raise AutopetError(f"post-processing rule {name}: expected {kind}{bound}, found {value!r}")


def clear_below(mask: np.ndarray, image: np.ndarray, minimum: float) -> np.ndarray:
    """Clear the voxels of a mask where an image is below a value.

    Parameters
    ----------
    mask, image : (z, y, x) arrays on one grid
        The image in the unit of `minimum`: CT in HU (FightTumor: -1000, air) or PET in SUV (datacentric baseline: 1).

    Returns
    -------
    (z, y, x) array of the mask's type
        Voxels that equal `minimum` stay. A voxel whose value is NaN is cleared.

    Examples
    --------
    >>> clear_below(np.ones((1, 1, 3), np.uint8), np.array([[[-1001.0, -1000.0, 40.0]]]), -1000)
    array([[[0, 1, 1]]], dtype=uint8)
    """
    if mask.shape != image.shape:
        raise AutopetError(f"expected an image of the mask's shape {mask.shape}, found {image.shape}; resample it")
    return np.where(image >= minimum, mask, mask.dtype.type(0))


def remove_few_voxels(mask: np.ndarray, minimum: int) -> np.ndarray:
    """Remove the components (18-connectivity) of fewer than `minimum` voxels.

    FightTumor: 10; UIH-FL: 4. An empty mask stays empty.

    Examples
    --------
    >>> remove_few_voxels(np.array([[[1, 1, 0, 1]]], np.uint8), 2)
    array([[[1, 1, 0, 0]]], dtype=uint8)
    """
    components = Components.of(mask)
    return _without(mask, components, components.sizes < minimum)


def remove_small(mask: np.ndarray, minimum_ml: float, *, voxel_ml: float) -> np.ndarray:
    """Remove the components (18-connectivity) of less than `minimum_ml`; a voxel has `voxel_ml`, both in millilitres.

    Blackbean removes small components, without a published size. An empty mask stays empty.

    Examples
    --------
    >>> remove_small(np.array([[[1, 1, 0, 1]]], np.uint8), 0.02, voxel_ml=0.012)
    array([[[1, 1, 0, 0]]], dtype=uint8)
    """
    components = Components.of(mask)
    return _without(mask, components, _below_ml(components, minimum_ml, voxel_ml=voxel_ml))


def _below_ml(components: Components, minimum_ml: float, *, voxel_ml: float) -> np.ndarray:
    return components.sizes * voxel_ml < minimum_ml * (1 - VOLUME_TOLERANCE)


def remove_at_bottom(
    mask: np.ndarray, slices: int, *, direction: tuple[float, ...], rule: str = TOUCHING
) -> np.ndarray:
    """Remove the components (18-connectivity) on the slices at the patient's feet end of the image.

    UIH-FL removed "all connected components on the three bottom slices of the predicted pet mask". Whether a
    component that reaches further up is "on" these slices is not said. By default it is: whatever has a voxel there
    goes as a whole (`touching`); `within` removes only what lies on these slices as a whole.

    Parameters
    ----------
    mask : (z, y, x) array
    slices : int
        How many slices count as bottom. An image of no more slices loses everything.
    direction : nine floats
        The grid's direction as in `Volume`: it says which array axis runs along the body, and which end is the feet's.

    Examples
    --------
    >>> remove_at_bottom(np.array([[[1]], [[0]], [[1]]], np.uint8), 1, direction=(1, 0, 0, 0, 1, 0, 0, 0, -1)).ravel()
    array([1, 0, 0], dtype=uint8)
    """
    components = Components.of(mask)
    gone = _at_bottom(components, mask.shape, slices, direction=direction, rule=rule)
    return _without(mask, components, gone)


def _at_bottom(
    components: Components, shape: tuple[int, ...], slices: int, *, direction: tuple[float, ...], rule: str
) -> np.ndarray:
    """(count,) bool: the components on the bottom slices of an image of a shape."""
    axis, upwards = body_axis(direction)
    box = components.mask.shape
    # one coordinate of the three: a component may be as large as the image
    place = components.index // max(math.prod(box[axis + 1 :]), 1) % max(box[axis], 1) + components.box[axis].start
    height = place if upwards else shape[axis] - 1 - place  # slices above the lowest one
    at_bottom = np.bincount(components.labels[height < slices], minlength=components.count + 1)[1:]
    return at_bottom > 0 if rule == TOUCHING else at_bottom == components.sizes


def body_axis(direction: tuple[float, ...]) -> tuple[int, bool]:
    """The array axis (0 is z) nearest to the body's long axis, and whether its index grows towards the head.

    In LPS coordinates (DICOM PS3.3 C.7.6.2.1.1) the third coordinate grows towards the head.
    """
    towards_head = np.reshape(direction, (3, 3))[2, ::-1]  # of the axes z, y, x
    axis = int(np.argmax(np.abs(towards_head)))
    return axis, bool(towards_head[axis] > 0)


def _without(mask: np.ndarray, components: Components, gone: np.ndarray) -> np.ndarray:
    """The mask without some components; `gone` is (count,) bool."""
    cleaned = mask.copy()
    window = np.ascontiguousarray(cleaned[components.box])
    window.reshape(-1)[components.index[gone[components.labels - 1]]] = 0
    cleaned[components.box] = window
    return cleaned


def apply_rules(mask: Volume, rules: Rules, *, suv: Volume | None, ct: Volume | None) -> tuple[Volume, tuple[str, ...]]:
    """Clean a mask: voxels first (CT, then SUV), then components (bottom slices, voxel count, volume).

    Voxels go first because a component that they cut in pieces is judged by its pieces. The sources give no order.

    Parameters
    ----------
    mask : Volume
        Foreground where it is not zero; an empty one stays empty.
    suv, ct : Volume or None
        PET in SUV and CT in HU on the mask's grid; None where a method has no such image.

    Returns
    -------
    Volume
        On the same grid, of the same type.
    tuple of str
        One sentence for every rule that removed something.

    Raises
    ------
    AutopetError
        A rule needs an image that is not there or lies on another grid.
    """
    voxel_steps = list(_voxel_steps(rules, mask, suv, ct))  # all needs are checked before anything is removed
    sentences = []
    components = Components.of(mask.array)
    for what, image, minimum in voxel_steps:
        cleared = clear_below(mask.array[components.box], image[components.box], minimum)
        voxels = components.voxels - int(np.count_nonzero(cleared))
        if voxels:
            array = mask.array.copy()
            array[components.box] = cleared
            mask, before, components = mask.with_array(array), components, Components.of(array)
            sentences.append(_sentence(what, voxels * mask.voxel_volume_ml, voxels, (before.count, components.count)))
    kept = np.ones(components.count if rules.judge_components else 0, bool)
    for what, gone in _component_steps(rules, mask, components):
        now = gone & kept  # a component that goes as a whole changes nothing about the others: one labelling is enough
        if now.any():
            voxels, count = int(components.sizes[now].sum()), int(kept.sum())
            kept &= ~now
            sentences.append(_sentence(what, voxels * mask.voxel_volume_ml, voxels, (count, int(kept.sum()))))
    return mask if kept.all() else mask.with_array(_without(mask.array, components, ~kept)), tuple(sentences)


def _voxel_steps(
    rules: Rules, mask: Volume, suv: Volume | None, ct: Volume | None
) -> Iterator[tuple[str, np.ndarray, float]]:
    """What each rule for voxels that is on removes, in words; the image that it looks at, and the least value."""
    if rules.min_ct_hu is not None:
        yield f"voxels with a CT below {rules.min_ct_hu:g} HU", _needed(ct, mask, "CT", "min_ct_hu"), rules.min_ct_hu
    if rules.min_suv is not None:
        yield f"voxels with an SUV below {rules.min_suv:g}", _needed(suv, mask, "PET", "min_suv"), rules.min_suv


def _component_steps(rules: Rules, mask: Volume, components: Components) -> Iterator[tuple[str, np.ndarray]]:
    """What each rule for components that is on removes, in words; and which those are, (count,) bool."""
    if rules.bottom_slices:
        yield (
            f"components {rules.bottom_rule} the {rules.bottom_slices} bottom slices",
            _at_bottom(components, mask.shape, rules.bottom_slices, direction=mask.direction, rule=rules.bottom_rule),
        )
    if rules.min_component_voxels:
        yield (
            f"components of fewer than {rules.min_component_voxels} voxels",
            components.sizes < rules.min_component_voxels,
        )
    if rules.min_component_ml:
        yield (
            f"components of less than {rules.min_component_ml:g} ml",
            _below_ml(components, rules.min_component_ml, voxel_ml=mask.voxel_volume_ml),
        )


def _needed(image: Volume | None, mask: Volume, what: str, rule: str) -> np.ndarray:
    if image is None:
        raise AutopetError(
            f"post-processing rule {rule} needs the {what}, which this method does not read; turn it off with "
            f"`autopet postprocess MODEL --set {rule}=off`"
        )
    difference = mask.grid_difference(image)
    if difference:
        raise AutopetError(f"post-processing rule {rule}: the {what} is not on the mask's grid: {difference}")
    return image.array


def _sentence(what: str, removed_ml: float, voxels: int, counts: tuple[int, int]) -> str:
    """`counts` are the components before and after."""
    return (
        f"post-processing removed {what}: {voxels} voxels ({removed_ml:.3g} ml), components {counts[0]} -> {counts[1]}"
    )
