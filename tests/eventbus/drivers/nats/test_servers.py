"""NATS_URL: its servers, and logins with passwords of every kind at a real server."""

import logging
from urllib.parse import quote

import pytest

from eventbus.config import Settings
from eventbus.drivers.nats.auth import Servers
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import ConfigError, ConnectionFailed
from eventbus.server import NatsServer

PASSWORDS = [
    "S3cr3t#1", "S3cr3t@1", "S3cr3t/1", "S3cr3t?1", "S3cr3t:1", "S3cr3t%1", "S3cr3t,1", "S3cr3t 1",
    "S3cr3tä✓", "S3cr3t&=+;'\"<>{}|^`~", "#@/?:%,S3cr3t[]",
]  # fmt: skip
USERS = {f"user{number}": password for number, password in enumerate(PASSWORDS)}


@pytest.fixture
async def server(tmp_path):
    users = [{"user": user, "password": password} for user, password in USERS.items()]
    async with NatsServer(tmp_path / "nats", config={"authorization": {"users": users}}) as started:
        yield started


@pytest.fixture
async def token_server(tmp_path):
    token = {"authorization": {"token": "S3cr3t#@/?:%1"}}
    async with NatsServer(tmp_path / "nats", config=token) as started:
        yield started


async def log_in(url, namespace):
    driver = NatsDriver(
        Settings(nats_url=url, namespace=namespace, history_bytes=1024**2, connect_timeout=30)
    )
    await driver.open()
    try:
        published = await driver.publish(f"{namespace}.event.general", b"{}")
        assert published is not None
    finally:
        await driver.aclose()


def encoded(text):
    return quote(text, safe="")


async def test_every_password_logs_in_percent_encoded_or_as_it_is(server, namespace, caplog):
    caplog.set_level(logging.DEBUG)
    host = server.url.removeprefix("nats://")
    for user, password in USERS.items():
        await log_in(f"nats://{user}:{encoded(password)}@{host}", namespace)
        if "," not in password:
            await log_in(f"nats://{user}:{password}@{host}", namespace)
            await log_in(f"{user}:{password}@{host}", namespace)
    assert "S3cr3t" not in caplog.text


async def test_a_wrong_password_is_refused_without_being_quoted(server, namespace, caplog):
    caplog.set_level(logging.DEBUG)
    host = server.url.removeprefix("nats://")
    for password in (*PASSWORDS, "S3cr3t"):
        with pytest.raises(ConnectionFailed) as caught:
            await log_in(f"nats://nobody:{encoded(password)}@{host}", namespace)
        assert "the server refuses the credentials" in str(caught.value)
        assert f"nats://***@{host}" in str(caught.value)
        assert "S3cr3t" not in str(caught.value)
    assert "S3cr3t" not in caplog.text


async def test_a_token_logs_in_percent_encoded_or_as_it_is(token_server, namespace):
    host = token_server.url.removeprefix("nats://")
    await log_in(f"nats://{encoded('S3cr3t#@/?:%1')}@{host}", namespace)
    with pytest.raises(ConnectionFailed) as caught:
        await log_in(f"nats://S3cr3t@{host}", namespace)
    assert "S3cr3t" not in str(caught.value)


async def test_each_server_of_a_list_gets_its_own_login(server, namespace):
    host = server.url.removeprefix("nats://")
    good = f"nats://user0:{encoded(PASSWORDS[0])}@{host}"
    await log_in(f"nats://nobody:S3cr3t@127.0.0.1:1,{good}", namespace)
    # One without a login takes the first one's.
    await log_in(f"nats://user0:{encoded(PASSWORDS[0])}@127.0.0.1:1,{host}", namespace)


@pytest.mark.parametrize("text", [",", " , ", ",,", " "])
def test_a_list_without_an_address_is_refused_and_starts_no_server(text):
    with pytest.raises(ConfigError, match=r"it has no address; allowed: nats://") as caught:
        Servers.of(text)
    assert caught.value.variable == "NATS_URL"


def test_a_list_is_read_with_its_logins_and_default_ports():
    servers = Servers.of("nats://a:p%23@h1, tls://h2:5 ,h3,nats://S3cr3t@[::1]:6")
    assert servers.urls == ["nats://h1:4222", "tls://h2:5", "nats://h3:4222", "nats://[::1]:6"]
    assert servers.schemes == {"nats", "tls"}
    assert servers.shown == "nats://***@h1:4222, tls://h2:5, nats://h3:4222, nats://***@[::1]:6"
    first = {"user": "a", "password": "p#", "token": None}
    assert servers.credentials() == first
    assert servers.credentials("h1:4222") == servers.credentials("h3:4222") == first
    assert servers.credentials("10.0.0.7:4222") == first
    assert servers.credentials("[::1]:6") == {"user": None, "password": None, "token": "S3cr3t"}
    assert "S3cr3t" not in repr(servers)
    assert Servers.of("").addresses == ()
    assert Servers.of("h").credentials() == {"user": None, "password": None, "token": None}


def test_a_websockets_address_keeps_its_path():
    servers = Servers.of("wss://u:p@h/nats?key=S3cr3t")
    assert servers.urls == ["wss://h/nats?key=S3cr3t"]
    assert servers.shown == "wss://***@h/nats?***"
    assert servers.credentials("h") == {"user": "u", "password": "p", "token": None}


@pytest.mark.parametrize(
    "url",
    [
        "nats://app:S3cr3t@[::1:4222", "nats://app:S3cr3t@h:x", "nats://app:S3cr3t@h:99999",
        "nats://app:S3cr3t", "nats://app:S3cr3t#1", "app:S3cr3t:h:4222", "http://app:S3cr3t@h",
        "redis://app:S3cr3t@h", "nats://app:S3cr3t@", "nats://app:S3cr3t@h/x", "nats://h?S3cr3t",
        "nats://h#S3cr3t", "nats://app:S3,cr3t@h", "nats://app:1,S3cr3t@h", "nats://h,app:S3cr3t@h",
        "nats://app:S3cr3t%ff@h", "nats://app:S3cr3t\n1@h", "nats://h,http://u:S3cr3t@h",
    ],
)  # fmt: skip
async def test_an_invalid_url_is_refused_without_being_quoted(url, namespace):
    with pytest.raises(ConfigError) as caught:
        await log_in(url, namespace)
    assert str(caught.value).startswith("NATS_URL=***: ")
    assert caught.value.variable == "NATS_URL"
    assert "cr3t" not in str(caught.value)
