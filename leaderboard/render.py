"""The leaderboard as files: leaderboard.csv, leaderboard.json and one self-contained index.html."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from autopet.errors import AutopetError, one_line
from evaluation.aggregate import SCORED, STATUSES
from evaluation.previews import Preview, read_preview
from leaderboard.ranking import SCHEMES, Scheme, Standing, rank_submissions
from leaderboard.submissions import CaseResult, Submission

PICTURE_HEIGHT_PX = 300
SUV_BLACK = 8.0  # inverted grey: SUV 0 is white, this and more is black
GREY_LEVELS = 64  # times four classes of overlay: exactly one PNG palette
OVERLAY_OPACITY = 0.78
UNDEFINED = "\N{EN DASH}"
CLASSES = (  # colours of Okabe and Ito, told apart with any colour vision
    ("missed", "ground truth only (missed)", (0, 114, 178)),
    ("false", "prediction only (false positive)", (213, 94, 0)),
    ("both", "both (agreement)", (0, 158, 115)),
)


@dataclass(frozen=True)
class Cell:
    """One case of one submission, ready for the page; `heat` is Dice as 0 to 1, None when it is undefined."""

    submission: str
    status: str
    reason: str
    dice: str
    fpv: str
    fnv: str
    heat: float | None
    picture: str = ""


@dataclass(frozen=True)
class CaseRow:
    """One case of all submissions, best submission first."""

    case: str
    volume: str
    cells: tuple[Cell, ...]


def write_site(
    submissions: Sequence[Submission], out: Path, *, title: str = "Leaderboard", scheme: Scheme = SCHEMES["I"]
) -> Path:
    """Rank submissions and write leaderboard.csv, leaderboard.json and index.html into a folder.

    All are made before one is written, and each appears whole or not at all. The page needs nothing but itself:
    pictures and style are inside.

    Parameters
    ----------
    submissions : sequence of Submission
        From `read_results`, which makes sure that they can be compared.
    out : Path
        Folder, made if needed.

    Returns
    -------
    Path
        index.html.
    """
    if not submissions:
        raise AutopetError("no submissions to rank")
    standings = rank_submissions(submissions, scheme)
    texts = {
        "leaderboard.csv": leaderboard_csv(standings, scheme),
        "leaderboard.json": leaderboard_json(standings, scheme, title=title),
        "index.html": leaderboard_html(standings, scheme, title=title),
    }
    contents = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _write(out / name, content)
    except OSError as error:
        raise AutopetError(f"{out}: the leaderboard cannot be written ({one_line(error)})") from error
    return out / "index.html"


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def leaderboard_csv(standings: Sequence[Standing], scheme: Scheme) -> str:
    """One line per submission; means that are undefined are empty."""
    metrics = [column.metric for column in scheme.columns]
    header = ["rank", "name", "score", *(f"mean_{m}" for m in metrics), *(f"rank_{m}" for m in metrics), "cases"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*header, *STATUSES])
    for s in standings:
        means = ["" if math.isnan(value) else repr(value) for value in s.means]
        counts = [s.submission.count(status) for status in STATUSES]
        name = _no_formula(s.submission.name)
        writer.writerow([s.rank, name, repr(s.score), *means, *s.ranks, len(s.submission.cases), *counts])
    return buffer.getvalue()


def _no_formula(name: str) -> str:
    """Names come from participants: spreadsheets must not run them."""
    return "'" + name if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name


def leaderboard_json(standings: Sequence[Standing], scheme: Scheme, *, title: str) -> str:
    """The standings with the scheme that made them; null where a mean is undefined."""
    metrics = [column.metric for column in scheme.columns]
    first = standings[0].submission
    content = {
        "title": title,
        "scheme": {**asdict(scheme), "words": scheme.words},
        "edition": first.edition,
        "policy": {"failed": first.policy, "text": first.policy_text},
        "standings": [
            {
                "rank": s.rank,
                "name": s.submission.name,
                "score": s.score,
                "means": {m: None if math.isnan(v) else v for m, v in zip(metrics, s.means, strict=True)},
                "ranks": dict(zip(metrics, s.ranks, strict=True)),
                "undefined": list(s.undefined),
                "cases": {"all": len(s.submission.cases), **{x: s.submission.count(x) for x in STATUSES}},
                "notes": list(s.submission.notes),
            }
            for s in standings
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def leaderboard_html(standings: Sequence[Standing], scheme: Scheme, *, title: str) -> str:
    """The page. Every name in it is escaped: names come from participants."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("index.html.j2").render(
        title=title,
        scheme=scheme,
        standings=standings,
        first=standings[0].submission,
        rows=_case_rows(standings),
        classes=[(key, text, "rgb({},{},{})".format(*colour)) for key, text, colour in CLASSES],
        scored=SCORED,
        suv_black=SUV_BLACK,
        has_pictures=any(s.submission.previews for s in standings),
    )


def _number(value: float, digits: int = 3) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.{digits}f}"


def _case_rows(standings: Sequence[Standing]) -> list[CaseRow]:
    ordered = [standing.submission for standing in standings]
    by_name = [{case.case: case for case in submission.cases} for submission in ordered]
    rows = []
    for case in ordered[0].cases:
        cells = tuple(_cell(s, cases[case.case]) for s, cases in zip(ordered, by_name, strict=True))
        rows.append(CaseRow(case.case, _number(case.values["gt_ml"], 1), cells))
    return rows


def _cell(submission: Submission, case: CaseResult) -> Cell:
    dice = case.values["dice"]
    return Cell(
        submission=submission.name,
        status=case.status,
        reason=case.reason,
        dice=_number(dice, 3),
        fpv=_number(case.values["fpv_ml"], 2),
        fnv=_number(case.values["fnv_ml"], 2),
        heat=None if math.isnan(dice) else min(max(dice, 0.0), 1.0),
        picture=_picture(submission, case.case),
    )


def _picture(submission: Submission, case: str) -> str:
    """The case's preview as a data URI; empty when there is none that can be read."""
    if submission.previews is None or Path(case).name != case:
        return ""
    path = submission.previews / f"{case}.npz"
    if not path.is_file():
        return ""
    try:
        return png_data_uri(draw(read_preview(path)))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return ""


def draw(preview: Preview, *, height_px: int = PICTURE_HEIGHT_PX) -> Image.Image:
    """PET in inverted grey with both masks over it, in true proportions.

    Returns
    -------
    PIL.Image.Image
        A palette image: 64 greys for each of no mask, ground truth only, prediction only, and both.
    """
    rows, columns = preview.ground_truth.shape
    row_mm, column_mm = preview.spacing_mm
    size = (max(1, round(height_px * columns * column_mm / (rows * row_mm))), height_px)
    grey = np.full(size[::-1], GREY_LEVELS - 1, dtype=np.uint8)
    if preview.pet is not None:
        suv = _resized(preview.pet.astype(np.float32), size)
        grey = np.round((1 - np.clip(suv / SUV_BLACK, 0, 1)) * (GREY_LEVELS - 1)).astype(np.uint8)
    truth, guess = (_shrunk_mask(mask, size) for mask in (preview.ground_truth, preview.prediction))
    classes = truth.astype(np.uint8) + 2 * guess.astype(np.uint8)  # 0 none, 1 missed, 2 false, 3 both
    image = Image.fromarray(classes * np.uint8(GREY_LEVELS) + grey)
    image.putpalette(_palette().tobytes())
    return image


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[1] < array.shape[0]
    filtering = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(array).resize(size, filtering))


def _shrunk_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A pixel counts from a quarter of a voxel on: a voxel split over four pixels is still seen in one of them."""
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
    pixels_per_voxel = size[0] * size[1] / mask.size
    return share > 0.24 * min(1.0, pixels_per_voxel)


def _palette() -> np.ndarray:
    """(256, 3) uint8 colours: the greys, then the greys tinted by each class."""
    greys = np.repeat(np.linspace(0, 255, GREY_LEVELS)[:, None], 3, axis=1)
    tinted = [(1 - OVERLAY_OPACITY) * greys + OVERLAY_OPACITY * np.array(colour) for _, _, colour in CLASSES]
    return np.round(np.concatenate([greys, *tinted])).astype(np.uint8)


def png_data_uri(image: Image.Image) -> str:
    """An image inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
