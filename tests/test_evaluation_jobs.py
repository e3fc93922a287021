"""Pairing predictions with ground truth: the platform's layout, plain folders, and hostile submissions."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import write_table
from autopet.errors import AutopetError
from autopet.images import write_image
from autopet.volume import Volume
from evaluation.jobs import find_candidates, pair_up
from evaluation.truths import Truth, find_truths, select_truths

OUTPUT = "images/automated-petct-lesion-segmentation"


def write_mask(path: Path) -> Path:
    return write_image(path, Volume(np.zeros((2, 3, 4), np.uint8)))


def job(pk: str, *names: str, keys: tuple[str, ...] = ("socket", "interface"), status: str = "Succeeded") -> dict:
    def entry(slug: str, place: str, name: str | None) -> dict:
        described = {"slug": slug, "relative_path": place, "kind": "Image"}
        return {**dict.fromkeys(keys, described), "image": {"name": name, "pk": "0"} if name else None, "value": None}

    inputs = [entry("pet", "images/pet", name) for name in names]
    outputs = [entry("data-centric-model", "data-centric-model.json", None), entry("seg", OUTPUT, "whatever.mha")]
    return {"pk": pk, "status": status, "inputs": inputs, "outputs": outputs}


def platform(root: Path, jobs: list[dict], files: int = 1) -> Path:
    for one in jobs:
        for index in range(files):
            write_mask(root / one["pk"] / "output" / OUTPUT / f"0f{index}.mha")
    root.mkdir(parents=True, exist_ok=True)
    (root / "predictions.json").write_text(json.dumps(jobs))
    return root


def truths(*names: str) -> list[Truth]:
    return [Truth(name, Path(f"{name}.nii.gz")) for name in names]


@pytest.mark.parametrize("keys", [("socket",), ("interface",), ("socket", "interface")])
def test_jobs_in_any_order_are_matched_by_input_image(tmp_path: Path, keys: tuple[str, ...]):
    jobs = [job("p2", "b.nii.gz", keys=keys), job("p3", "c.mha", "c_ct.mha", keys=keys), job("p1", "a", keys=keys)]
    pairing = pair_up(truths("a", "b", "c"), find_candidates(platform(tmp_path, jobs)))
    folders = [pair.prediction.relative_to(tmp_path).parts[0] for pair in pairing.pairs if pair.prediction]
    assert folders == ["p1", "p2", "p3"]
    assert not pairing.unmatched


@pytest.mark.parametrize("known", [{"image": {"name": "x.mha", "pk": "9"}}, {"image": None}])
def test_outputs_that_name_a_slug_only_lie_in_its_folder(tmp_path: Path, known: dict):
    slug = OUTPUT.removeprefix("images/")
    described = {"slug": slug} if known["image"] else {"slug": slug, "super_kind": "Image"}
    older = job("p1", "a.mha", keys=("interface",))
    older["outputs"] = [{"interface": {"slug": "data-centric-model"}, "value": True}, {"interface": described, **known}]
    pairing = pair_up(truths("a"), find_candidates(platform(tmp_path, [older])))
    assert pairing.pairs[0].prediction == tmp_path / "p1/output" / OUTPUT / "0f0.mha"


def test_channel_suffix_is_dropped_only_without_an_exact_match(tmp_path: Path):
    jobs = [job("p1", "a_0000.nii.gz", "a_0001.nii.gz"), job("p2", "b_0001.mha")]
    pairing = pair_up(truths("a", "b", "b_0001"), find_candidates(platform(tmp_path, jobs)))
    assert [(pair.truth.case, pair.status) for pair in pairing.pairs] == [
        ("a", "found"),
        ("b", "missing"),
        ("b_0001", "found"),
    ]


def test_the_name_of_the_prediction_file_never_decides(tmp_path: Path):
    platform(tmp_path, [job("p1", "a.mha")], files=0)
    write_mask(tmp_path / "p1" / "output" / OUTPUT / "b.mha")
    pairing = pair_up(truths("a", "b"), find_candidates(tmp_path))
    assert [pair.status for pair in pairing.pairs] == ["found", "missing"]


def test_failed_job_missing_file_and_two_files_say_why(tmp_path: Path):
    failed = {**job("p1", "a.mha", status="Failed"), "error_message": "out of\nmemory"}
    candidates = find_candidates(platform(tmp_path, [failed, job("p2", "b.mha")], files=2))
    pairing = pair_up(truths("a", "b"), candidates)
    assert [pair.status for pair in pairing.pairs] == ["failed", "refused"]
    assert "'Failed', expected 'Succeeded' (out of memory)" in pairing.pairs[0].reason
    assert "expected one image" in pairing.pairs[1].reason
    assert "0f0.mha, 0f1.mha" in pairing.pairs[1].reason
    nothing = pair_up(truths("a"), find_candidates(platform(tmp_path / "none", [job("p3", "a.mha")], files=0)))
    assert nothing.pairs[0].status == "missing"
    assert f"expected one image in p3/output/{OUTPUT}, found none" in nothing.pairs[0].reason


def test_two_predictions_for_a_case_are_refused(tmp_path: Path):
    pairing = pair_up(truths("a"), find_candidates(platform(tmp_path, [job("p1", "a.mha"), job("p2", "a.mha")])))
    assert pairing.pairs[0].status == "refused"
    assert "found 2 (job p1, job p2)" in pairing.pairs[0].reason
    plain = tmp_path / "plain"
    write_mask(plain / "a.mha")
    write_mask(plain / "a.nii.gz")
    assert pair_up(truths("a"), find_candidates(plain)).pairs[0].status == "refused"


def test_predictions_without_ground_truth_are_listed(tmp_path: Path):
    for name in ("a", "stranger", "train"):
        write_mask(tmp_path / f"{name}.nii.gz")
    pairing = pair_up(truths("a", "z"), find_candidates(tmp_path), ignored=["train"])
    assert [entry["prediction"] for entry in pairing.unmatched] == ["stranger.nii.gz"]
    assert any("stranger.nii.gz is not evaluated" in note for note in pairing.notes)
    assert "1 predictions belong to cases that were not selected" in pairing.notes
    assert [pair.status for pair in pairing.pairs] == ["found", "missing"]


def test_job_whose_inputs_name_two_cases_is_unmatched(tmp_path: Path):
    jobs = [job("p1", "a.mha", "b.mha"), job("p2", "c.mha")]
    pairing = pair_up(truths("a", "b", "c"), find_candidates(platform(tmp_path, jobs)))
    assert "several ground-truth cases: a, b" in pairing.unmatched[0]["reason"]


def test_folders_of_other_data_leave_every_case_missing(tmp_path: Path):
    write_mask(tmp_path / "x.mha")
    pairing = pair_up(truths("a", "b"), find_candidates(tmp_path))
    assert [pair.status for pair in pairing.pairs] == ["missing", "missing"]
    assert pairing.notes[0].startswith("none of the 1 predictions belongs to a ground-truth case (first: x.mha, ")
    assert "expected names like a:" in pairing.notes[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "expected a list of jobs, found an object"),
        ("3", "expected a list of jobs, found a number"),
        ("not json", "cannot be read as JSON"),
        ('[{"pk": "p1", "inp', "cannot be read as JSON"),
        ("[]", "expected a list of jobs, found an empty one"),
        ("[1]", "expected a job (an object), found a number"),
        ("[" * 200_000, "cannot be read as JSON"),  # nested too deeply
    ],
)
def test_broken_predictions_json_leaves_every_case_missing(tmp_path: Path, content: str, reason: str):
    (tmp_path / "predictions.json").write_text(content)
    pairing = pair_up(truths("a"), find_candidates(tmp_path))
    assert pairing.pairs[0].status == "missing"
    assert "predictions.json" in pairing.unmatched[0]["prediction"]
    assert pairing.unmatched[0]["reason"].startswith(reason)
    assert "so every case is missing" in pairing.notes[0]


def test_what_is_no_job_costs_no_other_job_its_score(tmp_path: Path):
    platform(tmp_path, [job("p1", "a.mha"), job("p2", "b.mha")])
    good = json.loads((tmp_path / "predictions.json").read_text())
    (tmp_path / "predictions.json").write_text("\ufeff" + json.dumps([None, good[0], "x", good[1], [1], {}]))
    pairing = pair_up(truths("a", "b"), find_candidates(tmp_path))
    assert [pair.status for pair in pairing.pairs] == ["found", "found"]
    assert [entry["prediction"] for entry in pairing.unmatched] == [
        "entry 0 of predictions.json", "entry 2 of predictions.json", "entry 4 of predictions.json", "job None",
    ]  # fmt: skip
    assert pairing.notes[0].endswith(
        "entry 0 of predictions.json is not evaluated: expected a job (an object), found null"
    )


def test_a_path_that_no_file_system_takes_is_refused(tmp_path: Path):
    platform(tmp_path, [job("p1", "a.mha")])
    jobs = [job("x" * 5000, "b.mha"), job("p1", "a.mha"), job("n\0ul", "c.mha")]
    (tmp_path / "predictions.json").write_text(json.dumps(jobs))
    pairing = pair_up(truths("a", "b", "c"), find_candidates(tmp_path))
    assert [pair.status for pair in pairing.pairs] == ["found", "refused", "missing"]
    assert len(pairing.pairs[1].reason) <= 2000
    assert "\0" not in pairing.pairs[2].reason


def test_names_and_reasons_cannot_drive_a_terminal_or_turn_text(tmp_path: Path):
    escape, override = "\x1b[31m", "\u202e"
    hostile = {**job("p1", "a.mha", status="Failed"), "error_message": f"{escape}red {override}drawkcab\r\nnext"}
    jobs = [hostile, job(f"p2{escape}", f"stray{override}.mha"), job("p3", "b" * 9000)]
    (tmp_path / "predictions.json").write_text(json.dumps(jobs))
    pairing = pair_up(truths("a"), find_candidates(tmp_path))
    texts = [pairing.pairs[0].reason, *pairing.notes, *(text for entry in pairing.unmatched for text in entry.values())]
    assert not [text for text in texts if {"\x1b", "\u202e", "\n", "\r"} & set(text)]
    assert "\ufffd[31mred \ufffddrawkcab next" in pairing.pairs[0].reason
    assert pairing.unmatched[0] == {
        "prediction": "job p2\ufffd[31m", "reason": "no ground truth for the name(s) stray\ufffd",
    }  # fmt: skip
    assert len(pairing.unmatched[1]["reason"]) == 2000


def test_no_predictions_leave_every_case_missing_and_no_folder_is_an_error(tmp_path: Path):
    pairing = pair_up(truths("a"), find_candidates(tmp_path))
    assert pairing.pairs[0].status == "missing"
    assert "the folder holds no masks" in pairing.notes[0]
    with pytest.raises(AutopetError, match="no such folder"):
        find_candidates(tmp_path / "nowhere")


def test_links_are_refused_and_a_linked_root_is_not(tmp_path: Path):
    secret = write_mask(tmp_path / "gt" / "a.mha")
    plain = tmp_path / "plain"
    write_mask(plain / "b.mha")
    os.symlink(secret, plain / "a.mha")
    os.symlink(plain, tmp_path / "input")
    pairing = pair_up(truths("a", "b"), find_candidates(tmp_path / "input"))
    assert [pair.status for pair in pairing.pairs] == ["refused", "found"]
    assert "a.mha is a link" in pairing.pairs[0].reason


def test_linked_output_folder_and_paths_that_climb_are_refused(tmp_path: Path):
    write_mask(tmp_path / "gt" / "a.mha")
    root = tmp_path / "input"
    climbing = job("p2", "b.mha")
    for key in ("socket", "interface"):
        climbing["outputs"][1][key] = {"relative_path": "images/../../../../gt"}
    platform(root, [job("p1", "a.mha"), climbing], files=0)
    (root / "p1" / "output" / "images").mkdir(parents=True)
    os.symlink(tmp_path / "gt", root / "p1" / "output" / OUTPUT)
    pairing = pair_up(truths("a", "b"), find_candidates(root))
    assert [pair.status for pair in pairing.pairs] == ["refused", "refused"]
    assert "is a link" in pairing.pairs[0].reason
    assert "leaves the job's folder" in pairing.pairs[1].reason


def test_headers_that_take_voxels_from_another_file_are_refused(tmp_path: Path):
    header = write_mask(tmp_path / "good.mha").read_bytes().split(b"ElementDataFile")[0]
    thefts = {
        "a": b"ElementDataFile = ../gt/a.mha\n",
        "b": b"Comment = ElementDataFile = LOCAL\nElementDataFile = x.raw\n",
        "c": b"elementdatafile = LOCAL\nElementDataFile = x.raw\n",
        "d": b"",
    }
    for name, line in thefts.items():
        (tmp_path / f"{name}.mha").write_bytes(header + line)
    nifti = bytearray(gzip.decompress(write_mask(tmp_path / "n.nii.gz").read_bytes()))
    nifti[344:348] = b"ni1\0"
    (tmp_path / "n.nii.gz").write_bytes(gzip.compress(bytes(nifti)))
    (tmp_path / "o.mhd").write_bytes(header + thefts["a"])
    (tmp_path / "p.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    pairing = pair_up(truths(*"abcdnop", "good"), find_candidates(tmp_path))
    by_status = {pair.truth.case: pair.status for pair in pairing.pairs}
    assert by_status == {**dict.fromkeys("abcdnop", "refused"), "good": "found"}


def test_ground_truth_from_a_cohort(tmp_path: Path):
    columns = ("case", "patient_id", "folder", "status", "lesion_voxels")
    rows = [
        ("b", "P2", "P2/s", "converted", "5"),
        ("a", "P1", "P1/s", "converted", "0"),
        ("c", "P3", "P3/s", "converted", ""),
    ]
    rows.append(("d", "P4", "", "failed", ""))
    write_table(tmp_path / "prep.csv", [dict(zip(columns, row, strict=True)) for row in rows], columns)
    found = find_truths(tmp_path)
    assert [truth.case for truth in found] == ["a", "b"]  # c has no segmentation, d was not converted
    assert found[0].mask == tmp_path / "P1" / "s" / "SEG.nii.gz"
    assert found[0].pet == tmp_path / "P1" / "s" / "SUV.nii.gz"


def test_ground_truth_from_a_plain_folder(tmp_path: Path):
    write_mask(tmp_path / "gt" / "b.mha")
    write_mask(tmp_path / "gt" / "a.nii.gz")
    pet = write_mask(tmp_path / "pet" / "a.mha")
    assert [(t.case, t.pet) for t in find_truths(tmp_path / "gt", images=tmp_path / "pet")] == [("a", pet), ("b", None)]
    write_mask(tmp_path / "gt" / "a.mha")
    with pytest.raises(AutopetError, match=r"two images for one case, a\.mha and a\.nii\.gz"):
        find_truths(tmp_path / "gt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AutopetError, match="no ground truth found"):
        find_truths(tmp_path / "empty")


def test_selection_of_cases():
    assert [truth.case for truth in select_truths(truths("a", "b"), ["b"])] == ["b"]
    with pytest.raises(AutopetError, match="no ground truth for case 'x'"):
        select_truths(truths("a"), ["a", "x"])
    with pytest.raises(AutopetError, match="is empty"):
        select_truths(truths("a"), [])


def test_surrogates_in_jobs_are_replaced(tmp_path: Path):
    jobs = [job("p1", "a"), job("p2", "x\ud800"), job("p3", "b", status="Failed") | {"error_message": "no \udcff"}]
    root = platform(tmp_path, jobs)
    pairing = pair_up(truths("a", "b"), find_candidates(root))
    for text in (*pairing.notes, *(pair.reason for pair in pairing.pairs), str(pairing.unmatched)):
        text.encode("utf-8")
    assert "x\N{REPLACEMENT CHARACTER}" in pairing.notes[0]
