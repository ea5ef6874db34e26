"""The Prometheus metrics of a node, named by https://prometheus.io/docs/practices/naming/."""

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
    LoopCounter,
    LoopGauge,
    LoopGauges,
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
        """`bus_counters` returns the driver's counters; see `counters_of`."""
        registry = self.registry = CollectorRegistry()
        tally = self.tally = Tally()
        self.connections = LoopGauge(
            "eventbus_edge_connections", "Open client connections.", registry=registry
        )
        self.connections_opened = LoopCounter(
            "eventbus_edge_connections_opened", "Client connections opened.", registry=registry
        )
        self.protocol_connections = LoopGauges(
            "eventbus_edge_protocol_connections",
            "Open client connections, by the protocol that they speak.",
            "protocol",
            registry=registry,
        )
        self.protocol_messages_out = Counter(
            "eventbus_edge_protocol_messages_out",
            "Messages pushed to clients, by the protocol that they speak.",
            ["protocol"],
            registry=registry,
        )
        self.closes = Counter(
            "eventbus_edge_closes",
            "Client connections closed, by close code.",
            ["code"],
            registry=registry,
        )
        self.refusals = Counter(
            "eventbus_edge_refusals",
            "Requests answered with an error, including handshakes, by error code.",
            ["code"],
            registry=registry,
        )
        self.tls_faults = Counter(
            "eventbus_edge_tls_faults",
            "TLS handshakes that failed.",
            registry=registry,
        )
        self.limits_reached = Counter(
            "eventbus_edge_limits_reached",
            "Refusals, delays and disconnections because of a limit, by limit: connections, "
            "process, address, user, memory, sockets, requests, whispers, presence, joins, "
            "history, questions, unsent, surplus. Limits of one connection are counted as its "
            "errors.",
            ["limit"],
            registry=registry,
        )
        self.auth_failures = Counter(
            "eventbus_edge_auth_failures",
            "Tokens that were not accepted, by reason: malformed, unsigned, algorithm, signature, "
            "unknown_key, claims, audience, issuer, not_yet_valid, expired, revoked, "
            "keys_unavailable (no keys could be fetched), revocations_unavailable (revocations "
            "could not be read after the bus was lost or the process paused), no_key (no key is "
            "configured).",
            ["reason"],
            registry=registry,
        )
        self.jwks_fetches = Counter(
            "eventbus_edge_jwks_fetches",
            "Fetches of the keys for tokens, by result: ok, failed.",
            ["result"],
            registry=registry,
        )
        self.revocations = Gauge(
            "eventbus_edge_revocations",
            "Revocations in force that the node knows of, without lifted ones.",
            registry=registry,
        )
        self.memory = Gauge(
            "eventbus_edge_memory_bytes", "Resident memory of the process.", registry=registry
        )
        self.unsent = Gauge(
            "eventbus_edge_unsent_bytes",
            "Bytes that wait to be sent to slow clients, over all connections.",
            registry=registry,
        )
        self.errors = Counter(
            "eventbus_edge_client_errors",
            "Error frames sent to clients, by error code.",
            ["code"],
            registry=registry,
        )
        self.channels = Gauge(
            "eventbus_edge_channels", "Channels that the node is subscribed to.", registry=registry
        )
        self.subscriptions = LoopGauge(
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
            "Bytes of all frames written to clients' sockets, before TLS.",
            lambda: tally.bytes_out,
            registry=registry,
        )
        self.latency = ReadHistogram(
            "eventbus_edge_delivery_latency_seconds",
            "Time from the publishing of a message (from its storing, if stored) until it is "
            "written to the clients of the node; observed once per message. It includes the "
            "difference of both machines' clocks. More than an hour counts as an hour.",
            tally.latencies,
            registry=registry,
        )
        self.dropped_frames = Counter(
            "eventbus_edge_dropped_frames",
            "Frames that were not written to a client's socket, by the reason why its connection "
            "was ending: slow_client, closing.",
            ["reason"],
            registry=registry,
        )
        self.deflated_bytes = Counter(
            "eventbus_edge_deflated_bytes",
            "Bytes of compressed messages, counted once for all clients, by stage: before, after.",
            ["stage"],
            registry=registry,
        )
        self.quarantined = Counter(
            "eventbus_edge_quarantined",
            "Payloads from the bus that are not valid messages, by reason.",
            ["reason"],
            registry=registry,
        )
        self.background_dropped = Counter(
            "eventbus_edge_background_dropped",
            "Background tasks that were not started, because their limit was reached.",
            registry=registry,
        )
        self.pauses = Counter(
            "eventbus_edge_pauses",
            "How often the process was stopped, or its event loop blocked, for more than 2 s.",
            registry=registry,
        )
        self.authorizer_faults = Counter(
            "eventbus_edge_authorizer_faults",
            "Authorizers that failed, by kind: error, timeout, verdict.",
            ["kind"],
            registry=registry,
        )
        self.gaps = Counter(
            "eventbus_edge_gaps",
            "How often messages of a channel or pattern were lost, and clients were notified.",
            registry=registry,
        )
        self.resumes = Counter(
            "eventbus_edge_resumes",
            "Subscriptions that asked to resume, by whether all missed messages were recovered.",
            ["recovered"],
            registry=registry,
        )
        self.join_seconds = ReadHistogram(
            "eventbus_edge_join_seconds",
            "Time to join a channel, including the bus.",
            tally.joins,
            registry=registry,
        )
        self.cluster_faults = Counter(
            "eventbus_edge_cluster_faults",
            "Failed queries between nodes, by fault.",
            ["fault"],
            registry=registry,
        )

        self.workers_missing = Counter(
            "eventbus_edge_scrape_workers_missing",
            "Workers missing from a scrape because they did not answer in time.",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "eventbus_edge_loop_lag_seconds",
            "How late the node's timer ran, measured about four times a second: how long anything "
            "waits for the process.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )
        self.bus_lag = Gauge(
            "eventbus_edge_bus_lag_seconds",
            "Round-trip time of the node's own message over the bus, sent every 2 s; if one is "
            "overdue, its age so far. It queues behind all messages for the node.",
            registry=registry,
        )
        self.bus_connected = Gauge(
            "eventbus_edge_bus_connected",
            "Whether the node is connected to the bus: 1 or 0.",
            registry=registry,
        )
        self.bus_losses = ReadCounter(
            "eventbus_edge_bus_connection_losses",
            "How often the connection to the bus was lost.",
            lambda: bus_counters().get("losses", 0),
            registry=registry,
        )
        self.bus_moves = ReadCounter(
            "eventbus_edge_bus_moves",
            "How often the node left a nats-server that was cut off from the others (NATS only).",
            lambda: bus_counters().get("moves", 0),
            registry=registry,
        )
        self.bus_errors = ReadCounter(
            "eventbus_edge_bus_errors",
            "Errors that the client library of the bus reported (NATS only).",
            lambda: bus_counters().get("errors", 0),
            registry=registry,
        )
        self.bus_refusals = ReadCounter(
            "eventbus_edge_bus_refused_logins",
            "How often the bus refused or revoked the node's credentials.",
            lambda: bus_counters().get("refusals", 0),
            registry=registry,
        )
        self.bus_publish_retries = ReadCounter(
            "eventbus_edge_bus_publish_retries",
            "Publishes retried because the bus had not acknowledged them.",
            lambda: bus_counters().get("publish_retries", 0),
            registry=registry,
        )
        self.bus_unsent = ReadCounter(
            "eventbus_edge_bus_unsent_messages",
            "Volatile messages that were not sent because the bus was unavailable (NATS only).",
            lambda: bus_counters().get("unsent", 0),
            registry=registry,
        )
        self.bus_foreign = ReadCounter(
            "eventbus_edge_bus_foreign_data",
            "Foreign data found in the bus's keys and channels (redis driver only).",
            lambda: bus_counters().get("foreign", 0),
            registry=registry,
        )
        self.bus_filled = ReadCounter(
            "eventbus_edge_bus_filled_messages",
            "Messages that were missed, read from the stream and delivered late.",
            lambda: bus_counters().get("filled", 0),
            registry=registry,
        )
        self.bus_stores = Gauge(
            "eventbus_edge_bus_stores",
            "Whether the bus stores published messages, as far as the node knows: 1 or 0.",
            registry=registry,
        )
        self.task_faults = ReadCounter(
            "eventbus_edge_task_faults",
            "Background tasks of the process that failed; permanent ones were restarted. The log "
            "names them.",
            fault_count,
            registry=registry,
        )
        self.presence_channels = Gauge(
            "eventbus_edge_presence_channels",
            "Presence channels whose members the node knows.",
            registry=registry,
        )
        self.presence_members = Gauge(
            "eventbus_edge_presence_members",
            "Members of those channels, on all nodes.",
            registry=registry,
        )

        self.lifecycle_events = Counter(
            "eventbus_edge_lifecycle_events",
            "Lifecycle events of the cluster announced by this node, by event.",
            ["event"],
            registry=registry,
        )
        self.lifecycle_leader = Gauge(
            "eventbus_edge_lifecycle_leader",
            "Whether this node leads and announces lifecycle events: 1 or 0.",
            registry=registry,
        )
        self.lifecycle_pending = Gauge(
            "eventbus_edge_lifecycle_pending",
            "Channels and members that the leader has yet to check.",
            registry=registry,
        )
        self.webhook_posts = Counter(
            "eventbus_edge_webhook_posts",
            "Attempts of this node to post webhooks, by result: ok, failed.",
            ["result"],
            registry=registry,
        )
        self.webhook_events = Counter(
            "eventbus_edge_webhook_events",
            "Webhook events, by result: sent, dropped (too large for the queue, or too many wait).",
            ["result"],
            registry=registry,
        )
        self.webhook_queue = Gauge(
            "eventbus_edge_webhook_queue",
            "Posts of the whole cluster that are queued or in progress.",
            registry=registry,
        )
        self.webhook_seconds = Histogram(
            "eventbus_edge_webhook_seconds",
            "Duration of a post.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )

    def total(self, name: str) -> int:
        """The current value of a metric without labels, by its name in the exposition."""
        return int(self.registry.get_sample_value(name) or 0)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
