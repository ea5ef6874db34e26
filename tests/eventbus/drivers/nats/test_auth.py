"""A login with a credentials file: it is read again, and an invalid one is reported."""

import asyncio
import logging
import os

import nkeys
import pytest

from eventbus.config import Settings
from eventbus.drivers.nats.auth import (
    Credentials,
)
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.drivers.nats.errors import CredentialsError
from eventbus.errors import ConnectionFailed, PublishFailed
from tests.eventbus.drivers.nats.conftest import until

LONG_AGO = 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "user.creds"


@pytest.fixture
def make_driver(jwt_server, path):
    def make(**changes):
        return NatsDriver(
            Settings(
                nats_url=jwt_server.url,
                nats_creds=str(path),
                history_bytes=1024**2,
                **{"connect_timeout": 20} | changes,
            )
        )

    return make


async def publish(driver):
    return await driver.publish("eb.event.general", b"{}")


async def refusal(driver):
    """What the error says; it must not come of time that is over."""
    with pytest.raises(ConnectionFailed) as caught:
        await driver.open()
    assert "not within" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "output"),
    [
        (lambda _: "", "holds no user's JWT"),
        (lambda text: text.replace("NATS USER JWT", "SOMETHING"), "holds no user's JWT"),
        (lambda text: text.partition("---\n\n")[0], "holds no user's"),
        (lambda text: text.partition("-----BEGIN USER")[0], "holds no user's seed"),
        (lambda text: text.replace("\nSU", "\nXX"), "has an invalid seed"),
        (lambda text: text.replace(".ey", ".!!", 1), "has a JWT that cannot be read"),
        (lambda text: text.replace(".", "", 1), "has a JWT that cannot be read"),
        (lambda text: text + " " * 65_536, "is larger than 65,536 bytes"),
        (lambda _: "\0" * 100, "holds no user's JWT"),
    ],
    ids=["empty", "no-jwt", "cut", "no-seed", "seed", "base64", "parts", "large", "nul"],
)
def test_a_file_without_credentials_is_reported_with_its_setting(path, operator, change, output):
    text = operator.user("edge")
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(CredentialsError) as caught:
        Credentials(str(path)).load()
    assert str(caught.value).startswith(f"NATS_CREDS={str(path)!r} ")
    assert output in str(caught.value)
    assert not any(line in str(caught.value) for line in text.split() if len(line) > 40)


def test_the_seed_of_another_user_is_reported(path, operator):
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
    lines = [seed if line[:2] == "SU" else line for line in operator.user("edge").splitlines()]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CredentialsError, match="seed of another user"):
        Credentials(str(path)).load()


def test_lines_may_have_any_line_ending(path, operator):
    path.write_bytes(operator.user("edge").replace("\n", "\r\n").encode())
    Credentials(str(path)).load()


async def test_a_login_succeeds_without_and_with_a_time_at_which_it_ends(
    make_driver, path, operator
):
    for claims in ({}, {"exp": 4_102_444_800}):
        path.write_text(operator.user("admin", **claims), encoding="utf-8")
        driver = make_driver()
        await driver.open()
        await publish(driver)
        assert driver.counters["refusals"] == 0
        await driver.aclose()


async def test_credentials_that_expired_are_refused_at_once_saying_when(
    make_driver, path, operator
):
    path.write_text(operator.user("edge", exp=LONG_AGO), encoding="utf-8")
    message = await refusal(make_driver())
    assert f"NATS_CREDS={str(path)!r}: user 'edge' expired at 1970-01-01T00:00:01Z" in message


async def test_credentials_that_were_revoked_are_refused_at_once(
    make_driver, path, operator, jwt_server
):
    path.write_text(operator.user("edge"), encoding="utf-8")
    operator.revoke_all()
    await jwt_server.stop()
    jwt_server._config.update(operator.config())
    await jwt_server.start()
    message = await refusal(make_driver())
    assert f"NATS_CREDS={str(path)!r}: user 'edge' or the account has been revoked" in message


async def test_credentials_of_another_operator_are_refused_at_once(make_driver, path, new_operator):
    path.write_text(new_operator().user("edge"), encoding="utf-8")
    assert "is not of this server's operator" in await refusal(make_driver())


async def test_a_missing_file_is_reported_before_anything_is_sent(make_driver, path):
    message = await refusal(make_driver())
    assert message.startswith(f"NATS_CREDS={str(path)!r} is not a file that can be read")


async def test_revoked_while_it_runs_is_loud_and_heals_with_a_new_file(
    make_driver, path, operator, jwt_server, caplog
):
    caplog.set_level(logging.INFO)
    path.write_text(operator.user("admin"), encoding="utf-8")
    driver = make_driver(publish_timeout=1)
    await driver.open()
    received = asyncio.Queue()
    await driver.subscribe("eb.live.general", received.put_nowait)
    operator.revoke_all()
    jwt_server.renew()
    await until(lambda: driver.counters["refusals"] > 1)
    assert not driver.is_connected
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert any(
        f"the server refuses the credentials of NATS_CREDS={str(path)!r}" in e for e in errors
    )
    with pytest.raises(PublishFailed, match=r"not connected: .* NATS_CREDS="):
        await publish(driver)

    # What is halfway written, or gone, is not the end of trying.
    path.write_text("-----BEGIN NATS USER JWT-----\n", encoding="utf-8")
    await until(lambda: "holds no user's JWT" in caplog.text)
    path.unlink()
    await until(lambda: "is not a file that can be read" in caplog.text)
    assert not driver.is_connected

    path.write_text(operator.renewed("admin"), encoding="utf-8")
    await until(lambda: driver.is_connected)
    async with asyncio.timeout(30):
        while True:  # the server takes what was issued a second from now, and what comes after
            published = await publish(driver)
            if (await received.get()).position == published.position:
                break
    await driver.aclose()


async def test_expired_while_it_runs_is_loud_and_a_renewed_file_is_read(
    make_driver, path, operator, caplog
):
    path.write_text(operator.user("admin", exp=operator.now() + 3), encoding="utf-8")
    driver = make_driver()
    await driver.open()
    path.write_text(operator.user("admin"), encoding="utf-8")  # in good time, as it should be
    await until(lambda: driver.counters["refusals"] > 0)
    await until(lambda: driver.is_connected)
    await publish(driver)
    assert "NATS_CREDS" in caplog.text
    await driver.aclose()


async def test_continuing_fault_is_not_logged_at_each_attempt(
    make_driver, path, operator, jwt_server, caplog
):
    path.write_text(operator.user("admin"), encoding="utf-8")
    driver = make_driver()
    await driver.open()
    operator.revoke_all()
    jwt_server.renew()
    await until(lambda: driver.counters["refusals"] >= 4)
    records = [r for r in caplog.records if "refuses the credentials" in r.getMessage()]
    assert 1 <= len(records) < driver.counters["refusals"]
    await driver.aclose()
