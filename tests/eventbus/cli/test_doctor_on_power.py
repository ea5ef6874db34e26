"""`eventbus doctor` on power cuts: what stored messages survive, as far as doctor can see."""

import json

import pytest
from msgspec.structs import replace

from eventbus.cli.doctor import brokers
from eventbus.cli.doctor.power import check_monitors
from eventbus.config import Settings
from eventbus.drivers.nats import NatsDriver
from eventbus.server import NatsServer
from tests.clusters import cluster_settings

pytestmark = pytest.mark.server

MONITORED = {"http": "127.0.0.1:-1"}
CRASHES = "acknowledged messages survive the crash of any process"


def monitor_of(server):
    """The address of its monitoring port."""
    [ports] = server.folder.glob("*.ports")
    return json.loads(ports.read_text())["monitoring"][0]


def of(*servers, **changes):
    urls = ",".join(server.url for server in servers)
    return Settings(nats_url=urls, namespace="own", history_bytes=1024**2, **changes)


async def prepare(settings):
    driver = NatsDriver(settings)
    await driver.open()
    try:
        await driver.prepare()
    finally:
        await driver.aclose()


async def examine(settings, *monitors):
    """The findings about power cuts and monitoring ports."""
    found = await brokers.check_nats(settings, 1.0, monitors)
    return [one for one in found if one.check in {"power cut", "monitor"}]


@pytest.fixture
async def new_server(tmp_path):
    servers = []

    async def start(**options):
        server = NatsServer(tmp_path / str(len(servers)), **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()


async def test_one_server_is_said_to_lose_up_to_two_minutes(new_server):
    settings = of(await new_server())
    await prepare(settings)
    [found] = await examine(settings)
    assert found.status == "ok"
    assert found.found.startswith(f"OWN_EVENTS: {CRASHES}; a power cut of the server may lose the")
    assert "last 2 minutes" in found.found
    assert "--monitor" in found.found


async def test_monitoring_port_shows_the_interval(new_server, tmp_path):
    jetstream = {"store_dir": str(tmp_path / "own"), "sync_interval": "20s"}
    server = await new_server(config={**MONITORED, "jetstream": jetstream})
    settings = of(server)
    await prepare(settings)
    healthy, found = await examine(settings, monitor_of(server))
    assert healthy.found.endswith("is healthy")
    assert "may lose the last 20 s (sync_interval)" in found.found


async def test_server_that_syncs_always_is_seen_at_its_monitoring_port(new_server):
    server = await new_server(syncs_always=True, config=MONITORED)
    settings = of(server, history_durability="disk")
    await prepare(settings)
    _, *found = await examine(settings, monitor_of(server))
    assert [(one.status, one.found) for one in found] == [
        ("ok", f"{name}: {CRASHES}, and any power cut: each write is synced to disk first")
        for name in ("OWN_EVENTS", "KV_OWN_DURABLE")
    ]


async def test_what_a_nats_user_cannot_see_is_a_warning_that_says_how(new_server):
    settings = of(await new_server(syncs_always=True), queue_durability="disk")
    await prepare(settings)
    found = await examine(settings)
    warnings = {one.found.partition(":")[0]: one for one in found if one.status == "warning"}
    assert sorted(warnings) == ["OWN_FAILED", "OWN_QUEUE"]
    assert "a NATS user cannot see" in warnings["OWN_QUEUE"].found
    assert "eventbus doctor --monitor http://host:8222" in warnings["OWN_QUEUE"].change


async def test_tag_on_a_server_that_does_not_sync_is_a_failure(new_server):
    server = await new_server(config={**MONITORED, "server_tags": ["sync-always"]})
    settings = of(server, retention="orders.>:10/1h/disk")
    await prepare(settings)
    _, found, _ = await examine(settings, monitor_of(server))
    assert found.status == "failed"
    assert "the settings ask for disk, but" in found.found
    assert "may lose the last 120 s (sync_interval)" in found.found
    assert "sync_interval: always" in found.change


async def test_server_that_syncs_always_without_the_tag_is_a_failure_as_no_bus_opens_on_it(
    new_server, tmp_path
):
    jetstream = {"store_dir": str(tmp_path / "own"), "sync_interval": "always"}
    server = await new_server(config={**MONITORED, "jetstream": jetstream})
    settings = of(server)
    await prepare(settings)
    _, found, *_ = await examine(replace(settings, history_durability="disk"), monitor_of(server))
    assert found.status == "failed"
    assert "no tag sync-always" in found.found


@pytest.mark.parametrize("is_prepared", [True, False])
async def test_server_without_the_tag_is_a_failure_that_says_what_to_configure(
    new_server, is_prepared
):
    settings = of(await new_server())
    if is_prepared:
        await prepare(settings)
    found = await examine(replace(settings, history_durability="disk"))
    assert {one.status for one in found} == {"failed"}
    assert "its servers have no tag sync-always" in found[0].found
    assert 'server_tags: ["sync-always"] and sync_interval: always' in found[0].change


@pytest.mark.parametrize(
    ("durability", "expected"),
    [("disk", "and any power cut"), ("process", "may lose the last 120 s (sync_interval)")],
)
async def test_embedded_server_is_seen_by_its_settings(tmp_path, durability, expected):
    settings = Settings(
        nats_data=str(tmp_path), nats_port=0, namespace="own", history_bytes=1024**2,
        history_durability=durability,
    )  # fmt: skip
    driver = NatsDriver(settings)
    await driver.open()
    try:
        found = await examine(settings)
    finally:
        await driver.aclose()
    assert found[0].status == "ok"
    assert expected in found[0].found


async def test_monitor_that_does_not_answer_is_a_failure(new_server):
    server = await new_server()
    settings = of(server)
    await prepare(settings)
    broken, wrong, _ = await examine(
        settings, "http://user:s3cr3t-pass@127.0.0.1:1", server.url.replace("nats://", "http://")
    )
    for each in (broken, wrong):
        assert each.status == "failed"
        assert "http://host:8222" in each.change
    assert "s3cr3t-pass" not in broken.found


async def test_server_that_is_not_healthy_is_a_failure(new_server):
    """One server of three alone has no leader, which is as visible there as a full disk."""
    server = await new_server(config={**cluster_settings(3)[0], **MONITORED})
    _, [found] = await check_monitors([monitor_of(server)])
    assert found.status == "failed"
    assert found.found.startswith("nats-1 is not healthy: ")
    assert "restart it" in found.change


async def test_cluster_is_said_to_survive_the_power_cut_of_one_broker(new_server):
    servers = [await new_server(config={**one, **MONITORED}) for one in cluster_settings(3)]
    settings = of(*servers, history_replicas=3, connect_timeout=30.0)
    await prepare(settings)
    monitors = [monitor_of(server) for server in servers]
    found = (await examine(settings, *monitors))[-1]
    assert f"{CRASHES}, and a power cut of one broker of 3; a simultaneous" in found.found
    assert "power cut of a majority may lose the last 120 s (sync_interval)" in found.found
    partly = (await examine(settings, monitors[0]))[-1]
    assert "or nothing, if that is always" in partly.found
