"""Every error that eventbus raises, as one tree.

    EventBusError
    ├── ConfigError                 a setting that is missing or invalid
    ├── InvalidName                 a name that breaks its grammar
    │   ├── InvalidChannel          a channel name
    │   ├── InvalidPattern          a channel pattern
    │   └── InvalidEventName        an event name, or a reserved one
    ├── EventDefinitionError        an invalid event class: a duplicate name, a bad template, …
    ├── EventFieldError             a field that does not match its type or the channel template
    ├── InvalidPayload              bytes from the bus that are not a message; see `reason`
    ├── InvalidWebhook              a webhook request that cannot be trusted; see `reason`
    ├── EncodingError               data that is not JSON-serializable, or a message that is too big
    ├── BusStateError               no bus is open, or the bus is closed
    ├── CallbackFailed              application code raised something other than an Exception
    ├── DispatchFailed              some of several messages were not published; see `failures`
    ├── JobTimeout                  a queued event's listeners took longer than its `timeout`
    ├── JobRejected                 raised by a listener: the job fails and is not retried
    │   └── NoListener              a queued event without a listener in the worker
    ├── JobRetry                    raised by a listener: the job is retried after `after_s`
    ├── UnknownEvent                a queued event whose type the worker does not know
    ├── WorkerLost                  a queued event whose workers died at every attempt
    ├── ClusterError                the edge nodes could not be queried
    │   ├── NoEdge                  no edge node answered
    │   └── ClusterBusy             too many questions to the nodes are under way
    ├── ClientError                 an error of a client of an edge (eventbus.client)
    │   ├── ClientClosed            the client is closed, by its owner or permanently by the edge
    │   ├── ClientDisconnected      there is no connection, or no reply arrived
    │   └── ClientRefused           the edge refused a request; see `code`
    └── DriverError                 an error of a driver or its broker; see `driver`
        ├── ConnectionFailed        the broker is unreachable or refuses the connection
        │   └── SubscribeDenied     … because it refuses a subscription: no permission, or a limit
        ├── PublishFailed           the broker has not acknowledged a message
        │   └── PublishDenied       … because the driver's user has no permission to publish it
        ├── StreamMismatch          an existing stream has settings that cannot work
        ├── NotSupported            the driver lacks a capability
        └── ServerError             the embedded nats-server did not start, or exited

The drivers map errors of third-party libraries to these.
"""

from collections.abc import Mapping, Sequence

__all__ = [
    "BusStateError",
    "CallbackFailed",
    "ClientClosed",
    "ClientDisconnected",
    "ClientError",
    "ClientRefused",
    "ClusterBusy",
    "ClusterError",
    "ConfigError",
    "ConnectionFailed",
    "DispatchFailed",
    "DriverError",
    "EncodingError",
    "EventBusError",
    "EventDefinitionError",
    "EventFieldError",
    "InvalidChannel",
    "InvalidEventName",
    "InvalidName",
    "InvalidPattern",
    "InvalidPayload",
    "InvalidWebhook",
    "JobRejected",
    "JobRetry",
    "JobTimeout",
    "NoEdge",
    "NoListener",
    "NotSupported",
    "PublishDenied",
    "PublishFailed",
    "ServerError",
    "StreamMismatch",
    "SubscribeDenied",
    "UnknownEvent",
    "WorkerLost",
]


class EventBusError(Exception):
    """The base class: `except EventBusError` catches every error that this library defines."""


class ConfigError(EventBusError):
    """A setting is missing or invalid. `variable` names it."""

    def __init__(self, message: str, *, variable: str = "") -> None:
        super().__init__(message)
        self.variable = variable


class InvalidName(EventBusError, ValueError):
    """A name breaks its grammar. `name` is the name."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class InvalidChannel(InvalidName):
    """Not a channel name."""


class InvalidPattern(InvalidName):
    """Not a channel pattern."""


class InvalidEventName(InvalidName):
    """Not an event name, or a reserved one."""


class EventDefinitionError(EventBusError, TypeError):
    """An event class is invalid. Raised by the class statement."""


class EventFieldError(EventBusError, ValueError):
    """A field of an event does not match its type or the channel template."""

    def __init__(self, message: str, *, event: str, field: str) -> None:
        super().__init__(message)
        self.event = event
        self.field = field


class InvalidPayload(EventBusError, ValueError):
    """Bytes from the bus are not a message. `reason` is one of a few fixed words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidWebhook(EventBusError, ValueError):
    """A webhook request cannot be trusted.

    `reason` is `headers`, `signature`, `time` or `body`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncodingError(EventBusError, ValueError):
    """Data cannot be encoded as JSON, or the message is larger than the broker accepts."""


class BusStateError(EventBusError, RuntimeError):
    """The bus is not in the state that the call requires.

    `would_block`: it is a blocking call, in a thread whose event loop is running.
    """

    def __init__(self, message: str = "", *, would_block: bool = False) -> None:
        super().__init__(message)
        self.would_block = would_block


class CallbackFailed(EventBusError):
    """A listener, handler or hook raised something that is not an Exception.

    It is this error's cause. Examples: SystemExit, a panic in a Rust extension, or a CancelledError
    from something that the code awaited although nobody cancelled the code itself.
    """


class DispatchFailed(EventBusError):
    """Some of several messages were not published.

    `failures` maps each channel to its error (the first one, if several messages failed on it).
    `receipts` holds the receipts of the published messages. The cause is a group of all errors.
    """

    def __init__(
        self, message: str, *, failures: Mapping[str, Exception], receipts: Sequence[object]
    ) -> None:
        super().__init__(message)
        self.failures = failures
        self.receipts = receipts


class JobTimeout(EventBusError):
    """The listeners and the broadcast of a queued event took longer than its `timeout`."""


class JobRejected(EventBusError):
    """Raised by a listener if retrying cannot help: the job fails at once."""


class NoListener(JobRejected):
    """A queued event has no listener in the worker and is not broadcast.

    Raised if BROADCAST_QUEUE_NO_LISTENER is `fail`.
    """


class JobRetry(EventBusError):
    """Raised by a listener to retry the job after at least `after_s` seconds.

    A longer back-off still applies, and so does the limit on attempts.
    """

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class UnknownEvent(EventBusError):
    """A worker does not know the type of a queued event."""


class WorkerLost(EventBusError):
    """Every worker that took a queued event died, or lost its connection, before it was done."""


class ClusterError(EventBusError):
    """The edge nodes could not be queried."""


class NoEdge(ClusterError):
    """No edge node answered in time: none is running, or none on this bus and namespace."""


class ClusterBusy(ClusterError):
    """Too many questions to the edge nodes are under way: ask again in a moment."""


class ClientError(EventBusError):
    """An error of a client of an edge."""


class ClientClosed(ClientError):
    """The client is closed and will not reconnect. `close_code` is the WebSocket close code."""

    def __init__(self, message: str, *, close_code: int) -> None:
        super().__init__(message)
        self.close_code = close_code


class ClientDisconnected(ClientError):
    """There is no connection, it was lost before the reply, or no readable reply arrived in time.

    The edge may have carried out the request.
    """


class ClientRefused(ClientError):
    """The edge refused a request.

    `code` is one of the codes in docs/wire-protocol.md ("Errors"), `revoked` if access to a channel
    was revoked, or `http_<status>` for a refused connection. `channel` is the channel, if any.
    """

    def __init__(self, message: str, *, code: str, channel: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.channel = channel


class DriverError(EventBusError):
    """An error of a driver or its broker. `driver` is the driver's name."""

    def __init__(self, message: str, *, driver: str) -> None:
        super().__init__(message)
        self.driver = driver


class ConnectionFailed(DriverError):
    """The broker is unreachable, refuses the credentials, or closed the connection."""


class SubscribeDenied(ConnectionFailed):
    """The broker refuses a subscription; other subscriptions and the connection are unaffected.

    The driver's user has no permission for it, or the broker allows no more subscriptions.
    Retrying does not help until that changes.
    """


class PublishFailed(DriverError):
    """The broker has not acknowledged the message.

    It may be stored anyway. Publish it again with the same id: it is stored only once.
    """


class PublishDenied(PublishFailed):
    """The driver's user has no permission to publish there. Retrying does not help."""


class StreamMismatch(DriverError):
    """An existing stream has settings with which history or delivery cannot work."""


class NotSupported(DriverError):
    """The driver lacks the required capability."""


class ServerError(DriverError):
    """The embedded nats-server did not start, or exited unexpectedly."""
