from __future__ import annotations

from pathlib import Path

from data_prep.metadata import fill_from_metadata


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
