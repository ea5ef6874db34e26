"""`eventbus doctor` as a process, with real servers that are well, and that are sick."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys

import msgspec
import nats
import pytest

from eventbus.bus import EventBus
from eventbus.cli.doctor import brokers as checks_bus
from eventbus.config import Settings
from eventbus.drivers.nats.state import bucket_stream
from eventbus.server import NatsServer, find_binary
from tests.eventbus.drivers.nats.conftest import posing_as
from tests.ports import free_port

SECRET = "a-secret-of-tests-that-is-32-bytes-long"


@pytest.fixture
def environ(settings):
    ours = ("JWT_", "BROADCAST_", "EDGE_", "NATS_", "CORS_")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {
        **plain,
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
        "BROADCAST_WEBSOCKET_PORT": "0",
        "BROADCAST_MAX_CONNECTIONS": "100",
        "JWT_SECRET": SECRET,
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }


@pytest.fixture
def doctor(run_command, environ, tmp_path):
    """Run it: its findings by their check, and the exit code."""

    def examine(*arguments, **changes):
        env = {k: v for k, v in {**environ, **changes}.items() if v is not None}
        return run_command("doctor", *arguments, cwd=tmp_path, env=env)

    return examine


@pytest.fixture
def findings(doctor):
    def examine(**changes):
        done = doctor("--json", **changes)
        assert done.stdout, done.stderr
        output = json.loads(done.stdout)
        assert done.returncode == (0 if output["ok"] else 1)
        found = {}
        for each in output["findings"]:
            found.setdefault(each["check"], []).append(each)
        return found

    return examine


def only(found, check):
    (finding,) = found[check]
    return finding


def make_stream(settings, **changes):
    import msgspec  # noqa: PLC0415

    async def main():
        async with EventBus(msgspec.structs.replace(settings, **changes)):
            pass

    asyncio.run(main())


def test_healthy_setup_has_no_findings(doctor, findings, settings):
    make_stream(settings)
    found = findings()
    statuses = {check: {each["status"] for each in several} for check, several in found.items()}
    assert statuses.pop("edge nodes") == {"warning"}, "none runs"
    assert statuses.pop("revocations") == {"warning"}, "no edge has made their bucket"
    assert set.union(*statuses.values()) == {"ok"}, found
    assert "matches the settings" in only(found, "stream")["found"]
    assert "version 2." in only(found, "NATS")["found"]
    shown = doctor()
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[-1] == "11 ok, 2 warnings, 0 failed"
    assert any(line.startswith("✓ JetStream   ") for line in lines)
    assert all(len(line) <= 100 for line in lines)
    assert shown.stderr == ""


async def test_server_with_known_vulnerabilities_is_a_warning(findings, own_nats_server):
    async with posing_as(own_nats_server, "2.12.11") as url:
        found = only(await asyncio.to_thread(findings, NATS_URL=url), "NATS")
    assert found["status"] == "warning"
    assert "2.12.11" in found["found"]
    assert "CVE-2026-58210" in found["found"]
    assert "upgrade" in found["change"]


def test_secrets_are_never_written(doctor):
    shown = doctor(NATS_URL="nats://user:hunter2@127.0.0.1:1", BROADCAST_REDIS_PASSWORD="hunter3")
    assert "hunter" not in shown.stdout + shown.stderr
    assert SECRET not in shown.stdout


def test_unreachable_nats_is_reported_in_time(findings):
    nats = only(findings(NATS_URL="nats://127.0.0.1:1"), "NATS")
    assert nats["status"] == "failed"
    assert "cannot connect to nats://127.0.0.1:1" in nats["found"]
    assert "NATS_URL" in nats["change"]


def test_nats_that_wants_a_login(findings, tmp_path):
    config = {"authorization": {"user": "a", "password": "b"}}
    with server(tmp_path, config) as url:
        nats = only(findings(NATS_URL=url), "NATS")
    assert nats["status"] == "failed"
    assert "refuses the credentials" in nats["found"]


def test_jetstream_that_is_off(findings, tmp_path):
    binary = shutil.which("nats-server") or str(
        __import__("pathlib").Path(sys.executable).parent / "nats-server"
    )
    port = free_port()
    process = subprocess.Popen([binary, "-p", str(port), "-a", "127.0.0.1"],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(port)
        found = findings(NATS_URL=f"nats://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
    assert only(found, "NATS")["status"] == "ok"
    assert only(found, "JetStream")["status"] == "failed"
    assert "-js" in only(found, "JetStream")["change"]
    assert "stream" not in found


def test_stream_that_is_not_there_is_no_fault_and_is_not_made(findings):
    for _ in range(2):
        stream = only(findings(), "stream")
        assert stream["status"] == "warning"
        assert "does not exist yet" in stream["found"]


def test_bucket_of_revocations(findings, settings, nats_server):
    async def prepare():
        async with EventBus(settings) as bus:
            await bus.driver.prepare()

    make_stream(settings)
    asyncio.run(prepare())
    kept = only(findings(), "revocations")
    assert (kept["status"], "survive restarts" in kept["found"]) == ("ok", True)
    kept = only(findings(BROADCAST_HISTORY_REPLICAS="3"), "revocations")
    assert kept["status"] == "warning"
    assert "has 1 copies, not 3" in kept["found"]


def test_bucket_of_revocations_in_memory_is_a_fault(findings, settings):
    async def make():
        config = dict(bucket_stream(None, settings, "durable").config) | {"storage": "memory"}
        client = await nats.connect(settings.nats_url)
        api = f"$JS.API.STREAM.CREATE.{config['name']}"
        await client.request(api, json.dumps(config).encode())
        await client.close()

    make_stream(settings)
    asyncio.run(make())
    kept = only(findings(), "revocations")
    assert kept["status"] == "failed"
    assert "invalid settings: storage" in kept["found"]


def test_stream_with_other_limits_and_one_that_cannot_work(findings, settings, nats_server):
    make_stream(settings, history_messages=7)
    stream = only(findings(), "stream")
    assert stream["status"] == "warning"
    assert "max_msgs_per_subject is 8, not 101" in stream["found"]
    assert "BROADCAST_HISTORY_*" in stream["change"]

    other = "u" + settings.namespace
    add_stream(nats_server.url, other)
    found = findings(BROADCAST_CHANNELS_PREFIX=other)
    assert only(found, "stream")["status"] == "failed"
    assert "republish is null" in only(found, "stream")["found"]
    assert "edge nodes" not in found


def add_stream(url, namespace):
    import nats  # noqa: PLC0415

    async def main():
        client = await nats.connect(url)
        await client.jetstream().add_stream(
            name=f"{namespace.upper()}_EVENTS", subjects=[f"{namespace}.event.>"], max_bytes=10_000
        )
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"JWT_SECRET": "short"}, "JWT_SECRET has 5 bytes; HS256 needs at least 32"),
        ({"JWT_ALGORITHMS": "RS256"}, "JWT_ALGORITHMS has 'RS256', but JWT_SECRET is set"),
        ({"JWT_SECRET": None, "JWT_PUBLIC_KEY": "/no/such.pem"}, "JWT_PUBLIC_KEY='/no/such.pem'"),
        (
            {"JWT_SECRET": None, "JWT_JWKS_URL": "http://127.0.0.1:1/", "JWT_ALGORITHMS": "RS256"},
            "provides no keys for RS256",
        ),
    ],
)
def test_keys_that_cannot_work(findings, changes, words):
    keys = only(findings(**changes), "JWT keys")
    assert keys["status"] == "failed"
    assert words in keys["found"]


def test_no_keys_are_a_warning(findings):
    assert only(findings(JWT_SECRET=None), "JWT keys")["status"] == "warning"


def test_every_wrong_variable_is_named_and_unknown_ones_with_the_nearest(findings):
    found = findings(
        BROADCAST_HISTORY_SECONDS="soon", BROADCAST_WORKERS="0", BROADCAST_HISTROY_BYTES="1",
        JWT_SECERT="x", JWT_WHATEVER="others", NATS_CONTEXT="others", EDGE_NONSENSE="1",
    )["settings"]  # fmt: skip
    reported = {each["found"].split("=")[0].split(" ")[0]: each for each in found}
    assert reported.keys() == {
        "BROADCAST_HISTORY_SECONDS", "BROADCAST_WORKERS", "BROADCAST_HISTROY_BYTES", "JWT_SECERT",
        "EDGE_NONSENSE",
    }  # fmt: skip
    assert reported["BROADCAST_WORKERS"]["status"] == "failed"
    assert reported["BROADCAST_WORKERS"]["change"] == "set it to: 1 to 256"
    assert reported["BROADCAST_HISTROY_BYTES"]["status"] == "warning"
    assert "BROADCAST_HISTORY_BYTES" in reported["BROADCAST_HISTROY_BYTES"]["change"]
    assert "JWT_SECRET" in reported["JWT_SECERT"]["change"]


def test_secret_in_a_file_is_one_that_is_set(findings, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    files = {"JWT_SECRET": None, "JWT_SECRET_FILE": str(tmp_path / "secret")}
    assert only(findings(**files), "settings")["status"] == "ok"
    found = only(findings(**files, BROADCAST_API_KEY_FILE=str(tmp_path / "none")), "settings")
    assert found["status"] == "failed"
    assert "BROADCAST_API_KEY_FILE" in found["found"]


APPS = '[[app]]\nid = "7"\nkey = "shop"\nsecret = "{}"\n'
STRONG = "Qk7vXw2pLr9TzB4nYc6HsD1mJf8GaE3u"


def test_files_that_the_settings_name_are_read(findings, tmp_path):
    rules, apps = tmp_path / "rules.toml", tmp_path / "apps.toml"
    rules.write_text('[[rule]]\npattern = "news.*"\nkind = "public"\n')
    apps.write_text(APPS.format("secret-of-the-shop"))
    files = {"BROADCAST_RULES": str(rules), "PUSHER_APPS": str(apps)}
    found = findings(**files)
    assert only(found, "channel rules")["found"] == f"1 rule in {rules}"
    assert only(found, "apps")["found"] == f"Pusher protocol: 1 app in {apps}"
    rules.write_text("[[rule]]\n")
    apps.write_text(APPS.format("short"))
    found = findings(**files)
    for check, word in (("channel rules", "pattern"), ("apps", "secret")):
        assert only(found, check)["status"] == "failed"
        assert word in only(found, check)["found"]


def test_weak_secret_of_an_app_is_a_failure_in_production(findings, tmp_path):
    apps = tmp_path / "apps.toml"
    settings = {"BROADCAST_ENVIRONMENT": "production", "PUSHER_APPS": str(apps)}
    for secret, status in ((STRONG, "ok"), ("secret-of-the-shop", "failed")):
        apps.write_text(APPS.format(secret))
        found = only(findings(**settings), "apps")
        assert found["status"] == status
        assert secret not in found["found"]


@pytest.mark.parametrize(
    ("origins", "status"),
    [
        ("", "ok"), ("https://a.example,b.example:3000,null", "ok"), ("*", "warning"),
        ("https://a.example/", "failed"), ("https://a.example/app", "failed"), ("a b", "failed"),
    ],
)  # fmt: skip
def test_origins(findings, origins, status):
    assert only(findings(CORS_ALLOWED_ORIGINS=origins), "CORS")["status"] == status


def test_origin_in_the_way_of_django_gets_the_right_one_as_advice(findings):
    found = only(findings(CORS_ALLOWED_ORIGINS=".example.com"), "CORS")
    assert found["status"] == "failed"
    assert "write '*.example.com'" in found["change"]


def test_port_that_a_stranger_has(findings):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        found = only(findings(BROADCAST_WEBSOCKET_PORT=str(port)), "port")
    assert found["status"] == "failed"
    assert "no edge is listening" in found["found"]
    assert "BROADCAST_WEBSOCKET_PORT" in found["change"]


def test_edge_that_runs_is_found_at_its_port_and_over_the_bus(findings, environ):
    port = str(free_port())
    process = subprocess.Popen(
        [sys.executable, "-m", "eventbus_edge"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**environ, "BROADCAST_WEBSOCKET_PORT": port},
    )  # fmt: skip
    try:
        assert "edge ready" in process.stdout.readline()
        found = findings(BROADCAST_WEBSOCKET_PORT=port)
    finally:
        process.kill()
        process.communicate()
    assert "an edge is listening" in only(found, "port")["found"]
    nodes = only(found, "edge nodes")
    assert nodes["status"] == "ok"
    assert nodes["found"].startswith("1 (")


def test_too_few_open_files(findings):
    files = only(findings(BROADCAST_MAX_CONNECTIONS="100000000"), "open files")
    assert files["status"] == "warning"
    assert "BROADCAST_MAX_CONNECTIONS" in files["change"]


def test_redis_with_a_wrong_password_and_one_that_forgets(findings, tmp_path):
    with redis(tmp_path, "--requirepass", "right", "--appendonly", "no") as port:
        own = {"BROADCAST_DRIVER": "redis", "BROADCAST_REDIS_PORT": str(port)}
        wrong = only(findings(**own, BROADCAST_REDIS_PASSWORD="wrong"), "Redis")
        found = findings(**own, BROADCAST_REDIS_PASSWORD="right")
    assert wrong["status"] == "failed"
    assert "BROADCAST_REDIS" in wrong["found"] + wrong["change"]
    assert only(found, "Redis")["status"] == "ok"
    assert only(found, "Redis data")["status"] == "warning"
    assert "appendonly yes" in only(found, "Redis data")["change"]
    assert only(found, "clock")["status"] == "ok"
    gone = only(findings(**own, BROADCAST_REDIS_PASSWORD="right"), "Redis")
    assert gone["status"] == "failed"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"), "warning", "may evict"),
        (("--maxmemory", "1gb", "--maxmemory-policy", "volatile-ttl"), "warning", "may evict"),
        (("--maxmemory", "1gb", "--maxmemory-policy", "noeviction"), "ok", "never evicted"),
        (("--maxmemory", "1"), "failed", "its memory is full"),
        (("--min-replicas-to-write", "1"), "failed", "min-replicas-to-write"),
    ],
)
def test_redis_that_evicts_or_stores_nothing(findings, tmp_path, options, status, words):
    with redis(tmp_path, "--appendonly", "yes", *options) as port:
        found = findings(BROADCAST_DRIVER="redis", BROADCAST_REDIS_PORT=str(port))
    data = only(found, "Redis data")
    assert (data["status"], words in data["found"]) == (status, True), data


def test_embedded_server_is_not_started(findings, tmp_path):
    nats = only(findings(NATS_URL=None), "NATS")
    assert nats["status"] == "ok"
    assert not (tmp_path / ".eventbus").exists()


def test_embedded_server_that_cannot_have_its_folder_is_a_failure(findings, tmp_path):
    (tmp_path / ".eventbus").write_text("a file")
    found = only(findings(NATS_URL=None), "NATS")
    assert found["status"] == "failed"
    assert f"{tmp_path / '.eventbus'} is not a folder" in found["found"]
    assert "BROADCAST_NATS_DATA" in found["change"]


@pytest.mark.parametrize("folder", ["/proc/eventbus/nats", "a" * 300, "/dev/null/nats"])
def test_folder_that_even_root_cannot_make_is_a_failure(findings, folder):
    found = only(findings(NATS_URL=None, BROADCAST_NATS_DATA=folder), "NATS")
    assert found["status"] == "failed"
    assert folder in found["found"]


async def test_embedded_server_of_the_folder_is_checked_like_any_other(
    findings, settings, tmp_path
):
    own = msgspec.structs.replace(
        settings, nats_url="", nats_data=str(tmp_path / ".eventbus/nats"), nats_port=0
    )
    async with EventBus(own):
        found = await asyncio.to_thread(findings, NATS_URL=None)
    assert "embedded server on .eventbus/nats" in only(found, "NATS")["found"]
    assert [only(found, check)["status"] for check in ("NATS", "JetStream", "stream")] == ["ok"] * 3


def wait_for(port):
    for _ in range(2000):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        __import__("time").sleep(0.01)
    raise AssertionError("nothing listens")


@contextlib.contextmanager
def server(folder, config):
    """A nats-server with further settings."""
    own = NatsServer(folder / "nats", config=config)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(own.start())
    try:
        yield own.url
    finally:
        loop.run_until_complete(own.stop())
        loop.close()


@contextlib.contextmanager
def redis(folder, *options):
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, *options],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()


class Lonely:
    """One server of a cluster of three: JetStream has no leader until a second one is started."""

    def __init__(self, folder):
        self._folder = folder
        self._routes = [free_port() for _ in range(3)]
        self._processes = []
        self.urls = [f"nats://127.0.0.1:{free_port()}" for _ in range(3)]

    def start(self, number):
        config = {
            "server_name": f"n{number}",
            "listen": self.urls[number].removeprefix("nats://"),
            "jetstream": {"store_dir": str(self._folder / str(number))},
            "cluster": {
                "name": "three",
                "listen": f"127.0.0.1:{self._routes[number]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in self._routes],
            },
        }
        file = self._folder / f"{number}.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        with (self._folder / f"{number}.log").open("wb") as log:
            command = [find_binary(), "-c", str(file)]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def stop(self):
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def lonely(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Lonely(folder)
    yield cluster
    cluster.stop()


async def examined(cluster, monkeypatch, patience_s):
    monkeypatch.setattr(checks_bus, "_ELECTION_S", patience_s)
    settings = Settings(nats_url=",".join(cluster.urls))
    return {each.check: each for each in await checks_bus.check_nats(settings, 1.0)}


async def test_cluster_without_a_leader_is_reported_as_such(lonely, monkeypatch):
    lonely.start(0)
    wait_for(int(lonely.urls[0].rpartition(":")[2]))
    found = await examined(lonely, monkeypatch, 0.5)
    assert found["NATS"].status == "ok"
    assert found["JetStream"].status == "failed"
    assert "more than half of the cluster's servers" in found["JetStream"].change


async def test_cluster_that_is_just_starting_is_waited_for(lonely, monkeypatch):
    for number in range(3):
        lonely.start(number)
    wait_for(int(lonely.urls[0].rpartition(":")[2]))
    found = await examined(lonely, monkeypatch, 60)
    assert found["JetStream"].status == "ok"
    assert found["stream"].status == "warning"  # it does not exist yet


@pytest.mark.skipif(sys.platform != "linux", reason="limits files by prlimit(2)")
async def test_server_that_stores_nothing_is_a_failure_that_says_what_to_do(
    own_nats_server, findings, settings
):
    changes = {"NATS_URL": own_nats_server.url}
    async with EventBus(msgspec.structs.replace(settings, nats_url=own_nats_server.url)) as bus:
        await bus.publish("general", "tick", 1)
        assert "writes" not in await asyncio.to_thread(findings, **changes)
        resource.prlimit(own_nats_server.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        async with asyncio.timeout(60):
            while "writes" not in (found := await asyncio.to_thread(findings, **changes)):
                pass  # a probe that was stored counts for some seconds
    finding = only(found, "writes")
    assert finding["status"] == "failed"
    assert "stores no messages" in finding["found"]
    assert "restart the server" in finding["change"]
