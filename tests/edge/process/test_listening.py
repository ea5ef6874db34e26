"""How a node listens: a crowd that comes at once finds room to wait."""

import asyncio
import contextlib
import resource
import selectors
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
import trustme

CROWD = 1000
PATIENCE_S = 40.0
SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


@pytest.fixture
def crowd():
    """As many clients as the system lets wait; none has been answered but by the kernel."""
    if not SOMAXCONN.exists():
        pytest.skip("only Linux shows how many connections may wait")
    count = min(
        CROWD, int(SOMAXCONN.read_text()), resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    )
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            clients.append(client)
        yield clients


def waiting(clients, port):
    """How many may wait; the kernel drops the first packet of further ones."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                client.connect(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_WRITE)
        connected = 0
        while connected < len(clients) and (ready := selector.select(PATIENCE_S)):
            for key, _ in ready:
                assert key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                selector.unregister(key.fileobj)
                connected += 1
    return connected


async def stop(edge):
    """Let a node do nothing more, as one does that is busy."""
    edge.process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(40):
        while psutil.Process(edge.process.pid).status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


async def test_clients_that_come_at_once_wait_while_the_node_is_busy(crowd, start_process):
    edge = await start_process()
    await stop(edge)
    assert waiting(crowd, edge.port) == len(crowd)


async def test_as_many_may_wait_after_its_certificate_was_renewed(crowd, start_process, tmp_path):
    path = tmp_path / "edge.pem"
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    edge = await start_process(BROADCAST_TLS_CERT=str(path))
    edge.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(40):
        while b"reloaded the certificate" not in (line := await edge.process.stderr.readline()):
            assert line, "the node has ended"
    await stop(edge)
    assert waiting(crowd, edge.port) == len(crowd)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) is Linux's")
async def test_node_takes_as_many_connections_as_the_hard_limit_of_descriptors_allows(
    start_process,
):
    few, many = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(few, 512), many))
    try:
        edge = await start_process()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, many))
    assert resource.prlimit(edge.process.pid, resource.RLIMIT_NOFILE) == (many, many)
