"""A node's traffic: who may watch its messages, and until when."""

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.base import Delivery
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.config import EdgeSettings
from eventbus_edge.node import Node


@pytest.fixture
async def traffic():
    async with EventBus(Settings(driver="memory")) as bus:
        node = Node(bus, EdgeSettings(), ChannelRules(), None)
        await node.start()
        yield node.traffic
        await node.aclose()


def take(traffic, channel):
    traffic.take(channel, Delivery(f"eb.live.{channel}", b'{"event": "e", "data": 1}', {}))


async def test_watcher_gets_the_channel_of_each_message_until_it_is_removed(traffic):
    first, second = [], []
    unwatch = traffic.watch(first.append)
    take(traffic, "general")
    unwatch()
    take(traffic, "general")
    traffic.watch(second.append)
    unwatch()  # twice: it must not remove the next watcher
    take(traffic, "public")
    assert (first, second) == (["general"], ["public"])


async def test_payload_that_is_not_a_message_is_not_reported_to_the_watcher(traffic):
    seen = []
    traffic.watch(seen.append)
    traffic.take("general", Delivery("eb.live.general", b"{", {}))
    assert seen == []


async def test_second_watcher_is_refused(traffic):
    traffic.watch(print)
    with pytest.raises(AssertionError, match="have a watcher already"):
        traffic.watch(print)
