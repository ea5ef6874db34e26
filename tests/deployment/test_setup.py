"""`eventbus setup` while a cluster is coming up."""

import asyncio
import threading

import pytest

pytestmark = [pytest.mark.xdist_group("deployment"), pytest.mark.timeout(240)]


@pytest.fixture
def cluster(new_deployment, tmp_path):
    """Another deployment, of which nothing runs yet."""
    made = new_deployment(tmp_path)
    yield made
    made.stop()


async def test_setup_waits_for_a_server_that_is_late(cluster):
    for number in (1, 2):
        cluster.start_nats(number)
    ended = threading.Event()

    def prepare():
        try:
            return cluster.eventbus("setup", environ=cluster.role("admin"))
        finally:
            ended.set()

    setting_up = asyncio.create_task(asyncio.to_thread(prepare))
    assert not await asyncio.to_thread(ended.wait, 3), (await setting_up).stderr
    cluster.start_nats(3)
    done = await setting_up
    assert done.returncode == 0, done.stderr
    assert "ready: EB_EVENTS" in done.stdout
