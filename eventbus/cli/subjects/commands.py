"""`eventbus subjects`: list, inspect, publish to and purge channels."""

import asyncio
import sys
from typing import (
    Annotated,
    Any,
    Final,
    cast,
)

import typer

from eventbus.bus import EventBus
from eventbus.channels import (
    ChannelKind,
    Pattern,
    validate_channel,
)
from eventbus.cli.completion import complete_channels, complete_events
from eventbus.cli.output import Json, counted, fail, print_table, say, write_json
from eventbus.cli.running import (
    opened_bus,
    read_json,
    run,
)
from eventbus.cli.subjects import tail
from eventbus.drivers import Capability, HistoryDriver, MaintenanceDriver
from eventbus.errors import NotSupported
from eventbus.messages import validate_event_name
from eventbus.user_code import printable

__all__ = ["app"]


app = typer.Typer(help="Inspect channels, and manage stored messages.", no_args_is_help=True)

_LOOK: Final = "Look"
_CHANGE: Final = "Change"
Channel = Annotated[str, typer.Argument(help="A channel's name.", autocompletion=complete_channels)]
_READS_AT_ONCE: Final = 32
_MAX_DATA: Final = 8 * 1024 * 1024


@app.command("list", rich_help_panel=_LOOK)
def list_channels(
    pattern: Annotated[
        str, typer.Option(help="Only channels that match: * is one token, > is the rest.")
    ] = ">",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The maximum number.")] = 100,
    json: Json = False,
) -> None:
    """List the channels that have subscribed clients or stored messages.

    Example: eventbus subjects list --pattern 'orders.>'
    """
    rows, more = run(_list(pattern, limit))
    if json:
        write_json({"channels": rows, "truncated": more})
        return
    columns = ("channel", "connections", "stored", "kind", "last message")
    print_table(
        columns,
        [
            [
                row["channel"], f"{row['connections']:,}",
                "?" if row["stored"] is None else f"{row['stored']:,}", row["kind"] or "?",
                row["last_message"] or "",
            ]
            for row in rows
        ],
        empty="no channel has subscribed clients or stored messages",
        right=("connections", "stored", "last message"),
        whole=("channel",),
    )  # fmt: skip
    if more:
        say("… there are more: see --limit")


async def _list(pattern: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
    from eventbus.cluster import ListQuery  # noqa: PLC0415

    matching = Pattern(pattern)
    async with opened_bus() as bus:
        cluster = await bus.cluster()
        subscribed = await cluster.channels(ListQuery(pattern=pattern, limit=limit))
        stored = await _stored(bus, matching, limit + 1)
        kinds: dict[str, Any] = {each.channel: each for each in subscribed.channels}
        names = [*kinds, *sorted((stored or {}).keys() - kinds.keys())]
        gate = asyncio.Semaphore(_READS_AT_ONCE)

        async def row(name: str) -> dict[str, Any]:
            known = kinds.get(name)
            async with gate:
                kind = known.kind if known else await _kind(cluster, name) if kinds_known else None
                return {
                    "channel": name,
                    "kind": kind,
                    "connections": known.connections if known else 0,
                    "stored": None if stored is None else stored.get(name, 0),
                    "last_message": await _last(bus, name),
                }

        kinds_known = bool(names) and await _kind(cluster, names[-1]) is not None
        rows = await asyncio.gather(*map(row, names[:limit]))
        return list(rows), subscribed.truncated or len(names) > limit


async def _kind(cluster: Any, channel: str) -> ChannelKind | None:
    """The channel's kind according to the nodes' rules; None if no node replies."""
    rules = await cluster.rules(channel)
    return rules.nodes[0].kind if rules.nodes else None


async def _stored(bus: EventBus, matching: Pattern, limit: int) -> dict[str, int] | None:
    """The number of stored messages of each channel; None if the driver cannot report it."""
    if Capability.MAINTENANCE not in bus.driver.capabilities:
        return None
    driver = cast(MaintenanceDriver, bus.driver)
    counts = await driver.stored(bus.subjects.live_filter(matching), limit)
    return {bus.subjects.channel_of(subject): count for subject, count in counts.items()}


async def _last(bus: EventBus, channel: str) -> str | None:
    """When the last message was stored, as RFC 3339 with seconds."""
    if Capability.HISTORY not in bus.driver.capabilities:
        return None
    reader = cast(HistoryDriver, bus.driver)
    page = await reader.read(bus.subjects.live(channel), after=None, limit=1)
    time = page.messages[-1].time if page.messages else None
    return _seconds(time) if time else None


def _seconds(time: str) -> str:
    """A time in RFC 3339, without fractions of a second."""
    return f"{time[:19]}Z"


@app.command("inspect", rich_help_panel=_LOOK)
def inspect(channel: Channel, json: Json = False) -> None:
    """Show a channel's rule, who can subscribe, its stored messages, connections and members.

    Example: eventbus subjects inspect chat.7
    """
    found = run(_inspect(channel))
    if json:
        write_json(found)
        return
    history, rules = found["history"], found["rules"]
    lines: list[tuple[str, str]] = [("channel", channel)]
    for rule in rules:
        lines += [
            ("rule", f"{rule.pattern}  ({rule.kind.value})"),
            ("can join", "; ".join(rule.join)),
            ("can whisper", "; ".join(rule.whisper) or "nobody"),
        ]
    if not rules:
        lines.append(("rule", "unknown: no edge node replied"))
    if history is None:
        lines.append(("stored", "nothing: the driver has no history"))
    else:
        count = history["messages"]
        stored = "?" if count is None else counted(count, "message")
        if history["oldest"]:
            stored += f", {_seconds(history['oldest'])} to {_seconds(history['newest'])}"
        lines += [("stored", stored), ("offset", f"{history['offset']} (epoch {history['epoch']})")]
    nodes = [(name, count) for name, count in found["nodes"].items() if count]
    lines.append(("connections", f"{found['connections']:,}"))
    lines += [("node", f"{name}: {count:,}") for name, count in nodes]
    if found["members"] is not None:
        lines.append(("members", f"{found['member_count']:,}"))
        lines += [("", f"{member.user_id}") for member in found["members"][:20]]
    if found["missing"]:
        lines.append(("missing", ", ".join(found["missing"])))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        say(f"{name:<{width}}  {printable(text)}".rstrip())


async def _inspect(channel: str) -> dict[str, Any]:
    validate_channel(channel)
    async with opened_bus() as bus:
        cluster = await bus.cluster()
        rules = await cluster.rules(channel)
        different: dict[Any, Any] = {}
        for node in rules.nodes:
            key = (node.pattern, node.kind, *node.join, *node.whisper)
            different.setdefault(key, node)
        members = None
        is_presence = any(node.kind is ChannelKind.PRESENCE for node in rules.nodes)
        if is_presence:
            members = (await bus.members(channel)).members
        return {
            "channel": channel,
            "rules": list(different.values()),
            "history": await _history(bus, channel),
            "connections": sum(node.connections for node in rules.nodes),
            "nodes": {node.node: node.connections for node in rules.nodes},
            "members": members,
            "member_count": None if members is None else len(members),
            "missing": rules.missing,
        }


async def _history(bus: EventBus, channel: str) -> dict[str, Any] | None:
    if Capability.HISTORY not in bus.driver.capabilities:
        return None
    reader, live = cast(HistoryDriver, bus.driver), bus.subjects.live(channel)
    newest = await reader.read(live, after=None, limit=1)
    oldest = await reader.read(live, after=0, limit=1)
    counts = await _stored(bus, Pattern(channel), 1)
    # The end of a stream of all channels is another channel's message, or a node's probe.
    own = newest.messages[-1].position if newest.messages else None
    end = own or newest.position
    return {
        "messages": None if counts is None else counts.get(channel, 0),
        "oldest": oldest.messages[0].time if oldest.messages else None,
        "newest": newest.messages[0].time if newest.messages else None,
        "offset": end.offset,
        "epoch": end.epoch,
    }


app.command("tail", rich_help_panel=_LOOK)(tail.tail)


@app.command("publish", rich_help_panel=_CHANGE)
def publish(
    channel: Channel,
    event: Annotated[str, typer.Argument(help="The event's name.", autocompletion=complete_events)],
    data: Annotated[str, typer.Argument(help="The data as JSON; - reads it from stdin.")] = "{}",
    volatile: Annotated[
        bool, typer.Option("--volatile", help="Do not store it: only current subscribers get it.")
    ] = False,
    message_id: Annotated[
        str | None,
        typer.Option("--id", help="The message's id. Messages with the same id are stored once."),
    ] = None,
    json: Json = False,
) -> None:
    """Publish one message.

    Example: eventbus subjects publish orders.42 order.shipped '{"carrier":"DHL"}'
    """
    if data == "-":
        text = sys.stdin.read(_MAX_DATA + 1)
        if len(text) > _MAX_DATA:
            fail(f"stdin: the data has more than {_MAX_DATA:,} characters", code=2)
        body = read_json(text, "stdin")
    else:
        body = read_json(data, "DATA")

    async def send() -> Any:
        validate_channel(channel)
        validate_event_name(event)
        async with opened_bus() as bus:
            return await bus.publish(channel, event, body, volatile=volatile, id=message_id)

    receipt = run(send())
    if json:
        write_json(
            {
                "channel": channel,
                "id": receipt.id,
                "offset": receipt.offset,
                "epoch": receipt.epoch,
                "duplicate": receipt.duplicate,
            }
        )
        return
    at = "not stored" if receipt.offset is None else f"offset {receipt.offset}"
    again = ", already stored" if receipt.duplicate else ""
    say(f"published {event} on {channel}: {at}{again}, id {receipt.id}")


@app.command("purge", rich_help_panel=_CHANGE)
def purge(
    channel: Channel,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: Json = False,
) -> None:
    """Delete the stored messages of a channel.

    The channel's offsets are not reset. Clients that resume are notified if they missed messages.

    Example: eventbus subjects purge orders.42 --yes
    """

    async def remove() -> int:
        async with opened_bus() as bus:
            _require_maintenance(bus)
            return await cast(MaintenanceDriver, bus.driver).purge(bus.subjects.live(channel))

    async def check() -> None:
        validate_channel(channel)

    run(check())
    if not yes:
        typer.confirm(f"Delete all stored messages of {channel}?", abort=True, err=True)
    count = run(remove())
    if json:
        write_json({"channel": channel, "purged": count})
    else:
        say(f"deleted {counted(count, 'message')} of {channel}")


def _require_maintenance(bus: EventBus) -> None:
    if Capability.MAINTENANCE not in bus.driver.capabilities:
        raise NotSupported(
            f"the driver {bus.driver.name} cannot purge; nats and redis can",
            driver=bus.driver.name,
        )
