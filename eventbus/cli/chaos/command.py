"""`eventbus chaos`: the harmless faults, on a cluster that others use too."""

import asyncio
import contextlib
import random
import secrets
import shlex
from collections.abc import Collection, Sequence
from typing import Annotated, Final, NamedTuple, Self, cast
from urllib.parse import urlsplit

import aiohttp
import msgspec
import typer

from eventbus.bus import EventBus
from eventbus.cli.broadcast.probe import addresses_of
from eventbus.cli.chaos.ledger import Publication
from eventbus.cli.chaos.plan import Kind, Step, make_plan
from eventbus.cli.chaos.publishers import HttpSender, library_sender
from eventbus.cli.chaos.receivers import KINDS, Access
from eventbus.cli.chaos.report import Report, table
from eventbus.cli.chaos.run import Fault, Run, Scale
from eventbus.cli.chaos.workload import Workload
from eventbus.cli.durations import duration
from eventbus.cli.output import Json, counted, fail, say, write_json
from eventbus.cli.reachable import require_reachable
from eventbus.cli.running import attached, run as run_command
from eventbus.cli.secret_options import secret_of_option
from eventbus.config import Settings
from eventbus.drivers import Capability, MaintenanceDriver
from eventbus.errors import DriverError, EventBusError, NoEdge
from eventbus.tokens import TokenIssuer, TokenUser

__all__ = ["chaos"]

PREFIX: Final = "chaos"
_CHANNELS: Final = 3
_SEEDS: Final = 2**32
_MAX_CLIENTS: Final = 1000
_DRAIN_S: Final = 120.0
_READY_S: Final = 120.0
_LOOK_S: Final = 0.5
_TOKEN_S: Final = 7200.0


def chaos(
    nats: Annotated[
        str, typer.Option(help="The addresses of NATS. Default: NATS_URL.", show_default=False)
    ] = "",
    edges: Annotated[
        str,
        typer.Option(
            help="The addresses of the edges, separated by commas. Default: those that the nodes "
            "report."
        ),
    ] = "",
    time: Annotated[str, typer.Option(help="About how long to run: 10s to 1h.")] = "1m",
    clients: Annotated[
        int, typer.Option(min=1, max=_MAX_CLIENTS, help="The number of clients.")
    ] = 30,
    kinds: Annotated[
        str,
        typer.Option(
            help="Their protocols: websocket, sse, pusher. Clients of the Pusher protocol need a "
            "rule for chaos.>, since they have no token."
        ),
    ] = "websocket,sse",
    rate: Annotated[
        float, typer.Option(min=0.1, max=100, help="Messages per second of each publisher.")
    ] = 5.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeat the faults of another run, in their order.")
    ] = None,
    drain_command: Annotated[
        str,
        typer.Option(
            help="A command that drains and restarts an edge. {edge} is its address, {host} its "
            "host and {port} its port. Requires --yes: other clients of the edge reconnect too."
        ),
    ] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Allow the --drain-command to drain edges.")
    ] = False,
    token: Annotated[
        str,
        typer.Option(
            envvar="EVENTBUS_TOKEN",
            help="A token with a grant for chaos.>. Default: one that is signed with JWT_SECRET.",
        ),
    ] = "",
    api_key: Annotated[
        str,
        typer.Option(
            envvar="BROADCAST_API_KEY",
            callback=secret_of_option,
            help="The key of the HTTP API, to publish through it too.",
        ),
    ] = "",
    pusher_key: Annotated[
        str, typer.Option(envvar="PUSHER_APP_KEY", help="The app key for Pusher clients.")
    ] = "",
    pusher_secret: Annotated[
        str,
        typer.Option(
            envvar="PUSHER_APP_SECRET", callback=secret_of_option, help="The secret of that app."
        ),
    ] = "",
    json: Json = False,
) -> None:
    """Check that a running cluster loses no message while connections break and edges drain.

    It publishes on channels of its own (chaos.<random>.…), and subscribes clients of its own to
    them. These clients lose their connections, publishers reconnect, and with --drain-command edges
    drain. Other clients are not touched, except by the --drain-command. At the end, what each
    client received is compared with what was acknowledged. Exits with 1 if a message was lost,
    duplicated or out of order. scripts/chaos, in the source repository, injects worse faults into
    servers of its own.

    Example: eventbus chaos --edges http://127.0.0.1:8080 --time 2m
    """
    seconds = duration(time, "--time", least=10.0, most=3600.0)
    if drain_command and not yes:
        fail("--drain-command drains edges that other clients use: add --yes to allow it", code=2)
    names = [each.strip() for each in kinds.split(",")]
    if unknown := [each for each in names if each not in KINDS]:
        fail(f"--kinds: {', '.join(unknown)!r}; allowed: {', '.join(KINDS)}", code=2)
    if "pusher" in names and not (pusher_key and pusher_secret):
        fail("--kinds pusher needs PUSHER_APP_KEY and PUSHER_APP_SECRET", code=2)
    urls = [each.strip() for each in edges.split(",") if each.strip()]
    if edges and not urls:
        fail("--edges has no address; allowed: addresses of edges, separated by commas", code=2)
    settings = Settings.from_env()
    if nats:
        settings = msgspec.structs.replace(settings, nats_url=nats)
    options = _Options(
        edges=urls,
        clients=clients,
        kinds=names,
        rate=rate,
        drain_command=drain_command,
        token=token,
        api_key=api_key,
        pusher_key=pusher_key,
        pusher_secret=pusher_secret,
    )
    chosen = secrets.randbelow(_SEEDS) if seed is None else seed
    report = run_command(_run(settings, options, chosen, seconds))
    if json:
        write_json(report)
    else:
        say(table(report))
    if report.broken:
        raise typer.Exit(1)


class _Options(NamedTuple):
    edges: Sequence[str]
    clients: int
    kinds: Sequence[str]
    rate: float
    drain_command: str
    token: str
    api_key: str
    pusher_key: str
    pusher_secret: str


async def _run(settings: Settings, options: _Options, seed: int, seconds: float) -> Report:
    settings = attached(settings)
    await require_reachable(settings)
    run_id = secrets.token_hex(4)
    channels = [f"{PREFIX}.{run_id}.{number}" for number in range(_CHANNELS)]
    notes: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(_Publisher(settings))
        urls = options.edges or await _known_edges(publisher.bus)
        stack.push_async_callback(_purge, publisher, channels)
        workload = Workload(channels)
        access = Access(
            urls,
            token=options.token or _own_token(run_id),
            pusher_key=options.pusher_key,
            pusher_secret=options.pusher_secret,
        )
        workload.add_receivers(options.clients, [KINDS[each] for each in options.kinds], access)
        workload.add_publisher("library", publisher.send, options.rate)
        if options.api_key:
            http = HttpSender(urls, options.api_key)
            stack.push_async_callback(http.aclose)
            workload.add_publisher("http", http.send, options.rate)
        else:
            notes.append("no publisher over HTTP, since BROADCAST_API_KEY is not set")
        stack.push_async_callback(workload.aclose)
        await workload.start_receivers()
        workload.start_publishers()
        site = _Site(workload, publisher, urls, options.drain_command)
        faults = {fault.name: fault for fault in _FAULTS}
        if not options.drain_command:
            del faults[_EdgeDrained.name]
        steps = make_plan(
            seed, [Kind(each.name, each.hold_s + each.takes_s) for each in faults.values()], seconds
        )

        def make(step: Step) -> Fault:
            return faults[step.fault](site, random.Random(step.seed))  # noqa: S311 - repeatable

        run = Run(workload, make, scale=Scale(), say=lambda text: say(text, err=True))
        where = f"{publisher.bus.driver.name}, {counted(len(urls), 'edge')}"
        return await run.run(where, seed, steps, notes)


async def _known_edges(bus: EventBus) -> list[str]:
    try:
        addresses = addresses_of((await bus.stats(limit=1)).nodes)
    except NoEdge:
        addresses = []
    if not addresses:
        fail("no edge node reports its address: pass the addresses with --edges")
    return addresses


def _own_token(run_id: str) -> str:
    """A token for the channels of this run. Raises ConfigError if there is no key to sign with."""
    user = TokenUser(user_id=f"chaos-{run_id}", channels=[f"{PREFIX}.{run_id}.*"])
    return TokenIssuer.from_env().issue(user, lifetime=_TOKEN_S)


async def _purge(publisher: "_Publisher", channels: Sequence[str]) -> None:
    """Delete the messages of the run."""
    bus = publisher.bus
    if Capability.MAINTENANCE not in bus.driver.capabilities:
        return
    driver = cast(MaintenanceDriver, bus.driver)
    for channel in channels:
        with contextlib.suppress(DriverError):  # they expire by themselves
            await driver.purge(bus.subjects.live(channel))


class _Publisher:
    """A bus that can be replaced while it publishes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.bus = EventBus(settings)

    async def __aenter__(self) -> Self:
        await self.bus.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.bus.aclose()

    async def restart(self) -> None:
        """Disconnect, and connect again."""
        await self.bus.aclose()
        self.bus = EventBus(self._settings)
        await self.bus.open()

    async def send(self, publication: Publication) -> None:
        """See `Send`."""
        await library_sender(self.bus)(publication)


class _Site(NamedTuple):
    """What faults act on."""

    workload: Workload
    publisher: _Publisher
    urls: Sequence[str]
    drain_command: str


class _HarmlessFault:
    name = ""
    hold_s = 0.0
    takes_s = 3.0
    publish_limit_s: float | None = None
    unlimited: Collection[str] = ()

    def __init__(self, site: _Site, choose: random.Random) -> None:
        self.site = site
        self.choose = choose
        self.broken: list[str] = []
        self.outcome = ""

    async def heal(self) -> None:
        """Nothing to undo."""


class _ClientsCut(_HarmlessFault):
    name = "clients-cut"

    async def begin(self) -> str:
        """Cut all clients of the run at once."""
        self.site.workload.cut()
        return ""


class _SomeClientsCut(_HarmlessFault):
    name = "some-clients-cut"

    async def begin(self) -> str:
        """Cut a few clients of the run."""
        receivers = self.site.workload.receivers
        chosen = self.choose.sample(receivers, max(1, len(receivers) // 4))
        for each in chosen:
            each.cut()
        return f"{len(chosen)}"


class _PublisherRestarted(_HarmlessFault):
    name = "publisher-restarted"

    async def begin(self) -> str:
        """Reconnect the publisher while it publishes."""
        await self.site.publisher.restart()
        return ""


class _EdgeDrained(_HarmlessFault):
    name = "edge-drained"
    takes_s = 20.0

    async def begin(self) -> str:
        """Run the command for one edge. Raises CommandFailed."""
        self._url = self.choose.choice(self.site.urls)
        parts = urlsplit(self._url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        words = [
            each.replace("{edge}", self._url)
            .replace("{host}", parts.hostname or "")
            .replace("{port}", str(port))
            for each in shlex.split(self.site.drain_command)
        ]
        await _execute(words)
        return self._url

    async def heal(self) -> None:
        """Wait until the edge is ready again."""
        async with aiohttp.ClientSession() as http:
            try:
                async with asyncio.timeout(_READY_S):
                    while not await _is_ready(http, self._url):  # noqa: ASYNC110 - it is polled
                        await asyncio.sleep(_LOOK_S)
            except TimeoutError:
                self.broken.append(f"{self._url} is not ready {_READY_S:.0f} s after it drained")


_FAULTS: Final = (_ClientsCut, _SomeClientsCut, _PublisherRestarted, _EdgeDrained)


class CommandFailed(EventBusError):
    """The command that drains an edge failed, or took too long."""


async def _execute(words: Sequence[str]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise CommandFailed(f"--drain-command: {exc}") from None
    try:
        async with asyncio.timeout(_DRAIN_S):
            _, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CommandFailed(f"--drain-command did not end within {_DRAIN_S:.0f} s") from None
    if process.returncode:
        why = err.decode(errors="replace").strip()[-200:]
        raise CommandFailed(f"--drain-command exited with {process.returncode}: {why}")


async def _is_ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url.rstrip('/')}/readyz") as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False
