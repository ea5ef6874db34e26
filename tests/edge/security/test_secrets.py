"""Secrets in the settings appear nowhere: not in output, and not in errors."""

import asyncio
import traceback

import pytest
from rich.console import Console

from eventbus.config import Settings
from eventbus.environment import SettingsStruct, variables
from eventbus.integrations.pusher import PusherApp
from eventbus.tokens import TokenIssuer
from eventbus_edge.config import EdgeSettings

STRUCTS = (Settings, EdgeSettings, TokenIssuer, PusherApp)
MARK = "s3cr3t-pass"
VALUES = {
    "NATS_URL": f"nats://app:{MARK}-1@127.0.0.1:1",
    "BROADCAST_REDIS_URL": f"redis://app:{MARK}-2@127.0.0.1:1/0",
    "JWT_JWKS_URL": f"https://app:{MARK}-3@127.0.0.1:1/keys?key={MARK}-4",
    "BROADCAST_WEBHOOK_URL": f"https://app:{MARK}-5@127.0.0.1:1/hooks?key={MARK}-6",
    "PUSHER_WEBHOOK_URL": f"https://app:{MARK}-7@127.0.0.1:1/hooks?key={MARK}-8",
}


def subclasses(struct):
    for each in struct.__subclasses__():
        yield each
        yield from subclasses(each)


def secrets_of(struct):
    return [variable for variable in variables(struct) if variable.secret]


def filled(struct):
    """Settings in which every secret is set."""
    given = {
        each.field: VALUES.get(each.name, f"{MARK}-{each.name}-" + "x" * 40)
        for each in secrets_of(struct)
    }
    if struct is TokenIssuer:
        del given["private_key"]  # there is one key or the other
    if struct is PusherApp:
        given |= {"id": "1", "key": "public"}
    return struct(**given)


def test_every_struct_of_settings_is_checked_here():
    ours = {each for each in subclasses(SettingsStruct) if each.__module__.startswith("eventbus")}
    with_secrets = {each for each in ours if secrets_of(each)}
    assert {each for each in with_secrets if not subclasses_in(each, with_secrets)} <= set(STRUCTS)


def subclasses_in(struct, others):
    return any(each in others for each in subclasses(struct))


@pytest.mark.parametrize("struct", STRUCTS)
def test_settings_show_that_a_secret_is_set_and_not_which(struct):
    settings = filled(struct)
    console = Console(width=10_000, record=True, quiet=True)
    console.print(settings)
    shown = f"{settings!r} {settings} {console.export_text()}"
    assert MARK not in shown
    assert shown.count("***") >= len(secrets_of(struct)) - 1
    for name in ("secret", "password", "api_key", "encryption_key", "nats_url", "_url"):
        declared = [each for each in variables(struct) if each.field.endswith(name)]
        assert all(each.secret for each in declared), "a setting with this name is a secret"


def test_traceback_with_the_values_of_locals_shows_no_secret():
    settings = filled(EdgeSettings)  # noqa: F841 - a local of the traceback
    try:
        {}["a fault beside the settings"]
    except KeyError as exc:
        shown = traceback.TracebackException.from_exception(exc, capture_locals=True)
    text = "".join(shown.format())
    assert "settings = EdgeSettings(" in text
    assert MARK not in text


@pytest.fixture
def environ(nats_server):
    """Every secret of a node, each different. Without users, nats-server accepts any password."""
    url = nats_server.url.replace("://", f"://app:{MARK}-nats@")
    return {
        "NATS_URL": url,
        "BROADCAST_API_KEY": f"{MARK}-api-key-of-a-node",
        "JWT_SECRET": f"{MARK}-jwt-" + "x" * 40,
        "BROADCAST_WEBHOOK_SECRET": f"{MARK}-webhook-of-a-node",
        "BROADCAST_WEBHOOK_URL": f"http://app:{MARK}-hook@127.0.0.1:1/hooks?key={MARK}-query",
        "BROADCAST_WEBHOOK_TRIES": "1",
        "BROADCAST_LIFECYCLE_LINGER": "0.1",
        "PUSHER_APP_ID": "1",
        "PUSHER_APP_KEY": "public",
        "PUSHER_APP_SECRET": f"{MARK}-pusher-of-a-node",
        "PUSHER_WEBHOOK_URL": f"http://app:{MARK}-phook@127.0.0.1:1/hooks?key={MARK}-pquery",
        "PUSHER_ENCRYPTION_KEY": "czNjcjN0LXBhc3MtZW5jcnlwdGlvbi1rZXktMzItYnk=",
    }


HIDDEN = (MARK, "czNjcjN0LXBhc3M")


async def test_node_shows_no_secret_in_answers_metrics_and_log(
    environ, start_process, connect, http_session
):
    edge = await start_process(EDGE_LOG_LEVEL="debug", **environ)
    shown = []
    good = {"Authorization": f"Bearer {environ['BROADCAST_API_KEY']}"}
    wrong = {"Authorization": "Bearer a.b.c"}
    paths = (
        "/", "/healthz", "/readyz", "/metrics", "/dashboard", "/api/docs", "/api/openapi.json",
        "/api/asyncapi.json", "/api/broadcast/stats", "/api/broadcast/nodes",
        "/api/broadcast/channels", "/api/queue/failed", "/apps/1/channels", "/nothing",
    )  # fmt: skip
    async with http_session() as session:
        for path in paths:
            for headers in ({}, good, wrong):
                async with session.get(f"{edge.url}{path}", headers=headers) as response:
                    shown.append((path, str(response.headers) + await response.text()))
        for path in ("/broadcasting/auth", "/api/broadcast/events", "/apps/1/events"):
            async with session.post(f"{edge.url}{path}", json={"a": 1}) as response:
                shown.append((path, str(response.headers) + await response.text()))
        client = await connect(edge.port, "/ws/general")
        for frame in (
            "nonsense",
            '{"action":"auth","data":{"token":"a.b.c"}}',
            '{"action":"stats"}',
        ):
            await client.socket.send(frame)
        async with asyncio.timeout(30):
            # The post of a webhook has failed, and its error is stored and listed.
            while True:
                async with session.get(f"{edge.url}/api/queue/failed", headers=good) as response:
                    text = await response.text()
                    assert response.status == 200
                    if "127.0.0.1:1/hooks" in text:
                        break
                await asyncio.sleep(0.1)
        shown.append(("failed jobs", text))
    edge.terminate()
    code, log = await edge.end()
    assert code == 0
    shown.append(("the log", log))
    assert [place for place, text in shown if any(each in text for each in HIDDEN)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"JWT_ALGORITHMS": "RS256"},
        {"JWT_JWKS_URL": f"gopher://{MARK}-x@127.0.0.1"},
        {"BROADCAST_WEBHOOK_URL": f"gopher://app:{MARK}-x@127.0.0.1"},
        {"NATS_URL": f"nats://app:{MARK}-x@127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": "0.2"},
        {"NATS_URL": f"nats://app:{MARK}-x@:::"},
        {"PUSHER_ENCRYPTION_KEY": f"{MARK}-x"},
        {"PUSHER_APP_ID": "none"},
        {"BROADCAST_ENVIRONMENT": "production", "JWT_SECRET": MARK * 4},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_node_that_cannot_start_says_why_without_a_secret(environ, start_process, change):
    with pytest.raises(AssertionError, match=r"(?s)the edge did not start: .*error: ") as caught:
        await start_process(**environ | change)
    assert not any(each in str(caught.value) for each in HIDDEN)
