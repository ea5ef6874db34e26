"""`eventbus broadcast`: publish to the cluster, and show its nodes and channels."""

import contextlib
import time
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Final,
)

import typer

from eventbus.broadcasting import AlertLevel
from eventbus.bus import EventBus
from eventbus.channels import (
    Pattern,
    validate_channel,
)
from eventbus.cli import edge as nodes
from eventbus.cli.broadcast import (
    monitor,
    ping,
)
from eventbus.cli.completion import complete_channels, complete_events
from eventbus.cli.output import Json, counted, fail, print_table, say, span, write_json
from eventbus.cli.running import (
    opened_bus,
    read_json,
    run,
)
from eventbus.errors import NoEdge
from eventbus.events import Event
from eventbus.messages import Receipt, validate_event_name

__all__ = ["app"]


app = typer.Typer(help="Publish messages, and show the nodes of the cluster.", no_args_is_help=True)

_PUBLISH: Final = "Publish"
_OBSERVE: Final = "Observe"
_GREETING: Final = "A test message from the command line"


@app.command("test", rich_help_panel=_PUBLISH)
def send_test(
    channel: Annotated[
        str, typer.Option(help="The channel to publish on.", autocompletion=complete_channels)
    ] = "general",
    message: Annotated[str, typer.Option(help="The value of `message` in the data.")] = _GREETING,
    event: Annotated[
        str, typer.Option(help="The event's name.", autocompletion=complete_events)
    ] = "test",
    data: Annotated[str, typer.Option(help="The data as JSON, instead of --message.")] = "",
    url: Annotated[
        str, typer.Option(help="The address of an edge. Default: ask the nodes for theirs.")
    ] = "",
    token: Annotated[
        str,
        typer.Option(envvar="EVENTBUS_TOKEN", help="A token, for channels that are not public."),
    ] = "",
    json: Json = False,
) -> None:
    """Publish a message, and wait until a WebSocket client of an edge receives it.

    If there is no edge, it only publishes the message.

    Example: eventbus broadcast test --channel general --message "Hello"
    """
    body = read_json(data, "--data") if data else {"message": message}
    result = run(_test(channel, event, body, url, token))
    if json:
        write_json(result)
        return
    at = "not stored" if result["offset"] is None else f"offset {result['offset']}"
    say(f"published {event} on {channel}: {at}, in {result['publish_ms']:.1f} ms")
    if result["edge"] is None:
        say(f"not delivered to a client: {result['why']}")
    else:
        say(
            f"delivered by {result['edge']} after {result['delivery_ms']:.1f} ms",
            fg="green",
        )


async def _test(channel: str, event: str, data: Any, url: str, token: str) -> dict[str, Any]:
    from eventbus.cli.broadcast.probe import EdgeRefused, probing  # noqa: PLC0415

    validate_channel(channel)
    validate_event_name(event)
    async with opened_bus() as bus, contextlib.AsyncExitStack() as stack:
        urls, why, probe = [url], "", None
        if not url:
            urls, why = await _known_edges(bus)
        for number, address in enumerate(urls, 1):
            try:
                probe = await stack.enter_async_context(probing(address, channel, token))
                break
            except EdgeRefused as exc:
                if number == len(urls):
                    raise EdgeRefused(f"{exc}. Nothing was published") from exc
        began = time.perf_counter()
        receipt = await bus.publish(channel, event, data)
        duration = time.perf_counter() - began
        seen = None if probe is None else await probe.wait_for(receipt.id) - began
        return {
            **_receipt_fields(receipt),
            "publish_ms": round(duration * 1000, 3),
            "edge": probe.url if probe else None,
            "delivery_ms": None if seen is None else round(seen * 1000, 3),
            "why": why or None,
        }


async def _known_edges(bus: EventBus) -> tuple[list[str], str]:
    from eventbus.cli.broadcast.probe import addresses_of  # noqa: PLC0415

    try:
        stats = await bus.stats(limit=1)
    except NoEdge:
        return [], "no edge node replied (start one with `eventbus edge run`)"
    urls = addresses_of(stats.nodes)
    return urls, "" if urls else "no edge node reports its address (use --url)"


@app.command("notify:user", rich_help_panel=_PUBLISH)
def notify_user(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user's id.")],
    title: Annotated[str, typer.Argument(help="The notification's title.")],
    message: Annotated[str, typer.Argument(help="The notification's text.")],
    action_url: Annotated[str, typer.Option(help="A link for the user to follow.")] = "",
    json: Json = False,
) -> None:
    """Publish a `notification` on the user's private channel.

    Example: eventbus broadcast notify:user 42 "Order shipped" "It is on its way"
    """
    from eventbus.notifications import Notification  # noqa: PLC0415

    notification = Notification(
        user_id=user_id, title=title, message=message, action_url=action_url or None
    )
    _dispatch(notification, json=json)


@app.command("system:alert", rich_help_panel=_PUBLISH)
def system_alert(
    level: Annotated[AlertLevel, typer.Argument(help="The alert's level.")],
    message: Annotated[str, typer.Argument(help="The alert's text.")],
    action_required: Annotated[
        bool, typer.Option("--action-required", help="Mark the alert as requiring action.")
    ] = False,
    json: Json = False,
) -> None:
    """Publish an `alert` to every authenticated user, on the channel `system`.

    Example: eventbus broadcast system:alert warning "Maintenance at 22:00" --action-required
    """
    from eventbus.notifications import SystemAlert  # noqa: PLC0415

    _dispatch(SystemAlert(level=level, message=message, action_required=action_required), json=json)


@app.command("stats", rich_help_panel=_OBSERVE)
def show_stats(json: Json = False) -> None:
    """Show the nodes of the cluster, and their connections, channels and messages.

    Example: eventbus broadcast stats --json
    """
    stats = run(_stats())
    if json:
        write_json(stats)
        return
    columns = ("node", "address", "protocols", "up", "connections", "channels", "in", "out")
    rows: list[list[object]] = [
        [
            node.id, node.address or "?", _protocols(node.protocols), span(node.uptime_s),
            f"{node.connections:,}", f"{node.channels:,}", f"{node.messages_in:,}",
            f"{node.messages_out:,}",
        ]
        for node in stats.nodes
    ]  # fmt: skip
    print_table(columns, rows, right=columns[3:], whole=("node", "address"))
    more = "more than " if stats.truncated else ""
    say(
        f"\n{stats.driver}: {counted(len(stats.nodes), 'node')}, "
        f"{counted(stats.connections, 'connection')}, "
        f"{more}{counted(len(stats.channels), 'channel')}, "
        f"{counted(stats.messages_in, 'message')} in, {stats.messages_out:,} out"
    )
    _fail_if_missing(stats.missing)


def _protocols(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "-"


async def _stats() -> Any:
    async with opened_bus() as bus:
        return await bus.stats()


@app.command("channels", rich_help_panel=_OBSERVE)
def channels(
    pattern: Annotated[
        str, typer.Option(help="Only channels that match: * is one token, > is the rest.")
    ] = ">",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The maximum number.")] = 100,
    json: Json = False,
) -> None:
    """List the channels that clients are subscribed to, by number of connections.

    Example: eventbus broadcast channels --pattern 'orders.*'
    """

    async def ask() -> Any:
        Pattern(pattern)
        async with opened_bus() as bus:
            return await bus.stats(pattern=pattern, limit=limit)

    stats = run(ask())
    if json:
        write_json(
            {"channels": stats.channels, "truncated": stats.truncated, "missing": stats.missing}
        )
        return
    print_table(
        ("channel", "connections", "kind"),
        [[each.channel, f"{each.connections:,}", each.kind.value] for each in stats.channels],
        empty="no clients are subscribed to a channel"
        + ("" if pattern == ">" else f" that matches {pattern}"),
        right=("connections",),
        whole=("channel",),
    )
    if stats.truncated:
        say("… there are more: see --limit")
    _fail_if_missing(stats.missing)


app.command("monitor", rich_help_panel=_OBSERVE)(monitor.monitor)
app.command("ping", rich_help_panel=_OBSERVE)(ping.ping)


@app.command("websocket", rich_help_panel="Run")
def websocket(
    host: nodes.Host = None,
    port: nodes.Port = None,
    workers: nodes.Workers = None,
    app: nodes.App = None,
) -> None:
    """Run an edge node. Same as `eventbus edge run`.

    Example: NATS_URL=nats://127.0.0.1:4222 eventbus broadcast websocket --port 8080
    """
    nodes.run(host, port, workers, app)


def _dispatch(event: Event, *, json: bool) -> None:
    async def send() -> list[dict[str, Any]]:
        async with opened_bus() as bus:
            return [_receipt_fields(receipt) for receipt in await bus.dispatch(event)]

    receipts = run(send())
    if json:
        write_json(receipts[0] if len(receipts) == 1 else receipts)
        return
    for one in receipts:
        at = "not stored" if one["offset"] is None else f"offset {one['offset']}"
        say(f"published on {one['channel']}: {at}, id {one['id']}")


def _receipt_fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "channel": receipt.channel,
        "id": receipt.id,
        "offset": receipt.offset,
        "epoch": receipt.epoch,
    }


def _fail_if_missing(missing: list[str]) -> None:
    if missing:
        fail(f"these nodes did not reply in time: {', '.join(missing)}")
