"""No module assigns, adds to or deletes an attribute of another object: objects have methods."""

import ast

import pytest

from tests.structure import ROOT

ALLOWED = {
    # Rows of a table, and objects that a class makes of itself.
    "edge/eventbus_edge/access/rules.py": (
        "combined._authorizers combined._before combined._is_revoked combined._own "
        "guarded._is_revoked"
    ),
    "edge/eventbus_edge/delivery/interest.py": (
        "entry.began entry.holders entry.is_expiring entry.left_at entry.mark entry.position "
        "entry.subscription subscription.on_gap"  # the last one is the interface of drivers
    ),
    "edge/eventbus_edge/presence/members.py": "stay.until",
    "eventbus/tracing.py": "_State.tracing",
    # Counted off the outbox in the hot path, without a call per client.
    "edge/eventbus_edge/delivery/hub.py": "outbox.written",
    # Options of objects of the standard library and of frameworks.
    "edge/eventbus_edge/health.py": "tls.check_hostname tls.verify_mode",
    "edge/eventbus_edge/http/tls.py": "context.sslobject_class context.verify_mode",
    "edge/eventbus_edge/transports/sse.py": "stream.connection",
    "eventbus/cli/app.py": "exc.message info.cls info.help param.metavar",
    "eventbus/drivers/nats/auth.py": "protocol._over_ssl",
    "eventbus/drivers/redis/link.py": "self._connection.socket_timeout",
    "eventbus/log_lines.py": "record.asctime",
    "eventbus/integrations/litestar.py": (
        "app.state.eventbus app_config.dependencies app_config.lifespan app_config.middleware"
    ),
    "eventbus/integrations/starlette.py": (
        "app.router.lifespan_context application.state.eventbus"
    ),
}


def assigned(text):
    """The attributes of other objects that a module assigns, adds to or deletes."""
    changed = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
    }
    return {
        name for name in changed if name.count(".") > 1 or not name.startswith(("self.", "cls."))
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("self.a = 1; cls.b += 1; a = 1", set()),
        ("other.a = 1", {"other.a"}),
        ("self.part.a = 1", {"self.part.a"}),
        ("x, (other.a, *other.b) = 1, (2, 3)", {"other.a", "other.b"}),
        ("other.a += 1; del other.b; other.c: int = 1", {"other.a", "other.b", "other.c"}),
        ("for other.a in (): pass", {"other.a"}),
        ("with f() as other.a: pass", {"other.a"}),
        ("other.a[0] = other.b", set()),
    ],
)
def test_assignment_to_another_object_is_found(text, found):
    assert assigned(text) == found


def test_no_module_assigns_attributes_of_another_object():
    found = {
        str(path.relative_to(ROOT)): assigned(path.read_text(encoding="utf-8"))
        for root in ("eventbus", "edge/eventbus_edge", "schemas")
        for path in (ROOT / root).rglob("*.py")
    }
    allowed = {path: set(names.split()) for path, names in ALLOWED.items()}
    wrong = {path: names - allowed.get(path, set()) for path, names in found.items()}
    assert {path: names for path, names in wrong.items() if names} == {}
    unused = {path: names - found.get(path, set()) for path, names in allowed.items()}
    assert {path: names for path, names in unused.items() if names} == {}
