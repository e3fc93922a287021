"""The site's files: complete, self-contained, and harmless whatever participants call themselves."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autopet.errors import AutopetError
from evaluation.aggregate import build_metrics
from evaluation.previews import Preview, write_preview
from leaderboard import render
from leaderboard.pictures import CLASSES, Projection, draw, draw_masks, draw_pet
from leaderboard.render import write_site
from leaderboard.scheme_file import SCHEMES
from leaderboard.submissions import read_results

HOSTILE = "<script>alert(1)</script>\"'&"
QUICK = replace(SCHEMES["I"], bootstraps=50)


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
    """Collects what a page refers to, its tags, and the attributes that would run something."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]


def parsed(page: Path) -> Links:
    parser = Links()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.fixture
def site(tmp_path: Path) -> Path:
    good = write(tmp_path / "r1", [row("a", 0.875), row("b", None)], name="good")
    bad = write(tmp_path / "r2", [row("a", 0.0, "refused", HOSTILE), row("b", None)], name=HOSTILE)
    plain = write(tmp_path / "r3", [row("a", 0.5), row("b", None)], name="=1+1", previews=False)
    write_site(read_results([bad, good, plain]), tmp_path / "site", title=f"Title {HOSTILE}", scheme=QUICK)
    return tmp_path / "site"


def test_hostile_names_reasons_and_titles_are_escaped(site: Path):
    for page in sorted(site.rglob("*.html")):
        text = page.read_text()
        assert "<script>alert" not in text, page
        assert "&lt;script&gt;alert(1)" in text, page
        assert parsed(page).tags.count("script") == 2, page  # the theme, and site.js
        assert not parsed(page).handlers, page
    assert (site / "pages/case-1.html").read_text().count("&lt;script&gt;alert(1)") >= 4  # name, reason, alt, title


def test_site_is_self_contained(site: Path):
    assert sorted(path.name for path in site.iterdir()) == [
        *("index.html", "leaderboard.csv", "leaderboard.json", "methods.txt", "pages"),
    ]
    for page in sorted(site.rglob("*.html")):
        targets = parsed(page).targets
        assert targets
        for target in targets:
            assert target.startswith(("data:", "#")) or (page.parent / target).is_file(), (page, target)
    for file in sorted(path for path in site.rglob("*") if path.suffix in (".html", ".css", ".js")):
        assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\((?!data:)|//cdn", file.read_text()), file


def test_every_case_of_every_submission_has_its_picture_or_says_so(site: Path):
    page = (site / "pages/case-1.html").read_text()
    assert page.count("<figure>") == 3
    assert page.count('decoding="async"') == 2
    assert page.count("no picture") == 1
    assert "0.875" in page
    assert "refused" in page
    pet, mask = (re.search(rf"{lead}(data:image/png;base64,[^\")]+)", page) for lead in (r"url\(", 'src="'))
    assert pet
    assert mask
    for found in (pet, mask):
        content = base64.b64decode(found.group(1).partition(",")[2])
        assert Image.open(io.BytesIO(content)).size == (160, 360)  # 20 x 2 mm wide, 30 x 3 mm high


def test_what_was_not_computed_is_said(tmp_path: Path):
    folder = write(tmp_path / "r", [row("a", 0.5), row("b", 0.25)], name="x", previews=False)
    scheme = replace(QUICK, bootstraps=0)
    page = write_site(read_results([folder]), tmp_path / "site", scheme=scheme).read_text()
    assert "Rank intervals and the probability of rank 1 were not computed." in page
    assert "The bootstrap over cases was not computed." in page
    assert "There are no subsets" in page
    assert "P(rank 1)" not in page
    case = (tmp_path / "site/pages/case-1.html").read_text()
    assert "There is no lesions.csv beside the results." in case
    assert "There are no volumes to look through" in case
    assert "TLG was not computed" in (tmp_path / "site/pages/volumes.html").read_text()


def test_tables_for_machines(site: Path):
    rows = list(csv.DictReader((site / "leaderboard.csv").open()))
    assert [row["name"] for row in rows] == ["good", "'=1+1", HOSTILE]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert [row["rank_low"] for row in rows] == ["1", "1", "1"]
    first = [float(row["p_rank_1"]) for row in rows]
    assert first[0] == 1
    assert first[1] == first[2]  # all tie in a sample without case a: a quarter of the samples
    assert 0.05 < first[1] < 0.5
    assert rows[2]["refused"] == "1"

    def refuse(text: str) -> None:
        raise ValueError(text)

    content = json.loads((site / "leaderboard.json").read_text(), parse_constant=refuse)
    assert content["standings"][0]["means"]["dice"] == 0.875
    assert content["standings"][0]["ranks"] == {"dice": 1, "fpv_ml": 1, "fnv_ml": 1}
    assert content["scheme"]["tie_break"] == "dice"
    assert len((site / "methods.txt").read_text()) > 200


def test_undefined_means_are_null_and_last(tmp_path: Path):
    rows = {"x": [row("a", None)], "y": [row("a", 0.5)]}
    submissions = read_results([write(tmp_path / name, rows[name], name=name, previews=False) for name in rows])
    write_site(submissions, tmp_path / "site", scheme=QUICK)
    content = json.loads((tmp_path / "site" / "leaderboard.json").read_text())
    assert content["standings"][1]["name"] == "x"
    assert content["standings"][1]["means"]["dice"] is None
    assert content["standings"][1]["undefined"] == ["dice", "fnv_ml"]
    # one case, and edition III ranked by the scheme of edition I: said in the file, on the page and in the methods
    assert ["one case only" in content["notes"][0], "edition III" in content["notes"][1]] == [True, True]
    for name in ("index.html", "methods.txt"):
        text = (tmp_path / "site" / name).read_text()
        assert [note in text for note in content["notes"]] == [True, True]
    assert content["standings"][0]["rank_interval"] is None


def test_damaged_preview_leaves_the_page_without_a_picture(tmp_path: Path):
    folder = write(tmp_path / "r", [row("a", 0.5), row("../r/previews/a", 0.5)], name="x", previews=False)
    (tmp_path / "r" / "previews").mkdir()
    (tmp_path / "r" / "previews" / "a.npz").write_bytes(b"PK rubbish")
    write_site(read_results([folder]), tmp_path / "site", scheme=QUICK)
    pages = sorted((tmp_path / "site/pages").glob("case-*.html"))
    assert [page.read_text().count("no picture") for page in pages] == [1, 1]


def view(truth: np.ndarray, guess: np.ndarray, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Projection:
    return Projection(truth, guess, spacing_mm, None)


def test_colours_tell_ground_truth_prediction_and_both_apart():
    truth, guess = np.zeros((30, 30), bool), np.zeros((30, 30), bool)
    truth[:10] = guess[5:20] = True
    image = draw(view(truth, guess, (2.0, 1.0)), height_px=60)
    assert image.size == (30, 60)
    found = [np.array(image.getpixel((15, y)), float) for y in (3, 30, 15)]  # truth only, prediction only, both
    for seen, (_, _, colour) in zip(found, CLASSES, strict=True):
        distances = [np.abs(seen - np.array(other)).sum() for _, _, other in CLASSES]
        assert np.argmin(distances) == [c for _, _, c in CLASSES].index(colour)
    assert image.getpixel((15, 55)) == (255, 255, 255)


def test_the_layers_of_the_page_give_the_picture():
    rng = np.random.default_rng(0)
    truth, guess = rng.random((40, 20)) < 0.3, rng.random((40, 20)) < 0.3
    one = Projection(truth, guess, (2.0, 2.0), rng.uniform(0, 10, (40, 20)).astype(np.float16))
    layers = draw_pet(one, height_px=80).convert("RGBA")
    layers.alpha_composite(draw_masks(one, height_px=80).convert("RGBA"))
    difference = np.abs(np.asarray(layers.convert("RGB"), int) - np.asarray(draw(one, height_px=80), int))
    assert difference.max() <= 1


@pytest.mark.parametrize("place", [(300, 200), (301, 201), (0, 0), (599, 7), (77, 399)])
def test_a_single_voxel_stays_visible_when_the_picture_shrinks(place: tuple[int, int]):
    truth = np.zeros((601, 401), bool)
    truth[place] = True
    image = draw_masks(view(truth, np.zeros_like(truth)), height_px=300)
    assert (np.asarray(image) == 1).any()


def test_nothing_to_rank_is_an_error(tmp_path: Path):
    with pytest.raises(AutopetError, match="no submissions"):
        write_site([], tmp_path)


def test_names_that_are_no_utf8_do_not_stop_the_page(tmp_path: Path):
    folder = write(tmp_path / "r", [row("a", 0.5, "refused", "b\udcff.mha")], name="x\udcff")
    write_site(read_results([folder]), tmp_path / "site", title="title \udcff", scheme=QUICK)
    page = (tmp_path / "site/pages/case-1.html").read_text(encoding="utf-8")
    assert "b\N{REPLACEMENT CHARACTER}.mha" in page


@pytest.mark.parametrize("broken", ["index_page", "case_files"])
def test_nothing_of_a_site_is_left_when_one_page_cannot_be_made(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> str:
        raise ValueError("no page")

    monkeypatch.setattr(render, broken, fail)
    folder = write(tmp_path / "r", [row("a", 0.5)], name="x")
    with pytest.raises(ValueError, match="no page"):
        write_site(read_results([folder]), tmp_path / "site", scheme=QUICK)
    assert not (tmp_path / "site").exists() or not list((tmp_path / "site").iterdir())


def test_an_earlier_site_is_replaced_and_nothing_else(tmp_path: Path):
    first = read_results([write(tmp_path / "r1", [row("a", 0.5), row("b", 0.5)], name="x")])
    second = read_results([write(tmp_path / "r2", [row("a", 0.5)], name="x")])
    write_site(first, tmp_path / "site", scheme=QUICK)
    (tmp_path / "site/notes.txt").write_text("mine")
    assert (tmp_path / "site/pages/case-2.html").is_file()
    write_site(second, tmp_path / "site", scheme=QUICK)
    assert not (tmp_path / "site/pages/case-2.html").exists()
    assert (tmp_path / "site/notes.txt").read_text() == "mine"
    (tmp_path / "other/pages").mkdir(parents=True)
    (tmp_path / "other/pages/thesis.tex").write_text("years of work")
    with pytest.raises(AutopetError, match="expected the pages of an earlier leaderboard"):
        write_site(second, tmp_path / "other", scheme=QUICK)
    assert (tmp_path / "other/pages/thesis.tex").read_text() == "years of work"
