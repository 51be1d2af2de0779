"""`pneumoflow serve`, as a client sees it: a real server, and requests of all kinds."""

import base64
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
import torch

from pipeline.data.annotations import IMAGES
from pipeline.data.reader import Reader
from pipeline.data.settings import Preprocessing
from pipeline.delivery.model_config import FORMAT_VERSION, ModelConfig
from pipeline.delivery.model_file import save_model
from pipeline.delivery.predictor import Predictor
from pipeline.delivery.served import RequestError, ServedModel
from pipeline.delivery.server import serve
from pipeline.delivery.serving_limits import ServingLimits, read_limits
from pipeline.detection.retinanet import RetinaNet
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.submission import prediction_string
from tests.conftest import REPOSITORY, project_environment
from tests.detection.settings import POST_PROCESSING, TINY
from tests.dicom.odd_decoders import CRASHING, HUNGRY, SLOW, decode
from tests.waiting import wait_until

SECRET = "Lovelace"
JSON, CSV = "application/json", "text/csv"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Save a model that was never trained; return its folder."""
    torch.manual_seed(0)
    layers = replace(TINY, anchor_shapes=((1.0, 1.0),))
    post_processing = replace(POST_PROCESSING, score_thresh=0.001, detections_per_img=5)
    config = ModelConfig(
        format_version=FORMAT_VERSION, classes=("lung opacity",), architecture=layers,
        preprocessing=Preprocessing(128, 2.0, (2, 2), ("clahe",)), postprocessing=post_processing,
        operating_threshold=0.001, best_epoch=0, val_map=0.0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("untrained") / "models"
    save_model(folder, RetinaNet(layers), config)
    return folder


@pytest.fixture(scope="module")
def study(sample):
    return sorted((sample / IMAGES).glob("*.dcm"))[0]


@pytest.fixture(scope="module")
def wanted(model, study):
    (found,) = Predictor(model, torch.device("cpu")).predict([read_radiograph(study).levels])
    return prediction_string(found.boxes, found.scores)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """Start the command in a process of its own; yield its port and the process."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", str(model), "--port", str(port)],
        cwd=folder,
        env=project_environment(folder, PYTHONPATH=str(REPOSITORY), TMPDIR=str(folder)),
        stderr=(folder / "log").open("w"),
    )
    try:
        wait_until(lambda: ping(port) == 200)
        yield port, process
    finally:
        process.terminate()
        process.wait(30)
        log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert SECRET not in log


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ping(port):
    with contextlib.suppress(OSError):
        return ask(port, None, None, "/ping", "GET")[0]


def ask(port, body, kind=JSON, place="/invocations", method="POST", **headers):
    """Return the status and text of the answer; a body that is an iterator is sent in chunks, without its length."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        content = body if body is None or isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body)
        connection.request(method, place, content, {"Content-Type": kind, **headers} if kind else headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def encode(content):
    return base64.b64encode(content).decode()


def split(name, *cells):
    return {"dataframe_split": {"columns": [name], "data": [[cell] for cell in cells]}}


def good(study):
    """Yield the same study in every format."""
    text, pixels = encode(study.read_bytes()), read_radiograph(study).pixels.tolist()
    yield split("dicom", text), JSON
    yield split("image", pixels), JSON + "; charset=UTF-8"
    yield {"dataframe_split": {"columns": ["id", "dicom"], "index": [5], "data": [[7, text]]}, "params": None}, JSON
    yield {"dataframe_records": [{"dicom": text, "image": None}]}, JSON
    yield {"instances": [{"dicom": text}]}, JSON
    yield {"inputs": {"dicom": [text]}}, JSON
    yield f"id,dicom\r\n1,{text}\r\n".encode(), CSV
    yield b"\xef\xbb\xbf" + f'dicom\n"{text}"\n\n'.encode(), CSV + "; charset=utf-8"


def hostile():
    """Yield useless requests: status, body, content type. Each holds the secret word where it can."""
    deep = 100_000
    yield 400, b'{"dataframe_split": ' + b"[" * deep + b"]" * deep + b"}", JSON
    yield 400, b'{"a":' * 2000 + b"1" + b"}" * 2000, JSON
    yield 400, b"[" * 30_000_000, JSON
    for number in (b"1e400", b"1" * 5000, b"-" + b"9" * 30, b"NaN", b"Infinity", b"1.5", b"true", b'"1"', b"null"):
        yield 400, b'{"dataframe_split": {"columns": ["image"], "data": [[[[1, 2], [3, ' + number + b"]]]]}}", JSON
    yield 400, b'{"dataframe_split": {"columns": ["dicom"], "data": [[' + b"1" * 5000 + b"]]}}", JSON
    for body in (b"", b"{", b"[]", b"null", b"7", b'"' + SECRET.encode() + b'"', b"\xff\xfe" * 1000, b"\0", b"{}"):
        yield 400, body, JSON
    for wrong in (
        SECRET,
        None,
        7,
        True,
        [SECRET],
        {SECRET: 1},
        {"columns": SECRET, "data": []},
        {"columns": ["dicom"]},
    ):
        for key in ("dataframe_split", "dataframe_records", "instances", "inputs", SECRET):
            yield 400, {key: wrong}, JSON
    yield 400, {"dataframe_split": {"columns": ["dicom", "dicom"], "data": [["AAAA", "AAAA"]]}}, JSON
    yield 400, {"dataframe_split": {"columns": ["dicom"], "data": [["AAAA", "AAAA"]]}}, JSON
    yield 400, {"dataframe_split": {"columns": ["dicom"], "data": []}}, JSON
    yield 400, {**split("dicom", "AAAA"), "params": {SECRET: 1}}, JSON
    yield 400, {**split("dicom", "AAAA"), "inputs": []}, JSON
    yield 400, split("dicom", *["AAAA"] * 65), JSON
    yield 400, split("other", "AAAA"), JSON
    for cell in ("not base64! " + SECRET, encode(SECRET.encode()), "é" * 8, "", None, 7, 1.5, ["a"], {"a": SECRET}):
        yield 400, split("dicom", cell), JSON
    yield 400, split("dicom", encode(b"\0" * 128 + b"DICM" + b"\xff" * 30_000_000)), JSON
    texts = [["a" * 10_000_000, *["b"] * 1000]]
    images = ([[1, 2], [3]], [], [[]], [[0, 256]], [[-1, 0]], [["a"]], [[[1]]], [[7, 7]], SECRET, 7, {"a": 1}, texts)
    for image in images:
        yield 400, split("image", image), JSON
    for table in (
        b"",
        b"\n\n",
        b"dicom",
        b'dicom\n"AAAA',
        b"other\n" + SECRET.encode(),
        b"dicom,dicom\nA,A",
        b"\xff\n\xfe",
    ):
        yield 400, table, CSV
    yield 400, b"dicom,x\nAAAA\n", CSV
    yield 400, b"dicom\n" + b"AAAA\n" * 65, CSV
    yield 400, b"dicom\n" + b"," * 30_000_000, CSV
    for kind in (None, "", "text/plain", "application/vnd.apache.parquet", JSON + "; charset=latin-1", JSON + ";a=b"):
        yield 415, {"a": SECRET}, kind
    yield 413, b"[" + b"1," * (33 * 2**20) + b"1]", JSON
    yield 413, (b"1" * 2**20 for _ in range(70)), JSON


def require_harmless(text):
    for word in (SECRET, "Traceback", "stack_trace", "site-packages", ".py", str(REPOSITORY), "/tmp", "Error:"):
        assert word not in text, text[:300]
    answer = json.loads(text)
    assert set(answer) == {"error_code", "message"}
    assert len(answer["message"]) < 300


@pytest.mark.slow
def test_answers_in_every_format(server, study, wanted):
    for body, kind in good(study):
        status, text = ask(server[0], body, kind)
        assert status == 200, text
        (row,) = json.loads(text)["predictions"]
        assert row["PredictionString"] == wanted
        assert len(row["boxes"]) == len(row["scores"]) == len(wanted.split()) // 5
    assert ask(server[0], None, None, "/version", "GET")[1]


@pytest.mark.slow
def test_hostile_requests_are_refused_in_one_line(server, study, wanted):
    for number, (status, body, kind) in enumerate(hostile()):
        found, text = ask(server[0], body, kind)
        assert found == status, (number, found, text, str(body)[:100], kind)
        require_harmless(text)
    for place, method, status in (("/", "GET", 404), (f"/{SECRET}", "POST", 404), ("/invocations", "GET", 405)):
        found, text = ask(server[0], None, None, place, method)
        assert found == status
        require_harmless(text)
    status, text = ask(server[0], split("dicom", encode(study.read_bytes())))
    assert (status, json.loads(text)["predictions"][0]["PredictionString"]) == (200, wanted)


@contextlib.contextmanager
def serving(served):
    """Run the server in this process, so that a test can choose the model that it serves."""
    port = free_port()
    # A thread cannot handle signals; the server ends with the test's process.
    threading.Thread(target=serve, args=(served, "127.0.0.1", port), daemon=True).start()
    wait_until(lambda: ping(port) == 200)
    yield port


def in_parallel(function, count):
    results = [None] * count

    def run(place):
        results[place] = function(place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.slow
def test_studies_that_hang_cost_themselves_and_a_while(model, study, wanted):
    limits = ServingLimits(study_seconds=1, max_requests=2, max_waiting=20)
    predictor = Predictor(model, torch.device("cpu"))
    bodies = [split("dicom", encode(kind)) for kind in [SLOW] * 8 + [HUNGRY, CRASHING]]
    bodies.append(split("dicom", encode(study.read_bytes())))
    with Reader(2, 1, 200 * 2**20, decode) as reader, serving(ServedModel(predictor, reader, limits)) as port:
        *bad, (status, text) = in_parallel(lambda place: ask(port, bodies[place]), len(bodies))
    assert status == 200, text
    assert json.loads(text)["predictions"][0]["PredictionString"] == wanted
    messages = [json.loads(text)["message"] for status, text in bad if status == 400]
    assert messages[:8] == ["row 0: took longer than 1 s to read"] * 8
    assert "more than 200 MiB" in messages[8]
    assert "crashed" in messages[9]


class Sleeping:
    """A stand-in for a model, whose requests take as long as a test likes."""

    def __init__(self, limits):
        self.limits, self.go, self.inside, self.most = limits, threading.Event(), 0, 0

    def answer(self, rows):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.go.wait(30)
        self.inside -= 1
        if rows[0].get("dicom") == "bug":
            raise KeyError(SECRET)
        return []


def test_only_so_many_at_once_and_only_so_many_wait():
    model = Sleeping(ServingLimits(max_requests=2, max_waiting=3))
    with serving(model) as port:
        found = []
        threads = [threading.Thread(target=lambda: found.append(ask(port, split("dicom", "AAAA")))) for _ in range(5)]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        status, text = ask(port, split("dicom", "A" * 30_000_000))
        assert (status, json.loads(text)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
        assert ping(port) == 200
        model.go.set()
        for thread in threads:
            thread.join()
        assert [status for status, _ in found] == [200] * 5
        assert model.most == 2


def test_a_bug_of_ours_says_nothing(caplog):
    model = Sleeping(ServingLimits())
    model.go.set()
    with serving(model) as port:
        status, text = ask(port, split("dicom", "bug"))
        assert status == 500
        require_harmless(text)
        assert "a request failed: KeyError" in caplog.text
        assert SECRET not in caplog.text


def test_a_slow_body_is_given_up(study):
    model = Sleeping(ServingLimits(request_seconds=1, max_requests=1))
    model.go.set()
    with serving(model) as port, socket.create_connection(("127.0.0.1", port), 30) as slow:
        slow.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(100)
        assert ask(port, split("dicom", "AAAA"))[0] == 200


def test_rows_that_take_too_long_together(model, study):
    limits = ServingLimits(request_seconds=0.001)
    with Reader(1, 60) as reader:
        served = ServedModel(Predictor(model, torch.device("cpu")), reader, limits)
        with pytest.raises(RequestError, match="row 1: not begun"):
            served.answer([{"dicom": encode(study.read_bytes())}] * 2)


def test_images_of_two_requests_are_looked_at_at_the_same_time(model, study, monkeypatch):
    own, together = torch.get_num_threads(), threading.Barrier(2)
    torch.set_num_threads(2)
    try:
        predictor = Predictor(model, torch.device("cpu"))
        assert predictor.single_images_at_once == 2
        predict = predictor.predict

        def wait_and_predict(images):
            together.wait(60)
            return predict(images)

        monkeypatch.setattr(predictor, "predict", wait_and_predict)
        rows = [{"dicom": encode(study.read_bytes())}]
        with Reader(2, 60) as reader, ThreadPoolExecutor(2) as callers:
            served = ServedModel(predictor, reader, ServingLimits())
            one, other = callers.map(lambda _: served.answer(rows), range(2))
        assert one == other
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.detection.detect._LARGE", 0)  # an image that has all cores
            assert predictor.single_images_at_once == 1
        monkeypatch.setattr(predictor, "_device", torch.device("cuda"))
        assert predictor.single_images_at_once == 1
    finally:
        torch.set_num_threads(own)


def test_limits_are_checked():
    assert read_limits({"max_rows": 3}, "m").max_rows == 3
    assert ServingLimits().max_body_bytes == 64 * 2**20
    for config in ({"max_rows": 0}, {"max_body_mib": float("nan")}, {"other": 1}, {"study_seconds": "x"}):
        with pytest.raises(UserError, match=rf"^m: {next(iter(config))} = "):
            read_limits(config, "m")


@pytest.mark.slow
def test_a_killed_server_leaves_nothing(model, study, tmp_path):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", str(model), "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ping(port) == 200)
        assert ask(port, split("dicom", encode(study.read_bytes())))[0] == 200
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.kill()
        process.wait(10)
        assert not psutil.wait_procs(children, 10)[1]
        assert not list(tmp_path.iterdir())
    finally:
        process.kill()


@pytest.mark.long
def test_a_flood_changes_nothing(server, study):
    # Each thread keeps the memory that its largest work so far has needed.
    assert flood(*server, study, 600)[2] < 250 * 2**20
    before, after, grown = flood(*server, study, 500)
    assert statistics.median(after) < 2 * statistics.median(before)
    assert grown < 40 * 2**20


def flood(port, process, study, count):
    """Return the seconds of good requests before and after ``count`` mixed ones, and the processes' growth in bytes."""
    fine = split("dicom", encode(study.read_bytes()))

    def timed():
        started = time.perf_counter()
        assert ask(port, fine)[0] == 200
        return time.perf_counter() - started

    bad = list(hostile())
    bad = [one for one in bad if not hasattr(one[1], "__next__")]
    for one in bad:  # code that is loaded only now does not count as growth
        ask(port, *one[1:])
    before, size = [timed() for _ in range(20)], memory(process)

    def mixed(place):
        if place % 2:
            return timed()
        return ask(port, *bad[place // 2 % len(bad)][1:])

    for start in range(0, count, 4):
        in_parallel(lambda place, start=start: mixed(start + place), 4)
    return before, [timed() for _ in range(20)], memory(process) - size


def memory(process):
    """Return the memory of the server and its processes, in bytes."""
    main = psutil.Process(process.pid)
    return sum(one.memory_info().rss for one in [main, *main.children(recursive=True)])
