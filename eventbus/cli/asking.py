"""A command's way to ask the nodes of the cluster, over the bus as they ask each other."""

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
    """No edge node has answered."""


@contextlib.asynccontextmanager
async def asking() -> AsyncIterator[tuple[EventBus, "Inquiry"]]:
    """The bus of the environment's settings, and who asks all nodes over it."""
    async with opened_bus() as bus, inquiry(bus) as asked:
        yield bus, asked


@contextlib.asynccontextmanager
async def inquiry(bus: EventBus) -> AsyncIterator["Inquiry"]:
    """Who asks all nodes over a bus. An answer is waited for at most a second."""
    from eventbus_edge.cluster.cluster import Cluster  # noqa: PLC0415 - `eventbus --help` is to be fast
    from eventbus_edge.cluster.inquiry import Inquiry  # noqa: PLC0415

    name = f"cli-{secrets.token_hex(6)}"
    cluster = Cluster(bus.driver, bus.subjects, name, _ignore, is_node=False)
    await cluster.open()
    try:
        yield Inquiry(cluster, bus.driver.name)
    finally:
        await cluster.aclose()


def no_edge(bus: EventBus) -> NoEdge:
    """What to do when no edge answers."""
    return NoEdge(
        f"no edge node has answered over {bus.driver.name}, namespace {bus.settings.namespace!r}: "
        "start one with `eventbus edge run`, or give this command the edge's NATS_URL, "
        "BROADCAST_DRIVER and BROADCAST_CHANNELS_PREFIX"
    )


def _ignore(_fault: str) -> None:
    """A command has no metrics; who has not answered stands in the answers."""
