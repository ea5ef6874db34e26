"""`eventbus edge run`: runs an edge node in this process.

It runs `python -m eventbus_edge`, since the library does not import the edge. Each option sets an
environment variable.
"""

import os
import runpy
from typing import Annotated

import typer

__all__ = ["App", "Host", "Port", "Workers", "app", "run"]


app = typer.Typer(help="Run edge nodes.", no_args_is_help=True)

Host = Annotated[str | None, typer.Option(help="The address to listen on.")]
Port = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="The port to listen on; 0 picks a free one.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="The number of processes on the port."),
]
App = Annotated[
    str | None,
    typer.Option(
        "--app",
        help="A module with your channel rules and authorizers. Sets EDGE_APP. Default: the "
        "application in pyproject.toml.",
    ),
]


@app.command("run")
def run(host: Host = None, port: Port = None, workers: Workers = None, app: App = None) -> None:
    """Run an edge node, which connects WebSocket clients to the bus.

    Settings come from the environment; --host, --port and --workers override
    BROADCAST_WEBSOCKET_HOST, BROADCAST_WEBSOCKET_PORT and BROADCAST_WORKERS. SIGTERM drains the
    connections and then stops the node.

    Example: NATS_URL=nats://127.0.0.1:4222 JWT_SECRET=… eventbus edge run --port 8080
    """
    _set("BROADCAST_WEBSOCKET_HOST", host)
    _set("BROADCAST_WEBSOCKET_PORT", port)
    _set("BROADCAST_WORKERS", workers)
    _set("EDGE_APP", app)
    runpy.run_module("eventbus_edge", run_name="__main__", alter_sys=True)


def _set(variable: str, value: object) -> None:
    if value is not None:
        os.environ[variable] = str(value)
