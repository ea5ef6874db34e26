"""All targets, and the modules that decode something but need no target."""

from collections.abc import Mapping
from typing import Final

from tests.fuzz import edge as _edge, library as _library
from tests.fuzz.target import CORPUS, MOST_FILES, MOST_KEPT_BYTES, TARGETS, Target, kept, name_of

__all__ = [
    "CORPUS", "EXEMPT", "MOST_FILES", "MOST_KEPT_BYTES", "TARGETS", "Target", "kept", "name_of",
]  # fmt: skip

assert _edge
assert _library

EXEMPT: Final[Mapping[str, str]] = {
    "eventbus.cluster.inquiry": "reads infos that decode_entry has encoded",
    "eventbus.cli.chaos.receivers": "reads frames of the user's own edges, and reports bad ones",
    "eventbus.cli.doctor.power": "reads what nats-server's monitoring has written",
    "eventbus.cli.subjects.tail": "reads envelopes that read_payload has made",
    "eventbus.drivers.nats.history": "reads times that nats-server has written",
    "eventbus.drivers.nats.identity": "reads times that nats-server has written",
    "eventbus.events.data_types": "decodes what callers pass, with json_decoder",
    "eventbus.server.advisories": "reads a file of this package",
    "eventbus.server.server": "reads a file that nats-server has written",
    "eventbus.testing.recorder": "reads what the test itself has published",
    "eventbus.testing.records": "reads what the test itself has published",
    "eventbus.testing.websocket": "reads frames of an edge of the same process",
    "eventbus.tokens": "reads claims that it has encoded",
}
