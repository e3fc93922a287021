from __future__ import annotations

import time
from pathlib import Path

import pytest

from data_prep.metadata import compact_date, fill_from_metadata

NBIA = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,Study Date,"
    "Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,File Size,File Location,"
    "Download Timestamp"
)
PSMA = "Subject ID,Study Date,age,manufacturer_model_name,pet_radionuclide,ct_contrast_agent"


def filled(source: Path, text: str, **row: str) -> dict[str, str]:
    (source / "metadata.csv").write_text(text)
    found = {"patient_id": "A", "study_uid": "1.2", "tracer": "", "centre": "", "diagnosis": "", **row}
    fill_from_metadata([found], source)
    return found


def test_study_goes_before_patient(tmp_path):
    row = filled(tmp_path, "Patient_ID,Study UID,Tracer,Site\nA,1.9,PSMA,LMU\nX,1.2,FDG,UKT\n")
    assert (row["tracer"], row["centre"], row["diagnosis"]) == ("FDG", "UKT", "")


def test_equivocal_patient_changes_nothing(tmp_path):
    row = filled(tmp_path, "PatientID,Tracer,Centre\nA,PSMA,LMU\nA,FDG,LMU\n", tracer="FDG")
    assert (row["tracer"], row["centre"]) == ("FDG", "LMU")


def test_unreadable_table_is_not_used(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "metadata.csv").write_bytes(b"PatientID,Tracer\nA,\xff\xfe\n")
    assert filled(tmp_path, "PatientID,Tracer\nA,FDG\n")["tracer"] == "FDG"
    assert "is not used" in " ".join(capsys.readouterr().err.split())


def series(collection: str, patient: str, study: str, date: str, modality: str) -> str:
    """A row as the NBIA Data Retriever writes it."""
    return (
        f"1.9.{modality},{collection},null,doi,{patient},{study},PET-CT,{date},desc,SIEMENS,{modality},Image Storage,"
        f"1.2.840,1,1 MB,./{collection}/{patient}/x,2024-01-01T00:00:00"
    )


def row(**known: str) -> dict[str, str]:
    empty = dict.fromkeys(("patient_id", "study_uid", "study_date", "tracer", "centre", "diagnosis", "warnings"), "")
    return {**empty, **known}


def person(filled: dict[str, str]) -> tuple[str, str, str]:
    return filled["tracer"], filled["centre"], filled["diagnosis"]


def test_clinical_table_of_the_fdg_collection(tmp_path):
    table = [f"{NBIA},diagnosis,age,sex"]
    for modality in ("CT", "PT", "SEG"):  # one row per series, Excel wrote the dates
        table.append(series("FDG-PET-CT-Lesions", "PETCT_1", "1.1", "3/4/2003", modality) + ",MELANOMA,060Y,M")
        table.append(series("FDG-PET-CT-Lesions", "PETCT_1", "1.2", "11/23/2004", modality) + ",NEGATIVE,061Y,M")
    (tmp_path / "Clinical Metadata FDG PET_CT Lesions.csv").write_text("\n".join(table), "utf-8-sig")
    rows = [
        row(patient_id="PETCT_1", study_uid="1.1", tracer="FDG"),
        row(patient_id="PETCT_1", study_uid="other", study_date="20041123"),
        row(patient_id="PETCT_1", study_uid="other", study_date="20050101"),
    ]
    fill_from_metadata(rows, tmp_path)
    assert [person(filled) for filled in rows] == [
        ("FDG", "UKT", "MELANOMA"),
        ("FDG", "UKT", "NEGATIVE"),
        ("FDG", "UKT", ""),
    ]
    assert [filled["warnings"] for filled in rows[:2]] == ["", ""]
    assert "2 values of diagnosis, none is taken: MELANOMA" in rows[2]["warnings"]


def test_psma_tables_say_collection_and_leave_dicom_alone(tmp_path):
    deep = tmp_path / "manifest" / "deep"
    deep.mkdir(parents=True)
    (deep / "metadata.csv").write_text(
        f"{NBIA}\n{series('PSMA-PET-CT-Lesions', 'PSMA_1', '2.1', '01-02-2018', 'PT')}\n"
    )
    (tmp_path / "psma_metadata.csv").write_text(f"{PSMA}\nPSMA_2,2018-01-02,71,Biograph 64,18F,yes\n")
    rows = [row(patient_id="PSMA_1", study_uid="2.1"), row(patient_id="PSMA_2"), row(patient_id="PSMA_3")]
    fill_from_metadata(rows, tmp_path)
    assert [person(filled) for filled in rows] == [("PSMA", "LMU", ""), ("PSMA", "LMU", ""), ("", "", "")]


def test_collection_yields_to_table_and_dicom(tmp_path):
    (tmp_path / "FDG-PET-CT-Lesions" / "A").mkdir(parents=True)
    (tmp_path / "people.csv").write_text("patient_id,centre\nA,B\n")
    known = row(patient_id="A", tracer="PSMA", warnings="earlier")
    fill_from_metadata([known], tmp_path)
    assert person(known) == ("PSMA", "B", "")
    assert known["warnings"].startswith("earlier | tracer is PSMA, but its TCIA collection is one of FDG")


def test_table_against_dicom_is_a_warning_and_not_said_twice(tmp_path):
    (tmp_path / "x.csv").write_text("StudyInstanceUID,Radiopharmaceutical\n1.2,68Ga-PSMA-11\n1.3,fdg\n")
    rows = [row(study_uid="1.2", tracer="FDG"), row(study_uid="1.3", tracer="FDG")]
    for _ in range(2):
        fill_from_metadata(rows, tmp_path)
        assert [filled["tracer"] for filled in rows] == ["PSMA", "FDG"]
    assert rows[0]["warnings"] == "tracer is PSMA in x.csv, which is taken, but FDG in DICOM; check the table"
    assert rows[1]["warnings"] == ""


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Patient ID;Centre\nA;Tübingen\n", "latin-1"),
        ("Patient ID;Centre\r\nA;Tübingen\r\n", "utf-8-sig"),
        ("Patient ID\tCentre\r\nA\tTübingen\r\n", "utf-16"),
        ('"Patient ID","Centre"\n"A","Tübingen"\n', "utf-8"),
    ],
)
def test_encodings_and_delimiters(tmp_path, text, encoding):
    (tmp_path / "people.CSV").write_bytes(text.encode(encoding))
    found = row(patient_id="A")
    fill_from_metadata([found], tmp_path)
    assert found["centre"] == "Tübingen"


def test_other_tables_and_our_own_are_left_alone(tmp_path, capsys):
    (tmp_path / "prep.csv").write_text("patient_id,tracer\nA,PSMA\n")
    (tmp_path / "features.csv").write_text("patient_id,volume\nA,3\n")
    (tmp_path / "words.csv").write_bytes(b"\xe9,tracer\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("patient_id,tracer\nA\nA,FDG,more\n\n")
    found = row(patient_id="A")
    fill_from_metadata([found], tmp_path)
    assert person(found) == ("FDG", "", "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("20040309", "20040309"), ("2004-03-09", "20040309"), ("03-09-2004", "20040309"), ("3/9/2004", "20040309"),
        ("2004-03-09T10:11:12", "20040309"), ("", ""), ("March 2004", ""), ("200403", ""),
        ("13-03-2004", ""), ("20041301", ""),
    ],
)  # fmt: skip
def test_dates(text, date):
    assert compact_date(text) == date


def test_a_thousand_studies_are_quick(tmp_path):
    lines = [
        series("FDG-PET-CT-Lesions", f"P{i}", f"1.{i}", "01-02-2003", m) for i in range(1000) for m in ("CT", "PT")
    ]
    (tmp_path / "metadata.csv").write_text("\n".join([NBIA, *lines]))
    rows = [row(patient_id=f"P{i}", study_uid=f"1.{i}") for i in range(1000)]
    began = time.process_time()
    fill_from_metadata(rows, tmp_path)
    assert time.process_time() - began < 2
    assert {filled["centre"] for filled in rows} == {"UKT"}
