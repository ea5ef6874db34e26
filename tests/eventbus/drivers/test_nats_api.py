"""JetStream's API while a cluster comes up: a server carries the answers that it then gives."""

import json

import nats
import pytest

from eventbus.config import Settings
from eventbus.drivers.nats_api import ask
from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_login import make_login
from eventbus.server import NatsServer

NO_PEERS = "no suitable peers for placement"


@pytest.fixture
async def server(tmp_path):
    """Without JetStream, which a test takes the part of."""
    config = {"jetstream": "disabled"}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        yield server


async def asked(server, *errors):
    """What comes of a question that is refused with each of the errors, then answered."""
    plain = await nats.connect(server.url)
    answers = [{"error": error} for error in errors] + [{"config": {}}]
    times = 0

    async def answer(message):
        nonlocal times
        await message.respond(json.dumps(answers[min(times, len(answers) - 1)]).encode())
        times += 1

    await plain.subscribe("$JS.API.STREAM.CREATE.X", cb=answer)
    await plain.flush()
    connection = NatsConnection(
        [server.url],
        make_login(Settings(nats_url=server.url)),
        on_lost=lambda: None,
        on_back=lambda: None,
    )
    try:
        await connection.open()
        return await ask(connection, "STREAM.CREATE.X", {}, 20), times
    finally:
        await connection.aclose()
        await plain.close()


async def test_cluster_that_has_not_heard_of_its_peers_is_asked_again(server):
    offline = {"code": 400, "err_code": 10005, "description": f"{NO_PEERS}, peer offline"}
    no_leader = {"code": 503, "err_code": 10008, "description": "temporarily unavailable"}
    answer, times = await asked(server, offline, no_leader)
    assert answer.error is None
    assert times == 3


async def test_cluster_without_room_is_not_asked_again(server):
    full = {"code": 400, "err_code": 10005, "description": f"{NO_PEERS}, insufficient storage"}
    answer, times = await asked(server, full)
    assert (answer.error_code, times) == (10005, 1)
