"""What an answer to STREAM.INFO says about a server; clusters: tests/chaos/traps."""

import asyncio
import json
import os
import signal
import time

import pytest
from msgspec.structs import replace

from eventbus.attempts import Backoff
from eventbus.drivers.nats.connection import NatsConnection, Reply, cutoff
from tests.eventbus.drivers.nats.conftest import opened, until
from tests.ports import free_port

SECOND = 1_000_000_000


def answer(**fields):
    return Reply(json.dumps(fields).encode(), "")


def cluster(leader, *seconds):
    """An answer of a leader that heard from its followers so many seconds ago."""
    replicas = [{"name": "other", "active": int(each * SECOND)} for each in seconds]
    return answer(cluster={"name": "c", "leader": leader, "replicas": replicas})


def error(code, err_code):
    return answer(error={"code": code, "err_code": err_code, "description": "why"})


WORK = {
    "a server without a cluster": answer(config={}, state={}),
    "one copy": cluster("nats-1"),
    "followers that were heard": cluster("nats-1", 0.3, 1.0),
    "a majority that was heard": cluster("nats-1", 60.0, 1.0),
    "two copies": cluster("nats-1", 1.0),
    "a follower that was never heard, such as of a new leader": cluster("nats-1", 0, 60.0),
    "no such stream": error(404, 10059),
}
FAIL = {
    "no answer": (None, "no answer"),
    "no JetStream": (Reply(b"", "503"), "no JetStream"),
    "no JSON": (Reply(b"{", ""), "cannot be read"),
    "no leader": (cluster("", 0.0, 0.0, 4.0), "no leader"),
    "a cluster without a leader": (error(503, 10008), "why"),
    "a stream that is offline": (error(500, 10118), "why"),
    "a leader without a majority": (cluster("nats-1", 4.5, 60.0), "hear from 2 of 2 followers"),
    "a leader without its follower": (cluster("nats-1", 4.5), "hear from 1 of 1 followers"),
    "a leader of five": (cluster("nats-1", 1.0, 5.0, 5.0, 5.0), "hear from 3 of 4 followers"),
}


@pytest.mark.parametrize("case", WORK)
def test_server_that_reaches_jetstream_has_no_fault(case):
    assert cutoff.fault_of(WORK[case]) == ""


@pytest.mark.parametrize("case", FAIL)
def test_server_that_does_not_reach_jetstream_says_why(case):
    reply, why = FAIL[case]
    assert why in cutoff.fault_of(reply)


def test_leader_that_heard_nothing_since_a_moment_may_be_the_one_that_is_cut_off():
    reply = cluster("nats-1", 3.0, 3.0)
    assert cutoff.fault_of(reply) == ""
    assert "hear from" in cutoff.fault_of(reply, 2.0)


FINE, FAILING, AWAY = ("", True), ("no leader", True), ("refused", False)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([FINE], 0),
        ([FAILING, FINE, FINE], 1),
        ([AWAY, FINE], 1),
        ([FINE, FAILING], None),  # as a leader says that nobody hears
        ([FAILING, FAILING, FINE], None),
        ([FAILING], None),
        ([AWAY, AWAY], None),
        ([], None),
    ],
)
def test_another_server_is_better_if_most_of_those_that_were_asked_agree(others, chosen):
    servers = [f"server {number}" for number in range(len(others))]
    answers = [cutoff._Other(server, *each) for server, each in zip(servers, others, strict=True)]
    assert cutoff._better(answers) == (None if chosen is None else servers[chosen])


async def test_single_server_is_not_asked(own_settings, monkeypatch):
    asked, request = [], NatsConnection.request
    checks = 0

    class Quick(Backoff):
        def next(self):
            nonlocal checks
            checks += 1
            return 0.001

    def record(self, subject, *args, **options):
        asked.append(subject)
        return request(self, subject, *args, **options)

    monkeypatch.setattr(NatsConnection, "request", record)
    async with opened(own_settings) as driver:
        asked.clear()
        monkeypatch.setattr(cutoff, "_EVERY", Quick(0.001, 0.001))
        before = checks
        watch = cutoff.CutOffWatch(driver._connection, "OWN_EVENTS")
        task = asyncio.create_task(watch.run())
        await until(lambda: checks > before + 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert asked == []


async def test_time_in_which_the_process_stood_still_is_not_time_without_jetstream(
    own_nats_server, own_settings, monkeypatch
):
    nowhere = f"nats://127.0.0.1:{free_port()}"
    both = replace(own_settings, nats_url=f"{own_nats_server.url},{nowhere}")
    compared = asyncio.get_running_loop().create_future()

    class Watch(cutoff.CutOffWatch):
        async def _ask(self, seconds):
            return "the stream has no leader"

        async def _compare(self, fault, since):
            now = asyncio.get_running_loop().time()
            compared.set_result(now - self._reached_at)
            await asyncio.Event().wait()

    monkeypatch.setattr(cutoff, "_EVERY", Backoff(0.05, 0.05, jitter=0))
    async with opened(both) as driver:
        task = asyncio.create_task(Watch(driver._connection, "OWN_EVENTS").run())
        await asyncio.sleep(0)  # it pauses now
        time.sleep(4.0)  # noqa: ASYNC251 - the process stands still
        assert await asyncio.wait_for(compared, 60.0) < 3.0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_server_that_was_left_is_tried_again_if_others_cannot_be_reached(
    own_nats_server, own_settings
):
    """A server in lame duck mode that comes back, while the other address is of no use."""
    nowhere = f"nats://127.0.0.1:{free_port()}"
    both = replace(own_settings, nats_url=f"{own_nats_server.url},{nowhere}")
    async with opened(both) as driver:
        os.kill(own_nats_server.pid, signal.SIGUSR2)
        await until(lambda: driver.counters["losses"] == 1)
        await own_nats_server.stop()
        await own_nats_server.start()
        await until(lambda: driver.is_connected, 60.0)
        assert await driver.publish("own.event.a", b"{}")
