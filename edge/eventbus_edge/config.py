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
    """What stands in EdgeSettings too."""

    lifecycle: Annotated[
        Literal["auto", "on", "off"],
        Var(
            "BROADCAST_LIFECYCLE",
            "whether the nodes tell when channels are occupied and vacated, and members come and "
            "go; auto: when BROADCAST_WEBHOOK_URL is set",
            "auto, on or off",
        ),
    ] = "auto"
    lifecycle_linger: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=3600)],
        Var(
            "BROADCAST_LIFECYCLE_LINGER",
            "how long a channel that nobody hears any more on a node still counts as occupied",
            "0 to 3600",
        ),
    ] = 15.0
    webhook_url: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_URL",
            "where lifecycle events are posted; empty posts none",
            "an http:// or https:// address",
            secret=True,
        ),
    ] = ""
    webhook_secret: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_SECRET",
            "what webhooks are signed with; needed with a URL",
            "16 characters or more",
            secret=True,
        ),
    ] = ""
    webhook_events: Annotated[
        tuple[LifecycleName, ...],
        Var(
            "BROADCAST_WEBHOOK_EVENTS",
            "which events are posted",
            "channel_occupied, channel_vacated, member_joined or member_left, separated by commas",
        ),
    ] = LIFECYCLE_EVENTS
    webhook_timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=300)],
        Var("BROADCAST_WEBHOOK_TIMEOUT", "how long one post may take", "above 0, at most 300"),
    ] = 10.0
    webhook_batch: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var("BROADCAST_WEBHOOK_BATCH", "the most events of one post", "1 to 1000"),
    ] = 100
    webhook_wait: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=60)],
        Var(
            "BROADCAST_WEBHOOK_WAIT",
            "how long an event may wait for others to be posted with",
            "0 to 60",
        ),
    ] = 0.2
    webhook_concurrency: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)],
        Var("BROADCAST_WEBHOOK_CONCURRENCY", "posts of this node at once", "1 to 100"),
    ] = 4
    webhook_tries: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)],
        Var(
            "BROADCAST_WEBHOOK_TRIES",
            "how often a post is tried before it is kept among the failed jobs",
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
            "the pauses after each try; the last one repeats",
            "0 to 86400, separated by commas",
        ),
    ] = (1.0, 5.0, 30.0, 120.0, 600.0)
    webhook_queue_connection: Annotated[
        str,
        Var(
            "BROADCAST_WEBHOOK_QUEUE_CONNECTION",
            "the driver whose queue the posts wait in, where the bus's own has none",
            "empty for the bus's own, or the name of a driver with queues, such as nats",
        ),
    ] = ""

    @property
    def lifecycle_events(self) -> tuple[LifecycleName, ...]:
        """Which events are told at all."""
        if self.lifecycle == "on":
            return LIFECYCLE_EVENTS
        if self.lifecycle == "off" or not self.webhook_url:
            return ()
        return self.webhook_events

    def check_webhook(self) -> None:
        """Raises ConfigError for a URL that cannot be posted to, or without its secret."""
        if not self.webhook_url:
            return
        shown = f"BROADCAST_WEBHOOK_URL={mask_url(self.webhook_url)!r}"
        if self.lifecycle == "off":
            raise ConfigError(
                f"{shown} beside BROADCAST_LIFECYCLE=off: nothing would be posted; set it to auto",
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
                f"characters; allowed: {MIN_SECRET} or more, such as `openssl rand -hex 32` gives",
                variable="BROADCAST_WEBHOOK_SECRET",
            )


Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"
]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]


class EdgeSettings(LifecycleSettings, frozen=True, kw_only=True):
    """What an edge node is made from, beside the bus's own `eventbus.config.Settings`."""

    environment: Annotated[
        Literal["development", "production"],
        Var(
            "BROADCAST_ENVIRONMENT",
            "what the node runs for; in production it does not start without a key for tokens, or "
            "with a secret that is one of development",
            "development or production",
        ),
    ] = "development"
    websocket_enabled: Annotated[
        bool,
        Var("BROADCAST_WEBSOCKET_ENABLED", "whether the node takes WebSockets", "true or false"),
    ] = True
    host: Annotated[
        str, Var("BROADCAST_WEBSOCKET_HOST", "the address to listen on", "a host name or address")
    ] = "0.0.0.0"
    port: Annotated[
        Port,
        Var("BROADCAST_WEBSOCKET_PORT", "the port to listen on; 0 takes a free one", "0 to 65535"),
    ] = 8080
    workers: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=256)],
        Var("BROADCAST_WORKERS", "processes that share the port", "1 to 256"),
    ] = 1
    supervised: Annotated[
        bool,
        Var(
            "EDGE_SUPERVISED",
            "set by the process that starts the workers; not for you",
            "true or false",
        ),
    ] = False
    worker_socket: Annotated[
        str,
        Var(
            "EDGE_WORKER_SOCKET",
            "where a worker tells the others what it has counted; set by the process that starts "
            "the workers; not for you",
            "the path of a Unix socket that is named by the worker's number",
        ),
    ] = ""
    tls_cert: Annotated[
        str,
        Var(
            "BROADCAST_TLS_CERT",
            "the certificate for wss:// and https://, read again at SIGHUP",
            "the path of a PEM file",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        Var(
            "BROADCAST_TLS_KEY",
            "the certificate's private key; empty when it stands in the same file",
            "the path of a PEM file",
        ),
    ] = ""
    tls_client_ca: Annotated[
        str,
        Var(
            "BROADCAST_TLS_CLIENT_CA",
            "who signs the certificates that clients must show, read again at SIGHUP; for nodes "
            "that a proxy alone connects to. Only /healthz and /readyz answer without one",
            "the path of a PEM file",
        ),
    ] = ""
    log_format: Annotated[
        LogFormat,
        Var("EDGE_LOG_FORMAT", "how the node's log is written, to stderr", "console or json"),
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Var("EDGE_LOG_LEVEL", "what the node's log holds", "debug, info, warning or error"),
    ] = "info"
    app: Annotated[
        str,
        Var(
            "EDGE_APP",
            "a module with your channel rules and authorizers, imported at the start; empty: what "
            "`app` under [tool.eventbus] names in the nearest pyproject.toml, if anything",
            "a dotted module name, such as myapp.channels",
        ),
    ] = ""
    rules_file: Annotated[
        str,
        Var(
            "BROADCAST_RULES",
            "a file with your channel rules, which come before those of EDGE_APP",
            "the path of a TOML file",
        ),
    ] = ""
    contract: Annotated[
        str,
        Var(
            "BROADCAST_CONTRACT",
            "the contract that /api/asyncapi.json shows and client events are checked by; empty "
            "makes it of the event types that EDGE_APP imports",
            "the path of a file of `eventbus schema export --format asyncapi`",
        ),
    ] = ""
    client_events: Annotated[
        Literal["unchecked", "declared", "strict"],
        Var(
            "BROADCAST_CLIENT_EVENTS",
            "whether what clients send is checked by the contract: not at all, where it is "
            "declared, or so that nothing else may be sent",
            "unchecked, declared or strict",
        ),
    ] = "unchecked"
    cors_allowed_origins: Annotated[
        tuple[str, ...],
        Var(
            "CORS_ALLOWED_ORIGINS",
            "origins that browsers may connect from, beside the node's own",
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
            "names of the node by which browsers may ask it, beside IP addresses and names without "
            "a dot; empty allows no others in development, and any in production. Without "
            "BROADCAST_API_KEY, clients on this machine may use them for the HTTP API too",
            "host names without a port, separated by commas",
        ),
    ] = ()
    api_key: Annotated[
        str,
        Var(
            "BROADCAST_API_KEY",
            "the key of the HTTP API and the metrics; without one they answer only clients on this "
            "machine, and in production nobody",
            "a string",
            secret=True,
        ),
    ] = ""
    metrics_open: Annotated[
        bool, Var("BROADCAST_METRICS_OPEN", "whether /metrics answers anybody", "true or false")
    ] = False

    jwt_secret: Annotated[
        str,
        Var(
            "JWT_SECRET",
            "the secret of tokens signed by HMAC",
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
            "the algorithms that a token may be signed with, all of one family",
            "HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, ES512 or EdDSA",
        ),
    ] = ("HS256",)
    jwt_jwks_url: Annotated[
        str,
        Var(
            "JWT_JWKS_URL",
            "where the public keys of signed tokens are, in place of a secret or a file; "
            "JWT_ALGORITHMS may then be of several families",
            "an https:// or http:// address of a JWK set",
            secret=True,
        ),
    ] = ""
    jwt_jwks_max_age: Annotated[
        Positive,
        Var(
            "JWT_JWKS_MAX_AGE",
            "how old those keys may become before they are read again",
            "above 0",
        ),
    ] = 300.0
    jwt_jwks_cooldown: Annotated[
        Positive,
        Var(
            "JWT_JWKS_COOLDOWN",
            "how soon they may be read again for a token that names an unknown key",
            "above 0",
        ),
    ] = 10.0
    jwt_jwks_timeout: Annotated[
        Positive, Var("JWT_JWKS_TIMEOUT", "how long reading them may take", "above 0")
    ] = 5.0
    jwt_audience: Annotated[
        str, Var("JWT_AUDIENCE", "what a token's aud must contain", "a string")
    ] = "websocket"
    jwt_issuer: Annotated[
        str, Var("JWT_ISSUER", "what a token's iss must be; empty accepts any", "a string")
    ] = ""
    jwt_leeway: Annotated[
        NotNegative,
        Var(
            "JWT_LEEWAY",
            "how far the clocks of issuers, of nodes and of who revokes may differ",
            "0 or more",
        ),
    ] = 5.0
    auth_required: Annotated[
        bool,
        Var("BROADCAST_AUTH_REQUIRED", "whether a connection must have a token", "true or false"),
    ] = False
    auth_timeout: Annotated[
        Positive,
        Var("BROADCAST_AUTH_TIMEOUT", "how long a token may take to come, if required", "above 0"),
    ] = 10.0
    authorizer_timeout: Annotated[
        Positive,
        Var("BROADCAST_AUTHORIZER_TIMEOUT", "how long an authorizer may take", "above 0"),
    ] = 5.0
    revocation_time: Annotated[
        Positive,
        Var(
            "BROADCAST_REVOCATION_TIME",
            "how long a revocation is kept: as long as your tokens can live",
            "above 0",
        ),
    ] = 86_400.0
    token_grace: Annotated[
        NotNegative,
        Var("BROADCAST_TOKEN_GRACE", "how long an expired token still holds", "0 or more"),
    ] = 10.0

    heartbeat: Annotated[
        Positive, Var("BROADCAST_HEARTBEAT", "the silence after which a client is asked", "above 0")
    ] = 25.0
    max_frame_bytes: Annotated[
        Count, Var("BROADCAST_MAX_FRAME_BYTES", "the largest frame a client may send", "1 or more")
    ] = 64 * 1024
    compression: Annotated[
        bool,
        Var(
            "BROADCAST_WEBSOCKET_COMPRESSION",
            "whether messages are deflated for the WebSockets that offer it (permessage-deflate)",
            "true or false",
        ),
    ] = False
    compression_min_bytes: Annotated[
        Count,
        Var(
            "BROADCAST_COMPRESSION_MIN_BYTES",
            "the size from which on a message is deflated",
            "1 or more",
        ),
    ] = 1024
    compression_level: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=9)],
        Var("BROADCAST_COMPRESSION_LEVEL", "how much work goes into it: zlib's level", "1 to 9"),
    ] = 3
    max_whisper_bytes: Annotated[
        Count, Var("BROADCAST_MAX_WHISPER_BYTES", "the largest data of a whisper", "1 or more")
    ] = 10 * 1024
    max_channels_per_connection: Annotated[
        Count, Var("BROADCAST_MAX_CHANNELS_PER_CONNECTION", "channels of a connection", "1 or more")
    ] = 100
    presence_grace: Annotated[
        NotNegative,
        Var(
            "BROADCAST_PRESENCE_GRACE",
            "how long a member whose connection was lost stays one",
            "0 or more",
        ),
    ] = 15.0
    presence_ttl: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=3600)],
        Var(
            "BROADCAST_PRESENCE_TTL",
            "how long a node that gives no sign of life still has members",
            "1 to 3600",
        ),
    ] = 10.0
    presence_max_members: Annotated[
        Count, Var("BROADCAST_PRESENCE_MAX_MEMBERS", "members of a channel", "1 or more")
    ] = 10_000
    presence_max_info_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=2, le=32 * 1024)],
        Var("BROADCAST_PRESENCE_MAX_INFO_BYTES", "the largest info of a member", "2 to 32768"),
    ] = 2048
    max_connections: Annotated[
        Count, Var("BROADCAST_MAX_CONNECTIONS", "connections of this node", "1 or more")
    ] = 50_000
    max_connections_per_address: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_CONNECTIONS_PER_ADDRESS",
            "connections of this node from one address; of IPv6, from one /64",
            "1 or more",
        ),
    ] = 1_000
    max_connections_per_user: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_CONNECTIONS_PER_USER",
            "connections of this node by one user",
            "1 or more",
        ),
    ] = 100
    max_actions_per_second: Annotated[
        Positive,
        Var("BROADCAST_MAX_ACTIONS_PER_SECOND", "actions a second of a connection", "above 0"),
    ] = 50.0
    action_burst: Annotated[
        Count,
        Var(
            "BROADCAST_ACTION_BURST",
            "actions that a rested connection may send at once",
            "1 or more",
        ),
    ] = 100
    max_whispers_per_channel: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_WHISPERS_PER_CHANNEL",
            "client events and presence updates a second that this node takes for one channel",
            "above 0",
        ),
    ] = 200.0
    max_joins_per_member: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_JOINS_PER_MEMBER",
            "times a second that a user who has left a presence channel may become a member again, "
            "ten times as many at once after a rest",
            "above 0",
        ),
    ] = 1.0
    max_requests_per_address: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_REQUESTS_PER_ADDRESS",
            "HTTP requests and handshakes a second from one address; of IPv6, from one /64. At "
            "once after a rest: those of 20 s, or twice the connections that the address may have",
            "above 0",
        ),
    ] = 100.0
    max_history_per_address: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_HISTORY_PER_ADDRESS",
            "stored messages a second that are read for the clients of one address, those of 10 s "
            "at once after a rest",
            "above 0",
        ),
    ] = 5_000.0
    max_questions: Annotated[
        Positive,
        Var(
            "BROADCAST_MAX_QUESTIONS",
            "questions a second that this node asks all nodes for its clients, those of 4 s at "
            "once after a rest",
            "above 0",
        ),
    ] = 50.0
    max_memory: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        Var(
            "BROADCAST_MAX_MEMORY",
            "resident memory of the process from which on it takes no new connections; 0: no bound",
            "0 or more",
        ),
    ] = 0
    request_timeout: Annotated[
        Positive,
        Var(
            "BROADCAST_REQUEST_TIMEOUT",
            "how long a request's head may take to come, and how long an idle HTTP connection is "
            "kept; let it be longer than a proxy in front keeps idle connections",
            "above 0",
        ),
    ] = 75.0
    trusted_proxies: Annotated[
        tuple[str, ...],
        Var(
            "BROADCAST_TRUSTED_PROXIES",
            "proxies that are believed about their clients' addresses",
            "addresses and networks, such as 10.0.0.7 or 10.0.0.0/8, separated by commas",
        ),
    ] = ()
    forwarded_header: Annotated[
        Literal["X-Forwarded-For", "Forwarded"],
        Var(
            "BROADCAST_FORWARDED_HEADER",
            "the header in which those proxies tell the address; the other one is not read",
            "X-Forwarded-For or Forwarded",
        ),
    ] = "X-Forwarded-For"
    max_unsent_bytes: Annotated[
        Count,
        Var("BROADCAST_MAX_UNSENT_BYTES", "what may wait for a slow client", "1 or more"),
    ] = 1024 * 1024
    max_unsent_bytes_total: Annotated[
        Count,
        Var(
            "BROADCAST_MAX_UNSENT_BYTES_TOTAL",
            "what may wait for all slow clients together; beyond it, those with most are cut, and "
            "new connections refused",
            "1 or more",
        ),
    ] = 256 * 1024 * 1024
    unsubscribe_after: Annotated[
        NotNegative,
        Var(
            "BROADCAST_UNSUBSCRIBE_AFTER",
            "how long a channel without subscribers is still listened to",
            "0 or more",
        ),
    ] = 1.0
    drain_time: Annotated[
        NotNegative,
        Var("BROADCAST_DRAIN_TIME", "over what time a stopping node lets clients go", "0 or more"),
    ] = 10.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "EdgeSettings":
        """Read the settings; raises ConfigError: the variable, its value and what is allowed."""
        return load(cls, environ)
