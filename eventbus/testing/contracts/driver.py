"""The test suite of all drivers, as a class to inherit. Needs pytest and pytest-asyncio.

    class TestMyDriver(DriverContract):
        @pytest_asyncio.fixture
        async def make_driver(self):
            async with AsyncExitStack() as stack:
                async def make():
                    driver = MyDriver(...)
                    await driver.open()
                    stack.push_async_callback(driver.aclose)
                    return driver
                yield make

Each call of `make_driver` returns an open driver. All drivers of one test use the same broker and
the namespace of the fixture `subjects`. Drivers without a capability skip its tests.
"""

from eventbus.testing.contracts.delivery import DeliveryContract
from eventbus.testing.contracts.history import HistoryContract
from eventbus.testing.contracts.maintenance import MaintenanceContract
from eventbus.testing.contracts.patterns import PatternHistoryContract
from eventbus.testing.contracts.probes import (
    Changes,
    Inbox,
    MakeDriver,
)
from eventbus.testing.contracts.state import StateContract

__all__ = ["Changes", "DriverContract", "Inbox", "MakeDriver"]


class DriverContract(
    DeliveryContract, HistoryContract, PatternHistoryContract, StateContract, MaintenanceContract
):
    """All tests. Subclasses define the fixture `make_driver`, and `subjects` if it differs."""
