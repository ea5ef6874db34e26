"""Redis servers of tests/eventbus/drivers, edges of tests/edge, and a workload on both."""

import contextlib

import pytest

from eventbus.bus import EventBus
from tests.chaos.redis.workload import CHANNELS, Workload
from tests.edge.conftest import clients, runners, start_edge, token
from tests.eventbus.drivers.conftest import (
    RedisServer,
    group,
    own_cluster,
    own_redis,
    start_redis,
    start_sentinel,
)

__all__ = [
    "RedisServer",
    "clients",
    "group",
    "own_cluster",
    "own_redis",
    "runners",
    "start_edge",
    "start_redis",
    "start_sentinel",
    "token",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in this folder: all need Redis."""
    folder = __file__.rpartition("/")[0]
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(pytest.mark.redis)


@pytest.fixture
async def settings(namespace):
    """Edges of this folder get their settings from the tests."""
    return


@pytest.fixture
async def start_workload(start_edge, clients, runners, token):
    """Two edges, two drivers and a publisher: `await start_workload(settings)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(settings, **edge_settings):
            workload = Workload(settings)
            workload.edges = [await start_edge(settings, **edge_settings) for _ in range(2)]
            bus = await stack.enter_async_context(EventBus(settings))
            stack.push_async_callback(workload.aclose)
            workload.bus = bus
            for edge in workload.edges:
                await workload.receive_by_client(edge, token=token("7", channels=list(CHANNELS)))
            await workload.receive_by_driver(stack)
            workload.begin(bus)
            return workload

        yield start
        await clients.aclose()
        await runners.aclose()
