"""Fails at once when no broker listens. A service would wait, but a person should not have to."""

import asyncio
import socket
from collections.abc import Iterable
from typing import Final

from eventbus.config import Settings
from eventbus.drivers import drivers_of
from eventbus.errors import ConnectionFailed

__all__ = ["nats_refusal", "require_reachable"]

_DIAL_S: Final = 1.0
_PORTS: Final = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}


async def require_reachable(settings: Settings, connection: str | None = None) -> None:
    """Raise ConnectionFailed if every server of a broker refuses connections.

    The brokers are those of the settings' driver, and of `connection`, another driver.
    A host name without an address counts as refused. A server that does not answer does not: the
    driver waits for it. Raises ConfigError for an invalid address, and ConnectionFailed.
    """
    names = (*drivers_of(settings), *drivers_of(settings, connection))
    if "nats" in names and (refusal := await nats_refusal(settings.nats_url)):
        raise ConnectionFailed(f"{refusal}; start it, or check NATS_URL", driver="nats")
    if "redis" in names and (refusal := await _redis_refusal(settings)):
        hint = "start it, or check the settings BROADCAST_REDIS_*"
        raise ConnectionFailed(f"{refusal}; {hint}", driver="redis")


async def nats_refusal(nats_url: str) -> str:
    """How the servers of NATS_URL refuse connections; empty if one of them may accept."""
    from eventbus.drivers.nats import Servers  # noqa: PLC0415 - it imports nats-py

    servers = Servers.of(nats_url)
    hosts = [
        (host, port or _PORTS[address.scheme])
        for address in servers.addresses
        for host, port in address.hosts
    ]
    return await _refusal_of_all(servers.shown, hosts)


async def _redis_refusal(settings: Settings) -> str:
    try:
        from eventbus.drivers.redis import Target  # noqa: PLC0415 - it imports redis-py
    except ModuleNotFoundError:  # the driver reports it
        return ""
    if not settings.redis_enabled:
        return ""
    target = Target.of(settings)
    return await _refusal_of_all(", ".join(map(str, target.addresses)), target.addresses)


async def _refusal_of_all(shown: str, hosts: Iterable[tuple[str, int]]) -> str:
    faults = await asyncio.gather(*(asyncio.to_thread(_refusal, *host) for host in hosts))
    return f"cannot connect to {shown}: {faults[0]}" if faults and all(faults) else ""


def _refusal(host: str, port: int) -> str:
    """Why a server refuses connections; empty if it does not, or does not answer."""
    try:
        socket.create_connection((host, port), timeout=_DIAL_S).close()
    except ConnectionRefusedError:
        return "connection refused"
    except socket.gaierror as exc:
        return exc.strerror or str(exc)
    except (OSError, UnicodeError):
        return ""
    return ""
