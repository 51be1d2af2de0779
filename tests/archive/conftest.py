"""A receiver, and what its tests send."""

import contextlib
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE

from pipeline.archive.receiver import Limits, Receiver, receiving
from pipeline.data.annotations import IMAGES

OWN, SENDER = "PNEUMOFLOW", "ARCHIVE"
PLANTED = "Lovelace^Ada"


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
