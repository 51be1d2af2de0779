"""A long outage of Prefect's server during a flow: the flow goes on, and reports its end when the server is back."""

import re
import time

import pytest

from tests.flows.site import Site
from tests.flows.terminal import started_training
from tests.waiting import wait_until

# Longer than the minute and a half for which Prefect's client retries.
OUTAGE_SECONDS = 150


@pytest.fixture
def site(copy, edit, tmp_path):
    edit(copy, "train", epochs=10)
    made = Site(copy, tmp_path / "site.log")
    yield made
    made.end()


@pytest.mark.long
@pytest.mark.timeout(OUTAGE_SECONDS + 600)
def test_a_run_that_ends_while_the_server_is_away_is_completed_when_it_is_back(site, tmp_path):
    site.start_server()
    flow = site.start("flow", "flows.training")
    wait_until(lambda: started_training(site.folder), 180)
    site.kill("server")
    time.sleep(OUTAGE_SECONDS)
    assert flow.poll() is None
    site.start("server")
    assert flow.wait(300) == 0
    (run,) = site.runs()
    assert (run["state_type"], run["name"] in (tmp_path / "site.log").read_text()) == ("COMPLETED", True)
    said = (tmp_path / "site.log").read_text()
    assert len(re.findall("does not accept this run's progress and artifacts", said)) == 1
    assert len(re.findall("Prefect at .* does not answer", said)) == 1
    assert "Traceback" not in said
