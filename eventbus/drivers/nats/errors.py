"""Errors of nats-py, and of JetStream's API, as eventbus's own: nothing else leaves the driver."""

import asyncio
from collections.abc import (
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Final

import msgspec
from nats import errors as nats_errors

from eventbus.errors import (
    ConnectionFailed,
    EncodingError,
    EventBusError,
    InvalidChannel,
    PublishFailed,
)

__all__ = ["DRIVER", "KINDS", "ApiError", "mapped", "to_error"]


DRIVER: Final = "nats"

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
"""What each error becomes; a class that is not named becomes what its nearest base does."""


class ApiError(msgspec.Struct, frozen=True):
    """An error in an answer of JetStream's API."""

    code: int = 0
    err_code: int = 0
    description: str = ""

    def __str__(self) -> str:
        return f"{self.description} ({self.err_code})"


def to_error(exc: BaseException, doing: str) -> EventBusError:
    """The error to raise in place of `exc`; `doing` says what failed."""
    kind = next((KINDS[base] for base in type(exc).__mro__ if base in KINDS), ConnectionFailed)
    message = f"{doing}: {str(exc) or type(exc).__name__}"
    if issubclass(kind, (ConnectionFailed, PublishFailed)):
        return kind(message, driver=DRIVER)
    return kind(message)


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """Raise errors of nats-py and of the network as eventbus's."""
    try:
        yield
    except (nats_errors.Error, TimeoutError, OSError) as exc:
        raise to_error(exc, doing) from exc
