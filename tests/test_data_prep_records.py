from __future__ import annotations

import pytest

from autopet.errors import AutopetError
from autopet.folders import whole_folder
from data_prep.records import COLUMNS, reason_of, row_of, safe_name


def test_safe_name():
    assert safe_name("A/../b c") == "A-b-c"
    assert safe_name("../..") == "case"


def test_row_has_every_column():
    row = row_of("a", status="failed")
    assert tuple(row) == COLUMNS
    assert (row["case"], row["status"], row["tracer"]) == ("a", "failed", "")


def test_reason_names_the_type_of_unexpected_errors():
    assert reason_of(AutopetError("no\nCT")) == "no CT"
    assert reason_of(ZeroDivisionError("zero")) == "ZeroDivisionError: zero"


def test_folder_is_whole_or_as_before(tmp_path):
    folder = tmp_path / "case"
    with whole_folder(folder) as part:
        (part / "a").write_text("1")
    with pytest.raises(FileNotFoundError), whole_folder(folder) as part:
        (part / "absent" / "a").write_text("2")
    assert (folder / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
