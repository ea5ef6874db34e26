"""The secrets that compose/make_secrets.py makes, used by the real servers with compose's files."""

import asyncio
import os
import re
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import nkeys
import pytest
import yaml

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import ConnectionFailed, EventBusError, PublishFailed
from eventbus.server import find_binary
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"


def make(folder, *arguments):
    return subprocess.run(
        [sys.executable, COMPOSE / "make_secrets.py", "--folder", folder, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "secrets"
    done = make(folder, "--host", "events.example.com")
    assert done.returncode == 0, done.stderr
    return folder


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_that_compose_names_is_made(secrets):
    for name in ("compose.yaml", "compose.redis.yaml"):
        compose = yaml.safe_load((COMPOSE / name).read_text(encoding="utf-8"))
        for wanted in compose.get("secrets", {}).values():
            assert (secrets / Path(wanted["file"]).name).stat().st_size > 0


def test_containers_can_read_the_files_and_nobody_else_on_the_machine(secrets):
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()}
    assert modes.pop("ca.key") == 0o600
    assert set(modes.values()) == {0o644}


def test_nothing_is_replaced_unless_asked_for(secrets):
    before = read(secrets)
    done = make(secrets)
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert read(secrets) == before


def test_renewal_makes_certificates_for_the_same_hosts_and_leaves_all_else(secrets, tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, content in read(secrets).items():
        (folder / name).write_bytes(content)
    files = {path: path.stat().st_ino for path in folder.iterdir()}
    assert make(folder, "--renew", "--days", "30").returncode == 0
    # Containers that run have mounted these very files.
    assert {path: path.stat().st_ino for path in folder.iterdir()} == files
    before, after = read(secrets), read(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert {Path(name).suffix for name in changed} == {".crt", ".key"}
    assert not {"ca.crt", "ca.key"} & changed
    text = subprocess.run(
        ["openssl", "x509", "-in", folder / "nginx.crt", "-noout", "-text"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "DNS:events.example.com, DNS:localhost, IP Address:127.0.0.1" in text


def test_renewal_adds_the_users_of_nats_that_were_not_known_when_the_folder_was_made(
    secrets, tmp_path
):
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name, content in read(secrets).items():
        (folder / name).write_bytes(content)
    (folder / "site.nk").unlink()
    users = (folder / "nats.env").read_text().splitlines()
    (folder / "nats.env").write_text("\n".join(users[:-2] + users[-1:]) + "\n")
    done = make(folder, "--renew")
    assert done.returncode == 0
    assert "New NATS users: site." in done.stdout
    renewed = (folder / "nats.env").read_text().splitlines()
    assert renewed[:-1] == users[:-2] + users[-1:]
    seed = bytearray((folder / "site.nk").read_bytes())
    assert renewed[-1] == f"NKEY_SITE={nkeys.from_seed(seed).public_key.decode()}"
    assert "New NATS users" not in make(folder, "--renew").stdout


def test_secret_that_leads_elsewhere_is_not_followed(secrets, tmp_path):
    folder, other = tmp_path / "secrets", tmp_path / "other"
    folder.mkdir()
    for name in ("ca.crt", "ca.key", "nginx.crt"):
        (folder / name).write_bytes((secrets / name).read_bytes())
    (folder / "nats-1.key").symlink_to(other)
    done = make(folder, "--renew")
    assert (done.returncode, "nats-1.key: " in done.stderr) == (1, True)
    assert not other.exists()


def test_force_replaces_everything(tmp_path):
    assert make(tmp_path / "s").returncode == 0
    before = read(tmp_path / "s")
    assert make(tmp_path / "s", "--force").returncode == 0
    after = read(tmp_path / "s")
    assert before.keys() == after.keys()
    assert not [name for name in before if before[name] == after[name]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "not a host"], "allowed: a host name"),
        (["--days", "0"], "allowed: 1 to 3650 days"),
        (["--renew"], "there is no CA to renew certificates with"),
    ],
)
def test_invalid_arguments_are_refused_with_a_reason(tmp_path, arguments, expected):
    done = make(tmp_path / "none", *arguments)
    assert done.returncode != 0
    assert expected in done.stderr
    assert not (tmp_path / "none").exists()


class Server:
    """A server of compose/, as a process with the secrets that were made."""

    def __init__(self, secrets, folder, port):
        self.secrets, self.folder, self.port = secrets, folder, port

    async def run(self, command, environ=None):
        with (self.folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *map(str, command), env=environ, stdout=log, stderr=log, cwd=self.folder
            )
        async with asyncio.timeout(40):
            while True:
                assert self._process.returncode is None, (self.folder / "log").read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.transport.abort()
                    return

    async def stop(self):
        self._process.kill()
        await self._process.wait()


# NATS


def check_nats_config(environ):
    command = [find_binary(), "-t", "-c", COMPOSE / "nats" / "nats.conf"]
    done = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


@pytest.fixture
async def nats(secrets, tmp_path):
    """One of the three servers: the cluster's others are never there, so it has no JetStream."""
    port = free_port()
    environ = {
        "NATS_NAME": "nats-1", "NATS_PORT": str(port), "NATS_DATA": str(tmp_path / "data"),
        "NATS_CLUSTER_PORT": str(free_port()), "NATS_MONITOR_PORT": str(free_port()),
        "NATS_CERT": str(secrets / "nats-1.crt"), "NATS_KEY": str(secrets / "nats-1.key"),
        "NATS_CA": str(secrets / "ca.crt"),
        **{f"NATS_ROUTE_{number}": f"tls://127.0.0.1:{free_port()}" for number in (1, 2, 3)},
        **dict(line.split("=") for line in (secrets / "nats.env").read_text().splitlines()),
    }  # fmt: skip
    check_nats_config(environ)
    server = Server(secrets, tmp_path, port)
    await server.run([find_binary(), "-c", COMPOSE / "nats" / "nats.conf"], environ)
    yield server
    await server.stop()


def nats_settings(server, role="edge", **changes):
    environ = {
        "NATS_URL": f"tls://localhost:{server.port}",
        "NATS_CA": str(server.secrets / "ca.crt"),
        "NATS_CERT": str(server.secrets / f"{role}.crt"),
        "NATS_KEY": str(server.secrets / f"{role}.key"),
        "NATS_NKEY": str(server.secrets / f"{role}.nk"),
        "NATS_INBOX_PREFIX": f"_INBOX.{role}",
        "BROADCAST_CONNECT_TIMEOUT": "3",
    }
    return Settings.from_env(environ | changes)


@pytest.mark.parametrize("role", ["admin", "publisher", "edge", "worker", "cli"])
async def test_each_kind_of_user_logs_in_at_nats(nats, role):
    # Without its peers the server has no streams: a login that passes ends there.
    with pytest.raises(EventBusError) as raised:
        async with EventBus(nats_settings(nats, role)) as bus:
            await bus.driver.read(bus.subjects.live("general"), after=None, limit=1)
    assert not re.search("authori[sz]ation|certificate|refused", str(raised.value), re.IGNORECASE)


async def test_strangers_login_at_nats_is_refused_at_once_and_says_so(nats, tmp_path):
    assert make(tmp_path / "other").returncode == 0
    with pytest.raises(ConnectionFailed, match="refuses the credentials"):
        async with EventBus(nats_settings(nats, NATS_NKEY=str(tmp_path / "other" / "edge.nk"))):
            pass
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        async with EventBus(nats_settings(nats, NATS_CA=str(tmp_path / "other" / "ca.crt"))):
            pass


# Redis


@pytest.fixture
async def redis(secrets, tmp_path):
    """redis-server with compose/redis/redis.conf: its paths are this machine's."""
    port = free_port()
    text = (COMPOSE / "redis" / "redis.conf").read_text(encoding="utf-8")
    text = text.replace("/run/secrets", str(secrets)).replace("dir /data", f"dir {tmp_path}")
    text = text.replace("tls-port 6379", f"tls-port {port}")
    (tmp_path / "redis.conf").write_text(text, encoding="utf-8")
    server = Server(secrets, tmp_path, port)
    await server.run(["redis-server", tmp_path / "redis.conf"])
    yield server
    await server.stop()


def redis_settings(server, user="eventbus", **changes):
    role = "edge" if user == "eventbus" else user
    environ = {
        "BROADCAST_DRIVER": "redis",
        "BROADCAST_REDIS_HOST": "localhost",
        "BROADCAST_REDIS_PORT": str(server.port),
        "BROADCAST_REDIS_TLS": "true",
        "BROADCAST_REDIS_TLS_CA": str(server.secrets / "ca.crt"),
        "BROADCAST_REDIS_TLS_CERT": str(server.secrets / f"{role}.crt"),
        "BROADCAST_REDIS_TLS_KEY": str(server.secrets / f"{role}.key"),
        "BROADCAST_REDIS_USERNAME": user,
        "BROADCAST_REDIS_PASSWORD_FILE": str(server.secrets / f"redis_{user}_password"),
        "BROADCAST_CONNECT_TIMEOUT": "3",
    }
    return Settings.from_env(environ | changes)


def redis_cli(server, *arguments, user="eventbus", password="any"):
    """What redis-cli prints as a user."""
    if (server.secrets / f"redis_{user}_password").exists():
        password = (server.secrets / f"redis_{user}_password").read_text()
    done = subprocess.run(
        [
            "redis-cli", "-p", str(server.port), "--tls", "--cacert", server.secrets / "ca.crt",
            "--cert", server.secrets / "redis.crt", "--key", server.secrets / "redis.key",
            "--user", user, *arguments,
        ],
        env={"PATH": os.environ["PATH"], "REDISCLI_AUTH": password},
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.redis
async def test_services_do_all_that_the_driver_can_on_redis(redis):
    received, ended = asyncio.Queue(), asyncio.Queue()
    async with (
        EventBus(redis_settings(redis)) as edge,
        EventBus(redis_settings(redis, "publisher")) as publisher,
    ):
        live = edge.subjects.live("orders.1")
        await edge.driver.subscribe(live, received.put_nowait)
        await edge.driver.subscribe("eb.live.orders.*", received.put_nowait)
        await publisher.driver.publish(publisher.subjects.event("orders.1"), b"1")
        await publisher.driver.publish(live, b"2")  # volatile
        async with asyncio.timeout(40):
            assert sorted([(await received.get()).payload for _ in range(4)]) == [
                b"1", b"1", b"2", b"2",
            ]  # fmt: skip
        page = await edge.driver.read(live, after=0, limit=9)
        assert [each.payload for each in page.messages] == [b"1"]
        assert await edge.driver.stored("eb.live.>", 9) == {live: 1}
        state = edge.driver.state
        await state.watch("node.>", lambda key, value: ended.put_nowait((key, value)))
        await state.put("node.1", b"x", ttl_s=1)
        assert await state.entries("node.*") == {"node.1": b"x"}
        assert not await state.claim("node.1", b"y", ttl_s=1)
        async with asyncio.timeout(40):
            assert await ended.get() == ("node.1", b"x")
            assert await ended.get() == ("node.1", None)
        await state.delete("node.1")
        assert await edge.driver.purge(live) == 1


@pytest.mark.redis
async def test_publisher_on_redis_receives_nothing_and_sees_no_presence(redis):
    async with EventBus(redis_settings(redis, "publisher")) as bus:
        with pytest.raises(EventBusError, match=r"(?i)permission"):
            await bus.driver.state.entries(">")
    assert "NOPERM" in redis_cli(redis, "subscribe", "eb.live.general", user="publisher")


@pytest.mark.redis
async def test_commands_that_no_service_needs_are_forbidden_on_redis(redis):
    for command in (
        ["flushall"], ["config", "get", "*"], ["keys", "*"], ["acl", "list"], ["shutdown"],
        ["get", "another:key"], ["set", "another:key", "1"], ["monitor"],
    ):  # fmt: skip
        assert "NOPERM" in redis_cli(redis, *command), command
    assert redis_cli(redis, "ping", user="health").strip() == "PONG"
    for password in ("", "any"):
        assert "NOAUTH" in redis_cli(redis, "ping", user="default", password=password)
    assert "NOPERM" in redis_cli(redis, "info", user="health")


@pytest.mark.redis
async def test_wrong_password_or_missing_certificate_is_reported_at_once(redis, tmp_path):
    (tmp_path / "wrong").write_text("wrong")
    changes = {"BROADCAST_REDIS_PASSWORD_FILE": str(tmp_path / "wrong")}
    with pytest.raises(ConnectionFailed, match="BROADCAST_REDIS_PASSWORD"):
        async with EventBus(redis_settings(redis, **changes)):
            pass
    changes = {"BROADCAST_REDIS_TLS_CERT": "", "BROADCAST_REDIS_TLS_KEY": ""}
    with pytest.raises(ConnectionFailed, match="BROADCAST_REDIS_TLS_CERT"):
        async with EventBus(redis_settings(redis, **changes)):
            pass
    changes = {"BROADCAST_REDIS_USERNAME": "default"}
    with pytest.raises((ConnectionFailed, PublishFailed), match="BROADCAST_REDIS_USERNAME"):
        async with EventBus(redis_settings(redis, **changes)):
            pass


async def test_nginx_certificate_is_trusted_by_clients_that_trust_the_ca(secrets):
    context = ssl.create_default_context(cafile=secrets / "ca.crt")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(secrets / "nginx.crt", secrets / "nginx.key")

    async def answer(reader, writer):
        writer.write(b"hello")
        await writer.drain()
        writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server) as listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        assert await reader.readexactly(5) == b"hello"
        writer.transport.abort()
