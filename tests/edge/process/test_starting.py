"""Signals that come while a node starts, which may take as long as its bus is away."""

import asyncio
import os
import re
import signal
import ssl
import sys

import pytest
import trustme

from eventbus.server import NatsServer
from eventbus_edge.process.supervisor import READY
from tests.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]

PATIENCE_S = 60


@pytest.fixture
def nobodys_port():
    """A port on which nothing listens until a test puts something there."""
    return free_port()


@pytest.fixture
async def start(nobodys_port, namespace):
    """Starts an edge that waits for NATS; gives it once each worker has asked in vain."""
    started = []

    async def begin(**environ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "eventbus_edge",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "NATS_URL": f"nats://127.0.0.1:{nobodys_port}",
                "BROADCAST_CHANNELS_PREFIX": namespace,
                "BROADCAST_HISTORY_BYTES": str(4 * 1024**2),
                "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
                "BROADCAST_WEBSOCKET_PORT": "0",
                "BROADCAST_CONNECT_TIMEOUT": "600",
            } | environ,
        )  # fmt: skip
        started.append(process)
        for _ in range(int(environ["BROADCAST_WORKERS"])):
            await logged(process, "Connection refused")
        return process

    yield begin
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def logged(process, text):
    async with asyncio.timeout(PATIENCE_S):
        while text not in (line := (await process.stderr.readline()).decode()):
            assert line, "the edge has ended"


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, "1"), (signal.SIGTERM, "2"), (signal.SIGINT, "1")]
)
async def test_node_that_waits_for_its_bus_ends_when_it_is_asked_to(start, number, workers):
    process = await start(BROADCAST_WORKERS=workers)
    process.send_signal(number)
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    assert b"stopped before it was ready" in err
    assert b"Traceback" not in err
    assert out == b""


async def shown_on(port):
    """The certificate that a node shows, which need not be believed."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(found)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_certificate_that_is_renewed_meanwhile_is_the_one_that_is_shown(
    start, nobodys_port, tmp_path, workers
):
    def write():
        made = trustme.CA().issue_cert("127.0.0.1")
        made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        made.private_key_pem.write_to_path(tmp_path / "key.pem")

    write()
    process = await start(
        BROADCAST_WORKERS=workers,
        BROADCAST_TLS_CERT=str(tmp_path / "cert.pem"),
        BROADCAST_TLS_KEY=str(tmp_path / "key.pem"),
    )
    write()
    process.send_signal(signal.SIGHUP)
    async with NatsServer(tmp_path / "nats", port=nobodys_port), asyncio.timeout(PATIENCE_S):
        for _ in range(int(workers)):
            await logged(process, "reloaded the certificate")
        line = (await process.stdout.readline()).decode()
        assert line.startswith(READY)
        port = int(re.search(r":(\d+) ", line)[1])
        assert await shown_on(port) == (tmp_path / "cert.pem").read_text()
        process.terminate()
        await process.wait()
