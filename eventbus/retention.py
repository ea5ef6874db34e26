"""Retention classes: how much history each channel keeps, and what it survives.

`BROADCAST_RETENTION` lists the classes, separated by white space. The first match applies:

    orders.>:1000/24h/disk prices.*:1/7d/64MiB

Channels below `orders` keep 1,000 messages each for 24 hours, and a message is acknowledged when it
is on disk. Channels that match `prices.*` keep their last message for 7 days, in 64 MiB for all of
them together. Channels that match no class keep what `BROADCAST_HISTORY_*` say.
"""

import re
from typing import Final, Literal, NamedTuple, TypeAlias, cast

import msgspec

from eventbus.channels import Pattern
from eventbus.environment import Count, Positive
from eventbus.errors import ConfigError, InvalidPattern

__all__ = ["MAX_CLASSES", "MAX_COUNT", "VARIABLE", "Durability", "Retention", "RetentionClass"]

Durability: TypeAlias = Literal["process", "disk"]
"""What an acknowledged message survives: the crash of any process, or a power cut as well."""

VARIABLE: Final = "BROADCAST_RETENTION"
MAX_CLASSES: Final = 32
"""On NATS, a class that keeps messages for longer than the default has a stream of its own."""
MAX_COUNT: Final = 10_000
"""Limited because the last messages of a channel are found by reading from its first one."""
MIN_SECONDS: Final = 0.1  # the minimum age limit of a NATS stream
MAX_SECONDS: Final = 365 * 86_400.0
MIN_BYTES: Final = 1024**2  # the default size limit of a message in NATS

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZES: Final = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_CLASS: Final = re.compile(
    r"(?P<pattern>[^:/]+):(?P<count>[0-9]{1,9})/(?P<age>[0-9]{1,9}(?:\.[0-9]{1,3})?)(?P<unit>[smhd])"
    r"(?:/(?P<size>[0-9]{1,9})(?P<scale>[KMGT]iB))?(?:/(?P<durability>process|disk))?",
    re.ASCII,
)
_ALLOWED: Final = (
    "pattern:count/age, then /bytes, /process or /disk if needed, separated by white space, such "
    f"as orders.>:1000/24h/disk prices.*:1/7d/64MiB; count 1 to {MAX_COUNT}, age 0.1s to 365d "
    "with the unit s, m, h or d, bytes at least 1MiB with the unit KiB, MiB, GiB or TiB, at most "
    f"{MAX_CLASSES} classes; an earlier class must not cover all channels of a later one"
)


class RetentionClass(NamedTuple):
    """How much history each channel of a class keeps."""

    pattern: Pattern | None
    """None for channels that match no class."""
    messages: int
    seconds: float
    max_bytes: int | None
    """For all channels of the class together; None if not set."""
    durability: Durability = "process"


class Retention:
    """The retention classes, and the default for channels that match none."""

    def __init__(
        self,
        text: str = "",
        *,
        count: int = 100,
        seconds: float = 600.0,
        durability: Durability = "process",
    ) -> None:
        """Parse the setting `text`; the other arguments are defaults. Raises ConfigError.

        A class without a durability of its own has the default one.
        """
        try:
            count, seconds = msgspec.convert(count, Count), msgspec.convert(seconds, Positive)
        except msgspec.ValidationError as exc:
            raise ConfigError(
                f"cannot keep {count!r} messages for {seconds!r} s: {exc}; allowed: 1 message or "
                "more, and more than 0 s up to 365 days"
            ) from None
        self.default = RetentionClass(None, count, seconds, None, durability)
        self.classes = _parse(text, durability)

    def of(self, channel: str) -> RetentionClass:
        """The class of a channel."""
        for one in self.classes:
            if one.pattern is not None and one.pattern.match(channel) is not None:
                return one
        return self.default

    @property
    def max_count(self) -> int:
        """The most messages that any class keeps of a channel."""
        return max(one.messages for one in (self.default, *self.classes))

    @property
    def max_seconds(self) -> float:
        """The longest time that any class keeps messages."""
        return max(one.seconds for one in (self.default, *self.classes))

    @property
    def durability(self) -> Durability:
        """The strictest durability that any class asks for."""
        is_disk = any(one.durability == "disk" for one in (self.default, *self.classes))
        return "disk" if is_disk else "process"


def _parse(text: str, durability: Durability) -> tuple[RetentionClass, ...]:
    classes: list[RetentionClass] = []
    for part in text.split():
        retention_class = _class(text, part, durability)
        assert retention_class.pattern is not None
        for earlier in classes:
            assert earlier.pattern is not None
            if earlier.pattern.contains(retention_class.pattern):
                raise _wrong(
                    text,
                    f"{part!r} never applies: {earlier.pattern.text!r} matches all its channels",
                )
        classes.append(retention_class)
    if len(classes) > MAX_CLASSES:
        raise _wrong(text, f"{len(classes)} classes")
    return tuple(classes)


def _class(text: str, part: str, default: Durability) -> RetentionClass:
    found = _CLASS.fullmatch(part)
    if found is None:
        raise _wrong(text, f"{part!r} is not a retention class")
    try:
        pattern = Pattern(found["pattern"])
    except InvalidPattern as exc:
        raise _wrong(text, str(exc)) from None
    count = int(found["count"])
    if not 1 <= count <= MAX_COUNT:
        raise _wrong(text, f"{part!r} has the count {count}")
    seconds = float(found["age"]) * _UNITS[found["unit"]]
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise _wrong(text, f"{part!r} has the age {found['age']}{found['unit']}")
    size = None
    if found["size"] is not None:
        size = int(found["size"]) * _SIZES[found["scale"]]
        if not MIN_BYTES <= size < 2**63:
            raise _wrong(text, f"{part!r} has the size {found['size']}{found['scale']}")
    durability = cast("Durability", found["durability"] or default)
    return RetentionClass(pattern, count, seconds, size, durability)


def _wrong(text: str, problem: str) -> ConfigError:
    shown = text if len(text) <= 200 else f"{text[:197]}..."
    return ConfigError(f"{VARIABLE}={shown!r}: {problem}; allowed: {_ALLOWED}", variable=VARIABLE)
