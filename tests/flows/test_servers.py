"""Prefect's own server, which a flow starts where there is none: its database and its messages."""

import subprocess
import sys

import pytest

from flows.prefect_database import whole_database
from pipeline.errors import UserError
from tests.conftest import REPOSITORY, project_environment
from tests.flows.family import Family
from tests.waiting import wait_until

_START = """
from flows.servers import run_server
with run_server():
    print("answers", flush=True)
"""


def start(home, family):
    return subprocess.Popen(
        [sys.executable, "-c", _START],
        env=family.env(project_environment(home, PYTHONPATH=str(REPOSITORY), PREFECT_HOME=str(home))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_a_database_whose_making_was_cut_off_is_made_anew(tmp_path):
    home, family = tmp_path / "home", Family()
    killed = start(home, family)
    database = home / "prefect.db"
    wait_until(lambda: database.exists() and database.stat().st_size >= 2**17, 120, pause=0.01)
    family.kill()
    killed.communicate()
    assert (home / "prefect.db.new").exists()
    together = [start(home, family) for _ in range(2)]
    for process in together:
        out, error = process.communicate(timeout=200)
        assert out == "answers\n", error
    assert not (home / "prefect.db.new").exists()
    assert family.members() == []


@pytest.mark.long
def test_a_full_disk_is_one_line_and_harmless(small_disk):
    _, error = start(small_disk, Family()).communicate(timeout=200)
    said = error.splitlines()[-1]
    assert "database or disk is full" in said
    assert f"(its database is {small_disk}/prefect.db, its temporary files are in " in said
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    out, error = start(small_disk, Family()).communicate(timeout=200)
    assert out == "answers\n", error


def test_a_marker_that_nobody_holds_takes_its_database_along(tmp_path):
    database, marker = tmp_path / "prefect.db", tmp_path / "prefect.db.new"
    for path in (database, marker, tmp_path / "prefect.db-wal"):
        path.write_bytes(b"half")
    with pytest.raises(OSError, match="the server does not start"), whole_database(database) as held:
        assert len(held) == 1
        assert [path.name for path in tmp_path.iterdir()] == [marker.name]
        database.write_bytes(b"half again")
        raise OSError("the server does not start")
    assert marker.exists()
    with whole_database(database):
        assert not database.exists()
        database.write_bytes(b"whole")
    assert not marker.exists()
    with whole_database(database) as held:
        assert held == ()
    assert database.read_bytes() == b"whole"


def test_what_a_server_says_of_its_end(tmp_path):
    from flows.server_process import Server

    code = "import sys; print('noise', file=sys.stderr); raise OSError('no room')"
    server = Server([sys.executable, "-c", code], "http://127.0.0.1:9", "/")
    with pytest.raises(UserError, match="http://127.0.0.1:9: the server does not start: OSError: no room"):
        server.start()
