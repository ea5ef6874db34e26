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
from nats.protocol.parser import AWAITING_CONTROL_LINE, MAX_CONTROL_LINE_SIZE, Parser

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
    "MessageParser",
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

_new: Final = tuple.__new__
"""Makes a NamedTuple in half the time of its own constructor, which is a function of Python."""

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
        "_flush_queue", "_server_pool", "_current_server", "_server_info", "_ps",
    )  # fmt: skip
    methods = (
        "_send_subscribe", "_send_unsubscribe", "_parse_header_lines", "_process_pong",
        "_process_err", "_process_op_err", "_flush_pending",
    )  # fmt: skip
    missing = [name for name in (*names, *methods) if not hasattr(client, name)]
    if missing:
        return f"Client has no {', '.join(missing)}"
    parser = ("buf", "state", "reset", "parse")
    missing = [name for name in parser if not hasattr(client._ps, name)]
    return f"Parser has no {', '.join(missing)}" if missing else ""


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
    text = "NATS/1.0\r\n"
    for name, value in headers.items():
        plain = value.strip()
        if not plain.isprintable():
            plain = plain.translate(_NEWLINES)
        if start := _header_start(name):
            text += f"{start}{plain}\r\n"
    return f"{text}\r\n".encode()


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
            return _new(Stamp, (int(sequence), int(previous), stored, int(pending or 0)))
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
        start = raw.rfind(_line_of(key))
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


@functools.lru_cache(maxsize=64)  # of the names in the code
def _line_of(name: str) -> bytes:
    """How the line of a header begins."""
    return b"\r\n%b:" % name.encode()


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


_Receive = Callable[[int, bytes, bytes, bytes], bool]
"""Gets a subscription's id, the subject, the payload and the headers. Returns False for a message
that nats-py has to handle."""


class MessageParser(Parser):
    """Cuts whole messages out of what was read, and passes them to `receive`; the rest to nats-py.

    Messages are nearly all that a server sends. nats-py's own parser matches two patterns at the
    front of a buffer for each one, copies each part twice, and creates a coroutine: 3.1 µs instead
    of 1.4.
    """

    def __init__(self, client: Any, receive: _Receive) -> None:
        super().__init__(client)
        self._receive = receive

    def reset(self) -> None:
        """Drop what has not been parsed: it was of another connection."""
        super().reset()
        self._rest = bytearray()
        """The beginning of a message."""
        self._needed = 0
        """How many bytes there must be before it is worth looking at them again."""

    async def parse(self, data: bytes = b"") -> None:  # noqa: PLR0912 - calls would take time
        """Handle what was read. Part of the hot path: nothing here may look into a message.

        Raises nats-py's ProtocolError.
        """
        if self.buf or self.state != AWAITING_CONTROL_LINE:  # it waits for the rest of something
            await super().parse(data)
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        receive, stats = self._receive, self.nc.stats
        start, length = 0, len(data)
        while start < length:
            line = data.find(_END, start)
            if line < 0:
                if length - start >= MAX_CONTROL_LINE_SIZE:
                    break
                self._keep(data, start, length - start + 1)
                return
            words = data[start:line].split(b" ")
            try:
                if words[0] == b"HMSG":
                    size, head = int(words[-1]), int(words[-2])
                elif words[0] == b"MSG":
                    size, head = int(words[-1]), 0
                else:
                    break
                sid = int(words[2])
            except (ValueError, IndexError):
                break  # nats-py says what is wrong
            if not 0 <= head <= size:
                break
            body = line + 2
            end = body + size
            if end + 2 > length:
                self._keep(data, start, end + 2 - start)
                return
            start = end + 2
            payload = body + head
            headers = data[body:payload]
            if receive(sid, words[1], data[payload:end], headers):
                stats["in_msgs"] += 1
                stats["in_bytes"] += end - payload
            else:
                reply = words[3] if len(words) > (5 if head else 4) else b""
                await self.nc._process_msg(sid, words[1], reply, data[payload:end], headers or None)
        if start < length:
            await super().parse(data[start:])

    def _keep(self, data: bytes, start: int, needed: int) -> None:
        self._rest += data[start:]
        self._needed = needed


class FastClient(SecureClient):
    """A client that calls receivers from the parser: no queue and no task per subscription."""

    def __init__(self, *arguments: Any) -> None:
        """Takes the arguments of a SecureClient."""
        super().__init__(*arguments)
        self._ps = MessageParser(self, self._receive)

    def buffer(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> bool:
        """`publish` in a third of its time, for a subject that is valid. Raises as it does.

        `head` is what `encode_headers` returns. The message is written with all others of this turn
        of the event loop, unless this returns True: then await `flush_soon`.
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
        flushes = self._flush_queue
        return (flushes is not None and flushes.empty()) or (
            0 < self._max_pending_size < self._pending_data_size
        )

    async def flush_soon(self) -> None:
        """Do what `buffer` asks for: wait if too many bytes are unsent, wake nats-py's flusher."""
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
                await self._send_command(
                    b"SUB %b %b %d\r\n" % (subject.encode(), group.encode(), sid)
                )
            except BaseException:  # the caller has no key
                await self.unlisten(sid)
                raise
            # Not at once: a request mostly follows, and shares the write.
            asyncio.get_running_loop().call_soon(self._wake_flusher)
        return sid

    def _wake_flusher(self) -> None:
        """Let nats-py's flusher write what is pending, unless it is about to."""
        if self._pending and self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

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

    def _receive(self, sid: int, subject: bytes, payload: bytes, headers: bytes) -> bool:
        """Call the receiver of a message; False for one of nats-py's own subscriptions."""
        listener: Any = self._subs.get(sid)
        if type(listener) is not _Listener:
            return False
        try:
            name = subject.decode()
        except UnicodeDecodeError:
            # Raised here, it would end the read loop; anyone can publish such a subject.
            _log.warning("dropped a message whose subject is not UTF-8: %r", subject[:80])
            return True
        wire_headers = WireHeaders(headers) if headers else NO_WIRE_HEADERS
        try:
            listener.receiver(name, payload, wire_headers)
        except BaseException as exc:  # a receiver may raise anything
            if must_pass(exc):
                raise
            _log.exception("a handler failed on a message of %s", name)
        return True

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Handle a message that nats-py's own parser has found."""
        if self._receive(sid, subject, data, headers):
            self.stats["in_msgs"] += 1
            self.stats["in_bytes"] += len(data)
        else:
            await super()._process_msg(sid, subject, reply, data, headers)

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
