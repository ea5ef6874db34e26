"""NATS users with fewer rights than a service needs: what still works, and what is reported."""

import pytest

from eventbus.config import Settings
from eventbus.errors import ConnectionFailed
from eventbus.server import NatsServer
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.nats.conftest import BYTES, opened
from tests.eventbus.drivers.nats.test_filters import absent

CHANNELS = 20
NO_READS = ["$JS.API.DIRECT.GET.>", "$JS.API.STREAM.MSG.GET.>"]


@pytest.fixture
async def users(tmp_path):
    """Settings of a user who may not read streams, and of one who may do everything."""
    config = {
        "authorization": {
            "users": [
                {"user": "all", "password": "x"},
                {
                    "user": "limited",
                    "password": "x",
                    "permissions": {"publish": {"deny": NO_READS}},
                },
            ]
        }
    }
    async with NatsServer(tmp_path / "nats", config=config) as server:
        yield [
            Settings(
                nats_url=server.url.replace("://", f"://{user}:x@"),
                namespace="own",
                history_bytes=BYTES,
            )
            for user in ("limited", "all")
        ]


async def test_user_who_may_not_read_receives_live_messages_after_a_lost_connection(users, caplog):
    limited, full = users
    inboxes = [Inbox() for _ in range(CHANNELS)]
    async with opened(full) as there, opened(limited) as away:
        for i, inbox in enumerate(inboxes):
            await away.subscribe(f"own.live.c{i}", inbox)
            await there.publish(f"own.event.c{i}", b"before")
            await inbox.until(1)
        async with absent(away):
            for i in range(CHANNELS):
                await there.publish(f"own.event.c{i}", b"missed")
        await away.subscribe("own.live.x", Inbox())  # the connection is back
        for i in range(CHANNELS):
            await there.publish(f"own.event.c{i}", b"after")
            await there.publish(f"own.event.c{i}", b"later")
        for inbox in inboxes:
            before, after, later = await inbox.until(3)
            assert [before.payload, after.payload, later.payload] == [b"before", b"after", b"later"]
            assert after.previous > before.position.offset  # it shows that one is missing
            assert later.previous == after.position.offset
        assert away.counters["gaps"] >= CHANNELS
    lines = [record for record in caplog.records if "no permission" in record.getMessage()]
    assert 1 <= len(lines) <= 6


async def test_user_who_may_not_read_gets_a_filters_live_messages_and_a_gap(users):
    limited, full = users
    inbox, gaps = Inbox(), []
    async with opened(full) as there, opened(limited) as away:
        subscription = await away.subscribe("own.live.>", inbox)
        subscription.on_gap = lambda: gaps.append(len(inbox.deliveries))
        await there.publish("own.event.a", b"before")
        await inbox.until(1)
        async with absent(away):
            await there.publish("own.event.b", b"missed")
        await away.subscribe("own.live.x", Inbox())
        await there.publish("own.event.a", b"after")
        await inbox.until_payload(lambda payloads: payloads[-1] == b"after")
    assert 1 in gaps


async def test_reading_without_the_right_raises_the_documented_error(users):
    limited, _ = users
    async with opened(limited) as driver:
        await driver.publish("own.event.a", b"1")
        for after in (None, 0):
            with pytest.raises(ConnectionFailed, match="no permission"):
                await driver.read("own.live.a", after=after, limit=10)
        with pytest.raises(ConnectionFailed, match="no permission"):
            await driver.durable_state.entries(">")
