"""The site in headless Chromium: sorting, plots, viewer, themes, phone, keyboard, and nothing from elsewhere."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from results_maker import HOSTILE, RIVALS, write_results

from leaderboard.render import write_site
from leaderboard.scheme_file import SCHEMES
from leaderboard.submissions import read_results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
PAGES = ("index.html", *(f"pages/{n}.html" for n in ("metrics", "volumes", "cases", "algorithm-3", "case-01")))


@dataclass
class Log:
    """What a page must not do, and did."""

    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("challenge")
    paths = write_results(folder / "results")
    scheme = replace(SCHEMES["I"], bootstraps=200)
    write_site(read_results(paths), folder / "site", title=f"Challenge {HOSTILE}", scheme=scheme)
    return folder / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def open_page(browser: playwright.Browser, log: Log, *, width: int = 1280, theme: str = "light") -> playwright.Page:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(10_000)

    def guard(route: playwright.Route) -> None:
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            route.abort()

    page.route("**/*", guard)
    page.on("request", lambda request: log.requests.append(request.url))
    page.on("dialog", lambda dialog: (log.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: log.messages.append(message.text))
    page.on("pageerror", lambda error: log.messages.append(str(error)))
    return page


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def page(browser: playwright.Browser, log: Log) -> Iterator[playwright.Page]:
    opened = open_page(browser, log)
    yield opened
    opened.context.close()


def picture(locator: playwright.Locator) -> np.ndarray:
    """(rows, columns, 3) pixels of a part of the page."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"), int)


def colours(pixels: np.ndarray) -> int:
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


def column(page: playwright.Page, number: int) -> list[str]:
    return page.locator(f"#ranking-table tbody tr > :nth-child({number})").all_inner_texts()


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_every_page_in_both_themes_and_on_a_phone(
    site: Path, browser: playwright.Browser, log: Log, width: int, theme: str
):
    page = open_page(browser, log, width=width, theme=theme)
    for name in PAGES:
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} scrolls sideways"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels = [int(level) for level in background.removeprefix("rgb(").removesuffix(")").split(",")]
        assert (max(levels) < 60) if theme == "dark" else (min(levels) > 200)
    page.context.close()
    assert len(log.requests) > 10
    assert all(url.startswith((site.as_uri(), "data:")) for url in log.requests)
    assert not log.dialogs
    assert not log.messages


def test_a_script_as_a_team_name_stays_text(site: Path, page: playwright.Page, log: Log):
    page.goto((site / "index.html").as_uri())
    assert HOSTILE in [text.strip() for text in column(page, 2)]
    page.get_by_role("link", name=HOSTILE, exact=True).first.click()
    assert page.locator("h1").inner_text() == HOSTILE
    page.goto((site / "pages/case-01.html").as_uri())
    page.wait_for_selector("#viewer.ready")
    assert HOSTILE in page.locator('[data-control="algorithm"] option').all_inner_texts()
    assert not log.dialogs
    assert not log.messages


def test_the_table_sorts_by_mouse_and_by_keyboard(site: Path, page: playwright.Page):
    page.goto((site / "index.html").as_uri())
    assert column(page, 1) == ["1", "2", "3", "4", "5"]
    page.locator("#ranking-table th button.sort").nth(1).click()  # names
    names = [text.strip().lower() for text in column(page, 2)]
    assert set(names) == {rival.name.lower() for rival in RIVALS}
    assert names.index("lesion tracer") < names.index("nnu-net ensemble with a rather long name of many words")
    assert names.index("nnu-net ensemble with a rather long name of many words") < names.index("threshold suv 4")
    dice = page.locator("#ranking-table thead th", has_text="Mean Dice")
    for _ in range(80):
        page.keyboard.press("Tab")
        if dice.evaluate("th => th.contains(document.activeElement)"):
            break
    else:
        pytest.fail("Tab does not reach the button that sorts by Dice")
    index = dice.evaluate("th => th.cellIndex + 1")
    page.keyboard.press("Enter")
    assert dice.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in column(page, index)]
    assert values == sorted(values, reverse=True)
    page.keyboard.press("Enter")
    assert dice.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in column(page, index)] == values[::-1]


def test_plots_and_matrices_are_drawn(site: Path, page: playwright.Page):
    page.goto((site / "index.html").as_uri())
    for place in ("#plot-blob svg", "#heatmap table", "#significance-1 table", "ol.podium"):
        assert colours(picture(page.locator(place))) > 20, place
    page.goto((site / "pages/metrics.html").as_uri())
    assert page.locator("figure.plot svg").count() >= 8
    assert colours(picture(page.locator("#plot-box-0 svg"))) > 20
    page.goto((site / "pages/volumes.html").as_uri())
    for place in ("#plot-scatter-mtv-1 svg", "#plot-bland-mtv-1 svg", "#plot-scatter-tlg-1 svg"):
        assert colours(picture(page.locator(place))) > 10, place


def test_projections_show_pet_and_masks(site: Path, page: playwright.Page):
    page.goto((site / "pages/case-01.html").as_uri())
    views = page.locator(".pictures figure").first.locator(".view")
    assert views.count() == 2
    views.first.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.view img')].slice(0, 2).every(i => i.naturalWidth > 0)")
    for number in (0, 1):
        pixels = picture(views.nth(number))
        grey = (np.ptp(pixels, axis=2) == 0).mean()
        assert 0.3 < grey < 1  # the PET, and coloured masks on it
        assert colours(pixels) > 30


def test_the_viewer_answers_keys_wheel_mouse_and_toggles(site: Path, page: playwright.Page):
    page.goto((site / "pages/case-01.html").as_uri())
    page.wait_for_selector("#viewer.ready")
    canvas = page.locator('[data-plane="axial"] canvas')
    place = page.locator('[data-plane="axial"] [data-place]')

    def slice_number() -> int:
        return int(place.inner_text().split("/")[0])

    start, before = slice_number(), picture(canvas)
    assert colours(before) > 20
    canvas.focus()
    page.keyboard.press("ArrowDown")
    assert slice_number() == start + 1
    page.keyboard.press("PageUp")
    assert slice_number() == max(start - 9, 1)
    assert np.abs(picture(canvas) - before).max() > 30
    page.keyboard.press("Home")
    assert slice_number() == 1
    canvas.hover()
    page.mouse.wheel(0, 100)
    assert slice_number() == 2
    page.locator('[data-plane="axial"] input').fill(str(start - 1))
    assert slice_number() == start
    assert np.abs(picture(canvas) - before).max() <= 2  # the compositor's rounding
    for toggle in ("truth", "prediction"):
        page.locator(f'[data-control="{toggle}"]').uncheck()
    page.locator('[data-control="cross"]').uncheck()
    assert (np.ptp(picture(canvas), axis=2) > 40).sum() < (np.ptp(before, axis=2) > 40).sum() / 4  # only grey is left
    box = page.locator('[data-plane="coronal"] canvas').bounding_box()
    assert box is not None
    page.locator('[data-plane="coronal"] canvas').click(position={"x": box["width"] / 2, "y": 2})
    assert slice_number() == 1  # a click at the head's end


def test_the_viewer_shows_another_algorithm_and_goes_to_a_lesion(site: Path, page: playwright.Page):
    page.goto((site / "pages/case-01.html").as_uri())
    page.wait_for_selector("#viewer.ready")
    canvas = page.locator('[data-plane="coronal"] canvas')
    page.locator("#true-lesions button[data-go]").first.click()
    assert "truth" in page.locator("#viewer-status").inner_text()  # the crosshair is in the lesion
    found = picture(canvas)
    page.locator('[data-control="algorithm"]').select_option(label=RIVALS[3].name)
    page.wait_for_function("document.querySelector('#viewer-status').textContent.includes('truth only')")
    other = picture(canvas)
    blue, blue_before = ((pixels[..., 2] - pixels[..., 1] > 25).sum() for pixels in (other, found))
    assert blue > blue_before + 500  # the missed lesion is blue, green where both agree


def test_the_theme_can_be_switched_and_is_remembered(site: Path, page: playwright.Page):
    page.goto((site / "index.html").as_uri())
    dark = "getComputedStyle(document.body).backgroundColor"
    light_colour = page.evaluate(dark)
    button = page.get_by_role("button", name="Colour theme")
    for expected in ("light", "dark"):
        button.click()
        assert page.locator("#theme-now").inner_text() == expected
    assert page.evaluate(dark) != light_colour
    page.goto((site / "pages/cases.html").as_uri())
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_the_filter_hides_other_cases(site: Path, page: playwright.Page):
    page.goto((site / "pages/cases.html").as_uri())
    rows = page.locator("#cases-1 tbody tr:visible")
    assert rows.count() == 12
    page.locator('input[data-rows="cases-1"]').fill("case07")
    assert rows.count() == 1
