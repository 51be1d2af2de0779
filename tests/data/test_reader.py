import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import psutil
import pydicom
import pytest

from pipeline.data.annotations import IMAGES
from pipeline.data.reader import Reader
from pipeline.dicom.radiograph import Radiograph, read_radiograph
from pipeline.errors import BadStudyError
from tests.dicom.odd_decoders import CRASHING, HUNG_IN_C, HUNGRY, REFUSED, SLOW, decode
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def files(sample):
    return sorted((sample / IMAGES).glob("*.dcm"))[:8]


@pytest.fixture(scope="module")
def reader():
    with Reader(2, 30) as made:
        yield made


def test_reads_what_the_decoder_reads(reader, files, monkeypatch):
    wanted = read_radiograph(files[0])
    monkeypatch.chdir(files[0].parent)
    for source in (files[0], files[0].read_bytes(), files[0].relative_to(files[0].parent)):
        found = reader.read(source)
        np.testing.assert_array_equal(found.levels, wanted.levels)
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
        assert (found.levels.dtype, found.pixels.dtype) == (wanted.levels.dtype, wanted.pixels.dtype)
        assert (found.view, found.sex) == (wanted.view, wanted.sex)
        np.testing.assert_equal((found.age, found.spacing), (wanted.age, wanted.spacing))


def test_each_in_order_and_errors_in_their_places(reader, files, tmp_path):
    (tmp_path / "cut.dcm").write_bytes(files[0].read_bytes()[:900])
    os.mkfifo(tmp_path / "fifo")
    sources = [files[0], tmp_path / "cut.dcm", files[1], tmp_path / "none.dcm", tmp_path, tmp_path / "fifo", *files[2:]]
    found = list(reader.read_each(sources))
    kinds = [type(one) for one in found]
    assert kinds[:6] == [Radiograph, BadStudyError, Radiograph, FileNotFoundError, IsADirectoryError, OSError]
    assert set(kinds[6:]) == {Radiograph}
    assert str(tmp_path / "none.dcm") in str(found[3])
    for one, path in zip(found[6:], files[2:], strict=True):
        np.testing.assert_array_equal(one.pixels, read_radiograph(path).pixels)


def test_look_ahead_is_bounded(reader, files):
    asked = []

    def sources():
        for path in files * 4:
            asked.append(path)
            yield path

    found = reader.read_each(sources())
    next(found)
    assert len(asked) <= 8
    found.close()
    assert isinstance(reader.read(files[0]), Radiograph)


def test_odd_studies_cost_themselves_alone(files):
    odd = {SLOW: "took longer than 1.5 s", HUNGRY: "needs more than 200 MiB", CRASHING: r"crashed \(SIGSEGV\)"}
    odd |= {REFUSED: "no radiograph", HUNG_IN_C: "took longer than 1.5 s"}
    with Reader(2, 1.5, 200 * 2**20, decode) as reader:
        sources = [source for kind in odd for source in (kind, files[0])]
        found = list(reader.read_each(sources))
    for one, why in zip(found[::2], odd.values(), strict=True):
        with pytest.raises(BadStudyError, match=why):
            raise one
    assert all(isinstance(one, Radiograph) for one in found[1::2])


def test_a_process_that_dies_between_studies_is_replaced(files):
    others = psutil.Process().children()
    with Reader(1, 30) as reader:
        reader.read(files[0])
        (child,) = set(psutil.Process().children()) - set(others)
        child.kill()
        child.wait(10)
        assert isinstance(reader.read(files[0]), Radiograph)


def test_many_threads_share_a_reader(reader, files):
    found = []
    threads = [threading.Thread(target=lambda: found.append(reader.read(files[0]))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12


def test_closing_ends_what_is_at_work(files, tmp_path):
    others = psutil.Process().children()
    reader = Reader(1, 60, decode=decode)
    errors = []

    def read():
        try:
            reader.read(SLOW + bytes(tmp_path / "begun"))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    children = wait_until(lambda: set(psutil.Process().children()) - set(others))
    wait_until((tmp_path / "begun").exists)
    reader.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert not psutil.wait_procs(children, 10)[1]


@pytest.mark.slow
def test_a_header_of_millions_of_empty_items(files):
    """A real case of memory use: pydicom turns 32 MB into 2.7 GB."""
    study = pydicom.dcmread(files[0])
    whole = io.BytesIO()
    study.save_as(whole)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 4_000_000
    begin, end = struct.pack("<HH2sHI", 0xFFFC, 0x0010, b"SQ", 0, 2**32 - 1), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    many = whole.getvalue() + begin + items + end
    with Reader(1, 60, 200 * 2**20) as reader:
        with pytest.raises(BadStudyError):
            reader.read(many)
        assert isinstance(reader.read(files[0]), Radiograph)


def test_only_the_reader_and_the_shards_read_files_of_others(repository):
    """Any other module that calls ``read_radiograph`` would read without a limit."""
    users = {
        path.relative_to(repository).as_posix()
        for folder in ("pipeline", "flows")
        for path in (repository / folder).rglob("*.py")
        if re.search(r"\bread_radiograph\b", path.read_text())
    }
    assert users == {"pipeline/dicom/radiograph.py", "pipeline/data/reader.py", "pipeline/data/shards.py"}


# The script lacks the usual ``__main__`` guard, as a notebook does: starting a process must not run it again.
MAIN = """
import sys
from pathlib import Path
from pipeline.data.reader import Reader
from tests.dicom.odd_decoders import decode
reader = Reader(2, 4, decode=decode)
print("started", flush=True)
kinds = Path("kinds").read_bytes()
for found in reader.read_each([bytes([kind]) + bytes(Path(f"begun-{n}").resolve()) for n, kind in enumerate(kinds)]):
    print(repr(found), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("kind", [SLOW, HUNG_IN_C])
def test_no_process_survives_the_main_one(tmp_path, repository, number, kind):
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "kinds").write_bytes(kind * 2)
    main = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with main:
        try:
            assert main.stdout.readline() == "started\n"
            children = wait_until(lambda: len(found := psutil.Process(main.pid).children(True)) == 2 and found)
            wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
            main.send_signal(number)
            main.wait(30)
            assert not psutil.wait_procs(children, 30)[1]
            assert main.stdout.read() == ""
        finally:
            main.kill()
