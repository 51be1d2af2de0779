"""The table of patients from DICOM headers: no id leaves them, and one patient's studies stay together."""

import stat
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from pipeline.data.annotations import GROUPS, IMAGES
from pipeline.data.checks import take_inventory
from pipeline.data.parallel import Workers
from pipeline.errors import UserError
from pipeline.jobs.patients import SALT, write_patients

SECRET = "Sekret-{}"


@pytest.fixture
def people(rsna):
    """Give every two studies one PatientID, the last four none, and remove the table; return the studies in order."""
    (rsna / GROUPS).unlink()
    files = sorted((rsna / IMAGES).glob("*.dcm"))
    for number, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f" {SECRET.format(number // 2)} " if number < len(files) - 4 else ""
        dataset.IssuerOfPatientID = "A" if number != 1 else "B"
        dataset.save_as(path)
    return [path.stem for path in files]


def test_studies_of_one_patient_get_one_hash(rsna, people, tmp_path):
    said = write_patients(rsna, Workers(1), 60)
    table = pd.read_csv(rsna / GROUPS, dtype=str).set_index("patientId")["groupId"]
    assert table[people[2]] == table[people[3]]
    assert table[people[0]] != table[people[1]], "another hospital issued this id"
    assert len(set(table[people[-4:]])) == 4
    patients = 28 + 1 + 4
    assert said == f"60 studies of {patients} patients; 4 studies have no PatientID, and count as patients of their own"
    assert table.nunique() == patients
    assert "Sekret" not in (rsna / GROUPS).read_text() + said
    assert stat.S_IMODE(SALT.stat().st_mode) == 0o600
    assert not take_inventory(rsna).annotations.problems
    before = (rsna / GROUPS).read_bytes()
    with pytest.raises(UserError, match="is there already"):
        write_patients(rsna, Workers(1), 60)
    (rsna / GROUPS).unlink()
    write_patients(rsna, Workers(1), 60)
    assert (rsna / GROUPS).read_bytes() == before
    (rsna / GROUPS).unlink()
    write_patients(rsna, Workers(1), 60, tmp_path / "other")
    assert not set(pd.read_csv(rsna / GROUPS)["groupId"]) & set(table)


def test_a_placeholder_is_no_patient(rsna, people):
    for path in sorted((rsna / IMAGES).glob("*.dcm"))[:40]:
        dataset = pydicom.dcmread(path)
        dataset.PatientID = dataset.IssuerOfPatientID = "ANON"
        dataset.save_as(path)
    with pytest.raises(UserError, match="40 of 60 studies have one PatientID, a placeholder"):
        write_patients(rsna, Workers(1), 60)
    assert not (rsna / GROUPS).exists()


def test_unreadable_files_and_a_damaged_secret(rsna, people):
    (rsna / IMAGES / f"{people[0]}.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 99)
    assert "5 studies have no PatientID" in write_patients(rsna, Workers(1), 60)
    (rsna / GROUPS).unlink()
    Path(SALT).write_text("short")
    with pytest.raises(UserError, match="patient_salt: damaged"):
        write_patients(rsna, Workers(1), 60)
