"""Maps errors of redis-py to eventbus's own, which say what to do. No other leaves the driver."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from redis import exceptions

from eventbus.errors import ConnectionFailed, DriverError, PublishFailed

__all__ = [
    "DRIVER",
    "KINDS",
    "RETRIED",
    "Denied",
    "Refused",
    "is_denied",
    "is_foreign",
    "is_passing",
    "mapped",
    "to_error",
]


DRIVER: Final = "redis"


class Refused(ConnectionFailed):
    """The server refuses the connection: a retry cannot help until a setting changes."""


class Denied(Refused):
    """The server refuses a command: the user lacks the permission for it, or for its keys."""


KINDS: Final[Mapping[type[BaseException], type[DriverError]]] = {
    exceptions.RedisError: ConnectionFailed,
    exceptions.ConnectionError: ConnectionFailed,
    exceptions.TimeoutError: ConnectionFailed,
    exceptions.AuthenticationError: Refused,
    exceptions.AuthorizationError: Refused,
    exceptions.AuthenticationWrongNumberOfArgsError: Refused,
    exceptions.ExternalAuthProviderError: Refused,
    exceptions.NoPermissionError: Denied,
    exceptions.BusyLoadingError: ConnectionFailed,
    exceptions.MaxConnectionsError: ConnectionFailed,
    exceptions.InvalidResponse: ConnectionFailed,
    exceptions.ChildDeadlockedError: ConnectionFailed,
    exceptions.ReadOnlyError: ConnectionFailed,
    exceptions.MasterDownError: ConnectionFailed,
    exceptions.ClusterError: ConnectionFailed,
    exceptions.ClusterDownError: ConnectionFailed,
    exceptions.AskError: ConnectionFailed,
    exceptions.MovedError: ConnectionFailed,
    exceptions.TryAgainError: ConnectionFailed,
    exceptions.RedisClusterException: ConnectionFailed,
    exceptions.SlotNotCoveredError: ConnectionFailed,
    exceptions.PubSubError: ConnectionFailed,
    exceptions.ResponseError: PublishFailed,
    exceptions.NoScriptError: PublishFailed,
    exceptions.OutOfMemoryError: PublishFailed,
    exceptions.ExecAbortError: PublishFailed,
    exceptions.ModuleError: PublishFailed,
    exceptions.NoSuchFieldsetError: PublishFailed,
    exceptions.ClusterCrossSlotError: PublishFailed,
    exceptions.CrossSlotTransactionError: PublishFailed,
    exceptions.InvalidPipelineStack: PublishFailed,
    exceptions.IncorrectPolicyType: PublishFailed,
    exceptions.DataError: PublishFailed,
    exceptions.WatchError: PublishFailed,
    exceptions.LockError: PublishFailed,
    exceptions.LockNotOwnedError: PublishFailed,
    OSError: ConnectionFailed,
}
"""Our error for each of redis-py; a class that is missing is mapped as its nearest base is."""

RETRIED: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterError,
    exceptions.AskError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
)
"""Temporary errors of a server: during a failover, a move of slots, or with full memory."""
_TEMPORARY: Final = ("NOREPLICAS", "MISCONF")
"""A master with too few replicas, or one that cannot write its files."""


def is_passing(exc: BaseException) -> bool:
    """Whether the error is temporary: see RETRIED and _TEMPORARY."""
    return isinstance(exc, RETRIED) or (
        isinstance(exc, exceptions.ResponseError) and any(word in str(exc) for word in _TEMPORARY)
    )


def is_foreign(exc: BaseException) -> bool:
    """Whether a key has foreign data: another type, or higher entry ids."""
    return isinstance(exc, exceptions.ResponseError) and any(
        words in str(exc) for words in _FOREIGN
    )


_FOREIGN: Final = (
    "WRONGTYPE",
    "equal or smaller than the target stream top item",
    "exhausted the last possible ID",
)
_DENIED_IN_SCRIPT: Final = ("The user executing the script can't", "ACL failure in script")
"""The texts of 7.0, and of later versions."""
_CREDENTIALS: Final = "check BROADCAST_REDIS_USERNAME and BROADCAST_REDIS_PASSWORD"
_NO_PASSWORD: Final = "set BROADCAST_REDIS_PASSWORD"
_NO_TLS: Final = (
    "the server does not speak TLS on this port: check BROADCAST_REDIS_TLS and BROADCAST_REDIS_PORT"
)
_NO_RIGHT: Final = (
    "grant it to the user of BROADCAST_REDIS_USERNAME: compose/make_secrets.py shows how"
)
_HINTS: Final[
    Mapping[str, str]
] = {  # by a part of the error's text in lower case; the first one counts
    "invalid username-password": _CREDENTIALS,
    "invalid password": _CREDENTIALS,
    "without any password": "the server has no password: leave BROADCAST_REDIS_PASSWORD empty",
    "authentication required": _NO_PASSWORD,
    "hello must be called": _NO_PASSWORD,
    "db index": "BROADCAST_REDIS_DATABASE must be below the server's `databases`, by default 16",
    "certificate_verify_failed": "the server's certificate is not trusted: BROADCAST_REDIS_TLS_CA "
    "must be its authority, and BROADCAST_REDIS_HOST a name in the certificate",
    "certificate required": "the server asks for a client's certificate: set "
    "BROADCAST_REDIS_TLS_CERT and BROADCAST_REDIS_TLS_KEY",
    "wrong_version_number": _NO_TLS,
    "record layer failure": _NO_TLS,
    "cluster support disabled": "it is not a cluster: leave BROADCAST_REDIS_CLUSTER false",
    "max number of clients": "the server has reached its `maxclients`",
    "loading the dataset": "it is starting and loading its data",
    "'maxmemory'": "its memory is full: raise maxmemory, or keep less history",
    "misconf": "it cannot write its files: its disk may be full, see its log",
    "noreplicas": "fewer replicas than its min-replicas-to-write are connected",
}
_PERMANENT: Final = (
    "db index", "certificate", "wrong_version_number", "record layer failure",
    "cluster support disabled",
)  # fmt: skip


def to_error(exc: BaseException, doing: str, otherwise: str = "") -> DriverError:
    """The error to raise in place of `exc`; `doing` is what failed, `otherwise` a default hint."""
    kind = next((KINDS[base] for base in type(exc).__mro__ if base in KINDS), ConnectionFailed)
    text = _text_of(exc)
    lower = text.lower()
    if any(part in lower for part in _PERMANENT):
        kind = Refused
    if is_denied(exc):
        kind, otherwise = Denied, _NO_RIGHT
    elif isinstance(exc, exceptions.AuthenticationError):
        otherwise = _CREDENTIALS
    hint = next((hint for part, hint in _HINTS.items() if part in lower), otherwise)
    return kind(f"{doing}: {text}" + (f" ({hint})" if hint else ""), driver=DRIVER)


def is_denied(exc: BaseException) -> bool:
    """Whether the user lacks the permission; errors in scripts have texts of their own."""
    return isinstance(exc, exceptions.NoPermissionError | Denied) or (
        isinstance(exc, exceptions.ResponseError)
        and any(words in str(exc) for words in _DENIED_IN_SCRIPT)
    )


def _text_of(exc: BaseException) -> str:
    """The text of an error; for an error of the system, that of the system itself."""
    cause = exc.__context__
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
        known = cause.errno in errno.errorcode and not isinstance(cause, socket.gaierror)
        return os.strerror(cause.errno) if known else str(cause.strerror or cause)
    return str(exc).rstrip(". ") or type(exc).__name__


@contextmanager
def mapped(doing: str, otherwise: str = "") -> Iterator[None]:
    """Raise errors of redis-py and of the network as ConnectionFailed."""
    try:
        yield
    except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as exc:
        error = to_error(exc, doing, otherwise)
        if not isinstance(error, ConnectionFailed):
            error = ConnectionFailed(str(error), driver=DRIVER)
        raise error from exc
