"""The comparison of arriving studies with those that the champion was validated on."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from pipeline.delivery.scored import COLUMNS
from tests.flows.test_deployments import ask
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def scored(trained, tmp_path):
    """Write six times as many studies as the reference has, changed by a function; return the folder."""
    reference = pd.read_csv(trained[0] / "reports/reference.csv", dtype={"view": str})

    def write(change):
        table = change(pd.concat([reference] * 6, ignore_index=True))
        table = table.assign(file="x.dcm", scored_at="2026-01-01", model="m", PredictionString="", problem="")
        table["sha256"] = [f"{number:064x}" for number in range(len(table))]
        (tmp_path / "scored").mkdir(exist_ok=True)
        table[list(COLUMNS)].to_csv(tmp_path / "scored/scored.csv", index=False)
        return str(tmp_path / "scored")

    return write


@pytest.mark.long
def test_drift_raises_an_event_and_retrains_and_only_then(trained, scored, call, prefect_server, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "copy")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["monitor"]["retrain"] = True
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    call(folder, "prefect", "work-pool", "create", "local", "--type", "process", "--overwrite")
    done = call(folder, "prefect", "--no-prompt", "deploy", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    before = asked_for(prefect_server)
    same = scored(lambda table: table)
    done = call(folder, "flows.monitoring", same)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "within the limits" in done.stdout + done.stderr
    assert events(prefect_server) == []
    assert asked_for(prefect_server) == before

    brighter = scored(lambda table: table.assign(grey_mean=table["grey_mean"] + 60))
    done = call(folder, "flows.monitoring", brighter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "past the limits: grey_mean" in done.stdout + done.stderr
    (event,) = wait_until(lambda: events(prefect_server), 20, pause=0.5)  # the server stores events in batches
    assert event["payload"]["features"] == ["grey_mean"]
    artifacts = ask(prefect_server, "artifacts/filter")
    assert {"drift", "drift-alarm"} <= {artifact["key"] for artifact in artifacts}
    assert json.loads((folder / "reports/drift.json").read_text())["past"]
    assert "past the limits" in (folder / "reports/drift.html").read_text()
    assert asked_for(prefect_server) == before + 1


def asked_for(server):
    """Return how many runs of the training flow were asked for, without those that its schedule created."""
    runs = ask(server, "flow_runs/filter", deployments={"name": {"any_": ["nightly"]}})
    return sum(not run["auto_scheduled"] for run in runs)


def events(server):
    found = ask(server, "events/filter", filter={"event": {"name": ["pneumoflow.drift"]}})
    return found["events"]


def test_too_few_studies_are_no_failure(trained, scored, call, prefect_server):
    folder = trained[0]
    (folder / "reports/drift.html").write_text("of an earlier check")
    done = call(folder, "flows.monitoring", scored(lambda table: table[:10]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 new studies, too few to compare: monitor.least is 50" in done.stdout + done.stderr
    (run,) = ask(
        prefect_server, "flow_runs/filter", flows={"name": {"any_": ["monitoring"]}}, limit=1, sort="START_TIME_DESC"
    )
    assert (run["state"]["type"], run["state"]["message"]) == ("COMPLETED", "10 new studies, too few to compare")
    assert not (folder / "reports/drift.html").exists()


def test_a_project_without_a_scored_study_is_no_failure(trained, call):
    assert not (trained[0] / "scored").exists()
    done = call(trained[0], "flows.monitoring")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed('no study has been scored yet: there is no scored/scored.csv')" in done.stdout + done.stderr


@pytest.mark.parametrize("module", [("pipeline.cli", "monitor"), ("flows.monitoring",)])
def test_a_table_that_is_not_where_it_was_said_to_be_is_one_line(trained, call, module):
    done = call(trained[0], *module, "nowhere")
    assert done.returncode == 1
    assert "nowhere/scored.csv: no such file" in done.stderr
