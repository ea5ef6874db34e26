"""Checks what stored messages survive: crashes of processes, and power cuts.

A NATS user sees where streams are placed, but not whether a server syncs each write to disk. For
an embedded server, its settings say so; for others, `/varz` of the monitoring port.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from eventbus.cli.doctor.findings import Finding, failed, ok, warning
from eventbus.config import Settings
from eventbus.messages import json_decoder
from eventbus.server import SYNC_TAG, syncs_always
from eventbus.urls import mask_url

__all__ = ["Disks", "check_monitors", "check_power", "embedded_disks"]

_MONITOR_S: Final = 3.0
_NANO: Final = 1_000_000_000
_DEFAULT_S: Final = 120
"""nats-server's sync_interval, if none is set."""
_CONFIGURE: Final = (
    f'configure as many servers as BROADCAST_HISTORY_REPLICAS with server_tags: ["{SYNC_TAG}"] and '
    "sync_interval: always in jetstream, best all of a cluster, then run eventbus setup"
)


class Disks(msgspec.Struct, frozen=True):
    """How often the servers sync, as far as it is known."""

    intervals: dict[str, int]
    """Seconds between two syncs, by server name; 0 for a server that syncs each write."""
    any_server: int | None = None
    """The same for the embedded server, whose name does not matter."""

    def interval(self, members: Sequence[str]) -> int | None:
        """The longest interval of the servers; None if one of them is unknown."""
        if self.any_server is not None:
            return self.any_server
        known = [self.intervals[name] for name in members if name in self.intervals]
        return max(known) if known and len(known) == len(members) else None


def embedded_disks(folder: Path) -> Disks:
    """How the embedded server on a data folder syncs."""
    return Disks({}, 0 if syncs_always(folder) else _DEFAULT_S)


class _Config(msgspec.Struct):
    sync_interval: int = 0
    sync_always: bool = False


class _JetStream(msgspec.Struct):
    config: _Config | None = None


class _Varz(msgspec.Struct):
    """The reply of `/varz`."""

    server_name: str
    jetstream: _JetStream = msgspec.field(default_factory=_JetStream)


_decode_varz: Final = json_decoder(_Varz)


async def check_monitors(urls: Sequence[str]) -> tuple[Disks, list[Finding]]:
    """Ask NATS servers, on their monitoring ports, how they sync and whether they are healthy."""
    timeout = aiohttp.ClientTimeout(total=_MONITOR_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        answers = await asyncio.gather(*(_ask(http, url) for url in urls))
    intervals = {
        server.server_name: 0 if config.sync_always else config.sync_interval // _NANO
        for server, _ in answers
        if server is not None and (config := server.jetstream.config) is not None
    }
    return Disks(intervals), [finding for _, finding in answers]


async def _ask(http: aiohttp.ClientSession, url: str) -> tuple[_Varz | None, Finding]:
    try:
        async with http.get(f"{url.rstrip('/')}/varz") as answer:
            answer.raise_for_status()
            server = _decode_varz(await answer.read())
        async with http.get(f"{url.rstrip('/')}/healthz") as answer:
            if answer.status == 200:
                return server, ok("monitor", f"{server.server_name} is healthy")
            problem = (await answer.content.read(1000)).decode(errors="replace")
    except (aiohttp.ClientError, ValueError, OSError) as exc:
        why = f"{mask_url(url)}: {str(exc) or type(exc).__name__}"
        change = "pass the address of http_port of a NATS server, such as http://host:8222"
        return None, failed("monitor", why, change)
    change = "see its log; if its disk was full, restart it: until then it stores nothing"
    return server, failed("monitor", f"{server.server_name} is not healthy: {problem}", change)


async def check_power(
    connection: Any, settings: Settings, disks: Disks, seconds: float
) -> list[Finding]:
    """Report what stored messages survive, and streams that survive less than they must."""
    from eventbus.drivers.nats import (  # noqa: PLC0415
        STREAM_NOT_FOUND,
        event_stream,
        request_api,
        server_tags,
    )

    namespace = settings.namespace.upper()
    events = event_stream(connection, settings).name
    durabilities = {events: settings.retention_classes().durability}
    durabilities[f"KV_{namespace}_DURABLE"] = durabilities[events]
    durabilities[f"{namespace}_QUEUE"] = settings.queue_durability
    durabilities[f"{namespace}_FAILED"] = settings.queue_durability
    tags = await server_tags(connection) if settings.durability == "disk" else None
    findings: list[Finding] = []
    for name, durability in durabilities.items():
        if name != events and durability == "process":
            continue
        answer = await request_api(connection, f"STREAM.INFO.{name}", None, seconds)
        if answer.error_code == STREAM_NOT_FOUND and name != events:
            continue  # it is placed when it is created
        placed, cluster = answer.body.get("config", {}), answer.body.get("cluster", {})
        members = _members(cluster)
        copies = int(placed.get("num_replicas", settings.history_replicas))
        interval = disks.interval(members)
        survives = _survives(copies, interval)
        if durability == "process":
            findings.append(ok("power cut", f"{name}: {survives}"))
            continue
        has_tag = SYNC_TAG in ((placed.get("placement") or {}).get("tags") or ())
        if tags is not None and not cluster.get("name"):  # no cluster, or not created yet
            has_tag = SYNC_TAG in tags
        findings.append(_disk_finding(name, survives, interval, has_tag=has_tag))
    return findings


def _disk_finding(name: str, survives: str, interval: int | None, *, has_tag: bool) -> Finding:
    """The finding about a stream whose messages must survive power cuts."""
    if interval:
        problem = f"{name}: the settings ask for disk, but {survives}"
        return failed("power cut", problem, _CONFIGURE)
    if not has_tag:  # no bus opens on it
        problem = f"{name}: the settings ask for disk, but its servers have no tag {SYNC_TAG}"
        return failed("power cut", problem, _CONFIGURE)
    if interval is None:
        return warning(
            "power cut",
            f"{name}: its servers have the tag {SYNC_TAG}; a NATS user cannot see whether they "
            "sync each write",
            "pass the monitoring addresses of its servers: eventbus doctor --monitor "
            "http://host:8222, or look for sync_always in http://host:8222/varz",
        )
    return ok("power cut", f"{name}: {survives}")


def _members(cluster: dict[str, Any]) -> list[str]:
    replicas = [str(each.get("name", "")) for each in cluster.get("replicas") or ()]
    return [name for name in (str(cluster.get("leader", "")), *replicas) if name]


def _survives(copies: int, interval: int | None) -> str:
    """What acknowledged messages survive, in the words of docs/deployment.md."""
    crashes = "acknowledged messages survive the crash of any process"
    if interval == 0:
        return f"{crashes}, and any power cut: each write is synced to disk first"
    loss = (
        "the last 2 minutes, nats-server's default sync_interval (or nothing, if that is always; "
        "only --monitor http://host:8222 shows it)"
        if interval is None
        else f"the last {interval} s (sync_interval)"
    )
    if copies == 1:
        return f"{crashes}; a power cut of the server may lose {loss}"
    return (
        f"{crashes}, and a power cut of one broker of {copies}; a simultaneous power cut of a "
        f"majority may lose {loss}"
    )
