"""What a node counts, for Prometheus (names by https://prometheus.io/docs/practices/naming/)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """One node's metrics, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
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
            "Connections refused before the upgrade, by error code.",
            ["code"],
            registry=registry,
        )
        self.limits_reached = Counter(
            "eventbus_edge_limits_reached",
            "Connections and client events refused, by the limit: connections, address, user, "
            "memory, whispers. What one connection has reached is told by its errors.",
            ["limit"],
            registry=registry,
        )
        self.jwks_fetches = Counter(
            "eventbus_edge_jwks_fetches",
            "Fetches of the keys of tokens, by result: ok, failed.",
            ["result"],
            registry=registry,
        )
        self.revocations = Gauge(
            "eventbus_edge_revocations", "Revocations that the node knows of.", registry=registry
        )
        self.memory = Gauge(
            "eventbus_edge_memory_bytes", "Resident memory of the process.", registry=registry
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
        self.messages_in = Counter(
            "eventbus_edge_messages_in", "Messages received from the bus.", registry=registry
        )
        self.messages_out = Counter(
            "eventbus_edge_messages_out", "Messages pushed to clients.", registry=registry
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
        self.authorizer_faults = Counter(
            "eventbus_edge_authorizer_faults",
            "Authorizers that raised or took too long, by kind.",
            ["kind"],
            registry=registry,
        )
        self.gaps = Counter(
            "eventbus_edge_gaps",
            "Times that messages of a channel were lost for good, and its clients told so.",
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

    def total(self, name: str) -> int:
        """The present value of a metric without labels, by its name in the exposition."""
        return int(self.registry.get_sample_value(name) or 0)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)
