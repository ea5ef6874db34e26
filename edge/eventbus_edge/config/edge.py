"""The settings of an edge. Times are in seconds, sizes in bytes."""

from collections.abc import Mapping
from typing import (
    Annotated,
    Literal,
)

import msgspec

from eventbus.config import Environment
from eventbus.environment import (
    Count,
    Port,
    Positive,
    Var,
    load,
)
from eventbus_edge.config.lifecycle import LifecycleSettings
from eventbus_edge.logs import LogFormat

__all__ = ["EdgeSettings"]


Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"
]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=31_536_000)]


class EdgeSettings(LifecycleSettings, frozen=True, kw_only=True):
    """The settings of an edge node, in addition to the bus's `eventbus.config.Settings`."""

    environment: Annotated[
        Environment,
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
            "origins such as https://example.com, https://*.example.com for all subdomains or "
            "http://localhost:* for all ports, separated by commas; * for any",
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[
            Annotated[
                str,
                msgspec.Meta(pattern=r"^(?!.*\.\.)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?$"),
            ],
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
        Var(
            "JWT_PUBLIC_KEY",
            "the public key of signed tokens",
            "the path of a PEM file, or the text of a PEM, whose line breaks may be written as \\n",
            secret=True,
        ),
    ] = ""
    jwt_algorithms: Annotated[
        tuple[Algorithm, ...],
        Var(
            "JWT_ALGORITHMS",
            "the algorithms that tokens may be signed with, all of one family; empty: HS256 with a "
            "secret, or else all that fit the public keys",
            "HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, ES512 or EdDSA",
        ),
    ] = ()
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
    pusher_app_id: Annotated[
        str,
        Var(
            "PUSHER_APP_ID",
            "the id of the app for clients of the Pusher protocol, such as Laravel Echo; empty: "
            "the node speaks it only for the apps of PUSHER_APPS, if any",
            "1 to 20 digits, since some server libraries allow nothing else",
        ),
    ] = ""
    pusher_app_key: Annotated[
        str,
        Var(
            "PUSHER_APP_KEY",
            "the key of that app, which its clients connect with",
            "1 to 64 letters, digits, _ and -",
        ),
    ] = ""
    pusher_app_secret: Annotated[
        str,
        Var(
            "PUSHER_APP_SECRET",
            "the secret of that app, which signs its subscriptions",
            "8 characters or more",
            secret=True,
        ),
    ] = ""
    pusher_apps: Annotated[
        str,
        Var(
            "PUSHER_APPS",
            "a file with more apps, each in a namespace of its own",
            "the path of a TOML file",
        ),
    ] = ""
    pusher_encryption_key: Annotated[
        str,
        Var(
            "PUSHER_ENCRYPTION_KEY",
            "the master key of encrypted channels, for /broadcasting/auth; publishers have the "
            "same. Empty: your application gives clients the keys of channels",
            "32 bytes in Base64, such as from `openssl rand -base64 32`",
            secret=True,
        ),
    ] = ""
    pusher_auth_cookie: Annotated[
        str,
        Var(
            "PUSHER_AUTH_COOKIE",
            "the cookie whose value is a user's token, for /broadcasting/auth; empty: only the "
            "header Authorization is read",
            "the name of a cookie",
        ),
    ] = ""
    pusher_subscription_counts: Annotated[
        bool,
        Var(
            "PUSHER_SUBSCRIPTION_COUNTS",
            "whether clients of the Pusher protocol are notified how many connections are "
            "subscribed to their channels, on all nodes; never on presence channels",
            "true or false",
        ),
    ] = False
    pusher_webhook_url: Annotated[
        str,
        Var(
            "PUSHER_WEBHOOK_URL",
            "the URL that webhooks in the form of the Pusher protocol are posted to, signed with "
            "the app's secret, beside those of BROADCAST_WEBHOOK_URL; empty: none are posted",
            "an http:// or https:// address",
            secret=True,
        ),
    ] = ""
    pusher_webhook_events: Annotated[
        tuple[
            Literal[
                "channel_occupied",
                "channel_vacated",
                "member_added",
                "member_removed",
                "cache_miss",
                "client_event",
                "subscription_count",
            ],
            ...,
        ],
        Var(
            "PUSHER_WEBHOOK_EVENTS",
            "the events that are posted there",
            "channel_occupied, channel_vacated, member_added, member_removed, cache_miss, "
            "client_event or subscription_count, separated by commas",
        ),
    ] = ("channel_occupied", "channel_vacated", "member_added", "member_removed", "cache_miss")
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

    @property
    def keys(self) -> Mapping[str, str]:
        """The secrets that authenticate callers or the node, by variable; empty if not set."""
        return {
            "BROADCAST_API_KEY": self.api_key,
            "BROADCAST_WEBHOOK_SECRET": self.webhook_secret,
            "PUSHER_APP_SECRET": self.pusher_app_secret,
        }

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "EdgeSettings":
        """Read the settings. Raises ConfigError, which says what is allowed."""
        return load(cls, environ)
