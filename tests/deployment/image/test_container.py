"""Containers of the image with what compose.yaml gives them, on its three NATS servers."""

import asyncio
import json
import signal
import ssl
import time
from pathlib import Path

import aiohttp
import pytest

from eventbus.bus import EventBus
from eventbus.client import connect
from eventbus.tokens import issue_token
from tests.deployment.image.conftest import PATIENCE_S

pytestmark = [pytest.mark.xdist_group("deployment"), pytest.mark.timeout(240)]


def secrets_of(deployment, service):
    """A service's secrets by compose.yaml: where each is, by its name in the container."""
    named = [
        {"source": each, "target": each} if isinstance(each, str) else each
        for each in deployment.compose["services"][service].get("secrets", ())
    ]
    return {each["target"]: deployment.secrets / each["source"] for each in named}


def environment_of(deployment, service, **changes):
    """A service's environment by compose.yaml; addresses are this machine's."""
    environ = deployment.environment(service, **changes)
    secrets = f"{deployment.secrets}/"
    return {name: value.replace(secrets, "/run/secrets/") for name, value in environ.items()}


class Node:
    """An edge in a container, as compose.yaml has it."""

    def __init__(self, engine, deployment, folder, **changes):
        service = deployment.compose["services"]["edge"]
        self.deployment = deployment
        (self.port,) = deployment.free_ports(1)
        self.tmp = folder / f"tmp-{self.port}"
        self.tmp.mkdir()
        assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
        self._engine = engine
        self._options = {
            "environ": environment_of(
                deployment, "edge", BROADCAST_WEBSOCKET_PORT=str(self.port), **changes
            ),
            "secrets": secrets_of(deployment, "edge"),
            "mounts": {"/tmp": self.tmp},
        }
        self.container = engine.start(
            *engine.recipe.entrypoint, *service["command"], **self._options
        )

    def run(self, *command, **changes):
        """Run a command beside the node, as `docker exec` does."""
        options = self._options | {"environ": self._options["environ"] | changes}
        return self._engine.run(*command, **options)

    def wait_ready(self):
        self.container.wait_until(lambda: self.check_health() == 0)
        return self

    def check_health(self):
        return self.run(*self._engine.recipe.health)[0]


@pytest.fixture(scope="module")
def start_node(engine, deployment, tmp_path_factory):
    def start(**changes):
        return Node(engine, deployment, tmp_path_factory.mktemp("node"), **changes)

    return start


@pytest.fixture(scope="module")
def node(start_node):
    return start_node().wait_ready()


def test_compose_runs_the_image_as_it_runs_by_itself(deployment, recipe):
    service = deployment.compose["services"]["edge"]
    assert service["command"] == recipe.command
    assert service["healthcheck"]["test"] == ["CMD", *recipe.health]


def test_streams_are_made_by_a_container(engine, deployment):
    command = deployment.compose["services"]["setup"]["command"]
    code, output = engine.run(
        *engine.recipe.entrypoint, *command,
        environ=environment_of(deployment, "setup", BROADCAST_HISTORY_BYTES=str(16 * 1024**2)),
        secrets=secrets_of(deployment, "setup"),
    )  # fmt: skip
    assert code == 0, output
    assert "ready: EB_EVENTS" in output


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def test_process_has_no_rights_and_is_process_1(engine, node, recipe):
    if not engine.is_confined:
        pytest.skip("namespaces cannot be created here")
    pid = node.container.pid
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(workers) == int(node.deployment.environment("edge")["BROADCAST_WORKERS"])
    for each in (pid, *workers):
        status = status_of(each)
        assert status["Uid"] == status["Gid"] == [str(recipe.user)] * 4
        assert {name: int(status[name][0], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {
            "CapPrm": 0, "CapEff": 0, "CapBnd": 0,
        }  # fmt: skip
        assert status["NoNewPrivs"] == ["1"]
    assert status_of(pid)["NSpid"][-1] == "1"
    code, output = node.run("python", "-c", "open('/opt/eventbus/x', 'w')")
    assert (code, "Read-only file system" in output) == (1, True)


@pytest.mark.parametrize(
    "path",
    [
        "/readyz",
        "/static/eventbus.js",
        "/static/eventbus.d.ts",
        "/dashboard",
        "/api/docs",
        "/api/openapi.json",
    ],
)
async def test_all_that_a_node_serves_is_there(node, path):
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"https://localhost:{node.port}{path}",
            headers={"Authorization": f"Bearer {node.deployment.api_key}"},
            ssl=node.deployment.client_tls,
        ) as response,
    ):
        assert response.status == 200
        assert await response.read()


def client_of(node, user="7"):
    token = issue_token(user, secret=node.deployment.jwt_secret)
    url = f"wss://localhost:{node.port}/ws"
    return connect(url, token=token, tls=node.deployment.client_tls)


async def test_event_of_a_service_reaches_a_client(deployment, node):
    async with EventBus(deployment.settings("publisher")) as bus, client_of(node) as client:
        subscription = await client.subscribe("user.7")
        body = json.dumps({"event": "note", "data": 1}).encode()
        await bus.driver.publish(bus.subjects.event("user.7"), body)
        async with asyncio.timeout(30):
            assert (await anext(aiter(subscription))).data == 1


def test_doctor_has_no_objection_in_the_container(engine, deployment, node):
    kept = {k: v for k, v in deployment.role("edge").items() if k.startswith("BROADCAST_HISTORY_")}
    code, output = node.run(*engine.recipe.entrypoint, "doctor", "--json", **kept)
    findings = {each["check"]: each for each in json.loads(output)["findings"]}
    # An engine sets the limit that compose.yaml asks for.
    assert {check for check, each in findings.items() if each["status"] != "ok"} <= {"open files"}
    assert {"settings", "production", "JWT keys", "JetStream", "stream", "edge nodes"} <= set(
        findings
    )
    assert code == 0


def shown_by(node):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return ssl.get_server_certificate(("localhost", node.port))


def test_certificate_that_was_renewed_in_place_is_shown_after_sighup(deployment, node):
    before = shown_by(node)
    deployment.make_certificate("edge", "edge.eventbus", "localhost", "127.0.0.1")
    assert shown_by(node) == before
    node.container.send(signal.SIGHUP)
    workers = 2
    node.container.wait_until(
        lambda: node.container.text().count("reloaded the certificate") == workers
    )
    # As PEM, but for how the lines end.
    renewed = (deployment.secrets / "edge.crt").read_text()
    assert shown_by(node) in renewed


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "2"), (signal.SIGINT, "1")])
async def test_signal_drains_it_and_leaves_nothing_behind(start_node, number, workers):
    node = start_node(BROADCAST_WORKERS=workers, BROADCAST_DRAIN_TIME="0.1")
    await asyncio.to_thread(node.wait_ready)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"wss://localhost:{node.port}/ws", ssl=node.deployment.client_tls
        ) as client,
    ):
        assert (await client.receive()).type == aiohttp.WSMsgType.TEXT
        node.container.send(number)
        async with asyncio.timeout(30):
            while (last := await client.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert (last.type, last.data) == (aiohttp.WSMsgType.CLOSE, 4200)
    assert await asyncio.to_thread(node.container.wait) == 0, node.container.text()
    assert list(node.tmp.iterdir()) == []
    assert "Traceback" not in node.container.text()


def test_sigterm_while_nats_is_away_ends_it(start_node, deployment):
    (nobody,) = deployment.free_ports(1)
    url = f"tls://127.0.0.1:{nobody}"
    node = start_node(NATS_URL=url, BROADCAST_CONNECT_TIMEOUT="600")
    node.container.wait_until(lambda: node.container.text().count("Connection refused") >= 2)
    assert node.check_health() == 1
    node.container.send(signal.SIGTERM)
    assert node.container.wait() == 0, node.container.text()
    assert list(node.tmp.iterdir()) == []


def test_without_a_place_for_temporary_files_workers_are_refused(engine, deployment):
    if not engine.is_confined:
        pytest.skip("there is always one here")
    code, output = engine.run(
        *engine.recipe.entrypoint, *engine.recipe.command,
        environ=environment_of(deployment, "edge"), secrets=secrets_of(deployment, "edge"),
    )  # fmt: skip
    assert (code, "TMPDIR" in output) == (2, True), output


# By itself: docker run eventbus


def test_image_alone_runs_a_node_with_a_nats_server_of_its_own(engine, deployment, tmp_path):
    data, tmp = tmp_path / "data", tmp_path / "tmp"
    for folder in (data, tmp):
        folder.mkdir()
    (port,) = deployment.free_ports(1)
    environ = {"BROADCAST_WEBSOCKET_PORT": str(port), "BROADCAST_NATS_PORT": "0"}
    options = {"environ": environ, "mounts": {engine.recipe.workdir: data, "/tmp": tmp}}
    node = engine.start(*engine.recipe.entrypoint, *engine.recipe.command, **options)
    node.wait_until(lambda: engine.run(*engine.recipe.health, **options)[0] == 0)
    node.send(signal.SIGTERM)
    assert node.wait() == 0, node.text()
    assert [path.name for path in data.iterdir()] == [".eventbus"]
    assert list(tmp.iterdir()) == []


def test_image_alone_says_that_it_may_not_write_its_data(engine):
    if not engine.is_confined:
        pytest.skip("the superuser may write everywhere")
    code, output = engine.run(*engine.recipe.entrypoint, *engine.recipe.command)
    assert code == 1
    assert "BROADCAST_NATS_DATA" in output, output


def test_killed_container_takes_its_process_along(engine):
    container = engine.start("python", "-c", "import time; time.sleep(1000)")
    pid = container.pid
    if engine.is_confined:
        container.wait_until(lambda: status_of(pid)["Uid"][0] == str(engine.recipe.user))
    container.kill()
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
