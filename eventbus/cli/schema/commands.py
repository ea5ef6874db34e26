"""`eventbus schema`: shows and exports the contracts of events, and checks them for changes."""

import enum
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
)
from urllib.parse import urlsplit

import msgspec
import typer
from rich.text import Text

from eventbus.application import configured_application
from eventbus.cli.completion import complete_events
from eventbus.cli.output import (
    Json,
    counted,
    fail,
    one_line,
    print_table,
    say,
    write_json,
)
from eventbus.cli.running import (
    Apps,
    require_application,
)
from eventbus.cli.schema.new import NewEvent
from eventbus.cli.terminal import json_safe
from eventbus.contracts import (
    Change,
    Contract,
    InvalidLock,
    Locked,
    Verdict,
    asyncapi,
    catalogue,
    compare,
    constraints_of,
    encode_lock,
    jsonschema,
    lock_of,
    read_lock,
    type_in_words,
    typescript,
    warnings_of,
)
from eventbus.errors import (
    ConfigError,
    EventDefinitionError,
)
from eventbus.urls import is_web_address

__all__ = ["app"]


app = typer.Typer(
    help="Create, show, export and check the contracts of events.", no_args_is_help=True
)

LOCK: Final = Path("schemas/schemas.lock.json")
LockFile = Annotated[
    Path | None,
    typer.Option(
        "--lock",
        help=f"The lock file. Default: {LOCK}, in the folder of the pyproject.toml that names the "
        "application, or in the current folder.",
    ),
]


class Format(enum.StrEnum):
    """The formats of `schema export`."""

    ASYNCAPI = "asyncapi"
    JSONSCHEMA = "jsonschema"
    TYPESCRIPT = "typescript"


@app.command("new", rich_help_panel="Define and show")
def new(
    name: Annotated[str, typer.Argument(help="The name: OrderShipped or order.shipped.")],
    package: Annotated[
        str | None,
        typer.Option(
            help="The package for the event, such as shop.events. Default: the application in "
            "pyproject.toml."
        ),
    ] = None,
    tests: Annotated[Path, typer.Option(help="The folder for the test.")] = Path("tests/schemas"),
    channel: Annotated[
        str | None,
        typer.Option(help="The channel or channel template. Default: made from the name."),
    ] = None,
) -> None:
    """Create an event class and its test. Never overwrites a file.

    Example: eventbus schema new OrderShipped --package shop.events --channel "orders.{order_id}"
    """
    package, folder = _package(package)
    try:
        event = NewEvent.named(name, package=package, folder=folder, tests=tests, channel=channel)
    except ValueError as exc:
        fail(str(exc), code=2)
    try:
        written = event.write()
    except OSError as exc:
        fail(f"{exc.filename}: {exc.strerror or exc}")
    for path in written:
        say(f"wrote {os.path.relpath(path)}")
    if event.init not in written:
        say(f"Now import it in {os.path.relpath(event.init)}: {event.import_line}")
    say(f"Run its test: pytest {os.path.relpath(event.test)}")


@app.command("list", rich_help_panel="Define and show")
def list_(application: Apps = None, json: Json = False) -> None:
    """List the events by name.

    Example: eventbus schema list --app shop.events
    """
    contracts = _contracts(application)
    if json:
        write_json([_summary(each) for each in contracts])
        return
    print_table(
        ("event", "channels", "kind", "version", "fields", "queue"),
        [
            [
                each.name,
                ", ".join(each.channels) or "-",
                f"{each.kind}{', volatile' if each.volatile and each.kind == 'broadcast' else ''}",
                each.version,
                ", ".join(_fields(each)) or "-",
                (each.queue or "at dispatch") if each.queued else "-",
            ]
            for each in contracts
        ],
        empty="no events are defined: use --app with the module that defines them",
        right=("version",),
        whole=("event", "channels"),
    )


@app.command("show", rich_help_panel="Define and show")
def show(
    event: Annotated[str, typer.Argument(help="The event's name.", autocompletion=complete_events)],
    application: Apps = None,
    json: Json = False,
) -> None:
    """Show one event: its channels and its fields. With --json, its JSON Schema.

    Example: eventbus schema show order.shipped --app shop.events
    """
    contracts = _contracts(application)
    found = next((each for each in contracts if event in (each.name, each.cls.__name__)), None)
    if found is None:
        known = ", ".join(each.name for each in contracts) or "none"
        fail(f"unknown event {one_line(event)!r}; known: {known}")
    [schema], components = _checked(jsonschema.schemas_of, [found.data])
    if json:
        write_json({**_summary(found), "data": schema, "$defs": components})
        return
    say(f"{found.name}  {found.kind} event, version {found.version}")
    if found.doc:
        say(f"\n{found.doc}")
    say(f"\nchannels: {', '.join(found.channels) or 'set at each dispatch'}")
    say(f"history:  {'not stored (volatile)' if found.volatile else 'stored'}")
    if found.queued:
        say(f"queue:    {found.queue or 'set at each dispatch'}")
    own = type_in_words(schema)
    if own not in components:
        say(f"data:     {own}")
    for name in sorted(components, key=lambda name: (name != own, name)):
        _show_component(name, components[name], is_data=name == own)


@app.command("export", rich_help_panel="Define and show")
def export(
    format_: Annotated[Format, typer.Option("--format", help="The output format.")],
    application: Apps = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to write. Default: standard output.")
    ] = None,
    title: Annotated[str, typer.Option(help="The document's title.")] = "Events",
    api_version: Annotated[str, typer.Option(help="The application's version.")] = "1.0.0",
    edge: Annotated[
        str, typer.Option(help="The URL for clients. AsyncAPI only.")
    ] = "ws://localhost:8080/ws",
    nats: Annotated[
        str, typer.Option(help="The URL for services. AsyncAPI only.")
    ] = "nats://localhost:4222",
    namespace: Annotated[
        str, typer.Option(help="The value of BROADCAST_CHANNELS_PREFIX. AsyncAPI only.")
    ] = "eb",
) -> None:
    """Export the contracts as AsyncAPI 3.0, JSON Schema 2020-12 or TypeScript.

    Example: eventbus schema export --format typescript --app shop.events --output web/events.ts
    """
    contracts = _contracts(application)
    match format_:
        case Format.ASYNCAPI:
            document = _checked(
                asyncapi.document,
                contracts,
                title=title,
                version=api_version,
                servers=_servers(edge, nats),
                namespace=namespace,
            )
            text = _pretty(document)
        case Format.JSONSCHEMA:
            text = _pretty(_checked(jsonschema.document, contracts, title=title))
        case _:
            text = _checked(typescript.declarations, contracts)
    _warn(contracts)
    if output is None:
        sys.stdout.write(text if format_ is Format.TYPESCRIPT else json_safe(text))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as exc:
        fail(f"--output {output}: {exc.strerror or exc}")


@app.command("lock", rich_help_panel="Check for changes")
def lock(
    application: Apps = None,
    lock: LockFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept breaking changes without a new version.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the lock file. Fails on breaking changes without a new version.

    Example: eventbus schema lock --app shop.events
    """
    path, present = _present(application, lock)
    _warn(catalogue())
    verdict = Verdict(())
    if path.exists() and not force:
        verdict = compare(_read(path), present)
    if verdict.is_breaking:
        _report(verdict, json=json)
        fail("nothing was written: raise the version of the breaking events, or use --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_lock(present))
    except OSError as exc:
        fail(f"--lock {path}: {exc.strerror or exc}")
    if json:
        write_json({"lock": str(path), "events": len(present)})
    else:
        say(f"wrote {path} with {counted(len(present), 'event')}")


@app.command("check", rich_help_panel="Check for changes")
def check(
    application: Apps = None,
    lock: LockFile = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Fail also if the lock file is not up to date.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare the events with the lock file. Fails if a change is breaking.

    Breaking changes are allowed if the event's version was raised. "readers" are services and
    pages with the old type. "writers" are publishers with the old type, and messages in history and
    queues.

    Example: eventbus schema check --app shop.events
    """
    path, present = _present(application, lock)
    _warn(catalogue())
    verdict = compare(_read(path), present)
    _report(verdict, json=json)
    if verdict.is_breaking:
        fail("raise the version of the breaking events (`version=` in the class statement)")
    if verdict.changes and locked:
        fail(f"{path} is not up to date: run `eventbus schema lock`")


def _package(given: str | None) -> tuple[str, Path]:
    """The package for a new event, and the project's folder."""
    if given is not None:
        return given, Path.cwd()
    try:
        application = configured_application()
    except ConfigError as exc:
        fail(str(exc), code=2)
    if application is None:
        fail(
            "no package is set: use --package shop.events, or write "
            'app = "shop.events" under [tool.eventbus] in pyproject.toml',
            code=2,
        )
    return application.modules[0], application.folder


def _contracts(application: list[str] | None) -> tuple[Contract, ...]:
    require_application(application)
    return tuple(_checked(catalogue))


def _warn(contracts: Iterable[Contract]) -> None:
    """Print what other languages may read differently, beside the command's output."""
    for warning in warnings_of(contracts):
        typer.secho(f"warning: {warning}", err=True, fg="yellow")


def _present(application: list[str] | None, lock: Path | None) -> tuple[Path, dict[str, Locked]]:
    """The lock file's path, and its content for the current events."""
    folder = require_application(application).folder
    present: dict[str, Locked] = _checked(lock_of, tuple(_checked(catalogue)))
    return lock or Path(os.path.relpath(folder / LOCK)), present


def _read(path: Path) -> dict[str, Locked]:
    try:
        return read_lock(path)
    except InvalidLock as exc:
        fail(str(exc))


def _checked(make: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call `make`. Exits with code 2 for a type without a schema."""
    try:
        return make(*arguments, **keywords)
    except EventDefinitionError as exc:
        fail(str(exc), code=2)


def _pretty(document: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _summary(contract: Contract) -> dict[str, Any]:
    return {
        "event": contract.name,
        "version": contract.version,
        "kind": contract.kind,
        "channels": contract.channels,
        "volatile": contract.volatile,
        "queued": contract.queued,
        "queue": contract.queue,
        "fields": _fields(contract),
        "type": f"{contract.cls.__module__}.{contract.cls.__qualname__}",
    }


def _fields(contract: Contract) -> list[str]:
    """The field names of its data; empty if the data is not a struct."""
    is_struct = isinstance(contract.data, type) and issubclass(contract.data, msgspec.Struct)
    return (
        [field.encode_name for field in msgspec.structs.fields(contract.data)] if is_struct else []
    )


def _show_component(name: str, schema: dict[str, Any], *, is_data: bool) -> None:
    say("")
    if not is_data:
        say(name)
    if "properties" not in schema:
        say(", ".join(part for part in (type_in_words(schema), constraints_of(schema)) if part))
        return
    required = schema.get("required", ())
    print_table(
        ("field", "type", "", "description"),
        [
            [
                Text(field, style="cyan"),
                type_in_words(of_field),
                "" if field in required else "optional",
                one_line(_about(of_field), 100),
            ]
            for field, of_field in schema["properties"].items()
        ],
        whole=("field", "type"),
    )


def _about(schema: dict[str, Any]) -> str:
    """A field's description and constraints."""
    description, constraints = str(schema.get("description", "")), constraints_of(schema)
    if description and constraints:
        return f"{description} ({constraints})"
    return description or constraints


def _servers(edge: str, nats: str) -> dict[str, asyncapi.Server]:
    clients, services = _address("--edge", edge, "ws", "wss"), _address("--nats", nats, "nats")
    api = clients._replace(
        protocol=clients.protocol.replace("ws", "http"), path="/api/broadcast/events"
    )
    return {"edge": clients, "api": api, "nats": services}


def _address(option: str, url: str, *protocols: str) -> asyncapi.Server:
    if not is_web_address(url, protocols) or "@" in url:
        allowed = " or ".join(f"{protocol}://host:port" for protocol in protocols)
        fail(f"{option}: not a valid URL; allowed: {allowed}, without credentials", code=2)
    parts = urlsplit(url)
    return asyncapi.Server(parts.scheme, parts.netloc, parts.path)


def _report(verdict: Verdict, *, json: bool) -> None:
    if json:
        rows = [
            {**change._asdict(), "breaks": sorted(change.breaks), "breaking": change.is_breaking}
            for change in verdict.changes
        ]
        write_json({"breaking": verdict.is_breaking, "changes": rows})
        return
    print_table(
        ("", "event", "field", "change", "breaks"),
        [
            [_mark(c), c.event, c.place, c.what, ", ".join(sorted(c.breaks))]
            for c in verdict.changes
        ],
        empty="no changes",
        whole=("event", "field", "change"),
    )


def _mark(change: Change) -> Text:
    if change.is_breaking:
        return Text("breaking", style="red")
    if change.breaks:
        return Text("new version", style="yellow")
    return Text("compatible", style="green")
