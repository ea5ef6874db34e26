"""`eventbus broadcast`: publish to the cluster, and see who listens."""

import contextlib
import time
from typing import (
    Annotated,
    Any,
    Final,
)

import typer

from eventbus.broadcasting import AlertLevel
from eventbus.channels import (
    Pattern,
    validate_channel,
)
from eventbus.cli import edge as nodes
from eventbus.cli.asking import (
    asking,
    inquiry,
    no_edge,
)
from eventbus.cli.broadcast import (
    monitor,
    ping,
)
from eventbus.cli.output import (
    Json,
    counted,
    fail,
    print_table,
    span,
    write_json,
)
from eventbus.cli.running import (
    opened_bus,
    read_json,
    run,
)
from eventbus.events import Event
from eventbus.messages import Receipt, validate_event_name

__all__ = ["app"]


app = typer.Typer(help="Publish, and see who listens, on all nodes.", no_args_is_help=True)

_GREETING: Final = "A test message from the command line"


@app.command("test")
def send_test(
    channel: Annotated[str, typer.Option(help="Where to publish.")] = "general",
    message: Annotated[str, typer.Option(help="The text of the data's `message`.")] = _GREETING,
    event: Annotated[str, typer.Option(help="The event's name.")] = "test",
    data: Annotated[str, typer.Option(help="JSON in place of the message.")] = "",
    url: Annotated[
        str, typer.Option(help="An edge's address; by default one that a node tells.")
    ] = "",
    token: Annotated[
        str,
        typer.Option(envvar="EVENTBUS_TOKEN", help="A token, for channels that are not public."),
    ] = "",
    json: Json = False,
) -> None:
    """Publish a message, and wait until it comes back through an edge's WebSocket.

    Without an edge it says what the bus has made of it.

    Example: eventbus broadcast test --channel general --message "Hello"
    """
    body = read_json(data, "--data") if data else {"message": message}
    validated = run(_test(channel, event, body, url, token))
    if json:
        write_json(validated)
        return
    at = "not stored" if validated["offset"] is None else f"offset {validated['offset']}"
    typer.echo(f"published {event} on {channel}: {at}, taken in {validated['publish_ms']:.1f} ms")
    if validated["edge"] is None:
        typer.echo(f"not seen by a client: {validated['why']}")
    else:
        typer.secho(
            f"came back through {validated['edge']} after {validated['delivery_ms']:.1f} ms",
            fg=typer.colors.GREEN,
        )


async def _test(channel: str, event: str, data: Any, url: str, token: str) -> dict[str, Any]:
    from eventbus.cli.broadcast.probe import EdgeRefused, probing  # noqa: PLC0415

    validate_channel(channel)
    validate_event_name(event)
    async with opened_bus() as bus, contextlib.AsyncExitStack() as stack:
        urls, why, probe = [url], "", None
        if not url:
            async with inquiry(bus) as asked:
                urls, why = await _known_edges(asked)
        for number, address in enumerate(urls, 1):
            try:
                probe = await stack.enter_async_context(probing(address, channel, token))
                break
            except EdgeRefused as exc:
                if number == len(urls):
                    raise EdgeRefused(f"{exc}. Nothing was published") from exc
        began = time.perf_counter()
        receipt = await bus.publish(channel, event, data)
        taken = time.perf_counter() - began
        seen = None if probe is None else await probe.wait_for(receipt.id) - began
        return {
            **_told(receipt),
            "publish_ms": round(taken * 1000, 3),
            "edge": probe.url if probe else None,
            "delivery_ms": None if seen is None else round(seen * 1000, 3),
            "why": why or None,
        }


async def _known_edges(asked: Any) -> tuple[list[str], str]:
    from eventbus.cli.broadcast.probe import addresses_of  # noqa: PLC0415
    from eventbus_edge.cluster.answers import ListQuery  # noqa: PLC0415

    stats = await asked.stats(ListQuery(limit=1))
    if not stats.nodes:
        return [], "no edge node has answered (start one with `eventbus edge run`)"
    urls = addresses_of(stats.nodes)
    return urls, "" if urls else "no edge node tells its address (give one by --url)"


@app.command("websocket")
def websocket(
    host: nodes.Host = None,
    port: nodes.Port = None,
    workers: nodes.Workers = None,
    app: nodes.App = None,
) -> None:
    """Run an edge node: the same as `eventbus edge run`.

    Example: NATS_URL=nats://127.0.0.1:4222 eventbus broadcast websocket --port 8080
    """
    nodes.run(host, port, workers, app)


@app.command("stats")
def stats(json: Json = False) -> None:
    """Show the nodes of the cluster, and what they have carried since they were started.

    Example: eventbus broadcast stats --json
    """
    told = run(_stats())
    if json:
        write_json(told)
        return
    columns = ("node", "address", "up", "connections", "channels", "in", "out")
    rows: list[list[object]] = [
        [
            node.id, node.address or "?", span(node.uptime_s), f"{node.connections:,}",
            f"{node.channels:,}", f"{node.messages_in:,}", f"{node.messages_out:,}",
        ]
        for node in told.nodes
    ]  # fmt: skip
    print_table(columns, rows, right=columns[2:])
    more = "more than " if told.truncated else ""
    typer.echo(
        f"\n{told.driver}: {counted(len(told.nodes), 'node')}, "
        f"{counted(told.connections, 'connection')}, "
        f"{more}{counted(len(told.channels), 'channel')}, "
        f"{counted(told.messages_in, 'message')} in, {told.messages_out:,} out"
    )
    _tell_missing(told.missing)


async def _stats() -> Any:
    from eventbus_edge.cluster.answers import ListQuery  # noqa: PLC0415

    async with asking() as (bus, asked):
        told = await asked.stats(ListQuery())
        if not told.nodes:
            raise no_edge(bus)
        return told


@app.command("channels")
def channels(
    pattern: Annotated[
        str, typer.Option(help="Only channels that match: * one token, > the rest.")
    ] = ">",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    json: Json = False,
) -> None:
    """List the channels that clients hear, those with most connections first.

    Example: eventbus broadcast channels --pattern 'orders.*'
    """

    async def ask() -> Any:
        from eventbus_edge.cluster.answers import ListQuery  # noqa: PLC0415

        Pattern(pattern)
        async with asking() as (bus, asked):
            told = await asked.stats(ListQuery(pattern=pattern, limit=limit))
            if not told.nodes:
                raise no_edge(bus)
            return told

    told = run(ask())
    if json:
        listed = {"channels": told.channels, "truncated": told.truncated, "missing": told.missing}
        write_json(listed)
        return
    print_table(
        ("channel", "kind", "connections"),
        [[each.channel, each.kind.value, f"{each.connections:,}"] for each in told.channels],
        empty="no client hears a channel" + ("" if pattern == ">" else f" that matches {pattern}"),
        right=("connections",),
    )
    if told.truncated:
        typer.echo("… there are more: see --limit")
    _tell_missing(told.missing)


@app.command("notify:user")
def notify_user(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user's id.")],
    title: Annotated[str, typer.Argument(help="The notification's title.")],
    message: Annotated[str, typer.Argument(help="Its text.")],
    action_url: Annotated[str, typer.Option(help="Where the user goes from there.")] = "",
    json: Json = False,
) -> None:
    """Publish a `notification` on the user's private channel.

    Example: eventbus broadcast notify:user 42 "Order shipped" "It is on its way"
    """
    from eventbus.notifications import Notification  # noqa: PLC0415

    made = Notification(
        user_id=user_id, title=title, message=message, action_url=action_url or None
    )
    _dispatch(made, json=json)


@app.command("system:alert")
def system_alert(
    level: Annotated[AlertLevel, typer.Argument(help="How grave it is.")],
    message: Annotated[str, typer.Argument(help="The alert's text.")],
    action_required: Annotated[
        bool, typer.Option("--action-required", help="Someone has to do something.")
    ] = False,
    json: Json = False,
) -> None:
    """Publish an `alert` to every authenticated user, on the channel `system`.

    Example: eventbus broadcast system:alert warning "Maintenance at 22:00" --action-required
    """
    from eventbus.notifications import SystemAlert  # noqa: PLC0415

    _dispatch(SystemAlert(level=level, message=message, action_required=action_required), json=json)


app.command("ping")(ping.ping)
app.command("monitor")(monitor.monitor)


def _dispatch(event: Event, *, json: bool) -> None:
    async def send() -> list[dict[str, Any]]:
        async with opened_bus() as bus:
            return [_told(receipt) for receipt in await bus.dispatch(event)]

    told = run(send())
    if json:
        write_json(told[0] if len(told) == 1 else told)
        return
    for one in told:
        at = "not stored" if one["offset"] is None else f"offset {one['offset']}"
        typer.echo(f"published on {one['channel']}: {at}, id {one['id']}")


def _told(receipt: Receipt) -> dict[str, Any]:
    return {
        "channel": receipt.channel,
        "id": receipt.id,
        "offset": receipt.offset,
        "epoch": receipt.epoch,
    }


def _tell_missing(missing: list[str]) -> None:
    if missing:
        fail(f"these nodes have not answered in time: {', '.join(missing)}")
