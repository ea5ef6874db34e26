"""The policy of queued events: which queue stores them, and how workers run them.

The class statement declares it, and a dispatch returns when the event is stored:

    class SendInvoice(Event, ShouldQueue, queue="invoices", tries=5, backoff=(1, 5, 30)):
        order_id: int
"""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

from eventbus.errors import EventDefinitionError

__all__ = [
    "DEFAULT_QUEUE",
    "POLICY_KEYWORDS",
    "QueuePolicy",
    "ShouldQueue",
    "define_policy",
    "delay_until",
    "policy_of",
    "validate_queue",
]


DEFAULT_QUEUE: Final = "default"
MAX_TRIES: Final = 1000
MAX_TIMEOUT_S: Final = 86_400.0
MAX_DELAY_S: Final = 366 * 86_400.0
MAX_STEPS: Final = 100
_QUEUE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

Seconds = float | datetime.timedelta
Moment = Seconds | datetime.datetime


class QueuePolicy(NamedTuple):
    """How a worker runs one queued event. Times are in seconds."""

    queue: str = DEFAULT_QUEUE
    tries: int = 3
    """Attempts before it counts as failed."""
    timeout: float = 60.0
    """How long its listeners and its broadcast may take before they are cancelled."""
    backoff: tuple[float, ...] = (1.0, 5.0, 30.0)
    """The pause after the first attempt, the second, and so on; the last one repeats."""
    delay: float = 0.0
    """How long it waits before a worker may take it."""
    connection: str | None = None
    """The name of the driver whose queue stores it; None for the bus's own."""
    after_commit: bool = False
    """Whether a dispatch within a transaction is held until its commit."""

    def pause_after(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`, starting at 1, has failed."""
        return pause_after(self.backoff, attempt)


def pause_after(backoff: Sequence[float], attempt: int) -> float:
    """The step of a back-off after attempt number `attempt`; 0 without steps."""
    return backoff[min(attempt, len(backoff)) - 1] if backoff else 0.0


class _Defined(Protocol):
    queue: QueuePolicy | None


class ShouldQueue:
    """A mix-in for events that `dispatch` stores, and whose listeners a worker runs.

    Class keywords give the policy: `queue`, `tries`, `timeout`, `backoff`, `delay`
    and `queue_connection`, as in QueuePolicy, and `after_commit`; they are inherited. Override a
    method for a value that depends on the event; a dispatch calls each of them once.
    """

    __slots__ = ()

    def queue_on(self) -> str:
        """The queue's name: 1 to 64 of A-Z a-z 0-9 _ and -."""
        return _class_policy(self).queue

    def queue_tries(self) -> int:
        """How many attempts a worker makes."""
        return _class_policy(self).tries

    def queue_timeout(self) -> Seconds:
        """How long one attempt may take."""
        return _class_policy(self).timeout

    def queue_backoff(self) -> Seconds | Sequence[Seconds]:
        """The pauses between attempts."""
        return _class_policy(self).backoff

    def queue_delay(self) -> Moment:
        """How long, or until when (an aware datetime), the event waits."""
        return _class_policy(self).delay

    def queue_connection(self) -> str | None:
        """The name of the driver whose queue stores it; None for the bus's own."""
        return _class_policy(self).connection

    def queue_after_commit(self) -> bool:
        """Whether it is held until the transaction around its dispatch commits."""
        return _class_policy(self).after_commit


POLICY_KEYWORDS: Final[Mapping[str, str]] = {
    "queue": "queue",
    "tries": "tries",
    "timeout": "timeout",
    "backoff": "backoff",
    "delay": "delay",
    "queue_connection": "connection",
}
"""The class keywords of queued events alone, and the field of QueuePolicy that each one sets."""


def define_policy(
    where: str,
    *,
    queued: bool,
    inherited: QueuePolicy | None,
    given: Mapping[str, Any],
    after_commit: bool,
) -> QueuePolicy | None:
    """The policy of an event class, from those of its base and its own class keywords.

    None for a class that is not ShouldQueue. Raises EventDefinitionError that begins with `where`.
    """
    if not queued:
        if given:
            raise EventDefinitionError(
                f"{where} has {', '.join(sorted(given))} and is not queued: mix in ShouldQueue"
            )
        return None
    policy = inherited or QueuePolicy()
    changes = {
        POLICY_KEYWORDS[keyword]: _check(f"{where}: {keyword}", POLICY_KEYWORDS[keyword], value)
        for keyword, value in given.items()
    }
    return policy._replace(after_commit=after_commit, **changes)


def policy_of(event: ShouldQueue, where: str) -> QueuePolicy:
    """The policy of one event, from its methods. Raises EventDefinitionError."""
    answers = {
        "queue": event.queue_on,
        "tries": event.queue_tries,
        "timeout": event.queue_timeout,
        "backoff": event.queue_backoff,
        "delay": event.queue_delay,
        "connection": event.queue_connection,
        "after_commit": event.queue_after_commit,
    }
    return QueuePolicy(
        **{
            field: _check(f"{where}.{answer.__name__}()", field, cast(Any, answer)())
            for field, answer in answers.items()
        }
    )


def validate_queue(name: object) -> str:
    """Return `name` if it is a queue's name. Raises ValueError that says what is allowed."""
    if isinstance(name, str) and _QUEUE.fullmatch(name):
        return name
    raise ValueError(f"{_show(name)} is not a queue's name: 1 to 64 of A-Z a-z 0-9 _ - are")


def delay_until(moment: datetime.datetime) -> float:
    """Seconds from now until an aware `moment`; 0 if it has passed. Raises ValueError."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone: an aware datetime is allowed")
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


def _class_policy(event: ShouldQueue) -> QueuePolicy:
    definition = cast(_Defined, cast(Any, type(event)).__event_definition__)
    return definition.queue or QueuePolicy()


def _check(where: str, field: str, value: Any) -> Any:
    try:
        return _CHECKS[field](value)
    except ValueError as exc:
        raise EventDefinitionError(f"{where}: {exc}") from None


def _tries(value: Any) -> int:
    if type(value) is int and 1 <= value <= MAX_TRIES:
        return value
    raise ValueError(f"{_show(value)} is not a number of tries: 1 to {MAX_TRIES} are allowed")


def _timeout(value: Any) -> float:
    seconds = _seconds(value, MAX_TIMEOUT_S)
    if seconds == 0:
        raise ValueError("0 leaves no time: more than 0 seconds are allowed")
    return seconds


def _backoff(value: Any) -> tuple[float, ...]:
    steps = value if isinstance(value, (tuple, list)) else (value,)
    if len(steps) > MAX_STEPS:
        raise ValueError(f"{len(steps)} steps are too many: up to {MAX_STEPS} are allowed")
    return tuple(_seconds(step, MAX_DELAY_S) for step in steps)


def _delay(value: Any) -> float:
    return _seconds(
        delay_until(value) if isinstance(value, datetime.datetime) else value, MAX_DELAY_S
    )


def _seconds(value: Any, limit: float) -> float:
    plain = value.total_seconds() if isinstance(value, datetime.timedelta) else value
    is_number = isinstance(plain, int | float) and not isinstance(plain, bool)
    if is_number and math.isfinite(plain) and 0 <= plain <= limit:
        return float(plain)
    raise ValueError(f"{_show(value)} is not a time: 0 to {limit:,.0f} seconds are allowed")


def _connection(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise ValueError(f"{_show(value)} is not the name of a driver")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{_show(value)} is neither True nor False")


def _show(value: object) -> str:
    return repr(value)[:80]


_CHECKS: Final[Mapping[str, Any]] = {
    "queue": validate_queue,
    "tries": _tries,
    "timeout": _timeout,
    "backoff": _backoff,
    "delay": _delay,
    "connection": _connection,
    "after_commit": _flag,
}
