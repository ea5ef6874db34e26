"""Channel names, channel patterns, channel kinds, and the subjects that channels map to.

Every name passes `validate_channel` before it becomes part of a subject, on both sides of the bus.
Brokers accept names that disconnect other clients (control characters, invalid UTF-8) or that are
never delivered (empty tokens, wildcards in a publish).
"""

import enum
import re
import uuid
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, final

from eventbus.errors import ConfigError, InvalidChannel, InvalidPattern

__all__ = [
    "DEFAULT_NAMESPACE",
    "MAX_CHANNEL_BYTES",
    "MAX_PATTERN_CHARS",
    "TOKEN_REGEX",
    "ChannelKind",
    "Pattern",
    "Subjects",
    "decode_token",
    "encode_token",
    "user_channel",
    "validate_channel",
    "validate_pattern",
]

MAX_CHANNEL_BYTES: Final = 200
MAX_PATTERN_CHARS: Final = 300  # leaves room for token names and the subject prefix
DEFAULT_NAMESPACE: Final = "eb"

TOKEN_REGEX: Final = r"(?:[A-Za-z0-9_=@,;-]|~[0-9a-f]{2})+"
"""One token, except that not every escape is valid: see `encode_token`."""
_CHANNEL: Final = re.compile(rf"{TOKEN_REGEX}(?:\.{TOKEN_REGEX})*", re.ASCII)
_LITERAL: Final = re.compile(TOKEN_REGEX, re.ASCII)
_NAMED: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_ANY_LENGTH: Final = 10**18
"""Integers nearer to 0 are never too long for a token."""
_NAMESPACE: Final = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
_TOKEN_TYPES: Final = (str, int, uuid.UUID)
_TO_ESCAPE: Final = re.compile(r"[^A-Za-z0-9_=@,;-]", re.ASCII)
_ESCAPES: Final = re.compile(r"(?:~[0-9a-f]{2})+", re.ASCII)
_GRAMMAR: Final = (
    "dot-separated tokens of letters, digits and _ = @ , ; - with no empty token, "
    f"at most {MAX_CHANNEL_BYTES} bytes; other characters of an id are escaped, as in "
    "user.auth0~7c1 (see user_channel)"
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
    if (
        isinstance(name, str)
        and len(name) <= MAX_CHANNEL_BYTES
        and _CHANNEL.fullmatch(name)
        and ("~" not in name or all(map(_is_canonical, name.split("."))))
    ):
        return name
    shown = _shorten(name)
    raise InvalidChannel(f"{shown} is not a channel name; allowed: {_GRAMMAR}", name=shown)


def validate_pattern(text: str) -> "Pattern":
    """Return the pattern `text`, which must be short enough to match a channel.

    Raises InvalidPattern for anything else. The message says what is allowed.
    """
    pattern = Pattern(text)
    if len(pattern.filter) > MAX_CHANNEL_BYTES:
        shown = _shorten(text)
        raise InvalidPattern(
            f"{shown} has {len(pattern.filter)} bytes and matches no channel: channels have at "
            f"most {MAX_CHANNEL_BYTES}",
            name=shown,
        )
    return pattern


def encode_token(value: object) -> str:
    """A value, such as a user's id, as one token of a channel.

    Letters, digits and _ = @ , ; - stand for themselves. Any other character becomes `~` and two
    lowercase hexadecimal digits for each byte of its UTF-8: `auth0|7` is `auth0~7c7`, and
    `ada@example.com` is `ada@example~2ecom`. `~` is one of the others, so different values have
    different tokens, and a value that needs no escapes is its own token. `~` is not special in
    URLs, subjects and keys.

    Allowed are str, int, UUID, and enums of these. Raises InvalidChannel for anything else (None,
    bool and float among them), for an empty string, and for a token that is longer than a channel.
    """
    if type(value) is str and 0 < len(value) <= MAX_CHANNEL_BYTES and not _TO_ESCAPE.search(value):
        return value
    if type(value) is int and -_ANY_LENGTH < value < _ANY_LENGTH:
        return str(value)
    plain = value.value if isinstance(value, enum.Enum) else value
    if isinstance(plain, _TOKEN_TYPES) and not isinstance(plain, bool):
        try:
            text = plain if isinstance(plain, str) else str(plain)  # not a subclass's __str__
            token = _TO_ESCAPE.sub(_escape, text)
        except ValueError:  # a number of too many digits, or a lone surrogate
            token = ""
        if 0 < len(token) <= MAX_CHANNEL_BYTES:
            return token
    shown = _shorten(value)
    raise InvalidChannel(
        f"{shown} cannot be a token of a channel; allowed: str, int, UUID and enums of these, of 1 "
        f"to {MAX_CHANNEL_BYTES} characters when escaped",
        name=shown,
    )


def decode_token(token: str) -> str:
    """The text that `encode_token` made a token of. Raises InvalidChannel for any other token."""
    if "~" not in token:
        return token
    try:
        text = _ESCAPES.sub(lambda found: bytes.fromhex(found[0].replace("~", "")).decode(), token)
        if _TO_ESCAPE.sub(_escape, text) == token:
            return text
    except UnicodeDecodeError:
        pass
    shown = _shorten(token)
    raise InvalidChannel(f"{shown} has an escape that is not valid in a channel", name=shown)


def user_channel(user_id: object) -> str:
    """The personal channel of a user: `user.` and the id as a token (see `encode_token`).

    Raises InvalidChannel for an id that cannot be a token, or is too long.
    """
    return validate_channel(f"user.{encode_token(user_id)}")


def _escape(found: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in found[0].encode())


def _is_canonical(token: str) -> bool:
    try:
        decode_token(token)
    except InvalidChannel:
        return False
    return True


def _is_literal(token: str) -> bool:
    return _LITERAL.fullmatch(token) is not None and _is_canonical(token)


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

    __slots__ = ("_format", "_is_channel_template", "_names", "_tokens", "names", "text")

    def __init__(self, text: str) -> None:
        """Parse `text`. Raises InvalidPattern."""
        self.text = text
        self._tokens, self._names = _parse_pattern(text)
        self.names: tuple[str, ...] = tuple(name for name in self._names if name)
        """The token names, from left to right."""
        self._format = ".".join(
            "%s" if name else token for token, name in zip(self._tokens, self._names, strict=True)
        )
        self._is_channel_template = all(
            name or token not in ("*", ">")
            for token, name in zip(self._tokens, self._names, strict=True)
        )

    @property
    def filter(self) -> str:
        """The pattern as a NATS subject filter: named tokens become `*`."""
        return ".".join(self._tokens)

    @property
    def is_exact(self) -> bool:
        """Whether the pattern matches exactly one channel: `text` itself."""
        return "*" not in self._tokens and self._tokens[-1] != ">"

    def match(self, channel: str) -> Mapping[str, str] | None:
        """Return the captured values by name, or None if the channel does not match.

        The values are decoded (see `decode_token`). The mapping is empty if the pattern names no
        tokens. `channel` must be a valid channel name.
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
                    captured[name] = decode_token(value)
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

    def overlaps(self, other: "Pattern") -> bool:
        """Whether some channel matches both patterns."""
        mine, theirs = self._tokens, other._tokens  # noqa: SLF001 - same class
        for one, another in zip(mine, theirs, strict=False):
            if ">" in (one, another):
                return True
            if one != another and "*" not in (one, another):
                return False
        return len(mine) == len(theirs)

    def fill(self, values: Mapping[str, object]) -> str:
        """Return the channel with each named token replaced by its value: see `encode_token`.

        Raises KeyError for a missing value, and as `fill_in_order` does.
        """
        return self.fill_in_order([values[name] for name in self.names])

    def fill_in_order(self, values: Iterable[object]) -> str:
        """The same with one value for each of `names`.

        Raises InvalidChannel for a value that cannot be a token, for an unnamed wildcard, and for a
        channel that is too long.
        """
        filled = self._format % tuple([encode_token(value) for value in values])
        if self._is_channel_template and len(filled) <= MAX_CHANNEL_BYTES:
            return filled  # its tokens are valid
        return validate_channel(filled)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _parse_pattern(text: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens in filter form, and the name of each token or an empty string."""
    if not isinstance(text, str) or not text or len(text) > MAX_PATTERN_CHARS:
        raise InvalidPattern(
            f"{_shorten(text)} is not a channel pattern; "
            f"allowed: a string of 1 to {MAX_PATTERN_CHARS} characters",
            name=_shorten(text),
        )
    tokens, names = [], []
    parts = text.split(".")
    for i, part in enumerate(parts):
        named = _NAMED.fullmatch(part)
        last = i == len(parts) - 1
        if not (named or part == "*" or (part == ">" and last) or _is_literal(part)):
            raise InvalidPattern(
                f"{_shorten(text)} is not a channel pattern: token {i + 1} is {_shorten(part)}; "
                "allowed: a literal, {name}, * for one token, or > for the rest (only at the end)",
                name=text,
            )
        tokens.append("*" if named else part)
        names.append(named[1] if named else "")
    given = [name for name in names if name]
    if len(set(given)) < len(given):
        raise InvalidPattern(
            f"{text!r} uses a token name more than once; allowed: once each", name=text
        )
    return tuple(tokens), tuple(names)


@final
class Subjects:
    """Maps channels to subjects and back, within one namespace.

    Messages are published to `<namespace>.event.<channel>` and received on
    `<namespace>.live.<channel>`. The other prefixes are internal. A namespace is a single token:
    with several, the subjects of one deployment could fall inside those of another.
    """

    __slots__ = ("_quarantine", "event_root", "live_root", "namespace")

    def __init__(self, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Raises ConfigError unless `namespace` is 1 to 32 characters of a-z, 0-9, _ and -."""
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigError(
                f"BROADCAST_CHANNELS_PREFIX={namespace!r}: invalid namespace; "
                "allowed: 1 to 32 characters of a-z 0-9 _ -",
                variable="BROADCAST_CHANNELS_PREFIX",
            )
        self.namespace = namespace
        self.event_root = f"{namespace}.event."
        """The prefix of event subjects; what follows must be a valid channel."""
        self.live_root = f"{namespace}.live."
        """The prefix of live subjects; what follows must be a valid channel."""
        self._quarantine = f"{namespace}.quarantine."

    def event(self, channel: str) -> str:
        """The subject that messages for `channel` are published to. Raises InvalidChannel."""
        return self.event_root + validate_channel(channel)

    def live(self, channel: str) -> str:
        """The subject that subscribers of `channel` listen on. Raises InvalidChannel."""
        return self.live_root + validate_channel(channel)

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
        return self.live_root + pattern.filter

    def event_filter(self, pattern: Pattern) -> str:
        """A filter over the event subjects of the channels that `pattern` matches."""
        return self.event_root + pattern.filter

    def live_of(self, event_subject: str) -> str | None:
        """The live subject that an event subject is republished to, or None for other subjects."""
        if event_subject.startswith(self.event_root):
            return self.live_root + event_subject[len(self.event_root) :]
        return None

    def channel_of(self, subject: str) -> str:
        """The channel of an event, live or quarantine subject.

        Raises InvalidChannel if the prefix is another one, or if the rest is not a channel name:
        clients of the broker can publish to any subject.
        """
        for root in (self.live_root, self.event_root, self._quarantine):
            if subject.startswith(root):
                return validate_channel(subject[len(root) :])
        raise InvalidChannel(
            f"{_shorten(subject)} is not a channel subject in namespace {self.namespace!r}",
            name=subject,
        )
