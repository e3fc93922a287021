"""Plots, scales, volumes for the viewer, lesions and tables of the site, without a browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from results_maker import HOSTILE, RIVALS, write_results

from autopet.errors import AutopetError
from evaluation.coarse import CoarseVolume
from leaderboard.analysis import analyse
from leaderboard.findings import make_findings
from leaderboard.lesion_table import false_lesions, read_lesions, true_lesions
from leaderboard.pages import algorithm_page, cases_page, index_page, volumes_page
from leaderboard.plots import Axis, bland_altman_plot, blob_plot, box_plot, scatter_plot
from leaderboard.scheme_file import SCHEMES
from leaderboard.submissions import read_results
from leaderboard.svg import Scale, element, fitted_scale
from leaderboard.view import Board, Findings, make_board
from leaderboard.viewer import script_json, share_grid, volume_script

SVG = "{http://www.w3.org/2000/svg}"


def drawing(svg: str) -> ElementTree.Element:
    """The picture as XML: it would not parse if a name were not escaped."""
    return ElementTree.fromstring(svg)


def with_class(root: ElementTree.Element, tag: str, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter(tag) if one.get("class") == name]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def shown(results: list[str]) -> tuple[Board, Findings]:
    scheme = replace(SCHEMES["I"], bootstraps=200)
    analysis = analyse(read_results(results), scheme)
    board = make_board(analysis.standings, scheme, title="Challenge")
    return board, make_findings(board, analysis)


def test_elements_escape_attributes_and_texts():
    made = element("text", "a < b & c", x=1.236, font_size=3, class_='"><script>')
    root = drawing(str(made))
    assert root.text == "a < b & c"
    assert root.get("x") == "1.24"
    assert root.get("font-size") == "3"
    assert root.get("class") == '"><script>'


def test_scales_are_linear_or_logarithmic_for_both_signs():
    assert Scale(0, 10, 100, 200).at(2.5) == 125
    log = Scale(-9, 99, 0, 300, logarithmic=True)  # -1 to 2 in powers of ten of 1 + |v|
    assert [round(log.at(v)) for v in (-9, 0, 9, 99)] == [0, 100, 200, 300]
    assert log.ticks() == [-3, -1, 0, 1, 3, 10, 30]
    assert Scale(0, 1, 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[np.nan], [0.0], [0.3, 1.0], [-5.0, 2000.0], [1e-3], []])
def test_fitted_scales_hold_every_value(values: list[float], logarithmic: bool):
    array = np.array(values)
    scale = fitted_scale(array, start=10, end=20, logarithmic=logarithmic)
    places = scale(array[np.isfinite(array)])
    assert np.all((places >= 10 - 1e-9) & (places <= 20 + 1e-9))
    assert 2 <= len(scale.ticks()) <= 12


def test_area_of_a_bubble_is_the_share_of_the_samples():
    shares = np.array([[0.8, 0.2], [0.2, 0.8]])
    plot = blob_plot(["A", "B"], shares, ranks=[1, 2], low=[1, 1], high=[2, 2])
    root = drawing(plot.svg)
    areas = [float(circle.get("r", "")) ** 2 for circle in root.iter("circle")]
    assert len(areas) == 4
    assert areas[0] / areas[1] == pytest.approx(4, rel=0.01)
    lines = with_class(root, "line", "interval")
    assert len(lines) == 2
    assert plot.rows[0] == ("A", "1", "1\N{EN DASH}2", "80.0 %", "20.0 %")
    titles = [circle.findtext("title") for circle in root.iter("circle")]
    assert titles[0] == "A: rank 1 in 80.0 % of the resamples"


def test_boxes_lie_at_the_quartiles_and_every_case_is_a_dot():
    values = np.array([[0.0, 0.25, 0.5, 0.75, 1.0, np.nan], [np.nan] * 6])
    lost = np.zeros((2, 6), bool)
    lost[0, 0] = True
    plot = box_plot(["A", HOSTILE], values, axis=Axis("Dice"), identifier="d", lost=lost)
    root = drawing(plot.svg)
    (box,) = with_class(root, "rect", "box")
    scale = fitted_scale(values, start=196, end=800, logarithmic=False)
    assert float(box.get("x", "")) == pytest.approx(scale.at(0.25), abs=0.01)
    assert float(box.get("width", "")) == pytest.approx(scale.at(0.75) - scale.at(0.25), abs=0.02)
    (median,) = with_class(root, "line", "median")
    assert float(median.get("x1", "")) == pytest.approx(scale.at(0.5), abs=0.01)
    (dots,) = with_class(root, "path", "dots")
    assert dots.get("d", "").count("M") == 4  # five values, one of them lost
    (crosses,) = with_class(root, "path", "crosses")
    assert crosses.get("d", "").count("l6 6") == 1
    assert plot.rows == (
        ("A", "5", "0.000", "0.250", "0.500", "0.750", "1.000", "0.500"),
        (HOSTILE, "0", *["\N{EN DASH}"] * 6),
    )
    assert "<script" not in plot.svg


def test_plots_name_and_describe_themselves():
    plot = box_plot(["A"], np.array([[1.0]]), axis=Axis("FPV", "ml", True), identifier="f")
    root = drawing(plot.svg)
    named = {one.get("id"): one.text for one in root if one.tag in ("title", "desc")}
    assert root.get("role") == "img"
    assert root.get("aria-labelledby", "").split() == list(named)
    assert all(named.values())


def test_agreement_plots_show_cases_with_both_values_bias_and_limits():
    truth, guess = np.array([1.0, 10.0, np.nan, 100.0]), np.array([2.0, 8.0, 5.0, np.nan])
    axis = Axis("MTV", "ml", logarithmic=True)
    scatter = drawing(scatter_plot(truth, guess, axis=axis, identifier="s", of="A").svg)
    assert with_class(scatter, "path", "dots large")[0].get("d", "").count("M") == 2
    plot = bland_altman_plot(truth, guess, axis=axis, identifier="b", of="A", bias=-0.5, limits=(-4.66, 3.66))
    root = drawing(plot.svg)
    assert len(with_class(root, "line", "mark")) == 1
    assert len(with_class(root, "line", "mark dashed")) == 2
    assert ("bias", "-0.50") in plot.rows
    alone = bland_altman_plot(truth, guess, axis=axis, identifier="b", of="A")
    assert not with_class(drawing(alone.svg), "line", "mark dashed")
    assert "limits" not in alone.words


def coarse(prediction: np.ndarray, *, start: tuple[int, int, int] = (0, 0, 0), suv: bool = True) -> CoarseVolume:
    z, y, x = start
    truth = np.zeros(prediction.shape, bool)
    return CoarseVolume(
        ground_truth=truth,
        prediction=prediction,
        spacing_mm=(4.0, 3.0, 2.0),
        origin_mm=(10.0 + 2 * x, 20.0 + 3 * y, 30.0 - 4 * z),
        suv=np.full(prediction.shape, 7, np.uint8) if suv else None,
    )


def test_volumes_with_other_boxes_share_a_grid():
    first, second = np.zeros((3, 3, 3), bool), np.zeros((4, 3, 5), bool)
    first[1, 1, 1] = second[2, 1, 3] = True  # one place: the second starts a slice higher and two columns to the right
    grid = share_grid({"1": coarse(first), "2": coarse(second, start=(-1, 0, -2), suv=False)})
    assert grid is not None
    assert grid.ground_truth.shape == (4, 3, 5)
    assert grid.origin_mm == (6.0, 20.0, 34.0)
    np.testing.assert_array_equal(grid.predictions["1"], grid.predictions["2"])
    assert grid.suv is not None
    assert (grid.suv > 0).sum() == 27
    assert share_grid({}) is None


def test_the_viewers_script_unpacks_to_the_volumes():
    mask = np.random.default_rng(1).random((3, 4, 5)) < 0.5
    grid = share_grid({"1": coarse(mask)})
    assert grid is not None
    text = volume_script(grid, [("1", HOSTILE), ("2", "without a volume")])
    assert "<" not in text
    content = json.loads(text.removeprefix("window.AUTOPET_CASE = ").removesuffix(";\n"))
    assert content["shape"] == [3, 4, 5]
    assert [one["name"] for one in content["predictions"]] == [HOSTILE]
    packed = np.frombuffer(zlib.decompress(base64.b64decode(content["predictions"][0]["mask"])), np.uint8)
    np.testing.assert_array_equal(np.unpackbits(packed)[:60].reshape(3, 4, 5).astype(bool), mask)
    assert zlib.decompress(base64.b64decode(content["suv"])) == bytes([7]) * 60


def test_json_in_a_script_cannot_end_it():
    text = script_json({"name": "</script><!--\u2028&"})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"name": "</script><!--\u2028&"}


LESIONS = """case,kind,lesion,volume_ml,suv_max,suv_mean,x_mm,y_mm,z_mm,status,overlap_voxels,iou
a,truth,1,2.5,9,4,1,2,3,matched,10,0.5
a,truth,2,0.5,,,1,2,3,missed,1,0.05
a,truth,3,0.25,,,,,,missed,0,0
a,prediction,1,2,8,4,1,2,3,matched,10,0.5
a,prediction,2,1,8,4,9,9,9,false,0,0
"""


def test_lesions_are_read_and_marked(tmp_path: Path):
    (tmp_path / "lesions.csv").write_text(LESIONS)
    rows = read_lesions(tmp_path / "lesions.csv")["a"]
    table = true_lesions([rows, None])
    assert [one.lesion.lesion for one in table] == [1, 2, 3]
    marks = [[words for _, words in one.found] for one in table]
    assert marks[0] == ["matched, intersection over union 0.50", "unknown: no lesions.csv"]
    assert [one[0].partition(",")[0] for one in marks] == ["matched", "touched", "missed"]
    assert (table[0].lesion.place, table[2].lesion.place) == ("1.0,2.0,3.0", "")
    assert table[1].lesion.uptake == ("\N{EN DASH}", "\N{EN DASH}")
    assert [one.lesion for one in false_lesions(rows)] == [2]
    (tmp_path / "lesions.csv").write_text("case,kind\na,truth\n")
    with pytest.raises(AutopetError, match="lacks the column 'x_mm'"):
        read_lesions(tmp_path / "lesions.csv")
    (tmp_path / "lesions.csv").write_text(LESIONS.replace("2.5", "much"))
    with pytest.raises(AutopetError, match=r"is no lesions.csv"):
        read_lesions(tmp_path / "lesions.csv")


def test_the_board_is_best_first_and_arrays_follow_it(shown: tuple[Board, Findings], results: list[str]):
    board, findings = shown
    assert board.names[0] == RIVALS[0].name
    raw = {s.name: s for s in read_results(results)}
    for entrant in board.entrants:
        np.testing.assert_array_equal(board.values["dice"][entrant.number], raw[entrant.name].values("dice"))
    loser = board.names.index(RIVALS[-1].name)
    assert np.argwhere(board.lost).tolist() == [[loser, 2]]
    assert findings.uncertainty is not None
    np.testing.assert_allclose(findings.uncertainty.shares.sum(axis=1), 1)
    assert findings.uncertainty.first[0] == pytest.approx(findings.uncertainty.shares[0, 0])
    assert board.truth("gt_ml")[5] == 0  # the case without lesions


def test_subsets_rank_their_own_cases(shown: tuple[Board, Findings]):
    board, findings = shown
    tables = {table.title: table for table in findings.subsets}
    assert {title: table.cases for title, table in tables.items()} == {
        **{"FDG": 6, "PSMA": 6, "centre A": 6, "centre B": 6},
        **{f"{tracer}, centre {centre}": 3 for tracer in ("FDG", "PSMA") for centre in "AB"},
    }
    psma = [patient.number for patient in board.patients if patient.tracer == "PSMA"]
    for entrant, _, means in tables["PSMA"].rows:
        assert means[0] == pytest.approx(np.nanmean(board.values["dice"][entrant.number, psma]))
        assert means[1] == pytest.approx(np.mean(board.values["fpv_ml"][entrant.number, psma]))
    column = next(one for one in findings.columns if (one.group, one.title) == ("Only", "PSMA"))
    assert [column.ranks[entrant.number] for entrant, _, _ in tables["PSMA"].rows] == [
        rank for _, rank, _ in tables["PSMA"].rows
    ]


def test_pages_hold_the_values(shown: tuple[Board, Findings]):
    board, findings = shown
    index = index_page(board, findings)
    for entrant in board.entrants:
        assert f'data-value="{entrant.standing.means[0]}"' in index
    loser = next(e for e in board.entrants if e.name == RIVALS[-1].name)
    page = algorithm_page(board, findings, loser)
    assert "the container was killed after 300 s &lt;script&gt;" in page
    assert ">failed</span>" in page
    volumes = volumes_page(board)
    icc = loser.standing.submission.cohort["icc_mtv"]
    assert f">{icc['value']:.3f}<" in volumes
    assert f">{icc['ci95'][0]:.3f} to {icc['ci95'][1]:.3f}<".replace("-", "\N{MINUS SIGN}") in volumes
    assert cases_page(board).count("<tr>") == 3 * (12 + 1)


def test_worst_and_best_cases_of_an_algorithm(shown: tuple[Board, Findings]):
    board, findings = shown
    entrant = board.entrants[2]
    page = algorithm_page(board, findings, entrant)
    dice = board.values["dice"][entrant.number]
    known = sorted(float(value) for value in dice if np.isfinite(value))
    for heading, expected in (("Worst", known[:6]), ("Best", known[::-1][:6])):  # 11 cases have a Dice
        table = page[page.index(f'aria-label="{heading} cases"') :]
        rows = re.findall(r"<tr><th.*?data-value=\"([^\"]*)\"", table[: table.index("</table>")], re.DOTALL)
        assert [float(value) for value in rows] == expected
