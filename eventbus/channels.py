"""Channel names, channel patterns, channel kinds, and the subjects that channels map to.

Every name passes `validate_channel` before it becomes part of a subject, on both sides of the bus.
Brokers accept names that disconnect other clients (control characters, invalid UTF-8) or that are
never delivered (empty tokens, wildcards in a publish).
"""

import enum
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, final

from eventbus.errors import ConfigError, InvalidChannel, InvalidPattern

__all__ = [
    "DEFAULT_NAMESPACE",
    "MAX_CHANNEL_BYTES",
    "ChannelKind",
    "Pattern",
    "Subjects",
    "validate_channel",
]

MAX_CHANNEL_BYTES: Final = 200
_MAX_PATTERN: Final = 300  # leaves room for token names and the subject prefix
DEFAULT_NAMESPACE: Final = "eb"

_TOKEN: Final = r"[A-Za-z0-9_=@,;-]+"
_CHANNEL: Final = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*", re.ASCII)
_LITERAL: Final = re.compile(_TOKEN, re.ASCII)
_NAMED: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_NAMESPACE: Final = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
_GRAMMAR: Final = (
    "dot-separated tokens of letters, digits and _ = @ , ; - with no empty token, "
    f"at most {MAX_CHANNEL_BYTES} bytes"
)
_NO_CAPTURES: Final[Mapping[str, str]] = MappingProxyType({})


class ChannelKind(enum.StrEnum):
    """What a channel requires of its subscribers."""

    PUBLIC = "public"
    PRIVATE = "private"
    PRESENCE = "presence"


def validate_channel(name: object) -> str:
    """Return `name` if it is a valid channel name.

    Raises InvalidChannel for anything else, of any type. The message says what is allowed.
    """
    if isinstance(name, str) and len(name) <= MAX_CHANNEL_BYTES and _CHANNEL.fullmatch(name):
        return name
    shown = _shorten(name)
    raise InvalidChannel(f"{shown} is not a channel name; allowed: {_GRAMMAR}", name=shown)


def _shorten(value: object) -> str:
    text = repr(value) if isinstance(value, str) else f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


@final
class Pattern:
    """A set of channels: literal tokens, `{name}` and `*` for one token, `>` for one or more.

    `team.{team_id}` matches `team.7` and captures team_id=7; `orders.>` matches `orders.eu.42`
    but not `orders`. The semantics are those of NATS wildcards
    (https://docs.nats.io/nats-concepts/subjects#wildcards), so a pattern is also a subject filter.
    """

    __slots__ = ("_names", "_tokens", "text")

    def __init__(self, text: str) -> None:
        """Parse `text`. Raises InvalidPattern."""
        self.text = text
        self._tokens, self._names = _parse_pattern(text)

    @property
    def filter(self) -> str:
        """The pattern as a NATS subject filter: named tokens become `*`."""
        return ".".join(self._tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The token names, from left to right."""
        return tuple(name for name in self._names if name)

    @property
    def is_exact(self) -> bool:
        """Whether the pattern matches exactly one channel: `text` itself."""
        return "*" not in self._tokens and self._tokens[-1] != ">"

    def match(self, channel: str) -> Mapping[str, str] | None:
        """Return the captured tokens by name, or None if the channel does not match.

        The mapping is empty if the pattern names no tokens. `channel` must be a valid channel name.
        """
        given = channel.split(".")
        tokens = self._tokens
        if tokens[-1] == ">":
            if len(given) < len(tokens):
                return None
        elif len(given) != len(tokens):
            return None
        captured: dict[str, str] | None = None
        for token, name, value in zip(tokens, self._names, given, strict=False):
            if token == ">":
                break
            if token == "*":
                if name:
                    captured = captured or {}
                    captured[name] = value
            elif token != value:
                return None
        return captured if captured is not None else _NO_CAPTURES

    def contains(self, other: "Pattern") -> bool:
        """Whether this pattern matches every channel that `other` matches."""
        mine, theirs = self._tokens, other._tokens  # noqa: SLF001 - same class
        for i, token in enumerate(mine):
            if token == ">":
                return len(theirs) > i
            if i >= len(theirs) or theirs[i] == ">":
                return False
            if token not in ("*", theirs[i]):
                return False
        return len(mine) == len(theirs)

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the channel with each named token replaced by its value.

        Raises KeyError for a missing value, and InvalidChannel for a value that breaks the grammar
        or adds a token.
        """
        filled = []
        for token, name in zip(self._tokens, self._names, strict=True):
            value = values[name] if name else token
            if not _LITERAL.fullmatch(value):
                raise InvalidChannel(
                    f"{_shorten(value)} is not a valid value for {{{name}}} in {self.text!r}; "
                    "allowed: one or more letters, digits and _ = @ , ; -",
                    name=value,
                )
            filled.append(value)
        return validate_channel(".".join(filled))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _parse_pattern(text: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens in filter form, and the name of each token or an empty string."""
    if not isinstance(text, str) or not text or len(text) > _MAX_PATTERN:
        raise InvalidPattern(
            f"{_shorten(text)} is not a channel pattern; "
            f"allowed: a string of 1 to {_MAX_PATTERN} characters",
            name=_shorten(text),
        )
    tokens, names = [], []
    parts = text.split(".")
    for i, part in enumerate(parts):
        named = _NAMED.fullmatch(part)
        last = i == len(parts) - 1
        if not (named or part == "*" or (part == ">" and last) or _LITERAL.fullmatch(part)):
            raise InvalidPattern(
                f"{_shorten(text)} is not a channel pattern: token {i + 1} is {_shorten(part)}; "
                "allowed: a literal, {name}, * for one token, or > for the rest (only at the end)",
                name=text,
            )
        tokens.append("*" if named else part)
        names.append(named[1] if named else "")
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        raise InvalidPattern(f"{text!r} uses a token name more than once", name=text)
    return tuple(tokens), tuple(names)


@final
class Subjects:
    """Maps channels to subjects and back, within one namespace.

    Messages are published to `<namespace>.event.<channel>` and received on
    `<namespace>.live.<channel>`. The other prefixes are internal. A namespace is a single token:
    with several, the subjects of one deployment could fall inside those of another.
    """

    __slots__ = ("_event", "_live", "_quarantine", "namespace")

    def __init__(self, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Raises ConfigError unless `namespace` is 1 to 32 characters of a-z, 0-9, _ and -."""
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigError(
                f"BROADCAST_CHANNELS_PREFIX={namespace!r}: invalid namespace; "
                "allowed: 1 to 32 characters of a-z 0-9 _ -",
                variable="BROADCAST_CHANNELS_PREFIX",
            )
        self.namespace = namespace
        self._event = f"{namespace}.event."
        self._live = f"{namespace}.live."
        self._quarantine = f"{namespace}.quarantine."

    def event(self, channel: str) -> str:
        """The subject that messages for `channel` are published to. Raises InvalidChannel."""
        return self._event + validate_channel(channel)

    def live(self, channel: str) -> str:
        """The subject that subscribers of `channel` listen on. Raises InvalidChannel."""
        return self._live + validate_channel(channel)

    def quarantine(self, channel: str) -> str:
        """The subject for invalid payloads of `channel`. Raises InvalidChannel."""
        return self._quarantine + validate_channel(channel)

    def control(self, topic: str) -> str:
        """A subject for traffic between the nodes of a cluster. Raises InvalidChannel."""
        return f"{self.namespace}.control.{validate_channel(topic)}"

    def queue(self, name: str) -> str:
        """The subject of a queue of events. Raises InvalidChannel."""
        return f"{self.namespace}.queue.{validate_channel(name)}"

    def live_filter(self, pattern: Pattern) -> str:
        """A filter over the live subjects of the channels that `pattern` matches."""
        return self._live + pattern.filter

    def event_filter(self, pattern: Pattern) -> str:
        """A filter over the event subjects of the channels that `pattern` matches."""
        return self._event + pattern.filter

    def live_of(self, event_subject: str) -> str | None:
        """The live subject that an event subject is republished to, or None for other subjects."""
        if event_subject.startswith(self._event):
            return self._live + event_subject[len(self._event) :]
        return None

    def channel_of(self, subject: str) -> str:
        """The channel of an event, live or quarantine subject.

        Raises InvalidChannel if the prefix is another one, or if the rest is not a channel name:
        clients of the broker can publish to any subject.
        """
        for root in (self._live, self._event, self._quarantine):
            if subject.startswith(root):
                return validate_channel(subject[len(root) :])
        raise InvalidChannel(
            f"{_shorten(subject)} is not a channel subject in namespace {self.namespace!r}",
            name=subject,
        )
