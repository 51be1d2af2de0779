import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.files import (
    directory_atomic,
    open_atomic,
    remove_unlocked,
    temporary_folder,
    write_atomic,
    write_json,
    write_text,
)


def test_write_replaces_and_leaves_no_temporary_file(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "one")
    write_text(tmp_path / "new" / "a.txt", "two")
    assert (tmp_path / "new" / "a.txt").read_text() == "two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_former_file(tmp_path):
    write_json(tmp_path / "a.json", {"kept": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"not": object()})
    assert '"kept": 1' in (tmp_path / "a.json").read_text()


def test_a_full_disk_keeps_the_former_file(tmp_path):
    """Set a size limit: the kernel refuses a write past it, as on a full disk."""
    write_text(tmp_path / "a.txt", "kept")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from pathlib import Path; from pipeline.files import write_text; from pipeline.errors import run_main;"
        f"run_main(lambda: write_text(Path({str(tmp_path / 'a.txt')!r}), 'x' * 5000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {tmp_path / 'a.txt'}: File too large"]
    assert (tmp_path / "a.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with directory_atomic(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), directory_atomic(target) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_signal_between_two_folders_brings_the_former_back(tmp_path, monkeypatch):
    target = tmp_path / "former"
    target.mkdir()
    (target / "a").write_text("1")

    def interrupted(made, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), directory_atomic(target) as folder:
        (folder / "b").write_text("2")
        rename = type(folder).rename
        monkeypatch.setattr(
            type(folder), "rename", lambda made, path: (interrupted if made == folder else rename)(made, path)
        )
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["former"]


def fill_as_numpy(path):
    np.save(path, np.zeros(2**20))


def fill_as_safetensors(path):
    save_file({"w": torch.zeros(2**19)}, path)


def fill_as_torch(path):
    torch.save(torch.zeros(2**19), path)


@pytest.mark.parametrize("write", [fill_as_numpy, fill_as_safetensors, fill_as_torch])
def test_libraries_that_hide_a_full_disk(small_disk, write):
    """Raise the system's error: numpy gives only the bytes written, torch a position, safetensors an error number."""
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(small_disk / "large", write)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small_disk / "large"))
    assert list(small_disk.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("kept")
    with pytest.raises(NotADirectoryError, match="/a'$"), directory_atomic(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "kept"


def test_private_files_are_private_whatever_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("open to all")
    path.chmod(0o666)
    before = os.umask(0o022)
    try:
        write_atomic(path, lambda temporary: temporary.write_text("1"), private=True)
        with open_atomic(tmp_path / "b.txt", private=True) as file:
            file.write("2")
        write_text(tmp_path / "c.txt", "3")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(one.stat().st_mode) for one in sorted(tmp_path.iterdir())] == [0o600, 0o600, 0o644]


def test_the_longest_names_can_be_written(tmp_path):
    write_text(tmp_path / ("n" * 255), "1")
    assert (tmp_path / ("n" * 255)).read_text() == "1"


HOLD = """
import sys, time
from pathlib import Path
from pipeline.files import directory_atomic, open_atomic, temporary_folder, write_atomic

def wait(*_):
    print("written", flush=True)
    time.sleep(300)

def fill(path):
    path.write_text("half")
    wait()

folder = Path(sys.argv[2])
if sys.argv[1] == "file":
    write_atomic(folder / "a.bin", fill)
elif sys.argv[1] == "text":
    with open_atomic(folder / "a.csv") as file:
        file.write("half")
        wait()
elif sys.argv[1] == "folder":
    with directory_atomic(folder / "a") as made:
        fill(made / "b")
else:
    with temporary_folder(folder) as made:
        fill(made / "b")
"""


def hold(kind, folder):
    """Start a process and return it in the middle of writing."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("kind", ["file", "text", "folder", "scratch"])
def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path, kind):
    killed, alive = hold(kind, tmp_path), hold("file", tmp_path)
    try:
        kill(killed)
        left = sorted(tmp_path.iterdir())
        assert len(left) == 2
        write = [sys.executable, "-c", "import sys; from pathlib import Path; from pipeline.files import write_text;"
                 "write_text(Path(sys.argv[1]), 'new')", str(tmp_path / "new.txt")]  # fmt: skip
        subprocess.run(write, check=True)
        names = {path.name for path in tmp_path.iterdir()}
        assert len(names) == 2
        assert "new.txt" in names
        assert not (tmp_path / "a").exists()
    finally:
        kill(alive)
    subprocess.run(write, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]


def _write_often(folder, count):
    for number in range(count):
        with temporary_folder(folder) as made:
            (made / "a").write_text(str(number))
            write_text(made / "b", "1")


def _clear_often(folder, done):
    while not done.is_set():
        for path in folder.iterdir():
            remove_unlocked(path)


@pytest.mark.long
def test_folders_just_made_and_not_yet_locked_are_left_to_who_made_them(tmp_path):
    context = multiprocessing.get_context("spawn")
    done = context.Event()
    clearing = [context.Process(target=_clear_often, args=(tmp_path, done)) for _ in range(2)]
    writing = [context.Process(target=_write_often, args=(tmp_path, 100)) for _ in range(3)]
    for process in clearing + writing:
        process.start()
    for process in writing:
        process.join()
    done.set()
    for process in clearing:
        process.join()
    assert [process.exitcode for process in clearing + writing] == [0] * 5
    assert list(tmp_path.iterdir()) == []
