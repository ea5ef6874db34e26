"""The null driver: the whole Protocol, and no handler is ever called."""

import pytest

from eventbus.bus import EventBus
from eventbus.channels import Pattern
from eventbus.config import Settings
from eventbus.drivers.null import NullDriver
from eventbus.errors import ConnectionFailed
from eventbus.testing.contracts import DriverContract
from eventbus.testing.contracts.driver import Inbox


class TestNull:
    """What of the contract does not ask that messages arrive."""

    subjects = DriverContract.subjects
    test_publishing_without_subscribers_is_not_an_error = (
        DriverContract.test_publishing_without_subscribers_is_not_an_error
    )
    test_close_is_idempotent_and_disconnects = (
        DriverContract.test_close_is_idempotent_and_disconnects
    )
    test_use_after_close_is_an_error_naming_the_driver = (
        DriverContract.test_use_after_close_is_an_error_naming_the_driver
    )

    @pytest.fixture
    def make_driver(self, opened):
        return lambda: opened(NullDriver())

    async def test_no_listener_is_ever_called(self, make_driver, subjects):
        driver, inbox = await make_driver(), Inbox()
        exact = await driver.subscribe(subjects.live("room"), inbox)
        every = await driver.subscribe(subjects.live_filter(Pattern(">")), inbox)
        assert exact.position is None
        for root in (subjects.event, subjects.live, subjects.control):
            assert await driver.publish(root("room"), b"{}", {"Eb-Event": "x"}) is None
        await exact.aclose()
        await exact.aclose()
        await every.aclose()
        assert inbox.deliveries == []


async def test_use_before_open_is_an_error():
    with pytest.raises(ConnectionFailed, match="not open"):
        await NullDriver().publish("eb.event.a", b"")


async def test_bus_publishes_into_nothing_and_still_checks_what_it_is_given():
    async with EventBus.from_env({"BROADCAST_DRIVER": "null"}) as bus:
        receipt = await bus.publish("general", "news", {"a": 1})
        assert (receipt.channel, receipt.offset, receipt.epoch) == ("general", None, None)
        with pytest.raises(ValueError, match="not a channel name"):
            await bus.publish("a..b", "news", {})


def test_it_can_do_nothing_beside():
    assert NullDriver().capabilities == frozenset()
    assert EventBus(Settings(driver="null")).driver.name == "null"
