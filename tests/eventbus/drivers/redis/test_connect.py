"""Connecting to Redis: what settings and URLs mean, and which errors users get when it fails."""

import asyncio
import datetime
import ipaddress
import logging
import socket
import time
from urllib.parse import quote

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eventbus.config import Settings
from eventbus.drivers.redis.driver import RedisDriver
from eventbus.drivers.redis.target import (
    Address,
    Target,
)
from eventbus.errors import ConfigError, ConnectionFailed
from eventbus.testing.contracts.driver import Inbox
from tests.ports import free_port

SECRET = "s3cr3t-pass%word"
SLACK_S = 10
"""For a busy machine."""


async def refused(settings):
    """The error that opening raises; it must come in time."""
    driver, began = RedisDriver(settings), time.monotonic()
    with pytest.raises(ConnectionFailed) as caught:
        await driver.open()
    assert time.monotonic() - began < settings.connect_timeout + SLACK_S
    assert not driver.is_connected
    assert caught.value.driver == "redis"
    assert SECRET not in str(caught.value)
    return str(caught.value)


def near(port, **fields):
    return Settings(driver="redis", redis_port=port, connect_timeout=30, **fields)


async def test_refused_connection_names_address_and_variables(tmp_path):
    port = free_port()
    message = await refused(Settings(redis_port=port, connect_timeout=0.3))
    assert f"127.0.0.1:{port}" in message
    assert "Connection refused" in message
    assert "BROADCAST_REDIS_HOST" in message
    assert "BROADCAST_REDIS_PORT" in message


async def test_server_that_starts_a_little_later_is_waited_for(start_redis, namespace):
    server = await start_redis()
    await server.kill()
    driver = RedisDriver(near(server.port, namespace=namespace))
    opening = asyncio.create_task(driver.open())
    await asyncio.sleep(0.2)  # the first try finds no server
    assert not opening.done()
    await server.start()
    await opening
    assert driver.is_connected
    await driver.aclose()


async def test_server_that_accepts_and_says_nothing_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        message = await refused(Settings(redis_port=sock.getsockname()[1], connect_timeout=0.4))
    assert "BROADCAST_REDIS_HOST" in message


async def test_unknown_host_is_named():
    message = await refused(Settings(redis_host="no-such-host.invalid", connect_timeout=0.5))
    assert "no-such-host.invalid:6379" in message


async def test_wrong_missing_and_needless_passwords_name_the_variable(start_redis):
    server = await start_redis("--requirepass", SECRET)
    for password in ("wrong", ""):
        began = time.monotonic()
        message = await refused(near(server.port, redis_password=password))
        assert "BROADCAST_REDIS_PASSWORD" in message
        assert time.monotonic() - began < SLACK_S, "no further try helps"
    driver = RedisDriver(near(server.port, redis_password=SECRET))
    await driver.open()
    await driver.aclose()
    open_server = await start_redis()
    message = await refused(near(open_server.port, redis_password=SECRET))
    assert "BROADCAST_REDIS_PASSWORD" in message


async def test_user_and_password_are_those_of_an_acl(start_redis):
    server = await start_redis("--user", "ada", "on", f">{SECRET}", "~*", "&*", "+@all")
    driver = RedisDriver(near(server.port, redis_username="ada", redis_password=SECRET))
    await driver.open()
    await driver.aclose()
    message = await refused(near(server.port, redis_username="bob", redis_password=SECRET))
    assert "BROADCAST_REDIS_USERNAME" in message


async def test_error_of_a_user_without_a_permission_names_the_user_setting(start_redis):
    server = await start_redis(
        *("--user", "ada", "on", "nopass", "~*", "&*", "+@all", "-evalsha", "-eval"),
        *("--user", "bob", "on", "nopass", "~*", "&*", "+@all", "-info"),
        *("--user", "eve", "on", "nopass", "~other:*", "&*", "+@all"),
    )
    for user, command in {"ada": "evalsha", "eve": "a key|one of the keys"}.items():
        driver = RedisDriver(near(server.port, redis_username=user, redis_password="x"))
        await driver.open()
        with pytest.raises(ConnectionFailed, match=command) as caught:
            await driver.read("eb.live.a", after=None, limit=1)
        assert "BROADCAST_REDIS_USERNAME" in str(caught.value)
        await driver.aclose()
    message = await refused(near(server.port, redis_username="bob", redis_password="x"))
    assert "'info'" in message
    assert "BROADCAST_REDIS_USERNAME" in message
    assert "BROADCAST_REDIS_HOST" not in message


async def test_database_that_there_is_not_names_the_variable(redis_server):
    message = await refused(near(redis_server.port, redis_database=99))
    assert "BROADCAST_REDIS_DATABASE" in message


async def test_history_is_of_the_database(redis_server, make_redis, redis_settings, subjects):
    zero, one = await make_redis(), await make_redis(redis_database=1)
    await one.publish(subjects.event("room"), b"x")
    live = subjects.live("room")
    assert (await zero.read(live, after=None, limit=9)).messages == ()
    assert len((await one.read(live, after=None, limit=9)).messages) == 1


async def test_cluster_and_server_are_not_taken_for_each_other(redis_server, redis_cluster):
    message = await refused(near(redis_server.port, redis_cluster=True))
    assert "BROADCAST_REDIS_CLUSTER" in message
    message = await refused(near(redis_cluster.nodes[0].port))
    assert "BROADCAST_REDIS_CLUSTER=true" in message


async def test_replica_is_refused(start_redis, redis_server):
    replica = await start_redis("--replicaof", "127.0.0.1", str(redis_server.port))
    assert "replica" in await refused(near(replica.port))


# --- TLS ---------------------------------------------------------------------------------------


def certificate(name, issuer=None):
    """A key and a certificate of 127.0.0.1, signed by `issuer` or by itself as an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(  # RFC 5280, 4.2.1.1: Python 3.13 requires it
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                (issuer[0] if issuer else key).public_key()
            ),
            critical=False,
        )
    )
    if issuer is None:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        usage |= {"key_cert_sign": True, "crl_sign": True}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    return key, builder.sign(issuer[0] if issuer else key, hashes.SHA256())


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """Paths of an authority, a server's certificate and key, and a client's."""
    folder = tmp_path_factory.mktemp("pem")
    authority = certificate("authority")
    pairs = {"ca": authority, "other": certificate("other authority")}
    pairs |= {name: certificate(name, authority) for name in ("server", "client")}
    for name, (key, cert) in pairs.items():
        (folder / f"{name}.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return {path.name: str(path) for path in folder.iterdir()}


def tls_options(pem, clients="no"):
    return (
        "--tls-cert-file", pem["server.pem"], "--tls-key-file", pem["server.key"],
        "--tls-ca-cert-file", pem["ca.pem"], "--tls-auth-clients", clients,
    )  # fmt: skip


async def test_tls_works_with_the_authority_and_says_what_is_wrong_without(start_redis, pem):
    server = await start_redis(*tls_options(pem), tls=True)
    inbox, settings = Inbox(), near(server.port, redis_tls=True, redis_tls_ca=pem["ca.pem"])
    driver = RedisDriver(settings)
    await driver.open()
    await driver.subscribe("eb.live.room", inbox)
    await driver.publish("eb.event.room", b"x")
    await inbox.until(1)
    await driver.aclose()
    assert "BROADCAST_REDIS_TLS=true" in await refused(
        Settings(redis_port=server.port, connect_timeout=0.5)
    )
    message = await refused(near(server.port, redis_tls=True))
    assert "BROADCAST_REDIS_TLS_CA" in message
    message = await refused(near(server.port, redis_tls=True, redis_tls_ca=pem["other.pem"]))
    assert "BROADCAST_REDIS_TLS_CA" in message


def connections_to(port):
    """The local ports of this process's connections."""
    found = psutil.Process().net_connections()
    return {each.laddr.port for each in found if each.raddr and each.raddr.port == port}


async def test_close_over_tls_leaves_no_socket_open(start_redis, pem):
    server = await start_redis(*tls_options(pem), tls=True)
    before = connections_to(server.port)
    driver = RedisDriver(near(server.port, redis_tls=True, redis_tls_ca=pem["ca.pem"]))
    await driver.open()
    await driver.subscribe("eb.live.room", Inbox())
    await driver.publish("eb.event.room", b"x")
    assert len(connections_to(server.port) - before) >= 2
    await driver.aclose()
    assert connections_to(server.port) <= before


async def test_client_certificate_is_shown_where_it_is_asked_for(start_redis, pem):
    server = await start_redis(*tls_options(pem, "yes"), tls=True)
    fields = {"redis_tls": True, "redis_tls_ca": pem["ca.pem"]}
    driver = RedisDriver(
        near(
            server.port, **fields, redis_tls_cert=pem["client.pem"], redis_tls_key=pem["client.key"]
        )
    )
    await driver.open()
    await driver.aclose()
    message = await refused(Settings(redis_port=server.port, connect_timeout=1, **fields))
    assert "BROADCAST_REDIS_TLS_CERT" in message


async def test_tls_to_a_plain_server_says_so(redis_server):
    settings = Settings(redis_port=redis_server.port, redis_tls=True, connect_timeout=0.5)
    message = await refused(settings)
    assert "BROADCAST_REDIS_TLS" in message


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", ("", (("h", 6379),), 0, {}, False)),
        ("rediss://:p%40w@h:1/3", ("", (("h", 1),), 3, {"password": "p@w"}, True)),
        ("redis://[::1]:7", ("", (("::1", 7),), 0, {}, False)),
        (
            "redis+cluster://u:p@a:1,b",
            ("cluster", (("a", 1), ("b", 6379)), 0, {"username": "u", "password": "p"}, False),
        ),
        ("rediss+sentinel://a,b:2/svc/4", ("sentinel", (("a", 26379), ("b", 2)), 4, {}, True)),
    ],
)
def test_url_is_enough(url, expected):
    target = Target.of(Settings(redis_url=url))
    assert (
        target.kind, target.addresses, target.database, target.login, target.tls is not None
    ) == expected  # fmt: skip
    assert target.service == ("svc" if "svc" in url else "mymaster")


@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{SECRET}@h",
        f"redis://u:{SECRET}@",
        f"redis://u:{SECRET}@h:port",
        f"redis://u:{SECRET}@h:99999",
        f"redis://u:{SECRET}@h/x",
        f"redis://u:{SECRET}@h/{'9' * 5000}",
        f"redis://u:{SECRET}@h/1/2",
        f"redis://u:{SECRET}@a,b",
        f"redis://u:{SECRET}@h?db=1",
        f"redis+cluster://u:{SECRET}@h/1",
    ],
)
def test_bad_url_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError) as caught:
        RedisDriver(Settings(redis_url=url))
    assert SECRET not in str(caught.value)
    assert caught.value.variable in {"BROADCAST_REDIS_URL", "BROADCAST_REDIS_DATABASE"}


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"BROADCAST_REDIS_HOST": "redis://h"}, "BROADCAST_REDIS_HOST"),
        ({"BROADCAST_REDIS_ENABLED": "false"}, "BROADCAST_REDIS_ENABLED"),
        (
            {"BROADCAST_REDIS_TLS": "true", "BROADCAST_REDIS_TLS_CA": "/none"},
            "BROADCAST_REDIS_TLS_CA",
        ),
        ({"BROADCAST_REDIS_SENTINELS": "a:b"}, "BROADCAST_REDIS_SENTINELS"),
        (
            {"BROADCAST_REDIS_CLUSTER": "true", "BROADCAST_REDIS_DATABASE": "1"},
            "BROADCAST_REDIS_DATABASE",
        ),
        (
            {"BROADCAST_REDIS_CLUSTER": "true", "BROADCAST_REDIS_SENTINELS": "a"},
            "BROADCAST_REDIS_CLUSTER",
        ),
    ],
)  # fmt: skip
def test_invalid_settings_are_named(environ, variable):
    with pytest.raises(ConfigError, match=variable) as caught:
        RedisDriver(Settings.from_env(environ))
    assert caught.value.variable == variable


def test_target_shows_no_secret():
    target = Target.of(Settings(redis_password=SECRET, redis_sentinel_password=SECRET))
    assert SECRET not in repr(target)
    assert SECRET not in repr(target.connection(Address("h", 1)))


# --- passwords ---------------------------------------------------------------------------------

PASSWORDS = [
    "S3cr3t#1", "S3cr3t@1", "S3cr3t/1", "S3cr3t?1", "S3cr3t:1", "S3cr3t%1", "S3cr3t,1", "S3cr3tä✓",
    "S3cr3t&=+;'|^`~", "#@/?:%,S3cr3t[]",
]  # fmt: skip


@pytest.mark.redis
@pytest.mark.parametrize("password", PASSWORDS)
async def test_every_password_logs_in_percent_encoded_or_as_it_is(
    start_redis, namespace, caplog, password
):
    caplog.set_level(logging.DEBUG)
    server = await start_redis("--requirepass", password)
    for given in (quote(password, safe=""), password):
        for user in ("", "default"):
            url = f"redis://{user}:{given}@127.0.0.1:{server.port}/0"
            driver = RedisDriver(Settings(redis_url=url, namespace=namespace, connect_timeout=30))
            await driver.open()
            await driver.aclose()
    for wrong in (f"x{quote(password, safe='')}", ""):
        url = f"redis://:{wrong}@127.0.0.1:{server.port}"
        message = await refused(Settings(redis_url=url, connect_timeout=5))
        assert "S3cr3t" not in message
    assert "S3cr3t" not in caplog.text


@pytest.mark.parametrize(
    "environ",
    [
        {"BROADCAST_REDIS_URL": "redis://app:S3cr3t@[::1:6379"},
        {"BROADCAST_REDIS_URL": "redis://app:S3cr3t@h:x"},
        {"BROADCAST_REDIS_URL": "redis://app:S3cr3t"},
        {"BROADCAST_REDIS_URL": "redis://app:S3cr3t#1"},
        {"BROADCAST_REDIS_URL": "app:S3cr3t@h:6379"},
        {"BROADCAST_REDIS_URL": "redis+sentinel://app:S3cr3t@a:1,b:x/svc"},
        {"BROADCAST_REDIS_URL": "redis://app:S3cr3t@h℀"},
        {"BROADCAST_REDIS_URL": "redis://h/0?password=S3cr3t"},
        {"BROADCAST_REDIS_URL": "redis://h/0#S3cr3t"},
        {"BROADCAST_REDIS_HOST": "app:S3cr3t@h"},
        {"BROADCAST_REDIS_HOST": "redis://app:S3cr3t@h"},
        {"BROADCAST_REDIS_SENTINELS": "a:1,app:S3cr3t@h:26379"},
        {"BROADCAST_REDIS_SENTINELS": "redis://app:S3cr3t@h:26379"},
        {"BROADCAST_REDIS_PORT": "redis://app:S3cr3t@h:6379"},
        {"BROADCAST_DRIVER": "redis://app:S3cr3t@h:6379"},
        {"BROADCAST_CHANNELS_PREFIX": "redis://app:S3cr3t@h:6379"},
        {"BROADCAST_HISTORY_REPLICAS": "nats://app:S3cr3t#1@h:6379"},
    ],
)
def test_a_password_at_a_wrong_place_is_not_quoted(environ):
    with pytest.raises(ConfigError) as caught:
        RedisDriver(Settings.from_env(environ))
    assert caught.value.variable in environ
    assert "S3cr3t" not in str(caught.value)
