"""`eventbus setup`: creates the streams at the broker, so that services need no permission to."""

from eventbus.cli.output import Json, say, write_json
from eventbus.cli.running import opened_bus, run
from eventbus.drivers import PreparedDriver

__all__ = ["setup"]


def setup(json: Json = False) -> None:
    """Create the streams for events, queues, failed jobs and the state of edge nodes.

    Run it when you deploy, with the settings of your services and a NATS user that can create
    streams. The services then do not need this permission. Existing streams are checked, not
    changed.

    Example: NATS_URL=tls://nats-1:4222 NATS_NKEY=admin.nk eventbus setup
    """

    async def prepare() -> tuple[str, tuple[str, ...]]:
        async with opened_bus() as bus:
            driver = bus.driver
            names = await driver.prepare() if isinstance(driver, PreparedDriver) else ()
            return driver.name, names

    name, ready = run(prepare())
    if json:
        write_json({"driver": name, "ready": ready})
        return
    for each in ready:
        say(f"ready: {each}")
    if not ready:
        say(f"the driver {name} needs no setup")
