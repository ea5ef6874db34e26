"""Power cuts of all three NATS servers of compose/ at once, with each of its configurations."""

import asyncio

import pytest
from msgspec.structs import replace

from tests.deployment.conftest import SERVERS, Deployment
from tests.power.publishing import Publishers, lost

pytestmark = [pytest.mark.fuse, pytest.mark.xdist_group("power-compose"), pytest.mark.timeout(240)]

FORMS = {"nats.conf": (), "always.conf": ("compose.always.yaml",)}


class PoweredDeployment(Deployment):
    """A deployment whose NATS servers each store data on a machine of their own."""

    def __init__(self, folder, nats_file, new_machine):
        super().__init__(folder, *FORMS[nats_file])
        self.nats_file = nats_file
        self.machines = {number: new_machine() for number in SERVERS}

    def start_nats(self, number, **options):
        data = str(self.machines[number].folder)
        return super().start_nats(number, NATS_DATA=data, **options)

    def power_off(self):
        for number in SERVERS:
            self.processes[f"nats-{number}"].kill()
        for machine in self.machines.values():
            machine.power_off()

    def power_on(self):
        for machine in self.machines.values():
            machine.power_on()
        self.start_cluster()


@pytest.fixture
def new_powered(tmp_path, new_machine):
    """Make a deployment with a configuration for its NATS servers: `new_powered("nats.conf")`."""
    deployments = []

    def make(nats_file):
        deployments.append(PoweredDeployment(tmp_path, nats_file, new_machine))
        deployments[-1].start_cluster()
        return deployments[-1]

    yield make
    for deployment in deployments:
        deployment.stop()


@pytest.mark.parametrize("nats_file", FORMS)
async def test_only_always_keeps_acknowledged_messages_after_a_power_cut_of_all(
    new_powered, nats_file
):
    deployment = await asyncio.to_thread(new_powered, nats_file)
    done = await asyncio.to_thread(deployment.eventbus, "setup", environ=deployment.role("admin"))
    assert done.returncode == 0, done.stderr
    settings = replace(deployment.settings("admin"), connect_timeout=90.0, publish_timeout=90.0)
    async with Publishers(settings) as publishers:
        publishers.begin()
        await publishers.more(100)
        await publishers.stop()
        for machine in deployment.machines.values():
            machine.write_back()
        before = set(publishers.acknowledged)
        publishers.begin()
        await publishers.more(200)
        deployment.power_off()
        await publishers.stop()
        await asyncio.to_thread(deployment.power_on)
    async with Publishers(settings) as reader:
        missing = lost(publishers.acknowledged, await reader.stored())
    assert missing <= set(publishers.acknowledged) - before
    assert bool(missing) is (nats_file == "nats.conf")


async def test_setup_for_disk_fails_on_servers_that_sync_every_two_minutes(new_powered):
    deployment = await asyncio.to_thread(new_powered, "nats.conf")
    environ = deployment.role("admin", BROADCAST_HISTORY_DURABILITY="disk")
    done = await asyncio.to_thread(deployment.eventbus, "setup", environ=environ)
    assert done.returncode == 1
    assert "no suitable peers" in done.stderr
    assert 'server_tags: ["sync-always"]' in done.stderr
    assert "sync_interval: always" in done.stderr
