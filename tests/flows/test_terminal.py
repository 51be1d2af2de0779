"""Ctrl+C and a closed terminal, for each command of `flows` and each `make` target that runs one."""

import shutil
import sys

import mlflow
import pytest

from pipeline.data.annotations import IMAGES
from tests.conftest import project_environment
from tests.flows.conftest import free_port, link_environment
from tests.flows.terminal import Terminal, started_training

pytestmark = pytest.mark.timeout(900)

# The promised limit is 20 seconds; a stage has 12 of them to close its run.
SECONDS = 20
# The exit status of our command, that of `make` for it, and those of `make` if the signal ends it first.
STOPPED = (130, 2, -2, -1)


@pytest.fixture
def terminal(copy):
    """Start a command on a terminal in a copy of the trained project."""
    opened = []

    def start(*command, **more):
        opened.append(Terminal(command, copy, project_environment(copy, **more)))
        return opened[-1]

    yield start
    for one in opened:
        one.end()


@pytest.fixture
def make(copy, repository):
    """Prepare the copy for `make`, with the environment that runs the tests; return the command."""
    shutil.copy(repository / "Makefile", copy)
    for name in ("lock.txt", "uv.txt"):
        (copy / name).touch()
    link_environment(copy)
    return "make"


def require_a_quiet_end(terminal, within=SECONDS, statuses=STOPPED):
    status, seconds = terminal.wait(within + 40)
    assert seconds < within, terminal.text
    assert status in statuses
    assert "Traceback" not in terminal.text
    assert len(terminal.text.splitlines()) < 120, terminal.text
    assert terminal.family.members() == []


def training_run(folder):
    (run,) = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"])
    return run


def module(name, *options):
    return [sys.executable, "-m", f"flows.{name}", *options]


@pytest.mark.parametrize(
    ("how", "with_make"),
    [
        ("press_ctrl_c", False),
        pytest.param("close", False, marks=pytest.mark.long),
        pytest.param("press_ctrl_c", True, marks=pytest.mark.long),
        pytest.param("close", True, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_training_ends_and_goes_on_at_the_next_start(terminal, copy, edit, request, how, with_make):
    edit(copy, "train", epochs=4)
    command, environment = module("training"), {}
    if with_make:
        # `make demo` trains from random weights where ImageNet's are out of reach.
        edit(copy, "model", weights="imagenet", frozen_stages=2)
        command = [request.getfixturevalue("make"), "demo"]
        environment = {"HF_HOME": str(copy.parent / "hf"), "HF_HUB_OFFLINE": "1"}
    shown = terminal(*command, **environment)
    shown.wait_for(lambda: started_training(copy))
    getattr(shown, how)()
    require_a_quiet_end(shown)
    assert training_run(copy).info.status == "KILLED"
    assert started_training(copy)
    if how == "press_ctrl_c" and not with_make:
        return
    again = terminal(*command, **environment)
    again.wait(280)
    assert "continuing with step" in again.text
    assert training_run(copy).info.status == "FINISHED"
    assert not started_training(copy)


@pytest.mark.long
@pytest.mark.parametrize("how", ["press_ctrl_c", "close"])
def test_serving_ends_while_a_run_trains(terminal, copy, edit, prefect_server, how):
    edit(copy, "train", epochs=200)
    edit(copy, "schedule", cron="* * * * *")
    shown = terminal(*module("serve"), PREFECT_API_URL=prefect_server)
    shown.wait_for(lambda: started_training(copy))
    getattr(shown, how)()
    # The flow run has the 20 seconds to end; then Prefect's runner ends.
    require_a_quiet_end(shown, within=30, statuses=(0, *STOPPED))
    assert training_run(copy).info.status == "KILLED"


@pytest.mark.long
@pytest.mark.parametrize("how", ["press_ctrl_c", "close"])
@pytest.mark.parametrize("name", ["inference", "monitoring"])
def test_the_other_flows_end(terminal, copy, sample, name, how):
    (copy / "inbox").mkdir()
    for number in range(8):
        for path in (sample / IMAGES).glob("*.dcm"):
            shutil.copy(path, copy / "inbox" / f"{number}-{path.name}")
    shown = terminal(*module(name))
    shown.wait_for(lambda: shown.family.members("pipeline.cli"))
    getattr(shown, how)()
    require_a_quiet_end(shown)


@pytest.mark.long
@pytest.mark.parametrize("how", ["press_ctrl_c", "close"])
@pytest.mark.parametrize("with_make", [False, True])
def test_the_pages_end(terminal, request, how, with_make):
    ports = [str(free_port()), str(free_port())]
    command = module("ui", "--mlflow-port", ports[0], "--prefect-port", ports[1])
    if with_make:
        command = [request.getfixturevalue("make"), "ui", f"MLFLOW_PORT={ports[0]}", f"PREFECT_PORT={ports[1]}"]
    shown = terminal(*command)
    shown.wait_for(lambda: "Ctrl+C ends both" in shown.text)
    getattr(shown, how)()
    require_a_quiet_end(shown)
