"""Replaces nats-py's client: a connection to the simulated server, with faults."""

import asyncio
import collections
from types import SimpleNamespace

LATENCY_S = 0.02
"""How long a message from the server takes at most, without a fault."""
RECONNECT_S = 0.3


class SimClient:
    """The part of FastClient that the driver uses. `world` is set by the simulation."""

    world = None

    def __init__(self, _login=None, _servers=None):
        self.broker = self.world.broker
        self.is_connected = False
        self.is_closed = False
        self.is_stalled = False
        self.is_deaf = False
        self.stuck = ""
        self.max_payload = 1 << 20
        self.pending_data_size = 0
        self.connected_server_version = SimpleNamespace(major=2, minor=15, patch=1)
        self.connected_url = None
        self.other_servers = []
        self.last_error = None
        self.down = collections.deque()
        """Messages in flight from the server: due time, subscription, subject, payload, headers."""
        self.up = []
        """Actions that could not be sent yet."""
        self._subs = {}
        self._sid = 0
        self._clock = self.world.clock

    async def connect(self, _urls, *, disconnected_cb, reconnected_cb, **_):
        self.process = asyncio.get_running_loop().process
        self.process.client = self
        self.loop = self.process.loop
        self._on_disconnected, self._on_reconnected = disconnected_cb, reconnected_cb
        self.is_connected = True
        self.broker.connect(self)

    # From the node to the server

    def buffer(self, subject, payload, head=b"", reply=""):
        self._do(self.broker.publish, self, subject, payload, _headers_of(head), reply)
        return False

    async def publish(self, subject, payload=b"", reply="", headers=None):
        self._do(self.broker.publish, self, subject, payload, headers or {}, reply)

    async def listen(self, subject, receiver, group=""):
        self._sid += 1
        self._subs[self._sid] = subject, receiver
        if self.is_connected:
            self._do(self.broker.subscribe, self, self._sid, subject)
        return self._sid

    async def unlisten(self, sid):
        subscription = self._subs.pop(sid, None)
        if subscription is not None and self.is_connected:
            self._do(self.broker.unsubscribe, self, sid, subscription[0])

    async def subscribe(self, _subject, cb):
        return SimpleNamespace(unsubscribe=_nothing)

    def _do(self, action, *arguments):
        if self.is_connected and not self.is_stalled:
            action(*arguments)
        elif not self.is_closed:
            self.up.append((action, arguments))

    def drop_unsent(self, root):
        kept = [one for one in self.up if not str(one[1][1]).startswith(root)]
        dropped = len(self.up) - len(kept)
        self.up = kept
        return dropped

    # From the server to the node

    def put(self, sid, subject, payload, headers):
        self.down.append((self._clock.now + LATENCY_S, sid, subject, payload, headers))

    def deliver(self, count, until):
        """Deliver the next messages, those that are due at some time, in one turn of the loop."""
        down, subs = self.down, self._subs
        while count and down and down[0][0] <= until:
            count -= 1
            self.world.arrivals += 1
            _, sid, subject, payload, headers = down.popleft()
            subscription = subs.get(sid)
            if subscription is not None:
                subscription[1](subject, payload, headers)

    def lose_next(self):
        """Lose the next event for this node, as when a route of the cluster breaks."""
        for number, one in enumerate(self.down):
            if one[2].startswith("eb.live.") and one[4].stamp(b"EB_EVENTS"):
                del self.down[number]
                self.world.truth.lost(one[3])
                return True
        return False

    # Faults

    def stall(self):
        self.is_stalled = True

    def resume(self):
        if self.is_stalled:
            self.is_stalled = False
            if self.is_connected:
                self._send_waiting()

    def reset(self, lose):
        """Break the connection. Unsent messages are lost, or sent on the next connection."""
        if not self.is_connected:
            return
        self.is_connected = self.is_stalled = False
        self.world.truth.faults += 1
        self.broker.disconnect(self)
        self.down.clear()
        # The client sends its subscriptions again when it reconnects.
        self.up = [] if lose else [one for one in self.up if one[0] == self.broker.publish]
        self.loop.call_soon(self._start, self._on_disconnected)
        self.loop.call_later(RECONNECT_S, self._reconnect)

    def _reconnect(self):
        if self.is_closed:
            return
        self.is_connected = True
        self.broker.connect(self)
        for sid, (subject, _) in self._subs.items():
            self.broker.subscribe(self, sid, subject)
        self.process.is_healthy_since = self._clock.now
        self._send_waiting()
        self._start(self._on_reconnected)

    def _start(self, callback):
        self.process.keep(callback())

    def _send_waiting(self):
        waiting, self.up = self.up, []
        for action, arguments in waiting:
            action(*arguments)

    async def close(self):
        self.cut()

    def cut(self):
        self.is_closed, self.is_connected = True, False
        self.broker.disconnect(self)
        self.down.clear()
        self.up = []

    def close_transport(self):
        pass

    async def force_reconnect(self):
        self.reset(lose=False)


async def _nothing():
    pass


def _headers_of(head):
    """The headers that `encode_headers` has written."""
    lines = head.decode().split("\r\n")[1:-2]
    return dict(line.split(": ", 1) for line in lines)
