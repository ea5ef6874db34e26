"""The settings of a bus and its drivers: frozen, and declared once; see `eventbus.environment`."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from eventbus.channels import DEFAULT_NAMESPACE, Subjects
from eventbus.environment import Count, Port, Positive, SettingsStruct, Var, load
from eventbus.retention import VARIABLE as RETENTION, Retention

__all__ = ["Settings"]

SECRET_KEYS: Final = (
    "password", "passwd", "passphrase", "secret", "token", "authorization", "api_key",
    "private_key", "credential", "cookie", "jwt",
)  # fmt: skip
"""What keys of secrets are called, unless a setting names others."""


class Settings(SettingsStruct, frozen=True, kw_only=True):
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
    queue_no_listener: Annotated[
        Literal["warn", "fail"],
        Var(
            "BROADCAST_QUEUE_NO_LISTENER",
            "what a worker does with a job that it has no listener for, and that is not broadcast",
            "warn (it is done, and the log says so) or fail (it is kept among the failed jobs)",
        ),
    ] = "warn"
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
    redis_wait_replicas: Annotated[
        int,
        msgspec.Meta(ge=0, le=16),
        Var(
            "BROADCAST_REDIS_WAIT_REPLICAS",
            "how many replicas of Redis must have a message before `publish` returns",
            "0 to 16; 0 does not wait",
        ),
    ] = 0
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
