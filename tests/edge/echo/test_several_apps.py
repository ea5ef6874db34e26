"""Clients and publishers of two apps on one port, unmodified, in Node."""

import asyncio

import pytest

from eventbus.tokens import issue_token
from tests.edge.conftest import SECRET
from tests.edge.echo.conftest import APP

pytestmark = [pytest.mark.npm, pytest.mark.timeout(240)]

FILE = """
[[app]]
id = "2001"
key = "shop-key"
secret = "secret-of-the-shop"
max_connections = 2

[[app]]
id = "2002"
key = "game-key"
secret = "secret-of-the-game"
"""
APPS = {
    "2001": ("shop-key", "secret-of-the-shop"),
    "2002": ("game-key", "secret-of-the-game"),
    APP["pusher_app_id"]: (APP["pusher_app_key"], APP["pusher_app_secret"]),
}


@pytest.fixture
async def edge(start_edge, bus, tmp_path):
    path = tmp_path / "apps.toml"
    path.write_text(FILE)
    return await start_edge(bus, presence_grace=0.0, pusher_apps=str(path), **APP)


@pytest.fixture
def options_of(edge):
    """What Echo needs for an app: `options_of("2001", "7")`."""

    def make(app_id, user):
        token = issue_token(
            user, secret=SECRET, audience=f"app-{app_id}", info={"name": f"User {user}"}
        )
        start = f"{edge.url}/broadcasting/{app_id}"
        return {
            "key": APPS[app_id][0],
            "authEndpoint": f"{start}/auth",
            "userAuthentication": {"endpoint": f"{start}/user-auth", "headers": {}},
            "bearerToken": token,
        }

    return make


async def test_clients_and_publishers_of_two_apps_do_not_meet(
    connected, publisher, edge, options_of
):
    echoes = {app: await connected(edge, **options_of(app, "7")) for app in ("2001", "2002")}
    for echo in echoes.values():
        await echo.run("""
            state.chat = echo.join("chat").here((users) => say("here", users.map((u) => u.id)))
              .joining((user) => say("joining", user.id))
              .listenForWhisper("typing", (data) => say("typing", data));
            echo.channel("general").listen(".n", (n) => say("n", n)).subscribed(() => say("in"));
            pusher.user.bind("news", (data) => say("news", data));
            pusher.bind("pusher:signin_success", () => say("signed in"));
            pusher.signin();
        """)
        for words in ("in", "signed in"):
            await echo.next(words)
        assert await echo.next("here") == [["7"]]
    for app, (key, secret) in list(APPS.items())[:2]:
        call = await publisher(edge, appId=app, key=key, secret=secret)
        assert (await call("trigger", "general", "n", f"of {app}"))["status"] == 200
        assert (await call("sendToUser", "7", "news", f"of {app}"))["status"] == 200
        answer = await call("get", {"path": "/channels/presence-chat/users"})
        assert answer["body"] == {"users": [{"id": "7"}]}
        assert await echoes[app].next("n") == [f"of {app}"]
        assert await echoes[app].next("news") == [f"of {app}"]
    other = await connected(edge, **options_of("2001", "9"))
    await other.run("""
        echo.join("chat").here((users) => { say("here", users.length);
          echo.join("chat").whisper("typing", { on: true }); });
    """)
    assert await other.next("here") == [2]
    assert await echoes["2001"].next("joining") == ["9"]
    assert await echoes["2001"].next("typing") == [{"on": True}]
    call = await publisher(edge, appId="2001", key=APPS["2001"][0], secret=APPS["2001"][1])
    assert (await call("terminateUserConnections", "7"))["status"] == 200
    await echoes["2001"].next("state", "disconnected")
    # Meanwhile this client got only messages of its own app.
    await echoes["2002"].run('say("end", pusher.connection.state);')
    assert await echoes["2002"].next("end") == ["connected"]
    heard = echoes["2002"].heard
    assert {words[0] for words in heard}.isdisjoint({"joining", "typing"})
    assert [words[1] for words in heard if words[0] in {"n", "news"}] == ["of 2002", "of 2002"]


async def test_secret_or_key_of_another_app_is_refused(
    start_echo, connected, publisher, edge, options_of
):
    wrong = await publisher(edge, appId="2001", key="shop-key", secret=APPS["2002"][1])
    assert (await wrong("trigger", "general", "n", 1))["status"] == 401
    wrong = await publisher(edge, appId="2001", key="game-key", secret=APPS["2002"][1])
    assert (await wrong("trigger", "general", "n", 1))["status"] == 401
    echo = await start_echo(edge, **options_of("2001", "7") | {"key": "2001"})
    assert await echo.next("error") == [4001]
    # The token of one app's user is not valid for another app.
    mixed = options_of("2002", "7") | {"key": "shop-key"}
    echo = await connected(
        edge, **mixed | {"authEndpoint": options_of("2001", "7")["authEndpoint"]}
    )
    await echo.run('echo.private("user.7").error((error) => say("refused", error.status));')
    assert await echo.next("refused") == [401]
    # So is a signature.
    await echo.run(f"""
        pusher.config.channelAuthorizer = ({{ socketId, channelName }}, callback) =>
          fetch("{mixed["authEndpoint"]}", {{
            method: "POST",
            headers: {{ Authorization: "Bearer {mixed["bearerToken"]}" }},
            body: new URLSearchParams({{ socket_id: socketId, channel_name: channelName }}),
          }}).then((answer) => answer.json()).then((signed) => callback(null, signed));
        echo.private("chat.1").error(({{ type, status }}) => say("refused", type, status));
    """)
    assert await echo.next("refused") == ["AuthError", 401]


async def test_full_app_is_an_error_of_the_connection_and_the_other_app_has_room(
    start_echo, connected, edge, options_of
):
    for _ in range(2):
        await connected(edge, **options_of("2001", "7"))
    third = await start_echo(edge, **options_of("2001", "7"))
    assert await third.next("error") == [4004]
    await third.next("state", "disconnected")
    await connected(edge, **options_of("2002", "7"))


async def test_clients_of_all_apps_come_back_after_the_drain_of_their_node(
    connected, start_process, bus, tmp_path, options_of
):
    path = tmp_path / "apps.toml"
    environ = {name.upper(): value for name, value in APP.items()} | {
        "PUSHER_APPS": str(path), "BROADCAST_DRAIN_TIME": "0",
    }  # fmt: skip
    first = await start_process(**environ)
    echoes = [
        await connected(first, key=key, authEndpoint=None, bearerToken=None)
        for key, _ in APPS.values()
    ]
    first.terminate()
    code, _ = await first.end()
    assert code == 0
    await start_process(**environ, BROADCAST_WEBSOCKET_PORT=str(first.port))
    await asyncio.gather(*(echo.next("state", "connected") for echo in echoes))
