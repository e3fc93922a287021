"""The page: complete, self-contained, and harmless whatever participants call themselves."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autopet.errors import AutopetError
from evaluation.aggregate import build_metrics
from evaluation.previews import Preview, write_preview
from leaderboard import render
from leaderboard.render import CLASSES, draw, write_site
from leaderboard.submissions import read_results

HOSTILE = "<script>alert(1)</script>\"'&"


def row(case: str, dice: float | None, status: str = "scored", reason: str = "") -> dict:
    values = {"dice": dice, "fpv_ml": 1.25, "fnv_ml": None if dice is None else 0.5, "gt_ml": 2.0, "pred_ml": 2.0}
    return {"case": case, "status": status, "reason": reason, **values}


def write(folder: Path, rows: list[dict], *, name: str, previews: bool = True) -> str:
    folder.mkdir(parents=True)
    metrics = build_metrics(rows, name=name, edition="III", failed="empty", notes=[f"a note on {name}"])
    (folder / "metrics.json").write_text(json.dumps(metrics, allow_nan=False))
    for one in rows if previews else []:
        mask = np.zeros((30, 20), bool)
        mask[3:6, 4:9] = True
        preview = Preview(mask, np.roll(mask, 2, axis=1), (3.0, 2.0), np.full((30, 20), 2.0, np.float16))
        write_preview(folder / "previews" / f"{one['case']}.npz", preview)
    return str(folder)


class Links(HTMLParser):
    """Collects what a page refers to, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    good = write(tmp_path / "r1", [row("a", 0.875), row("b", None)], name="good")
    bad = write(tmp_path / "r2", [row("a", 0.0, "refused", HOSTILE), row("b", None)], name=HOSTILE)
    plain = write(tmp_path / "r3", [row("a", 0.5), row("b", None)], name="=1+1", previews=False)
    write_site(read_results([bad, good, plain]), tmp_path / "site", title=f"Title {HOSTILE}")
    return tmp_path / "site"


def test_hostile_names_reasons_and_titles_are_escaped(site: Path):
    page = (site / "index.html").read_text()
    parser = Links()
    parser.feed(page)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 4
    assert parser.tags.count("script") == 1  # the page's own


def test_page_is_self_contained(site: Path):
    page = (site / "index.html").read_text()
    parser = Links()
    parser.feed(page)
    assert parser.targets
    assert all(target.startswith(("data:", "#")) for target in parser.targets)
    assert not re.search(r"https?://|@import|url\(", page)
    assert sorted(path.name for path in site.iterdir()) == ["index.html", "leaderboard.csv", "leaderboard.json"]


def test_every_case_of_every_submission_is_on_the_page(site: Path):
    page = (site / "index.html").read_text()
    assert page.count("<figure>") == 6
    assert page.count('loading="lazy"') == 4
    assert page.count("no picture") == 2
    assert "0.875" in page
    assert page.count("refused") >= 2
    picture = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert picture
    assert Image.open(io.BytesIO(base64.b64decode(picture.group(1)))).size == (133, 300)


def test_tables_for_machines(site: Path):
    rows = list(csv.DictReader((site / "leaderboard.csv").open()))
    assert [row["name"] for row in rows] == ["good", "'=1+1", HOSTILE]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[2]["refused"] == "1"

    def refuse(text: str) -> None:
        raise ValueError(text)

    content = json.loads((site / "leaderboard.json").read_text(), parse_constant=refuse)
    assert content["standings"][0]["means"]["dice"] == 0.875
    assert content["standings"][0]["ranks"] == {"dice": 1, "fpv_ml": 1, "fnv_ml": 1}
    assert content["scheme"]["tie_break"] == "dice"


def test_undefined_means_are_null_and_last(tmp_path: Path):
    submissions = read_results([write(tmp_path / "r", [row("a", None)], name="x", previews=False)])
    write_site(submissions, tmp_path / "site")
    content = json.loads((tmp_path / "site" / "leaderboard.json").read_text())
    assert content["standings"][0]["means"]["dice"] is None
    assert content["standings"][0]["undefined"] == ["dice", "fnv_ml"]


def test_damaged_preview_leaves_the_page_without_a_picture(tmp_path: Path):
    folder = write(tmp_path / "r", [row("a", 0.5), row("../r/previews/a", 0.5)], name="x", previews=False)
    (tmp_path / "r" / "previews").mkdir()
    (tmp_path / "r" / "previews" / "a.npz").write_bytes(b"PK rubbish")
    page = write_site(read_results([folder]), tmp_path / "site").read_text()
    assert page.count("no picture") == 2


def test_colours_tell_ground_truth_prediction_and_both_apart():
    truth, guess = np.zeros((30, 30), bool), np.zeros((30, 30), bool)
    truth[:10] = guess[5:20] = True
    image = draw(Preview(truth, guess, (2.0, 1.0)), height_px=60).convert("RGB")
    assert image.size == (30, 60)
    found = [np.array(image.getpixel((15, y)), float) for y in (3, 30, 15)]  # truth only, prediction only, both
    for seen, (_, _, colour) in zip(found, CLASSES, strict=True):
        distances = [np.abs(seen - np.array(other)).sum() for _, _, other in CLASSES]
        assert np.argmin(distances) == [c for _, _, c in CLASSES].index(colour)
    assert image.getpixel((15, 55)) == (255, 255, 255)


@pytest.mark.parametrize("place", [(300, 200), (301, 201), (0, 0), (599, 7), (77, 399)])
def test_a_single_voxel_stays_visible_when_the_picture_shrinks(place: tuple[int, int]):
    truth = np.zeros((601, 401), bool)
    truth[place] = True
    image = draw(Preview(truth, np.zeros_like(truth), (1.0, 1.0)), height_px=300)
    assert (np.asarray(image) >= 64).any()


def test_nothing_to_rank_is_an_error(tmp_path: Path):
    with pytest.raises(AutopetError, match="no submissions"):
        write_site([], tmp_path)


def test_names_that_are_no_utf8_do_not_stop_the_page(tmp_path: Path):
    folder = write(tmp_path / "r", [row("a", 0.5, "refused", "b\udcff.mha")], name="x\udcff")
    page = write_site(read_results([folder]), tmp_path / "site", title="title \udcff")
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "leaderboard.csv", "leaderboard.json"]
    assert "b\N{REPLACEMENT CHARACTER}.mha" in page.read_text(encoding="utf-8")


def test_nothing_is_written_when_one_text_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> str:
        raise ValueError("no page")

    monkeypatch.setattr(render, "leaderboard_html", fail)
    folder = write(tmp_path / "r", [row("a", 0.5)], name="x")
    with pytest.raises(ValueError, match="no page"):
        write_site(read_results([folder]), tmp_path / "site")
    assert not (tmp_path / "site").exists()
