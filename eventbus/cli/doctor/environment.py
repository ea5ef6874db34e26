"""Checks of what this machine and its environment say: settings, keys, origins, ports, limits."""

import difflib
import socket
import sys
from collections.abc import (
    Iterable,
    Mapping,
)
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from eventbus.cli.doctor.findings import (
    Finding,
    failed,
    ok,
    warning,
)
from eventbus.environment import (
    FILE_SUFFIX,
    load,
    variables,
)
from eventbus.errors import ConfigError
from eventbus.urls import mask_url

if TYPE_CHECKING:
    from eventbus_edge.config import EdgeSettings

__all__ = [
    "check_cors",
    "check_environment",
    "check_files",
    "check_keys",
    "check_port",
    "check_settings",
]


if sys.platform != "win32":
    import resource

_OURS = ("BROADCAST_", "EDGE_")
_NEAR = ("JWT_", "NATS_", "CORS_")
"""Beginnings that are others' too: only what is nearly one of ours is named."""
_OTHER_FILES = 256
"""Open files that are no client's connection."""
_PROBE_S = 3.0


def check_settings(
    environ: Mapping[str, str], structs: Iterable[type[msgspec.Struct]]
) -> list[Finding]:
    """Every variable by itself, and those that are none of ours and look like it."""
    known, read, set_, findings = set[str](), set[str](), 0, list[Finding]()
    for struct in structs:
        for variable in variables(struct):
            known.add(variable.name)
            names = [variable.name]
            if variable.secret:
                names.append(f"{variable.name}{FILE_SUFFIX}")
            read.update(names)
            given = {name: environ[name] for name in names if environ.get(name, "").strip()}
            if not given:
                continue
            set_ += 1
            try:
                load(struct, given)
            except ConfigError as exc:
                change = f"set it to: {variable.allowed}"
                findings.append(failed("settings", str(exc), change))
    for name in sorted(environ):
        if name not in read:
            findings += _unknown(name, known)
    if not any(finding.status == "failed" for finding in findings):
        findings.insert(0, ok("settings", f"{set_} of {len(known)} variables are set"))
    return findings


def _unknown(name: str, known: set[str]) -> list[Finding]:
    near = difflib.get_close_matches(name, known, 1, 0.8)
    if not near and not name.startswith(_OURS):
        return []
    if near and not name.startswith(_OURS + _NEAR):
        return []
    meant = f"did you mean {near[0]}?" if near else "remove it, or see docs/settings.md"
    return [warning("settings", f"{name} is no setting, and is not read", meant)]


def check_environment(edge: "EdgeSettings") -> list[Finding]:
    """What production refuses, and warns of; in development there is nothing to say."""
    from eventbus_edge.process.production import production_problems  # noqa: PLC0415

    if edge.environment != "production":
        return []
    problems = production_problems(edge)
    findings = [
        failed("production", refusal, "an edge does not start with it in production")
        for refusal in problems.refusals
    ]
    findings += [warning("production", told) for told in problems.warnings]
    return findings or [ok("production", "BROADCAST_ENVIRONMENT=production has nothing to object")]


async def check_keys(edge: "EdgeSettings") -> list[Finding]:
    """Whether there is something to check tokens with, and it is sound."""
    from eventbus_edge.access.verifiers import fetched_keys, make_verifier  # noqa: PLC0415 - --help is to be fast

    try:
        keys = fetched_keys(edge)
        verifier = make_verifier(edge, keys)
    except ConfigError as exc:
        change = f"see {exc.variable} in docs/settings.md" if exc.variable else ""
        return [failed("JWT keys", str(exc), change)]
    if verifier is None:
        change = "set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"
        return [warning("JWT keys", "there are none: edges refuse all tokens", change)]
    algorithms = ", ".join(edge.jwt_algorithms)
    if keys is None:
        held = "JWT_PUBLIC_KEY" if edge.jwt_public_key else "JWT_SECRET"
        return [ok("JWT keys", f"{held} fits {algorithms}")]
    results: list[str] = []
    try:
        await keys.open(results.append)
    finally:
        await keys.aclose()
    if results == ["ok"]:
        return [ok("JWT keys", f"JWT_JWKS_URL gives keys for {algorithms}")]
    message = f"JWT_JWKS_URL={mask_url(edge.jwt_jwks_url)} gives no keys for {algorithms}"
    return [failed("JWT keys", message, "look at the address from here, and JWT_ALGORITHMS")]


def check_cors(edge: "EdgeSettings") -> list[Finding]:
    """Whether each allowed origin is one that a browser could send."""
    from eventbus_edge.access.origins import is_origin  # noqa: PLC0415

    findings = [
        failed(
            "CORS",
            f"CORS_ALLOWED_ORIGINS has {origin!r}, which no browser sends",
            "write scheme://host[:port] without a path, a bare host, * or null",
        )
        for origin in edge.cors_allowed_origins
        if not is_origin(origin)
    ]
    if findings:
        return findings
    if "*" in edge.cors_allowed_origins:
        change = "name your origins, unless everything is public"
        return [warning("CORS", "any web page may connect", change)]
    allowed = ", ".join(edge.cors_allowed_origins)
    return [ok("CORS", f"allowed: {allowed}" if allowed else "the edge's own origin only")]


async def check_port(edge: "EdgeSettings") -> list[Finding]:
    """Whether the edge's port is free, or an edge's."""
    host, port = edge.host, edge.port
    if not edge.websocket_enabled or port == 0:
        return [ok("port", "any free one is taken" if port == 0 else "WebSockets are turned off")]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as exc:
            why = exc.strerror or str(exc)
        else:
            return [ok("port", f"{port} on {host} is free")]
    if await _is_edge(host, port, tls=bool(edge.tls_cert)):
        return [ok("port", f"{port}: an edge listens there")]
    change = "stop that program, or set BROADCAST_WEBSOCKET_PORT to another port"
    return [failed("port", f"{port} on {host}: {why}, and it is no edge that listens", change)]


async def _is_edge(host: str, port: int, *, tls: bool) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"[{host}]" if ":" in host else host
    url = f"{'https' if tls else 'http'}://{address}:{port}/healthz"
    timeout = aiohttp.ClientTimeout(total=_PROBE_S)
    try:
        # Who listens is asked, not trusted: the certificate is of another name than the address.
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(url, ssl=False, allow_redirects=False) as answer,
        ):
            return answer.headers.get("Server") == "eventbus"
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def check_files(edge: "EdgeSettings") -> list[Finding]:
    """Whether a process may have as many sockets as connections are allowed."""
    if sys.platform == "win32":
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux":
        soft = hard  # an edge raises its own soft limit
    needed = edge.max_connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return [ok("open files", f"{_count(soft)} for {edge.max_connections:,} connections")]
    raise_it = f"ulimit -n {needed}" if hard == resource.RLIM_INFINITY or hard >= needed else (
        f"raise the limit of {_count(hard)} (LimitNOFILE= in systemd, --ulimit of docker)"
    )  # fmt: skip
    return [
        warning(
            "open files",
            f"{_count(soft)}, and BROADCAST_MAX_CONNECTIONS={edge.max_connections} needs more",
            f"{raise_it}, or set BROADCAST_MAX_CONNECTIONS to {max(soft - _OTHER_FILES, 1)}",
        )
    ]


def _count(files: int) -> str:
    # What the system calls infinite is the largest number that fits, or -1.
    return f"{files:,}" if 0 <= files < 2**62 else "no limit"
