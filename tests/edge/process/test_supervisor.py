"""Workers that share a port, as real processes."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from pathlib import Path

import pytest

from eventbus.config import Settings
from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings
from eventbus_edge.process.supervisor import Supervisor
from tests.ports import free_port

PATIENCE_S = 40.0


def children_of(pid):
    """The processes that `pid` has started and that run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(child) for child in listed.read_text().split()} if listed.exists() else set()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - of another process there is no event
            await asyncio.sleep(0.02)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def node_of(connect, port):
    client = await connect(port)
    return (await client.next())["data"]["node"]


async def test_workers_share_the_port_and_see_each_others_messages(start_process, connect, bus):
    edge = await start_process(BROADCAST_WORKERS="2")
    assert len(children_of(edge.process.pid)) == 2
    nodes, clients = set(), []
    async with asyncio.timeout(PATIENCE_S):
        while len(nodes) < 2:
            client = await connect(edge.port, "/ws/general")
            nodes.add((await client.next())["data"]["node"])
            await client.next()
            clients.append(client)
    await bus.publish("general", "tick", 1)
    for client in clients:
        assert (await client.next())["data"] == 1


TALKATIVE = """
import subprocess, sys
print("x" * 200_000)
print("loading...", end=" ", flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.DEVNULL)
"""


async def test_worker_that_prints_long_lines_and_starts_children_gets_ready_and_is_replaced(
    start_process, connect, tmp_path
):
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    edge = await start_process(
        BROADCAST_WORKERS="2", EDGE_APP="talkative", PYTHONPATH=str(tmp_path)
    )
    before = children_of(edge.process.pid)
    left = [child for worker in before for child in children_of(worker)]
    try:
        victim = min(before)
        os.kill(victim, signal.SIGKILL)  # its child still holds its output open
        await until(lambda: len(children_of(edge.process.pid) - {victim}) == 2)
        assert await node_of(connect, edge.port)
        left += [c for worker in children_of(edge.process.pid) for c in children_of(worker)]
        edge.terminate()
        await until(lambda: is_gone(edge.process.pid))
    finally:
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    code, _ = await edge.end()
    assert code == 0


async def test_system_that_cannot_share_a_port_is_named_before_signals_are_handled(monkeypatch):
    """Windows has neither SO_REUSEPORT nor signal handlers of event loops."""

    def add_signal_handler(*_):
        raise NotImplementedError

    monkeypatch.delattr(socket, "SO_REUSEPORT")
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", add_signal_handler)
    supervisor = Supervisor(EdgeSettings(workers=2), Settings(), on_ready=print)
    with pytest.raises(ConfigError, match=r"BROADCAST_WORKERS=2: .* allowed here: 1"):
        await supervisor.run()


async def test_worker_that_is_killed_is_replaced(start_process, connect):
    edge = await start_process(BROADCAST_WORKERS="2")
    before = children_of(edge.process.pid)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(children_of(edge.process.pid) - {victim}) == 2)
    assert await node_of(connect, edge.port)
    edge.terminate()
    code, log = await edge.end()
    assert code == 0
    assert "died (exit code -9) and is restarted" in log


async def test_sigterm_drains_all_workers_and_ends_with_0(start_process, connect):
    edge = await start_process(BROADCAST_WORKERS="2", BROADCAST_DRAIN_TIME="0.1")
    workers = children_of(edge.process.pid)
    clients = [await connect(edge.port) for _ in range(8)]
    edge.terminate()
    assert [await client.closed() for client in clients] == [4200] * 8
    assert (await edge.end())[0] == 0
    assert all(is_gone(worker) for worker in workers)


async def test_workers_end_when_their_supervisor_is_killed(start_process):
    edge = await start_process(BROADCAST_WORKERS="2", BROADCAST_DRAIN_TIME="0")
    workers = children_of(edge.process.pid)
    edge.process.kill()
    await until(lambda: all(is_gone(worker) for worker in workers))


@pytest.mark.parametrize(
    "settings",
    [
        {"BROADCAST_HISTORY_DURABILITY": "disk"},
        {
            "BROADCAST_DRIVER": "stack",
            "BROADCAST_STACK": "log,websocket",
            "BROADCAST_ENVIRONMENT": "production",
            "BROADCAST_API_KEY": secrets.token_hex(32),
            "JWT_SECRET": secrets.token_hex(32),
        },
    ],
    ids=["that syncs each write", "of a stack"],
)
async def test_workers_share_an_embedded_nats_server_that_ends_with_them(
    start_process, tmp_path, settings
):
    edge = await start_process(
        **settings,
        BROADCAST_WORKERS="2",
        NATS_URL="",
        BROADCAST_NATS_DATA=str(tmp_path / "nats"),
        BROADCAST_NATS_PORT="0",
        BROADCAST_DRAIN_TIME="0",
    )
    processes = children_of(edge.process.pid)
    assert len(processes) == 3
    edge.terminate()
    assert (await edge.end())[0] == 0
    await until(lambda: all(is_gone(process) for process in processes))


async def test_embedded_nats_server_of_workers_is_started_again_when_it_dies(
    start_process, tmp_path, connect
):
    edge = await start_process(
        BROADCAST_WORKERS="2",
        NATS_URL="",
        BROADCAST_NATS_DATA=str(tmp_path / "nats"),
        BROADCAST_NATS_PORT="0",
        BROADCAST_DRAIN_TIME="0",
    )
    (server,) = (int(file.stem.rpartition("_")[2]) for file in (tmp_path / "nats").glob("*.ports"))
    os.kill(server, signal.SIGKILL)
    await until(lambda: is_gone(server))
    async with asyncio.timeout(PATIENCE_S):
        while True:  # until a worker is connected to the new server
            with contextlib.suppress(Exception):
                client = await connect(edge.port, "/ws/general")
                frames = [await client.next(), await client.next()]
                if frames[1]["event"] == "eb:subscribed":
                    break
            await asyncio.sleep(0.1)
    edge.terminate()
    assert (await edge.end())[0] == 0


async def test_workers_that_cannot_start_end_the_supervisor_with_their_code(start_process):
    port = free_port()
    with pytest.raises(AssertionError, match=r"could not start \(exit code 1\)"):
        await start_process(
            BROADCAST_WORKERS="2",
            NATS_URL=f"nats://127.0.0.1:{port}",
            BROADCAST_CONNECT_TIMEOUT="0.5",
        )


async def test_port_that_another_program_holds_is_refused_by_name(start_process):
    with (
        contextlib.closing(socket.create_server(("127.0.0.1", 0))) as held,
        pytest.raises(AssertionError, match=r"BROADCAST_WEBSOCKET_PORT=.*cannot listen"),
    ):
        await start_process(
            BROADCAST_WORKERS="2", BROADCAST_WEBSOCKET_PORT=str(held.getsockname()[1])
        )
