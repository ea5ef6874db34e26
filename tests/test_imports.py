"""Which package may import which; docs/architecture.md draws it. structure.py does the work."""

import pytest

from tests.structure import PROJECT, dotted, modules_loaded_by, table, wheel_names

pytestmark = pytest.mark.xdist_group("imports")  # one worker parses all

# From the bottom up, separated by "/". Packages of a layer with "+" may import each other.
LAYERS = {
    "eventbus": """errors tracing attempts pacing / application channels environment urls user_code
        / log_lines retention tasks / config messages server / tokens / drivers / events cluster
        / queue subscriptions / bus / sync outbox / broadcasting webhooks contracts client
        / notifications / cli testing + / integrations""",
    "eventbus_edge": """child_output deadlines turns logs problem background / lingering / config
        metrics / protocols framing state / access / delivery / sessions
        / presence lifecycle cluster + / node / keys / http transports + / pusher / app
        / process health __main__ +""",
}  # fmt: skip
# Below, names are those in `eventbus`, and `edge.` means `eventbus_edge.`.
PURE = dotted("""cluster.gather cluster.revocation edge.access.addresses edge.access.origins
    edge.access.revocation edge.access.rules edge.access.rules_file edge.cluster.rates
    edge.deadlines edge.delivery.hub edge.delivery.outbox edge.framing edge.lifecycle.holdings
    edge.metrics.tally edge.presence.members edge.protocols edge.sessions.client_events
    edge.sessions.effects edge.sessions.limits edge.sessions.patterns edge.sessions.session
    edge.sessions.timing""")
IMPURE = (
    f"asyncio socket ssl threading aiohttp nats prometheus_client redis {dotted('bus server cli')}"
)
DOORS = table("""aiohttp: edge.app edge.access.jwks edge.http edge.keys edge.lifecycle.webhooks ;
    aiohttp: edge.process edge.pusher edge.transports cli client testing ; nats: drivers.nats ;
    multidict: edge.http.front edge.transports ; nkeys: drivers.nats.auth ; redis: drivers.redis ;
    websockets: edge.framing.extensions ; asgiref celery django fastapi flask litestar starlette:
    integrations ; sqlalchemy: integrations outbox cli.outbox ; pydantic: messages.models ; jwt:
    edge.access.jwks edge.access.tokens edge.access.token_keys tokens ; cryptography:
    edge.access.token_keys ; jsonschema_rs: edge.sessions.client_events ; prometheus_client:
    edge.metrics events.rescue outbox.metrics ; opentelemetry: tracing ; uuid_utils:
    messages.message drivers.memory.stream ; uvloop: edge.__main__ cli ; psutil rich typer: cli ;
    watchfiles: cli.dev ; pytest pytest_asyncio: testing ; msgspec: *""")
TOOLS, ENVIRONMENT = dotted("cli testing"), dotted("environment cli")
# They decode what this process has encoded or checked, single strings, or files of this library.
OWN_DECODERS = dotted("""messages.envelope messages.json_depth messages.models cluster.cluster
    edge.protocols.pusher edge.presence.keeper edge.access.authorizers tokens server events.event
    contracts.strict_json cli.subjects.json_text testing""")
DRIVERS = dotted("drivers.nats drivers.redis drivers.memory drivers.log drivers.stack drivers.null")
# Imported by their paths: commands, integrations, and what needs an optional dependency.
ENTRY_POINTS = dotted("cli integrations outbox.database outbox.metrics outbox.table")
HEAVY = {"typer", "pydantic", "redis", "nats", "psutil", "pytest", "aiohttp", "eventbus_edge"}
RULES = {
    "the library imports none of the others": lambda: PROJECT.wrong_directions("eventbus", TOOLS),
    "packages import those of lower layers only": lambda: PROJECT.against_layers(LAYERS),
    "others import a package, not its modules": lambda: PROJECT.past_packages(ENTRY_POINTS),
    "drivers do not import each other": lambda: PROJECT.between(DRIVERS),
    "there is no import cycle, not even for types": PROJECT.cycle,
    "pure modules do no input or output": lambda: PROJECT.uses(PURE, IMPURE),
    "settings come from one module": lambda: PROJECT.readers("environ getenv", ENVIRONMENT),
    "other JSON is decoded by messages.json_decoder": lambda: PROJECT.decoders(OWN_DECODERS),
    "a dependency is imported by its doors only": lambda: PROJECT.outside_doors(DOORS),
    "a folder has at most 16 modules": lambda: PROJECT.crowded_folders(16),
    "import of the library loads nothing heavy": lambda: HEAVY & modules_loaded_by("eventbus"),
    "the wheel has no other top-level names": lambda: wheel_names() ^ {"eventbus", "eventbus_edge"},
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    assert not RULES[rule]()
