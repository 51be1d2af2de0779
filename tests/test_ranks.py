import pytest

from pipeline.ranks import forget_stray_ranks, rank


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_torchrun_is_believed(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    forget_stray_ranks()
    assert rank() == 3
    assert not caplog.records


def test_variables_left_in_a_shell_are_ignored_with_a_word(run, write_params, small_params, tmp_path):
    """Without this, the process would wait for a second one, and print its error as that of process 1."""
    write_params(small_params)
    stray = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = run("pipeline.stages.train", cwd=tmp_path, **stray)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("ignored: RANK, LOCAL_RANK, WORLD_SIZE")
    assert lines[-1].startswith("error: ")


def test_no_variables_no_word(caplog):
    forget_stray_ranks()
    assert rank() == 0
    assert not caplog.records
