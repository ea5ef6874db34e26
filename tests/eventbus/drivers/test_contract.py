import pytest

from eventbus.channels import Subjects
from eventbus.drivers.memory import MemoryBroker, MemoryDriver
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.testing.contracts import DriverContract


class TestMemory(DriverContract):
    @pytest.fixture
    def make_driver(self, opened):
        broker = MemoryBroker()
        return lambda: opened(MemoryDriver(broker))


class TestNats(DriverContract):
    @pytest.fixture
    def subjects(self, namespace):
        return Subjects(namespace)

    @pytest.fixture
    def make_driver(self, settings, opened):
        return lambda: opened(NatsDriver(settings))
