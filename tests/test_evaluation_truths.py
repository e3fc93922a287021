"""Tracer and centre of the ground truth, from a cohort's table or a table beside plain masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import write_image
from autopet.volume import Volume
from evaluation.truths import find_truths


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", Volume(np.zeros((2, 3, 4), np.uint8)))
    return tmp_path


def test_a_cohort_says_tracer_and_centre(cohort: list[Case]):
    found = find_truths(cohort[0].folder.parent)
    assert [(truth.case, truth.tracer, truth.centre) for truth in found[:2]] == [
        ("case00", "FDG", "A"),
        ("case01", "PSMA", "A"),
    ]


def test_a_table_beside_masks_says_tracer_and_centre(masks: Path):
    assert [(truth.tracer, truth.centre) for truth in find_truths(masks)] == [("", ""), ("", "")]
    (masks / "cases.csv").write_text("centre,case,tracer\nLMU,b,PSMA\n,a,FDG\nUKT,elsewhere,FDG\n")
    assert [(truth.case, truth.tracer, truth.centre) for truth in find_truths(masks)] == [
        ("a", "FDG", ""),
        ("b", "PSMA", "LMU"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case,tracer\na,FDG\nb,FDG\n", "expected the columns case, tracer, centre, centre not found"),
        ("", "expected the columns"),
        ("case,tracer,centre\na,FDG,x\n", r"does not name the case b \(1 such masks\)"),
        ("case,tracer,centre\na,FDG,x\na,FDG,y\nb,FDG,x\n", "every case once, found 3 rows for 2 cases"),
    ],
)
def test_tables_that_cannot_be_used_are_errors(masks: Path, text: str, words: str):
    (masks / "cases.csv").write_text(text)
    with pytest.raises(AutopetError, match=words):
        find_truths(masks)


def test_a_table_in_another_encoding_is_an_error(masks: Path):
    (masks / "cases.csv").write_bytes(b"case,tracer,centre\na,FDG,T\xfcbingen\nb,FDG,\n")
    with pytest.raises(AutopetError, match=r"cases\.csv: cannot be read as CSV"):
        find_truths(masks)
