"""Limits of the server: anything beyond one is refused with a clear error, and everything else
continues."""

import asyncio
import contextlib

import pytest
from msgspec.structs import replace

from eventbus.config import Settings
from eventbus.drivers.consumers import ConsumerSettings
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import ConnectionFailed, EncodingError, StreamMismatch, SubscribeDenied
from eventbus.server import NatsServer
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.nats.conftest import BYTES, connected, kill, opened, until

LIMIT = 20


@pytest.fixture
async def server(tmp_path):
    config = {"max_subscriptions": LIMIT, "max_payload": 8192}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        yield server


@pytest.fixture
def limited(server):
    return Settings(nats_url=server.url, namespace="own", history_bytes=BYTES, publish_timeout=5)


async def fill(driver, count=40):
    """Subscribe to channels at once; returns the inboxes of those accepted, and the errors."""
    inboxes = {f"c{i}": Inbox() for i in range(count)}
    results = await asyncio.gather(
        *(driver.subscribe(f"own.live.{name}", inbox) for name, inbox in inboxes.items()),
        return_exceptions=True,
    )
    accepted, errors = {}, []
    for (name, inbox), result in zip(inboxes.items(), results, strict=True):
        if isinstance(result, Exception):
            errors.append(result)
        else:
            accepted[name] = (inbox, result)
    return accepted, errors


async def subscribe_and_receive(driver, accepted, payload):
    """Every accepted subscription gets a message that is published now."""
    for name in accepted:
        await driver.publish(f"own.event.{name}", payload)
    for inbox, _ in accepted.values():
        await inbox.until_payload(lambda payloads: payload in payloads)


async def test_subscriptions_beyond_the_limit_are_refused_and_the_others_stay_active(limited):
    async with opened(limited) as driver:
        accepted, errors = await fill(driver)
        assert len(accepted) == LIMIT - 1  # one is for replies
        assert {type(error) for error in errors} == {SubscribeDenied}
        assert "max_subscriptions" in str(errors[0])
        await subscribe_and_receive(driver, accepted, b"1")
        counters = driver.counters
        assert (counters["losses"], counters["rebuilds"]) == (0, 0)
        _, freed = accepted.pop("c0")
        await freed.aclose()
        inbox = Inbox()
        await driver.subscribe("own.live.new", inbox)  # there is room for one again
        with pytest.raises(SubscribeDenied):
            await driver.subscribe("own.control.more", Inbox())
        await subscribe_and_receive(driver, accepted | {"new": (inbox, None)}, b"2")


async def test_watches_and_consumers_beyond_the_limit_are_refused(limited):
    async with opened(limited) as driver:
        await fill(driver)
        with pytest.raises(SubscribeDenied, match="max_subscriptions"):
            await driver.state.watch(">", lambda *_: None)
        with pytest.raises(SubscribeDenied, match="max_subscriptions"):
            await driver.queues.reader("q").fetch(1)
        assert driver.counters["losses"] == 0


async def test_limit_that_is_lowered_is_reported_and_the_refused_ones_recover(limited, server):
    async with opened(limited) as driver:
        accepted, _ = await fill(driver, LIMIT - 1)
        await subscribe_and_receive(driver, accepted, b"before")
        await kill(server, driver)
        await server.stop()
        server._config["max_subscriptions"] = LIMIT // 2
        await server.start()
        await until(lambda: driver.is_connected)
        await until(lambda: driver._connection.subscriptions.refused == LIMIT // 2)
        assert "refuses 10 subscriptions" in await driver.check()
        for name in accepted:
            await driver.publish(f"own.event.{name}", b"while refused")
        for _, subscription in list(accepted.values())[: LIMIT // 2]:
            await subscription.aclose()
        rest = dict(list(accepted.items())[LIMIT // 2 :])
        for inbox, _ in rest.values():
            await inbox.until_payload(lambda payloads: b"while refused" in payloads)
        await subscribe_and_receive(driver, rest, b"after")
        assert await driver.check() == ""
        for inbox, _ in rest.values():
            assert inbox.payloads == [b"before", b"while refused", b"after"]


async def publish_until_refused(driver):
    async with asyncio.timeout(20):
        while True:
            await driver.publish("own.event.a", b"x" * 5000)
            await asyncio.sleep(0.01)


async def test_message_above_a_limit_that_was_lowered_is_refused_and_the_driver_recovers(
    limited, server
):
    async with opened(limited) as driver:
        await driver.publish("own.event.a", b"x" * 5000)
        server.reload({"max_payload": 1024})
        with pytest.raises(EncodingError, match="max_payload is 1024"):
            await publish_until_refused(driver)
        await driver.publish("own.event.a", b"x" * 500)
        assert driver.counters["losses"] <= 1


async def test_connection_beyond_the_limit_is_refused_with_the_reason(tmp_path):
    async with NatsServer(tmp_path / "nats", config={"max_connections": 1}) as server:
        settings = Settings(nats_url=server.url, namespace="own", history_bytes=BYTES)
        async with connected(server.url):
            with pytest.raises(ConnectionFailed, match="max_connections"):
                await NatsDriver(replace(settings, connect_timeout=1.5)).open()
        async with opened(settings) as driver:
            await driver.publish("own.event.a", b"x")


async def test_error_that_the_server_survives_does_not_end_the_connection(limited, caplog):
    async with opened(limited) as driver:
        inbox = Inbox()
        await driver.subscribe("own.live.a", inbox)
        client = driver._connection.client
        client._transport.write(b"SUB a..b 999\r\n")  # the server says: Invalid Subject
        await until(lambda: "invalid subject" in caplog.text.lower())
        await driver.publish("own.event.a", b"x")
        await inbox.until(1)
        assert driver._connection.client is client
        assert driver.counters["losses"] == 0


async def test_error_that_ends_the_connection_is_followed_by_a_reconnect(limited, caplog):
    async with opened(limited) as driver:
        inbox = Inbox()
        await driver.subscribe("own.live.a", inbox)
        driver._connection.client._transport.write(b"NONSENSE\r\n")
        await until(lambda: "unknown protocol operation" in caplog.text.lower())
        await driver.publish("own.event.a", b"x")
        await inbox.until(1)
        assert driver.counters["losses"] == 1


async def account_of(stack, folder, **jetstream):
    """Settings for a server with one account, which has these limits of JetStream."""
    accounts = {
        "A": {
            "users": [{"user": "a", "password": "x"}],
            "jetstream": {"max_store": 2**27, "max_mem": 2**27, **jetstream},
        }
    }
    server = await stack.enter_async_context(NatsServer(folder, config={"accounts": accounts}))
    url = server.url.replace("://", "://a:x@")
    return Settings(nats_url=url, namespace="own", history_bytes=BYTES, connect_timeout=30)


async def test_account_that_allows_few_unacknowledged_messages_can_have_queues_and_groups(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        settings = await account_of(stack, tmp_path / "nats", max_ack_pending=50)
        driver = await stack.enter_async_context(opened(settings))
        await driver.queues.push("q", "1", b"{}", 0.0)
        reader = driver.queues.reader("q")
        stack.push_async_callback(reader.aclose)
        [job] = await reader.fetch(5)
        await job.done()
        consumer = await driver.consume("c", "own.live.a", ConsumerSettings(30.0, from_start=False))
        stack.push_async_callback(consumer.aclose)
        await driver.publish("own.event.a", b"1")
        async with asyncio.timeout(20):
            [unacked] = await consumer.take(5)
        assert unacked.delivery.payload == b"1"
        await unacked.ack()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_streams": 2}, "max_streams"),
        ({"max_consumers": 1}, "max_consumers"),
        ({"max_bytes_required": True}, "max_bytes_required"),
    ],
)
async def test_error_for_a_limit_of_the_account_names_the_setting(tmp_path, limits, words):
    async with contextlib.AsyncExitStack() as stack:
        settings = await account_of(stack, tmp_path / "nats", **limits)
        driver = await stack.enter_async_context(opened(settings))
        readers = [driver.queues.reader(name) for name in ("q", "r")]
        results = await asyncio.gather(*(one.fetch(1) for one in readers), return_exceptions=True)
        refused = [result for result in results if isinstance(result, StreamMismatch)]
        assert refused  # of a limit of one, either reader may be the first
        assert all(words in str(error) for error in refused)
        await driver.publish("own.event.a", b"1")  # the rest of the driver is unaffected


async def test_message_above_the_limit_of_its_user_is_refused_and_others_are_stored(
    operator, jwt_server, tmp_path
):
    """The server announces its own limit only, and closes the connection for such a message."""
    file = tmp_path / "user.creds"
    file.write_text(operator.user("admin", payload=2000))
    settings = Settings(
        nats_url=jwt_server.url, nats_creds=str(file), namespace="own", history_bytes=BYTES
    )
    async with opened(settings) as driver:
        sizes = [100, 5000, 1000, 100]
        results = await asyncio.gather(
            *(driver.publish("own.event.a", b"x" * size) for size in sizes), return_exceptions=True
        )
        refused = [isinstance(result, EncodingError) for result in results]
        assert refused == [size > 2000 for size in sizes], results
        losses = driver.counters["losses"]
        assert losses <= 3
        with pytest.raises(EncodingError):  # the limit is known by now
            await driver.publish("own.event.a", b"x" * 5000)
        await driver.publish("own.event.a", b"x" * 1500)
        assert driver.counters["losses"] == losses
