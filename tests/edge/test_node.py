"""The structure of a node: few parts, and none of them is changed from outside."""

import ast
from pathlib import Path

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus_edge.access.rules import ChannelRules
from eventbus_edge.config import EdgeSettings
from eventbus_edge.node import Node

SOURCES = Path(__file__).parents[2] / "edge/eventbus_edge"
ALLOWED = {
    # Rows of a table, and objects that a class makes of itself.
    "access/rules.py": {
        "made._authorizers", "made._before", "made._is_revoked", "made._own",
    },
    "delivery/interest.py": {
        "entry.holders", "entry.is_expiring", "entry.left_at", "entry.mark", "entry.position",
        "entry.subscription",
        "subscription.on_gap",  # the interface of drivers
    },
    "presence/members.py": {"stay.until"},
    # Counted off the outbox in the hot path, without a call per client.
    "delivery/hub.py": {"outbox.written"},
    # Options of objects of the standard library.
    "health.py": {"tls.check_hostname", "tls.verify_mode"},
    "http/tls.py": {"context.sslobject_class", "context.verify_mode"},
    "transports/sse.py": {"stream.connection"},
}  # fmt: skip


def assigned(path):
    """The attributes of other objects that a module assigns."""
    targets = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets.append(node.target)
    flat = [each for target in targets for each in getattr(target, "elts", [target])]
    attributes = {ast.unparse(each) for each in flat if isinstance(each, ast.Attribute)}
    own = ("self", "cls")
    return {name for name in attributes if name.count(".") > 1 or name.split(".")[0] not in own}


async def test_node_has_at_most_a_dozen_public_parts():
    async with EventBus(Settings(driver="memory")) as bus:
        node = Node(bus, EdgeSettings(), ChannelRules(), None)
        assert len([name for name in vars(node) if not name.startswith("_")]) <= 12


def test_no_module_assigns_attributes_of_another_object():
    found = {
        str(path.relative_to(SOURCES)): names
        for path in SOURCES.rglob("*.py")
        if (names := assigned(path))
    }
    assert {
        name: extra for name, names in found.items() if (extra := names - ALLOWED.get(name, set()))
    } == {}
