"""Settings: frozen, from the environment, each checked where it enters.

This module is the library's only reader of the environment. A settings struct declares each value
once, with its variable, default and meaning; `load` reads it, and whoever makes a table of settings
reads the same declarations through `variables`.
"""

import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from eventbus.channels import DEFAULT_NAMESPACE, Subjects
from eventbus.errors import ConfigError
from eventbus.retention import VARIABLE as RETENTION, Retention

__all__ = ["Settings", "Var", "Variable", "child_environment", "load", "variables"]

S = TypeVar("S", bound=msgspec.Struct)

MASK: Final = "***"
SECRET_KEYS: Final = (
    "password", "passwd", "passphrase", "secret", "token", "authorization", "api_key",
    "private_key", "credential", "cookie", "jwt",
)  # fmt: skip
"""What keys of secrets are called, unless a setting names others."""
FILE_SUFFIX: Final = "_FILE"
MAX_SECRET_BYTES: Final = 65_536
_BOOLEANS: Final = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


class Var(NamedTuple):
    """Stands in a field's `Annotated`: its environment variable, and what it means."""

    name: str
    help: str
    allowed: str
    secret: bool = False
    aliases: Mapping[str, str] = {}
    """Other spellings of a value, and the value that each stands for."""


class Variable(NamedTuple):
    """One declared setting, as a table of settings shows it."""

    field: str
    name: str
    help: str
    allowed: str
    default: Any
    secret: bool


Positive = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a bus and its drivers are made from. Times are in seconds, sizes in bytes."""

    driver: Annotated[
        str,
        Var(
            "BROADCAST_DRIVER",
            "which system carries the messages",
            "nats (or websocket), redis, log, memory, null, stack, or the name of an installed one",
            aliases={"websocket": "nats"},
        ),
    ] = "nats"
    namespace: Annotated[
        str,
        Var(
            "BROADCAST_CHANNELS_PREFIX",
            "the first token of every subject",
            "1 to 32 of a-z 0-9 _ -",
        ),
    ] = DEFAULT_NAMESPACE
    nats_url: Annotated[
        str,
        Var(
            "NATS_URL",
            "servers to connect to, separated by commas; empty starts an embedded one",
            "nats://, tls://, ws:// or wss:// addresses",
            secret=True,
        ),
    ] = ""
    nats_creds: Annotated[
        str, Var("NATS_CREDS", "a credentials file for NATS", "the path of a readable file")
    ] = ""
    nats_nkey: Annotated[
        str,
        Var("NATS_NKEY", "a file with an nkey's seed for NATS", "the path of a readable file"),
    ] = ""
    nats_ca: Annotated[
        str,
        Var(
            "NATS_CA",
            "the authority of NATS's certificate; empty trusts the system's authorities. With it, "
            "a server without TLS is refused",
            "the path of a readable PEM file",
        ),
    ] = ""
    nats_cert: Annotated[
        str, Var("NATS_CERT", "a client certificate for NATS", "the path of a readable PEM file")
    ] = ""
    nats_key: Annotated[
        str, Var("NATS_KEY", "its private key", "the path of a readable PEM file")
    ] = ""
    nats_inbox_prefix: Annotated[
        str,
        msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"),
        Var(
            "NATS_INBOX_PREFIX",
            "what the subjects of answers begin with; one for each NATS user lets no other read "
            "them",
            "tokens of A-Z a-z 0-9 _ - joined by dots",
        ),
    ] = "_INBOX"
    nats_data: Annotated[
        str,
        Var(
            "BROADCAST_NATS_DATA", "the embedded server's data folder", "a path that can be written"
        ),
    ] = ".eventbus/nats"
    nats_port: Annotated[
        Port,
        Var("BROADCAST_NATS_PORT", "the embedded server's port; 0 takes a free one", "0 to 65535"),
    ] = 4222
    connect_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_CONNECT_TIMEOUT",
            "how long a start may wait for the broker",
            "above 0, at most a year",
        ),
    ] = 10.0
    publish_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_PUBLISH_TIMEOUT",
            "how long a message is retried until the broker acknowledges it",
            "above 0; at least 10 outlives a leader's election",
        ),
    ] = 15.0
    history_messages: Annotated[
        Count, Var("BROADCAST_HISTORY_MESSAGES", "messages kept of each channel", "1 or more")
    ] = 100
    history_seconds: Annotated[
        Positive,
        Var("BROADCAST_HISTORY_SECONDS", "how long messages are kept", "above 0, at most a year"),
    ] = 600.0
    history_bytes: Annotated[
        Count, Var("BROADCAST_HISTORY_BYTES", "bytes kept of all channels", "1 or more")
    ] = 1024**3
    history_replicas: Annotated[
        Literal[1, 3, 5],
        Var("BROADCAST_HISTORY_REPLICAS", "copies of the stream in a NATS cluster", "1, 3 or 5"),
    ] = 1
    retention: Annotated[
        str,
        Var(
            RETENTION,
            "classes of channels of which more or less is kept; the first that matches holds",
            "pattern:count/age or pattern:count/age/bytes, separated by white space, such as "
            "orders.>:1000/24h prices.*:1/7d/64MiB",
        ),
    ] = ""
    queue_lease: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=3600)],
        Var(
            "BROADCAST_QUEUE_LEASE",
            "how soon the jobs of a worker that died are given to another",
            "1 to 3600 seconds",
        ),
    ] = 30.0
    queue_bytes: Annotated[
        Count,
        Var("BROADCAST_QUEUE_BYTES", "bytes of all queues; jobs are refused beyond", "1 or more"),
    ] = 1024**3
    failed_bytes: Annotated[
        Count,
        Var("BROADCAST_FAILED_BYTES", "bytes of failed jobs; the oldest go beyond", "1 or more"),
    ] = 64 * 1024**2
    redis_enabled: Annotated[
        bool,
        Var("BROADCAST_REDIS_ENABLED", "whether the redis driver may be used", "true or false"),
    ] = True
    redis_url: Annotated[
        str,
        Var(
            "BROADCAST_REDIS_URL",
            "where Redis is, in place of host, port, user, password, database and kind",
            "redis://[user:password@]host:port/database, rediss:// for TLS, "
            "redis+cluster://host:port,host:port, redis+sentinel://host:port,host:port/service/"
            "database, rediss+cluster:// or rediss+sentinel://",
            secret=True,
        ),
    ] = ""
    redis_host: Annotated[str, Var("BROADCAST_REDIS_HOST", "Redis's host", "a name or address")] = (
        "127.0.0.1"
    )
    redis_port: Annotated[Port, Var("BROADCAST_REDIS_PORT", "Redis's port", "0 to 65535")] = 6379
    redis_username: Annotated[
        str, Var("BROADCAST_REDIS_USERNAME", "Redis's user; empty is its default one", "a string")
    ] = ""
    redis_password: Annotated[
        str, Var("BROADCAST_REDIS_PASSWORD", "Redis's password", "a string", secret=True)
    ] = ""
    redis_database: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        Var("BROADCAST_REDIS_DATABASE", "Redis's database number", "0 or more; 0 on a cluster"),
    ] = 0
    redis_tls: Annotated[
        bool, Var("BROADCAST_REDIS_TLS", "whether Redis speaks TLS", "true or false")
    ] = False
    redis_tls_ca: Annotated[
        str,
        Var(
            "BROADCAST_REDIS_TLS_CA",
            "the authority of Redis's certificate; empty trusts the system's authorities",
            "the path of a readable PEM file",
        ),
    ] = ""
    redis_tls_cert: Annotated[
        str,
        Var("BROADCAST_REDIS_TLS_CERT", "a client certificate", "the path of a readable PEM file"),
    ] = ""
    redis_tls_key: Annotated[
        str, Var("BROADCAST_REDIS_TLS_KEY", "its private key", "the path of a readable PEM file")
    ] = ""
    redis_cluster: Annotated[
        bool,
        Var("BROADCAST_REDIS_CLUSTER", "whether host and port are of a cluster", "true or false"),
    ] = False
    redis_sentinels: Annotated[
        tuple[str, ...],
        Var("BROADCAST_REDIS_SENTINELS", "sentinels that know the master", "host:port,host:port"),
    ] = ()
    redis_sentinel_service: Annotated[
        str,
        Var("BROADCAST_REDIS_SENTINEL_SERVICE", "the master's name at the sentinels", "a string"),
    ] = "mymaster"
    redis_sentinel_password: Annotated[
        str,
        Var("BROADCAST_REDIS_SENTINEL_PASSWORD", "the sentinels' own password", "a string", True),
    ] = ""
    log_path: Annotated[
        str,
        Var(
            "BROADCAST_LOG_PATH",
            "the log driver's file; empty writes to the console",
            "the path of a file that can be written",
        ),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning"],
        Var(
            "BROADCAST_LOG_LEVEL",
            "what the log driver writes: everything, channels' messages, or only the quarantined",
            "debug, info or warning",
        ),
    ] = "info"
    log_max_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        Var(
            "BROADCAST_LOG_MAX_BYTES",
            "size at which the log's file is rotated; 0 never rotates it",
            "0 or more",
        ),
    ] = 10 * 1024**2
    log_backups: Annotated[
        Count, Var("BROADCAST_LOG_BACKUPS", "rotated files kept of the log", "1 or more")
    ] = 5
    log_mask: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_LOG_MASK",
            "keys whose names contain one of these are logged as ***; case, - and _ do not count",
            "words, separated by commas",
        ),
    ] = SECRET_KEYS
    no_color: Annotated[
        str, Var("NO_COLOR", "anything turns colours on a terminal off", "anything")
    ] = ""
    stack: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_STACK",
            "the drivers of the driver stack; history and listening are the first's that has them",
            "names of drivers but stack, separated by commas",
        ),
    ] = ()
    stack_required: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_STACK_REQUIRED",
            "the drivers of a stack without which publishing fails",
            "all, any, or names that stand in BROADCAST_STACK, separated by commas",
        ),
    ] = ("all",)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; ConfigError tells the variable, its value and what is allowed."""
        settings = load(cls, environ)
        Subjects(settings.namespace)
        settings.retention_classes()
        return settings

    def retention_classes(self) -> Retention:
        """How much is kept of each channel. Raises ConfigError."""
        return Retention(self.retention, count=self.history_messages, seconds=self.history_seconds)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of the process with `changes`, for one that it starts."""
    return {**os.environ, **changes}


def variables(struct: type[msgspec.Struct]) -> Iterator[Variable]:
    """The settings that a struct declares, in their order."""
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        var = _var(hints[field.name])
        if var is not None:
            yield Variable(field.name, var.name, var.help, var.allowed, field.default, var.secret)


def load(struct: type[S], environ: Mapping[str, str] | None = None) -> S:
    """Make a settings struct from `environ` (the process's environment when None).

    A variable that is empty counts as not set. A secret may stand in a file that is named by the
    variable with `_FILE` after its name, as container platforms hand them out. Raises ConfigError
    naming the variable, its value (secrets masked) and what is allowed; nothing falls back to a
    default in silence.
    """
    environ = os.environ if environ is None else environ
    hints = typing.get_type_hints(struct, include_extras=True)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        var = _var(hints[field.name])
        if var is None or not (text := _text(var, environ)):
            continue
        values[field.name] = _convert(text, field.type, var)
    return struct(**values)


def _text(var: Var, environ: Mapping[str, str]) -> str:
    text = environ.get(var.name, "").strip()
    name = f"{var.name}{FILE_SUFFIX}"
    path = environ.get(name, "").strip() if var.secret else ""
    if not path:
        return text
    if text:
        raise ConfigError(f"{var.name} and {name} are both set; allowed: one", variable=name)
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_SECRET_BYTES + 1).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{name}={path!r} cannot be read ({exc.__class__.__name__}); allowed: the path of a "
            "file of text",
            variable=name,
        ) from None
    if not 0 < len(text) <= MAX_SECRET_BYTES:
        raise ConfigError(
            f"{name}={path!r} holds no secret; allowed: 1 to {MAX_SECRET_BYTES} characters",
            variable=name,
        )
    return text


def _convert(text: str, type_: Any, var: Var) -> Any:
    text = var.aliases.get(text, text)
    plain = typing.get_args(type_)[0] if typing.get_origin(type_) is Annotated else type_
    value: Any = text
    if plain is bool:
        value = _BOOLEANS.get(text.lower(), text)
    elif typing.get_origin(plain) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(value, type_, strict=plain is bool)
    except msgspec.ValidationError as exc:
        shown = MASK if var.secret else repr(text)
        raise ConfigError(
            f"{var.name}={shown}: {var.help}; allowed: {var.allowed}"
            + ("" if var.secret else f" ({exc})"),
            variable=var.name,
        ) from None


def _var(hint: Any) -> Var | None:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Var):
            return extra
    return None
