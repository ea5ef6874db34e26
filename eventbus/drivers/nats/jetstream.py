"""JetStream's API: requests that outlast elections, and a stream that they are made about."""

import asyncio
import base64
import datetime
import logging
from collections.abc import (
    Mapping,
    Sequence,
)
from typing import (
    Any,
    Final,
    NamedTuple,
)

import msgspec

from eventbus.backoff import Backoff
from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import (
    DRIVER,
    ApiError,
)
from eventbus.errors import (
    ConnectionFailed,
    PublishFailed,
    StreamMismatch,
)

__all__ = [
    "NANO",
    "NO_MESSAGE",
    "STREAM_NOT_FOUND",
    "Answer",
    "LeaderMessage",
    "Stream",
    "StreamInfo",
    "StreamMessage",
    "ask",
]

_log = logging.getLogger(__name__)

NANO: Final = 1_000_000_000
"""JetStream's API gives durations in nanoseconds."""
STREAM_NOT_FOUND: Final = 10059
NO_MESSAGE: Final = 10037
_NAME_IN_USE: Final = 10058
_NO_JETSTREAM: Final = (10039, 10076)
_NO_PEERS: Final = 10005
_BETWEEN_LEADERS: Final = frozenset({10007, 10009, 10118, 10119})
"""Errors with code 500 of a server that has just lost its role or not yet assumed it: it is not
assigned the stream, does not lead it, or considers the stream or consumer offline
(https://github.com/nats-io/nats-server/blob/main/server/errors.json)."""
_HINTS: Final = {
    10047: "BROADCAST_HISTORY_BYTES is more than the server has left",
    10023: "BROADCAST_HISTORY_BYTES is more than the server has left",
    10065: "another stream captures these subjects: set BROADCAST_CHANNELS_PREFIX to another "
    "namespace, or remove that stream",
    10074: "BROADCAST_HISTORY_REPLICAS needs a cluster of as many servers",
    10052: "see BROADCAST_HISTORY_SECONDS and its neighbours",
}
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 1.0
_NO_RESPONDERS: Final = "503"
_BATCH_ENDS: Final = ("204", "404")
"""The end of a batch, and nothing that matches (NATS ADR-31)."""


class Answer(NamedTuple):
    """A response of the API; the caller reads from `body` what it asked for."""

    body: dict[str, Any]
    error: ApiError | None

    @property
    def error_code(self) -> int:
        """JetStream's own code of the error, 0 without an error."""
        return self.error.err_code if self.error else 0


async def ask(
    connection: NatsConnection, what: str, request: Mapping[str, Any] | None, seconds: float
) -> Answer:
    """Request `$JS.API.<what>`. Raises ConnectionFailed when there is no answer in time.

    While the server is not ready, such as during an election, the request is repeated.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    payload = b"" if request is None else msgspec.json.encode(request)
    # Jittered: many nodes may have lost the same leader at once.
    failure, backoff = "no answer", Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
    while (left := deadline - loop.time()) > 0:
        if not await connection.wait_connected(left):
            break
        try:
            reply = await connection.request(f"$JS.API.{what}", payload)
        except PublishFailed as exc:
            raise ConnectionFailed(str(exc), driver=DRIVER) from exc
        if reply is not None and reply.status == _NO_RESPONDERS:
            failure = "the server has no JetStream (start it with -js)"
        elif reply is not None:
            answer = _decode(what, reply.payload)
            if answer.error is None or not _is_temporary(answer.error):
                return answer
            if failure != str(answer.error):
                failure = str(answer.error)
                _log.info("%s: %s; retrying", what, failure)
            if answer.error_code in _NO_JETSTREAM:
                break
        await asyncio.sleep(min(backoff.next(), max(0.0, deadline - loop.time())))
    raise ConnectionFailed(f"asking {connection.address} for {what}: {failure}", driver=DRIVER)


def _is_temporary(error: ApiError) -> bool:
    """Whether a cluster that is still electing or discovering its peers may succeed soon.

    A new leader that does not know its peers yet finds no place for replicas. nats-server has no
    code of its own for that, only the words (`selectPeerError`).
    """
    return (
        error.code == 503
        or error.err_code in _BETWEEN_LEADERS
        or (error.err_code == _NO_PEERS and "peer offline" in error.description)
    )


def _decode(what: str, payload: bytes) -> Answer:
    try:
        body = msgspec.json.decode(payload, type=dict[str, Any])
        return Answer(body, msgspec.convert(body.get("error"), ApiError | None))
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise ConnectionFailed(f"cannot read the answer to {what}: {exc}", driver=DRIVER) from exc


class _State(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    first_ts: str = ""
    last_seq: int = 0
    last_ts: str = ""
    subjects: dict[str, int] | None = None


class _Cluster(msgspec.Struct):
    leader: str = ""


class _Source(msgspec.Struct):
    lag: int = 0
    active: int = -1
    """Nanoseconds since the stream last heard from the source; negative for never."""


class StreamInfo(msgspec.Struct):
    """A stream's configuration and state; `error` when the server refused the request."""

    config: dict[str, Any] = {}
    created: str = ""
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    ts: datetime.datetime = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    """The server's clock."""
    state: _State = msgspec.field(default_factory=_State)
    sources: list[_Source] = []
    error: ApiError | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the configuration."""
        return self.config.get("metadata") or {}

    @property
    def is_replicated(self) -> bool:
        """Whether several servers hold the stream."""
        return int(self.config.get("num_replicas", 1)) > 1

    @property
    def max_per_subject(self) -> int:
        """How many messages a subject may have; not above 0 for no limit."""
        return int(self.config.get("max_msgs_per_subject", -1))


class StreamMessage(NamedTuple):
    """A message of a batch get. The stream's own headers follow the publisher's."""

    payload: bytes
    headers: WireHeaders

    @property
    def subject(self) -> str:
        """The subject that it is stored on."""
        return self.headers.get("Nats-Subject", "")

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        return int(self.headers.get("Nats-Sequence", "0"))


class LeaderMessage(NamedTuple):
    """A message as the leader of its stream has it."""

    subject: str
    sequence: int
    time: str
    headers: Mapping[str, str]


class Stream:
    """One JetStream stream: created, compared with its configuration, queried and read."""

    def __init__(
        self,
        connection: NatsConnection,
        config: Mapping[str, Any],
        timeout: float,
        *,
        must_match: Sequence[str] = (),
        may_differ: Sequence[str] = (),
    ) -> None:
        """`config` is what JetStream's API takes; `timeout` holds for each request.

        The driver cannot work when settings in `must_match` differ from an existing stream's. Those
        in `may_differ` are limits of which the existing ones apply.
        """
        self.config = config
        self.name: str = config["name"]
        self._connection = connection
        self._timeout = timeout
        self._must_match = must_match
        self._may_differ = may_differ

    async def ask(self, action: str, request: Mapping[str, Any] | None = None) -> Answer:
        """Request `$JS.API.STREAM.<action>.<name>`. Raises ConnectionFailed without an answer."""
        return await ask(self._connection, f"STREAM.{action}.{self.name}", request, self._timeout)

    async def info(self, request: Mapping[str, Any] | None = None) -> StreamInfo:
        """Query the stream; a refusal is in `error`. Raises ConnectionFailed."""
        return await self._info("INFO", request)

    async def require_info(self, request: Mapping[str, Any] | None = None) -> StreamInfo:
        """Query the stream. Raises ConnectionFailed, also for a refusal."""
        info = await self.info(request)
        if info.error is not None:
            raise self.failure(info.error)
        return info

    async def ensure(self) -> StreamInfo:
        """Create the stream if it does not exist. Raises ConnectionFailed and StreamMismatch.

        It is queried first: a user of an existing stream need not have the right to create one.
        """
        info = await self.info()
        if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
            return await self.create(self.config)
        return self._require_created(info)

    async def create(self, config: Mapping[str, Any]) -> StreamInfo:
        """Create the stream, unless another process does it. Raises like `ensure`."""
        info = await self._info("CREATE", config)
        if info.error is None:
            _log.info("created stream %s", self.name)
        elif info.error.err_code == _NAME_IN_USE:
            info = await self.info()
        return self._require_created(info)

    async def update(self, config: Mapping[str, Any]) -> StreamInfo:
        """Change the configuration; a refusal is in `error`. Raises ConnectionFailed."""
        return await self._info("UPDATE", config)

    async def delete(self) -> None:
        """Delete the stream; a missing one is not an error. Raises ConnectionFailed."""
        await self.ask("DELETE")

    async def purge(self, request: Mapping[str, Any] | None = None) -> int:
        """Delete messages; returns how many. A missing stream has none. Raises ConnectionFailed."""
        answer = await self.ask("PURGE", request)
        if answer.error_code == STREAM_NOT_FOUND:
            return 0
        if answer.error is not None:
            raise self.failure(answer.error)
        return int(answer.body.get("purged", 0))

    def differences(self, found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """How an existing configuration differs: where it must match, and where it may differ."""
        wrong = [line for name in self._must_match if (line := self._difference(name, found))]
        return wrong, [line for name in self._may_differ if (line := self._difference(name, found))]

    def require_match(self, found: Mapping[str, Any]) -> list[str]:
        """The limits that differ. Raises StreamMismatch when `found` cannot work."""
        wrong, limits = self.differences(found)
        if wrong:
            raise StreamMismatch(
                f"stream {self.name} exists with settings that cannot work: {'; '.join(wrong)}. "
                "Change it, remove it, or set BROADCAST_CHANNELS_PREFIX to another namespace",
                driver=DRIVER,
            )
        return limits

    def failure(self, error: ApiError | str) -> ConnectionFailed:
        """The error to raise when a request about this stream failed."""
        return ConnectionFailed(f"stream {self.name}: {error}", driver=DRIVER)

    async def message(self, request: Mapping[str, Any]) -> LeaderMessage | None:
        """One message from the leader; None where there is none. Raises ConnectionFailed.

        Any replica answers direct gets, even one that lags; only the leader answers this.
        """
        answer = await self.ask("MSG.GET", request)
        if answer.error_code == NO_MESSAGE:
            return None
        if answer.error is not None:
            raise self.failure(answer.error)
        found = answer.body["message"]
        lines = base64.b64decode(found.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")
        headers = {
            name: value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        return LeaderMessage(found["subject"], found["seq"], found["time"], headers)

    async def newest(self, subject: str) -> int:
        """The newest sequence of a subject or filter, from the leader; 0 without a message.

        Raises ConnectionFailed.
        """
        found = await self.message({"last_by_subj": subject})
        return found.sequence if found is not None else 0

    async def batch(self, request: Mapping[str, Any]) -> list[StreamMessage] | None:
        """One batch of direct gets (NATS ADR-31), answered by any replica; None without an answer.

        The caller decides whether to ask again: the stream may be missing or between two leaders.
        Raises ConnectionFailed for a request that the server refuses, PublishFailed like `request`.
        """
        parts: list[tuple[bytes, WireHeaders]] = []
        reply = await self._connection.request(
            f"$JS.API.DIRECT.GET.{self.name}", msgspec.json.encode(request), parts
        )
        if reply is None or reply.status == _NO_RESPONDERS:
            return None
        if reply.status not in _BATCH_ENDS:
            raise self.failure(f"cannot be read: status {reply.status}")
        return [StreamMessage(*part) for part in parts]

    async def _info(self, action: str, request: Mapping[str, Any] | None) -> StreamInfo:
        return msgspec.convert((await self.ask(action, request)).body, StreamInfo)

    def _require_created(self, info: StreamInfo) -> StreamInfo:
        if info.error is None:
            return info
        hint = _HINTS.get(info.error.err_code, "")
        raise StreamMismatch(
            f"cannot create stream {self.name}: {info.error}" + (f"; {hint}" if hint else ""),
            driver=DRIVER,
        )

    def _difference(self, name: str, found: Mapping[str, Any]) -> str:
        expected, actual = self.config.get(name) or None, found.get(name) or None
        if name == "discard":
            actual = actual or "old"
        if expected == actual:
            return ""
        return (
            f"{name} is {msgspec.json.encode(actual).decode()}, "
            f"not {msgspec.json.encode(expected).decode()}"
        )
