"""Lets commands query the edge nodes of the cluster, over the bus, as nodes query each other."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from eventbus.bus import EventBus
from eventbus.cli.running import opened_bus
from eventbus.errors import EventBusError

if TYPE_CHECKING:
    from eventbus_edge.cluster.inquiry import Inquiry

__all__ = ["NoEdge", "asking", "inquiry", "no_edge"]


class NoEdge(EventBusError):
    """No edge node replied."""


@contextlib.asynccontextmanager
async def asking() -> AsyncIterator[tuple[EventBus, "Inquiry"]]:
    """Open a bus with the settings of the environment, and an Inquiry on it."""
    async with opened_bus() as bus, inquiry(bus) as asked:
        yield bus, asked


@contextlib.asynccontextmanager
async def inquiry(bus: EventBus) -> AsyncIterator["Inquiry"]:
    """Open an Inquiry, which queries all edge nodes. It waits at most a second for replies."""
    from eventbus_edge.cluster.cluster import Cluster  # noqa: PLC0415 - keeps `eventbus --help` fast
    from eventbus_edge.cluster.inquiry import Inquiry  # noqa: PLC0415

    name = f"cli-{secrets.token_hex(6)}"
    cluster = Cluster(bus.driver, bus.subjects, name, _ignore, is_node=False)
    await cluster.open()
    try:
        yield Inquiry(cluster, bus.driver.name)
    finally:
        await cluster.aclose()


def no_edge(bus: EventBus) -> NoEdge:
    """The error for when no edge node replies."""
    return NoEdge(
        f"no edge node replied over {bus.driver.name}, namespace {bus.settings.namespace!r}: "
        "start one with `eventbus edge run`, or run this command with the NATS_URL, "
        "BROADCAST_DRIVER and BROADCAST_CHANNELS_PREFIX of the edge"
    )


def _ignore(_fault: str) -> None:
    """Commands have no metrics. The result of a query lists the nodes that did not reply."""
