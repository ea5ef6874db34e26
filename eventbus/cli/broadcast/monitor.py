"""`eventbus broadcast monitor`: live statistics of the cluster, once a second."""

import asyncio
import collections
import contextlib
import time
from collections.abc import Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    NamedTuple,
)

import typer

from eventbus.cli.durations import duration as parse_duration
from eventbus.cli.output import Json, console, counted, make_table, say, span, write_json
from eventbus.cli.running import (
    interrupted,
    opened_bus,
    run,
)
from eventbus.user_code import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eventbus.cluster import NodeStats, Stats

__all__ = ["monitor", "sparkline"]


INTERVAL_S: Final = 1.0
_BARS: Final = "▁▂▃▄▅▆▇█"
_POINTS: Final = 24
_CHANNELS: Final = 8
_WIDE: Final = 110
"""From this terminal width on, the bars are twice as wide."""
_NARROW: Final = 76
"""Below this terminal width, there are no bars."""


class Rates(NamedTuple):
    """Messages per second."""

    came: float
    went: float


class History:
    """The message rates of each node, one point per second, computed from its counters."""

    def __init__(self) -> None:
        self.rates: dict[str, collections.deque[Rates]] = {}
        self.all: collections.deque[Rates] = collections.deque(maxlen=_POINTS)
        self._last: dict[str, tuple[float, int, int]] = {}

    def add(self, nodes: "Sequence[NodeStats]", now: float) -> None:
        """Add a point for each node, and forget nodes that are gone."""
        known = {node.id for node in nodes}
        for gone in self._last.keys() - known:
            del self._last[gone]
            self.rates.pop(gone, None)
        total_in = total_out = 0.0
        for node in nodes:
            before = self._last.get(node.id)
            self._last[node.id] = (now, node.messages_in, node.messages_out)
            points = self.rates.setdefault(node.id, collections.deque(maxlen=_POINTS))
            if before is None:
                continue
            passed = max(now - before[0], 1e-6)
            rate = Rates(
                max(0, node.messages_in - before[1]) / passed,
                max(0, node.messages_out - before[2]) / passed,
            )
            points.append(rate)
            total_in += rate.came
            total_out += rate.went
        if any(self.rates.values()):
            self.all.append(Rates(total_in, total_out))


def monitor(
    duration: Annotated[
        str, typer.Option(help="Stop after this time, such as 10m; 0 runs until Ctrl-C.")
    ] = "30s",
    json: Json = False,
) -> None:
    """Show nodes, connections, channels and messages per second, live.

    Shows a live table on a terminal, and prints a line per second otherwise.

    Example: eventbus broadcast monitor --duration 0
    """
    run(_monitor(parse_duration(duration, "--duration", zero=True), json=json))


async def _monitor(duration: float, *, json: bool) -> None:
    from rich.live import Live  # noqa: PLC0415 - only this command needs it

    from eventbus.cluster import ListQuery  # noqa: PLC0415

    out, history = console(), History()
    loop = asyncio.get_running_loop()
    async with opened_bus() as bus:
        cluster = await bus.cluster()
        stats = await bus.stats(limit=_CHANNELS)
        ends = loop.time() + duration if duration else float("inf")
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(interrupted())
            live = None
            if out.is_terminal and not json:
                live = stack.enter_context(Live(console=out, auto_refresh=False))
            while True:
                history.add(stats.nodes, time.monotonic())
                if live is not None:
                    live.update(_picture(stats, history, out.width, out.height), refresh=True)
                else:
                    _line(stats, history, json=json)
                left = min(INTERVAL_S, ends - loop.time())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(left, 0.0)):
                        await stop.wait()
                if stop.is_set() or loop.time() >= ends:
                    return
                stats = await cluster.stats(ListQuery(limit=_CHANNELS))


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars, scaled to the highest one and padded with spaces on the left."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    bars = [_BARS[0] if top <= 0 else _BARS[round(v / top * (len(_BARS) - 1))] for v in shown]
    return "".join(bars).rjust(width)


def _line(stats: "Stats", history: History, *, json: bool) -> None:
    rate = history.all[-1] if history.all else Rates(0, 0)
    summary: dict[str, Any] = {
        "nodes": len(stats.nodes),
        "connections": stats.connections,
        "channels": _channels(stats),
        "in_per_s": round(rate.came, 1),
        "out_per_s": round(rate.went, 1),
        "missing": stats.missing,
    }
    if json:
        write_json(summary, indent=False)
        return
    missing = f", {counted(len(stats.missing), 'node')} missing" if stats.missing else ""
    say(
        f"{counted(summary['nodes'], 'node')}, {counted(stats.connections, 'connection')}, "
        f"{counted(summary['channels'], 'channel')}, {rate.came:,.0f} in/s, "
        f"{rate.went:,.0f} out/s{missing}"
    )


def _channels(stats: "Stats") -> int:
    """The number of channels; a lower bound if the list is truncated."""
    if not stats.truncated:
        return len(stats.channels)
    return max(len(stats.channels), *(node.channels for node in stats.nodes), 0)


def _picture(stats: "Stats", history: History, width: int, height: int) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    nodes = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    nodes.add_column("node", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
    bars = _POINTS if width >= _WIDE else _POINTS // 2 if width >= _NARROW else 0
    for column in ("up", "conns", "channels", "in/s"):
        nodes.add_column(column, justify="right", no_wrap=True)
    if bars:
        nodes.add_column("", no_wrap=True, style="cyan")
    nodes.add_column("out/s", justify="right", no_wrap=True)
    if bars:
        nodes.add_column("", no_wrap=True, style="green")
    room = max(1, height - _CHANNELS - 8)
    for node in stats.nodes[:room]:
        nodes.add_row(
            printable(node.id), span(node.uptime_s), f"{node.connections:,}", f"{node.channels:,}",
            *_rates(history.rates.get(node.id, ()), bars),
        )  # fmt: skip
    nodes.add_row()
    total: list[Any] = [
        Text("all", style="bold"), "", f"{stats.connections:,}", f"{_channels(stats):,}",
        *_rates(history.all, bars),
    ]  # fmt: skip
    nodes.add_row(*total)
    busiest, _ = make_table(
        ("channel", "conns", "kind"),
        [[each.channel, f"{each.connections:,}", each.kind.value] for each in stats.channels],
        width,
        right=("conns",),
        whole=("channel",),
    )
    parts: list[RenderableType] = [nodes]
    if len(stats.nodes) > room:
        parts.append(Text(f"… and {len(stats.nodes) - room} more nodes", style="dim"))
    if stats.missing:
        parts.append(Text(f"not responding: {printable(', '.join(stats.missing))}", style="red"))
    parts += [Text(), busiest, Text(f"over {stats.driver}; press Ctrl-C to stop", style="dim")]
    return Group(*parts)


def _rates(points: Sequence[Rates], bars: int) -> list[str]:
    last = points[-1] if points else Rates(0, 0)
    if not bars:
        return [f"{last.came:,.0f}", f"{last.went:,.0f}"]
    return [
        f"{last.came:,.0f}",
        sparkline([point.came for point in points], bars),
        f"{last.went:,.0f}",
        sparkline([point.went for point in points], bars),
    ]
