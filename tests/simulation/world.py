"""The simulated world, and the steps that change it.

A step is a name with two small numbers. A step that makes no sense at the moment does nothing, so
that any part of a list of steps can be run.
"""

import collections
import contextlib
from typing import NamedTuple

from eventbus.client.cursor import Phase
from eventbus.errors import EventBusError
from eventbus_edge.protocols import (
    Presence,
    Whisper,
)
from tests.simulation.broker import Broker
from tests.simulation.client import USERS, Client
from tests.simulation.loop import Clock
from tests.simulation.process import GRACE_S, LINGER_S, Process
from tests.simulation.promises import MISSING, Broken, Revoked, Truth
from tests.simulation.reality import simulated

NODES = 3
CLIENTS = 8
CHANNELS = ("pub.a", "pub.b", "room.1", "presence.x")
WAITS = (0.001,) * 6 + (0.005,) * 6 + (0.02,) * 6 + (0.06,) * 4 + (0.3, 2.0)
SETTLE_S = 16.0
"""Longer than any recovery takes: a lease, the hold-off after a loss, the grace period."""


def envelope(channel, number):
    return (
        b'{"channel":"%b","event":"tick","data":%d,"timestamp":"2026-01-01T00:00:00Z","id":"%d"}'
        % (channel.encode(), number, number)
    )


class World:
    """The simulated server, nodes and clients, and the steps."""

    def __init__(self):
        self.clock = Clock()
        self.truth = Truth(self.clock)
        self.broker = Broker(self.clock, self.truth)
        self.tokens = {}
        self.most_at_once = 64 * 1024
        """The most bytes that one turn may add to a client's unsent data."""
        self.arrivals = 0
        """Messages that have reached a node."""
        self.processes = []
        self.clients = []
        self._published = 0
        self._volatile = 0
        self._started = 0
        self.faults = []
        """Unexpected errors of the nodes, from their logs and loops."""

    def begin(self):
        self.processes = [self._start(number) for number in range(NODES)]
        self.clients = [Client(self, number) for number in range(CLIENTS)]
        self.advance(1.0)

    def _start(self, number):
        self._started += 1
        return Process(self, number)

    def apply(self, step):
        """Carry out a step, then check what can be checked at any time. Raises Broken."""
        name, a, b = step
        getattr(self, f"step_{name}")(a, b)
        self.check()

    def check(self):
        """Raises Broken."""
        if self.truth.broken:
            raise self.truth.broken[0]
        if self.faults:
            raise Broken("faults: only the bus fails", repr(self.faults[0]))

    def advance(self, seconds):
        """Let time pass. Messages in flight arrive, unless a fault stops them."""
        clock, broker = self.clock, self.broker
        end = clock.now + seconds
        while True:
            running = [p for p in self.processes if not (p.is_dead or p.is_frozen)]
            at, what = broker.next_expiry(), None
            for process in running:
                if (when := process.loop.next_timer()) < at:
                    at, what = when, process.loop.run_timers
                link = process.client
                if link is not None and (when := link.due()) < at:
                    at, what = when, process
            if at > end:
                break
            clock.now = max(clock.now, at)
            if what is None:
                broker.expire()
            elif isinstance(what, Process):
                now, link = clock.now, what.client
                what.deliver(sum(1 for one in link.down if one[0] <= now))
            else:
                what()
        clock.now = end

    # Publishers

    def step_pub(self, a, _b):
        """A publisher sends an event."""
        self._published += 1
        channel = CHANNELS[a % len(CHANNELS)]
        self.broker.store_event(channel, envelope(channel, self._published), {})

    def step_vol(self, a, _b):
        """A publisher sends a volatile event."""
        self._volatile += 1
        channel = CHANNELS[a % len(CHANNELS)]
        self.broker.route(f"eb.live.{channel}", envelope(channel, self._volatile))

    # Time and the network

    def step_wait(self, a, _b):
        self.advance(WAITS[a % len(WAITS)])

    def step_deliver(self, a, b):
        """A node receives the next messages that are in flight to it."""
        self._process(a).deliver(1 + b % 8)

    def step_lose(self, a, _b):
        """An event is silently lost on its way to a node."""
        if (link := self._process(a).client) is not None:
            link.lose_next()

    def step_reset(self, a, b):
        """A node's connection to the server breaks."""
        process = self._process(a)
        if not process.is_frozen and process.client is not None:
            process.client.reset(lose=b % 2 == 0)
            process.run()

    def step_stall(self, a, _b):
        """Nothing gets through between a node and the server."""
        if (link := self._process(a).client) is not None:
            link.stall()

    def step_resume(self, a, _b):
        process = self._process(a)
        if process.client is not None and process.client.is_stalled:
            process.client.resume()
            process.recovered()

    # Clients

    def step_connect(self, a, b):
        client = self.clients[a % CLIENTS]
        if not client.is_refused:
            client.connect(self._process(b))

    def step_drop(self, a, _b):
        self.clients[a % CLIENTS].drop()

    def step_join(self, a, b):
        self.clients[a % CLIENTS].join(CHANNELS[b % len(CHANNELS)])

    def step_leave(self, a, b):
        self.clients[a % CLIENTS].leave(CHANNELS[b % len(CHANNELS)])

    def step_slow(self, a, _b):
        """A client stops reading."""
        client = self.clients[a % CLIENTS]
        client.is_slow = client.conn is not None

    def step_read(self, a, _b):
        client = self.clients[a % CLIENTS]
        client.is_slow = False
        if client.conn is not None:
            client.conn.read()

    def step_whisper(self, a, b):
        client, channel = self.clients[a % CLIENTS], CHANNELS[b % len(CHANNELS)]
        if client.is_connected and channel in client.subs:
            self._volatile += 1
            client.conn.send(Whisper(channel, "hi", b"%d" % self._volatile, None))

    def step_update(self, a, b):
        """A member changes its info."""
        client = self.clients[a % CLIENTS]
        if client.is_connected and CHANNELS[3] in client.subs:
            client.conn.send(Presence(CHANNELS[3], {"status": b % 5}, None))

    def step_login(self, a, _b):
        client = self.clients[a % CLIENTS]
        if client.conn is None:
            client.login()

    # Access

    def step_revoke(self, a, b):
        """A node is asked to revoke a user, or a user's access to a channel."""
        process = self._process(b)
        user, channel = f"u{a % USERS}", CHANNELS[b % 4] if a % 3 else None
        if process.is_ready:
            revoked = self.truth.revocations[user, channel] = Revoked(self.clock.wall())
            process.run(process.keep, self._revoke(process, user, channel, revoked))

    async def _revoke(self, process, user, channel, revoked):
        with contextlib.suppress(EventBusError):
            await process.node.access.revoker.revoke(user_id=user, channel=channel)
            revoked.accepted = self.clock.now

    def step_lift(self, a, b):
        process = self._process(b)
        user, channel = f"u{a % USERS}", CHANNELS[b % 4] if a % 3 else None
        if process.is_ready and self.truth.revocations.pop((user, channel), None):
            process.run(process.keep, self._lift(process, user, channel))

    async def _lift(self, process, user, channel):
        with contextlib.suppress(EventBusError):
            await process.node.access.revoker.lift(user_id=user, channel=channel)

    # Nodes and the server

    def step_kill(self, a, _b):
        self._process(a).kill()

    def step_start(self, a, _b):
        number = a % NODES
        if self.processes[number].is_dead:
            self.processes[number] = self._start(number)

    def step_freeze(self, a, _b):
        process = self._process(a)
        process.is_frozen = not process.is_dead

    def step_thaw(self, a, _b):
        process = self._process(a)
        if process.is_frozen:
            process.is_frozen = False
            process.recovered()
            process.loop.run_timers()

    def step_restart(self, _a, _b):
        self.truth.forget_lifecycle()
        self.broker.restart()

    def step_back(self, a, _b):
        self.truth.forget_lifecycle()
        self.broker.go_back(1 + a % 20)

    def step_wipe(self, _a, _b):
        self.truth.forget_lifecycle()
        self.broker.lose_events()

    # The end of all faults

    def step_settle(self, _a, _b):
        """End all faults, wait, and check what must be right by now."""
        for number in range(NODES):
            self.step_thaw(number, 0)
            self.step_resume(number, 0)
        for number in range(CLIENTS):
            self.step_read(number, 0)
        for _ in range(int(SETTLE_S)):
            for number in range(NODES):
                self.step_start(number, 0)
            for client in self.clients:
                if client.is_refused:
                    client.login()
                self.step_connect(client.number, client.number)
                for channel in list(client.subs):
                    self.ask_again(client, channel)
            self.advance(1.0)
            self.check()
        for number in range(len(CHANNELS)):
            self.step_pub(number, 0)  # only a later message shows that the last one was lost
        self.advance(2.0)
        self.check()
        self._check_settled()

    def ask_again(self, client, channel):
        client.ask(channel)

    def _process(self, number):
        return self.processes[number % NODES]

    def _check_settled(self):
        fail = self.truth.fail
        present = collections.defaultdict(set)
        for client in self.clients:
            if not client.is_connected:
                fail("recovery: clients reconnect", f"{client} is not connected")
            for channel, sub in client.subs.items():
                if sub.cursor.phase is not Phase.ACTIVE:
                    fail("recovery: channels are joined again", f"{client}, {channel}")
                elif not self.truth.has_all(sub, channel):
                    fail(
                        MISSING,
                        f"{client} has {sub.last or sub.base} of {channel}, "
                        f"the stream {self.truth.tails[channel]}",
                    )
                present[channel].add(client.user)
        for client in self.clients:
            sub = client.subs.get(CHANNELS[3])
            if sub is not None and sub.members != present[CHANNELS[3]]:
                fail(
                    "presence: members are right",
                    f"{client} sees {sorted(sub.members or ())}, "
                    f"but the members are {sorted(present[CHANNELS[3]])}",
                )
        for (channel, user), event in self.truth.lifecycle.items():
            there = bool(present[channel]) if user is None else user in present[channel]
            if there != (event in ("channel_occupied", "member_joined")):
                fail("lifecycle: the last event is right", f"{event} of {channel} {user}")
        for process in self.processes:
            self._check_bounds(process)
        self.check()

    def _check_bounds(self, process):
        node = process.node
        if node is None:
            self.truth.fail("recovery: nodes start", repr(process))
            return
        hub, wildcards = node._hub, node.traffic.wildcards
        mine = [c for c in self.clients if c.conn is not None and c.conn.process is process]
        left = {
            "backlogs": hub._backlogs,
            "muted": wildcards._muted,
            "held bytes": hub.unsent.held,
            "connections": len(node.connections) - len(mine),
            "slots": len(node.access.admission.slots) - len(mine),
            "channels": set(hub.channels) - {name for c in mine for name in c.subs},
        }
        for what, rest in left.items():
            if rest:
                self.truth.fail("bounds: nothing is left behind", f"{process}: {what} {rest}")

    def finish(self):
        """Disconnect all clients, and check that nothing of them is left."""
        self.step_settle(0, 0)
        for client in self.clients:
            client.drop()
            client.subs.clear()
        self.advance(GRACE_S + LINGER_S + 4.0)
        for process in self.processes:
            self._check_bounds(process)
            node = process.node
            for what, rest in {
                "subscriptions": node.traffic.channels,
                "presence channels": node.presence.counts()[0],
                "lifecycle channels": len(node._lifecycle._own),
            }.items():
                if rest:
                    self.truth.fail("bounds: nothing is left behind", f"{process}: {what} {rest}")
        for item, event in self.truth.lifecycle.items():
            if event in ("channel_occupied", "member_joined"):
                self.truth.fail("lifecycle: the last event is right", f"{event} of {item}")
        self.check()

    def end(self):
        for process in self.processes:
            process.kill()
        self.processes.clear()
        self.clients.clear()


class Outcome(NamedTuple):
    """The numbers of a run in which all promises held."""

    arrivals: int
    """Messages that reached nodes."""
    seconds: float
    """Simulated seconds."""


def run(steps, *, to_the_end=True):
    """Run a list of steps; `to_the_end`: then end all faults, and check again. Raises Broken."""
    world = World()
    with simulated(world):
        try:
            began = world.clock.now
            world.begin()
            for number, step in enumerate(steps):
                try:
                    world.apply(step)
                except Broken as exc:
                    exc.at = number
                    raise
            if to_the_end:
                world.finish()
            return Outcome(world.arrivals, world.clock.now - began)
        finally:
            world.end()
