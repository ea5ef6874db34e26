"""`scripts/run --once`: a WebSocket client that checks in a few seconds that events arrive."""

import asyncio
import collections
import datetime
import statistics
import time
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from eventbus.cli.output import counted
from scripts.demo.service import serve_measurements

__all__ = ["Incomplete", "run"]

CHANNELS: Final = ("public", "chat.lobby")
EVENTS: Final = 10
TYPES: Final = 2


class Incomplete(Exception):
    """Not all expected events arrived. The message says what is missing."""


class Arrival(NamedTuple):
    """One event, and the milliseconds from its timestamp to its arrival."""

    event: str
    channel: str
    latency_ms: float


async def run(address: str, token: str, interval: float, timeout_s: float, deadline: float) -> None:
    """Connect to the edge, start the service, and print events until enough have arrived.

    Raises Incomplete at `deadline`, a time of the loop's clock `timeout_s` seconds after the start
    of the demo.
    """
    arrivals: list[Arrival] = []
    try:
        async with asyncio.timeout_at(deadline), aiohttp.ClientSession() as client:
            headers = {"Authorization": f"Bearer {token}"}
            async with client.ws_connect(f"{address}/ws", headers=headers) as socket:
                await _subscribe(socket)
                service = asyncio.create_task(serve_measurements(interval, interval * 3))
                try:
                    await _receive(socket, arrivals)
                finally:
                    service.cancel()
    except TimeoutError:
        raise Incomplete(_missing(arrivals, timeout_s)) from None
    print(_summary(arrivals))


async def _subscribe(socket: aiohttp.ClientWebSocketResponse) -> None:
    for channel in CHANNELS:
        await socket.send_json({"action": "subscribe", "channel": channel})
    waiting = set(CHANNELS)
    while waiting:
        message = await _next(socket)
        if message["event"] == "eb:subscribed":
            waiting.discard(message["channel"])
        elif message["event"] == "eb:error":
            raise Incomplete(f"the edge replied with an error: {message['data']['message']}")


async def _receive(socket: aiohttp.ClientWebSocketResponse, arrivals: list[Arrival]) -> None:
    while len(arrivals) < EVENTS or len({each.event for each in arrivals}) < TYPES:
        message = await _next(socket)
        if message["event"].startswith("eb:"):
            continue
        sent = datetime.datetime.fromisoformat(message["timestamp"]).timestamp()
        latency = (time.time() - sent) * 1000
        arrivals.append(Arrival(message["event"], message["channel"], latency))
        print(f"{latency:8.2f} ms  {message['event']:<18} {message['channel']}", flush=True)


def _summary(arrivals: list[Arrival]) -> str:
    """A summary in one line: the number and types of the events, and their latency."""
    kinds = collections.Counter(each.event for each in arrivals)
    latencies = [each.latency_ms for each in arrivals]
    return (
        f"{len(arrivals)} events of {len(kinds)} types "
        f"({', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}); "
        f"latency: median {statistics.median(latencies):.2f} ms, highest {max(latencies):.2f} ms"
    )


async def _next(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise Incomplete(f"the edge closed the connection (close code {socket.close_code})")
    return msgspec.json.decode(message.data, type=dict[str, Any])


def _missing(arrivals: list[Arrival], timeout_s: float) -> str:
    kinds = sorted({each.event for each in arrivals})
    return (
        f"after {timeout_s:g} s, {counted(len(arrivals), 'event')} of "
        f"{counted(len(kinds), 'type')} arrived"
        + (f" ({', '.join(kinds)})" if kinds else "")
        + f"; expected: at least {EVENTS} events of {TYPES} types"
    )
