"""Who may import whom (the rules of the design), read from the source of every module."""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("edge", "eventbus", "schemas")

LAYERS = [
    {
        "eventbus.completion",
        "eventbus.errors",
        "eventbus.server_guard",
        "eventbus.signatures",
        "eventbus.tracing",
        "eventbus.urls",
    },
    {
        "eventbus.application",
        "eventbus.channels",
        "eventbus.environment",
        "eventbus.server_lock",
        "eventbus.user_code",
    },
    {"eventbus.pool", "eventbus.retention", "eventbus.tasks"},
    {"eventbus.message", "eventbus.config", "eventbus.server"},
    {
        "eventbus.envelope",
        "eventbus.current",
        "eventbus.headers",
        "eventbus.queue",
        "eventbus.receipts",
        "eventbus.templates",
    },
    {"eventbus.definition"},
    {"eventbus.drivers", "eventbus.events"},
    {"eventbus.data_types"},
    {"eventbus.decoding", "eventbus.delayed", "eventbus.outgoing"},
    {
        "eventbus.jobs",
        "eventbus.listeners",
        "eventbus.subscriptions",
        "eventbus.transaction",
        "eventbus.using",
    },
    {"eventbus.sending"},
    {"eventbus.bus"},
    {"eventbus.job_runner"},
    {
        "eventbus.broadcasting",
        "eventbus.contracts",
        "eventbus.client",
        "eventbus.webhooks",
        "eventbus.worker",
    },
    {"eventbus.notifications"},
    {"eventbus.cli"},
    {"eventbus.testing"},
]
"""From the innermost: a module imports what lies further in, and from its own package."""

DOORS = {
    "aiohttp": {
        "edge.api", "edge.app", "edge.body", "edge.dashboard", "edge.docs_page",
        "edge.entrance", "edge.http_api", "edge.http_server", "edge.jwks", "edge.keys",
        "edge.listening", "edge.problem", "edge.serving", "edge.sse", "edge.static_files",
        "edge.tls", "edge.traces", "edge.webhook_post", "edge.websocket",
        "eventbus.cli", "eventbus.client", "eventbus.testing",
    },
    "cryptography": {"edge.token_keys"},
    "jwt": {"edge.auth", "edge.jwks", "edge.token_keys", "eventbus.cli.tokens"},
    "jsonschema_rs": {"edge.client_events"},
    "msgspec": set(PACKAGES),
    "nats": {"eventbus.drivers.nats*", "eventbus.queue", "eventbus.listeners"},
    "nkeys": {"eventbus.drivers.nats*"},
    "opentelemetry": {"eventbus.tracing"},
    "prometheus_client": {"edge.metrics*"},
    "psutil": {"eventbus.cli"},
    "pytest": {"eventbus.testing"},
    "pytest_asyncio": {"eventbus.testing"},
    "redis": {"eventbus.drivers.redis*"},
    "rich": {"eventbus.cli"},
    "typer": {"eventbus.cli"},
    "uuid_utils": {"eventbus.message", "eventbus.drivers.memory_stream"},
    "uvloop": {"edge.__main__", "eventbus.cli"},
    "watchfiles": {"eventbus.cli.dev"},
    "websockets": {"edge.protocols.extensions"},
}  # fmt: skip
"""Each third-party package, and the modules (or packages, or beginnings of names) that use it."""

PURE = (
    "edge.client_events",
    "edge.effects",
    "edge.session",
    "edge.session_patterns",
    "edge.session_time",
    "edge.hub",
    "edge.outbox",
    "edge.tally",
    "edge.channel_rates",
    "edge.lag",
    "edge.protocols",
    "edge.deadlines",
    "edge.rules",
    "edge.limits",
    "edge.addresses",
    "edge.lifecycle",
    "edge.presence",
    "edge.revocation",
    "edge.rules_file",
    "edge.rules_told",
)
"""The edge's ring without input and output, tested without sockets."""
RING = (*PURE, "edge.auth", "edge.token_keys")  # pure, but for reading the keys
IMPURE = {"asyncio", "socket", "ssl", "threading", "aiohttp", "nats", "redis", "prometheus_client"}


class Import(NamedTuple):
    module: str
    """The module that imports."""
    target: str
    line: int
    lazy: bool
    """Whether loading the module does without it: it stands in a function, or is for types."""


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in path.parts
}


def _imports(module: str, tree: ast.AST) -> Iterator[Import]:
    def walk(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(module, inner if inner in MODULES else base, node.lineno, lazy)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy=lazy or inside)

    return walk(tree, lazy=False)


IMPORTS = [
    one
    for module, path in MODULES.items()
    for one in _imports(module, ast.parse(path.read_text(encoding="utf-8")))
]


def _within(module: str, *names: str) -> bool:
    return any(
        module.startswith(name[:-1]) if name.endswith("*") else f"{module}.".startswith(f"{name}.")
        for name in names
    )


def _layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if _within(module, *names):
            return number
    raise AssertionError(f"{module} has no place in LAYERS: give it one")


def _told(imports: list[Import]) -> list[str]:
    return [f"{one.module}:{one.line} imports {one.target}" for one in imports]


def test_the_modules_are_found():
    assert {"eventbus", "eventbus.bus", "edge.session", "schemas.chat"} <= MODULES.keys()
    assert len(IMPORTS) > 100


def test_packages_keep_their_directions():
    allowed = {"eventbus": {"eventbus"}, "edge": {"edge", "eventbus"},
               "schemas": {"schemas", "eventbus"}}  # fmt: skip
    wrong = [
        one
        for one in IMPORTS
        if (package := one.target.split(".")[0]) in PACKAGES
        and package not in allowed[one.module.split(".")[0]]
        # The command line and the parts for tests start edges: they stand above the edge.
        and not (package == "edge" and _within(one.module, "eventbus.cli", "eventbus.testing"))
    ]
    assert _told(wrong) == []


def test_layers_of_the_library_import_inwards_only():
    wrong = []
    for one in IMPORTS:
        if not (_within(one.module, "eventbus") and _within(one.target, "eventbus")):
            continue
        if one.module == "eventbus":
            continue
        same_package = one.module.split(".")[1] == (*one.target.split("."), "")[1]
        if not same_package and _layer(one.target) >= _layer(one.module):
            wrong.append(one)
    assert _told(wrong) == []


def test_no_module_imports_the_root_of_its_own_package():
    wrong = [one for one in IMPORTS if one.target in PACKAGES and one.target != one.module
             and one.module.split(".")[0] == one.target]  # fmt: skip
    assert _told(wrong) == []


def test_drivers_know_neither_events_nor_each_other():
    wrong = []
    for one in IMPORTS:
        if not one.module.startswith("eventbus.drivers."):
            continue
        if one.module == "eventbus.drivers.registry":  # it makes them
            continue
        family = one.module.split(".")[2].split("_")[0]
        if _within(one.target, "eventbus.events", "eventbus.outgoing", "eventbus.current"):
            wrong.append(one)
        elif _within(one.target, "eventbus.drivers"):
            other = (*one.target.split("."), "")[2].split("_")[0]
            if other not in (family, "base"):
                wrong.append(one)
    assert _told(wrong) == []


def test_the_edges_ring_does_no_input_or_output():
    wrong = [
        one
        for one in IMPORTS
        if _within(one.module, *PURE)
        and (
            one.target.split(".")[0] in IMPURE
            or (_within(one.target, "edge") and not _within(one.target, *RING))
            or _within(one.target, "eventbus.bus", "eventbus.server", "eventbus.cli")
        )
    ]
    assert _told(wrong) == []


def test_every_dependency_has_its_doors():
    wrong = []
    for one in IMPORTS:
        package = one.target.split(".")[0]
        if package in sys.stdlib_module_names or package in PACKAGES:
            continue
        if not _within(one.module, *DOORS.get(package, ())):
            wrong.append(one)
    assert _told(wrong) == []


@pytest.mark.parametrize("package", ["typer", "redis", "nats", "psutil", "pytest", "aiohttp"])
def test_heavy_dependency_is_loaded_only_by_those_who_ask_for_it(package):
    """No chain of imports leads from `import eventbus` to it."""
    reached, queue = set(), ["eventbus"]
    while queue:
        module = queue.pop()
        if module in reached:
            continue
        reached.add(module)
        queue += [one.target for one in IMPORTS if one.module == module and not one.lazy]
    assert package not in {module.split(".")[0] for module in reached}


def test_there_is_no_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for one in IMPORTS:
        if not one.lazy and one.target in MODULES and one.target != one.module:
            graph[one.module].add(one.target)
    graphlib.TopologicalSorter(graph).prepare()


def test_the_environment_is_read_in_one_place():
    readers = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if not _within(module, "eventbus.environment", "eventbus.cli")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert readers == []
