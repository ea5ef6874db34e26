"""The README's examples run unchanged."""

import ast
import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from eventbus import EventBus
from eventbus.events import event_types
from eventbus.events.listeners import isolated
from eventbus_edge.access.rules import channels

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?<!-->\n)^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PUBLISH, BROADCAST, LISTEN, TEST, AUTHORIZE = BLOCKS

pytest_plugins = ["pytester"]


async def test_publishing_example_runs_as_a_script(settings, tmp_path):
    (tmp_path / "service.py").write_text(PUBLISH)
    environ = {
        "PATH": os.environ["PATH"],
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
    }
    received = []
    async with EventBus(settings) as bus:
        await bus.driver.subscribe(f"{settings.namespace}.live.>", received.append)
        command = [sys.executable, "service.py"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, env=environ, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        async with asyncio.timeout(40):
            while len(received) < 2:  # noqa: ASYNC110 - the driver calls, and sets no event
                await asyncio.sleep(0.01)
    assert [delivery.subject.partition(".live.")[2] for delivery in received] == [
        "orders.42",
        "general",
    ]


async def test_broadcasting_and_listening_examples_run(settings):
    names = {}
    source = PUBLISH.partition("async def main")[0] + BROADCAST + LISTEN
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with isolated():
        async with EventBus(settings) as bus:
            await eval(code, names)
            await names["run"](bus)
            await bus.ready()
    assert {"OrderShipped", "InvoiceDue"} <= set(event_types())


def test_testing_example_passes_under_pytest(pytester):
    pytester.makepyfile(
        shop=PUBLISH.partition("async def main")[0]
        + BROADCAST.partition("await broadcast()")[0]
        + LISTEN.partition("async def run")[0]
        + """
async def ship(order_id, carrier, customer):
    await OrderShipped(order_id=order_id, carrier=carrier).dispatch()
    await InvoiceDue(order_id=order_id).dispatch()
    await Broadcast.notify_user(customer, "Your order", f"Shipped with {carrier}")
"""
    )
    pytester.makepyfile(test_shop=f"from shop import *\n\n{TEST}")
    pytester.makeini("[pytest]\nasyncio_mode = auto\n")
    pytester.runpytest_subprocess("-p", "no:xdist", "-p", "no:cacheprovider").assert_outcomes(
        passed=2
    )


def test_authorizing_example_registers_its_authorizer():
    class Teams:
        async def has_member(self, team_id, user_id):
            return True

    before = channels._authorizers[:]
    try:
        exec(compile(AUTHORIZE, "README.md", "exec"), {"teams": Teams()})
        assert channels._authorizers[-1].pattern.text == "team.{team_id}"
    finally:
        channels._authorizers[:] = before
