"""Errors of nats-py and of JetStream's API: mapped to eventbus's own, counted and explained."""

import asyncio
import logging
import ssl
from collections.abc import (
    Callable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Final

import msgspec
from nats import errors as nats_errors

from eventbus.attempts import RateLimitedLog
from eventbus.errors import (
    ConnectionFailed,
    EncodingError,
    EventBusError,
    InvalidChannel,
    PublishDenied,
    PublishFailed,
)

__all__ = [
    "DRIVER",
    "KINDS",
    "NO_PEERS",
    "ApiError",
    "CredentialsError",
    "Faults",
    "OldServerError",
    "is_denied",
    "is_over_limit",
    "is_temporary",
    "is_too_large",
    "mapped",
    "refused_subject",
    "to_error",
]

_log = logging.getLogger(__name__)

DRIVER: Final = "nats"


class CredentialsError(nats_errors.Error):
    """A credentials file that cannot be used; to nats-py, a failed login."""


class OldServerError(ConnectionFailed):
    """The server's version lacks what this driver needs."""


KINDS: Final[Mapping[type[BaseException], type[EventBusError]]] = {
    nats_errors.Error: ConnectionFailed,
    nats_errors.AuthorizationError: ConnectionFailed,
    nats_errors.BadHeaderError: EncodingError,
    nats_errors.BadSubjectError: InvalidChannel,
    nats_errors.BadSubscriptionError: ConnectionFailed,
    nats_errors.BadTimeoutError: ConnectionFailed,
    nats_errors.ConnectionClosedError: ConnectionFailed,
    nats_errors.ConnectionDrainingError: ConnectionFailed,
    nats_errors.ConnectionReconnectingError: ConnectionFailed,
    nats_errors.DrainTimeoutError: ConnectionFailed,
    nats_errors.FlushTimeoutError: ConnectionFailed,
    nats_errors.InvalidCallbackTypeError: ConnectionFailed,
    nats_errors.InvalidUserCredentialsError: ConnectionFailed,
    nats_errors.JsonParseError: ConnectionFailed,
    nats_errors.MaxPayloadError: EncodingError,
    nats_errors.MsgAlreadyAckdError: PublishFailed,
    nats_errors.NoRespondersError: PublishFailed,
    nats_errors.NoServersError: ConnectionFailed,
    nats_errors.NotJSMessageError: PublishFailed,
    nats_errors.OutboundBufferLimitError: PublishFailed,
    nats_errors.ProtocolError: ConnectionFailed,
    nats_errors.SecureConnFailedError: ConnectionFailed,
    nats_errors.SecureConnRequiredError: ConnectionFailed,
    nats_errors.SecureConnWantedError: ConnectionFailed,
    nats_errors.ServerNotInPoolError: ConnectionFailed,
    nats_errors.SlowConsumerError: ConnectionFailed,
    nats_errors.StaleConnectionError: ConnectionFailed,
    nats_errors.TimeoutError: ConnectionFailed,
    nats_errors.UnexpectedEOF: ConnectionFailed,
    asyncio.TimeoutError: ConnectionFailed,
    OSError: ConnectionFailed,
}
"""The error that replaces each class; a class that is not listed uses its nearest base's."""
_REFUSALS: Final = (
    nats_errors.AuthorizationError,
    nats_errors.SecureConnRequiredError,
    CredentialsError,
    ssl.SSLError,
)
"""Errors that waiting does not fix."""
_REFUSED_WORDS: Final = (
    "authorization violation",
    "authentication expired",  # "user …" or "account …", of a connected client
    "authentication revoked",
)
_HINTS: Final = {
    "maximum subscriptions exceeded": "the server allows no more subscriptions on one connection: "
    "raise max_subscriptions, or the limit of the account or user",
    "maximum connections exceeded": "the server accepts no more connections: raise max_connections",
    "maximum account active connections exceeded": "the account accepts no more connections: raise "
    "its limit",
    "maximum payload violation": "a message was larger than the server's max_payload, which has "
    "changed, or than the limit of the account",
    "maximum control line exceeded": "a subject was longer than the server's max_control_line",
    "secure connection - tls required": "the server requires TLS: use tls:// in NATS_URL",
}
"""What errors of the server mean, by their words in lower case."""
_TOO_LARGE: Final = "maximum payload violation"
_TOO_MANY: Final = "maximum subscriptions exceeded"
_NON_FATAL: Final = (
    _TOO_MANY,
    "permissions violation",
    "invalid subject",
    "invalid publish subject",
)
"""Errors after which the server goes on."""
NO_PEERS: Final = 10005
_BETWEEN_LEADERS: Final = frozenset({10007, 10009, 10118, 10119})
"""Errors with code 500 of a server that has just lost its role or not yet assumed it: it is not
assigned the stream, does not lead it, or considers the stream or consumer offline
(https://github.com/nats-io/nats-server/blob/main/server/errors.json)."""
_ENDS: Final = (ConnectionResetError, BrokenPipeError, nats_errors.UnexpectedEOF)
"""What a client reports when the server has refused it and closed the connection."""


class ApiError(msgspec.Struct, frozen=True):
    """An error in a response of JetStream's API."""

    code: int = 0
    err_code: int = 0
    description: str = ""

    def __str__(self) -> str:
        return f"{self.description} ({self.err_code})"


def is_temporary(error: ApiError) -> bool:
    """Whether a cluster that is still electing or discovering its peers may succeed soon.

    A new leader that does not know its peers yet finds no place for replicas. nats-server has no
    code of its own for that, only the words (`selectPeerError`).
    """
    return (
        error.code == 503
        or error.err_code in _BETWEEN_LEADERS
        or (error.err_code == NO_PEERS and "peer offline" in error.description)
    )


def to_error(exc: BaseException, doing: str) -> EventBusError:
    """The error that replaces `exc`; `doing` says what failed."""
    kind = next((KINDS[base] for base in type(exc).__mro__ if base in KINDS), ConnectionFailed)
    message = f"{doing}: {str(exc) or type(exc).__name__}"
    if issubclass(kind, (ConnectionFailed, PublishFailed)):
        return kind(message, driver=DRIVER)
    return kind(message)


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Raise errors of nats-py and the network as eventbus errors."""
    try:
        yield
    except (nats_errors.Error, TimeoutError, OSError) as exc:
        raise to_error(exc, doing) from exc


class Faults:
    """The errors of one connection: counted, logged at a limited rate, and explained."""

    def __init__(self, address: str, refusal: Callable[[], str]) -> None:
        """`address` is for the log, without secrets; `refusal` explains a refused login."""
        self.count = 0
        """How many errors the client has reported."""
        self.refusals = 0
        """How often a login was refused or revoked."""
        self.refused = asyncio.Event()
        """Set when the server has refused the login."""
        self.last: BaseException | None = None
        self._address = address
        self._refusal = refusal
        self._log = RateLimitedLog(_log)

    def clear(self) -> None:
        """Forget earlier errors: another attempt begins, or has succeeded."""
        self.last = None
        self.refused.clear()

    def note(self, exc: BaseException) -> None:
        """Count and log an error that the client reports."""
        self.count += 1
        if isinstance(exc, _ENDS) and (self.refused.is_set() or _ends_connection(self.last)):
            return  # it follows from the last error, which the server has sent
        self.last = exc
        if self._is_refusal(exc):
            self.refusals += 1
            self.refused.set()
            self.log(logging.ERROR, self.why)
        else:
            self.log(logging.WARNING, self.why)

    def log(self, level: int, what: str) -> None:
        """Log a message; the same one again after ten seconds at the earliest."""
        self._log.log(level, "NATS at %s: %s", self._address, what, kind=what)

    @property
    def why(self) -> str:
        """Explains the last error, and which setting to check."""
        exc = self.last
        if exc is None:
            return "no answer"
        if isinstance(exc, CredentialsError):
            return str(exc)
        if isinstance(exc, nats_errors.SecureConnRequiredError):
            return (
                "the server offers no TLS, which NATS_URL (tls://), NATS_CA or NATS_CERT requires; "
                "nothing was sent to it"
            )
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted (see NATS_CA): {exc.verify_message}"
        if isinstance(exc, ssl.SSLError):
            return f"no TLS with the server (does it want another NATS_CERT?): {exc}"
        if self._is_refusal(exc):
            return self._refusal()
        text = str(exc) or type(exc).__name__
        return f"{text}: {hint}" if (hint := _hint_for(exc)) else text

    @staticmethod
    def _is_refusal(exc: BaseException) -> bool:
        text = str(exc).lower()
        return isinstance(exc, _REFUSALS) or any(words in text for words in _REFUSED_WORDS)


def _ends_connection(exc: BaseException | None) -> bool:
    """Whether the server has sent this error, and then closes the connection."""
    text = str(exc).lower()
    return type(exc) is nats_errors.Error and not any(words in text for words in _NON_FATAL)


def _hint_for(exc: BaseException | None) -> str:
    text = str(exc).lower()
    return next((hint for words, hint in _HINTS.items() if words in text), "")


def is_over_limit(exc: BaseException) -> bool:
    """Whether the server has refused a subscription, because it allows no more."""
    return _TOO_MANY in str(exc).lower()


def is_too_large(exc: BaseException) -> bool:
    """Whether the server closes the connection because a message was too large."""
    return _TOO_LARGE in str(exc).lower()


def is_denied(exc: EventBusError) -> bool:
    """Whether the NATS user lacks the permission for a request; asking again does not help."""
    return isinstance(exc, PublishDenied) or isinstance(exc.__cause__, PublishDenied)


def refused_subject(exc: BaseException) -> tuple[str, str]:
    """For a permissions violation, `publish` or `subscription` and the subject in lower case.

    Two empty strings for other errors.
    """
    text = str(exc).lower()
    kind, _, rest = text.partition("permissions violation for ")[2].partition(" to ")
    return kind, rest.partition('"')[2].partition('"')[0]
