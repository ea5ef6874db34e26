"""Every error that eventbus raises, as one tree.

    EventBusError
    ├── ConfigError                 a setting that cannot be understood, or a missing one
    ├── InvalidName                 a name from outside that breaks its grammar
    │   ├── InvalidChannel          a channel name
    │   ├── InvalidPattern          a channel pattern
    │   └── InvalidEventName        an event name, reserved ones included
    ├── EventDefinitionError        an event class that cannot be: two of one name, a bad template
    ├── EventFieldError             an event whose field does not fit its type or channel template
    ├── InvalidPayload              bytes from the bus that are no message; `reason` is for machines
    ├── InvalidWebhook              a posted request not to be trusted; `reason` is for machines
    ├── EncodingError               data that cannot be made JSON, or a message over the size limit
    ├── BusStateError               no bus is open, or this one is not
    ├── CallbackFailed              the application's code raised what is not an Exception
    ├── DispatchFailed              some of several messages were not published; holds each failure
    ├── JobTimeout                  a queued event's listeners took longer than its `timeout`
    ├── JobRejected                 raised by a listener: the job fails, and is not tried again
    │   └── NoListener              a queued event that nothing in the worker listens to
    ├── JobRetry                    raised by a listener: the job is tried again after `after_s`
    ├── UnknownEvent                a queued event of a type that the worker does not know
    ├── WorkerLost                  a queued event whose workers were lost at every try
    ├── ClientError                 a fault of a client of an edge (eventbus.client)
    │   ├── ClientClosed            the client is closed, by its owner or for good by the edge
    │   ├── ClientDisconnected      there is no connection, or no answer came by it
    │   └── ClientRefused           the edge refuses; `code` is one of the wire protocol's
    └── DriverError                 a driver's fault; `driver` names it
        ├── ConnectionFailed        the broker cannot be reached, or refuses us
        ├── PublishFailed           a message that the broker has not acknowledged
        │   └── PublishDenied       … because the user that the driver logs in as may not publish it
        ├── StreamMismatch          a stream that exists with settings that cannot work
        ├── NotSupported            the driver lacks the capability that was asked for
        └── ServerError             the embedded nats-server did not start, or died

Errors of third-party libraries are mapped to these where they enter (in the drivers).
"""

from collections.abc import Mapping, Sequence

__all__ = [
    "BusStateError",
    "CallbackFailed",
    "ClientClosed",
    "ClientDisconnected",
    "ClientError",
    "ClientRefused",
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
    "NoListener",
    "NotSupported",
    "PublishDenied",
    "PublishFailed",
    "ServerError",
    "StreamMismatch",
    "UnknownEvent",
    "WorkerLost",
]


class EventBusError(Exception):
    """The root: `except EventBusError` catches whatever this library raises on purpose."""


class ConfigError(EventBusError):
    """A setting is missing or cannot be understood; `variable` names it."""

    def __init__(self, message: str, *, variable: str = "") -> None:
        super().__init__(message)
        self.variable = variable


class InvalidName(EventBusError, ValueError):
    """A name that breaks its grammar; `name` is what was given."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class InvalidChannel(InvalidName):
    """Not a channel name."""


class InvalidPattern(InvalidName):
    """Not a channel pattern."""


class InvalidEventName(InvalidName):
    """Not an event name, or one that is reserved for the system."""


class EventDefinitionError(EventBusError, TypeError):
    """An event class that cannot be defined; raised where the class statement stands."""


class EventFieldError(EventBusError, ValueError):
    """An event's field does not fit its type or its channel template; names event and field."""

    def __init__(self, message: str, *, event: str, field: str) -> None:
        super().__init__(message)
        self.event = event
        self.field = field


class InvalidPayload(EventBusError, ValueError):
    """Bytes from the bus that are no message. `reason` is one of a few fixed words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidWebhook(EventBusError, ValueError):
    """A request that is not to be trusted. `reason` is `headers`, `signature`, `time` or `body`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncodingError(EventBusError, ValueError):
    """Data that cannot be encoded as JSON, or a message larger than the broker takes."""


class BusStateError(EventBusError, RuntimeError):
    """The bus is not in the state that the call needs."""


class CallbackFailed(EventBusError):
    """A listener, handler or hook raised what is not an Exception: it is the error's cause.

    Such as SystemExit, the panic of a Rust extension, or the CancelledError of something that the
    code awaited, while nobody cancelled the code itself.
    """


class DispatchFailed(EventBusError):
    """Some of several messages were not published; the others were.

    `failures` holds the error of each channel that failed (of the first message, where several
    went to one channel), `receipts` what was published. The errors are the cause's, as a group.
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
    """A listener raises it to say that no further try can help: the job is kept as failed."""


class NoListener(JobRejected):
    """A queued event that is not broadcast, and that nothing in the worker listens to.

    Raised where BROADCAST_QUEUE_NO_LISTENER is `fail`.
    """


class JobRetry(EventBusError):
    """A listener raises it to have the job tried again no sooner than after `after_s` seconds.

    The back-off holds where it is longer, and the number of tries in any case.
    """

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class UnknownEvent(EventBusError):
    """A queued event is of a type that the worker which took it does not know."""


class WorkerLost(EventBusError):
    """Each worker that took a queued event ended, or lost its connection, before it was done."""


class ClientError(EventBusError):
    """A fault of a client of an edge."""


class ClientClosed(ClientError):
    """The client is closed and will not connect again; `close_code` is the WebSocket's."""

    def __init__(self, message: str, *, close_code: int) -> None:
        super().__init__(message)
        self.close_code = close_code


class ClientDisconnected(ClientError):
    """There is no connection, it was lost before the answer, or the answer did not come in time.

    What was asked may have been done.
    """


class ClientRefused(ClientError):
    """The edge refuses what was asked.

    `code` is one of docs/wire-protocol.md's ("Errors"), `revoked` for a channel that was taken
    away, or `http_<status>` for a refused connection; `channel` is what it concerns, if anything.
    """

    def __init__(self, message: str, *, code: str, channel: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.channel = channel


class DriverError(EventBusError):
    """A fault of a driver or its broker; `driver` is the driver's name."""

    def __init__(self, message: str, *, driver: str) -> None:
        super().__init__(message)
        self.driver = driver


class ConnectionFailed(DriverError):
    """The broker cannot be reached, refuses the credentials, or is lost."""


class PublishFailed(DriverError):
    """The broker has not acknowledged the message.

    It may be stored all the same: publish it again with the same id, and it is stored once.
    """


class PublishDenied(PublishFailed):
    """The user that the driver logs in as may not publish there: to try again is of no use."""


class StreamMismatch(DriverError):
    """A stream exists with settings under which history or delivery cannot work."""


class NotSupported(DriverError):
    """The driver does not have the capability that was asked for."""


class ServerError(DriverError):
    """The embedded nats-server did not start, or ended unasked."""
