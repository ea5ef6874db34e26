"""JetStream's management API: one question, asked until there is an answer or time is over."""

import asyncio
import base64
import logging
import random
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from eventbus.drivers.nats_connection import NatsConnection
from eventbus.drivers.nats_errors import DRIVER, ApiError
from eventbus.errors import ConnectionFailed, PublishFailed

__all__ = [
    "NAME_IN_USE",
    "NO_MESSAGE",
    "STREAM_NOT_FOUND",
    "Answer",
    "Got",
    "ask",
    "ensure_stream",
    "get_message",
    "newest",
]

_log = logging.getLogger(__name__)

STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
NO_MESSAGE: Final = 10037
_NO_JETSTREAM: Final = (10039, 10076)
_NO_PEERS: Final = 10005
_BETWEEN_LEADERS: Final = frozenset({10007, 10009, 10118, 10119})
"""Of code 500, from a server that has lost its part a moment ago, or not got it yet: it is not
assigned the stream, does not lead it, or takes stream or consumer for offline
(https://github.com/nats-io/nats-server/blob/main/server/errors.json)."""
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 1.0


class Answer(NamedTuple):
    """An answer; of `body`, only what the caller asked for is of interest."""

    body: dict[str, Any]
    error: ApiError | None

    @property
    def error_code(self) -> int:
        """JetStream's own code of the error, 0 for none."""
        return self.error.err_code if self.error else 0


async def ask(
    connection: NatsConnection, what: str, question: Mapping[str, Any] | None, seconds: float
) -> Answer:
    """The answer to `$JS.API.<what>`; raises ConnectionFailed when there is none in time.

    While the server is not ready (a leader is being elected, say), it is asked again, after pauses
    that grow.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    payload = b"" if question is None else msgspec.json.encode(question)
    failure, pause = "no answer", _FIRST_PAUSE_S
    while (left := deadline - loop.time()) > 0:
        if not await connection.wait_connected(left):
            break
        try:
            reply = await connection.request(f"$JS.API.{what}", payload)
        except PublishFailed as exc:
            raise ConnectionFailed(str(exc), driver=DRIVER) from exc
        if reply is not None and reply.status == "503":
            failure = "the server has no JetStream (start it with -js)"
        elif reply is not None:
            answer = _read(what, reply.payload)
            if answer.error is None or not _passes(answer.error):
                return answer
            if failure != str(answer.error):
                failure = str(answer.error)
                _log.info("%s: %s; it is asked again", what, failure)
            if answer.error_code in _NO_JETSTREAM:
                break
        # Many nodes may have lost the same leader, and are not to ask in step.
        wait = pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
        await asyncio.sleep(min(wait, max(0.0, deadline - loop.time())))
        pause = min(2 * pause, _MAX_PAUSE_S)
    raise ConnectionFailed(f"asking {connection.address} for {what}: {failure}", driver=DRIVER)


async def ensure_stream(
    connection: NatsConnection, config: Mapping[str, Any], seconds: float
) -> Answer:
    """What the server says of the stream of that configuration, made where there was none.

    It is looked for first: who may use a stream need not have the right to make it. Raises
    ConnectionFailed.
    """
    name = config["name"]
    answer = await ask(connection, f"STREAM.INFO.{name}", None, seconds)
    if answer.error_code == STREAM_NOT_FOUND:
        answer = await ask(connection, f"STREAM.CREATE.{name}", config, seconds)
        if answer.error_code == NAME_IN_USE:  # another process was first
            answer = await ask(connection, f"STREAM.INFO.{name}", None, seconds)
    return answer


class Got(NamedTuple):
    """A message, as the leader of its stream has it."""

    subject: str
    sequence: int
    time: str
    headers: Mapping[str, str]


async def get_message(
    connection: NatsConnection, stream: str, question: Mapping[str, Any], seconds: float
) -> Got | None:
    """The message that the question is about; None where there is none.

    Any replica answers direct gets, also one that lags; this answer is the leader's. Raises
    ConnectionFailed.
    """
    answer = await ask(connection, f"STREAM.MSG.GET.{stream}", question, seconds)
    if answer.error_code == NO_MESSAGE:
        return None
    if answer.error is not None:
        raise ConnectionFailed(
            f"asking stream {stream} for a message: {answer.error}", driver=DRIVER
        )
    found = answer.body["message"]
    lines = base64.b64decode(found.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Got(found["subject"], found["seq"], found["time"], headers)


async def newest(connection: NatsConnection, stream: str, subject: str, seconds: float) -> int:
    """The sequence of the newest message of a subject or filter, as the stream's leader has it.

    0 when there is none. Raises ConnectionFailed.
    """
    found = await get_message(connection, stream, {"last_by_subj": subject}, seconds)
    return found.sequence if found is not None else 0


def _passes(error: ApiError) -> bool:
    """Whether a refusal is one of a cluster that is not whole yet, and may be another one soon.

    A leader that has been elected a moment ago has not heard of its peers, and finds no place for
    replicas: nats-server names no code of its own for that, only the words (`selectPeerError`).
    """
    return (
        error.code == 503
        or error.err_code in _BETWEEN_LEADERS
        or (error.err_code == _NO_PEERS and "peer offline" in error.description)
    )


def _read(what: str, payload: bytes) -> Answer:
    try:
        body = msgspec.json.decode(payload, type=dict[str, Any])
        return Answer(body, msgspec.convert(body.get("error"), ApiError | None))
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise ConnectionFailed(
            f"the answer to {what} cannot be read: {exc}", driver=DRIVER
        ) from exc
