import json
import tempfile
import threading
from pathlib import Path

import pytest
from filelock import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking.outbox import OUTBOX, Outbox, left_behind


def metric(step):
    return {"key": "loss", "value": step / 2, "timestamp": 1, "step": step}


class Store:
    """A store that takes batches, or refuses them."""

    def __init__(self):
        self.entries, self.down = [], False

    def send(self, run_id, entries):
        if self.down:
            raise ConnectionError
        self.entries += entries


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["append", "deliver", "fail", "reopen", "killed while writing"]), max_size=30))
def test_everything_arrives_once_and_in_order(events):
    with tempfile.TemporaryDirectory() as root:
        store, steps = Store(), 0
        outbox = Outbox("run", Path(root))
        for event in events:
            if event == "append":
                outbox.append([metric(steps), metric(steps + 1)])
                steps += 2
            elif event == "deliver":
                outbox.deliver(store.send)
            elif event == "fail":
                store.down = True
                if outbox.waiting:
                    with pytest.raises(ConnectionError):
                        outbox.deliver(store.send)
                store.down = False
            else:
                outbox.close(remove=False)
                if event == "killed while writing":
                    with (Path(root) / "run/entries.jsonl").open("a") as file:
                        file.write('{"key": "loss", "va')
                outbox = Outbox("run", Path(root))
        assert outbox.last_values().keys() == ({"loss"} if steps else set())
        assert not steps or outbox.last_values()["loss"][0] == steps - 1
        outbox.deliver(store.send)
        assert store.entries == [metric(step) for step in range(steps)]
        assert outbox.waiting == 0
        outbox.close(remove=True)
        assert not (Path(root) / "run").exists()


def test_files_wait_until_they_have_arrived(tmp_path):
    outbox, sent = Outbox("run", tmp_path), []
    outbox.add_file("val/epoch-1.jpg", b"one")
    outbox.add_file("curve.png", b"two")
    half = tmp_path / "run/files/.pneumoflow-a.tmp"  # left by a process that was killed while it wrote
    half.mkdir()
    (half / "epoch-2.jpg").write_bytes(b"thr")

    def refuse(*_):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        outbox.deliver_files(refuse)
    outbox.close(remove=True)
    (again,) = left_behind(tmp_path)
    assert again.deliver_files(lambda run, path, folder: sent.append((run, path.name, folder, path.read_bytes()))) == 2
    assert sent == [("run", "curve.png", "", b"two"), ("run", "epoch-1.jpg", "val", b"one")]
    again.close(remove=True)
    assert not (tmp_path / "run").exists()


def test_many_go_in_batches(tmp_path):
    outbox, sizes = Outbox("run", tmp_path), []
    outbox.append([metric(step) for step in range(2500)])
    assert outbox.deliver(lambda run_id, entries: sizes.append(len(entries))) == 2500
    assert sizes == [1000, 1000, 500]


def test_a_batch_that_arrived_but_was_not_noted_is_sent_again(tmp_path, monkeypatch):
    outbox, store = Outbox("run", tmp_path), Store()
    outbox.append([metric(0)])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.tracking.outbox.write_text", killed)
        outbox.deliver(store.send)
    outbox.deliver(store.send)
    assert store.entries == [metric(0), metric(0)]


DAMAGE = [
    b"\x00" * 40, b"\xff\xfe{", b"{}", b"[1, 2]", b"null", b'"text"', b'{"key": "loss"}', b'{"status": "DONE"}',
    b'{"status": "FAILED", "end_time": "1"}',
    b'{"key": "loss", "value": "1", "timestamp": 1, "step": 0}', b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_put_aside_and_stops_nobody(tmp_path, damage, caplog):
    outbox, store = Outbox("run", tmp_path), Store()
    outbox.append([metric(0)])
    outbox.close(remove=False)
    with (tmp_path / "run/entries.jsonl").open("ab") as file:
        file.write(damage + b"\n")
    outbox = Outbox("run", tmp_path)
    assert outbox.last_values()["loss"][0] == 0
    outbox.append([metric(1)])
    assert outbox.deliver(store.send) == 2
    assert store.entries == [metric(0), metric(1)]
    outbox.close(remove=True)
    assert (tmp_path / "run/damaged.jsonl").read_bytes() == damage + b"\n"
    assert "are damaged" in caplog.text
    for later in left_behind(tmp_path):
        assert later.deliver(store.send) == 0
        later.close(remove=True)


def test_what_is_no_outbox_stops_nobody(tmp_path):
    (tmp_path / "a file").write_text("x")
    (tmp_path / "a folder").mkdir()
    assert list(left_behind(tmp_path)) == []


def test_what_waits_is_not_removed_and_one_process_has_it(tmp_path):
    outbox = Outbox("run", tmp_path)
    outbox.append([metric(0)])
    with pytest.raises(Timeout):
        Outbox("run", tmp_path)
    assert list(left_behind(tmp_path)) == []
    outbox.close(remove=True)
    (found,) = left_behind(tmp_path)
    assert found.waiting == len(json.dumps(metric(0))) + 1
    assert list(left_behind(tmp_path / "nowhere")) == []
    assert not OUTBOX.is_absolute()


def test_a_line_that_is_being_written_is_delivered_once_it_is_whole():
    """The disk sees a long list of entries in pieces, and the delivery may read between two of them."""
    store, outbox, steps = Store(), Outbox("run"), 3000
    lines = b"".join(json.dumps(metric(step)).encode() + b"\n" for step in range(steps))
    written = threading.Event()

    def write_in_pieces():
        with Path(OUTBOX, "run/entries.jsonl").open("ab", buffering=0) as file:
            for start in range(0, len(lines), 7):
                file.write(lines[start : start + 7])
        written.set()

    thread = threading.Thread(target=write_in_pieces)
    thread.start()
    while not written.is_set():
        outbox.deliver(store.send)
    thread.join()
    outbox.deliver(store.send)
    assert store.entries == [metric(step) for step in range(steps)]
    outbox.close(remove=True)
    assert not Path(OUTBOX, "run").exists()
