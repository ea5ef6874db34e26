"""Who may import whom, by packages; docs/architecture.md draws it."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = {
    "eventbus": ROOT / "eventbus",
    "eventbus_edge": ROOT / "edge/eventbus_edge",
    "schemas": ROOT / "schemas",
}
# From the bottom up: a package imports those of lower lines. Those of one line know nothing of
# each other; a line that ends in "+" is of packages that may, without a cycle.
LAYERS = {
    "eventbus": """
        errors tracing backoff ratelimit
        application channels environment urls user_code
        retention tasks
        config messages server
        drivers
        events
        queue subscriptions
        bus
        broadcasting webhooks contracts client
        notifications
        cli testing +""",
    "eventbus_edge": """
        deadlines logs problem background
        config metrics
        protocols framing
        access
        delivery state
        sessions
        presence lifecycle cluster +
        node
        keys
        http transports +
        app
        process health __main__ +""",
}
DRIVERS = {"nats", "redis", "memory", "log", "stack", "null"}
PURE = (
    "access.addresses access.origins access.revocation access.rules access.rules_file deadlines "
    "cluster.rates delivery.hub delivery.outbox framing lifecycle.holdings metrics.tally "
    "presence.members protocols sessions.client_events sessions.effects sessions.limits "
    "sessions.patterns sessions.session sessions.timing"
)
DOORS = {  # what may import a third-party package: a regular expression over modules
    "aiohttp": r"eventbus_edge\.(app|access\.jwks|http|keys|lifecycle\.webhooks|process)\b"
    r"|eventbus_edge\.transports\b|eventbus\.(cli|client|testing)\b",
    "cryptography": r"eventbus_edge\.access\.token_keys",
    "jsonschema_rs": r"eventbus_edge\.sessions\.client_events",
    "jwt": r"eventbus_edge\.access\.(jwks|tokens|token_keys)|eventbus\.cli\.tokens",
    "msgspec": "",
    "nats": r"eventbus\.drivers\.nats\.",
    "nkeys": r"eventbus\.drivers\.nats\.auth",
    "opentelemetry": r"eventbus\.tracing",
    "prometheus_client": r"eventbus_edge\.metrics\.",
    "psutil|rich|typer": r"eventbus\.cli\.",
    "pytest|pytest_asyncio": r"eventbus\.testing\.",
    "redis": r"eventbus\.drivers\.redis\.",
    "uuid_utils": r"eventbus\.(messages\.message|drivers\.memory\.stream)",
    "uvloop": r"eventbus_edge\.__main__|eventbus\.cli\.",
    "watchfiles": r"eventbus\.cli\.dev\.",
    "websockets": r"eventbus_edge\.framing\.extensions",
}
IMPURE = {"asyncio", "socket", "ssl", "threading", "aiohttp", "nats", "redis", "prometheus_client"}


def _name(root: str, path: Path) -> str:
    parts = (root, *path.relative_to(SOURCES[root]).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    _name(root, path): ast.parse(path.read_text(encoding="utf-8"))
    for root, folder in SOURCES.items()
    for path in sorted(folder.rglob("*.py"))
}


def _targets(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"a relative import: {ast.unparse(node)}"
    inner = {f"{node.module}.{alias.name}" for alias in node.names}
    return {name if name in TREES else str(node.module) for name in inner}


IMPORTS = [
    (module, target)
    for module, tree in TREES.items()
    for node in ast.walk(tree)
    for target in _targets(node)
]  # all of them: in functions and under TYPE_CHECKING too


def _floor(module: str) -> tuple[int, str, bool]:
    root, *rest = module.split(".")
    for number, line in enumerate(LAYERS[root].strip().splitlines()):
        if rest and rest[0] in line.split():
            return number, rest[0], "+" in line
    raise AssertionError(f"{module} has no place in LAYERS: give it one")


def _within(module: str, names: str, root: str = "eventbus_edge") -> bool:
    return any(f"{module}.".startswith(f"{root}.{name}.") for name in names.split())


def test_library_edge_and_catalogue_keep_their_directions():
    allowed = {
        "eventbus": {"eventbus"},
        "eventbus_edge": {"eventbus", "eventbus_edge"},
        "schemas": {"eventbus", "schemas"},
    }
    assert not [
        (module, target)
        for module, target in IMPORTS
        if (root := target.split(".")[0]) in SOURCES
        and root not in allowed[module.split(".")[0]]
        and not _within(module, "cli testing", "eventbus")  # they start edges
    ]


def test_packages_import_those_of_lower_layers_only():
    wrong = []
    for module, target in IMPORTS:
        root = module.split(".")[0]
        if target in SOURCES:  # the public API of another package
            assert target != root or module == root, f"{module} imports its own root"
        elif target.startswith(f"{root}.") and root in LAYERS and module != root:
            floor, package, _ = _floor(module)
            below, other, may_be_level = _floor(target)
            if package != other and not (below < floor or (below == floor and may_be_level)):
                wrong.append((module, target))
    assert not wrong


def test_there_is_no_import_cycle_not_even_for_types():
    graph: dict[str, set[str]] = {module: set() for module in TREES}
    for module, target in IMPORTS:
        if target in TREES and target != module:
            graph[module].add(target)
    graphlib.TopologicalSorter(graph).prepare()


def test_drivers_do_not_know_each_other():
    families = [
        (module, *(name.split(".")[2:3] for name in (module, target)), target)
        for module, target in IMPORTS
        if module.startswith("eventbus.drivers.") and target.startswith("eventbus.drivers.")
    ]
    assert not [
        (module, target)
        for module, [own], [other], target in families
        if own in DRIVERS and other in DRIVERS and own != other
    ]


def test_what_is_pure_does_no_input_or_output():
    assert not [
        (module, target)
        for module, target in IMPORTS
        if _within(module, PURE)
        and (target.split(".")[0] in IMPURE or _within(target, "bus server cli", "eventbus"))
    ]


def test_each_dependency_has_its_doors():
    doors = {name: door for names, door in DOORS.items() for name in names.split("|")}
    assert not [
        (module, target)
        for module, target in IMPORTS
        if (package := target.split(".")[0]) not in sys.stdlib_module_names | SOURCES.keys()
        and not re.match(doors.get(package, "none"), f"{module}.")
    ]


def test_import_of_the_library_loads_no_heavy_dependency():
    heavy = {"typer", "redis", "nats", "psutil", "pytest", "aiohttp", "eventbus_edge"}
    code = f"import sys, eventbus; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == []


def test_folder_has_at_most_16_modules():
    modules = Counter(
        path.parent
        for folder in SOURCES.values()
        for path in folder.rglob("*.py")
        if path.stem != "__init__"
    )
    assert not {str(folder): count for folder, count in modules.items() if count > 16}


def test_wheel_owns_no_other_top_level_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {path.rpartition("/")[2] for path in packages} == {"eventbus", "eventbus_edge"}


def test_environment_is_read_in_one_place():
    readers = [
        module
        for module, tree in TREES.items()
        if not _within(module, "environment cli", "eventbus")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert readers == []
