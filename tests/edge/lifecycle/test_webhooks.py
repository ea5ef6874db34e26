"""Webhooks: what a node posts, to receivers of every temper."""

import asyncio
import logging
import os
import subprocess
import sys
import time

import msgspec
import pytest
from aiohttp import web

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import ConfigError, InvalidWebhook
from eventbus.messages import utc_now
from eventbus.queue import failed_jobs, job_of, push
from eventbus.webhooks import WebhookEvent, verify
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle.webhooks import (
    QUEUE,
    WebhookBatch,
    retry_after_s,
)
from tests.ports import free_port

SECRET = "a-secret-of-webhooks"
FAST = {
    "webhook_secret": SECRET,
    "webhook_wait": 0.0,
    "webhook_backoff": (0.05,),
    "webhook_timeout": 20.0,
    "lifecycle_linger": 0.1,
    "presence_grace": 0.1,
}
PATIENCE_S = 40


class Receiver:
    """A web service that checks what it gets, and answers as configured."""

    def __init__(self):
        self.answers = []
        """What the next requests get: a status, a response, seconds of silence, or an event to
        wait for."""
        self.requests = []
        """All requests: the time, the headers, and the events."""
        self.followed = 0
        self._came = asyncio.Event()

    async def handle(self, request):
        body = await request.read()
        events = verify(request.headers, body, SECRET)
        self.requests.append((time.monotonic(), dict(request.headers), events))
        self._came.set()
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = 204
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = 204
        return web.Response(status=answer) if isinstance(answer, int) else answer

    async def follow(self, _request):
        self.followed += 1
        return web.Response()

    @property
    def events(self):
        return [event for _, _, events in self.requests for event in events]

    @property
    def words(self):
        return [(e.event.partition("_")[2], e.user_id or e.channel) for e in self.events]

    async def until(self, true):
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._came.clear()
                await self._came.wait()

    async def requests_until(self, count):
        await self.until(lambda: len(self.requests) >= count)
        return self.requests


@pytest.fixture
async def receiver():
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hooks", made.handle)
    app.router.add_route("*", "/elsewhere", made.follow)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    yield made
    await runner.cleanup()


@pytest.fixture
def lease():
    """Seconds until a post that is not acknowledged goes to another node."""
    return 60.0


@pytest.fixture
def settings(settings, lease):
    return msgspec.structs.replace(settings, failed_bytes=1024**2, queue_lease=lease)


@pytest.fixture
def start(start_edge, receiver, bus):
    async def start(which=None, **changes):
        return await start_edge(
            bus if which is None else which, **FAST | {"webhook_url": receiver.url} | changes
        )

    return start


async def failures(bus, count=1):
    store = await bus.queues()
    async with asyncio.timeout(PATIENCE_S):
        while await store.failure_count() < count:  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.05)
    return await failed_jobs(store)


async def test_events_are_posted_signed_and_once(start, settings, receiver, token):
    nodes = [await start(), await start(settings)]
    clients = [await node.connect(token=token("ann", name="Ann")) for node in nodes]
    await asyncio.gather(*(client.subscribe("presence.room") for client in clients))
    await receiver.until(lambda: len(receiver.events) >= 2)
    for client in clients:
        await client.socket.close()
    await receiver.until(lambda: len(receiver.events) >= 4)
    await asyncio.sleep(1)
    assert sorted(receiver.words) == [
        ("joined", "ann"), ("left", "ann"), ("occupied", "presence.room"),
        ("vacated", "presence.room"),
    ]  # fmt: skip
    [joined] = [event for event in receiver.events if event.event == "member_joined"]
    assert (joined.channel, joined.user_id, joined.info) == (
        "presence.room",
        "ann",
        {"name": "Ann"},
    )
    for _, headers, _ in receiver.requests:
        assert headers["Content-Type"] == "application/json"
        assert headers["Eventbus-Delivery"]
        with pytest.raises(InvalidWebhook):
            verify(headers, b'{"events":[]}', SECRET)


async def test_only_the_events_that_are_asked_for_are_posted(start, receiver, token):
    edge = await start(webhook_events=("channel_vacated", "member_joined"))
    client = await edge.connect(token=token("ann"))
    await client.subscribe("presence.room")
    await client.socket.close()
    await receiver.until(lambda: len(receiver.events) >= 2)
    await asyncio.sleep(0.5)
    assert receiver.words == [("joined", "ann"), ("vacated", "presence.room")]


async def test_refused_post_is_repeated_as_the_same_delivery(start, receiver, caplog):
    receiver.answers = [500, 404, 302, 200]
    edge = await start()
    await edge.connect("/ws/general")
    requests = await receiver.requests_until(4)
    assert len({headers["Eventbus-Delivery"] for _, headers, _ in requests}) == 1
    assert len({event.id for event in receiver.events}) == 1
    await asyncio.sleep(0.5)
    assert len(receiver.requests) == 4
    sample = edge.node.metrics.registry.get_sample_value
    assert sample("eventbus_edge_webhook_posts_total", {"result": "failed"}) == 3
    assert sample("eventbus_edge_webhook_posts_total", {"result": "ok"}) == 1
    assert sample("eventbus_edge_webhook_events_total", {"result": "sent"}) == 1
    assert sample("eventbus_edge_webhook_seconds_count") == 4
    lines = [line for line in caplog.messages if line.startswith("webhooks can")]
    assert len(lines) == 4  # three faults, and one end
    assert lines[-1].startswith("webhooks can be posted again, after ")


async def test_a_receiver_that_hangs_costs_the_timeout_and_is_asked_again(start, receiver):
    receiver.answers = [30.0]
    edge = await start(webhook_timeout=0.3)
    await edge.connect("/ws/general")
    first, second, *_ = await receiver.requests_until(2)
    assert 0.25 < second[0] - first[0] < 30
    assert receiver.events[0] == receiver.events[1]


async def test_a_slow_receiver_delays_no_client_and_no_further_post(start, receiver):
    answer = asyncio.Event()
    receiver.answers = [answer]
    edge = await start(webhook_timeout=30.0)
    client = await edge.connect()
    await client.subscribe("general")
    await receiver.requests_until(1)
    await client.subscribe("public")
    await receiver.requests_until(2)  # while the first one has no answer
    answer.set()


async def test_a_redirect_is_not_followed_and_what_failed_can_be_retried(start, receiver, bus):
    elsewhere = {"Location": receiver.url.replace("/hooks", "/elsewhere")}
    receiver.answers = [
        web.Response(status=status, headers=elsewhere) for status in (301, 307, 308)
    ]
    edge = await start(webhook_tries=3)
    await edge.connect("/ws/general")
    [failed] = await failures(bus)
    assert (failed.event, failed.queue, failed.attempts) == ("eventbus.webhook", QUEUE, 3)
    assert "answered 308, which is not followed" in failed.message
    assert receiver.followed == 0
    assert await (await bus.queues()).retry(failed.id)
    requests = await receiver.requests_until(4)
    assert requests[3][1]["Eventbus-Delivery"] == failed.id
    assert requests[3][2] == requests[0][2]
    assert await (await bus.queues()).failure_count() == 0


async def test_a_receiver_that_is_gone_is_not_asked_again(start, receiver, bus):
    receiver.answers = [410]
    edge = await start()
    await edge.connect("/ws/general")
    [failed] = await failures(bus)
    assert (failed.attempts, failed.error) == (1, "eventbus.errors.JobRejected")
    assert "410" in failed.message
    await asyncio.sleep(0.3)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_receiver_says_when_to_come_again(start, receiver, status):
    receiver.answers = [web.Response(status=status, headers={"Retry-After": "1"})]
    edge = await start()
    await edge.connect("/ws/general")
    [first, second] = await receiver.requests_until(2)
    assert second[0] - first[0] > 0.95


async def test_unreachable_server_is_tried_again_and_no_secret_is_logged(start, bus, caplog):
    caplog.set_level(logging.DEBUG)
    port = free_port()
    url = f"http://me:hunter2@127.0.0.1:{port}/hooks?key=hunter3"
    edge = await start(webhook_url=url, webhook_tries=2)
    await edge.connect("/ws/general")
    [failed] = await failures(bus)
    assert f"http://***@127.0.0.1:{port}/hooks?*** cannot be reached" in failed.message
    assert failed.attempts == 2
    seen = caplog.text + failed.message + failed.traceback
    for secret in ("hunter2", "hunter3", SECRET):
        assert secret not in seen


async def test_credentials_of_the_url_are_sent(start, receiver):
    url = receiver.url.replace("http://", "http://me:hunter2@")
    edge = await start(webhook_url=url)
    await edge.connect("/ws/general")
    [(_, headers, _)] = await receiver.requests_until(1)
    assert headers["Authorization"] == "Basic bWU6aHVudGVyMg=="


async def test_posts_go_through_the_proxy_of_the_environment(
    start, receiver, http_proxy, monkeypatch
):
    monkeypatch.setenv("HTTP_PROXY", f"http://{http_proxy.address}")
    url = receiver.url.replace("127.0.0.1", "receiver.test")
    edge = await start(webhook_url=url)
    client = await edge.connect("/ws/general")
    await client.next()
    await receiver.requests_until(1)
    host = url.removeprefix("http://").removesuffix("/hooks")
    assert set(http_proxy.targets) == {f"POST {host}"}


async def test_many_events_are_few_posts_and_none_is_larger_than_allowed(start, receiver):
    edge = await start(webhook_batch=40, webhook_wait=2.0)
    names = [f"many.{i}" for i in range(500)]
    for name in names:
        edge.node._lifecycle.use(name, True)
    await receiver.until(lambda: len(receiver.events) >= 500)
    assert sorted(event.channel for event in receiver.events) == sorted(names)
    sizes = [len(events) for _, _, events in receiver.requests]
    assert max(sizes) <= 40
    assert len(sizes) <= 25


@pytest.mark.parametrize("lease", [3.0])
async def test_a_node_killed_while_it_posts_loses_nothing_and_duplicates_no_event(
    start, start_process, receiver, connect, token, lease
):
    receiver.answers = [0.2] * 10
    environ = {
        "BROADCAST_WEBHOOK_URL": receiver.url,
        "BROADCAST_WEBHOOK_SECRET": SECRET,
        "BROADCAST_WEBHOOK_WAIT": "0",
        "BROADCAST_LIFECYCLE_LINGER": "0.1",
        "BROADCAST_PRESENCE_TTL": "3",
        "BROADCAST_QUEUE_LEASE": str(lease),
        "BROADCAST_FAILED_BYTES": str(1024**2),
    }
    process = await start_process(**environ)
    names = [f"many.{i}" for i in range(60)]
    there = await connect(process.port, token=token("7", channels=["many.*"]))
    await there.next()
    edge = await start()
    here = await edge.connect(token=token("7", channels=["many.*"]))

    async def join(client):
        for name in names:
            await client.subscribe(name)

    joining = [asyncio.create_task(join(client)) for client in (there, here)]
    await receiver.requests_until(3)
    process.process.kill()
    await asyncio.gather(*joining, return_exceptions=True)
    await receiver.until(lambda: {event.channel for event in receiver.events} == set(names))
    await asyncio.sleep(4)  # leases of jobs and of leadership are over
    assert {event.event for event in receiver.events} == {"channel_occupied"}
    by_channel = {}
    for event in receiver.events:
        by_channel.setdefault(event.channel, set()).add(event.id)
    assert {len(ids) for ids in by_channel.values()} == {1}, "one event for each"
    deliveries = {}
    for _, headers, events in receiver.requests:
        ids = tuple(event.id for event in events)
        assert deliveries.setdefault(headers["Eventbus-Delivery"], ids) == ids
    posted = [event_id for ids in deliveries.values() for event_id in ids]
    assert len(posted) == len(set(posted)), "no event is in two deliveries"


@pytest.mark.redis
async def test_a_driver_without_a_queue_needs_the_name_of_one_that_has(
    start, nats_server, namespace, receiver, tmp_path
):
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        "redis-server", "--port", str(port), "--dir", str(tmp_path), "--save", "",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        settings = Settings(
            driver="redis", redis_port=port, namespace=namespace, nats_url=nats_server.url,
            history_bytes=4 * 1024**2, failed_bytes=1024**2,
        )  # fmt: skip
        async with EventBus(settings) as bus:
            with pytest.raises(ConfigError, match="BROADCAST_WEBHOOK_QUEUE_CONNECTION to the name"):
                await start(bus)
            edge = await start(bus, webhook_queue_connection="nats")
            await edge.connect("/ws/general")
            await receiver.requests_until(1)
            assert receiver.words == [("occupied", "general")]
    finally:
        server.terminate()
        await server.wait()


@pytest.mark.parametrize(
    ("changes", "variable", "words"),
    [
        ({"webhook_secret": ""}, "BROADCAST_WEBHOOK_SECRET", "needs BROADCAST_WEBHOOK_SECRET"),
        ({"webhook_secret": "short"}, "BROADCAST_WEBHOOK_SECRET", "has 5 characters"),
        ({"lifecycle": "off"}, "BROADCAST_LIFECYCLE", "would post nothing"),
        ({"webhook_url": "ftp://a/b"}, "BROADCAST_WEBHOOK_URL", "http:// or https://"),
        ({"webhook_url": "http://"}, "BROADCAST_WEBHOOK_URL", "with a host"),
        ({"webhook_url": "http://[::1"}, "BROADCAST_WEBHOOK_URL", "with a host"),
        ({"webhook_url": "//me:hunter2@a"}, "BROADCAST_WEBHOOK_URL", "http:// or https://"),
    ],
)
async def test_invalid_settings_stop_the_start(start, changes, variable, words):
    with pytest.raises(ConfigError, match=words) as caught:
        await start(**changes)
    assert caught.value.variable == variable
    assert "hunter2" not in str(caught.value)
    assert "short" not in str(caught.value)


def test_an_event_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="channel_occupied, channel_vacated"):
        EdgeSettings.from_env({"BROADCAST_WEBHOOK_EVENTS": "channel_occupied,other"})
    read = EdgeSettings.from_env(
        {"BROADCAST_WEBHOOK_EVENTS": "member_left", "BROADCAST_WEBHOOK_BACKOFF": "1, 2.5"}
    )
    assert read.webhook_events == ("member_left",)
    assert read.webhook_backoff == (1.0, 2.5)


def test_lifecycle_events_are_enabled_by_a_url_or_by_their_own_setting():
    def reported(**changes):
        return EdgeSettings(**changes).lifecycle_events

    assert reported() == ()
    assert reported(webhook_url="http://a", webhook_events=("member_left",)) == ("member_left",)
    assert len(reported(lifecycle="on")) == 4
    assert (
        len(reported(lifecycle="on", webhook_url="http://a", webhook_events=("member_left",))) == 4
    )
    assert reported(lifecycle="off", webhook_url="http://a") == ()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("5", 5.0), (" 7 ", 7.0), ("99999999999999", 3600.0), ("-1", None), ("x", None),
     ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Fri, 31 Dec 2199 23:59:59 GMT", 3600.0), ("", None)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_at_most_an_hour(value, seconds):
    assert retry_after_s(value) == seconds


async def test_a_worker_of_its_own_posts_too(bus, receiver, nats_server, namespace):
    event = WebhookEvent(id="1", event="channel_occupied", channel="a", timestamp=utc_now())
    await push(await bus.queues(), job_of(WebhookBatch(events=[event])))
    command = (
        "queue",
        "work",
        "--app",
        "eventbus_edge.lifecycle.webhook_worker",
        "--queue",
        QUEUE,
        "--max-jobs",
        "1",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from eventbus.cli.app import main; main()", *command,
        env={
            "PATH": os.environ["PATH"],
            "NATS_URL": nats_server.url,
            "BROADCAST_CHANNELS_PREFIX": namespace,
            "BROADCAST_HISTORY_BYTES": str(4 * 1024**2),
            "BROADCAST_FAILED_BYTES": str(1024**2),
            "BROADCAST_WEBHOOK_URL": receiver.url,
            "BROADCAST_WEBHOOK_SECRET": SECRET,
        },
        stderr=subprocess.PIPE,
    )  # fmt: skip
    _, log = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, log.decode()
    assert receiver.events == [event]
    assert SECRET not in log.decode()
