"""`eventbus subjects tail`: shows the messages of channels as they arrive."""

import asyncio
import contextlib
import datetime
import operator
from collections.abc import (
    AsyncGenerator,
    Mapping,
)
from typing import (
    Annotated,
    Any,
    Final,
    NamedTuple,
    cast,
)

import msgspec
import typer

from eventbus.bus import EventBus
from eventbus.channels import Pattern
from eventbus.cli.completion import complete_channels
from eventbus.cli.durations import duration
from eventbus.cli.output import Json, console, fail, say, write_json
from eventbus.cli.running import (
    Apps,
    interrupted,
    opened_bus,
    require_application,
    run,
)
from eventbus.cli.subjects.json_text import shown_json
from eventbus.contracts import catalogue, channel_contracts
from eventbus.drivers import Capability, Delivery, HistoryDriver, MaintenanceDriver, Position
from eventbus.errors import (
    InvalidChannel,
    InvalidPayload,
)
from eventbus.events import read_delivery
from eventbus.messages import json_decoder
from eventbus.user_code import printable

__all__ = ["tail"]


MAX_WAITING: Final = 10_000
"""Messages waiting to be printed. More are dropped and counted."""
MAX_CHANNELS: Final = 1000
"""Channels of a pattern whose stored messages are read, at most."""
_MAX_STORED: Final = 10_000


class _Body(msgspec.Struct):
    data: msgspec.Raw
    timestamp: str


_decode_body: Final = json_decoder(_Body)


class Line(NamedTuple):
    """One message of the output."""

    channel: str
    event: str
    data: msgspec.Raw | str
    """The JSON as it was published. Decoded, it could be out of the range of Python's numbers."""
    timestamp: str
    id: str | None
    offset: int | None
    fault: str | None
    """Why the payload is not a message. `data` is then the payload as text."""
    schema: str | None = None
    """With --decode: the type that the data was decoded as; None for an unknown event."""
    mismatch: str | None = None
    """Why the data does not match the type."""


def tail(
    pattern: Annotated[
        str,
        typer.Argument(
            help="A channel or a pattern: * is one token, > is the rest.",
            autocompletion=complete_channels,
        ),
    ],
    since: Annotated[
        str | None,
        typer.Option(
            help="Start with the stored messages of the last 90s, 10m or 2h, for example."
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(min=1, max=_MAX_STORED, help="Start with this many stored messages."),
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Check the data against the event's type.")
    ] = False,
    application: Apps = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after this many messages.")] = None,
    json: Json = False,
) -> None:
    """Show messages as they arrive, until Ctrl-C.

    With --since or --last, show stored messages first. With --json, print one line per message.

    Example: eventbus subjects tail 'orders.*' --since 10m --decode --app shop.events
    """
    if since is not None and last is not None:
        fail("--since and --last cannot be combined", code=2)
    begin = None
    if since is not None:
        age = datetime.timedelta(seconds=duration(since, "--since"))
        begin = datetime.datetime.now(datetime.UTC) - age
    types: dict[str, Any] | None = None
    if decode:
        require_application(application)
        types = {each.name: each.data for each in channel_contracts(catalogue())}
    run(_tail(pattern, begin, last, types, count, json=json))


async def _tail(
    pattern: str,
    begin: datetime.datetime | None,
    last: int | None,
    types: Mapping[str, Any] | None,
    count: int | None,
    *,
    json: bool,
) -> None:
    matching = Pattern(pattern)
    shown = 0
    async with opened_bus() as bus:
        stored = begin is not None or last is not None
        if stored and Capability.HISTORY not in bus.driver.capabilities:
            fail(f"the driver {bus.driver.name} has no history: do not use --since or --last")
        with interrupted() as stop:
            async with contextlib.aclosing(
                _deliveries(bus, matching, begin, last, stop)
            ) as passing:
                async for delivery in passing:
                    line = _line(bus, delivery, types)
                    if line is None:
                        continue
                    _show(line, json=json)
                    shown += 1
                    if shown == count:
                        return


async def _deliveries(
    bus: EventBus,
    matching: Pattern,
    begin: datetime.datetime | None,
    last: int | None,
    stop: asyncio.Event,
) -> AsyncGenerator[Delivery, None]:
    """Yield the requested stored messages, and then new ones. No message comes twice."""
    waiting: asyncio.Queue[Delivery] = asyncio.Queue(MAX_WAITING)
    dropped = 0

    def receive(delivery: Delivery) -> None:
        nonlocal dropped
        try:
            waiting.put_nowait(delivery)
        except asyncio.QueueFull:
            dropped += 1

    subscription = await bus.driver.subscribe(bus.subjects.live_filter(matching), receive)
    stopping = asyncio.create_task(stop.wait())
    try:
        shown: dict[str, Position] = {}
        if begin is not None or last is not None:
            for delivery in await _stored(bus, matching, begin, last):
                if delivery.position is not None:
                    shown[delivery.subject] = delivery.position
                yield delivery
        while not stop.is_set():
            receiving = asyncio.create_task(waiting.get())
            await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                receiving.cancel()
                return
            delivery = receiving.result()
            if not _is_shown(delivery.position, shown.get(delivery.subject)):
                yield delivery
            if dropped:
                say(f"… {dropped:,} messages dropped: they arrived too fast", err=True)
                dropped = 0
    finally:
        stopping.cancel()
        await subscription.aclose()


def _is_shown(position: Position | None, last: Position | None) -> bool:
    """Whether a live message was among the stored ones of its channel, whose last is given."""
    if position is None or last is None or position.epoch != last.epoch:
        return False  # a volatile message, or one of a stream that was created again
    return position.offset <= last.offset


async def _stored(
    bus: EventBus, matching: Pattern, begin: datetime.datetime | None, last: int | None
) -> list[Delivery]:
    """Read stored messages, in the order in which they were stored."""
    reader = cast(HistoryDriver, bus.driver)
    live = bus.subjects.live_filter(matching)
    subjects = [live]
    if not matching.is_exact:
        if Capability.MAINTENANCE not in bus.driver.capabilities:
            fail(
                f"the driver {bus.driver.name} cannot list stored channels: use the name of a "
                "channel instead of a pattern"
            )
        driver = cast(MaintenanceDriver, bus.driver)
        subjects = list(await driver.stored(live, MAX_CHANNELS))
        if len(subjects) == MAX_CHANNELS:
            say(f"… more than {MAX_CHANNELS:,} channels match: some are left out", err=True)
    found: list[tuple[datetime.datetime, int, Delivery]] = []
    for subject in subjects:
        page = await reader.read(subject, after=None, limit=last or _MAX_STORED)
        for delivery in page.messages:
            assert delivery.position is not None
            stored = datetime.datetime.fromisoformat(delivery.time or "")
            if begin is None or stored >= begin:
                found.append((stored, delivery.position.offset, delivery))
    found.sort(key=operator.itemgetter(0, 1))
    return [delivery for _, _, delivery in (found[-last:] if last else found)]


def _line(bus: EventBus, delivery: Delivery, types: Mapping[str, Any] | None) -> Line | None:
    try:
        channel = bus.subjects.channel_of(delivery.subject)
    except InvalidChannel:
        return None  # publishers can choose any subject, but clients never get this one
    offset = delivery.position.offset if delivery.position else None
    try:
        envelope = read_delivery(channel, delivery)
    except InvalidPayload as exc:
        text = delivery.payload[:1000].decode(errors="replace")
        return Line(channel, "?", text, delivery.time or "", None, offset, str(exc))
    body = _decode_body(envelope.body)
    line = Line(channel, envelope.event, body.data, body.timestamp, envelope.id, offset, None)
    if types is None or (type_ := types.get(envelope.event)) is None:
        return line
    name = getattr(type_, "__name__", str(type_))
    try:
        json_decoder(type_)(body.data)
    except (ValueError, TypeError, RecursionError) as exc:  # msgspec's are ValueErrors
        return line._replace(schema=name, mismatch=str(exc))
    return line._replace(schema=name)


def _show(line: Line, *, json: bool) -> None:
    if json:
        write_json(line._asdict(), indent=False)
        return
    from rich.text import Text  # noqa: PLC0415

    text = Text()
    text.append(printable(line.timestamp[11:23]) or "-", style="dim")
    text.append(f" {line.channel}", style="bold")
    text.append(f" {printable(line.event)}", style="cyan")
    if line.offset is not None:
        text.append(f" #{line.offset}", style="dim")
    text.append(" ")
    raw = line.data if isinstance(line.data, str) else bytes(line.data).decode()
    text.append_text(Text(printable(raw)) if line.fault is not None else shown_json(raw))
    if line.fault is not None:
        text.append(f"\n  not a message: {printable(line.fault)}", style="red")
    if line.mismatch is not None:
        text.append(f"\n  does not match {line.schema}: {printable(line.mismatch)}", style="red")
    elif line.schema is not None:
        text.append(f"  {line.schema}", style="green")
    console().print(text, soft_wrap=True)
