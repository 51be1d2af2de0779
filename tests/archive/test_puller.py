"""Images fetched by DICOMweb, from a real Orthanc and from services that answer what they should not."""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
from datetime import date

import pydicom
import pytest
from pydicom.uid import ComputedRadiographyImageStorage, generate_uid

from pipeline.archive.puller import pull
from pipeline.archive.receiver import Limits, Receiver
from tests.archive.conftest import PLANTED, stored
from tests.conftest import REPOSITORY, project_environment
from tests.waiting import wait_until

TODAY = date(2026, 3, 7)


def test_new_images_come_once(orthanc, images, tmp_path, caplog):
    caplog.set_level("DEBUG", "pipeline")
    _, base, ask = orthanc
    if "dicom-web" not in ask("/plugins"):
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    for path, day, modality in zip(images, ("20260307", "20260306", "20260305", "20260307", "20260307"),
                                   ("CR", "DX", "CR", "MR", "CR"), strict=True):  # fmt: skip
        dataset = pydicom.dcmread(path)
        dataset.StudyDate, dataset.Modality = day, modality
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.save_as(path)
        if path != images[4]:
            ask("/instances", path.read_bytes())
    receiver = Receiver(tmp_path / "inbox")
    receiver.folder.mkdir()
    assert pull(receiver, f"{base}/dicom-web/", 2, TODAY) == 2
    assert pull(receiver, f"{base}/dicom-web", 2, TODAY) == 0
    ask("/instances", images[4].read_bytes())
    assert pull(receiver, f"{base}/dicom-web", 2, TODAY) == 1
    wanted = {pydicom.dcmread(images[n]).SOPInstanceUID: pydicom.dcmread(images[n]).PixelData for n in (0, 1, 4)}
    assert stored(tmp_path / "inbox") == wanted
    assert PLANTED.split("^")[0] not in caplog.text


class Service:
    """A DICOMweb service that finds one image, and answers a request for it with ``status``, ``kind`` and ``body``."""

    def __init__(self):
        self.status, self.kind, self.body = 200, 'multipart/related; boundary="b"', b""
        self.instances, self.asked, self.broken = ["1.2.3"], [], ""
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                service.asked.append(self.path)
                status, kind, body = service.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client has closed the connection
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/dicom-web"

    def answer(self, path):
        if self.broken and path.endswith(self.broken):
            return 500, "text/plain", b""
        if "/instances/" in path:
            return self.status, self.kind, self.body
        tags, found = {"0020000D": "1.2", "0020000E": "1.3"}, [{}]
        if "/instances" in path:
            found = [{"00080018": one, "00080016": str(ComputedRadiographyImageStorage)} for one in self.instances]
        elif "Modality=CR" not in path:
            return 204, "application/dicom+json", b""
        found = [
            {tag: value and {"vr": "UI", "Value": [value]} for tag, value in (tags | one).items()} for one in found
        ]
        if "offset=" in path and "offset=0" not in path:
            return 204, "application/dicom+json", b""
        return 200, "application/dicom+json", json.dumps(found).encode()


@pytest.fixture
def service():
    made = Service()
    yield made
    made.server.shutdown()


@pytest.fixture
def receiver(tmp_path):
    made = Receiver(tmp_path / "inbox", Limits(image_bytes=1000))
    made.folder.mkdir()
    return made


@pytest.mark.parametrize("boundary", ["b", '"b"', "b; start=x"])
def test_the_file_is_the_one_part(service, receiver, tmp_path, boundary):
    content = b"\0\1\r\n\r\n--\r\n\2"
    service.kind = f"multipart/related; type=x; boundary={boundary}"
    service.body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--"
    assert pull(receiver, service.address, 1, TODAY) == 1
    (path,) = (tmp_path / "inbox").iterdir()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 500}, "500"),
        ({"kind": "application/dicom"}, "the answer has no parts"),
        ({"body": b"--b\r\nno empty line\r\n--b--"}, "the answer has no file"),
        ({"body": b"--b\r\n\r\n" + bytes(3 * 2**20)}, "more than 1000 bytes"),
        ({"body": b"--b\r\na: b\r\n\r\n" + bytes(1001) + b"\r\n--b--"}, "an image of more than 1000 bytes"),
    ],
)
def test_answers_that_cannot_be_used_bring_nothing(service, receiver, tmp_path, caplog, change, said):
    for name, value in change.items():
        setattr(service, name, value)
    assert pull(receiver, service.address, 1, TODAY) == 0
    assert said in caplog.text
    assert not list((tmp_path / "inbox").iterdir())


def test_a_uid_that_is_none_does_not_become_an_address(service, receiver):
    service.instances = ["../../../secrets", 7, None, {"a": 1}]
    assert pull(receiver, service.address, 1, TODAY) == 0
    assert not any("secrets" in path for path in service.asked)


def test_one_image_that_the_archive_cannot_give_holds_up_no_other(service, receiver, caplog):
    service.instances, service.broken = ["1.2.3", "1.2.4", "1.2.5"], "1.2.4"
    service.body = b"--b\r\na: b\r\n\r\nfile\r\n--b--"
    assert pull(receiver, service.address, 1, TODAY) == 2
    assert "an image that cannot be fetched (500" in caplog.text
    service.broken = ""
    assert pull(receiver, service.address, 1, TODAY) == 1


def test_the_limit_of_a_minute_ends_a_look(service, tmp_path):
    now = [0.0]
    receiver = Receiver(tmp_path, Limits(images_per_minute=2), clock=lambda: now[0])
    service.instances = [f"1.2.{n}" for n in range(5)]
    service.body = b"--b\r\na: b\r\n\r\nfile\r\n--b--"
    for wanted in (2, 2, 1):
        assert pull(receiver, service.address, 1, TODAY) == wanted
        now[0] += 61
    assert sum("/instances/" in path for path in service.asked) == 5


def test_a_password_in_an_address_stays_out_of_the_log(receiver, caplog):
    pull(receiver, "http://me:GeHeim1@127.0.0.1:9/dicom-web", 1, TODAY)
    assert "GeHeim1" not in caplog.text


def test_an_archive_that_is_away_is_asked_again_later(receiver, service, caplog):
    assert pull(receiver, "http://127.0.0.1:9/dicom-web", 1, TODAY) == 0
    assert "it is asked again later" in caplog.text
    started = time.monotonic()
    service.status = 503
    assert pull(receiver, service.address, 1, TODAY) == 0
    assert time.monotonic() - started < 5


def test_the_command_fetches_until_stopped(service, tmp_path):
    service.body = b"--b\r\na: b\r\n\r\nfile\r\n--b--"
    command = [sys.executable, "-m", "flows.receive", "inbox", "--pull", service.address, "--every", "1"]
    environment = project_environment(tmp_path, PYTHONPATH=str(REPOSITORY))
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=stderr)
    try:
        wait_until(lambda: "1 images from" in log.read_text(), process=process)
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert list((tmp_path / "inbox").glob("*.dcm"))
    assert "Traceback" not in log.read_text()
