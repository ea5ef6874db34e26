"""Checks of the environment: settings and the files they name, keys, origins, port, open files."""

import socket
import sys
from collections.abc import (
    Mapping,
    Sequence,
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
from eventbus.cli.output import counted
from eventbus.environment import (
    load,
    unknown_variables,
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
    "check_tables",
]


if sys.platform != "win32":
    import resource

_OTHER_FILES = 256
"""Open files other than client connections."""
_PROBE_S = 3.0


def check_settings(
    environ: Mapping[str, str], structs: Sequence[type[msgspec.Struct]]
) -> list[Finding]:
    """Check each variable on its own, and report unknown variables that look like ours."""
    known, set_, findings = set[str](), 0, list[Finding]()
    for struct in structs:
        for variable in variables(struct):
            if variable.name in known:
                continue  # a setting of the bus and of the edge
            known.add(variable.name)
            given = {
                name: environ[name] for name in variable.names if environ.get(name, "").strip()
            }
            if not given:
                continue
            set_ += 1
            try:
                load(struct, given)
            except ConfigError as exc:
                change = f"set it to: {variable.allowed}"
                findings.append(failed("settings", str(exc), change))
    for name, nearest in unknown_variables(structs, environ):
        change = f"did you mean {nearest}?" if nearest else "remove it, or see docs/settings.md"
        findings.append(warning("settings", f"{name} is not a setting and has no effect", change))
    if not any(finding.status == "failed" for finding in findings):
        findings.insert(0, ok("settings", f"{set_} of {len(known)} variables are set"))
    return findings


def check_environment(edge: "EdgeSettings") -> list[Finding]:
    """Report settings that an edge refuses or warns about in production."""
    from eventbus_edge.process import production_problems  # noqa: PLC0415

    if edge.environment != "production":
        return []
    problems = production_problems(edge)
    findings = [
        failed("production", refusal, "an edge does not start with this in production")
        for refusal in problems.refusals
    ]
    findings += [warning("production", text) for text in problems.warnings]
    return findings or [ok("production", "the settings are fit for production")]


def check_tables(edge: "EdgeSettings") -> list[Finding]:
    """Check the files of channel rules and of apps, if the settings name any."""
    from eventbus_edge.access import read_rules  # noqa: PLC0415 - keeps --help fast
    from eventbus_edge.pusher import read_app, read_apps  # noqa: PLC0415

    findings = []
    if edge.rules_file:
        try:
            count = len(read_rules(edge.rules_file))
        except ConfigError as exc:
            findings.append(failed("channel rules", str(exc)))
        else:
            findings.append(ok("channel rules", f"{counted(count, 'rule')} in {edge.rules_file}"))
    try:
        own, apps = read_app(edge), read_apps(edge)
    except ConfigError as exc:
        return [*findings, failed("apps", str(exc), "see docs/laravel-echo.md")]
    if own or apps:
        places = ["PUSHER_APP_ID"] * (own is not None)
        if apps:
            places.append(f"{counted(len(apps), 'app')} in {edge.pusher_apps}")
        findings.append(ok("apps", f"Pusher protocol: {', '.join(places)}"))
    return findings


async def check_keys(edge: "EdgeSettings") -> list[Finding]:
    """Check that there are valid keys to verify tokens with."""
    from eventbus_edge.access import fetched_keys, make_verifier  # noqa: PLC0415 - keeps --help fast

    try:
        keys = fetched_keys(edge)
        verifier = make_verifier(edge, keys)
    except ConfigError as exc:
        change = f"see {exc.variable} in docs/settings.md" if exc.variable else ""
        return [failed("JWT keys", str(exc), change)]
    if verifier is None:
        change = (
            "set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL; `eventbus dev` has a secret of its own"
        )
        return [warning("JWT keys", "no keys are set: edges refuse all tokens", change)]
    algorithms = ", ".join(verifier.algorithms)
    if keys is None:
        name = "JWT_PUBLIC_KEY" if edge.jwt_public_key else "JWT_SECRET"
        return [ok("JWT keys", f"{name} is valid for {algorithms}")]
    results: list[str] = []
    try:
        await keys.open(results.append)
    finally:
        await keys.aclose()
    if results == ["ok"]:
        return [ok("JWT keys", f"JWT_JWKS_URL provides keys for {', '.join(keys.algorithms)}")]
    message = f"JWT_JWKS_URL={mask_url(edge.jwt_jwks_url)} provides no keys for {algorithms}"
    change = "check that the URL is reachable from this machine, and check JWT_ALGORITHMS"
    return [failed("JWT keys", message, change)]


def check_cors(edge: "EdgeSettings") -> list[Finding]:
    """Check that each allowed origin is one that a browser can send."""
    from eventbus_edge.access import instead_of, is_allowed_entry  # noqa: PLC0415

    findings = [
        failed(
            "CORS",
            f"CORS_ALLOWED_ORIGINS has {origin!r}, which no browser sends",
            instead_of(origin),
        )
        for origin in edge.cors_allowed_origins
        if not is_allowed_entry(origin)
    ]
    if findings:
        return findings
    if "*" in edge.cors_allowed_origins:
        change = "list your origins, unless everything is public"
        return [warning("CORS", "any web page may connect", change)]
    allowed = ", ".join(edge.cors_allowed_origins)
    return [ok("CORS", f"allowed: {allowed}" if allowed else "allowed: the edge's own origin")]


async def check_port(edge: "EdgeSettings") -> list[Finding]:
    """Check that the edge's port is free, or that an edge is listening on it."""
    host, port = edge.host, edge.port
    if not edge.websocket_enabled or port == 0:
        return [ok("port", "any free port" if port == 0 else "WebSockets are turned off")]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            why = exc.strerror or str(exc)
        else:
            return [ok("port", f"{port} on {host} is free")]
    if await _is_edge(host, port, tls=bool(edge.tls_cert)):
        return [ok("port", f"{port}: an edge is listening there")]
    change = "stop the program that uses it, or set BROADCAST_WEBSOCKET_PORT to another port"
    return [failed("port", f"{port} on {host}: {why}; no edge is listening there", change)]


async def _is_edge(host: str, port: int, *, tls: bool) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"[{host}]" if ":" in host else host
    url = f"{'https' if tls else 'http'}://{address}:{port}/healthz"
    timeout = aiohttp.ClientTimeout(total=_PROBE_S)
    try:
        # The certificate is for another name than this address. Nothing secret is sent.
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(url, ssl=False, allow_redirects=False) as answer,
        ):
            return answer.headers.get("Server") == "eventbus"
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def check_files(edge: "EdgeSettings") -> list[Finding]:
    """Check that the limit of open files allows the configured number of connections."""
    if sys.platform == "win32":
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux":
        soft = hard  # an edge raises its soft limit
    needed = edge.max_connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return [ok("open files", f"{_count(soft)} for {edge.max_connections:,} connections")]
    raise_it = f"ulimit -n {needed}" if hard == resource.RLIM_INFINITY or hard >= needed else (
        f"raise the limit of {_count(hard)} (LimitNOFILE= in systemd, --ulimit of docker)"
    )  # fmt: skip
    return [
        warning(
            "open files",
            f"{_count(soft)}: too few for BROADCAST_MAX_CONNECTIONS={edge.max_connections}",
            f"{raise_it}, or set BROADCAST_MAX_CONNECTIONS to {max(soft - _OTHER_FILES, 1)}",
        )
    ]


def _count(files: int) -> str:
    # The system's infinity is the largest number that fits, or -1.
    return f"{files:,}" if 0 <= files < 2**62 else "no limit"
