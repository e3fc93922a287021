"""One axial slice of a case as panels side by side: PET with the truth, class activation maps, masks, CT.

The arrangement is that of figure 4 of Früh et al., "Weakly supervised segmentation of tumor lesions in PET-CT hybrid
imaging" (J. Med. Imaging 8(5), 054003, 2021). Arrays are axial slices as one looks at them: rows from the patient's
front to the back, columns from the patient's right to the left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from leaderboard.pictures import CLASSES, SUV_BLACK, Projection, draw, draw_pet

PANEL_PX = 240  # height of a panel
MARGIN_PX, TITLE_PX = 8, 22
TEXT_PX = 14
PANELS_PER_ROW = 7  # PET, four maps, mask and CT are one row
CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue
MAP_OPACITY = 0.6
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # inferno at 0, 1/4 ... 1
METHODS = {  # of class activation maps, in the order of the panels
    "cam": "CAM",
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "gradcampp": "Grad-CAM++",
    "scorecam": "Score-CAM",
}
INK, PAPER = (24, 34, 46), (255, 255, 255)
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, eq=False)
class Guess:
    """What a submission says of a slice: a boolean mask, or None and the `reason`; class activation maps in [0, 1]."""

    name: str
    mask: np.ndarray | None
    maps: Mapping[str, np.ndarray]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Slice:
    """An axial slice of a case, (rows, columns) arrays on one grid: SUV, HU (None without a CT), boolean truth.

    `spacing_mm` is the distance of rows and of columns.
    """

    pet: np.ndarray
    ct: np.ndarray | None
    truth: np.ndarray
    guesses: tuple[Guess, ...]
    spacing_mm: tuple[float, float]

    def projection(self, truth: np.ndarray, mask: np.ndarray) -> Projection:
        """Masks over the slice's PET, to be drawn as on the leaderboard's pages."""
        return Projection(truth, mask, self.spacing_mm, self.pet)


def choose_slice(suv: np.ndarray, masks: Sequence[np.ndarray]) -> int:
    """The slice to show: where the first mask that is not empty is largest; the hottest one without any.

    Parameters
    ----------
    suv : (slices, rows, columns) array
    masks : sequence of arrays of the same shape
        The truth first.
    """
    for mask in masks:
        areas = np.count_nonzero(mask, axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return int(np.nan_to_num(suv.max(axis=(1, 2)), nan=-np.inf).argmax())


def draw_slice(view: Slice, *, caption: str) -> Image.Image:
    """All panels of a slice, `PANELS_PER_ROW` in a row, above the colours' legend and the caption."""
    nothing = np.zeros_like(view.truth)
    panels = [("PET, truth", draw(view.projection(view.truth, nothing), height_px=PANEL_PX))]
    several = sum(bool(guess.maps) for guess in view.guesses) > 1
    for guess in view.guesses:
        for method in sorted(guess.maps, key=_place):
            title = METHODS.get(method, method) + (f", {guess.name}" if several else "")
            panels.append((title, draw_map(view, guess.maps[method])))
    panels += [(guess.name, _draw_mask(view, guess)) for guess in view.guesses]
    if view.ct is not None:
        panels.append(("CT", draw_ct(view)))
    return _sheet(panels, caption)


def _place(method: str) -> tuple[int, str]:
    known = list(METHODS)
    return (known.index(method) if method in known else len(known), method)


def draw_map(view: Slice, activation: np.ndarray) -> Image.Image:
    """A class activation map in [0, 1] as see-through colours over the PET; NaN counts as 0."""
    pet = draw_pet(view.projection(view.truth, view.truth), height_px=PANEL_PX)
    levels = np.round(255 * np.clip(np.nan_to_num(activation), 0, 1)).astype(np.uint8)
    levels = np.asarray(Image.fromarray(levels).resize(pet.size, Image.Resampling.NEAREST))
    steps = np.linspace(0, 255, len(HEAT))
    table = np.stack([np.interp(np.arange(256), steps, channel) for channel in np.transpose(HEAT)], axis=1)
    mixed = (1 - MAP_OPACITY) * np.asarray(pet, float)[..., None] + MAP_OPACITY * table[levels]
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def draw_ct(view: Slice) -> Image.Image:
    """The CT in the window of soft tissue, black to white."""
    assert view.ct is not None
    low, high = CT_WINDOW_HU
    levels = np.clip((np.nan_to_num(view.ct.astype(np.float32), nan=low) - low) / (high - low), 0, 1)
    grey = Image.fromarray(np.round(255 * levels).astype(np.uint8))
    size = view.projection(view.truth, view.truth).size_px(PANEL_PX)
    return grey.resize(size, Image.Resampling.BILINEAR).convert("RGB")


def _draw_mask(view: Slice, guess: Guess) -> Image.Image:
    """The mask against the truth, in the leaderboard's colours; the reason where there is none."""
    if guess.mask is not None:
        return draw(view.projection(view.truth, guess.mask), height_px=PANEL_PX)
    size = view.projection(view.truth, view.truth).size_px(PANEL_PX)
    blank = Image.new("RGB", size, PAPER)
    text = _fitting(guess.reason or "no mask", size[0] - 2 * MARGIN_PX)
    ImageDraw.Draw(blank).text((MARGIN_PX, PANEL_PX // 2), text, fill=INK, font=_font())
    return blank


def _sheet(panels: Sequence[tuple[str, Image.Image]], caption: str) -> Image.Image:
    """Panels of one size in rows, each below its title; the legend and the caption at the end."""
    width, height = panels[0][1].size
    columns = min(PANELS_PER_ROW, len(panels))
    step_x, step_y = width + MARGIN_PX, TITLE_PX + height + MARGIN_PX
    bottom = math.ceil(len(panels) / columns) * step_y
    size = (max(columns * step_x + MARGIN_PX, 640), bottom + 2 * TITLE_PX + MARGIN_PX)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = MARGIN_PX + column * step_x, row * step_y
        pen.text((x, y + 4), _fitting(title, width), fill=INK, font=_font())
        sheet.paste(picture, (x, y + TITLE_PX))
    _write_legend(pen, bottom)
    pen.text((MARGIN_PX, bottom + TITLE_PX), _fitting(caption, size[0] - 2 * MARGIN_PX), fill=INK, font=_font())
    return sheet


def _write_legend(pen: ImageDraw.ImageDraw, y: int) -> None:
    x = float(MARGIN_PX)
    for _, text, colour in CLASSES:
        pen.rectangle((x, y + 3, x + 11, y + 14), fill=colour)
        pen.text((x + 16, y), text, fill=INK, font=_font())
        x += 16 + _font().getlength(text) + 3 * MARGIN_PX
    low, high = CT_WINDOW_HU
    pen.text((x, y), f"PET: SUV 0 to {SUV_BLACK:g}, CT: {low:g} to {high:g} HU", fill=INK, font=_font())


def _fitting(text: str, width_px: float) -> str:
    """A text on one line, shortened to a width."""
    text = " ".join(text.split())
    if _font().getlength(text) <= width_px:
        return text
    while text and _font().getlength(text + ELLIPSIS) > width_px:
        text = text[:-1]
    return text + ELLIPSIS


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_PX)
