"""The settings of an edge. Times are in seconds, sizes in bytes."""

from collections.abc import Mapping
from typing import (
    Annotated,
    Final,
    Literal,
)

import msgspec

from eventbus.environment import (
    Count,
    Port,
    Positive,
    SettingsStruct,
    Var,
    load,
)
from eventbus.errors import ConfigError
from eventbus.urls import (
    is_web_address,
    mask_url,
)
from eventbus.webhooks import (
    LIFECYCLE_EVENTS,
    LifecycleName,
)
from eventbus_edge.logs import LogFormat

__all__ = ["EdgeSettings", "LifecycleSettings"]


MIN_SECRET: Final = 16


class LifecycleSettings(SettingsStruct, frozen=True, kw_only=True):
    """The settings of lifecycle events and webhooks, a part of EdgeSettings."""

    lifecycle: Annotated[
        Literal["auto", "on", "off"],
        Var(
            "BROADCAST_LIFECYCLE",
            "whether nodes announce when channels are occupied and vacated, and members join and "
            "leave; auto: if BROADCAST_WEBHOOK_URL is set",
            "auto, on or off",
        ),
    ] = "auto"
    lifecycle_linger: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=3600)],
        Var(
            "BROADCAST_LIFECYCLE_LINGER",
            "how long a channel counts as occupied after its last subscriber on a node has left",
            "0 to 3600",
        ),
    ] = 15.0
    webhook_url: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_URL",
            "the URL that lifecycle events are posted to; empty: none are posted",
            "an http:// or https:// address",
            secret=True,
        ),
    ] = ""
    webhook_secret: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_SECRET",
            "the secret that signs webhooks; required with a URL",
            "16 characters or more",
            secret=True,
        ),
    ] = ""
    webhook_events: Annotated[
        tuple[LifecycleName, ...],
        Var(
            "BROADCAST_WEBHOOK_EVENTS",
            "the events that are posted",
            "channel_occupied, channel_vacated, member_joined or member_left, separated by commas",
        ),
    ] = LIFECYCLE_EVENTS
    webhook_timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=300)],
        Var("BROADCAST_WEBHOOK_TIMEOUT", "the timeout of one post", "above 0, at most 300"),
    ] = 10.0
    webhook_batch: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var("BROADCAST_WEBHOOK_BATCH", "the maximum number of events per post", "1 to 1000"),
    ] = 100
    webhook_wait: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=60)],
        Var(
            "BROADCAST_WEBHOOK_WAIT",
            "how long an event may wait for others, to be posted together",
            "0 to 60",
        ),
    ] = 0.2
    webhook_concurrency: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)],
        Var(
            "BROADCAST_WEBHOOK_CONCURRENCY",
            "the maximum number of concurrent posts of this node",
            "1 to 100",
        ),
    ] = 4
    webhook_tries: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var(
            "BROADCAST_WEBHOOK_TRIES",
            "attempts to post before a post is moved to the failed jobs",
            "1 to 1000",
        ),
    ] = 10
    webhook_backoff: Annotated[
        Annotated[
            tuple[Annotated[float, msgspec.Meta(ge=0, le=86_400)], ...],
            msgspec.Meta(min_length=1, max_length=100),
        ],
        Var(
            "BROADCAST_WEBHOOK_BACKOFF",
            "the pauses after each attempt; the last one repeats",
            "0 to 86400, separated by commas",
        ),
    ] = (1.0, 5.0, 30.0, 120.0, 600.0)
    webhook_queue_connection: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_QUEUE_CONNECTION",
            "the driver whose queue holds the posts, if the bus's own driver has no queues",
            "empty for the bus's own, or the name of a driver with queues, such as nats",
        ),
    ] = ""

    @property
    def lifecycle_events(self) -> tuple[LifecycleName, ...]:
        """The events that are announced."""
        if self.lifecycle == "on":
            return LIFECYCLE_EVENTS
        if self.lifecycle == "off" or not self.webhook_url:
            return ()
        return self.webhook_events

    def check_webhook(self) -> None:
        """Check the webhook settings. Raises ConfigError for an invalid URL or a missing secret."""
        if not self.webhook_url:
            return
        shown = f"BROADCAST_WEBHOOK_URL={mask_url(self.webhook_url)!r}"
        if self.lifecycle == "off":
            raise ConfigError(
                f"{shown} with BROADCAST_LIFECYCLE=off would post nothing; set it to auto",
                variable="BROADCAST_LIFECYCLE",
            )
        if not is_web_address(self.webhook_url):
            raise ConfigError(
                f"{shown}: allowed: an http:// or https:// address with a host",
                variable="BROADCAST_WEBHOOK_URL",
            )
        if len(self.webhook_secret) < MIN_SECRET:
            raise ConfigError(
                f"{shown} needs BROADCAST_WEBHOOK_SECRET, which has {len(self.webhook_secret)} "
                f"characters; allowed: {MIN_SECRET} or more, such as from `openssl rand -hex 32`",
                variable="BROADCAST_WEBHOOK_SECRET",
            )


Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"
]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]


class EdgeSettings(LifecycleSettings, frozen=True, kw_only=True):
    """The settings of an edge node, in addition to the bus's `eventbus.config.Settings`."""

    environment: Annotated[
        Literal["development", "production"],
        Var(
            "BROADCAST_ENVIRONMENT",
            "in production, a node refuses to start without a key for tokens, or with a secret for "
            "development",
            "development or production",
        ),
    ] = "development"
    websocket_enabled: Annotated[
        bool,
        Var("BROADCAST_WEBSOCKET_ENABLED", "whether the node accepts WebSockets", "true or false"),
    ] = True
    host: Annotated[
        str, Var("BROADCAST_WEBSOCKET_HOST", "the address to listen on", "a host name or address")
    ] = "0.0.0.0"
    port: Annotated[
        Port,
        Var("BROADCAST_WEBSOCKET_PORT", "the port to listen on; 0: any free port", "0 to 65535"),
    ] = 8080
    workers: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=256)],
        Var("BROADCAST_WORKERS", "the number of processes that share the port", "1 to 256"),
    ] = 1
    supervised: Annotated[
        bool,
        Var(
            "EDGE_SUPERVISED",
            "set by the process that starts the workers; do not set it yourself",
            "true or false",
        ),
    ] = False
    worker_socket: Annotated[
        str,
        Var(
            "EDGE_WORKER_SOCKET",
            "the socket that serves a worker's metrics to the others; set by the process that "
            "starts the workers; do not set it yourself",
            "the path of a Unix socket, named by the worker's number",
        ),
    ] = ""
    tls_cert: Annotated[
        str,
        Var(
            "BROADCAST_TLS_CERT",
            "the certificate for wss:// and https://, reloaded at SIGHUP",
            "the path of a PEM file",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        Var(
            "BROADCAST_TLS_KEY",
            "the private key of the certificate; empty if it is in the same file",
            "the path of a PEM file",
        ),
    ] = ""
    tls_client_ca: Annotated[
        str,
        Var(
            "BROADCAST_TLS_CLIENT_CA",
            "the CA of the certificates that clients must present, reloaded at SIGHUP; for nodes "
            "that only a proxy connects to. Only /healthz and /readyz need no certificate",
            "the path of a PEM file",
        ),
    ] = ""
    log_format: Annotated[
        LogFormat,
        Var("EDGE_LOG_FORMAT", "the format of the node's log on stderr", "console or json"),
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Var("EDGE_LOG_LEVEL", "the lowest level that is logged", "debug, info, warning or error"),
    ] = "info"
    app: Annotated[
        str,
        Var(
            "EDGE_APP",
            "a module with your channel rules and authorizers, imported at the start; empty: `app` "
            "in [tool.eventbus] of the nearest pyproject.toml, if any",
            "a dotted module name, such as myapp.channels",
        ),
    ] = ""
    rules_file: Annotated[
        str,
        Var(
            "BROADCAST_RULES",
            "a file with your channel rules, which take precedence over those of EDGE_APP",
            "the path of a TOML file",
        ),
    ] = ""
    contract: Annotated[
        str,
        Var(
            "BROADCAST_CONTRACT",
            "the contract that /api/asyncapi.json serves and client events are checked against; "
            "empty: generated from the event types that EDGE_APP imports",
            "the path of a file from `eventbus schema export --format asyncapi`",
        ),
    ] = ""
    client_events: Annotated[
        Literal["unchecked", "declared", "strict"],
        Var(
            "BROADCAST_CLIENT_EVENTS",
            "how client events are checked against the contract: not at all, only declared events, "
            "or strictly, so that undeclared events are refused",
            "unchecked, declared or strict",
        ),
    ] = "unchecked"
    cors_allowed_origins: Annotated[
        tuple[str, ...],
        Var(
            "CORS_ALLOWED_ORIGINS",
            "origins that browsers may connect from, in addition to the node's own",
            "origins such as https://example.com, separated by commas; * for any",
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[
            Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?$")],
            ...,
        ],
        Var(
            "BROADCAST_ALLOWED_HOSTS",
            "host names of the node that browsers may use, in addition to IP addresses and names "
            "without a dot; empty: no others in development, any in production. Without "
            "BROADCAST_API_KEY, clients on this machine may use them for the HTTP API too",
            "host names without a port, separated by commas",
        ),
    ] = ()
    api_key: Annotated[
        str,
        Var(
            "BROADCAST_API_KEY",
            "the key of the HTTP API and the metrics; without one, only clients on this machine "
            "have access, and in production nobody",
            "a string",
            secret=True,
        ),
    ] = ""
    metrics_open: Annotated[
        bool, Var("BROADCAST_METRICS_OPEN", "whether /metrics needs no key", "true or false")
    ] = False

    jwt_secret: Annotated[
        str,
        Var(
            "JWT_SECRET",
            "the secret of tokens signed with HMAC",
            "32 bytes or more for HS256, 48 for HS384, 64 for HS512",
            secret=True,
        ),
    ] = ""
    jwt_public_key: Annotated[
        str,
        Var("JWT_PUBLIC_KEY", "the public key of signed tokens", "the path of a PEM file"),
    ] = ""
    jwt_algorithms: Annotated[
        tuple[Algorithm, ...],
        Var(
            "JWT_ALGORITHMS",
            "the algorithms that tokens may be signed with, all of one family",
            "HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, ES512 or EdDSA",
        ),
    ] = ("HS256",)
    jwt_jwks_url: Annotated[
        str,
        Var(
            "JWT_JWKS_URL",
            "the URL of the public keys of signed tokens, instead of a secret or a file; "
            "JWT_ALGORITHMS may then be of several families",
            "an https:// or http:// address of a JWK set",
            secret=True,
        ),
    ] = ""
    jwt_jwks_max_age: Annotated[
        Positive,
        Var(
            "JWT_JWKS_MAX_AGE",
            "the age after which those keys are fetched again",
            "above 0",
        ),
    ] = 300.0
    jwt_jwks_cooldown: Annotated[
        Positive,
        Var(
            "JWT_JWKS_COOLDOWN",
            "the minimum time between fetches, when tokens name unknown keys",
            "above 0",
        ),
    ] = 10.0
    jwt_jwks_timeout: Annotated[
        Positive, Var("JWT_JWKS_TIMEOUT", "the timeout of a fetch of those keys", "above 0")
    ] = 5.0
    jwt_audience: Annotated[
        str, Var("JWT_AUDIENCE", "the audience that a token's aud must contain", "a string")
    ] = "websocket"
    jwt_issuer: Annotated[
        str, Var("JWT_ISSUER", "the required iss of tokens; empty: any", "a string")
    ] = ""
    jwt_leeway: Annotated[
        NotNegative,
        Var(
            "JWT_LEEWAY",
            "how far the clocks of issuers, nodes and revokers may differ",
            "0 or more",
        ),
    ] = 5.0
    auth_required: Annotated[
        bool,
        Var("BROADCAST_AUTH_REQUIRED", "whether connections need a token", "true or false"),
    ] = False
    auth_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_AUTH_TIMEOUT",
            "how long a client may take to send a required token",
            "above 0",
        ),
    ] = 10.0
    authorizer_timeout: Annotated[
        Positive,
        Var("BROADCAST_AUTHORIZER_TIMEOUT", "the timeout of authorizers", "above 0"),
    ] = 5.0
    revocation_time: Annotated[
        Positive,
        Var(
            "BROADCAST_REVOCATION_TIME",
            "how long a revocation is kept: set it to the maximum lifetime of your tokens",
            "above 0",
        ),
    ] = 86_400.0
    token_grace: Annotated[
        NotNegative,
        Var("BROADCAST_TOKEN_GRACE", "how long an expired token is still accepted", "0 or more"),
    ] = 10.0

    heartbeat: Annotated[
        Positive,
        Var(
            "BROADCAST_HEARTBEAT", "the time without data after which a client is pinged", "above 0"
        ),
    ] = 25.0
    max_frame_bytes: Annotated[
        Count, Var("BROADCAST_MAX_FRAME_BYTES", "the largest frame a client may send", "1 or more")
    ] = 64 * 1024
    compression: Annotated[
        bool,
        Var(
            "BROADCAST_WEBSOCKET_COMPRESSION",
            "whether messages are compressed for WebSockets that offer permessage-deflate",
            "true or false",
        ),
    ] = False
    compression_min_bytes: Annotated[
        Count,
        Var(
            "BROADCAST_COMPRESSION_MIN_BYTES",
            "the smallest message that is compressed",
            "1 or more",
        ),
    ] = 1024
    compression_level: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=9)],
        Var("BROADCAST_COMPRESSION_LEVEL", "zlib's compression level", "1 to 9"),
    ] = 3
    max_whisper_bytes: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_WHISPER_BYTES",
            "the largest data of a client event (whisper)",
            "1 or more",
        ),
    ] = 10 * 1024
    max_channels_per_connection: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_CHANNELS_PER_CONNECTION",
            "the maximum number of channels per connection",
            "1 or more",
        ),
    ] = 100
    presence_grace: Annotated[
        NotNegative,
        Var(
            "BROADCAST_PRESENCE_GRACE",
            "how long a user stays a member after the connection was lost",
            "0 or more",
        ),
    ] = 15.0
    presence_ttl: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=3600)],
        Var(
            "BROADCAST_PRESENCE_TTL",
            "how long the members of a node without a heartbeat still count",
            "1 to 3600",
        ),
    ] = 10.0
    presence_max_members: Annotated[
        Count,
        Var(
            "BROADCAST_PRESENCE_MAX_MEMBERS",
            "the maximum number of members per channel",
            "1 or more",
        ),
    ] = 10_000
    presence_max_info_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=2, le=32 * 1024)],
        Var(
            "BROADCAST_PRESENCE_MAX_INFO_BYTES",
            "the largest presence info of a member",
            "2 to 32768",
        ),
    ] = 2048
    max_connections: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_CONNECTIONS",
            "the maximum number of connections of this node",
            "1 or more",
        ),
    ] = 50_000
    max_connections_per_address: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_CONNECTIONS_PER_ADDRESS",
            "the maximum number of connections of this node per address; for IPv6, per /64",
            "1 or more",
        ),
    ] = 1_000
    max_connections_per_user: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_CONNECTIONS_PER_USER",
            "the maximum number of connections of this node per user",
            "1 or more",
        ),
    ] = 100
    max_actions_per_second: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_ACTIONS_PER_SECOND",
            "the rate limit of actions per connection, per second",
            "above 0",
        ),
    ] = 50.0
    action_burst: Annotated[
        Count,
        Var(
            "BROADCAST_ACTION_BURST",
            "how many actions an idle connection may send at once",
            "1 or more",
        ),
    ] = 100
    max_whispers_per_channel: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_WHISPERS_PER_CHANNEL",
            "the rate limit of client events and presence updates per channel on this node, per "
            "second",
            "above 0",
        ),
    ] = 200.0
    max_joins_per_member: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_JOINS_PER_MEMBER",
            "the rate limit, per second, for a user who joins the same presence channel again; "
            "bursts may be ten times as large",
            "above 0",
        ),
    ] = 1.0
    max_requests_per_address: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_REQUESTS_PER_ADDRESS",
            "the rate limit of HTTP requests and handshakes per address (for IPv6, per /64), per "
            "second. Bursts may be the requests of 20 s, or twice the connections per address",
            "above 0",
        ),
    ] = 100.0
    max_history_per_address: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_HISTORY_PER_ADDRESS",
            "the rate limit of stored messages read for the clients of one address, per second; "
            "bursts may be those of 10 s",
            "above 0",
        ),
    ] = 5_000.0
    max_questions: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_QUESTIONS",
            "the rate limit of queries that this node sends to all nodes for its clients, per "
            "second; bursts may be those of 4 s",
            "above 0",
        ),
    ] = 50.0
    max_memory: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        Var(
            "BROADCAST_MAX_MEMORY",
            "the resident memory in bytes above which the process accepts no new connections; 0: "
            "no limit",
            "0 or more",
        ),
    ] = 0
    request_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_REQUEST_TIMEOUT",
            "how long a client may take to send the head of a request, and how long an idle HTTP "
            "connection is kept; set it higher than the idle timeout of a proxy in front",
            "above 0",
        ),
    ] = 75.0
    trusted_proxies: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_TRUSTED_PROXIES",
            "proxies that are trusted to report their clients' addresses",
            "addresses and networks, such as 10.0.0.7 or 10.0.0.0/8, separated by commas",
        ),
    ] = ()
    forwarded_header: Annotated[
        Literal["X-Forwarded-For", "Forwarded"],
        Var(
            "BROADCAST_FORWARDED_HEADER",
            "the header in which those proxies report the address; the other one is ignored",
            "X-Forwarded-For or Forwarded",
        ),
    ] = "X-Forwarded-For"
    max_unsent_bytes: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_UNSENT_BYTES",
            "the maximum unsent data of one client, in bytes",
            "1 or more",
        ),
    ] = 1024 * 1024
    max_unsent_bytes_total: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_UNSENT_BYTES_TOTAL",
            "the maximum unsent data of all clients, in bytes; above it, the clients with the most "
            "are disconnected, and new connections are refused",
            "1 or more",
        ),
    ] = 256 * 1024 * 1024
    unsubscribe_after: Annotated[
        NotNegative,
        Var(
            "BROADCAST_UNSUBSCRIBE_AFTER",
            "how long the node stays subscribed to a channel without subscribers",
            "0 or more",
        ),
    ] = 1.0
    drain_time: Annotated[
        NotNegative,
        Var(
            "BROADCAST_DRAIN_TIME",
            "the time over which a stopping node disconnects its clients",
            "0 or more",
        ),
    ] = 10.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "EdgeSettings":
        """Read the settings. Raises ConfigError, which says what is allowed."""
        return load(cls, environ)
