import asyncio
import os
import sys
from pathlib import Path

import msgspec
import nkeys
import pytest
import pytest_asyncio
import trustme

from eventbus.config import Settings
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import ConfigError, ConnectionFailed
from eventbus.server import NatsServer
from tests.eventbus.drivers.nats.conftest import until

SECRET = "a-password-for-nobody-else"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path):
    """Paths of the authority's certificate, the server's and a client's with their keys."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    names = {"server": ("localhost", "127.0.0.1"), "client": ("client.internal",)}
    paths = {"ca": str(tmp_path / "ca.pem")}
    for name, hosts in names.items():
        cert = authority.issue_cert(*hosts)
        cert.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
        paths[name] = str(tmp_path / f"{name}.pem")
    return paths


@pytest.fixture
def nkey(tmp_path):
    """A user's nkey: the file of its seed, and its public part."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path = tmp_path / "user.nk"
    path.write_bytes(seed)
    return str(path), nkeys.from_seed(bytearray(seed)).public_key.decode()


@pytest_asyncio.fixture
async def serve(tmp_path):
    """Starts a server of some configuration; the answer is its address."""
    servers = []

    async def start(**config):
        server = NatsServer(tmp_path / f"nats{len(servers)}", config=config)
        servers.append(server)
        await server.start()
        return server.url.removeprefix("nats://")

    yield start
    for server in servers:
        await server.stop()


def tls(files, **more):
    return {"cert_file": files["server"], "key_file": files["server"], **more}


async def publish(**settings):
    """Log in and publish; the answer is the message's offset."""
    driver = NatsDriver(
        Settings(namespace="own", history_bytes=1024**2, connect_timeout=30, **settings)
    )
    await driver.open()
    try:
        published = await driver.publish("own.event.general", b"{}")
        assert published is not None
        return published.position.offset
    finally:
        await driver.aclose()


async def refusal(**settings):
    """What the error says of a login that fails; it must not take the time of a retry."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ConnectionFailed) as caught:
        await publish(**settings)
    assert loop.time() - began < 15
    assert SECRET not in str(caught.value)
    return str(caught.value)


async def test_server_is_known_by_the_authority_of_its_certificate(serve, files):
    address = await serve(tls=tls(files))
    assert await publish(nats_url=f"tls://{address}", nats_ca=files["ca"]) == 1
    assert await publish(nats_url=f"nats://{address}", nats_ca=files["ca"]) == 2


async def test_certificate_of_a_stranger_is_refused_at_once_saying_so(serve, files, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    address = await serve(tls=tls(files))
    for authority in (str(tmp_path / "other.pem"), ""):
        message = await refusal(nats_url=f"tls://{address}", nats_ca=authority)
        assert "certificate is not trusted" in message
        assert "NATS_CA" in message


async def test_certificate_of_another_name_is_refused(serve, files, authority, tmp_path):
    cert = authority.issue_cert("elsewhere.internal")
    cert.private_key_and_cert_chain_pem.write_to_path(tmp_path / "elsewhere.pem")
    address = await serve(tls=tls({"server": str(tmp_path / "elsewhere.pem")}))
    message = await refusal(nats_url=f"tls://{address}", nats_ca=files["ca"])
    assert "127.0.0.1" in message


async def test_client_shows_its_certificate_where_the_server_wants_one(serve, files):
    address = await serve(tls=tls(files, ca_file=files["ca"], verify=True))
    given = {"nats_url": f"tls://{address}", "nats_ca": files["ca"]}
    assert await publish(**given, nats_cert=files["client"], nats_key=files["client"]) == 1
    assert "NATS_CERT" in await refusal(**given)


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_password_is_never_sent_to_a_server_without_tls(files, scheme):
    received = bytearray()

    async def pretend(reader, writer):
        writer.write(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576}\r\n')
        while chunk := await reader.read(1024):
            received.extend(chunk)
        writer.close()

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        message = await refusal(
            nats_url=f"{scheme}://ada:{SECRET}@127.0.0.1:{port}", nats_ca=files["ca"]
        )
    assert "offers no TLS" in message
    assert not received


async def test_user_is_known_by_its_nkey(serve, nkey):
    seed_file, public_key = nkey
    address = await serve(authorization={"users": [{"nkey": public_key}]})
    assert await publish(nats_url=f"nats://{address}", nats_nkey=seed_file) == 1


async def test_nkey_of_a_stranger_is_refused_at_once(serve, nkey, tmp_path):
    stranger = tmp_path / "stranger.nk"
    stranger.write_bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    address = await serve(authorization={"users": [{"nkey": nkey[1]}]})
    message = await refusal(nats_url=f"nats://{address}", nats_nkey=str(stranger))
    assert "NATS_NKEY" in message


async def test_wrong_password_is_refused_at_once_without_being_quoted(serve):
    address = await serve(authorization={"users": [{"user": "ada", "password": "right"}]})
    message = await refusal(nats_url=f"nats://ada:{SECRET}@{address}")
    assert "refuses the credentials" in message


async def test_answers_come_to_the_users_own_inbox(serve):
    permissions = {"subscribe": ["_INBOX.ada.>"], "publish": [">"]}
    user = {"user": "ada", "password": SECRET, "permissions": permissions}
    address = await serve(authorization={"users": [user]})
    url = f"nats://ada:{SECRET}@{address}"
    assert await publish(nats_url=url, nats_inbox_prefix="_INBOX.ada") == 1
    assert "NATS_INBOX_PREFIX" in await refusal(nats_url=url, nats_inbox_prefix="_INBOX.bob")


@pytest.mark.parametrize("variable", ["nats_creds", "nats_nkey", "nats_ca", "nats_cert"])
async def test_file_that_cannot_be_read_is_named(variable, files):
    changes = {"nats_key": files["client"]} if variable == "nats_cert" else {}
    message = await refusal(nats_url="tls://127.0.0.1:1", **{variable: "/no/such/file"}, **changes)
    assert f"{variable.upper()}='/no/such/file'" in message


async def test_file_without_a_certificate_is_named(files, nkey):
    assert "NATS_CA" in await refusal(nats_url="tls://127.0.0.1:1", nats_ca=nkey[0])
    message = await refusal(
        nats_url="tls://127.0.0.1:1", nats_cert=files["ca"], nats_key=files["ca"]
    )
    assert "NATS_CERT" in message


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"nats_cert": "/c.pem"}, "NATS_KEY"),
        ({"nats_key": "/k.pem"}, "NATS_CERT"),
        ({"nats_creds": "/a", "nats_nkey": "/b"}, "NATS_NKEY"),
        ({"nats_ca": "/ca.pem", "nats_url": ""}, "NATS_URL"),
    ],
)
async def test_settings_that_do_not_go_together_are_refused(changes, variable):
    settings = msgspec.structs.replace(Settings(nats_url="tls://127.0.0.1:1"), **changes)
    with pytest.raises(ConfigError) as caught:
        await NatsDriver(settings).open()
    assert caught.value.variable == variable


async def test_seed_that_is_not_a_seed_is_refused(tmp_path, serve):
    (tmp_path / "bad.nk").write_text("not a seed")
    address = await serve()
    message = await refusal(nats_url=f"nats://{address}", nats_nkey=str(tmp_path / "bad.nk"))
    assert "not a seed" not in message


async def test_connection_comes_back_over_tls_after_a_restart(files, tmp_path):
    async with NatsServer(tmp_path / "own", config={"tls": tls(files)}) as server:
        url = server.url.replace("nats://", "tls://")
        driver = NatsDriver(Settings(namespace="own", nats_url=url, nats_ca=files["ca"]))
        await driver.open()
        try:
            await driver.publish("own.event.general", b"1")
            await server.stop()
            await server.start()
            published = await driver.publish("own.event.general", b"2")
            assert published.position.offset == 2
        finally:
            await driver.aclose()


async def test_end_of_a_connection_over_tls_is_silent(serve, files):
    """A separate process, like a command, without logging set up."""
    address = await serve(tls=tls(files))
    environ = {
        "PATH": os.environ["PATH"], "NATS_URL": f"tls://{address}", "NATS_CA": files["ca"],
        "BROADCAST_HISTORY_BYTES": str(1024**2),
    }  # fmt: skip
    for arguments in (("setup",), ("subjects", "publish", "orders.1", "shipped", "{}")):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from eventbus.cli.app import main; main()", *arguments,
            env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, errors = await process.communicate()
        assert (process.returncode, errors.decode()) == (0, "")
        assert out


def spoil(path):
    """Give a file another content; what it had."""
    content = path.read_bytes()
    path.write_bytes(b"spoiled")
    return content


async def test_nkey_that_is_taken_back_and_spoiled_heals_when_both_are_put_right(
    nkey, tmp_path, caplog
):
    seed_file, public_key = Path(nkey[0]), nkey[1]
    known = {"authorization": {"users": [{"nkey": public_key}]}}
    stranger = nkeys.from_seed(
        bytearray(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    ).public_key.decode()

    async with NatsServer(tmp_path / "own", config=known) as server:

        def require_access(key):
            server.reload({"authorization": {"users": [{"nkey": key}]}})

        driver = NatsDriver(
            Settings(namespace="own", nats_url=server.url, nats_nkey=str(seed_file))
        )
        await driver.open()
        try:
            require_access(stranger)
            await until(lambda: driver.counters["refusals"] > 1)
            assert not driver.is_connected
            seed = spoil(seed_file)
            await until(lambda: "does not hold the seed of an nkey" in caplog.text)
            assert "spoiled" not in caplog.text
            require_access(public_key)
            await asyncio.to_thread(seed_file.write_bytes, seed)
            await until(lambda: driver.is_connected)
            await driver.publish("own.event.general", b"1")
        finally:
            await driver.aclose()
