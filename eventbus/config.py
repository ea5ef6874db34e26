"""The settings of a bus and its drivers. `eventbus.environment` reads them."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from eventbus.channels import DEFAULT_NAMESPACE, Subjects
from eventbus.environment import Count, Port, Positive, SettingsStruct, Var, load
from eventbus.errors import ConfigError
from eventbus.retention import VARIABLE as RETENTION, Durability, Retention

__all__ = ["Environment", "Settings"]

Environment: TypeAlias = Literal["development", "production"]

SECRET_KEYS: Final = (
    "password", "passwd", "passphrase", "secret", "token", "authorization", "api_key",
    "private_key", "credential", "cookie", "jwt",
)  # fmt: skip
"""Words in the keys of secret values, by default."""
DRIVER_ALIASES: Final = {"websocket": "nats"}
"""Other names of drivers."""


class Settings(SettingsStruct, frozen=True, kw_only=True):
    """The settings of a bus and its drivers. Times are in seconds, sizes in bytes."""

    driver: Annotated[
        str,
        Var(
            "BROADCAST_DRIVER",
            "the driver that carries the messages",
            "nats (or websocket), redis, log, memory, null, stack, or the name of an installed "
            "driver",
            aliases={"websocket": "nats"},
        ),
    ] = "nats"
    environment: Annotated[
        Environment,
        Var(
            "BROADCAST_ENVIRONMENT",
            "in development, all processes with the same BROADCAST_NATS_DATA share the embedded "
            "server of the first; in production, the others fail to start",
            "development or production",
        ),
    ] = "development"
    namespace: Annotated[
        str,
        Var(
            "BROADCAST_CHANNELS_PREFIX",
            "the namespace: the first token of every subject",
            "1 to 32 characters of a-z 0-9 _ -",
        ),
    ] = DEFAULT_NAMESPACE
    nats_url: Annotated[
        str,
        Var(
            "NATS_URL",
            "NATS servers to connect to, separated by commas; if empty, an embedded server is "
            "used, see BROADCAST_ENVIRONMENT",
            "nats://, tls://, ws:// or wss:// addresses",
            secret=True,
        ),
    ] = ""
    nats_creds: Annotated[
        str, Var("NATS_CREDS", "the credentials file for NATS", "the path of a readable file")
    ] = ""
    nats_nkey: Annotated[
        str,
        Var("NATS_NKEY", "the file with the nkey seed for NATS", "the path of a readable file"),
    ] = ""
    nats_ca: Annotated[
        str,
        Var(
            "NATS_CA",
            "the CA certificates to verify NATS servers with; empty uses the system's. If set, a "
            "server without TLS is refused",
            "the path of a readable PEM file",
        ),
    ] = ""
    nats_cert: Annotated[
        str, Var("NATS_CERT", "the client certificate for NATS", "the path of a readable PEM file")
    ] = ""
    nats_key: Annotated[
        str, Var("NATS_KEY", "the private key of NATS_CERT", "the path of a readable PEM file")
    ] = ""
    nats_inbox_prefix: Annotated[
        str,
        msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"),
        Var(
            "NATS_INBOX_PREFIX",
            "the prefix of reply subjects; with a prefix per NATS user, users cannot read each "
            "other's replies",
            "tokens of A-Z a-z 0-9 _ - joined by dots",
        ),
    ] = "_INBOX"
    nats_data: Annotated[
        str,
        Var(
            "BROADCAST_NATS_DATA",
            "the embedded server's data folder",
            "the path of a writable folder",
        ),
    ] = ".eventbus/nats"
    nats_port: Annotated[
        Port,
        Var("BROADCAST_NATS_PORT", "the embedded server's port; 0 picks a free port", "0 to 65535"),
    ] = 4222
    connect_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_CONNECT_TIMEOUT",
            "how long to wait for the broker at startup",
            "above 0, at most a year",
        ),
    ] = 10.0
    publish_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_PUBLISH_TIMEOUT",
            "how long a message is retried until the broker acknowledges it",
            "above 0, at most a year; 10 or more is longer than a leader election takes",
        ),
    ] = 15.0
    history_messages: Annotated[
        Count, Var("BROADCAST_HISTORY_MESSAGES", "messages kept per channel", "1 or more")
    ] = 100
    history_seconds: Annotated[
        Positive,
        Var("BROADCAST_HISTORY_SECONDS", "how long messages are kept", "above 0, at most a year"),
    ] = 600.0
    history_bytes: Annotated[
        Count, Var("BROADCAST_HISTORY_BYTES", "bytes kept for all channels together", "1 or more")
    ] = 1024**3
    history_replicas: Annotated[
        Literal[1, 3, 5],
        Var("BROADCAST_HISTORY_REPLICAS", "replicas of the streams in a NATS cluster", "1, 3 or 5"),
    ] = 1
    retention: Annotated[
        str,
        Var(
            RETENTION,
            "retention classes: channels with a history of their own; the first match applies",
            "pattern:count/age, then /bytes, /process or /disk if needed, separated by white "
            "space, such as orders.>:1000/24h/disk prices.*:1/7d/64MiB",
        ),
    ] = ""
    history_durability: Annotated[
        Durability,
        Var(
            "BROADCAST_HISTORY_DURABILITY",
            "what an acknowledged message survives: the crash of any process, or also a power cut. "
            "disk needs NATS servers that sync each write, as the embedded server then does",
            "process or disk",
        ),
    ] = "process"
    queue_lease: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=3600)],
        Var(
            "BROADCAST_QUEUE_LEASE",
            "how soon the jobs of a dead worker go to another",
            "1 to 3600 seconds",
        ),
    ] = 30.0
    queue_no_listener: Annotated[
        Literal["warn", "fail"],
        Var(
            "BROADCAST_QUEUE_NO_LISTENER",
            "what a worker does with a job that has no listener and is not broadcast",
            "warn (the job is done and a warning is logged) or fail (it becomes a failed job)",
        ),
    ] = "warn"
    queue_bytes: Annotated[
        Count,
        Var("BROADCAST_QUEUE_BYTES", "size of all queues; above it, jobs are refused", "1 or more"),
    ] = 1024**3
    queue_durability: Annotated[
        Durability,
        Var(
            "BROADCAST_QUEUE_DURABILITY",
            "what stored jobs and failed jobs survive, like BROADCAST_HISTORY_DURABILITY",
            "process or disk",
        ),
    ] = "process"
    failed_bytes: Annotated[
        Count,
        Var(
            "BROADCAST_FAILED_BYTES",
            "size of the failed jobs; above it, the oldest are dropped",
            "1 or more",
        ),
    ] = 64 * 1024**2
    redis_enabled: Annotated[
        bool,
        Var("BROADCAST_REDIS_ENABLED", "whether the redis driver may be used", "true or false"),
    ] = True
    redis_url: Annotated[
        str,
        Var(
            "BROADCAST_REDIS_URL",
            "the URL of Redis; replaces host, port, user, password, database and kind",
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
        str, Var("BROADCAST_REDIS_USERNAME", "Redis's user; empty is the default user", "a string")
    ] = ""
    redis_password: Annotated[
        str, Var("BROADCAST_REDIS_PASSWORD", "Redis's password", "a string", secret=True)
    ] = ""
    redis_database: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        Var("BROADCAST_REDIS_DATABASE", "Redis's database number", "0 or more; 0 on a cluster"),
    ] = 0
    redis_tls: Annotated[
        bool, Var("BROADCAST_REDIS_TLS", "whether to connect to Redis with TLS", "true or false")
    ] = False
    redis_tls_ca: Annotated[
        str,
        Var(
            "BROADCAST_REDIS_TLS_CA",
            "the CA certificates to verify Redis with; empty uses the system's",
            "the path of a readable PEM file",
        ),
    ] = ""
    redis_tls_cert: Annotated[
        str,
        Var(
            "BROADCAST_REDIS_TLS_CERT",
            "the client certificate for Redis",
            "the path of a readable PEM file",
        ),
    ] = ""
    redis_tls_key: Annotated[
        str,
        Var(
            "BROADCAST_REDIS_TLS_KEY",
            "the private key of BROADCAST_REDIS_TLS_CERT",
            "the path of a readable PEM file",
        ),
    ] = ""
    redis_cluster: Annotated[
        bool,
        Var("BROADCAST_REDIS_CLUSTER", "whether Redis is a cluster", "true or false"),
    ] = False
    redis_sentinels: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_REDIS_SENTINELS",
            "the sentinels to ask for the master",
            "host:port,host:port",
        ),
    ] = ()
    redis_sentinel_service: Annotated[
        str,
        Var("BROADCAST_REDIS_SENTINEL_SERVICE", "the sentinels' name for the master", "a string"),
    ] = "mymaster"
    redis_sentinel_password: Annotated[
        str,
        Var("BROADCAST_REDIS_SENTINEL_PASSWORD", "the sentinels' password", "a string", True),
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
            "the log driver's file; if empty, it writes to the console",
            "the path of a writable file",
        ),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning"],
        Var(
            "BROADCAST_LOG_LEVEL",
            "what the log driver writes: everything, channel messages, or only quarantined ones",
            "debug, info or warning",
        ),
    ] = "info"
    log_max_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        Var(
            "BROADCAST_LOG_MAX_BYTES",
            "size at which the log file is rotated; 0 never rotates it",
            "0 or more",
        ),
    ] = 10 * 1024**2
    log_backups: Annotated[
        Count, Var("BROADCAST_LOG_BACKUPS", "rotated log files to keep", "1 or more")
    ] = 5
    log_mask: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_LOG_MASK",
            "values of keys that contain one of these words are logged as ***; case, - and _ are "
            "ignored",
            "words, separated by commas",
        ),
    ] = SECRET_KEYS
    no_color: Annotated[
        str, Var("NO_COLOR", "any value turns off colours on terminals", "anything")
    ] = ""
    stack: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_STACK",
            "the drivers of the driver stack; the first one that supports history or subscriptions "
            "provides them",
            "names of drivers other than stack, separated by commas",
        ),
    ] = ()
    stack_required: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_STACK_REQUIRED",
            "the drivers of the stack that must accept a message for `publish` to succeed",
            "all, any, or names from BROADCAST_STACK, separated by commas",
        ),
    ] = ("all",)

    def __post_init__(self) -> None:
        """Raises ConfigError, see `SettingsStruct`."""
        super().__post_init__()
        Subjects(self.namespace)
        self._require_durable_driver()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings. ConfigError names the variable, its value and what is allowed."""
        return load(cls, environ)

    def retention_classes(self) -> Retention:
        """How much history each channel keeps. Raises ConfigError."""
        return Retention(
            self.retention,
            count=self.history_messages,
            seconds=self.history_seconds,
            durability=self.history_durability,
        )

    def _require_durable_driver(self) -> None:
        names = self.stack if self.driver == "stack" else (self.driver,)
        drivers = {DRIVER_ALIASES.get(name, name) for name in names}
        if self.durability == "disk" and "redis" in drivers and "nats" not in drivers:
            raise ConfigError(
                f"BROADCAST_DRIVER={self.driver!r}: only the driver nats has the durability disk, "
                "which BROADCAST_RETENTION, BROADCAST_HISTORY_DURABILITY or "
                "BROADCAST_QUEUE_DURABILITY asks for; set the durability of Redis in Redis "
                "(appendfsync always)",
                variable="BROADCAST_DRIVER",
            )

    @property
    def durability(self) -> Durability:
        """The strictest durability that these settings ask for."""
        is_disk = "disk" in {self.retention_classes().durability, self.queue_durability}
        return "disk" if is_disk else "process"
