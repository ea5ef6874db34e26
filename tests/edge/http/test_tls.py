"""wss:// and https:// by the node itself."""

import asyncio
import datetime
import ipaddress
import signal
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import connect as ws_connect

from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings
from eventbus_edge.http.tls import tls_context


def write_certificate(folder, name):
    """A certificate for 127.0.0.1 that signs itself, and its key; gives its serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate.serial_number


@pytest.fixture
def files(tmp_path):
    write_certificate(tmp_path, "first")
    return {
        "BROADCAST_TLS_CERT": str(tmp_path / "cert.pem"),
        "BROADCAST_TLS_KEY": str(tmp_path / "key.pem"),
    }


async def serial_of(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = x509.load_der_x509_certificate(
        writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    )
    writer.close()
    return found.serial_number


async def test_client_that_trusts_the_certificate_connects_by_wss(start_process, files, bus):
    edge = await start_process(**files)
    trust = ssl.create_default_context(cafile=files["BROADCAST_TLS_CERT"])
    url = f"wss://127.0.0.1:{edge.port}/ws/general"
    async with ws_connect(url, ssl=trust, proxy=None) as client:
        for _ in range(2):
            await client.recv()
        await bus.publish("general", "tick", {"large": "x" * 50_000})
        assert len(await client.recv()) > 50_000


async def test_plain_requests_are_not_served_beside_tls(start_process, files):
    edge = await start_process(**files)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"alive" not in await reader.read()
    writer.close()


async def test_renewed_certificate_is_taken_at_sighup_and_a_broken_one_is_not(
    start_process, files, tmp_path
):
    edge = await start_process(**files)
    first = await serial_of(edge.port)
    (tmp_path / "cert.pem").write_text("no certificate")
    edge.process.send_signal(signal.SIGHUP)
    assert await serial_of(edge.port) == first
    second = write_certificate(tmp_path, "second")
    edge.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(40):
        while await serial_of(edge.port) != second:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)
    edge.terminate()
    code, log = await edge.end()
    assert code == 0
    assert "the certificate was not reloaded" in log


async def test_node_without_tls_stays_at_sighup(start_process):
    edge = await start_process()
    edge.process.send_signal(signal.SIGHUP)
    async with ws_connect(f"ws://127.0.0.1:{edge.port}/ws/general", proxy=None) as client:
        await client.recv()
    edge.terminate()
    code, log = await edge.end()
    assert code == 0
    assert "no certificate to reload" in log


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_key": "key.pem"}, "set without BROADCAST_TLS_CERT"),
        ({"tls_cert": "missing.pem"}, "No such file"),
        ({"tls_cert": __file__}, "allowed: a PEM file"),
    ],
)
def test_certificate_that_cannot_be_used_stops_the_start(settings, says):
    with pytest.raises(ConfigError, match=says):
        tls_context(EdgeSettings(**settings))
