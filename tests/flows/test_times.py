"""Schedules when the clock changes or the machine sleeps: one run, not many, not none."""

import asyncio
import contextlib
import signal
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.server.schemas.schedules import CronSchedule
from prefect.states import Running, Scheduled

from flows.running import _done_by_another
from tests.flows.site import Site
from tests.waiting import wait_until

# Long enough that several runs fall due.
SLEEP_SECONDS = 200


def due(cron, zone, day):
    """Return the first three due times from ``day`` on, if a scheduler asks for the next one every ten minutes."""
    schedule = CronSchedule(cron=cron, timezone=zone)
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    moments = (begin.astimezone(UTC) + timedelta(minutes=minute) for minute in range(0, 3 * 24 * 60, 10))
    found = {asyncio.run(schedule.get_dates(n=1, start=moment))[0].astimezone(UTC) for moment in moments}
    return [one.astimezone(ZoneInfo(zone)).isoformat() for one in sorted(found)][:3]


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        ("2027-03-27", ["2027-03-27T02:30:00+01:00", "2027-03-28T03:30:00+02:00", "2027-03-29T02:30:00+02:00"]),
        ("2026-10-24", ["2026-10-24T02:30:00+02:00", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
    ],
    ids=["an hour that is not there", "an hour that is there twice"],
)
def test_a_nightly_run_falls_due_once_where_clocks_change(day, expected):
    assert due("30 2 * * *", "Europe/Berlin", day) == expected


def test_the_shipped_schedules_name_their_time_zone(repository):
    listed = yaml.safe_load((repository / "prefect.yaml").read_text())["deployments"]
    crons = [schedule for one in listed for schedule in one["schedules"] if "cron" in schedule]
    assert len(crons) >= 2
    assert all(ZoneInfo(schedule["timezone"]) for schedule in crons)


@pytest.fixture
def client(prefect_server):
    with SyncPrefectClient(prefect_server) as made:
        yield made


@pytest.fixture
def due_run(client):
    """Make a run that fell due ten minutes ago; ``begin`` tells whether it has begun."""
    deployment = client.create_deployment(client.create_flow_from_name("training"), f"nightly-{uuid4()}")

    def make(begin):
        past = datetime.now(UTC) - timedelta(minutes=10)
        run = client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=past))
        if begin:
            client.set_flow_run_state(run.id, Running(), force=True)
        return client.read_flow_run(run.id).model_copy(update={"auto_scheduled": True})

    return make


def test_a_late_run_is_done_by_one_that_has_begun_and_not_by_one_that_waits(client, due_run):
    first = due_run(begin=True)
    due_run(begin=False)
    assert _done_by_another(client, first) == ""
    said = _done_by_another(client, due_run(begin=True))
    assert said.endswith(f"run {first.name} has begun since")


@pytest.fixture
def site(copy, edit, tmp_path):
    edit(copy, "schedule", cron="* * * * *")
    made = Site(copy, tmp_path / "site.log")
    yield made
    made.end()


def begun(site, since):
    with contextlib.suppress(OSError):
        runs = [run for run in site.runs() if run["state_name"] != "Skipped"]
        return [run for run in runs if datetime.fromisoformat(run["start_time"]) > since]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("start", ["start_server", "start_pages"])
def test_after_a_machine_slept_one_run_does_for_all_that_were_missed(site, start):
    getattr(site, start)()
    site.start("serve", "flows.serve")
    wait_until(lambda: any(run["state_type"] == "COMPLETED" for run in site.runs()), 300)
    wait_until(lambda: all(run["state_type"] != "RUNNING" for run in site.runs()), 300)
    # For the processes, a stop is like a sleep of the machine: when they continue, the clock has moved on.
    site.signal(signal.SIGSTOP)
    time.sleep(SLEEP_SECONDS)
    woken = datetime.now(UTC)
    site.signal(signal.SIGCONT)
    wait_until(lambda: begun(site, woken), 90)
    time.sleep(60)
    # One run for all that were missed, and those that fall due while the test waits.
    regular = (datetime.now(UTC) - woken).total_seconds() // 60 + 1
    assert 1 <= len(begun(site, woken)) <= 1 + regular
    states = {run["name"]: run["state_name"] for run in begun(site, woken)}
    assert set(states.values()) <= {"Completed", "Running", "Pending"}, states
