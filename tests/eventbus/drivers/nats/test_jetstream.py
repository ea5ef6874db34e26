"""JetStream's API while a cluster comes up: a server carries the answers that it then gives."""

import asyncio
import json

import nats
import pytest

from eventbus.config import Settings
from eventbus.drivers.nats.auth import Servers, make_login
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.jetstream import Stream, request_api
from eventbus.errors import ConnectionFailed, StreamMismatch
from eventbus.server import NatsServer

NO_PEERS = "no suitable peers for placement"


@pytest.fixture
async def server(tmp_path):
    """Without JetStream, which a test takes the part of."""
    config = {"jetstream": "disabled"}
    async with NatsServer(tmp_path / "nats", config=config) as server:
        yield server


async def asked(server, *errors, seconds=20, when=None):
    """What comes of a question that is refused with each of the errors, then answered."""
    plain = await nats.connect(server.url)
    answers = [{"error": error} for error in errors] + [{"config": {}}]
    times = 0

    async def answer(message):
        nonlocal times
        if when is not None:
            when.append(asyncio.get_running_loop().time())
        await message.respond(json.dumps(answers[min(times, len(answers) - 1)]).encode())
        times += 1

    await plain.subscribe("$JS.API.STREAM.CREATE.X", cb=answer)
    await plain.flush()
    connection = NatsConnection(
        Servers.of(server.url),
        make_login(Settings(nats_url=server.url)),
        on_lost=lambda: None,
        on_reconnected=lambda: None,
    )
    try:
        await connection.open()
        return await request_api(connection, "STREAM.CREATE.X", {}, seconds), times
    finally:
        await connection.aclose()
        await plain.close()


async def test_cluster_that_does_not_know_of_its_peers_is_asked_again(server):
    offline = {"code": 400, "err_code": 10005, "description": f"{NO_PEERS}, peer offline"}
    no_leader = {"code": 503, "err_code": 10008, "description": "temporarily unavailable"}
    answer, times = await asked(server, offline, no_leader)
    assert answer.error is None
    assert times == 3


async def test_cluster_without_room_is_not_asked_again(server):
    full = {"code": 400, "err_code": 10005, "description": f"{NO_PEERS}, insufficient storage"}
    answer, times = await asked(server, full)
    assert (answer.error_code, times) == (10005, 1)


@pytest.mark.parametrize(
    "err_code",
    [10007, 10009, 10118, 10119],
    ids=["not-assigned", "not-leader", "stream-offline", "consumer-offline"],
)
async def test_server_between_two_leaders_is_asked_again(server, err_code):
    error = {"code": 500, "err_code": err_code, "description": "not now"}
    answer, times = await asked(server, error, error)
    assert answer.error is None
    assert times == 3


async def test_other_faults_of_the_server_are_answers(server):
    error = {"code": 500, "err_code": 10049, "description": "cannot be made"}
    answer, times = await asked(server, error)
    assert (answer.error_code, times) == (10049, 1)


async def test_server_gets_more_time_with_each_attempt(server):
    error = {"code": 503, "err_code": 10008, "description": "temporarily unavailable"}
    when = []
    await asked(server, *[error] * 4, when=when)
    assert len(when) == 5
    assert when[4] - when[3] >= 0.4


async def test_cluster_that_does_not_come_up_is_given_up_in_time(server):
    error = {"code": 500, "err_code": 10009, "description": "can not handle request"}
    with pytest.raises(ConnectionFailed, match=r"can not handle request \(10009\)"):
        await asked(server, *[error] * 1000, seconds=0.5)


def test_differences_of_a_stream_are_what_must_match_apart_from_limits():
    config = {"name": "X", "retention": "workqueue", "discard": "old", "max_age": 7}
    stream = Stream(None, config, 1.0, must_match=("retention", "discard"), may_differ=("max_age",))
    assert stream.differences(config) == ([], [])
    found = {"retention": "limits", "max_age": 0}
    assert stream.differences(found) == (
        ['retention is "limits", not "workqueue"'],
        ["max_age is null, not 7"],
    )
    with pytest.raises(StreamMismatch, match=r'stream X exists .* retention is "limits"'):
        stream.require_match(found)
    assert stream.require_match({"retention": "workqueue"}) == ["max_age is null, not 7"]
