"""`eventbus subjects`: channels as the bus has them: what is stored, who hears it, what passes."""

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
from eventbus.cli.asking import asking
from eventbus.cli.output import (
    Json,
    counted,
    fail,
    print_table,
    write_json,
)
from eventbus.cli.running import (
    opened_bus,
    read_json,
    run,
)
from eventbus.cli.subjects import tail
from eventbus.drivers.base import (
    Capability,
    HistoryDriver,
    MaintenanceDriver,
)
from eventbus.drivers.state import StateDriver
from eventbus.errors import NotSupported
from eventbus.messages import validate_event_name

__all__ = ["app"]


app = typer.Typer(help="Look at channels, and look after what is stored.", no_args_is_help=True)
app.command("tail")(tail.tail)

Channel = Annotated[str, typer.Argument(help="A channel's name.")]
_READS_AT_ONCE: Final = 32
_MAX_DATA: Final = 8 * 1024 * 1024


@app.command("list")
def list_channels(
    pattern: Annotated[
        str, typer.Option(help="Only channels that match: * one token, > the rest.")
    ] = ">",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    json: Json = False,
) -> None:
    """List the channels that clients hear, or that have stored messages.

    Example: eventbus subjects list --pattern 'orders.>'
    """
    rows, more = run(_list(pattern, limit))
    if json:
        write_json({"channels": rows, "truncated": more})
        return
    columns = ("channel", "kind", "connections", "stored", "last message")
    print_table(
        columns,
        [
            [
                row["channel"], row["kind"] or "?", f"{row['connections']:,}",
                "?" if row["stored"] is None else f"{row['stored']:,}", row["last_message"] or "",
            ]
            for row in rows
        ],
        empty="no channel is heard, and none has stored messages",
        right=("connections", "stored"),
    )  # fmt: skip
    if more:
        typer.echo("… there are more: see --limit")


async def _list(pattern: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
    from eventbus_edge.cluster.answers import ListQuery  # noqa: PLC0415

    wanted = Pattern(pattern)
    async with asking() as (bus, asked):
        heard = await asked.channels(ListQuery(pattern=pattern, limit=limit))
        stored = await _stored(bus, wanted, limit + 1)
        kinds: dict[str, Any] = {each.channel: each for each in heard.channels}
        names = [*kinds, *sorted((stored or {}).keys() - kinds.keys())]
        gate = asyncio.Semaphore(_READS_AT_ONCE)

        async def row(name: str) -> dict[str, Any]:
            known = kinds.get(name)
            async with gate:
                kind = known.kind if known else await _kind(asked, name) if kinds_known else None
                return {
                    "channel": name,
                    "kind": kind,
                    "connections": known.connections if known else 0,
                    "stored": None if stored is None else stored.get(name, 0),
                    "last_message": await _last(bus, name),
                }

        kinds_known = bool(names) and await _kind(asked, names[-1]) is not None
        rows = await asyncio.gather(*map(row, names[:limit]))
        return list(rows), heard.truncated or len(names) > limit


async def _kind(asked: Any, channel: str) -> ChannelKind | None:
    """By the nodes' rules; None when no node answers."""
    told = await asked.rules(channel)
    return told.nodes[0].kind if told.nodes else None


async def _stored(bus: EventBus, wanted: Pattern, limit: int) -> dict[str, int] | None:
    """How many messages channels have stored; None where the driver does not tell."""
    if Capability.MAINTENANCE not in bus.driver.capabilities:
        return None
    keeper = cast(MaintenanceDriver, bus.driver)
    counts = await keeper.stored(bus.subjects.live_filter(wanted), limit)
    return {bus.subjects.channel_of(subject): count for subject, count in counts.items()}


async def _last(bus: EventBus, channel: str) -> str | None:
    """When the last message was stored, RFC 3339 to the second."""
    if Capability.HISTORY not in bus.driver.capabilities:
        return None
    reader = cast(HistoryDriver, bus.driver)
    page = await reader.read(bus.subjects.live(channel), after=None, limit=1)
    time = page.messages[-1].time if page.messages else None
    return f"{time[:19]}Z" if time else None


@app.command("inspect")
def inspect(channel: Channel, json: Json = False) -> None:
    """Show what holds for a channel: its rule, who may join, what is stored, who is there.

    Example: eventbus subjects inspect chat.7
    """
    told = run(_inspect(channel))
    if json:
        write_json(told)
        return
    history, rules = told["history"], told["rules"]
    lines: list[tuple[str, str]] = [("channel", channel)]
    for rule in rules:
        lines += [
            ("rule", f"{rule.pattern}  ({rule.kind.value})"),
            ("may join", "; ".join(rule.join)),
            ("may whisper", "; ".join(rule.whisper) or "nobody"),
        ]
    if not rules:
        lines.append(("rule", "unknown: no edge node has answered"))
    if history is None:
        lines.append(("stored", "nothing: the driver keeps no history"))
    else:
        count = history["messages"]
        kept = "?" if count is None else counted(count, "message")
        if history["oldest"]:
            kept += f", {history['oldest']} to {history['newest']}"
        lines += [("stored", kept), ("offset", f"{history['offset']} (epoch {history['epoch']})")]
    nodes = [(name, count) for name, count in told["nodes"].items() if count]
    lines.append(("connections", f"{told['connections']:,}"))
    lines += [("node", f"{name}: {count:,}") for name, count in nodes]
    if told["members"] is not None:
        lines.append(("members", f"{told['member_count']:,}"))
        lines += [("", f"{member['user_id']}") for member in told["members"][:20]]
    if told["missing"]:
        lines.append(("missing", ", ".join(told["missing"])))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}".rstrip())


async def _inspect(channel: str) -> dict[str, Any]:
    validate_channel(channel)
    async with asking() as (bus, asked):
        rules = await asked.rules(channel)
        different: dict[Any, Any] = {}
        for told in rules.nodes:
            key = (told.pattern, told.kind, *told.join, *told.whisper)
            different.setdefault(key, told)
        members = None
        is_presence = any(told.kind is ChannelKind.PRESENCE for told in rules.nodes)
        if is_presence and Capability.PRESENCE in bus.driver.capabilities:
            from eventbus_edge.presence.watch import read_members  # noqa: PLC0415

            members = await read_members(cast(StateDriver, bus.driver), channel)
        return {
            "channel": channel,
            "rules": list(different.values()),
            "history": await _history(bus, channel),
            "connections": sum(told.connections for told in rules.nodes),
            "nodes": {told.node: told.connections for told in rules.nodes},
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
    return {
        "messages": None if counts is None else counts.get(channel, 0),
        "oldest": oldest.messages[0].time if oldest.messages else None,
        "newest": newest.messages[0].time if newest.messages else None,
        "offset": newest.position.offset,
        "epoch": newest.position.epoch,
    }


@app.command("publish")
def publish(
    channel: Channel,
    event: Annotated[str, typer.Argument(help="The event's name.")],
    data: Annotated[str, typer.Argument(help="The data, as JSON; - reads it from stdin.")] = "{}",
    volatile: Annotated[
        bool, typer.Option("--volatile", help="Only to who listens now: it is not stored.")
    ] = False,
    message_id: Annotated[
        str | None, typer.Option("--id", help="An id: a second message of it is not stored.")
    ] = None,
    json: Json = False,
) -> None:
    """Publish one message.

    Example: eventbus subjects publish orders.42 order.shipped '{"carrier":"DHL"}'
    """
    if data == "-":
        text = sys.stdin.read(_MAX_DATA + 1)
        if len(text) > _MAX_DATA:
            fail(f"stdin: more than {_MAX_DATA:,} characters", code=2)
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
        told = {"channel": channel, "id": receipt.id, "offset": receipt.offset,
                "epoch": receipt.epoch, "duplicate": receipt.duplicate}  # fmt: skip
        write_json(told)
        return
    at = "not stored" if receipt.offset is None else f"offset {receipt.offset}"
    again = ", stored before" if receipt.duplicate else ""
    typer.echo(f"published {event} on {channel}: {at}{again}, id {receipt.id}")


@app.command("purge")
def purge(
    channel: Channel,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Remove what is stored of a channel.

    Its offsets go on. Clients that come back and have missed something by it are told so.

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
        typer.confirm(f"Remove all stored messages of {channel}?", abort=True, err=True)
    count = run(remove())
    if json:
        write_json({"channel": channel, "purged": count})
    else:
        typer.echo(f"removed {counted(count, 'message')} of {channel}")


def _require_maintenance(bus: EventBus) -> None:
    if Capability.MAINTENANCE not in bus.driver.capabilities:
        raise NotSupported(
            f"the driver {bus.driver.name} cannot purge: nats and redis can",
            driver=bus.driver.name,
        )
