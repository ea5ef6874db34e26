"""`eventbus setup`: makes at the broker what services need, who then need no right to make it."""

import typer

from eventbus.cli.output import Json, write_json
from eventbus.cli.running import opened_bus, run
from eventbus.drivers.base import PreparedDriver

__all__ = ["setup"]


def setup(json: Json = False) -> None:
    """Make the streams of events, of queued and failed jobs, and of what nodes tell each other.

    Run it when you deploy, with the settings of your services and a NATS user who may make streams;
    theirs then need not. What is there already is checked and left as it is.

    Example: NATS_URL=tls://nats-1:4222 NATS_NKEY=admin.nk eventbus setup
    """

    async def prepare() -> tuple[str, tuple[str, ...]]:
        async with opened_bus() as bus:
            driver = bus.driver
            made = await driver.prepare() if isinstance(driver, PreparedDriver) else ()
            return driver.name, made

    name, ready = run(prepare())
    if json:
        write_json({"driver": name, "ready": ready})
        return
    for each in ready:
        typer.echo(f"ready: {each}")
    if not ready:
        typer.echo(f"the driver {name} needs no preparation")
