"""Channel names, their patterns and kinds, and the subjects they live on: the centre of eventbus.

Nothing that has not passed `validate_channel` is ever made a subject, on either side of the bus:
brokers let through names that disconnect other people's clients (control characters, invalid
UTF-8), or that are never delivered (empty tokens, wildcards in a publish).
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
_MAX_PATTERN: Final = 300  # room for the names of tokens, and for a subject's root
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
    """What a channel asks of those who join it."""

    PUBLIC = "public"
    PRIVATE = "private"
    PRESENCE = "presence"


def validate_channel(name: object) -> str:
    """Give `name` back when it is a channel name.

    Raises InvalidChannel, saying what is allowed, for anything else (of whatever type).
    """
    if isinstance(name, str) and len(name) <= MAX_CHANNEL_BYTES and _CHANNEL.fullmatch(name):
        return name
    shown = _shorten(name)
    raise InvalidChannel(f"{shown} is not a channel name: allowed are {_GRAMMAR}", name=shown)


def _shorten(value: object) -> str:
    text = repr(value) if isinstance(value, str) else f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


@final
class Pattern:
    """A set of channels: literal tokens, `{name}` and `*` for one token, `>` for one or more.

    `team.{team_id}` matches `team.7` and captures team_id=7; `orders.>` matches `orders.eu.42`
    but not `orders`. These are the semantics of NATS wildcards
    (https://docs.nats.io/nats-concepts/subjects#wildcards), so a pattern is also a subject filter.
    """

    __slots__ = ("_names", "_tokens", "text")

    def __init__(self, text: str) -> None:
        """Parse `text`; raises InvalidPattern."""
        self.text = text
        self._tokens, self._names = _parse_pattern(text)

    @property
    def filter(self) -> str:
        """The pattern as a NATS filter: named tokens become `*`."""
        return ".".join(self._tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The named tokens, from left to right."""
        return tuple(name for name in self._names if name)

    @property
    def is_exact(self) -> bool:
        """Whether the pattern matches one channel only, the one that `text` names."""
        return "*" not in self._tokens and self._tokens[-1] != ">"

    def match(self, channel: str) -> Mapping[str, str] | None:
        """The captured tokens by name (empty when none is named), or None where it does not match.

        `channel` must be a valid channel name.
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
        """Whether every channel that `other` matches is matched by this pattern too."""
        mine, theirs = self._tokens, other._tokens  # noqa: SLF001 - of the same class
        for i, token in enumerate(mine):
            if token == ">":
                return len(theirs) > i
            if i >= len(theirs) or theirs[i] == ">":
                return False
            if token not in ("*", theirs[i]):
                return False
        return len(mine) == len(theirs)

    def fill(self, values: Mapping[str, str]) -> str:
        """The channel with each named token replaced; KeyError for a missing one.

        Raises InvalidChannel where a value would break the grammar or add a token.
        """
        filled = []
        for token, name in zip(self._tokens, self._names, strict=True):
            value = values[name] if name else token
            if not _LITERAL.fullmatch(value):
                raise InvalidChannel(
                    f"{_shorten(value)} cannot stand for {{{name}}} in {self.text!r}: "
                    "a token has letters, digits and _ = @ , ; - and is not empty",
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
    """Tokens in filter form, and for each its name or an empty string."""
    if not isinstance(text, str) or not text or len(text) > _MAX_PATTERN:
        raise InvalidPattern(
            f"{_shorten(text)} is not a channel pattern: "
            f"a string of 1 to {_MAX_PATTERN} characters is",
            name=_shorten(text),
        )
    tokens, names = [], []
    parts = text.split(".")
    for i, part in enumerate(parts):
        named = _NAMED.fullmatch(part)
        last = i == len(parts) - 1
        if not (named or part == "*" or (part == ">" and last) or _LITERAL.fullmatch(part)):
            raise InvalidPattern(
                f"{_shorten(text)} is not a channel pattern: token {i + 1}, {_shorten(part)}, is "
                "none of a literal, {name}, * for one token, or > for the rest (only at the end)",
                name=text,
            )
        tokens.append("*" if named else part)
        names.append(named[1] if named else "")
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        raise InvalidPattern(f"{text!r} names a token twice: each name stands once", name=text)
    return tuple(tokens), tuple(names)


@final
class Subjects:
    """Channels to subjects and back, within one namespace.

    `<namespace>.event.<channel>` is where one publishes, `<namespace>.live.<channel>` where one
    listens; the other roots are the system's own. A namespace is one token: with several, one
    deployment's subjects could lie inside another's.
    """

    __slots__ = ("_event", "_live", "_quarantine", "namespace")

    def __init__(self, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Raises ConfigError when `namespace` is not 1 to 32 of a-z, 0-9, _ and -."""
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigError(
                f"BROADCAST_CHANNELS_PREFIX={namespace!r}: allowed are 1 to 32 of a-z 0-9 _ -",
                variable="BROADCAST_CHANNELS_PREFIX",
            )
        self.namespace = namespace
        self._event = f"{namespace}.event."
        self._live = f"{namespace}.live."
        self._quarantine = f"{namespace}.quarantine."

    def event(self, channel: str) -> str:
        """Where a message for `channel` is published. Raises InvalidChannel."""
        return self._event + validate_channel(channel)

    def live(self, channel: str) -> str:
        """Where the messages of `channel` are listened to. Raises InvalidChannel."""
        return self._live + validate_channel(channel)

    def quarantine(self, channel: str) -> str:
        """Where payloads of `channel` go that are no message. Raises InvalidChannel."""
        return self._quarantine + validate_channel(channel)

    def control(self, topic: str) -> str:
        """A subject on which the nodes of a cluster talk. Raises InvalidChannel."""
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
        """The live subject that an event subject is republished to; None for any other subject."""
        if event_subject.startswith(self._event):
            return self._live + event_subject[len(self._event) :]
        return None

    def channel_of(self, subject: str) -> str:
        """The channel of an event, live or quarantine subject.

        Raises InvalidChannel for a subject of another root or namespace, or one whose rest is
        not a channel name (anyone may publish to anything).
        """
        for root in (self._live, self._event, self._quarantine):
            if subject.startswith(root):
                return validate_channel(subject[len(root) :])
        raise InvalidChannel(
            f"{_shorten(subject)} is not a subject of channels in namespace {self.namespace!r}",
            name=subject,
        )
