"""Several apps on one port, each with clients, limits, webhooks and a namespace of its own."""

import asyncio
import functools
import json

import aiohttp
import msgspec
import pusher
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from eventbus.bus import EventBus
from eventbus.channels import ChannelKind, Pattern
from eventbus.errors import ConfigError
from eventbus.events import current
from eventbus.integrations.pusher import PusherApp, sign_user
from eventbus_edge.access import ANYONE, ChannelRules, Rule
from eventbus_edge.config import EdgeSettings
from eventbus_edge.pusher import read_apps
from tests.edge.conftest import SECRET, sign
from tests.edge.pusher.test_api import APP, SETTINGS, Client, request

SHOP = PusherApp(id="2001", key="shop-key", secret="secret-of-the-shop")
GAME = PusherApp(id="2002", key="game-key", secret="secret-of-the-game")
PATIENCE_S = 40


def table(app, more=""):
    return f'[[app]]\nid = "{app.id}"\nkey = "{app.key}"\nsecret = "{app.secret}"\n{more}\n'


@pytest.fixture
def write(tmp_path):
    """Write a file of apps, and return its path."""

    def write(text):
        path = tmp_path / "apps.toml"
        path.write_text(text)
        return str(path)

    return write


# The file


def read(path, **settings):
    return read_apps(EdgeSettings(pusher_apps=path, **settings))


def test_app_has_its_own_settings_and_otherwise_those_of_the_process(write):
    path = write(
        table(SHOP, 'max_connections = 5\nallowed_origins = ["https://shop.example"]')
        + table(GAME, 'subscription_counts = true\nwebhook_events = ["channel_occupied"]')
    )
    shop, game = read(path, max_connections=9, presence_grace=1.0)
    assert (shop.credentials, game.credentials) == (SHOP, GAME)
    assert (shop.settings.max_connections, game.settings.max_connections) == (5, 9)
    assert shop.settings.cors_allowed_origins == ("https://shop.example",)
    assert game.settings.cors_allowed_origins == ()
    assert game.settings.pusher_subscription_counts
    assert game.settings.pusher_webhook_events == ("channel_occupied",)
    assert shop.settings.presence_grace == 1.0


def test_secrets_and_receivers_of_the_process_are_not_those_of_an_app(write):
    key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    [app] = read(
        write(table(SHOP)),
        pusher_encryption_key=key,
        pusher_webhook_url="https://example.com/a",
        webhook_url="https://example.com/b",
        webhook_secret="x" * 16,
        **SETTINGS,
    )
    made = app.settings
    assert (made.pusher_encryption_key, made.pusher_webhook_url, made.webhook_url) == ("", "", "")
    assert made.pusher_app_secret == SHOP.secret


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1 to 100"),
        ("[[apps]]", "[[app]]"),
        ("[[app]", "line 1"),
        ("[[app]]\nkey = 'k'", "[[app]] number 1: id is missing; allowed: 1 to 20 digits"),
        (table(SHOP) + "[[app]]\nid = '7'\nkey = 'k'", "number 2 (id 7): secret is missing"),
        (table(SHOP, "colour = 1"), "number 1 (id 2001): there is no field 'colour'; allowed: id"),
        (table(SHOP).replace("2001", "shop"), "id: "),
        (table(SHOP).replace("shop-key", "a/b"), "key: "),
        (table(SHOP).replace(SHOP.secret, "short"), "secret: "),
        (table(SHOP).replace('"2001"', "2001"), "id: Expected `str`, got `int`"),
        (table(SHOP, "max_connections = 0"), "max_connections: "),
        (table(SHOP, "max_connections = '9'"), "max_connections: Expected `int`"),
        (table(SHOP, "allowed_origins = ['https://a.example/path']"), "allowed_origins is not"),
        (table(SHOP, "allowed_origins = 'https://a.example'"), "allowed_origins: Expected"),
        (table(SHOP, "webhook_url = 'ftp://a.example'"), "webhook_url is not valid"),
        (table(SHOP, "webhook_events = ['x']"), "webhook_events: "),
        (table(SHOP, "encryption_key = 'short'"), "encryption_key is not valid"),
        (table(SHOP, "auth_cookie = 'a b'"), "auth_cookie is not valid"),
        (table(SHOP, "jwt_secret = 'short'"), "(id 2001): "),
        (table(SHOP) + table(SHOP), "another app has the same id"),
        (table(SHOP) + table(GAME).replace("game-key", "shop-key"), "another app has the same key"),
        (table(SHOP).replace("2001", APP.id), "another app has the same id"),
        (table(SHOP).replace("shop-key", APP.key), "another app has the same key"),
        ("".join(table(SHOP) for _ in range(101)), "has 101 apps"),
    ],
    ids=range(24),
)
def test_file_that_is_not_valid_is_refused_with_app_and_field(write, text, words):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        read(path, **SETTINGS)
    assert caught.value.variable == "PUSHER_APPS"
    assert path in str(caught.value)
    assert words in str(caught.value)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("field", ["secret", "jwt_secret"])
def test_secrets_that_could_be_guessed_are_refused_in_production_only(write, field):
    strong, weak = "Qk7vXw2pLr9TzB4nYc6HsD1mJf8GaE3u", "change-me-" * 4

    def apps(**values):
        values = {"secret": strong, **values}
        lines = (f'{name} = "{value}"' for name, value in values.items())
        return write("\n".join(['[[app]]\nid = "2001"\nkey = "shop-key"', *lines]))

    read(apps(**{field: strong}), environment="production")
    read(apps(**{field: weak}))
    with pytest.raises(ConfigError) as caught:
        read(apps(**{field: weak}), environment="production")
    assert f"(id 2001): {field} contains 'change-me'" in str(caught.value)
    assert "openssl rand" in str(caught.value)
    assert weak not in str(caught.value)


def test_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match="can be read"):
            read(str(path))


def test_webhooks_without_lifecycle_events_are_refused(write):
    path = write(table(SHOP, "webhook_url = 'https://a.example'"))
    with pytest.raises(ConfigError, match="BROADCAST_LIFECYCLE=auto"):
        read(path, lifecycle="off")


# On one port


@pytest.fixture
def start(start_edge, bus, write):
    """Start a node: `await start(shop="max_connections = 1")`."""

    async def start(shop="", game="", **changes):
        apps = write(table(SHOP, shop) + table(GAME, game))
        fast = {"presence_grace": 0.0, "unsubscribe_after": 0.0}
        return await start_edge(bus, pusher_apps=apps, **fast | SETTINGS | changes)

    return start


class AppClient(Client):
    """A client of an app."""

    def __init__(self, client, app):
        super().__init__(client)
        self._app = app

    async def join(self, name, user_id=None):
        data = {"channel": name}
        if user_id is not None:
            data["channel_data"] = json.dumps({"user_id": user_id})
        if name.startswith("p"):
            data["auth"] = self._app.sign_channel(self.id, name, data.get("channel_data"))
        answer = await self.ask("pusher:subscribe", **data)
        assert answer["event"] == "pusher_internal:subscription_succeeded", answer
        return answer["data"]

    async def sign_in(self, user_id, **more):
        signed = sign_user(self.id, user_id, app=self._app, **more)
        answer = await self.ask("pusher:signin", **signed)
        assert answer["event"] == "pusher:signin_success", answer


async def client_of(edge, app, **options):
    client = await edge.connect(f"/app/{app.key}", greeted=False, **options)
    return await AppClient(client, app).greeted()


async def refused(edge, key, **options):
    """The code of a client that is refused within the socket."""
    client = await edge.connect(f"/app/{key}", greeted=False, **options)
    frame = await client.next()
    assert frame["event"] == "pusher:error", frame
    assert await client.closed() == frame["data"]["code"]
    return frame["data"]["code"]


def library_of(edge, app, **changes):
    made = pusher.Pusher(
        **{"app_id": app.id, "key": app.key, "secret": app.secret} | changes,
        host="127.0.0.1", port=edge.port, ssl=False,
    )  # fmt: skip

    async def call(method, *args, **kwargs):
        return await asyncio.to_thread(functools.partial(getattr(made, method), *args, **kwargs))

    return call


async def test_messages_of_one_app_do_not_reach_those_of_another(start, bus):
    edge = await start()
    shop, game, own = [await client_of(edge, app) for app in (SHOP, GAME, APP)]
    native = await edge.connect()
    await native.subscribe("general")
    for client in (shop, game, own):
        await client.join("general")
    await library_of(edge, SHOP)("trigger", "general", "n", {"of": "shop"})
    assert json.loads((await shop.next())["data"]) == {"of": "shop"}
    await library_of(edge, GAME)("trigger", "general", "n", {"of": "game"})
    assert json.loads((await game.next())["data"]) == {"of": "game"}
    await bus.publish("general", "n", {"of": "main"})
    assert json.loads((await own.next())["data"]) == {"of": "main"}
    assert (await native.next())["data"] == {"of": "main"}
    for client in (shop, game, own, native):
        assert await client.receives_nothing()


async def test_apps_are_apart_on_each_driver(start_edge, each_bus, write):
    edge = await start_edge(each_bus, pusher_apps=write(table(SHOP) + table(GAME)))
    clients = {app: await client_of(edge, app) for app in (SHOP, GAME)}
    for app, client in clients.items():
        found = await client.join("presence-room", app.id)
        assert found["presence"]["ids"] == [app.id]
    for app, client in clients.items():
        await library_of(edge, app)("trigger", "presence-room", "n", app.id)
        assert (await client.next())["data"] == app.id
        assert await client.receives_nothing()


async def test_service_publishes_in_the_namespace_of_an_app(start, settings):
    edge = await start()
    shop, game = await client_of(edge, SHOP), await client_of(edge, GAME)
    for client in (shop, game):
        await client.join("general")
    own = msgspec.structs.replace(settings, namespace=f"{settings.namespace}_{SHOP.id}")
    async with EventBus(own) as bus:
        await bus.publish("general", "n", 1)
        assert (await shop.next())["data"] == "1"
        assert await game.receives_nothing()
        [node] = (await bus.stats()).nodes
        assert node.protocols == {"pusher": 1}


async def test_application_still_dispatches_in_the_namespace_of_the_process(start, bus):
    await start()
    assert current.current_bus() is bus


async def test_whispers_and_members_stay_in_their_app(start):
    edge = await start()
    ann, bob, stranger = [await client_of(edge, app) for app in (SHOP, SHOP, GAME)]
    for client, user in ((ann, "7"), (bob, "9"), (stranger, "7")):
        await client.join("private-chat.1")
        found = await client.join("presence-room", user)
        assert user in found["presence"]["ids"]
        assert found["presence"]["count"] == (2 if client is bob else 1)
    assert (await ann.next())["data"]["user_id"] == "9"
    frame = {"event": "client-n", "channel": "private-chat.1", "data": 1}
    await ann._client.socket.send(json.dumps(frame))
    assert (await bob.next())["data"] == 1
    await bob._client.socket.close()
    assert (await ann.next())["event"] == "pusher_internal:member_removed"
    assert await stranger.receives_nothing()


@pytest.mark.parametrize("key", ["unknown", "", "shop-key/x", SHOP.id])
async def test_key_of_no_app_is_refused_within_the_socket(start, key):
    assert await refused(await start(), key) == 4001


async def test_signature_of_one_app_is_refused_for_another(start):
    edge = await start()
    client = await client_of(edge, SHOP)
    for other in (GAME, msgspec.structs.replace(GAME, key=SHOP.key)):
        auth = other.sign_channel(client.id, "private-user.7")
        answer = await client.ask("pusher:subscribe", channel="private-user.7", auth=auth)
        assert answer["event"] == "pusher:subscription_error"
        answer = await client.ask("pusher:signin", **sign_user(client.id, "7", app=other))
        assert (answer["event"], answer["data"]["code"]) == ("pusher:error", 4009)


async def test_full_app_refuses_its_clients_and_no_others(start):
    edge = await start("max_connections = 1")
    first = await client_of(edge, SHOP)
    assert await refused(edge, SHOP.key) == 4004
    for app in (GAME, APP):
        await client_of(edge, app)
    await first._client.socket.close()
    async with asyncio.timeout(PATIENCE_S):
        while len(edge.node.access.admission.slots) > 2:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
    await client_of(edge, SHOP)


async def test_full_process_sends_the_clients_of_all_apps_elsewhere(start):
    edge = await start(max_connections=1)
    await client_of(edge, SHOP)
    assert await refused(edge, GAME.key) == 4100
    _, _, problem = await edge.refusal()
    assert problem["code"] == "limit_exceeded"


async def test_requests_of_an_address_count_together(start):
    edge = await start(max_requests_per_address=0.01, max_connections_per_address=3)
    for app in (SHOP, GAME, SHOP):
        await client_of(edge, app)
    assert await refused(edge, GAME.key) == 4004
    for _ in range(2):
        await refused(edge, SHOP.key)
    assert await refused(edge, GAME.key) == 4100  # too many requests


async def test_origins_are_those_of_the_app(start):
    edge = await start('allowed_origins = ["https://shop.example"]')
    headers = {"Origin": "https://shop.example"}
    await client_of(edge, SHOP, headers=headers)
    for app in (GAME, APP):
        assert await refused(edge, app.key, headers=headers) == 4009
    url = f"{edge.url}/broadcasting/{{}}/auth"
    preflight = headers | {"Access-Control-Request-Method": "POST"}
    async with aiohttp.ClientSession() as session:
        for app, status in ((SHOP, 204), (GAME, 403)):
            async with session.options(url.format(app.id), headers=preflight) as answer:
                assert answer.status == status
                allowed = answer.headers.get("Access-Control-Allow-Origin")
                assert allowed == (headers["Origin"] if app is SHOP else None)


async def test_request_to_one_app_signed_with_the_secret_of_another_is_refused(start):
    edge = await start()
    body = {"name": "n", "channel": "general", "data": "1"}
    path = f"/apps/{SHOP.id}/events"
    ask = functools.partial(request, edge, "POST", path, body)
    assert (await ask(secret=SHOP.secret, key=SHOP.key))[0] == 200
    for secret, key in ((GAME.secret, SHOP.key), (GAME.secret, GAME.key), (APP.secret, APP.key)):
        assert (await ask(secret=secret, key=key))[0] == 401
    assert (await request(edge, "POST", "/apps/3000/events", body))[0] == 404


async def test_channels_and_users_are_listed_by_app(start):
    edge = await start()
    shop, own = await client_of(edge, SHOP), await client_of(edge, APP)
    await shop.join("presence-room", "7")
    await own.join("general")
    assert await library_of(edge, SHOP)("channels_info") == {"channels": {"presence-room": {}}}
    assert await library_of(edge, GAME)("channels_info") == {"channels": {}}
    assert await library_of(edge, APP)("channels_info") == {"channels": {"general": {}}}
    assert await library_of(edge, SHOP)("users_info", "presence-room") == {"users": [{"id": "7"}]}
    assert await library_of(edge, GAME)("users_info", "presence-room") == {"users": []}
    for app, count in ((SHOP, 1), (GAME, 0)):
        path = f"/apps/{app.id}/connections"
        answer = await request(edge, "GET", path, secret=app.secret, key=app.key)
        assert answer == (200, {"connections": count})


async def test_user_is_terminated_in_one_app_only(start):
    """The library leaves the app out of the path; the key identifies the app."""
    edge = await start()
    clients = {app.id: await client_of(edge, app) for app in (SHOP, GAME, APP)}
    for client in clients.values():
        await client.sign_in("7")
    for app in (GAME, APP):
        assert await library_of(edge, app)("terminate_user_connections", "7") == {}
        assert await clients[app.id].closed() == 4009
    assert await clients[SHOP.id].receives_nothing()
    answer = await request(
        edge, "POST", f"/apps/{SHOP.id}/users/7/terminate_connections", {},
        secret=SHOP.secret, key=SHOP.key,
    )  # fmt: skip
    assert answer == (200, {})
    assert await clients[SHOP.id].closed() == 4009
    with pytest.raises(pusher.errors.PusherBadAuth, match="auth_key"):
        await library_of(edge, SHOP, key="unknown")("terminate_user_connections", "7")


async def test_counts_and_watch_lists_are_those_of_the_app(start):
    edge = await start("subscription_counts = true")
    shop = await client_of(edge, SHOP)
    game = await client_of(edge, GAME)
    for client in (shop, game):
        await client.join("general")
    frame = await shop.next()
    assert (frame["event"], frame["data"]) == (
        "pusher_internal:subscription_count",
        {"subscription_count": 1},
    )
    await (await client_of(edge, GAME)).sign_in("8")
    await shop.sign_in("7", watchlist=["8"])
    frame = await shop.next()
    assert frame["data"]["events"] == [{"name": "offline", "user_ids": ["8"]}]
    assert await game.receives_nothing()


async def test_webhooks_are_posted_for_the_app_with_its_key_and_secret(start):
    posts = {app.id: asyncio.Queue() for app in (SHOP, GAME)}

    async def receive(req):
        app = SHOP if req.path == "/2001" else GAME
        key, signature = req.headers["X-Pusher-Key"], req.headers["X-Pusher-Signature"]
        made = pusher.Pusher(app_id=app.id, key=app.key, secret=app.secret, host="unused")
        found = made.validate_webhook(key, signature, await req.text())
        assert found is not None
        for event in found["events"]:
            posts[app.id].put_nowait(event)
        return web.Response()

    app = web.Application()
    app.router.add_post("/{id}", receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        edge = await start(f"webhook_url = '{url}/2001'", f"webhook_url = '{url}/2002'",
                           webhook_wait=0.0)  # fmt: skip
        await (await client_of(edge, SHOP)).join("general")
        await (await client_of(edge, APP)).join("private-user.1")
        await (await client_of(edge, GAME)).join("private-user.7")
        for app_id, name in ((SHOP.id, "general"), (GAME.id, "private-user.7")):
            async with asyncio.timeout(PATIENCE_S):
                event = await posts[app_id].get()
            assert event == {"name": "channel_occupied", "channel": name}
            assert posts[app_id].empty()
    finally:
        await runner.cleanup()


async def test_cache_of_a_channel_is_that_of_the_app(start_edge, bus, write):
    rules = ChannelRules([Rule(Pattern("cache-news"), ChannelKind.PUBLIC, ANYONE)])
    apps = write(table(SHOP) + table(GAME))
    edge = await start_edge(bus, rules=rules, pusher_apps=apps)
    await library_of(edge, SHOP)("trigger", "cache-news", "n", 1)
    shop, game = await client_of(edge, SHOP), await client_of(edge, GAME)
    await shop.join("cache-news")
    assert (await shop.next())["data"] == "1"
    await game.join("cache-news")
    assert (await game.next())["event"] == "pusher:cache_miss"


# Who may subscribe


async def post(edge, path, client, token, name="private-user.7"):
    body = {"socket_id": client.id, "channel_name": name}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.post(f"{edge.url}/broadcasting{path}", data=body) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def test_edge_signs_for_the_app_whose_audience_a_token_has(start):
    edge = await start(game='jwt_audience = "websocket"')
    shop, game = await client_of(edge, SHOP), await client_of(edge, GAME)
    of_shop, plain = sign("7", aud=f"app-{SHOP.id}"), sign("7")
    for client, app, token in ((shop, SHOP, of_shop), (game, GAME, plain)):
        status, signed = await post(edge, f"/{app.id}/auth", client, token)
        assert status == 200
        answer = await client.ask("pusher:subscribe", channel="private-user.7", **signed)
        assert answer["event"] == "pusher_internal:subscription_succeeded"
        status, signed = await post(edge, f"/{app.id}/user-auth", client, token)
        assert (await client.ask("pusher:signin", **signed))["event"] == "pusher:signin_success"
    for path, token in ((f"/{SHOP.id}/auth", plain), (f"/{GAME.id}/auth", of_shop),
                        ("/auth", of_shop), ("/9/auth", plain)):  # fmt: skip
        assert (await post(edge, path, shop, token))[0] in {401, 404}


async def test_app_may_have_a_key_of_its_own_for_tokens(start):
    own = "another-secret-that-is-32-bytes-long"
    edge = await start(f'jwt_secret = "{own}"\njwt_audience = "shop"')
    shop = await client_of(edge, SHOP)
    path = f"/{SHOP.id}/auth"
    assert (await post(edge, path, shop, sign("7", secret=own, aud="shop")))[0] == 200
    assert (await post(edge, path, shop, sign("7", secret=SECRET, aud="shop")))[0] == 401


async def test_app_of_the_environment_is_signed_for_at_both_paths(start):
    edge = await start()
    client = await client_of(edge, APP)
    for path in ("/auth", f"/{APP.id}/auth"):
        status, signed = await post(edge, path, client, sign("7"))
        assert status == 200
        answer = await client.ask("pusher:subscribe", channel="private-user.7", **signed)
        assert answer["event"] == "pusher_internal:subscription_succeeded"


# As one process


async def test_all_apps_are_drained(start):
    edge = await start()
    clients = [await client_of(edge, app) for app in (SHOP, GAME, APP)]
    stopping = asyncio.create_task(edge.runner.cleanup())
    for client in clients:
        assert (await client.next())["data"]["code"] == 4200
        assert await client.closed() == 4200
    await stopping


async def test_node_that_lost_the_bus_of_one_app_is_not_ready(start, monkeypatch):
    edge = await start()
    await client_of(edge, SHOP)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{edge.url}/readyz") as answer:
            assert (answer.status, (await answer.json())["connections"]) == (200, 1)
        shop = edge.node.tenants[SHOP.id]
        monkeypatch.setattr(shop.connections, "is_draining", True)
        async with session.get(f"{edge.url}/readyz") as answer:
            assert answer.status == 503


async def test_statistics_show_the_protocols_of_all_apps(start, bus, token):
    edge = await start()
    for app in (SHOP, SHOP, APP):
        await client_of(edge, app)
    await edge.connect()
    [node] = (await bus.stats()).nodes
    assert node.protocols == {"native": 1, "pusher": 1, f"pusher/{SHOP.id}": 2}
    admin = await edge.connect(token=token("1", roles=["admin"]))  # as the dashboard does
    await admin.subscribe("admin.stats")
    [node] = (await admin.next())["data"]["nodes"]
    assert node["protocols"] == {"native": 2, "pusher": 1, f"pusher/{SHOP.id}": 2}


async def test_metrics_of_an_app_have_its_id_as_a_label(start):
    edge = await start()
    for app in (SHOP, SHOP, GAME, APP):
        await client_of(edge, app)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{edge.url}/metrics") as answer,
    ):
        families = list(text_string_to_metric_families(await answer.text()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = {
        (sample.labels.get("app", ""), sample.name): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("protocol", "pusher") == "pusher"
    }
    for app_id, count in (("", 1), (SHOP.id, 2), (GAME.id, 1)):
        assert samples[app_id, "eventbus_edge_protocol_connections"] == count
        assert samples[app_id, "eventbus_edge_connections"] == count
        is_own = not app_id
        assert ((app_id, "eventbus_edge_memory_bytes") in samples) is is_own
