"""The packages for React and Vue in Chromium, on a real edge: the same behaviour in both."""

import asyncio
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright._impl._driver import compute_driver_executable
from playwright.async_api import async_playwright, expect

from eventbus.bus import EventBus
from eventbus.events import ChannelPosition
from eventbus.tokens import issue_token
from tests import packages

pytestmark = [
    pytest.mark.browser,
    pytest.mark.npm,
    pytest.mark.xdist_group("browser-frameworks"),
    pytest.mark.timeout(300),
]

APPS = Path(__file__).parent / "apps"
SOURCES = {"react": "react.jsx", "vue": "vue.js"}
SERVERS = {"react": "react-server.jsx", "vue": "vue-server.js"}
SECRET = "a-secret-of-tests-that-is-32-bytes-long"
PATIENCE_MS = 20_000
DEFINES = {
    "process.env.NODE_ENV": '"development"',  # StrictMode mounts twice only there
    "__VUE_OPTIONS_API__": "true",
    "__VUE_PROD_DEVTOOLS__": "false",
    "__VUE_PROD_HYDRATION_MISMATCH_DETAILS__": "true",
}


@pytest.fixture(scope="module")
def bundles(program, node_modules) -> dict[str, str]:
    """The pages' scripts, each with its framework and our packages in it; servers are beside it."""
    shutil.copytree(APPS, program / "apps", dirs_exist_ok=True)
    defines = [f"--define:{name}={value}" for name, value in DEFINES.items()]
    esbuild = (node_modules / ".bin" / "esbuild", "--bundle", "--jsx=automatic", *defines)
    pages = (f"apps/{name}" for name in SOURCES.values())
    packages.run(*esbuild, *pages, "--format=esm", "--outdir=bundles", cwd=program)
    servers = (f"apps/{name}" for name in SERVERS.values())
    node = ("--format=esm", "--platform=node", "--packages=external", "--outdir=apps")
    packages.run(*esbuild, *servers, *node, "--out-extension:.js=.mjs", cwd=program)
    return {name: (program / "bundles" / f"{name}.js").read_text() for name in SOURCES}


@pytest.fixture(params=SOURCES)
def framework(request) -> str:
    return request.param


class Database:
    """What a service keeps: numbers, each of which it also broadcasts."""

    def __init__(self, bus: EventBus, channel: str) -> None:
        self.numbers: list[int] = []
        self.loads = 0
        self._bus = bus
        self._channel = channel

    async def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.numbers.append(len(self.numbers))
            await self._bus.publish(self._channel, "Number", self.numbers[-1])

    async def position(self) -> ChannelPosition:
        return await self._bus.position(self._channel)

    async def load(self, channel: str) -> dict[str, Any]:
        """What an endpoint of the service answers."""
        self.loads += 1
        position = await self._bus.position(channel)
        await asyncio.sleep(0.02)  # a read of a database takes time: writes come in between
        return {"data": self.numbers, "offset": position.offset, "epoch": position.epoch}


@pytest.fixture
def database(bus) -> Database:
    return Database(bus, "chat.7")


class FrameworkPage:
    """A page with parts, and what its parts have logged."""

    def __init__(self, page) -> None:
        self.page = page
        self.evaluate = page.evaluate
        self.requests: list[str] = []

    def sent(self, frame: str) -> None:
        self.requests.append(frame)

    async def show(self, *specs: dict[str, Any], **options: Any) -> None:
        await self.page.evaluate("([specs, options]) => show(specs, options)", [specs, options])

    async def has(self, part: str, text: str) -> None:
        await expect(self.page.locator(f"#{part}")).to_have_text(text, timeout=PATIENCE_MS)

    async def until(self, condition: str) -> None:
        await self.page.wait_for_function(condition, timeout=PATIENCE_MS)

    async def value(self, part: str, condition: str) -> Any:
        """The JSON that a part shows, once `condition` holds for it."""
        read = f"JSON.parse(document.getElementById('{part}')?.textContent || 'null')"
        await self.until(f"(() => {{ const it = {read}; return it && ({condition}); }})()")
        return await self.evaluate(read)

    def count(self, action: str, channel: str) -> int:
        """How many requests of that kind the page has sent."""
        frames = [json.loads(each) for each in self.requests]
        return sum(
            each.get("action") == action and each.get("channel") == channel for each in frames
        )


@pytest.fixture
def prepare(gate, bundles, framework, database):
    """Give a tab, on a page of the edge's own origin, the script of a framework."""

    async def prepare(
        tab, user: str = "7", lifetimes: list[int | None] | None = None
    ) -> FrameworkPage:
        made = FrameworkPage(tab)

        async def issue() -> str:
            lifetime = lifetimes.pop(0) if lifetimes else 3600
            if lifetime is None:
                raise RuntimeError("the token service is away")
            return issue_token(user, secret=SECRET, name=f"User {user}", lifetime=lifetime)

        await tab.expose_function("issueToken", issue)
        await tab.expose_function("loadState", database.load)

        tab.on("websocket", lambda socket: socket.on("framesent", made.sent))
        await tab.goto(f"{gate.url}/healthz")
        await tab.add_script_tag(content=bundles[framework], type="module")
        await made.until("typeof show === 'function'")
        return made

    return prepare


@pytest.fixture
async def open_page(open_tab, prepare):
    async def open_page(**options: Any) -> FrameworkPage:
        return await prepare(await open_tab("about:blank", ready=""), **options)

    return open_page


def channel(name: str, of: str = "chat.7", **more: Any) -> dict[str, Any]:
    return {"part": "Channel", "id": name, "channel": of, **more}


async def test_components_share_a_channel_and_none_takes_it_from_another(
    edge_process, open_page, bus
):
    await edge_process()
    page = await open_page()
    both = [channel("one"), channel("two")]
    await page.show(*both)
    await page.has("one", "joined")
    await page.has("two", "joined")
    assert page.count("subscribe", "chat.7") == 1

    async def say(number: int) -> None:
        await bus.publish("chat.7", "Number", number)

    await say(1)
    await page.until("log.length === 2")
    await page.show(both[0])
    await say(2)
    await page.until("log.length === 3")
    await page.show()  # for less than a second
    await page.show(*both)
    await page.has("two", "joined")
    await say(3)
    await page.until("log.length === 5")
    numbers = [["one", "Number", 1], ["two", "Number", 1], ["one", "Number", 2]]
    assert await page.evaluate("log") == [*numbers, ["one", "Number", 3], ["two", "Number", 3]]
    assert page.count("subscribe", "chat.7") == 1

    # The newest handler, another channel, and no channel.
    await page.show(channel("one", label="!"), channel("two", "chat.8"))
    await page.has("two", "joined")
    await say(4)
    await bus.publish("chat.8", "Number", 5)
    await page.until("log.length === 7")
    assert await page.evaluate("log.slice(5)") == [["one", "Number!", 4], ["two", "Number", 5]]
    await page.show(channel("one", None), channel("two", "nobody.may"))
    await page.has("one", "idle")
    await page.has("two", "forbidden")
    async with asyncio.timeout(40):
        while page.count("unsubscribe", "chat.7") < 1:  # noqa: ASYNC110 - frames are no events
            await asyncio.sleep(0.05)
    assert page.count("unsubscribe", "chat.7") == 1
    assert await page.evaluate("faults") == []


async def test_handlers_by_name_receive_events_of_the_system_and_history_too(
    edge_process, open_page, bus
):
    await edge_process()
    for number in range(3):
        await bus.publish("chat.7", "Number", number)
    page = await open_page()
    names = ["Number", "eb:subscribed", "eb:error", "toString"]
    await page.show(
        channel("history", history=2),
        {"part": "Handlers", "id": "names", "channel": "chat.7", "events": names},
        {"part": "Event", "id": "event", "channel": "chat.7", "event": "Number"},
        {"part": "Handlers", "id": "refused", "channel": "nobody.may", "events": ["eb:error"]},
    )
    await page.until("log.filter(([, event]) => event === 'Number').length >= 2")
    await page.has("event", "joined")
    await bus.publish("chat.7", "toString", 7)
    await bus.publish("chat.7", "__defineGetter__", 8)  # would throw if it was called
    await bus.publish("chat.7", "Number", 9)
    await page.until("log.filter(([, , data]) => data === 9).length === 3")
    log = await page.evaluate("log")
    assert [each[2] for each in log if each[0] == "history"] == [1, 2, 7, 8, 9]
    assert [each[1] for each in log if each[0] == "names"] == [
        "eb:subscribed",
        "toString",
        "Number",
    ]
    assert [each for each in log if each[0] == "event"] == [["event", "Number", 9]]
    assert [each[1] for each in log if each[0] == "refused"] == ["forbidden"]


async def test_members_and_whispers_reach_other_pages(edge_process, open_page):
    await edge_process()
    room = "presence.room.1"
    parts = [
        {"part": "Presence", "id": "who", "channel": room, "changes": {"mood": "busy"}},
        {"part": "Presence", "id": "again", "channel": room},
        {"part": "Whisper", "id": "whisper", "channel": room},
        channel("heard", room),
    ]
    first = await open_page(user="7")
    await first.show(*parts)
    alone = await first.value("who", "it.count === 1 && it.status === 'joined'")
    assert alone["infos"] == {"7": {"name": "User 7"}}
    second = await open_page(user="8")
    await second.show(*parts)
    for page in (first, second):
        await page.value("who", "it.count === 2")
        await page.value("again", "it.count === 2")
    await first.page.click("#who")
    for part in ("who", "again"):  # the server sends it only to the others
        assert (await first.value(part, "it.infos[7].mood"))["infos"]["7"]["mood"] == "busy"
    assert (await second.value("again", "it.infos[7].mood"))["infos"]["7"]["mood"] == "busy"
    # A component that comes later has the members of now.
    await second.show(*parts, {"part": "Presence", "id": "later", "channel": room})
    assert (await second.value("later", "it.count === 2"))["infos"]["7"]["mood"] == "busy"
    await second.page.click("#whisper")
    await first.until("log.some(([, event]) => event === 'client-typing')")
    await second.until("log.length === 1")
    assert await second.evaluate("log[0]") == ["whisper", "sent"]
    await second.show()
    await first.value("who", "it.count === 1")


async def test_state_is_that_of_the_database_through_every_break(
    edge_process, open_page, database, bus
):
    node = await edge_process(BROADCAST_TOKEN_GRACE="0", JWT_LEEWAY="0")
    page = await open_page(lifetimes=[3, None])  # the first one cannot be renewed
    await database.add(3)
    state = {"part": "State", "id": "state", "channel": "chat.7"}
    connection = {"part": "Connection", "id": "connection"}
    writing = asyncio.create_task(database.add(200))  # races with the first load
    await page.show(state, connection)
    await page.value("connection", "it.status === 'connected' && it.transport === 'websocket'")
    await writing

    async def is_equal() -> None:
        await database.add()
        count = len(database.numbers)
        shown = await page.value("state", f"it.numbers?.length >= {count}")
        assert shown == {"status": "ready", "numbers": database.numbers}

    await is_equal()
    await page.until("states.includes('waiting')")  # the token has ended: 4202
    await database.add(20)
    await page.value("connection", "it.status === 'connected'")
    await is_equal()

    await node.end(signal.SIGKILL)
    await page.value("connection", "it.status === 'waiting' && it.code")
    await database.add(20)
    await node.start()
    await is_equal()

    await page.page.context.set_offline(True)
    await page.value("connection", "it.status === 'offline' && it.code === 'offline'")
    await database.add(20)
    await page.page.context.set_offline(False)
    await is_equal()

    devtools = await page.page.context.new_cdp_session(page.page)
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    await database.add(20)
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
    await is_equal()

    loads = database.loads
    assert loads <= 2, "only a gap may need another load"
    await page.page.click("#state")
    async with asyncio.timeout(40):
        while database.loads == loads:  # noqa: ASYNC110 - the page asks
            await asyncio.sleep(0.01)
    await is_equal()
    assert await page.evaluate("faults") == []


async def test_state_is_loaded_again_after_a_gap_and_an_initial_one_is_not_loaded(
    edge_process, open_page, settings, database
):
    small = msgspec.structs.replace(
        settings, history_messages=5, namespace=f"{settings.namespace}s"
    )
    environ = {"BROADCAST_HISTORY_MESSAGES": "5", "BROADCAST_CHANNELS_PREFIX": small.namespace}
    async with EventBus(small) as bus:
        database.__init__(bus, "chat.7")
        node = await edge_process(**environ)
        await database.add(3)
        initial = await database.load("chat.7")
        initial["data"] = list(initial["data"])
        await database.add(2)
        page = await open_page()
        state = {"part": "State", "id": "state", "channel": "chat.7", "initial": initial}
        await page.show(state)
        assert await page.value("state", "it.numbers.length === 5")
        assert database.loads == 1
        await node.end()
        await database.add(9)
        await node.start()
        shown = await page.value("state", "it.numbers.length === 14")
        assert shown == {"status": "ready", "numbers": database.numbers}
        assert database.loads == 2


async def test_initial_state_is_shown_only_for_the_channel_that_it_was_given_for(
    edge_process, open_page, database
):
    await edge_process()
    load = database.load

    async def with_name(channel: str) -> dict[str, Any]:
        return await load(channel) | {"data": [channel]}

    database.load = with_name
    page = await open_page()
    await database.add()
    initial = {"data": ["initial"], **msgspec.to_builtins(await database.position())}
    await page.evaluate(
        """initial => {
          globalThis.showState = (channel) =>
            show([{ part: "State", id: "state", channel, initial }], {});
        }""",
        initial,
    )
    await page.evaluate("showState(null)")
    assert await page.value("state", "it") == {"status": "idle"}
    for name, numbers in (("chat.7", ["initial"]), ("chat.8", ["chat.8"])):
        await page.evaluate("name => showState(name)", name)
        shown = await page.value("state", f"it.numbers?.[0] === '{numbers[0]}'")
        assert shown == {"status": "ready", "numbers": numbers}
    assert database.loads == 1


async def test_failed_load_is_an_error_until_it_succeeds(edge_process, open_page, database):
    await edge_process()
    load = database.load
    failures = 2

    async def failing(channel: str) -> dict[str, Any]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("the database is away")
        return await load(channel)

    database.load = failing
    page = await open_page()
    await database.add(2)
    await page.show(
        {"part": "State", "id": "state", "channel": "chat.7"},
        {"part": "State", "id": "refused", "channel": "nobody.may"},
        {"part": "State", "id": "none", "channel": None},
        minDelay=500,
    )
    await page.value("state", "it.status === 'error' && it.code === 'state_failed'")
    assert await page.value("state", "it.status === 'ready'") == {
        "status": "ready",
        "numbers": [0, 1],
    }
    assert (await page.value("refused", "it.code"))["code"] == "forbidden"
    assert await page.value("none", "it") == {"status": "idle"}


async def test_provider_opens_one_bus_per_url_and_closes_it(edge_process, open_page, gate):
    await edge_process()
    page = await open_page()
    parts = [{"part": "Connection", "id": "connection"}, channel("one")]
    await page.show(*parts)
    await page.has("one", "joined")
    await page.evaluate("globalThis.first = bus")
    await page.show(*parts, channel("two"))
    await page.has("two", "joined")
    assert await page.evaluate("first === bus")
    await page.show(*parts, url=f"{gate.url}/ws")
    await page.until("bus && bus !== first && bus.state.status === 'connected'")
    await page.has("one", "joined")
    await page.until("first.state.status === 'closed'")
    await page.evaluate("globalThis.second = bus")
    await page.show(*parts, bus=None)  # the page's own, which is not there yet
    await page.until("second.state.status === 'closed'")
    await page.has("one", "joining")
    assert await page.evaluate("bus") is None
    await page.evaluate(
        """specs => {
          globalThis.mine = connect({ url: "/ws", token: () => issueToken() });
          return show(specs, { bus: mine });
        }""",
        parts,
    )
    await page.has("one", "joined")
    assert await page.evaluate("bus === mine")
    await page.evaluate("leave()")
    assert await page.evaluate("mine.state.status") == "connected"
    await page.evaluate("mine.close()")
    assert await page.evaluate("faults") == []


async def test_provider_that_is_unmounted_closes_its_bus(edge_process, open_page):
    await edge_process()
    page = await open_page()
    await page.show({"part": "Connection", "id": "connection"}, channel("one"))
    await page.has("one", "joined")
    await page.evaluate("globalThis.first = bus; leave()")
    await page.until("first.state.status === 'closed'")
    assert await page.evaluate("faults") == []


async def test_page_that_the_back_button_restores_goes_on(
    edge_process, prepare, database, gate, framework
):
    await edge_process()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu"],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        tab = await browser.new_page()
        page = await prepare(tab)
        await page.evaluate("addEventListener('pageshow', (e) => (globalThis.kept = e.persisted))")
        await database.add(2)
        state = {"part": "State", "id": "state", "channel": "chat.7"}
        await page.show(state, {"part": "Connection", "id": "connection"})
        await page.value("state", "it.status === 'ready'")
        await tab.goto("about:blank")
        await database.add(20)
        await tab.go_back(wait_until="commit")  # "load" is not fired again
        assert await page.evaluate("globalThis.kept"), "Chromium has not kept the page"
        shown = await page.value("state", f"it.numbers.length === {len(database.numbers)}")
        assert shown == {"status": "ready", "numbers": database.numbers}
        await page.value("connection", "it.status === 'connected'")
        await browser.close()


async def test_page_rendered_on_a_server_opens_nothing_there_and_hydrates(
    edge_process, open_page, database, program, framework
):
    await edge_process()
    page = await open_page()
    await database.add(2)
    initial = {"data": [0, 1], **msgspec.to_builtins(await database.position())}
    parts = [
        channel("one"),
        channel("none", None),
        {"part": "Event", "id": "event", "channel": "chat.7", "event": "Number"},
        {"part": "State", "id": "empty", "channel": "chat.7"},
        {"part": "State", "id": "state", "channel": "chat.7", "initial": initial},
        {"part": "Presence", "id": "who", "channel": "presence.room.1"},
        {"part": "Whisper", "id": "whisper", "channel": "presence.room.1"},
        {"part": "Connection", "id": "connection"},
    ]
    script = program / "apps" / f"{framework}-server.mjs"
    for node in ("node", compute_driver_executable()[0]):  # Debian's, and one with WebSocket
        output = packages.run(node, script, json.dumps([parts, {}]), cwd=program)
        rendered = json.loads(output)
        assert rendered["opened"] == [], node
        assert not rendered["hasWindow"]
    html = rendered["own"]
    assert rendered["given"] == html
    assert '<output id="one">joining</output>' in html
    assert '<output id="none">idle</output>' in html
    assert html.replace("&quot;", '"').count('{"status":"ready","numbers":[0,1]}') == 1

    await page.evaluate("([html, specs]) => hydrate(html, specs)", [html, parts])
    await page.has("one", "joined")
    await page.value("who", "it.count === 1")
    await page.value("empty", "it.numbers?.length === 2")
    await database.add()
    await page.value("state", "it.numbers.length === 3")
    await page.until("log.length === 2")
    assert await page.evaluate("faults") == []
    assert database.loads == 1


@pytest.mark.parametrize("framework", ["react"], indirect=True)
async def test_strict_mode_of_react_joins_once_and_keeps_one_connection(
    edge_process, open_page, bus, database
):
    await edge_process()
    page = await open_page()
    await database.add(2)
    parts = [
        channel("one"),
        channel("two"),
        {"part": "State", "id": "state", "channel": "chat.7"},
        {"part": "Presence", "id": "who", "channel": "presence.room.1"},
        {"part": "Connection", "id": "connection"},
    ]
    await page.show(*parts, isStrict=True)
    await page.has("one", "joined")
    await page.has("two", "joined")
    await page.value("who", "it.count === 1")
    await page.value("state", "it.status === 'ready'")
    await database.add(1)
    await page.until("log.length === 2")
    assert await page.evaluate("log") == [["one", "Number", 2], ["two", "Number", 2]]
    assert (await page.value("state", "it.numbers.length === 3"))["numbers"] == [0, 1, 2]
    await page.show(parts[1], *parts[2:], isStrict=True)
    await database.add(1)
    await page.until("log.length === 3")
    assert await page.evaluate("log[2]") == ["two", "Number", 3]
    assert page.count("subscribe", "chat.7") == page.count("subscribe", "presence.room.1") == 1
    assert page.count("auth", None) == 1
    assert await page.evaluate("faults") == []


@pytest.mark.parametrize("framework", ["react"], indirect=True)
async def test_component_of_react_that_is_not_shown_subscribes_to_nothing(
    edge_process, open_page, bus
):
    await edge_process()
    page = await open_page()
    connection = {"part": "Connection", "id": "connection"}
    suspended = {"part": "Suspended", "id": "late", "channel": "chat.7"}
    hidden = {"part": "Hidden", "id": "hidden", "channel": "chat.8"}
    await page.show(connection, suspended, {**hidden, "mode": "hidden"}, isStrict=True)
    await page.has("waiting", "")
    await page.value("connection", "it.status === 'connected'")
    assert page.count("subscribe", "chat.7") == page.count("subscribe", "chat.8") == 0
    await page.evaluate("release('!')")
    await page.has("late", "joined!")
    await page.show(connection, suspended, {**hidden, "mode": "visible"}, isStrict=True)
    await page.has("hidden", "joined")
    await bus.publish("chat.7", "Number", 7)
    await bus.publish("chat.8", "Number", 8)
    await page.until("log.length === 2")
    await page.show(connection, suspended, {**hidden, "mode": "hidden"}, isStrict=True)
    async with asyncio.timeout(40):
        while page.count("unsubscribe", "chat.8") < 1:  # noqa: ASYNC110 - frames are no events
            await asyncio.sleep(0.05)
    await bus.publish("chat.8", "Number", 9)
    await bus.publish("chat.7", "Number", 10)
    await page.until("log.length === 3")
    assert await page.evaluate("log[2]") == ["late", "Number", 10]
    assert page.count("subscribe", "chat.7") == page.count("subscribe", "chat.8") == 1
    assert await page.evaluate("faults") == []


@pytest.mark.parametrize("framework", ["vue"], indirect=True)
@pytest.mark.parametrize("kind", ["ref", "reactive"])
async def test_bus_and_handles_in_a_ref_of_vue_work(edge_process, open_page, bus, kind):
    await edge_process()
    page = await open_page()
    await page.evaluate(
        """([kind, specs]) => {
          const made = connect({ url: "/ws", token: () => issueToken() });
          globalThis.kept = kind === "ref" ? ref(made) : toRef(reactive({ made }), "made");
          globalThis.handle = ref([kept.value.subscribe("chat.7", (data) => log.push(data))]);
          return show(specs, { bus: kept.value });
        }""",
        [kind, [{"part": "Provided", "id": "provided", "inside": channel("one", "chat.8")}]],
    )
    await page.evaluate("handle.value[0].ready")
    assert await page.evaluate("handle.value[0].active")
    await page.has("one", "joined")
    await bus.publish("chat.7", "Number", 1)
    await page.until("log.length === 1")
    await bus.publish("chat.8", "Number", 2)
    await page.until("log.length === 2")
    assert await page.evaluate("log") == [1, ["one", "Number", 2]]
    await page.evaluate("handle.value[0].unsubscribe(); kept.value.close()")
    assert await page.evaluate("faults") == []


@pytest.mark.parametrize("framework", ["vue"], indirect=True)
async def test_component_that_vue_keeps_alive_stays_subscribed(edge_process, open_page, database):
    await edge_process()
    page = await open_page()
    await database.add(1)
    kept = {"part": "Kept", "id": "kept", "channel": "chat.7"}
    await page.show(channel("one"), {**kept, "mode": "visible"})
    await page.value("kept", "it.status === 'ready'")
    await page.has("one", "joined")
    await page.show(channel("one"), {**kept, "mode": "hidden"})
    await page.until("!document.getElementById('kept')")
    await database.add(2)
    await page.until("log.length === 2")
    await page.show(channel("one"), {**kept, "mode": "visible"})
    shown = await page.value("kept", "it.numbers.length === 3")
    assert shown == {"status": "ready", "numbers": [0, 1, 2]}
    assert page.count("subscribe", "chat.7") == database.loads == 1
    assert await page.evaluate("faults") == []
