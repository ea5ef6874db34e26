"""A simulated process: a real node on a loop of its own, which can be killed or suspended."""

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.config import Settings
from eventbus.errors import EventBusError
from eventbus_edge.access import (
    ANYONE,
    AUTHENTICATED,
    ChannelRules,
    Rule,
)
from eventbus_edge.config import EdgeSettings
from eventbus_edge.node import Node
from tests.simulation.loop import Loop

TTL_S, GRACE_S, LINGER_S = 3.0, 2.0, 2.0
HISTORY = 12
MAX_UNSENT = 16_384
ROOM = ChannelRules(
    [
        Rule(Pattern("pub.*"), ChannelKind.PUBLIC, ANYONE, AUTHENTICATED),
        Rule(Pattern("presence.>"), ChannelKind.PRESENCE, AUTHENTICATED, AUTHENTICATED),
    ],
    defaults=(),
)
BUS_SETTINGS = Settings(
    nats_url="nats://sim:4222",
    history_messages=HISTORY,
    history_seconds=60.0,
)
EDGE_SETTINGS = EdgeSettings(
    lifecycle="on",
    lifecycle_linger=LINGER_S,
    presence_ttl=TTL_S,
    presence_grace=GRACE_S,
    jwt_leeway=0.0,
    max_unsent_bytes=MAX_UNSENT,
    compression=False,
)


class Verifier:
    """Looks up the claims of a token in the world."""

    def __init__(self, world):
        self._world = world

    async def verify(self, token):
        return self._world.tokens[token]


class Process:
    """A node's process: running, suspended or dead."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.loop = Loop(world.clock, world.faults)
        self.loop.process = self
        self.client = None
        self.node = None
        self.node_id = ""
        self.is_dead = self.is_frozen = False
        self.is_healthy_since = world.clock.now
        self._kept = set()
        self.loop.run(self.keep, self._boot())

    def __repr__(self):
        return f"node {self.number}"

    def keep(self, work):
        task = self.loop.create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    @property
    def is_ready(self):
        return self.node is not None and not self.is_frozen and not self.is_dead

    @property
    def is_reachable(self):
        """Whether messages reach it."""
        return not self.is_frozen and self.client is not None and not self.client.is_stalled

    async def _boot(self):
        try:
            bus = EventBus(BUS_SETTINGS)
            await bus.open()
            node = Node(bus, EDGE_SETTINGS, ROOM, Verifier(self.world))
            self.node_id = node.id
            await node.start()
        except EventBusError:  # another step starts it again, as a supervisor would
            self.loop.call_soon(self.kill)
        else:
            self.node = node

    def run(self, callback=None, *arguments):
        """Run the process now; if it is suspended, `callback` runs when it resumes."""
        if self.is_dead:
            return
        if self.is_frozen:
            if callback is not None:
                self.loop.call_soon(callback, *arguments)
            return
        self.loop.run(callback, *arguments)

    def deliver(self, count, until=float("inf")):
        if self.is_reachable:
            self.loop.run(self.client.deliver, count, until)

    def kill(self):
        if self.is_dead:
            return False
        self.is_dead = True
        self.loop.kill()
        if self.client is not None:
            self.client.cut()
        for client in self.world.clients:
            if client.conn is not None and client.conn.process is self:
                client.conn.is_over = True
                client.gone()
        return True

    @property
    def is_healthy(self):
        link = self.client
        return link is not None and link.is_connected and not link.is_stalled and not self.is_frozen

    def recovered(self):
        self.is_healthy_since = self.world.clock.now
