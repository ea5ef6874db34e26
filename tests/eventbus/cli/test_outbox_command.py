"""`eventbus outbox`, on a SQLite database and a real nats-server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from eventbus import EventBus
from eventbus.events import Event, ShouldBroadcast
from eventbus.integrations.sqlalchemy import Outbox

COMMAND = str(Path(sys.executable).with_name("eventbus"))


class Placed(Event, ShouldBroadcast, channel="orders.{order_id}", name="outbox.cli.placed"):
    order_id: int
    text: str = ""


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/app.db"


@pytest.fixture
def environ(settings, url):
    return {
        **os.environ,
        "DATABASE_URL": url,
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        "COLUMNS": "80",
    }


@pytest.fixture
def run(environ, tmp_path):
    def run(*arguments, code=0):
        done = subprocess.run(
            [COMMAND, "outbox", *arguments], env=environ, cwd=tmp_path, capture_output=True,
            text=True, timeout=150, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def _add(url, *events):
    engine = sa.create_engine(url)
    with Session(engine) as session, session.begin():
        Outbox(sa.MetaData()).add(session, *events)
    engine.dispose()


def test_table_that_is_missing_is_created_by_setup(run):
    assert "`eventbus outbox setup` creates the table" in run("list", code=1)
    assert "created eventbus_outbox" in run("setup")
    assert "exists already" in run("setup")
    assert run("list") == "waiting: no rows\nno row was set aside\n"


async def test_relay_publishes_until_it_is_stopped_and_sets_aside_what_cannot_be(
    run, environ, url, settings, tmp_path
):
    run("setup")
    _add(url, Placed(order_id=1), Placed(order_id=2, text="x" * 100_000), Placed(order_id=3))
    relay = subprocess.Popen(  # noqa: ASYNC220 - its output is read to the end
        [COMMAND, "outbox", "relay", "--metrics-port", "0"], env=environ, cwd=tmp_path,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in relay.stderr:
        if "is set aside" in line:
            break
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(30) == 0
    relay.stderr.close()
    async with EventBus(settings) as bus:
        for channel, count in (("orders.1", 1), ("orders.2", 0), ("orders.3", 1)):
            page = await bus.driver.read(bus.subjects.live(channel), after=None, limit=10)
            assert len(page.messages) == count

    listed = json.loads(run("list", "--json"))
    (row,) = listed["set_aside"]
    assert listed["stats"]["waiting"] == 0
    assert row["channel"] == "orders.2"
    assert str(row["id"]) in run("list")
    assert "to be published again: 1 row" in run("retry", str(row["id"]))
    assert "waiting: 1 row, the oldest for " in run("list")
    assert "not rows that were set aside" in run("forget", "77", code=1)
    assert "give the ids of rows, or --all" in run("forget", code=2)
    assert "deleted: 0 rows" in run("forget", "--all")


def test_relay_needs_a_database(run, environ):
    del environ["DATABASE_URL"]
    assert "DATABASE_URL" in run("relay", code=2)
    environ["DATABASE_URL"] = "oracle://scott:s3cr3t-pass@db/app"
    shown = run("list", code=2)
    assert "allowed: postgresql, sqlite" in shown
    assert "s3cr3t" not in shown


def test_doctor_looks_at_the_outbox_of_the_database(run, environ, url, tmp_path):
    def found():
        done = subprocess.run(
            [COMMAND, "doctor", "--json"], env=environ | {"BROADCAST_DRIVER": "null"},
            cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        findings = json.loads(done.stdout)["findings"]
        return [(each["status"], each["found"]) for each in findings if each["check"] == "outbox"]

    assert found() == []  # there is no such table
    run("setup")
    assert found() == [("ok", "no rows wait")]
    _add(url, Placed(order_id=1))
    ((status, shown),) = found()
    assert status == "ok"
    assert "waiting: 1 row" in shown
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE eventbus_outbox SET created_at = '2026-01-01 00:00:00'"))
    ((status, shown),) = found()
    assert (status, shown.partition(":")[0]) == ("failed", "rows wait to be published")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE eventbus_outbox SET error = 'denied'"))
    engine.dispose()
    assert found() == [("warning", "1 row could not be published")]
    environ["DATABASE_URL"] = "mysql://root:s3cr3t-pass@localhost/app"
    assert found() == []
    environ["DATABASE_URL"] = "postgresql://test:s3cr3t-pass@127.0.0.1:1/app"
    ((status, shown),) = found()
    assert status == "failed"
    assert "s3cr3t" not in shown
