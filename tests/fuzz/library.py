"""The decoders of the library, for data from the bus, an edge and settings."""

import base64
import contextlib
import datetime
import functools
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec
import typer

from eventbus.application import configured_application
from eventbus.channels import (
    MAX_CHANNEL_BYTES,
    Pattern,
    Subjects,
    decode_token,
    encode_token,
    validate_channel,
)
from eventbus.cli.broadcast import probe
from eventbus.cli.doctor.brokers import _clock, _parse as parse_doctor_info
from eventbus.cli.durations import duration
from eventbus.cli.running import read_json
from eventbus.cli.subjects.json_text import shown_json
from eventbus.cli.tokens import inspect as inspecting
from eventbus.cli.tokens.revoke import _moment
from eventbus.client.cursor import Cursor
from eventbus.client.frames import ClientMessage, decode_frame
from eventbus.client.joined import _decode_position
from eventbus.client.link import _decode_greeting
from eventbus.client.options import parse_address
from eventbus.client.registry import _decode_notice
from eventbus.client.requests import _decode_members, _decode_page, _decode_ref, _decode_refusal
from eventbus.client.session import _decode_notice as _decode_session_notice
from eventbus.cluster.announcing import encode_revocation, read_revocation
from eventbus.cluster.revocation import combined
from eventbus.config import Settings
from eventbus.contracts.lock import InvalidLock, read_lock
from eventbus.drivers import Delivery, Failure, Position
from eventbus.drivers.log.lines import Entry, LineFormat
from eventbus.drivers.marks import nanoseconds, timestamp
from eventbus.drivers.nats.auth import Credentials, CredentialsError, check_seed
from eventbus.drivers.nats.client import WireHeaders
from eventbus.drivers.nats.connection.cutoff import fault_of
from eventbus.drivers.nats.connection.replies import Reply
from eventbus.drivers.nats.jetstream import StreamInfo, _decode as decode_answer
from eventbus.drivers.nats.publish import _decode_ack
from eventbus.drivers.nats.subscriptions.repeats import id_of
from eventbus.drivers.redis import wire
from eventbus.drivers.redis.node import _parse as parse_info
from eventbus.drivers.redis.target import Target as RedisTarget
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    InvalidChannel,
    InvalidPattern,
    InvalidPayload,
    InvalidWebhook,
    UnknownEvent,
)
from eventbus.events import Event, EventReader, ShouldBroadcast, read_delivery
from eventbus.events.decoding import parse_time
from eventbus.integrations.pusher import PusherApp, decode_key
from eventbus.messages import decode_json, decode_metadata, decode_tags
from eventbus.messages.envelope import read_payload, read_whole
from eventbus.outbox.rows import Row, prepared
from eventbus.queue.jobs import event_of, read_failure, read_job
from eventbus.retention import Retention
from eventbus.server.lock import _holder
from eventbus.urls import is_web_address, mask_url, parse_broker_address, parse_host
from eventbus.webhooks import HEADER_SIGNATURE, HEADER_TIMESTAMP, sign, verify
from tests.fuzz.target import target

NOW: Final = "2026-11-24T03:00:12.123456Z"
ENVELOPE: Final = (
    b'{"channel":"general","event":"e","data":{"n":1},"timestamp":"%b","id":"1"}' % NOW.encode()
)
_SUBJECTS: Final = Subjects()


class Fuzzed(Event, ShouldBroadcast, channel="fuzzed.{shop}", name="fuzz.fuzzed"):
    """An event with fields of many types."""

    shop: int
    text: str = ""
    at: datetime.datetime | None = None
    more: dict[str, list[float]] | None = None


_reader: Final = EventReader(Fuzzed)


def text_of(data: bytes) -> str:
    """Any text, lone surrogates included, as arguments and variables of processes have them."""
    return data.decode("utf-8", "surrogateescape")


@functools.cache
def _folder_of(_pid: int) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="eventbus-fuzz-")


def folder() -> Path:
    """A folder of this process: a forked one removes its own when it ends."""
    return Path(_folder_of(os.getpid()).name)


def in_file(data: bytes) -> Path:
    """A file with these bytes."""
    file = folder() / "file"
    file.write_bytes(data)
    return file


# Names


@target(
    "eventbus.channels", seeds=["general", "user.auth0~7c7", "a.b.c"], allowed=(InvalidChannel,)
)
def channel_name(data: bytes) -> None:
    name = validate_channel(text_of(data))
    assert len(name.encode()) <= MAX_CHANNEL_BYTES
    assert _SUBJECTS.channel_of(_SUBJECTS.live(name)) == name
    assert not set(name) & set(" \t\r\n\0*>\v\f")
    for token in name.split("."):
        assert encode_token(decode_token(token)) == token


@target(
    "eventbus.channels",
    seeds=["team.{team_id}\nteam.7", "orders.>\norders.eu.42", "*.a\nb.a"],
    allowed=(InvalidPattern, InvalidChannel),
)
def channel_pattern(data: bytes) -> None:
    pattern, _, channel = text_of(data).partition("\n")
    parsed = Pattern(pattern)
    assert parsed.contains(parsed)
    captured = parsed.match(validate_channel(channel))
    if captured is not None and parsed.names and ">" not in pattern and "*" not in pattern:
        assert parsed.fill(captured) == channel


# The bus


@target(
    "eventbus.messages.envelope", "eventbus.events.decoding", "eventbus.events.history",
    seeds=[ENVELOPE, b'{"event":"e","data":1}', b'"text"', b'{"event":"e","data":[],"offset":1}'],
    allowed=(InvalidPayload,),
)  # fmt: skip
def bus_payload(data: bytes) -> None:
    whole = read_whole("general", data)
    envelope = read_payload("general", data)
    if whole is not None:
        assert whole == envelope
    body = json.loads(envelope.body)  # msgspec refuses numbers that no float can hold
    assert body["channel"] == "general"
    assert body["event"] == envelope.event
    assert not envelope.event.startswith("eb:")
    assert not {"offset", "epoch", "mark"} & body.keys()


@target(
    "eventbus.drivers.nats.subscriptions.repeats",
    seeds=[ENVELOPE, b'{"event":"e","data":1,"id":"7"}', b'"text"', b'{"id":7}'],
)
def volatile_message(data: bytes) -> None:
    assert isinstance(id_of(data), str)


@target(
    "eventbus.events.decoding", "eventbus.messages.headers",
    seeds=[
        b"Eb-Tags: a,b\r\nEb-Metadata: {}\r\nEb-Version: 2\r\n\r\n" + ENVELOPE,
        b'Eb-Event: e\r\nNats-Msg-Id: 1\r\n\r\n{"shop":3}',
    ],
    allowed=(InvalidPayload,),
)  # fmt: skip
def bus_event(data: bytes) -> None:
    raw, _, payload = data.partition(b"\r\n\r\n")
    headers = WireHeaders(b"NATS/1.0\r\n" + raw + b"\r\n\r\n")
    delivery = Delivery("eb.live.fuzzed.7", payload, headers, Position(1, "e"), 0, NOW)
    read_delivery("fuzzed.7", delivery)
    decode_tags(headers)
    decode_metadata(headers)
    found = _reader.read("fuzzed.7", delivery)
    assert found is None or isinstance(found[0], Fuzzed)


@target(
    "eventbus.drivers.nats.client",
    seeds=[
        (
            b"NATS/1.0\r\nNats-Stream: EB_EVENTS\r\nNats-Subject: eb.event.a\r\n"
            b"Nats-Sequence: 7\r\nNats-Time-Stamp: 2026-11-24T03:00:12Z\r\n"
            b"Nats-Last-Sequence: 6\r\n\r\n"
        ),
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\nEb-Event: e\r\n\r\n",
    ],
)
def nats_headers(data: bytes) -> None:
    headers = WireHeaders(data)
    stamp = headers.stamp(b"EB_EVENTS")
    assert stamp is None or isinstance(stamp.sequence, int)
    for name in ("Nats-Sequence", "Eb-Event", "Status"):
        found = headers.get(name)
        assert found is None or isinstance(found, str)
    assert isinstance(headers.status, str)
    assert all(isinstance(value, str) for value in headers.values())


@target(
    "eventbus.drivers.nats.jetstream", "eventbus.drivers.nats.publish",
    "eventbus.drivers.nats.connection.cutoff",
    seeds=[
        b'{"cluster":{"leader":"n1","replicas":[{"name":"n2","active":5000000000},{"active":1}]}}',
        b'{"error":{"code":404,"err_code":10059,"description":"no stream"}}',
        b'{"stream":"EB_EVENTS","seq":7,"duplicate":true}',
        b'{"config":{"num_replicas":3},"created":"2026-11-24T03:00:12Z","state":{"messages":1}}',
    ],
    allowed=(ConnectionFailed, msgspec.DecodeError, UnicodeDecodeError),
)  # fmt: skip
def jetstream_answer(data: bytes) -> None:
    answer = decode_answer("a question", data)
    with contextlib.suppress(msgspec.ValidationError):
        msgspec.convert(answer.body, StreamInfo)
    _decode_ack(data)
    assert isinstance(fault_of(Reply(data, "")), str)


@target(
    "eventbus.drivers.redis.wire",
    seeds=[
        b"\0eb1 k3 7 6 1795470000000000 12\n" + b'{"Eb-Id":"1"}' + ENVELOPE,
        b"\0eb0 0\n" + ENVELOPE,
        ENVELOPE,
    ],
)
def redis_message(data: bytes) -> None:
    delivery = wire.decode("eb.live.general", data)
    assert isinstance(delivery.payload, bytes)
    assert delivery.position is None or 0 <= delivery.position.offset < 2**53


@target(
    "eventbus.drivers.redis.node", "eventbus.cli.doctor.brokers",
    seeds=[b"# Server\r\nredis_version:7.2.1\r\nrole:master\r\n", b"2026-11-24T03:00:12Z"],
)  # fmt: skip
def redis_info(data: bytes) -> None:
    assert parse_info(data) == parse_doctor_info(data)
    _clock(data.decode(errors="replace"), time.time(), "the server", 1.0)


@target(
    "eventbus.drivers.marks",
    seeds=["2026-11-24T03:00:12.123456789Z", "1970-01-01T00:00:00+00:00", "9999-12-31T23:59:59Z"],
)
def mark(data: bytes) -> None:
    nanos = nanoseconds(text_of(data))
    if nanos is not None:
        assert nanoseconds(timestamp(nanos)) == nanos
    moment = parse_time(text_of(data))
    assert moment is None or moment.tzinfo is not None


@target(
    "eventbus.cluster.announcing",
    seeds=[
        b'{"at":1795470000.0,"until":1795473600.0,"user_id":"7"}',
        b'{"at":0,"until":1,"channel":"a","issued_before":1,"lifted":false}',
    ],
)
def revocation(data: bytes) -> None:
    found = read_revocation(data)
    if found is not None:
        assert read_revocation(encode_revocation(found)) == found
        assert combined(found, found).key == found.key
        found.holds(time.time())
        read_revocation(encode_revocation(found.lift(time.time())))


@target(
    "eventbus.drivers.log.lines", "eventbus.drivers.log.mask",
    seeds=[ENVELOPE, b'{"event":"e","data":{"token":"x"}}', b'{"data":"{\\"password\\":1}"}'],
)  # fmt: skip
def log_line(data: bytes) -> None:
    head, _, _ = data.partition(b"\n")
    headers = {"X": head[:20].decode(errors="replace")}
    moment = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
    entry = Entry(moment, "eb.event.general", data, headers)
    lines = LineFormat(_SUBJECTS, ("token", "password"))
    line = lines.json(entry)
    assert "\n" not in line
    msgspec.json.decode(line)
    assert "\x1b" not in lines.readable(entry, colour=False)


# The queue and the outbox


@target(
    "eventbus.queue.jobs", "eventbus.events.event",
    seeds=[
        b'{"event":"fuzz.fuzzed","queue":"default","tries":3,"timeout":5.0,"backoff":[1.0],'
        b'"queued_at":"%b","meta":{"id":"1","timestamp":"%b"},"data":{"shop":7}}'
        % (NOW.encode(), NOW.encode())
    ],
    allowed=(InvalidPayload, UnknownEvent),
)  # fmt: skip
def job(data: bytes) -> None:
    found = read_job(data)
    assert found.pause_after(1) >= 0
    event_of(found)


@target("eventbus.queue.jobs", seeds=[
    b'{"id":"1","queue":"q","event":"E","attempts":1,"failed_at":"%b","error":"E","message":"",'
    b'"traceback":""}' % NOW.encode()
])  # fmt: skip
def failed_job(data: bytes) -> None:
    msgspec.json.encode(read_failure(Failure("id", "queue", text_of(data), b"")))


@target(
    "eventbus.outbox.rows",
    seeds=[b"message\n{}\n" + ENVELOPE, b'job\n{}\n{"event":"E"}', b"other\n\n"],
    allowed=(InvalidPayload,),
)
def outbox_row(data: bytes) -> None:
    kind, _, rest = data.partition(b"\n")
    headers, _, payload = rest.partition(b"\n")
    prepared(
        Row(
            message_id="1",
            kind=kind.decode(errors="replace"),  # type: ignore[arg-type]  # it is from a table
            channel="general",
            event="e",
            payload=payload,
            headers=headers,
        )
    )


# Webhooks


@target(
    "eventbus.webhooks",
    seeds=[
        b'{"events":[{"id":"1","event":"member_left","channel":"presence.a","timestamp":"%b",'
        b'"user_id":"7"}]}' % NOW.encode()
    ],
    allowed=(InvalidWebhook,),
)
def webhook_body(data: bytes) -> None:
    now = int(time.time())
    headers = {HEADER_TIMESTAMP: str(now), HEADER_SIGNATURE: sign(data, "secret", now)}
    verify(headers, data, "secret")


@target(
    "eventbus.webhooks",
    seeds=[b"1795470000\nv1=00,v1=11\nbody"],
    allowed=(InvalidWebhook,),
)
def webhook_headers(data: bytes) -> None:
    stamp, signature, *rest = (data.decode("latin-1") + "\n\n").split("\n")
    verify({HEADER_TIMESTAMP: stamp, HEADER_SIGNATURE: signature}, "".join(rest).encode(), "secret")
    raise AssertionError("a request without a right signature was accepted")


# JSON


@target(
    "eventbus.messages.json_depth", "eventbus.cli.running", "eventbus.cli.subjects.json_text",
    seeds=[ENVELOPE, b"[[[[1]]]]", b'{"a":{"b":["\\ud800"]}}', b"[" * 200, b'"\\u0007"'],
    allowed=(msgspec.DecodeError, UnicodeDecodeError),
)  # fmt: skip
def json_text(data: bytes) -> None:
    with contextlib.suppress(typer.Exit), contextlib.redirect_stderr(io.StringIO()):
        read_json(text_of(data), "--data")
    decode_json(data)
    shown_json(data.decode())


# The client


@target(
    "eventbus.client.frames", "eventbus.client.handlers", "eventbus.client.joined",
    "eventbus.client.link", "eventbus.client.registry", "eventbus.client.requests",
    "eventbus.client.session",
    seeds=[
        ENVELOPE,
        b'{"event":"eb:connected","channel":null,"data":{"connection_id":"a","node":"n",'
        b'"heartbeat_s":25.0,"ref":1},"timestamp":"%b"}' % NOW.encode(),
        (b'{"event":"eb:subscribed","channel":"a","data":{"offset":7,"epoch":"e","mark":"m",'
        b'"recovered":false,"members":[{"user_id":"1","info":{}}]}}'),
        b'{"event":"eb:history","data":{"messages":[{"event":"e"}],"offset":1,"epoch":"e"}}',
    ],
    allowed=(ValueError,),  # what `Link.read` skips: msgspec's errors are ValueErrors
)  # fmt: skip
def edge_frame(data: bytes) -> None:
    frame = decode_frame(data.decode())
    message = ClientMessage.of(frame)
    cursor = Cursor()
    cursor.ask()
    cursor.subscribed(None, None, recovered=None)
    for _ in range(2):
        cursor.take(frame.offset, frame.epoch, frame.mark)
    faults = []
    for decode in (
        _decode_position, _decode_greeting, _decode_notice, _decode_session_notice,
        _decode_members, _decode_page, _decode_ref, _decode_refusal,
    ):  # fmt: skip
        try:
            decode(frame.data)
        except ValueError as exc:
            faults.append(exc)
    msgspec.json.encode(message.data)


@target(
    "eventbus.cli.broadcast.probe",
    seeds=[ENVELOPE, b'{"event":"eb:error","data":{"code":"c","message":"m","ref":"r"}}'],
    allowed=(probe.EdgeRefused,),
)
def probed_frame(data: bytes) -> None:
    text = data.decode(errors="replace")
    frame = probe._decode(text, probe._Frame, "ws://edge")
    probe._decode(frame.data, probe._Reply, "ws://edge")


# Settings, files and arguments


@target(
    "eventbus.retention",
    seeds=["orders.>:1000/24h prices.*:1/7d/64MiB", "a:1/0.1s"],
    allowed=(ConfigError,),
)
def retention(data: bytes) -> None:
    classes = Retention(text_of(data))
    classes.of("orders.eu")
    assert classes.max_count >= 1
    assert classes.max_seconds > 0


@target(
    "eventbus.environment", "eventbus.urls", "eventbus.drivers.redis.target",
    seeds=[
        "NATS_URL=nats://user:pass@localhost:4222\nBROADCAST_DRIVER=nats",
        "BROADCAST_REDIS_URL=redis+sentinel://a,b:26379/main/1\nBROADCAST_HISTORY_SECONDS=60",
        "BROADCAST_RETENTION=a.>:10/1h\nPUSHER_APP_ID=1\nPUSHER_APP_KEY=k",
    ],
    allowed=(ConfigError,),
)  # fmt: skip
def settings(data: bytes) -> None:
    environ = variables_of(data)
    with contextlib.suppress(ConfigError):
        PusherApp.from_env(environ)
    made = Settings.from_env(environ)
    assert "pass@" not in repr(made)
    RedisTarget.of(made)


def variables_of(data: bytes) -> dict[str, str]:
    """Lines NAME=value as variables, without those that name files."""
    pairs = (line.partition("=")[::2] for line in text_of(data).split("\n"))
    return {name: value for name, value in pairs if not name.endswith("_FILE")}


@target(
    "eventbus.urls", "eventbus.client.options", "eventbus.drivers.redis.target",
    seeds=[
        "nats://user:p%40ss@a:4222,b:4223", "wss://edge.example.com/ws?x=1", "[::1]:80",
        "redis://:secret@h:6379/3",
    ],
    allowed=(ValueError, ConfigError),
)  # fmt: skip
def address(data: bytes) -> None:
    text = text_of(data)
    mask_url(text)
    is_web_address(text)
    for parse in (parse_host, parse_address):
        with contextlib.suppress(ValueError):
            parse(text)
    try:
        RedisTarget.of(Settings(redis_url=text))
    except ConfigError as exc:
        assert "secret" not in str(exc)  # noqa: PT017 - any other error is a fault
    parse_broker_address(text, ("nats", "tls"))


@target(
    "eventbus.application",
    seeds=['[tool.eventbus]\napp = "shop.events"', '[project]\nversion = "1"', "a = 1979-05-27"],
    allowed=(ConfigError,),
)
def pyproject(data: bytes) -> None:
    (folder() / "pyproject.toml").write_bytes(data)
    before = Path.cwd()
    os.chdir(folder())
    try:
        configured_application()
    finally:
        os.chdir(before)


@target(
    "eventbus.contracts.lock", "eventbus.contracts.strict_json", "eventbus.cli.schema.commands",
    seeds=[
        (b'{"format":1,"events":{"E":{"version":1,"kind":"message","channels":["a"],'
        b'"volatile":false,"data":{"type":"object"}}}}'),
        b'{"format":1,"events":{},"events":{}}',
    ],
    allowed=(InvalidLock,),
)  # fmt: skip
def contract_lock(data: bytes) -> None:
    read_lock(in_file(data))


_JWT: Final = ".".join(
    base64.urlsafe_b64encode(part).rstrip(b"=").decode()
    for part in (b'{"typ":"JWT"}', b'{"sub":"U","nats":{"type":"user"}}', b"signature")
)


@target(
    "eventbus.drivers.nats.auth",
    seeds=[
        (
            f"-----BEGIN NATS USER JWT-----\n{_JWT}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\nSU{'A' * 56}\n------END USER NKEY SEED------\n"
        ),
        f"SU{'A' * 56}",
    ],
    allowed=(CredentialsError,),
)
def nats_credentials(data: bytes) -> None:
    path = str(in_file(data))
    with contextlib.suppress(CredentialsError):
        check_seed(path)
    Credentials(path).load()


@target(
    "eventbus.integrations.pusher",
    seeds=["", base64.b64encode(bytes(range(32))).decode(), "AAAA", "é"],
)
def encryption_key(data: bytes) -> None:
    assert len(decode_key(text_of(data)) or b"") in {0, 32}


@target("eventbus.server.lock", seeds=[b'{"pid":1,"url":"nats://127.0.0.1:4222"}', b"", b"[]"])
def lock_holder(data: bytes) -> None:
    pid, url = _holder(in_file(data))
    assert isinstance(pid, int)
    assert isinstance(url, str)


@target(
    "eventbus.cli.durations", "eventbus.cli.tokens.revoke",
    seeds=["90s", "1.5h", "1795470000", "2026-11-24T03:00:12Z"],
    allowed=(typer.Exit,),
)  # fmt: skip
def cli_time(data: bytes) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(typer.Exit):
            assert duration(text_of(data), "--for") > 0
        assert isinstance(_moment(text_of(data)), float)


@target("eventbus.cli.tokens.inspect", seeds=[_JWT, "a.b.c", "eyJhIjoxZTMwOX0.e30.x"])
def inspected_token(data: bytes) -> None:
    for part in inspecting._parts(text_of(data)):
        if isinstance(part, dict):
            for name, value in part.items():
                shown = inspecting._shown(name, value)
                assert not set(shown) & set("\x1b\n\r")
