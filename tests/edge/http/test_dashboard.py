"""The dashboard's page, its access, and the samples that it listens to."""

import asyncio
import json
import re

import aiohttp
import pytest

from eventbus import Event, ShouldQueue
from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.queue import Worker
from eventbus_edge.access.rules import (
    ANYONE,
    ChannelRules,
    Rule,
)

CHANNEL = "admin.stats"


class Doomed(Event, ShouldQueue, queue="doomed", tries=1):
    number: int


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


def bearing(secret):
    return {"Authorization": f"Bearer {secret}"}


async def ticket(http, edge, **headers):
    async with http.post(edge.url + "/dashboard/ticket", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Cache-Control"] == "no-store"
        return (await response.json())["token"]


async def sample(client):
    """The next sample."""
    while (frame := await client.next())["event"] != "eb:stats":
        pass
    assert frame["channel"] == CHANNEL
    return frame["data"]


async def watch(http, edge):
    client = await edge.connect(token=await ticket(http, edge))
    await client.subscribe(CHANNEL)
    return client


async def test_page_is_served_with_a_policy_that_allows_its_own_files_only(edge, http):
    async with http.get(edge.url + "/dashboard") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert (response.status, response.content_type) == (200, "text/html")
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "style=" not in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=", page)
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        async with http.get(edge.url + path) as response:
            assert response.status == 200, path


async def test_charts_come_with_their_licence(edge, http):
    async with http.get(edge.url + "/static/vendor/uplot/LICENSE") as response:
        assert "MIT License" in await response.text()


async def test_ticket_needs_the_key_or_an_administrators_token(start_edge, bus, http, token):
    edge = await start_edge(bus, api_key="the-key")
    for headers, status in (
        ({}, 401),
        (bearing("another-key"), 401),
        (bearing(token("7")), 403),
        (bearing("the-key"), 200),
        (bearing(token("7", roles=["admin"])), 200),
        (bearing("the-key") | {"Origin": "https://elsewhere.example"}, 403),
    ):
        async with http.post(edge.url + "/dashboard/ticket", headers=headers) as response:
            assert response.status == status


async def test_without_a_key_only_loopback_gets_a_ticket(edge, http):
    proxied = {"X-Forwarded-For": "203.0.113.7"}
    async with http.post(edge.url + "/dashboard/ticket", headers=proxied) as response:
        assert response.status == 403
    assert await ticket(http, edge)


async def test_ticket_is_good_on_another_node_of_the_same_key(start_edge, bus, http):
    one = await start_edge(bus, api_key="the-key")
    other = await start_edge(bus, api_key="the-key")
    client = await other.connect(token=await ticket(http, one, **bearing("the-key")))
    await client.subscribe("orders.42")


async def test_ticket_does_not_give_access_to_the_api(start_edge, bus, http):
    edge = await start_edge(bus, api_key="the-key")
    given = await ticket(http, edge, **bearing("the-key"))
    async with http.get(edge.url + "/api/broadcast/stats", headers=bearing(given)) as response:
        assert response.status == 401


async def test_one_sample_contains_each_node_once(start_edge, settings, bus, http, token):
    async with EventBus(settings) as second:
        one, other = await start_edge(bus), await start_edge(second)
        member = await other.connect(token=token("7"))
        await member.subscribe("chat.1")
        client = await watch(http, one)
        async with asyncio.timeout(40):
            while len((body := await sample(client))["nodes"]) < 2:
                pass
        assert {node["id"] for node in body["nodes"]} == {one.node.id, other.node.id}
        assert sum(node["connections"] for node in body["nodes"]) == 2
        assert body["missing"] == []
        for _ in range(20):
            await bus.publish("chat.1", "Said", {}, volatile=True)
        async with asyncio.timeout(40):
            while not (busy := [c for c in (await sample(client))["channels"] if c[3] > 0]):
                pass
        assert [(name, kind, count) for name, kind, count, _ in busy] == [("chat.1", "private", 1)]


async def test_first_sample_of_each_subscriber_contains_the_last_minutes(
    start_edge, settings, bus, http, token
):
    async with EventBus(settings) as second:
        one, other = await start_edge(bus), await start_edge(second)
        member = await other.connect(token=token("7"))
        await member.subscribe("chat.1")
        for _ in range(20):
            await bus.publish("chat.1", "Said", {}, volatile=True)
        for _ in range(20):
            await member.next()

        def are_noted():
            recent = other.node._watch._recent.steps
            return sum(step.messages_out for step in recent) == 20

        async with asyncio.timeout(40):
            while not are_noted():  # noqa: ASYNC110 - the node notes it every two seconds
                await asyncio.sleep(0.1)
        client = await watch(http, one)
        first = await sample(client)
        history = first["history"]
        assert history["step_s"] == 2
        steps = history["steps"]
        assert sum(sent for _, _, sent, _ in steps) == 20
        assert sum(sum(latencies) for *_, latencies in steps) == 20
        assert max(connections for connections, *_ in steps) >= 1
        assert "history" not in await sample(client)
        again = await watch(http, one)
        assert "history" in await sample(again)
        assert "history" not in await sample(client)


async def test_only_administrators_receive_samples_whatever_the_rules_say(start_edge, bus, http):
    rules = ChannelRules([Rule(Pattern(">"), ChannelKind.PUBLIC, ANYONE)])
    edge = await start_edge(bus, rules=rules)
    stranger = await edge.connect()
    await stranger.subscribe(CHANNEL)
    admin = await watch(http, edge)
    await sample(admin)
    await sample(admin)
    assert await stranger.receives_nothing()


async def test_nothing_is_asked_or_counted_while_nobody_watches(edge, bus, http, nats, namespace):
    asked, first = [], asyncio.Event()

    async def note(message):
        if b'"sample"' in message.data:
            asked.append(message.data)
            first.set()

    await nats.subscribe(f"{namespace}.>", cb=note)
    await nats.flush()
    await asyncio.sleep(2.5)  # what must not happen has that long to
    assert asked == []
    assert edge.node.traffic._on_message is None

    client = await watch(http, edge)
    await sample(client)
    async with asyncio.timeout(40):
        await first.wait()
    assert edge.node.traffic._on_message is not None

    await client.ask("unsubscribe", channel=CHANNEL)
    async with asyncio.timeout(40):
        while edge.node.traffic._on_message is not None:  # noqa: ASYNC110 - the end is a timer's
            await asyncio.sleep(0.1)
    count = len(asked)
    await asyncio.sleep(1.5)
    assert len(asked) == count


async def test_failed_jobs_are_listed_retried_and_forgotten(edge, bus, http):
    @bus.listen(Doomed)
    async def fail(event):
        raise LookupError(f"no <b>{event.number}</b>")

    for number in (1, 2):
        await bus.dispatch(Doomed(number=number))
    async with asyncio.timeout(30):
        await Worker(bus, queues=["doomed"], max_jobs=2).run()
    url = edge.url + "/api/queue/failed"
    async with http.get(url) as response:
        body = await response.json()
    assert body["count"] == 2
    assert {job["message"] for job in body["jobs"]} == {"no <b>1</b>", "no <b>2</b>"}
    first, second = (job["id"] for job in body["jobs"])
    async with http.post(f"{url}/{first}/retry") as response:
        assert (response.status, await response.json()) == (200, {"id": first})
    async with http.delete(f"{url}/{second}") as response:
        assert response.status == 200
    async with http.delete(f"{url}/{second}") as response:
        assert response.status == 404
    async with http.delete(f"{url}/no.id") as response:
        assert (response.status, json.loads(await response.text())["code"]) == (400, "bad_request")
    async with http.get(url) as response:
        body = await response.json()
    assert (body["count"], body["queues"][0]["ready"]) == (0, 1)
