"""A node: few parts, which start and close together."""

import asyncio

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import BusStateError
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.config import EdgeSettings
from eventbus_edge.node import Node


async def test_node_has_at_most_a_dozen_public_parts():
    async with EventBus(Settings(driver="memory")) as bus:
        node = Node(bus, EdgeSettings(), ChannelRules(), None)
        assert len([name for name in vars(node) if not name.startswith("_")]) <= 12


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_close_during_the_start_of_a_node_ends_both_and_leaves_nothing(turns):
    async with EventBus(Settings(driver="memory")) as bus:
        before = asyncio.all_tasks()
        node = Node(bus, EdgeSettings(lifecycle="on"), ChannelRules(), None)
        starting = asyncio.create_task(node.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing = [asyncio.create_task(node.aclose()) for _ in range(2)]
        await asyncio.sleep(0)
        closing[0].cancel()
        async with asyncio.timeout(40):
            await asyncio.gather(*closing, return_exceptions=True)
            (result,) = await asyncio.gather(starting, return_exceptions=True)
            await node.aclose()
        assert result is None or isinstance(result, BusStateError)
        assert asyncio.all_tasks() == before
        with pytest.raises(BusStateError, match="closed"):
            await node.start()


async def test_every_part_of_a_node_is_closed_although_one_fails(monkeypatch):
    async with EventBus(Settings(driver="memory")) as bus:
        before = asyncio.all_tasks()
        node = Node(bus, EdgeSettings(lifecycle="on"), ChannelRules(), None)
        await node.start()

        async def fail():
            raise OSError("broken")

        monkeypatch.setattr(node._watch, "aclose", fail)
        with pytest.raises(OSError, match="broken"):
            await node.aclose()
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        assert all("dashboards" in name for name in left), "only the part that failed is left"
