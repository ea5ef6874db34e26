"""What every driver must do, as a test class to inherit; needs pytest and pytest-asyncio.

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

Each call of `make_driver` gives an opened driver; all those of one test share a broker and the
namespace that the fixture `subjects` names. A driver without a capability passes the tests of it by
having none.
"""

from eventbus.testing.contracts.delivery import DeliveryContract
from eventbus.testing.contracts.history import HistoryContract
from eventbus.testing.contracts.maintenance import MaintenanceContract
from eventbus.testing.contracts.probes import (
    Changes,
    Inbox,
    MakeDriver,
)
from eventbus.testing.contracts.state import StateContract

__all__ = ["Changes", "DriverContract", "Inbox", "MakeDriver"]


class DriverContract(DeliveryContract, HistoryContract, StateContract, MaintenanceContract):
    """The suite; a subclass gives the fixture `make_driver`, and `subjects` where it differs."""
