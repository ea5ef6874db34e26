"""NATS messages as they come off a connection, and a client on nats-py's public API alone."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventbus.drivers.nats_login import SecureClient
from eventbus.errors import InvalidChannel, InvalidPattern
from eventbus.user_code import must_pass

__all__ = [
    "NO_WIRE_HEADERS",
    "PROBE",
    "PlainClient",
    "PlainHeaders",
    "Receiver",
    "Stamp",
    "WireHeaders",
    "call_receiver",
    "validate_filter",
    "validate_subject",
]

_log = logging.getLogger(__name__)

# Visible ASCII without the wildcards. Brokers let more through: nats-server delivers control
# characters and bytes that are not UTF-8, and nats-py's parser breaks on some of them.
_TOKEN: Final = r"[!-)+-\-/-=?-~]+"
_SUBJECT: Final = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_FILTER: Final = re.compile(rf"(?:(?:{_TOKEN}|\*)\.)*(?:{_TOKEN}|\*|>)")
_MAX_SUBJECT: Final = 300

PROBE: Final = "~probe"
"""Where `Writes` stores its probes, below the event root. No channel can have that name."""


class Stamp(NamedTuple):
    """What a stream's republishing adds to a message."""

    sequence: int
    previous: int
    time: str


class WireHeaders(Mapping[str, str]):
    """A message's headers; either kind of client makes its own sort."""

    __slots__ = ()

    @property
    def status(self) -> str:
        """The status of an answer from the server itself, as `503`; else empty."""
        raise NotImplementedError

    def stamp(self, stream: bytes) -> Stamp | None:
        """What `stream` says of the message that it republished; None when it did not."""
        raise NotImplementedError


class PlainHeaders(WireHeaders):
    """Headers that nats-py has parsed."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __getitem__(self, key: str) -> str:
        return self._headers[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    @property
    def status(self) -> str:
        return self._headers.get("Status", "")

    def stamp(self, stream: bytes) -> Stamp | None:
        get = self._headers.get
        sequence, previous = get("Nats-Sequence", ""), get("Nats-Last-Sequence", "")
        if get("Nats-Stream") != stream.decode():
            return None
        try:
            return Stamp(int(sequence), int(previous), get("Nats-Time-Stamp", ""))
        except ValueError:  # no number: no stream wrote this
            return None


NO_WIRE_HEADERS: Final[WireHeaders] = PlainHeaders({})

Receiver = Callable[[str, bytes, WireHeaders], None]
"""Called in the event loop with a message's subject, payload and headers."""


class WireClient(Protocol):
    """What the driver asks of a client beside nats-py's public methods."""

    async def listen(self, subject: str, receiver: Receiver, group: str = "") -> Any:
        """Subscribe; the answer is a key for `unlisten`."""

    async def unlisten(self, key: Any) -> None:
        """End a subscription."""

    @property
    def is_deaf(self) -> bool:
        """Whether the client takes itself for connected and does not read any more."""

    @property
    def stuck(self) -> str:
        """Why the client has lost its connection and does not try to make another."""


class PlainClient(SecureClient):
    """The form on public API: three times slower with headers, and 25 times larger when idle."""

    async def listen(self, subject: str, receiver: Receiver, group: str = "") -> Subscription:
        """Subscribe; the answer is a key for `unlisten`."""

        async def pass_on(message: Msg) -> None:
            headers = PlainHeaders(message.headers) if message.headers else NO_WIRE_HEADERS
            call_receiver(receiver, message.subject, message.data, headers)

        return await self.subscribe(subject, queue=group, cb=pass_on)

    async def unlisten(self, key: Subscription) -> None:
        """End a subscription."""
        await key.unsubscribe()

    @property
    def is_deaf(self) -> bool:
        """Not to be known by public means; the unanswered pings tell in the end."""
        return False

    @property
    def stuck(self) -> str:
        """Not to be known by public means."""
        return ""


def call_receiver(receiver: Receiver, subject: str, payload: bytes, headers: WireHeaders) -> None:
    """Call it, and log what it raises: a listener's fault is neither another's nor the client's."""
    try:
        receiver(subject, payload, headers)
    except BaseException as exc:  # a listener may raise anything
        if must_pass(exc):
            raise
        _log.exception("a handler failed on a message of %s", subject)


def validate_subject(subject: str) -> None:
    """Raises InvalidChannel for what must not be published to."""
    if len(subject) > _MAX_SUBJECT or not _SUBJECT.fullmatch(subject):
        raise InvalidChannel(
            f"{subject[:80]!r} is not a subject to publish to: allowed are up to {_MAX_SUBJECT} "
            "characters of visible ASCII in dot-separated tokens, none empty, without * and >",
            name=subject[:80],
        )


def validate_filter(subject: str) -> None:
    """Raises InvalidPattern for what must not be subscribed to."""
    if len(subject) > _MAX_SUBJECT or not _FILTER.fullmatch(subject):
        raise InvalidPattern(
            f"{subject[:80]!r} is not a subject to listen to: allowed are up to {_MAX_SUBJECT} "
            "characters of visible ASCII in dot-separated tokens, none empty, "
            "* for one token and > for the rest",
            name=subject[:80],
        )
