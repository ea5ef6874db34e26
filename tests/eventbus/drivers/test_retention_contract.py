"""Retention classes over every driver that keeps history."""

from functools import partial

import msgspec
import pytest

from eventbus.channels import Subjects
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.testing.contracts import RetentionContract
from eventbus.testing.contracts.retention import RETENTION


class TestMemory(RetentionContract):
    @pytest.fixture
    def make_driver(self, opened):
        broker = MemoryBroker(retention=RETENTION)
        return lambda: opened(MemoryDriver(broker))


class TestNats(RetentionContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest.fixture
    def make_driver(self, settings, opened):
        return lambda: opened(NatsDriver(msgspec.structs.replace(settings, retention=RETENTION)))


class TestRedis(RetentionContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest.fixture
    def make_driver(self, make_redis):
        return partial(make_redis, retention=RETENTION)
