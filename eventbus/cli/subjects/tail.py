"""`eventbus subjects tail`: the messages of channels as they pass."""

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
from eventbus.cli.output import (
    Json,
    console,
    fail,
    write_json,
)
from eventbus.cli.running import (
    Apps,
    interrupted,
    opened_bus,
    require_application,
    run,
)
from eventbus.cli.subjects.json_text import shown_json
from eventbus.cli.tokens.revoke import duration
from eventbus.contracts.catalogue import (
    catalogue,
    shared,
)
from eventbus.drivers.base import (
    Capability,
    Delivery,
    HistoryDriver,
    MaintenanceDriver,
)
from eventbus.errors import (
    InvalidChannel,
    InvalidPayload,
)
from eventbus.events import read_delivery

__all__ = ["tail"]


MAX_WAITING: Final = 10_000
"""Messages that wait to be printed; those beyond are dropped, and counted."""
MAX_CHANNELS: Final = 1000
"""Channels of a pattern whose stored messages are read."""
_MAX_STORED: Final = 10_000


class Line(NamedTuple):
    """One message as it is shown."""

    channel: str
    event: str
    data: Any
    timestamp: str
    id: str | None
    offset: int | None
    fault: str | None
    """Why the payload is no message; then its data is the payload as text."""
    schema: str | None = None
    """The event type that was looked for, with --decode; None for an event that has none."""
    mismatch: str | None = None
    """What does not match it."""


def tail(
    pattern: Annotated[
        str, typer.Argument(help="A channel, or a pattern: * one token, > the rest.")
    ],
    since: Annotated[
        str | None, typer.Option(help="Begin with what was stored since then: 90s, 10m, 2h.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, max=_MAX_STORED, help="Begin with the last so many.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Name the event type, and what does not match it.")
    ] = False,
    application: Apps = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after as many messages.")] = None,
    json: Json = False,
) -> None:
    """Show messages as they pass, until Ctrl-C; what is stored first, if asked.

    With --json, a line for each message.

    Example: eventbus subjects tail 'orders.*' --since 10m --decode --app shop.events
    """
    if since is not None and last is not None:
        fail("give either --since or --last", code=2)
    begin = None
    if since is not None:
        age = datetime.timedelta(seconds=duration(since, "--since"))
        begin = datetime.datetime.now(datetime.UTC) - age
    types: dict[str, Any] | None = None
    if decode:
        require_application(application)
        types = {each.name: each.data for each in shared(catalogue())}
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
    wanted = Pattern(pattern)
    shown = 0
    async with opened_bus() as bus:
        stored = begin is not None or last is not None
        if stored and Capability.HISTORY not in bus.driver.capabilities:
            fail(f"the driver {bus.driver.name} keeps no history: leave out --since and --last")
        with interrupted() as stop:
            async with contextlib.aclosing(_deliveries(bus, wanted, begin, last, stop)) as passing:
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
    wanted: Pattern,
    begin: datetime.datetime | None,
    last: int | None,
    stop: asyncio.Event,
) -> AsyncGenerator[Delivery, None]:
    """What is stored, as asked, then what comes: each message once."""
    waiting: asyncio.Queue[Delivery] = asyncio.Queue(MAX_WAITING)
    dropped = 0

    def receive(delivery: Delivery) -> None:
        nonlocal dropped
        try:
            waiting.put_nowait(delivery)
        except asyncio.QueueFull:
            dropped += 1

    subscription = await bus.driver.subscribe(bus.subjects.live_filter(wanted), receive)
    stopping = asyncio.create_task(stop.wait())
    try:
        seen: dict[str, int] = {}
        if begin is not None or last is not None:
            for delivery in await _stored(bus, wanted, begin, last):
                if delivery.position is not None:
                    seen[delivery.subject] = delivery.position.offset
                yield delivery
        while not stop.is_set():
            coming = asyncio.create_task(waiting.get())
            await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return
            delivery = coming.result()
            position = delivery.position
            if position is None or position.offset > seen.get(delivery.subject, 0):
                yield delivery
            if dropped:
                typer.echo(f"… {dropped:,} messages were too many to show", err=True)
                dropped = 0
    finally:
        stopping.cancel()
        await subscription.aclose()


async def _stored(
    bus: EventBus, wanted: Pattern, begin: datetime.datetime | None, last: int | None
) -> list[Delivery]:
    """Stored messages in the order in which they were stored."""
    reader = cast(HistoryDriver, bus.driver)
    live = bus.subjects.live_filter(wanted)
    subjects = [live]
    if not wanted.is_exact:
        if Capability.MAINTENANCE not in bus.driver.capabilities:
            fail(f"the driver {bus.driver.name} tells no stored channels: name one exactly")
        keeper = cast(MaintenanceDriver, bus.driver)
        subjects = list(await keeper.stored(live, MAX_CHANNELS))
        if len(subjects) == MAX_CHANNELS:
            typer.echo(f"… of more than {MAX_CHANNELS:,} channels, some are left out", err=True)
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
        return None  # whoever may publish may choose any subject: it reaches no client
    offset = delivery.position.offset if delivery.position else None
    try:
        envelope = read_delivery(channel, delivery)
    except InvalidPayload as exc:
        text = delivery.payload[:1000].decode(errors="replace")
        return Line(channel, "?", text, delivery.time or "", None, offset, str(exc))
    body = msgspec.json.decode(envelope.body)
    made = Line(channel, envelope.event, body["data"], body["timestamp"], envelope.id, offset, None)
    if types is None or (type_ := types.get(envelope.event)) is None:
        return made
    name = getattr(type_, "__name__", str(type_))
    try:
        msgspec.convert(body["data"], type_)
    except (msgspec.ValidationError, ValueError, TypeError) as exc:
        return made._replace(schema=name, mismatch=str(exc))
    return made._replace(schema=name)


def _show(line: Line, *, json: bool) -> None:
    if json:
        write_json(line._asdict(), indent=False)
        return
    from rich.text import Text  # noqa: PLC0415

    text = Text()
    text.append(line.timestamp[11:23] or "-", style="dim")
    text.append(f" {line.channel}", style="bold")
    text.append(f" {line.event}", style="cyan")
    if line.offset is not None:
        text.append(f" #{line.offset}", style="dim")
    text.append(" ")
    text.append_text(shown_json(line.data))
    if line.fault is not None:
        text.append(f"\n  no message: {line.fault}", style="red")
    if line.mismatch is not None:
        text.append(f"\n  does not match {line.schema}: {line.mismatch}", style="red")
    elif line.schema is not None:
        text.append(f"  {line.schema}", style="green")
    console().print(text, soft_wrap=True)
