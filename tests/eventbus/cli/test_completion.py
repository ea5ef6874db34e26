"""What a shell offers for the beginning of a word."""

import asyncio
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventbus.bus import EventBus
from eventbus.queue import FailedJob
from eventbus.queue.jobs import failure_of


@pytest.mark.parametrize(
    ("words", "expected"),
    [("eventbus broad", {"broadcast"}), ("eventbus broadcast p", {"ping"})],
)
def test_shell_completes_groups_and_commands(words, expected):
    command = Path(sys.executable).parent / "eventbus"
    shown = subprocess.run(
        [command],
        env={**os.environ, "_EVENTBUS_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split()) - 1)},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert set(shown.stdout.split()) == expected, shown.stderr


def completions(words, **environ):
    """What bash is offered for the last word."""
    given = words.split(" ")
    done = subprocess.run(
        [Path(sys.executable).parent / "eventbus"],
        env={**os.environ, "_EVENTBUS_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(given) - 1)} | environ,
        capture_output=True, text=True, check=False, timeout=150, cwd=environ.pop("PWD", None),
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def filled(settings):
    """A stream with two channels, and a queue with a job and a failed one."""

    async def fill():
        async with EventBus(settings) as bus:
            await bus.publish("orders.1", "e", {})
            await bus.publish("general", "e", {})
            store = await bus.queues()
            for number in range(2):
                await store.push("mail", f"job-{number}", b"{}", 0)
            reader = store.reader("mail")
            async with asyncio.timeout(60):
                while (taken := await reader.wait()) is None:
                    pass
            now = datetime.datetime.now(datetime.UTC)
            failed = FailedJob(
                id="job-0", queue="mail", event="Sent", attempts=1, failed_at=now,
                error="ValueError", message="no", traceback="",
            )  # fmt: skip
            await taken.fail(failure_of(failed, taken.payload))

    asyncio.run(fill())
    return {"NATS_URL": settings.nats_url, "BROADCAST_CHANNELS_PREFIX": settings.namespace}


def test_shell_completes_names_from_the_cluster(filled):
    for words, names in {
        "eventbus subjects inspect ": ["general", "orders.1"],
        "eventbus subjects tail or": ["orders.1"],
        "eventbus broadcast test --channel g": ["general"],
        "eventbus queue work --queue ": ["mail"],
        "eventbus queue retry job": ["job-0"],
    }.items():
        # A completion gives up after two seconds, which a busy machine can take.
        tries = (completions(words, **filled) for _ in range(15))
        assert next(filter(None, tries), None) == names


def test_shell_completes_names_from_the_queues_of_another_driver(filled):
    for words, names in {
        "eventbus queue work --connection nats --queue ": ["mail"],
        "eventbus queue retry --connection nats job": ["job-0"],
    }.items():
        tries = (completions(words, **filled, BROADCAST_DRIVER="null") for _ in range(5))
        assert next(filter(None, tries), None) == names


def test_shell_completes_events_of_the_application(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.eventbus]\napp = "eventbus.notifications"\n')
    offered = completions("eventbus schema show ", PWD=str(tmp_path))
    assert {"alert", "notification"} <= set(offered)
    command = "eventbus schema show --app eventbus.notifications al"
    assert completions(command) == ["alert"]


@pytest.mark.parametrize(
    "words",
    ["eventbus subjects inspect ", "eventbus queue retry 0", "eventbus queue work --queue x,",
     "eventbus schema show --app no_such_module x"],
)  # fmt: skip
@pytest.mark.parametrize("url", ["", "nats://127.0.0.1:1", "nats://192.0.2.1:4222", "nonsense://"])
def test_without_a_broker_or_application_it_is_quick_and_silent(words, url, tmp_path):
    began = time.monotonic()
    assert completions(words, NATS_URL=url, PWD=str(tmp_path)) == []
    assert time.monotonic() - began < 20
