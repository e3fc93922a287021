"""The report on biomarkers: its tables, plots and overlays, from metrics.json and from the files of a submission."""

from __future__ import annotations

import csv
import json
import math
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import SUBMITTED, boxed
from PIL import Image
from results_maker import HOSTILE, RIVALS, write_results
from typer.testing import CliRunner

from autopet.cohort import Case
from autopet.commands import biomarkers as command
from autopet.errors import AutopetError
from autopet.images import read_image, write_image
from autopet.volume import Volume
from evaluation.aggregate import build_metrics, json_number
from evaluation.metrics import REGISTRY, score_case
from evaluation.scoring import read_mask
from leaderboard.biomarkers import write_biomarkers
from leaderboard.overlay_files import MOST_MAPS, find_maps, find_masks, read_slice
from leaderboard.overlays import (
    MARGIN_PX,
    PANEL_PX,
    TITLE_PX,
    Guess,
    Slice,
    choose_slice,
    draw_ct,
    draw_map,
    draw_slice,
)
from leaderboard.submissions import read_results

SVG = "{http://www.w3.org/2000/svg}"
AS_STORED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)  # missed, false, both


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three submissions of six cases, the sixth without lesions; the last one lost its third case."""
    return write_results(tmp_path_factory.mktemp("results"), cases=6, rivals=(RIVALS[0], RIVALS[2], RIVALS[4]))


@pytest.fixture(scope="module")
def report(results: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "biomarkers"
    write_biomarkers(read_results(results), out)
    return out


def test_the_table_of_cases_holds_the_values_of_metrics_json(results: list[str], report: Path):
    with (report / "biomarkers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert [row["submission"] for row in rows[::6]] == ["Lesion Tracer", HOSTILE, "'=majority()"]  # no formula
    for place, path in enumerate(results):
        expected_rows = json.loads(Path(path, "metrics.json").read_text())["results"]
        for row, known in zip(rows[6 * place : 6 * place + 6], expected_rows, strict=True):
            assert row["case"] == known["case"]
            for column in ("gt_ml", "pred_ml", "mtv_deviation_ml", "gt_tlg_g", "pred_tlg_g", "tlg_deviation_g", "dice"):
                expected = "" if known[column] is None else f"{known[column]:.6g}"
                assert row[column] == expected, column
            if known["status"] == "scored":  # whatever the file says: the definitions
                assert float(row["mtv_deviation_ml"]) == pytest.approx(abs(known["pred_ml"] - known["gt_ml"]), rel=1e-4)


def test_the_summary_holds_medians_and_the_cohorts_agreement(results: list[str], report: Path):
    content = json.loads((report / "biomarkers.json").read_text())
    for entry, path in zip(content, results, strict=True):
        metrics = json.loads(Path(path, "metrics.json").read_text())
        positive, every = entry["groups"]
        assert (positive["title"], positive["cases"], every["cases"]) == ("cases with lesions", 5, 6)
        known = [row for row in metrics["results"] if row["gt_ml"] > 0]
        deviations = [row["tlg_deviation_g"] for row in known]
        assert positive["estimates"]["tlg"]["deviation"]["median"] == pytest.approx(np.median(deviations))
        quartiles = np.percentile(deviations, (25, 75))
        assert positive["estimates"]["tlg"]["deviation"]["iqr"] == pytest.approx(quartiles[1] - quartiles[0])
        assert every["estimates"]["mtv"]["deviation"]["median"] == metrics["aggregates"]["mtv_deviation_ml"]["50%"]
        assert every["estimates"]["mtv"]["icc"] == metrics["cohort"]["icc_mtv"]
        assert every["estimates"]["tlg"]["bland_altman"] == metrics["cohort"]["bland_altman_tlg"]
    assert [entry["groups"][1]["lost"] for entry in content] == [0, 0, 1]


def test_the_report_is_a_table_that_no_name_breaks(report: Path):
    text = (report / "report.md").read_text()
    first = json.loads((report / "biomarkers.json").read_text())[0]["groups"][0]["estimates"]["mtv"]
    row = next(line for line in text.splitlines() if line.startswith("| Lesion Tracer |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"{first['deviation']['median']:.1f} ({first['deviation']['iqr']:.1f})"
    low, high = first["icc"]["ci95"]
    assert cells[4] == f"{first['icc']['value']:.2f} ({low:.2f} to {high:.2f})"
    assert "<script>" not in text
    assert "## Cases with lesions (5)" in text
    assert "## All cases (6)" in text
    assert "=majority(): 1 of 6 cases without a valid prediction" in text
    assert "- Lesion Tracer: 5 of 6 cases have a Dice\n" in text.split("## All cases (6)")[1]  # edition III
    assert "5 of 5 cases have" not in text
    assert "Policy for lost cases: a case without a valid prediction is scored as if an empty mask" in text
    header = next(line for line in text.splitlines() if line.startswith("| submission"))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * 5
    assert {line.replace("\\|", "").count("|") for line in tables} == {header.count("|")}
    places = [line.split("](")[1].split(")")[0] for line in text.replace("![", "\n![").splitlines() if "](" in line]
    assert len(places) == 6
    assert all((report / place).is_file() for place in places)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("~~~", "\\~\\~\\~"),  # a fence that would swallow the rest of the report
        ("# best", "\\# best"),
        ("- one", "\\- one"),
        ("12. place", "12\\. place"),
        ("===", "\\==="),
        ("a-1.5 'x'", "a-1.5 &#x27;x&#x27;"),
        ("<b>|`", "&lt;b&gt;\\|\\`"),
    ],
)
def test_a_name_at_the_start_of_a_line_is_no_markup(results: list[str], tmp_path: Path, name: str, escaped: str):
    submission = replace(read_results(results[-1:])[0], name=name)
    write_biomarkers([submission], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert f"\n| {escaped} |" in text
    assert f"\n- {escaped}: 1 of 6 cases without a valid prediction" in text
    assert text.split("## Bland-Altman plots\n\n")[1].startswith(f"{escaped}\n\n![")


def test_bland_altman_plots_stand_alone(results: list[str], report: Path):
    paths = sorted((report / "bland-altman").iterdir())
    assert [path.name for path in paths] == [
        "1-Lesion-Tracer-mtv.svg", "1-Lesion-Tracer-tlg.svg",
        "2-script-alert-1-script-mtv.svg", "2-script-alert-1-script-tlg.svg",
        "3-majority-mtv.svg", "3-majority-tlg.svg",
    ]  # fmt: skip
    for path in paths:
        root = ET.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        assert ".grid{stroke:" in root.find(f"{SVG}style").text
        kinds = [line.get("class") for line in root.iter(f"{SVG}line")]
        assert (kinds.count("mark"), kinds.count("mark dashed")) == (1, 2)  # bias and both limits
        points = [shape.get("d") for shape in root.iter(f"{SVG}path") if shape.get("class") == "dots large"]
        assert points[0].count("M") == 6  # also the lost case, as one in which nothing was found


def test_a_report_replaces_an_earlier_one_and_nothing_else(results: list[str], tmp_path: Path):
    submissions = read_results(results)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(AutopetError, match="holds other files; choose a new folder"):
        write_biomarkers(submissions, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    write_biomarkers(submissions, tmp_path / "out")
    write_biomarkers(submissions[:1], tmp_path / "out")
    assert len(list((tmp_path / "out/bland-altman").iterdir())) == 2
    (tmp_path / "out/weakcam").mkdir()
    (tmp_path / "out/weakcam/one.mha").write_bytes(b"a mask")
    with pytest.raises(AutopetError, match="holds other files"):  # beside an earlier report, too
        write_biomarkers(submissions, tmp_path / "out")
    assert (tmp_path / "out/weakcam/one.mha").is_file()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_report_says_of_how_many_cases_its_numbers_are(results: list[str], tmp_path: Path):
    submission = read_results(results[:1])[0]
    cases = list(submission.cases)
    cases[1] = replace(cases[1], values=cases[1].values | {"gt_tlg_g": math.nan, "tlg_deviation_g": math.nan})
    cases[2] = replace(cases[2], values=cases[2].values | {"pred_ml": math.nan})
    write_biomarkers([replace(submission, cases=tuple(cases))], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text().split("## All cases")[0]
    said = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("- Lesion Tracer: ")]
    assert said == ["4 of 5 cases have a TLG deviation", "4 of 5 cases have an ICC and bias of MTV",
                    "4 of 5 cases have an ICC and bias of TLG"]  # fmt: skip


def test_without_suv_there_is_no_tlg_and_no_plot_of_it(results: list[str], tmp_path: Path):
    submission = read_results(results[:1])[0]
    no_tlg = dict.fromkeys(("gt_tlg_g", "pred_tlg_g", "tlg_deviation_g"), math.nan)
    cases = [replace(case, values=case.values | no_tlg) for case in submission.cases]
    write_biomarkers([replace(submission, cases=tuple(cases))], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/bland-altman").iterdir()] == ["1-Lesion-Tracer-mtv.svg"]
    text = (tmp_path / "out/report.md").read_text()
    assert "ICC of TLG: 0 cases have both values, at least 3 are needed" in text
    lacking = [replace(case, values={**case.values, "gt_ml": math.nan}) for case in submission.cases]
    with pytest.raises(AutopetError, match="no case has a true MTV"):
        write_biomarkers([replace(submission, cases=tuple(lacking))], tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- overlays on arrays ----------------------------------------------------------------------------------------------


def test_the_slice_is_that_of_the_largest_lesion():
    suv = np.zeros((4, 3, 3))
    suv[3, 1, 1] = 9.0
    truth, guess = np.zeros(suv.shape, bool), np.zeros(suv.shape, bool)
    truth[1, 0, :2] = truth[2, 0, 0] = True
    guess[0] = True
    assert choose_slice(suv, [truth, guess]) == 1
    assert choose_slice(suv, [np.zeros_like(truth), guess]) == 0
    assert choose_slice(suv, [np.zeros_like(truth)]) == 3
    suv[0, 0, 0] = np.nan
    assert choose_slice(suv, []) == 3


def square(*, maps: dict[str, np.ndarray] | None = None, **changes) -> Slice:
    """8x8 voxels of SUV 8 (black): the truth is the left half, the mask the upper half."""
    truth, mask = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    truth[:, :4], mask[:4] = True, True
    view = Slice(np.full((8, 8), 8.0), None, truth, (Guess("mine", mask, maps or {}),), (2.0, 2.0))
    return replace(view, **changes)


def panel(sheet: Image.Image, number: int, *, width: int = PANEL_PX) -> np.ndarray:
    x = MARGIN_PX + number * (width + MARGIN_PX)
    return np.asarray(sheet.crop((x, TITLE_PX, x + width, TITLE_PX + PANEL_PX)))


def over_black(colour: tuple[int, int, int]) -> list[int]:
    return [round(0.8 * level) for level in colour]


def test_truth_and_mask_by_the_colours_of_the_leaderboard():
    sheet = draw_slice(square(), caption="a case")
    truth, mask = panel(sheet, 0), panel(sheet, 1)
    low, high = PANEL_PX // 4, 3 * PANEL_PX // 4
    assert truth[high, low].tolist() == over_black(BLUE)
    assert truth[high, high].tolist() == [0, 0, 0]
    corners = [mask[y, x].tolist() for y, x in ((low, low), (low, high), (high, low), (high, high))]
    assert corners == [over_black(GREEN), over_black(ORANGE), over_black(BLUE), [0, 0, 0]]
    assert (mask == over_black(GREEN)).all(axis=2).mean() == pytest.approx(0.25, abs=0.01)


def test_panels_of_maps_stand_in_the_papers_order_between_truth_and_mask():
    levels = {"scorecam": 1.0, "cam": 0.0, "gradcam": 0.25, "other": 0.75, "gradcam++": 0.5}
    maps = {name: np.full((8, 8), value) for name, value in levels.items()}
    sheet = draw_slice(square(maps=maps), caption="")
    inferno = {"cam": (0, 0, 4), "gradcam": (87, 16, 110), "gradcam++": (188, 55, 84), "scorecam": (252, 255, 164)}
    for number, colour in enumerate(inferno.values(), start=1):  # CAM, Grad-CAM, Grad-CAM++, Score-CAM over black
        difference = panel(sheet, number)[9, 9].astype(int) - np.round(0.6 * np.array(colour))
        assert np.abs(difference).max() <= 1, number
    assert (
        np.abs(panel(sheet, 5)[9, 9].astype(int) - np.round(0.6 * np.array((249, 142, 9)))).max() <= 2
    )  # unknown: last
    assert panel(sheet, 6)[PANEL_PX // 4, PANEL_PX // 4].tolist() == over_black(GREEN)
    assert sheet.width == 7 * (PANEL_PX + MARGIN_PX) + MARGIN_PX


def test_a_map_is_drawn_voxel_by_voxel_and_survives_nan():
    activation = np.zeros((8, 8))
    activation[2, 5], activation[0, 0], activation[7, 7] = 1.0, np.nan, 7.0
    drawn = np.asarray(draw_map(square(), activation)).astype(int)
    side = PANEL_PX // 8
    bright = drawn.sum(axis=2) > 300
    expected = np.zeros((8, 8), bool)
    expected[2, 5] = expected[7, 7] = True
    np.testing.assert_array_equal(bright, np.kron(expected, np.ones((side, side))) > 0)


def test_ct_window_and_true_proportions():
    ct = np.full((8, 8), -160.0)
    ct[:, 4:] = 240.0
    view = square(ct=ct, spacing_mm=(2.0, 1.0))
    drawn = np.asarray(draw_ct(view))
    assert drawn.shape == (PANEL_PX, PANEL_PX // 2, 3)
    assert (drawn[5, 2].tolist(), drawn[5, -3].tolist()) == ([0, 0, 0], [255, 255, 255])
    sheet = draw_slice(view, caption="")
    np.testing.assert_array_equal(panel(sheet, 2, width=PANEL_PX // 2), drawn)  # the last panel


def test_a_lost_mask_is_a_panel_with_the_reason():
    guesses = (Guess("lost", None, {}, "job 7 has status 'Failed'" * 9),)
    drawn = panel(draw_slice(square(guesses=guesses), caption=""), 1)
    assert (drawn == 255).mean() > 0.9
    assert (drawn < 100).any()  # the words


# --- overlays of files -----------------------------------------------------------------------------------------------


def test_maps_are_found_in_the_cases_folder_and_links_are_not_followed(tmp_path: Path):
    output = tmp_path / "pk-1" / "output"
    mask = write_image(output / SUBMITTED / "x.mha", boxed())
    for name in ("images/cam-scorecam/x.mha", "cams/cam_gradcam++.nii.gz", "cams/cam_CAM.mha", "cams/heat.mha"):
        write_image(output / name, boxed())
    write_image(tmp_path / "pk-2/output/cams/cam_gradcam.mha", boxed())  # of another case
    (output / "cams/cam_other.mha").symlink_to(output / "cams/cam_CAM.mha")
    found = find_maps(tmp_path, mask)
    assert {method: path.relative_to(output).as_posix() for method, path in found.items()} == {
        "scorecam": "images/cam-scorecam/x.mha", "gradcam++": "cams/cam_gradcam++.nii.gz", "cam": "cams/cam_CAM.mha",
    }  # fmt: skip
    plain = write_image(tmp_path / "case7.nii.gz", boxed())
    assert find_maps(tmp_path, plain) == {}
    write_image(tmp_path / "case7/cam_scorecam.nii.gz", boxed())
    assert list(find_maps(tmp_path, plain)) == ["scorecam"]


def case_of(folder: Path, *, direction: tuple[float, ...]) -> Case:
    """Three slices; a lesion in one corner of the second, at the array's low y and low x."""
    grid = Volume(np.zeros((3, 6, 8), np.float32), (4.0, 4.0, 6.0), direction=direction)
    mask = np.zeros(grid.shape, np.uint8)
    mask[1, 0:2, 0:3] = 1
    for role, array in (("SUV", mask * 5.0), ("CTres", np.where(mask, 40, -1000)), ("SEG", mask)):
        write_image(folder / f"{role}.nii.gz", grid.with_array(array.astype(np.float32 if role == "SUV" else np.int16)))
    return Case("one", "p", folder, lesion_voxels=6)


@pytest.mark.parametrize(
    ("direction", "corner"),
    [
        ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (0, 0)),  # x runs to the left, y to the back: front, right
        ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (0, -1)),
        ((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0), (-1, -1)),
    ],
)
def test_slices_lie_as_one_looks_at_them(tmp_path: Path, direction: tuple[float, ...], corner: tuple[int, int]):
    case = case_of(tmp_path / "one", direction=direction)
    submission = tmp_path / "mine"
    truth = read_image(case.mask)
    write_image(submission / "one.mha", truth.with_array(truth.array.astype(np.uint8)))
    activation = truth.with_array(truth.array.astype(np.float32))
    write_image(submission / "one/cam_cam.nii.gz", activation)
    (submission / "one/cam_gradcam.nii.gz").write_bytes(b"no image")
    view, where = read_slice(case, [find_masks("mine", submission, [case])])
    assert where == "axial slice 2 of 3 from the head (6 mm)"
    assert view.truth.shape == (6, 8)
    assert view.truth[corner]
    assert view.truth.sum() == 6
    guess = view.guesses[0]
    assert list(guess.maps) == ["cam"]  # the broken one is left out
    for array in (guess.mask, guess.maps["cam"] == 1, view.pet == 5, view.ct == 40):
        np.testing.assert_array_equal(array, view.truth)


def test_of_a_submission_with_clicks_the_last_step_is_drawn(tmp_path: Path):
    case = case_of(tmp_path / "one", direction=AS_STORED)
    truth = read_image(case.mask)
    for step, mask in enumerate((np.zeros_like(truth.array), truth.array)):
        write_image(tmp_path / f"mine/step{step:02d}/one.mha", truth.with_array(mask))
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    assert view.guesses[0].mask.sum() == 6


def test_a_map_on_a_coarser_grid_is_brought_onto_the_pets(tmp_path: Path):
    case = case_of(tmp_path / "one", direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    write_image(tmp_path / "mine/one.mha", read_image(case.mask).with_array(np.zeros((3, 6, 8), np.uint8)))
    coarse = Volume(np.zeros((3, 3, 4), np.float32), (8.0, 8.0, 6.0), (2.0, 2.0, 0.0))
    coarse.array[1, 0, 0] = 1.0
    write_image(tmp_path / "mine/one/cam_cam.mha", coarse)
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    assert view.guesses[0].maps["cam"].shape == (6, 8)
    assert view.guesses[0].maps["cam"][1, 1] == pytest.approx(9 / 16)  # between four centres: (3/4)^2 of the nearest
    assert view.guesses[0].maps["cam"][4, 6] == 0


def test_a_mask_on_another_grid_is_a_reason_not_an_error(tmp_path: Path):
    case = case_of(tmp_path / "one", direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    write_image(tmp_path / "mine/one.mha", Volume(np.zeros((3, 6, 9), np.uint8), (4.0, 4.0, 6.0)))
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    assert view.guesses[0].mask is None
    assert "expected the grid of the SUV image, found shape (3, 6, 9) against (3, 6, 8)" in view.guesses[0].reason


def lying_maps(folder: Path, target: Path) -> None:
    """Maps that name another file for their voxels, in three formats."""
    header = "NDims = 3\nDimSize = 8 6 3\nElementSpacing = 4 4 6\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    folder.mkdir(parents=True)
    (folder / "cam_cam.mha").write_text(header.format(target))
    (folder / "cam_gradcam.mhd").write_text(header.format(target))
    lines = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 8 6 3", "encoding: raw", f"data file: {target}", ""]
    (folder / "cam_scorecam.nrrd").write_text("\n".join(lines) + "\n")


def test_a_map_shows_no_other_file(tmp_path: Path):
    case = case_of(tmp_path / "one", direction=AS_STORED)
    write_image(tmp_path / "mine/one.mha", read_image(case.mask).with_array(np.zeros((3, 6, 8), np.uint8)))
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes([1]) * 144)
    lying_maps(tmp_path / "mine/one", secret)
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    assert view.guesses[0].maps == {}


def test_a_cases_folder_of_maps_that_is_a_link_is_not_followed(tmp_path: Path):
    write_image(tmp_path / "elsewhere/cam_cam.mha", boxed())
    mask = write_image(tmp_path / "mine/one.mha", boxed())
    (tmp_path / "mine/one").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert find_maps(tmp_path / "mine", mask) == {}


def test_only_so_many_maps_are_looked_at(tmp_path: Path):
    mask = write_image(tmp_path / "one.mha", boxed())
    for number in range(MOST_MAPS + 3):
        write_image(tmp_path / f"one/cam_{number:03d}.mha", boxed())
    assert len(find_maps(tmp_path, mask)) == MOST_MAPS


def test_what_a_map_does_to_its_reader_costs_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = case_of(tmp_path / "one", direction=AS_STORED)
    write_image(tmp_path / "mine/one.mha", read_image(case.mask))
    coarse = Volume(np.ones((3, 3, 4), np.float32), (8.0, 8.0, 6.0), (2.0, 2.0, 0.0))
    write_image(tmp_path / "mine/one/cam_cam.mha", coarse)
    odd = tmp_path / "mine/one/cam-gradcam" / os.fsdecode(b"x\xff\x1b[2J.mha")  # no UTF-8, and an escape
    odd.parent.mkdir()
    odd.write_bytes(b"no image")
    monkeypatch.setattr("leaderboard.overlay_files.resample", fail)
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    assert view.guesses[0].maps == {}
    assert view.guesses[0].mask.any()


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("Bad direction, determinant is 0")


def test_an_image_that_announces_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = case_of(tmp_path / "one", direction=AS_STORED)
    large = Volume(np.zeros((3, 60, 80), np.uint8), (4.0, 4.0, 6.0))
    for name in ("one.mha", "one/cam_cam.mha"):
        write_image(tmp_path / "mine" / name, large)
    read = []
    monkeypatch.setattr("leaderboard.overlay_files.MOST_MAP_VOXELS", 1000)
    monkeypatch.setattr("leaderboard.overlay_files.read_image", noting(read))
    monkeypatch.setattr("evaluation.scoring.read_image", noting(read))
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    assert view.guesses[0].mask is None
    assert view.guesses[0].maps == {}
    assert [path for path in read if path.is_relative_to(tmp_path / "mine")] == []


def noting(read: list[Path]):
    def noted(path: Path) -> Volume:
        read.append(path)
        return read_image(path)

    return noted


def test_a_mask_of_an_oblique_scan_is_cut_as_its_scan_is(tmp_path: Path):
    """At 45 degrees rounding decides which axis is the head's: two files of one grid must not be turned differently."""
    case = case_of(tmp_path / "one", direction=turned_about_x(math.pi / 4 - 1e-6))
    other = replace(read_image(case.mask), direction=turned_about_x(math.pi / 4 + 1e-6))
    write_image(tmp_path / "mine/one.mha", other)
    write_image(tmp_path / "mine/one/cam_cam.mha", other.with_array(other.array.astype(np.float32)))
    view, _ = read_slice(case, [find_masks("mine", tmp_path / "mine", [case])])
    guess = view.guesses[0]
    assert guess.mask.sum() == 6
    np.testing.assert_array_equal(guess.mask, view.truth)
    np.testing.assert_array_equal(guess.maps["cam"], view.truth)


def turned_about_x(angle: float) -> tuple[float, ...]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return (1.0, 0.0, 0.0, 0.0, cosine, -sine, 0.0, sine, cosine)


# --- the command -----------------------------------------------------------------------------------------------------


def evaluated(cohort: list[Case], folder: Path, submission: Path) -> Path:
    """metrics.json of masks that are the truth, moved by one voxel; the masks are written to the submission."""
    rows = []
    for case in cohort:
        truth, suv = read_mask(case.mask), read_image(case.suv)
        mask = truth.with_array(np.roll(truth.array, 1, axis=2))
        write_image(submission / f"{case.name}.mha", mask)
        scored = score_case(truth, mask, suv=suv, edition="III", surface=False)
        values = {metric.name: json_number(scored.values[metric.name]) for metric in REGISTRY}
        rows.append({**values, "case": case.name, "status": "scored", "tracer": case.tracer, "centre": case.centre})
    folder.mkdir()
    metrics = build_metrics(rows, name=submission.name, edition="III", failed="empty")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_the_command_from_results_to_overlays(cohort: list[Case], tmp_path: Path):
    results = evaluated(cohort, tmp_path / "results", tmp_path / "weakcam")
    data = cohort[0].folder.parent
    options = ["--data", str(data), "--predictions", str(tmp_path / "weakcam"), "--overlays", "3"]
    done = CliRunner().invoke(command.app, [str(results), "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    assert "cases with lesions (6)" in done.output
    assert "all cases (8)" in done.output
    pictures = sorted((tmp_path / "out/overlays").iterdir())
    by_volume = sorted(cohort, key=lambda case: (case.lesion_voxels, case.name))
    assert [path.stem for path in pictures] == sorted(by_volume[place].name for place in (0, 4, 7))
    assert all(Image.open(path).size[1] == TITLE_PX + PANEL_PX + 2 * MARGIN_PX + 2 * TITLE_PX for path in pictures)
    text = (tmp_path / "out/report.md").read_text()
    assert all(f"(overlays/{path.name})" in text for path in pictures)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "{data}"], "give both or none"),
        (["--predictions", "{run}"], "give both or none"),
        (["--data", "{data}", "--predictions", "other={run}"], "no results named 'other', found weakcam"),
        (["--data", "{data}", "--predictions", "{run}", "--predictions", "weakcam={run}"], "named 'weakcam'"),
    ],
)
def test_mistakes_are_named(cohort: list[Case], tmp_path: Path, options: list[str], words: str):
    results = evaluated(cohort[:1], tmp_path / "results", tmp_path / "weakcam")
    places = {"data": cohort[0].folder.parent, "run": tmp_path / "weakcam"}
    arguments = [option.format(**places) for option in options]
    done = CliRunner().invoke(command.app, [str(results), "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(done.exception, AutopetError)
    assert words in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_cohort_without_an_evaluated_case_is_named(cohort: list[Case], tmp_path: Path):
    results = evaluated(cohort[:4], tmp_path / "results", tmp_path / "weakcam")
    metrics = json.loads((results / "metrics.json").read_text())
    metrics["results"][0]["case"] = "stranger"
    (results / "metrics.json").write_text(json.dumps(metrics))
    options = ["--data", str(cohort[0].folder.parent), "--predictions", str(tmp_path / "weakcam")]
    done = CliRunner().invoke(command.app, [str(results), "--out", str(tmp_path / "out"), *options])
    assert "the cohort has no case stranger (1 such)" in str(done.exception)
