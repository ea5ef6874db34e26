"""`eventbus broadcast ping`: the round-trip time of messages over the bus, shown like ping(8)."""

import asyncio
import contextlib
import time
from typing import (
    Annotated,
    Any,
    Final,
)

import typer

from eventbus.bus import EventBus
from eventbus.channels import validate_channel
from eventbus.cli.completion import complete_channels
from eventbus.cli.durations import duration
from eventbus.cli.output import Json, say, write_json
from eventbus.cli.running import (
    interrupted,
    opened_bus,
    run,
)
from eventbus.drivers import Delivery
from eventbus.errors import DriverError
from eventbus.messages import new_id

__all__ = ["ping"]


PATIENCE_S: Final = 5.0
"""A ping that has not returned after this time is lost."""
EVENT: Final = "ping"


def ping(
    channel: Annotated[
        str, typer.Option(help="The channel to publish on.", autocompletion=complete_channels)
    ] = "general",
    interval: Annotated[str, typer.Option(help="The time between pings: 50ms to 1h.")] = "5s",
    count: Annotated[int | None, typer.Option(min=1, help="Stop after this many pings.")] = None,
    json: Json = False,
) -> None:
    """Publish pings, and show how long each takes to return over the bus, until Ctrl-C.

    Pings are volatile events named `ping`. Subscribers of the channel receive them, but they are
    not stored.

    Example: eventbus broadcast ping --interval 1s --count 10
    """
    seconds = duration(interval, "--interval", least=0.05, most=3600)
    if not run(_ping(channel, seconds, count, json=json)):
        raise typer.Exit(1)


async def _ping(channel: str, interval: float, count: int | None, *, json: bool) -> bool:
    """Send pings. Returns whether any returned."""
    validate_channel(channel)
    times: list[float] = []
    sent = 0
    async with opened_bus() as bus:
        pinger = _Pinger(bus, channel)
        subscription = await bus.driver.subscribe(bus.subjects.live(channel), pinger.receive)
        if not json:
            say(f"PING {channel} over {bus.driver.name}")
        with interrupted() as stop:
            while not stop.is_set() and (count is None or sent < count):
                sent += 1
                took, why = await pinger.once(sent, stop)
                if took is None and stop.is_set():
                    sent -= 1  # interrupted: the ping does not count
                    break
                if took is not None:
                    times.append(took)
                _print_ping(channel, sent, took, why, json=json)
                if sent != count:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(interval):
                            await stop.wait()
        await subscription.aclose()
    _summarize(channel, sent, times, json=json)
    return bool(times)


class _Pinger:
    def __init__(self, bus: EventBus, channel: str) -> None:
        self._bus = bus
        self._channel = channel
        self._expected = new_id()
        self._came = asyncio.Event()
        self._at = 0.0

    def receive(self, delivery: Delivery) -> None:
        if self._expected.encode() in delivery.payload:  # ids are unique
            self._at = time.perf_counter()
            self._came.set()

    async def once(self, number: int, stop: asyncio.Event) -> tuple[float | None, str]:
        """Send a ping. Returns its round-trip time in seconds, or None and the reason."""
        self._expected = new_id()
        self._came.clear()
        waits = [asyncio.create_task(event.wait()) for event in (self._came, stop)]
        began = time.perf_counter()
        try:
            await self._bus.publish(
                self._channel, EVENT, {"seq": number}, volatile=True, id=self._expected
            )
            await asyncio.wait(waits, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        except DriverError as exc:
            return None, str(exc)
        finally:
            for wait in waits:
                wait.cancel()
        if self._came.is_set():
            return self._at - began, ""
        return None, f"no reply within {PATIENCE_S:g} s"


def _print_ping(channel: str, number: int, took: float | None, why: str, *, json: bool) -> None:
    if json:
        ms = None if took is None else round(took * 1000, 3)
        write_json({"seq": number, "ms": ms, "error": why or None}, indent=False)
    elif took is None:
        say(f"{channel}: seq={number} {why}", fg="red")
    else:
        say(f"{channel}: seq={number} time={took * 1000:.2f} ms")


def _summarize(channel: str, sent: int, times: list[float], *, json: bool) -> None:
    summary: dict[str, Any] = {"sent": sent, "received": len(times)}
    lost = 100 * (sent - len(times)) / sent if sent else 0.0
    summary["loss_percent"] = round(lost, 1)
    if times:
        low, mean, high = min(times), sum(times) / len(times), max(times)
        summary |= {
            name: round(seconds * 1000, 3)
            for name, seconds in (("min_ms", low), ("avg_ms", mean), ("max_ms", high))
        }
    if json:
        write_json(summary, indent=False)
        return
    say(f"\n--- {channel} ping statistics ---")
    say(f"{sent} sent, {len(times)} received, {lost:.0f}% lost")
    if times:
        shown = "/".join(f"{summary[name]:.2f}" for name in ("min_ms", "avg_ms", "max_ms"))
        say(f"round trip min/avg/max = {shown} ms")
