"""Settings of nats-servers that form a cluster."""

from tests.ports import free_ports


def cluster_settings(count):
    """For `NatsServer(config=…)`: one of `count` servers of a cluster on free ports each."""
    listeners = [f"127.0.0.1:{port}" for port in free_ports(count)]
    routes = [f"nats://{listener}" for listener in listeners]
    return [
        {
            "server_name": f"nats-{number}",
            "cluster": {"name": "tests", "listen": listener, "routes": routes},
        }
        for number, listener in enumerate(listeners, 1)
    ]
