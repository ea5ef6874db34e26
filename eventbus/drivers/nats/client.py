"""The one module that uses nats-py's private API: messages are delivered straight from its parser.

nats-py's own subscriptions cost a queue and a task each, and parse the headers of every message
into a dict. With five headers that is 14.6 µs per message; this client takes 4.8 µs, and 0.2 KB
instead of 4.9 KB per idle subscription. The price is a pinned nats-py: `require_supported` refuses
any other version.
"""

# ruff: noqa: SLF001 - what this module is for; see its docstring

import asyncio
import functools
import importlib.metadata
import inspect
import logging
import re
from collections.abc import (
    Callable,
    Iterator,
    Mapping,
)
from typing import (
    Any,
    Final,
    NamedTuple,
    TypeVar,
    overload,
)

from nats import errors as nats_errors
from nats.aio.client import Client

from eventbus.drivers.nats.auth import SecureClient
from eventbus.drivers.nats.errors import DRIVER
from eventbus.errors import (
    ConnectionFailed,
    InvalidChannel,
    InvalidPattern,
)
from eventbus.user_code import must_pass

__all__ = [
    "NO_WIRE_HEADERS",
    "PROBE",
    "FastClient",
    "KnownServer",
    "Receiver",
    "Stamp",
    "WireHeaders",
    "encode_headers",
    "require_supported",
    "unsupported",
    "validate_filter",
    "validate_subject",
]

_log = logging.getLogger(__name__)

SUPPORTED: Final = "2.16."
"""The versions of nats-py whose private API this module knows; pyproject.toml pins the same."""

PROBE: Final = "~probe"
"""Where `WriteMonitor` stores its probes, below the event root; no channel can have that name."""

# Visible ASCII without the wildcards. Brokers accept more: nats-server delivers control characters
# and bytes that are not UTF-8, and nats-py's parser fails on some of them.
_TOKEN: Final = r"[!-)+-\-/-=?-~]+"
_SUBJECT: Final = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_FILTER: Final = re.compile(rf"(?:(?:{_TOKEN}|\*)\.)*(?:{_TOKEN}|\*|>)")
_MAX_SUBJECT: Final = 300

_STREAM: Final = b"\r\nNats-Stream: "
_SEQUENCE: Final = b"\r\nNats-Sequence: "
_PREVIOUS: Final = b"\r\nNats-Last-Sequence: "
_TIME: Final = b"\r\nNats-Time-Stamp: "
_PENDING: Final = b"\r\nNats-Num-Pending: "
_APPENDED: Final = re.compile(
    rb"\r\nNats-Stream: ([^\r]*)\r\nNats-Subject: [^\r]*\r\nNats-Sequence: ([0-9]{1,20})"
    rb"\r\nNats-Time-Stamp: ([^\r]*)(?:\r\nNats-Num-Pending: ([0-9]{1,20}))?"
    rb"\r\nNats-Last-Sequence: ([0-9]{1,20})\r\n\r\n\Z"
)
"""The last headers of a republished message, or of one of a batch get, as nats-server writes them;
read in one pass."""
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_NEWLINES: Final = str.maketrans("\r\n", "  ")
_END: Final = b"\r\n"
_STATUS_LINE: Final = b"NATS/1.0 "
_OF_FIRST_LINE: Final = ("Status", "Description")

D = TypeVar("D")


@functools.lru_cache(maxsize=4096)  # a third of the time, for channels in frequent use
def validate_subject(subject: str) -> None:
    """Raises InvalidChannel for a subject that must not be published to."""
    if len(subject) > _MAX_SUBJECT or not _SUBJECT.fullmatch(subject):
        raise InvalidChannel(
            f"{subject[:80]!r} is not a subject to publish to: allowed are up to {_MAX_SUBJECT} "
            "characters of visible ASCII in dot-separated tokens, none empty, without * and >",
            name=subject[:80],
        )


def validate_filter(subject: str) -> None:
    """Raises InvalidPattern for a filter that must not be subscribed to."""
    if len(subject) > _MAX_SUBJECT or not _FILTER.fullmatch(subject):
        raise InvalidPattern(
            f"{subject[:80]!r} is not a subject to listen to: allowed are up to {_MAX_SUBJECT} "
            "characters of visible ASCII in dot-separated tokens, none empty, "
            "* for one token and > for the rest",
            name=subject[:80],
        )


def unsupported() -> str:
    """Why this module cannot use the installed nats-py; empty when it can."""
    version = importlib.metadata.version("nats-py")
    if not version.startswith(SUPPORTED):
        return f"version {version} is not {SUPPORTED}x"
    parameters = list(inspect.signature(Client._process_msg).parameters)
    if parameters != ["self", "sid", "subject", "reply", "data", "headers"]:
        return "Client._process_msg has different parameters"
    client = Client()
    names = (
        "_sid", "_subs", "_pongs", "_pings_outstanding", "_reading_task", "_error_cb",
        "_pending", "_pending_data_size", "stats", "_status", "_max_payload", "_max_pending_size",
        "_flush_queue", "_server_pool", "_current_server", "_server_info",
    )  # fmt: skip
    methods = (
        "_send_subscribe", "_send_unsubscribe", "_parse_header_lines", "_process_pong",
        "_process_err", "_process_op_err", "_flush_pending",
    )  # fmt: skip
    missing = [name for name in (*names, *methods) if not hasattr(client, name)]
    return f"Client has no {', '.join(missing)}" if missing else ""


def require_supported() -> None:
    """Raises ConnectionFailed when the installed nats-py is not a supported version."""
    if why := unsupported():
        raise ConnectionFailed(
            f"the installed nats-py cannot be used: {why}; eventbus needs nats-py {SUPPORTED}x "
            f"(pip install 'nats-py~={SUPPORTED}0')",
            driver=DRIVER,
        )


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Headers as a message's first bytes, as nats-py writes them; empty without any.

    Line ends in values become spaces. Raises BadHeaderError for a name that is not a token.
    """
    if not headers:
        return b""
    lines = "".join([_header_line(name, value) for name, value in headers.items()])
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def _header_line(name: str, value: str) -> str:
    plain = value.strip()
    if not plain.isprintable():
        plain = plain.translate(_NEWLINES)
    start = _header_start(name)
    return f"{start}{plain}\r\n" if start else ""


@functools.lru_cache(maxsize=256)
def _header_start(name: str) -> str:
    """A header up to its value; empty for a name without visible characters, which is left out."""
    token = name.strip()
    if token and not _HEADER_NAME.fullmatch(token):
        raise nats_errors.BadHeaderError(token)
    return token and f"{token}: "


class KnownServer(NamedTuple):
    """A server that the client could connect to."""

    url: str
    """Its address, without credentials."""
    netloc: str
    """Its host and port."""
    tls_name: str | None
    """The name in its certificate, where that is not the host of the address."""
    is_announced: bool
    """Whether a server has announced it. A name may stand for several servers."""


class Stamp(NamedTuple):
    """The headers that a stream adds to a message when it republishes it, or answers with it."""

    sequence: int
    previous: int
    time: str
    pending: int = 0
    """In the answer to a batch get: how many messages of the request's subject follow it.

    Large messages end a batch early: a batch shorter than was asked for need not be the end.
    """


class WireHeaders(Mapping[str, str]):
    """A message's headers as received, parsed on first use."""

    __slots__ = ("_parsed", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._parsed: dict[str, str] | None = None

    @property
    def status(self) -> str:
        """The status of a reply from the server itself, such as `503`; else empty."""
        raw = self._raw
        return raw[9:12].decode("ascii", "replace") if raw.startswith(_STATUS_LINE) else ""

    def stamp(self, stream: bytes) -> Stamp | None:
        """The headers that `stream` added to the message; None when it is not the stream's."""
        raw = self._raw
        appended = _APPENDED.match(raw, max(raw.rfind(_STREAM), 0))
        if appended is not None:  # a reply to another direct get has other headers
            name, sequence, time, pending, previous = appended.groups()
            if name != stream:
                return None
            stored = time.decode("ascii", "replace")
            if pending is None:
                return Stamp(int(sequence), int(previous), stored)
            return Stamp(int(sequence), int(previous), stored, int(pending))
        try:
            if _value(raw, _STREAM) != stream:
                return None
            return Stamp(
                int(_value(raw, _SEQUENCE)),
                int(_value(raw, _PREVIOUS)),
                _value(raw, _TIME).decode("ascii", "replace"),
                int(_value(raw, _PENDING) or 0),
            )
        except ValueError:  # not a number: no stream wrote this
            return None

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, /, default: str | D) -> str | D: ...
    def get(self, key: str, /, default: str | D | None = None) -> str | D | None:
        """One header, found without parsing the others: 0.4 µs instead of 7."""
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
        return f"WireHeaders({self._raw!r})"

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
    """The value of the last header of that name; empty when there is none.

    A stream appends its headers to the publisher's, which may have the same names.
    """
    start = raw.rfind(name)
    if start < 0:
        return b""
    start += len(name)
    return raw[start : raw.find(_END, start)]


NO_WIRE_HEADERS: Final = WireHeaders(b"")

Receiver = Callable[[str, bytes, WireHeaders], None]
"""Called in the event loop with a message's subject, payload and headers."""


class _Listener:
    """Stands in for nats-py's Subscription, whose attributes its reconnect and close code reads."""

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
    """A client that calls receivers from the parser: no queue and no task per subscription."""

    async def send(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """`publish` in a third of its time, for a subject that is valid. Raises as it does.

        `head` is what `encode_headers` returns.
        """
        size = len(payload)
        if self._status != Client.CONNECTED:
            self._require_buffer(size)
        if size > self._max_payload:
            raise nats_errors.MaxPayloadError
        if head:
            start = f"HPUB {subject} {reply} {len(head)} {len(head) + size}\r\n"
        else:
            start = f"PUB {subject} {reply} {size}\r\n"
        command = b"".join((start.encode(), head, payload, _END))
        stats = self.stats
        stats["out_msgs"] += 1
        stats["out_bytes"] += size
        self._pending.append(command)
        self._pending_data_size += len(command)
        if 0 < self._max_pending_size < self._pending_data_size:
            await self._flush_pending(force_flush=True)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _require_buffer(self, size: int) -> None:
        """Raise what `publish` raises for a message that cannot be kept for later."""
        if self.is_closed:
            raise nats_errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats_errors.ConnectionDrainingError
        if not self.is_connected and self._pending_data_size + size > self._max_pending_size:
            raise nats_errors.OutboundBufferLimitError

    async def listen(self, subject: str, receiver: Receiver, group: str = "") -> int:
        """Subscribe; returns a key for `unlisten`."""
        self._sid += 1
        sid = self._sid
        listener: Any = _Listener(sid, subject, receiver, group)
        self._subs[sid] = listener
        # Without a connection: nats-py sends all subscriptions when it has reconnected.
        if self.is_connected:
            try:
                await self._send_subscribe(listener)
            except BaseException:  # the caller has no key
                await self.unlisten(sid)
                raise
        return sid

    async def unlisten(self, key: int) -> None:
        """Unsubscribe; nothing is delivered after this is called."""
        if self._subs.pop(key, None) is not None and self.is_connected:
            await self._send_unsubscribe(key)

    def drop_unsent(self, root: str) -> int:
        """Drop messages to subjects below `root` that wait to be written; returns how many.

        nats-py would write them to the next connection.
        """
        starts = (b"PUB %b" % root.encode(), b"HPUB %b" % root.encode())
        kept = [command for command in self._pending if not command.startswith(starts)]
        dropped = len(self._pending) - len(kept)
        self._pending = kept
        self._pending_data_size = sum(map(len, kept))
        return dropped

    @property
    def other_servers(self) -> list[KnownServer]:
        """The servers that were named or announced, except the current one."""
        return [
            KnownServer(server.uri.geturl(), server.uri.netloc, server.tls_name, server.discovered)
            for server in self._server_pool
            if server is not self._current_server
        ]

    @property
    def server_id(self) -> str:
        """The id of the current server, which has one whatever its address; empty for none."""
        return str(self._server_info.get("server_id", ""))

    @property
    def is_deaf(self) -> bool:
        """Whether the client reports a connection but has stopped reading from it."""
        return self.is_connected and self._reading_task is not None and self._reading_task.done()

    @property
    def stuck(self) -> str:
        """Why the client is disconnected and has stopped reconnecting; empty when it has not.

        An error that nats-py does not expect ends its reconnect task, and nothing reports it.
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
            # Raised here, it would end the read loop; anyone can publish such a subject.
            _log.warning("dropped a message whose subject is not UTF-8: %r", subject[:80])
            return
        wire_headers = WireHeaders(headers) if headers else NO_WIRE_HEADERS
        try:
            listener.receiver(name, data, wire_headers)
        except BaseException as exc:  # a receiver may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", name)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        """Flush. nats-py's own swallows a cancellation that comes while it waits."""
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        future = await super()._flush_pending(force_flush)
        # A cancelled close has to go on.
        if task is not None and task.cancelling() > before and not self.is_closed:
            raise asyncio.CancelledError
        return future

    async def _process_err(self, err_msg: str) -> None:
        """Report an error of the server, and leave the connection to the server.

        nats-py closes the client for good on any error but a few, also where the server goes on,
        such as after one subscription too many. When an error ends the connection, the server
        closes it, and the client reconnects.
        """
        if "stale connection" in err_msg:
            await super()._process_err(err_msg)
        elif "authorization violation" in err_msg:
            await self._error_cb(nats_errors.AuthorizationError())
        else:
            await self._error_cb(nats_errors.Error("nats: " + err_msg.strip("'")))

    async def _process_pong(self) -> None:
        """Survive a late PONG: nats-py would set a cancelled future, which ends its read loop."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()
