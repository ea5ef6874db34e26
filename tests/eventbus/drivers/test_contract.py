from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from eventbus.channels import Subjects
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.testing.contracts import DriverContract


class TestMemory(DriverContract):
    @pytest_asyncio.fixture
    async def make_driver(self):
        broker = MemoryBroker()
        async with AsyncExitStack() as stack:

            async def make():
                driver = MemoryDriver(broker)
                stack.push_async_callback(driver.aclose)
                await driver.open()
                return driver

            yield make


class TestNats(DriverContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest_asyncio.fixture
    async def make_driver(self, settings):
        async with AsyncExitStack() as stack:

            async def make():
                driver = NatsDriver(settings)
                stack.push_async_callback(driver.aclose)
                await driver.open()
                return driver

            yield make
