"""JetStream's API: requests that survive leader elections, and the operations on one stream."""

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

from eventbus.attempts import Backoff
from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection import NatsConnection
from eventbus.drivers.nats.errors import (
    DRIVER,
    NO_PEERS,
    ApiError,
    is_temporary,
)
from eventbus.errors import (
    ConnectionFailed,
    PublishFailed,
    StreamMismatch,
)
from eventbus.messages import json_decoder
from eventbus.retention import Durability
from eventbus.server import SYNC_TAG

__all__ = [
    "CONSUMER_EXISTS",
    "NANO",
    "NO_MESSAGE",
    "STREAM_NOT_FOUND",
    "Answer",
    "LeaderMessage",
    "Stream",
    "StreamInfo",
    "StreamMessage",
    "agreed_ack_wait",
    "create_consumer",
    "placement",
    "request_api",
    "server_tags",
]

_log = logging.getLogger(__name__)

NANO: Final = 1_000_000_000
CONSUMER_EXISTS: Final = 10148
"""The error of a create: the consumer exists, and has another configuration."""
"""JetStream's API gives durations in nanoseconds."""
STREAM_NOT_FOUND: Final = 10059
NO_MESSAGE: Final = 10037
_NAME_IN_USE: Final = 10058
_ACK_PENDING_ABOVE_LIMIT: Final = 10121
_NO_JETSTREAM: Final = (10039, 10076)
_HINTS: Final = {
    10047: "BROADCAST_HISTORY_BYTES is more than the server has left",
    10023: "BROADCAST_HISTORY_BYTES is more than the server has left",
    10065: "another stream captures these subjects: set BROADCAST_CHANNELS_PREFIX to another "
    "namespace, or remove that stream",
    10074: "BROADCAST_HISTORY_REPLICAS needs a cluster of as many servers",
    10052: "see BROADCAST_HISTORY_SECONDS and its neighbours",
    10026: "the account's limit max_consumers allows no more: there is one per queue, and one per "
    "group and event of a durable subscription",
    10027: "the account's limit max_streams allows no more: there is one for events, two for "
    "queues, two for state, and one per retention class",
    10113: "streams of queues have no limit of their own: the account must not set "
    "max_bytes_required",
}
SYNC_HINT: Final = (
    f'servers that sync each write have `server_tags: ["{SYNC_TAG}"]` and, in `jetstream`, '
    "`sync_interval: always` in their configuration"
)
_WHY_DISK: Final = (
    "BROADCAST_RETENTION, BROADCAST_HISTORY_DURABILITY or BROADCAST_QUEUE_DURABILITY asks for disk"
)
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 1.0
_NO_RESPONDERS: Final = "503"
_BATCH_ENDS: Final = ("204", "404")
_BATCH_BYTES: Final = 1024**2
"""A batch ends after the message that reaches this size."""
_decode_body: Final = json_decoder(dict[str, Any])
"""The end of a batch, and nothing that matches (NATS ADR-31)."""


class Answer(NamedTuple):
    """A response of the API; the caller reads from `body` what it asked for."""

    body: dict[str, Any]
    error: ApiError | None

    @property
    def error_code(self) -> int:
        """JetStream's own code of the error, 0 without an error."""
        return self.error.err_code if self.error else 0

    @property
    def why(self) -> str:
        """The error, with what helps; empty without an error."""
        if self.error is None:
            return ""
        hint = _HINTS.get(self.error.err_code)
        return f"{self.error}; {hint}" if hint else str(self.error)


async def create_consumer(
    connection: NatsConnection, what: str, request: Mapping[str, Any], seconds: float
) -> Answer:
    """Create or change a consumer by `$JS.API.CONSUMER.<what>`. Raises ConnectionFailed.

    An account that allows fewer unacknowledged messages than the request asks for gets the server's
    default, which is within the account's limit.
    """
    answer = await request_api(connection, f"CONSUMER.{what}", request, seconds)
    if answer.error_code != _ACK_PENDING_ABOVE_LIMIT:
        return answer
    config = {key: value for key, value in request["config"].items() if key != "max_ack_pending"}
    return await request_api(connection, f"CONSUMER.{what}", {**request, "config": config}, seconds)


async def request_api(
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
            failure = connection.why_silent
            break
        try:
            reply = await connection.request(f"$JS.API.{what}", payload)
        except PublishFailed as exc:
            raise ConnectionFailed(str(exc), driver=DRIVER) from exc
        if reply is not None and reply.status == _NO_RESPONDERS:
            failure = "the server has no JetStream (start it with -js)"
        elif reply is not None:
            answer = _decode(what, reply.payload)
            if answer.error is None or not is_temporary(answer.error):
                return answer
            if failure != str(answer.error):
                failure = str(answer.error)
                _log.info("%s: %s; retrying", what, failure)
            if answer.error_code in _NO_JETSTREAM:
                break
        await asyncio.sleep(min(backoff.next(), max(0.0, deadline - loop.time())))
    raise ConnectionFailed(f"asking {connection.address} for {what}: {failure}", driver=DRIVER)


def placement(durability: Durability) -> dict[str, Any]:
    """The placement on servers that sync each write, for a stream that must survive a power cut.

    In a cluster, the server keeps to that; a server without a cluster ignores it (nats-server
    2.15.1).
    """
    return {"placement": {"tags": [SYNC_TAG]}} if durability == "disk" else {}


class _TaggedServer(msgspec.Struct):
    name: str = ""
    tags: list[str] = []


class _UserInfo(msgspec.Struct):
    server: _TaggedServer = msgspec.field(default_factory=_TaggedServer)


_decode_user: Final = json_decoder(_UserInfo)


async def server_tags(connection: NatsConnection) -> list[str] | None:
    """The tags of this connection's server; None if the NATS user may not request them.

    `$SYS.REQ.USER.INFO` answers every user about itself, and names its server.
    """
    try:
        reply = await connection.request("$SYS.REQ.USER.INFO", b"")
    except PublishFailed:
        return None
    if reply is None or reply.status:
        return None
    try:
        return _decode_user(reply.payload).server.tags
    except msgspec.DecodeError as exc:  # not from a nats-server
        _log.info("cannot read the answer to $SYS.REQ.USER.INFO: %s", exc)
        return None


def agreed_ack_wait(consumer: Mapping[str, Any], own: int, *, is_joining: bool) -> int:
    """The `ack_wait` of a consumer, in nanoseconds, when a member asks for `own`.

    `consumer` is the answer to CONSUMER.INFO. Members of different versions of a service may have
    different times, and must settle on one: with a shorter one than a member assumes, a message
    that it still handles goes to another member. So the longest applies, and only a member that
    joins while no other is active may make it shorter.
    """
    present: int = consumer.get("config", {}).get("ack_wait", 0)
    is_idle = not consumer.get("num_waiting") and not consumer.get("num_ack_pending")
    return own if is_joining and is_idle else max(own, present)


def _decode(what: str, payload: bytes) -> Answer:
    try:
        body = _decode_body(payload)
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
    name: str = ""
    """Empty for a server without a cluster."""
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
    def tags(self) -> set[str]:
        """The tags that the placement of the stream requires."""
        return set((self.config.get("placement") or {}).get("tags") or ())

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

    @property
    def pending(self) -> int:
        """How many messages of the request's subject follow it in the stream.

        Large messages end a batch early: a batch shorter than was asked for need not be the end.
        """
        return int(self.headers.get("Nats-Num-Pending", "0"))


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
        return await request_api(
            self._connection, f"STREAM.{action}.{self.name}", request, self._timeout
        )

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
        return await self._checked(info)

    async def create(self, config: Mapping[str, Any]) -> StreamInfo:
        """Create the stream, unless another process does it. Raises like `ensure`."""
        info = await self._info("CREATE", config)
        if info.error is None:
            _log.info("created stream %s", self.name)
        elif info.error.err_code == _NAME_IN_USE:
            info = await self.info()
        return await self._checked(info)

    async def update(self, config: Mapping[str, Any]) -> StreamInfo:
        """Change the configuration; a refusal is in `error`. Raises ConnectionFailed."""
        return await self._info("UPDATE", config)

    async def require_placed(self, info: StreamInfo) -> None:
        """Raises StreamMismatch when it must survive a power cut, and its servers do not sync."""
        wanted = set((self.config.get("placement") or {}).get("tags") or ())
        if not wanted:
            return
        if info.cluster.name:
            if not wanted <= info.tags:
                raise StreamMismatch(
                    f"stream {self.name} exists, and is not placed on servers that sync each write "
                    f"to disk, although {_WHY_DISK}. To move it there: "
                    f"nats stream edit {self.name} --tag {SYNC_TAG}; {SYNC_HINT}",
                    driver=DRIVER,
                )
            return
        tags = await server_tags(self._connection)
        if tags is None:
            _log.info("stream %s: this NATS user cannot check whether its server syncs each write",
                      self.name)  # fmt: skip
        elif not wanted <= set(tags):
            raise StreamMismatch(
                f"stream {self.name}: {_WHY_DISK}, and the server at {self._connection.address} "
                f"has no tag {SYNC_TAG}: {SYNC_HINT}. An embedded server has both if the process "
                "that starts it has these settings",
                driver=DRIVER,
            )

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

        Large messages end a batch early, so that it arrives in time over a slow link, and before
        the server has so much to write that it closes the connection (`max_pending`). The caller
        decides whether to ask again: the stream may be missing or between two leaders.
        Raises ConnectionFailed, also for a request that the server refuses; see `is_denied`.
        """
        parts: list[tuple[bytes, WireHeaders]] = []
        if request.get("batch", 1) > 1:
            request = {"max_bytes": _BATCH_BYTES, **request}
        try:
            reply = await self._connection.request(
                f"$JS.API.DIRECT.GET.{self.name}", msgspec.json.encode(request), parts
            )
        except PublishFailed as exc:
            raise self.failure(f"cannot be read: {exc}") from exc
        if reply is None or reply.status == _NO_RESPONDERS:
            return None
        if reply.status not in _BATCH_ENDS:
            raise self.failure(f"cannot be read: status {reply.status}")
        return [StreamMessage(*part) for part in parts]

    async def _info(self, action: str, request: Mapping[str, Any] | None) -> StreamInfo:
        return msgspec.convert((await self.ask(action, request)).body, StreamInfo)

    async def _checked(self, info: StreamInfo) -> StreamInfo:
        self._require_created(info)
        await self.require_placed(info)
        return info

    def _require_created(self, info: StreamInfo) -> None:
        if info.error is None:
            return
        hint = _HINTS.get(info.error.err_code, "")
        if info.error.err_code == NO_PEERS and self.config.get("placement"):
            hint = (
                f"{_WHY_DISK}, which takes {self.config.get('num_replicas', 1)} servers of the "
                f"cluster that sync each write: {SYNC_HINT}"
            )
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
