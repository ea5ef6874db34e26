"""What a node counts, for Prometheus (names by https://prometheus.io/docs/practices/naming/)."""

from collections.abc import (
    Callable,
    Mapping,
)

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from eventbus.tasks import fault_count
from eventbus_edge.metrics.readers import (
    ReadCounter,
    ReadHistogram,
)
from eventbus_edge.metrics.tally import Tally

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """One node's metrics, in a registry of its own."""

    def __init__(  # noqa: PLR0915 - one statement per metric
        self, bus_counters: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        """`bus_counters` gives what the driver counts; see `counters_of`."""
        registry = self.registry = CollectorRegistry()
        tally = self.tally = Tally()
        self.connections = Gauge(
            "eventbus_edge_connections", "Open client connections.", registry=registry
        )
        self.connections_opened = Counter(
            "eventbus_edge_connections_opened", "Client connections opened.", registry=registry
        )
        self.closes = Counter(
            "eventbus_edge_closes",
            "Client connections closed, by close code.",
            ["code"],
            registry=registry,
        )
        self.refusals = Counter(
            "eventbus_edge_refusals",
            "Requests answered by an error, those for a connection included, by error code.",
            ["code"],
            registry=registry,
        )
        self.tls_faults = Counter(
            "eventbus_edge_tls_faults",
            "TLS handshakes that have failed.",
            registry=registry,
        )
        self.limits_reached = Counter(
            "eventbus_edge_limits_reached",
            "What was refused, made to wait or cut, by the limit: connections, address, user, "
            "memory, sockets, requests, whispers, presence, joins, history, questions, unsent. "
            "What one connection has reached is told by its errors.",
            ["limit"],
            registry=registry,
        )
        self.auth_failures = Counter(
            "eventbus_edge_auth_failures",
            "Tokens that were not accepted, by reason: malformed, unsigned, algorithm, signature, "
            "unknown_key, claims, audience, issuer, not_yet_valid, expired, revoked, "
            "keys_unavailable (none could be fetched), revocations_unavailable (they could not be "
            "read after a loss of the bus or a pause), no_key (none is configured).",
            ["reason"],
            registry=registry,
        )
        self.jwks_fetches = Counter(
            "eventbus_edge_jwks_fetches",
            "Fetches of the keys of tokens, by result: ok, failed.",
            ["result"],
            registry=registry,
        )
        self.revocations = Gauge(
            "eventbus_edge_revocations",
            "Revocations that hold, as far as the node knows; not those that were lifted.",
            registry=registry,
        )
        self.memory = Gauge(
            "eventbus_edge_memory_bytes", "Resident memory of the process.", registry=registry
        )
        self.unsent = Gauge(
            "eventbus_edge_unsent_bytes",
            "Bytes that wait for slow clients, of all connections.",
            registry=registry,
        )
        self.errors = Counter(
            "eventbus_edge_client_errors",
            "Error frames sent to clients, by error code.",
            ["code"],
            registry=registry,
        )
        self.channels = Gauge(
            "eventbus_edge_channels", "Channels that the node listens to.", registry=registry
        )
        self.subscriptions = Gauge(
            "eventbus_edge_subscriptions", "Channel subscriptions of clients.", registry=registry
        )
        self.messages_in = ReadCounter(
            "eventbus_edge_messages_in",
            "Messages received from the bus.",
            lambda: tally.messages_in,
            registry=registry,
        )
        self.messages_out = ReadCounter(
            "eventbus_edge_messages_out",
            "Messages pushed to clients.",
            lambda: tally.messages_out,
            registry=registry,
        )
        self.bytes_in = ReadCounter(
            "eventbus_edge_received_bytes",
            "Bytes of the messages received from the bus, without headers.",
            lambda: tally.bytes_in,
            registry=registry,
        )
        self.bytes_out = ReadCounter(
            "eventbus_edge_sent_bytes",
            "Bytes of all frames given to the sockets of clients, before TLS.",
            lambda: tally.bytes_out,
            registry=registry,
        )
        self.latency = ReadHistogram(
            "eventbus_edge_delivery_latency_seconds",
            "How long messages took from their publishing (for stored ones, from their storing) "
            "until they were given to the clients of the node: once for each message. The clocks "
            "of both machines are in it. More than an hour counts as an hour.",
            tally.latencies,
            registry=registry,
        )
        self.dropped_frames = Counter(
            "eventbus_edge_dropped_frames",
            "Frames that were not given to a client's socket any more, by why its connection was "
            "ending: slow_client, closing.",
            ["reason"],
            registry=registry,
        )
        self.deflated_bytes = Counter(
            "eventbus_edge_deflated_bytes",
            "Bytes of messages that were deflated, once for all clients, by stage: before, after.",
            ["stage"],
            registry=registry,
        )
        self.quarantined = Counter(
            "eventbus_edge_quarantined",
            "Payloads from the bus that are no message, by reason.",
            ["reason"],
            registry=registry,
        )
        self.background_dropped = Counter(
            "eventbus_edge_background_dropped",
            "Background tasks not started, their number being at its bound.",
            registry=registry,
        )
        self.pauses = Counter(
            "eventbus_edge_pauses",
            "Times that the process was stopped, or its event loop blocked, for more than 2 s.",
            registry=registry,
        )
        self.authorizer_faults = Counter(
            "eventbus_edge_authorizer_faults",
            "Authorizers that raised or took too long, by kind.",
            ["kind"],
            registry=registry,
        )
        self.gaps = Counter(
            "eventbus_edge_gaps",
            "Times that messages of a channel or pattern were gone for good, and its clients told.",
            registry=registry,
        )
        self.resumes = Counter(
            "eventbus_edge_resumes",
            "Subscriptions that asked to resume, by whether nothing was missing.",
            ["recovered"],
            registry=registry,
        )
        self.join_seconds = Histogram(
            "eventbus_edge_join_seconds",
            "How long joining a channel took, the bus included.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
            registry=registry,
        )
        self.cluster_faults = Counter(
            "eventbus_edge_cluster_faults",
            "Questions between nodes that went wrong, by what did.",
            ["fault"],
            registry=registry,
        )

        self.workers_missing = Counter(
            "eventbus_edge_scrape_workers_missing",
            "Workers that were left out of a scrape, because they did not answer in time.",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "eventbus_edge_loop_lag_seconds",
            "How much later than it was due the node's clock ran, some four times a second: how "
            "long anything waits for the process.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )
        self.bus_lag = Gauge(
            "eventbus_edge_bus_lag_seconds",
            "How long a word to itself over the bus takes the node, every 2 s; while one is on its "
            "way for longer, since when it is. It queues behind all messages for the node.",
            registry=registry,
        )
        self.bus_connected = Gauge(
            "eventbus_edge_bus_connected",
            "Whether the node has the bus: 1 or 0.",
            registry=registry,
        )
        self.bus_losses = ReadCounter(
            "eventbus_edge_bus_connection_losses",
            "How often the connection to the bus was lost, to be made again.",
            lambda: bus_counters().get("losses", 0),
            registry=registry,
        )
        self.bus_errors = ReadCounter(
            "eventbus_edge_bus_errors",
            "Errors that the bus's client reported (only NATS's reports them).",
            lambda: bus_counters().get("errors", 0),
            registry=registry,
        )
        self.bus_refusals = ReadCounter(
            "eventbus_edge_bus_refused_logins",
            "How often the bus refused the node's credentials, or took back that they are good.",
            lambda: bus_counters().get("refusals", 0),
            registry=registry,
        )
        self.bus_publish_retries = ReadCounter(
            "eventbus_edge_bus_publish_retries",
            "Publishes tried again because the bus had not confirmed them.",
            lambda: bus_counters().get("publish_retries", 0),
            registry=registry,
        )
        self.bus_foreign = ReadCounter(
            "eventbus_edge_bus_foreign_data",
            "Data of other programs in the bus's keys and channels (only the redis driver looks).",
            lambda: bus_counters().get("foreign", 0),
            registry=registry,
        )
        self.bus_filled = ReadCounter(
            "eventbus_edge_bus_filled_messages",
            "Messages that came late, because they were missed and read from the stream.",
            lambda: bus_counters().get("filled", 0),
            registry=registry,
        )
        self.bus_stores = Gauge(
            "eventbus_edge_bus_stores",
            "Whether the bus stores what is published, as far as the node can know: 1 or 0.",
            registry=registry,
        )
        self.task_faults = ReadCounter(
            "eventbus_edge_task_faults",
            "Background tasks of the process that have failed; those that must go on were started "
            "again. The log names them.",
            fault_count,
            registry=registry,
        )
        self.presence_channels = Gauge(
            "eventbus_edge_presence_channels",
            "Presence channels that the node knows the members of.",
            registry=registry,
        )
        self.presence_members = Gauge(
            "eventbus_edge_presence_members",
            "Members of those channels, on whichever node they are.",
            registry=registry,
        )

        self.lifecycle_events = Counter(
            "eventbus_edge_lifecycle_events",
            "Lifecycle events of the cluster that this node has told, by event.",
            ["event"],
            registry=registry,
        )
        self.lifecycle_leader = Gauge(
            "eventbus_edge_lifecycle_leader",
            "Whether this node is the one that tells lifecycle events: 1 or 0.",
            registry=registry,
        )
        self.lifecycle_pending = Gauge(
            "eventbus_edge_lifecycle_pending",
            "Channels and members that the leading node has yet to look at.",
            registry=registry,
        )
        self.webhook_posts = Counter(
            "eventbus_edge_webhook_posts",
            "Posts of this node, each try by itself, by result: ok, failed.",
            ["result"],
            registry=registry,
        )
        self.webhook_events = Counter(
            "eventbus_edge_webhook_events",
            "Events of posts, by result: sent, dropped (too large for the queue).",
            ["result"],
            registry=registry,
        )
        self.webhook_queue = Gauge(
            "eventbus_edge_webhook_queue",
            "Posts that wait in the queue of the whole cluster, or are being made.",
            registry=registry,
        )
        self.webhook_seconds = Histogram(
            "eventbus_edge_webhook_seconds",
            "How long a post took.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )

    def total(self, name: str) -> int:
        """The present value of a metric without labels, by its name in the exposition."""
        return int(self.registry.get_sample_value(name) or 0)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
