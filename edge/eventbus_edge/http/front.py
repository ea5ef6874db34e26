"""The first protocol of every socket: it opens WebSockets, and leaves the rest to aiohttp.

A handshake through aiohttp costs twice as much as the rest of connecting: a parser, a task, a
request, its route and its middlewares, all of which end with the upgrade. So the head of an
ordinary handshake is read here, in one pass. Anything else, or unusual in any way, goes to aiohttp
byte by byte, and so does a handshake that is refused, with its refusal: there is one place that
answers requests.

This is the hot path of clients that connect at once. It must not judge a request: whatever it does
not know goes to aiohttp.
"""

import asyncio
import functools
import logging
import re
import socket
from collections.abc import (
    Callable,
    Coroutine,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
    Protocol,
    cast,
)

from aiohttp import web
from multidict import (
    CIMultiDict,
    CIMultiDictProxy,
)

from eventbus.tasks import eager_task
from eventbus.user_code import guarded
from eventbus_edge.access import Admission
from eventbus_edge.problem import (
    Problem,
    internal_error,
)
from eventbus_edge.sessions import is_gone
from eventbus_edge.turns import Turns

__all__ = ["OPENERS", "Detached", "Front", "Fronts", "Head", "Opener", "read_head"]


_log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 8 * 1024
MAX_AHEAD_BYTES: Final = 64 * 1024
"""What a client may send before its handshake is answered; reading pauses beyond that."""
HANDSHAKE_S: Final = 0.0003
"""About what a handshake takes."""
_LINE: Final = re.compile(r"GET (/[A-Za-z0-9/_@=,;.-]*)(?:\?([A-Za-z0-9_@=,;.&-]*))? HTTP/1\.1\r\n")
"""A request whose target has no encoded character and no dot segment that would be resolved."""
_FIELDS: Final = re.compile(r"(?<=\n)([A-Za-z0-9-]+):[\t ]*([\t\x20-\x7e]*)\r\n")
_UNUSUAL: Final = frozenset({
    "content-length", "transfer-encoding", "expect", "sec-websocket-key1",
})  # fmt: skip
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?", re.ASCII)


class Head(NamedTuple):
    """The head of a handshake, which has no body."""

    path: str
    query: list[tuple[str, str]]
    headers: CIMultiDictProxy[str]
    size: int
    """Its bytes; what follows is the client's first frames."""


def read_head(data: bytes, max_headers: int) -> Head | None:
    """Read an ordinary WebSocket handshake at the beginning of `data`; None for anything else."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    if end < 4 or not data.startswith(b"GET /"):
        return None
    text = data[:end].decode("latin-1")
    line = _LINE.match(text)
    if line is None:
        return None
    path, query = line.groups()
    fields = _FIELDS.findall(text, line.end())
    if text.count("\n") != len(fields) + 2:  # beside the request's line and the empty one
        return None
    if " \r" in text or "\t\r" in text:
        fields = [(name, value.rstrip("\t ")) for name, value in fields]
    given = {name.lower(): value for name, value in fields}
    if (
        len(fields) > max_headers
        or "/." in path
        or given.get("upgrade", "").lower() != "websocket"
        or not _UNUSUAL.isdisjoint(given)
        or len(given) < len(fields)  # some may not be repeated
        or not _HOST.fullmatch(given.get("host", ""))
    ):
        return None
    asked: list[tuple[str, str]] = []
    if query:
        for pair in query.split("&"):
            if pair:
                name, _, value = pair.partition("=")
                asked.append((name, value))
    return Head(path, asked, CIMultiDictProxy(CIMultiDict(fields)), end)


class Detached(NamedTuple):
    """A socket after an upgrade, which aiohttp no longer knows."""

    transport: asyncio.Transport
    received: bytes
    """What the client sent right behind its request."""
    ended: Callable[[], None]
    """To call when the socket has ended: then it no longer counts for its address."""


class Opener(NamedTuple):
    """Opens WebSockets of one route."""

    route: str
    """The template of its path."""
    open: Callable[[Head, "Front"], Coroutine[Any, Any, None]]
    """Detaches the socket, or raises Problem; does neither if the client has left."""


OPENERS: Final[web.AppKey[dict[str, Opener]]] = web.AppKey("OPENERS", dict)
"""The openers by path; a path with a slash at its end stands for all its direct children."""


class Handler(Protocol):
    """A connection of aiohttp."""

    def take_over(
        self, transport: asyncio.Transport, peer: str | None, data: bytes, refusal: Problem | None
    ) -> None:
        """Serve a socket from its first bytes on; `refusal` answers the first request."""


class Fronts:
    """What the first protocols of a server share."""

    def __init__(
        self,
        openers: Mapping[str, Opener],
        handlers: Callable[[], Handler],
        admission: Admission,
        on_refusal: Callable[[str], None],
        turns: Turns,
        *,
        timeout: float,
        max_headers: int,
    ) -> None:
        """A socket that sends nothing for `timeout` seconds is closed.

        `on_refusal` gets the code of each handshake that is refused.
        """
        self.openers = openers
        self.handlers = handlers
        self.admission = admission
        self.on_refusal = on_refusal
        self.turns = turns
        self.timeout = timeout
        self.max_headers = max_headers
        self.open: dict[Front, float] = {}
        """When each was opened, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, front: "Front") -> None:
        """A socket was opened."""
        loop = asyncio.get_running_loop()
        self.open[front] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.timeout, self._sweep)

    def _sweep(self) -> None:
        """Close the sockets that have been silent for too long: one timer serves all of them."""
        self._timer = None
        loop = asyncio.get_running_loop()
        end = loop.time() - self.timeout
        for front, opened in list(self.open.items()):
            if opened > end:
                self._timer = loop.call_at(opened + self.timeout, self._sweep)
                break
            front.close_idle()

    def close_idle(self) -> None:
        """Close the sockets that have not sent a request."""
        for front in list(self.open):
            front.close_idle()

    async def shutdown(self, within: float) -> None:
        """Wait for handshakes in progress, at most `within` seconds, and end all sockets."""
        if tasks := [front.task for front in self.open if front.task is not None]:
            _, pending = await asyncio.wait(tasks, timeout=within)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        for front in list(self.open):
            front.abort()
        if self._timer is not None:
            self._timer.cancel()


class Front(asyncio.Protocol):
    """A socket until its first request is read, or until its handshake is answered."""

    __slots__ = ("_data", "_fronts", "_peer", "_size", "_socket", "_transport", "task")

    def __init__(self, fronts: Fronts) -> None:
        self.task: asyncio.Task[None] | None = None
        """The handshake in progress."""
        self._fronts = fronts
        self._transport: asyncio.Transport | None = None
        """None before the socket is accepted, and after it was given away."""
        self._socket: Any = None
        """The transport's socket; some event loops create a new object on each access."""
        self._peer: str | None = None
        """The address that the socket was counted for; None if it was not."""
        self._data = b""
        self._size = 0
        """The size of the handshake's head."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a socket, unless its address has too many, idle ones included."""
        fronts = self._fronts
        accepted = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._socket = transport.get_extra_info("socket")
        try:
            peer = self._socket.getpeername()
        except OSError:  # the client has left
            accepted.abort()
            return
        if isinstance(peer, tuple):  # a Unix socket has none
            if not fronts.admission.opened(peer[0]):
                accepted.abort()
                return
            self._peer = peer[0]
        self._transport = accepted
        fronts.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """The socket has ended."""
        peer = self._peer
        self._leave()
        if peer is not None:
            self._fronts.admission.ended(peer)

    def data_received(self, data: bytes) -> None:
        """Open a WebSocket, or leave the socket to aiohttp."""
        transport = self._transport
        if transport is None:
            return
        if self.task is not None:  # first frames, sent before the handshake is answered
            self._data += data
            if len(self._data) > MAX_AHEAD_BYTES:
                transport.pause_reading()
            return
        head = read_head(data, self._fronts.max_headers)
        opener = None if head is None else self._opener(head.path)
        if head is None or opener is None:
            self._hand_over(data)
            return
        self._data, self._size = data, head.size
        task = eager_task(self._open(opener, head), "a handshake")  # most wait for nothing
        if not task.done():
            self.task = task

    def _opener(self, path: str) -> Opener | None:
        openers = self._fronts.openers
        return openers.get(path) or openers.get(path[: path.rfind("/") + 1])

    async def _open(self, opener: Opener, head: Head) -> None:
        refusal = None
        try:
            await self._fronts.turns.enter(HANDSHAKE_S)
            with guarded():
                await opener.open(head, self)
        except Problem as problem:
            refusal = problem.forget_origin()
        except Exception:  # noqa: BLE001 - a fault of the node: logged, and answered
            _log.exception("GET %s failed", opener.route)
            refusal = internal_error()
        finally:
            self.task = None
        if refusal is not None:
            self._fronts.on_refusal(refusal.code)
        if self._transport is None:  # it was opened, or the client has left
            return
        if refusal is None:
            self.abort()
        else:
            self._hand_over(self._data, refusal)

    def socket(self) -> asyncio.Transport | None:
        """The socket; None once the client has left, even if that has not been read yet."""
        transport = self._transport
        if transport is None or is_gone(transport, self._socket):
            return None
        return transport

    @property
    def remote(self) -> str | None:
        """The address of the other end; None for a Unix socket."""
        return self._peer

    def detach(self) -> Detached:
        """Give the socket away, for an upgrade."""
        transport, peer = self._transport, self._peer
        assert transport is not None, "an upgrade is of an open connection"
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._leave()
        if len(self._data) > MAX_AHEAD_BYTES:
            transport.resume_reading()
        ended = _nothing if peer is None else functools.partial(self._fronts.admission.ended, peer)
        return Detached(transport, self._data[self._size :], ended)

    def _hand_over(self, data: bytes, refusal: Problem | None = None) -> None:
        transport, peer = self._transport, self._peer
        assert transport is not None, "only an open socket is handed over"
        self._leave()
        if len(data) > MAX_AHEAD_BYTES:
            transport.resume_reading()
        self._fronts.handlers().take_over(transport, peer, data, refusal)

    def close_idle(self) -> None:
        """Close the socket unless a handshake is in progress."""
        if self.task is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the socket at once."""
        if self._transport is not None:
            self._transport.abort()

    def _leave(self) -> None:
        self._transport = self._peer = self._socket = None
        self._fronts.open.pop(self, None)


def _nothing() -> None:
    """The socket was not counted."""
