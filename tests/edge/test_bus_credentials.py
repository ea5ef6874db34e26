"""An edge whose NATS user is no longer valid: it says so, is not ready, and recovers."""

import asyncio

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventbus.config import Settings

REFUSED = "eventbus_edge_bus_refused_logins_total"


@pytest.fixture
def creds(tmp_path):
    return tmp_path / "edge.creds"


async def sample(session, url, name):
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            if each.name == name:
                return each.value
    raise AssertionError(f"{name} is not in:\n{text}")


async def becomes(session, url, status):
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"{url}/readyz") as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.02)


async def test_edge_whose_user_is_revoked_is_not_ready_counts_it_and_heals_with_a_new_file(
    start_edge, jwt_server, operator, creds
):
    creds.write_text(operator.user("admin"), encoding="utf-8")
    edge = await start_edge(
        Settings(nats_url=jwt_server.url, nats_creds=str(creds), history_bytes=1024**2)
    )
    url = f"http://127.0.0.1:{edge.port}"
    async with aiohttp.ClientSession() as session:
        await becomes(session, url, 200)
        assert await sample(session, url, REFUSED) == 0
        operator.revoke_all()
        jwt_server.renew()
        await becomes(session, url, 503)
        async with asyncio.timeout(30):
            while not await sample(session, url, REFUSED):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        assert await sample(session, url, "eventbus_edge_bus_connected") == 0
        creds.write_text(operator.renewed("admin"), encoding="utf-8")
        await becomes(session, url, 200)
