"""Files that other programs are still writing."""

import os
import socket
import threading
import time

import pytest

from pipeline.delivery import incoming
from pipeline.delivery.incoming import Arrivals, StillArrivingError, read_regular
from pipeline.dicom.radiograph import MAX_FILE_BYTES


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def look(file, tmp_path, monkeypatch):
    """Return whether the file has arrived, as the inbox sees it ``seconds`` after the start."""

    def see(seconds, settle=5.0, clock=0.0):
        start = time.time()
        monkeypatch.setattr(incoming.time, "time", lambda: start + clock)
        monkeypatch.setattr(incoming.time, "monotonic", lambda: 1000.0 + seconds)
        arrivals = Arrivals(settle, tmp_path / "note.json")
        try:
            return arrivals.has_arrived(file)
        finally:
            arrivals.save()

    return see


def test_a_file_waits_until_it_has_settled(look, file):
    assert not look(0)
    assert look(0, clock=5.1)
    os.utime(file, (0, 0))
    assert look(0)
    assert look(0, settle=0)


def test_a_file_from_the_future_waits_no_longer(look, file, tmp_path):
    ahead = time.time() + 3 * 86400
    os.utime(file, (ahead, ahead))
    assert not look(0)
    assert look(1, clock=6)  # the system's own time of the change (ctime) counts
    assert not (tmp_path / "note.json").exists()
    assert look(0, settle=0)


def test_a_clock_that_was_set_back(look, file, tmp_path):
    yesterday = -86400
    assert not look(0, clock=yesterday)
    assert (tmp_path / "note.json").stat().st_mode & 0o777 == 0o600
    assert not look(4, clock=yesterday)
    assert look(6, clock=yesterday)
    file.write_bytes(b"content that grows")
    assert not look(7, clock=yesterday)
    assert look(13, clock=yesterday)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\0\0", b'{"61": [1]}', b'{"61": 3}', b"[" * 100_000, b"null"])
def test_a_damaged_note_costs_a_wait(look, tmp_path, content):
    (tmp_path / "note.json").write_bytes(content)
    assert not look(0, clock=-86400)
    assert look(6, clock=-86400)


def test_after_a_restart_of_the_machine_its_clock_starts_anew(look):
    assert not look(0, clock=-86400)
    assert not look(-900, clock=-86400)
    assert look(-890, clock=-86400)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.dcm")
    (tmp_path / "folder.dcm").mkdir()
    for name in ("fifo.dcm", "folder.dcm", "none.dcm"):
        with pytest.raises(OSError, match=f"{name}|Is a directory"):
            read_regular(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.dcm"))
        with pytest.raises(OSError, match=r"s\.dcm"):
            read_regular(tmp_path / "s.dcm")


def test_of_a_file_without_end_one_byte_too_many_is_read(tmp_path):
    with (tmp_path / "large.dcm").open("wb") as file:
        file.truncate(2**40)
    assert len(read_regular(tmp_path / "large.dcm")) == MAX_FILE_BYTES + 1


def test_a_file_that_changes_is_never_read_half(tmp_path):
    """Write it again and again in one thread: a reader gets one of its contents, or is told to wait."""
    path, done = tmp_path / "a.dcm", threading.Event()
    path.write_bytes(b"a" * 300_000)

    def write():
        for number in range(10_000):
            if done.is_set():
                return
            path.write_bytes(bytes([97 + number % 26]) * (200_000 + number))

    writer = threading.Thread(target=write)
    writer.start()
    whole = waits = 0
    end = time.monotonic() + 20
    try:
        while (whole < 20 or waits < 5) and time.monotonic() < end:
            try:
                content = read_regular(path)
            except StillArrivingError:
                waits += 1
            else:
                whole += 1
                assert len(set(content)) <= 1
    finally:
        done.set()
        writer.join()
    assert whole
    assert waits
