"""Images that arrive by C-STORE: whole, once, from whom they may come, and within limits."""

import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

import pydicom
import pytest
from pydicom.uid import EncapsulatedPDFStorage, generate_uid

from pipeline.archive.receiver import NOT_UNDERSTOOD, OUT_OF_RESOURCES, Limits, Receiver, receiving
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from tests.archive.conftest import OWN, PLANTED, SENDER, send, stored
from tests.conftest import REPOSITORY, project_environment
from tests.flows.conftest import free_port
from tests.waiting import wait_until


def test_each_image_is_stored_once_and_whole(receive, images, tmp_path, caplog):
    caplog.set_level("DEBUG")
    port = receive()
    assert send(port, images) == [0] * 5
    assert send(port, images[:2]) == [0] * 2
    assert stored(tmp_path / "inbox") == stored(tmp_path / "out")
    first = next((tmp_path / "inbox").iterdir())
    assert first.stat().st_mode & 0o077 == 0
    assert read_radiograph(first).view in ("AP", "PA")
    assert PLANTED.split("^")[0] not in caplog.text


def test_only_named_senders_and_image_classes_are_accepted(receive, images, tmp_path):
    port = receive()
    assert send(port, images[:1], sender="STRANGER") is None
    assert send(port, images[:1], called="ANOTHER") is None

    def to_pdf(dataset):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage

    assert send(port, images[:1], change=to_pdf) is None
    assert stored(tmp_path / "inbox") == {}


def test_names_of_files_are_not_made_of_what_is_sent(receive, images, tmp_path):
    port = receive()

    def to_path(dataset):
        dataset.SOPInstanceUID = "../../etc/x"

    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        assert send(port, images[:1], change=to_path)[0] in (NOT_UNDERSTOOD, None)
    assert not list((tmp_path / "inbox").rglob("*"))


def test_limits(receive, images, tmp_path, caplog):
    port = receive(Limits(images_per_minute=3))
    assert send(port, images) == [0, 0, 0, OUT_OF_RESOURCES, OUT_OF_RESOURCES]
    assert "ARCHIVE: more than 3 images in a minute" in caplog.text
    small = receive(Limits(image_bytes=images[0].stat().st_size - 100), tmp_path / "small")
    assert send(small, images[:1]) == [NOT_UNDERSTOOD]
    assert stored(tmp_path / "small") == {}


def test_a_minute_later_a_sender_may_send_again(tmp_path):
    now = [0.0]
    receiver = Receiver(tmp_path, Limits(images_per_minute=1), clock=lambda: now[0])
    assert receiver.store("a", "1.2.3", lambda: b"x") == 0
    assert receiver.store("a", "1.2.4", lambda: b"x") == OUT_OF_RESOURCES
    assert receiver.store("b", "1.2.4", lambda: b"x") == 0
    now[0] = 61
    assert receiver.store("a", "1.2.5", lambda: b"x") == 0


def test_an_endless_message_ends_its_connection(receive, images, tmp_path, caplog):
    """The header of a message may promise 4 GiB; the library would read all of it into memory."""
    port = receive()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + bytes(1000))
        assert connection.recv(1) == b""
    assert "a message that is too long" in caplog.text
    assert send(port, images[:1]) == [0]


def test_a_full_disk_loses_nothing(receive, images, small_disk):
    folder = small_disk / "inbox"
    folder.mkdir()
    (small_disk / "full").write_bytes(bytes(2**20 - 20_000))
    port = receive(folder=folder)
    assert OUT_OF_RESOURCES in send(port, images)
    (small_disk / "full").unlink()
    assert send(port, images) == [0] * 5
    assert len(stored(folder)) == 5


def test_titles_and_addresses_that_cannot_be_used(tmp_path):
    for title, senders, host, message in (
        (OWN, [], "127.0.0.1", "no sender is accepted"),
        ("A" * 17, [SENDER], "127.0.0.1", "1 to 16 ASCII characters"),
        (OWN, ["x\n"], "127.0.0.1", "1 to 16 ASCII characters"),
        (OWN, [SENDER], "203.0.113.1", "203.0.113.1:0: cannot be listened on"),
    ):
        with pytest.raises(UserError, match=message), receiving(Receiver(tmp_path), title, senders, host, 0):
            pass


@pytest.fixture
def command(tmp_path):
    """Start `python -m flows.receive`; return a function that does, and ends it."""
    started = []

    def start(port, log):
        arguments = [sys.executable, "-m", "flows.receive", "inbox", "--from", SENDER, "--port", str(port)]
        environment = project_environment(tmp_path, PYTHONPATH=str(REPOSITORY))
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_receiver_that_is_killed_again_and_again_loses_nothing(command, images, tmp_path):
    """The sender repeats each image until it is told that it is stored."""
    port, chance = free_port(), random.Random(3)
    datasets = [pydicom.dcmread(path) for path in images]
    for n in range(40):
        dataset = datasets[n % 5]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(tmp_path / "out" / f"{n}.dcm")
    for path in images:
        path.unlink()
    waiting = sorted((tmp_path / "out").glob("*.dcm"))
    with (tmp_path / "log").open("w") as log:
        for _ in range(4):
            process = command(port, log)
            wait_until(lambda: listens(port), process=process)
            end = time.monotonic() + chance.uniform(0.1, 0.6)
            while waiting and time.monotonic() < end:
                if send(port, waiting[:1]) == [0]:
                    waiting.pop(0)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        process = command(port, log)
        wait_until(lambda: listens(port), process=process)
        assert send(port, waiting) == [0] * len(waiting)
        process.terminate()
        process.wait(30)
    assert stored(tmp_path / "inbox") == stored(tmp_path / "out")
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text
    assert PLANTED.split("^")[0] not in text
    assert f"PNEUMOFLOW receives at 127.0.0.1:{port} from ARCHIVE, into inbox" in text


# pynetdicom brings commands of the same names.
DCMTK = {name: shutil.which(name, path="/usr/bin:/usr/local/bin") for name in ("storescu", "echoscu")}


@pytest.mark.skipif(not DCMTK["storescu"], reason="dcmtk is not installed")
def test_dcmtk_sends(receive, images, tmp_path):
    port = receive()

    def call(program, sender, *files):
        command = [DCMTK[program], "--aetitle", sender, "--call", OWN, "127.0.0.1", str(port), *map(str, files)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert call("storescu", SENDER, "--propose-jpeg8", *images) == 0
    assert stored(tmp_path / "inbox") == stored(tmp_path / "out")
    assert call("storescu", "STRANGER", images[0]) != 0
    assert call("echoscu", SENDER) == 0
