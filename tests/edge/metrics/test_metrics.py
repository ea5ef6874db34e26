"""What a node counts, asked as Prometheus asks."""

import asyncio
import json
import re
import time

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.tokens import issue_token
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.protocols.vocabulary import CloseReason
from tests.edge.conftest import expired

PATIENCE_S = 40.0


async def scrape(edge):
    """Each sample's value by its name, with its labels where it has any."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{edge.url}/metrics") as response,
    ):
        text = await response.text()
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(edge, name, is_enough):
    """Ask until a sample has a value that will do."""
    async with asyncio.timeout(PATIENCE_S):
        samples = await scrape(edge)
        while not is_enough(samples.get(name, 0)):
            await asyncio.sleep(0.02)
            samples = await scrape(edge)
    return samples


async def test_messages_and_bytes_are_counted_in_and_out(edge, bus):
    clients = [await edge.connect() for _ in range(2)]
    for client in clients:
        await client.subscribe("general")
    before = await scrape(edge)
    await bus.publish("general", "news", {"text": "hello"})
    frames = [await client.socket.recv() for client in clients]
    after = await scrape(edge)

    def grown(name):
        return after[f"eventbus_edge_{name}_total"] - before[f"eventbus_edge_{name}_total"]

    assert grown("messages_in") == 1
    assert grown("messages_out") == 2
    frame = frames[0].encode()
    # A server's frame of this size has a head of four bytes (RFC 6455, 5.2).
    assert grown("sent_bytes") == 2 * (len(frame) + 4)
    assert 0 < grown("received_bytes") < len(frame), "an edge adds offset and epoch"


@pytest.mark.parametrize("volatile", [False, True])
async def test_latency_is_observed_once_for_a_message_however_many_clients_it_has(
    edge, bus, volatile
):
    clients = [await edge.connect() for _ in range(3)]
    for client in clients:
        await client.subscribe("general")
    await bus.publish("general", "news", {}, volatile=volatile)
    for client in clients:
        await client.next()
    samples = await scrape(edge)
    assert samples["eventbus_edge_delivery_latency_seconds_count"] == 1
    assert 0 <= samples["eventbus_edge_delivery_latency_seconds_sum"] < PATIENCE_S


async def test_latency_of_a_volatile_message_is_that_of_its_envelope(edge, nats, namespace):
    client = await edge.connect()
    await client.subscribe("general")
    sent_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 30))
    for message in (
        {"event": "news", "data": 1, "timestamp": sent_at},
        {"event": "news", "data": 2, "timestamp": "no time"},
        {"event": "news", "data": 3},
    ):
        await nats.publish(f"{namespace}.live.general", json.dumps(message).encode())
        await client.next()
    samples = await scrape(edge)
    assert samples["eventbus_edge_delivery_latency_seconds_count"] == 1
    assert 29 < samples["eventbus_edge_delivery_latency_seconds_sum"] < 30 + PATIENCE_S


async def test_message_that_matches_a_channel_and_a_pattern_has_one_latency(edge, bus, token):
    client = await edge.connect(token=token(channels=["orders.*"]))
    listener = await edge.connect(token=token("8", channels=["orders.*"]))
    await client.ask("subscribe", pattern="orders.*")
    await listener.subscribe("orders.7")
    await bus.publish("orders.7", "news", {})
    await client.next()
    await listener.next()
    samples = await scraped(edge, "eventbus_edge_messages_in_total", lambda value: value == 2)
    assert samples["eventbus_edge_delivery_latency_seconds_count"] == 1


async def test_rejected_tokens_are_counted_by_reason(edge, token):
    good = token()
    head, body, _ = good.split(".")
    other = issue_token("7", secret="another-secret-that-is-32-bytes-long").rpartition(".")[2]
    bad = {
        "malformed": "no-token",
        "unsigned": f"{head}.{body}.",
        "signature": f"{head}.{body}.{other}",
        "expired": expired(),
        "audience": token(audience="others"),
    }
    for each in bad.values():
        assert (await edge.refusal(token=each))[0] == 401
    samples = await scrape(edge)
    for reason in bad:
        assert samples[f"eventbus_edge_auth_failures_total {reason}"] == 1, reason
    client = await edge.connect(token=good)
    assert "eventbus_edge_auth_failures_total revoked" not in await scrape(edge)
    await client.socket.close()


async def test_lag_of_the_loop_and_of_the_bus_are_measured(edge):
    samples = await scraped(edge, "eventbus_edge_loop_lag_seconds_count", lambda value: value >= 2)
    assert samples["eventbus_edge_bus_connected"] == 1
    assert 0 <= samples["eventbus_edge_bus_lag_seconds"] < PATIENCE_S
    seen = samples["eventbus_edge_loop_lag_seconds_count"]
    time.sleep(0.4)  # noqa: ASYNC251 - what holds the loop up is what is measured
    samples = await scraped(
        edge, "eventbus_edge_loop_lag_seconds_count", lambda value: value >= seen + 2
    )
    assert samples["eventbus_edge_loop_lag_seconds_sum"] > 0.1


async def test_lost_bus_shows_in_the_metrics_and_so_does_its_return(
    start_edge, own_nats_server, namespace
):
    settings = Settings(
        nats_url=own_nats_server.url, namespace=namespace, history_bytes=4 * 1024**2
    )
    async with EventBus(settings) as bus:
        edge = await start_edge(bus)
        await own_nats_server.stop()
        await scraped(edge, "eventbus_edge_bus_connected", lambda value: value == 0)
        samples = await scraped(edge, "eventbus_edge_bus_lag_seconds", lambda value: value > 0.5)
        assert samples["eventbus_edge_bus_connection_losses_total"] == 1
        await own_nats_server.start()
        await scraped(edge, "eventbus_edge_bus_connected", lambda value: value == 1)


async def test_members_of_presence_channels_are_counted(start_edge, bus, token):
    edge = await start_edge(bus, rules=ChannelRules())
    for user in ("7", "8"):
        client = await edge.connect(token=token(user, channels=["presence.room"]))
        await client.subscribe("presence.room")
    samples = await scrape(edge)
    assert samples["eventbus_edge_presence_channels"] == 1
    assert samples["eventbus_edge_presence_members"] == 2


def test_names_follow_prometheuss_conventions():
    """prometheus.io/docs/practices/naming: one prefix, base units, `total` for counters alone."""
    families = list(text_string_to_metric_families(Metrics().exposition().decode()))
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"eventbus_edge_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_milliseconds", "_count", "_kb"))
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


async def test_authorizers_that_raise_or_take_too_long_are_counted_by_kind(start_edge, bus, token):
    rules = ChannelRules()

    @rules.authorize("team.{team_id}")
    async def check(user, team_id):
        if team_id == "broken":
            raise LookupError(team_id)
        await asyncio.Event().wait()

    edge = await start_edge(bus, rules, authorizer_timeout=0.5)
    client = await edge.connect(token=token())
    for team in ("broken", "broken", "slow"):
        assert await client.error("subscribe", channel=f"team.{team}") == "forbidden"
    samples = await scrape(edge)
    assert samples["eventbus_edge_authorizer_faults_total error"] == 2
    assert samples["eventbus_edge_authorizer_faults_total timeout"] == 1


async def test_joins_and_resumes_are_counted(edge, bus):
    at = await bus.publish("general", "tick", 0)
    for epoch, recovered in ((at.epoch, True), (at.epoch, True), ("another", False)):
        client = await edge.connect()
        answer = await client.subscribe("general", data={"offset": at.offset, "epoch": epoch})
        assert answer["recovered"] is recovered
    await (await edge.connect()).subscribe("general")
    samples = await scrape(edge)
    assert samples["eventbus_edge_resumes_total true"] == 2
    assert samples["eventbus_edge_resumes_total false"] == 1
    assert samples["eventbus_edge_join_seconds_count"] == 4


async def test_frames_that_a_slow_client_does_not_get_are_counted_apart(start_edge, bus):
    edge = await start_edge(bus, max_unsent_bytes=64 * 1024)
    slow, closing = [await edge.connect() for _ in "12"]
    node = edge.node
    cut, drained = (node.connections[c.greeting["data"]["connection_id"]] for c in (slow, closing))
    frame = bytes((0x82, 126)) + (60_000).to_bytes(2) + bytes(60_000)
    for _ in range(400):  # in one turn, so that nobody reads meanwhile: more than a socket takes
        cut.write(frame)
    drained.close(CloseReason.DRAINING, "for the test")
    drained.write(b"after the close")
    slow.socket.transport.abort()
    assert await closing.closed() == 4200
    samples = await scraped(edge, "eventbus_edge_connections", lambda open_: open_ == 0)
    assert samples["eventbus_edge_dropped_frames_total closing"] == 1
    assert 0 < samples["eventbus_edge_dropped_frames_total slow_client"] < 400
    assert samples["eventbus_edge_closes_total 4201"] == 1
    assert samples["eventbus_edge_closes_total 4200"] == 1


async def test_errors_of_requests_are_counted_by_code(edge, monkeypatch):
    async def fail(query):
        raise RuntimeError("a fault of the node")

    monkeypatch.setattr(edge.node.census, "stats", fail)
    async with aiohttp.ClientSession() as http:
        for path in ("/nothing", "/api/broadcast/stats", "/api/broadcast/channels/a%20b"):
            async with http.get(edge.url + path) as response:
                assert response.status >= 400
    samples = await scrape(edge)
    for code in ("not_found", "internal", "invalid_channel"):
        assert samples[f"eventbus_edge_refusals_total {code}"] == 1
