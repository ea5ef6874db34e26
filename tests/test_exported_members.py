"""What the packages export, kept on purpose: a change here is a change of the public API."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import eventbus
import eventbus.errors
import eventbus_edge
import schemas

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("eventbus", "schemas")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "guard" and not {"cli", "django"} & set(path.parts)  # Django needs settings
)

EXPORTED = {
    "AlertLevel", "Broadcast", "broadcast", "broadcast_to_channel", "broadcast_to_organization",
    "broadcast_to_team", "broadcast_to_user",
    "BusState", "BusStateError", "CallbackFailed", "ChannelKind", "ClientClosed",
    "ClientDisconnected",
    "ClientError", "ClientEvent", "ClientRefused", "ClusterBusy", "ClusterError",
    "ConfigError", "ConnectionFailed",
    "DispatchFailed", "DriverError", "EncodingError", "Event", "EventBus", "EventBusError",
    "EventContext", "EventDefinition", "EventDefinitionError", "EventFieldError", "EventMeta",
    "EventSubscription", "FailedJob", "InvalidChannel", "InvalidEventName", "InvalidName",
    "InvalidPattern", "InvalidPayload", "InvalidWebhook", "JobRejected", "JobRetry", "JobTimeout",
    "Listeners", "Message", "NoEdge", "NoListener", "NotSupported",
    "Pattern", "PublishDenied", "PublishFailed", "QueuePolicy", "Receipt", "ServerError",
    "Settings",
    "ShouldBroadcast", "ShouldQueue", "StreamMismatch", "Subjects", "SubscribeDenied",
    "TokenIssuer", "TokenUser", "UnknownEvent", "Worker", "issue_token",
    "WorkerLost", "create_driver", "event_definition", "event_type", "event_types", "listen",
    "user_channel", "validate_channel", "validate_event_name",
}  # fmt: skip


def test_eventbus_exports_what_a_service_needs_and_nothing_else():
    assert set(eventbus.__all__) == EXPORTED


def test_every_error_is_exported():
    assert set(eventbus.errors.__all__) <= set(eventbus.__all__)


@pytest.mark.parametrize("package", [eventbus, schemas, eventbus_edge], ids=lambda p: p.__name__)
def test_exports_are_sorted_exist_and_are_documented(package):
    names = getattr(package, "__all__", [])
    assert list(names) == sorted(
        names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    for name in names:
        assert inspect.getdoc(getattr(package, name)), f"{name} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_all_of_a_module_names_what_is_there(module):
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        assert hasattr(loaded, name)


def test_the_error_tree_in_the_docstring_is_the_real_one():
    drawn, parents = set(), {}
    for line in eventbus.errors.__doc__.splitlines():
        plain = re.sub("[│├└─]", " ", line)
        name = plain.split()[0] if plain.strip() else ""
        if name in eventbus.errors.__all__:
            depth = (len(plain) - len(plain.lstrip())) // 4
            parents[depth] = name
            drawn.add((name, parents.get(depth - 1, "Exception")))
    real = {
        (name, getattr(eventbus.errors, name).__mro__[1].__name__)
        for name in eventbus.errors.__all__
    }
    assert drawn == real


def test_no_error_takes_the_name_of_a_builtin():
    builtins = set(dir(importlib.import_module("builtins")))
    assert builtins.isdisjoint(eventbus.errors.__all__)


def test_every_error_can_be_identified_by_its_docstring():
    tree = ast.parse(Path(eventbus.errors.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            assert ast.get_docstring(node), node.name
