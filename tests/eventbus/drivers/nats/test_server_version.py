"""Versions of nats-server: one that lacks what the driver needs is refused before it is used."""

import pytest
from msgspec.structs import replace

from eventbus.cli.doctor.brokers import check_nats
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import ConnectionFailed
from tests.eventbus.drivers.nats.conftest import api, connected, opened, posing_as


@pytest.mark.parametrize("version", ["2.10.29", "2.9.0", "1.4.1"])
async def test_old_server_is_refused_before_anything_is_created_on_it(
    own_nats_server, own_settings, version
):
    async with posing_as(own_nats_server, version) as url:
        driver = NatsDriver(replace(own_settings, nats_url=url))
        with pytest.raises(ConnectionFailed) as caught:
            await driver.open()
    assert f"is version {version}: eventbus needs 2.11 or later" in str(caught.value)
    async with connected(own_nats_server.url) as client:
        assert (await api(client, "STREAM.NAMES"))["streams"] is None


@pytest.mark.parametrize("version", ["2.11.0", "2.12.0-RC.1", "3.0.0"])
async def test_server_that_is_new_enough_is_used(own_nats_server, own_settings, version):
    async with (
        posing_as(own_nats_server, version) as url,
        opened(replace(own_settings, nats_url=url)) as driver,
    ):
        assert await driver.publish("own.event.a", b"x") is not None


async def test_doctor_names_the_version_and_what_to_do(own_nats_server, own_settings):
    async with posing_as(own_nats_server, "2.10.29") as url:
        [finding] = await check_nats(replace(own_settings, nats_url=url), 1.0)
    assert finding.status == "failed"
    assert "2.10.29" in str(finding)
    assert "upgrade nats-server" in str(finding)
