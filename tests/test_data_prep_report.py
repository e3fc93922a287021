"""prep.html: everything in it, nothing from outside it, and nothing that a header says is run."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume
from data_prep import report
from data_prep.report import card_of, write_report
from data_prep.thumbnails import coronal_mip

ROW = {
    "case": "P-1_20200102_12345", "patient_id": "P-1", "study_uid": "1.2.3", "study_date": "20200102",
    "status": "converted", "reason": "", "folder": "P-1_20200102_12345", "tracer": "FDG", "centre": "UKT",
    "diagnosis": "MELANOMA", "suv_factor": 0.0004, "suv_factor_qiba": 0.0004, "suv_factor_challenge": "0.00041",
    "suv_max": 21.46, "lesions": 3, "lesion_voxels": 100, "lesion_ml": "12.34", "pet_shape": "326x400x400",
    "pet_spacing_mm": "2.036x2.036x3", "ct_shape": "500x512x512", "ct_spacing_mm": "0.98x0.98x2",
    "warnings": "first thing | second thing",
}  # fmt: skip
HOSTILE = "</article><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&{{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags, attributes and texts of a page as a browser's parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def of(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [known for name, known in self.tags if name == tag and css in (known.get("class") or "")]


def thumbnail(seed: int = 0) -> bytes:
    suv = np.random.default_rng(seed).gamma(0.5, 2.0, (80, 40, 60)).astype(np.float32)
    return coronal_mip(Volume(suv, (8.0, 8.0, 12.0)))


def page(out: Path, rows: list[dict]) -> Page:
    return Page(write_report(out, rows).read_text())


def test_card_has_everything(tmp_path):
    (tmp_path / ROW["folder"]).mkdir()
    (tmp_path / ROW["folder"] / "mip.png").write_bytes(thumbnail())
    found = page(tmp_path, [ROW])
    said = set(found.texts)
    assert {"P-1_20200102_12345", "Patient P-1 · study 1.2.3", "converted", "FDG", "UKT", "MELANOMA"} <= said
    assert {"326x400x400", "2.036x2.036x3", "500x512x512", "3", "12.3", "21.5", "0.0004", "0.00041"} <= said
    assert {"2.5 %", "first thing", "second thing"} <= said  # 0.00041 is 2.5 % more than 0.0004
    (image,) = found.of("img")
    assert base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) == thumbnail()
    (study,) = found.of("article")
    numbers = json.loads(str(study["data-numbers"]))
    assert numbers["lesion_ml"] == 12.34
    assert numbers["suv_max"] == 21.46
    assert study["data-count"] == "2"


def test_counts_and_reasons(tmp_path):
    lost = {"case": "B", "patient_id": "P-1", "status": "failed", "reason": "slices are missing", "warnings": ""}
    none = {"case": "C", "patient_id": "P-2", "status": "skipped", "reason": "no PET"}
    found = page(tmp_path, [ROW, lost, none])
    facts = found.texts[found.texts.index("Studies") : found.texts.index("Search")]
    facts = [text for text in facts if text]
    assert dict(zip(facts[::2], facts[1::2], strict=True)) == {
        "Studies": "3", "Patients": "2", "Converted": "1", "Skipped": "1", "Failed": "1",
        "With warnings": "1 (2 in all)",
    }  # fmt: skip
    assert [chip["class"] for chip in found.of("span", "chip")] == ["chip converted", "chip failed", "chip "]
    assert {"slices are missing", "no PET"} <= set(found.texts)


def test_hostile_text_is_only_text(tmp_path):
    found = page(tmp_path, [dict.fromkeys(ROW, HOSTILE)])
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == 1  # the page's own
    assert names.count("article") == 1
    assert names.count("img") == 0
    assert not any(key.startswith("on") for _, known in found.tags for key in known)
    text = (tmp_path / "prep.html").read_text()
    assert not re.search("<(?:script|img)[^>]*>[^<]*alert", text)
    assert html.escape("<script>alert(1)</script>") in text
    assert "49" not in found.texts
    (study,) = found.of("article")
    assert study["data-status"] == HOSTILE


def test_page_needs_nothing_but_itself(tmp_path):
    found = page(tmp_path, [ROW, {**ROW, "case": "B"}])
    for tag, known in found.tags:
        for key in ("src", "href", "action", "data", "srcset"):
            assert (known.get(key) or "data:").startswith("data:"), (tag, known)
    text = (tmp_path / "prep.html").read_text()
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "", "..", "none"])
def test_pictures_come_from_the_cohort_only(tmp_path, folder):
    out = tmp_path / "out"
    for place in (tmp_path, tmp_path / "elsewhere", out):
        place.mkdir(exist_ok=True)
        (place / "mip.png").write_bytes(thumbnail())
    assert page(out, [{**ROW, "folder": folder}]).of("img") == []


def test_other_files_are_no_pictures(tmp_path):
    folder = tmp_path / ROW["folder"]
    folder.mkdir()
    for content in (b"<svg onload=alert(1)>", b"", report.PNG_SIGNATURE + bytes(300_000)):
        (folder / "mip.png").write_bytes(content)
        assert page(tmp_path, [ROW]).of("img") == []


def test_rows_may_lack_anything(tmp_path):
    assert page(tmp_path, [{}, {"case": None, "suv_max": "nan", "lesions": "x"}]).of("article")
    assert "There is no study in this cohort." in page(tmp_path, []).texts
    card = card_of({"suv_factor_qiba": 0, "suv_factor_challenge": "1", "suv_max": float("inf")}, tmp_path)
    assert card.numbers == {"suv_factor_qiba": 0, "suv_factor_challenge": 1}
    assert (card.status, card.case) == ("unknown", "\N{EN DASH}")


def test_thousand_studies(tmp_path):
    rows = []
    for index in range(1000):
        name = f"case{index:04d}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "mip.png").write_bytes(thumbnail(index % 7))
        rows.append({**ROW, "case": name, "folder": name})
    began = time.process_time()
    path = write_report(tmp_path, rows)
    assert time.process_time() - began < 5
    assert path.stat().st_size < 1000 * (4 / 3 * len(thumbnail()) + 5000)
    assert len(Page(path.read_text()).of("img")) == 1000


def test_failure_keeps_the_page_of_before(tmp_path, monkeypatch):
    before = write_report(tmp_path, [ROW]).read_text()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(AutopetError, match=r"prep\.html: cannot be written .*No space left"):
        write_report(tmp_path, [])
    assert (tmp_path / "prep.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["prep.html"]
