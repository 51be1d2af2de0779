"""A receiver, and what its tests send."""

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE

from pipeline.archive.receiver import Limits, Receiver, receiving
from pipeline.data.annotations import IMAGES
from tests.waiting import wait_until

OWN, SENDER = "PNEUMOFLOW", "ARCHIVE"
PLANTED = "Lovelace^Ada"


DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")


@pytest.fixture
def images(sample, tmp_path):
    """Make files of five images with instance UIDs of their own and a name; return their paths."""
    folder = tmp_path / "out"
    folder.mkdir()
    paths = []
    for path in sorted((sample / IMAGES).glob("*.dcm"))[:5]:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.PatientName = PLANTED
        dataset.save_as(folder / path.name)
        paths.append(folder / path.name)
    return paths


@pytest.fixture
def receive(tmp_path):
    """Start a receiver; return its port."""
    with contextlib.ExitStack() as stack:
        yield lambda limits=None, folder=None, senders=(SENDER,): stack.enter_context(
            receiving(Receiver(folder or tmp_path / "inbox", limits or Limits()), OWN, senders, "127.0.0.1", 0)
        )


def send(port, paths, sender=SENDER, called=OWN, change=lambda dataset: None):
    """Send files as an archive does; return the status of each, or None if the connection was not accepted."""
    datasets = [pydicom.dcmread(path) for path in paths]
    entity = AE(ae_title=sender)
    for dataset in datasets:
        change(dataset)
        entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    connection = entity.associate("127.0.0.1", port, ae_title=called)
    if not connection.is_established:
        return None
    try:
        return [connection.send_c_store(dataset).get("Status") for dataset in datasets]
    finally:
        connection.release()


def stored(folder):
    """Return the pixels of the files in a folder by their instance UIDs."""
    found = [pydicom.dcmread(path) for path in sorted(Path(folder).glob("*.dcm"))]
    assert len({dataset.SOPInstanceUID for dataset in found}) == len(found)
    return {dataset.SOPInstanceUID: dataset.PixelData for dataset in found}


@pytest.fixture
def orthanc(tmp_path):
    """Start Orthanc on loopback; skip without it; yield its DICOM port and a function that asks its REST interface."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        dicom, http = (one.getsockname()[1] for one in sockets)
    (tmp_path / "orthanc.json").write_text(json.dumps({
        "Name": "test", "StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db"),
        "DicomAet": "ORTHANC", "DicomPort": dicom, "HttpPort": http, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomCheckCalledAet": True, "DicomAlwaysAllowStore": True,
        "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [], "DicomWeb": {"Enable": True},
    }))  # fmt: skip
    log = (tmp_path / "orthanc.log").open("w")
    process = subprocess.Popen([str(ORTHANC), tmp_path / "orthanc.json"], stdout=log, stderr=log)
    base = f"http://127.0.0.1:{http}"

    def ask(place, body=None):
        with urllib.request.urlopen(urllib.request.Request(base + place, body), timeout=30) as answer:
            return json.loads(answer.read())

    def answers():
        with contextlib.suppress(OSError):
            return ask("/system")

    try:
        wait_until(answers, process=process)
        yield dicom, base, ask
    finally:
        process.terminate()
        process.wait(30)
