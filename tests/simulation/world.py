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
CLIENTS = 10
WITH_PATTERNS = 2
"""How many of the clients join patterns."""
CHANNELS = ("pub.a", "pub.b", "room.1", "presence.x")
WAITS = (0.001,) * 6 + (0.005,) * 6 + (0.02,) * 6 + (0.06,) * 4 + (0.3, 2.0)
LONGEST_S = 1.0
"""The longest time that one step lets pass if nothing happens."""
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
        self._steps = {name[5:]: getattr(self, name) for name in dir(self) if name[:5] == "step_"}
        self.faults = []
        """Unexpected errors of the nodes, from their logs and loops."""

    def begin(self):
        self.processes = [self._start(number) for number in range(NODES)]
        self.clients = [
            Client(self, number, joins_patterns=number >= CLIENTS - WITH_PATTERNS)
            for number in range(CLIENTS)
        ]
        self.advance(1.0)

    def _start(self, number):
        self._started += 1
        return Process(self, number)

    def apply(self, step):
        """Carry out a step, then check what can be checked at any time. Raises Broken.

        Returns whether there was anything to do.
        """
        name, a, b = step
        is_done = self._steps[name](a, b) is not False
        if self.truth.broken or self.faults:
            self.check()
        return is_done

    def check(self):
        """Raises Broken."""
        if self.truth.broken:
            raise self.truth.broken[0]
        if self.faults:
            raise Broken("faults: only the bus fails", repr(self.faults[0]))

    def advance(self, seconds):
        """Let time pass. Messages in flight arrive, unless a fault stops them."""
        end = self.clock.now + seconds
        while self._let_happen(end, at_once=1000):
            pass
        self.clock.now = end

    def _let_happen(self, end, *, at_once):
        """Advance to the next moment at which anything happens, and let it happen.

        Returns False, and does nothing, if there is none until `end`. What happens is one of: an
        entry expires, the timers of a process are due, or messages reach a process, `at_once` at
        most in one turn of its loop.
        """
        clock, broker = self.clock, self.broker
        at, what = broker.next_expiry(), None
        for process in self.processes:
            if process.is_dead or process.is_frozen:
                continue
            loop, link = process.loop, process.client
            if loop.timers and (when := loop.next_timer()) < at:
                at, what = when, loop
            if link is not None and link.down and not link.is_stalled and link.down[0][0] < at:
                at, what = link.down[0][0], process
        if at > end:
            return False
        clock.now = max(clock.now, at)
        if what is None:
            broker.expire()
        elif isinstance(what, Process):
            what.deliver(at_once, clock.now)
        else:
            what.run_timers()
        return True

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

    def step_next(self, _a, _b):
        """Time passes until the next thing happens, anywhere."""
        if not self._let_happen(self.clock.now + LONGEST_S, at_once=1):
            self.clock.now += LONGEST_S

    def step_arrive(self, a, _b):
        """One message arrives that is in flight to any node."""
        waiting = [one for one in self.processes if one.is_reachable and one.client.down]
        if not waiting:
            return False
        waiting[a % len(waiting)].deliver(1)
        return True

    def step_deliver(self, a, b):
        """A node receives the next messages that are in flight to it, in one turn of its loop."""
        process = self._process(a)
        if not process.is_reachable or not process.client.down:
            return False
        process.deliver(1 + b % 8)
        return True

    def step_lose(self, a, _b):
        """An event is silently lost on its way to a node."""
        link = self._process(a).client
        return link is not None and link.lose_next()

    def step_reset(self, a, b):
        """A node's connection to the server breaks."""
        process = self._process(a)
        link = process.client
        if process.is_frozen or link is None or not link.is_connected:
            return False
        link.reset(lose=b % 2 == 0)
        process.run()
        return True

    def step_stall(self, a, _b):
        """Nothing gets through between a node and the server."""
        link = self._process(a).client
        if link is None or link.is_stalled or link.is_closed:
            return False
        link.stall()
        return True

    def step_resume(self, a, _b):
        process = self._process(a)
        if process.client is None or not process.client.is_stalled:
            return False
        process.client.resume()
        process.recovered()
        return True

    # Clients

    def step_connect(self, a, b):
        client = self.clients[a % CLIENTS]
        return not client.is_refused and client.connect(self._process(b))

    def step_drop(self, a, _b):
        return self.clients[a % CLIENTS].drop()

    def step_join(self, a, b):
        return self.clients[a % CLIENTS].join(CHANNELS[b % len(CHANNELS)])

    def step_leave(self, a, b):
        return self.clients[a % CLIENTS].leave(CHANNELS[b % len(CHANNELS)])

    def step_slow(self, a, _b):
        """A client stops reading."""
        client = self.clients[a % CLIENTS]
        if client.conn is None or client.is_slow:
            return False
        client.is_slow = True
        return True

    def step_read(self, a, _b):
        client = self.clients[a % CLIENTS]
        if not client.is_slow:
            return False
        client.is_slow = False
        client.conn.read()
        return True

    def step_whisper(self, a, b):
        client, channel = self.clients[a % CLIENTS], CHANNELS[b % len(CHANNELS)]
        if not client.is_connected or channel not in client.subs:
            return False
        self._volatile += 1
        client.conn.send(Whisper(channel, "hi", b"%d" % self._volatile, None))
        return True

    def step_update(self, a, b):
        """A member changes its info."""
        client = self.clients[a % CLIENTS]
        if not client.is_connected or CHANNELS[3] not in client.subs:
            return False
        client.conn.send(Presence(CHANNELS[3], {"status": b % 5}, None))
        return True

    def step_login(self, a, _b):
        client = self.clients[a % CLIENTS]
        if client.conn is not None:
            return False
        client.login()
        return True

    # Access

    def step_revoke(self, a, b):
        """A node is asked to revoke a user, or a user's access to a channel."""
        process = self._process(b)
        user, channel = f"u{a % USERS}", CHANNELS[b % 4] if a % 3 else None
        if not process.is_ready:
            return False
        revoked = self.truth.revocations[user, channel] = Revoked(self.clock.wall())
        process.run(process.keep, self._revoke(process, user, channel, revoked))
        return True

    async def _revoke(self, process, user, channel, revoked):
        with contextlib.suppress(EventBusError):
            await process.node.access.revoker.revoke(user_id=user, channel=channel)
            revoked.accepted = self.clock.now

    def step_lift(self, a, b):
        process = self._process(b)
        user, channel = f"u{a % USERS}", CHANNELS[b % 4] if a % 3 else None
        if not process.is_ready or not self.truth.revocations.pop((user, channel), None):
            return False
        process.run(process.keep, self._lift(process, user, channel))
        return True

    async def _lift(self, process, user, channel):
        with contextlib.suppress(EventBusError):
            await process.node.access.revoker.lift(user_id=user, channel=channel)

    # Nodes and the server

    def step_kill(self, a, _b):
        return self._process(a).kill()

    def step_start(self, a, _b):
        number = a % NODES
        if not self.processes[number].is_dead:
            return False
        self.processes[number] = self._start(number)
        return True

    def step_freeze(self, a, _b):
        process = self._process(a)
        if process.is_dead or process.is_frozen:
            return False
        process.is_frozen = True
        return True

    def step_thaw(self, a, _b):
        process = self._process(a)
        if not process.is_frozen:
            return False
        process.is_frozen = False
        process.recovered()
        process.loop.run_timers()
        return True

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
                elif sub.unreported == self.truth.faults == 1:
                    fail(MISSING, f"{client} is not notified of losses on {channel}")
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
            "held for patterns": wildcards._held,
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
                "subscriptions to patterns": len(node.traffic.wildcards),
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

    done: int
    """Steps that had anything to do."""
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
            done = 0
            world.begin()
            for number, step in enumerate(steps):
                try:
                    done += world.apply(step)
                except Broken as exc:
                    exc.at = number
                    raise
            if to_the_end:
                world.finish()
            return Outcome(done, world.arrivals, world.clock.now - began)
        finally:
            world.end()
