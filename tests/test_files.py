import subprocess
import sys

import pytest

from pipeline.files import directory_atomic, write_json, write_text


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
    """The kernel refuses the write past a size limit, as a full disk does."""
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
