"""Laravel Echo over pusher-js, unmodified, in Chromium, with real nodes."""

from pathlib import Path

import pytest

from eventbus.tokens import issue_token
from tests.browser.conftest import ROOT, SECRET

pytestmark = [pytest.mark.browser, pytest.mark.npm, pytest.mark.xdist_group("browser")]

APP = {
    "PUSHER_APP_ID": "1001",
    "PUSHER_APP_KEY": "app-key",
    "PUSHER_APP_SECRET": "app-secret-of-the-tests",
    "BROADCAST_PRESENCE_GRACE": "0",
}
SCRIPT = """
import Echo from "/echo/laravel-echo.js";
import "/echo/pusher.js";
import { withResume } from "/echo/resume.js";
Object.assign(globalThis, { got: [], heard: [], joined: 0 });
globalThis.say = (...words) => heard.push(JSON.stringify(words));
globalThis.start = ({ token, resumes }) => {
  globalThis.echo = new Echo({
    broadcaster: "reverb",
    Pusher: resumes ? withResume(Pusher) : Pusher,
    key: "app-key",
    wsHost: location.hostname,
    wsPort: location.port,
    forceTLS: false,
    enabledTransports: ["ws", "wss"],
    authEndpoint: "/broadcasting/auth",
    bearerToken: token,
  });
};
"""


class EchoPage:
    """A page with Laravel Echo."""

    def __init__(self, page, user):
        self.page = page
        self.user = user

    async def run(self, program):
        """Run JavaScript, which sees `echo`, `say`, `got` and `heard`."""
        await self.page.evaluate(f"() => {{ {program} }}")

    async def hears(self, words):
        """Wait until the page has said these words, which are JSON without spaces."""
        await self.page.wait_for_function(
            "(text) => heard.includes(text)", arg=words, timeout=20_000
        )

    async def count(self, words):
        return await self.page.evaluate("(text) => heard.filter((t) => t === text).length", words)


@pytest.fixture
async def echo(gate, open_tab, echo_packages):
    """Opens a page: `await echo("7")`."""
    files = {
        "laravel-echo.js": echo_packages / "laravel-echo" / "dist" / "echo.js",
        "pusher.js": echo_packages / "pusher-js" / "dist" / "web" / "pusher.min.js",
        "resume.js": ROOT / "npm" / "echo" / "resume.js",
    }

    async def serve(route):
        path = files[Path(route.request.url).name]
        await route.fulfill(path=path, content_type="text/javascript")

    async def start(user=None, *, resumes=False):
        page = await open_tab("about:blank", ready="")
        await page.route("**/echo/*.js", serve)
        await page.goto(f"{gate.url}/healthz")  # a page of the edge's own origin
        await page.add_script_tag(content=SCRIPT, type="module")
        await page.wait_for_function("typeof start === 'function'")
        token = user and issue_token(user, secret=SECRET, info={"name": f"User {user}"})
        await page.evaluate("start", {"token": token, "resumes": resumes})
        return EchoPage(page, user)

    return start


async def test_public_and_private_channels_are_joined_with_a_bearer_token(edge_process, echo, bus):
    await edge_process(**APP)
    page = await echo("7")
    await page.run("""
        echo.channel("general").listen(".n", (n) => say("public", n))
          .subscribed(() => say("in general"));
        echo.private("user.7").listen("Shipped", (data) => say("private", data))
          .subscribed(() => say("in user.7"));
        echo.private("user.8").error(({ status }) => say("refused", status));
    """)
    for words in ('["in general"]', '["in user.7"]', '["refused",403]'):
        await page.hears(words)
    await bus.publish("general", "n", 1)
    await bus.publish("user.7", "App\\Events\\Shipped", {"name": "Zoë 🚀"})
    await page.hears('["public",1]')
    await page.hears('["private",{"name":"Zoë 🚀"}]')


async def test_second_page_of_another_user_is_here_joins_and_leaves(edge_process, echo):
    await edge_process(**APP)
    ann = await echo("7")
    await ann.run("""
        echo.join("room").here((users) => say("here", users.map((user) => user.id)))
          .joining((user) => say("joining", user.name))
          .leaving((user) => say("leaving", user.name));
    """)
    await ann.hears('["here",["7"]]')
    bob, again = await echo("9"), await echo("9")
    for page in (bob, again):
        await page.run('echo.join("room").here((users) => say("here", users.length));')
        await page.hears('["here",2]')
    await ann.hears('["joining","User 9"]')
    await bob.page.close()
    await again.run('echo.leave("room");')
    await ann.hears('["leaving","User 9"]')
    assert await ann.count('["joining","User 9"]') == 1
    assert await ann.count('["leaving","User 9"]') == 1


async def test_whispers_and_presence_pass_between_echo_and_eventbus_js(edge_process, echo, client):
    await edge_process(**APP)
    native = await client()  # of the user 7
    await native.evaluate("""async () => {
        globalThis.heard = [];
        globalThis.lobby = bus.subscribe("presence.lobby", {
          "client-typing": (data, { user_id }) => heard.push([data, user_id]),
          "eb:presence.joined": ({ user_id }) => heard.push(user_id),
        });
        await lobby.ready;
    }""")
    page = await echo("9")
    await page.run("""
        globalThis.lobby = echo.join("lobby")
          .here((users) => say("here", users.map(({ id }) => id).sort()))
          .listenForWhisper("typing", (data, { user_id }) => say("typing", data, user_id));
    """)
    await page.hears('["here",["7","9"]]')
    await native.until('heard.includes("9")')
    await page.run('lobby.whisper("typing", { on: true });')
    await native.until("heard.length === 2")
    assert await native.evaluate("heard[1]") == [{"on": True}, "9"]
    await native.evaluate('lobby.whisper("typing", { on: false })')
    await page.hears('["typing",{"on":false},"7"]')


async def test_restart_of_the_node_loses_nothing_and_repeats_nothing_with_the_plugin(
    edge_process, echo, numbers
):
    node = await edge_process(**APP)
    page = await echo("7", resumes=True)
    await page.run("""
        echo.private("chat.7").listen(".Number", (number) => got.push(number))
          .subscribed(() => say("in")).listen(".eventbus:gap", () => say("gap"));
    """)
    await page.hears('["in"]')
    published = numbers()
    await published.some_more()
    await node.end()
    await published.some_more()
    await edge_process(**APP)
    await published.some_more()
    await published.stop()
    await page.page.wait_for_function(f"got.length >= {published.count}", timeout=40_000)
    assert await page.page.evaluate("got") == list(range(published.count))
    assert await page.count('["in"]') == 2
    assert await page.count('["gap"]') == 0
