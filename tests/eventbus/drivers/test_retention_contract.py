"""Retention classes over every driver that keeps history."""

from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest
import pytest_asyncio

from eventbus.channels import Subjects
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.testing.contracts import RetentionContract
from eventbus.testing.contracts.retention import RETENTION


class TestMemory(RetentionContract):
    @pytest_asyncio.fixture
    async def make_driver(self):
        broker = MemoryBroker(retention=RETENTION)
        async with AsyncExitStack() as stack:

            async def make():
                driver = MemoryDriver(broker)
                stack.push_async_callback(driver.aclose)
                await driver.open()
                return driver

            yield make


class TestNats(RetentionContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest_asyncio.fixture
    async def make_driver(self, settings):
        async with AsyncExitStack() as stack:

            async def make():
                driver = NatsDriver(msgspec.structs.replace(settings, retention=RETENTION))
                stack.push_async_callback(driver.aclose)
                await driver.open()
                return driver

            yield make


class TestRedis(RetentionContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest.fixture
    def make_driver(self, make_redis):
        return partial(make_redis, retention=RETENTION)
