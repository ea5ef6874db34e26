# ruff: noqa: SLF001 - what this module is for; see its docstring
"""The one module with private API of nats-py: messages handed over straight from its parser.

Measured on nats-py 2.16.0 with the five headers of a republished message: 14.6 µs a message through
`Client.subscribe(cb=)`, 4.8 µs here; and 4.9 KB for an idle subscription there, 0.2 KB here. Where
the private parts are not those of 2.16, `client_class` gives the form on public API instead.
"""

import importlib.metadata
import inspect
import logging
from collections.abc import Iterator
from typing import Any, Final, TypeVar, overload

from nats.aio.client import Client

from eventbus.drivers.nats_login import SecureClient
from eventbus.drivers.nats_wire import (
    NO_WIRE_HEADERS,
    PlainClient,
    Receiver,
    Stamp,
    WireHeaders,
    call_receiver,
)

__all__ = ["FastClient", "RawHeaders", "client_class", "unsupported"]

_log = logging.getLogger(__name__)

SUPPORTED: Final = "2.16."
_STREAM: Final = b"\r\nNats-Stream: "
_SEQUENCE: Final = b"\r\nNats-Sequence: "
_PREVIOUS: Final = b"\r\nNats-Last-Sequence: "
_TIME: Final = b"\r\nNats-Time-Stamp: "
_END: Final = b"\r\n"
_STATUS_LINE: Final = b"NATS/1.0 "
_OF_FIRST_LINE: Final = ("Status", "Description")

D = TypeVar("D")


def unsupported() -> str:
    """Why this nats-py cannot be used in this way; empty when it can."""
    version = importlib.metadata.version("nats-py")
    if not version.startswith(SUPPORTED):
        return f"nats-py {version} is not {SUPPORTED}x"
    taken = list(inspect.signature(Client._process_msg).parameters)
    if taken != ["self", "sid", "subject", "reply", "data", "headers"]:
        return "Client._process_msg takes other parameters"
    client = Client()
    names = ("_sid", "_subs", "_pongs", "_pings_outstanding", "_reading_task", "stats")
    methods = ("_send_subscribe", "_send_unsubscribe", "_parse_header_lines", "_process_pong")
    missing = [name for name in (*names, *methods) if not hasattr(client, name)]
    return f"Client has no {', '.join(missing)}" if missing else ""


def client_class() -> type[PlainClient] | type["FastClient"]:
    """The class of clients to use with the installed nats-py."""
    if why := unsupported():
        _log.warning("messages take nats-py's slower public way: %s", why)
        return PlainClient
    return FastClient


class RawHeaders(WireHeaders):
    """Headers as bytes, parsed when somebody asks for one by name."""

    __slots__ = ("_parsed", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._parsed: dict[str, str] | None = None

    @property
    def status(self) -> str:
        raw = self._raw
        return raw[9:12].decode("ascii", "replace") if raw.startswith(_STATUS_LINE) else ""

    def stamp(self, stream: bytes) -> Stamp | None:
        raw = self._raw
        try:
            if _value(raw, _STREAM) != stream:
                return None
            return Stamp(
                int(_value(raw, _SEQUENCE)),
                int(_value(raw, _PREVIOUS)),
                _value(raw, _TIME).decode("ascii", "replace"),
            )
        except ValueError:  # no number: no stream wrote this
            return None

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, /, default: str | D) -> str | D: ...
    def get(self, key: str, /, default: str | D | None = None) -> str | D | None:
        """One header, found without parsing the others: 0.4 µs in place of 7."""
        if self._parsed is not None or key in _OF_FIRST_LINE:
            return self._headers().get(key, default)
        raw = self._raw
        start = raw.rfind(b"\r\n%b:" % key.encode())
        if start < 0:
            return default
        start += len(key) + 3
        end = raw.find(_END, start)
        return raw[start : end if end >= 0 else None].strip().decode("utf-8", "replace")

    def __getitem__(self, key: str) -> str:
        return self._headers()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers())

    def __len__(self) -> int:
        return len(self._headers())

    def __repr__(self) -> str:
        return f"RawHeaders({self._raw!r})"

    def _headers(self) -> dict[str, str]:
        if self._parsed is None:
            first, _, rest = self._raw.partition(_END)
            parsed: dict[str, str] = {}
            if first.startswith(_STATUS_LINE):
                status, _, description = (
                    first[len(_STATUS_LINE) :].decode("utf-8", "replace").partition(" ")
                )
                parsed["Status"] = status
                if description:
                    parsed["Description"] = description
            parsed.update(Client._parse_header_lines(rest))
            self._parsed = parsed
        return self._parsed


def _value(raw: bytes, name: bytes) -> bytes:
    """The value of the last header of that name, empty when there is none.

    A stream appends its headers to the publisher's, which may bear the same names.
    """
    start = raw.rfind(name)
    if start < 0:
        return b""
    start += len(name)
    return raw[start : raw.find(_END, start)]


class _Listener:
    """Stands where nats-py keeps a Subscription: what its reconnecting and closing code reads."""

    __slots__ = ("_id", "_queue", "_received", "_subject", "receiver")

    _max_msgs = 0
    _jsi = None
    _wait_for_msgs_task = None
    _message_iterator = None
    _pending_next_msgs_calls = None

    def __init__(self, sid: int, subject: str, receiver: Receiver, group: str) -> None:
        self._id = sid
        self._queue = group
        self._subject = subject
        self._received = 0
        self.receiver = receiver


class FastClient(SecureClient):
    """A client whose listeners are called from the parser, without queue and task for each."""

    async def listen(self, subject: str, receiver: Receiver, group: str = "") -> int:
        """Subscribe; the answer is a key for `unlisten`."""
        self._sid += 1
        sid = self._sid
        listener: Any = _Listener(sid, subject, receiver, group)
        self._subs[sid] = listener
        # While there is no connection, the client subscribes anew when there is one.
        if self.is_connected:
            await self._send_subscribe(listener)
        return sid

    async def unlisten(self, key: int) -> None:
        """End a subscription; nothing is delivered once this is called."""
        if self._subs.pop(key, None) is not None and self.is_connected:
            await self._send_unsubscribe(key)

    @property
    def is_deaf(self) -> bool:
        """Whether the client takes itself for connected and does not read any more."""
        return self.is_connected and self._reading_task is not None and self._reading_task.done()

    @property
    def stuck(self) -> str:
        """Why the client has lost its connection and does not try to make another; mostly empty.

        An error that nats-py does not expect ends its task that reconnects, and nothing else.
        """
        task = self._reconnection_task
        if self.is_connected or self.is_closed or task is None or not task.done():
            return ""
        return repr(None if task.cancelled() else task.exception())

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        listener: Any = self._subs.get(sid)
        if type(listener) is not _Listener:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        try:
            name = subject.decode()
        except UnicodeDecodeError:
            # Raised here, it would end the read loop: anyone may publish such a subject.
            _log.warning("a message is dropped: its subject is not UTF-8: %r", subject[:80])
            return
        call_receiver(
            listener.receiver, name, data, RawHeaders(headers) if headers else NO_WIRE_HEADERS
        )

    async def _process_pong(self) -> None:
        """Survive a late answer: nats-py would set a cancelled future, and end its read loop."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()
